"""Installed as a wheel, in a folder that is not ours to write: the chapters find all they need.

The wheel is a real one, laid out as pip lays it; the packages that it needs are the tests' own.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from moe_lite.course import environment as course
from moe_lite.course.teach import lab

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow("installs a wheel")

CODE = """
import importlib, inspect, json, pathlib, pkgutil, sys
import moe_lite
from moe_lite.course import data, ledger, vowels, widgets

prefix = pathlib.Path(sys.argv[1])
for module in (moe_lite, data, widgets):
    assert prefix in pathlib.Path(inspect.getfile(module)).parents, module
assert prefix in ledger.ROOT.parents, ledger.ROOT
for module in pkgutil.iter_modules(widgets.__path__):
    importlib.import_module(f"moe_lite.course.widgets.{module.name}")
assert len(data.load_corpus(max_bytes=400_000).domains) == 5
assert vowels.load_vowels()
results = sorted(path.relative_to(ledger.ROOT).as_posix()
                 for path in (ledger.ROOT / "experiments" / "results").rglob("*.json"))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install a wheel of this tree into an environment of its own; give its folder."""
    folder = tmp_path_factory.mktemp("installed")
    source, prefix = folder / "source", folder / "a share"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    ours = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("moe_lite", "checkpoints", "experiments", "notebooks", "exercises", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=ours)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), "."], cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(prefix, symlinks=os.name != "nt")
    packages = next(prefix.rglob("site-packages"))
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            first, *rest = Path(name).parts
            inside = prefix.joinpath(*rest[1:]) if first.endswith(".data") else packages / name
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.write_bytes(file.read(name))
    (packages / "tests_own.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return prefix


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Give the size and time of every file but what Python itself compiles."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def run(prefix: Path, *command: str, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    python = prefix / course.BINARY
    done = subprocess.run([python, *command], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def untouched(installed):
    """Make it read-only, and hold the tests to it: root could write all the same."""
    before = files(installed)
    folders = [path for path in installed.rglob("*") if path.is_dir() and not path.is_symlink()]
    for path in (*before, *folders, installed):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    yield installed
    for path in (installed, *folders):
        path.chmod(path.stat().st_mode | 0o700)
    assert files(installed) == before


def test_texts_widgets_and_every_stored_result_are_found(untouched, tmp_path):
    stored = json.loads(run(untouched, "-c", CODE, str(untouched), cwd=tmp_path))
    results = (ROOT / "experiments" / "results").rglob("*.json")
    assert stored == sorted(path.relative_to(ROOT).as_posix() for path in results)
    assert [*tmp_path.iterdir()] == []


def test_the_first_chapter_runs(untouched, tmp_path):
    chapter = tmp_path / "chapter.py"
    shutil.copy(ROOT / "notebooks" / "00_one_token.py", chapter)
    run(untouched, str(chapter), cwd=tmp_path)
    assert [*tmp_path.iterdir()] == [chapter]


@pytest.mark.parametrize("folder", ["notebooks", "solutions"])
def test_every_chapter_finds_what_it_imports(untouched, folder, tmp_path):
    """All chapters were run so once, by hand: 00 to 18 and the appendices; here their beginnings.

    A built notebook cannot show this: it is run with the repository's root on its path.
    """
    begin = {path: lab.read_cells(path.read_text("utf-8")) for path in (ROOT / folder).glob("*.py")}
    first = {p.stem: next(text for kind, text in c if kind == "code") for p, c in begin.items()}
    assert len(first) >= 19
    (tmp_path / "cells.json").write_text(json.dumps(first), encoding="utf-8")
    code = (
        "import json, pathlib\n"
        "for name, text in json.loads(pathlib.Path('cells.json').read_text('utf-8')).items():\n"
        "    exec(compile(text, name, 'exec'), {'__name__': '__main__'})"
    )
    run(untouched, "-c", code, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.json"]


def test_the_trained_model_is_explored(untouched, tmp_path):
    run(untouched, "-m", "moe_lite", "explore", "To be, or not", "--out", "page.html", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_notebooks_come_along_and_are_worked_on_elsewhere(untouched, tmp_path):
    """The share cannot be written; a student's copy can, and what is in it stays."""
    code = (
        "from pathlib import Path; from moe_lite.course import workplace as w\n"
        "print(w.copy(w.originals(), Path('mine')))"
    )
    count = sum(
        len([*(ROOT / name).glob("[0-9][0-9]*_*.ipynb")]) for name in ("notebooks", "exercises")
    )
    assert run(untouched, "-c", code, cwd=tmp_path).strip() == f"({count}, 0)"
    for path in (tmp_path / "mine").rglob("*.ipynb"):
        path.write_text("mine", encoding="utf-8")
    assert run(untouched, "-c", code, cwd=tmp_path).strip() == f"(0, {count})"
    assert (tmp_path / "mine" / "docs" / "glossary.md").is_file()
    texts = {path.read_text(encoding="utf-8") for path in (tmp_path / "mine").rglob("*.ipynb")}
    assert texts == {"mine"}
