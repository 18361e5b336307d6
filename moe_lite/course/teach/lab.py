"""Make a lab out of exercises: release/ for students, a key for teachers, and proof that it grades.

The source is the course's own, solutions/NN.py: what stands between the marks is the answer, what
calls a check is the test, and everything else is given. Nothing is written twice, and nothing is
written at all unless the lab has graded its own solution, an empty notebook and every mutant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...files import commit, write
from .. import build

MARKED = re.compile(r"^# %%", re.M)
SECTION = re.compile(r"^(?=## )", re.M)
NUMBERED = re.compile(r"## (\d+)\. (.+)")
HARD = re.compile(r"\*Difficulty (●+)○* · importance [●○]+ · (\d+) minutes\*")
CHECK = re.compile(r"^checks\.check_(\w+)\((\w+)\)$", re.M)
LINK = re.compile(r"\[([^\]]+)\]\(\.\./(?:notebooks|solutions|exercises)/(\d\d)_\w+\.ipynb[^)]*\)")
ASKED = re.compile(r"^(?:def|class) (\w+)|^(\w+)(?:: [^=\n]+)? = ", re.M)
EXERCISE = re.compile(r"(\d\d)(?:\.(\d+)(?:=(\d+(?:\.\d+)?))?)?")


@dataclass(frozen=True)
class Cell:
    """Hold one cell of a lab.

    kind is "text", "given", "answer" or "check"; key names it, in every copy that students make.
    """

    key: str
    kind: str
    source: str  # as released: an answer's is unfilled
    exercise: str = ""  # "05.2"
    solution: str = ""  # of an answer: filled, between its marks
    names: tuple[str, ...] = ()  # of an answer: what it defines
    check: str = ""  # of a check: "rank", for checks.check_rank
    name: str = ""  # of a check: what it is called with
    points: float = 0.0
    expects: str = ""  # of a check without a function of its own: the word that is right


@dataclass(frozen=True)
class Lab:
    """Hold a lab: its cells in order, and the limits of its grading."""

    name: str
    cells: tuple[Cell, ...]
    limit_s: float = 60.0  # of computing, for one cell
    memory_gb: float = 4.0
    seed: int = 0  # of the checks as they grade; in the notebook they take 0
    titles: Mapping[str, str] = field(default_factory=dict)  # "05.2" -> "Stand in line"

    @property
    def checks(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind == "check"]

    @property
    def points(self) -> float:
        return sum(cell.points for cell in self.checks)

    @property
    def makers(self) -> dict[str, Cell]:
        """The answer cell of each name that a check is called with."""
        names = {cell.name for cell in self.checks}
        answers = [cell for cell in self.cells if cell.kind == "answer"]
        return {name: cell for cell in answers for name in cell.names if name in names}

    def save(self, path: Path) -> None:
        """Write it as JSON, which holds the solutions: it stays with the teacher."""
        write(path, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, student: str = "") -> Lab:
        """Read a lab from its folder: everybody's, or a student's where each has another one.

        Raises: ValueError if there is none that `teach lab` made.
        """
        path = folder / "lab.json"
        if student and (folder / "variants").is_dir():
            path = folder / "variants" / f"{student}.json"
            if not path.is_file():
                raise ValueError(f"no variant of this lab was made for {student}")
        if not path.is_file():
            raise ValueError(f"there is no lab in {folder}: `teach lab` makes one")
        try:
            made = json.loads(path.read_text(encoding="utf-8"))
            cells = tuple(Cell(**cell | {"names": tuple(cell["names"])}) for cell in made["cells"])
            return cls(**made | {"cells": cells})
        except (TypeError, KeyError, ValueError, RecursionError):
            raise ValueError(f"{path} is not a lab as `teach lab` makes it") from None


# --- from the course's sources to a lab's cells --------------------------------------------------


def chosen(asked: Sequence[str]) -> dict[str, dict[int, float | None]]:
    """Return the exercises of each chapter, with their points where they are given.

    >>> chosen(["05.2=6", "10"])
    {'05': {2: 6.0}, '10': {}}

    Args:   asked: "10" is all exercises of a chapter, "05.2" one, "05.2=6" one worth six points.
    Raises: ValueError with what cannot be read, or is named twice.
    """
    found: dict[str, dict[int, float | None]] = {}
    for text in asked:
        if not (match := EXERCISE.fullmatch(text)):
            raise ValueError(
                f"{text!r} names no exercise: 10 is a chapter, 05.2 its second exercise, "
                f"05.2=6 the same for six points"
            )
        chapter, number, points = match.groups()
        numbers = found.setdefault(chapter, {})
        if (number is None and numbers) or (number and int(number) in numbers):
            raise ValueError(f"{text} is asked for twice")
        if number:
            numbers[int(number)] = float(points) if points else None
    return found


def read_cells(text: str) -> list[tuple[str, str]]:
    """Return the cells of a py:percent source: ("code" or "markdown", source with its marks).

    >>> read_cells("# %% [markdown]\\n# # Title\\n#\\n# A text.\\n\\n# %%\\nx = 1\\n")
    [('markdown', '# Title\\n\\nA text.'), ('code', 'x = 1')]

    jupytext reads more, and takes seconds to be imported.
    """
    found = []
    for part in MARKED.split(text)[1:]:
        head, _, source = part.partition("\n")
        kind = "markdown" if head.strip() == "[markdown]" else "code"
        if kind == "markdown":
            source = re.sub(r"^# ?", "", source, flags=re.M)
        found.append((kind, source.strip("\n")))
    return found


def sections(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Cut a source at its headings: (heading, cells), each cell a (kind, source with its marks)."""
    text = path.read_text(encoding="utf-8")
    build.count_regions(text, f"{path.parent.name}/{path.name}")
    found: list[tuple[str, list[tuple[str, str]]]] = [("", [])]
    for kind, source in read_cells(text):
        if kind == "code":
            found[-1][1].append(("code", source))
            continue
        for part in filter(None, map(str.strip, SECTION.split(source))):
            if part.startswith("## "):
                found.append((part.splitlines()[0], []))
            found[-1][1].append(("text", part))
    return found


