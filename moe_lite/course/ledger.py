"""The ledger of reproductions: ``python -m moe_lite reproduce [NAME] [--seeds N] [--table]``.

experiments/NAME.py says what a paper claims, by which rule we judge and how to run it;
experiments/results/NAME.json keeps what a run gave, seed by seed; LEDGER.md and the last column
of README's chapter table are written from both. A rule stands in its module before the run: a
verdict is computed, never chosen. What is compared is compared seed by seed, and what never
arrived is a bound, never a gap.
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
import textwrap
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from html import escape
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from scipy import stats

from .. import __version__
from ..checked import build, conform, read_json, short
from ..files import target, write

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "experiments" / "__init__.py").is_file():  # installed from a wheel
    ROOT = Path(sysconfig.get_path("data"), "share", "moe_lite")
Measures = dict[str, list[float | None]]
"""What a run gives: for each measure one number per seed; None where a seed never got there."""

Verdict = Literal["reproduced", "other size", "equal", "null", "inconclusive", "contradicted"]
SIGNS: dict[Verdict, str] = {
    "reproduced": "✓", "other size": "≈", "equal": "=", "null": "∅", "inconclusive": "?",
    "contradicted": "✗",
}  # fmt: skip
UNITS = {"loss": "nats", "training loss": "nats", "best": "bits per byte"}
"""How the name of a measure begins, and in what it counts; an equality's margin counts so too."""


# --- numbers -------------------------------------------------------------------------------------


@cache
def student_t(count: int, confidence: float = 0.95) -> float:
    """Return t such that the mean of so many values lies within ±t standard errors of the truth.

    >>> [round(student_t(count), 3) for count in (2, 3, 25)]
    [12.706, 4.303, 2.064]
    """
    return float(stats.t.ppf((1 + confidence) / 2, count - 1))


OURS = "no paper's: a mark of the course"  # where a measured row's mark stands


@dataclass(frozen=True)
class Estimate:
    """Hold the mean over seeds, its 95% interval, the spread, and how many seeds there are.

    ``missed`` seeds of ``count + missed`` never got there. They are never left out: with any,
    ``mean`` is the median, and low and high are the sign test's interval for it, in which such a
    seed stands at the end where its bound puts it, and at both if it has none. That interval has
    no ends with fewer than six seeds. ``mean`` is NaN if the median is not known.
    """

    mean: float
    low: float
    high: float
    sd: float
    count: int
    missed: int = 0

    @classmethod
    def of(
        cls, values: Sequence[float | None], bounds: Sequence[tuple[float, float]] | None = None
    ) -> Estimate:
        """Estimate from one value per seed; bounds: for each, where it lies if it is None.

        >>> print(Estimate.of([1.0, 2.0, 3.0]))
        2.0 ± 2.5
        >>> print(Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0, None], [(6.0, math.inf)] * 6))
        3.5 [1, inf] (1 of 6 never)
        """
        kept = [value for value in values if value is not None]
        n, missed = len(kept), len(values) - len(kept)
        sd = statistics.stdev(kept) if n > 1 else math.nan
        if missed:
            ends = bounds or [(-math.inf, math.inf)] * len(values)
            pairs = [(x, x) if x is not None else end for x, end in zip(values, ends, strict=True)]
            lows, highs = (sorted(column) for column in zip(*pairs, strict=True))
            rank = int(stats.binom.ppf(0.025, len(values), 0.5))
            middle = statistics.median(lows)
            return cls(
                middle if middle == statistics.median(highs) else math.nan,
                lows[rank - 1] if rank else -math.inf, highs[-rank] if rank else math.inf,
                sd, n, missed,
            )  # fmt: skip
        if n < 2:
            return cls(kept[0] if n else math.nan, -math.inf, math.inf, sd, n)
        mean = statistics.fmean(kept)
        half = student_t(n) * sd / math.sqrt(n)
        return cls(mean, mean - half, mean + half, sd, n)

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def p(self, void: float) -> float:
        """Return the two-sided p-value of Student's test against this value; NaN if seeds lack."""
        if self.missed or self.count < 2 or not self.sd:
            return math.nan
        t = abs(self.mean - void) / (self.sd / math.sqrt(self.count))
        return float(2 * stats.t.sf(t, self.count - 1))

    def __str__(self) -> str:
        shown = "none" if math.isnan(self.mean) else number(self.mean)
        if self.missed:
            shown = "" if math.isnan(self.mean) else f"{shown} "
            ends = f"[{number(self.low)}, {number(self.high)}]"
            return f"{shown}{ends} ({self.missed} of {self.count + self.missed} never)"
        if not math.isfinite(self.half):
            return shown
        if not self.half:
            return f"{shown} ± 0"
        digits = max(0, 1 - math.floor(math.log10(self.half)))  # two figures of the interval
        return f"{self.mean:,.{digits}f} ± {self.half:,.{digits}f}"


