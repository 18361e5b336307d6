"""The bias controller without a browser: its run is Algorithm 1, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from moe_lite.course.widgets import BiasController
from moe_lite.course.widgets.bias_controller import STRIDE

LEAN = torch.linspace(0.8, -0.8, 6)
SCORES_TE = (torch.randn(90, 6, generator=torch.Generator().manual_seed(3)) + LEAN).sigmoid()


@settings(deadline=None, max_examples=30)
@given(
    k=st.integers(1, 6),
    u=st.sampled_from([0.0, 1e-3, 0.013, 0.2, 1.0]),
    rule=st.sampled_from(["sign", "proportional"]),
    batch=st.sampled_from([1, 20, 90]),
)
def test_each_step_follows_from_the_one_before(k, u, rule, batch):
    widget = BiasController(SCORES_TE, k=k, u=u, rule=rule, batch=batch, steps=12)
    run, scores_TE = widget.run, SCORES_TE.double().numpy()
    assert not run.bias_SE[0].any()
    for step in range(12):
        sums_TE = torch.tensor(scores_TE + run.bias_SE[step])
        chosen_TE = torch.zeros(90, 6).scatter(1, sums_TE.topk(k).indices, 1.0)
        if len(sums_TE.unique()) == sums_TE.numel():  # of equal sums topk may take another
            window = [(STRIDE * step + i) % 90 for i in range(batch)]
            np.testing.assert_array_equal(run.load_SE[step], chosen_TE[window].sum(0))
            whole_E = chosen_TE.sum(0)
            assert run.whole_S[step] == pytest.approx(
                (whole_E.max() / whole_E.mean() - 1).item(), abs=1e-6
            )
        load_E, mean = run.load_SE[step], batch * k / 6
        assert load_E.sum() == batch * k
        assert run.batch_S[step] == pytest.approx(load_E.max() / mean - 1)
        if step < 11:
            moved_E = run.bias_SE[step + 1] - run.bias_SE[step]
            short_E = mean - load_E
            way_E = np.sign(short_E) if rule == "sign" else short_E / mean
            np.testing.assert_allclose(moved_E, u * way_E, atol=1e-12)


def test_a_fitting_rate_balances_a_small_one_crawls_and_a_large_one_swings():
    late = {u: BiasController(SCORES_TE, u=u).run.whole_S[-50:].mean() for u in (1e-4, 1e-2, 0.5)}
    start = BiasController(SCORES_TE).run.whole_S[0]
    assert late[1e-2] < 0.2 < 0.8 * start < late[1e-4] <= start
    assert late[0.5] > start  # all rush to whoever was idle


def test_what_the_page_sends_arrives():
    widget = BiasController(SCORES_TE)
    widget.set_state({"u": 0.05, "rule": "proportional", "step": 7})
    assert (widget.u, widget.rule, widget.step) == (0.05, "proportional", 7)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("u", -0.1, "u must be from 0 to 1, not -0.1"),
        ("u", 1.5, "u must be from 0 to 1, not 1.5"),
        ("step", 300, "step must be from 0 to 299, not 300"),
        ("step", -1, "step must be from 0 to 299, not -1"),
        ("rule", "square", "rule"),
    ],
)
def test_what_cannot_be_is_refused(name, value, complaint):
    widget = BiasController(SCORES_TE)
    with pytest.raises(TraitError, match=complaint):
        setattr(widget, name, value)
    with pytest.raises(TraitError, match=complaint):
        BiasController(SCORES_TE, **{name: value})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"k": 0}, "k must be from 1 to 6, not 0"),
        ({"k": 7}, "k must be from 1 to 6, not 7"),
        ({"batch": 91}, "batch must be from 1 to 90, not 91"),
        ({"steps": 0}, "steps must be from 1 to 1000, not 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        BiasController(SCORES_TE, **options)


@pytest.mark.parametrize(
    "scores_TE",
    [torch.zeros(7, 4), torch.zeros(513, 4), torch.zeros(9, 1), torch.zeros(9, 17),
     torch.full((9, 4), float("nan"))],
)  # fmt: skip
def test_scores_that_cannot_be_shown_are_refused(scores_TE):
    with pytest.raises(ValueError, match="the bias controller shows 8 to 512 tokens"):
        BiasController(scores_TE, batch=1)


@pytest.mark.parametrize(
    "options", [{}, {"u": 0.0}, {"rule": "proportional", "step": 0}, {"k": 6}, {"steps": 1}]
)
def test_it_has_a_still_face(options):
    widget = BiasController(SCORES_TE, **options)
    assert widget.png()[1:4] == b"PNG"


@pytest.mark.parametrize(("E", "u"), [(6, 0.01), (16, 1e-4), (16, 0.5), (2, 0.0)])
def test_no_experts_number_stands_on_another(E, u):
    """Experts with one bias have a number each, in the order of their lines, inside the panel."""
    same_TE = SCORES_TE[:, [e // 2 % 6 for e in range(E)]]
    biases = BiasController(same_TE, u=u).figure().axes[1]
    high = {text.get_text(): text.xy[1] for text in biases.texts}
    levels, (least, most) = sorted(high.values()), biases.get_ylim()
    assert set(high) == {str(e) for e in range(E)}
    assert all(np.diff(levels) > 0.05 * (most - least))
    assert least - 1e-9 <= levels[0] and levels[-1] <= most + 1e-9
    ends = {str(e): line.get_ydata()[-50:].mean() for e, line in enumerate(biases.lines[:E])}
    assert sorted(high, key=high.__getitem__) == sorted(ends, key=ends.__getitem__)
