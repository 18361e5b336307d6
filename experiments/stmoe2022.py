"""ST-MoE 2022, Table 4: what keeps a sparse model stable, and what that costs.

The paper trains sparse T5 models whose baseline is stable in 4 of 6 runs. What it tries on them
are a router z-loss of weight 0.001, and a tighter clip of Adafactor's updates, 0.1. Here the small
language model is trained by AdamW with products in bfloat16 and the router in float32, as theirs,
without any clipping of gradients, on a ladder of learning rates that ends where nothing is learned.

A run is **stable** if all its numbers stay finite, its last ten training losses are on average at
most 0.5 above the lowest average of ten that it ever had, and on held-out text it ends below a
model that knows nothing but how often each token occurs.

Update clipping scales a weight's update down until its root mean square is at most 0.1 times the
learning rate (as in Adafactor, arXiv:1804.04235); AdamW's is 1 times it where the gradients of many
steps agree, and a few tenths where they are mostly noise.

Two more settings lack what Switch had brought: a router in float32, and first weights of variance
0.1 / n instead of 1 / n. The dense twin asks whether it is the router at all that fails at the end
of the ladder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from moe_lite.course import ledger
from moe_lite.course.data import Corpus, load_corpus
from moe_lite.course.ledger import MARGIN, Claim, Experiment, Measures, Pair
from moe_lite.course.sweep import MAX_BYTES, Outcome, Setting, sweep
from moe_lite.course.sweep import run as train_one

ledger.load("switch2021_stability")  # a sibling is loaded by its file, as this module is
from experiments.switch2021_stability import MINE, Scaled  # noqa: E402

RESULTS = Path(__file__).parent / "results"
LADDER = (0.1, 0.4, 1.0)
JUDGED = 0.4  # the rate at which Table 4 is judged
CLIP, RISE, WIDTH, EARLY = 0.1, 0.5, 10, 20
COMMON = {
    "steps": 100, "min_lr_ratio": 1.0, "grad_clip": 1e9, "z_coef": 0.0, "autocast": "on",
}  # fmt: skip
DENSE = {"num_local_experts": 1, "num_experts_per_tok": 1}


def _setting(lr: float, router: str = "switch", scale: float = 0.1, z: float = 0.0) -> Scaled:
    return Scaled(router, training=COMMON | {"lr": lr, "z_coef": z}, scale=scale)


SETTINGS: dict[str, Setting] = {
    **{f"baseline, {lr:g}": _setting(lr) for lr in LADDER},
    **{f"z-loss, {lr:g}": _setting(lr, z=0.001) for lr in LADDER},
    **{f"dense, {lr:g}": replace(_setting(lr, "top-k"), model=DENSE) for lr in LADDER[1:]},
    f"bfloat16, {JUDGED:g}": _setting(JUDGED, "rounded"),
    f"s = 1, {JUDGED:g}": _setting(JUDGED, scale=1.0),
}
CLIPPED: dict[str, Setting] = {f"clip, {JUDGED:g}": _setting(JUDGED)}
CONFIG: dict[str, Any] = {
    "settings": {name: asdict(setting) for name, setting in (SETTINGS | CLIPPED).items()},
    "clip": CLIP, "rise": RISE, "width": WIDTH, "judged": JUDGED,
}  # fmt: skip


@contextmanager
def update_clipping(threshold: float) -> Iterator[None]:
    """Scale each weight's update, in whatever optimizer, to an RMS of at most threshold * lr."""
    before: dict[Tensor, Tensor] = {}

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            before.update((weight, weight.detach().clone()) for weight in group["params"])

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                old, new = before.pop(weight), weight.detach()
                rms = (new - old).square().mean().sqrt() / group["lr"]
                new.copy_(torch.lerp(old, new, (threshold / rms).clamp(max=1)))

    handles = [register_optimizer_step_pre_hook(note), register_optimizer_step_post_hook(clip)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def frequency_loss(corpus: Corpus) -> float:
    """Measure on held-out text what knowing only each token's frequency gives, nats per token."""
    counts_V = torch.ones(len(corpus.bytes_V))
    for step in range(200):
        ids_BS = corpus.batch("train", 16, 64, seed=0, step=step).targets_BS
        counts_V += torch.bincount(ids_BS.flatten(), minlength=len(counts_V))
    log_V = (counts_V / counts_V.sum()).log()
    batches = [corpus.batch("validation", 16, 64, step=step).targets_BS for step in range(16)]
    return -log_V[torch.stack(batches)].mean().item()


def rise(losses: Sequence[float]) -> float:
    """Say how far the mean of the last ten losses stands above the lowest mean of ten."""
    means = [sum(losses[i : i + WIDTH]) / WIDTH for i in range(len(losses) - WIDTH + 1)]
    return means[-1] - min(means)


def growth(outcome: Outcome, corpus: Corpus) -> dict[str, float | None]:
    """Measure how far the loss has risen again, and how large the log-sum-exps have grown."""
    rows, losses = outcome.history.rows, outcome.history.column("loss")
    return {
        "rise": rise(losses) if len(rows) >= WIDTH else None,
        "log-sum-exp, RMS": rows[-1]["z"] ** 0.5 if rows else None,
        "early loss": losses[EARLY - 1] if len(rows) >= EARLY else None,
    }


def run(seeds: Sequence[int]) -> Measures:
    """Train every setting with every seed and judge each run."""
    part = RESULTS / ".stmoe2022.part.json"
    found: Measures = sweep(SETTINGS, seeds, part=part, routers=MINE, measure=growth)
    with update_clipping(CLIP):
        part = RESULTS / ".stmoe2022.clip.part.json"
        found |= sweep(CLIPPED, seeds, part=part, measure=growth)
    return found | relations(found, frequency_loss(load_corpus(max_bytes=MAX_BYTES)))


def relations(found: Measures, frequencies: float) -> Measures:
    """Say of each run whether it is stable; one that diverged has no loss and is not."""
    count = len(found[f"rise at baseline, {JUDGED:g}"])
    made: Measures = {"loss of frequencies": [frequencies] * count}
    for name in (*SETTINGS, *CLIPPED):
        losses = found.get(f"loss at {name}", [None] * count)  # none: every seed diverged
        rises = found.get(f"rise at {name}", [None] * count)
        made[f"loss at {name}"] = losses
        made[f"stable at {name}"] = [
            float(a is not None and b is not None and a < frequencies and b <= RISE)
            for a, b in zip(losses, rises, strict=True)
        ]
    return made


def spot() -> Measures:
    """Train the first steps of two settings again, with the first seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    corpus = load_corpus(max_bytes=MAX_BYTES)
    found: Measures = {"loss of frequencies": [frequency_loss(corpus)]}
    for name in ("baseline, 0.1", "z-loss, 1"):
        setting = SETTINGS[name]
        short = replace(setting, training={**setting.training, "steps": EARLY})
        history = train_one(short, corpus, 0, routers=MINE).history
        found[f"early loss at {name}"] = [history.rows[-1]["loss"]]
    torch.set_num_threads(threads)
    return found


BASE = f"{{}} at baseline, {JUDGED:g}"
EXPERIMENT = Experiment(
    title="What keeps a sparse model stable",
    source="Zoph et al. 2022, arXiv:2202.08906",
    chapter="07",
    seeds=3,
    config=CONFIG,
    claims=(
        Claim("with the z-loss more runs are stable: share minus the baseline's", "Table 4",
              Pair(f"stable at z-loss, {JUDGED:g}", BASE.format("stable")), 1 - 4 / 6, void=0,
              note="3 of 3 and 4 of 6"),
        Claim("and with tighter update clipping: share minus the baseline's", "Table 4",
              Pair(f"stable at clip, {JUDGED:g}", BASE.format("stable")), 1 - 4 / 6, void=0,
              note="3 of 3 and 4 of 6"),
        Claim("the z-loss costs no quality: loss, z-loss minus baseline, nats", "Table 4",
              Pair(f"loss at z-loss, {JUDGED:g}", BASE.format("loss")), 1.741 - 1.755,
              margin=MARGIN, note="1.741 and 1.755"),
        Claim("update clipping costs much: loss, clip minus baseline", "Table 4",
              Pair(f"loss at clip, {JUDGED:g}", BASE.format("loss")), 4.206 - 1.755, void=0,
              note="4.206 and 1.755"),
    ),
    finding=(
        "the catastrophe of update clipping does not happen ({3} nats); shares of stable runs "
        "and the z-loss's price cannot be told"
    ),
    run=run,
    spot=spot,
    caveat=(
        "the ladder's rates, and the one at which Table 4 is judged, were chosen after a look at "
        "single runs with another seed and other first weights. So a row on the baseline's share "
        "of stable runs (2 of 3; the paper's is 4 of 6) was taken out after the run: it could "
        "hardly have failed. The minutes are those of a busy machine."
    ),
)  # fmt: skip
