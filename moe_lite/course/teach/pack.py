"""Make the students' copy of the course: ``teach pack FOLDER`` (or ``FILE.zip``).

It is this tree without what gives answers away: no solutions, no wrong answers (tests/), nothing of
teaching. ``course.py`` works in it as it does here. The library stays whole, and its checks know
what is right: they are for learning, and a lab that counts is graded by ``teach grade``, which
refuses an answer that asks them.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...files import commit, target, write
from ..build import ROOT
from ..workplace import without_solutions
from .lab import assemble, leaks

WHOLE = ("moe_lite", "checkpoints", "experiments", "docs")
FILES = ("course.py", "pyproject.toml", "environment.yml", "LICENSE", "LEDGER.md")
BUILT = ("notebooks", "exercises")
NOT_THEIRS = re.compile(  # of the README: the teachers' section, and the folders that are left out
    r"^## For teachers\n.*?(?=^## )|^(?:solutions|tests|teaching)/.*\n(?:^ .*\n)*"
    r"|; the solutions are in `solutions/`",
    re.M | re.S,
)


def chosen(root: Path) -> Iterator[tuple[Path, Path]]:
    """Give (a file of the course, its place in the pack)."""
    for name in WHOLE:
        for path in sorted((root / name).rglob("*")):
            inside = path.relative_to(root)
            private = any(part.startswith((".", "__pycache__")) for part in inside.parts)
            if (
                path.is_file()
                and not private
                and inside.parts[:3] != ("moe_lite", "course", "teach")
            ):
                yield path, inside
    for name in FILES:
        yield root / name, Path(name)
    for name in BUILT:
        for path in sorted((root / name).glob("[0-9][0-9]*_*.ipynb")):
            yield path, Path(name, path.name)


def fill(folder: Path, root: Path) -> int:
    """Copy the course into a folder, without what is for teachers; give the number of files."""
    count = 0
    for path, inside in chosen(root):
        to = folder / inside
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            write(to, without_solutions(path.read_text(encoding="utf-8")))
        else:
            shutil.copyfile(path, to)
        count += 1
    readme = (root / "README.md").read_text(encoding="utf-8")
    write(folder / "README.md", NOT_THEIRS.sub("", readme))
    return count + 1


def told(folder: Path, root: Path = ROOT) -> list[str]:
    """List what the exercises in a pack tell of the solutions, and what should not be there."""
    found = [f"{name}/" for name in ("solutions", "tests", "teaching") if (folder / name).exists()]
    for path in sorted((root / "solutions").glob("[0-9][0-9]_*.py")):
        found += leaks(assemble("all", [path.name[:2]], root), folder / "exercises")
    for path in sorted(folder.rglob("*.ipynb")):
        text = "\n".join("".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"])
        found += [f"{path.name}: {mark}" for mark in ("../solutions", "### BEGIN") if mark in text]
    return found


def make(out: Path, root: Path = ROOT) -> str:
    """Write the pack, a folder or a zip file, once nothing in it gives an answer away.

    Raises: ValueError with what would; FileExistsError if the folder holds something.
    """
    if not (root / "solutions").is_dir():
        raise FileNotFoundError(f"there are no solutions in {root}: make the pack from a clone")

    def checked(part: Path) -> int:
        count = fill(part, root)
        if said := told(part, root):
            raise ValueError(f"the pack would give answers away: {said[0]}")
        return count

    if out.suffix != ".zip":
        with commit(out, overwrite=False) as part:
            return f"{checked(part)} files, no solution among them"
    target(out)
    with tempfile.TemporaryDirectory(dir=out.resolve().parent) as folder:
        count = checked(Path(folder) / out.stem)
        made = shutil.make_archive(str(Path(folder) / "made"), "zip", folder, out.stem)
        Path(made).replace(out)
    return f"{count} files, no solution among them"
