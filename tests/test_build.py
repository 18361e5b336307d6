"""The build: marks, cuts, execution, what outputs are kept, and that nobody's work is lost."""

import base64
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lite import __main__ as command_line
from moe_lite.course import build

CHAPTER = """\
# %% [markdown]
# # Why

# %%
x = 1

# %%
print(x + 1)
"""
SOLUTION = '''\
# %% [markdown]
# # Exercises

# %%
def half(x: float) -> float:
    """Halve."""
    ### BEGIN SOLUTION
    y = x / 2
    return y
    ### END SOLUTION

# %%
assert half(2) == 1
### BEGIN HIDDEN TESTS
assert half(3) == 1.5
### END HIDDEN TESTS

# %%
### BEGIN HIDDEN TESTS
assert half(4) == 2
### END HIDDEN TESTS
'''


NAMES = ("notebooks/01_why.ipynb", "solutions/01_solutions.ipynb", "exercises/01_exercises.ipynb")


@pytest.fixture
def course(tmp_path):
    """Write a source into a small course; give its root."""

    def write(folder, text, name="01_why.py"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


def read(path):
    return nbformat.read(path, as_version=4)


def cells(*code):
    """Make a notebook of these code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in code])


# --- the marks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("### BEGIN SOLUTION\nx", "s.py, line 1: ### BEGIN SOLUTION has no END in its cell"),
        ("# %%\n### BEGIN SOLUTION\n# %%\n### END SOLUTION", "s.py, line 2: .* no END in its cell"),
        ("x\n### END SOLUTION", "s.py, line 2: ### END SOLUTION without its ### BEGIN SOLUTION"),
        (
            "### BEGIN SOLUTION\n### BEGIN HIDDEN TESTS",
            "line 2: ### BEGIN HIDDEN TESTS inside the SOLUTION begun on line 1",
        ),
        ("### BEGIN SOLUTION\n### END HIDDEN TESTS", "line 2: ### END HIDDEN TESTS without"),
        ("  ### BEGIN SOLUTON", "line 1: '### BEGIN SOLUTON' is not a mark"),
        ("###BEGIN SOLUTION", "line 1: '###BEGIN SOLUTION' is not a mark"),
        ("## BEGIN SOLUTION", "is not a mark"),
    ],
)
def test_a_malformed_mark_is_named_with_its_line(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        build.count_regions(text, "s.py")


def test_marks_are_counted():
    assert build.count_regions(SOLUTION, "s.py") == 1
    assert build.count_regions("# BEGIN reading here\nx = 1  ### END SOLUTION", "s.py") == 0


line = st.sampled_from(["x = 1", "    y = 2", "", "# why", "if x:"])
region = st.tuples(st.sampled_from(["", "    "]), st.sampled_from(build.KINDS), st.lists(line))


@given(st.lists(st.one_of(line, region)))
def test_cutting_keeps_what_is_outside_and_solving_keeps_everything(parts):
    source, outside, everything = [], [], []
    for part in parts:
        if isinstance(part, str):
            source.append(part), outside.append(part), everything.append(part)
        else:
            indent, kind, inside = part
            source += [f"{indent}### BEGIN {kind}", *inside, f"{indent}### END {kind}"]
            outside += [indent + text for text in build.CUT] if kind == "SOLUTION" else []
            everything += inside
    code = "\n".join(source)
    assert build.cut(code, solved=False) == "\n".join(outside).strip("\n")
    assert build.cut(code, solved=True) == "\n".join(everything).strip("\n")
    assert build.count_regions(code, "s.py") == code.count("BEGIN SOLUTION")


def test_what_is_folded_has_room_below_it(course):
    fold = "# <details>\n# <summary>Answer</summary>\n#\n# Yes.\n#\n# </details>\n#\n# And?\n"
    root = course("notebooks", CHAPTER + f"\n# %% [markdown]\n{fold}#\n{fold}")
    said = build.draft(build.targets(root)[0]).cells[-2].source
    assert said.count("</details><p></p>\n\nAnd?") == said.count("</details>") == 2


# --- the three kinds of notebook -----------------------------------------------------------------


def test_a_course_is_built_checked_and_left_alone(course, capsys):
    course("notebooks", CHAPTER)
    root = course("solutions", SOLUTION)
    assert build.main(["--check"], root) == 1
    assert capsys.readouterr().out.splitlines() == [f"{name}: missing" for name in NAMES]

    assert build.main([], root) == 0
    chapter = read(root / "notebooks/01_why.ipynb")
    assert [cell.get("execution_count") for cell in chapter.cells] == [None, None, 1, 2, None]
    assert chapter.cells[3].outputs[0].text == "2\n"

    solved = read(root / "solutions/01_solutions.ipynb")
    assert "BEGIN" not in str(solved) and "END" not in str(solved)
    assert solved.cells[0].source == "# Solutions"
    assert [cell.source for cell in solved.cells[3:-1]] == [
        "assert half(2) == 1\nassert half(3) == 1.5",
        "assert half(4) == 2",
    ]

    title, links, note, function, check, again = read(root / "exercises/01_exercises.ipynb").cells
    assert links.source == again.source
    assert title.source == "# Exercises"
    assert "solutions/01_why.py" in note.source
    assert function.source.endswith(
        '"""Halve."""\n    # YOUR CODE HERE\n    raise NotImplementedError'
    )
    assert check.source == "assert half(2) == 1"
    assert function.execution_count is None and not function.outputs

    files = sorted(root.rglob("*.ipynb"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    capsys.readouterr()
    assert build.main(["--check"], root) == 0
    assert build.main([], root) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Nothing to build: every notebook is up to date.",
        *(f"{name}: up to date" for name in NAMES),
    ]
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    assert build.main(["--force", "01"], root) == 0  # executed again: still no diff
    assert {path: data for path, (data, _) in before.items()} == {p: p.read_bytes() for p in files}
    assert b"\r" not in files[0].read_bytes()
    assert not list(root.rglob("*.part"))


def test_every_notebook_leads_to_its_neighbours(course):
    """An appendix stands between its chapter and the next; nothing leads nowhere."""
    for stem in ("01_why", "02_how", "02a_more", "03_end", "03a_one", "03b_two"):
        course("notebooks", CHAPTER, f"{stem}.py")
    for stem in ("01_why", "02_how"):
        root = course("solutions", SOLUTION, f"{stem}.py")
    links = {
        target.name: re.findall(r"\[(.+?)\]\((.+?)\)", build.navigation(target))[:-2]
        for target in build.targets(root)
    }
    chapter = links["notebooks/02_how.ipynb"]
    assert chapter == [
        ("← 01", "01_why.ipynb"), ("03 →", "03_end.ipynb"), ("appendix", "02a_more.ipynb"),
        ("exercises", "../exercises/02_exercises.ipynb"),
        ("solutions", "../solutions/02_solutions.ipynb"),
    ]  # fmt: skip
    assert links["notebooks/03_end.ipynb"][-2:] == [
        ("appendix 03a", "03a_one.ipynb"), ("appendix 03b", "03b_two.ipynb")
    ]  # fmt: skip
    assert links["notebooks/02a_more.ipynb"] == [("← 02", "02_how.ipynb"), ("03 →", "03_end.ipynb")]
    assert links["exercises/01_exercises.ipynb"] == [
        ("02 →", "02_exercises.ipynb"), ("chapter", "../notebooks/01_why.ipynb"),
        ("solutions", "../solutions/01_solutions.ipynb"),
    ]  # fmt: skip
    assert len({name.split("/")[1] for name in links}) == len(links)  # a tab has this name alone
    made = {target.built for target in build.targets(root)}
    for name, found in links.items():
        assert {(root / name).parent.joinpath(to).resolve() for _, to in found} <= made


def test_the_course_s_own_links_lead_to_files():
    made = {target.built for target in build.targets()}  # built yet or not
    for target in build.targets():
        for to in re.findall(r"\]\((.+?)\)", build.navigation(target)):
            path = (target.built.parent / to).resolve()
            assert path in made or path.is_file(), f"{target.name}: {to}"


def test_only_what_changed_is_stale(course, capsys):
    course("notebooks", CHAPTER)
    root = course("solutions", SOLUTION)
    build.main([], root)
    capsys.readouterr()
    course("solutions", SOLUTION.replace("y = x / 2", "y = 0.5 * x"))
    assert build.main(["--check"], root) == 1
    # The exercise hides the line that changed, so it is what its source gives.
    assert capsys.readouterr().out == "solutions/01_solutions.ipynb: stale\n"
    assert build.main(["--check", "01_why"], root) == 1


def test_where_only_the_text_changed_nothing_is_run(course, capsys):
    root = course("notebooks", CHAPTER)
    build.main([], root)
    old = read(root / "notebooks/01_why.ipynb")
    capsys.readouterr()
    course("notebooks", CHAPTER.replace("# # ", "# # Oh, ", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "execute", lambda *args, **more: pytest.fail("it was run"))
        assert build.main([], root) == 0
    assert "its text set anew" in capsys.readouterr().out
    new = read(root / "notebooks/01_why.ipynb")
    assert new.cells[0].source != old.cells[0].source and build.main(["--check"], root) == 0
    code = [[c.get("outputs") for c in n.cells if c.cell_type == "code"] for n in (old, new)]
    assert code[0] == code[1]


def test_line_endings_do_not_make_a_notebook_stale(course):
    root = course("notebooks", CHAPTER)
    build.main([], root)
    (root / "notebooks/01_why.py").write_bytes(CHAPTER.replace("\n", "\r\n").encode())
    assert build.main(["--check"], root) == 0


def test_cell_ids_follow_the_content(course):
    chapter = CHAPTER + "\n# %%\nx = 1\n"
    root = course("notebooks", chapter)
    (target,) = build.targets(root)
    before = [cell.id for cell in build.draft(target).cells]
    assert len(set(before)) == 6
    assert before[4:] == [f"{before[2]}-2", f"{before[1]}-2"]
    course("notebooks", CHAPTER.replace("Why", "Why not"))
    after = [cell.id for cell in build.draft(target).cells]
    assert after[0] != before[0] and after[1:] == before[1:4] + before[5:]


# --- nobody's work is lost -----------------------------------------------------------------------


def test_an_edited_notebook_is_never_overwritten_unasked(course, capsys):
    root = course("solutions", SOLUTION)
    build.main([], root)
    path = root / "exercises/01_exercises.ipynb"
    notebook = read(path)
    notebook.cells[3].source = "def half(x):\n    return x - x / 2  # mine"
    nbformat.write(notebook, path)
    mine = path.read_bytes()
    course("solutions", SOLUTION.replace("Halve.", "Give half."))

    capsys.readouterr()
    assert build.main(["--check"], root) == 1
    assert "exercises/01_exercises.ipynb: edited since it was built" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exercises/01_exercises.ipynb is edited .* --force"):
        build.main([], root)
    assert path.read_bytes() == mine
    build.main(["--force"], root)
    assert "Give half." in path.read_text(encoding="utf-8")


def test_running_a_notebook_is_not_editing_it(course):
    root = course("notebooks", CHAPTER)
    build.main([], root)
    path = root / "notebooks/01_why.ipynb"
    notebook = read(path)
    notebook.cells[3].outputs[0].text = "another run\n"
    notebook.metadata.language_info.version = "3.99"
    nbformat.write(notebook, path)
    assert build.main(["--check"], root) == 0


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n{}", "[]", '{"nbformat": 4}'])
def test_a_broken_notebook_is_named_and_kept(course, capsys, text):
    root = course("notebooks", CHAPTER)
    path = root / "notebooks/01_why.ipynb"
    path.write_text(text, encoding="utf-8")
    assert build.main(["--check"], root) == 1
    assert "not a readable notebook" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not a readable notebook"):
        build.main([], root)
    assert path.read_text(encoding="utf-8") == text


def test_cleared_outputs_are_noticed(course, capsys):
    root = course("notebooks", CHAPTER)
    build.main([], root)
    path = root / "notebooks/01_why.ipynb"
    notebook = read(path)
    for cell in notebook.cells[1:]:
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    assert build.main(["--check"], root) == 1
    assert "not executed" in capsys.readouterr().out


def test_orphans_are_named_and_kept(course, capsys):
    root = course("notebooks", CHAPTER)
    build.main([], root)
    for name in ("02_gone.ipynb", "01_why-Copy1.ipynb", "scratch.ipynb"):
        (root / "notebooks" / name).write_text("{}", encoding="utf-8")
    capsys.readouterr()
    assert build.main(["--check"], root) == 1
    assert capsys.readouterr().out == "notebooks/02_gone.ipynb: orphan: no source makes it\n"
    assert build.main([], root) == 0
    assert "02_gone.ipynb: orphan" in capsys.readouterr().out
    assert (root / "notebooks/02_gone.ipynb").exists()


# --- failures are one sentence, and nothing is half written --------------------------------------


def test_a_failing_cell_is_named_and_the_old_notebook_stays(course):
    root = course("notebooks", CHAPTER)
    build.main([], root)
    old = (root / "notebooks/01_why.ipynb").read_bytes()
    course("notebooks", CHAPTER + "\n# %%\n# first line\n1 / 0\n")
    with pytest.raises(ValueError) as failed:
        build.main([], root)
    assert str(failed.value) == (
        'notebooks/01_why.ipynb, cell 5 of 6 ("# first line"): ZeroDivisionError: division by zero'
    )
    assert (root / "notebooks/01_why.ipynb").read_bytes() == old
    assert not list(root.rglob("*.part"))


def test_the_limit_is_for_the_whole_notebook(tmp_path):
    notebook = cells(*["import time; time.sleep(1.5)"] * 4)
    # Which cell it is depends on how long the kernel took to start. Of itself each may take 4 s.
    with pytest.raises(ValueError, match=r"cell \d of 4 .*still running after 4 s: the notebook"):
        build.execute(notebook, tmp_path, "n.ipynb", limit_s=4)


def test_a_dead_kernel_is_named(tmp_path):
    with pytest.raises(ValueError, match="cell 1 of 1 .*the kernel failed: Kernel died"):
        build.execute(cells("import os; os._exit(1)"), tmp_path, "n.ipynb")


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_ends_a_build_without_a_word_and_the_old_notebook_stays(course, tmp_path):
    root = course("notebooks", CHAPTER)
    build.main([], root)
    old = (root / "notebooks/01_why.ipynb").read_bytes()
    begun = tmp_path / "begun"
    course("notebooks", f"# %%\nimport time\nopen({str(begun)!r}, 'w')\ntime.sleep(3600)\n")
    code = (
        "import signal, sys, pathlib; from moe_lite import __main__ as cli;"
        "from moe_lite.course import build; sys.argv = ['', 'build'];"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"cli.COMMANDS['build'] = lambda argv: build.main(argv, pathlib.Path({str(root)!r}));"
        "sys.exit(cli.run())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(build.ROOT)},
    )  # fmt: skip
    while not begun.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
    assert (root / "notebooks/01_why.ipynb").read_bytes() == old
    assert not list(root.rglob("*.part"))


def test_malformed_marks_stop_the_build_before_anything_is_written(course):
    root = course("solutions", SOLUTION.replace("    ### END SOLUTION\n", ""))
    with pytest.raises(ValueError, match="solutions/01_why.py, line 7: ### BEGIN SOLUTION has no"):
        build.main([], root)
    assert not list(root.rglob("*.ipynb"))


def test_an_exercise_must_ask_something(course):
    root = course("solutions", CHAPTER)
    with pytest.raises(ValueError, match="its exercise would ask nothing"):
        build.main([], root)


def test_a_notebook_may_not_grow_beyond_a_megabyte(course):
    root = course("notebooks", "# %%\nprint(('a' * 99 + '\\n') * 10_001)\n")
    with pytest.raises(ValueError, match=r"would be 1\.1 MB; the limit is 1 MB"):
        build.main([], root)
    assert not list(root.rglob("*.ipynb"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["42"], "there is no chapter '42'; there are: 01_why"), ([], "no notebooks/.*py or solut")],
)
def test_what_cannot_be_built_is_said(course, tmp_path, arguments, sentence):
    root = course("notebooks", CHAPTER) if arguments else tmp_path
    with pytest.raises(ValueError, match=sentence):
        build.main(arguments, root)


def test_on_the_command_line_a_failure_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(build, "targets", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a defect of ours is not hidden
        command_line.main(["build"])
    monkeypatch.undo()
    assert command_line.main(["build", "nonsense"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("moe_lite build: there is no chapter 'nonsense'")
    assert len(err.splitlines()) == 1


def test_a_missing_tool_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    assert command_line.main(["build", "--check"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("moe_lite build: .*jupytext.*course.py build", line)


# --- what is kept of the outputs -----------------------------------------------------------------


def test_the_kernel_is_this_interpreter_in_the_notebooks_folder(tmp_path):
    notebook = cells(
        "import sys, os, hashlib, moe_lite.course.build",
        "hashlib.sha256(sys.executable.encode()).hexdigest()",
        "os.path.basename(os.getcwd())",
    )
    seconds = build.execute(notebook, tmp_path, "n.ipynb")
    shown = [cell.outputs[0].data["text/plain"] for cell in notebook.cells[1:]]
    assert shown == [repr(hashlib.sha256(sys.executable.encode()).hexdigest()), repr(tmp_path.name)]
    assert 0 < seconds < 60


def test_outputs_keep_what_a_page_can_show(tmp_path):
    notebook = cells(
        "import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c')",
        "import ipywidgets\nipywidgets.IntSlider()",
        f"display({{'{build.WIDGET}': {{'model_id': '1'}}, 'text/plain': 'W()',"
        " 'text/html': '<p>', 'image/png': 'iVBORw0KGgo='}, raw=True)",
        "display({'text/html': '<b>x</b>', 'text/plain': 'x'}, raw=True)",
        "display({'text/html': '<script>x</script>', 'text/plain': 'x'}, raw=True)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    )
    build.execute(notebook, tmp_path, "n.ipynb")
    stream, slider, widget, html, script, figure = (cell.outputs for cell in notebook.cells)
    assert [(o.name, o.text) for o in stream] == [("stdout", "a\nc\n")]
    assert slider == []
    assert set(widget[0].data) == {"text/plain", "image/png"}
    assert set(html[0].data) == {"text/plain", "text/html"}
    assert set(script[0].data) == {"text/plain"}
    assert "image/png" in figure[0].data
    assert "widgets" not in notebook.metadata
    assert all("execution" not in cell.metadata for cell in notebook.cells)


def test_plotly_is_kept_small(tmp_path):
    notebook = cells("import plotly.graph_objects as go\ngo.Figure(go.Bar(y=[1, 2]))")
    build.execute(notebook, tmp_path, "n.ipynb")
    assert "application/vnd.plotly.v1+json" in notebook.cells[0].outputs[0].data
    assert len(json.dumps(notebook)) < 50_000


def test_paths_of_the_machine_are_refused(tmp_path):
    with pytest.raises(ValueError, match="its output shows this machine's path"):
        build.execute(cells("import pathlib; pathlib.Path.home() / 'x'"), tmp_path, "n.ipynb")


def test_an_expected_exception_is_shown_without_its_frames(tmp_path):
    notebook = cells("raise KeyError('on purpose')")
    notebook.cells[0].metadata.tags = ["raises-exception"]
    build.execute(notebook, tmp_path, "n.ipynb")
    (output,) = notebook.cells[0].outputs
    assert (output.ename, len(output.traceback)) == ("KeyError", 1)
    assert "on purpose" in output.traceback[0]


def test_a_verdict_is_all_a_learner_sees(tmp_path):
    notebook = cells(
        "from moe_lite.course import checks", "checks.check_top_k(lambda logits, k: None)"
    )
    build.execute(notebook, tmp_path, "n.ipynb", allow_errors=True)
    (output,) = notebook.cells[1].outputs
    (said,) = output.traceback
    assert said.startswith("✗ top_k: return two tensors: gate_TK, expert_TK; not None\n")


def test_nobodys_ipython_profile_changes_the_outputs(tmp_path, monkeypatch):
    start = tmp_path / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00.py").write_text("print = None", encoding="utf-8")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = cells("print('still here')")
    build.execute(notebook, tmp_path, "n.ipynb")
    assert notebook.cells[0].outputs[0].text == "still here\n"


def test_a_stopped_build_leaves_no_half_notebook(course, monkeypatch):
    root = course("solutions", SOLUTION)
    (target,) = [t for t in build.targets(root) if t.is_exercise]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.build(target)
    assert not list((root / "exercises").iterdir())


def test_module_runs_as_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "moe_lite", "build", "--help"],
        capture_output=True, text=True, cwd=build.ROOT,
    )  # fmt: skip
    assert done.returncode == 0 and "--check" in done.stdout


def test_a_figure_is_kept_in_few_colours_and_looks_the_same():
    from matplotlib.figure import Figure
    from PIL import Image, ImageChops

    figure, out = Figure(), io.BytesIO()
    figure.add_subplot(title="a figure", xlabel="steps").plot([3, 1, 4, 1, 5], label="loss")
    figure.savefig(out, format="png", transparent=True)
    picture = Image.open(out).convert("RGBA")
    before = base64.b64encode(out.getvalue()).decode() + "\n"
    after = base64.b64decode(build.with_palette(before))
    assert len(after) < len(out.getvalue()) / 2
    with Image.open(io.BytesIO(after)) as few:
        assert few.mode == "P" and few.size == picture.size
        away = ImageChops.difference(few.convert("RGBA"), picture)
    assert all(high <= 32 for _, high in away.getextrema())
    assert build.with_palette(base64.b64encode(after).decode()) == base64.b64encode(after).decode()
    assert build.with_palette("iVBORw0KGgo=") == "iVBORw0KGgo="  # none at all
