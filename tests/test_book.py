"""The book of a small clone: what it makes of an output, an exercise and a link."""

import json

import pytest

from moe_lite.course.book import ground, main
from moe_lite.course.widgets import TrafficMatrix

pytest.importorskip("sphinx", reason='no Sphinx here: pip install "moe-lite[book]"')
pytest.importorskip("myst_nb", reason='no myst-nb here: pip install "moe-lite[book]"')
pytest.importorskip("furo", reason='no furo here: pip install "moe-lite[book]"')


def code(text, *data):
    outputs = [{"output_type": "display_data", "metadata": {}, "data": d} for d in data]
    return {"cell_type": "code", "id": "c", "metadata": {}, "execution_count": 1,
            "source": text, "outputs": outputs}  # fmt: skip


def said(text):
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def notebook(path, *cells):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = {"cells": list(cells), "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    root = tmp_path_factory.mktemp("clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_LITE_PAGES", "1")
        patch.setattr(TrafficMatrix, "grid", lambda self: {"skew": (0.0, 1.0)})
        data, _ = TrafficMatrix()._repr_mimebundle_()
    chart = {"data": [{"type": "scatter", "x": [1, 2], "y": [3, 4]}], "layout": {"xaxis": {}}}
    data = {kind: value for kind, value in data.items() if "widget" not in kind}
    notebook(
        root / "notebooks" / "01_a.ipynb",
        said(
            "# Who sends what?\n\n[the code](../moe.py), [do it](../solutions/01_solutions.ipynb)"
        ),
        said("$a^2$"),
        code("traffic", data),
        code("chart", {"application/vnd.plotly.v1+json": chart}),
        said("## In the field\n\n| word | meaning |\n|---|---|\n| **gate** | a share |"),
    )
    begun = "def half(x):\n    # YOUR CODE HERE\n    raise NotImplementedError"
    notebook(root / "exercises" / "01_exercises.ipynb", said("# Exercises 01: Who?"), code(begun))
    notebook(
        root / "solutions" / "01_solutions.ipynb",
        said("# Who?"),
        code("def half(x):\n    return x / 2"),
    )
    (root / "moe.py").write_text("print('experts')\n", encoding="utf-8")
    table = "## Chapters\n\n| | |\n|---|---|\n| 01 | [Who?](notebooks/01_a.ipynb) |\n"
    (root / "README.md").write_text(f"# A course\n\n{table}\n## Else\n", encoding="utf-8")
    (root / "LEDGER.md").write_text("# Ledger\n\nNothing yet.\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def site(clone):
    assert main(["--out", str(clone / "site")], LivePage, clone) == 0
    return clone / "site"


class LivePage:
    """Stand in for the live page, whose 11 MB have their own tests."""

    def to_html(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<!doctype html><title>live</title>", encoding="utf-8")


def test_a_widget_lives_in_its_frame_and_a_chart_in_its_page(site):
    page = (site / "notebooks" / "01_a.html").read_text("utf-8")
    assert 'src="../widgets/n01_a-2-0.html"' in page and 'class="chart"' in page
    widget = (site / "widgets" / "n01_a-2-0.html").read_text("utf-8")
    assert "default-src 'none'" in widget and "Traffic: 4 ranks" in widget
    assert (site / "_static" / "plotly.min.js").is_file() and "<math" in page


def test_links_stay_in_the_book_and_a_solution_is_folded(site):
    page = (site / "notebooks" / "01_a.html").read_text("utf-8")
    assert (
        'href="../library/moe.py.html"' in page and 'href="../exercises/01_exercises.html"' in page
    )
    assert "experts" in (site / "library" / "moe.py.html").read_text("utf-8")
    exercise = (site / "exercises" / "01_exercises.html").read_text("utf-8")
    assert "<details><summary>A solution</summary>" in exercise and "<details open" not in exercise
    assert "gate" in (site / "glossary.html").read_text("utf-8")
    assert "01 Who sends what?" in (site / "index.html").read_text("utf-8")


def test_a_folder_that_holds_something_else_is_left_alone(clone, site):
    (clone / "mine").mkdir()
    (clone / "mine" / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(ValueError, match="mine holds something else than a book"):
        main(["--out", str(clone / "mine")], LivePage, clone)
    assert [p.name for p in (clone / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="build them first"):
        main(["--out", str(clone / "new")], LivePage, clone / "mine")
    assert not (clone / "new").exists()


def test_a_picture_is_inverted_only_where_that_does_not_turn_its_meaning_round():
    import io

    import numpy as np
    from PIL import Image

    def picture(coloured, alpha=255):
        pixels = np.full((40, 40, 4), (255, 255, 255, alpha), dtype=np.uint8)
        pixels.reshape(-1, 4)[-int(1600 * coloured) :, :3] = 0, 90, 160
        pixels[5, 5:35, :3] = 0  # ink has no colour
        Image.fromarray(pixels).save(made := io.BytesIO(), "PNG")
        return made.getvalue()

    assert [ground(picture(share)) for share in (0.02, 0.1, 0.2, 0.9)] == ["slab"] * 2 + [
        "tinted"
    ] * 2
    assert ground(picture(0.9, alpha=0)) == ""
