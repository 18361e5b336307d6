"""Make concept questions out of the tested wrong answers: ``python -m moe_lite teach quiz 06``.

No question is written by hand. Its code is an answer that somebody gave, its options are what the
check says of this one and of others, and every one of them is put to the check as the quiz is made.
What is said of another may be true of this code as well, which no check can tell. So every pair was
judged by reading, and a file of mutants begins with what was found: "Also true of a: b, c." says
that the verdicts on b and c are true of the code of a, or can be taken for it; neither is offered
there as wrong. "Also true of all: d." says that what is said of d is no distractor at all.
"""

from __future__ import annotations

import ast
import contextlib
import html
import importlib.util
import io
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import checks
from ..build import ROOT, cut
from .lab import CHECK, NUMBERED, sections
from .report import STYLE

LINES = 9  # of code on a slide or a page
QUESTIONS = 5  # a chapter has at least so many
LETTERS = "ABCD"
ALSO = re.compile(r"^Also true of (\w+): ([\w,\s]+)\.$", re.M)


@dataclass(frozen=True)
class Wrong:
    """Hold a tested wrong answer: its code, and what its check says of it."""

    name: str
    code: str
    verdict: str
    also: frozenset[str] = frozenset()  # what is said of others and is true of this code too


@dataclass(frozen=True)
class Question:
    """Hold a question: (option, what the check says of it) in order; ``right`` is an index."""

    exercise: str
    stem: str
    code: str
    options: tuple[tuple[str, str], ...]
    right: int
    mutants: tuple[str, ...]  # those that it is made of
    check: str


