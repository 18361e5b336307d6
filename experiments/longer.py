"""The second bench: small models that train long enough for an effect to be drawn as a curve.

Chapters 05 to 09 first compared models of 4,096 kinds of token after 200 to 300 steps: two thirds
of each step was the output layer, and most of what they learned was how frequent words are. Here a
vocabulary is 512, a model is 32 wide, the rate is lower and warmed up for longer, and 3,000 steps
see 0.77 million tokens, fewer than there are. All seeds of an arm, and all arms of one shape, are
one stacked model (experiments/stacked.py). Every token reaches its experts: there is no capacity.

A token's experts are together 32 wide, all experts 256, in every arm but the dense one, which is 32
wide. The size of the layer's output is a setting: ``gate_scale`` is a factor on the gates.

The held-out loss is measured on the same windows at :data:`MARKS`, so that an effect is a curve
over training, paired by seed. One schedule serves all marks: what a mark shows is a model on its
way, not one whose training ended there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.stacked import Run, Stack
from moe_lite.checked import read_json
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course.data import Corpus, load_corpus, train_tokenizer
from moe_lite.course.ledger import Measures
from moe_lite.files import write

MODEL = MixtralConfig(
    vocab_size=512, hidden_size=32, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=2,
    max_position_embeddings=64, rope_theta=1e4, tie_word_embeddings=True,
)  # fmt: skip
TRAINING = TrainConfig(
    steps=3000, batch_size=8, seq_len=32, lr=3e-3, warmup=100, autocast="off"
)  # fmt: skip
MAX_BYTES = 1_000_000
MARKS = (50, 100, 200, 300, 400, 600, 800, 1000, 1250, 1500, 1750, 2000, 2250, 2500, 2750, 3000)
HELD_OUT = 40  # batches
BLOCK = 4  # seeds that are trained as one model: more do not fit a core's cache
SEEDS = 12
PARTS = Path(__file__).parent / "results" / ".longer"


@dataclass(frozen=True)
class Arm:
    """Say in what one arm differs: its shape, what its stack needs, and its :class:`Run`."""

    experts: int = 16
    top_k: int = 2
    width: int = 16
    shared: int = 0
    chunk: int = 0
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return what the runs of one stack have in common."""
        return self.experts, self.top_k, self.width, self.shared, self.chunk

    def stack(self, runs: Sequence[Run], steps: int = TRAINING.steps) -> Stack:
        """Make the model of these runs; shared experts are counted among the E."""
        config = replace(
            MODEL, num_local_experts=self.experts + self.shared, num_experts_per_tok=self.top_k,
            intermediate_size=self.width,
        )  # fmt: skip
        training = replace(TRAINING, steps=steps)
        return Stack(config, training, runs, [text()], shared=self.shared, chunk=self.chunk)


@cache
def text() -> Corpus:
    """Read the course's five domains with a vocabulary of 512."""
    return load_corpus(max_bytes=MAX_BYTES, tokenizer=train_tokenizer(vocab_size=MODEL.vocab_size))


def config(arms: Mapping[str, Arm]) -> dict[str, Any]:
    """Say all that a result depends on."""
    return {
        "arms": {name: asdict(arm) for name, arm in arms.items()},
        "model": asdict(MODEL), "training": asdict(TRAINING), "bytes": MAX_BYTES,
        "marks": list(MARKS), "held out": HELD_OUT, "block": BLOCK,
    }  # fmt: skip


