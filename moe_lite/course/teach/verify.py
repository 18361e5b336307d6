"""Prove that a lab grades as it must, before anyone is given it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .grade import run, weigh
from .lab import Lab, solved


def verify(lab: Lab, root: Path) -> str:
    """Grade the solution, an empty notebook and every mutant; say how many there were.

    Raises: ValueError if the solution has less than all points, an empty notebook more than none,
            a mutant passes, a given cell fails with the right answers before it, or something
            in the solution is for a person to look at.
    """
    # 1. the solution, with the given cells running as students will see them run
    right = weigh(lab, "the solution", solved(lab))
    for cell, result in zip(lab.checks, right.results, strict=True):
        if result.status != "right":
            raise ValueError(f"{cell.exercise} {cell.check}: its own solution fails: {result.said}")
    for key, said in right.given.items():
        raise ValueError(
            f"the cell {key} fails in this lab, {said}: it needs another exercise of its chapter, "
            f"so take that too"
        )
    for look in right.looks:
        raise ValueError(f"the lab's own solution would be looked at: {look}")
    # 2. nothing filled in
    for cell, result in zip(lab.checks, weigh(lab, "nobody", {}).results, strict=True):
        if result.status == "right":
            raise ValueError(f"{cell.exercise} {cell.check} passes with nothing filled in")
    # 3. every wrong answer that the check was tested on
    steps: list[dict[str, Any]] = []
    tested = [cell for cell in lab.checks if not cell.expects]
    for cell in tested:
        path = root / "tests" / "mutants" / f"check_{cell.check}.py"
        if not path.is_file():
            raise ValueError(f"{cell.exercise} {cell.check}: there are no mutants, {path.name}")
        steps.append(
            {"kind": "mutants", "key": cell.key, "check": cell.check, "path": str(path),
             "seed": lab.seed}
        )  # fmt: skip
    count = 0
    for cell, report in zip(tested, run(steps, 10 * lab.limit_s, lab.memory_gb), strict=True):
        if report["status"] != "tried":
            raise ValueError(f"{cell.exercise} {cell.check}: its mutants could not be tried")
        if report["passed"]:
            raise ValueError(f"{cell.exercise} {cell.check} passes {report['passed'][0]}")
        count += report["count"]
    checks = len(tested)
    return (
        f"the solution has {lab.points:g} of {lab.points:g} points, an empty notebook 0, "
        f"and {checks} checks refuse {count} mutants"
    )
