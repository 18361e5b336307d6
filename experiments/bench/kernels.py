"""Time each fused kernel on its own, with its tiles: ``python -m experiments.bench.kernels``.

The layer's benchmark says how long a step takes; this says where, and what a kernel reaches of the
matrix product rate. A row for each shape and kernel; one JSON where asked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from moe_lite import files
from moe_lite.fast import triton as fused

from . import measure
from .paths import CONTENDERS, Case
from .shapes import GPU_SHAPES

PRODUCTS = {"_up": 2, "down": 1, "_down_back": 1, "up_back": 2, "_weights": 3}  # of T K D F each


def profiled(work: Any, times: int = 5) -> dict[str, float]:
    """Return each kernel's milliseconds in one call, by name."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        work()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(times):
            work()
        torch.cuda.synchronize()
    return {e.key: e.self_device_time_total / times / 1e3 for e in profiler.key_averages()}


def kernels(name: str) -> dict[str, Any]:
    """Measure a shape's kernels, forward and backward, in bfloat16 with random routing."""
    shape = GPU_SHAPES[name]
    case = Case(shape, "bfloat16", "random", "cuda")
    ours = next(c for c in CONTENDERS if c.name == "moe_lite triton")
    run = ours.build(case)
    both = profiled(measure.job(ours, run, case, "forward+backward"))
    forward = profiled(measure.job(ours, run, case, "forward"))
    # One kernel serves twice: what it takes in the forward pass alone is the down projection.
    down = forward.pop("_product")
    parts = {"_up": both["_up"], "down": down, "_down_back": both["_down_back"],
             "up_back": both["_product"] - down, "_weights": both["_weights"]}  # fmt: skip
    flop = 2 * shape.rows * shape.D * shape.F
    rates = {k: round(PRODUCTS[k] * flop / ms / 1e9, 1) for k, ms in parts.items()}
    parts |= {"_combine": both["_combine"], "all": sum(both.values())}
    parts |= {"all forward": down + sum(forward.values())}
    rates["all"] = round(9 * flop / parts["all"] / 1e9, 1)
    rates["all forward"] = round(3 * flop / parts["all forward"] / 1e9, 1)
    return {"shape": name, "ms": {k: round(ms, 3) for k, ms in parts.items()}, "tflops": rates}


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["mixtral", "olmoe"], choices=GPU_SHAPES)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here that torch can use")
    tiles = {k: list(v) for k, v in fused.SM_90.items()}
    found: dict[str, Any] = {
        "machine": measure.machine("cuda") | measure.ceilings("cuda"),
        "tiles": tiles,
    }
    found["kernels"] = [kernels(name) for name in args.shapes]
    print(json.dumps(found, indent=1))
    if args.out is not None:
        files.write(args.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