@torch.no_grad()
def held_out(stack: Stack) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each run's held-out loss in nats per token, and MaxVio over all that text (N,) each.

    Source: MaxVio: Wang et al. 2024 (arXiv:2408.15664), eq. 4; the mean over the layers.
    """
    N, losses, loads = len(stack.runs), [], []
    for step in range(HELD_OUT):
        batch = text().batch("validation", TRAINING.batch_size, TRAINING.seq_len, step=step)
        ids_NBS, targets_NBS = (part.expand(N, -1, -1) for part in batch[:2])
        hidden, routings = stack.hidden(ids_NBS)
        losses.append(stack._nats(hidden, targets_NBS).mean(1))
        if any(routings):
            loads.append(torch.stack([r["keep"].mean(1) for r in routings if r]))
    if not loads:
        return torch.stack(losses).mean(0), torch.zeros(N)
    load_LNE = torch.stack(loads).mean(0)
    excess_LN = load_LNE.amax(-1) / load_LNE.mean(-1) - 1
    return torch.stack(losses).mean(0), excess_LN.mean(0)


@torch.no_grad()
def from_the_future(stack: Stack, batches: int = 3) -> torch.Tensor:
    """Return what each run loses with a stranger's text after the token that is asked, in nats."""
    N, S, gains = len(stack.runs), TRAINING.seq_len, []

    def nats(ids_BS: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
        ids_NBS, targets_NBS = (part.expand(N, -1, -1) for part in (ids_BS, targets_BS))
        return stack._nats(stack.hidden(ids_NBS)[0], targets_NBS).view(N, -1, S).mean(1)

    for step in range(batches):
        batch = text().batch("validation", TRAINING.batch_size, S, step=step)
        own_NS, strangers_BS = nats(*batch[:2]), batch.ids_BS.roll(1, dims=0)
        for t in range(S):
            mixed_BS = torch.cat([batch.ids_BS[:, : t + 1], strangers_BS[:, t + 1 :]], dim=1)
            gains.append(nats(mixed_BS, batch.targets_BS)[:, t] - own_NS[:, t])
    return torch.stack(gains).mean(0)


def train(arm: Arm, seeds: Sequence[int], marks: Sequence[int] = MARKS) -> dict[str, list[float]]:
    """Train an arm with these seeds as one model; return each measure, one value per seed."""
    runs, found = [Run("", seed, **arm.run) for seed in seeds], {}
    begin, stack = time.process_time(), arm.stack(runs)
    for _ in range(max(marks)):
        stack.take()
        if stack.step in marks:
            loss_N, excess_N = held_out(stack)
            found[f"loss: step {stack.step}"] = loss_N.tolist()
    if stack.step == TRAINING.steps:
        found["loss"] = loss_N.tolist()
        if arm.experts > 1:
            found["MaxVio"] = excess_N.tolist()
        if arm.chunk:
            found["gain from the future"] = from_the_future(stack).tolist()
        found["CPU seconds"] = [(time.process_time() - begin) / len(runs)] * len(runs)
    return found


def job(arm: Arm, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Do as :func:`train` does, once: what is done is kept in a file, for all experiments.

    The files stay: two experiments that share an arm share its runs. Without the folder
    ``results/.longer`` all is run again.
    """
    mark = json.dumps([config({"": arm}), list(seeds), text().digest], sort_keys=True)
    part = PARTS / f"{hashlib.sha256(mark.encode()).hexdigest()[:16]}.json"
    if part.is_file():
        kept: dict[str, list[float]] = read_json(part)
        return kept
    found = train(arm, seeds)
    PARTS.mkdir(parents=True, exist_ok=True)
    write(part, json.dumps(found))
    return found


def curves(arms: Mapping[str, Arm], seeds: Sequence[int]) -> Measures:
    """Train every arm with every seed: the held-out loss at every mark, and more at the end."""
    threads, found = torch.get_num_threads(), Measures()
    torch.set_num_threads(1)  # products this small only wait for each other
    try:
        for at in range(0, len(seeds), BLOCK):
            for name, arm in arms.items():
                for what, values in job(arm, seeds[at : at + BLOCK]).items():
                    found.setdefault(f"{what} at {name}", []).extend(values)
                print(name, seeds[at : at + BLOCK], values, flush=True)
    finally:
        torch.set_num_threads(threads)
    return found


def spot(arms: Mapping[str, Arm]) -> Measures:
    """Train the first steps of some arms again, with the first seeds."""
    return {
        f"{what} at {name}": list(values)
        for name, arm in arms.items()
        for what, values in train(arm, range(BLOCK), MARKS[:2]).items()
    }
