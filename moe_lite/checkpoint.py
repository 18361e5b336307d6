"""Checkpoints that a kill cannot break: torch.distributed.checkpoint's, in safetensors.

A checkpoint is a folder ``step-00000100`` with the parameters and AdamW's moments under the
names that they have here. Of several ranks each writes its slices, and any number of ranks, one
too, can read them. It is not the published layout: a run resumes exactly what it stopped with,
whatever gates were swapped in, and writing a model for others to read (``moe_lite.hf.save``) is
another act.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .checked import conform, read_json, short
from .config import TrainConfig
from .files import check_writable, flush, lock, patiently, remove
from .history import History

Lay = Callable[[str, Tensor], Tensor]
"""Of several ranks: from a name and this rank's tensor to the DTensor of which it is a slice."""

FORMAT = 2  # 1 had model.safetensors and optimizer.safetensors, or named no format
ROWS, STATE = "history.jsonl", "state.json"
KEPT = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
_FREE_TO_CHANGE = ("eval_every", "eval_windows", "checkpoint_every", "keep")


def checkpoints(out: str | Path) -> list[Path]:
    """Return the finished checkpoints of a run, oldest first."""
    found = Path(out).glob("step-*")
    return sorted(path for path in found if path.is_dir() and path.name[5:].isdecimal())


def find_checkpoint(out: str | Path, resume: bool = False) -> Path | None:
    """Return a run's last checkpoint, after making sure that this one can write there.

    Raises: OSError if out cannot be written, or another process writes there; ValueError if it
            holds checkpoints that are not to be resumed. Nothing there is touched before.
    """
    found = checkpoints(out)
    if found and not resume:
        raise ValueError(
            f"{out} already holds a run ({found[-1].name}): resume it, or choose another folder"
        )
    with _lock(check_writable(out)):
        return found[-1] if found else None


@contextmanager
def held(out: str | Path | None, resume: bool = False) -> Iterator[Path | None]:
    """Hold a run's folder while it trains; give its last checkpoint, as :func:`find_checkpoint`.

    The hold ends with the process, however that ends. What an earlier one left half-written is
    swept away. Without a folder there is nothing to hold.
    """
    if out is None:
        yield None
        return
    find_checkpoint(out, resume)
    with _lock(Path(out)):
        for leftover in Path(out).glob(".step-*.unfinished"):
            remove(leftover)
        yield next(reversed(checkpoints(out)), None)


def _lock(out: Path) -> AbstractContextManager[None]:
    if dist.is_initialized() and dist.get_rank():  # of several ranks the first holds it for all
        return nullcontext()
    return lock(
        out / ".lock",
        f"cannot write to {out}: another process trains there; wait for it, or choose another "
        "folder",
    )


def save_checkpoint(
    out: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    text: str,
    history: History,
    lay: Lay | None = None,
) -> Path:
    """Write a checkpoint aside, flush it to the disk, then give it its name; drop old ones.

    A folder called ``step-...`` is therefore always whole: a crash at any moment leaves at
    most a ``.step-....unfinished``, which the next run sweeps away.

    Args:    text: a digest of what is trained on. lay: None in one process; of several ranks
             every one calls this with its own, and the first does what is to be done once.
    Returns: the checkpoint's folder.
    Raises:  OSError if it cannot be written; earlier checkpoints stay as they are.
    """
    step, first = history.rows[-1]["step"], lay is None or dist.get_rank() == 0
    target = Path(out) / f"step-{step:08}"
    part = _aside(target)
    tensors = _weights(model)
    for name, parameter in model.named_parameters():
        tensors |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    if lay is not None:
        tensors = {name: lay(name, tensor) for name, tensor in tensors.items()}
    try:
        if first:
            remove(part)
            part.mkdir()
        if lay is not None:
            dist.barrier()  # the folder is there
        # 1. every rank its tensors
        with _engine(lay) as dcp:
            writer = dcp.HuggingFaceStorageWriter(str(part), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, no_dist=lay is None)
        if not first:
            return target
        # 2. the first: what the run is, and how to tell that a file is what was written
        (part / ROWS).write_text(history.lines(), encoding="utf-8", newline="\n")
        digests = {path.name: _sha256(path) for path in sorted(part.iterdir())}
        state = _identity(model, config, text) | {"format": FORMAT, "step": step, "sha256": digests}
        content = json.dumps(state, indent=1) + "\n"
        (part / STATE).write_text(content, encoding="utf-8", newline="\n")
        # 3. on the disk first, then the name
        for path in (*part.iterdir(), part):
            flush(path)
        patiently(part.rename, target)
        flush(target.parent)
    except OSError as error:
        raise OSError(f"cannot write the checkpoint {target}: {error.strerror or error}") from error
    finally:
        if first:
            remove(part)
    for old in checkpoints(out)[: -config.keep]:
        remove(_aside(old))
        patiently(old.rename, _aside(old))  # a half-deleted folder is never taken for a checkpoint
        remove(_aside(old))
    return target


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    text: str,
    lay: Lay | None = None,
) -> History:
    """Put a checkpoint's weights and moments in place; return its history.

    Nothing is changed unless everything fits.

    Args:   text, lay: as in :func:`save_checkpoint`.
    Raises: ValueError if it is damaged or of another format, or was made with another model,
            text or config.
    """
    path = Path(path)
    history = _read_history(path, _identity(model, config, text))
    weights = _weights(model)
    try:
        with _engine(lay) as dcp:
            reader = dcp.HuggingFaceStorageReader(str(path))
            there = reader.read_metadata().state_dict_metadata
            wanted = weights | _moments(model)  # a parameter that no step has used has no moments
            stored = {name: torch.empty_like(t) for name, t in wanted.items() if name in there}
            into = stored if lay is None else {name: lay(name, t) for name, t in stored.items()}
            for name, tensor in weights.items():
                if name not in there or there[name].size != into[name].shape:
                    shape = tuple(tensor.shape)
                    raise ValueError(f"the checkpoint {path} has no {name} of shape {shape}")
            dcp.load(into, storage_reader=reader, no_dist=lay is None)
    except OSError as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {error}") from error
    for name, tensor in weights.items():
        tensor.copy_(stored[name])
    for name, parameter in model.named_parameters():
        kept = {key: stored[f"{name}.{key}"] for key in KEPT if f"{name}.{key}" in stored}
        optimizer.state[parameter] = kept
    return history


