"""Chen, Deng, Wu, Gu, Li 2022: points in clusters, where sparse experts do better on *new* data.

Our numbers stand beside those that the authors' released notebook prints for setting 1 (one run
each); the tables of the paper itself were not at hand. They train on 16,000 points, we on 4,000.
Their two arms differ in more than the experts: optimiser, size of the first weights, a softmax
before the loss's own, and when to stop. So both models are trained by both recipes, and a third
comparison is made that the paper does not make: the same recipe for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moe_lite.course.facts import Clusters, Filters, accuracy, train_filters
from moe_lite.course.ledger import OURS, Claim, Experiment, Measures, Pair, resume

POINTS = 4_000
ARMS: dict[str, dict[str, Any]] = {  # as they are called below: experts, filters, recipe, epochs
    "sparse": {"experts": 8, "filters": 16, "recipe": "normalised", "epochs": 500},
    "dense, equal active": {"experts": 1, "filters": 16, "recipe": "adam", "epochs": 300},
    "dense, 80 filters": {"experts": 1, "filters": 80, "recipe": "adam", "epochs": 300},
    "dense, equal total": {"experts": 1, "filters": 128, "recipe": "adam", "epochs": 300},
    "dense, equal active, sparse's recipe": {
        "experts": 1, "filters": 16, "recipe": "normalised", "epochs": 500,
    },
    "sparse, dense's recipe": {"experts": 8, "filters": 16, "recipe": "adam", "epochs": 300},
}  # fmt: skip
CONFIG: dict[str, Any] = {"points": POINTS, "arms": ARMS}
PART = Path(__file__).parent / "results" / ".chen2022.part.json"


def one(name: str, seed: int, points: int = POINTS) -> dict[str, float]:
    """Train one arm with one seed; accuracies in percent, purity as a share."""
    arm, world = ARMS[name], Clusters(seed)
    x_TPD, class_T, _ = world.points(points)
    new_TPD, new_class_T, new_cluster_T = world.points(points)
    net = Filters(arm["experts"], arm["filters"], arm["recipe"] == "normalised", seed)
    train_filters(net, x_TPD, class_T, arm["recipe"], arm["epochs"], seed)
    found = {
        f"training at {name}": 100 * accuracy(net, x_TPD, class_T),
        f"new data at {name}": 100 * accuracy(net, new_TPD, new_class_T),
    }
    if arm["experts"] > 1:
        with torch.no_grad():
            expert_T = net(new_TPD)[1]
        met_KE = torch.zeros(Clusters.count, arm["experts"])
        met_KE.index_put_((new_cluster_T, expert_T), torch.ones(points), accumulate=True)
        found[f"purity at {name}"] = (met_KE.amax(0).sum() / points).item()
    return found


def run(seeds: Sequence[int]) -> Measures:
    """Train every arm with every seed."""
    done = resume(PART, CONFIG, {
        f"{name}; seed {seed}": partial(one, name, seed) for seed in seeds for name in ARMS
    })  # fmt: skip
    return _gains({
        what: [done[f"{name}; seed {seed}"][what] for seed in seeds]
        for name in ARMS for what in done[f"{name}; seed {seeds[0]}"]
    })  # fmt: skip


def _gains(found: Measures) -> Measures:
    """Compare as pairs, seed by seed: sparse minus dense on new data, in points of a percent."""

    def minus(a: str, b: str) -> list[float | None]:
        columns = zip(found[f"new data at {a}"], found[f"new data at {b}"], strict=True)
        return [x - y for x, y in columns]  # type: ignore[operator]

    gains: Measures = {
        "sparse − dense, each with its recipe": minus("sparse", "dense, equal active"),
        "sparse − dense, both with sparse's": minus(
            "sparse", "dense, equal active, sparse's recipe"
        ),
        "sparse − dense, both with dense's": minus("sparse, dense's recipe", "dense, equal active"),
        "equal active − equal total, dense": minus("dense, equal active", "dense, equal total"),
    }
    return {**found, **gains}


def spot() -> Measures:
    """Train the smallest dense arm again, with the first seed."""
    name = "dense, equal active, sparse's recipe"
    return {what: [value] for what, value in one(name, 0).items()}


CODE = "the authors' code, synthetic_demo_s1"
EXPERIMENT = Experiment(
    title="Clusters: sparse and dense on new data, each with both recipes",
    source="Chen, Deng, Wu, Gu, Li 2022, arXiv:2208.02813",
    chapter="11",
    seeds=40,
    config=CONFIG,
    claims=(
        Claim("eight experts of 16 cubed filters: new data, %", CODE, "new data at sparse", 100.0,
              void=87.5, note="one run; above what no single expert can reach, 87.5"),
        Claim("one dense network of 80 cubed filters: new data, %", CODE,
              "new data at dense, 80 filters", 79.57, within=0.05, note="one run"),
        Claim("sparse − dense of 80 filters, each with its own recipe: points", CODE,
              Pair("new data at sparse", "new data at dense, 80 filters"), 100.0 - 79.57, void=0),
    ),
    measured=(
        Claim("the experts against the course's own mark, %", OURS, "new data at sparse", "above",
              void=98),
        Claim("dense, equal active size (16 filters), %", OURS, "new data at dense, equal active",
              "below", void=80),
        Claim("dense, equal total size (128 filters), %", OURS, "new data at dense, equal total",
              "below", void=80),
    ),
    finding=(
        "where data are clusters, experts are right on {0}% of new data, and {2} points ahead "
        "of a dense network with five times as many filters as an expert, each with its own recipe"
    ),
    run=run,
    spot=spot,
    caveat=(
        "sizes and recipes are the authors', the points a quarter as many; of the dense arms only "
        "the one with 80 filters is theirs (so the third row was moved to it after the "
        "runs; it had compared their difference with ours to a dense network of 16). All arms had "
        "been seen before on four sets of points drawn from other numbers, of which sparse "
        "got 94 % on one and 99.8 to 100 on three. The bound of 87.5 % is the paper's Theorem 4.1, "
        "known to us from others' notes. Our strongest dense arm is the smallest, with the "
        "arithmetic of one expert. Ten seeds left open on which side of 80 % its mean is (79.4 ± "
        "1.1), so thirty were added, on another machine; they alone say 78.2 ± 1.2."
    ),
)  # fmt: skip