def body(source: str, name: str, called: str) -> str:
    """Return one function of a source as it is shown: without docstring and under another name.

    Empty if it is no function, is too long, or needs others of the same file.
    """
    tree = ast.parse(source)
    others = {node.name for node in tree.body if hasattr(node, "name")} - {name}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            if {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & others:
                return ""
            if ast.get_docstring(node):
                node.body.pop(0)
            node.name, node.returns = called, None
            for arg in node.args.args:
                arg.annotation = None
            code = ast.unparse(node) if node.body else ""
            lines = code.splitlines()
            return code if len(lines) <= LINES and max(map(len, lines), default=99) <= 88 else ""
    return ""


def verdict(check: str, answer: object) -> str | None:
    """Return the sentence with which a check refuses an answer; None if it passes.

    Empty if it does not run at all.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(checks, f"check_{check}")(answer)
    except checks.CheckFailed as error:
        who, _, said = str(error).splitlines()[0].partition(": ")
        return "" if " raised " in who else said
    return None


def wrong_answers(check: str, name: str, root: Path = ROOT) -> list[Wrong]:
    """List the mutants of a check that can be shown, each with its verdict.

    Raises: ValueError if one of them passes, or if "Also true of" names one that is not shown.
    """
    path = root / "tests" / "mutants" / f"check_{check}.py"
    spec = importlib.util.spec_from_file_location(f"mutants_{check}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        return []
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source, found = path.read_text(encoding="utf-8"), []
    for here, value in list(vars(module).items()):  # the wrong ones may bring names along
        if here.lower().startswith(("right", "_")) or not getattr(value, "__doc__", ""):
            continue
        if getattr(value, "__module__", "") == module.__name__ and (
            code := body(source, here, name)
        ):
            if (said := verdict(check, value)) is None:
                raise ValueError(f"check_{check} passes the mutant {here}")
            if said:
                found.append(Wrong(here, code, said))
    told = {one.name: one.verdict for one in found}
    also: dict[str, set[str]] = {name: set() for name in ("all", *told)}
    for of, names in ALSO.findall(module.__doc__ or ""):
        try:
            also[of] |= {told[other.strip()] for other in names.split(",")}
        except KeyError as error:
            raise ValueError(f"check_{check} has no mutant {error} to show") from None
    return [
        replace(one, also=frozenset((also["all"] | also[one.name]) - {one.verdict}))
        for one in found
    ]


def questions(chapter: str, root: Path = ROOT) -> list[Question]:
    """Return the questions of a chapter, exercise by exercise: at least five, or as many as it has.

    Raises: ValueError if the chapter has no exercises.
    """
    paths = sorted((root / "solutions").glob(f"{chapter}_*.py"))
    if not paths:
        raise ValueError(f"chapter {chapter} has no exercises, so no quiz can be made of them")
    banks: list[list[Question]] = []
    for head, cells in sections(paths[0]):
        solved: dict[str, str] = {}
        for kind, source in cells:
            match = CHECK.search(source) if kind == "code" else None
            if kind == "code" and "### BEGIN SOLUTION" in source:
                solved |= {
                    node.name: cut(source, solved=True)
                    for node in ast.parse(cut(source, solved=True)).body
                    if isinstance(node, ast.FunctionDef)
                }
            if match and (number := NUMBERED.match(head)):
                exercise = f"{chapter}.{number[1]} {number[2]}"
                wrong = wrong_answers(match[1], match[2], root)
                right = body(solved.get(match[2], ""), match[2], match[2])
                banks.append(bank(exercise, match[1], right, wrong))
    found: list[Question] = []
    for depth in range(max(map(len, banks), default=0)):  # the exercises in turn
        if len(found) >= max(QUESTIONS, len(banks)):
            break
        found += [each[depth] for each in banks if depth < len(each)]
    return found


def false_of(one: Wrong, others: Sequence[Wrong]) -> list[Wrong]:
    """Return those whose verdict is false of this code."""
    return [other for other in others if other.verdict not in one.also | {one.verdict}]


def bank(exercise: str, check: str, right: str, wrong: Sequence[Wrong]) -> list[Question]:
    """Make the questions of one check: what is wrong with this code, and which code is right.

    Of a code of which fewer than three other verdicts are false, nothing is asked.
    """
    draw, found = random.Random(f"{exercise} {check}"), []
    apart = list({one.verdict: one for one in wrong}.values())
    draw.shuffle(apart)

    def ask(stem: str, code: str, first: tuple[str, str], others: list[tuple[str, str]],
            used: Sequence[Wrong]) -> None:  # fmt: skip
        options = [first, *others]
        draw.shuffle(options)
        names = tuple(one.name for one in used)
        found.append(
            Question(exercise, stem, code, tuple(options), options.index(first), names, check)
        )

    for at, one in enumerate(apart):
        used = [one, *false_of(one, [*apart[at:], *apart[:at]])][: len(LETTERS)]
        if len(used) < len(LETTERS):
            continue
        whys = [(other.verdict, f"That would be: {other.code}") for other in used[1:]]
        ask("This runs and is wrong. What is the mistake?", one.code, (one.verdict, "Yes."), whys,
            used)  # fmt: skip
    if right:  # it may need what its notebook gives
        space: dict[str, object] = {}
        exec("import math\nimport torch\nimport torch.nn.functional as F\n" + right, space)
        name = right.partition("def ")[2].partition("(")[0]
        right = "" if verdict(check, space[name]) is not None else right
    short = [one for one in apart if one.code.count("\n") < 4]
    if right and right.count("\n") < 5 and len(short) > 2:
        options = [(one.code, f"No: {one.verdict}.") for one in short[:3]]
        ask("All four run. Which one is right?", "", (right, "Yes."), options, short[:3])
    return found


def page(chapter: str, asked: Sequence[Question]) -> str:
    """Return a quiz as one HTML page: on paper without the answers, on a screen with a click."""
    parts = [f"<h1>Questions on chapter {chapter}</h1>"]
    for number, one in enumerate(asked, 1):
        parts.append(f"<h2>{number}. {html.escape(one.stem)}</h2>")
        parts.append(f"<p><small>{html.escape(one.exercise)}</small></p>")
        if one.code:
            parts.append(f"<pre>{html.escape(one.code)}</pre>")
        parts.append('<ol type="A">')
        tag = "span" if one.code else "pre"
        parts += [f"<li><{tag}>{html.escape(text)}</{tag}></li>" for text, _ in one.options]
        parts.append("</ol><details><summary>Answer</summary>")
        parts.append(f"<p><strong>{LETTERS[one.right]}</strong></p>")
        for letter, (_, why) in zip(LETTERS, one.options, strict=True):
            parts.append(f"<pre>{letter}: {html.escape(why)}</pre>")
        parts.append("</details>")
    style = STYLE + "@media print{details{display:none}h2{break-after:avoid}}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Chapter {chapter}'
        f"</title><style>{style}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def gift(asked: Sequence[Question]) -> str:
    """Return a quiz in GIFT, which Moodle and others import."""

    def safe(text: str) -> str:
        return re.sub(r"([~=#{}:\\])", r"\\\1", html.escape(text)).replace("\n", "\\n")

    found = []
    for number, one in enumerate(asked, 1):
        code = f"<pre>{safe(one.code)}</pre>" if one.code else ""
        options = [
            f"  {'=' if at == one.right else '~'}{'' if one.code else '<pre>'}{safe(text)}"
            f"{'' if one.code else '</pre>'}#{safe(why)}"
            for at, (text, why) in enumerate(one.options)
        ]
        name = f"::{safe(one.exercise)}, {number}::[html]"
        found.append("\n".join([f"{name}{safe(one.stem)}{code} {{", *options, "}"]))
    return "\n\n".join(found) + "\n"
