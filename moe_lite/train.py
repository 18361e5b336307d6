"""Train: one loop to read.

All randomness of a step is a function of (seed, step): which windows are drawn
(``corpus.batch``) and what torch draws (the loop seeds it anew each step). So a checkpoint
needs no generator's state, and a run that was cut off and resumed has the same losses, bit for
bit on a CPU with as many threads, as one that was not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .config import Autocast, TrainConfig
from .fast import multiplies_bfloat16
from .files import check_writable as check_writable
from .losses import drop_rate, load_balancing_loss, max_violation, router_z_loss
from .model import Mixtral
from .routing import NotFinite, Routing
from .runs import ALONE, Alone, History, Row, find_checkpoint, load_checkpoint, save_checkpoint
from .runs import checkpoints as checkpoints

if TYPE_CHECKING:
    from .course.data import Corpus

Balance = Callable[[Sequence[Routing]], Tensor]
Probe = Callable[[Sequence[Routing]], dict[str, float]]


class Objective(nn.Module):
    """Give a batch's loss and its routings: the whole step forward, as one module."""

    def __init__(self, model: Mixtral):
        super().__init__()
        self.model = model

    def forward(
        self, ids_BS: Tensor, targets_BS: Tensor, mask_BS: Tensor | None = None
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        hidden_BSD, routings = self.model.hidden(ids_BS, mask_BS)
        return head_loss(self.model.lm_head, hidden_BSD, targets_BS), routings


def train(
    model: Mixtral,
    corpus: Corpus,
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    balance: Balance = load_balancing_loss,
    probe: Probe | None = None,
    callback: Callable[[Row], None] | None = None,
    progress: bool = True,
    ranks: Alone = ALONE,
) -> History:
    """Train a model in place, on its device, and give the history.

    A gate with an ``update`` (:class:`~moe_lite.routers.SigmoidBiasRouter`) is told its routing
    after each step.

    Args:    out: folder for the checkpoints (none are written without it). resume: go on from
             the last checkpoint there, or start if there is none. balance: from the layers'
             routings to the loss that ``aux_coef`` weighs. probe: from them to more columns of
             the history. callback: is given each step's row of the :class:`History`, once the
             step (and its checkpoint) is done. ranks: the processes that share the work; each
             then calls this, with equal arguments, and gets the same history (the probe sees
             its own tokens' routings).
    Raises:  NotFinite (a ValueError) if the loss or the gradient is not finite (names the step
             and, where a router is the cause, the layer; the weights are still those before that
             step); ValueError if out holds another run's checkpoints or a damaged one, or what is
             resumed differs in model, text or training config; OSError if out cannot be written;
             KeyboardInterrupt on Ctrl-C, after the step is finished and its checkpoint written.
    """
    device, dtype = model.embed_tokens.weight.device, autocast_dtype(model, config.autocast)
    optimizer = make_optimizer(model, config)
    history = History()
    if out is not None and (last := find_checkpoint(out, resume)):
        history = load_checkpoint(last, model, optimizer, corpus, config, ranks)
    objective = ranks.wrap(Objective(model))
    first = history.rows[-1]["step"] if history.rows else 0
    seconds = history.rows[-1]["seconds"] if history.rows else 0.0
    model.train()
    where = f"{device.type}, {str(dtype or torch.float32).removeprefix('torch.')}"
    bar = tqdm(total=config.steps, initial=first, desc=where, unit="step",
               disable=not progress or ranks.rank > 0)  # fmt: skip
    # The loop seeds torch's generators at each step; afterwards they are as they were.
    fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with bar, fork, _hold_interrupt() as interrupted:
        for step in range(first, config.steps):
            begin = time.perf_counter()
            torch.manual_seed((config.seed * 1_000_003 + step + (ranks.rank << 40)) % 2**63)
            batch = corpus.batch(
                "train", config.batch_size, config.seq_len, seed=config.seed, step=step
            ).to(device)
            (ids_BS, targets_BS), mask_BS, share = ranks.share(batch.ids_BS, batch.targets_BS)
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(step)

            try:
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    loss, routings = objective(ids_BS, targets_BS, mask_BS)
            except NotFinite as error:
                raise NotFinite(f"step {step + 1}: {error}") from error
            routings = ranks.pool(routings)
            terms = _router_terms(routings, balance)
            optimizer.zero_grad()
            penalty = config.aux_coef * terms["balance"] + config.z_coef * terms["z"]
            ranks.backward(model, loss + penalty, share)
            terms["norm"] = ranks.clip(model, config.grad_clip)
            numbers = ranks.total(share * torch.stack([loss, *terms.values()])).tolist()
            if not all(map(math.isfinite, numbers)):
                _explain(step + 1, numbers[0], routings)
            optimizer.step()
            for layer, routing in zip(model.moe_layers, routings, strict=True):
                if hasattr(layer.gate, "update"):
                    ranks.update(layer.gate, routing, share)

            elapsed = time.perf_counter() - begin
            seconds += elapsed
            tokens = batch.ids_BS.numel()
            row: Row = {"step": step + 1, "tokens": (step + 1) * tokens, "seconds": seconds}
            row |= dict(zip(("loss", *terms), numbers, strict=True))
            row["lr"] = config.lr_at(step)
            if probe is not None:
                row |= probe([routing.detach() for routing in routings])
            if _due(config.eval_every, step, config):
                row["bits"] = evaluate(model, corpus, config=config, ranks=ranks)
            history.append(row)
            bar.set_postfix_str(
                f"loss {row['loss']:.3f}, {tokens / elapsed:,.0f} tokens/s, load {row['load']:.2f}",
                refresh=False,
            )
            bar.update()
            stop = bool(ranks.total(torch.tensor(float(interrupted()), device=device)))
            if out is not None and (
                stop or _due(config.checkpoint_every or config.steps, step, config)
            ):
                save_checkpoint(Path(out), model, optimizer, corpus, config, history, ranks)
            if callback is not None:
                callback(row)
            if stop:
                raise KeyboardInterrupt(f"stopped after step {step + 1} of {config.steps}")
    return history


def _due(every: int, step: int, config: TrainConfig) -> bool:
    return every > 0 and ((step + 1) % every == 0 or step + 1 == config.steps)


def cross_entropy(logits_BSV: Tensor, targets_BS: Tensor, reduction: str = "mean") -> Tensor:
    """Compute -log p(target) in float32: its mean over all tokens, or their sum; in nats."""
    logits_TV = logits_BSV.flatten(0, 1).float()
    return F.cross_entropy(logits_TV, targets_BS.flatten(), reduction=reduction)


def head_loss(lm_head: nn.Linear, hidden_BSD: Tensor, targets_BS: Tensor) -> Tensor:
    """Compute the mean cross entropy of the next token straight from the hidden states.

    With a vocabulary far wider than the model, most of a small model's memory traffic is its
    logits. PyTorch 2.13 can take them in pieces (half the time of the head on two CPU cores);
    older ones, and GPUs, where this was not measured, get them whole. The same number.
    """
    V, D = lm_head.weight.shape
    options = getattr(nn, "LinearCrossEntropyOptions", None)
    if options is None or hidden_BSD.device.type != "cpu" or not targets_BS.numel() >= D < V:
        return cross_entropy(lm_head(hidden_BSD), targets_BS)
    return F.linear_cross_entropy(
        hidden_BSD.flatten(0, 1).float(), lm_head.weight, targets_BS.flatten(), options=options()
    )


def _router_terms(routings: tuple[Routing, ...], balance: Balance) -> dict[str, Tensor]:
    """Compute what a row says of the routing, over the layers that have a choice."""
    routed = [routing for routing in routings if routing.num_experts > 1]
    if not routed:  # a dense twin
        zero = torch.zeros((), device=routings[0].logits_TE.device)
        return {"balance": zero, "z": zero, "load": zero + 1, "dropped": zero}
    return {
        "balance": balance(routed),
        "z": router_z_loss(routed),
        "load": 1 + torch.stack([max_violation(routing) for routing in routed]).mean(),
        "dropped": torch.stack([drop_rate(routing) for routing in routed]).mean(),
    }


def _explain(step: int, loss: float, routings: tuple[Routing, ...]) -> None:
    for layer, routing in enumerate(routings):
        routing.check_finite(f"step {step}: layers.{layer}.block_sparse_moe")
    what = "gradient is not finite" if math.isfinite(loss) else f"loss is {loss}"
    raise NotFinite(
        f"step {step}: the {what}; a lower lr, a longer warmup or a smaller grad_clip may help"
    )


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW with decay on matrices (embeddings and stacked experts too), none on norms.

    Source: Loshchilov, Hutter 2019 (arXiv:1711.05101), algorithm 2.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def autocast_dtype(model: nn.Module, autocast: Autocast = "auto") -> torch.dtype | None:
    """Choose bfloat16 where the machine multiplies it faster, else None: the weights' own type.

    That is a CUDA device with bfloat16 in hardware, or a CPU that multiplies it (AMX or
    AVX512-BF16), there from a width of 256 on. Measured with AVX512-BF16 on one core, three
    layers of 8 experts, F = 1.75 D, a step in bfloat16 took 0.97 of float32's time at
    width 128, 0.84 at 256 and 0.73 at 512. "on" forces it.
    """
    weight = next(model.parameters())
    if autocast == "off" or weight.dtype != torch.float32:
        return None
    if weight.is_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        wide = weight.device.type == "cpu" and weight.shape[-1] >= 256
        fast = wide and multiplies_bfloat16()
    return torch.bfloat16 if fast or autocast == "on" else None


@torch.no_grad()
def evaluate(
    model: Mixtral, corpus: Corpus, *, config: TrainConfig | None = None, ranks: Alone = ALONE
) -> dict[str, float]:
    """Measure held-out bits per byte of each domain: always the same, evenly spaced windows.

    Bits per byte = loss in nats / (ln 2 * bytes), so that tokenizers can be compared. The
    first tokens of a window are predicted with little before them, which counts too.

    Args:    config: its seq_len, batch_size, eval_windows (per domain) and autocast are used.
             ranks: as in :func:`train`.
    Returns: for each domain of the corpus, in bits per byte of UTF-8.
    Raises:  ValueError if a domain's text is shorter than a window.
    """
    config = config or TrainConfig()
    device, dtype = model.embed_tokens.weight.device, autocast_dtype(model, config.autocast)
    training = model.training
    model.eval()
    bits = {}
    for domain in corpus.domains:
        windows = corpus.windows(domain, config.seq_len, config.eval_windows)
        nats = torch.zeros((), dtype=torch.float64)
        for batch in zip(
            windows.ids_BS.to(device).split(config.batch_size),
            windows.targets_BS.to(device).split(config.batch_size),
            strict=True,
        ):
            (ids_BS, targets_BS), mask_BS, share = ranks.share(*batch)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits_BSV = model(ids_BS, mask_BS).logits_BSV
            if share:
                nats += cross_entropy(logits_BSV, targets_BS, reduction="sum").item()
        size = int(corpus.bytes_V[windows.targets_BS].sum())
        total = ranks.total(nats.float().to(device)).item()  # Apple's GPUs have no float64
        bits[domain] = total / (math.log(2) * max(size, 1))
    model.train(training)
    return bits


@contextmanager
def _hold_interrupt() -> Iterator[Callable[[], bool]]:
    """Note a Ctrl-C instead of stopping in the middle of a step; a second one stops at once."""
    pressed = False

    def note(signum: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
