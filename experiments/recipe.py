"""Look for the recipe of the Mixtrals in the box: each axis one command, sparse against dense twin.

    python -m experiments.recipe "gate scale"   # trains it: minutes on a GPU, a night on a laptop
    python -m experiments.recipe balance --alone   # the same function, run by run on one core
    python -m experiments.recipe                   # prints what the stored ones say
    python -m experiments.recipe --pace 20         # how long a step takes, beside the twin's

Every axis is one stack of runs (:mod:`.stacked`), so the same seed has the same first weights
and batches in all of them, and leads are paired by seed. What was stopped before its last step
says so: its rate had not come down yet, and it is compared with others at equal steps alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch

from moe_lite import files
from moe_lite.checked import read_json
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course.data import BOOK, DOMAINS, Corpus, load_corpus
from moe_lite.course.film import Film, log_steps
from moe_lite.course.leads import PACE, PACE_ALONE, RESULTS, leads, stored
from moe_lite.course.recipes import LONG, MINI, export
from moe_lite.course.rounded import bfloat16_products, multiplies_slowly
from moe_lite.model import Mixtral
from moe_lite.train import Trainer

from .alone import Alone
from .stacked import Run, Stack

SHORT = replace(LONG, steps=1000)
# Short enough for one core of a laptop, with a cosine of its own: the rate does come down.
BRIEF = replace(LONG, steps=600, eval_every=200, eval_windows=64)
WHOLE = replace(LONG, eval_windows=64)  # as many windows at every look as at the end
# The first edition: 2 of 8 experts, twice as wide, and no phone book.
EIGHT = replace(MINI, num_local_experts=8, num_experts_per_tok=2, intermediate_size=256)
DENSE = MINI.dense()
# Experts in the first layer alone: as many as in each of the box's, or as many as fit its size.
WIDER, LATER = replace(MINI, num_local_experts=64), (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Axis:
    """Say what is trained together: one shape, and runs that differ in what they name.

    Args: runs: name -> what differs from the shipped recipe. book: with the phone book too.
          base: the dense twin that others are held against. keep: the runs whose weights and film
          are kept, of the first seed. dense, table, second: the layers that are so in Stack.
    """

    model: MixtralConfig
    training: TrainConfig
    runs: dict[str, dict[str, Any]]
    seeds: int = 5
    book: bool = False
    shared: int = 0
    base: bool = False
    keep: tuple[str, ...] = ()
    dense: tuple[int, ...] = ()
    table: tuple[int, ...] = ()
    second: tuple[int, ...] = ()


SCALE2 = {"gate_scale": 2.0}
SCALE4 = {"gate_scale": 4.0}
BIASED = {"aux_coef": 0.0, "bias_step": 0.001}
SLOWER = {"lr": 2e-3}
AXES = {
    "dense": Axis(DENSE, SHORT, {"dense": {}, "dense, lr 4.5e-3": {"lr": 4.5e-3}}, base=True),
    "gate scale": Axis(
        EIGHT, SHORT,
        {"2 of 8": {}, "2 of 8, scale 2": SCALE2,
         "2 of 8, scale 2, lr 4.5e-3": SCALE2 | {"lr": 4.5e-3}},
    ),
    "finer": Axis(
        MINI, SHORT, {"4 of 16, scale 2": SCALE2, "4 of 16, scale 4": {"gate_scale": 4.0}}
    ),
    "shared": Axis(
        replace(EIGHT, num_local_experts=9, num_experts_per_tok=1), SHORT,
        {"1 of 8 and 1 shared": {}}, shared=1,
    ),
    # Everything else that could help, around the box's recipe ("brief"), and for the twin alike.
    "brief dense": Axis(
        DENSE, BRIEF,
        {"dense": {}, "dense, first weights .5": {"first": 0.5},
         "dense, first weights 2": {"first": 2.0}},
        book=True, base=True,
    ),
    "brief": Axis(MINI, BRIEF, {"4 of 16, scale 4": SCALE4}, book=True),
    "brief dense, all": Axis(EIGHT.dense("total"), BRIEF, {"as wide as all": {}}, 3, book=True),
    "balance": Axis(
        MINI, BRIEF,
        {"loss .003": SCALE4 | {"aux_coef": 0.003}, "loss .03": SCALE4 | {"aux_coef": 0.03},
         "bias .001": SCALE4 | BIASED,
         "quantile": SCALE4 | {"aux_coef": 0.0, "quantile": True},
         "gates counted": SCALE4 | {"mass": True}},
        book=True,
    ),
    "z-loss": Axis(
        MINI, BRIEF,
        {"z 0": SCALE4 | {"z_coef": 0.0}, "z .01": SCALE4 | {"z_coef": 0.01}}, book=True,
    ),
    "first weights": Axis(
        MINI, BRIEF,
        {"first weights .5": SCALE4 | {"first": 0.5}, "first weights 2": SCALE4 | {"first": 2.0}},
        book=True,
    ),
    # Which layer's experts the lead comes from; and whether a router must choose them there.
    "first layer": Axis(MINI, BRIEF, {"first layer dense": SCALE4}, book=True, dense=(0,)),
    "last layer": Axis(MINI, BRIEF, {"last layer dense": SCALE4}, book=True, dense=(5,)),
    "only first": Axis(MINI, BRIEF, {"only the first sparse": SCALE4}, book=True, dense=LATER),
    "only first, 64": Axis(
        WIDER, BRIEF, {"only the first sparse, 64": SCALE4}, book=True, dense=LATER
    ),
    "only first, table": Axis(
        MINI, BRIEF, {"only the first, a table": SCALE4}, book=True, dense=LATER, table=(0,)
    ),
    "only first, table, 64": Axis(
        WIDER, BRIEF, {"only the first, a table, 64": SCALE4}, book=True, dense=LATER, table=(0,)
    ),
    "table first": Axis(
        MINI, BRIEF, {"all six, the first by a table": SCALE4}, book=True, table=(0,)
    ),
    # Gates without idle experts; and a router that feels the balancing as each of six does.
    "only first, 4": Axis(
        replace(MINI, num_local_experts=4), BRIEF, {"only the first, 4 of 4": SCALE4}, book=True,
        dense=LATER,
    ),
    "only first, a sixth": Axis(
        MINI, BRIEF, {"a sixth of both losses": SCALE4 | {"aux_coef": 1 / 600, "z_coef": 1 / 6000}},
        book=True, dense=LATER,
    ),
    # No experts, and for each id nearly as many more numbers as the first layer's have.
    "second vector": Axis(
        DENSE, BRIEF, {"dense, a second vector": {}}, book=True, second=(0,)
    ),
    # A shared expert and a factor: its gate is 1, and the factor makes the others' sum to 3.
    "shared, scale": Axis(
        replace(MINI, num_experts_per_tok=3), BRIEF,
        {"3 of 15 and 1 shared, scale 3": {"gate_scale": 3.0}}, book=True, shared=1,
    ),
    "batch": Axis(MINI, replace(BRIEF, batch_size=8), {"batch of 8": SCALE4}, book=True),
    "batch dense": Axis(
        DENSE, replace(BRIEF, batch_size=8), {"dense, batch of 8": {}}, book=True, base=True
    ),
    "double batch": Axis(
        MINI, replace(BRIEF, batch_size=32), {"batch of 32": SCALE4}, book=True
    ),
    "double batch dense": Axis(
        DENSE, replace(BRIEF, batch_size=32), {"dense, batch of 32": {}}, book=True, base=True
    ),
    "long dense": Axis(DENSE, LONG, {"dense": {}}, seeds=3, base=True),
    "long as shipped": Axis(EIGHT, LONG, {"2 of 8": {}}, seeds=3),
    "long dense, book": Axis(DENSE, LONG, {"dense": {}}, seeds=3, book=True, base=True),
    "long finer, book": Axis(
        MINI, LONG, {"4 of 16, scale 4": {"gate_scale": 4.0}}, seeds=3, book=True
    ),
    # To the last step, five seeds, looked at through 64 windows: what an edition is chosen by.
    "whole dense": Axis(
        DENSE, WHOLE, {"dense": {}, "dense, lr 2e-3": SLOWER}, book=True, base=True,
        keep=("dense",),
    ),
    "whole": Axis(
        EIGHT, WHOLE, {"2 of 8": {}, "2 of 8, scale 2": SCALE2}, book=True,
        keep=("2 of 8, scale 2",),
    ),
    "whole finer": Axis(
        MINI, WHOLE,
        {"4 of 16, scale 4": SCALE4, "4 of 16, scale 4, bias": SCALE4 | BIASED,
         "4 of 16, scale 4, lr 2e-3": SCALE4 | SLOWER},
        book=True, keep=("4 of 16, scale 4",),
    ),
    "whole only first, table": Axis(
        MINI, WHOLE, {"only the first, a table": SCALE4}, book=True, dense=LATER, table=(0,)
    ),
    "whole only first, table, 64": Axis(
        WIDER, WHOLE, {"only the first, a table, 64": SCALE4}, book=True, dense=LATER, table=(0,)
    ),
    "whole only first": Axis(
        MINI, WHOLE, {"only the first sparse": SCALE4}, book=True, dense=LATER
    ),
    "whole only first, 64": Axis(
        WIDER, WHOLE, {"only the first sparse, 64": SCALE4}, book=True, dense=LATER
    ),
    "whole five dense": Axis(DENSE, WHOLE, {"dense": {}}, base=True),
    "whole five": Axis(EIGHT, WHOLE, {"2 of 8": {}}),
    "whole dense, all": Axis(EIGHT.dense("total"), WHOLE, {"as wide as all": {}}, 3, book=True),
    "whole dense, half": Axis(
        DENSE, WHOLE, {"dense, first weights .5": {"first": 0.5}}, book=True
    ),
    "whole dense, longer": Axis(
        DENSE, replace(WHOLE, steps=4700), {"dense, 4,700 steps": {}}, book=True
    ),
}  # fmt: skip


@torch.no_grad()
def recall(stack: Stack, windows: int = 64) -> list[float | None]:
    """Return the share of phone numbers that each run knows, None for a run that saw no book.

    A number counts if each of its five digits is the likeliest next token after name and digits
    before it, in windows of the book where at least 40 tokens stand before it.
    """
    known: list[float | None] = [None] * len(stack.runs)
    for at, corpus in enumerate(cast(Sequence[Corpus], stack.corpora)):
        if BOOK not in corpus.domains:
            continue
        colon = corpus.tokenizer.encode("a:").ids[-1]
        batch = corpus.windows(BOOK, stack.training.seq_len, windows)
        ids_BS, targets_BS = batch.ids_BS, batch.targets_BS
        right = torch.cat(
            [stack.best(ids).cpu() == targets
             for ids, targets in zip(ids_BS.split(16), targets_BS.split(16), strict=True)], 1,
        )  # fmt: skip
        starts = [(b, s) for b, s in (ids_BS == colon).nonzero().tolist()
                  if 40 <= s < ids_BS.shape[1] - 6]  # fmt: skip
        for n, run in enumerate(stack.runs):
            if run.corpus == at:
                hits = [bool(right[n, b, s + 1 : s + 6].all()) for b, s in starts]
                known[n] = sum(hits) / len(hits)
    return known


def result(axis: str, stack: Stack, machine: str) -> dict[str, Any]:
    """Put together what is stored of a stack, as far as it came.

    ``train``: the mean loss over the 250 steps before; ``copying``: the held-out loss of tokens
    that can be copied and of the others; both in nats per token. ``routers``: of the sparse ones.
    """
    ended = stack.step == stack.training.steps
    final = stack.evaluate(max(stack.training.eval_windows, 64)) if ended else None
    usual = Run("")
    copying = stack.by_copying(stack.training.eval_windows)
    routers = stack.routers() if any(many > 1 for many in stack.experts) else None
    runs = []
    for n, run in enumerate(stack.runs):
        mine = {f.name: getattr(run, f.name) for f in fields(run)}
        differs = {k: v for k, v in mine.items() if k not in ("name", "seed")
                   and v != getattr(usual, k)}  # fmt: skip
        looks = [row for row in stack.rows if "bits" in row]
        bits = {str(row["step"]): row["bits"][n] for row in looks}
        train = {
            str(step): statistics.mean(float(r["loss"][n]) for r in stack.rows[step - 250 : step])
            for step in range(250, stack.step + 1, 250)
        }
        known = {str(row["step"]): row["recall"][n] for row in looks if "recall" in row}
        runs.append({"name": run.name, "seed": run.seed, "differs": differs, "bits": bits,
                     "train": train, "copying": copying[n]} | ({"recall": known} if known else {})
                    | ({"routers": routers[n]} if routers else {})
                    | ({"final": final[n]} if final else {}))  # fmt: skip
    a = AXES[axis]
    return {
        "axis": axis, "book": a.book, "base": a.base, "machine": machine,
        "steps": stack.step, "of": stack.training.steps,
        "model": asdict(stack.model), "training": asdict(stack.training), "runs": runs,
    }  # fmt: skip


def measure(
    axis: str, device: str, seconds: float = math.inf, corpus: Corpus | None = None,
    out: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train an axis and return its result; ``seconds``: stop then, whatever has been done.

    Args: corpus: instead of the axis's own. out: where weights and films go that are to be kept.
    """
    end, a = time.monotonic() + seconds, AXES[axis]
    runs = [Run(name, seed=s, **what) for name, what in a.runs.items() for s in range(a.seeds)]
    corpus = corpus or load_corpus((*DOMAINS, BOOK) if a.book else DOMAINS)
    stack = Stack(a.model, a.training, runs, [corpus], device, shared=a.shared,
                  dense=a.dense, table=a.table, second=a.second, fuse=device == "cuda")  # fmt: skip
    kept = [n for n, run in enumerate(runs) if out and run.name in a.keep and run.seed == 0]
    sparse = a.model.num_local_experts > 1
    films = {n: Film.of(corpus, log_steps(a.training.steps, 16)) for n in kept if sparse}

    def each(stack: Stack) -> None:
        for n, film in films.items():
            if stack.step in film.wanted:
                film.take(stack.one(n).to(device), stack.step)
        if a.book:
            _known(stack)

    for n, film in films.items():
        film.take(stack.one(n).to(device), 0)
    with bfloat16_products(a.training.autocast, device):
        stack.train(each=each, until=end)
    for n in kept:
        folder = cast(Path, out) / runs[n].name.replace(" ", "_").replace(",", "")
        export(stack.one(n), corpus.tokenizer, folder, torch.bfloat16, films.get(n))
    machine = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    with bfloat16_products(a.training.autocast, device):
        return result(axis, stack, f"{machine}, torch {torch.__version__}")


