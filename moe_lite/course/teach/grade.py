"""Grade what students hand in: each notebook in its own process, a step at a time, with limits.

The lab is the skeleton: its given cells and checks run as they were given out, whatever became of
them in the student's copy, and the student's cells in their places. A step that ends its process or
uses up its time costs that step: the rest is run again without it.
"""

from __future__ import annotations

import hmac
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import build
from .lab import Lab
from .screen import Given, looks, parse, refusals
from .worker import sign

START_S = 600.0  # for Python and PyTorch to start, however busy the machine is
TOTAL_S = 600.0  # for all that is slow or crashes in one notebook
MAX_BYTES = 50_000_000  # 30 MB of prints were seen
MAX_CELL, MAX_CELLS = 200_000, 2_000
REST_S = 60.0  # for the last lines of a process that has ended
LOOK_S = 0.5  # between two looks at a process
WALL = 5 if os.name == "posix" else 2  # seconds on the clock, for each of computing

halted = threading.Event()  # the grading was broken off: no process is waited for


@dataclass
class Patience:
    """Hold how long a process may be silent, and how long it was listened to, in seconds."""

    silence_s: float
    listened_s: float = 0.0


@dataclass
class Result:
    """Hold what became of one check, or of a cell that was run."""

    status: str  # right, wrong, empty, missing, refused, raised, time, crash, broken
    said: str = ""


@dataclass
class Graded:
    """Hold one student's grade: a result for each check, and what a person should look at."""

    student: str
    results: list[Result] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)  # by key, those that were filled in
    given: dict[str, str] = field(default_factory=dict)  # what given cells raised, by key

    def points(self, lab: Lab) -> float:
        """Return the points of all checks that passed."""
        checks = zip(lab.checks, self.results, strict=True)
        return sum(cell.points for cell, result in checks if result.status == "right")


# --- reading -------------------------------------------------------------------------------------


def submissions(folder: Path) -> list[tuple[str, Path, list[str]]]:
    """List (student, notebook, what to look at): NAME.ipynb, or a folder NAME with one in it.

    A link is not followed: it may lead to the key. What is no notebook, a zip for instance, is
    listed too where it is all there is, so that nobody is lost without a word.

    Raises: ValueError if there is nothing to grade.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: what students handed in belongs there")
    found: dict[str, tuple[Path, list[str]]] = {}
    others = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*")
                if p.suffix.lower() == ".ipynb" and ".ipynb_checkpoints" not in p.parts
            )  # fmt: skip
            last = inside[-1] if inside else path / "(no notebook)"
            many = [f"{len(inside)} notebooks were handed in; graded is {last.name}"]
            found[path.name] = last, many if len(inside) > 1 else []
        elif path.suffix.lower() == ".ipynb":
            more = ["handed in as a folder and as a file; graded is the file"]
            found[path.stem] = path, more if path.stem in found else []
        else:
            others.append(path)
    for path in others:
        found.setdefault(path.stem, (path, [f"{path.name} was handed in"]))
    for student, (path, notes) in found.items():
        there = os.path.realpath(folder) / path.relative_to(folder)
        if os.path.realpath(path) != str(there):
            told = [*notes, f"{path.name} is a link; not followed"]
            found[student] = path.with_name("(a link)"), told
    if not found:
        raise ValueError(f"there is no notebook in {folder}: NAME.ipynb, or NAME/anything.ipynb")
    return [(student, *rest) for student, rest in found.items()]


def read(path: Path) -> list[tuple[str, str]]:
    """Return the code cells of a notebook that may be broken: (key or "", source).

    Raises: ValueError if it cannot be read as a notebook.
    """
    try:
        if not path.is_file() or path.suffix.lower() != ".ipynb":
            raise ValueError("no notebook was handed in")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is over {MAX_BYTES // 10**6} MB")
        found = []
        cells = json.loads(path.read_bytes())["cells"]  # UTF-8, or 16 as some editors save
        if len(cells) > MAX_CELLS:
            raise ValueError(f"it has over {MAX_CELLS:,} cells")
        for cell in cells:
            if cell.get("cell_type") != "code":
                continue
            text = cell.get("source", "")
            text = text if isinstance(text, str) else "".join(text)
            if len(text) > MAX_CELL:
                raise ValueError(f"a cell has over {MAX_CELL:,} characters")
            ours = (cell.get("metadata") or {}).get("moe_lite") or {}
            found.append((str(ours.get("cell") or cell.get("id") or ""), plain(text)))
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        kind = "it is no notebook" if not isinstance(error, ValueError | OSError) else str(error)
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            kind = "it is no notebook"
        raise ValueError(f"{path.name} cannot be read: {kind}") from None


def plain(source: str) -> str:
    """Return a cell as Python alone: a line of Jupyter's own (%time, !pip) does nothing."""
    source = source.replace("\r\n", "\n")
    if parse(source) is None:
        return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.M)
    return source


