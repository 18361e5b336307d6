"""The routers against their definitions: top-k in both orders, with noise, and in a tree."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.course import losses2017
from moe_lite.course.tree import HierarchicalRouter
from moe_lite.routers import (
    NoisyTopKRouter,
    TopKRouter,
    kth_excluding,
    prob_in_top_k,
)

X_TD = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))


def pair(E: int, K: int, **kwargs) -> tuple[TopKRouter, TopKRouter]:
    """Make routers of one weight that take the softmax before the choice, and after it."""
    before, after = TopKRouter(6, E, K, **kwargs), NoisyTopKRouter(6, E, K).eval()
    after.load_state_dict(before.state_dict(), strict=False)
    return before, after


@settings(deadline=None)
@given(E=st.integers(1, 9), K=st.integers(1, 9))
def test_both_orders_agree_when_renormalised(E: int, K: int) -> None:
    K = min(E, K)
    before, after = (router(X_TD) for router in pair(E, K))
    assert torch.equal(before.expert_N, after.expert_N)
    torch.testing.assert_close(before.gate_N, after.gate_N)
    torch.testing.assert_close(before.gate_N.view(-1, K).sum(-1), torch.ones(30))


def test_without_renormalising_they_part() -> None:
    before, after = (router(X_TD) for router in pair(8, 2, renormalize=False))
    assert torch.equal(before.expert_N, after.expert_N)
    assert (before.gate_N < after.gate_N).all()
    top_TK = before.probs_TE.gather(1, before.expert_N.view(-1, 2))
    assert torch.equal(before.gate_N.view(-1, 2), top_TK)


def test_a_single_choice_has_a_gradient_only_without_renormalising() -> None:
    for kwargs, moves in (({"renormalize": False}, True), ({}, False)):
        router = TopKRouter(6, 4, 1, **kwargs)
        (router(X_TD).gate_N * torch.arange(30)).sum().backward()
        assert bool(router.weight.grad.abs().max() > 1e-4) == moves


def test_choices_are_the_largest_logits_best_first() -> None:
    routing = TopKRouter(6, 7, 3)(X_TD)
    expected = routing.logits_TE.argsort(dim=-1, descending=True)[:, :3]
    assert torch.equal(routing.expert_N.view(-1, 3), expected)
    assert torch.equal(routing.token_N.view(-1, 3), torch.arange(30)[:, None].expand(30, 3))


def test_scores_are_float32_even_under_autocast_and_from_bf16() -> None:
    router = TopKRouter(6, 4, 2)
    exact = router(X_TD)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(X_TD).logits_TE, exact.logits_TE)
    assert router.bfloat16()(X_TD.bfloat16()).logits_TE.dtype == torch.float32
    assert router.double()(X_TD.double()).logits_TE.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TopKRouter(6, 4, 5), "between 1 and 4 experts, not 5"),
        (lambda: TopKRouter(6, 4, 0), "between 1 and 4 experts, not 0"),
        (lambda: TopKRouter(5, 4, 2)(X_TD), "width 5, not 6"),
        (lambda: NoisyTopKRouter(6, 4, 5), "between 1 and 4 experts, not 5"),
        (lambda: NoisyTopKRouter(5, 4, 2)(X_TD), "width 5, not 6"),
        (lambda: kth_excluding(X_TD, 6), "between 1 and 5, not 6"),
        (lambda: kth_excluding(X_TD, 0), "between 1 and 5, not 0"),
        (lambda: tree(3, [2, 2])(X_TD), "over 3 groups needs as many secondary"),
        (lambda: tree(2, [2, 1])(X_TD), r"\(E, K\) = \[\(4, 2\), \(4, 1\)\]"),
    ],
)
def test_what_cannot_be_is_said(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


# --- with noise ----------------------------------------------------------------------------------


def noisy(E: int = 5, K: int = 2, seed: int = 0) -> NoisyTopKRouter:
    """Make a router whose weights are no longer zero."""
    router = NoisyTopKRouter(6, E, K).double()
    generator = torch.Generator().manual_seed(seed)
    for weight in router.parameters():
        torch.nn.init.normal_(weight, generator=generator)
    return router


def tree(groups: int, choices: list[int]) -> HierarchicalRouter:
    return HierarchicalRouter(NoisyTopKRouter(6, groups, 1), [noisy(4, K, K) for K in choices])


@settings(deadline=None)
@given(E=st.integers(1, 7), data=st.data())
def test_the_gates_follow_equations_3_to_5(E: int, data: st.DataObject) -> None:
    K = data.draw(st.integers(1, E))
    router, x_TD = noisy(E, K, E), X_TD.double()
    torch.manual_seed(K)
    routing = router(x_TD)
    torch.manual_seed(K)
    clean_TE, raw_TE = x_TD @ router.weight.T, x_TD @ router.w_noise.T
    h_TE = clean_TE + torch.randn(30, E, dtype=torch.float64) * F.softplus(raw_TE)
    kth_T1 = h_TE.sort(dim=-1, descending=True).values[:, K - 1 : K]
    gates_TE = h_TE.where(h_TE >= kth_T1, -torch.inf).softmax(-1)
    torch.testing.assert_close(routing.gates_TE(), gates_TE)
    torch.testing.assert_close(routing.logits_TE, h_TE)


def test_it_starts_at_zero_with_noise_of_size_log_2() -> None:
    router = NoisyTopKRouter(6, 8, 2)
    assert all(not weight.any() for weight in router.parameters())
    routing = router(torch.randn(4000, 6))
    assert routing.logits_TE.std().item() == pytest.approx(0.6931, abs=0.01)
    assert losses2017.load_loss(routing).sqrt() < 0.1  # the noise alone spreads the tokens


def test_in_evaluation_there_is_no_noise_and_nothing_to_divide_by() -> None:
    router = noisy().eval()
    first, second = router(X_TD.double()), router(X_TD.double())
    assert torch.equal(first.gate_N, second.gate_N) and first.smooth_load_TE is None
    torch.testing.assert_close(first.logits_TE, X_TD.double() @ router.weight.T)
    assert losses2017.load_loss(first) == losses2017.cv_squared(first.load_E().double())
    untrained = NoisyTopKRouter(6, 5, 2).eval()(X_TD)
    assert not untrained.logits_TE.any()  # all tie: the hardest case for a bar
    assert (
        losses2017.load_loss(untrained).isfinite()
        and losses2017.importance_loss(untrained).isfinite()
    )


def test_noise_that_has_died_out_leaves_a_step_and_no_nan() -> None:
    clean_TE = torch.tensor([[1.0, 0.0, 0.0, -1.0]], requires_grad=True)
    std_TE = torch.zeros(1, 4, requires_grad=True)
    p_TE = prob_in_top_k(clean_TE, clean_TE, std_TE, 1)
    assert p_TE.tolist() == [[1, 0, 0, 0]]
    p_TE.sum().backward()
    assert clean_TE.grad.isfinite().all() and std_TE.grad.isfinite().all()
    router = NoisyTopKRouter(1, 4, 2)
    with torch.no_grad():
        router.w_noise.fill_(-500)  # softplus(-500) is 0 in float32
    losses2017.load_loss(router(torch.ones(9, 1))).backward()
    assert all(weight.grad.isfinite().all() for weight in router.parameters())


@settings(deadline=None)
@given(E=st.integers(2, 7), seed=st.integers(0, 99), data=st.data())
def test_kth_excluding_is_what_it_says(E: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, E - 1))
    generator = torch.Generator().manual_seed(seed)
    scores_TE = torch.randint(0, 5, (6, E), generator=generator).double()  # with many ties
    bar_TE = kth_excluding(scores_TE, k)
    for t in range(6):
        for e in range(E):
            others = sorted([*scores_TE[t, :e].tolist(), *scores_TE[t, e + 1 :].tolist()])
            assert bar_TE[t, e] == others[-k]


def test_prob_in_top_k_is_how_often_a_new_draw_is_chosen() -> None:
    torch.manual_seed(0)
    clean_TE, std_TE = torch.randn(1, 5), 0.2 + torch.rand(1, 5)
    noisy_TE = clean_TE + torch.randn(1, 5) * std_TE
    p_TE = prob_in_top_k(clean_TE, noisy_TE, std_TE, 2)
    for e in range(5):
        again_TE = noisy_TE.repeat(40_000, 1)
        again_TE[:, e] = clean_TE[0, e] + torch.randn(40_000) * std_TE[0, e]
        chosen = (again_TE.topk(2).indices == e).any(-1).double().mean()
        assert p_TE[0, e].item() == pytest.approx(chosen.item(), abs=0.01)


def test_everyone_is_certain_to_be_chosen_if_all_are() -> None:
    routing = noisy(4, 4)(X_TD.double())
    assert (routing.smooth_load_TE == 1).all()
    assert losses2017.load_loss(routing) == 0


def test_the_load_has_a_gradient_that_the_count_has_not() -> None:
    router = noisy()
    routing = router(X_TD.double())
    for weight in torch.autograd.grad(losses2017.load_loss(routing), list(router.parameters())):
        assert weight.abs().max() > 1e-6
    assert not routing.load_E().requires_grad


def test_its_choice_keeps_float32_under_autocast() -> None:
    router = NoisyTopKRouter(6, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(X_TD.bfloat16())
    assert routing.logits_TE.dtype == routing.smooth_load_TE.dtype == torch.float32


# --- in a tree -----------------------------------------------------------------------------------


def test_a_tree_multiplies_its_gates() -> None:
    router = HierarchicalRouter(noisy(3, 2, 7), [noisy(4, 2, i) for i in range(3)]).eval()
    x_TD = X_TD.double()
    routing, first = router(x_TD), router.primary(x_TD).gates_TE()
    groups = [second(x_TD).gates_TE() for second in router.secondary]
    by_hand = torch.cat([first[:, i, None] * gates_TE for i, gates_TE in enumerate(groups)], dim=1)
    torch.testing.assert_close(routing.gates_TE(), by_hand)
    torch.testing.assert_close(routing.gates_TE().sum(-1), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(routing.logits_TE.softmax(-1), routing.probs_TE)
    assert (routing.gate_N.view(30, 4).diff(dim=-1) <= 0).all()


def test_the_load_of_a_tree_is_equation_14() -> None:
    router, x_TD = HierarchicalRouter(noisy(3, 1, 7), [noisy(4, 2, i) for i in range(3)]), X_TD
    torch.manual_seed(5)
    routing = router(x_TD)
    torch.manual_seed(5)
    first = router.primary(x_TD)
    for i, second in enumerate(router.secondary):
        load_b = second(x_TD).smooth_load_TE[first.expert_N == i].sum(0)  # Load_i(X^(i))
        came = (first.expert_N == i).sum()
        by_hand = first.smooth_load_TE.sum(0)[i] * load_b / came
        torch.testing.assert_close(routing.smooth_load_TE.sum(0)[4 * i : 4 * i + 4], by_hand)
    weights = list(router.parameters())
    grads = torch.autograd.grad(losses2017.load_loss(routing), weights)
    assert all(grad.abs().max() > 0 for grad in grads)
    assert router.eval()(x_TD).smooth_load_TE is None
