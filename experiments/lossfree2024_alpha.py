"""Wang et al. 2024, Figure 2: what the balancing loss's weight alpha buys, and what it costs.

The paper's figure sets MaxVio against perplexity for models of a billion parameters trained with
alpha = 0, 0.0001, 0.001 and 0.01, and prints no numbers beside its points; section 2.2 says in
words what they show. So those claims are directions. Ours is the small model of
``moe_lite.course.sweep``, with
two larger alphas besides, in case "large" begins elsewhere. MaxVio cannot exceed E/K - 1: that is
9.7 for theirs (64 experts, 6 of them at work) and 3 for ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_lite.course.ledger import Claim, Experiment, Measures, Pair
from moe_lite.course.sweep import MAX_BYTES, Setting, sweep

ALPHAS = (0.0, 0.0001, 0.001, 0.01, 0.1, 1.0)
STEPS, FEW = 250, 20
CONFIG: dict[str, Any] = {"alphas": ALPHAS, "steps": STEPS, "few": FEW, "bytes": MAX_BYTES}
PART = Path(__file__).parent / "results" / ".lossfree2024_alpha.part.json"

SETTINGS = {f"{a:g}": Setting(training={"aux_coef": a, "steps": STEPS}) for a in ALPHAS}
BEGINNINGS = {
    f"{a:g}, {FEW} steps": Setting(training={"aux_coef": a, "steps": FEW}) for a in (0.0, 1.0)
}  # what the spot check trains again


def run(seeds: Sequence[int]) -> Measures:
    """Train every alpha with every seed."""
    found: Measures = {
        key: values
        for key, values in sweep(SETTINGS | BEGINNINGS, seeds, part=PART).items()
        if not key.startswith(("tokens/s", "dropped", "diverged"))
    }
    for alpha in SETTINGS:
        nats = found[f"loss at {alpha}"]
        found[f"perplexity at {alpha}"] = [None if x is None else math.exp(x) for x in nats]
    return found


def spot() -> Measures:
    """Train the beginnings again, with the first seed."""
    found = sweep(BEGINNINGS, (0,))
    return {key: value for key, value in found.items() if key.startswith(("loss", "MaxVio"))}


WHERE, WORDS = "Figure 2, section 2.2", "the figure prints no number"
EXPERIMENT = Experiment(
    title="Quality against balance: six weights of the balancing loss",
    source="Wang et al. 2024, arXiv:2408.15664",
    chapter="06",
    seeds=5,
    config=CONFIG,
    claims=(
        Claim("a small alpha leaves poor balance: MaxVio, 0 − 0.01", WHERE,
              Pair("MaxVio at 0", "MaxVio at 0.01"), "above", void=0, note=WORDS),
        Claim("a large alpha costs quality: loss, 0.01 − 0.001, nats", WHERE,
              Pair("loss at 0.01", "loss at 0.001"), "above", void=0, note=WORDS),
        Claim('the same where "large" is 1, a hundred times their largest', "section 2.2",
              Pair("loss at 1", "loss at 0.001"), "above", void=0, note=WORDS),
        Claim("at alpha = 0.001, their choice, MaxVio is still considerable", "Table 2",
              "MaxVio at 0.001", 0.72, void=0.04,
              note="1B model; void: what their own method leaves"),
    ),
    finding=(
        "a weight of 0.01 evens the load (MaxVio falls by {0}), at a price too small to see "
        "({1} nats); a weight of 1 costs {2} nats"
    ),
    run=run,
    spot=spot,
    caveat="the minutes were taken on a machine that was busy with other work.",
)  # fmt: skip
