"""A lab grades as it must: the right, the empty, the wrong, the broken and the hostile.

The simulated class hands in one notebook each. Nothing here waits for a clock: a loop is ended by
the seconds of computing that it used, which a busy machine does not lengthen.
"""

import contextlib
import copy
import csv
import dataclasses
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import pytest
import torch

from moe_lite import __main__ as cli
from moe_lite.course import checks
from moe_lite.course.teach import diagnose, grade, lab, otter, quiz, report, worker
from moe_lite.course.teach.nbgrader import export
from moe_lite.course.teach.screen import Given, looks, refusals

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [path.name[:2] for path in sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))]
RIGHT = {
    "rank": """
def rank(expert_T, num_experts):
    hot_TE = F.one_hot(expert_T, num_experts)
    return (hot_TE.cumsum(0) - 1).gather(1, expert_T[:, None])[:, 0]
""",
    "places": "def places(T, E, factor, K):\n    return -int(-(factor * K * T) // E)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A lab of three exercises, made by the command."""
    made = tmp_path_factory.mktemp("teach") / "queues"
    assert cli.main(["teach", "lab", str(made), "05.1", "05.2=5", "05.4", "--limit", "4"]) == 0
    return made


@pytest.fixture(scope="module")
def queues(folder):
    return lab.Lab.load(folder)


def key(queues, check, kind="answer"):
    if kind == "answer":
        return next(queues.makers[c.name].key for c in queues.checks if c.check == check)
    return next(cell.key for cell in queues.checks if cell.check == check)


def filled(queues, rank=RIGHT["rank"], places=RIGHT["places"], before="", after=""):
    """Return a notebook with every answer right but these two, and cells of the student's own."""
    answers = {key(queues, "rank"): rank, key(queues, "places"): places}
    made = lab.notebook(queues, lab.solved(queues) | answers)
    own = [
        {"cell_type": "code", "id": f"own{at}", "metadata": {}, "source": source, "outputs": []}
        for at, source in enumerate((before, after))
    ]
    at = next(i for i, c in enumerate(made["cells"]) if c["id"] == key(queues, "rank"))
    made["cells"][at:at] = own[:1]
    made["cells"] += own[1:]
    return made


def mutants(check):
    """List (name, a cell that answers with this mutant)."""
    source = (ROOT / "tests" / "mutants" / f"check_{check}.py").read_text(encoding="utf-8")
    names = re.findall(r"^def (?!right)(\w+)", source, re.M)
    return [(name, f"{source}\n\n{check} = {name}\n") for name in names]


def without(notebook, *ids):
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] not in ids]
    return notebook


def stripped(notebook):
    """What a converter leaves: no id and no metadata."""
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        del cell["id"]
    return notebook


def copied(notebook, id_, source):
    """Copy a cell below itself, its metadata with it, and write a new source into the copy."""
    at = next(i for i, cell in enumerate(notebook["cells"]) if cell["id"] == id_)
    twin = copy.deepcopy(notebook["cells"][at]) | {"id": "a-new-id", "source": source}
    notebook["cells"].insert(at + 1, twin)
    return notebook


def swapped(notebook, one, other):
    """Give two cells each other's key: what an edited file or a bad merge leaves."""
    for cell in notebook["cells"]:
        if cell["id"] in (one, other):
            cell["id"] = other if cell["id"] == one else one
            cell["metadata"] = {"moe_lite": {"cell": cell["id"]}}
    return notebook


