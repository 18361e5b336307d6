"""Train: one loop to read, a history that plots itself, checkpoints that survive anything.

All randomness of a step is a function of (seed, step): which windows are drawn
(``corpus.batch``) and what torch draws (the loop seeds it anew each step). So a checkpoint
needs no generator's state, and a run that was cut off and resumed has the same losses, bit for
bit on a CPU with as many threads, as one that was not.

A checkpoint is a folder ``step-00000100`` with the parameters and AdamW's moments under the
names that they have here, in safetensors. It is not the published layout: a run resumes
exactly what it stopped with, whatever gates were swapped in, and writing a model for others
to read (``moe_lite.hf.save``) is another act.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from .contracts import NotFinite, Routing
from .losses import drop_rate, load_balance, max_violation, z_loss
from .model import Mixtral

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .data import Corpus

Autocast = Literal["auto", "on", "off"]
Row = dict[str, Any]
Balance = Callable[[Sequence[Routing]], Tensor]
Probe = Callable[[Sequence[Routing]], dict[str, float]]


@dataclass(frozen=True)
class TrainConfig:
    """Describe a training run.

    Args:
        steps:            optimizer steps.
        batch_size:       windows per step; seq_len: tokens per window.
        lr:               peak learning rate, reached after ``warmup`` steps, from which a cosine
                          falls to ``lr * min_lr_ratio`` at the last step.
        weight_decay:     AdamW's, on matrices only; betas: AdamW's.
        grad_clip:        largest norm of the whole gradient.
        aux_coef, z_coef: weights of the load-balancing loss and of the router z-loss, each a
                          mean over the layers.
        seed:             of the batches and of whatever a router draws.
        autocast:         compute in bfloat16: "auto" where that pays, "on" or "off" anywhere.
        eval_every:       steps between evaluations (0: none), each on ``eval_windows`` windows
                          of every domain.
        checkpoint_every: steps between checkpoints (0: only at the end), of which the last
                          ``keep`` stay.
    Raises:  ValueError naming the field and the value that cannot be.
    """

    steps: int = 300
    batch_size: int = 16
    seq_len: int = 128
    lr: float = 3e-3
    warmup: int = 20
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    aux_coef: float = 0.01
    z_coef: float = 0.001
    seed: int = 0
    autocast: Autocast = "auto"
    eval_every: int = 0
    eval_windows: int = 8
    checkpoint_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        whole = {"steps": 1, "batch_size": 1, "seq_len": 1, "eval_windows": 1, "keep": 1}
        whole |= {"warmup": 0, "seed": 0, "eval_every": 0, "checkpoint_every": 0}
        for name, low in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
        for name in ("lr", "min_lr_ratio", "weight_decay", "grad_clip", "aux_coef", "z_coef"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, not {self.betas}")
        if self.autocast not in get_args(Autocast):
            raise ValueError(f"autocast must be one of {get_args(Autocast)}, not {self.autocast!r}")

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0.

        >>> config = TrainConfig(steps=101, lr=1.0, warmup=1, min_lr_ratio=0.1)
        >>> [round(config.lr_at(step), 3) for step in (0, 50, 100)]
        [1.0, 0.55, 0.1]

        Source: Loshchilov, Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        begin = max(self.warmup - 1, 0)
        done = (step - begin) / max(self.steps - 1 - begin, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1)))
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)


# What a run leaves behind


@dataclass(eq=False)
class History:
    """Keep one row for each step; shown in a notebook, it plots itself.

    A row holds: step (steps done), tokens and seconds (so far, spent on training alone), loss
    (cross entropy, nats per token), balance and z (mean over the layers), load (of the busiest
    expert over the mean, before any pair is dropped) and dropped (share of the pairs), both means
    over the layers, lr, norm (of the gradient, before clipping), and where the model was
    evaluated bits: bits per byte of each domain.
    """

    rows: list[Row] = field(default_factory=list)

    def append(self, row: Row) -> None:
        """Add a step."""
        self.rows.append(row)

    def column(self, name: str) -> list[float]:
        """List one quantity over the steps that have it."""
        return [row[name] for row in self.rows if name in row]

    def save(self, path: str | Path) -> None:
        """Write the rows as JSON lines."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        Path(path).write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what :meth:`save` wrote.

        Raises: OSError if it cannot be read; ValueError if it is not a history.
        """
        try:
            rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
            if not all(isinstance(row, dict) and "step" in row for row in rows):
                raise ValueError("a line is not a step")
        except ValueError as error:
            raise ValueError(f"{path} is not a history: {error}") from error
        return cls(rows)

    def smooth(self, name: str, width: int = 9) -> list[float]:
        """Average one quantity over the steps around each: ``width`` of them, fewer at the ends.

        Centred, because an average over the past alone lags behind a loss that falls.
        """
        values, half = self.column(name), width // 2
        parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
        return [sum(part) / len(part) for part in parts]

    def plot(self, x: str = "step") -> Figure:
        """Draw loss, load and, where evaluated, bits per byte against step, tokens or seconds.

        Raises: ValueError for another x.
        """
        from matplotlib.figure import Figure

        if x not in ("step", "tokens", "seconds"):
            raise ValueError(f"x must be step, tokens or seconds, not {x!r}")
        evaluated = [row for row in self.rows if "bits" in row]
        figure = Figure(figsize=(4.5 * (2 + bool(evaluated)), 3), layout="constrained")
        panels = figure.subplots(1, 2 + bool(evaluated))
        for panel, name in zip(panels, ("loss", "load"), strict=False):
            panel.plot(self.column(x), self.column(name), color="#BBBBBB", lw=0.8)
            panel.plot(self.column(x), self.smooth(name), color="black")
        panels[0].set(xlabel=x, ylabel="training loss, nats per token")
        panels[1].set(xlabel=x, ylabel="busiest expert's load / mean load")
        panels[1].axhline(1, color="black", lw=0.8, ls=":")
        if evaluated:
            xs = [row[x] for row in evaluated]
            styles = zip(OKABE_ITO, "osD^v", strict=True)
            for domain, (colour, mark) in zip(evaluated[-1]["bits"], styles, strict=False):
                ys = [row["bits"][domain] for row in evaluated]
                panels[2].plot(xs, ys, color=colour, marker=mark, ms=4, label=domain)
            panels[2].set(xlabel=x, ylabel="held-out bits per byte")
            panels[2].legend(fontsize="small")
        return figure

    def _repr_png_(self) -> bytes | None:
        if not self.rows:
            return None
        png = io.BytesIO()
        self.plot().savefig(png, format="png", dpi=110)
        return png.getvalue()

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no steps)"
        last = self.rows[-1]
        return f"History(step {last['step']}, loss {last['loss']:.3f}, load {last['load']:.2f})"

    def __len__(self) -> int:
        return len(self.rows)


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


# The loop


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


class Alone:
    """Answer for one process what the loop asks of all that take part in a run.

    Here the answers are short: every token is here, and so is every weight.
    :class:`moe_lite.parallel.Ranks` gives those of many processes, by the same names.
    """

    rank = 0  # the one that shows the bar and writes

    def wrap(self, objective: Objective) -> nn.Module:
        """Make the parts of the model that every rank has stay equal."""
        return objective

    def share(self, *rows_BS: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None, float]:
        """Take this rank's rows, the mask they need, and which share of all they are."""
        return rows_BS, None, 1.0

    def pool(self, routings: tuple[Routing, ...]) -> tuple[Routing, ...]:
        """Let losses and measures be the whole batch's, if that is wanted."""
        return routings

    def backward(self, model: nn.Module, loss: Tensor, share: float) -> None:
        """Find the gradient of the ranks' mean loss, weighted by their shares."""
        loss.backward()

    def clip(self, model: nn.Module, largest: float) -> Tensor:
        """Shorten the whole gradient to a largest norm; give the norm it had."""
        return nn.utils.clip_grad_norm_(model.parameters(), largest)

    def update(self, gate: nn.Module, routing: Routing, share: float) -> None:
        """Tell a gate how it has routed."""
        gate.update(routing)  # type: ignore[operator]

    def total(self, amounts: Tensor) -> Tensor:
        """Sum over the ranks."""
        return amounts

    def write(self, folder: Path, model: nn.Module, files: dict[str, dict[str, Tensor]]) -> None:
        """Write named tensors into a folder, in these files."""
        for name, tensors in files.items():
            save_file(tensors, folder / name)

    def read(self, folder: Path, model: nn.Module, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Read this rank's part of the tensors in a folder, as many of these as are there."""
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"the checkpoint {folder} is sharded: resume it under torchrun, with "
                "--expert-parallel 1 if it is to be one process"
            )
        return {k: v for name in (WEIGHTS, MOMENTS) for k, v in load_file(folder / name).items()}


