"""The ledger of reproductions: ``python -m moe_lite reproduce [NAME] [--seeds N] [--table]``.

experiments/NAME.py says what a paper claims, by which rule we judge and how to run it;
experiments/results/NAME.json keeps what a run gave, seed by seed; LEDGER.md and the last column
of README's chapter table are written from both. A rule stands in its module before the run: a
verdict is computed, never chosen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from scipy.special import stdtrit

from .. import __version__
from ..checked import build, conform, read_json, short
from ..files import target, write

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "experiments" / "__init__.py").is_file():  # installed from a wheel
    ROOT = Path(sysconfig.get_path("data"), "share", "moe_lite")
Measures = dict[str, list[float | None]]
"""What a run gives: for each measure one number per seed; None where a seed never got there."""

Verdict = Literal["reproduced", "direction only", "not reproduced"]
SIGNS: dict[Verdict, str] = {"reproduced": "✓", "direction only": "≈", "not reproduced": "✗"}


# --- numbers -------------------------------------------------------------------------------------


def student_t(df: int, confidence: float = 0.95) -> float:
    """Return t such that a Student variable of df degrees lies within ±t with this probability.

    >>> [round(student_t(df), 3) for df in (1, 2, 24)]
    [12.706, 4.303, 2.064]

    Raises: ValueError if df is below 1.
    """
    if df < 1:
        raise ValueError(f"an interval needs at least two values, not {df + 1}")
    return float(stdtrit(df, (1 + confidence) / 2))


@dataclass(frozen=True)
class Estimate:
    """Hold the mean over seeds, the half-width of its 95% interval, the spread and the counts.

    ``missed`` seeds never got there; the figures are over the other ``count``. With fewer than
    two of those there is no interval: ``half`` is infinite.
    """

    mean: float
    half: float
    sd: float
    count: int
    missed: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Estimate:
        """Estimate from one value per seed.

        >>> print(Estimate.of([1.0, 2.0, 3.0, None]))
        2 ± 2.5 (1 of 4 never)
        """
        kept = [value for value in values if value is not None]
        n = len(kept)
        mean = math.fsum(kept) / n if n else math.nan
        if n < 2:
            return cls(mean, math.inf, math.nan, n, len(values) - n)
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in kept) / (n - 1))
        return cls(mean, student_t(n - 1) * sd / math.sqrt(n), sd, n, len(values) - n)

    def __str__(self) -> str:
        shown = "none" if math.isnan(self.mean) else number(self.mean)
        if math.isfinite(self.half):
            shown += f" ± {self.half:.2g}" if self.half < 100 else f" ± {number(self.half)}"
        missed = f" ({self.missed} of {self.count + self.missed} never)" if self.missed else ""
        return shown + missed


def number(value: float) -> str:
    """Write a number for reading: four figures, thousands apart.

    >>> number(1124.4), number(0.123456), number(88)
    ('1,124', '0.1235', '88')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# --- claims --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """State one number of a paper, and the rule by which ours is judged.

    ``void`` is the value at which the claim would say nothing: 1 for a ratio, 0 for a
    difference. If our 95% interval touches it or lies beyond it, seen from the paper's number,
    the claim is *not reproduced*. Otherwise it is *reproduced* if our mean lies within the
    share ``within`` of the paper's number, and else *direction only*. A number without a void
    has no direction: it is reproduced or not. If more than half the seeds never got there,
    nothing is reproduced.

    Args: text: the claim in words; where: its table or figure; measure: the run's measure that
          answers it; note: what else the paper prints there, such as its spread.
    """

    text: str
    where: str
    measure: str
    paper: float
    within: float
    void: float | None = None
    note: str = ""

    def verdict(self, ours: Estimate) -> Verdict:
        """Judge an estimate by the rule.

        >>> twice = Claim("twice as fast", "Table 1", "speed-up", paper=2, within=0.1, void=1)
        >>> [twice.verdict(Estimate(mean, 0.1, 0.2, 25, 0)) for mean in (1.9, 1.4, 1.05)]
        ['reproduced', 'direction only', 'not reproduced']
        """
        if not math.isfinite(ours.half) or ours.missed > ours.count:
            return "not reproduced"
        if self.void is not None:
            side = math.copysign(1, self.paper - self.void)
            if side * (ours.mean - self.void) <= ours.half:
                return "not reproduced"
        if abs(ours.mean - self.paper) <= self.within * abs(self.paper):
            return "reproduced"
        return "not reproduced" if self.void is None else "direction only"


@dataclass(frozen=True)
class Experiment:
    """Say what is reproduced and how: the one name, ``EXPERIMENT``, of a module in experiments/.

    Args: title: in words; source: the paper; chapter: "01"; seeds: how many the ledger holds;
          config: all that the result depends on, as JSON would keep it; claims: what is judged;
          run: from seeds to :data:`Measures`, where a seed's numbers do not depend on the other
          seeds; spot: a part of that again, in seconds, for a test to hold the result by;
          caveat: what a reader of the verdicts should know, printed under them.
    """

    title: str
    source: str
    chapter: str
    seeds: int
    config: dict[str, Any]
    claims: tuple[Claim, ...]
    run: Callable[[Sequence[int]], Measures]
    spot: Callable[[], Measures]
    caveat: str = ""


@dataclass(frozen=True)
class Result:
    """Hold what a run gave, with all that it takes to believe it: experiments/results/NAME.json."""

    name: str
    seeds: list[int]
    config: dict[str, Any]
    measures: Measures
    versions: dict[str, str]
    hardware: dict[str, Any]
    seconds: float

    def __getitem__(self, measure: str) -> Estimate:
        """Estimate one measure over the seeds."""
        return Estimate.of(self.measures[measure])


def names(root: Path = ROOT) -> list[str]:
    """List the experiments.

    Raises: FileNotFoundError if there is no experiments/, which only a clone has.
    """
    folder = root / "experiments"
    if not (folder / "__init__.py").is_file():
        raise FileNotFoundError(
            f"there is no folder {folder}: the experiments come with a clone of the repository"
        )
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def load(name: str, root: Path = ROOT) -> Experiment:
    """Load the experiment of this name.

    Raises: FileNotFoundError as :func:`names` does; ValueError if there is none of this name.
    """
    if name not in (known := names(root)):
        raise ValueError(f"there is no experiment {name!r}; there are: {', '.join(known)}")
    # By its file: the folder is no part of the installed package, so no path leads to it.
    file = root / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the names in its annotations
    spec.loader.exec_module(module)
    experiment: Experiment = module.EXPERIMENT
    return experiment


def result_path(name: str, root: Path = ROOT) -> Path:
    """Return where the result of an experiment is kept."""
    return root / "experiments" / "results" / f"{name}.json"


def read(path: Path) -> Result:
    """Read a stored result.

    Raises: OSError if it cannot be read; ValueError if it is not a result.
    """
    result = build(Result, read_json(path), str(path))
    for key, values in result.measures.items():
        if len(values) != len(result.seeds):
            raise ValueError(
                f"{path}: measures: {short(key)} has {len(values)} values for "
                f"{len(result.seeds)} seeds"
            )
        if huge := [value for value in values if value is not None and abs(value) > 1e100]:
            raise ValueError(f"{path}: measures: {short(key)} has {huge[0]}, beyond any mean")
    for name, there, wanted in (
        ("versions", result.versions, ("python", "torch")),
        ("hardware", result.hardware, ("system", "cpu", "cores", "threads", "gpu")),
    ):
        if missing := [key for key in wanted if key not in there]:
            raise ValueError(f"{path}: {name}: {', '.join(missing)} missing")
    return result


def unfinished(part: Path | None, mark: Any) -> dict[str, Any]:
    """Return what an interrupted run has kept in a file, if its mark says that it was this one.

    Raises: ValueError if the file is damaged.
    """
    if part is None or not part.is_file():
        return {}
    kept = read_json(part)
    if kept.get("mark") != mark:
        return {}
    done: dict[str, Any] = conform(kept.get("done"), dict[str, Any], f"{part}: done")
    return done


def stored(name: str, root: Path = ROOT) -> Result:
    """Read the result that the ledger holds of this experiment; for notebooks.

    Raises: FileNotFoundError naming the command that makes it, where there is none.
    """
    path = result_path(name, root)
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: `python -m moe_lite reproduce {name}` makes it")
    return read(path)


def run(name: str, seeds: Sequence[int], root: Path = ROOT) -> Result:
    """Run an experiment over these seeds.

    Raises: ValueError if a measure lacks seeds, or a claim its measure.
    """
    experiment, started = load(name, root), time.monotonic()
    measures = {
        key: [None if value is None or not math.isfinite(value) else value for value in values]
        for key, values in experiment.run(seeds).items()
    }
    seconds = time.monotonic() - started
    for key, values in measures.items():
        if len(values) != len(seeds):
            raise ValueError(f"{name} gives {len(values)} values of {key!r} for {len(seeds)} seeds")
    for claim in experiment.claims:
        if claim.measure not in measures:
            raise ValueError(f"{name} claims {claim.measure!r} but does not measure it")
    return Result(
        name, list(seeds), experiment.config, measures, versions(), hardware(), round(seconds, 1)
    )


def resume(
    part: Path, config: dict[str, Any], jobs: Mapping[str, Callable[[], dict[str, float]]]
) -> dict[str, dict[str, float]]:
    """Do every job on one thread and give what each found; an interrupted run goes on from a file.

    Args: part: the file that keeps what is done; it is deleted at the end, so that the next run is
          a run. config: with another one, what the file keeps is not used.
    """
    import torch

    mark = json.loads(json.dumps(config))
    done: dict[str, dict[str, float]] = unfinished(part, mark)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small only wait for each other
    try:
        for name, job in jobs.items():
            if name not in done:
                done[name] = job()
                print(name, {k: round(v, 4) for k, v in done[name].items()}, flush=True)
                write(part, json.dumps({"mark": mark, "done": done}))
    finally:
        torch.set_num_threads(threads)
    part.unlink(missing_ok=True)
    return {name: done[name] for name in jobs}


def disagreements(result: Result, fresh: Measures) -> list[str]:
    """Name each measure whose fresh values do not fit those stored, in a sentence.

    A fresh median fits if it lies in the 99% interval in which the stored seeds would put the
    median of as many new ones. It is the median because another machine rounds otherwise, and a
    long training makes of that another course for a seed here and there: one in three that ends
    elsewhere is no drift, two in three are.
    """
    found = []
    for key, values in fresh.items():
        old, new = result[key], Estimate.of(values)
        if old.count < 2 or not new.count:
            fits = old.count == new.count == 0
        else:
            # Of 3 and more normal numbers the median varies by up to pi / 2 more than the mean.
            more = math.pi / 2 if new.count > 2 else 1.0
            wide = student_t(old.count - 1, 0.99) * math.sqrt(1 / old.count + more / new.count)
            slack = 1e-3 * abs(old.mean)  # rounding on another machine, where no seed differs
            middle = statistics.median(value for value in values if value is not None)
            fits = abs(middle - old.mean) <= wide * old.sd + slack
        if not fits:
            found.append(f"{result.name}: {key} is {new} now, {old} stored")
    return found


def versions() -> dict[str, str]:
    """Name the versions that a result may depend on."""
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {"python": platform.python_version(), **packages, "moe_lite": __version__}


def hardware() -> dict[str, Any]:
    """Describe this machine without naming it."""
    import torch

    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file() and (model := re.search(r"model name\s*: (.+)", info.read_text("utf-8"))):
        cpu = model[1]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.system(), "cpu": cpu, "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "gpu": gpu,
    }  # fmt: skip


# --- the page ------------------------------------------------------------------------------------

HEAD = """# Ledger

