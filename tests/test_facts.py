"""Chapter 11's tasks: their bits, their truth, and that what is learned is what is asked for."""

import math
from concurrent.futures import ThreadPoolExecutor
from operator import gt

import pytest
import torch

from experiments import jelassi2024_context
from moe_lite.course import facts, ledger, trial


def test_a_book_holds_each_name_once_and_its_bits_follow():
    book = facts.PhoneBook(300, seed=3)
    names = {tuple(row) for row in book.ids_NS[:, :2].tolist()}
    assert len(names) == len(book) == 300
    assert book.bits == pytest.approx(300 * 3 * math.log2(100))
    assert torch.equal(book.ids_NS, facts.PhoneBook(300, seed=3).ids_NS)
    assert book.ids_NS.max() < facts.BOOK_MODEL.vocab_size
    first, last, a, b, c = book.ids_NS[0].tolist()
    name = f"{facts.NAMES[first]} {facts.NAMES[last - 64]}"
    assert book.entry(0) == f"{name}: {a - 128:02}-{b - 128:02}-{c - 128:02}"


@pytest.mark.parametrize("entries", [0, -1, 64**2 + 1])
def test_a_book_has_one_entry_for_each_name_at_most(entries):
    with pytest.raises(ValueError, match=f"4,096 names for a book, not {entries:,}"):
        facts.PhoneBook(entries)


def test_names_are_invented_and_differ():
    assert len(set(facts.NAMES)) == 64


def test_a_small_book_is_learned_and_chance_knows_nothing():
    book = facts.PhoneBook(40)
    before = facts.memorise(facts.BOOK_MODEL, book, steps=0)
    right_N, bits = book.recall(before)
    assert not right_N.any() and bits < 0.05 * book.bits
    right_N, bits = book.recall(facts.memorise(facts.BOOK_MODEL, book, steps=60))
    assert right_N.float().mean() > 0.9 and 0.8 * book.bits < bits <= book.bits


@pytest.mark.parametrize("learn", [
    lambda seed: facts.memorise(facts.BOOK_MODEL, facts.PhoneBook(40), 2, seed),
    lambda seed: facts.train_block(facts.Facts(40), 4, 8, 2, seed, batch=16),
    lambda seed: facts.train_block(facts.Paths(4), 4, 8, 2, seed, batch=16),
    lambda seed: facts.train_recall(facts.RECALL_MODEL, facts.Pairs(), 2, seed, batch=8),
], ids=["book", "facts", "paths", "recall"])  # fmt: skip
def test_models_that_learn_side_by_side_are_those_that_learn_alone(learn):
    """All first weights come from one global source: a thread must not draw between another's."""
    state = torch.get_rng_state()
    alone = [learn(seed).state_dict() for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        beside = [model.state_dict() for model in pool.map(learn, range(8))]
    torch.testing.assert_close(beside, alone, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state), "the learner's own draws go on as they were"


def test_a_block_does_as_much_for_one_token_with_any_number_of_experts():
    few, many = facts.Facts(10), facts.Facts(10)
    assert torch.equal(few.x_ND, many.x_ND) and few.bits == 70
    for experts in (1, 4):
        block = facts.Block(32, 16, experts, 128)
        _, routing = block(few.x_ND)
        assert routing.num_experts == experts and routing.load_E().sum() == 10  # none is dropped


def test_a_capacity_drops_what_finds_no_place():
    block = facts.Block(32, 16, 8, 128, capacity=1.0)
    block.moe.gate.weight.data.zero_()  # all at one expert
    _, routing = block(facts.Facts(64).x_ND)
    assert routing.load_E().sum() == 8


def test_paths_are_what_they_say_and_half_of_the_answers_are_yes():
    paths = facts.Paths(6)
    x_TD, answer_T = paths.batch(torch.Generator().manual_seed(0), 4000)
    edge_T2V = (x_TD > 0).view(-1, 2, 6)
    assert torch.equal(answer_T, (edge_T2V[:, 0] & edge_T2V[:, 1]).any(1).long())
    assert abs(answer_T.float().mean() - 0.5) < 0.05
    assert abs(x_TD.mean()) < 0.05 and abs(x_TD.std() - 1) < 0.05


def test_the_value_asked_for_is_the_one_that_the_text_pairs_with_the_key():
    ids_BS, value_BP = facts.Pairs(pairs=3).batch(torch.Generator().manual_seed(0), 50)
    assert ids_BS.shape == (50, 9)
    for text, values in zip(ids_BS.tolist(), value_BP.tolist(), strict=True):
        pairs = dict(zip(text[:6:2], text[1:6:2], strict=True))
        assert [pairs[key] for key in text[6:]] == values and len(pairs) == 3


def test_a_points_sign_stands_in_its_clusters_feature_and_its_centre_tells_the_cluster():
    world = facts.Clusters(seed=2)
    x_TPD, class_T, cluster_T = world.points(500)
    centre_TK = (x_TPD @ world.centre_KD.T).amax(1)
    assert torch.equal(centre_TK.argmax(1), cluster_T)
    own_TP = (x_TPD * world.feature_KD[cluster_T][:, None]).sum(-1)
    strongest = own_TP.gather(1, own_TP.abs().argmax(1, keepdim=True))[:, 0]
    assert ((strongest > 0).long() == class_T).float().mean() > 0.97  # noise may win, seldom


@pytest.mark.parametrize("recipe", ["normalised", "adam"])
def test_both_recipes_learn_something(recipe):
    x_TPD, class_T, _ = facts.Clusters(seed=1).points(600)
    net = facts.Filters(8, 16, small=recipe == "normalised", seed=1)
    facts.train_filters(net, x_TPD, class_T, recipe, epochs=120, seed=1)
    assert facts.accuracy(net, x_TPD, class_T) > 0.6


def test_another_recipe_is_refused():
    x_TPD, class_T, _ = facts.Clusters().points(4)
    with pytest.raises(ValueError, match="'sgd'"):
        facts.train_filters(facts.Filters(1, 2, small=False), x_TPD, class_T, "sgd", 1)


def test_a_step_of_the_normalised_recipe_has_the_same_length_for_each_expert():
    x_TPD, class_T, _ = facts.Clusters(seed=1).points(400)
    net = facts.Filters(4, 8, small=True)
    scores_T2, _ = net(x_TPD, torch.rand(400, 4))
    torch.nn.functional.cross_entropy(scores_T2, class_T).backward()
    before_EFD = torch.cat([net.weight, net.bias[..., None]], dim=2).detach().clone()
    facts._step_normalised(net)
    after_EFD = torch.cat([net.weight, net.bias[..., None]], dim=2)
    moved_E = (after_EFD - before_EFD).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved_E, torch.full((4,), 1e-3), atol=1e-6, rtol=0)


