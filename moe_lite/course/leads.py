"""How far sparse models are ahead of their dense twins, from what experiments/recipe.py stored."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..checked import read_json
from ..evaluation import Corpus
from .data import BOOK
from .ledger import ROOT

RESULTS = ROOT / "experiments" / "results" / "recipe"
ON_A_CPU = RESULTS.parent / "cpu_pairs"
PAIR, PACE = ON_A_CPU / "seed0.json", ON_A_CPU / "step_time.json"
PACE_ALONE = ON_A_CPU / "step_time_alone.json"  # of the program that trains one run on one core


def mean(bits: dict[str, float]) -> float:
    """Average bits per byte over the domains of text; the phone book stands for itself."""
    return statistics.mean(v for name, v in bits.items() if name != BOOK)


@dataclass(frozen=True)
class Lead:
    """How far sparse runs are ahead of the dense ones of their seeds, in bits per byte."""

    name: str
    step: int
    of: int
    by_seed: dict[int, float]
    by_domain: dict[str, float] = field(default_factory=dict)
    axis: str = ""

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean and the ends of its 95 % interval over seeds (Student's t)."""
        from scipy.stats import t

        values = list(self.by_seed.values())
        middle, n = statistics.mean(values), len(values)
        half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
        return middle, middle - half, middle + half


def leads(found: Sequence[dict[str, Any]], steps: Callable[[int], bool]) -> list[Lead]:
    """Pair every sparse run with the dense one of its seed, text, schedule, at steps in common.

    The twin has what the run changes for both arms (learning rate, first weights) where one was
    trained with it, else the recipe's.
    """
    table: list[Lead] = []

    def kind(r: dict[str, Any]) -> tuple[Any, ...]:  # how many windows were looked at, too
        looked = (r.get("training", {}).get(name) for name in ("eval_windows", "batch_size"))
        return r["of"], r["book"], *looked

    bases = {kind(r): r for r in found if r["base"]}
    for each in found:
        base = bases.get(kind(each))
        if base is None or each["model"]["num_local_experts"] == 1:
            continue
        for name in dict.fromkeys(r["name"] for r in each["runs"]):
            runs = [r for r in each["runs"] if r["name"] == name]
            twins = {r["seed"]: r["bits"] for r in _twins(base, runs[0]["differs"])}
            runs = [r for r in runs if r["seed"] in twins]
            common = set.intersection(*(set(r["bits"]) & set(twins[r["seed"]]) for r in runs))
            for step in sorted(filter(steps, map(int, common))):
                at = str(step)
                lead = {r["seed"]: mean(twins[r["seed"]][at]) - mean(r["bits"][at]) for r in runs}
                domains = {
                    d: statistics.mean(twins[r["seed"]][at][d] - r["bits"][at][d] for r in runs)
                    for d in runs[0]["bits"][at]
                }
                table.append(Lead(name, step, each["of"], lead, domains, each["axis"]))
    return table


def _twins(base: dict[str, Any], differs: dict[str, float]) -> list[dict[str, Any]]:
    both = {name: value for name, value in differs.items() if name in ("lr", "first")}
    same = [r for r in base["runs"] if r["differs"] == both]
    return same or [r for r in base["runs"] if not r["differs"]]


