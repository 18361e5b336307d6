"""What chapter 08's experiments measure with: none of it may leak itself, or miss a leak."""

import sys

import pytest
import torch

from moe_lite.config import MixtralConfig
from moe_lite.course import ledger
from moe_lite.course.data import Corpus
from moe_lite.layer import MoELayer
from moe_lite.model import Mixtral
from moe_lite.routers import ExpertChoiceRouter, HashRouter, SwitchRouter, TopKRouter

B, S, D, E, V = 4, 12, 16, 4, 11


@pytest.fixture(scope="module")
def leak():
    ledger.load("wang2024_leak")
    return sys.modules["experiments.wang2024_leak"]


@pytest.fixture(scope="module")
def zhou():
    ledger.load("zhou2022")
    return sys.modules["experiments.zhou2022"]


def model_with(make):
    torch.manual_seed(3)
    config = MixtralConfig(
        vocab_size=V, hidden_size=D, intermediate_size=D, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=E, num_experts_per_tok=2,
        max_position_embeddings=S, rope_theta=1e4, initializer_range=0.3,
    )  # fmt: skip
    model = Mixtral(config)
    for layer in model.moe_layers:
        layer.gate = make()
    return model.eval()


def batch():
    ids_BS = torch.randint(V, (B, S + 1), generator=torch.Generator().manual_seed(0))
    return ids_BS[:, :-1], ids_BS[:, 1:]


CAUSAL = {
    "top-k": lambda leak: TopKRouter(D, E),
    "switch, by sequence": lambda leak: SwitchRouter(D, E, group_size=S),
    "hash": lambda leak: HashRouter(V, E),
    "by position": lambda leak: leak.Regrouped(
        ExpertChoiceRouter(D, E, group_size=B), leak.positions(S)
    ),
}
LEAKY = {"whole batch": (None, S), "sequence": (S, S), "chunk": (4, 4)}  # group, tokens of a row


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_owes_nothing_to_the_future(leak, name):
    own_S, other_S = leak.strangers_future(model_with(lambda: CAUSAL[name](leak)), *batch())
    torch.testing.assert_close(own_S, other_S)


@pytest.mark.parametrize(("group", "size"), LEAKY.values(), ids=LEAKY)
def test_a_leak_shows_anywhere_but_at_the_last_place_of_a_group(leak, group, size):
    model = model_with(lambda: ExpertChoiceRouter(D, E, group_size=group))
    own_S, other_S = leak.strangers_future(model, *batch())
    differs = (own_S - other_S).abs().view(-1, size) > 1e-5
    assert differs[:, :-1].any() and not differs[:, -1].any()


def test_first_come_first_served_over_a_batch_tells_a_row_of_the_rows_before(leak):
    """A queue over the whole batch is no leak of one's own future, but it is not independence."""
    gate = SwitchRouter(D, E, capacity_factor=0.5)
    x_BSD = torch.randn(B, S, D)
    other_BSD = torch.cat([torch.randn(1, S, D), x_BSD[1:]])
    layer = MoELayer(gate, model_with(lambda: gate).moe_layers[0].experts)
    assert not torch.allclose(layer(x_BSD)[0][1:], layer(other_BSD)[0][1:])


def test_another_order_and_back_is_the_router_on_the_permuted_tokens(leak):
    router, x_TD = ExpertChoiceRouter(D, E, group_size=4), torch.randn(B * S, D)
    order_T = torch.randperm(B * S)
    regrouped = leak.Regrouped(router, lambda T, training: order_T)(x_TD)
    there = router(x_TD[order_T])
    torch.testing.assert_close(regrouped.gates_TE()[order_T], there.gates_TE())
    torch.testing.assert_close(regrouped.logits_TE[order_T], there.logits_TE)
    same = leak.Regrouped(router, lambda T, training: torch.arange(T))(x_TD)
    torch.testing.assert_close(same.gates_TE(), router(x_TD).gates_TE())


def test_positions_group_one_token_of_each_sequence(leak):
    groups = leak.positions(S)(B * S, True).view(S, B)
    assert (groups % S == torch.arange(S)[:, None]).all()
    assert (groups // S == torch.arange(B)).all()


def test_a_shuffle_stays_the_same_in_evaluation(leak):
    torch.manual_seed(0)
    assert torch.equal(leak.shuffle(50, False), leak.shuffle(50, False))
    assert not torch.equal(leak.shuffle(50, True), leak.shuffle(50, True))


def test_a_bar_lets_in_its_share_and_each_token_by_itself(leak):
    router, x_TD = ExpertChoiceRouter(D, E), torch.randn(400, D)
    bar_E = router(x_TD).probs_TE.quantile(0.5, dim=0)
    gate = leak.Threshold(router, bar_E)
    assert gate(x_TD).load_E().tolist() == [200.0] * E
    some = gate(x_TD[:7]).gates_TE()
    torch.testing.assert_close(some, gate(x_TD).gates_TE()[:7])


def test_thresholds_are_taken_off_again(leak, monkeypatch):
    ids = torch.randint(V, (5000,), generator=torch.Generator().manual_seed(1)).int()
    text = {(split, "arithmetic"): ids for split in ("train", "validation")}
    corpus = Corpus(("arithmetic",), None, text, torch.ones(V, dtype=torch.long))
    monkeypatch.setattr(leak, "S", S)
    monkeypatch.setattr(leak.sweep, "measure", lambda model, corpus: {
        "loss": float(isinstance(model.moe_layers[0].gate, leak.Threshold))})  # fmt: skip
    model = model_with(lambda: ExpertChoiceRouter(D, E))
    assert leak.with_thresholds(model, corpus) == 1.0
    assert isinstance(model.moe_layers[0].gate, ExpertChoiceRouter)


def test_a_text_without_a_past_is_worth_nothing_untrained(leak):
    assert leak.leaked("top-2", seed=0, steps=0) < 0.01


def test_the_shares_of_figure_3_sum_to_one(zhou):
    shares = zhou.experts_per_token([zhou.by_lot(256, 64, 8, seed) for seed in range(2)])
    assert sum(shares[name] for name in zhou.BINS) == pytest.approx(1)
    assert shares["none"] == pytest.approx((1 - 1 / 32) ** 64, abs=0.04)


def test_a_speed_up_is_read_off_the_curve_between_two_steps(zhou, monkeypatch):
    """Every seed has one: of a pair of curves the one that ends higher is reached by the other."""
    monkeypatch.setattr(zhou, "ENDS", range(20, 41, 10))
    curves = {"experts choose": [[6, 4, 3], [2, 2, 2], [9, 8, 7], [5, 5, None]],
              "top-2": [[9, 6, 5], [5, 5, 5], [9, 6, 5], [5, 5, 5]]}  # fmt: skip
    found = {
        f"loss by step {end} at {name}": [row[i] for row in rows]
        for name, rows in curves.items()
        for i, end in enumerate(zhou.ENDS)
    } | {f"loss by step {end} at top-1": [None] * 4 for end in zhou.ENDS}
    made = zhou.relations(found)
    # The second is below 5 from its first count on, as the other is at 5; the third loses.
    assert made["speed-up over top-2"] == [40 / 25, 1.0, pytest.approx((80 / 3) / 40), None]
    assert made["speed-up over top-1"] == [None] * 4


def test_a_race_run_backwards_has_the_reciprocal_factor(zhou):
    a, b = [6.0 - 0.1 * i for i in range(24)], [6.1 - 0.12 * i for i in range(24)]
    assert zhou._speed_up(a, b) == pytest.approx(1 / zhou._speed_up(b, a))