def number(value: float) -> str:
    """Write a number for reading: four figures, thousands apart.

    >>> number(1124.4), number(0.123456), number(88)
    ('1,124', '0.1235', '88')
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"


# --- claims --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Relate two measures of the same seed: a - b, or a / b.

    >>> print(Pair("loss at dense", "loss at top-1"), "|", Pair("MaxVio at 0", "MaxVio at 1", "/"))
    loss at dense - loss at top-1 | MaxVio at 0 / MaxVio at 1
    """

    a: str
    b: str
    by: Literal["-", "/"] = "-"

    def __str__(self) -> str:
        return f"{self.a} {self.by} {self.b}"

    def of(self, a: float | None, b: float | None) -> float | None:
        """Relate one seed's two values; None if one of them is missing."""
        if a is None or b is None or (self.by == "/" and b == 0):
            return None
        return a - b if self.by == "-" else a / b


def of_interval(low: float, high: float) -> Verdict:
    """Judge an interval of an effect in units of the paper's: 0 is no effect, 1 the paper's.

    >>> of_interval(0.6, 1.9), of_interval(-0.1, 0.4), of_interval(-0.1, 0.6)
    ('reproduced', 'null', 'inconclusive')
    """
    if high < 0:
        return "contradicted"
    if low <= 0:
        return "null" if high < 0.5 else "inconclusive"
    if low > 0.5 and high < 2:
        return "reproduced"
    return "other size" if high < 1 or low > 1 else "inconclusive"