def copied(ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
    """Say which targets can be copied: they followed the same token before, in their window.

    >>> copied(torch.tensor([[7, 5, 7, 5]]), torch.tensor([[5, 7, 5, 8]]))
    tensor([[False, False,  True, False]])
    """
    pair_BS = ids_BS * (1 + int(targets_BS.max())) + targets_BS
    return (pair_BS[:, :, None] == pair_BS[:, None]).tril(-1).any(-1)


@torch.no_grad()
def loss_by_copying(
    losses: Callable[[Tensor, Tensor], Tensor],
    corpus: Corpus,
    domain: str,
    windows: int = 64,
    seq_len: int = 256,
) -> list[dict[str, float]]:
    """Return what "copied" and "new" tokens of held-out text cost each run, in nats per token.

    Args: losses: gives N runs' loss of every target, (N, T), for ids_BS and targets_BS.
    Returns: for each run the two losses, and the "share" of targets that can be copied.
    """
    batch = corpus.windows(domain, seq_len, windows)
    nats: list[Tensor] = []
    many = torch.zeros(2)
    for ids_BS, targets_BS in zip(batch.ids_BS.split(16), batch.targets_BS.split(16), strict=True):
        copied_T, loss_NT = copied(ids_BS, targets_BS).flatten(), losses(ids_BS, targets_BS).cpu()
        both = copied_T, ~copied_T
        nats.append(torch.stack([loss_NT[:, those_T].sum(1) for those_T in both], 1))
        many += torch.stack([those_T.sum() for those_T in both])
    share = float(many[0] / many.sum())
    rows = (torch.stack(nats).sum(0) / many).tolist()
    return [{"copied": old, "new": new, "share": share} for old, new in rows]


def by_copying(axis: str, name: str, over: str, other: str) -> dict[str, dict[str, Lead]]:
    """Pair two stored axes' runs by seed at their end, what can be copied apart from what is new.

    Returns: for each domain the leads "new" and "copied" (see :func:`copied`), in nats per token.
    """
    found = {r["axis"]: r for r in stored()}
    ours, theirs = (
        {r["seed"]: r["copying"] for r in found[a]["runs"] if r["name"] == n}
        for a, n in ((axis, name), (over, other))
    )
    step, of = found[axis]["steps"], found[axis]["of"]
    return {
        domain: {
            what: Lead(name, step, of, {
                seed: theirs[seed][domain][what] - ours[seed][domain][what] for seed in ours
            })
            for what in ("new", "copied")
        }
        for domain in next(iter(ours.values()))
    }  # fmt: skip


def on_seen_text(axis: str, name: str, over: str, other: str) -> list[dict[str, Lead]]:
    """Pair two stored axes' runs by seed: leads on text to train on, and on held-out text.

    A training loss is taken before its step: early on, that text is new too. Batches are drawn from
    all domains alike, so the mean loss of the 250 steps before a mark, less the phone book's share,
    is that of "seen" text. The book's loss is taken where it is held out: the same entries stand
    there. "unseen" text is looked at as those steps begin and as they end.

    Returns: for each mark the leads "seen" and "unseen", and "apart", the first less the second, in
             nats per token, mean over the domains without the book. Runs must have ended.
    """
    found = {r["axis"]: r for r in stored()}
    ours, theirs = (
        {r["seed"]: r for r in found[a]["runs"] if r["name"] == n}
        for a, n in ((axis, name), (over, other))
    )
    ended = next(iter(ours.values()))
    size = {  # bytes per token of the held-out windows: at the end both units are stored
        domain: (c["share"] * c["copied"] + (1 - c["share"]) * c["new"])
        / (math.log(2) * ended["final"][domain])
        for domain, c in ended["copying"].items()
    }
    texts, table = [domain for domain in size if domain != BOOK], []
    for before, step in pairwise(sorted(map(int, ended["train"]))):
        each: dict[str, dict[int, float]] = {"seen": {}, "unseen": {}, "apart": {}}
        for seed in sorted(ours.keys() & theirs.keys()):
            mine, twin = ours[seed], theirs[seed]
            lead = {  # nats per token, by domain
                d: math.log(2) * many * statistics.mean(
                    twin["bits"][str(mark)][d] - mine["bits"][str(mark)][d]
                    for mark in (before, step)
                )
                for d, many in size.items()
            }  # fmt: skip
            train = twin["train"][str(step)] - mine["train"][str(step)]
            seen = (len(size) * train - lead.get(BOOK, 0.0)) / len(texts)
            unseen = statistics.mean(lead[d] for d in texts)
            for what, value in (("seen", seen), ("unseen", unseen), ("apart", seen - unseen)):
                each[what][seed] = value
        of = found[axis]["of"]
        table.append({what: Lead(name, step, of, leads) for what, leads in each.items()})
    return table


def spread(axes: Sequence[str] = ("whole dense", "whole finer", "whole")) -> tuple[float, ...]:
    """Return how many times as far copied tokens' losses lie apart between seeds as new ones' do.

    The ratio of two standard deviations within a recipe, pooled over the recipes of stored axes,
    and its 95 % interval by F. The recipes share their seeds, so they count as one for it.
    """
    from scipy.stats import f

    total, seeds = {"copied": 0.0, "new": 0.0}, 0
    for found in (r for r in stored() if r["axis"] in axes):
        for name in dict.fromkeys(r["name"] for r in found["runs"]):
            runs = [r["copying"] for r in found["runs"] if r["name"] == name]
            seeds = len(runs)
            for what in total:
                losses = [
                    statistics.mean(rows[what] for domain, rows in run.items() if domain != BOOK)
                    for run in runs
                ]
                total[what] += statistics.variance(losses)
    ratio = total["copied"] / total["new"]
    at = float(f.ppf(0.975, seeds - 1, seeds - 1))
    return ratio**0.5, (ratio / at) ** 0.5, (ratio * at) ** 0.5


def by_router() -> dict[tuple[str, str], tuple[float, float]]:
    """Say how runs' bits per byte at their end go with what their routers do, within recipes.

    Each run is taken less the mean of its recipe, of the stored recipes with the most seeds. A seed
    has the same first weights and texts in all recipes, so its runs are no independent ones: p is
    the share of all orders of the seeds, one order for all recipes, that go together as closely.

    Returns: ("worth", "load", "mass" or "parked", see Stack.routers; "first" layer with experts, or
             "all" in the mean) -> the correlation, and that p (two-sided).
    """
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for found in stored():
        for run in found["runs"]:
            if "routers" in run and "final" in run:
                groups.setdefault((found["axis"], run["name"]), {})[run["seed"]] = run
    seeds = max((tuple(sorted(runs)) for runs in groups.values()), key=len)
    recipes = [[runs[s] for s in seeds] for runs in groups.values() if set(runs) == {*seeds}]
    bits_RS = _apart([[mean(r["final"]) for r in runs] for runs in recipes])
    table = {}
    for what in ("worth", "load", "mass", "parked"):
        for where in ("first", "all"):
            value_RS = _apart([
                [r["routers"][what][0] if where == "first" else statistics.mean(r["routers"][what])
                 for r in runs] for runs in recipes
            ])  # fmt: skip
            size = (value_RS.norm() * bits_RS.norm()).clamp_min(1e-30)
            same, *others = [
                float((value_RS * bits_RS[:, order]).sum() / size)
                for order in permutations(range(len(seeds)))
            ]
            as_close = sum(abs(other) > abs(same) - 1e-9 for other in (same, *others))
            table[what, where] = same, as_close / (1 + len(others))
    return table


def _apart(groups: Sequence[Sequence[float]]) -> Tensor:
    """Put groups of one size below each other, each less its mean: (R, S)."""
    each_RS = torch.tensor(groups, dtype=torch.float64)
    return each_RS - each_RS.mean(1, keepdim=True)


def lead_of(
    axis: str, step: int, over: str, at: int, name: str | None = None, other: str | None = None,
    of: str | None = None,
) -> Lead:  # fmt: skip
    """Pair two stored axes' runs by seed, each at its own step; names where there are several.

    of: one domain, instead of the mean over those of text.
    """
    found = {r["axis"]: r for r in stored()}

    def bits(axis: str, step: int, name: str | None) -> dict[int, dict[str, float]]:
        rows = found[axis]["runs"]
        name = name or rows[0]["name"]
        return {r["seed"]: r["bits"][str(step)] for r in rows if r["name"] == name}

    ours, theirs = bits(axis, step, name), bits(over, at, other)
    value = mean if of is None else itemgetter(of)
    lead = {seed: value(theirs[seed]) - value(ours[seed]) for seed in ours if seed in theirs}
    return Lead(name or axis, step, found[axis]["of"], lead)


def recall(axis: str, name: str, over: str, other: str) -> Lead:
    """Pair two stored axes' runs by seed at their end: the share of phone numbers known."""
    found = {r["axis"]: r for r in stored()}
    step, of = found[axis]["steps"], found[axis]["of"]
    ours, theirs = (
        {r["seed"]: r["recall"][str(found[a]["steps"])] for r in found[a]["runs"] if r["name"] == n}
        for a, n in ((axis, name), (over, other))
    )
    both = ours.keys() & theirs.keys()
    return Lead(name, step, of, {seed: ours[seed] - theirs[seed] for seed in sorted(both)})


def curve(axis: str, name: str, over: str, other: str, slower: float = 1.0) -> list[Lead]:
    """Pair two stored axes' runs by seed, each step of the first with what the twin had by then.

    Args: slower: how long a step takes, in steps of the twin, for a lead at equal time; between
          its marks the twin's bits are taken from the straight line.
    Returns: a lead for each step as far as the twin goes: none if it is not stored.
    """
    found = {r["axis"]: r for r in stored()}
    if over not in found:
        return []

    def curves(axis: str, name: str) -> dict[int, dict[int, float]]:
        runs = [r for r in found[axis]["runs"] if r["name"] == name]
        return {r["seed"]: {int(s): mean(b) for s, b in r["bits"].items()} for r in runs}

    def at(bits: dict[int, float], step: float) -> float:
        before = max(s for s in bits if s <= step)
        if before == step:
            return bits[before]
        after = min(s for s in bits if s > step)
        share = (step - before) / (after - before)
        return bits[before] * (1 - share) + bits[after] * share

    ours, theirs, of = curves(axis, name), curves(over, other), found[axis]["of"]
    starts, ends = min(next(iter(theirs.values()))), max(next(iter(theirs.values())))
    return [
        Lead(name, step, of, {s: at(theirs[s], slower * step) - ours[s][step]
                              for s in ours if s in theirs}, axis=axis)
        for step in next(iter(ours.values())) if starts <= slower * step <= ends
    ]  # fmt: skip


def stored() -> list[dict[str, Any]]:
    """Read every stored axis."""
    return [read_json(path) for path in sorted(RESULTS.glob("*.json"))]


def on_a_cpu(step: int | None = None) -> Lead:
    """Pair the runs of the first edition's recipe, 2 of 8, that a CPU made; None: at their end.

    At a step 8 windows of each domain are read, at the end 64.
    """
    found = read_json(PAIR)
    at = found["final"] if step is None else {a: b[str(step)] for a, b in found["bits"].items()}
    domains = {d: at["dense"][d] - at["2 of 8"][d] for d in at["dense"]}
    lead = mean(at["dense"]) - mean(at["2 of 8"])
    return Lead("2 of 8", step or found["of"], found["of"], {found["seed"]: lead}, domains)


def copying_on_a_cpu() -> dict[str, dict[str, dict[str, float]]]:
    """Return what :func:`loss_by_copying` gave for the arms of that pair, by domain."""
    return {arm: dict(domains) for arm, domains in read_json(PAIR)["copying"].items()}


def pace(name: str, alone: bool = False) -> tuple[float, float, float]:
    """Return how long a step of a shape takes, in steps of its twin: middle and ends.

    Measured in turn on one core (median of the pairs; the ends: 95 % interval of the median).
    alone: in the compiled program that trains one run, instead of the library's trainer.
    """
    middle, low, high = read_json(PACE_ALONE if alone else PACE)["slower"][name]
    return middle, low, high
