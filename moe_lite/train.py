"""Train: one step to read, and the loop around it.

All randomness of a step is a function of (seed, step): which windows are drawn
(``corpus.batch``) and what torch draws (each step seeds it anew). So a checkpoint
needs no generator's state, and a run that was cut off and resumed has the same losses, bit for
bit on a CPU with as many threads, as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoint import held, hold_interrupt, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .evaluation import Corpus, cross_entropy, evaluate
from .fast import autocast_dtype
from .history import History, Row
from .losses import drop_rate, load_balancing_loss, max_violation, router_z_loss
from .model import Mixtral
from .routing import NotFinite, Routing

Balance = Callable[..., Tensor]
"""From the layers' routings to a loss; on several ranks it is given ``all_reduce`` too."""
Probe = Callable[[Sequence[Routing]], dict[str, float]]


class Trainer:
    """Take the steps of a run: here those of one process, each a screen long."""

    def __init__(self, model: Mixtral, config: TrainConfig, balance: Balance = load_balancing_loss):
        self.model, self.config, self.balance = model, config, balance
        self.optimizer = make_optimizer(model, config)
        self.device = model.embed_tokens.weight.device
        self.dtype = autocast_dtype(model, config.autocast)

    def step(self, step: int, corpus: Corpus) -> tuple[Row, Sequence[Routing]]:
        """Train on one batch; return what was measured on the way, and each layer's routing.

        Raises: NotFinite if loss or gradient are not, before any weight has changed.
        """
        model, config = self.model, self.config
        # 1. a batch; it, and what is drawn after it, are functions of (seed, step)
        torch.manual_seed((config.seed * 1_000_003 + step) % 2**63)
        batch = corpus.batch(
            "train", config.batch_size, config.seq_len, seed=config.seed, step=step
        )
        ids_BS, targets_BS = batch.ids_BS.to(self.device), batch.targets_BS.to(self.device)
        # 2. forward: the loss of the next token, and what else is asked of the routers
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            hidden_BSD, routings = model.hidden(ids_BS)
            loss = head_loss(model.lm_head, hidden_BSD, targets_BS)
        terms = router_terms(routings, self.balance)
        # 3. backward, and a gradient of at most grad_clip
        self.optimizer.zero_grad()
        (loss + config.aux_coef * terms["balance"] + config.z_coef * terms["z"]).backward()
        terms["norm"] = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        amounts = torch.stack([loss, *terms.values()]).tolist()  # one wait for the device
        row = dict(zip(("loss", *terms), amounts, strict=True))
        check_finite(row, routings)
        # 4. the optimizer moves the weights, and a router that balances by a bias moves that
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        self.optimizer.step()
        for layer, routing in zip(model.moe_layers, routings, strict=True):
            if update := getattr(layer.gate, "update", None):
                update(routing.load_E())
        return row, routings

    def evaluate(self, corpus: Corpus) -> dict[str, float]:
        """Measure held-out bits per byte, as :func:`evaluate` does."""
        return evaluate(self.model, corpus, config=self.config)

    def save(self, out: str | Path, corpus: Corpus, history: History) -> None:
        """Write a checkpoint."""
        save_checkpoint(out, self.model, self.optimizer, self.config, corpus.digest, history)

    def load(self, path: Path, corpus: Corpus) -> History:
        """Go on from a checkpoint; return its history."""
        return load_checkpoint(path, self.model, self.optimizer, self.config, corpus.digest)

    def stops(self, pressed: bool) -> bool:
        """Say after a step whether it was the last, as it is if Ctrl-C was pressed."""
        return pressed