ALONE = Alone()


def train(
    model: Mixtral,
    corpus: Corpus,
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    balance: Balance = load_balance,
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
    if out is not None:
        last = find_checkpoint(out, resume)
        if last is not None:
            history = load_checkpoint(last, model, optimizer, corpus, config, ranks)
    objective = ranks.wrap(Objective(model))
    first = history.rows[-1]["step"] if history.rows else 0
    seconds = history.rows[-1]["seconds"] if history.rows else 0.0
    model.train()
    where = f"{device.type}, {str(dtype or torch.float32).removeprefix('torch.')}"
    bar = tqdm(total=config.steps, initial=first, desc=where, unit="step",
               disable=not progress or ranks.rank > 0)  # fmt: skip
    with bar, _own_randomness(device), _hold_interrupt() as interrupted:
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
        "z": z_loss(routed),
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
    AVX512-BF16), there from a width of 256 on. Measured with AVX512-BF16 on two cores, three
    layers of 8 experts, F = 1.75 D, a step in bfloat16 took 0.94 of float32's time at
    width 128, 0.67 at 256 and 0.50 at 512. "on" forces it.
    """
    weight = next(model.parameters())
    if autocast == "off" or weight.dtype != torch.float32:
        return None
    if weight.is_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        asks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        wide = weight.device.type == "cpu" and weight.shape[-1] >= 256
        fast = wide and any(getattr(torch.cpu, ask, lambda: False)() for ask in asks)
    return torch.bfloat16 if fast or autocast == "on" else None


@torch.no_grad()
def evaluate(
    model: Mixtral,
    corpus: Corpus,
    *,
    config: TrainConfig | None = None,
    split: str = "validation",
    ranks: Alone = ALONE,
) -> dict[str, float]:
    """Measure bits per byte on each domain: always on the same, evenly spaced windows.

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
        windows = corpus.windows(domain, config.seq_len, config.eval_windows, split=split)
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
        bits[domain] = ranks.total(nats.to(device)).item() / (math.log(2) * max(size, 1))
    model.train(training)
    return bits


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Give torch's generators back as they were: the loop seeds them each step."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


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


