"""Chapter 14's widgets without a browser: what they show is counted another way, what cannot be
is refused.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from moe_lite.config import MixtralConfig
from moe_lite.course import cost, placement, presets
from moe_lite.course.checks.serving import _parameters
from moe_lite.course.widgets import CostCalculator, TrafficMatrix


@settings(deadline=None, max_examples=25)
@given(
    shape=st.sampled_from([(2, 4, 2), (4, 16, 4), (3, 6, 1), (8, 64, 8)]),
    tokens=st.integers(1, 12), skew=st.floats(0, 2), visit=st.integers(1, 8),
    capacity=st.sampled_from([0.0, 0.25, 1.0, 2.5]),
)  # fmt: skip
def test_the_traffic_is_counted_token_by_token(shape, tokens, skew, visit, capacity):
    R, E, K = shape
    visit = max(-(-K * R // E), min(visit, R))
    widget = TrafficMatrix(R, E, K, tokens=tokens, skew=skew, visit=visit, capacity=capacity)
    gumbel = widget._gumbel_TE
    room = max(1, int(capacity * R * tokens * K / E)) if capacity else 10**9
    pairs, copies, load, dropped = torch.zeros(R, R), torch.zeros(R, R), [0] * E, 0
    for t in range(R * tokens):
        score = (gumbel[t] - skew * torch.arange(1, E + 1).double().log()).exp()
        own = score.view(R, -1).sort(1, descending=True).values[:, : -(-K // visit)].sum(1)
        ranks = own.topk(visit).indices
        for e in range(E):
            if e * R // E not in ranks:
                score[e] = -1
        seen = set()
        for e in score.topk(K).indices.tolist():
            load[e] += 1
            if load[e] > room:
                dropped += 1
            else:
                pairs[t // tokens, e * R // E] += 1
                seen.add(e * R // E)
        for rank in seen:
            copies[t // tokens, rank] += 1
        assert len(seen) <= visit
    traffic = widget.traffic
    assert traffic.pairs_RR.tolist() == pairs.tolist()
    assert traffic.copies_RR.tolist() == copies.tolist()
    assert traffic.dropped == dropped
    assert traffic.away(pairs) == pairs.sum() - pairs.trace()
    assert traffic.busiest == pytest.approx((pairs.sum(0).max() / pairs.sum(0).mean()).item())


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 2), st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.integers(1, 64))
def test_popular_experts_lie_twice_and_their_pairs_take_turns(skew, spare, capacity, tokens):
    R, E = 4, 16
    how = dict(skew=skew, capacity=capacity, tokens=tokens)
    once, twice = (TrafficMatrix(R, E, 4, spare=s, **how).traffic for s in (0, spare))
    assert twice.dropped == once.dropped
    assert twice.pairs_RR.sum(1).tolist() == once.pairs_RR.sum(1).tolist()  # senders send the same
    assert (twice.copies_RR <= twice.pairs_RR).all()
    # No rank has more than its share, a copy's worth of the heaviest, and a pair for each turn.
    work_R, total = twice.pairs_RR.sum(0), once.pairs_RR.sum().item()
    assert work_R.max() <= total / R + total / (R * spare + 1) + E


def test_replicated_experts_even_the_work():
    plain, spared = (TrafficMatrix(8, 64, 8, skew=1.0, spare=n).traffic.busiest for n in (0, 2))
    assert plain > 3.5 and spared < 1.1


def test_copies_go_to_the_heaviest_and_lie_evenly():
    load_E = [100, 60, 30, 5, 5, 0]
    copies_E = placement.replicas(load_E, 6)
    assert copies_E == [4, 3, 2, 1, 1, 1]  # 25, 20, 15, 5, 5 and 0 for a copy
    held = placement.place(load_E, copies_E, 4)
    assert [len(ranks) for ranks in held] == copies_E
    assert [sum(ranks.count(r) for ranks in held) for r in range(4)] == [3] * 4
    with pytest.raises(ValueError, match="7 copies do not lie evenly on 2 ranks"):
        placement.place([1.0] * 6, [2, 1, 1, 1, 1, 1], 2)


def test_the_remedies_act_where_they_should():
    plain, lid, near = (
        TrafficMatrix(8, 64, 8, skew=1.0, **how).traffic
        for how in ({}, {"capacity": 1.25}, {"visit": 2})
    )
    assert lid.busiest < 0.6 * plain.busiest and lid.dropped > 0 == plain.dropped
    assert near.away(near.copies_RR) < 0.6 * plain.away(plain.copies_RR)
    assert near.away(near.pairs_RR) > 0.9 * plain.away(plain.pairs_RR)
    assert TrafficMatrix(8, 64, 8).traffic.busiest < 1.2 < plain.busiest


@pytest.mark.parametrize("shape", [(1, 4, 1), (13, 26, 1), (4, 6, 1), (4, 128, 1), (2, 4, 5)])
def test_ranks_and_experts_that_cannot_be_are_refused(shape):
    with pytest.raises(ValueError, match="2 to 12 ranks|k must be from 1 to 4, not 5"):
        TrafficMatrix(*shape)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("tokens", 0, "tokens must be from 1 to 64, not 0"),
        ("skew", 2.1, "skew must be from 0 to 2"),
        ("visit", 0, "visit must be from 1 to 4, not 0"),
        ("capacity", -1.0, "capacity must be from 0"),
        ("spare", 5, "spare must be from 0 to 4, not 5"),
    ],
)
def test_sliders_keep_to_their_range(name, value, complaint):
    widget = TrafficMatrix()
    with pytest.raises(TraitError, match=complaint):
        setattr(widget, name, value)


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_calculator_starts_at_the_preset_and_counts_as_the_library(preset):
    widget = CostCalculator(preset, batch=4, ranks=2)
    assert widget.architecture == presets.PRESETS[preset]
    device = cost.DEVICES["H100 SXM"]
    for phase, found in widget.costs.items():
        assert found == cost.step(presets.PRESETS[preset], device, phase, 4, 2048, ranks=2)


def test_the_calculator_follows_its_fields():
    widget = CostCalculator()
    widget.experts, widget.weights = 1, "fp8"  # k stays 2, but there is one expert
    assert widget.architecture.top_k == 1
    assert cost.count_parameters(widget.architecture).unused_experts == 0
    widget.set_state({"layers": 2, "device": "RTX 4090"})  # what the page sends
    assert widget.architecture.layers == 2 and widget.costs["decode"].fits
    for name, value in (
        ("batch", 0),
        ("layers", 513),
        ("device", "abacus"),
        ("preset", "GPT-9"),
        ("weights", "int3"),
    ):
        with pytest.raises(TraitError, match=f"{name} must be"):
            setattr(widget, name, value)
    with pytest.raises(ValueError, match="there is no preset 'GPT-9'"):
        CostCalculator("GPT-9")


@pytest.mark.parametrize(
    "widget", [TrafficMatrix(skew=1.0, capacity=1.0), CostCalculator("DeepSeek-V3", ranks=32)]
)
def test_they_have_a_still_face(widget):
    assert widget.png()[1:4] == b"PNG"


@pytest.mark.parametrize("tied", [False, True])
def test_the_check_of_decoding_counts_as_the_library_does(tied):
    config = MixtralConfig(num_hidden_layers=3, tie_word_embeddings=tied)
    count, (common, experts, table) = cost.count_parameters(config), _parameters(config)
    assert (common + experts + table, experts) == (count.total, count.experts)
    step = cost.step(config, cost.DEVICES["H100 SXM"], "decode", 5, 1)
    used = common + cost.distinct_experts(8, 2, 5) / 8 * experts
    assert step.weight_bytes == pytest.approx(2 * used)
