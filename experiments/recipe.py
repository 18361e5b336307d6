"""Look for the recipe of the Mixtral in the box: each axis one command, sparse against dense twin.

    python -m experiments.recipe "gate scale"   # trains it: minutes on a GPU, a night on a laptop
    python -m experiments.recipe                   # prints what the stored ones say

Every axis is one stack of runs (:mod:`.stacked`), so the same seed has the same first weights
and batches in all of them, and leads are paired by seed. What was stopped before its last step
says so: its rate had not come down yet, and it is compared with others at equal steps alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from moe_lite import files
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course.data import BOOK, DOMAINS, load_corpus
from moe_lite.course.leads import RESULTS, leads, stored
from moe_lite.course.recipes import LONG, MINI

from .stacked import Run, Stack

SHORT = replace(LONG, steps=1000)
FINE = replace(MINI, num_local_experts=16, num_experts_per_tok=4, intermediate_size=128)
DENSE = MINI.dense()


@dataclass(frozen=True)
class Axis:
    """Say what is trained together: one shape, and runs that differ in what they name.

    Args: runs: name -> what differs from the shipped recipe. book: with the phone book too.
    """

    model: MixtralConfig
    training: TrainConfig
    runs: dict[str, dict[str, Any]]
    seeds: int = 5
    book: bool = False
    shared: int = 0
    base: bool = False  # the dense twin that the others are held against


SCALE2 = {"gate_scale": 2.0}
BIAS = SCALE2 | {"aux_coef": 0.0, "bias_step": 0.001}
AXES = {
    "dense": Axis(DENSE, SHORT, {"dense": {}, "dense, lr 4.5e-3": {"lr": 4.5e-3}}, base=True),
    "gate scale": Axis(
        MINI, SHORT, {"as shipped": {}, "scale 2": SCALE2, "lr 4.5e-3": SCALE2 | {"lr": 4.5e-3}}
    ),
    "finer": Axis(
        FINE, SHORT, {"4 of 16, scale 2": SCALE2, "4 of 16, scale 4": {"gate_scale": 4.0}}
    ),
    "shared": Axis(
        replace(MINI, num_local_experts=9, num_experts_per_tok=1), SHORT,
        {"1 of 8 and 1 shared": {}}, shared=1,
    ),
    "balance": Axis(
        MINI, SHORT,
        {"scale 2, loss .003": SCALE2 | {"aux_coef": 0.003},
         "scale 2, loss .03": SCALE2 | {"aux_coef": 0.03},
         "scale 2, bias": BIAS, "scale 2, sigmoid and bias": BIAS | {"sigmoid": True}},
    ),
    "z-loss": Axis(
        MINI, SHORT,
        {"scale 2, z 0": SCALE2 | {"z_coef": 0.0}, "scale 2, z .01": SCALE2 | {"z_coef": 0.01}},
    ),
    "long dense": Axis(DENSE, LONG, {"dense": {}}, seeds=3, base=True),
    "long as shipped": Axis(MINI, LONG, {"as shipped": {}}, seeds=3),
    "long dense, book": Axis(DENSE, LONG, {"dense": {}}, seeds=3, book=True, base=True),
    "long finer, book": Axis(
        FINE, LONG, {"4 of 16, scale 4": {"gate_scale": 4.0}}, seeds=3, book=True
    ),
}  # fmt: skip


def result(axis: str, stack: Stack, machine: str) -> dict[str, Any]:
    """Put together what is stored of a stack, as far as it came."""
    ended = stack.step == stack.training.steps
    final = stack.evaluate(64) if ended else None
    usual = Run("")
    runs = []
    for n, run in enumerate(stack.runs):
        mine = {f.name: getattr(run, f.name) for f in fields(run)}
        differs = {k: v for k, v in mine.items() if k not in ("name", "seed")
                   and v != getattr(usual, k)}  # fmt: skip
        bits = {str(row["step"]): row["bits"][n] for row in stack.rows if "bits" in row}
        runs.append({"name": run.name, "seed": run.seed, "differs": differs, "bits": bits}
                    | ({"final": final[n]} if final else {}))  # fmt: skip
    a = AXES[axis]
    return {
        "axis": axis, "book": a.book, "base": a.base, "machine": machine,
        "steps": stack.step, "of": stack.training.steps,
        "model": asdict(stack.model), "training": asdict(stack.training), "runs": runs,
    }  # fmt: skip


def measure(axis: str, device: str, seconds: float = math.inf) -> dict[str, Any]:
    """Train an axis and return its result; ``seconds``: stop then, whatever has been done."""
    a = AXES[axis]
    runs = [Run(name, seed=s, **what) for name, what in a.runs.items() for s in range(a.seeds)]
    corpus = load_corpus((*DOMAINS, BOOK) if a.book else DOMAINS)
    stack = Stack(a.model, a.training, runs, [corpus], device, shared=a.shared)
    stack.train(until=time.monotonic() + seconds)
    machine = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return result(axis, stack, f"{machine}, torch {torch.__version__}")


def write(found: dict[str, Any], path: Path) -> None:
    """Write a result, a run a line, figures to four places."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 4)
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        return [short(inner) for inner in value] if isinstance(value, list | tuple) else value

    head = json.dumps(short({k: v for k, v in found.items() if k != "runs"}))[:-1]
    rows = ",\n".join(f"  {json.dumps(short(row))}" for row in found["runs"])
    files.write(path, f'{head}, "runs": [\n{rows}\n]}}\n')


def main() -> None:
    """Train an axis, or print what the stored ones say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("axis", nargs="?", choices=AXES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop then, and keep that")
    args = parser.parse_args()
    if args.axis is not None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{args.axis.replace(' ', '_').replace(',', '')}.json"
        write(measure(args.axis, args.device, args.seconds), path)
    print("bits per byte ahead of the dense twin of equal active size (mean, 95 % interval, seeds)")
    for lead in leads(stored(), lambda step: step % 500 == 0 or step == 3250):
        middle, low, high = lead.interval
        print(f"{lead.name:28} step {lead.step:5,} of {lead.of:,}: {middle:+.3f} [{low:+.3f}, "
              f"{high:+.3f}], {len(lead.by_seed)} seeds")  # fmt: skip


if __name__ == "__main__":
    main()
