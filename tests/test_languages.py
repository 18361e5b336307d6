"""In the languages the cause is the cause, the decoy goes with it, and the truth can be had."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lite import analysis
from moe_lite.course.languages import Languages

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
        assert analysis.agreement(expert_T, label[by], range(2)).accuracy == 1
        assert torch.equal(expert_T, label[by])


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
