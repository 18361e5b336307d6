"""JupyterLab as the course opens it: what it saves, what it asks, and the page it opens with."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moe_lite.course import build, lab

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def manager(tmp_path):
    contents = pytest.importorskip("jupyter_server.services.contents.filemanager")
    return contents.FileContentsManager(
        root_dir=str(tmp_path), pre_save_hook=f"{lab.__name__}.before_saving"
    )


@pytest.mark.parametrize("folder", ["notebooks", "exercises", "solutions"])
def test_a_notebook_that_was_only_read_is_saved_as_it_was(manager, tmp_path, folder):
    shutil.copy(next((ROOT / folder).glob("0[0-9]_*.ipynb")), tmp_path / "a.ipynb")
    before = (tmp_path / "a.ipynb").read_bytes()
    model = manager.get("a.ipynb")
    model["content"]["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    model["content"]["metadata"]["language_info"]["version"] = "3.12.1"
    manager.save(model, "a.ipynb")
    assert (tmp_path / "a.ipynb").read_bytes() == before


def test_a_saved_widget_is_its_picture(manager, tmp_path):
    from moe_lite.course.widgets import TrafficMatrix

    data, _ = TrafficMatrix()._repr_mimebundle_()
    assert build.WIDGET in data
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "", "outputs": [output],
            "execution_count": 1}  # fmt: skip
    content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    manager.save({"type": "notebook", "format": "json", "content": content}, "a.ipynb")
    [saved] = json.loads((tmp_path / "a.ipynb").read_text("utf-8"))["cells"][0]["outputs"]
    assert "image/png" in saved["data"] and build.WIDGET not in saved["data"]


def test_the_settings_name_what_jupyterlab_has():
    """No news, no twin of each notebook, names in full, the system's theme, markdown as a page."""
    lab_app = pytest.importorskip("jupyterlab")
    schemas = Path(lab_app.__file__).parent / "schemas"
    if not schemas.is_dir():
        import sys

        schemas = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas"
    settings = json.loads((lab.SETTINGS / "overrides.json").read_text("utf-8"))
    for plugin, values in settings.items():
        package, name = plugin.split(":")
        known = json.loads((schemas / package / f"{name}.json").read_text("utf-8"))["properties"]
        assert set(values) <= set(known), plugin
    said = {key: value for values in settings.values() for key, value in values.items()}
    assert (said["fetchNews"], said["adaptive-theme"]) == ("false", True)
    assert said["showLastModifiedColumn"] is False
    assert said["defaultViewers"] == {"markdown": "Markdown Preview"}
    arguments = lab.arguments(ROOT)
    assert f"--LabApp.app_settings_dir={lab.SETTINGS}" in arguments
    assert "--ContentsManager.hide_globs=[0-9][0-9]*_*.py" in arguments
    assert any("pre_save_hook=moe_lite.course.lab.before_saving" in a for a in arguments)


def test_the_landing_page_leads_to_every_notebook_and_counts_what_is_right(tmp_path):
    links = re.findall(r"\]\((.+?)\)", lab.landing(ROOT))
    assert [link for link in links if not (ROOT / link).is_file()] == []
    built = {p.relative_to(ROOT).as_posix() for f in ("notebooks", "exercises", "solutions")
             for p in (ROOT / f).glob("*.ipynb")}  # fmt: skip
    assert built <= set(links)
    exercises = next((ROOT / "exercises").glob("05_*.ipynb"))
    notebook = json.loads(exercises.read_text("utf-8"))
    assert lab.progress(exercises)[0] == 0 < lab.progress(exercises)[1]
    checks = [c for c in notebook["cells"] if "checks.check_" in "".join(c["source"])]
    for cell, text in zip(checks, ("✓ rank: right", "✗ places: wrong"), strict=False):
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [text]}]
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    assert lab.progress(tmp_path / "a.ipynb") == (1, len(checks))


def test_the_landing_page_is_not_in_git():
    if not (ROOT / ".git").exists():
        pytest.skip("no clone here")
    assert subprocess.run(["git", "check-ignore", "-q", "map.md"], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / "exercises").glob("*.ipynb")), ids=lambda p: p.stem)
def test_run_all_goes_past_an_exercise_that_is_not_begun(path):
    """JupyterLab goes on after a cell with this tag; no cell after it is left unread."""
    code = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert all("raises-exception" in cell["metadata"].get("tags", ()) for cell in code)


def test_an_exercise_that_is_not_begun_is_one_line():
    """As a notebook shows it: no frame, no word of NotImplementedError."""
    from IPython.core.interactiveshell import InteractiveShell

    from moe_lite.course import checks

    def rank(expert_T, num_experts):
        raise NotImplementedError

    shell, shown = InteractiveShell.instance(), []
    shell._showtraceback = lambda kind, error, lines: shown.extend(lines)
    try:
        checks.check_rank(rank)
    except NotImplementedError:
        shell.showtraceback()
    assert shown == ["· rank: not written yet"]


def test_a_cell_that_needs_what_is_not_written_says_so_in_one_line(tmp_path):
    """Called, or by a name that such a cell would have set; any other error stays as it is."""
    from IPython.core.interactiveshell import InteractiveShell

    from moe_lite.course.checks.verdict import Unwritten

    shell, shown = InteractiveShell.instance(), []
    Unwritten(shell)
    shell._showtraceback = lambda kind, error, lines: shown.append("\n".join(lines))
    cells = {
        'def rank(x):\n    raise NotImplementedError("exercise 2")': None,
        "class Router:\n    def forward(self):\n        raise NotImplementedError": None,
        "many = 3\nrank_T = rank(many)": "· needs exercise 2: `rank` is not written yet",
        "print(rank_T)": "· needs exercise 2: `rank` is not written yet",
        "Router().forward()": "· `Router.forward` is not written yet",
        "raise NotImplementedError('exercise 3')": "· this cell is not written yet",
        "def mine():\n    return rank_T\nmine()": "NameError",
        "prnt(many)": "NameError",
        "from moe_lite.routers import Router as Base\nBase().score(0)": "NotImplementedError",
        "rank = len\nrank_T = rank('ab')\nrank_T": None,
    }  # fmt: skip
    try:
        for cell, wanted in cells.items():
            shown.clear()
            shell.run_cell(cell, store_history=True)
            assert len(shown) == (wanted is not None), cell
            if wanted and wanted.startswith("·"):
                assert shown == [wanted]
            elif wanted:
                assert wanted in shown[0] and "not written" not in shown[0]
    finally:
        shell.set_custom_exc((), None)