# Checkpoints

WEIGHTS, MOMENTS, ROWS, STATE = (
    "model.safetensors",
    "optimizer.safetensors",
    "history.jsonl",
    "state.json",
)
_FREE_TO_CHANGE = ("eval_every", "eval_windows", "checkpoint_every", "keep")


def checkpoints(out: str | Path) -> list[Path]:
    """List the finished checkpoints of a run, oldest first."""
    found = Path(out).glob("step-*")
    return sorted(path for path in found if path.is_dir() and path.name[5:].isdecimal())


def save_checkpoint(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    config: TrainConfig,
    history: History,
    ranks: Alone = ALONE,
) -> Path:
    """Write a checkpoint aside, flush it to the disk, then give it its name; drop old ones.

    A folder called ``step-...`` is therefore always whole: a crash at any moment leaves at
    most a ``.step-....unfinished``, which the next run sweeps away.

    Of several ranks each writes its tensors, and the first does all else.

    Raises: OSError if it cannot be written; earlier checkpoints stay as they are.
    """
    target = out / f"step-{history.rows[-1]['step']:08}"
    part = _aside(target)
    try:
        if not ranks.rank:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        moments = {
            f"{name}.{key}": value
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }
        ranks.write(part, model, {WEIGHTS: _tensors(model), MOMENTS: moments})
        if ranks.rank:
            return target
        history.save(part / ROWS)
        state = _identity(model, corpus, config) | {
            "step": history.rows[-1]["step"],
            "sha256": {path.name: _sha256(path) for path in sorted(part.iterdir())},
        }
        text = json.dumps(state, indent=1) + "\n"
        (part / STATE).write_text(text, encoding="utf-8", newline="\n")
        for path in (*part.iterdir(), part):
            _flush(path)
        part.rename(target)
        _flush(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write the checkpoint {target}: {reason}") from error
    finally:
        if not ranks.rank:
            shutil.rmtree(part, ignore_errors=True)
    for old in checkpoints(out)[: -config.keep]:
        old.rename(_aside(old))  # so that a half-deleted folder is never taken for a checkpoint
        shutil.rmtree(_aside(old), ignore_errors=True)
    return target


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    config: TrainConfig,
    ranks: Alone = ALONE,
) -> History:
    """Put a checkpoint's weights and moments in place; give its history.

    Nothing is changed unless everything fits.

    Raises: ValueError if it is damaged, or was made with another model, text or config.
    """
    path = Path(path)
    try:
        state = json.loads((path / STATE).read_text("utf-8"))
        for name, digest in state["sha256"].items():
            if _sha256(path / name) != digest:
                raise ValueError(f"{name} is not what was written")
        history = History.load(path / ROWS)
        if state["step"] != history.rows[-1]["step"]:
            raise ValueError(f"{STATE} and {ROWS} disagree")
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        others = [other.name for other in checkpoints(path.parent) if other.name < path.name]
        then = f"delete it to go on from {others[-1]}" if others else "start again elsewhere"
        raise ValueError(f"the checkpoint {path} is damaged ({error}); {then}") from error
    _check_same(path, state, _identity(model, corpus, config))
    stored = ranks.read(path, model, _tensors(model) | _moments(model))
    for name, tensor in _tensors(model).items():
        if name not in stored or stored[name].shape != tensor.shape:
            raise ValueError(f"the checkpoint {path} has no {name} of shape {tuple(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(stored[name])
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: stored[f"{name}.{key}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{name}.{key}" in stored  # a parameter that no step has used has none
        }
    return history


def find_checkpoint(out: str | Path, resume: bool = False) -> Path | None:
    """Make sure that a run can write to out, sweep leftovers, and give its last checkpoint.

    Raises: OSError if out cannot be written; ValueError if it holds checkpoints that are not to
            be resumed.
    """
    out = check_writable(out)
    for leftover in out.glob(".step-*.unfinished"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = checkpoints(out)
    if found and not resume:
        raise ValueError(
            f"{out} already holds a run ({found[-1].name}): resume it, or choose another folder"
        )
    return found[-1] if found else None


def check_writable(folder: str | Path) -> Path:
    """Make a folder if need be, and make sure that files can be written there.

    Raises: OSError if not.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror or error}") from error
    return folder


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name each parameter and buffer once (tied ones too)."""
    return {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def _moments(model: nn.Module) -> dict[str, Tensor]:
    """Name what AdamW keeps of each parameter, in the shapes that it has."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in (
            ("step", torch.zeros(())), ("exp_avg", parameter), ("exp_avg_sq", parameter)
        )
    }  # fmt: skip


def _identity(model: nn.Module, corpus: Corpus, config: TrainConfig) -> dict[str, Any]:
    """Say what a run is: two runs with the same identity have the same losses."""
    return {
        "model": asdict(model.config),  # type: ignore[call-overload]
        "training": asdict(config) | {"betas": list(config.betas)},
        "text": corpus.digest,
    }


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for part in ("model", "training"):
        for name, value in here[part].items():
            stored = there.get(part, {}).get(name)
            if stored != value and name not in _FREE_TO_CHANGE:
                raise ValueError(
                    f"cannot resume from {path}: its {part} has {name} {stored!r}, not {value!r}"
                )
    if there.get("text") != here["text"]:
        raise ValueError(
            f"cannot resume from {path}: it was trained on other text (other domains, max_bytes, "
            "shares or tokenizer, or another Python's standard library)"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or on POSIX a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