def measure_alone(axis: str, path: Path, corpus: Corpus | None = None) -> dict[str, Any]:
    """Train an axis run by run on one core; each is kept as it ends, and those kept are skipped.

    Raises: ValueError if the file has runs of another recipe or machine, or runs that were stopped;
            if a loss is not finite (that run is not kept); for what one run alone cannot be.
    """
    a, found = AXES[axis], read_json(path) if path.exists() else {}
    machine = "cpu, a core for each run, "
    if a.training.autocast == "on" and multiplies_slowly():
        machine += "float32, "  # as Alone then computes
    recipe = {"model": asdict(a.model), "training": asdict(a.training)}
    if found and json.loads(json.dumps(_short(recipe))) != {name: found[name] for name in recipe}:
        raise ValueError(f"{path} has runs of another recipe: move it away, or take another axis")
    if found and (found["steps"] != found["of"] or not found["machine"].startswith("cpu")):
        raise ValueError(f"{path} has runs that were stopped or made on a GPU: move it away")
    if found and ("float32" in found["machine"]) != ("float32" in machine):
        raise ValueError(f"{path} has runs made in another arithmetic than this machine's: move it")
    corpus = corpus or load_corpus((*DOMAINS, BOOK) if a.book else DOMAINS)
    torch.set_num_threads(1)
    runs = [Run(name, seed=s, **what) for name, what in a.runs.items() for s in range(a.seeds)]
    order = {(run.name, run.seed): n for n, run in enumerate(runs)}
    for run in runs:
        rows = found.get("runs", [])
        if any((row["name"], row["seed"]) == (run.name, run.seed) for row in rows):
            continue
        print(f"{run.name}, seed {run.seed}")
        stack = Alone(a.model, a.training, [run], [corpus], shared=a.shared,
                      dense=a.dense, table=a.table, second=a.second, fuse=True)  # fmt: skip
        stack.train(each=_known if a.book else None)
        torch._dynamo.reset()  # else every run adds a compiled program of its own
        if not all(math.isfinite(row["loss"][0]) for row in stack.rows):
            raise ValueError(f"the loss of {run.name}, seed {run.seed}, is not finite")
        one = result(axis, stack, f"{machine}torch {torch.__version__}")
        every = sorted([*rows, *one["runs"]], key=lambda row: order[row["name"], row["seed"]])
        found = one | {"runs": every}
        write(found, path)
    return found


