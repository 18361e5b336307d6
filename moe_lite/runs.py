"""A run as it is kept: a history that plots itself, checkpoints that survive anything.

A checkpoint is a folder ``step-00000100`` with the parameters and AdamW's moments under the
names that they have here, in safetensors. It is not the published layout: a run resumes
exactly what it stopped with, whatever gates were swapped in, and writing a model for others
to read (``moe_lite.hf.save``) is another act.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import check_writable, flush
from .routing import Routing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .config import TrainConfig
    from .course.data import Corpus

Row = dict[str, Any]
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


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
        count = 3 if evaluated else 2
        figure = Figure(figsize=(4.5 * count, 3), layout="constrained")
        panels = figure.subplots(1, count)
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


# Who takes part


class Alone:
    """Answer for one process what the loop asks of all that take part in a run.

    Here the answers are short: every token is here, and so is every weight.
    :class:`moe_lite.parallel.Ranks` gives those of many processes, by the same names.
    """

    rank = 0  # the one that shows the bar and writes

    def wrap(self, objective: nn.Module) -> nn.Module:
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


# Checkpoints


WEIGHTS, MOMENTS = "model.safetensors", "optimizer.safetensors"
ROWS, STATE = "history.jsonl", "state.json"
KEPT = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
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
    step = history.rows[-1]["step"]
    target = out / f"step-{step:08}"
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
            "step": step,
            "sha256": {path.name: _sha256(path) for path in sorted(part.iterdir())},
        }
        text = json.dumps(state, indent=1) + "\n"
        (part / STATE).write_text(text, encoding="utf-8", newline="\n")
        for path in (*part.iterdir(), part):
            flush(path)
        part.rename(target)
        flush(out)
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
    except (OSError, ValueError, LookupError, TypeError) as error:
        others = [other.name for other in checkpoints(path.parent) if other.name < path.name]
        then = f"delete it to go on from {others[-1]}" if others else "start again elsewhere"
        raise ValueError(f"the checkpoint {path} is damaged ({error}); {then}") from error
    _check_same(path, state, _identity(model, corpus, config))
    stored = ranks.read(path, model, _tensors(model) | _moments(model))
    for name, tensor in _tensors(model).items():
        if name not in stored or stored[name].shape != tensor.shape:
            raise ValueError(f"the checkpoint {path} has no {name} of shape {tuple(tensor.shape)}")
    for name, tensor in _tensors(model).items():
        tensor.copy_(stored[name])
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: stored[f"{name}.{key}"].to(parameter.device)
            for key in KEPT
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
        f"{name}.{key}": torch.zeros(()) if key == "step" else parameter
        for name, parameter in model.named_parameters()
        for key in KEPT
    }


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
            "tokenizer, or another Python's standard library)"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
