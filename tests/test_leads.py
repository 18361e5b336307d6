"""Leads of sparse over dense: paired by seed, on the same text, schedule and step."""

import math
import re
import statistics
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from experiments import recipe
from moe_lite.course import leads
from moe_lite.course.data import BOOK, DOMAINS
from moe_lite.model import Mixtral


def axis(name, base, runs, book=False, of=4):
    rows = [
        {"name": n, "seed": s, "differs": {} if n == "plain" else {"lr": 1.0}, "bits": bits}
        for n, s, bits in runs
    ]
    model = {"num_local_experts": 1 if base else 8}
    return {"axis": name, "base": base, "book": book, "of": of, "model": model, "runs": rows}


def at(**bits):
    return {step.removeprefix("s"): {"drama": b, "code": b + 1} for step, b in bits.items()}


DENSE = axis("d", True, [("plain", 0, at(s2=3.0, s4=2.0)), ("plain", 1, at(s2=4.0, s4=3.0))])
SPARSE = axis("s", False, [("moe", 1, at(s2=3.5, s3=1.0)), ("moe", 0, at(s2=2.9, s3=1.0))])


def test_pairs_are_of_one_seed_and_a_step_that_both_have():
    (lead,) = leads.leads([DENSE, SPARSE], lambda step: True)
    assert (lead.name, lead.step) == ("moe", 2)
    assert lead.by_seed == pytest.approx({1: 0.5, 0: 0.1})
    assert lead.by_domain == pytest.approx({"drama": 0.3, "code": 0.3})
    middle, low, high = lead.interval
    assert middle == pytest.approx(0.3) and high - middle == pytest.approx(middle - low)
    assert high - middle == pytest.approx(12.7062 * 0.2, rel=1e-4)  # t(1) * sd / sqrt 2


@pytest.mark.parametrize("other", [{"book": True}, {"of": 8}])
def test_other_text_or_another_schedule_is_no_pair(other):
    assert leads.leads([DENSE, SPARSE | other], lambda step: True) == []


def test_at_equal_time_the_twin_is_further_on(monkeypatch):
    monkeypatch.setattr(leads, "stored", lambda: [DENSE, SPARSE])
    # a step as long as 1.5 of the twin's: step 2 against 3, half way from 3.0 to 2.0, 4.0 to 3.0
    two, *rest = leads.curve("s", "moe", "d", "plain", 1.5)
    assert two.step == 2 and two.by_seed == pytest.approx({1: 0.0, 0: -0.4}) and rest == []
    assert [r.step for r in leads.curve("s", "moe", "d", "plain")] == [2, 3]


def test_a_wide_twin_is_compared_as_far_as_it_came_and_is_no_sparse_run(monkeypatch):
    wide = axis("w", False, [("wide", 0, at(s2=2.5))]) | {"model": {"num_local_experts": 1}}
    found = [DENSE, SPARSE, wide]
    assert {lead.name for lead in leads.leads(found, lambda step: True)} == {"moe"}
    monkeypatch.setattr(leads, "stored", lambda: found)
    (two,) = leads.curve("s", "moe", "w", "wide")
    assert two.step == 2 and two.by_seed == pytest.approx({0: -0.4})
    assert leads.curve("s", "moe", "not stored", "wide") == []


def test_the_phone_book_stands_for_itself():
    assert leads.mean({"drama": 1.0, "code": 3.0, "phone book": 100.0}) == 2.0


def test_a_run_is_held_against_the_twin_of_its_own_learning_rate():
    slow = {"name": "slow", "seed": 0, "differs": {"lr": 1.0}, "bits": at(s2=9.0, s4=9.0)}
    base = DENSE | {"runs": [*DENSE["runs"], slow]}
    runs = [{"name": "moe, slow", "seed": 0, "differs": {"lr": 1.0, "z": 1}, "bits": at(s2=3.0)}]
    other = [{"name": "moe, fast", "seed": 0, "differs": {"lr": 2.0}, "bits": at(s2=2.0)}]
    found = leads.leads([base, SPARSE | {"runs": runs + other}], lambda step: True)
    assert {r.name: r.by_seed for r in found} == {"moe, slow": {0: 6.0}, "moe, fast": {0: 1.0}}


def test_what_was_looked_at_through_more_windows_is_no_pair():
    more = {"training": {"eval_windows": 64}}
    assert leads.leads([DENSE, SPARSE | more], lambda step: True) == []


def test_a_token_can_be_copied_if_it_followed_the_same_one_before():
    ids, targets = torch.tensor([[7, 5, 7, 5, 7]]), torch.tensor([[5, 7, 5, 8, 5]])
    assert leads.copied(ids, targets).tolist() == [[False, False, True, False, True]]
    both = torch.tensor([[1, 2], [1, 2]])  # another text's pair is no one's past
    assert not leads.copied(both, both + 1).any()


