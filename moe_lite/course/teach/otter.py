"""Write a lab in the format of otter-grader's ``otter assign``, for who grades with it.

Otter is not needed to write it. Its usual tests compare what is printed; a check prints "✓", so
these are functions that raise (``ok_format: false``), and hidden: students keep the check's own
cell, with its sentence.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ...files import check_writable, write
from .lab import Cell, Lab, notebook

CONFIG = """# ASSIGNMENT CONFIG
generate: true
export_cell: false
tests:
  files: true
  ok_format: false
"""
QUESTION = """# BEGIN QUESTION
name: {name}
points: {points:g}
"""
TEST = '''""" # BEGIN TEST CONFIG
points: {points:g}
hidden: true
""" # END TEST CONFIG
def test_{check}({name}):
    from moe_lite.course import checks
    checks.check_{check}({name}, seed={seed})
'''


def raw(key: str, source: str) -> dict[str, Any]:
    """Return a raw cell: how otter is told where a part begins and ends."""
    return {
        "cell_type": "raw", "id": key, "metadata": {}, "source": source.splitlines(keepends=True),
    }  # fmt: skip


def question(cell: Cell, written: dict[str, Any], lab: Lab) -> list[dict[str, Any]]:
    """Return an answer's cell as a question, with the tests of all that it defines."""
    checks = [one for one in lab.checks if one.name in cell.names]
    source = re.sub(r"### (BEGIN|END) SOLUTION", r"# \1 SOLUTION", cell.solution)
    solved = written | {"source": source.splitlines(keepends=True)}
    tests: list[dict[str, Any]] = []
    for one in checks:
        test = TEST.format(check=one.check, name=one.name, points=one.points, seed=lab.seed)
        tests.append(
            {"cell_type": "code", "id": f"test-{one.check}", "metadata": {}, "outputs": [],
             "execution_count": None, "source": test.splitlines(keepends=True)}
        )  # fmt: skip
    name, points = cell.key.replace("-", "_"), sum(one.points for one in checks)
    ends = {
        at: raw(f"{cell.key}-{number}", f"# {at}")
        for number, at in enumerate(
            ("BEGIN SOLUTION", "END SOLUTION", "BEGIN TESTS", "END TESTS", "END QUESTION")
        )
    }
    return [
        raw(f"{cell.key}-asked", QUESTION.format(name=name, points=points)),
        ends["BEGIN SOLUTION"], solved, ends["END SOLUTION"],
        ends["BEGIN TESTS"], *tests, ends["END TESTS"], ends["END QUESTION"],
    ]  # fmt: skip


def source(lab: Lab) -> dict[str, Any]:
    """Return a lab as the notebook that ``otter assign`` takes."""
    made = notebook(lab)
    cells = [raw("assignment", CONFIG)]
    for cell, written in zip(lab.cells, made["cells"], strict=True):
        written["metadata"] = {}
        cells += question(cell, written, lab) if cell.kind == "answer" else [written]
    return made | {"cells": cells}


def export(lab: Lab, folder: Path) -> Path:
    """Write FOLDER/NAME.ipynb for ``otter assign``; give its path."""
    path = check_writable(folder) / f"{lab.name}.ipynb"
    write(path, json.dumps(source(lab), ensure_ascii=False, indent=1) + "\n")
    return path