def _known(stack: Stack) -> None:
    if "bits" in stack.rows[-1]:
        stack.rows[-1]["recall"] = recall(stack)


def pace(pairs: int, alone: bool = False, steps: int = 3) -> dict[str, Any]:
    """Time steps of the trainer, the sparse shapes and their twin in turn, on one thread.

    CPU seconds, for others may use the machine. ``slower``: the median over the pairs of a shape's
    step in steps of the twin, and its 95 % interval by order. alone: of the compiled program that
    :func:`measure_alone` runs, in which a layer may be dense.
    """
    from scipy.stats import binom

    torch.set_num_threads(1)
    corpus, takes = load_corpus((*DOMAINS, BOOK)), {}
    shapes = {"dense": DENSE, "2 of 8": EIGHT, "4 of 16": MINI}
    if alone:
        shapes = {"dense": DENSE, "4 of 16": MINI, "only first": MINI, "only first, 64": WIDER,
                  "only first, table": MINI}  # fmt: skip
    for name, shape in shapes.items():
        if alone:
            dense = LATER if "first" in name else ()
            table = (0,) if "table" in name else ()
            one = Alone(shape, WHOLE, [Run(name, gate_scale=4.0)], [corpus], dense=dense,
                        table=table, fuse=True)  # fmt: skip
            takes[name] = lambda step, one=one: one.take()
        else:
            trainer = Trainer(Mixtral(shape), WHOLE)
            takes[name] = lambda step, trainer=trainer: trainer.step(step, corpus)
    seconds: dict[str, list[float]] = {name: [] for name in shapes}
    for pair in range(-1, pairs):  # the first warms up
        for name in shapes if pair % 2 else reversed(shapes):
            began = time.process_time()
            with nullcontext() if alone else bfloat16_products(WHOLE.autocast, "cpu"):
                for step in range(steps):
                    takes[name]((pair + 1) * steps + step)
            if pair >= 0:
                seconds[name].append((time.process_time() - began) / steps)
    k = max(int(binom.ppf(0.025, pairs, 0.5)), 1)
    slower = {}
    for name in list(shapes)[1:]:
        each = sorted(a / b for a, b in zip(seconds[name], seconds["dense"], strict=True))
        slower[name] = [statistics.median(each), each[k - 1], each[-k]]
    return {"slower": slower, "seconds": seconds}