def test_loss_by_copying_splits_the_whole_loss():
    corpus = recipe.load_corpus(("code",), max_bytes=60_000)
    sizes = replace(recipe.MINI, num_hidden_layers=1, hidden_size=24)
    models = [Mixtral(sizes).eval() for _ in range(2)]

    @torch.no_grad()
    def losses(ids_BS, targets_BS):
        each = (model(ids_BS).logits_BSV.flatten(0, 1) for model in models)
        flat_T = targets_BS.flatten()
        return torch.stack([F.cross_entropy(out, flat_T, reduction="none") for out in each])

    found = leads.loss_by_copying(losses, corpus, "code", windows=20, seq_len=40)
    batch = corpus.windows("code", 40, 20)
    for got, whole in zip(found, losses(batch.ids_BS, batch.targets_BS).mean(1), strict=True):
        assert 0 < got["share"] < 1
        mixed = got["share"] * got["copied"] + (1 - got["share"]) * got["new"]
        assert mixed == pytest.approx(float(whole), rel=1e-5)


def test_what_is_stored_is_what_the_axes_say():
    found = leads.stored()
    assert found
    for each in found:
        a = recipe.AXES[each["axis"]]
        assert (each["book"], each["base"], each["of"]) == (a.book, a.base, a.training.steps)
        assert {r["name"] for r in each["runs"]} <= set(a.runs)
        assert each["model"]["num_local_experts"] == a.model.num_local_experts
        for r in each["runs"]:
            assert r["differs"] == a.runs[r["name"]]
        ended = each["steps"] == each["of"]
        assert all(("final" in r) == ended for r in each["runs"])


def test_an_axis_is_trained_stored_and_read_again(tmp_path, monkeypatch):
    tiny = replace(recipe.LONG, steps=2, batch_size=2, seq_len=16, eval_every=1, eval_windows=1)
    short = replace(recipe.AXES["finer"], training=tiny, seeds=1)
    monkeypatch.setitem(recipe.AXES, "finer", short)
    small = recipe.load_corpus(max_bytes=60_000)
    monkeypatch.setattr(recipe, "load_corpus", lambda domains: small)
    found = recipe.measure("finer", "cpu")
    recipe.write(found, tmp_path / "finer.json")
    monkeypatch.setattr(leads, "RESULTS", tmp_path)
    (again,) = leads.stored()
    assert again["steps"] == 2 and len(again["runs"]) == 2 and "final" in again["runs"][0]
    assert set(again["runs"][0]["bits"]) == {"1", "2"}


def test_one_pair_can_tie_that_was_ahead_on_the_way():
    end, early = leads.on_a_cpu(), leads.on_a_cpu(1500)
    assert (early.step, end.step, end.of) == (1500, 4000, 4000)
    assert f"{early.by_seed[0]:.3f} {end.by_seed[0]:.3f}" == "0.039 0.004"
    assert end.by_seed[0] == pytest.approx(statistics.mean(end.by_domain.values()))
    assert set(leads.copying_on_a_cpu()) == {"2 of 8", "dense"}


CARD, TWIN = (
    (leads.ROOT / "checkpoints" / name / "README.md").read_text("utf-8")
    for name in ("mixtral-mini", "mixtral-mini-dense")
)
INTERVAL = "{:+.3f} [{:+.3f}, {:+.3f}]"


@pytest.fixture(scope="module")
def arms():
    """The five mixtures of the box's recipe, and their twins."""
    found = {r["axis"]: r["runs"] for r in leads.stored()}
    ours = [r for r in found["whole finer"] if r["name"] == "4 of 16, scale 4"]
    return ours, [r for r in found["whole dense"] if r["name"] == "dense"]


def test_the_card_tells_the_bits_of_both_arms_and_every_seed(arms):
    names = ("mixtral-mini", "mixture"), ("mixtral-mini-dense", "twin")
    for runs, (box, arm) in zip(arms, names, strict=True):
        rows = [[r["final"][d] for d in DOMAINS] + [leads.mean(r["final"]), r["final"][BOOK]]
                for r in runs]  # fmt: skip
        told = dict(zip((box, *(f"{r['seed']}, {arm}" for r in runs[1:])), rows, strict=True))
        told[f"mean of five, {arm}"] = [statistics.mean(c) for c in zip(*rows, strict=True)]
        for name, bits in told.items():
            assert f"| {name} | {' | '.join(f'{b:.3f}' for b in bits)} |" in CARD
    assert " | ".join(f"{b:.3f}" for b in rows[0]) in TWIN