# --- from a notebook to steps --------------------------------------------------------------------


def same(one: str, other: str) -> bool:
    return one.split() == other.split()


def defines(source: str) -> set[str]:
    """Return what a cell defines at its top."""
    tree = parse(source)
    body: list[Any] = tree.body if tree else []
    return {node.name for node in body if hasattr(node, "name")}


def place(
    lab: Lab, cells: Sequence[tuple[str, str]]
) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    """Find each cell's place: (answers by key, a student's own cells by the key before, looks).

    A cell is known by its key; one that lost it, if it is given, by its text, and if it is an
    answer, by what it defines. Of several answers to one question the last filled one counts.
    """
    ours = {cell.key: cell for cell in lab.cells}
    texts = {" ".join(c.source.split()): c.key for c in lab.cells if c.kind in ("given", "check")}
    makers = {name: cell.key for name, cell in lab.makers.items()}
    tries: dict[str, list[tuple[str, bool]]] = {}
    extra: dict[str, list[str]] = {}
    notes, at, seen = [], "", set()
    for key, source in cells:
        known = ours.get(key) or ours.get(texts.get(" ".join(source.split()), ""))
        made = defines(source) & makers.keys()
        if known and known.kind == "answer" and made and made.isdisjoint(known.names):
            known = None  # it has another answer's key
        if known is None and made:
            for name in sorted(made):
                tries.setdefault(makers[name], []).append((source, False))
            at = makers[sorted(made)[0]]
            continue
        if known is None:
            if source.strip():
                extra.setdefault(at, []).append(source)
            continue
        if known.kind == "answer":
            tries.setdefault(known.key, []).append((source, True))
        elif not same(source, known.source):
            if known.key in seen:  # a copy of a given cell, written over
                extra.setdefault(at, []).append(source)
                continue
            notes.append(f"changed the locked cell {known.key}; graded as given out")
        at = known.key
        seen.add(at)
    answers, by_name = {}, []
    for cell in (cell for cell in lab.cells if cell.kind == "answer"):
        filled = [
            t for t in tries.get(cell.key, []) if not same(t[0], cell.source) and t[0].strip()
        ]
        if filled:
            answers[cell.key] = filled[-1][0]
            if len({" ".join(source.split()) for source, _ in filled}) > 1:
                notes.append(f"{len(filled)} different answers to {cell.exercise}; the last counts")
            if not filled[-1][1]:
                by_name.append(cell.exercise)
        elif cell.key not in tries:
            notes.append(f"the answer cell of {cell.exercise} is gone")
    if by_name:
        notes.append(f"not in its cell, found by its name: the answer to {', '.join(by_name)}")
    gone = [c.key for c in lab.cells if c.kind in ("given", "check") and c.key not in seen]
    if gone:
        notes.append(f"{len(gone)} locked cells are gone, {gone[0]} first; graded as given out")
    return answers, extra, notes


def plan(
    lab: Lab, answers: dict[str, str], extra: dict[str, list[str]], screened: bool = True
) -> tuple[list[dict[str, Any]], dict[str, Result], list[str]]:
    """Return the steps of a notebook, what is settled without running (by check key), and looks."""
    given = Given.read(
        [c.source for c in lab.cells if c.kind == "given"] + [c.solution for c in lab.cells]
    )
    steps: list[dict[str, Any]] = []
    settled: dict[str, Result] = {}
    notes: list[str] = []
    refused: dict[str, str] = {}

    def add(key: str, source: str, where: str, clears: Sequence[str] = ()) -> str:
        """Add a cell of the student's, or return why it is not run."""
        why = refusals(source, given) if screened else []
        notes.extend(f"{where}: {look}" for look in (looks(source) if screened else []))
        if why:
            notes.append(f"{where} was not run: {'; '.join(why)}")
            return f"not run, for it {'; '.join(why)}. An answer has to be your own"
        steps.append({"kind": "run", "key": key, "source": source, "clears": list(clears)})
        return ""

    def extras(key: str) -> None:
        for number, source in enumerate(extra.get(key, []), 1):
            add(
                f"own-{number}-after-{key or 'the top'}", source, f"a cell of their own after {key}"
            )

    extras("")
    for cell in lab.cells:
        if cell.kind == "given":
            steps.append({"kind": "run", "key": cell.key, "source": cell.source})
        elif cell.kind == "answer":
            source = answers.get(cell.key, cell.source)
            if why := add(cell.key, source, f"the answer to {cell.exercise}", cell.names):
                refused |= dict.fromkeys(cell.names, why)
        elif cell.kind == "check":
            if cell.name in refused:
                settled[cell.key] = Result("refused", refused[cell.name])
            else:
                steps.append(
                    {"kind": "check", "key": cell.key, "check": cell.check, "name": cell.name,
                     "seed": lab.seed, "expects": cell.expects}
                )  # fmt: skip
        extras(cell.key)
    return steps, settled, notes


