"""Shazeer et al. 2017, Table 6: what each weight of the two balancing losses does.

The paper's model is an LSTM, 256 experts and another LSTM on a billion words; ours is one layer of
attention and 16 experts on a few hundred thousand words of the course's text. So no perplexity
can be compared, but every sentence about how the six settings relate can. Maximum over mean
cannot exceed E/K, which is 64 for them and 8 for us. The control asks why perplexity may turn
out otherwise: it has four experts, about as many as a collapse leaves at work, and is balanced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from moe_lite.config import MixtralConfig
from moe_lite.course import losses2017
from moe_lite.course.data import Corpus, load_corpus
from moe_lite.course.ledger import MARGIN, Claim, Experiment, Measures, Pair, unfinished
from moe_lite.files import write
from moe_lite.model import Mixtral
from moe_lite.routers import NoisyTopKRouter

SETTINGS = ((0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.1, 0.1), (0.01, 0.01), (1.0, 1.0))
CONFIG: dict[str, Any] = {
    "settings": SETTINGS, "experts": 16, "top_k": 2, "width": 64, "expert_width": 64,
    "batch": 8, "context": 64, "steps": 200, "early": 20, "warmup": 20, "lr": 5e-3,
    "max_bytes": 1_000_000, "eval_batches": 16, "eval_batch": 16, "control": 4,
}  # fmt: skip
PART = Path(__file__).parent / "results" / ".shazeer2017.part.json"


def build(experts: int) -> Mixtral:
    """Make a Mixtral of one layer and put the noisy gate in its place."""
    D, E, K = CONFIG["width"], experts, CONFIG["top_k"]
    config = MixtralConfig(
        vocab_size=4096, hidden_size=D, intermediate_size=CONFIG["expert_width"],
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, num_local_experts=E,
        num_experts_per_tok=K, max_position_embeddings=256, rope_theta=1e4,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Mixtral(config)
    model.layers[0].block_sparse_moe.gate = NoisyTopKRouter(D, E, K)  # type: ignore[union-attr]
    return model


def train(
    corpus: Corpus, w_importance: float, w_load: float, experts: int, seed: int, *, whole: bool
) -> dict[str, float]:
    """Train one model and measure it early on and, if it is trained whole, at the end."""
    torch.manual_seed(seed)
    model, steps = build(experts).train(), CONFIG["steps"]
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    measured: dict[str, float] = {}
    for step in range(steps if whole else CONFIG["early"]):
        rate = min(1.0, (step + 1) / CONFIG["warmup"]) * max(0.1, 1 - step / steps)
        optimizer.param_groups[0]["lr"] = CONFIG["lr"] * rate
        batch = corpus.batch("train", CONFIG["batch"], CONFIG["context"], seed=seed, step=step)
        out = model(batch.ids_BS)
        loss = F.cross_entropy(out.logits_BSV.flatten(0, 1), batch.targets_BS.flatten())
        loss = loss + w_importance * losses2017.importance_loss(out.routings)
        loss = loss + w_load * losses2017.load_loss(out.routings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 == CONFIG["early"]:
            measured |= {f"early {key}": value for key, value in measure(model, corpus).items()}
    return measured | measure(model, corpus) if whole else measured


@torch.no_grad()
def measure(model: Mixtral, corpus: Corpus) -> dict[str, float]:
    """Measure on held-out text: perplexity without noise, balance with the noise of training."""
    nats, routings = [], []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(CONFIG["eval_batches"]):
            batch = corpus.batch("validation", CONFIG["eval_batch"], CONFIG["context"], step=step)
            logits_TV = model.eval()(batch.ids_BS).logits_BSV.flatten(0, 1)
            nats.append(F.cross_entropy(logits_TV, batch.targets_BS.flatten()).item())
            routings += model.train()(batch.ids_BS).routings
    importance_E = torch.stack([routing.gates_TE().sum(0) for routing in routings]).sum(0)
    load_E = torch.stack([routing.load_E() for routing in routings]).sum(0)
    return {
        "perplexity": torch.tensor(nats).mean().exp().item(),
        "CV of importance": losses2017.cv_squared(importance_E).sqrt().item(),
        "CV of load": losses2017.cv_squared(load_E).sqrt().item(),
        "max/mean load": (load_E.max() / load_E.mean()).item(),
        "larger gate": torch.stack([r.gates_TE().amax(-1).mean() for r in routings]).mean().item(),
    }


def name(setting: tuple[float, float]) -> str:
    """Name a setting as the paper's table does: w_importance, w_load."""
    return f"{setting[0]:g}, {setting[1]:g}"


