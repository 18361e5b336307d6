"""Give each student another wrong answer to diagnose: ``teach lab quiz1 05.2 --diagnose NAMES``.

A student is shown an answer that runs and is wrong, chooses its mistake among four, and repairs it.
The answers are those that the check is tested on, and the four mistakes are what it says of them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...files import commit, write
from ..build import ROOT
from .grade import run
from .lab import Cell, Lab, leaks, notebook, taken
from .quiz import LETTERS, Wrong, false_of, wrong_answers
from .verify import verify

POINTS = 2.0  # for the diagnosis; the repair has the exercise's own
MARKED = '{name} = ""  # A, B, C or D\n'


def students(path: Path) -> list[str]:
    """Read a file of names, one a line; each becomes the name of a notebook.

    Raises: ValueError if a name cannot be a file's, or stands there twice.
    """
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = [name for name in names if name]
    for name in names:
        if not re.fullmatch(r"\w[\w .@+-]*", name):
            raise ValueError(f"{path}: {name!r} cannot be the name of a file")
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"{path}: {twice} stands there twice")
    if not names:
        raise ValueError(f"{path} holds no names: write one on each line")
    return names


def bank(cell: Cell, root: Path) -> list[Wrong]:
    """List the wrong answers to a check that can be options, each with another mistake.

    Raises: ValueError if none can be shown, for want of three others whose mistake it has not.
    """
    apart = list({one.verdict: one for one in wrong_answers(cell.check, cell.name, root)}.values())
    if not to_show(apart):
        raise ValueError(
            f"{cell.exercise} {cell.check} has {len(apart)} wrong answers that can be shown; a "
            f"diagnosis needs {len(LETTERS)} whose mistakes exclude each other: take another "
            "exercise"
        )
    return apart


def to_show(apart: Sequence[Wrong]) -> list[Wrong]:
    """Return those of which three other mistakes are false."""
    return [one for one in apart if len(false_of(one, apart)) >= len(LETTERS) - 1]


def variant(base: Lab, banks: dict[str, list[Wrong]], number: int) -> Lab:
    """Return the lab of one student: of each exercise another wrong answer, with four options."""
    cells: list[Cell] = []
    shown = {check.name: banks[check.key] for check in base.checks}
    for cell in base.cells:
        name = next((name for name in cell.names if name in shown), "")
        if cell.kind != "answer" or not name:
            cells.append(cell)
            continue
        deal = random.Random(f"{base.name} {cell.key}")
        apart = list(shown[name])
        deal.shuffle(apart)
        can_be = to_show(apart)
        mine = can_be[number % len(can_be)]
        draw = random.Random(f"{base.name} {cell.key} {number}")
        options = [mine, *draw.sample(false_of(mine, apart), len(LETTERS) - 1)]
        draw.shuffle(options)
        letter = LETTERS[options.index(mine)]
        asked, said = (
            f"mistake_in_{name}",
            "\n".join(
                f"- **{at}:** {one.verdict}" for at, one in zip(LETTERS, options, strict=True)
            ),
        )
        text = (
            f"### A wrong answer\n\nSomebody answered with the `{name}` below. It runs and is "
            f"wrong. What is its mistake?\n\n{said}\n\nWrite the letter between the quotation "
            f"marks ({POINTS:g} points). Then repair `{name}`, until its check is content."
        )
        key, of = cell.key, cell.exercise
        marked = f'### BEGIN SOLUTION\n{asked} = "{letter}"\n### END SOLUTION'
        cells += [
            Cell(f"text-{key}-mistake", "text", text, of),
            Cell(f"{key}-mistake", "answer", MARKED.format(name=asked), of, marked, (asked,)),
            Cell(f"check-{key}-mistake", "check", f"print({asked})  # graded when handed in", of,
                 check=f"mistake in {name}", name=asked, points=POINTS, expects=letter),
            replace(cell, source=mine.code),
        ]  # fmt: skip
    return replace(base, cells=tuple(cells))


def prove(base: Lab, labs: dict[str, Lab], banks: dict[str, list[Wrong]], root: Path) -> str:
    """Prove one lab whole, and of every other that its wrong answers are refused as it says.

    Raises: ValueError as :func:`verify.verify` does, or with the answer that is taken otherwise.
    """
    said = verify(next(iter(labs.values())), root)
    steps: list[dict[str, Any]] = [
        {"kind": "run", "key": cell.key, "source": cell.source}
        for cell in base.cells
        if cell.kind == "given"
    ]
    expected: dict[int, Wrong] = {}
    for cell in base.checks:
        for one in banks[cell.key]:
            steps.append({"kind": "run", "key": f"{cell.key} {one.name}", "source": one.code})
            expected[len(steps)] = one
            steps.append(
                {
                    "kind": "check",
                    "key": cell.key,
                    "check": cell.check,
                    "name": cell.name,
                    "seed": 0,
                }
            )
    reports = run(steps, 10 * base.limit_s, base.memory_gb)
    for at, one in expected.items():
        if reports[at]["status"] != "wrong" or one.verdict not in reports[at].get("said", ""):
            raise ValueError(f"the wrong answer {one.name} is not told {one.verdict!r} in this lab")
    return (
        f"{said}; {len(expected)} wrong answers for {len(labs)} students, each told as it must be"
    )


def make(
    base: Lab, names: Sequence[str], folder: Path, root: Path = ROOT, replaces: bool = False
) -> str:
    """Write a lab in which each student has a notebook of their own, once it is proved.

    Raises: as :func:`lab.make` does.
    """
    taken(folder, replaces)
    banks = {cell.key: bank(cell, root) for cell in base.checks}
    labs = {name: variant(base, banks, number) for number, name in enumerate(names)}
    said = prove(base, labs, banks, root)
    with commit(folder, replaces=lambda name: name in ("release", "variants")) as part:
        for place in ("release", "variants"):
            (part / place).mkdir()
        for name, lab in labs.items():
            text = json.dumps(notebook(lab), ensure_ascii=False, indent=1) + "\n"
            write(part / "release" / f"{name}.ipynb", text)
            lab.save(part / "variants" / f"{name}.json")
            if told := leaks(lab, part / "release"):
                raise ValueError(f"the released lab would give answers away: {told[0]}")
        labs[names[0]].save(part / "lab.json")
        if not (folder / "submitted").exists():
            (part / "submitted").mkdir()
    return said