def test_the_weights_of_the_least_loss_are_kept():
    x_TPD, class_T, _ = facts.Clusters(seed=1).points(300)
    net = facts.Filters(1, 4, small=False)
    losses = []
    for epochs in (1, 5, 20):
        facts.train_filters(net, x_TPD, class_T, "adam", epochs)
        losses.append(torch.nn.functional.cross_entropy(net(x_TPD)[0], class_T).item())
    assert losses == sorted(losses, reverse=True)


CHAPTER = (ledger.ROOT / "notebooks" / "11_what_for.py").read_text("utf-8").replace("\n# ", " ")


def test_who_finds_out_how_to_look_back_is_told_by_the_stored_runs():
    found = ledger.stored("jelassi2024_context").measures
    sparse, dense = (found[f"found at {name}"] for name in ("16 experts", "dense, equal active"))
    wins, losses = (sum(map(gt, *pair)) for pair in ((sparse, dense), (dense, sparse)))
    hits = [sum(x == 100 for x in arm) for arm in (sparse, dense)]
    p = ledger.sign_test(wins, losses)
    assert (len(sparse), *hits, wins, losses) == (20, 14, 3, 11, 0) and p < 0.05  # bold
    assert "14 of twenty sparse runs, three dense ones; eleven pairs differ, all for" in CHAPTER
    assert f"(p = {p:.3f})" in CHAPTER
    assert "(14 and 3 of 20; " in trial.INSTEAD["parrots"]
    assert f"14 and 3 of 20; eleven pairs differ, all for the experts (sign test, p = {p:.3f})" in (
        jelassi2024_context.EXPERIMENT.caveat
    )
    (odd,) = (x for name in ("16 experts", "dense, equal active")
              for x in found[f"in context at {name}"] if 35 < x < 95)  # fmt: skip
    assert f"but one run at {odd:.0f}%" in CHAPTER


def test_what_more_looks_add_is_told_by_the_stored_runs():
    """ "No ceiling yet" stands on gains that are sure to be above zero."""
    short, longer = ledger.stored("allenzhu2024"), ledger.stored("allenzhu2024_long")
    ten, most = (f"bits per parameter, dense, {looks}" for looks in (1000, 10_000))
    more = longer[ledger.Pair(most, ten)]
    assert f"add {more}, to {longer[most].mean:.2f}, still below" in CHAPTER
    assert more.low > 0 and longer[most].high < 2
    for kind in ("dense", "16 experts"):
        pair = (f"bits per parameter, {kind}, {looks}" for looks in (1000, 100))
        assert short[ledger.Pair(*pair)].mean == pytest.approx(1 / 3, abs=0.02)
