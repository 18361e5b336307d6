"""The notebooks run, the exercises wait, and what is committed is what the sources give.

``pytest -m notebooks`` runs these alone. The summary has each one's seconds beside what it is to
take on two quiet cores; only a hang fails.
"""

import ast
import json
import os
import re
import shutil

import nbformat
import pytest

from moe_lite.course import build

pytestmark = pytest.mark.notebooks
TARGETS = build.targets()
EXECUTED = [target for target in TARGETS if not target.is_exercise]
EXERCISES = [target for target in TARGETS if target.is_exercise]
PRIVATE = re.compile(
    r"(?<![\w.])/(?:home|Users|root|tmp|var/folders|private|mnt|opt)/|\b[A-Z]:\\+(?:Users|home|tmp|Temp)\b"
)


def named(targets):
    return [pytest.param(target, id=target.name) for target in targets]


@pytest.fixture
def elsewhere(tmp_path):
    """Copy a target's sources to where running them can leave nothing behind."""

    def copy(target):
        folder = tmp_path / target.source.parent.name
        shutil.copytree(
            target.source.parent, folder, ignore=shutil.ignore_patterns("*.ipynb", ".*")
        )
        return folder

    return copy


def run(target, folder, record_property, **options):
    notebook = build.draft(target)
    seconds = build.execute(notebook, folder, target.name, **options)
    record_property("took", f"{target.name}: {seconds:.0f} s of {build.BUDGET_S:.0f}")
    return notebook


@pytest.mark.parametrize("target", named(EXECUTED))
def test_a_notebook_runs_from_its_source(target, elsewhere, record_property):
    run(target, elsewhere(target), record_property)


@pytest.mark.parametrize("target", named(EXERCISES))
def test_exercises_bear_the_number_of_their_chapter(target):
    title = re.search(r"^# # Exercises (\d\d): ", target.source.read_text("utf-8"), re.M)
    assert title and title[1] == target.source.name[:2]


@pytest.mark.parametrize("target", named(EXERCISES))
def test_an_unfilled_exercise_fails_only_as_not_implemented(target, elsewhere, record_property):
    notebook = run(target, elsewhere(target), record_property, allow_errors=True)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    raised = {
        index: output.ename
        for index, cell in enumerate(code)
        for output in cell.outputs
        if output.output_type == "error"
    }
    assert set(raised.values()) <= {"NotImplementedError", "NotWritten"}, raised
    checks = {index for index, cell in enumerate(code) if "checks.check_" in cell.source}
    assert checks, "an exercise is told whether it is right"
    assert checks <= set(raised), "a check passes though there is no answer yet"
    for index in raised:  # a check, or a cell that shows what the answer does
        (output,) = (o for o in code[index].outputs if o.output_type == "error")
        wanted = r"· \w+:" if index in checks else r"· needs exercise \d+: `[\w.]+` is"
        # Rendered by itself, so no frame of the library stands above it.
        assert re.fullmatch(f"{wanted} not written yet", output.traceback[-1]), code[index].source


@pytest.mark.parametrize("target", named(TARGETS))
def test_a_built_notebook_is_what_its_source_gives(target):
    problem = build.problem(target)
    if problem == build.EDITED and os.environ.get("CI") != "true":
        pytest.skip(f"{target.name} holds your own work; it is not compared with its source")
    assert problem is None, f"{target.name} is {problem}: run python -m moe_lite build"


@pytest.mark.parametrize("target", named(TARGETS))
def test_a_browser_that_saves_it_changes_nothing(target):
    """JupyterLab writes 2 for 2.0, and reading would dirty git."""
    notebook = json.loads(target.built.read_text(encoding="utf-8"))
    assert json.dumps(build.whole(notebook)) == json.dumps(notebook)


def test_no_built_notebook_is_an_orphan():
    assert build.orphans() == []


