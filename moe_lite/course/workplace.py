"""Give a reader their own copy of the notebooks: ``python -m moe_lite lab --work DIR``.

The course may be a share that nobody can write to, or a wheel. The copy can be written, whatever
bits the original has, and what is in it already is never touched: it may be somebody's work.
"""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path

from ..files import check_writable, write

FOLDERS = ("notebooks", "exercises", "solutions")  # the last is there in a clone alone
ROOT = Path(__file__).resolve().parents[2]
LIBRARY = " · [library](../moe_lite/__init__.py)"  # stays where it is
DEFAULT = "moe-lite"  # in the reader's home
MADE_FROM = re.compile(r" It was generated from `solutions/[^*]*\*")  # under an exercise's title
NEXT_TO = re.compile(r" · \[solutions\]\([^)]*\)")  # among the links under a title
TO_SOLUTIONS = re.compile(r"\[([^][\n]+)\]\(\.\./solutions/[^)\n]*\)")


def originals(root: Path = ROOT) -> Path:
    """Return the folder that has the built notebooks: a clone's, or what a wheel brought.

    Raises: FileNotFoundError if there are none.
    """
    for folder in (root, Path(sysconfig.get_path("data"), "share", "moe_lite")):
        if any((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise FileNotFoundError(
        f"there are no notebooks in {root}: in a clone of the repository "
        "`python -m moe_lite build` makes them"
    )


def can_write(folder: Path) -> bool:
    """Say whether JupyterLab could save into the notebooks' folders here."""
    there = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    return all(os.access(path, os.W_OK) for path in there)


def without_solutions(notebook: str) -> str:
    """Return a notebook's JSON without links to solutions, for a copy that has none."""
    text = NEXT_TO.sub("", MADE_FROM.sub("*", notebook))
    return TO_SOLUTIONS.sub("a folder that is not part of this copy", text)


def copy(source: Path, work: Path) -> tuple[int, int]:
    """Copy the notebooks that are not in the working folder yet; give (copied, left alone).

    Raises: ValueError if the working folder is the course's own; OSError if it cannot be written.
    """
    if work.resolve() == source.resolve():
        raise ValueError(f"{work} is the course itself: name another folder with --work")
    made = kept = 0
    for name in FOLDERS:
        for path in sorted((source / name).glob("[0-9][0-9]*_*.ipynb")):
            to = check_writable(work / name) / path.name
            if to.exists():
                kept += 1
            else:
                text = path.read_text(encoding="utf-8").replace(LIBRARY, "")
                text = text.replace("](../README.md)", "](../map.md)")
                write(to, text if (source / "solutions").is_dir() else without_solutions(text))
                made += 1
    words = source / "docs" / "glossary.md"  # the notebooks link to it
    if words.is_file() and not (to := check_writable(work / "docs") / words.name).exists():
        write(to, words.read_bytes())
    return made, kept
