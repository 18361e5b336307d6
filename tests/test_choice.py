"""Experts that choose, a table that deals, a bias that steers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite import losses
from moe_lite.capacity import capacity
from moe_lite.routers import ExpertChoiceRouter, HashRouter, SigmoidBiasRouter, TopKRouter

X_TD = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))


@settings(deadline=None)
@given(
    size=st.integers(1, 12), G=st.integers(1, 4), E=st.integers(1, 5),
    factor=st.floats(0.3, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_each_expert_takes_the_tokens_of_a_group_that_want_it_most(size, G, E, factor, seed):
    torch.manual_seed(seed)
    router = ExpertChoiceRouter(6, E, capacity_factor=factor, group_size=size)
    routing = router(torch.randn(size * G, 6))
    C = min(size, capacity(size, E, factor))
    assert routing.per_token is None and torch.equal(
        routing.load_E(), torch.full((E,), 1.0 * G * C)
    )
    taken_TE = routing.gates_TE() > 0
    torch.testing.assert_close(routing.gates_TE(), routing.probs_TE * taken_TE)
    for probs_SE, taken_SE in zip(routing.probs_TE.split(size), taken_TE.split(size), strict=True):
        assert (taken_SE.sum(0) == C).all()
        worst_in = probs_SE.where(taken_SE, torch.inf).amin(0)
        best_out = probs_SE.where(~taken_SE, -torch.inf).amax(0)
        assert (worst_in >= best_out).all()


def test_experts_take_padding_only_to_drop_it():
    torch.manual_seed(0)
    router, mask_T = ExpertChoiceRouter(6, 4, capacity_factor=2), torch.arange(48) < 10
    routing = router(X_TD, mask_T=mask_T)  # each of the four takes 24, but ten are real
    assert routing.load_E().tolist() == [10.0] * 4
    assert not routing.gates_TE()[10:].any()
    assert losses.drop_rate(routing) == 0


def test_what_comes_later_decides_who_is_taken():
    torch.manual_seed(0)
    router = ExpertChoiceRouter(6, 4, capacity_factor=1)
    other = X_TD.clone()
    other[40:] = torch.randn(8, 6) * 5
    early = [router(x_TD).gates_TE()[:40] for x_TD in (X_TD, other)]
    assert not torch.equal(*early)


def test_a_hash_deals_each_id_once_and_evenly():
    router = HashRouter(101, 8, seed=3)
    assert (
        torch.bincount(router.expert_V, minlength=8).sort().values.tolist() == [12] * 3 + [13] * 5
    )
    assert torch.equal(router.expert_V, HashRouter(101, 8, seed=3).expert_V)
    assert not torch.equal(router.expert_V, HashRouter(101, 8, seed=4).expert_V)
    ids_T = torch.arange(48) * 2
    routing = router(X_TD, ids_T=ids_T)
    assert torch.equal(routing.expert_N, router.expert_V[ids_T]) and (routing.gate_N == 1).all()
    assert torch.equal(routing.probs_TE.argmax(-1), routing.expert_N)
    assert not list(router.parameters()) and "expert_V" in router.state_dict()


def test_a_hash_that_knows_the_frequencies_balances_the_text():
    counts_V = (1000 / torch.arange(1, 201)).round().long()  # a zipfian vocabulary
    ids_T = torch.arange(200).repeat_interleave(counts_V)
    x_TD = torch.zeros(len(ids_T), 6)

    def violation(counts):
        return losses.max_violation(HashRouter(200, 4, counts)(x_TD, ids_T=ids_T))

    assert violation(counts_V) < 0.02 < 0.1 < violation(None)


def test_the_bias_selects_but_never_weighs():
    router = SigmoidBiasRouter(6, 5, 2, renormalize=False)
    before = router(X_TD)
    router.bias_E += torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])
    after = router(X_TD)
    assert (after.expert_N.view(-1, 2) == 1).any(-1).all()
    torch.testing.assert_close(after.gate_N, after.logits_TE.sigmoid().gather(
        1, after.expert_N.view(-1, 2)).view(-1))  # fmt: skip
    assert torch.equal(before.probs_TE, after.probs_TE)
    torch.testing.assert_close(after.probs_TE.sum(-1), torch.ones(48))
    router.renormalize = True
    torch.testing.assert_close(router(X_TD).gate_N.view(-1, 2).sum(-1), torch.ones(48))


def test_the_controller_raises_the_idle_and_lowers_the_busy_until_they_are_even():
    torch.manual_seed(1)
    router = SigmoidBiasRouter(6, 8, 2, update_rate=0.01)
    x_TD = torch.randn(4096, 6) + 1.0
    routing = router(x_TD)
    load_E = routing.load_E()
    router.update(load_E)
    assert torch.equal(router.bias_E, 0.01 * (load_E.mean() - load_E).sign())
    start = losses.max_violation(routing)
    for _ in range(300):
        router.update(router(x_TD).load_E())
    assert losses.max_violation(router(x_TD)) < 0.15 < 0.5 < start
    assert not router.bias_E.requires_grad and "bias_E" in router.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_bias_keeps_its_type_and_follows_the_device(dtype):
    router = SigmoidBiasRouter(6, 4, update_rate=1e-3).to(dtype)
    assert router.weight.dtype == dtype and router.bias_E.dtype == torch.float32
    for _ in range(1000):  # bfloat16 would stop at half of this
        router.update(torch.bincount(torch.zeros(9, dtype=torch.int64), minlength=4))
    assert (router.bias_E - torch.tensor([-1.0, 1.0, 1.0, 1.0])).abs().max() < 1e-4
    assert router(X_TD.to(dtype)).bias_E.dtype == torch.float32
    assert router.state_dict()["bias_E"] is not None and "bias_E" in dict(router.named_buffers())
    away = router.to("meta", torch.float32)
    assert away.bias_E.is_meta and away.weight.is_meta and away.bias_E.dtype == torch.float32
    assert HashRouter(8, 4).to(dtype).expert_V.dtype == torch.int64


@pytest.mark.parametrize("K", [1, 2])
def test_experts_without_any_weight_share_alike_if_they_are_chosen(K):
    router = TopKRouter(2, 4, K)
    router.weight.data = torch.tensor([[400.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    scores = router.score(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).requires_grad_())
    banned_TE = scores.choose_TE.clone()
    banned_TE[:, 0] = -torch.inf
    routing = router.choose(replace(scores, choose_TE=banned_TE))
    assert 0 not in routing.expert_N
    assert torch.equal(routing.gate_N, torch.full((2 * K,), 1 / K))
    (slope,) = torch.autograd.grad((routing.gate_N * torch.arange(2 * K)).sum(), router.weight)
    assert slope.isfinite().all()


def test_the_controller_does_not_count_padding():
    router = SigmoidBiasRouter(6, 4, 1, update_rate=1.0)
    x_TD = torch.zeros(8, 6)
    x_TD[:4] = torch.eye(6)[:4]
    router.weight.data = torch.eye(6)[:4] * 5
    router.update(router(x_TD).masked(torch.arange(8) < 4).load_E())  # real ones are even
    assert not router.bias_E.any()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ExpertChoiceRouter(6, 4, capacity_factor=0), "capacity factor must be above 0"),
        (lambda: ExpertChoiceRouter(6, 4, group_size=5)(X_TD), "groups of 5 do not divide 48"),
        (lambda: HashRouter(0, 4), "cannot deal 0 ids to 4 experts"),
        (lambda: HashRouter(8, 4, [1, 2]), "2 counts for a vocabulary of 8"),
        (lambda: HashRouter(8, 4)(X_TD), "needs every token's id, but was given none"),
        (lambda: HashRouter(8, 4)(X_TD, ids_T=torch.arange(3)), "was given 3 for 48 tokens"),
        (lambda: HashRouter(8, 4)(X_TD, ids_T=torch.arange(48)), "id 8 is not in .* of 8"),
        (lambda: HashRouter(48, 4)(X_TD, ids_T=torch.arange(48) - 2), "id -2 is not in"),
        (lambda: HashRouter(48, 4)(X_TD, ids_T=torch.arange(48.0)), "int64 or int32, not"),
        (lambda: HashRouter(3, 4, [1.0, float("nan"), 1.0]), "count must be .* finite, not nan"),
        (lambda: HashRouter(3, 4, [1.0, float("inf"), 1.0]), "count must be .* finite, not inf"),
        (lambda: HashRouter(3, 4, [1, -5, 2]), "count must be at least 0 and finite, not -5"),
        (lambda: ExpertChoiceRouter(6, 4)(X_TD, mask_T=torch.ones(9)), "mask covers 9 tokens"),
        (lambda: ExpertChoiceRouter(6, 4)(X_TD, mask_T=torch.ones(1)), "but 48 were routed"),
        (lambda: SigmoidBiasRouter(6, 4).update(torch.ones(3)), "3 loads for 4 experts"),
        (lambda: SigmoidBiasRouter(6, 4, 5), "top_k must be between 1 and 4"),
        (lambda: SigmoidBiasRouter(6, 4, 2, update_rate=-1), "update_rate must be at least 0"),
        (lambda: SigmoidBiasRouter(6, 4)(torch.zeros(3, 5)), "vectors of width 6, not 5"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
