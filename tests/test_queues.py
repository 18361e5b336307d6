"""Capacity: ranks against a walk through the tokens, and the two routers that limit queues."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite import losses
from moe_lite.capacity import capacity, limit, queue_rank
from moe_lite.routers import ExpertChoiceRouter, GShardRouter, SwitchRouter, TopKRouter
from moe_lite.routing import Routing


def ranks_by_walking(routing: Routing, priority: str, group_size: int | None) -> list[int]:
    """Seat the pairs one by one, with a counter for each expert of each group."""
    K, size = routing.per_token, group_size or routing.num_tokens
    pairs = list(range(len(routing.token_N)))
    if priority == "choice":
        pairs.sort(key=lambda n: n % K)
    if priority == "gate":
        pairs.sort(key=lambda n: -routing.gate_N[n].item())
    seated: dict[tuple[int, int], int] = {}
    ranks = [-1] * len(pairs)
    for n in pairs:
        if routing.keep_N is None or routing.keep_N[n]:
            queue = int(routing.token_N[n]) // size, int(routing.expert_N[n])
            ranks[n] = seated.get(queue, 0)
            seated[queue] = ranks[n] + 1
    return ranks


def random_routing(T: int, E: int, K: int, seed: int, dropped: float = 0.0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(T, E, generator=generator)
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(K, dim=-1)
    keep_N = torch.rand(T * K, generator=generator) >= dropped if dropped else None
    return Routing.from_choices(logits_TE, logits_TE.softmax(-1), expert_TK, gate_TK, keep_N=keep_N)


@pytest.mark.parametrize("priority", ["position", "choice", "gate"])
@settings(deadline=None)
@given(data=st.data())
def test_ranks_are_those_of_a_walk(priority, data):
    size, groups = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 4))
    E = data.draw(st.integers(1, 5))
    K = data.draw(st.integers(1, E))
    dropped = data.draw(st.sampled_from([0.0, 0.4]))
    routing = random_routing(size * groups, E, K, data.draw(st.integers(0, 999)), dropped)
    group_size = data.draw(st.sampled_from([None, size]))
    got = queue_rank(routing, priority, group_size)
    assert got.dtype == torch.int64
    assert got.tolist() == ranks_by_walking(routing, priority, group_size)


@settings(deadline=None)
@given(T=st.integers(1, 40), K=st.integers(1, 4), factor=st.floats(0.2, 3), seed=st.integers(0, 99))
def test_no_expert_gets_more_than_its_capacity_and_none_turns_away_while_it_has_room(
    T, K, factor, seed
):
    routing = random_routing(T, 4, K, seed)
    limited, C = limit(routing, factor), capacity(T, 4, factor, K)
    demand_E = routing.load_E()
    assert torch.equal(limited.load_E(), demand_E.clamp(max=C))
    assert limited.gate_N is routing.gate_N and torch.equal(limited.expert_N, routing.expert_N)
    dropped = 1 - limited.load_E().sum() / demand_E.sum()
    torch.testing.assert_close(losses.drop_rate(limited), dropped)
    torch.testing.assert_close(losses.max_violation(limited), losses.max_violation(routing))


@pytest.mark.parametrize(
    ("T", "E", "factor", "K", "C"),
    [(8, 4, 1.0, 1, 2), (9, 4, 1.0, 1, 3), (100, 10, 1.1, 1, 11), (8, 4, 1.25, 2, 5),
     (0, 4, 1.0, 1, 0)],
)  # fmt: skip
def test_capacity_is_rounded_up(T, E, factor, K, C):
    assert capacity(T, E, factor, K) == C


def test_the_gate_decides_who_stays_only_where_it_is_asked():
    logits_TE = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    probs_TE = logits_TE.softmax(-1)
    gate_TK, expert_TK = probs_TE.topk(1, dim=-1)
    routing = Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK)
    assert limit(routing, 1.0).keep_N.tolist() == [True, True, False, False]
    assert limit(routing, 1.0, "gate").keep_N.tolist() == [False, True, True, False]


def test_groups_keep_a_sequence_out_of_its_neighbours_queues():
    torch.manual_seed(0)
    x_TD = torch.randn(24, 6)
    for router in (
        SwitchRouter(6, 3, capacity_factor=0.7, group_size=8),
        GShardRouter(6, 3, capacity_factor=0.7, group_size=8).eval(),
        TopKRouter(6, 3, 2, capacity_factor=0.7, priority="gate", group_size=8),
        ExpertChoiceRouter(6, 3, capacity_factor=1.0, group_size=8),
    ):
        together = router(x_TD).gates_TE()[8:16]
        torch.testing.assert_close(router(x_TD[8:16]).gates_TE(), together)
        assert not torch.equal(router(x_TD[4:20]).gates_TE()[4:12], together)  # else it is idle


def test_switch_weighs_by_the_probability_and_drops_by_position():
    torch.manual_seed(0)
    router, x_TD = SwitchRouter(6, 4, capacity_factor=0.5), torch.randn(40, 6)
    routing = router(x_TD)
    best = routing.probs_TE.max(-1)
    assert torch.equal(routing.gate_N, best.values) and torch.equal(routing.expert_N, best.indices)
    assert torch.equal(routing.keep_N, queue_rank(replace(routing, keep_N=None)) < 5)
    (routing.gate_N * torch.arange(40)).sum().backward()
    assert router.weight.grad.abs().max() > 0


def test_gshard_seats_all_first_choices_and_asks_the_second_by_chance():
    torch.manual_seed(0)
    router, x_TD = GShardRouter(6, 4, capacity_factor=100), torch.randn(20_000, 6)
    routing = router(x_TD)
    gate_T2, keep_T2 = routing.gate_N.view(-1, 2), routing.keep_N.view(-1, 2)
    assert keep_T2[:, 0].all()
    for low, high in ((0.0, 0.1), (0.2, 0.25), (0.4, 0.5)):
        some = (gate_T2[:, 1] >= low) & (gate_T2[:, 1] < high)
        asked, expected = keep_T2[some, 1].float().mean(), 2 * gate_T2[some, 1].mean()
        assert abs(asked - expected) < 5 * (0.25 / some.sum()) ** 0.5
    assert router.eval()(x_TD).keep_N.all()
    # Two places for eight tokens that all want expert 0 first and 1 second: rank by choice.
    router = GShardRouter(2, 2, capacity_factor=0.5).eval()
    router.weight.data = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    assert router(torch.ones(8, 2)).keep_N.view(-1, 2).sum(0).tolist() == [2, 2]


@pytest.mark.parametrize("make", [
    lambda: SwitchRouter(6, 4, capacity_factor=1.0),
    lambda: GShardRouter(6, 4, capacity_factor=1.0).eval(),
    lambda: TopKRouter(6, 4, 1, capacity_factor=1.0),
])  # fmt: skip
def test_padding_stands_in_no_queue(make):
    torch.manual_seed(0)
    router, x_TD = make(), torch.randn(40, 6)
    mask_T = torch.arange(40) >= 20  # left padding: it would stand in front
    routing, alone = router(x_TD, mask_T=mask_T), router(x_TD[20:])
    assert not routing.keep_N[routing.token_N < 20].any()
    assert routing.keep_N.sum() > alone.keep_N.sum()  # places are for 40, standing are 20
    assert losses.drop_rate(routing) < losses.drop_rate(alone)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r: limit(r, 0), "capacity factor must be above 0"),
        (lambda r: limit(r, float("inf")), "capacity factor must be above 0"),
        (lambda r: limit(r, 1e308), "at most 1e9, not 1e\\+308"),
        (lambda r: TopKRouter(4, 2, capacity_factor=1e30), "at most 1e9, not 1e\\+30"),
        (lambda r: capacity(-5, 4, 1.0), "no capacity for num_tokens=-5"),
        (lambda r: capacity(10, 0, 1.0), "num_experts=0"),
        (lambda r: capacity(10, -4, 1.0), "num_experts=-4"),
        (lambda r: capacity(10, 4, 1.0, -2), "top_k=-2"),
        (lambda r: queue_rank(r, "age"), "priority must be one of"),
        (lambda r: queue_rank(r, group_size=4), "groups of 4 do not divide 6 tokens"),
        (lambda r: queue_rank(r, group_size=0), "groups of 0 do not divide"),
        (lambda r: SwitchRouter(4, 2, capacity_factor=-1), "capacity factor must be above 0"),
        (lambda r: GShardRouter(4, 1), "top_k must be between 1 and 1"),
        (lambda r: TopKRouter(4, 2, capacity_factor=0), "capacity factor must be above 0"),
        (lambda r: r.masked(torch.ones(5)), "the mask covers 5 tokens, but 6 were routed"),
        (lambda r: queue_rank(ExpertChoiceRouter(3, 2)(torch.ones(6, 3)), "choice"), "no first"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(random_routing(6, 3, 2, 0))