def write(found: dict[str, Any], path: Path) -> None:
    """Write a result, a run a line, figures to four places."""
    head = json.dumps(_short({k: v for k, v in found.items() if k != "runs"}))[:-1]
    rows = ",\n".join(f"  {json.dumps(_short(row))}" for row in found["runs"])
    files.write(path, f'{head}, "runs": [\n{rows}\n]}}\n')


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    return [_short(inner) for inner in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Train an axis, or print what the stored ones say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("axis", nargs="?", choices=AXES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop then, and keep that")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="weights and films go there")
    parser.add_argument("--alone", action="store_true", help="run by run, on one core of a CPU")
    parser.add_argument("--pace", type=int, metavar="PAIRS", help="time steps, store that")
    args = parser.parse_args()
    if args.pace is not None:
        how = " --alone" if args.alone else ""
        slow = "products by float32's units, " if multiplies_slowly() else ""
        head = {"command": f"python -m experiments.recipe --pace {args.pace}{how}",
                "machine": f"one core, {slow}torch {torch.__version__}"}  # fmt: skip
        found = json.dumps(head | pace(args.pace, args.alone), indent=1) + "\n"
        files.write(PACE_ALONE if args.alone else PACE, found)
        return
    if args.axis is not None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{args.axis.replace(' ', '_').replace(',', '')}.json"
        if args.alone:
            measure_alone(args.axis, path)
        else:
            write(measure(args.axis, args.device, args.seconds, out=args.keep), path)
    print("bits per byte ahead of the dense twin of equal active size (mean, 95 % interval, seeds)")
    table = leads(stored(), lambda step: True)
    ends = {(lead.axis, lead.name): lead.step for lead in table}
    for lead in table:
        if lead.step % 500 and lead.step != ends[lead.axis, lead.name]:
            continue
        middle, low, high = lead.interval
        print(f"{lead.name:28} step {lead.step:5,} of {lead.of:,}: {middle:+.3f} [{low:+.3f}, "
              f"{high:+.3f}], {len(lead.by_seed)} seeds")  # fmt: skip


if __name__ == "__main__":
    main()