def cells_of(chapter: str, path: Path, numbers: Mapping[int, float | None]) -> list[Cell]:
    """Return the cells of a chapter's exercises: its own preparations, then each that is asked for.

    Raises: ValueError if one is not there, or has no check.
    """
    parts = sections(path)
    title = next(text for kind, text in parts[0][1] if kind == "text").splitlines()[0]
    heading = f"# {chapter}: {title.partition(': ')[2] or title.lstrip('# ')}"
    found = [Cell(f"text-{chapter}", "text", heading)]
    for at, (kind, source) in enumerate(parts[0][1]):
        if kind == "code":
            found.append(Cell(f"given-{chapter}-{at}", "given", source))
    there = {int(match[1]): cells for head, cells in parts if (match := NUMBERED.match(head))}
    if missing := sorted(numbers.keys() - there.keys()):
        raise ValueError(f"chapter {chapter} has no exercise {missing[0]}; it has {len(there)}")
    for number in sorted(numbers or there):
        found += exercise(f"{chapter}.{number}", there[number], numbers.get(number))
    return found


def exercise(name: str, cells: Sequence[tuple[str, str]], points: float | None) -> list[Cell]:
    """Return the cells of one exercise; its points (two for each dot) are shared by its checks."""
    tests = [CHECK.search(source) for kind, source in cells if kind == "code"]
    count = sum(match is not None for match in tests)
    hard = next((match for kind, text in cells if (match := HARD.search(text))), None)
    if not count or hard is None:
        raise ValueError(f"exercise {name} has no {'line of difficulty' if count else 'check'}")
    if points is None:
        points = 2.0 * len(hard[1])
    found = []
    for at, (kind, source) in enumerate(cells):
        key = f"{name.replace('.', '-')}-{at}"
        if kind == "text":
            text = LINK.sub(r"\1 (chapter \2)", source)
            if HARD.search(text):
                text = HARD.sub(lambda line: f"{line[0][:-1]} · {points:g} points*", text)
            found.append(Cell(f"text-{key}", "text", text, name))
        elif "### BEGIN SOLUTION" in source:
            names = tuple(one or other for one, other in ASKED.findall(source))
            unfilled = build.cut(source, solved=False)
            found.append(Cell(f"answer-{key}", "answer", unfilled, name, source, names))
        elif match := CHECK.search(source):
            test = {"check": match[1], "name": match[2], "points": points / count}
            found.append(Cell(f"check-{key}", "check", source, name, **test))  # type: ignore[arg-type]
        else:
            found.append(Cell(f"given-{key}", "given", source, name))
    return found


