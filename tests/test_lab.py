"""What JupyterLab saves: a widget's picture stays, and reading alone changes no byte."""

import json
import shutil
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


def test_the_settings_are_json_and_the_hook_is_given():
    json.loads((lab.SETTINGS / "overrides.json").read_text("utf-8"))
    assert any("pre_save_hook=moe_lite.course.lab.before_saving" in a for a in lab.arguments(ROOT))