def test_the_card_tells_the_curve_of_every_seed_and_its_interval():
    rows = [r for r in leads.leads(leads.stored(), lambda s: True) if r.axis == "whole finer"]
    curve = {r.step: r for r in rows if r.name == "4 of 16, scale 4"}
    marks = [curve[step] for step in (500, 1000, 2000, 3000, 4000)]
    assert f"| ahead | {' | '.join(INTERVAL.format(*m.interval) for m in marks)} |" in CARD
    for seed in range(5):
        name = str(seed) if seed else "seed 0, this pair"
        assert f"| {name} | {' | '.join(f'{m.by_seed[seed]:+.3f}' for m in marks)} |" in CARD
    lost = {s: marks[0].by_seed[s] - v for s, v in marks[-1].by_seed.items()}
    assert "by {:.3f} [{:.3f}, {:.3f}]".format(*leads.Lead("", 0, 0, lost).interval) in CARD


def test_the_card_tells_the_curve_of_each_arm(arms):
    for ours, twin in zip(*arms, strict=True):
        marks = [
            f"{leads.mean(ours['bits'][str(m)]):.3f}, {leads.mean(twin['bits'][str(m)]):.3f}"
            for m in (500, 1000, 2000, 3000, 4000)
        ]
        assert f"| {ours['seed']} | {' | '.join(marks)} |" in CARD


