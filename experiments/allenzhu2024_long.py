"""Allen-Zhu and Li 2024 for longer: where do the bits that a parameter holds end?

``allenzhu2024`` shows every fact 1,000 times; here 10,000 times too, in as many steps of the same
half cosine, and all else as there. The dense block alone: for it the paper has its two bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.allenzhu2024 import CONFIG as BEFORE
from experiments.allenzhu2024 import capacity
from moe_lite.course.ledger import OURS, Claim, Experiment, Measures, Pair, resume

EXPOSURES = (1000, 10_000)
CONFIG: dict[str, Any] = {
    **{key: BEFORE[key] for key in ("hidden", "offered", "parts", "values", "width")},
    "exposures": EXPOSURES,
}
PART = Path(__file__).parent / "results" / ".allenzhu2024_long.part.json"
BITS = {n: f"bits per parameter, dense, {n}" for n in EXPOSURES}


def run(seeds: Sequence[int]) -> Measures:
    """Fill the block with every seed, in 1,000 looks and in 10,000."""
    jobs = {
        f"dense, {n}; seed {seed}": partial(capacity, "dense", n, seed)
        for seed in seeds for n in EXPOSURES
    }  # fmt: skip
    done = resume(PART, CONFIG, jobs)
    return {what: [done[f"dense, {n}; seed {seed}"][what] for seed in seeds]
            for n, what in BITS.items()}  # fmt: skip


def spot() -> Measures:
    """Fill the block in 1,000 looks again, with the first seed."""
    return {what: [value] for what, value in capacity("dense", EXPOSURES[0], 0).items()}


EXPERIMENT = Experiment(
    title="Bits of facts that a parameter holds, if each fact is seen 10,000 times",
    source="Allen-Zhu, Li 2024, arXiv:2404.05405",
    chapter="11",
    seeds=5,
    config=CONFIG,
    claims=(
        Claim("a dense model holds two bits per parameter (ours: each fact seen 10,000 times)",
              "Results 1 to 3", BITS[10_000], 2.0, within=0.15, note="there after 1,000"),
    ),
    measured=(
        Claim("more looks, more bits? 10,000 looks less 1,000, a parameter", OURS,
              Pair(BITS[10_000], BITS[1000]), "above", void=0),
    ),
    finding=(
        "after 10,000 looks at each fact a dense block holds {0} bits a parameter, more than after "
        "1,000; where that ends was not measured"
    ),
    run=run,
    spot=spot,
    caveat=(
        "tenfold looks add bits again, fewer than the tenfold before (allenzhu2024). Where that "
        "ends, and what sixteen experts hold after 10,000 looks, was not measured. The rows were "
        "written when the first seed had been seen."
    ),
)  # fmt: skip
