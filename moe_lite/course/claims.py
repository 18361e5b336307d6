"""Claims about mixtures of experts, each with the rule by which it is judged.

The rules stood here before any verdict was computed: a rule is a range of numbers, the claim holds
if our whole interval lies in it and does not hold if all of it lies outside. What is measured, and
what to say instead, is in :mod:`.trial`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

INF = math.inf
Kind = Literal["press", "field", "course"]


@dataclass(frozen=True)
class Claim:
    """State a claim: in its own words, by whom, what it means exactly, and when it holds.

    Args: said: as it is said; by: who says it, and where; means: what is measured, exactly;
          holds: the range of that number in which the claim holds, ends included.
    """

    key: str
    kind: Kind
    said: str
    by: str
    means: str
    holds: tuple[float, float]


PRESS = "the press; the article was not found again"
CLAIMS = (
    Claim("compute", "press", "Experts cut the compute by up to 90%.", PRESS,
          "share of training compute saved at equal loss, in all comparisons that we found printed",
          (0.9, 1)),
    Claim("speed", "press", "They speed up pre-training by 400%.", PRESS,
          "dense time over sparse time to one loss, in every comparison that we found printed: "
          "400% faster is 5 times as fast", (5, INF)),
    Claim("top-2", "press", "Top-2 cuts pre-training times by over 50%.", PRESS,
          "share of T5-Large's hours that top-2 saves, at each capacity in Switch's Table 1",
          (0.5, 1)),
    Claim("seven", "press", "Mixtral uses two of seven experts.", PRESS,
          "experts in a layer of Mixtral 8x7B", (7, 7)),
    Claim("2,048", "press", "Switch has 2,048 specialised experts.", PRESS,
          "share of Switch's four published sizes that have 2,048 experts in a layer", (1, 1)),
    Claim("closed", "press", "GPT-4o and Claude 3.5 Sonnet are mixtures of experts.", PRESS,
          "a statement by the vendor", (1, 1)),
    Claim("small data", "press", "With little data, a dense model is better.", PRESS,
          "dense - sparse on new data from 4,000 examples, equal active size, one recipe, points "
          "(clusters)", (0, INF)),
    Claim("overfits", "press", "Fine-tuned experts overfit.", PRESS,
          "training loss of tuning the experts alone - of tuning all else alone, nats; the worse "
          "of the two on new text is the experts, and overfitting would mean that they fit better",
          (-INF, 0)),
    Claim("first token", "press", "In retrieval the first token comes sooner.", PRESS,
          "arithmetic of reading a long prompt, Mixtral 8x7B over a dense model: of equal total, "
          "and of equal active size", (0, 0.9)),
    Claim("one GPU", "press", "Only a part is active, so one GPU will do.", PRESS,
          "GB of Mixtral 8x7B's weights in bfloat16, against a GPU of 80", (0, 80)),
    Claim("useless", "field", "A small mixture is no better than a dense model.",
          "nanochat #289 and pull request 798, 2025-26",
          "bits per byte, dense twin - sparse, the recipe of mixtral-mini, equal steps, "
          "step 3,250 of 4,000", (-INF, 0)),
    Claim("softmax", "field", "The softmax must come before the top-k.",
          "tutorials; Mixtral's paper has it after",
          "largest difference of the gates: softmax, top-k, divided by their sum - top-k, softmax",
          (1e-5, INF)),
    Claim("unused", "field", "The expert that is used least is needed least.",
          "usage-based pruning; REAP (arXiv:2510.13999), 2025, disputes it",
          "share of layers in which the least used expert is the one whose loss hurts least, "
          "mixtral-mini", (0.5, 1)),
    Claim("pinned", "field", "A few hot experts can be pinned in fast memory.",
          "llama.cpp #24524, disputed in #27861, 2026",
          "share of choices in new text that the four busiest of 16 experts serve, busiest in "
          "other text of all domains", (0.8, 1)),
    Claim("topics", "field", "Experts are topics.", "everybody's picture",
          "share of the domain's entropy that a token's first expert tells, mean of the layers",
          (0.5, 1)),
    Claim("monosemantic", "field", "An expert does one thing.",
          "arXiv:2604.02178, 2026, of its own models; title and claim read in a review only",
          "share of experts that take 80% of their tokens from one domain of five", (0.5, 1)),
    Claim("committee", "field", "A standing committee does the work, whatever the topic.",
          "arXiv:2601.03425, 2026, of its own models; title and claim read in a review only",
          "gate mass of the best four of 16 experts in the domain that uses them least, mean of "
          "the layers", (0.5, 1)),
    Claim("noise", "field", "Noise in the gate prevents collapse.", "tutorials on Shazeer 2017",
          "busiest expert over the mean, noisy gates and no balancing loss", (0, 2)),
    Claim("balance", "field", "Balance costs quality.",
          "Wang et al. 2024 (arXiv:2408.15664), section 2.2",
          "loss at a weight of 0.01 - at 0.001, nats", (0, INF)),
    Claim("batch", "field", "Balance over the batch, not within a text, makes a better model.",
          "Qiu et al. 2025 (arXiv:2501.11873)",
          "loss balanced within texts - over the batch, nats, at the paper's weight", (0, INF)),
    Claim("more", "field", "More experts always help.", "blogs on scaling",
          "perplexity after / before the last step up, 65,536 to 131,072 experts, Shazeer 2017",
          (0, 1)),
    Claim("bfloat16", "field", "A router in bfloat16 diverges.",
          "Switch 2021, Table 2 (arXiv:2101.03961)",
          "loss, all in bfloat16 - router in float32, nats, 2.06 in the paper", (1, INF)),
    Claim("twice", "field", "Expert choice trains twice as fast.",
          "Zhou et al. 2022, abstract (arXiv:2202.09368)",
          "steps of GShard's top-2 over steps of expert choice to the same loss", (1.5, INF)),
    Claim("bias", "field", "Balance by a bias beats balance by a loss.",
          "Wang et al. 2024, abstract (arXiv:2408.15664)",
          "loss with the bias - with a loss of a usual weight (0.01), nats", (-INF, 0)),
    Claim("fine", "field", "Split in four with one shared, the same experts are better.",
          "Dai et al. 2024 (arXiv:2401.06066)",
          "loss, split - coarse, nats", (-INF, 0)),
    Claim("parrots", "field", "Experts buy memory; width buys skill.",
          "Jelassi et al. 2024 (arXiv:2410.19034)",
          "paths, dense 16 wide - 32 experts of 4, points", (0, INF)),
    Claim("twin", "course", "The dense twin is ahead of the course's own model.",
          "this course's first edition, in its model's card, from one run of each",
          "bits per byte, sparse - dense twin, that edition's recipe (2 of 8 experts), three "
          "seeds, step 3,250 of 4,000", (0, INF)),
)  # fmt: skip