@contextmanager
def hold_interrupt() -> Iterator[Callable[[], bool]]:
    """Note a Ctrl-C, lend a function that says so, and stop at the end; a second stops at once."""
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


@contextmanager
def _engine(lay: Lay | None) -> Iterator[ModuleType]:
    """Lend torch.distributed.checkpoint; what fails on any rank is one OSError on all.

    Imported here because that takes as long as torch itself.
    """
    import torch.distributed.checkpoint as dcp

    try:
        with warnings.catch_warnings():  # it warns that one process is only one
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield dcp
    except dcp.CheckpointException as error:
        (rank, (first, _)), *_ = error.failures.items()
        reason = str(getattr(first, "strerror", None) or first).strip().split("\n")[0]
        raise OSError(reason if lay is None else f"rank {rank}: {reason}") from error


def _read_history(path: Path, here: dict[str, Any]) -> History:
    """Read a checkpoint's words, and make sure that its files are whole and the run the same."""
    with _told_as_damage(path):
        state = read_json(path / STATE)
        kind = conform(state.get("format", 1), int, f"{STATE}: format")
    if kind != FORMAT:
        raise ValueError(
            f"the checkpoint {path} has format {kind}, of another version of moe_lite, and this "
            f"one reads {FORMAT}: finish the run with that version, or start again elsewhere"
        )
    with _told_as_damage(path):
        digests = conform(state.get("sha256"), dict[str, str], f"{STATE}: sha256")
        if digests.keys() != {file.name for file in path.iterdir()} - {STATE}:
            raise ValueError("a file is missing or was added")
        for name, digest in digests.items():
            if _sha256(path / name) != digest:
                raise ValueError(f"{name} is not what was written")
        history = History.load(path / ROWS)
        if state.get("step") != (history.rows or [{}])[-1].get("step"):
            raise ValueError(f"{STATE} and {ROWS} disagree")
        for part in ("model", "training"):
            conform(state.get(part), dict[str, Any], f"{STATE}: {part}")
    _check_same(path, state, here)
    return history


@contextmanager
def _told_as_damage(path: Path) -> Iterator[None]:
    """Turn whatever a broken file leads to into one sentence that says what to do now."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        others = [other.name for other in checkpoints(path.parent) if other.name < path.name]
        then = f"delete it to go on from {others[-1]}" if others else "start again elsewhere"
        raise ValueError(f"the checkpoint {path} is damaged ({error}); {then}") from error


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Name each parameter and buffer once (tied ones too)."""
    return {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def _moments(model: nn.Module) -> dict[str, Tensor]:
    """Name what AdamW keeps of each parameter, in the shapes that it has."""
    return {
        f"{name}.{key}": p.new_zeros((), dtype=torch.float32) if key == "step" else p.detach()
        for name, p in model.named_parameters()
        for key in KEPT
    }


def _identity(model: nn.Module, config: TrainConfig, text: str) -> dict[str, Any]:
    """Return what a run is: two runs with the same identity have the same losses."""
    return {
        "model": asdict(model.config),  # type: ignore[call-overload]
        "training": asdict(config) | {"betas": list(config.betas)},
        "text": text,
    }


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for part in ("model", "training"):
        for name, value in here[part].items():
            stored = there.get(part, {}).get(name)
            if stored != value and name not in _FREE_TO_CHANGE:
                raise ValueError(
                    f"cannot resume from {path}: its {part} has {name} {short(stored)}, "
                    f"not {value!r}"
                )
    if there.get("text") != here["text"]:
        raise ValueError(
            f"cannot resume from {path}: it was trained on other text (other domains, max_bytes, "
            "tokenizer, or another Python's standard library)"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