@pytest.mark.parametrize("target", named(TARGETS))
def test_a_built_notebook_is_fit_to_be_read_anywhere(target):
    text = target.built.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert len(text.encode()) < build.MAX_BYTES
    assert build.WIDGET not in text and "widgets" not in notebook.metadata
    assert "version" not in notebook.metadata.language_info
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        words = repr([cell.source, *map(build.texts, cell.outputs)])
        assert not PRIVATE.search(words), f"a path of one machine: {PRIVATE.search(words)}"
        assert not any(output.get("name") == "stderr" for output in cell.outputs)
        for shown in (output.get("data", {}) for output in cell.outputs):
            bare = shown.keys() == {"text/plain"} and "<Figure size" in shown["text/plain"]
            assert not bare, f"a picture that nobody sees: {cell.source}"
    counts = [cell.execution_count for cell in code]
    assert counts == ([None] * len(code) if target.is_exercise else [*range(1, len(code) + 1)])


@pytest.mark.parametrize("target", named(EXECUTED))
def test_no_printed_line_is_wider_than_a_cell(target):
    """JupyterLab's cells hold some 108 characters at 1,280 pixels."""
    notebook = nbformat.reads(target.built.read_text(encoding="utf-8"), as_version=4)
    rich = {"image/png", "text/html", "text/markdown"}
    said = [
        "" if rich & set(output.get("data", ())) else
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells for output in cell.get("outputs", ())
    ]  # fmt: skip
    wide = [line for text in said for line in text.splitlines() if len(line) > 105]
    assert wide == []


def rebound(codes):
    """Name what a later cell assigns to and an earlier one had imported or defined."""
    given, taken = set(), []
    for code in codes:
        tree, own = ast.parse(re.sub(r"^[ ]*[%!].*$", "", code, flags=re.M)), set()
        inner = {  # what is bound inside a function, a class or a comprehension is its own
            name for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.comprehension)
            for name in ast.walk(node)
        }  # fmt: skip
        for node in ast.walk(tree):
            if node in inner:
                continue
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                taken += [node.id] if node.id in given else []
            elif isinstance(node, ast.Import | ast.ImportFrom):
                own |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        own |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        given |= own
    return taken


@pytest.mark.parametrize("target", named(EXECUTED))
def test_a_reader_may_go_back_to_an_earlier_cell(target):
    """What was imported or defined there is still what it was."""
    cells = build.draft(target).cells
    assert rebound([cell.source for cell in cells if cell.cell_type == "code"]) == []


def test_what_was_rebound_is_seen():
    first = (
        "from moe_lite import losses\nimport torch.nn as nn\ndef moe(x):\n    y = x\n    return y"
    )
    assert rebound([first, "for losses in []: pass\nmoe, y = 1, 2\n[nn for nn in []]"]) == [
        "losses", "moe"
    ]  # fmt: skip
    assert rebound(["try:\n    import a\nexcept ImportError:\n    a = None"]) == []


@pytest.mark.parametrize("target", named([t for t in EXECUTED if t.name.startswith("notebooks/")]))
def test_a_chapter_is_a_sitting(target):
    """Under 3,000 words with its links; no cell over 15 lines, blanks and comments counted."""
    cells = build.draft(target).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert words < 3000, f"{words} words"
    long = [c.source for c in cells if c.cell_type == "code" and len(c.source.splitlines()) > 15]
    assert not long, long[0]


@pytest.mark.parametrize("target", named(EXERCISES))
def test_an_exercise_has_its_dress(target):
    """Difficulty, minutes, importance, two folded hints, types and a docstring, in each."""
    cells = build.draft(target).cells
    regions = [index for index, cell in enumerate(cells) if "# YOUR CODE HERE" in cell.source]
    assert len(regions) >= 4
    for index in regions:
        before, cell = cells[index - 1].source, cells[index].source
        assert before.count("<details>") == before.count("</details>") == 2
        assert cell.count('"""') >= 2 and "->" in cell
        assert "checks.check_" in cells[index + 1].source
    text = "\n".join(cell.source for cell in cells)
    sections = re.findall(r"^## \d+\. .*\n\n(.*)$", text, flags=re.M)
    assert len(sections) >= 4
    for line in sections:
        assert re.fullmatch(r"\*Difficulty [●○]{5} · importance [●○]{5} · \d+ minutes\*", line)
