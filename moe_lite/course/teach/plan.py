"""Read chapters as a lecture reads them, and plan its minutes: ``teach plan 04 06``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..build import ROOT
from .lab import SECTION, read_cells

WORDS = 130  # that are spoken in a minute
TRY, VOTE, CODE = 4, 3, 1  # minutes for a widget or "your turn", for a question, for a cell
LAST = ("Exercises", "In four lines", "In five lines", "In six lines")
BOLD = re.compile(r"\*\*([^*]+)\*\*")
TURN = re.compile(r"\*\*(?:Your turn|Try it|Predict)\b")


@dataclass
class Section:
    """Hold a section of a chapter: its title, its cells, and the pictures its cells drew."""

    title: str
    texts: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)  # (base64 PNG, what is said next)
    prints: list[str] = field(default_factory=list)  # what its cells printed

    @property
    def words(self) -> int:
        return sum(len(text.split()) for text in self.texts)

    @property
    def tries(self) -> int:
        return sum(len(TURN.findall(text)) for text in self.texts)

    @property
    def claims(self) -> list[str]:
        """What the section itself sets in bold, as sentences."""
        text = "\n".join(self.texts)
        found = [" ".join(one.split()) for one in BOLD.findall(text) if not TURN.match(f"**{one}")]
        return [one for one in found if one.endswith((".", "!", "?")) or len(one.split()) > 4]

    @property
    def sentences(self) -> list[str]:
        """The sentences that a slide can hold: those that begin a paragraph or an item first."""
        firsts, rest = [], []
        told = re.sub(r"<details>.*?</details>|\[\^", "", self.text, flags=re.S)
        told = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", told)
        for part in re.split(r"\n\s*\n|\n(?=- )", told):
            part = " ".join(part.split()).removeprefix("- ")
            if re.match(r"[\w*`$]", part) and not part.startswith("$$") and not TURN.match(part):
                said = re.split(r"(?<=[.?!])\s", part)
                kept = [one for one in said if 4 <= len(one.split()) <= 32 and one[-1] in ".?!"]
                firsts += kept[:1]
                rest += kept[1:]
        return firsts + rest

    @property
    def text(self) -> str:
        return "\n\n".join(self.texts)


@dataclass
class Chapter:
    """Hold a chapter: its number, question, goals and sections."""

    number: str
    question: str
    goals: list[str]
    intro: Section
    sections: list[Section]

    @property
    def taught(self) -> list[Section]:
        return [one for one in self.sections if one.title not in LAST]

    def section(self, title: str) -> Section:
        """Find a section by its title, without its number.

        Raises: ValueError if there is none; it says which there are.
        """
        for one in self.sections:
            if one.title == title:
                return one
        there = "; ".join(one.title for one in self.sections)
        raise ValueError(f"chapter {self.number} has no section {title!r}; it has: {there}")


def chapters(root: Path = ROOT) -> list[str]:
    """List the numbers of the chapters that there are."""
    return sorted({path.name[:2] for path in (root / "notebooks").glob("[0-9][0-9]_*.py")})


def cells(path: Path) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return the (kind, source, outputs) of a built notebook's cells, or of a source's.

    Raises: ValueError if the notebook is none.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return [(kind, source, []) for kind, source in read_cells(text)]
    try:
        return [
            (cell["cell_type"], "".join(cell["source"]), cell.get("outputs", []))
            for cell in json.loads(text)["cells"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no notebook: `python -m moe_lite build` makes it") from None


def read(number: str, root: Path = ROOT) -> Chapter:
    """Read a chapter: the built notebook, for its pictures, or its source where none is built.

    Raises: ValueError if there is no such chapter.
    """
    found = sorted((root / "notebooks").glob(f"{number}_*.py"))
    if not re.fullmatch(r"\d\d", number) or not found:
        there = ", ".join(chapters(root)) or "none, for this is no clone of the course"
        raise ValueError(f"there is no chapter {number}; there are: {there}")
    built = found[0].with_suffix(".ipynb")
    intro, sections = Section(""), []
    at = intro
    waiting: list[str] = []
    for kind, source, outputs in cells(built if built.is_file() else found[0]):
        if kind == "code":
            at.codes.append(source)
            for output in outputs:
                at.prints += ["".join(output["text"])] if output.get("name") == "stdout" else []
                picture = output.get("data", {}).get("image/png")
                waiting += ["".join(picture)] if picture else []
            continue
        parts = [part for part in SECTION.split(source) if part.strip()]
        said = re.split(r"(?<=[.?!])\s", " ".join(plain(parts[0]).split()))[0] if parts else ""
        at.pictures += [(picture, said) for picture in waiting]
        waiting = []
        for part in parts:
            if part.startswith("## "):
                head, _, part = part.partition("\n")
                at = Section(re.sub(r"^## (?:\d+\. )?", "", head).strip())
                sections.append(at)
            at.texts.append(part.strip())
    at.pictures += [(picture, at.title) for picture in waiting]
    text = "\n".join(intro.texts)
    bullets = re.findall(r"^- (.+(?:\n  .+)*)", text, re.M)
    goals = [" ".join(goal.split()).rstrip(";.") for goal in bullets]
    question = next((line[2:] for line in text.splitlines() if line.startswith("# ")), number)
    return Chapter(number, question, goals, intro, sections)


def plain(text: str) -> str:
    """Return markdown as it is spoken: no links, marks, headings, tables or HTML."""
    text = re.sub(r"<details>.*?</details>|<[^>]+>", "", text, flags=re.S)
    text = re.sub(r"^\s*(?:[|#].*|[-*] )", "", text, flags=re.M)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[*`]", r"\1", text).strip()


@dataclass(frozen=True)
class Row:
    """Hold one line of a plan: whole minutes, what kind of work, and what it is."""

    minutes: int
    kind: str  # talk, live, vote
    what: str


def wish(one: Section) -> float:
    """Return the minutes that a section would like: to speak it, to try it, to show its cells."""
    return max(2.0, 0.5 * one.words / WORDS + TRY * one.tries + 0.5 * CODE * len(one.codes))


def schedule(chapter: Chapter, minutes: int, votes: int = 3) -> tuple[list[Row], list[str]]:
    """Share out minutes among a chapter's sections; give the rows, and what was cut, last first.

    What has nothing to try goes first, from the end; the first two sections stay. The rows' minutes
    add up to what was asked for.

    Raises: ValueError if that is too little to teach anything in.
    """
    if minutes < 10:
        raise ValueError(f"{minutes} minutes are too few for chapter {chapter.number}: take 10")
    votes = min(votes, minutes // 15)
    kept, cuts = list(chapter.taught), []
    left = minutes - VOTE * votes - 2  # two for the question and the recap
    while sum(map(wish, kept)) > 1.15 * left and len(kept) > 2:
        spare = [one for one in kept[2:] if not one.tries] or kept[2:]
        kept.remove(spare[-1])
        cuts.append(spare[-1].title)
    wishes = [wish(one) for one in kept]
    ends = [round(left * sum(wishes[: at + 1]) / sum(wishes)) for at in range(len(kept))]
    rows = [Row(1, "talk", chapter.question)]
    every = len(kept) / (votes + 1)
    due = [round(every * (n + 1)) for n in range(votes)]
    for at, (one, end) in enumerate(zip(kept, ends, strict=True)):
        rows.append(
            Row(end - (ends[at - 1] if at else 0), "live" if one.tries else "talk", one.title)
        )
        rows += [Row(VOTE, "vote", "a question of `teach quiz`")] * due.count(at + 1)
    rows += [Row(VOTE, "vote", "a question of `teach quiz`")] * sum(n < 1 for n in due)
    return [*rows, Row(1, "talk", "what to keep, and the exercises")], cuts


def page(numbers: Sequence[str], minutes: int, root: Path = ROOT) -> str:
    """Return the plan of one lecture over one or several chapters, as Markdown."""
    taught = [read(number, root) for number in numbers]
    weights = [sum(map(wish, chapter.taught)) for chapter in taught]
    ends = [round(minutes * sum(weights[: at + 1]) / sum(weights)) for at in range(len(taught))]
    lines, clock = (
        [f"# {minutes} minutes: chapter{'s' * (len(taught) > 1)} {', '.join(numbers)}"],
        0,
    )
    for at, chapter in enumerate(taught):
        rows, cuts = schedule(chapter, ends[at] - (ends[at - 1] if at else 0))
        lines += ["", f"## {chapter.number}: {chapter.question}", ""]
        if chapter.goals:
            lines += ["They can, afterwards:", "", *(f"- {goal}" for goal in chapter.goals), ""]
        lines += ["| at | minutes | | what |", "|--:|--:|---|---|"]
        for row in rows:
            lines.append(
                f"| {clock // 60}:{clock % 60:02} | {row.minutes} | {row.kind} | {row.what} |"
            )
            clock += row.minutes
        if cuts:
            lines += ["", f"Left for reading: {'; '.join(reversed(cuts))}."]
        spare = [one.title for one in reversed(chapter.taught) if one.title not in cuts][:3]
        lines += ["", f"If it runs late, cut first: {'; then '.join(spare)}."]
    return "\n".join([*lines, "", f"Together: {clock} minutes."]) + "\n"
