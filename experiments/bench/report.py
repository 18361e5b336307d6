"""What the results say: a table as they come, and the targets, met or missed or not measured.

A result is JSON::

    format   1
    machine  device, chip, cores, threads, memory_gb, clock, versions, date, and its ceilings:
             matmul_tflops {dtype: rate}, copy_gbps
    models   rows: config, what (training, generation), compute, status, note, and for moe_lite,
             transformers and ratio {median, low, high, rounds} in tokens per second
    layers   rows: shape and its T, D, F, E, K; dtype, routing, load (max / mean); path, scope
             (experts, layer, dense); what (forward, forward+backward); status (timed, wrong,
             error, missing, skipped, not measured) and note; error, same_bits; graph_breaks of
             what was compiled; flop and bytes (the least there can be); memory {kept, least};
             seconds {median, low, high, rounds}
    checks   rows of tests/gpu and compute-sanitizer, where --gpu-checks asked for them

What was not measured is absent, never zero. Rounds of one shape, type and routing were taken in
turn, so the n-th of one path belongs to the n-th of another.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from moe_lite import files
from moe_lite.checked import read_json

from .measure import Row
from .shapes import SMALL

FORMAT = 1
RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results" / "bench"
BOTH = "forward+backward"


def read(path: Path) -> Row:
    """Read a result.

    Raises: ValueError if it is not one; OSError if there is no such file.
    """
    result = read_json(path)
    if result.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of `python -m moe_lite bench` of format {FORMAT}")
    return result


def write(result: Row, path: Path) -> None:
    """Write a result, one row a line and figures to four digits: it can be read and compared."""

    def short(value: object) -> object:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        return [short(inner) for inner in value] if isinstance(value, list) else value

    parts = []
    for name, value in result.items():
        text = json.dumps(short(value))
        if isinstance(value, list) and value:
            rows = ",\n".join(f"  {json.dumps(short(row))}" for row in value)
            text = f"[\n{rows}\n ]"
        parts.append(f' "{name}": {text}')
    files.write(path, "{\n" + ",\n".join(parts) + "\n}\n")


def find(result: Row, path: str, **where: object) -> Row | None:
    """Give the row of a path that has these values, if it was timed."""
    for row in result["layers"]:
        if row["path"] == path and "seconds" in row and all(row[k] == v for k, v in where.items()):
            return row
    return None


def faster(row: Row | None, other: Row | None) -> float | None:
    """Tell how many times faster a row is than another: the median over the rounds they shared."""
    if row is None or other is None:
        return None
    both = zip(row["seconds"]["rounds"], other["seconds"]["rounds"], strict=False)
    return statistics.median(b / a for a, b in both)


def of_ceiling(result: Row, row: Row) -> float:
    """Tell which share of the machine's own matmul rate a row reached."""
    rate = row["flop"] / row["seconds"]["median"] / 1e12
    return rate / result["machine"]["matmul_tflops"][row["dtype"]]


# --- as it comes ---------------------------------------------------------------------------------


