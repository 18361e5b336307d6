"""How it is measured: first right, then fast, and the machine's own ceilings beside it."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks

from moe_lite.course.rounded import multiplies_slowly
from moe_lite.fast import linear

from .paths import Case, Contender, Inputs, NotHere, Run, our, our_layer
from .shapes import DTYPES, SHAPES, Shape

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
Row = dict[str, Any]
Job = Callable[[], object]


# --- the machine ---------------------------------------------------------------------------------


def memory(device: str) -> int | None:
    """Give the machine's memory in bytes, a GPU's own; None where it does not say."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def clock() -> tuple[Callable[[], float], str]:
    """Choose the clock: with one thread the process's CPU time, which no other program adds to."""
    if torch.get_num_threads() == 1:
        return time.process_time, "process CPU time, one thread"
    return time.perf_counter, f"wall clock, {torch.get_num_threads()} threads"


def machine(device: str) -> Row:
    """Describe what the figures are measured on."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    chip, have = platform.processor(), memory(device)
    if device == "cuda":
        chip = torch.cuda.get_device_name()
    elif hasattr(torch.cpu, "get_capabilities"):
        chip = torch.cpu.get_capabilities().get("cpu_name", chip)
    return {
        "device": device, "chip": chip, "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": None if have is None else round(have / 1e9, 1),
        "clock": "do_bench, quantiles .5 .2 .8" if device == "cuda" else clock()[1],
        "system": platform.system(), "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "transformers", "liger-kernel")},
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def is_slow(device: str, dtype: str) -> bool:
    """Say whether PyTorch has no library for products of that type; loops take 4 to 100 times."""
    return dtype == "bfloat16" and multiplies_slowly(device)


def ceilings(device: str, size: int | None = None) -> Row:
    """Measure what the machine can do: a square product in each type, and a copy.

    Returns: matmul_tflops by type (the better of torch's product and ours, where they differ),
             copy_gbps (bytes read and written), and the sizes used; bfloat16's is a quarter of
             matmul_size on a CPU that multiplies it slowly.
    """
    size = size or (8192 if device == "cuda" else 1536)
    copied = min(2**30 if device == "cuda" else 2**28, size**2 * 64)
    jobs: dict[str, Job] = {}
    sizes = {name: size // 4 if is_slow(device, name) else size for name in DTYPES}
    for name, dtype in DTYPES.items():
        a, b = torch.randn(2, sizes[name], sizes[name], device=device).to(dtype)
        jobs[name] = partial(torch.mm, a, b)
        if device == "cpu":
            jobs[f"{name}, ours"] = partial(linear, a, b)
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    jobs["copy"] = partial(torch.empty_like(source).copy_, source)
    if device == "cuda":
        best = {name: gpu_seconds(work)["median"] for name, work in jobs.items()}
    else:
        best = {name: row["low"] for name, row in cpu_seconds(jobs, 5).items()}
    seconds = {name: min(best[name], best.get(f"{name}, ours", best[name])) for name in DTYPES}
    return {
        "matmul_tflops": {name: 2 * sizes[name] ** 3 / seconds[name] / 1e12 for name in DTYPES},
        "matmul_size": size, "copy_gbps": 2 * copied / best["copy"] / 1e9, "copy_bytes": copied,
    }  # fmt: skip


# --- right ---------------------------------------------------------------------------------------


def wanted(contender: Contender, case: Case, inputs: Inputs) -> dict[str, Tensor]:
    """Name every tensor whose gradient must be computed, the packed weights last."""
    leaves = {"x": inputs.x_TD}
    if contender.scope == "experts":
        leaves["gate"] = inputs.gate_TK
    elif contender.scope == "layer":
        leaves["router"] = case.router_ED
    packed = case.packed(contender.layout)
    return leaves | {f"weight {i}": weight for i, weight in enumerate(packed)}


def results(contender: Contender, run: Run, case: Case) -> dict[str, Tensor]:
    """Run the first set: the output and, unless decoding, every gradient by its published name."""
    inputs = case.sets[0]
    with torch.set_grad_enabled(not case.shape.decode):
        out_TD = run(inputs.x_TD, inputs.expert_TK, inputs.gate_TK)
    if case.shape.decode:
        return {"out": out_TD}
    leaves = wanted(contender, case, inputs)
    grads = torch.autograd.grad(out_TD, list(leaves.values()), inputs.grad_TD)
    found = dict(zip(leaves, grads, strict=True))
    packed = [found.pop(name) for name in leaves if name.startswith("weight ")]
    w1, w3, w2 = case.unpacked(contender.layout, packed)
    return {"out": out_TD.detach(), **found, "w1": w1, "w3": w3, "w2": w2}


def reference(case: Case, scope: str) -> dict[str, Tensor]:
    """Give what is right: our loop in float64."""
    layer = scope == "layer"
    make = our_layer("loop") if layer else our("loop")
    loop, exact = (
        Contender("loop", "ours", make, scope="layer" if layer else "experts"),
        case.double(),
    )
    return {name: t.float() for name, t in results(loop, loop.build(exact), exact).items()}


def relative_error(found: dict[str, Tensor], right: dict[str, Tensor]) -> tuple[float, str]:
    """Give the largest ||a - b|| / ||b|| and whose it is; what is not finite counts as infinite."""
    worst = (0.0, "out")
    for name, a in found.items():
        b = right[name]
        error = float((a.detach().float() - b).norm() / b.norm().clamp_min(1e-30))
        worst = max(worst, (error if math.isfinite(error) else math.inf, name))
    return worst


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill whatever is allocated empty with NaN, so that what is never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield  # torch.utils.deterministic.fill_uninitialized_memory is on by default
    finally:
        torch.use_deterministic_algorithms(before)


def check(contender: Contender, run: Run, case: Case, right: dict[str, Tensor]) -> Row:
    """Tell whether a path is right, gives the same bits twice, and writes all of its output.

    A path of ours that promises the same bits must keep that to be timed; of a peer it is noted.

    Returns: status and note, error (None: not finite), same_bits, and on a GPU waits_for_device.
    """
    first, again = results(contender, run, case), results(contender, run, case)
    error, whose = relative_error(first, right)
    row: Row = {
        "status": "timed", "note": "", "error": error if math.isfinite(error) else None,
        "same_bits": all(torch.equal(a, again[name]) for name, a in first.items()),
    }  # fmt: skip
    del first, again
    if error > TOLERANCE[case.dtype]:
        row |= {"status": "wrong", "note": f"{whose} is off by {error:.1e}"}
    elif contender.exact and not row["same_bits"]:
        row |= {"status": "wrong", "note": "two runs differ"}
    elif contender.exact:
        with poisoned():
            full = results(contender, run, case)
        if not all(bool(t.isfinite().all()) for t in full.values()):
            row |= {"status": "wrong", "note": "not every element is written"}
    if case.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(contender, run, case)
            row["waits_for_device"] = False
        except RuntimeError:
            row["waits_for_device"] = True
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return row


def activations(contender: Contender, run: Run, case: Case) -> Row:
    """Measure the bytes kept between forward and backward pass; on a GPU also the peaks.

    On a CPU they are the storages of all tensors saved for the backward pass, each counted once,
    without the weights (what a Function keeps in other ways is not seen). On a GPU they are what
    stays allocated after the forward pass, less its output, and x, which was there before; the
    peaks are over what was there before, the second less the gradients of the weights.
    """
    inputs, weights = case.sets[0], case.packed(contender.layout)
    arguments = (inputs.x_TD, inputs.expert_TK, inputs.gate_TK)
    if case.device != "cuda":
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            run(*arguments)
        for weight in weights:
            storages.pop(weight.untyped_storage().data_ptr(), None)
        return {"kept": sum(storages.values())}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out_TD = run(*arguments)
    kept = torch.cuda.memory_allocated() - before - out_TD.nbytes + inputs.x_TD.nbytes
    forward = torch.cuda.max_memory_allocated() - before
    leaves = list(wanted(contender, case, inputs).values())
    grads = torch.autograd.grad(out_TD, leaves, inputs.grad_TD)
    mine = sum(grad.nbytes for grad in grads[-len(weights) :])
    both = torch.cuda.max_memory_allocated() - before - mine
    return {"kept": kept, "peak_forward": forward, "peak": both}


# --- fast ----------------------------------------------------------------------------------------


def job(contender: Contender, run: Run, case: Case, what: str) -> Job:
    """Give the work to time; each call takes the next of the three sets."""
    turns = itertools.cycle([(s, [*wanted(contender, case, s).values()]) for s in case.sets])

    def work() -> object:
        inputs, leaves = next(turns)
        with torch.set_grad_enabled(what != "forward"):
            out_TD = run(inputs.x_TD, inputs.expert_TK, inputs.gate_TK)
        return out_TD if what == "forward" else torch.autograd.grad(out_TD, leaves, inputs.grad_TD)

    return work


def summary(values: list[float]) -> Row:
    """Give the median, the least and the most, and all of them in the order of the rounds."""
    low, high = min(values), max(values)
    return {"median": statistics.median(values), "low": low, "high": high, "rounds": values}


def cpu_seconds(
    jobs: dict[Any, Job], rounds: int, least: float = 0.02, most: float = 15.0
) -> dict[Any, Row]:
    """Time all in turn, round after round, so that what drifts drifts for all.

    A short one is repeated within a round, to ``least`` seconds. One round goes first, uncounted;
    when ``most`` seconds are over, three rounds are enough.
    """
    now = clock()[0]
    repeats: dict[Any, int] = {}
    taken: dict[Any, list[float]] = {key: [] for key in jobs}
    start = now()
    for round_ in range(rounds + 1):
        if round_ > 3 and now() - start > most:
            break
        for key, work in jobs.items():
            count = repeats.get(key, 1)
            begin = now()
            for _ in range(count):
                work()
            seconds = (now() - begin) / count
            if round_:
                taken[key].append(seconds)
            else:
                repeats[key] = max(1, int(least / max(seconds, 1e-6)))
    return {key: summary(values) for key, values in taken.items()}


def gpu_seconds(work: Job) -> Row:
    """Time work on the GPU twice with Triton's do_bench: the median, .2 and .8 quantiles."""
    from triton.testing import do_bench

    runs = [do_bench(work, quantiles=[0.5, 0.2, 0.8]) for _ in range(2)]
    middle, low, high = ([ms / 1e3 for ms in column] for column in zip(*runs, strict=True))
    return summary(middle) | {"low": min(low), "high": max(high)}


def on_gpu(work: Job, decode: bool) -> Row:
    """Time one path on the GPU, decoding in a CUDA graph where it can be captured."""
    found: Row = {}
    try:
        if decode:
            try:
                work = captured(work)
            except RuntimeError as error:
                found["note"] = f"not in a CUDA graph: {one_line(error)}"
        return found | {"seconds": gpu_seconds(work)}
    except RuntimeError as error:
        return {"status": "error", "note": one_line(error)}


def captured(work: Job) -> Job:
    """Record the work in a CUDA graph, and replay that."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


# --- one layer -----------------------------------------------------------------------------------


def blank(name: str, shape: Shape, dtype: str, routing: str, contender: Contender) -> list[Row]:
    """Give a contender's rows before anything is measured: one for each of forward, both."""
    whats = ("forward",) if shape.decode else ("forward", "forward+backward")
    sizes = {letter: getattr(shape, letter) for letter in "TDFEK"}
    row = {"shape": name, **sizes, "dtype": dtype, "routing": routing, "path": contender.name,
           "scope": contender.scope, "status": "not measured", "note": ""}  # fmt: skip
    return [row | {"what": what} for what in whats]


def layer(
    name: str, dtype: str, routing: str, device: str, contenders: Iterable[Contender], rounds: int,
    shape: Shape | None = None,
) -> list[Row]:  # fmt: skip
    """Check and time one layer on every path: a row for each path and each of forward, both.

    Args: shape: the sizes; None: those of the name in SHAPES.
    """
    shape = shape or SHAPES[name]
    both = {c: blank(name, shape, dtype, routing, c) for c in contenders}
    rows = [row for pair in both.values() for row in pair]
    have, needs = memory(device), _needs(shape, DTYPES[dtype].itemsize)
    if have is not None and needs > 0.9 * have:
        why = f"needs about {needs / 1e9:.0f} GB, and there are {have / 1e9:.0f}"
        return [row | {"status": "skipped", "note": why} for row in rows]
    case = Case(shape, dtype, routing, device)
    load_E = case.load().float()
    rights: dict[str, dict[str, Tensor]] = {}
    jobs: dict[int, Job] = {}
    for contender, pair in both.items():
        found: Row = {"load": round(float(load_E.max() / load_E.mean()), 3)}
        its, used = case, int((load_E > 0).sum())
        try:
            taken = contender.memory(case) if contender.memory else 0
            if have is not None and taken > have / (2 if device == "cuda" else 12):
                raise NotHere("skipped", f"takes {taken / 1e9:.0f} GB more than the others")
            if contender.scope == "dense":
                its, used = case.dense(), 1
            run = contender.build(its)
            if contender.scope not in rights:
                rights[contender.scope] = reference(its, contender.scope)
            counters.clear()
            found |= check(contender, run, its, rights[contender.scope])
            if contender.compiled:
                found["graph_breaks"] = sum(counters["graph_break"].values())
            if not shape.decode:
                found["memory"] = activations(contender, run, its)
                found["memory"]["least"] = its.shape.smallest_activations(case.dtype.itemsize)
            if found["status"] == "timed":
                jobs |= {id(row): job(contender, run, its, row["what"]) for row in pair}
        except NotHere as why:
            found |= dict(zip(("status", "note"), why.args, strict=True))
        except Exception as error:  # a peer may fail in its own way, and the others go on
            found |= {"status": "error", "note": one_line(error)}
        for row in pair:
            row |= found
            row["flop"] = its.shape.flop(row["what"])
            row["bytes"] = its.shape.least_bytes(row["what"], case.dtype.itemsize, used)
    rights.clear()
    timed = {id(row): row for row in rows if id(row) in jobs}
    if device == "cuda":
        for key, row in timed.items():
            row |= on_gpu(jobs[key], shape.decode)
    else:
        for key, seconds in cpu_seconds(jobs, rounds).items():
            timed[key]["seconds"] = seconds
    return rows


def _needs(shape: Shape, size: int) -> int:
    """Estimate the bytes for weights, reference (float64) and activations of the largest path."""
    weights = 3 * shape.E * shape.D * shape.F
    if shape.decode:
        return weights * (3 * size + 8)
    return weights * (4 * size + 20) + shape.rows * (2 * shape.D + 4 * shape.F) * 8


def one_line(error: BaseException) -> str:
    """Give an error's kind and the first line of what it says, without folders."""
    said = re.sub(r"([\w.-]*[/\\])+", "", (str(error).strip().splitlines() or [""])[0])
    return f"{type(error).__name__}: {said}"[:200]