def a_class(queues):
    """Give (student, what was handed in, the points it deserves, what a person is told)."""
    full, rest = 11, 6  # with rank, and with the other two alone
    answer, check = key(queues, "rank"), key(queues, "rank", "check")
    wrong = "def rank(expert_T, num_experts):\n    return expert_T * 0"
    unfilled = next(cell.source for cell in queues.cells if cell.key == answer)
    yield "right", filled(queues), full, ""
    yield "empty", lab.notebook(queues), 0, ""
    pairs = zip(mutants("rank")[:6], mutants("places")[:6], strict=True)
    for (name, source), (other, places) in pairs:
        yield f"mutants {name} {other}", filled(queues, source, places), 4, ""
    # --- what breaks a process
    yield "loop", filled(queues, "def rank(e, E):\n    while True: pass"), rest, "used up its time"
    leave = "import os\ndef rank(e, E):\n    os._exit(0)"
    yield "exit", filled(queues, leave), rest, "ended the Python"
    yield "loop at the top", filled(queues, before="while True: pass"), full, "used up its time"
    yield "leaves politely", filled(queues, "def rank(e, E):\n    raise SystemExit"), rest, ""
    prints = RIGHT["rank"].replace(":\n", ":\n    print('x' * 9_000_000)\n", 1)
    yield "prints", filled(queues, prints), full, ""
    yield "no syntax", filled(queues, "def rank(e, E) return e"), rest, ""
    # --- what became of the notebook
    gone = without(filled(queues), check, answer)
    yield "deleted cells", gone, rest, "the answer cell of 05.2 is gone"
    yield "stripped", stripped(filled(queues)), full, "the answer to 05.1, 05.2, 05.4"
    yield "a spare copy", copied(filled(queues, RIGHT["rank"]), answer, unfilled), full, ""
    again = copied(filled(queues, wrong), answer, RIGHT["rank"])
    yield "a second try", again, full, "2 different answers to 05.2"
    elsewhere = filled(queues, unfilled, before=RIGHT["rank"])
    yield "in a cell of their own", elsewhere, full, "found by its name: the answer to 05.2"
    helped = "%timeit 1\n" + RIGHT["rank"].replace("F.one_hot", "hot")
    yield "magic and a helper", filled(queues, helped, before="!ls\nhot = F.one_hot"), full, ""
    yield "no notebook", "{", 0, "cannot be read"
    yield "another notebook", {"cells": [{"cell_type": "code", "source": 1}]}, 0, "cannot be read"
    # --- what reaches round the question
    patch = "checks.check_rank = lambda answer: None"
    yield "patches the check", filled(queues, wrong, before=patch), rest, "other than by calling"
    bought = "from moe_lite.capacity import rank_in_expert as rank"
    yield "imports the answer", filled(queues, bought), rest, "of the library"
    changed = copied(without(filled(queues, wrong), check), answer, wrong)
    changed["cells"].append({"cell_type": "code", "id": check, "metadata": {}, "source": "1"})
    yield "writes over the check", changed, rest, "changed the locked cell"
    forged = (
        "import os\ndef rank(e, E):\n"
        "    for fd in range(3, 30):\n"
        '        try: os.write(fd, b\'["end", 9, {"status": "right"}]\\n\' * 9)\n'
        "        except OSError: pass\n    os._exit(0)"
    )
    yield "forges a report", filled(queues, forged), rest, "imports os"
    alias = "t = torch\nsetattr(t, 'equal', lambda *a: True)\nt.allclose = t.equal"
    blind = f"{wrong[: wrong.index('return')]}{alias.replace(chr(10), '; ')}; return expert_T * 0"
    yield (
        "changes torch before",
        filled(queues, wrong, before=f"import torch\n{alias}"),
        rest,
        ("changed torch.allclose, torch.equal"),
    )
    yield "changes torch meanwhile", filled(queues, blind, before="import torch"), rest, "changed"
    twice = RIGHT["rank"].replace(":\n", ":\n    getattr(__import__('os'), 'fork')()\n", 1)
    yield "forks by another name", filled(queues, twice), rest, "uses __import__"
    forks = "import os\n" + RIGHT["rank"].replace(":\n", ":\n    getattr(os, 'fo' + 'rk')()\n", 1)
    yield "forks in the dark", filled(queues, forks), full, "calls getattr"
    memory = "def rank(e, E):\n    return bytearray(10**11)"
    yield "wants all memory", filled(queues, memory), rest, ""
    flood = "import sys\ndef rank(e, E):\n    while True: sys.stdout.write('x' * 99_999)"
    yield "floods", filled(queues, flood), rest, "imports sys"
    # --- what became of the file
    yield (
        "words of no alphabet",
        filled(queues, "def rank(e, E):\n    raise ValueError('\\ud800')"),
        (rest),
        "",
    )
    yield "swapped keys", swapped(filled(queues), answer, key(queues, "places")), full, "05.1, 05.2"
    as_saved = json.dumps(filled(queues), indent=1)
    yield "Windows' lines", as_saved.replace("\\n", "\\r\\n").replace("\n", "\r\n"), full, ""
    yield "UTF-16", as_saved.encode("utf-16"), full, ""
    yield "nothing in it", "", 0, "cannot be read"
    yield "too many cells", {"cells": filled(queues)["cells"] * 200}, 0, "over 2,000 cells"
    yield "too large", as_saved + " " * grade.MAX_BYTES, 0, "over 50 MB"
    yield "deep", '{"cells": ' + "[" * 99_999, 0, "cannot be read"


