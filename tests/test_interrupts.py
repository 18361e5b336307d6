"""Ctrl-C and a reader that leaves end any command, at any moment, without a traceback.

The moments are counted in what Python does (imports, files opened, code run), not in seconds, so
that they are the same ones on a busy machine.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moe_lite.course import environment as course

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")

# Runs a command as `python -m moe_lite` does, SIGINT held back as course.py holds it, and presses
# Ctrl-C at the event of this number.
PRESS = """
import atexit, os, runpy, signal, sys
moment, seen = int(sys.argv.pop(1)), 0

def look(event, args):
    global seen
    if event in ("import", "open", "exec", "os.rename"):
        seen += 1
        if seen == moment:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
sys.addaudithook(look)
if not moment:
    atexit.register(lambda: print("events:", seen))
runpy.run_module("moe_lite", run_name="__main__", alter_sys=True)
"""


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def press(moment, *command, cwd):
    return subprocess.run(
        [sys.executable, "-c", PRESS, str(moment), *command],
        capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=environment(),
    )  # fmt: skip


@posix
@pytest.mark.slow("Ctrl-C and kill")
def test_ctrl_c_at_many_moments_is_quiet_and_leaves_nothing_half_written(tmp_path):
    command = ["explore", "To be, or not", "--out", "page.html"]
    whole = press(0, *command, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    page, events = (tmp_path / "page.html").read_bytes(), int(whole.stdout.split("events:")[1])
    rng = random.Random(0)
    for part in range(6):  # one moment in each sixth of the way; most of it is torch's import
        moment = rng.randrange(1 + part * events // 6, 1 + (part + 1) * events // 6)
        (tmp_path / "page.html").unlink(missing_ok=True)
        done = press(moment, *command, cwd=tmp_path)
        assert done.returncode in (130, -signal.SIGINT), f"event {moment}: {done}"
        assert done.stderr == "", f"event {moment}"
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert left in ({}, {"page.html": page}), f"event {moment}"


PRESS_EARLY = """
import atexit, runpy, signal, sys
moment, seen = int(sys.argv.pop(1)), -1

def look(event, args):
    global seen
    if seen < 0 and event == "exec" and args[0].co_filename == "course.py":
        seen = 0
    elif seen >= 0 and event in ("import", "open", "exec"):
        seen += 1
        if seen == moment:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(look)
if not moment:
    atexit.register(lambda: print("events:", seen))
runpy.run_path("course.py", run_name="__main__")
"""


@posix
def test_ctrl_c_while_course_py_starts_is_quiet():
    def run(moment):
        return subprocess.run(
            [sys.executable, "-c", PRESS_EARLY, str(moment), "--help"],
            capture_output=True, text=True, cwd=ROOT, env=environment(),
        )  # fmt: skip

    events = int(run(0).stdout.split("events:")[1])
    # The first events are the imports that it needs before it can say what Ctrl-C is to do.
    for moment in random.Random(0).sample(range(10, events + 1), 10):
        done = run(moment)
        assert done.returncode in (130, -signal.SIGINT) and done.stderr == "", f"{moment}: {done}"


@posix
def test_ctrl_c_is_held_until_the_command_can_answer():
    child = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.raise_signal(signal.SIGINT)  # as pressed while Python starts
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
except KeyboardInterrupt:
    sys.exit(7)
"""
    assert course.run(sys.executable, "-c", child, hold=True) == 7
    assert course.run(sys.executable, "-c", child) == 130  # not held: with a traceback
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


AS_A_COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv.pop(1))
from moe_lite import __main__ as cli
cli.COMMANDS["train"] = lambda argv: __import__(argv[0]).__dict__.get("code", 0)
sys.argv[1:1] = ["train"]
sys.exit(cli.run())
"""
SWALLOWS = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
    for _ in range(1000): pass
except BaseException:
    pass
print("went on")
"""


def as_a_command(tmp_path, module, text):
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-c", AS_A_COMMAND, str(tmp_path), module],
        capture_output=True, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip


@posix
def test_an_import_that_swallows_ctrl_c_does_not_go_on(tmp_path):
    """So does numpy's, inside torch's own C++: the command then ran to its end."""
    done = as_a_command(tmp_path, "swallows", SWALLOWS)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@posix
def test_ctrl_c_as_python_ends_is_quiet(tmp_path):
    late = "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGINT)"
    done = as_a_command(tmp_path, "late", late)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@posix
def test_a_background_job_goes_on_when_it_was_told_to_ignore(tmp_path):
    (tmp_path / "swallows.py").write_text(SWALLOWS, encoding="utf-8")
    code = AS_A_COMMAND.replace("signal.default_int_handler", "signal.SIG_IGN")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "swallows"],
        capture_output=True, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "went on\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "moe_lite", "--help"],
        ["-m", "moe_lite", "reproduce"],
        ["-m", "moe_lite", "train", "--help"],
        ["course.py", "--help"],
        ["course.py"],
    ],
    ids=" ".join,
)
def test_a_reader_that_leaves_is_no_error(command, unbuffered):
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=environment(PYTHONUNBUFFERED=unbuffered),
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == ""
    # argparse itself swallows what a write of its help raises, if that comes at once
    assert process.wait() in ((0, 2, 141) if unbuffered else (141,))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
@pytest.mark.parametrize(
    "command", [["-m", "moe_lite", "--help"], ["-m", "moe_lite", "reproduce"]], ids=" ".join
)
def test_what_a_full_disk_loses_is_told_in_one_line(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *command], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=environment(PYTHONUNBUFFERED=""),
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "moe_lite: what it printed is lost: No space left on device\n"