def table(result: Row) -> str:
    """Write what was tried as Markdown, one table for each shape, type and routing."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Row]]] = {}
    for row in result["layers"]:
        if row["status"] == "not measured":
            continue
        paths = groups.setdefault((row["shape"], row["dtype"], row["routing"]), {})
        paths.setdefault(row["path"], {})[row["what"]] = row
    parts = []
    for (shape, dtype, routing), paths in groups.items():
        rows = [whats["forward"] for whats in paths.values()]
        sizes = ", ".join(f"{letter} {rows[0][letter]}" for letter in "TDFEK")
        load = f", max / mean load {rows[0]['load']:.2f}" if "load" in rows[0] else ""
        parts.append(f"\n**{shape}** ({sizes}), {dtype}, {routing} routing{load}\n")
        timed = [name for name, whats in paths.items() if "seconds" in whats["forward"]]
        if timed:
            parts += [
                "| path | forward | of matmul | forward + backward | of matmul "
                "| kept / least | error |",
                "|---|--:|--:|--:|--:|--:|--:|",
            ]
        for name in timed:
            breaks = paths[name]["forward"].get("graph_breaks")
            cells = [name if breaks is None else f"{name} ({breaks} graph breaks)"]
            for row in (paths[name]["forward"], paths[name].get(BOTH, {})):
                ms = f"{row['seconds']['median'] * 1e3:.3g} ms" if "seconds" in row else ""
                cells += [ms, f"{of_ceiling(result, row):.0%}" if ms else ""]
            kept = row.get("memory")
            cells.append(f"{kept['kept'] / kept['least']:.2f}" if kept else "")
            cells.append(f"{paths[name]['forward']['error']:.0e}")
            parts.append(f"| {' | '.join(cells)} |")
        others = [
            f"{row['path']} ({row['status']}{': ' if row['note'] else ''}{row['note']})"
            for row in rows
            if row["path"] not in timed
        ]
        if others:
            parts.append("\nNo time: " + "; ".join(others) + ".")
    return "\n".join(parts)


def models(rows: list[Row]) -> str:
    """Write the whole models as Markdown."""
    lines = ["| model | | compute | moe_lite | transformers | ratio [least, most] |"]
    lines.append("|---|---|---|--:|--:|--:|")
    for row in rows:
        if "ratio" not in row:
            lines.append(f"| {row['config']} | {row['what']} | {row['status']}: {row['note']} ||||")
            continue
        ours, theirs, both = (row[name] for name in ("moe_lite", "transformers", "ratio"))
        lines.append(
            f"| {row['config']} | {row['what']} | {row['compute']} "
            f"| {ours['median']:,.0f} tokens/s | {theirs['median']:,.0f} tokens/s "
            f"| {both['median']:.2f} [{both['low']:.2f}, {both['high']:.2f}] |"
        )
    return "\n".join(lines)


def checks(rows: list[Row]) -> str:
    """Write what a GPU was asked before anything was timed, as Markdown."""
    lines = ["| check | | passed | failed | skipped |", "|---|---|--:|---|--:|"]
    for row in rows:
        said = f"{row['status']}{': ' if row['note'] else ''}{row['note']}"
        passed, skipped = row.get("passed", ""), row.get("skipped", "")
        failed = ", ".join(row.get("failed", []))
        lines.append(f"| {row['check']} | {said} | {passed} | {failed} | {skipped} |")
    return "\n".join(lines)


def about(result: Row) -> str:
    """Say in two lines what was measured on what, and the machine's ceilings."""
    m = result["machine"]
    rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in m["matmul_tflops"].items())
    return (
        f"{m['chip']} ({m['device']}), {m['cores']} cores, {m['memory_gb']} GB, {m['date']}; "
        f"{m['clock']}; torch {m['torch']}, transformers {m['transformers']}, triton "
        f"{m['triton'] or 'not installed'}.\n"
        f"Ceilings in the same process: product of two {m['matmul_size']}² matrices {rates}; "
        f"copy {m['copy_gbps']:.3g} GB/s (read and written)."
    )