# --- running -------------------------------------------------------------------------------------


def run(
    steps: Sequence[dict[str, Any]], limit_s: float, memory_gb: float, total_s: float = TOTAL_S
) -> list[dict[str, Any]]:
    """Do the steps of one notebook and return a report for each, whatever they do to the process.

    A step that ends the process or runs too long is reported so; all others are then done again,
    in a new process, without it. Checks that have a report are not. What may not be the step's
    fault is tried twice: a process that does not start, and one that is killed from outside.

    Raises: OSError, RuntimeError if no process starts.
    """
    reports: dict[int, dict[str, Any]] = {}
    nothing = {"status": "crash", "said": "the grader could not run this"}
    tried: set[int | None] = set()
    patience = Patience(START_S)
    todo = list(range(len(steps)))
    while todo and not halted.is_set():
        with tempfile.TemporaryDirectory(prefix="moe-lite-", ignore_cleanup_errors=True) as folder:
            job = {
                "steps": list(steps), "todo": todo, "limit_s": limit_s, "memory_gb": memory_gb,
                "folder": folder, "key": secrets.token_hex(16),
            }  # fmt: skip
            try:
                stopped, why = attend(job, patience, reports)
            except (OSError, RuntimeError):
                if None in tried and not reports:
                    raise
                stopped, why = None, "killed"
        if not why:
            break
        again = why == "killed" and stopped not in tried
        if not again and stopped is None:
            nothing["status"] = "broken"
            break
        if stopped is not None and not again:
            reports[stopped] = {"status": why.replace("killed", "crash")}
            todo.remove(stopped)
        todo = [i for i in todo if not (i in reports and done(steps[i]))]
        if again:
            tried.add(stopped)
            continue
        if not any(done(steps[i]) for i in todo):
            break
        if patience.listened_s > max(total_s, 10 * limit_s):
            late = {"status": "time", "said": "not run: this notebook had used up all of its time"}
            reports |= {i: late for i in todo if i not in reports}
            break
    return [reports.get(i, nothing) for i in range(len(steps))]


def done(step: dict[str, Any]) -> bool:
    """Say whether a step is done once it has a report; a cell has to run again each time."""
    return step["kind"] != "run"