@dataclass(frozen=True)
class Claim:
    """State one sentence of a paper, and the kind of rule by which ours is judged.

    - An **effect** has a ``void``, the value at which there would be none: 0 for a difference, 1
      for a ratio. ``paper`` is the paper's number, or "above" or "below" where it prints none.
    - An **equality** has a ``margin`` and its unit: our difference is to lie inside it, whole.
    - A **number** has ``within``: ours is to lie within this share of the paper's, whole.

    Args: text: the claim in words; where: its table or figure; measure: the run's measure that
          answers it, or a pair of them; note: what else the paper prints there.
    Raises: ValueError if it is none of the three, or its margin is not in the measures' own unit.
    """

    text: str
    where: str
    measure: str | Pair
    paper: float | Literal["above", "below"]
    within: float | None = None
    void: float | None = None
    margin: tuple[float, str] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        given = [self.within is not None, self.void is not None, self.margin is not None]
        if sum(given) != 1:
            raise ValueError(
                f"{self.text!r}: a claim has a void (an effect), a margin (an equality) "
                "or a share within (a number), and one of them"
            )
        if (self.void is None and isinstance(self.paper, str)) or self.paper == self.void:
            raise ValueError(f"{self.text!r}: {self.paper} is no effect")
        if self.margin is not None:
            named = {self.measure.a, self.measure.b} if isinstance(self.measure, Pair) else set()
            units = {UNITS.get(name.split(" at ")[0].split(":")[0]) for name in named}
            if not named or self.measure.by != "-" or units != {self.margin[1]}:  # type: ignore[union-attr]
                raise ValueError(
                    f"{self.text!r}: an equality is a difference of two measures, and its margin "
                    f"counts as they do, not in {self.margin[1]}"
                )

    def verdict(self, ours: Estimate) -> Verdict:
        """Judge an estimate by its 95% interval, never by its mean.

        An effect is *reproduced* if the whole interval lies between half and twice the paper's
        effect (on its side, if the paper prints no number), has an *other size* if it lies on
        that side and excludes the paper's number, and is *contradicted* if it lies on the other
        side. It is *null* if the interval holds the void and stays below half the paper's effect.
        An equality is *equal* or *contradicted* if the interval lies inside or outside the margin,
        a number is *reproduced* or of *other size* likewise. All else is *inconclusive*.

        >>> twice = Claim("twice as fast", "Table 1", "speed-up", paper=2, void=1)
        >>> [twice.verdict(Estimate(m, m - 0.2, m + 0.2, 0.5, 25)) for m in (1.9, 1.4, 1.1, 0.7)]
        ['reproduced', 'other size', 'null', 'contradicted']
        >>> twice.verdict(Estimate(1.4, 0.5, 2.3, 1, 5))
        'inconclusive'
        """
        low, high = ours.low, ours.high
        if self.within is not None:
            assert not isinstance(self.paper, str)
            slack = self.within * abs(self.paper)
            return self._inside(low - self.paper, high - self.paper, slack, "reproduced")
        if not ours.sd and ours.count + ours.missed < FEW:
            return "inconclusive"  # a few seeds that agree say nothing of how they spread
        if self.margin is not None:
            return self._inside(low, high, self.margin[0], "equal")
        # In units of the paper's effect: no effect is 0, the paper's 1.
        assert self.void is not None
        low, high = sorted(((low - self.void) / self.effect, (high - self.void) / self.effect))
        if isinstance(self.paper, str) and high >= 0:
            return "reproduced" if low > 0 else "inconclusive"
        return of_interval(low, high)

    def _inside(self, low: float, high: float, slack: float, inside: Verdict) -> Verdict:
        if -slack <= low and high <= slack:
            return inside
        if high < -slack or low > slack:
            return "contradicted" if inside == "equal" else "other size"
        return "inconclusive"

    @property
    def effect(self) -> float:
        """Return the paper's number less the void; 1 or -1 if it prints a direction only."""
        if isinstance(self.paper, str):
            return 1.0 if self.paper == "above" else -1.0
        return self.paper - (self.void or 0.0)

    def seeds(self, ours: Estimate) -> int | None:
        """Count the seeds that would decide, at this spread; None if that cannot be said.

        That is: for an interval of a third of the paper's effect to each side, or of the margin,
        or of the share within; a third of our own effect, if the paper prints no number, or if
        ours is sure to be there and larger; and of a sixth, and so on, if so many were run and the
        interval still stands across a border.
        """
        if ours.missed or not ours.sd or ours.count < 2:
            return FEW if ours.count + ours.missed < FEW else None
        if self.margin is not None:
            third = self.margin[0] / 3
        elif self.void is None:
            third = abs(self.effect * (self.within or 0.0)) / 3
        else:
            own = abs(ours.mean - self.void)
            theirs = 0.0 if isinstance(self.paper, str) else abs(self.effect)
            third = (max(own, theirs) if own > ours.half or not theirs else theirs) / 3
        n = 2
        while n <= ours.count and third:
            n = max(2, int((1.96 * ours.sd / third) ** 2))
            while n < 1e6 and student_t(n) * ours.sd / math.sqrt(n) > third:
                n += 1
            third /= 2
        return n

    def judge(self, ours: Estimate) -> str:
        """Write sign and verdict, and for an inconclusive one the seeds that would decide."""
        verdict = self.verdict(ours)
        if verdict != "inconclusive":
            return f"{SIGNS[verdict]} {verdict}"
        seeds = self.seeds(ours)
        need = "too few arrived" if seeds is None else f"n = {seeds:,}"
        return f"{SIGNS[verdict]} inconclusive, {need}"


def sign_test(wins: int, losses: int) -> float:
    """Return how often coins part so many pairs as unevenly as this, or more so: two-sided p.

    >>> round(sign_test(7, 1), 2)
    0.07
    """
    return 1.0 if wins == losses else float(stats.binomtest(wins, wins + losses).pvalue)


FEW = 6
"""From so many seeds on, all on one side is a finding: the sign test's p is 2 / 64."""


