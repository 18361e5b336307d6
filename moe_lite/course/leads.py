"""How far sparse models are ahead of their dense twins, from what experiments/recipe.py stored."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checked import read_json
from .data import BOOK
from .ledger import ROOT

RESULTS = ROOT / "experiments" / "results" / "recipe"


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

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean and the ends of its 95 % interval over seeds (Student's t)."""
        from scipy.stats import t

        values = list(self.by_seed.values())
        middle, n = statistics.mean(values), len(values)
        half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
        return middle, middle - half, middle + half


def leads(found: Sequence[dict[str, Any]], steps: Callable[[int], bool]) -> list[Lead]:
    """Pair every run with the dense one of its seed, text and schedule, at each step in common."""
    table: list[Lead] = []
    bases = {(r["of"], r["book"]): r for r in found if r["base"]}
    for each in found:
        base = bases.get((each["of"], each["book"]))
        if base is None:
            continue
        twins = {r["seed"]: r["bits"] for r in base["runs"] if not r["differs"]}
        for name in dict.fromkeys(r["name"] for r in each["runs"]):
            runs = [r for r in each["runs"] if r["name"] == name and r["seed"] in twins]
            if each is base and not runs[0]["differs"]:
                continue
            common = set.intersection(*(set(r["bits"]) & set(twins[r["seed"]]) for r in runs))
            for step in sorted(filter(steps, map(int, common))):
                at = str(step)
                lead = {r["seed"]: mean(twins[r["seed"]][at]) - mean(r["bits"][at]) for r in runs}
                domains = {
                    d: statistics.mean(twins[r["seed"]][at][d] - r["bits"][at][d] for r in runs)
                    for d in runs[0]["bits"][at]
                }
                table.append(Lead(name, step, each["of"], lead, domains))
    return table


def lead_of(
    axis: str, step: int, over: str, at: int, name: str | None = None, other: str | None = None
) -> Lead:
    """Pair two stored axes' runs by seed, each at its own step; names where there are several."""
    found = {r["axis"]: r for r in stored()}

    def bits(axis: str, step: int, name: str | None) -> dict[int, dict[str, float]]:
        rows = found[axis]["runs"]
        name = name or rows[0]["name"]
        return {r["seed"]: r["bits"][str(step)] for r in rows if r["name"] == name}

    ours, theirs = bits(axis, step, name), bits(over, at, other)
    lead = {seed: mean(theirs[seed]) - mean(ours[seed]) for seed in ours}
    return Lead(name or axis, step, found[axis]["of"], lead)


def stored() -> list[dict[str, Any]]:
    """Read every stored axis."""
    return [read_json(path) for path in sorted(RESULTS.glob("*.json"))]


def on_a_cpu(step: int | None = None) -> Lead:
    """Pair the whole runs of mixtral-mini's recipe that two cores made, at a step or at the end.

    At a step 8 windows of each domain are read, at the end (``None``) the 64 of the model card.
    """
    found = [read_json(path) for path in sorted((RESULTS.parent / "cpu_pairs").glob("*.json"))]
    at = [
        r["final"] if step is None else {a: b[str(step)] for a, b in r["bits"].items()}
        for r in found
    ]
    lead = {
        r["seed"]: mean(b["dense"]) - mean(b["as shipped"]) for r, b in zip(found, at, strict=True)
    }
    domains = {
        d: statistics.mean(b["dense"][d] - b["as shipped"][d] for b in at) for d in at[0]["dense"]
    }
    return Lead("as shipped", step or found[0]["of"], found[0]["of"], lead, domains)