def train(
    model: Mixtral, corpus: Corpus, config: TrainConfig, out: str | Path | None = None, *,
    resume: bool = False, balance: Balance = load_balancing_loss, probe: Probe | None = None,
    callback: Callable[[Row], None] | None = None, progress: bool = True,
    trainer: Callable[[Mixtral, TrainConfig, Balance], Trainer] = Trainer,
) -> History:  # fmt: skip
    """Train a model in place, on its device; return the history.

    Args:    out: folder for the checkpoints (none are written without it). resume: go on from
             the last checkpoint there, or start if there is none. balance: from the layers'
             routings to the loss that ``aux_coef`` weighs. probe: from them to more columns of
             the history. callback: is given each step's row of the :class:`History`, once the
             step (and its checkpoint) is done. trainer: who takes the steps.
    Raises:  NotFinite (a ValueError) if the loss or the gradient is not finite (names the step
             and, where a router is the cause, the layer; the weights are still those before that
             step); ValueError if out holds another run's checkpoints or a damaged one, or what is
             resumed differs in model, text or training config; OSError if out cannot be written;
             KeyboardInterrupt on Ctrl-C, after the step is finished and its checkpoint written.
    """
    # 1. a folder that is ours alone, and the last checkpoint in it
    run, history = trainer(model, config, balance), History()
    with held(out, resume) as last:
        if last is not None:
            history = run.load(last, corpus)
        model.train()
        where = f"{run.device.type}, {str(run.dtype or torch.float32).removeprefix('torch.')}"
        bar = tqdm(total=config.steps, initial=len(history), desc=where, unit="step",
                   disable=not progress)  # fmt: skip
        # The steps seed torch's generators; afterwards they are as they were.
        fork = torch.random.fork_rng([run.device] if run.device.type == "cuda" else [])
        with bar, fork, hold_interrupt() as pressed:
            for row in _rows(run, corpus, history, probe):
                speed = f"{row['tokens'] / row['seconds']:,.0f} tokens/s"
                bar.set_postfix_str(
                    f"loss {row['loss']:.3f}, {speed}, load {row['load']:.2f}", False
                )
                bar.update()
                # 2. whoever looks at a row finds its checkpoint written
                stop, every = run.stops(pressed()), config.checkpoint_every or config.steps
                if out is not None and (stop or _due(every, row["step"], config)):
                    run.save(out, corpus, history)
                if callback is not None:
                    callback(row)
                if stop:
                    raise KeyboardInterrupt(f"stopped after step {row['step']} of {config.steps}")
    return history


def _rows(run: Trainer, corpus: Corpus, history: History, probe: Probe | None) -> Iterator[Row]:
    """Take the steps that are left; add a row to the history for each, and yield it."""
    config = run.config
    before: Row = history.rows[-1] if history.rows else {"step": 0, "tokens": 0, "seconds": 0.0}
    for step in range(before["step"], config.steps):
        # 1. the step
        begin = time.perf_counter()
        try:
            measured, routings = run.step(step, corpus)
        except NotFinite as error:
            raise NotFinite(f"step {step + 1}: {error}") from error
        # 2. what is told of it
        row: Row = {
            "step": step + 1,
            "tokens": before["tokens"] + config.batch_size * config.seq_len,
            "seconds": before["seconds"] + time.perf_counter() - begin,
            **measured,
            "lr": config.lr_at(step),
        }
        if probe is not None:
            row |= probe([routing.detach() for routing in routings])
        if _due(config.eval_every, row["step"], config):
            row["bits"] = run.evaluate(corpus)
        history.append(row)
        yield row
        before = row


def _due(every: int, step: int, config: TrainConfig) -> bool:
    return every > 0 and (step % every == 0 or step == config.steps)


def head_loss(lm_head: nn.Linear, hidden_BSD: Tensor, targets_BS: Tensor) -> Tensor:
    """Return the mean cross entropy of the next token, straight from the hidden states.

    PyTorch 2.13 can take the logits in pieces (half the head's time on two CPU cores); older
    ones, and GPUs, where this was not measured, get them whole. The same number.
    """
    V, D = lm_head.weight.shape
    options = getattr(nn, "LinearCrossEntropyOptions", None)
    if options is None or hidden_BSD.device.type != "cpu" or not targets_BS.numel() >= D < V:
        return cross_entropy(lm_head(hidden_BSD), targets_BS)
    return F.linear_cross_entropy(
        hidden_BSD.flatten(0, 1).float(), lm_head.weight, targets_BS.flatten(), options=options()
    )


def router_terms(routings: Sequence[Routing], balance: Balance, **over: Any) -> dict[str, Tensor]:
    """Return what a row says of the routing, over layers with a choice; losses get ``over``."""
    routed = [routing for routing in routings if routing.num_experts > 1]
    if not routed:  # a dense twin
        zero = torch.zeros((), device=routings[0].logits_TE.device)
        return {"balance": zero, "z": zero, "load": zero + 1, "dropped": zero}
    return {
        "balance": balance(routed, **over),
        "z": router_z_loss(routed, **over),
        "load": 1 + max_violation(routed, **over),
        "dropped": drop_rate(routed, **over),
    }


def check_finite(row: Row, routings: Sequence[Routing]) -> None:
    """Raise NotFinite if a number is not, and name the layer where a router is the cause."""
    if all(map(math.isfinite, row.values())):
        return
    for layer, routing in enumerate(routings):
        routing.check(f"layers.{layer}.block_sparse_moe")
    loss = row["loss"]
    what = "gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
    raise NotFinite(f"the {what}; a lower lr, a longer warmup or a smaller grad_clip may help")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with decay on matrices (embeddings and stacked experts too), none on norms.

    Source: Loshchilov, Hutter 2019 (arXiv:1711.05101), algorithm 2.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