def run(seeds: Sequence[int]) -> Measures:
    """Train every setting with every seed; a run that was done before an interruption is kept."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small only wait for each other
    corpus = load_corpus(max_bytes=CONFIG["max_bytes"])
    mark = json.loads(json.dumps({"config": CONFIG, "text": corpus.digest}))
    done: dict[str, dict[str, float]] = unfinished(PART, mark)
    models = {name(setting): (*setting, CONFIG["experts"]) for setting in SETTINGS}
    models["control"] = (*SETTINGS[3], CONFIG["control"])  # as many experts as a collapse leaves
    for seed in seeds:
        for label, model in models.items():
            if (key := f"{label}; seed {seed}") not in done:
                done[key] = train(corpus, *model, seed, whole=True)
                print(key, {k: round(v, 3) for k, v in done[key].items()}, flush=True)
                write(PART, json.dumps({"mark": mark, "done": done}))
    PART.unlink(missing_ok=True)  # the next run is to be a run
    torch.set_num_threads(threads)
    found: Measures = {}
    for label in models:
        for what in done[f"{label}; seed {seeds[0]}"]:
            found[f"{what} at {label}"] = [done[f"{label}; seed {s}"][what] for s in seeds]
    return found | relations(found)


def relations(found: Measures) -> Measures:
    """Take the perplexities' logarithms: losses in nats, which differences are taken of."""
    return {
        key.replace("perplexity", "loss"): [None if x is None else math.log(x) for x in values]
        for key, values in found.items()
        if key.startswith("perplexity at ")
    }


def spot() -> Measures:
    """Train the first steps of two settings again, with the first seed."""
    corpus = load_corpus(max_bytes=CONFIG["max_bytes"])
    found: Measures = {}
    for setting in (SETTINGS[0], SETTINGS[3]):
        model = (*setting, CONFIG["experts"])
        for what, value in train(corpus, *model, seed=0, whole=False).items():
            found[f"{what} at {name(setting)}"] = [value]
    return found


TABLE = "Table 6"
EXPERIMENT = Experiment(
    title="Six weightings of the importance and load losses, on the course's text",
    source="Shazeer et al. 2017, arXiv:1701.06538",
    chapter="04",
    seeds=20,
    config=CONFIG,
    claims=(
        Claim("without a balancing loss perplexity is higher: none / both at 0.1", TABLE,
              Pair("perplexity at 0, 0", "perplexity at 0.1, 0.1", "/"), 39.8 / 35.6, void=1,
              note="39.8 and 35.6"),
        *(Claim(f"which of the five losses hardly matters: {name(s)} less 0.1, 0.1, in nats",
                TABLE, Pair(f"loss at {name(s)}", "loss at 0.1, 0.1"), math.log(paper / 35.6),
                margin=MARGIN, note=f"{paper} and 35.6")
          for s, paper in zip(SETTINGS[1:3] + SETTINGS[4:], (35.6, 35.7, 35.7, 35.7), strict=True)),
        Claim("without a loss the busiest expert has many times the mean load", TABLE,
              "max/mean load at 0, 0", 17.8, void=1.47,
              note="at most 64, ours 8; void: their worst with a loss"),
        Claim("with both at 0.1 it has hardly more than the mean", TABLE,
              "max/mean load at 0.1, 0.1", 1.14, within=0.1),
        Claim("without a loss the loads vary far more: CV of load, none / both at 0.1", TABLE,
              Pair("CV of load at 0, 0", "CV of load at 0.1, 0.1", "/"), 3.01 / 0.05, void=1,
              note="3.01 and 0.05"),
        Claim("the importance loss alone evens the load less than the importance", TABLE,
              Pair("CV of load at 0.2, 0", "CV of importance at 0.2, 0", "/"), 0.17 / 0.06,
              void=1, note="0.17 and 0.06"),
        Claim("the load loss alone evens the importance less than the load", TABLE,
              Pair("CV of importance at 0, 0.2", "CV of load at 0, 0.2", "/"), 0.22 / 0.04,
              void=1, note="0.22 and 0.04"),
        Claim("both at 0.01 leave more of the importance's CV than both at 1", TABLE,
              Pair("CV of importance at 0.01, 0.01", "CV of importance at 1, 1", "/"),
              0.48 / 0.03, void=1, note="0.48 and 0.03"),
        Claim("and more of the load's", TABLE,
              Pair("CV of load at 0.01, 0.01", "CV of load at 1, 1", "/"), 0.11 / 0.02, void=1,
              note="0.11 and 0.02"),
    ),
    finding=(
        "after 200 steps a model without balance is ahead (perplexity {0} of the balanced "
        "one's; whether that is only early, shazeer2017_price leaves open); the losses balance as "
        "the paper says, and two of the four other weightings end within 0.02 nats of 0.1, 0.1"
    ),
    run=run,
    spot=spot,
    caveat=(
        "the four-expert control of chapter 04 was added after the first result; it is measured, "
        "and no row here judges it. Five seeds were judged first, with one row that divided the "
        "worst of five perplexities by the best; fifteen seeds were added under the present rules."
    ),
)  # fmt: skip