@dataclass(frozen=True)
class Experiment:
    """Say what is reproduced and how: the one name, ``EXPERIMENT``, of a module in experiments/.

    Args: title: in words; source: the paper; chapter: "01"; seeds: how many the ledger holds;
          config: all that the result depends on, as JSON would keep it; claims: what is judged;
          run: from seeds to :data:`Measures`, where a seed's numbers do not depend on the other
          seeds; spot: a part of that again, in seconds, for a test to hold the result by;
          finding: what a reader may believe now, in a sentence in which {0} is our number of the
          first claim (of the first row measured, if nothing is judged); caveat: what a reader of
          the verdicts should know, printed under them; measured: rows with a mark of our own (a
          void), which no paper names and nobody judges.
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
    finding: str = ""
    measured: tuple[Claim, ...] = ()


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

    def values(self, measure: str | Pair) -> list[float | None]:
        """Return one value per seed of a measure, or of a pair of them."""
        if isinstance(measure, str):
            return self.measures[measure]
        columns = (self.measures[measure.a], self.measures[measure.b])
        return [measure.of(a, b) for a, b in zip(*columns, strict=True)]

    def __getitem__(self, measure: str | Pair) -> Estimate:
        """Estimate one measure over the seeds.

        Where a seed has None, the measures "... at least" and "... at most" may have its bound.
        """
        values = self.values(measure)
        ends = []
        for end, word in ((-math.inf, "least"), (math.inf, "most")):
            bounds = self.measures.get(f"{measure}, at {word}", [None] * len(values))
            ends.append([end if bound is None else bound for bound in bounds])
        return Estimate.of(values, list(zip(*ends, strict=True)))


def names(root: Path = ROOT) -> list[str]:
    """List the experiments.

    Raises: FileNotFoundError if there is no experiments/, which only a clone has.
    """
    folder = root / "experiments"
    if not (folder / "__init__.py").is_file():
        raise FileNotFoundError(
            f"there is no folder {folder}: the experiments come with a clone of the repository"
        )
    return sorted(
        path.stem for path in folder.glob("*.py") if "\nEXPERIMENT = " in path.read_text("utf-8")
    )


def module(name: str, root: Path = ROOT) -> ModuleType:
    """Return the module of an experiment, which no `import` finds: its folder is in no package.

    Raises: FileNotFoundError as :func:`names` does; ValueError if there is none of this name.
    """
    if name not in (known := names(root)):
        raise ValueError(f"there is no experiment {name!r}; there are: {', '.join(known)}")
    # What several experiments share (the stack, the second bench) is found beside it.
    if str(root) not in sys.path:
        sys.path.append(str(root))
    file = root / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", file)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where a dataclass looks for the names in its annotations
    spec.loader.exec_module(made)
    return made


def load(name: str, root: Path = ROOT) -> Experiment:
    """Load the experiment of this name.

    Raises: as :func:`module` does.
    """
    experiment: Experiment = module(name, root).EXPERIMENT
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
    spent = [x or 0 for key, row in measures.items() if key.startswith("CPU sec") for x in row]
    seconds = sum(spent) or time.monotonic() - started  # runs that were kept cost what they cost
    for key, values in measures.items():
        if len(values) != len(seeds):
            raise ValueError(f"{name} gives {len(values)} values of {key!r} for {len(seeds)} seeds")
    for claim in experiment.claims + experiment.measured:
        pair = claim.measure
        for key in (pair,) if isinstance(pair, str) else (pair.a, pair.b):
            if key not in measures:
                raise ValueError(f"{name} claims {key!r} but does not measure it")
    return Result(
        name, list(seeds), experiment.config, measures, versions(), hardware(), round(seconds, 1)
    )


def fits(old: Result, experiment: Experiment) -> bool:
    """Say whether more seeds may be added to a result: same config, versions, first seeds."""
    same = json.loads(json.dumps(experiment.config)) == old.config
    return same and old.versions == versions() and old.seeds == list(range(len(old.seeds)))


def together(old: Result, new: Result) -> Result:
    """Join a result and one of further seeds; what one of them never got to is None there."""
    columns = []
    for part in (old, new):
        never: list[float | None] = [None] * len(part.seeds)
        columns.append({key: part.measures.get(key, never) for key in old.measures | new.measures})
    return replace(
        new, seeds=old.seeds + new.seeds, seconds=round(old.seconds + new.seconds, 1),
        measures={key: values + columns[1][key] for key, values in columns[0].items()},
    )  # fmt: skip


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


def order_statistic(result: Result, measure: str | Pair) -> bool:
    """Say whether a measure relates another two settings in every seed: a maximum over a minimum.

    The largest of some noisy runs over the least is above 1 whatever the settings do. So a measure
    that is a ratio or a difference of two others must be of the same two in every seed.
    """
    groups: dict[str, list[list[float | None]]] = {}
    for key, values in result.measures.items():
        groups.setdefault(key.split(" at ")[0], []).append(values)
    wanted = result.values(measure)
    for group in groups.values():
        found = []  # for each seed, the pairs of settings that give its number
        for seed, value in enumerate(wanted):
            row = [values[seed] for values in group]
            found.append({
                (i, j, how)
                for i, a in enumerate(row)
                for j, b in enumerate(row)
                if i != j and a is not None and b is not None and value is not None
                for how, x in _relations(a, b)
                if math.isclose(x, value, rel_tol=1e-9)
            })  # fmt: skip
        if len(found) > 1 and all(found) and not set.intersection(*found):
            return True
    return False


def _relations(a: float, b: float) -> list[tuple[str, float]]:
    found = [("-", a - b)] if a > b else []
    if a > b > 0:
        found.append(("/", a / b))
    return found + ([("exp", math.exp(a - b))] if 0 < a - b < 100 else [])


def disagreements(result: Result, fresh: Measures) -> list[str]:
    """Name each measure whose fresh values do not fit those stored, in a sentence.

    A fresh median fits if it lies in the 99% interval in which the stored seeds would put the
    median of as many new ones. It is the median because another machine rounds otherwise, and a
    long training makes of that another course for a seed here and there: one in three that ends
    elsewhere is no drift, two in three are.
    """
    found = []
    # rounding on another machine, where no seed differs; another Python's library is another text
    here = platform.python_version()
    rounding = 1e-3 if result.versions.get("python", here) == here else 2e-2
    for key, values in fresh.items():
        old, new = ([x for x in column if x is not None] for column in (result.values(key), values))
        n, m = len(old), len(new)
        if n < 2 or not m:
            fits = n == m == 0
        else:
            # Of 3 and more normal numbers the median varies by up to pi / 2 more than the mean.
            more = math.pi / 2 if m > 2 else 1.0
            wide = student_t(n, 0.99) * math.sqrt(1 / n + more / m)
            mean = statistics.fmean(old)
            slack = wide * statistics.stdev(old) + rounding * abs(mean)
            fits = abs(statistics.median(new) - mean) <= slack
        if not fits:
            found.append(f"{result.name}: {key} is {Estimate.of(values)} now, {result[key]} stored")
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

What the course reproduced of {experiments} experiments, in {rows} rows, and what not. Each row is a
number that a paper prints and ours, a mean over seeds with its 95% interval (Student's t). Settings
are compared **seed by seed**: the same seed has the same batches, so the difference of a pair is
steadier than its two ends. The rules are the same for all rows, and a verdict is computed from the
interval, never from the mean:

- ✓ *reproduced*: an effect that lies, with its whole interval, between half and twice the paper's
  (on the paper's side, if the paper prints no number); a number within the stated share;
- ≈ *other size*: an effect on the paper's side that excludes the paper's number; a number outside;
- = *equal*: a difference that lies, with its whole interval, inside the margin;
- ∅ *null*: an interval that holds "no effect" and stays below half of the paper's effect;
- ✗ *contradicted*: an effect on the other side; a difference outside its margin;
- ? *inconclusive*: none of these. **We cannot tell.**

*n* is the number of seeds that would decide, at the spread of the seeds that we have: those for an
interval of a third of the paper's effect, or of the margin, to each side (of ours, where that is
sure to be there and larger, or the paper prints no number). Several hundreds mean: out of reach
here. A run that never arrived is a bound, never a gap: with any, ours is the median
and the sign test's interval.

**Many rows.** {tested} rows have a value at which there would be no effect. If all of them were
noise, some {chance:.0f} intervals would exclude it. {excluded} do, and {kept} of those still do if
the false discovery rate over all is held at 5% (Benjamini and Yekutieli, for rows of an experiment
share its runs); the others have a † and count for less. Equalities in nats all have one margin,
{margin}: it was set in November 2026, after most of these runs and before the seeds that were added
since. What was added to an experiment after a first look says so under its table, and counts for
less too. Rows *not judged* have a mark of the course's own that no paper names, and came after the
runs unless their table says otherwise; no count here holds them.

**Two benches.** Chapters 04 to 09 first compared models of 0.7 million parameters and 4,096 kinds
of token after 200 to 300 steps: *the first bench*, of all their experiments without `_long` in the
name. That is early: most of it is learning how frequent words are, and a few hundredths are at the
edge of sight. Those rows stand as they were judged. *The second bench* (`experiments/longer.py`)
has a vocabulary of 512, narrow models, a calmer rate, 3,000 steps and 12 seeds; an effect is a
curve over training. Where both speak, the second speaks of a later time. A null or a contradiction
on either says nothing of the paper's model at the end of its training.

`python -m moe_lite reproduce NAME` runs one again, `--seeds N` with more seeds than are kept adds
those, and `python -m moe_lite reproduce --table` writes this page from `experiments/`.

## What a reader may believe now

| experiment | chapter | seeds | finding, at this scale | verdicts |
|---|---|---|---|---|
"""
MARGIN = (0.02, "nats")
"""How far apart two losses may lie and count as equal: 2% of perplexity. One for all rows."""


