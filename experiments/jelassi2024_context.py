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
EARLY = {name: f"in context after 100 steps at {name}" for name in RECALLS}
PART = Path(__file__).parent / "results" / ".jelassi2024_context.part.json"


def run(seeds: Sequence[int]) -> Measures:
    """Let both models look back with every seed; found: 100 if a run gets most answers, else 0."""
    jobs = {
        f"{name}; seed {seed}": partial(in_context, name, FIRST + seed)
        for seed in seeds for name in RECALLS
    }  # fmt: skip
    done = resume(PART, CONFIG, jobs | {f"early; seed {seed}": partial(early, seed)
                                        for seed in seeds})  # fmt: skip
    right: Measures = {
        what: [done[f"{name}; seed {seed}"][what] for seed in seeds]
        for name in RECALLS for what in [f"in context at {name}"]
    }  # fmt: skip
    found: Measures = {
        what.replace("in context", "found"): [100.0 * (x is not None and x > 50) for x in column]
        for what, column in right.items()
    }
    first: Measures = {
        what: [done[f"early; seed {seed}"][what] for seed in seeds] for what in EARLY.values()
    }
    return right | found | first


def early(seed: int) -> dict[str, float]:
    """Train both for 100 steps, a schedule of its own: too few to find anything, so it repeats."""
    return {
        what: 100 * Pairs().measure(train_recall(RECALLS[name], Pairs(), 100, FIRST + seed))
        for name, what in EARLY.items()
    }


def spot() -> Measures:
    """Train both for those 100 steps again, with the first seed."""
    return {what: [value] for what, value in early(0).items()}


EXPERIMENT = Experiment(
    title="Recall in context: experts where nothing can be stored",
    source="A question that Jelassi et al. 2024, arXiv:2410.19034, leave open",
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
        "where nothing can be stored, {0} % of sparse runs and {1} % of those of the dense twin of "
        "equal active size find out how to look back within 1,500 steps ({2} points)"
    ),
    run=run,
    spot=spot,
    caveat=(
        "a run finds it or does not, so count the seeds: 14 and 3 of 20; eleven pairs differ, all "
        "for the experts (sign test, p = 0.001). The ± of zeros and hundreds is rough. One rate, "
        "and no wider dense network. The "
        "ten pairs of jelassi2024 had raised the question; that twenty more would be run, and "
        "which, was fixed before the first of them. (One pair besides, of seed 101, run to time "
        "it, had gone to the dense twin.)"
    ),
)  # fmt: skip
