"""Recall in context with twenty fresh seeds: do experts help where nothing can be stored?

The third task of ``jelassi2024``, whose ten seeds left it undecided; these twenty come after them.
It is all or nothing, so seeds are counted. The paper has no such task: nothing is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.jelassi2024 import CONFIG as BEFORE
from experiments.jelassi2024 import RECALLS, in_context
from moe_lite.course.facts import Pairs, train_recall
from moe_lite.course.ledger import OURS, Claim, Experiment, Measures, Pair, resume

FIRST = 10  # the seeds before were jelassi2024's
CONFIG: dict[str, Any] = {
    "first seed": FIRST, **{key: BEFORE[key] for key in ("recall model", "recall steps")},
}  # fmt: skip
EARLY = "in context after 100 steps at dense, equal active"
PART = Path(__file__).parent / "results" / ".jelassi2024_context.part.json"


def run(seeds: Sequence[int]) -> Measures:
    """Let both models look back with every seed; found: 100 if a run gets most answers, else 0."""
    done = resume(PART, CONFIG, {
        f"{name}; seed {seed}": partial(in_context, name, FIRST + seed)
        for seed in seeds for name in RECALLS
    })  # fmt: skip
    right: Measures = {
        what: [done[f"{name}; seed {seed}"][what] for seed in seeds]
        for name in RECALLS for what in [f"in context at {name}"]
    }  # fmt: skip
    found: Measures = {
        what.replace("in context", "found"): [100.0 * (x is not None and x > 50) for x in column]
        for what, column in right.items()
    }
    return right | found | {EARLY: [early(seed) for seed in seeds]}


def early(seed: int) -> float:
    """Train the dense twin for so few steps that no run has found anything: it runs again alike."""
    model = train_recall(RECALLS["dense, equal active"], Pairs(), 100, FIRST + seed)
    return 100 * Pairs().measure(model)


def spot() -> Measures:
    """Take the first 100 steps of the dense twin again, with the first seed."""
    return {EARLY: [early(0)]}


EXPERIMENT = Experiment(
    title="Recall in context: experts where nothing can be stored",
    source="a question that Jelassi et al. 2024, arXiv:2410.19034, leave open",
    chapter="11",
    seeds=20,
    config=CONFIG,
    claims=(),
    measured=(
        Claim("seeds that find out how to look back, 16 experts, %", OURS,
              "found at 16 experts", "above", void=50),
        Claim("dense, equal active, %", OURS, "found at dense, equal active", "above", void=50),
        Claim("16 experts less dense, seed by seed, points", OURS,
              Pair("found at 16 experts", "found at dense, equal active"), "above", void=0),
    ),
    finding=(
        "where nothing can be stored, {0} % of sparse runs and {1} % of dense ones find out how "
        "to look back within 1,500 steps ({2} points)"
    ),
    run=run,
    spot=spot,
    caveat=(
        "ten pairs of jelassi2024 had raised the question; that twenty more would be run, and "
        "which, was fixed before the first of them. (One pair besides, of seed 101, run to time "
        "it, had gone to the dense twin.)"
    ),
)  # fmt: skip