def assemble(name: str, asked: Sequence[str], root: Path = build.ROOT, **limits: Any) -> Lab:
    """Put a lab together from the course's exercises, in the order of the chapters asked for.

    Raises: ValueError if an exercise is not there.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"{name!r} is no name for a lab: take letters, digits, - and _")
    if not (wanted := chosen(asked)):
        raise ValueError("a lab needs at least one exercise: 10 is a chapter, 05.2 one exercise")
    sources = {path.name[:2]: path for path in sorted((root / "solutions").glob("[0-9][0-9]_*.py"))}
    cells: list[Cell] = []
    for chapter, numbers in wanted.items():
        if chapter not in sources:
            there = ", ".join(sources) or "none, for this is no clone of the course"
            raise ValueError(f"there are no exercises of chapter {chapter}; there are: {there}")
        cells += cells_of(chapter, sources[chapter], numbers)
    titles = {
        cell.exercise: match[2]
        for cell in cells
        if cell.kind == "text" and (match := NUMBERED.match(cell.source))
    }
    lab = Lab(name, tuple(cells), titles=titles, **limits)
    for cell in lab.checks:
        if cell.name not in lab.makers:
            raise ValueError(f"{cell.exercise}: no answer defines {cell.name}, which is checked")
    intro = (
        f"# {name}\n\n{len(titles)} exercises, {lab.points:g} points. Fill in what raises "
        "`NotImplementedError`; each exercise ends with a check that says what it makes of your "
        "answer, as often as you like. What is given is locked, and graded as it was given out.\n\n"
        "Write your own helpers into cells of your own. An answer may use PyTorch and Python's "
        "standard library; it may not import `moe_lite` beyond what the given cells import. Hand "
        f"in this notebook, saved. A cell has {lab.limit_s:g} seconds."
    )
    return Lab(name, (Cell("text-lab", "text", intro), *cells), titles=titles, **limits)


# --- notebooks -----------------------------------------------------------------------------------


def notebook(lab: Lab, answers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a lab as a notebook: unfilled, or with answers by the key of their cell."""
    cells: list[dict[str, Any]] = []
    for cell in lab.cells:
        text = (answers or {}).get(cell.key, cell.source)
        made: dict[str, Any] = {
            "cell_type": "markdown" if cell.kind == "text" else "code",
            "id": cell.key,
            "metadata": {"moe_lite": {"cell": cell.key}, "deletable": False},
            "source": text.splitlines(keepends=True),
        }
        if cell.kind != "answer":
            made["metadata"] |= {"editable": False}
        if cell.kind != "text":
            made |= {"execution_count": None, "outputs": []}
        cells.append(made)
    head = {k: v for k, v in build.metadata("", "").items() if k != "moe_lite"}
    return {"cells": cells, "metadata": head, "nbformat": 4, "nbformat_minor": 5}


def solved(lab: Lab) -> dict[str, str]:
    """Return the course's own answers, by the key of their cell."""
    answers = [cell for cell in lab.cells if cell.kind == "answer"]
    return {cell.key: build.cut(cell.solution, solved=True) for cell in answers}


def secrets(lab: Lab) -> set[str]:
    """Return the lines of the solutions that nothing given holds too."""

    def lines(texts: Sequence[str]) -> set[str]:
        said = {line.strip() for text in texts for line in text.splitlines()}
        return {line for line in said if re.search(r"\w", line)}  # a bracket alone tells nothing

    given = lines([cell.source for cell in lab.cells])
    return lines(list(solved(lab).values())) - given


def leaks(lab: Lab, folder: Path) -> list[str]:
    """List what files under a folder tell of the solutions: lines of them, or where they are."""
    hidden, found = secrets(lab), []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells)
        found += [
            f"{path.name}: {line}" for line in map(str.strip, text.splitlines()) if line in hidden
        ]
        if "solutions/" in text:
            found.append(f"{path.name}: the folder of solutions")
    return found


def taken(folder: Path, replace: bool) -> None:
    """Keep a lab that is there from being written over unasked."""
    if (folder / "lab.json").exists() and not replace:
        raise FileExistsError(f"there is a lab in {folder}: name another folder, or pass --force")


def make(lab: Lab, folder: Path, root: Path = build.ROOT, replace: bool = False) -> str:
    """Write a lab's folder once it has been verified, and say what was verified.

    release/ is for the students; key/ and lab.json hold the answers; submitted/ waits.

    Raises: ValueError if the lab does not grade as it must, or tells a line of a solution;
            FileExistsError if there is another lab and it is not to be replaced.
    """
    from .verify import verify

    taken(folder, replace)
    said = verify(lab, root)
    with commit(folder) as part:
        for place, answers in (("release", None), ("key", solved(lab))):
            (part / place).mkdir()
            text = json.dumps(notebook(lab, answers), ensure_ascii=False, indent=1) + "\n"
            write(part / place / f"{lab.name}.ipynb", text)
        if told := leaks(lab, part / "release"):
            raise ValueError(f"the released lab would give answers away: {told[0]}")
        lab.save(part / "lab.json")
        if not (folder / "submitted").exists():
            (part / "submitted").mkdir()
    return said
