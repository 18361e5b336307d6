"""The noisy gate without a browser: the numbers it shows are the library's, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from moe_lite.course.widgets import NoisyGate
from moe_lite.routers import kth_excluding

SCORES_TE = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))


@settings(deadline=None)
@given(k=st.integers(1, 5), noise=st.floats(0, 3), draw=st.integers(0, 50))
def test_the_routing_is_the_noisy_gate_of_the_sliders(k, noise, draw):
    widget = NoisyGate(SCORES_TE, k=k, noise=noise, draw=draw)
    routing = widget.routing
    clean_TE = SCORES_TE.double()
    step_TE = routing.logits_TE - clean_TE
    generator = torch.Generator().manual_seed(0)
    normal_N = torch.randn(step_TE.numel(), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(step_TE.flatten(), noise * normal_N.roll(-131 * draw))
    assert routing.load_E().sum() == 20 * k
    if noise and k < 5:
        z_TE = (clean_TE - kth_excluding(routing.logits_TE, k)) / max(noise, 1e-6)
        torch.testing.assert_close(routing.smooth_load_TE, torch.special.ndtr(z_TE))
    elif not noise:
        assert routing.smooth_load_TE is None


def test_a_new_draw_changes_the_noise_and_only_that():
    widget = NoisyGate(SCORES_TE)
    before = widget.routing.logits_TE
    widget.set_state({"draw": 1})  # what a click in a page sends
    assert not torch.equal(widget.routing.logits_TE, before)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("k", 0, "k must be from 1 to 5, not 0"),
        ("k", 6, "k must be from 1 to 5, not 6"),
        ("noise", -0.1, "noise must be from 0 to 3, not -0.1"),
        ("noise", 3.1, "not 3.1"),
        ("token", 20, "token must be from 0 to 19, not 20"),
        ("draw", -1, "draw must be from 0"),
    ],
)
def test_what_cannot_be_is_refused(name, value, complaint):
    widget = NoisyGate(SCORES_TE)
    with pytest.raises(TraitError, match=complaint):
        setattr(widget, name, value)
    with pytest.raises(TraitError, match=complaint):
        NoisyGate(SCORES_TE, **{name: value})


@pytest.mark.parametrize(
    "scores_TE",
    [torch.zeros(0, 4), torch.zeros(1001, 4), torch.zeros(3, 1), torch.zeros(3, 17),
     torch.tensor([[0.0, float("nan")]])],
)  # fmt: skip
def test_scores_that_cannot_be_shown_are_refused(scores_TE):
    with pytest.raises(ValueError, match="the noisy gate shows 1 to 1,000 tokens"):
        NoisyGate(scores_TE)


@pytest.mark.parametrize("settings", [{}, {"k": 5}, {"noise": 0.0}, {"token": 19, "draw": 7}])
def test_it_has_a_still_face(settings):
    widget = NoisyGate(SCORES_TE, **settings)
    assert widget.png()[1:4] == b"PNG"
