"""Write a lab as an nbgrader course, for who has one: source/, its marks and its settings.

nbgrader is not needed to write it; its ``generate_assignment`` then cuts the solutions and the
hidden tests, and its ``autograde`` runs them. ``teach grade`` needs none of this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...files import check_writable, write
from ..build import CUT
from .lab import Lab, notebook

HIDDEN = """
### BEGIN HIDDEN TESTS
import sys as _sys
import moe_lite.course as _course
for _name in [name for name in _sys.modules if name.startswith("moe_lite.course.checks")]:
    del _sys.modules[_name]  # a changed check judges nothing: these are fetched anew
vars(_course).pop("checks", None)
import moe_lite.course.checks as _sealed
_sealed.check_{check}({name})
### END HIDDEN TESTS"""
CONFIG = """c = get_config()
c.CourseDirectory.course_id = "moe-lite"
c.ExecutePreprocessor.timeout = {limit:g}
c.Execute.timeout = {limit:g}
c.ClearSolutions.code_stub = {{"python": {stub!r}}}
c.IncludeHeaderFooter.header = ""
"""


def course(lab: Lab) -> dict[str, Any]:
    """Return a lab as nbgrader's source notebook: marks, points, locks and hidden tests."""
    made = notebook(lab, {cell.key: cell.solution for cell in lab.cells if cell.kind == "answer"})
    for cell, written in zip(lab.cells, made["cells"], strict=True):
        is_check = cell.kind == "check"
        written["metadata"]["nbgrader"] = {
            "grade": is_check,
            "solution": cell.kind == "answer",
            "locked": cell.kind != "answer",
            "task": False,
            "schema_version": 3,
            "grade_id": cell.key,
            "cell_type": written["cell_type"],
        } | ({"points": cell.points} if is_check else {})
        if is_check:
            source = cell.source + HIDDEN.format(check=cell.check, name=cell.name)
            written["source"] = source.splitlines(keepends=True)
    return made


def export(lab: Lab, folder: Path) -> None:
    """Write a lab into an nbgrader course; its settings are written where there are none yet."""
    source = check_writable(folder / "source" / lab.name)
    text = json.dumps(course(lab), ensure_ascii=False, indent=1) + "\n"
    write(source / f"{lab.name}.ipynb", text)
    settings = folder / "nbgrader_config.py"
    if not settings.exists():
        write(settings, CONFIG.format(limit=lab.limit_s, stub="\n".join(CUT)))
