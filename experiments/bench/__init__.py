"""Time the layer beside its peers and the model beside transformers': ``python -m moe_lite bench``.

:mod:`.shapes` says what is measured, :mod:`.paths` who, :mod:`.measure` and :mod:`.models` how,
and :mod:`.report` reads the results. A peer is an optional install; one that is not here, cannot
run here or gives a wrong result is a row that says so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_lite import files

from . import gpu, measure, report
from .paths import CONTENDERS, Contender, NotHere
from .shapes import ALL, CPU_SHAPES, DTYPES, GPU_SHAPES, SHAPES, SMALL

__all__ = ["main", "run"]


def _say(text: str) -> None:
    print(text, flush=True)


def chosen(routing: str, paths: Sequence[str] = ()) -> list[Contender]:
    """Choose the contenders of these names (none: all); those without a routing only once."""
    fits = (c for c in CONTENDERS if c.scope == "experts" or routing == "random")
    return [c for c in fits if not paths or c.name in paths]


def run(
    device: str, shapes: Sequence[str], *, dtypes: Sequence[str] = (), routings: Sequence[str] = (),
    paths: Sequence[str] = (), rounds: int = 5, config: str | None = None, steps: int = 1,
    new_tokens: int = 64, autocast: str = "auto", say: Callable[[str], None] = _say,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure and give the result, as it is written: machine, layers, models.

    Args: shapes: names in SHAPES. dtypes, routings, paths: only these; none: those of each shape
          (without bfloat16 where that is slow), and all paths. config: a recipe whose
          model is measured whole; None: none is. keep: called with the result as far as it is,
          whenever there is more.
    """
    about = measure.machine(device) | measure.ceilings(device)
    result: dict[str, Any] = {"format": report.FORMAT, "machine": about, "models": [], "layers": []}
    say(report.about(result))
    if config is not None:
        from .models import training_and_generation

        try:
            result["models"] = training_and_generation(
                config, autocast=autocast, rounds=rounds, steps=steps, new_tokens=new_tokens,
                device=device,
            )  # fmt: skip
        except NotHere as why:
            row = dict(zip(("config", "status", "note"), (config, *why.args), strict=True))
            result["models"] = [row | {"what": what} for what in ("training", "generation")]
        say("\n" + report.models(result["models"]))
    for name in shapes:
        for dtype in dtypes or SHAPES[name].dtypes:
            if not dtypes and measure.is_slow(device, dtype):
                say(f"{name}, {dtype}: not measured: PyTorch has no library for it on this CPU and "
                    f"takes 4 to 100 times as long; --dtype {dtype} does it")  # fmt: skip
                continue
            for routing in routings or SHAPES[name].routings:
                those = chosen(routing, paths)
                rows = measure.layer(name, dtype, routing, device, those, rounds)
                result["layers"] += rows
                if keep is not None:
                    keep(result)
                say(report.table(result | {"layers": rows}))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and, where asked, write the result as JSON; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m moe_lite bench",
        description="Time the layer beside its peers, and the model beside transformers' Mixtral "
        "of the same config.",
    )
    parser.add_argument("--shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--routing", nargs="+", default=[], choices=ALL)
    parser.add_argument("--dtype", nargs="+", default=[], choices=list(DTYPES))
    parser.add_argument("--paths", nargs="+", default=[], metavar="PATH",
                        help=f"of {', '.join(repr(c.name) for c in CONTENDERS)}")  # fmt: skip
    parser.add_argument("--config", default=SMALL,
                        help="small, or a recipe's name or file; none: no whole model")  # fmt: skip
    parser.add_argument("--autocast", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--rounds", type=int, default=5, help="turns of a path; the median counts")
    parser.add_argument("--steps", type=int, default=1, help="training steps in a turn")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        default="cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1,
                        help="on a CPU; with one the clock is CPU time")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write this, as JSON")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--report", action="store_true", help="only write what the results "
                      "in experiments/results/bench say")  # fmt: skip
    what.add_argument("--gpu-checks", action="store_true", help="first run tests/gpu, and the "
                      "compute-sanitizer if it is here")  # fmt: skip
    args = parser.parse_args(argv)
    for name in ("rounds", "steps", "new_tokens", "threads"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(args, name)}")
    shapes = args.shapes
    if shapes is None:
        shapes = list(GPU_SHAPES if args.device == "cuda" else CPU_SHAPES)
    for given, known in ((shapes, list(SHAPES)), (args.paths, [c.name for c in CONTENDERS])):
        for name in given:
            if name not in known:
                raise ValueError(f"there is no {name!r}: name one of {', '.join(known)}")
    on_gpu = args.gpu_checks or args.device == "cuda"
    if on_gpu and not (args.device == "cuda" and torch.cuda.is_available()):
        raise ValueError("there is no GPU here that torch can use")
    if args.report:
        text = report.report()
        if args.out is None:
            print(text, end="")
        else:
            files.write(args.out, text)
        return 0
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        files.target(args.out)  # told before the minutes of measuring, not after
    checked: dict[str, Any] = {}
    if args.gpu_checks:
        with tempfile.TemporaryDirectory() as folder:
            checked["checks"] = gpu.checks(Path(folder))
        _say(report.checks(checked["checks"]))

    def keep(result: dict[str, Any]) -> None:
        if args.out is not None:
            report.write(result | checked, args.out)

    threads = torch.get_num_threads()
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    try:
        result = run(
            args.device, shapes, dtypes=args.dtype, routings=args.routing, paths=args.paths,
            rounds=args.rounds, config=None if args.config == "none" else args.config,
            steps=args.steps, new_tokens=args.new_tokens, autocast=args.autocast, keep=keep,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    keep(result)
    return int(any(row["status"] == "failed" for row in checked.get("checks", ())))