def attend(
    job: dict[str, Any], patience: Patience, reports: dict[int, dict[str, Any]]
) -> tuple[int | None, str]:
    """Run a job in a process of its own; return the step that stopped it and why, or None and "".

    Raises: OSError, RuntimeError if the process does not even start.
    """
    path = os.pathsep.join(filter(None, [str(build.ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {
        "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "moe_lite.course.teach.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=env, text=True, encoding="utf-8", errors="replace",
        start_new_session=os.name == "posix",
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()
    try:
        with suppress(OSError):  # it has ended already, and the wait below finds out
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()  # and stays open: the process ends when we are gone
        at: int | None = None
        patience.silence_s = START_S
        for report in heard(process, lines, patience, job["key"]):
            if report is None:
                if at is None:
                    tail = process.stderr.read()[-400:] if process.poll() is not None else ""
                    raise RuntimeError(f"the grading process did not start: {tail}")
                return at, fate(process)
            what, *rest = report
            if what == "done":
                return None, ""
            if what == "begin":
                at, patience.silence_s = rest[0], WALL * job["limit_s"]
            elif what == "end":
                reports[rest[0]] = rest[1]
        raise AssertionError("unreachable: what is heard ends with None")
    finally:
        end(process)


def fate(process: subprocess.Popen[str]) -> str:
    """Say what became of a process that went silent: out of time, killed, or crashed."""
    try:
        code = process.wait(timeout=0 if halted.is_set() else 5)
    except subprocess.TimeoutExpired:
        return "time"  # it is still at it
    if os.name == "posix" and code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time" if code == -signal.SIGXCPU else "killed"
    return "crash"


def heard(
    process: subprocess.Popen[str], lines: queue.Queue[str | None], patience: Patience, key: str
) -> Iterator[list[Any] | None]:
    """Give a process's reports; None once it has ended or reported nothing for too long.

    A line that is not signed is a student's, and breaks no silence. Silence is counted in looks:
    a grader that was held up itself has missed nothing. And what a process wrote just before its
    end may still be on its way here when the end is noticed.
    """
    silent, ended, number, before = 0.0, False, 0, time.monotonic()
    while silent < (REST_S if ended else patience.silence_s) and not halted.is_set():
        try:
            line = lines.get(timeout=LOOK_S)
        except queue.Empty:
            line = ""
        if line is None:
            break
        now = time.monotonic()
        took_s, before = min(now - before, LOOK_S), now
        silent, patience.listened_s = silent + took_s, patience.listened_s + took_s
        mac, _, text = line.partition(" ")
        if hmac.compare_digest(mac.encode(), sign(key, number, text).encode()):
            number += 1
            silent = silent if ended else 0.0
            yield json.loads(text)
        elif not ended and process.poll() is not None:
            ended, silent = True, 0.0
            stop(process)  # a child of its own may hold the pipe open
    yield None


def pump(pipe: Any, lines: queue.Queue[str | None]) -> None:
    """Hand the lines of a pipe on as they come; a line without end is cut."""
    with suppress(OSError, ValueError), pipe:
        while line := pipe.readline(100_000):
            lines.put(line.rstrip("\n"))
    lines.put(None)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process and what it started."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def end(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, and close its pipes."""
    stop(process)
    process.wait()
    for pipe in (process.stdin, process.stderr):
        if pipe:
            with suppress(OSError):
                pipe.close()


# --- one student ---------------------------------------------------------------------------------

SAID = {
    "empty": "not filled in",
    "missing": "there is no such function: its cell raised an error, or defines another name",
    "time": "it used up its time: look for a loop that does not end",
    "crash": "it ended the Python that ran it (an exit, or too much memory)",
    "broken": "the check itself went wrong; a person looks at it",
}


def grade(lab: Lab, student: str, path: Path, notes: Sequence[str] = ()) -> Graded:
    """Grade one notebook; whatever is wrong with it is said in the result."""
    try:
        cells = read(path)
    except ValueError as error:
        nothing = [Result("missing", str(error)) for _ in lab.checks]
        return Graded(student, nothing, [*notes, str(error)])
    answers, extra, found = place(lab, cells)
    graded = weigh(lab, student, answers, extra)
    graded.looks[:0] = [*notes, *found]
    return graded


def weigh(
    lab: Lab,
    student: str,
    answers: dict[str, str],
    extra: dict[str, list[str]] | None = None,
    screened: bool = True,
) -> Graded:
    """Run answers and a student's own cells in the lab, and give the result of each check."""
    steps, settled, notes = plan(lab, answers, extra or {}, screened)
    reports = dict(
        zip([s["key"] for s in steps], run(steps, lab.limit_s, lab.memory_gb), strict=True)
    )
    graded = Graded(student, looks=notes, answers=answers)
    for cell in lab.checks:
        if cell.key in settled:
            graded.results.append(settled[cell.key])
            continue
        report = reports[cell.key]
        status, said = report["status"], report.get("said", "")
        maker = reports.get(lab.makers[cell.name].key)
        if status == "missing" and maker and maker["status"] != "ran":
            status = "raised" if maker["status"] == "raised" else maker["status"]
            said = f"its cell raised {maker['said']}" if status == "raised" else ""
        graded.results.append(Result(status, said or SAID.get(status, "")))
        if status in ("time", "crash", "broken"):
            graded.looks.append(f"{cell.exercise} {cell.check}: {said or SAID[status]}")
    for key, report in reports.items():
        if report.get("changed"):
            graded.looks.append(f"{key} changed {report['changed']}")
        if report["status"] in ("time", "crash") and key.startswith(("own-", "given-")):
            graded.looks.append(f"the cell {key}: {SAID[report['status']]}")
        if report["status"] == "raised" and key.startswith("own-"):
            graded.looks.append(f"the cell {key} raised {report['said']}")
        elif report["status"] == "raised" and key.startswith("given-"):
            graded.given[key] = report["said"]
    return graded
