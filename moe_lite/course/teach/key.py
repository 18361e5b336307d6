"""Write a chapter's answer key: each answer, and the errors that are made, ``teach key 05``.

The errors are those that the checks are tested on, so what a key says of one is what a student who
makes it reads.
"""

from __future__ import annotations

import html
from pathlib import Path

from ..build import ROOT
from .lab import Lab, assemble, solved
from .quiz import wrong_answers
from .report import STYLE

SHOWN = 8  # errors of one check


def exercise(lab: Lab, name: str, root: Path) -> list[str]:
    """Return one exercise of a key: how hard, the answer, the errors of each of its checks."""
    answers = solved(lab)
    mine = [cell for cell in lab.cells if cell.exercise == name]
    points = sum(cell.points for cell in mine)
    parts = [f"<h2>{name} {html.escape(lab.titles[name])} <small>{points:g} points</small></h2>"]
    for cell in mine:
        if cell.kind == "answer":
            parts.append(f'<pre class="right">{html.escape(answers[cell.key])}</pre>')
    for cell in (cell for cell in mine if cell.kind == "check"):
        wrong = {one.verdict: one for one in wrong_answers(cell.check, cell.name, root)}
        parts.append(f"<p>Errors in <code>{cell.name}</code>:</p><ul>" if wrong else "<ul>")
        for one in sorted(wrong.values(), key=lambda one: len(one.code))[:SHOWN]:
            parts.append(
                f"<li>{html.escape(one.verdict)}<details><summary>for instance</summary>"
                f'<pre class="wrong">{html.escape(one.code)}</pre></details></li>'
            )
        parts.append("</ul>")
    return parts


def page(chapter: str, root: Path = ROOT) -> str:
    """Return the key of a chapter's exercises as one HTML page that asks for nothing.

    Raises: ValueError if the chapter has no exercises.
    """
    lab = assemble("key", [chapter], root)
    parts = [f"<h1>Answers to the exercises of chapter {chapter}</h1>"]
    for name in lab.titles:
        parts += exercise(lab, name, root)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Key {chapter}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
