"""OLMoE's section 4.1.5: when does a model trained from scratch catch up with an upcycled one?

A small dense model is trained; then, for 120% of its steps more, (a) its upcycled copy with eight
experts goes on, (b) a model of the same shape starts from scratch on the same batches, (c) the
dense model itself goes on, as a control. The learning rate is constant after its warm-up, so that
no schedule decides where curves cross. OLMoE upcycled a model that had read 2 trillion tokens;
ours has read 0.4 million, so only the direction can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_lite.course.data import Corpus, load_corpus
from moe_lite.course.ledger import Claim, Experiment, Measures, Pair, unfinished
from moe_lite.course.sweep import MAX_BYTES, SMALL, TRAINING
from moe_lite.files import write
from moe_lite.hf import upcycle
from moe_lite.model import Mixtral
from moe_lite.train import train

CONFIG: dict[str, Any] = {
    "dense_steps": 400, "extra_steps": 480, "every": 20, "experts": 8, "top_k": 2,
    "lr": TRAINING.lr, "batch": TRAINING.batch_size, "context": TRAINING.seq_len,
    "windows": 8, "max_bytes": MAX_BYTES,
}  # fmt: skip
PART = Path(__file__).parent / "results" / ".upcycling.part.json"
DENSE = replace(SMALL, num_local_experts=1, num_experts_per_tok=1)


def go_on(model: Mixtral, corpus: Corpus, steps: int, seed: int) -> list[float]:
    """Train on and give the held-out bits per byte (mean of the domains) every 20 steps."""
    config = replace(
        TRAINING, steps=steps, min_lr_ratio=1.0, seed=seed, eval_every=CONFIG["every"],
        eval_windows=CONFIG["windows"],
    )  # fmt: skip
    history = train(model, corpus, config, progress=False)
    return [sum(row["bits"].values()) / len(row["bits"]) for row in history.rows if "bits" in row]


def fresh(config: Any, seed: int) -> Mixtral:
    """Make an untrained model of this seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Mixtral(config)


def one(corpus: Corpus, seed: int) -> dict[str, float | None]:
    """Run all four trainings of one seed."""
    dense = fresh(DENSE, seed)
    first = go_on(dense, corpus, CONFIG["dense_steps"], 2 * seed)
    sparse = upcycle(dense, CONFIG["experts"], CONFIG["top_k"], seed=seed)
    ids = corpus.batch("validation", 4, CONFIG["context"], step=0).ids_BS
    with torch.no_grad():
        gap = (sparse(ids).logits_BSV - dense(ids).logits_BSV).abs().max().item()
    extra, other = CONFIG["extra_steps"], 2 * seed + 1  # text that the dense model has not read
    curves = {
        "upcycled": go_on(sparse, corpus, extra, other),
        "scratch": go_on(fresh(SMALL, seed), corpus, extra, other),
        "dense": go_on(dense, corpus, extra, other),
    }
    lead = [s - u for s, u in zip(curves["scratch"], curves["upcycled"], strict=True)]
    caught = next((i for i, gap in enumerate(lead) if gap <= 0), None)
    found: dict[str, float | None] = {
        "largest change of a logit": gap,
        "dense bits early": first[0],
        "dense bits at the fork": first[-1],
        "catch-up": None if caught is None else at(caught),
        "catch-up, at least": at(len(lead) - 1) if caught is None else None,
        "upcycled - dense at 120%": curves["upcycled"][-1] - curves["dense"][-1],
    }
    for name, curve in curves.items():
        found |= {f"{name} at {at(i):.0%}": value for i, value in enumerate(curve)}
    return found


def at(index: int) -> float:
    """Say which share of the dense model's steps an evaluation comes after."""
    return (index + 1) * CONFIG["every"] / CONFIG["dense_steps"]


def run(seeds: Sequence[int]) -> Measures:
    """Run every seed; one that was done before an interruption is kept."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    corpus = load_corpus(max_bytes=CONFIG["max_bytes"])
    mark = json.loads(json.dumps({"config": CONFIG, "text": corpus.digest}))
    done: dict[str, dict[str, float | None]] = unfinished(PART, mark)
    for seed in seeds:
        if str(seed) not in done:
            done[str(seed)] = one(corpus, seed)
            print(seed, {k: v for k, v in done[str(seed)].items() if "at " not in k}, flush=True)
            write(PART, json.dumps({"mark": mark, "done": done}))
    PART.unlink(missing_ok=True)  # the next run is to be a run
    torch.set_num_threads(threads)
    return {what: [done[str(s)][what] for s in seeds] for what in done[str(seeds[0])]}


def spot() -> Measures:
    """Train the first steps of the first seed again."""
    corpus = load_corpus(max_bytes=CONFIG["max_bytes"])
    steps = CONFIG["every"]
    return {
        "dense bits early": [go_on(fresh(DENSE, 0), corpus, steps, 0)[0]],
        "scratch at 5%": [go_on(fresh(SMALL, 0), corpus, steps, 1)[0]],
    }


WHERE = "section 4.1.5"
EXPERIMENT = Experiment(
    title="Upcycling against training from scratch, at equal extra steps",
    source="Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060",
    chapter="16",
    seeds=3,
    config=CONFIG,
    claims=(
        Claim("from scratch catches up after this share of the dense model's training", WHERE,
              "catch-up", 0.25, void=1.2,
              note="500B of 2T tokens; void: Komatsuzaki et al.'s 120%"),
        Claim("before, the upcycled model leads: bits per byte, scratch − upcycled, at 5%",
              "Figure 8", Pair("scratch at 5%", "upcycled at 5%"), "above", void=0,
              note="no number printed"),
        Claim("at 30% the one from scratch has taken the lead: scratch − upcycled", WHERE,
              Pair("scratch at 30%", "upcycled at 30%"), "below", void=0,
              note="around 600B of 2T tokens"),
        Claim("as it had in earlier work at 120%", "Komatsuzaki et al. 2022",
              Pair("scratch at 120%", "upcycled at 120%"), "below", void=0,
              note="added after the result"),
    ),
    finding=(
        "the upcycled model leads by {1} bits a byte after 5% of more training and still after "
        "120% ({3}): what it is worth is nearly all the dense model's training"
    ),
    run=run,
    spot=spot,
    caveat=(
        "a seed that never caught up within 120% has a bound in the first row. Our dense model "
        "had read 0.4 million tokens and was still improving, OLMoE's 2 trillion. Seeds were cut "
        "from four to three after the first was seen, for lack of time; minutes are processor "
        "time."
    ),
)  # fmt: skip