@pytest.mark.slow("a class of 43, each in a process of its own")
@pytest.mark.skipif(os.name != "posix", reason="a loop is ended by the clock there")
def test_a_class_is_graded_and_nobody_costs_another_anything(folder, queues, tmp_path):
    expected = {}
    for student, handed_in, points, told in a_class(queues):
        text = handed_in if isinstance(handed_in, str | bytes) else json.dumps(handed_in)
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / f"{student}.ipynb").write_bytes(data)
        expected[student] = points, told
    (tmp_path / "nothing handed in").mkdir()
    expected["nothing handed in"] = 0, "no notebook was handed in"
    (tmp_path / "a link to the key.ipynb").symlink_to(folder / "key" / "queues.ipynb")
    expected["a link to the key"] = 0, "is a link; not followed"
    (tmp_path / "packed.zip").write_bytes(b"PK")
    expected["packed"] = 0, "packed.zip was handed in"
    assert len(expected) == 43

    assert cli.main(["teach", "grade", str(folder), "--submitted", str(tmp_path)]) == 0

    with (folder / "graded" / "grades.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert {name: float(row["points"]) for name, row in rows.items()} == {
        name: points for name, (points, _) in expected.items()
    }
    assert all(row["of"] == "11" for row in rows.values())
    parts = (folder / "graded" / "look.md").read_text(encoding="utf-8").split("- **")
    told = {part.split("**")[0]: part for part in parts[1:]}
    assert {
        name: said for name, (_, said) in expected.items() if said not in told.get(name, "")
    } == {}
    unremarkable = {name for name, (_, said) in expected.items() if not said}
    assert unremarkable.isdisjoint(told), "a person's time goes to what needs it"
    pages = {path.stem: path.read_text("utf-8") for path in (folder / "graded/feedback").iterdir()}
    assert pages.keys() == expected.keys()
    assert "the first in a queue has rank 0" in next(
        page for name, page in pages.items() if "from_one" in name
    )
    assert not any(re.search(r"https?:|<script|src=", page) for page in pages.values())


def test_a_lab_that_is_there_is_not_replaced_unasked(folder, capsys):
    before = (folder / "lab.json").read_bytes()
    assert cli.main(["teach", "lab", str(folder), "05.1"]) == 1
    assert "there is a lab in" in capsys.readouterr().err
    assert (folder / "lab.json").read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["five"], "names no exercise"),
        (["05.2", "05"], "asked for twice"),
        (["05.2", "05.2=3"], "asked for twice"),
        (["05.9"], "chapter 05 has no exercise 9; it has 6"),
        (["98"], "no exercises of chapter 98"),
    ],
)
def test_a_lab_that_cannot_be_made_is_told_in_one_line(asked, said, tmp_path, capsys):
    assert cli.main(["teach", "lab", str(tmp_path / "lab"), *asked]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "lab").exists()


def test_a_lab_that_lacks_what_it_needs_is_not_written(tmp_path, capsys):
    assert cli.main(["teach", "lab", str(tmp_path / "lab"), "05.5"]) == 1
    assert "rank_top2" in (err := capsys.readouterr().err) and "take that too" in err
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize("spoil", ["[]", "{}", '{"cells": [1]}', "x"])
def test_a_folder_without_a_lab_is_told(spoil, tmp_path, capsys):
    (tmp_path / "lab.json").write_text(spoil)
    assert cli.main(["teach", "grade", str(tmp_path)]) == 1
    assert "is not a lab" in capsys.readouterr().err