# --- the targets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Hold what was promised, and where in a result to look: least, unless ``most``.

    Attrs: value: a path's name, to be that many times faster than; or "of matmul", "kept / least",
           "of balanced" (time over that with balanced routing), or "training" and "generation" for
           the whole model's tokens per second over transformers'.
    """

    device: str
    value: str
    goal: float
    where: Row = field(default_factory=dict)
    most: bool = False

    @property
    def at(self) -> Row:
        """Say which rows are meant."""
        return {"what": BOTH, "routing": "random"} | self.where

    def possible(self, result: Row) -> float | None:
        """Tell how many times faster than the peer its products alone would be, at matmul's rate.

        None where it was not measured, or no peer is meant.
        """
        if result["machine"]["device"] != self.device:
            return None
        peer = find(result, self.value, **self.at)
        return None if peer is None else 1 / of_ceiling(result, peer)

    def measured(self, result: Row) -> float | None:
        """Look for the value in a result; None where it was not measured."""
        if result["machine"]["device"] != self.device:
            return None
        if self.value in ("training", "generation"):
            ratios = (
                row["ratio"]["median"]
                for row in result["models"]
                if row["what"] == self.value and row["config"] == SMALL and "ratio" in row
            )
            return next(ratios, None)
        ours = "moe_lite triton" if self.device == "cuda" else "moe_lite auto"
        row = find(result, ours, **self.at)
        if row is None:
            return None
        if self.value == "of matmul":
            return of_ceiling(result, row)
        if self.value == "kept / least":
            return row["memory"]["kept"] / row["memory"]["least"]
        if self.value == "of balanced":
            return faster(find(result, ours, **self.at | {"routing": "balanced"}), row)
        return faster(row, find(result, self.value, **self.at))

    def line(self, results: list[Row]) -> str:
        """Write the target as a row of Markdown; of several results the worst one counts."""
        values = [v for result in results if (v := self.measured(result)) is not None]
        shown, verdict, sign = "", "not measured", "≤" if self.most else "≥"
        if values:
            worst = max(values) if self.most else min(values)
            shown = f"{worst:.2f}"
            met = worst <= self.goal if self.most else worst >= self.goal
            verdict = "met" if met else "missed"
        most = [v for result in results if (v := self.possible(result)) is not None]
        possible = f"{min(most):.2f}" if most else ""
        over = "" if self.value.startswith(("of ", "kept")) else "times "
        device = "GPU" if self.device == "cuda" else "CPU"
        where = ", ".join(map(str, self.where.values()))
        text = f"{device} | {where} | {over}{self.value} | {sign} {self.goal:g}"
        return f"| {text} | {shown} | {possible} | {verdict} |"


def _targets() -> list[Target]:
    found = []
    for shape, forward, *goals in (
        ("mixtral", 0.75, 0.68, 0.85, 1.25, 1.5, 1.4, 1.4),
        ("olmoe", 0.60, 0.54, 0.70, 1.8, 8.0, 1.4, 1.4),
    ):
        at = {"shape": shape}
        found.append(Target("cuda", "of matmul", forward, at | {"what": "forward"}))
        values = ("of matmul", "dense", "transformers grouped_mm", "transformers eager",
                  "scattermoe", "liger")  # fmt: skip
        found += [
            Target("cuda", v, g, at | {"what": BOTH}) for v, g in zip(values, goals, strict=True)
        ]
        found.append(Target("cuda", "kept / least", 1.1, at, most=True))
    for shape, eager in (
        ("course-e8", (1.2, 1.4)), ("course-e32", (3.8, 5.0)), ("course-e64", (16.0, 17.0)),
    ):  # fmt: skip
        for dtype, goal in zip(("float32", "bfloat16"), eager, strict=True):
            at = {"shape": shape, "dtype": dtype, "what": BOTH}
            found.append(Target("cpu", "transformers eager", goal, at))
            found.append(Target("cpu", "transformers grouped_mm", 1.1, at))
            if dtype == "float32" or shape == "course-e8":
                goal = 0.85 if dtype == "float32" else 0.75
                found += [Target("cpu", name, goal, at) for name in ("dense", "moe_lite dense")]
    for dtype in ("float32", "bfloat16"):
        for routing in ("zipf", "one-hot"):
            at = {"shape": "course-e8", "dtype": dtype, "routing": routing}
            found.append(Target("cpu", "of balanced", 1.3, at, most=True))
    return [*found, Target("cpu", "training", 1.3), Target("cpu", "generation", 1.5)]


TARGETS = _targets()


def targets(results: list[Row]) -> str:
    """Write the targets as Markdown, each with what was measured."""
    head = "| | where | moe_lite | goal | measured | possible | |\n|---|---|---|--:|--:|--:|---|\n"
    return head + "\n".join(target.line(results) for target in TARGETS)


def report(folder: Path = RESULTS) -> str:
    """Write everything the results in a folder say, as Markdown.

    Raises: FileNotFoundError if there is none.
    """
    results = {path.name: read(path) for path in sorted(folder.glob("*.json"))}
    if not results:
        raise FileNotFoundError(f"there are no results in {folder}: run `python -m moe_lite bench`")
    parts = [INTRODUCTION, targets(list(results.values()))]
    for name, result in results.items():
        parts.append(f"\n## [{name}]({name})\n\n{about(result)}")
        if "checks" in result:
            parts.append("\n" + checks(result["checks"]))
        if result["models"]:
            parts.append("\n" + models(result["models"]))
        parts.append(table(result))
    return "\n".join(parts) + "\n"


INTRODUCTION = """# Benchmark

Written by `python -m moe_lite bench --report` from the results beside it: medians of one run each;
a ratio is the median over the rounds that both took part in. *Of matmul* is the share of that
machine's own matrix product rate, without credit for padding; *kept / least* the activations kept
for the backward pass over the smallest set that could be (x, h, gates, indices); *error* the
largest relative one of output and gradients against the loop in float64. *Possible* is what a path
would show that did nothing but the products, at that rate: a goal above it cannot be met there.
*small*, as a layer and as a model of six, has 8 experts of 256, 2 for a token; *mini* is the layer
of `mixtral-mini`, 16 experts of 128, 4 for a token. A shape without rows has not been measured.

transformers' eager path makes, in each backward pass, one block of the whole stack's size for every
expert. Whether the system hands out fresh pages for them or used ones decides its time, and that
depends on what ran before: at 64 experts in float32 we saw 0.9 to 3.7 s for the same work, so its
ratio moves between 5.8 and 23 from run to run.

## Targets
"""