def section(name: str, lost: Collection[tuple[str, str]] = (), root: Path = ROOT) -> str:
    """Write one experiment's part of the page, in Markdown; without a result, say so."""
    experiment, path = load(name, root), result_path(name, root)
    head = f"## {name}\n\n{experiment.title}. {experiment.source}. Chapter {experiment.chapter}.\n"
    if not path.is_file():
        command = f"`python -m moe_lite reproduce {name} --seeds {experiment.seeds}`"
        return f"{head}\nNot run yet: {command}\n"
    result = read(path)
    caveat = f"\n**Read with care:** {experiment.caveat}\n" if experiment.caveat else ""
    return f"{head}\n{rows(experiment, result, lost)}{caveat}\n{small_print(result)}\n"


def rows(experiment: Experiment, result: Result, lost: Collection[tuple[str, str]] = ()) -> str:
    """Write the table of an experiment: claim, paper, ours, how many seeds agree, verdict.

    What is measured and not judged comes last.
    """
    lines = [
        "| claim | the paper | ours | seed by seed | verdict |",
        "|---|---|---|---|---|",
    ]
    for claim in experiment.claims:
        ours, note = result[claim.measure], f", {claim.note}" if claim.note else ""
        paper = claim.paper if isinstance(claim.paper, str) else number(claim.paper)
        mark = " †" if (result.name, claim.text) in lost else ""
        lines.append(
            f"| {claim.text} | {paper} ({claim.where}{note}) | {ours} "
            f"| {agreeing(claim, result)} | {claim.judge(ours)}{mark} |"
        )
    for row in experiment.measured:
        ours, seeds = result[row.measure], agreeing(row, result)
        lines.append(f"| {row.text} | {row.where} | {ours} | {seeds} | not judged |")
    return "\n".join(lines) + "\n"


