"""Dai et al. 2024, Figure 3's ends, on the second bench: many small experts, and a shared one.

The paper's gates are probabilities that are not divided by their sum, so the routed part of the
layer's output shrinks as experts multiply: with these, and with gates that sum to the number of
the chosen, so that each expert weighs 1 on average, whatever the split.
"""

from experiments import longer
from experiments.longer import Arm
from moe_lite.course.ledger import Claim, Experiment, Pair

RAW = {"raw": True}
ARMS = {
    "2 of 16": Arm(run=RAW),
    "1 + 7 of 63": Arm(experts=63, top_k=7, width=4, shared=1, run=RAW),
    "2 of 16, gates x K": Arm(run={"gate_scale": 2.0}),
    "8 of 64, gates x K": Arm(experts=64, top_k=8, width=4, run={"gate_scale": 8.0}),
    "1 + 7 of 63, gates x K": Arm(
        experts=63, top_k=7, width=4, shared=1, run={"gate_scale": 7.0}
    ),
}  # fmt: skip

BARS = "its bars are benchmarks divided by the best, ours are losses: a direction only"
EXPERIMENT = Experiment(
    title="Experts split in four, one of them shared, over 3,000 steps, on the second bench",
    source="Dai et al. 2024, DeepSeekMoE, arXiv:2401.06066",
    chapter="09",
    seeds=longer.SEEDS,
    config=longer.config(ARMS),
    claims=(
        Claim("split in four, one shared: loss, 1 + 7 of 63 − 2 of 16, the paper's gates, nats",
              "Figure 3's ends, Table 1", Pair("loss at 1 + 7 of 63", "loss at 2 of 16"),
              1.808 - 1.867, void=0, note="1.808 and 1.867 on the Pile"),
        Claim("the same with gates that weigh 1 on average", "Figure 3's ends, Table 1",
              Pair("loss at 1 + 7 of 63, gates x K", "loss at 2 of 16, gates x K"),
              1.808 - 1.867, void=0, note="as above"),
        Claim("splitting alone helps: loss, 8 of 64 − 2 of 16, gates x K", "Figure 3",
              Pair("loss at 8 of 64, gates x K", "loss at 2 of 16, gates x K"), "below", void=0,
              note=BARS),
        Claim("sharing one of the small ones helps: 1 + 7 of 63 − 8 of 64, gates x K", "Figure 3",
              Pair("loss at 1 + 7 of 63, gates x K", "loss at 8 of 64, gates x K"), "below",
              void=0, note=BARS),
    ),
    finding=(
        "experts split in four are better by {2} nats if each weighs 1 on average; sharing one of "
        "them costs {3}; with the paper's gates, split and shared, nothing shows ({0} nats)"
    ),
    run=lambda seeds: longer.curves(ARMS, seeds),
    spot=lambda: longer.spot({"1 + 7 of 63": ARMS["1 + 7 of 63"]}),
    caveat=(
        "an expert of the finest split is 4 wide, in the paper 704. The rows were written before "
        "any of these runs was looked at but those of 2 of 16 with gates x K, which are top-2's of "
        "switch2021_long."
    ),
)  # fmt: skip