What the course reproduced, what only in direction, and what not. Each row is a number that a
paper prints and ours, a mean over seeds with its 95% interval (Student's t). A verdict is computed
by a rule that stands in the experiment's module. Rules were written before the run; what came after
a first look at results says so under its table, and counts for less:

- ✓ *reproduced*: our mean lies within the stated share of the paper's number (and, where the
  claim has a direction, our whole interval on its side of the value at which it would say nothing);
- ≈ *direction only*: our whole interval lies on the paper's side, but the size differs;
- ✗ *not reproduced*: neither.

`python -m moe_lite reproduce NAME` runs one again; `python -m moe_lite reproduce --table` writes
this page from `experiments/`.
"""


def section(name: str, root: Path = ROOT) -> str:
    """Write one experiment's part of the page, in Markdown; without a result, say so."""
    experiment, path = load(name, root), result_path(name, root)
    command = f"`python -m moe_lite reproduce {name} --seeds {experiment.seeds}`"
    head = f"## {name}\n\n{experiment.title}. {experiment.source}. Chapter {experiment.chapter}.\n"
    if not path.is_file():
        return f"{head}\nNot run yet: {command}\n"
    result = read(path)
    caveat = f"\n**Read with care:** {experiment.caveat}\n" if experiment.caveat else ""
    return f"{head}\n{rows(experiment, result)}{caveat}\n{small_print(result)}\n"


