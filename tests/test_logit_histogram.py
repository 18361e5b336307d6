"""The logit histogram without a browser: its numbers are torch's, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from moe_lite.course.widgets import LogitHistogram

LOGITS_TE = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))


@settings(deadline=None)
@given(
    k=st.integers(1, 5),
    doublings=st.integers(0, 8),
    shift=st.integers(0, 256),
    precision=st.sampled_from(["float32", "bfloat16"]),
)
def test_the_routing_is_that_of_the_rounded_logits(k, doublings, shift, precision):
    widget = LogitHistogram(LOGITS_TE, k=k, doublings=doublings, shift=shift, precision=precision)
    grown_TE = (LOGITS_TE.double() * 2**doublings + shift).float()
    if precision == "bfloat16":
        grown_TE = grown_TE.to(torch.bfloat16).float()
    routing = widget.routing
    assert torch.equal(routing.logits_TE, grown_TE)
    gates_TK = routing.gate_N.view(40, k)
    torch.testing.assert_close(gates_TK, grown_TE.softmax(-1).topk(k).values)
    before, after = (
        LogitHistogram(LOGITS_TE, k=k, doublings=doublings, shift=shift, precision=p).routing
        for p in ("float32", "bfloat16")
    )
    sets = [[set(row) for row in r.expert_N.view(40, k).tolist()] for r in (before, after)]
    assert widget.changed == [t for t in range(40) if sets[0][t] != sets[1][t]]


def test_doubling_changes_no_choice_and_shifting_does():
    """Rounding is relative: a power of two passes through it, a shift does not."""
    changed = {tuple(LogitHistogram(LOGITS_TE, doublings=d, shift=0.0).changed) for d in range(9)}
    assert len(changed) == 1
    shifted = [len(LogitHistogram(LOGITS_TE, shift=s).changed) for s in (0, 16, 256)]
    assert shifted[0] < shifted[1] < shifted[2]


def test_it_begins_where_a_token_goes_elsewhere():
    apart_TE = torch.tensor([[1.0, 0.0], [0.0, 0.02]])  # the second flips at 8, the first never
    widget = LogitHistogram(apart_TE)
    assert (widget.shift, widget.token, widget.changed) == (8.0, 1, [1])
    assert LogitHistogram(apart_TE, shift=0.0).changed == []
    still = LogitHistogram(torch.tensor([[1.0, 0.0]]))
    assert (still.shift, still.token, still.changed) == (0.0, 0, [])
    assert LogitHistogram(apart_TE, token=0).token == 0


def test_the_papers_example():
    """Ten logits of 128 and one of 128.5: in bfloat16 all are equal, 0.142 becomes 0.091."""
    logits_TE = torch.full((1, 11), 128.0)
    logits_TE[0, 10] = 128.5
    widget = LogitHistogram(logits_TE)
    assert widget.spacing == 1 and widget.changed == [0]
    assert widget.gate_error == pytest.approx(0.1415 - 1 / 11, abs=1e-4)


@pytest.mark.parametrize(
    ("largest", "spacing"), [(1.0, 2**-7), (1.99, 2**-7), (2.0, 2**-6), (-255.0, 1), (0.0, 0)]
)
def test_the_spacing_is_that_of_bfloat16(largest, spacing):
    widget = LogitHistogram(torch.tensor([[largest, 0.0]]), shift=0.0)
    assert widget.spacing == spacing
    if largest > 0:
        above = torch.nextafter(torch.tensor(largest).bfloat16(), torch.tensor(1e9).bfloat16())
        assert above.item() - torch.tensor(largest).bfloat16().item() == spacing


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("doublings", -1, "doublings must be from 0 to 8, not -1"),
        ("doublings", 9, "not 9"),
        ("shift", -0.5, "shift must be from 0 to 256, not -0.5"),
        ("shift", 257, "not 257"),
        ("token", 40, "token must be from 0 to 39, not 40"),
        ("precision", "float16", "precision"),
    ],
)
def test_what_cannot_be_is_refused(name, value, complaint):
    widget = LogitHistogram(LOGITS_TE)
    with pytest.raises(TraitError, match=complaint):
        setattr(widget, name, value)
    with pytest.raises(TraitError, match=complaint):
        LogitHistogram(LOGITS_TE, **{name: value})


@pytest.mark.parametrize(
    "logits_TE",
    [torch.zeros(0, 4), torch.zeros(501, 4), torch.zeros(3, 1), torch.zeros(3, 17),
     torch.tensor([[0.0, float("nan")]])],
)  # fmt: skip
def test_logits_that_cannot_be_shown_are_refused(logits_TE):
    with pytest.raises(ValueError, match="the logit histogram shows 1 to 500 tokens"):
        LogitHistogram(logits_TE)


def test_texts_and_k_must_fit():
    with pytest.raises(ValueError, match="there are 40 tokens, but 1 texts"):
        LogitHistogram(LOGITS_TE, tokens=["a"])
    with pytest.raises(ValueError, match="k must be between 1 and 5 experts, not 6"):
        LogitHistogram(LOGITS_TE, k=6)


@pytest.mark.parametrize(
    "settings", [{}, {"k": 2}, {"precision": "float32"}, {"shift": 256, "token": 39}]
)
def test_it_has_a_still_face(settings):
    widget = LogitHistogram(LOGITS_TE, **settings)
    assert widget.png()[1:4] == b"PNG"


def test_equal_logits_can_be_shown():
    assert LogitHistogram(torch.zeros(3, 4)).png()[1:4] == b"PNG"
