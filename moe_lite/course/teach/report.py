"""Write what grading gave: a table, a page for each student, and what a person should look at.

Every page is one file of text and style, without a script or an address.
"""

from __future__ import annotations

import ast
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from ...files import commit, write
from .grade import Graded
from .lab import Lab
from .screen import parse

TWINS = 50  # nodes of a tree: shorter answers are alike by nature
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.6rem .8rem;"
    "border-left:4px solid #888;margin:.3rem 0 1.2rem}.right{border-color:#009e73}"
    ".wrong{border-color:#d55e00}h2{font-size:1.1rem;margin-bottom:.2rem}"
)


def table(lab: Lab, graded: Sequence[Graded]) -> str:
    """Return the grades as CSV: a row for each student, a column for each check."""
    rows = io.StringIO()
    out = csv.writer(rows, lineterminator="\n")
    heads = [f"{cell.exercise} {cell.check}" for cell in lab.checks]
    out.writerow(["student", "points", "of", *heads, "look"])
    for one in graded:
        each = [
            f"{cell.points if result.status == 'right' else 0:g}"
            for cell, result in zip(lab.checks, one.results, strict=True)
        ]
        # A name that begins so would be a formula where a spreadsheet opens the file.
        name = "'" + one.student if one.student[:1] in "=+-@\t" else one.student
        points = f"{one.points(lab):g}"
        out.writerow([name, points, f"{lab.points:g}", *each, len(one.looks) or ""])
    return rows.getvalue()


def feedback(lab: Lab, one: Graded) -> str:
    """Return a student's page: the verdict on each answer, in the check's own words."""
    parts = [
        f"<h1>{html.escape(lab.name)}: {html.escape(one.student)}</h1>",
        f"<p><strong>{one.points(lab):g} of {lab.points:g} points</strong></p>",
    ]
    for cell, result in zip(lab.checks, one.results, strict=True):
        right = result.status == "right"
        mark = f"✓ {cell.points:g}" if right else "✗ 0"
        title = html.escape(f"{cell.exercise} {lab.titles.get(cell.exercise, '')}")
        said = html.escape(result.said or ("right" if right else result.status))
        parts.append(
            f"<h2>{title} <small>({html.escape(cell.name)})</small>: "
            f"{mark} of {cell.points:g}</h2>\n"
            f'<pre class="{"right" if right else "wrong"}">{said}</pre>'
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(lab.name)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def shape(source: str) -> str:
    """Return an answer without what is easily changed: names, comments, docstrings, layout."""
    tree = parse(source)
    if tree is None:
        return ""
    order: dict[str, str] = {}
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            body.pop(0)  # type: ignore[union-attr]
        if isinstance(node, ast.Name):
            node.id = order.setdefault(node.id, f"n{len(order)}")
        elif isinstance(node, ast.arg):
            node.arg, node.annotation = order.setdefault(node.arg, f"n{len(order)}"), None
        elif isinstance(node, ast.FunctionDef):
            node.name, node.returns = "f", None
    return ast.dump(tree)


def twins(lab: Lab, graded: Sequence[Graded]) -> list[str]:
    """List groups of students whose longer answers are one, but for names and layout."""
    given = {cell.key: shape(cell.solution) for cell in lab.cells if cell.kind == "answer"}
    exercises = {cell.key: cell.exercise for cell in lab.cells}
    groups: dict[tuple[str, str], list[str]] = {}
    for one in graded:
        for key, source in one.answers.items():
            try:
                mine = shape(source)
            except (RecursionError, MemoryError):
                continue
            if mine.count("(") > TWINS and mine != given.get(key):
                groups.setdefault((key, mine), []).append(one.student)
    same: dict[tuple[str, ...], list[str]] = {}
    for (key, _), students in groups.items():
        if len(students) > 1:
            same.setdefault(tuple(students), []).append(exercises[key])
    return [
        f"{', '.join(who[:-1])} and {who[-1]} gave one answer to {', '.join(sorted(set(to)))}"
        for who, to in same.items()
    ]


def to_look_at(lab: Lab, graded: Sequence[Graded]) -> str:
    """Return the short list of what a person should look at, most of it first."""
    lines = [f"# {lab.name}: look at these", ""]
    for one in sorted(graded, key=lambda one: -len(one.looks)):
        if one.looks:
            lines.append(f"- **{one.student}** ({one.points(lab):g} of {lab.points:g} points)")
            shown = list(dict.fromkeys(one.looks))
            lines += [f"  - {' '.join(look.split())[:300]}" for look in shown[:8]]
            lines += [f"  - and {len(shown) - 8} more"] * (len(shown) > 8)
    lines += [f"- {pair}" for pair in twins(lab, graded)]
    # A check that nobody passes says more about the lab than about the students.
    for at, cell in enumerate(lab.checks):
        tried = [one.results[at] for one in graded if one.results[at].status != "empty"]
        if len(tried) >= 3 and all(result.status != "right" for result in tried):
            lines.append(f"- nobody passed {cell.exercise} {cell.check}, of {len(tried)} who tried")
    if len(lines) == 2:
        lines.append("Nothing.")
    return "\n".join(lines) + "\n"


def sound(text: str) -> str:
    """Return a text that UTF-8 can hold, whatever a student raised or called a file."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def publish(lab: Lab, graded: Sequence[Graded], folder: Path) -> None:
    """Write grades.csv, look.md and feedback/, all of it or nothing; older pages go."""
    with commit(folder, replaces=lambda name: name == "feedback") as part:
        write(part / "grades.csv", sound(table(lab, graded)))
        write(part / "look.md", sound(to_look_at(lab, graded)))
        (part / "feedback").mkdir()
        for one in graded:
            write(part / "feedback" / f"{one.student}.html", sound(feedback(lab, one)))
