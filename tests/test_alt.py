"""Every figure says in words what it shows: for who does not see it, and read off the figure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from moe_lite.course import alt, build

ROOT = Path(__file__).resolve().parent.parent
BUILT = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
BUILT += sorted((ROOT / "solutions").glob("[0-9][0-9]_*.ipynb"))


def pictures(path):
    """Give the source and the alternative text of each picture of a built notebook."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                metadata = output.get("metadata", {})
                said = metadata.get("image/png", {}).get("alt", metadata.get("alt", ""))
                yield "".join(cell["source"]), said


@pytest.mark.parametrize("path", BUILT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_picture_of_a_built_notebook_says_what_it_shows(path):
    silent = [source[:60] for source, said in pictures(path) if len(said.split()) < 3]
    assert silent == []


def test_words_are_read_off_the_figure():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.plot([0, 10, 20], [3.0, np.nan, 1.25], label="top-2")
    left.set(title="Loss", xlabel="step", ylabel="nats")
    right.bar(range(3), [0.5, 0.25, 0.25])
    right.set(xlabel="expert", ylabel="share")
    assert alt.describe(figure) == (
        "2 panels. Loss. nats against step. top-2: 3 at 0, 1.25 at 20. "
        "share against expert. bars: 0.5, 0.25, 0.25."
    )


def test_level_bars_have_a_length_and_the_name_beside_them():
    figure = Figure()
    left, right = figure.subplots(1, 2, sharey=True)
    pairs = ((-0.2, "C0", "stored", (1.5, 3)), (0.2, "C1", "now", (2,)))
    for shift, color, label, lengths in pairs:
        for y, length in enumerate(lengths):
            left.barh(y + shift, length, 0.38, color=color, label=label if y == 0 else None)
    left.set_yticks([0, 1], ["auto", "loop"])
    right.barh([0, 1], [-1, 0.25], 0.5)
    assert alt.describe(figure) == (
        "2 panels. stored: 1.5 at auto, 3 at loop; now: 2 at auto. bars: -1 at auto, 0.25 at loop."
    )
    figure = Figure()
    figure.subplots().barh(["held", "fell"], [7, 1])
    assert alt.describe(figure) == "bars: 7 at held, 1 at fell."
    figure = Figure()
    ax = figure.subplots()
    ax.barh([0.5], [7])
    ax.set_yticks([])
    assert alt.describe(figure) == "bars: 7."


def test_what_is_many_is_counted():
    figure = Figure()
    ax = figure.subplots()
    for n in range(12):
        ax.plot([0, 1, 2], [n, n, n], label=f"run {n}")
    ax.imshow(np.arange(6.0).reshape(2, 3))
    said = alt.describe(figure)
    assert "run 7:" in said and "run 8:" not in said and "and 4 more lines" in said
    assert "2 rows of 3 cells, from 0 to 5" in said


@pytest.mark.parametrize("draw", ["plain", "ours"])
def test_a_notebook_stores_the_words_with_the_picture(draw, tmp_path):
    import nbformat

    source = {
        "plain": "import matplotlib.pyplot as plt\nfrom moe_lite.course import data\n"
        "fig, ax = plt.subplots()\n_ = ax.plot([1, 2, 3], [4, 5, 6], label='a run of three')",
        "ours": "from moe_lite.course import viz\n"
        "viz.curves({'a run of three': ([1, 2, 3], [4, 5, 6])}, 'step', 'loss')",
    }[draw]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    build.execute(notebook, tmp_path, "a test")
    (output,) = notebook.cells[0].outputs
    assert output.data["image/png"].startswith("iVBOR")
    assert "a run of three: 4 at 1, 6 at 3" in output.metadata["image/png"]["alt"]


def test_where_no_notebook_runs_nothing_is_imported_for_it():
    code = "import sys, moe_lite.course; print({'IPython', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
