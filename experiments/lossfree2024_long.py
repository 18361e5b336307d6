"""Wang et al. 2024, Table 2, on the second bench: balance by a bias, or by a loss?

All three have the paper's sigmoid gate, divided by the sum over the chosen. In 3,000 steps a bias
can travel 3 at the paper's own rate, u = 0.001; scores are between 0 and 1.
"""

import math

from experiments import longer
from experiments.longer import Arm
from moe_lite.course.ledger import Claim, Experiment, Pair

SIGMOID = {"sigmoid": True}  # and the stack's own weight of the loss, 0.01
ARMS = {
    "alpha 0.001": Arm(run=SIGMOID | {"aux_coef": 0.001}),
    "alpha 0.01": Arm(run=SIGMOID),
    "u 0.001": Arm(run=SIGMOID | {"aux_coef": 0.0, "bias_step": 0.001}),
}

TABLE = "Table 2"
EXPERIMENT = Experiment(
    title="A sigmoid gate balanced by a loss or by a bias, over 3,000 steps, on the second bench",
    source="Wang et al. 2024, arXiv:2408.15664",
    chapter="09",
    seeds=longer.SEEDS,
    config=longer.config(ARMS),
    claims=(
        Claim("without a balancing loss the model is better: loss, bias − alpha 0.001, nats", TABLE,
              Pair("loss at u 0.001", "loss at alpha 0.001"), math.log(9.50 / 9.56), void=0,
              note="perplexities 9.50 and 9.56 (1B), 7.92 and 7.97 (3B)"),
        Claim("the same against ten times the loss: bias − alpha 0.01", TABLE,
              Pair("loss at u 0.001", "loss at alpha 0.01"), math.log(9.50 / 9.56), void=0,
              note="as above"),
        Claim("the bias balances far better: global MaxVio, bias / loss", TABLE,
              Pair("MaxVio at u 0.001", "MaxVio at alpha 0.001", "/"), 0.04 / 0.72, void=1,
              note="1B: 0.04 and 0.72"),
        Claim("global MaxVio with the bias", TABLE, "MaxVio at u 0.001", 0.04, void=0.72,
              note="void: theirs with the loss"),
        Claim("a loss ten times as heavy costs: loss, alpha 0.01 − 0.001, nats", "Figure 2",
              Pair("loss at alpha 0.01", "loss at alpha 0.001"), "above", void=0),
    ),
    finding=(
        "at the paper's own rate the bias balances far better than a light loss, and the model is "
        "better too: {0} nats; against ten times the loss {1}"
    ),
    run=lambda seeds: longer.curves(ARMS, seeds),
    spot=lambda: longer.spot({"u 0.001": ARMS["u 0.001"]}),
    caveat=(
        "when these rows were committed most of the losses had been seen (those of the first four "
        "seeds when they were written), though not the loads. Ours has 16 experts, none shared."
    ),
)  # fmt: skip
