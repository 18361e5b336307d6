"""Zhou et al. 2022 and Wang et al. 2024 on the second bench: experts that choose, and what leaks.

Experts choose among the whole batch of 256 tokens, or among 8 neighbours, a quarter of a text; in
both a token has two experts on average, and gates are probabilities, as in the paper. Token choice
beside them has the same gates. The loss of experts that choose is as trained: later tokens have a
say. What that is worth is measured in the same model: with a stranger's text after the token that
is asked, experts choose among as many tokens, which tell nothing.
"""

from collections.abc import Sequence

from experiments import longer
from experiments.longer import MARKS, Arm
from moe_lite.course.ledger import Claim, Experiment, Measures, Pair

RAW = {"raw": True}
ARMS = {
    "tokens choose": Arm(run=RAW),
    "experts choose, 256": Arm(chunk=256, run=RAW),
    "experts choose, 8": Arm(chunk=8, run=RAW),
}
CHOOSING = ("experts choose, 256", "experts choose, 8")


def run(seeds: Sequence[int]) -> Measures:
    """Train every arm; relate the steps to one loss, and the losses without the future."""
    found = longer.curves(ARMS, seeds)
    for name in CHOOSING:
        both = zip(curves(found, name), curves(found, "tokens choose"), strict=True)
        found[f"speed-up at {name}"] = [speed_up(*pair) for pair in both]
        parts = (found[f"loss at {name}"], found[f"gain from the future at {name}"])
        found[f"loss: no future at {name}"] = [
            None if a is None or b is None else a + b for a, b in zip(*parts, strict=True)
        ]
    return found


def curves(found: Measures, name: str) -> list[list[float]]:
    """Return each seed's losses, in the order of the marks."""
    columns = (found[f"loss: step {mark} at {name}"] for mark in MARKS)
    return [[float(loss or 0) for loss in row] for row in zip(*columns, strict=True)]


def speed_up(fast: list[float], slow: list[float]) -> float:
    """Divide the steps in which two curves come to the worse of their last losses."""
    goal = max(fast[-1], slow[-1])
    return reaches(slow, goal) / reaches(fast, goal)


def reaches(curve: list[float], goal: float) -> float:
    """Say at which step a curve comes to a loss; between two marks it is taken as a line."""
    at = next(i for i, loss in enumerate(curve) if loss <= goal)
    if at == 0:
        return float(MARKS[0])
    done = (curve[at - 1] - goal) / (curve[at - 1] - curve[at])
    return MARKS[at - 1] + done * (MARKS[at] - MARKS[at - 1])


EXPERIMENT = Experiment(
    title="Experts that choose among the batch or among neighbours, on the second bench",
    source="Zhou et al. 2022, arXiv:2202.09368; Wang et al. 2024, arXiv:2408.15664",
    chapter="08",
    seeds=longer.SEEDS,
    config=longer.config(ARMS),
    claims=(
        Claim("top-2 reaches its loss later than experts that choose, by a factor in steps",
              "Zhou, section 4.2", "speed-up at experts choose, 256", 2.0, void=1,
              note="less than half the steps"),
        Claim("the loss is lower where experts choose: experts − tokens, nats",
              "Zhou, abstract, in words",
              Pair("loss at experts choose, 256", "loss at tokens choose"), "below", void=0),
        Claim("choosing within a quarter of a sequence lowers the loss, by what leaks: 8 / 256",
              "Wang, section 5.2",
              Pair("loss at experts choose, 8", "loss at experts choose, 256", "/"), 0.90, void=1,
              note="about 10% lower"),
        *(Claim(f"the experts tell of the future: nats lost with a stranger's, {name}",
                "Wang, section 5", f"gain from the future at {name}", "above", void=0,
                note="the paper proves it and prints no such number")
          for name in CHOOSING),
        Claim("without the future neighbours are no better than the batch: 8 − 256, nats",
              "Wang, section 5.2",
              Pair("loss: no future at experts choose, 8",
                   "loss: no future at experts choose, 256"), "above", void=0,
              note="not measured there; what is below is the leak's"),
    ),
    finding=(
        "as trained, experts that choose end within 0.01 nats of tokens that do ({1}); choosing "
        "among 8 neighbours looks 5% better and owes it to the future ({4} nats in the same model)"
    ),
    run=run,
    spot=lambda: longer.spot({"experts choose, 8": ARMS["experts choose, 8"]}),
    caveat=(
        "the future's worth is measured on 24 texts, the losses on 320. The speed-up is read from "
        "held-out losses at 16 marks of one schedule; where expert choice never comes to the "
        "other's last loss, the other comes to its, and that is the factor, below 1. The rows were "
        "written before any of these runs was looked at."
    ),
)  # fmt: skip