SOURCES = sorted([*(ROOT / "notebooks").glob("*.py"), *(ROOT / "solutions").glob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_source_is_read_as_jupytext_reads_it(path):
    text = path.read_text(encoding="utf-8")
    cells = [(cell.cell_type, cell.source) for cell in jupytext.reads(text, fmt="py:percent").cells]
    assert lab.read_cells(text) == cells


def test_what_a_lecturer_waits_for_brings_no_reader_of_notebooks():
    """Their import takes as long as all the rest together."""
    code = (
        "import sys; from moe_lite.course.teach import lecture; lecture('quiz', '05', True)\n"
        "print(sorted({'jupytext', 'nbformat', 'jsonschema'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_exercises_are_headed_by_their_chapters_number(chapter):
    (path,) = (ROOT / "solutions").glob(f"{chapter}_*.py")
    kind, text = lab.read_cells(path.read_text(encoding="utf-8"))[0]
    assert kind == "markdown" and text.startswith(f"# Exercises {chapter}: ")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_line_of_a_solution_is_released(chapter, tmp_path):
    made = lab.assemble("one", [chapter])
    assert lab.secrets(made), "there is something to keep"
    path = tmp_path / "lab.ipynb"
    path.write_text(json.dumps(lab.notebook(made)), encoding="utf-8")
    assert lab.leaks(made, tmp_path) == []
    path.write_text(json.dumps(lab.notebook(made, lab.solved(made))), encoding="utf-8")
    assert lab.leaks(made, tmp_path), "the test would see one"


def given_of(made):
    return Given.read(
        [c.source for c in made.cells if c.kind == "given"] + [*lab.solved(made).values()]
    )


def test_an_nbgrader_course_is_marked_as_it_must_be(queues, tmp_path):
    export(queues, tmp_path)
    made = json.loads((tmp_path / "source" / "queues" / "queues.ipynb").read_text("utf-8"))
    assert (tmp_path / "nbgrader_config.py").is_file()
    marks = [(cell["metadata"]["nbgrader"], "".join(cell["source"])) for cell in made["cells"]]
    assert len({mark["grade_id"] for mark, _ in marks}) == len(marks)
    assert sum(mark.get("points", 0) for mark, _ in marks) == queues.points
    for mark, source in marks:
        assert mark["locked"] != mark["solution"] == ("### BEGIN SOLUTION" in source)
        assert mark["grade"] == ("### BEGIN HIDDEN TESTS" in source)
        # what nbgrader cuts is all that tells of a solution
        kept = re.sub(r"### BEGIN (SOLUTION|HIDDEN TESTS).*?### END \1", "", source, flags=re.S)
        assert lab.secrets(queues).isdisjoint(map(str.strip, kept.splitlines()))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_courses_own_answers_are_allowed_and_usual(chapter):
    made = lab.assemble("one", [chapter])
    for source in lab.solved(made).values():
        assert refusals(source, given_of(made)) == []
        assert looks(source) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_nothing_that_a_lab_gives_is_an_answer(chapter):
    """Neither what is imported nor what is used of it, `data.encode`; all else is refused."""
    made = lab.assemble("one", [chapter])
    given, things = given_of(made), {}
    for module, name, here in given.imports:
        if module.split(".")[0] == "moe_lite" and here != "checks":
            whole = importlib.import_module(module)
            part = getattr(whole, name, None) if name else whole
            things[here] = part or importlib.import_module(f"{module}.{name}")
    for used in given.used:
        here, _, attribute = used.partition(".")
        things[used] = getattr(things.get(here), attribute, None)
    for thing in {id(one): one for one in things.values() if callable(one)}.values():
        for cell in made.checks:
            with pytest.raises((checks.CheckFailed, NotImplementedError)):
                getattr(checks, f"check_{cell.check}")(thing)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import moe_lite", "imports moe_lite"),
        ("def f():\n    from moe_lite.course import checks as c", "line 2 imports"),
        ("from moe_lite.course.checks.capacity import check_rank", "of the library"),
        ("import importlib.util", "imports importlib.util"),
        ("from sys import modules", "sys.modules"),
        ("import sys\nsys.modules['moe_lite']", "uses .modules"),
        ("torch.sys.modules", "uses .modules"),
        ("__import__('moe_lite')", "uses __import__"),
        ("eval('1')", "uses eval"),
        ("import os\nos.kill(os.getppid(), 9)", "uses .kill"),
        ("globals()['checks']", "uses globals"),
        ("c = checks", "other than by calling"),
        ("checks.capacity.check_rank(f)", "other than by calling"),
        ("torch.equal = lambda *a: True", "changes torch.equal"),
        ("del torch.Tensor.sum", "changes torch.Tensor.sum"),
        ("data.texts", "uses data.texts"),
    ],
)
def test_what_reaches_round_the_question_is_refused(source, said):
    given = Given.read(["import torch\nfrom moe_lite.course import checks, data\ndata.encode(1)"])
    assert said in "; ".join(refusals(source, given))


@pytest.mark.parametrize(
    "source",
    [
        "from moe_lite.course import checks, data",
        "checks.check_rank(rank)",
        "data.encode(2)",
        "def f(data):\n    return data.anything",
        "import sys\nsys.maxsize",
        "list(torch.nn.Linear(1, 1).modules())",
        "class A:\n    def f(self):\n        self.x = 1",
        "def f(:",
    ],
)
def test_what_an_honest_answer_needs_is_allowed(source):
    given = Given.read(["import torch\nfrom moe_lite.course import checks, data\ndata.encode(1)"])
    assert refusals(source, given) == []


def test_twins_are_seen_through_names_and_layout(queues):
    one = RIGHT["rank"].replace("hot_TE", "h").replace("(0)", "(dim=0) + 0 * expert_T.sum() + 0")
    other = one.replace("expert_T", "e").replace("h.", "hot.").replace("h =", "hot =  ")
    apart = one.replace("+ 0", "+ 1")
    graded = [
        grade.Graded(name, answers={key(queues, "rank"): source})
        for name, source in [("a", one), ("b", other), ("c", apart), ("d", RIGHT["rank"])]
    ]
    assert report.twins(queues, graded) == ["a and b gave one answer to 05.2"]


def test_a_name_is_no_formula(queues):
    results = [grade.Result("empty") for _ in queues.checks]
    graded = [grade.Graded("=1+1", results), grade.Graded("<b>", results)]
    assert "\n'=1+1,0,11," in report.table(queues, graded)
    assert "<b>" not in report.feedback(queues, graded[1])


# --- what a busy machine, or one that stops, does to it ------------------------------------------


class Lines(queue.Queue):
    """A worker's lines, signed, after some looks that find none; each look takes so long."""

    def __init__(self, *reports, looks=0, forged=(), clock=None, takes_s=0.0):
        super().__init__()
        self.looks, self.clock, self.takes_s = looks, clock, takes_s
        for line in forged:
            self.put(line)
        for number, text in enumerate(map(json.dumps, reports)):
            self.put(f"{worker.sign('key', number, text)} {text}")
        self.put(None)

    def get(self, *args, **kwargs):
        if self.clock:
            self.clock[0] += self.takes_s
        if self.looks:
            self.looks -= 1
            raise queue.Empty
        return super().get(*args, **kwargs)


class Alive:
    def poll(self):
        return None


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(grade.time, "monotonic", lambda: now[0])
    return now


def test_what_was_said_just_before_the_end_is_heard():
    """A busy machine brings a worker's lines late: later than it notices that the worker ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    lines = Lines(["ready"], ["done"], looks=3)
    assert list(grade.heard(process, lines, grade.Patience(600.0), "key")) == [
        ["ready"],
        ["done"],
        None,
    ]


def test_a_grader_that_was_held_up_has_missed_nothing(clock):
    lines = Lines(["ready"], ["done"], looks=3, clock=clock, takes_s=1000)
    assert list(grade.heard(Alive(), lines, grade.Patience(600.0), "key")) == [
        ["ready"],
        ["done"],
        None,
    ]


def test_silence_ends_the_wait_and_a_line_that_is_not_signed_is_silence(clock):
    own = ["", "key [0]", '["end", 0, {"status": "right"}]'] * 9
    lines = Lines(["ready"], forged=own, clock=clock, takes_s=0.4)
    assert list(grade.heard(Alive(), lines, grade.Patience(6.0), "key")) == [None]
    assert 6 <= clock[0] < 7


def test_a_report_counts_once_and_as_it_was_signed():
    text = json.dumps(["end", 0, {"status": "wrong"}])
    mac = worker.sign("key", 0, text)
    forged = [f"{mac} {text.replace('wrong', 'right')}", "é", f"{mac} {text}", f"{mac} {text}"]
    heard = list(grade.heard(Alive(), Lines(forged=forged), grade.Patience(600.0), "key"))
    assert heard == [["end", 0, {"status": "wrong"}], None]


DID, LOST = {"status": "right"}, RuntimeError("the grading process did not start")


@pytest.mark.parametrize(
    ("ends", "statuses"),
    [
        ([LOST, (None, "")], ["right", "right", "right"]),
        ([OSError("no memory"), (None, "")], ["right", "right", "right"]),
        ([(1, "killed"), (None, "")], ["right", "right", "right"]),
        ([(1, "killed"), (1, "killed"), (None, "")], ["right", "crash", "right"]),
        ([(1, "crash"), (None, "")], ["right", "crash", "right"]),
        ([(1, "time"), LOST, (None, "")], ["right", "time", "right"]),
        ([(1, "time"), LOST, LOST], ["right", "time", "broken"]),
        ([(1, "killed"), (2, "killed"), (None, "")], ["right", "right", "right"]),
        ([(3, "killed"), (None, "")], ["right", "right", "right"]),
        ([LOST, LOST], None),
    ],
)
def test_what_may_not_be_the_answers_fault_is_tried_twice(ends, statuses, monkeypatch):
    ends = iter(ends)

    def attend(job, patience, reports):
        end = next(ends)
        patience.listened_s += 700 if end == LOST else 0  # a start that hangs takes all of its time
        if isinstance(end, Exception):
            raise end
        reports |= {i: DID for i in job["todo"] if end[0] is None or i < end[0]}
        return end

    monkeypatch.setattr(grade, "attend", attend)
    steps = [{"kind": kind, "key": kind} for kind in ("check", "check", "check", "run")]
    if statuses is None:
        with pytest.raises(RuntimeError, match="did not start"):
            grade.run(steps, 60, 4)
    else:
        assert [report["status"] for report in grade.run(steps, 60, 4)][:3] == statuses
    assert next(ends, None) is None


def waits(path):
    """Return a step that waits for ever, and so does a child of its, which locks a file."""
    source = (
        "import fcntl, os, threading\n"
        "if not os.fork():\n"
        f"    held = open({str(path)!r}, 'w')\n    fcntl.flock(held, fcntl.LOCK_EX)\n"
        f"    open({f'{path}.held'!r}, 'w').close()\nthreading.Event().wait()"
    )
    return [{"kind": "run", "key": "waits", "source": source}]


def until_it_is_gone(path):
    """Lock the file: the one who held it, and waits for ever, has ended."""
    import fcntl

    for _ in range(1200):  # of looks, not of seconds: a busy machine is slow, not wrong
        with open(path) as file, contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    pytest.fail("the answer outlived its grader")


@pytest.mark.skipif(os.name != "posix", reason="locks of its own")
def test_who_breaks_the_grading_off_waits_for_no_answer(tmp_path):
    path = tmp_path / "lock"
    held = Path(f"{path}.held")
    try:
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(grade.run, waits(path), 3600, 4)
            while not held.exists() and not job.done():
                time.sleep(0.05)
            grade.halted.set()
            assert job.result()[0]["status"] in ("time", "crash")
    finally:
        grade.halted.clear()
    until_it_is_gone(path)


def test_ctrl_c_breaks_the_grading_off(folder, queues, tmp_path, monkeypatch):
    (tmp_path / "anna.ipynb").write_text(json.dumps(filled(queues)), encoding="utf-8")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(grade, "grade", interrupted)
    try:
        assert cli.main(["teach", "grade", str(folder), "--submitted", str(tmp_path)]) == 130
        assert grade.halted.is_set()
    finally:
        grade.halted.clear()


@pytest.mark.skipif(os.name != "posix", reason="locks of its own")
def test_no_answer_outlives_the_grader(tmp_path):
    path = tmp_path / "lock"
    code = f"from moe_lite.course.teach import grade; grade.run({waits(path)!r}, 3600, 4)"
    grader = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not Path(f"{path}.held").exists():
        assert grader.poll() is None
        time.sleep(0.05)
    grader.kill()
    grader.wait()
    until_it_is_gone(path)


@pytest.mark.parametrize(
    "source",
    ["torch.optim.SGD([x], 0.1)", "torch.func.grad(lambda x: x.sum())(x)", "import torch._dynamo"],
)
def test_what_pytorch_changes_when_it_is_first_used_is_not_the_answers_doing(source):
    source = f"import torch\nx = torch.ones(3, requires_grad=True)\n{source}\ntorch.manual_seed(3)"
    cheat = "torch.manual_seed = print"
    steps = [
        {"kind": "run", "key": key, "source": code} for key, code in (("a", source), ("b", cheat))
    ]
    honest, other = grade.run(steps, 60, 4)
    assert honest == {"status": "ran"}
    assert other["changed"] == "torch.manual_seed"


@pytest.mark.skipif(os.name != "posix", reason="no such limit")
def test_a_cell_may_not_ask_for_more_than_the_system_allows():
    code = (
        "import resource; from moe_lite.course.teach import worker\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (55, 55)); worker.allow(3600)\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "(54, 55)\n", done.stderr


# --- variants ------------------------------------------------------------------------------------


def test_numbers_learnt_by_heart_pass_in_the_notebook_and_not_in_the_grading(queues):
    """The checks grade with another seed: what a notebook's check has shown is no answer."""
    assert queues.seed
    space = {"F": torch.nn.functional}
    exec(RIGHT["rank"], space)
    shown = []
    checks.check_rank(lambda e, E: shown.append(e.tolist()) or space["rank"](e, E))
    first = "    if expert_T.tolist() not in SHOWN: return expert_T * 0\n    hot_TE"
    source = f"SHOWN = {shown}\n" + RIGHT["rank"].replace("    hot_TE", first, 1)
    answers = lab.solved(queues) | {key(queues, "rank"): source}
    at = [cell.check for cell in queues.checks].index("rank")
    for seed, status in ((0, "right"), (queues.seed, "wrong")):
        made = grade.weigh(dataclasses.replace(queues, seed=seed), "x", answers)
        assert made.results[at].status == status


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    """A lab in which each of four students has another wrong answer."""
    made = tmp_path_factory.mktemp("teach") / "mistakes"
    (made.parent / "names").write_text("anna\nben\n\ncara\ndan\n", encoding="utf-8")
    names = ["--diagnose", str(made.parent / "names")]
    assert cli.main(["teach", "lab", str(made), "05.2", *names, "--limit", "10"]) == 0
    return made


def test_each_student_has_another_wrong_answer(diagnosed):
    labs = [lab.Lab.load(diagnosed, name) for name in ("anna", "ben", "cara", "dan")]
    shown = ["".join(c.source for c in one.cells if "rank" in c.names) for one in labs]
    assert len(set(shown)) == 4
    assert len({one.points for one in labs}) == 1
    letters = {c.expects for one in labs for c in one.checks} - {""}
    assert len(letters) > 1, "the place of the right option tells nothing"
    wrong = {one.code: one for one in quiz.wrong_answers("rank", "rank")}
    assert any(one.also for one in wrong.values())
    for one, code in zip(labs, shown, strict=True):
        assert lab.leaks(one, diagnosed / "release") == []
        space = {"F": torch.nn.functional, "torch": torch}
        exec(code, space)
        said = "\n".join(c.source for c in one.cells if c.kind == "text")
        with pytest.raises(checks.CheckFailed) as refused:
            checks.check_rank(space["rank"])
        letter = next(c.expects for c in one.checks if c.expects)
        told = re.search(rf"^- \*\*{letter}:\*\* (.+)$", said, re.M)[1]
        assert told in str(refused.value)
        offered = re.findall(r"^- \*\*\w:\*\* (.+)$", said, re.M)
        assert len(offered) == 4 and not wrong[code].also & {*offered}, "two are true"


def test_a_diagnosis_grades_itself(diagnosed, tmp_path):
    def hand_in(name, diagnoses, repairs):
        one = lab.Lab.load(diagnosed, name if name != "eve" else "anna")
        right = lab.solved(one)
        letter, repair = right  # in the order of the cells
        answers = {letter: right[letter] if diagnoses else right[letter][:-2] + 'E"'}
        answers |= {repair: right[repair]} if repairs else {}
        text = json.dumps(lab.notebook(one, answers))
        (tmp_path / f"{name}.ipynb").write_text(text, encoding="utf-8")

    for name, *what in (
        ("anna", True, True), ("ben", True, False), ("cara", False, True), ("eve", True, True)
    ):  # fmt: skip
        hand_in(name, *what)
    (tmp_path / "dan.ipynb").write_bytes((diagnosed / "release" / "dan.ipynb").read_bytes())
    assert cli.main(["teach", "grade", str(diagnosed), "--submitted", str(tmp_path)]) == 0
    with (diagnosed / "graded" / "grades.csv").open(encoding="utf-8", newline="") as file:
        points = {row["student"]: float(row["points"]) for row in csv.DictReader(file)}
    repair = lab.Lab.load(diagnosed, "anna").points - diagnose.POINTS
    full = repair + diagnose.POINTS
    wanted = {"anna": full, "ben": diagnose.POINTS, "cara": repair, "dan": 0, "eve": 0}
    assert points == wanted
    look = (diagnosed / "graded" / "look.md").read_text(encoding="utf-8")
    assert "no variant of this lab was made for eve" in look


@pytest.mark.parametrize(
    ("names", "said"),
    [("", "holds no names"), ("a\na", "stands there twice"), ("../a", "cannot be the name")],
)
def test_names_that_cannot_be_used_are_told(names, said, tmp_path, capsys):
    (tmp_path / "names").write_text(names, encoding="utf-8")
    command = ["teach", "lab", str(tmp_path / "lab"), "05.2", "--diagnose", str(tmp_path / "names")]
    assert cli.main(command) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "lab").exists()


