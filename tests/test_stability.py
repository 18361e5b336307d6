"""What chapter 07's experiments stand on: the rounded router, first weights, the clip, the rule."""

import math
import sys

import pytest
import torch

from moe_lite.course import ledger

ledger.load("stmoe2022")
switch = sys.modules["experiments.switch2021_stability"]
stmoe = sys.modules["experiments.stmoe2022"]


def test_a_rounded_router_works_in_bfloat16_and_learns():
    torch.manual_seed(0)
    router, x_TD = switch.RoundedRouter(16, 8), torch.randn(60, 16)
    routing = router(x_TD)
    logits_TE = x_TD.bfloat16() @ router.weight.bfloat16().T
    for rounded in (routing.logits_TE, routing.probs_TE, routing.gate_N):
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded, rounded.bfloat16().float())
    assert torch.equal(routing.logits_TE, logits_TE.float())
    assert torch.equal(routing.gate_N, routing.probs_TE.amax(-1))
    (slope_ED,) = torch.autograd.grad(routing.gate_N.sum(), router.weight)
    assert slope_ED.abs().max() > 0


def test_an_offset_changes_no_softmax_but_its_rounding():
    torch.manual_seed(0)
    plain, moved = switch.RoundedRouter(16, 8), switch.RoundedRouter(16, 8, offset=1200.0)
    moved.load_state_dict(plain.state_dict())
    x_TD = torch.randn(60, 16)
    assert moved(x_TD).logits_TE.unique().tolist() == [1200.0]  # 8 apart there: all tie
    moved.offset = 0.0
    assert torch.equal(moved(x_TD).logits_TE, plain(x_TD).logits_TE)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_first_weights_have_switchs_variance(scale):
    model = switch.Scaled("switch", scale=scale).build(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            sigma = math.sqrt(scale / weight.shape[-1])
            assert weight.abs().max() <= 2 * sigma
            assert weight.std().item() == pytest.approx(0.8796 * sigma, rel=0.1)
    again, twin = (switch.Scaled("switch", scale=scale, twin=t).build(0) for t in (0, 1))
    assert torch.equal(again.norm.weight, model.norm.weight)
    assert torch.equal(again.embed_tokens.weight, model.embed_tokens.weight)
    assert not torch.equal(twin.embed_tokens.weight, model.embed_tokens.weight)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_updates_are_clipped_and_only_within(optimizer):
    weights = [torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(3, 2))]
    step = optimizer(weights, lr=0.5, weight_decay=0.0)

    def moved(gradient):
        before = [w.detach().clone() for w in weights]
        for w in weights:
            w.grad = torch.full_like(w, gradient)
        step.step()
        pairs = zip(weights, before, strict=True)
        return [(w.detach() - b).square().mean().sqrt().item() / 0.5 for w, b in pairs]

    with stmoe.update_clipping(0.1):
        assert moved(2.0) == pytest.approx([0.1, 0.1])
    with stmoe.update_clipping(1e9):
        free = moved(2.0)
    assert free == pytest.approx(moved(2.0), rel=0.01) and free[0] > 0.9


def test_a_rise_is_measured_from_the_lowest_ten():
    falling = [9.0 - 0.1 * n for n in range(50)]
    assert stmoe.rise(falling) == 0
    assert stmoe.rise(falling + [falling[-1] + 2] * 10) == pytest.approx(2 - 0.45)
    assert stmoe.rise([5.0] * 10) == 0


def test_a_run_is_stable_by_the_rule_written_down():
    names = [*stmoe.SETTINGS, *stmoe.CLIPPED]
    found = {f"loss at {name}": [6.0, 6.7, 6.0, None] for name in names}
    found |= {f"rise at {name}": [0.4, 0.0, 0.6, None] for name in names}
    del found["loss at baseline, 1"], found["rise at baseline, 1"]  # every seed diverged
    measures = stmoe.relations(found, frequencies=6.5)
    assert measures["stable at z-loss, 0.4"] == [1.0, 0.0, 0.0, 0.0]
    assert measures["stable at baseline, 1"] == [0.0] * 4
    assert measures["loss at baseline, 1"] == [None] * 4
    pairs = [claim.measure for claim in ledger.load("stmoe2022").claims]
    assert {key for pair in pairs for key in (pair.a, pair.b)} <= {*measures, *found}
