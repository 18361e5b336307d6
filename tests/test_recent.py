"""Routers of 2024 to 2026: what each promises, beside what every router's tests ask."""

import sys

import pytest
import torch

from moe_lite.course import ledger, recent
from moe_lite.layer import MoELayer
from moe_lite.routers import ExpertChoiceRouter, SigmoidBiasRouter
from tests.test_leak import D, E, S, V, batch, model_with

T = 2000


def tokens(seed=0, T=T):
    return torch.randn(T, D, generator=torch.Generator().manual_seed(seed)) + 0.7


def max_vio(router, x_TD):
    load_E = router(x_TD).load_E()
    return float(load_E.max() / load_E.mean() - 1)


def test_the_quantile_by_hand():
    """Four tokens, two experts, one each: scores .9 .8 .7 .6 for one, .5 for the other.

    Bars are the scores not chosen, .5; margins .4 .3 .2 .1 and 0 0 0 0. Each may keep 2: so the
    third margin is taken off, .2 and 0, and the first two tokens alone stay with expert 0.
    """
    router = recent.QuantileRouter(D, 2, 1)
    score_TE = torch.tensor([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.6, 0.5]])
    scores = recent.Scores(score_TE, score_TE, score_TE, score_TE)
    assert router.choose(scores).load_E().tolist() == [4, 0]
    router.update(torch.zeros(2))
    torch.testing.assert_close(router.bias_E, torch.tensor([-0.2, 0.0]))


def test_quantiles_balance_in_a_few_steps_where_signs_need_hundreds():
    torch.manual_seed(0)
    ours = recent.QuantileRouter(D, 8, 2)
    signs = SigmoidBiasRouter(D, 8, 2, update_rate=1e-3)
    signs.weight.data.copy_(ours.weight.data)
    x_TD = tokens()
    before = max_vio(ours, x_TD)
    for _ in range(10):
        for router in (ours, signs):
            router.update(router(x_TD).load_E())
    assert before > 0.5 and max_vio(ours, x_TD) < 0.05 < 0.5 * before < max_vio(signs, x_TD)


def test_padding_moves_no_quantile_and_no_threshold():
    for make in (recent.QuantileRouter, recent.ThresholdRouter, recent.ReLURouter):
        one, two = make(D, 8, 2), make(D, 8, 2)
        two.load_state_dict(one.state_dict())
        x_TD, mask_T = tokens(T=64), torch.arange(64) < 40
        one.update(one(x_TD[:40]).load_E())
        two.update(two(torch.where(mask_T[:, None], x_TD, 9.0), mask_T=mask_T).load_E())
        for a, b in zip(one.buffers(), two.buffers(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.fixture(scope="module")
def leak():
    ledger.load("wang2024_leak")
    return sys.modules["experiments.wang2024_leak"]


@pytest.mark.parametrize("name", recent.RECENT)
def test_none_of_them_sees_the_future_and_expert_choice_does(leak, name, router_list):
    ids_BS, targets_BS = batch()
    model = model_with(lambda: router_list[name](D, E, V))
    with torch.no_grad():  # so that thresholds stand where some tokens pass and some do not
        for layer in model.moe_layers:
            layer.gate.train()
        for routing, layer in zip(model(ids_BS).routings, model.moe_layers, strict=True):
            getattr(layer.gate, "update", lambda load_E: None)(routing.load_E())
    own_S, other_S = leak.strangers_future(model.eval(), ids_BS, targets_BS)
    torch.testing.assert_close(own_S, other_S)
    choice = model_with(lambda: ExpertChoiceRouter(D, E))
    own_S, other_S = leak.strangers_future(choice, ids_BS, targets_BS)
    assert not torch.allclose(own_S, other_S)


def test_thresholds_give_each_expert_its_share_on_average():
    torch.manual_seed(0)
    router = recent.ThresholdRouter(D, 8, 2, decay=0.9)
    for seed in range(30):
        router.update(router(tokens(seed)).load_E())
    routing = router.eval()(tokens(99))
    assert routing.load_E() / T == pytest.approx([2 / 8] * 8, abs=0.03)
    counts_T = torch.bincount(routing.token_N, minlength=T)
    assert counts_T.min() == 0 and counts_T.max() > 2  # some have none, some many
    one = router(tokens(99)[:1])  # and each by itself
    assert one.expert_N.tolist() == routing.expert_N[routing.token_N == 0].tolist()


def test_idle_experts_spend_less_and_their_share_is_lost():
    torch.manual_seed(0)
    router = recent.IdleRouter(D, 8, 2, idle=4)
    router.idle_D.data.fill_(0.1)  # which these tokens like
    routing = router(tokens())
    spent = len(routing.token_N) / (2 * T)
    total_T = torch.zeros(T).index_add(0, routing.token_N, routing.gate_N.detach())
    counts_T = torch.bincount(routing.token_N, minlength=T)
    assert 0.2 < spent < 0.95
    assert (total_T[counts_T == 2] - 1).abs().max() < 1e-5 and total_T[counts_T == 1].max() < 1
    assert not total_T[counts_T == 0].any()
    routing.gate_N.sum().backward()
    assert router.idle_D.grad.abs().sum() > 0


def test_relu_holds_the_share_that_is_active():
    torch.manual_seed(0)
    router, shares = recent.ReLURouter(D, 8, 2), []
    optimizer = torch.optim.SGD(router.parameters(), 0.1)
    for step in range(600):
        routing = router(tokens(step, 100))
        optimizer.zero_grad()
        # a loss that would have as many experts as there are
        (router.penalty(routing) - 0.1 * routing.gate_N.sum() / 100).backward()
        optimizer.step()
        router.update(routing.load_E())
        shares.append(router.active)
    assert max(shares[:200]) > 0.6  # at first the penalty is too light
    assert sum(shares[-200:]) / 200 == pytest.approx(2 / 8, abs=0.12)


def test_they_run_where_nobody_is_chosen():
    router = recent.ReLURouter(D, E, 2)
    router.weight.data.zero_()
    layer = MoELayer(router, model_with(lambda: router).moe_layers[0].experts)
    out_BSD, routing = layer(torch.randn(2, S, D))
    assert not out_BSD.any() and not len(routing.token_N)