def agreeing(claim: Claim, result: Result) -> str:
    """Say how many seeds lie on the paper's side, inside the margin, or within the share."""
    values = result.values(claim.measure)
    kept = [value for value in values if value is not None]
    if claim.void is not None:
        void, side = claim.void, math.copysign(1, claim.effect)
        good = sum((value - void) * side > 0 for value in kept)
        words = f"{'above' if side > 0 else 'below'} {number(void)}"
    elif claim.margin is not None:
        good = sum(abs(value) <= claim.margin[0] for value in kept)
        words = f"within {claim.margin[0]:g} {claim.margin[1]}"
    else:
        assert claim.within is not None and not isinstance(claim.paper, str)
        good = sum(abs(value - claim.paper) <= claim.within * abs(claim.paper) for value in kept)
        words = f"within {100 * claim.within:g}%"
    return f"{good} of {len(values)} {words}"


class Verdicts(str):
    """Hold what the ledger says as text, two lines a claim, and as the table that a page shows."""

    def __new__(cls, head: str, rows: Sequence[tuple[str, str, str, str]]) -> Verdicts:
        """Make it of rows: verdict, the paper's number, ours, the claim."""
        lines = [head]
        for verdict, paper, ours, claim in rows:
            lines.append(f"{verdict:26} paper {paper}, ours {ours}")
            lines += textwrap.wrap(claim, 96, initial_indent="    ", subsequent_indent="    ")
        made = super().__new__(cls, "\n".join(lines))
        made.head, made.rows = head, rows
        return made

    head: str
    rows: Sequence[tuple[str, str, str, str]]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """Return the table; a verdict is told by its sign and word, its tint only repeats them."""
        left, right = 'style="text-align: left"', 'style="text-align: right; white-space: nowrap"'
        body = ""
        for verdict, paper, ours, claim in self.rows:
            chip = (
                f"border: 1px solid currentColor; border-radius: 1em; padding: 0 .6em; "
                f"display: inline-block; background: {TINTS.get(verdict[0], 'none')}"
            )
            said = escape(verdict.replace(" ", "\N{NO-BREAK SPACE}"))
            cells = (
                f'<td {left}><span style="{chip}">{said}</span></td><td {left}>{escape(claim)}</td>'
            )
            numbers = "".join(f"<td {right}>{escape(text)}</td>" for text in (paper, ours))
            body += f"<tr>{cells}{numbers}</tr>\n"
        heads = ((left, "verdict"), (left, "claim"), (right, "the paper"), (right, "ours"))
        head = "".join(f'<th scope="col" {side}>{name}</th>' for side, name in heads)
        return (f"<table><caption {left}>{escape(self.head)}</caption>\n"
                f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")  # fmt: skip


TINTS = {"✓": "rgba(0, 158, 115, .25)", "≈": "rgba(86, 180, 233, .25)",
         "=": "rgba(0, 158, 115, .25)", "∅": "rgba(127, 127, 127, .25)",
         "?": "rgba(230, 159, 0, .25)", "✗": "rgba(213, 94, 0, .3)"}  # fmt: skip


def verdicts(name: str, which: Callable[[Claim], bool] | None = None,
             root: Path = ROOT) -> Verdicts:  # fmt: skip
    """Return what the ledger says of an experiment's claims, or of those chosen; for notebooks."""
    experiment, result = load(name, root), stored(name, root)
    rows = []
    for claim in filter(which, experiment.claims):
        ours = result[claim.measure]
        paper = claim.paper if isinstance(claim.paper, str) else number(claim.paper)
        rows.append((claim.judge(ours), paper, str(ours), claim.text))
    head = f"stored result, {len(result.seeds)} seeds, compared seed by seed, 95% intervals"
    return Verdicts(head, rows)


def small_print(result: Result) -> str:
    """Return on what the result was made."""
    machine, made_with = result.hardware, result.versions
    device = machine["gpu"] or f"{machine['threads']} of {machine['cores']} cores"
    return (
        f"{len(result.seeds)} seeds, {result.seconds / 60:.1f} minutes: `python -m moe_lite "
        f"reproduce {result.name} --seeds {len(result.seeds)}` on {machine['cpu']}, {device}; "
        f"{machine['system']}, Python {made_with['python']}, PyTorch {made_with['torch']}. Each "
        f"seed's numbers: [{result.name}.json](experiments/results/{result.name}.json)."
    )


def judged(root: Path = ROOT) -> list[tuple[Experiment, Result]]:
    """Return each experiment that has a result, with it."""
    return [(load(name, root), stored(name, root)) for name in names(root)
            if result_path(name, root).is_file()]  # fmt: skip


def discoveries(
    both: Sequence[tuple[Experiment, Result]],
) -> tuple[dict[tuple[str, str], float], set[tuple[str, str]]]:
    """Return the p-value of every row that has a void, and those lost to the number of rows.

    Lost is a row whose interval excludes the void and whose adjusted p-value is above 0.05.
    """
    p = {
        (result.name, claim.text): result[claim.measure].p(claim.void)
        for experiment, result in both
        for claim in experiment.claims
        if claim.void is not None
    }
    p = {row: value for row, value in p.items() if not math.isnan(value)}
    adjusted = stats.false_discovery_control(list(p.values()), method="by") if p else []
    return p, {row for row, q in zip(p, adjusted, strict=True) if p[row] < 0.05 < q}


def tally(experiment: Experiment, result: Result) -> str:
    """Count the verdicts: "2 ✓, 1 ?"; "not judged" where there is none."""
    given = [claim.verdict(result[claim.measure]) for claim in experiment.claims]
    counts = [f"{n} {sign}" for name, sign in SIGNS.items() if (n := given.count(name))]
    return ", ".join(counts) or "not judged"


def page(root: Path = ROOT) -> str:
    """Write LEDGER.md: what to believe, experiment by experiment, then every row."""
    both = judged(root)
    p, lost = discoveries(both)
    excluded = sum(value < 0.05 for value in p.values())
    head = HEAD.format(
        experiments=len(both), rows=sum(len(experiment.claims) for experiment, _ in both),
        tested=len(p), chance=0.05 * len(p), excluded=excluded, kept=excluded - len(lost),
        margin=f"{MARGIN[0]} {MARGIN[1]}",
    )  # fmt: skip
    for experiment, result in both:
        ours = [
            f"{result[claim.measure]}{'†' * ((result.name, claim.text) in lost)}"
            for claim in experiment.claims or experiment.measured
        ]
        head += (
            f"| [{result.name}](#{result.name}) | {experiment.chapter} | {len(result.seeds)} "
            f"| {experiment.finding.format(*ours)} | {tally(experiment, result)} |\n"
        )
    return "\n".join([head, *(section(name, lost, root) for name in names(root))])


def readme(text: str, root: Path = ROOT) -> str:
    """Fill in the last column of README's chapter table: how many claims got which verdict."""
    tallies: dict[str, list[str]] = {}
    for experiment, result in judged(root):
        linked = f"[{tally(experiment, result)}](LEDGER.md#{result.name})"
        tallies.setdefault(experiment.chapter, []).append(linked)

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
    add("--seed", type=int, metavar="K", help="one seed alone, into --out: a student's share")
    add("--collect", type=Path, metavar="DIR", help="join the shares in a folder, and judge them")
    add("--out", type=Path, metavar="FILE", help="where to keep the result (default: the ledger's)")
    add("--table", action="store_true", help="write LEDGER.md and README's column from the results")
    args = parser.parse_args(argv)
    if args.name and args.collect:
        print(collect(args.name, args.collect, args.out, root))
    elif args.name and args.seed is not None:
        share(args.name, args.seed, args.out, root)
    elif args.name:
        reproduce(args.name, args.seeds, args.out, root)
    elif args.collect or args.seed is not None:
        raise ValueError("name the experiment: without a name they are listed")
    elif not args.table:
        for name in names(root):
            experiment = load(name, root)
            print(f"{name:<20} chapter {experiment.chapter}: {experiment.title}")
    if args.table:
        for path, text in pages(root).items():
            write(path, text)
        print("LEDGER.md and README.md say what the results say.")
    return 0


def keep(result: Result, path: Path) -> None:
    """Write a result as the ledger keeps it."""
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False, allow_nan=False)
    # A list on one line: a seed more then changes a line, not the file.
    text = re.sub(r"\[\n[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    write(path, text + "\n")


def share(name: str, seed: int, out: Path | None, root: Path = ROOT) -> None:
    """Run one seed of an experiment and keep it in a file of its own, to be collected.

    Raises: ValueError if the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"a seed is 0 or more, not {seed}")
    path = out or Path(f"{name}-{seed}.json")
    target(path)  # told before the run
    keep(run(name, [seed], root), path)
    print(f"{path}: seed {seed}; hand it in")


def collect(name: str, folder: Path, out: Path | None = None, root: Path = ROOT) -> str:
    """Join what a class measured, one seed or more in each file, and judge it as the ledger does.

    Seeds may come from many machines and versions; a line says from how many. A file that cannot
    be counted costs no other: it is left out, and the last lines say which, and why.

    Raises: ValueError if there are fewer than two seeds.
    """
    experiment = load(name, root)
    wanted = json.loads(json.dumps(experiment.config))
    joined: Result | None = None
    whose: dict[int, str] = {}
    machines, left = set(), []
    for path in sorted(folder.rglob("*.json")):
        place = path.relative_to(folder).as_posix()
        try:
            one = read(path)
            if one.name != name:
                raise ValueError(f"it is a result of {one.name}")
            if one.config != wanted:
                raise ValueError(f"{name} was run with another config than it has here")
            if twice := [seed for seed in one.seeds if seed in whose]:
                raise ValueError(f"seed {twice[0]} is in {whose[twice[0]]} too")
            if joined and one.measures.keys() != joined.measures.keys():
                raise ValueError("it has other measures than the files before it")
        except (OSError, ValueError) as error:
            left.append(f"- {place}: {str(error).removeprefix(f'{path}: ')}")
            continue
        whose |= dict.fromkeys(one.seeds, place)
        machines.add(json.dumps([one.versions, one.hardware], sort_keys=True))
        joined = together(joined, one) if joined else one
    told = "\n".join(["", "left out:", *left] if left else [])
    if joined is None or len(joined.seeds) < 2:
        raise ValueError(f"{folder} holds {len(whose)} seeds; an interval needs at least 2{told}")
    if out:
        keep(joined, out)
    of = f"{len(whose)} seeds of {len(machines)} kinds of machine"
    return f"{experiment.title}\n\n{rows(experiment, joined)}\n{of}{told}"


def reproduce(name: str, seeds: int | None, out: Path | None, root: Path = ROOT) -> Result:
    """Run an experiment, or its seeds that are not kept yet; keep the result and print its table.

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
    old = read(path) if path.is_file() and not out else None
    if old and len(old.seeds) < seeds and fits(old, experiment):
        print(f"{experiment.title}: {len(old.seeds)} seeds kept, to {seeds} ...", flush=True)
        result = together(old, run(name, range(len(old.seeds), seeds), root))
    else:
        print(f"{experiment.title}: {seeds} seeds ...", flush=True)
        result = run(name, range(seeds), root)
    keep(result, path)
    print(rows(experiment, result))
    print(f"{path}: kept, {result.seconds:.0f} s")
    return result