def test_the_card_tells_what_became_of_the_first_edition():
    card, pair = " ".join(CARD.split()), leads.on_a_cpu()
    assert f"ended {pair.by_seed[0]:.3f} ahead: {pair.by_domain['code']:.3f} in code" in card
    rest = max(lead for domain, lead in pair.by_domain.items() if domain != "code")
    assert f"at most {rest:.3f} in another kind of text" in card
    (whole,) = (r for r in leads.leads(leads.stored(), lambda s: s == 4000)
                if (r.axis, r.name) == ("whole", "2 of 8"))  # fmt: skip
    told = "{:.3f} [{:.3f}, {:.3f}]".format(*whole.interval)
    apart = statistics.stdev(whole.by_seed.values())
    assert f"ahead by {told} over five seeds, which lie {apart:.3f} apart" in card
    runs = [r for found in leads.stored() if "whole" in found["axis"] for r in found["runs"]
            if "final" in r]  # fmt: skip
    best = min(r["copying"]["code"]["copied"] for r in runs)
    twin = leads.copying_on_a_cpu()["dense"]["code"]["copied"]
    appendix = (leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8")
    for page in (card, " ".join(appendix.replace("\n# ", " ").split())):
        assert twin < best and f"as well as the best of {len(runs)} stored runs" in page


def test_the_card_tells_what_a_step_costs_in_the_compiled_program():
    card = " ".join(CARD.split())
    for name, where in (
        ("4 of 16", "with experts in all six"), ("only first", "in the first alone"),
        ("only first, table", "there by a table"), ("only first, 64", "with 64 there"),
    ):  # fmt: skip
        told = "{:.2f} [{:.2f}, {:.2f}]".format(*leads.pace(name, alone=True))
        assert f"{told} {where}" in card or f"{told} of the twin's {where}" in card, told


def test_the_card_tells_where_the_lead_is(arms):
    ours, twins = arms
    ahead = [
        leads.Lead("", 0, 0, {r["seed"]: t["final"][d] - r["final"][d]
                              for r, t in zip(ours, twins, strict=True)})
        for d in (*DOMAINS, BOOK)
    ]  # fmt: skip
    split = leads.by_copying("whole finer", "4 of 16, scale 4", "whole dense", "dense")
    for name, row in (
        ("all, bits per byte", ahead),
        *((f"{what}, nats per token", [split[d][what] for d in (*DOMAINS, BOOK)])
          for what in ("new", "copied")),
    ):  # fmt: skip
        assert f"| {name} | {' | '.join(INTERVAL.format(*r.interval) for r in row)} |" in CARD
    assert all(split[d]["new"].interval[1] > 0 for d in (*DOMAINS, BOOK))  # "in all six"


def test_the_card_tells_where_seeds_differ(monkeypatch):
    middle, low, high = leads.spread()
    assert low > 1
    assert f"{middle:.1f} times [{low:.1f}, {high:.1f}]" in " ".join(CARD.split())

    def run(seed, copied, new):
        return {"name": "a", "seed": seed, "copying": {"code": {"copied": copied, "new": new}}}

    runs = [run(0, 1.0, 5.0), run(1, 3.0, 4.0), run(2, 5.0, 6.0)]  # spread 2 and 1
    monkeypatch.setattr(leads, "stored", lambda: [{"axis": "x", "runs": runs}])
    assert leads.spread(("x",)) == pytest.approx((2.0, 2 / 39**0.5, 2 * 39**0.5))  # F(2, 2): 39


def test_what_routers_do_is_held_against_bits_within_a_recipe(monkeypatch):
    """A recipe whose runs are all worse, and all sharper, says nothing of its seeds."""

    def run(seed, bits, worth, load):
        routers = {"worth": [worth, 0.0], "load": [load, load], "mass": [1.0, 2.0 * seed],
                   "parked": [float(seed == 1), 0.0]}  # fmt: skip
        final = {"drama": bits, "code": bits, leads.BOOK: 99.0}
        return {"name": "a", "seed": seed, "final": final, "routers": routers}

    first = [run(0, 1.0, 3.0, 2.0), run(1, 2.0, 2.0, 2.1), run(2, 3.0, 1.0, 2.0)]
    other = [run(0, 7.0, 7.0, 9.0), run(1, 9.0, 5.0, 9.1), run(2, 8.0, 6.0, 9.0)]
    few = [run(0, 1.0, 1.0, 1.0), run(1, 9.0, 9.0, 9.0)]
    axes = [{"axis": str(n), "runs": runs} for n, runs in enumerate((first, other, few))]
    monkeypatch.setattr(leads, "stored", lambda: axes)
    found = leads.by_router()
    # One of the six orders of three seeds goes together as closely: none but their own.
    assert found["worth", "first"] == pytest.approx((-1, 1 / 6))
    # within: bits -1 0 1, -1 1 0; the second seed's part -1/3 2/3 -1/3 in both. The seeds' bits
    # together are -2 1 1, so whichever comes second goes as closely.
    same, p = found["parked", "first"]
    assert same == pytest.approx(1 / (4 * 4 / 3) ** 0.5)
    assert p == 1
    assert found["load", "all"] == pytest.approx(found["load", "first"])
    assert found["mass", "first"] == (0, 1)  # the same in all runs


def test_a_lead_on_seen_text_leaves_the_book_out(monkeypatch):
    """Two texts and the book: one byte a token, a bit a byte, so all is in ln 2 nats."""

    def run(train, text, book):
        bits = {"a": text, "b": text, leads.BOOK: book}
        nats = {d: {"copied": b * math.log(2), "new": b * math.log(2), "share": 0.3}
                for d, b in bits.items()}  # fmt: skip
        return {"name": "x", "seed": 0, "train": {"250": train, "500": train},
                "bits": {"250": bits, "500": bits}, "final": bits, "copying": nats}  # fmt: skip

    # ahead by 3 ln 2 in all: by 2 bits in the book, so by 3.5 on each text, of which 1 is unseen
    axes = [
        {"axis": "ours", "of": 500, "runs": [run(0.0, 1.0, 1.0)]},
        {"axis": "theirs", "of": 500, "runs": [run(3 * math.log(2), 2.0, 3.0)]},
    ]
    monkeypatch.setattr(leads, "stored", lambda: axes)
    (mark,) = leads.on_seen_text("ours", "x", "theirs", "x")
    found = {what: lead.by_seed[0] / math.log(2) for what, lead in mark.items()}
    assert found == pytest.approx({"seen": 3.5, "unseen": 1.0, "apart": 2.5})
    assert mark["seen"].step == 500


def test_the_appendix_and_the_card_tell_where_the_lead_shrinks():
    marks, other, scaled = (
        leads.on_seen_text(axis, name, "whole dense", "dense")
        for axis, name in (("whole finer", "4 of 16, scale 4"), ("whole", "2 of 8"),
                           ("whole", "2 of 8, scale 2"))
    )  # fmt: skip
    assert [marks[n]["seen"].step for n in (0, 4, -1)] == [500, 1500, 4000]

    def moved(found, what, at=-1):
        first = found[0][what].by_seed
        ends = found[at][what].by_seed
        return leads.Lead(what, 0, 0, {s: v - first[s] for s, v in ends.items()}).interval

    text = " ".join((leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8").split())
    text, card = text.replace("# ", ""), " ".join(CARD.split())
    for what, name in (("seen", "seen text"), ("unseen", "unseen text"), ("apart", "apart")):
        found = (marks[0][what].interval, marks[-1][what].interval, moved(marks, what))
        assert f"| {name} | {' | '.join(INTERVAL.format(*i) for i in found)} |" in CARD
    middle, low, high = (-end for end in moved(marks, "unseen"))
    assert f"by {middle:.3f} nats per token [{high:.3f}, {low:.3f}]" in text and high > 0
    assert "by {:.3f} [{:.3f}, {:.3f}]".format(*moved(marks, "apart")) in text
    seen = moved(marks, "seen")
    assert seen[1] < 0 < seen[2]
    assert all(moved(marks, what, 4)[2] < 0 for what in ("seen", "unseen"))  # both fall at first
    for found in (other, scaled):
        gap, more = (
            "{:.3f} [{:.3f}, {:.3f}]".format(*moved(found, w)) for w in ("apart", "unseen")
        )
        assert f"by {gap}" in text and f"by {gap}" in card and more in card
    assert moved(other, "unseen")[1] > 0  # "gains"
    assert moved(scaled, "unseen")[1] < 0 < moved(scaled, "unseen")[2]  # "undecided"
    assert moved(scaled, "apart")[1] > 0


def test_the_card_tells_what_both_arms_know_of_the_book(arms):
    known = [[100 * r["recall"]["4000"] for r in runs] for runs in arms]
    for arm, shares in zip(("mixture", "twin"), known, strict=True):
        row = " | ".join(f"{share:.0f} %" for share in (*shares, statistics.mean(shares)))
        assert f"| {arm} | {row} |" in CARD
    at_rate = "whole finer", "4 of 16, scale 4, lr 2e-3", "whole dense", "dense, lr 2e-3"
    for axes in (("whole finer", "4 of 16, scale 4", "whole dense", "dense"), at_rate):
        points = [100 * x for x in leads.recall(*axes).interval]
        assert "{:+.0f} points [{:+.0f}, {:+.0f}]".format(*points) in CARD
    assert max(r["recall"]["3000"] for runs in arms for r in runs) < 0.025
    assert f"{known[1][0]:.0f} % of the numbers, the mixture {known[0][0]:.0f} %" in TWIN


def test_the_card_tells_every_stored_axis_and_what_it_gave():
    last = {(r.axis, r.name): r for r in leads.leads(leads.stored(), lambda step: True)}
    for (name, run), lead in last.items():
        assert (
            f'| `"{name}"` | {run} | {len(lead.by_seed)} | {lead.step:,} of {lead.of:,} | '
            f"{INTERVAL.format(*lead.interval)} |"
        ) in CARD
    for name in recipe.AXES:
        assert f'`"{name}"`' in CARD, name


def test_the_card_lets_choose_what_is_equal():
    """Equal time by each shape's own step; equal memory stands in the next test."""
    longer = ("whole finer", "4 of 16, scale 4", "whole dense, longer", "dense, 4,700 steps")
    points = [100 * x for x in leads.recall(*longer).interval]
    assert "{:+.0f} points [{:+.0f}, {:+.0f}]".format(*points) in CARD
    for name, axis in (("4 of 16, scale 4", "whole finer"), ("2 of 8", "whole")):
        pace = leads.pace(name.partition(",")[0])
        assert pace[1] <= pace[0] <= pace[2]
        time = leads.curve(axis, name, "whole dense, longer", "dense, 4,700 steps", pace[0])
        behind = [f"{r.step:,}" for r in time if r.interval[2] < 0]  # surely, and on the way alone
        where = f"behind from step {behind[0]} to" if name != "2 of 8" else "2 of 8 until"
        assert f"{where} {behind[-1]}" in " ".join(CARD.split()) and time[-1].interval[2] > 0
        marks = [r for r in time if r.step in (500, 2000)] + time[-1:]
        row = " | ".join(INTERVAL.format(*r.interval) for r in marks)
        shown = "{:.2f} [{:.2f}, {:.2f}]".format(*pace)
        for ratio in pace:  # "whichever end of its ratio's interval one takes"
            end = leads.curve(axis, name, "whole dense, longer", "dense, 4,700 steps", ratio)[-1]
            assert end.interval[1] < 0 < end.interval[2]
        assert f"| {name} | {shown} | {row}, step {time[-1].step:,} |" in CARD


def test_who_is_ahead_of_a_twin_that_holds_as_much_is_told_by_the_stored_runs():
    """On the card, in chapter 10 and its appendix: figures, and what the words say of them."""
    box, table = "4 of 16, scale 4", "only the first, a table"
    arms = {  # row of the card: axis of 600 steps, of 4,000, run
        f"{box}, equal memory": ("brief", "whole finer", box),
        "2 of 8, equal memory": (None, "whole", "2 of 8"),
        "first layer alone, by a table, half the memory":
            ("only first, table", "whole only first, table", table),
        "the twin of equal arithmetic": ("brief dense", "whole dense", "dense"),
    }  # fmt: skip
    short, whole = {}, {}
    for row, (brief, long, name) in arms.items():
        whole[row] = leads.curve(long, name, "whole dense, all", "as wide as all")
        shown = "not run"
        if brief is not None:
            short[row] = leads.curve(brief, name, "brief dense, all", "as wide as all")[-1]
            assert short[row].step == 600 and len(short[row].by_seed) == 3
            shown = INTERVAL.format(*short[row].interval)
        marks = [x for x in whole[row] if x.step in (500, 1000)]
        told = " | ".join([shown, *(INTERVAL.format(*x.interval) for x in marks)])
        assert f"| {row} | {told} |" in CARD
    ours, eight, first, narrow = arms
    assert all(x.interval[1] < 0 < x.interval[2] for x in (*whole[ours], short[ours]))
    assert [x.step for x in whole[eight] if x.interval[2] < 0] == [250, 500]
    assert short[first].interval[1] > 0  # the table: ahead, until step 750
    assert [x.step for x in whole[first] if x.interval[1] > 0] == [250, 500, 750]
    assert whole[first][-1].interval[1] < 0 < whole[first][-1].interval[2]
    assert all(x.interval[2] < 0 for x in whole[narrow])  # to 1,000 of 4,000
    pages = [(leads.ROOT / "notebooks" / f"{name}.py").read_text("utf-8").replace("\n# ", " ")
             for name in ("10b_where_it_pays", "10_small_mixtral")]  # fmt: skip
    figure = "{:.3f} [{:.3f}, {:.3f}]".format(*short[first].interval)
    for page in pages:
        assert figure in " ".join(page.split())
    wider = leads.curve(
        "only first, table, 64", f"{table}, 64", "brief dense, all", "as wide as all"
    )
    assert "{:.3f} [{:.3f}, {:.3f}]".format(*wider[-1].interval) in " ".join(CARD.split())


def test_chapter_10_says_what_is_stored():
    text = " ".join((leads.ROOT / "notebooks" / "10_small_mixtral.py").read_text("utf-8").split())
    text = text.replace("# ", "")
    rows = leads.leads(leads.stored(), lambda step: step in (500, 4000))
    whole = {(r.name, r.step): r for r in rows if r.axis in ("whole", "whole finer")}
    for name in ("4 of 16, scale 4", "2 of 8"):
        middle, *ends = whole[name, 4000].interval
        assert re.search(
            r"by {:.3f}( bits per byte)? \[{:.3f}, {:.3f}\]".format(middle, *ends), text
        )
    axes = {"4 of 16, scale 4": "whole finer", "2 of 8": "whole", "2 of 8, scale 2": "whole"}
    for name, axis in axes.items():
        twins = "whole dense, longer", "dense, 4,700 steps"
        pace, behind = leads.pace(name.partition(",")[0]), []
        for ratio in pace:  # the middle, and the ends of its interval
            found = leads.curve(axis, name, *twins, ratio)
            assert all(lead.interval[1] <= 0 for lead in found)  # nowhere surely ahead
            assert found[-1].interval[2] > 0  # undecided at the end
            behind.append([f"{lead.step:,}" for lead in found if lead.interval[2] < 0])
        if name == "2 of 8":
            until, low, high = (at[-1] for at in behind)
            assert f"behind until {until} (until {low}, until {high})" in text
        if name == "4 of 16, scale 4":
            assert f"takes {pace[0]:.2f} of the twin's" in text and not behind[1]
            assert f"behind from {behind[0][0]} to {behind[0][-1]}" in text
            told = f"nowhere ({pace[1]:.2f}) or from {behind[2][0]} to {behind[2][-1]}"
            assert f"{told} ({pace[2]:.2f})" in text


def test_which_layer_the_lead_comes_from_is_told_by_the_stored_runs():
    """In the appendix and on the card: each arm's lead, and what it is beside that of all six."""
    text = (leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8")
    short = {r.axis: r for r in leads.leads(leads.stored(), lambda step: step == 600)}
    for axis in ("first layer", "only first", "only first, table", "table first"):
        of = short["brief"].by_seed
        less = {s: v - of[s] for s, v in short[axis].by_seed.items()}
        assert len(less) == 5
        told = [short[axis].interval, leads.Lead("", 0, 0, less).interval]
        for page in (text.replace("\n# ", " "), CARD):
            for found in told:
                assert "{:.3f} [{:.3f}, {:.3f}]".format(*found) in " ".join(page.split())
    behind_it = leads.lead_of("table first", 600, "only first, table", 600)
    assert behind_it.interval[1] < 0 < behind_it.interval[2]  # undecided
    for page in (text.replace("\n# ", " "), CARD):
        assert "{:.3f} [{:.3f}, {:.3f}]".format(*behind_it.interval) in " ".join(page.split())

    def ahead(axis, other):
        return leads.lead_of(axis, 600, other, 600).interval[1] > 0

    # The words: the first layer gives the whole lead and a little more, the five others none.
    assert ahead("only first", "brief") and ahead("only first, table", "only first")
    assert short["first layer"].interval[1] < 0 < short["first layer"].interval[2]


def test_of_which_tokens_the_short_arms_are_ahead_is_told_by_the_stored_runs():
    """Five kinds of text together: "ahead on both", and of the five other layers "undecided"."""
    for axis in ("brief", "only first", "only first, table", "table first", "first layer"):
        (name,) = recipe.AXES[axis].runs
        kinds = leads.by_copying(axis, name, "brief dense", "dense")
        kinds.pop(BOOK)
        for what in ("new", "copied"):
            by_seed = {s: sum(k[what].by_seed[s] for k in kinds.values()) / 5 for s in range(5)}
            _, low, high = leads.Lead("", 600, 600, by_seed).interval
            assert (low < 0 < high) if axis == "first layer" else low > 0, (axis, what)


def test_what_is_left_of_a_table_at_the_end_is_told_by_the_stored_runs():
    """In the appendix, on the card and in chapter 10; and what their words say of it holds."""
    table = "whole only first, table", "only the first, a table"
    routers = "whole finer", "4 of 16, scale 4"
    longer = "whole dense, longer", "dense, 4,700 steps"
    appendix, chapter = (
        (leads.ROOT / "notebooks" / f"{name}.py").read_text("utf-8").replace("\n# ", " ")
        for name in ("10b_where_it_pays", "10_small_mixtral")
    )
    appendix, chapter, card = (" ".join(page.split()) for page in (appendix, chapter, CARD))

    def told(found):
        return "{:.3f} [{:.3f}, {:.3f}]".format(*found)

    steps = leads.curve(*table, "whole dense", "dense")[-1]
    pace = leads.pace("only first, table", alone=True)
    time = leads.curve(*table, *longer, pace[0])
    less = leads.lead_of(table[0], 4000, routers[0], 4000, table[1], routers[1])
    assert (steps.step, time[-1].step) == (4000, 4000)
    for page in (appendix, card):
        for found in (steps, time[-1], less):
            assert told(found.interval) in page, told(found.interval)
    assert told(time[-1].interval) in chapter
    assert less.interval[1] < 0 < less.interval[2]  # "undecided"
    for ratio in pace:  # "surely until step 1,000", "at the end undecided"
        each = leads.curve(*table, *longer, ratio)
        assert all(lead.interval[1] > 0 for lead in each if lead.step <= 1000)
        assert each[-1].interval[1] < 0 < each[-1].interval[2]
    slower = leads.curve(*routers, *longer, leads.pace("4 of 16", alone=True)[0])
    behind = [lead.step for lead in slower if lead.interval[2] < 0]
    assert behind == [lead.step for lead in slower if lead.step <= max(behind)]  # at every look
    assert f"surely until {max(behind):,}" in appendix
    faster = leads.curve(*routers, *longer, leads.pace("4 of 16", alone=True)[1])
    behind = [lead.step for lead in faster if lead.interval[2] < 0]
    assert f"from {behind[0]:,} to {behind[-1]:,} by its lower end" in appendix
    early = (leads.lead_of(table[0], step, routers[0], step, table[1], routers[1])
             for step in range(250, 1501, 250))  # fmt: skip
    assert all(lead.interval[1] > 0 for lead in early)
    known = [100 * x for x in leads.recall(*table, "whole dense", "dense").interval]
    for page in (appendix, card):
        assert "{:.0f} points [{:.0f}, {:.0f}] more".format(*known) in page and known[1] > 0
    for name, ratio, found in (
        ("first layer alone, by a table", pace, time),
        (routers[1], leads.pace("4 of 16", alone=True), slower),
    ):
        marks = [lead for lead in found if lead.step in (500, 2000) or lead is found[-1]]
        row = " | ".join(INTERVAL.format(*lead.interval) for lead in marks)
        shown = "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)
        assert f"| {name}, compiled | {shown} | {row}, step {marks[-1].step:,} |" in CARD


def test_what_a_second_vector_gives_is_told_by_the_stored_runs():
    second = leads.lead_of("second vector", 600, "brief dense", 600)
    table, router = (leads.lead_of(axis, 600, "second vector", 600)
                     for axis in ("only first, table", "only first"))  # fmt: skip
    text = (leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8")
    for page in (text.replace("\n# ", " "), CARD):
        for lead in (second, table, router):
            assert "{:.3f} [{:.3f}, {:.3f}]".format(*lead.interval) in " ".join(page.split())
    assert min(lead.interval[1] for lead in (second, table, router)) > 0


def test_half_a_batch_is_told_by_the_stored_runs():
    steps = (200, 400, 600)
    at = {(r.axis, r.step): r for r in leads.leads(leads.stored(), lambda step: step in steps)}

    def less(step, half):
        of = at["batch", half].by_seed
        moved = {s: v - of[s] for s, v in at["brief", step].by_seed.items()}
        return leads.Lead("", 0, 0, moved).interval

    smaller, equal = less(600, 600), less(200, 400)
    assert smaller[1] > 0 and equal[1] < 0 < equal[2]  # bold, and undecided

    text = (leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8")
    for page in (text.replace("\n# ", " "), CARD):
        told = "the lead is smaller by {:.3f} [{:.3f}, {:.3f}] after 600 steps".format(*smaller)
        assert told in " ".join(page.split())
    told = "of 16 beside step 400 of 8) that is undecided, {:.3f} [{:.3f}, {:.3f}]".format(*equal)
    assert told in " ".join(CARD.split())


def test_balancing_and_first_weights_are_told_by_the_stored_runs():
    text = (leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8")
    text, card = (" ".join(page.split()) for page in (text.replace("\n# ", " "), CARD))
    for name, what in (
        ("loss .03", "three times the loss"), ("quantile", "quantiles instead of it"),
        ("gates counted", "on a token's last place"),
    ):  # fmt: skip
        lead = leads.lead_of("balance", 600, "brief", 600, name)
        assert len(lead.by_seed) == 5 and lead.interval[1] < 0 < lead.interval[2]  # undecided
        told = "{:.3f} [{:.3f}, {:.3f}]".format(*lead.interval)
        assert re.search(rf"{what}( \([^)]*\),)? {re.escape(told)}", card)
    lead = leads.lead_of("z-loss", 600, "brief", 600)
    assert len(lead.by_seed) == 5 and lead.interval[1] < 0 < lead.interval[2]  # undecided
    assert "no z-loss {:.3f} [{:.3f}, {:.3f}]".format(*lead.interval) in card
    twins = "brief dense", 600, "brief dense", 600, "dense, first weights .5", "dense"
    half, lead = leads.lead_of(*twins), leads.lead_of("first weights", 600, "brief", 600)
    assert half.interval[1] < 0 < half.interval[2] and len(half.by_seed) == 5  # undecided
    (both,) = (r for r in leads.leads(leads.stored(), lambda step: step == 600)
               if r.axis == "first weights")  # fmt: skip
    assert both.by_seed == pytest.approx(leads.lead_of(
        "first weights", 600, "brief dense", 600, other="dense, first weights .5").by_seed
    )  # fmt: skip
    middle, low, high = (-end for end in lead.interval)
    for page in (text, card):
        assert f"{middle:.3f} [{high:.3f}, {low:.3f}]" in page and len(lead.by_seed) == 5
        for found in (half, both):
            assert "{:.3f} [{:.3f}, {:.3f}]".format(*found.interval) in page
    found = leads.by_router()
    strongest = min(found, key=lambda key: found[key][1])
    same, p = found[strongest]
    assert strongest == ("worth", "first") and same < 0  # "the more evenly, the better"
    assert f"(p = {p:.3f}:" in text and p > 0.05  # undecided, and one of eight at that


def test_the_rate_and_the_shape_are_told_by_the_stored_runs():
    text = (leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8")
    text, card = (" ".join(page.split()) for page in (text.replace("\n# ", " "), CARD))
    for name, axis in (("2 of 8, scale 2", "gate scale"), ("dense", "dense")):
        lead = leads.lead_of(axis, 500, axis, 500, f"{name}, lr 4.5e-3", name)
        middle, low, high = (-end for end in lead.interval)
        assert f"{middle:.3f} [{high:.3f}, {low:.3f}]" in card and high > 0
    at = {(r.name, r.step): r.by_seed for r in leads.leads(leads.stored(), lambda _: True)
          if r.axis in ("gate scale", "whole finer")}  # fmt: skip
    rates = (500, "2 of 8, scale 2", "4.5e-3"), (4000, "4 of 16, scale 4", "2e-3")
    for step, name, rate in rates:
        other = at[f"{name}, lr {rate}", step]
        less = {s: v - other[s] for s, v in at[name, step].items()}
        found = leads.Lead("", 0, 0, less).interval
        assert "smaller by {:.3f} [{:.3f}, {:.3f}]".format(*found) in card
        assert (found[1] > 0) == (step == 500)  # told as undecided at the end
    shape = leads.lead_of("whole finer", 4000, "whole", 4000, "4 of 16, scale 4", "2 of 8")
    assert shape.interval[1] < 0 < shape.interval[2]  # "undecided", "not seen ahead"
    for page in (text, card):
        assert "{:.3f} [{:.3f}, {:.3f}]".format(*shape.interval) in page
    alike = leads.lead_of("whole finer", 4000, "whole", 4000, "4 of 16, scale 4", "2 of 8, scale 2")
    assert "nor of two of eight with one, {:.3f} [{:.3f}, {:.3f}]".format(*alike.interval) in text
    assert alike.interval[1] < 0 < alike.interval[2]


def test_the_appendix_says_what_else_was_tried():
    text = (leads.ROOT / "notebooks" / "10b_where_it_pays.py").read_text("utf-8")
    text = " ".join(text.replace("\n# ", " ").split())
    half = leads.lead_of("finer", 750, "finer", 750, "4 of 16, scale 2", "4 of 16, scale 4")
    middle, low, high = (-end for end in half.interval)
    assert f"{middle:.3f} [{high:.3f}, {low:.3f}]" in text and high > 0
    shared = leads.lead_of("shared, scale", 600, "brief", 600)
    assert shared.interval[1] < 0 < shared.interval[2] and len(shared.by_seed) == 5  # undecided
    for page in (text, " ".join(CARD.split())):
        assert "{:.3f} [{:.3f}, {:.3f}]".format(*shared.interval) in page
    for name in ("4 of 16, scale 4, bias", "4 of 16, scale 4, lr 2e-3"):
        lead = leads.lead_of("whole finer", 4000, "whole finer", 4000, name, "4 of 16, scale 4")
        assert lead.interval[1] < 0 < lead.interval[2]  # undecided
