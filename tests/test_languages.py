"""In the languages the cause is the cause, the decoy goes with it, and the truth can be had."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lite.course import analysis
from moe_lite.course.languages import Languages, agreement
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace

WORLDS = [Languages("language"), Languages("verb")]


def named(world):
    return world.cause


@pytest.mark.parametrize("world", WORLDS, ids=named)
def test_the_cause_decides_and_the_decoy_does_not(world):
    quiet = replace(world, noise=0.0)
    batch = quiet.batch("validation", 2000)
    label, noun_B, last_B = quiet.labels(batch.ids_BS), batch.ids_BS[:, 1], batch.targets_BS[:, 2]
    assert torch.equal(quiet.next_CN[label[world.cause], noun_B], last_B)
    assert (quiet.next_CN[label[world.decoy], noun_B] == last_B).double().mean() < 0.8


def test_the_two_worlds_have_the_same_words_equally_often():
    one, other = (world.batch("train", 500, seed=3, step=9) for world in WORLDS)
    assert torch.equal(one.ids_BS, other.ids_BS)
    assert not torch.equal(one.targets_BS, other.targets_BS)


@given(st.integers(0, 99), st.integers(0, 999), st.sampled_from(["train", "validation"]))
def test_a_batch_is_a_function_of_seed_and_step(seed, step, split):
    world = WORLDS[0]
    one = world.batch(split, 16, seed=seed, step=step)
    assert all(map(torch.equal, one, world.batch(split, 16, seed=seed, step=step)))
    assert not torch.equal(one.ids_BS, world.batch(split, 16, seed=seed, step=step + 1).ids_BS)
    assert torch.equal(one.ids_BS[:, 1:], one.targets_BS[:, :2])
    assert one.domain_BS[:, 0].bincount(minlength=8).tolist() == [2] * 8


def test_words_are_as_frequent_as_was_said():
    world = Languages(count=4, tilt=0.6, noise=0.2)
    batch = world.batch("train", 20_000)
    label = world.labels(batch.ids_BS)
    own = (label["language"] == label["verb"]).double().mean()
    right = world.next_CN[label["language"], batch.ids_BS[:, 1]] == batch.targets_BS[:, 2]
    assert own == pytest.approx(0.6, abs=0.02)
    assert right.double().mean() == pytest.approx(0.8 + 0.2 / 32, abs=0.02)
    assert all((row.sort().values == torch.arange(32)).all() for row in world.next_CN)


def test_nobody_can_go_below_the_floor():
    world = Languages(noise=0.3, nouns=5)
    right, wrong = 0.7 + 0.06, 0.06
    entropy = -torch.tensor([right, *[wrong] * 4]).log() @ torch.tensor([right, *[wrong] * 4])
    assert world.floor == pytest.approx(entropy.item())
    assert Languages(noise=0.0).floor == 0


@pytest.mark.parametrize("world", WORLDS, ids=named)
def test_a_router_that_knows_its_label_agrees_with_it(world):
    ids_BS = world.batch("validation", 256).ids_BS
    for by in ("language", "verb"):
        model = world.learn(world.setting(f"by {by}", steps=1, warmup=1)).model
        expert_T = analysis.choices_LTK(world.trace(model, ids_BS))[0, :, 0]
        label = world.labels(ids_BS)
        assert agreement(expert_T, label[by], range(2)).accuracy == 1
        assert torch.equal(expert_T, label[by])


def test_a_choice_counts_also_where_the_expert_was_full():
    world = WORLDS[0]
    model = world.setting().build(0)
    model.moe_layers[0].gate.capacity_factor = 0.25
    ids_BS = world.batch("validation", 256).ids_BS
    with torch.no_grad():
        (whole,) = model.eval()(ids_BS).routings
    (verbs,) = world.trace(model, ids_BS).layers
    assert not whole.keep_N[2::3].all()
    assert torch.equal(verbs.expert_N, whole.expert_N[2::3]) and verbs.keep_N is None


def test_a_router_that_learns_is_balanced_over_the_verbs_and_gets_better():
    world = Languages(count=2, nouns=4)
    setting = world.setting(steps=60, warmup=5)
    before, after = (world.learn(s, seed=1) for s in (world.setting(steps=1, warmup=1), setting))
    losses = []
    for outcome in (before, after):
        batch = world.batch("validation", 512)
        with torch.no_grad():
            logits_BV = outcome.model(batch.ids_BS).logits_BSV[:, -1]
        losses.append(torch.nn.functional.cross_entropy(logits_BV, batch.targets_BS[:, -1]).item())
    assert losses[1] < min(losses[0] - 0.3, world.floor + 0.2)
    load_E = world.trace(after.model, batch.ids_BS).layers[0].load_E()
    assert load_E.min() > 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"cause": "noun"}, "cause must be one of"),
        ({"count": 1}, "count must be at least 2, not 1"),
        ({"nouns": 0}, "nouns must be at least 2, not 0"),
        ({"tilt": 1.5}, "tilt must be from 0 to 1, not 1.5"),
        ({"noise": -0.1}, "noise must be from 0 to 1, not -0.1"),
    ],
)
def test_what_cannot_be_is_named(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        Languages(**change)


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="split must be one of train, validation, not 'test'"):
        WORLDS[0].batch("test", 4)
    with pytest.raises(ValueError, match="a sentence has 3 words before its last, not 64"):
        WORLDS[0].batch("train", 4, 64)


# --- agreement -----------------------------------------------------------------------------------


def test_a_router_that_follows_the_label_agrees_whatever_its_experts_are_numbered():
    label_T = torch.arange(80) % 4
    for expert_T in (label_T, 3 - label_T, label_T * 2 + 1):
        found = agreement(expert_T, label_T)
        assert found.accuracy == 1 and found.information == pytest.approx(1)
        assert found.adjusted() == pytest.approx(1)
        assert found.adjusted("information") == pytest.approx(1)
        assert max(found.null_accuracy) < 0.6


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 10**6))
def test_agreement_is_the_best_of_all_namings_and_their_shared_bits(C, E, seed):
    random = torch.Generator().manual_seed(seed)
    label_T = torch.cat([torch.arange(C), torch.randint(C, (40,), generator=random)])
    expert_T = torch.cat([torch.arange(C) % E, torch.randint(E, (40,), generator=random)])
    found = agreement(expert_T, label_T, [0])
    more = max(C, E)  # a label may be left without an expert, and an expert without a label
    best = max(
        (torch.tensor(names)[label_T] == expert_T).double().mean().item()
        for names in itertools.permutations(range(more))
    )
    assert found.accuracy == pytest.approx(best)
    trace = RoutingTrace([""] * len(label_T), (routing(expert_T, E),), ("0",), "")
    bits = analysis.mutual_information(trace, label_T).item()
    own = [analysis.mutual_information(trace_of_labels(x_T), x_T) for x_T in (label_T, expert_T)]
    assert found.information == pytest.approx(2 * bits / float(sum(own)), abs=1e-9)


def routing(expert_T, E):
    gate_T1 = torch.ones(len(expert_T), 1)
    probs_TE = torch.full((len(expert_T), E), 1 / E)
    return Routing.from_choices(probs_TE.log(), probs_TE, expert_T[:, None], gate_T1)


def trace_of_labels(x_T):
    return RoutingTrace([""] * len(x_T), (routing(x_T, int(x_T.max()) + 1),), ("0",), "")


def test_agreement_of_a_random_router_is_adjusted_to_nothing():
    random = torch.Generator().manual_seed(3)
    scores = [agreement(*torch.randint(0, 4, (2, 200), generator=random)) for _ in range(30)]
    for which in ("accuracy", "information"):
        values = torch.tensor([score.adjusted(which) for score in scores])
        assert values.mean().abs() < 0.02
    assert torch.tensor([score.accuracy for score in scores]).mean() > 0.27  # chance is not 1/4
    assert agreement([0, 0, 0], [0, 0, 0]).information == 0  # nothing to know


@pytest.mark.parametrize(
    ("experts", "labels", "message"),
    [([0, 1], [0], "2 experts do not fit 1 labels"), ([0, -1], [0, 0], "numbers from 0")],
)
def test_agreement_refuses(experts, labels, message):
    with pytest.raises(ValueError, match=message):
        agreement(experts, labels)
