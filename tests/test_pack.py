"""What students get: a copy of the course without answers, and a place of their own to work in.

And what stays with the teacher: the key of each chapter, and rubrics for what is written.
"""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from moe_lite import __main__ as cli
from moe_lite.course import cli as course_cli
from moe_lite.course import workplace
from moe_lite.course.teach import key, lab, pack

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [path.name[:2] for path in sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack") / "course"
    assert cli.main(["teach", "pack", str(folder)]) == 0
    return folder


def test_a_pack_has_every_chapter_and_no_answer(packed):
    assert pack.told(packed) == []
    for name in pack.BUILT:
        there = [p.name for p in sorted((packed / name).glob("*.ipynb"))]
        assert there == [p.name for p in sorted((ROOT / name).glob("[0-9][0-9]*_*.ipynb"))]
        assert {name[:2] for name in there} == set(CHAPTERS)
    names = {path.name for path in packed.iterdir()}
    assert {"course.py", "moe_lite", "README.md", "pyproject.toml"} <= names
    assert not {"solutions", "tests", "teaching"} & names
    assert not (packed / "moe_lite" / "course" / "teach").exists()
    assert "For teachers" not in (packed / "README.md").read_text(encoding="utf-8")
    for path in packed.rglob("*"):
        assert not path.name.startswith("check_"), "a file of wrong answers"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_answer_that_slipped_into_the_pack_is_seen(packed, chapter, tmp_path):
    (tmp_path / "exercises").mkdir()
    (path,) = (packed / "exercises").glob(f"{chapter}_*.ipynb")
    made = json.loads(path.read_text(encoding="utf-8"))
    line = max(lab.secrets(lab.assemble("one", [chapter])), key=len)
    made["cells"][-1]["source"] = [line]
    (tmp_path / "exercises" / path.name).write_text(json.dumps(made), encoding="utf-8")
    assert f"{path.name}: {line}" in pack.told(tmp_path)


def test_a_pack_that_would_tell_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "without_solutions", lambda text: text)
    for out in (tmp_path / "a", tmp_path / "a.zip"):
        assert cli.main(["teach", "pack", str(out)]) == 1
        assert "would give answers away" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_pack_does_not_go_over_what_is_there(packed, tmp_path, capsys):
    (tmp_path / "mine").touch()
    assert cli.main(["teach", "pack", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pack_as_one_file_holds_the_same(packed, tmp_path):
    assert cli.main(["teach", "pack", str(tmp_path / "course.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "course.zip") as file:
        inside = {name for name in file.namelist() if not name.endswith("/")}
    files = {path.relative_to(packed.parent).as_posix() for path in packed.rglob("*")}
    assert inside == {name for name in files if (packed.parent / name).is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["course.zip"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_key_has_every_answer_and_names_errors(chapter):
    made, text = lab.assemble("key", [chapter]), key.page(chapter)
    assert text.count("<h2>") == len(made.titles)
    assert text.count('<pre class="right">') == len(lab.solved(made))
    assert "<li>" in text and not re.search(r"https?:|<script|src=", text)


# --- a place to work -----------------------------------------------------------------------------


def shelf(folder, *names):
    """A course to copy from: notebooks that say where they are from."""
    for name in names or ("notebooks/05_capacity", "exercises/05_capacity"):
        path = folder / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        link = "are in [`solutions/`](../solutions/05_solutions.ipynb)."
        path.write_text(json.dumps({"cells": [{"source": [link]}]}), encoding="utf-8")
    return folder


@pytest.fixture
def opened(monkeypatch):
    """What JupyterLab was started with."""
    from jupyterlab.labapp import LabApp

    seen = []
    monkeypatch.setattr(LabApp, "launch_instance", seen.extend)
    return seen


def test_work_is_copied_once_and_never_written_over(opened, tmp_path, monkeypatch, capsys):
    course = shelf(tmp_path / "course")
    for path in course.rglob("*.ipynb"):
        path.chmod(0o444)
    monkeypatch.setattr(course_cli, "ROOT", course)
    work = tmp_path / "mine"
    assert cli.main(["lab", "--work", str(work), "--no-browser"]) == 0
    assert "2 notebooks copied" in capsys.readouterr().out
    assert f"--ServerApp.root_dir={work}" in opened and "--no-browser" in opened
    assert opened[-1] == str(work / "map.md") and (work / "map.md").is_file()
    mine = work / "exercises" / "05_capacity.ipynb"
    assert mine.stat().st_mode & 0o200, "it was read-only where it came from"
    mine.write_text("my answers", encoding="utf-8")
    shelf(course, "exercises/06_balancing")  # the course grew
    assert cli.main(["lab", "--work", str(work)]) == 0
    assert "1 notebooks copied, 2 of yours left as they are" in capsys.readouterr().out
    assert mine.read_text(encoding="utf-8") == "my answers"
    assert (work / "exercises" / "06_balancing.ipynb").is_file()


def test_what_cannot_be_written_is_copied_unasked(opened, tmp_path, monkeypatch, capsys):
    course, home = shelf(tmp_path / "share"), tmp_path / "home"
    monkeypatch.setattr(course_cli, "ROOT", course)
    monkeypatch.setattr(Path, "home", lambda: home)
    assert cli.main(["lab"]) == 0 and not home.exists()  # it can be written
    access = workplace.os.access  # root may write anywhere
    monkeypatch.setattr(
        workplace.os, "access", lambda path, mode: course not in path.parents and access(path, mode)
    )
    assert cli.main(["lab"]) == 0
    assert "cannot be written" in capsys.readouterr().out
    assert f"--ServerApp.root_dir={home / workplace.DEFAULT}" in opened


def test_from_a_wheel_one_works_in_a_copy(opened, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shelf(tmp_path / "share" / "moe_lite")
    monkeypatch.setattr(course_cli, "ROOT", tmp_path / "site-packages")
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setattr(workplace.sysconfig, "get_path", lambda name: str(tmp_path))
    assert cli.main(["lab"]) == 0
    copied = (home / workplace.DEFAULT / "exercises" / "05_capacity.ipynb").read_text("utf-8")
    assert "](../solutions" not in copied, "there are none to link to"


@pytest.mark.parametrize("where", ["the course", "a file"])
def test_a_place_to_work_that_cannot_be_one_is_told(opened, where, tmp_path, monkeypatch, capsys):
    course = shelf(tmp_path / "course")
    monkeypatch.setattr(course_cli, "ROOT", course)
    (tmp_path / "file").touch()
    work = course if where == "the course" else tmp_path / "file"
    assert cli.main(["lab", "--work", str(work)]) == 1 and not opened
    assert capsys.readouterr().err.count("\n") == 1


def test_one_may_name_the_folder_to_serve(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(course_cli, "ROOT", shelf(tmp_path / "course"))
    assert cli.main(["lab", "--ServerApp.root_dir=/elsewhere"]) == 0
    assert [word for word in opened if "root_dir" in word] == ["--ServerApp.root_dir=/elsewhere"]


# --- rubrics -------------------------------------------------------------------------------------


def table(lines):
    """Return the rows of the first table below a heading, without the line that draws it."""
    rows = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [row for row in cells if not set("".join(row)) <= set("-:")]


@pytest.mark.parametrize("path", sorted((ROOT / "teaching/rubrics").glob("*.md")), ids=str)
def test_a_rubric_has_four_criteria_three_levels_and_two_marked_examples(path):
    head, *examples = path.read_text(encoding="utf-8").split("\n## ")
    (_, *levels), *criteria = table(head.splitlines())
    assert levels == ["0", "1", "2"] and len(criteria) == 4
    assert all(len(set(row)) == 4 and all(row) for row in criteria)
    assert len(examples) == 2
    sums = []
    for text in examples:
        names, marks = table(text.splitlines())
        assert names == [row[0] for row in criteria]
        assert set(marks) <= set(levels)
        sums.append(sum(map(int, marks)))
        assert text.startswith(f"Example: {sums[-1]} of 8\n") and "\n> " in text
    assert sums[0] > sums[1] + 2, "a good one and a weak one"


def test_both_written_parts_have_a_rubric():
    assert {p.stem for p in (ROOT / "teaching/rubrics").glob("*.md")} == {"investigation", "claim"}


def test_the_solutions_folder_is_copied_where_there_is_one(tmp_path):
    course = shelf(tmp_path / "course", "notebooks/05_capacity", "solutions/05_capacity")
    assert workplace.copy(course, tmp_path / "mine") == (2, 0)
    text = (tmp_path / "mine" / "notebooks" / "05_capacity.ipynb").read_text(encoding="utf-8")
    assert "](../solutions" in text
    shutil.rmtree(course / "solutions")
    assert workplace.copy(course, tmp_path / "mine") == (0, 1)
