"""The top-k router against the definition, in both orders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lite.routers import TopKRouter

X_TD = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))


def pair(E: int, K: int, **kwargs) -> tuple[TopKRouter, TopKRouter]:
    before, after = TopKRouter(6, E, K, **kwargs), TopKRouter(6, E, K, order="topk_softmax")
    after.load_state_dict(before.state_dict())
    return before, after


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
        (lambda: TopKRouter(6, 4, 2, order="both"), "not 'both'"),
        (lambda: TopKRouter(5, 4, 2)(X_TD), "width 5, not 6"),
    ],
)
def test_what_cannot_be_is_said(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