# --- otter-grader --------------------------------------------------------------------------------


def test_an_otter_notebook_is_marked_as_it_must_be(queues, tmp_path):
    made = json.loads(otter.export(queues, tmp_path).read_text(encoding="utf-8"))
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    raw = ["".join(c["source"]) for c in made["cells"] if c["cell_type"] == "raw"]
    assert [text.count("# BEGIN QUESTION") for text in raw].count(1) == 3
    asked = [float(points) for text in raw for points in re.findall(r"^points: (.+)$", text, re.M)]
    assert sum(asked) == queues.points
    # what otter cuts is all that tells of a solution
    code = ["".join(c["source"]) for c in made["cells"] if c["cell_type"] != "raw"]
    kept = [re.sub(r"# BEGIN SOLUTION.*?# END SOLUTION", "", text, flags=re.S) for text in code]
    said = {line.strip() for text in kept for line in text.splitlines()}
    assert lab.secrets(queues).isdisjoint(said)


@pytest.mark.slow("otter-grader, three times")
@pytest.mark.skipif(importlib.util.find_spec("otter") is None, reason="otter-grader is not here")
def test_otter_gives_the_model_solution_all_points_and_an_empty_notebook_none(queues, tmp_path):
    def run(*command):
        done = subprocess.run(
            [sys.executable, "-c", "from otter.cli import cli; cli()", *map(str, command)],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    run("assign", otter.export(queues, tmp_path), tmp_path / "dist")
    (grader,) = (tmp_path / "dist" / "autograder").glob("*.zip")
    for who, of in (("autograder", queues.points), ("student", 0)):
        run("run", "-a", grader, tmp_path / "dist" / who / "queues.ipynb")
        results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
        assert sum(test.get("score") or 0 for test in results["tests"]) == of
    hidden = "".join(p.read_text("utf-8") for p in (tmp_path / "dist" / "student").rglob("*.*"))
    assert not any(line in hidden for line in lab.secrets(queues) if len(line) > 20)
