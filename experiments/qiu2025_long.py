"""Qiu et al. 2025, Table 1, on the second bench: balanced within each text, or over the batch?

A batch is eight texts of 32 tokens, each from one of five domains. The loss weighs 0.01, about the
paper's 0.008, and ten times as much.
"""

import math

from experiments import longer
from experiments.longer import Arm
from moe_lite.course.ledger import Claim, Experiment, Pair

TEXT = {"by_text": True}
ARMS = {
    "batch, 0.01": Arm(),
    "text, 0.01": Arm(run=TEXT),
    "batch, 0.1": Arm(run={"aux_coef": 0.1}),
    "text, 0.1": Arm(run=TEXT | {"aux_coef": 0.1}),
}

WORTH = math.log(8.167 / 8.038)
EXPERIMENT = Experiment(
    title="Balanced within a text or over the batch, over 3,000 steps, on the second bench",
    source="Qiu et al. 2025, arXiv:2501.11873",
    chapter="06",
    seeds=longer.SEEDS,
    config=longer.config(ARMS),
    claims=(
        Claim("balanced within each text, the loss is higher: text − batch, about their weight",
              "Table 1", Pair("loss at text, 0.01", "loss at batch, 0.01"), WORTH, void=0,
              note="perplexities 8.167 and 8.038, at 0.008"),
        Claim("the same at ten times the weight", "Table 1",
              Pair("loss at text, 0.1", "loss at batch, 0.1"), WORTH, void=0,
              note="perplexities 8.167 and 8.038, at 0.008"),
    ),
    finding=(
        "balance within each text costs {0} nats about the paper's weight, {1} at ten times it "
        "(0.016 in the paper)"
    ),
    run=lambda seeds: longer.curves(ARMS, seeds),
    spot=lambda: longer.spot({"text, 0.1": ARMS["text, 0.1"]}),
    caveat=(
        "a text is 32 tokens here, thousands in the paper, so balance within it is a harder "
        "demand. The rows were written before any of these runs was looked at but those of "
        "batch, 0.01, which are top-2's of switch2021_long."
    ),
)  # fmt: skip
