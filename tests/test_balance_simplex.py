"""The simplex without a browser: its numbers are the library's, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from traitlets import TraitError

from moe_lite.course.widgets import BalanceSimplex
from moe_lite.course.widgets.balance_simplex import STEP
from moe_lite.losses import load_balancing_loss

logits = arrays("float64", st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(-8, 8))


@settings(deadline=None)
@given(logits)
def test_the_push_is_the_slope_of_the_loss_with_f_as_it_is(z):
    z_T3 = torch.from_numpy(z)
    widget, T = BalanceSimplex(z_T3), len(z_T3)
    p_T3 = z_T3.softmax(-1)
    f_3 = widget.routing.load_E().double() / T
    assert widget.value == pytest.approx(3 * (f_3 * p_T3.mean(0)).sum().item())
    slope_T3 = 3 / T * p_T3 * (f_3 - (p_T3 * f_3).sum(-1, keepdim=True))
    torch.testing.assert_close(widget.push_T3, -STEP * T * slope_T3, rtol=1e-5, atol=1e-7)


@settings(deadline=None)
@given(logits)
def test_equal_counts_mean_1_and_no_push(z):
    z_T3 = torch.from_numpy(z)
    widget = BalanceSimplex(torch.cat([z_T3.roll(n, dims=1) for n in range(3)]))
    counts_3 = widget.routing.load_E()
    if counts_3.min() == counts_3.max():  # where nothing ties
        assert widget.value == pytest.approx(1, abs=1e-6)
        assert widget.push_T3.abs().max() < 1e-6


def test_a_step_goes_down_until_a_choice_changes():
    widget = BalanceSimplex([[1.0, 0.2, 0.0], [0.9, 0.0, 0.3], [0.0, 1.0, 0.1]])
    before, counts_3 = widget.value, widget.routing.load_E()
    widget.step()
    assert widget.value < before and torch.equal(widget.routing.load_E(), counts_3)
    widget.step(40)
    assert widget.routing.load_E().tolist() == [1, 1, 1]
    assert torch.tensor(widget.logits).mean(-1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("start", "value", "loads"),
    [("below 1", 0.771, [6, 6, 0]), ("all tie", 1.0, [12, 0, 0]), ("sure", 1.788, [9, 2, 1])],
)
def test_the_starts_are_what_they_are_called(start, value, loads):
    widget = BalanceSimplex(start)
    assert widget.value == pytest.approx(value, abs=1e-3)
    assert widget.routing.load_E().tolist() == loads
    assert load_balancing_loss(widget.routing).item() == widget.value
    assert sorted(widget.state()) == ["colors", "logits", "selected", "starts"]


@pytest.mark.parametrize("start", sorted(BalanceSimplex.STARTS))
def test_it_has_a_still_face_and_a_page(start, tmp_path):
    widget = BalanceSimplex(start)
    assert widget.png()[1:4] == b"PNG"
    page = widget.to_html(tmp_path / "simplex.html").read_text(encoding="utf-8")
    assert widget.title in page and "://" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ("crowded", "start must be one of .*, not 'crowded'"),
        (torch.zeros(0, 3), "1 to 60 tokens over 3 experts"),
        (torch.zeros(61, 3), r"not \(61, 3\)"),
        (torch.zeros(4, 2), r"not \(4, 2\)"),
        (torch.tensor([[0.0, float("inf"), 0.0]]), "not finite"),
    ],
)
def test_what_cannot_be_shown_is_refused(start, complaint):
    with pytest.raises(ValueError, match=complaint):
        BalanceSimplex(start)


def test_what_cannot_be_set_is_refused():
    widget = BalanceSimplex(torch.zeros(4, 3))
    for name, value, complaint in (
        ("selected", 4, "a token from 0 to 3, or -1 for all, not 4"),
        ("selected", -2, "not -2"),
        ("logits", [[0.0, 0.0]], "each token has 3 logits"),
        ("logits", [[0.0, 0.0, float("nan")]], "not finite"),
    ):
        with pytest.raises(TraitError, match=complaint):
            setattr(widget, name, value)
    assert (widget.selected, widget.logits) == (-1, [[0.0] * 3] * 4)
    widget.logits = [[1.0, 0.0, 0.0]] * 2  # fewer tokens: what moved is perhaps not there
    widget.selected = 1