def rows(experiment: Experiment, result: Result) -> str:
    """Write the table of an experiment: claim, paper, ours, rule, verdict, minutes, command."""
    command = f"`reproduce {result.name} --seeds {len(result.seeds)}`"
    lines = [
        "| claim | the paper | ours | rule | verdict | minutes | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in experiment.claims:
        ours = result[claim.measure]
        verdict = claim.verdict(ours)
        note = f", {claim.note}" if claim.note else ""
        rule = f"within {100 * claim.within:g}%"
        if claim.void is not None:
            rule += f"; {'above' if claim.paper > claim.void else 'below'} {number(claim.void)}"
        lines.append(
            f"| {claim.text} | {number(claim.paper)} ({claim.where}{note}) | {ours} | {rule} "
            f"| {SIGNS[verdict]} {verdict} | {result.seconds / 60:.1f} | {command} |"
        )
    return "\n".join(lines) + "\n"


def small_print(result: Result) -> str:
    """Return on what the result was made."""
    machine, made_with = result.hardware, result.versions
    device = machine["gpu"] or f"{machine['threads']} of {machine['cores']} cores"
    return (
        f"{len(result.seeds)} seeds; {machine['cpu']}, {device}; {machine['system']}, "
        f"Python {made_with['python']}, PyTorch {made_with['torch']}. Each seed's numbers: "
        f"[{result.name}.json](experiments/results/{result.name}.json)."
    )


def page(root: Path = ROOT) -> str:
    """Write LEDGER.md."""
    return "\n".join([HEAD, *(section(name, root) for name in names(root))])


def readme(text: str, root: Path = ROOT) -> str:
    """Fill in the last column of README's chapter table: how many claims got which verdict."""
    tallies: dict[str, list[str]] = {}
    for name in names(root):
        experiment, path = load(name, root), result_path(name, root)
        if path.is_file():
            result = read(path)
            given = [SIGNS[claim.verdict(result[claim.measure])] for claim in experiment.claims]
            counts = [f"{n} {sign}" for sign in SIGNS.values() if (n := given.count(sign))]
            tallies.setdefault(experiment.chapter, []).append(
                f"[{', '.join(counts)}](LEDGER.md#{name})"
            )

    def fill(row: re.Match[str]) -> str:
        return f"{row[1]}| {'; '.join(tallies.get(row[2], []))} |".replace("|  |", "| |")

    return re.sub(r"^(\| (\d\d) \|.*?)\|[^|\n]*\|$", fill, text, flags=re.M)


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Return each page that is written from the results, and what it has to say."""
    front = root / "README.md"
    return {
        root / "LEDGER.md": page(root),
        front: readme(front.read_text(encoding="utf-8"), root),
    }


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run an experiment and keep its result, or write the ledger from what is kept."""
    parser = argparse.ArgumentParser(
        prog="python -m moe_lite reproduce",
        description="Reproduce a paper's table and judge it, or write the ledger of all.",
    )
    add = parser.add_argument
    add("name", nargs="?", help="an experiment; without one, they are listed")
    add("--seeds", type=int, metavar="N", help="how many (default: the ledger's)")
    add("--out", type=Path, metavar="FILE", help="where to keep the result (default: the ledger's)")
    add("--table", action="store_true", help="write LEDGER.md and README's column from the results")
    args = parser.parse_args(argv)
    if args.name:
        reproduce(args.name, args.seeds, args.out, root)
    elif not args.table:
        for name in names(root):
            experiment = load(name, root)
            print(f"{name:<20} chapter {experiment.chapter}: {experiment.title}")
    if args.table:
        for path, text in pages(root).items():
            write(path, text)
        print("LEDGER.md and README.md say what the results say.")
    return 0


def reproduce(name: str, seeds: int | None, out: Path | None, root: Path = ROOT) -> Result:
    """Run an experiment, keep its result and print its table.

    Raises: ValueError if there are fewer than two seeds, or fewer than the file to be replaced
            holds; OSError if the result could not be written. Both before the run.
    """
    experiment = load(name, root)
    path, seeds = out or result_path(name, root), experiment.seeds if seeds is None else seeds
    if seeds < 2:
        raise ValueError(f"an interval needs at least 2 seeds, not {seeds}")
    target(path)
    if path.is_file() and (kept := len(read(path).seeds)) > seeds:
        raise ValueError(
            f"{path.name} holds {kept} seeds, which {seeds} would replace; "
            f"name another file with --out, or run {kept}"
        )
    print(f"{experiment.title}: {seeds} seeds ...", flush=True)
    result = run(name, range(seeds), root)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False, allow_nan=False)
    # A list on one line: a seed more then changes a line, not the file.
    text = re.sub(r"\[\n[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    write(path, text + "\n")
    print(rows(experiment, result))
    print(f"{path}: kept, {result.seconds:.0f} s")
    return result
