"""Routers of 2024 to 2026: what each promises, beside what every router's tests ask."""

import sys

import pytest
import torch

from moe_lite import losses
from moe_lite.course import ledger, recent
from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS
from moe_lite.layer import MoELayer
from moe_lite.routers import ExpertChoiceRouter, SigmoidBiasRouter, TopKRouter
from moe_lite.routing import Routing
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


# --- a limit of nodes ----------------------------------------------------------------------------


def test_node_limits_equal_transformers():
    """The same choice and weights as DeepSeek-V3's router there, bias included."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = deepseek.DeepseekV3Config(
        hidden_size=D, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2,
        norm_topk_prob=True, routed_scaling_factor=2.5,
    )  # fmt: skip
    theirs = deepseek.DeepseekV3TopkRouter(config)
    ours = recent.NodeLimitedRouter(D, 16, 4, nodes=4, most=2, gate_scale=2.5)
    theirs.weight.data.copy_(ours.weight.data)
    theirs.e_score_correction_bias.copy_(ours.bias_E.normal_(std=0.2))
    x_TD = tokens(T=300)
    _, gate_TK, expert_TK = theirs(x_TD)
    expected_TE = torch.zeros(300, 16).scatter(1, expert_TK, gate_TK)
    torch.testing.assert_close(ours(x_TD).gates_TE(), expected_TE)


def test_a_limit_binds_and_without_one_it_is_the_bias_router():
    free, tied = (recent.NodeLimitedRouter(D, 16, 4, nodes=4, most=most) for most in (4, 1))
    plain = SigmoidBiasRouter(D, 16, 4)
    for router in (free, tied):
        router.load_state_dict(plain.state_dict())
    x_TD = tokens(T=200)
    assert free(x_TD).expert_N.equal(plain(x_TD).expert_N)
    assert {len(set(row)) for row in (tied(x_TD).expert_N.view(-1, 4) // 4).tolist()} == {1}


@pytest.mark.parametrize(("experts", "nodes", "most"), [(6, 4, 2), (8, 4, 0), (8, 4, 5), (8, 8, 1)])
def test_limits_that_cannot_be_are_named(experts, nodes, most):
    with pytest.raises(ValueError, match=f"{most} of {nodes} nodes cannot give 2 of {experts}"):
        recent.NodeLimitedRouter(D, experts, 2, nodes=nodes, most=most)


# --- each sequence by itself ---------------------------------------------------------------------


def test_the_loss_of_each_sequence_by_hand():
    """Two texts of two tokens, each at one expert with certainty: even together, 2 apart."""
    probs_TE = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    expert_TK = probs_TE.argmax(1, keepdim=True)
    whole = Routing.from_choices(probs_TE, probs_TE, expert_TK, torch.ones(4, 1))
    assert losses.load_balancing_loss(whole) == 1 and recent.sequence_loss([whole], 2) == 2
    assert losses.max_violation(whole) == 0 and recent.sequence_violation([whole], 2) == 1
    masked = whole.masked(torch.tensor([True, True, True, False]))
    assert recent.sequence_loss([masked], 2) == 2  # padding does not count
    with pytest.raises(ValueError, match="4 tokens are not sequences of 3"):
        recent.sequence_loss([whole], 3)


# --- a table of ids ------------------------------------------------------------------------------


def test_a_table_chooses_and_the_vector_weighs():
    router = recent.TableRouter(D, 8, 2, vocab_size=50)
    ids_T = torch.tensor([3, 7, 3])
    one, other = router(tokens(0, 3), ids_T=ids_T), router(tokens(1, 3), ids_T=ids_T)
    expected = [sorted(router.expert_VK[v].tolist()) for v in ids_T.tolist()]
    for routing in (one, other):
        assert [sorted(row) for row in routing.expert_N.view(3, 2).tolist()] == expected
    assert not torch.allclose(one.gates_TE()[0], one.gates_TE()[2])  # the same id, other weights
    assert all(len(set(row)) == 2 for row in router.expert_VK.tolist())
    assert torch.bincount(router.expert_VK.flatten()).tolist() == [13, 13, 12, 12] * 2
    with pytest.raises(ValueError, match="needs every token's id"):
        router(tokens(0, 3))


# --- document pools ------------------------------------------------------------------------------


def test_a_documents_tokens_keep_to_its_pool_while_training():
    """Whatever size is drawn: the pool is what the document believes in most, on average."""
    router = recent.PoolRouter(D, 8, 2, document=50)
    x_TD = tokens(T=500)
    believed_GE = router(x_TD).probs_TE.view(10, 50, 8).mean(1)
    sizes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        for expert_n, believed_E in zip(
            router(x_TD).expert_N.view(10, -1), believed_GE, strict=True
        ):
            used = expert_n.unique()
            sizes.add(len(used))
            lowest = believed_E[used].min()
            left = [e for e in range(8) if e not in used and believed_E[e] > lowest]
            assert len(used) == 2 or len(left) <= 2  # nearly all that are better are used
    assert min(sizes) == 2 and max(sizes) >= 7
    plain = TopKRouter(D, 8, 2)
    plain.load_state_dict(router.state_dict())
    assert router.eval()(x_TD).expert_N.equal(plain(x_TD).expert_N)  # nothing is left of it
    router.kept_E = torch.arange(8) < 2
    assert set(router(x_TD).expert_N.tolist()) == {0, 1}


def test_padding_is_in_no_documents_mind():
    router, x_TD, mask_T = recent.PoolRouter(D, 8, 2, document=32), tokens(T=64), torch.ones(64)
    mask_T[20:32] = 0
    torch.manual_seed(0)
    one = router(x_TD, mask_T=mask_T)
    torch.manual_seed(0)
    two = router(torch.where(mask_T[:, None] > 0, x_TD, 50.0), mask_T=mask_T)
    assert one.gates_TE().equal(two.gates_TE())


# --- latent experts ------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_a_latent_layer_is_a_layer_between_two_matrices(any_router, backend, padding):
    torch.manual_seed(0)
    gate, experts, shared = any_router(D, 6, 9), Experts(6, 8, 12), Experts(1, D, 12)
    layer = recent.LatentLayer(D, gate, experts, backend, shared).double().eval()
    x_TD, ids_T = tokens(T=30).double(), torch.arange(30) % 9
    mask_T = torch.arange(30) % 10 < 7 if padding else None
    out_TD, routing = layer(x_TD, mask_T, ids_T)
    masked_TD = x_TD if mask_T is None else x_TD * mask_T[:, None]
    expected_TD = shared.each()[0](masked_TD)
    for e, run in enumerate(experts.each()):
        answer_TD = run(masked_TD @ layer.down.weight.T) @ layer.up.weight.T
        expected_TD = expected_TD + routing.gates_TE()[:, e : e + 1] * answer_TD
    torch.testing.assert_close(out_TD, expected_TD)
    out_TD.square().sum().backward()
    assert layer.down.weight.grad.abs().sum() > 0 and layer.up.weight.grad.abs().sum() > 0


def test_a_latent_layer_names_what_it_cannot_take():
    layer = recent.LatentLayer(D, TopKRouter(D, 4, 2), Experts(4, 8, 12))
    with pytest.raises(ValueError, match=f"input has width 9, the layer {D}"):
        layer(torch.zeros(3, 9))
    with pytest.raises(ValueError, match="router scores vectors of width 16, not 8"):
        layer(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="tokens are torch.float64 and the experts torch.float32"):
        layer(torch.zeros(3, D, dtype=torch.float64))
