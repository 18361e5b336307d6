"""The three errors, their gradients and the race are what Jacobs et al. 1991 say they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.course import mixtures
from moe_lite.course.mixtures import Backprop, Mixture, descend
from moe_lite.course.vowels import load_vowels
from moe_lite.experts import Experts
from moe_lite.layer import MoELayer
from moe_lite.routers import TopKRouter

ERRORS = (mixtures.blend_error, mixtures.expected_error, mixtures.mixture_error)


def case(seed, T=4, E=3, O=2):  # noqa: E741
    g = torch.Generator().manual_seed(seed)
    shapes = (T, E), (T, E, O), (T, O)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def test_the_errors_by_hand():
    logits_TE, out_TEO, target_TO = (
        torch.zeros(1, 2),
        torch.tensor([[[0.9], [0.0]]]),
        torch.ones(1, 1),
    )
    found = [error(logits_TE, out_TEO, target_TO).item() for error in ERRORS]
    assert found == pytest.approx([0.3025, 0.505, 0.222179], abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_a_responsibility_is_a_posterior(seed):
    logits_TE, out_TEO, target_TO = case(seed)
    h_TE = mixtures.responsibilities(logits_TE, out_TEO, target_TO)
    joint_TE = logits_TE.softmax(-1) * (-mixtures.squared_errors(out_TEO, target_TO) / 2).exp()
    torch.testing.assert_close(h_TE, joint_TE / joint_TE.sum(-1, keepdim=True))
    # The prior comes back where every expert is equally right.
    same_TEO = out_TEO[:, :1].expand_as(out_TEO)
    torch.testing.assert_close(
        mixtures.responsibilities(logits_TE, same_TEO, target_TO), logits_TE.softmax(-1)
    )


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_the_gradients_are_the_papers(seed):
    logits_TE, out_TEO, target_TO = case(seed)
    logits_TE.requires_grad_(), out_TEO.requires_grad_()
    p_TE1 = logits_TE.softmax(-1)[..., None].detach()
    h_TE = mixtures.responsibilities(logits_TE, out_TEO, target_TO).detach()
    rest_TEO = (target_TO[:, None] - out_TEO).detach()
    blended = (target_TO - mixtures.blend(logits_TE, out_TEO)).detach()[:, None]
    by_hand = (-2 * p_TE1 * blended, -2 * p_TE1 * rest_TEO, -h_TE[..., None] * rest_TEO)
    for error, expected in zip(ERRORS, by_hand, strict=True):
        total = error(logits_TE, out_TEO, target_TO).sum()
        by_logits, by_out = torch.autograd.grad(total, (logits_TE, out_TEO))
        torch.testing.assert_close(by_out, expected)
    torch.testing.assert_close(by_logits, p_TE1.squeeze(-1) - h_TE)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_the_blend_never_errs_more_than_its_experts_do(seed):
    """Jensen's inequality, twice: E1 <= E2, and E3 <= E2 / 2."""
    errors = [error(*case(seed)) for error in ERRORS]
    assert (errors[0] <= errors[1] + 1e-12).all() and (errors[2] <= errors[1] / 2 + 1e-12).all()


def test_far_off_experts_leave_the_error_finite():
    logits_TE, out_TEO = torch.zeros(1, 2), torch.tensor([[[40.0], [50.0]]], requires_grad=True)
    error_T = mixtures.mixture_error(logits_TE, out_TEO, torch.zeros(1, 1))
    assert error_T.item() == pytest.approx(800 + 0.6931, rel=1e-5)
    error_T.sum().backward()
    torch.testing.assert_close(out_TEO.grad, torch.tensor([[[40.0], [0.0]]]))


MODELS = {
    "mixture": lambda seeds: Mixture(2, 3, seeds=seeds),
    "four-way": lambda seeds: Mixture(2, 3, 4, seeds=seeds),
    "backprop": lambda seeds: Backprop(2, 5, seeds=seeds),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_runs_alone_as_it_runs_beside_others(name):
    vowels = load_vowels()
    x_T2, d_TO = vowels.x_T2[::8], vowels.is_one_of(("iy", "aa"))[::8]
    if name == "four-way":
        d_TO = vowels.one_hot()[::8]
    together, alone = MODELS[name]([0, 1, 2]), MODELS[name]([1])
    steps = torch.tensor([2.0, 5.0, 9.0])
    many = descend(together, x_T2, d_TO, step=steps, until=0, max_epochs=150, keep=[0, 100])
    one = descend(alone, x_T2, d_TO, step=5.0, until=0, max_epochs=150, keep=[0, 100])
    for left, right in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(left[1:2], right)
    n = len(one.squared_NQ)
    torch.testing.assert_close(many.squared_NQ[:n, 1], one.squared_NQ[:, 0])
    assert sorted(many.kept) == [0, 100] and many.kept[100].keys() == one.kept[100].keys()


def test_a_run_stops_when_it_is_good_enough_and_stays_there():
    vowels = load_vowels()
    x_T2, d_T1 = vowels.x_T2[vowels.train_T], vowels.is_one_of(("iy", "aa"))[vowels.train_T]
    model = Mixture(2, 4, seeds=[0, 1])
    steps = torch.tensor([20.0, 0.01])  # the second will not get there
    descent = descend(model, x_T2, d_T1, step=steps, max_epochs=900)
    epochs = descent.epochs_Q.tolist()
    assert 500 < epochs[0] < 900 and epochs[1] != epochs[1]
    n = int(epochs[0])
    assert descent.squared_NQ[n, 0] < 0.08 <= descent.squared_NQ[n - 1, 0]
    assert (descent.squared_NQ[n:, 0] == descent.squared_NQ[n, 0]).all()


def test_one_line_experts_share_the_vowels_two_by_two():
    """Four experts: two end up in charge, of one pair of vowels each."""
    vowels = load_vowels()
    train = vowels.train_T
    model = Mixture(2, 4, seeds=[3])
    descend(model, vowels.x_T2[train], vowels.is_one_of(("iy", "aa"))[train], step=20.0)
    with torch.no_grad():
        winner_T = model(vowels.x_T2)[0].argmax(-1)[0]
    front = torch.tensor([name in ("iy", "ih") for name in vowels.names])
    (one,), (other,) = winner_T[front].unique().tolist(), winner_T[~front].unique().tolist()
    assert one != other


def test_steps_that_are_too_large_are_named():
    x_T2 = torch.tensor([[1e200, 1e200]], dtype=torch.float64)
    with pytest.raises(ValueError, match="not finite after 0 epochs: step is 5"):
        descend(Mixture(2, 2, 3, seeds=[0], scale=1e200), x_T2, torch.eye(3)[:1].double(), step=5.0)


@pytest.mark.parametrize("make", [Mixture, Backprop])
@pytest.mark.parametrize("sizes", [(0, 2, 1), (2, 0, 1), (2, 2, 0)])
def test_sizes_are_checked(make, sizes):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        make(*sizes)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        make(2, 2, seeds=[])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_all_experts_asked_is_the_dense_mixture(seed, E):
    torch.manual_seed(seed)
    layer = MoELayer(TopKRouter(6, E, top_k=E), Experts(E, 6, 8), backend="loop").double()
    out_TD, routing = layer(x_TD := torch.randn(5, 6, dtype=torch.float64))
    experts_TED = torch.stack([expert(x_TD) for expert in layer.experts.each()], dim=1)
    torch.testing.assert_close(out_TD, mixtures.blend(routing.logits_TE, experts_TED))
