"""course.py, the one file that meets a machine with nothing on it: here it meets many such."""

import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from moe_lite.course import environment as course

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Put course.py into a folder of its own, outside any environment, and record what it runs."""
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(course.shutil, "which", lambda name: None)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return Machine(tmp_path, monkeypatch)


class Machine:
    """Stand in for the machine: what starts, what fails, and every command that was run."""

    def __init__(self, root, monkeypatch):
        self.root, self.commands = root, []
        self.starting, self.pip_there, self.torch_there, self.codes = set(), False, False, {}
        monkeypatch.setattr(course, "run", self.run)
        monkeypatch.setattr(course, "starts", self.starts)

    def run(self, *command, **options):
        words = [str(word) for word in command[1:]]
        self.commands.append(" ".join(words))
        module = words[1]
        code = self.codes.get(module, 0)
        if module == "venv" and not code:
            made = Path(words[-1])
            made.mkdir(exist_ok=True)
            (made / "pyvenv.cfg").touch()
            self.starting.add(made)
        if module == "ensurepip" and not code:
            self.pip_there = True
        return code

    def starts(self, python, code):
        there = {"import pip": self.pip_there, "": True}.get(code, self.torch_there)
        return there and python.parents[1] in self.starting

    @property
    def modules(self):
        """Give the modules run since the last look."""
        seen, self.commands = [command.split()[1] for command in self.commands], []
        return seen


def test_first_run_makes_installs_and_forwards(bare):
    assert course.main(["lab", "--no-browser"], "") == 0
    assert bare.commands[2].endswith("install --editable .[course]")
    assert bare.commands[3] == "-m moe_lite lab --no-browser"
    assert bare.modules == ["venv", "ensurepip", "pip", "moe_lite"]


def test_second_run_only_forwards(bare):
    course.main(["lab"], "")
    assert bare.modules
    course.main(["lab"], "")
    assert bare.modules == ["moe_lite"]


def test_extras_are_added_once_and_cover_the_course(bare):
    course.main(["lab"], "")
    assert bare.modules
    course.main(["test", "-k", "router"], "")
    assert bare.commands[0].endswith("install --editable .[test]")
    assert bare.modules == ["pip", "moe_lite"]
    for command in ("build", "bench", "lab", "test"):
        course.main([command], "")
        assert bare.modules == ["moe_lite"]


def test_each_extra_covers_the_smaller_ones(bare):
    course.main(["book"], "")
    assert bare.commands[2].endswith("install --editable .[book]")
    assert bare.modules == ["venv", "ensurepip", "pip", "moe_lite"]
    for command in ("lab", "teach", "book"):
        course.main([command], "")
        assert bare.modules == ["moe_lite"]
    course.main(["test"], "")
    assert bare.modules == ["pip", "moe_lite"]
    course.main(["book"], "")
    assert bare.modules == ["moe_lite"]


def test_changed_dependencies_install_again(bare):
    course.main(["lab"], "")
    (bare.root / "pyproject.toml").write_text("[project]\nversion = '2'\n", encoding="utf-8")
    assert bare.modules
    course.main(["lab"], "")
    assert bare.modules == ["pip", "moe_lite"]


def test_exit_code_is_passed_on(bare):
    bare.codes["moe_lite"] = 7
    assert course.main(["test"], "") == 7


def test_failed_install_says_what_to_do_and_does_not_count(bare, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    bare.codes["pip"] = 1
    with pytest.raises(SystemExit) as stop:
        course.main(["lab"], "")
    for advice in ("network", "disk full", "whl/cpu", "`python course.py lab`"):
        assert advice in stop.value.code
    assert bare.modules == ["venv", "ensurepip", "pip"]
    del bare.codes["pip"]
    assert course.main(["lab"], "") == 0
    assert bare.modules == ["pip", "moe_lite"]


def test_failed_update_forgets_the_install_before_it(bare):
    course.main(["lab"], "")
    bare.codes["pip"] = 1
    with pytest.raises(SystemExit):
        course.main(["test"], "")
    del bare.codes["pip"]
    assert bare.modules
    course.main(["lab"], "")
    assert bare.modules == ["pip", "moe_lite"]


def test_missing_pip_names_the_debian_package(bare):
    bare.codes["ensurepip"] = 1
    with pytest.raises(SystemExit, match=r"sudo apt install python3\.\d+-venv"):
        course.main(["lab"], "")
    assert bare.modules == ["venv", "ensurepip"]


def test_half_made_venv_is_completed(bare):
    """A first run that was stopped before pip arrived does not break the second."""
    (bare.root / ".venv").mkdir()
    course.main(["lab"], "")
    assert bare.modules == ["venv", "ensurepip", "pip", "moe_lite"]
    bare.pip_there = False  # cut off a step later
    (bare.root / ".venv" / course.STAMP).unlink()
    course.main(["lab"], "")
    assert bare.modules == ["ensurepip", "pip", "moe_lite"]


def test_venv_that_cannot_be_made_is_one_sentence(bare):
    bare.codes["venv"] = 1
    with pytest.raises(SystemExit, match="Could not make"):
        course.main(["lab"], "")


@pytest.mark.parametrize(
    ("marks", "used"), [(["conda-meta"], True), (["conda-meta", "condabin"], False), ([], False)]
)
def test_conda_environment_is_used_but_not_its_base(bare, monkeypatch, marks, used):
    prefix = bare.root / "conda"
    for mark in marks:
        (prefix / mark).mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "base_prefix", str(prefix))
    assert (course.find()[0] == prefix) is used


def test_active_venv_is_used(bare, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(bare.root / "mine"))
    assert course.find() == (bare.root / "mine", Path(sys.executable))
    assert bare.commands == []


# --- one sentence where an install could not succeed ---------------------------------------------


def told(bare, command="lab"):
    """Run a command that must be refused before anything is made, and give the sentence."""
    with pytest.raises(SystemExit) as stop:
        course.main([command], "")
    assert bare.commands == [] and not list(bare.root.glob(".venv*"))
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    ("system", "machine", "sentence"),
    [
        ("Darwin", "x86_64", "no wheel for Darwin on x86_64: use conda"),
        ("Windows", "ARM64", "no wheel for Windows on ARM64"),
        ("Linux", "armv7l", "no wheel for Linux on armv7l"),
        ("FreeBSD", "amd64", "no wheel for FreeBSD on amd64"),
    ],
)
def test_a_platform_without_pytorch_is_told(bare, monkeypatch, system, machine, sentence):
    monkeypatch.setattr(course.platform, "system", lambda: system)
    monkeypatch.setattr(course.platform, "machine", lambda: machine)
    assert sentence in told(bare)
    (bare.root / "mine").mkdir()  # unless somebody has built one
    bare.starting.add(bare.root / "mine")
    bare.torch_there = True
    monkeypatch.setattr(sys, "prefix", str(bare.root / "mine"))
    monkeypatch.setattr(sys, "executable", str(bare.root / "mine" / course.BINARY))
    assert course.main(["lab"], "") == 0


@pytest.mark.parametrize(
    ("what", "value", "sentence"),
    [
        ("maxsize", 2**31 - 1, "needs a 64-bit Python"),
        ("version_info", (3, 15, 0), "not yet there for Python 3.15: use Python 3.11 to 3.14"),
    ],
)
def test_a_python_without_pytorch_is_told(bare, monkeypatch, what, value, sentence):
    monkeypatch.setattr(sys, what, value)
    assert sentence in told(bare)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's C library")
@pytest.mark.parametrize(
    ("libc", "host", "sentence"),
    [
        (("glibc", "2.17"), "x86_64-pc-linux-gnu", "needs glibc 2.28 or newer, and this is 2.17"),
        (("glibc", "2.27"), "x86_64-pc-linux-gnu", "needs glibc 2.28"),
        (("", ""), "x86_64-pc-linux-musl", "no wheel for musl"),
        (("glibc", "2.28"), "x86_64-pc-linux-gnu", ""),
        (("glibc", "2.100"), "x86_64-pc-linux-gnu", ""),
        (("", ""), None, ""),
    ],
)
def test_a_linux_without_pytorch_is_told(monkeypatch, libc, host, sentence):
    monkeypatch.setattr(course.platform, "libc_ver", lambda: libc)
    monkeypatch.setattr(course.sysconfig, "get_config_var", lambda name: host)
    found = course.no_wheel()
    assert sentence in found and bool(sentence) == bool(found)


def test_this_python_is_let_in():
    assert course.no_wheel() == ""


def test_the_newest_python_is_the_one_that_pyproject_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    major, minor = course.NEWEST
    assert project["requires-python"] == f">=3.11,<{major}.{minor + 1}"
    newest = f"Programming Language :: Python :: {major}.{minor}"
    assert newest in project["classifiers"]


def test_a_read_only_folder_is_told_unless_all_is_installed(bare, monkeypatch):
    course.main(["lab"], "")
    monkeypatch.setattr(course.os, "access", lambda path, mode: False)
    assert course.main(["lab"], "") == 0
    with pytest.raises(SystemExit, match="is read-only, and installing writes there: copy the fol"):
        course.main(["test"], "")


def test_a_path_too_long_for_windows_is_told(monkeypatch):
    deep = "C:\\Users\\somebody\\OneDrive - The University of Somewhere\\moe-lite\\.venv"
    assert "no path of more than 259 characters" in course.too_deep(deep, windows=True)
    assert course.too_deep("C:\\moe\\.venv", windows=True) == ""
    assert course.too_deep(deep, windows=False) == ""
    monkeypatch.setattr(course, "long_paths", lambda: True)
    assert course.too_deep(deep, windows=True) == ""


# --- a folder that several machines see ----------------------------------------------------------


def others(bare, monkeypatch, machine, root):
    """Install as another machine that sees the folder there, then be this one again."""
    with monkeypatch.context() as there:
        there.setattr(course.platform, "node", lambda: machine)
        course.main(["lab"], "")
        stamp = bare.root / ".venv" / course.STAMP
        stamp.write_text(stamp.read_text("utf-8").replace(str(bare.root), root), "utf-8")
    assert bare.modules
    return bare.root / ".venv"


def test_an_environment_that_does_not_start_here_is_left_alone(bare, monkeypatch):
    theirs = others(bare, monkeypatch, "mac", "/Volumes/moe")
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    bare.starting.clear()
    course.main(["lab"], "")
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before
    (ours,) = bare.root.glob(".venv-*")
    assert f"-m venv --without-pip {ours}" in bare.commands
    assert bare.modules[0] == "venv"
    course.main(["lab"], "")  # and is found again
    assert bare.modules == ["moe_lite"]
    bare.starting.clear()
    with pytest.raises(SystemExit, match=r"Neither .*\.venv nor \.venv-.* works here"):
        course.main(["lab"], "")
    assert bare.commands == []


def test_an_environment_installed_from_where_another_machine_sees_it_is_left_alone(
    bare, monkeypatch
):
    theirs = others(bare, monkeypatch, "lab-7", "/net/moe")
    course.main(["lab"], "")
    assert "/net/moe" in (theirs / course.STAMP).read_text("utf-8")
    assert len([*bare.root.glob(".venv-*")]) == 1


def test_a_folder_that_was_moved_is_installed_again(bare, monkeypatch):
    others(bare, monkeypatch, course.platform.node(), "/home/me/old name")
    course.main(["lab"], "")
    assert bare.modules == ["pip", "moe_lite"] and not [*bare.root.glob(".venv-*")]


def test_two_machines_that_see_it_alike_share_it(bare, monkeypatch):
    others(bare, monkeypatch, "lab-7", str(bare.root))
    course.main(["lab"], "")
    assert bare.modules == ["moe_lite"]


def test_a_second_install_waits_and_finds_all_done(bare, monkeypatch, capsys):
    """The lock is the system's, so within this process too a second holder has to wait."""
    first, waits = contextlib.ExitStack(), []

    def finish_the_first(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            bare.starting.add(bare.root / ".venv")
            (bare.root / ".venv" / course.STAMP).write_text("\n".join(course.stamp("course")))
            first.close()

    monkeypatch.setattr(course.time, "sleep", finish_the_first)
    first.enter_context(course.alone(bare.root / ".venv"))
    course.main(["lab"], "")
    assert bare.modules == ["moe_lite"] and len(waits) == 3
    assert capsys.readouterr().out.count("Something else is installing into") == 1
    assert [path.name for path in (bare.root / ".venv").iterdir()] == [course.STAMP]


def test_what_another_machine_made_its_own_meanwhile_is_left_alone(bare, monkeypatch):
    first, here = contextlib.ExitStack(), bare.root / ".venv"

    def finish_the_first(seconds):
        digest = course.stamp("course")[0]
        (here / "pyvenv.cfg").touch()
        (here / course.STAMP).write_text("\n".join([digest, "course", "lab-7", "/mnt/course"]))
        bare.starting.add(here)
        first.close()

    monkeypatch.setattr(course.time, "sleep", finish_the_first)
    first.enter_context(course.alone(here))
    course.main(["lab"], "")
    (ours,) = bare.root.glob(".venv-*")
    assert bare.commands[0].endswith(str(ours)) and course.read_stamp(here)[2] == "lab-7"


def test_an_install_that_was_killed_keeps_nobody_waiting(bare, monkeypatch):
    code = (
        "import sys; from pathlib import Path; from moe_lite.course import environment as course\n"
        "with course.alone(Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    )
    crashed = subprocess.Popen([sys.executable, "-c", code, str(bare.root / ".venv")], cwd=ROOT,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert crashed.stdout.read(1) == b"1"
    crashed.kill()
    crashed.communicate()
    assert (bare.root / ".venv" / course.LOCK).exists() or os.name == "nt"
    monkeypatch.setattr(course.time, "sleep", lambda s: pytest.fail("it waits for the dead"))
    course.main(["lab"], "")
    assert bare.modules == ["venv", "ensurepip", "pip", "moe_lite"]


# --- course.py itself ----------------------------------------------------------------------------


def interpreters():
    """Find the Pythons of this machine, old ones too."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names = [f"python{v}" for v in ("2.7", *(f"3.{minor}" for minor in range(4, 16)))]
    found = [Path(path) for name in names if (path := shutil.which(name))]
    return [*pyenv.glob("*/bin/python"), *found]


def test_any_old_python_says_which_one_is_needed():
    """Run by each Python that is here; where there is none, its words are looked at instead."""
    source = (ROOT / "course.py").read_text(encoding="utf-8")
    assert source.isascii()  # Python 2 would ask for a declaration
    old = 0
    for python in interpreters():
        seen = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"],
                              capture_output=True, text=True)  # fmt: skip
        if seen.returncode or eval(seen.stdout) >= (3, 11):  # a shim without a Python, or a new one
            continue
        old += 1
        done = subprocess.run([python, ROOT / "course.py", "lab"], capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == "", python
        assert re.fullmatch(
            r"The course needs Python 3\.11 to 3\.14, but this is Python \d\.\d+ \(.*\): run "
            r"course\.py with a newer one, for instance `python3\.12 course\.py lab`\.\n",
            done.stderr,
        ), done.stderr
    print(f"{old} old Pythons read it")
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr | ast.Nonlocal)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.arg):
            raise AssertionError("no functions: their annotations would be wanted here")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            assert len(node.args) == 1 and not node.keywords


@pytest.mark.parametrize("file", ["course.py", "moe_lite/course/environment.py"])
def test_it_needs_no_package(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level}
    imported -= {"moe_lite.course.environment"}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)
    code = "import sys, moe_lite.course.environment; print(*{n.split('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-S", "-c",
                           f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert set(done.stdout.split()) <= {*sys.stdlib_module_names, "moe_lite", "__main__"}


@pytest.mark.parametrize(
    ("platform", "gpu", "index", "told"),
    [
        ("linux", None, None, True),
        ("linux", "/usr/bin/nvidia-smi", None, False),
        ("linux", None, "already", False),
        ("darwin", None, None, False),
        ("win32", None, None, False),
    ],
)
def test_cpu_wheels_are_advised_where_they_spare_something(
    bare, monkeypatch, platform, gpu, index, told
):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(course.shutil, "which", lambda name: gpu)
    if index:
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index)
    assert ("whl/cpu" in course.cpu_tip("lab")) is told


def script(*argv, **options):
    command = [sys.executable, str(ROOT / "course.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)


def test_without_a_command_it_explains_itself():
    done = script()
    assert done.returncode == 2 and "python course.py lab" in done.stdout
    assert script("--help").returncode == 0


def test_alone_in_a_folder_it_names_the_missing_file(tmp_path):
    """Only course.py was downloaded: one line, no traceback."""
    copy = tmp_path / "course.py"
    copy.write_bytes((ROOT / "course.py").read_bytes())
    done = subprocess.run([sys.executable, copy, "lab"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"course.py: there is no moe_lite in {tmp_path}: it needs the whole repository\n"
    )


NAMES = ["a b", "Übung für α-β", "n" * 90]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name(tmp_path, name):
    """The real course.py in a real .venv; only pip is a stand-in, which writes down its words."""
    folder = tmp_path / name
    (folder / "moe_lite" / "course").mkdir(parents=True)
    parts = "moe_lite/files.py", "moe_lite/course/environment.py"
    for part in ("course.py", "pyproject.toml", *parts):
        shutil.copy(ROOT / part, folder / part)
    for package in ("moe_lite", "moe_lite/course"):
        (folder / package / "__init__.py").touch()
    (folder / "moe_lite" / "__main__.py").write_text("import sys; print('here', *sys.argv[1:])")
    venv.create(folder / ".venv", symlinks=os.name != "nt")
    packages = next((folder / ".venv").rglob("site-packages"))
    (packages / "pip").mkdir()
    (packages / "pip" / "__init__.py").touch()
    (packages / "pip" / "__main__.py").write_text("import os, sys; print(os.getcwd(), sys.argv)")
    base = getattr(sys, "_base_executable", sys.executable)
    for said in (["install", "here lab --x"], ["here lab --x"]):
        done = subprocess.run(
            [base, folder / "course.py", "lab", "--x"], cwd=folder,
            capture_output=True, text=True, encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" and done.stdout.endswith("here lab --x\n")
        assert all(word in done.stdout for word in said)
        assert (str(folder) in done.stdout) == (len(said) == 2)


def test_real_processes():
    """run and starts are what Machine stands in for, so they are tried themselves."""
    assert course.run(sys.executable, "-c", "raise SystemExit(5)") == 5
    assert course.starts(Path(sys.executable), "import sys")
    assert not course.starts(Path(sys.executable), "import no_such_module")
    assert not course.starts(ROOT / "no" / "python", "")


@pytest.mark.skipif(os.name == "nt", reason="signals as exit codes are POSIX's")
def test_a_command_ended_by_a_signal_is_told_as_a_shell_tells_it():
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert course.run(sys.executable, "-c", killed) == 128 + 9


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
@pytest.mark.parametrize(("answer", "code"), [("raise SystemExit(0)", 0), ("raise", 130)])
def test_ctrl_c_is_the_commands_to_answer(tmp_path, answer, code):
    child = f"""
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)  # longer than subprocess.call would wait before it kills
    print("tidied", flush=True)
    {answer}
"""
    parent = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
sys.path.insert(0, {str(ROOT)!r})
from moe_lite.course import environment
try:
    sys.exit(environment.run(sys.executable, "-c", {child!r}))
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: both get it
    rest, _ = process.communicate(timeout=900)
    assert rest == "tidied\n" and process.returncode == code


@pytest.mark.parametrize(
    ("share", "most"),
    [("max 100000", None), ("150000 100000", 1), ("20000 100000", 1), ("?", None)],
)
def test_cores_are_those_that_may_be_used(share, most, tmp_path):
    mine = course.cores(tmp_path / "no container")
    assert mine >= 1
    (tmp_path / "cpu.max").write_text(share, encoding="utf-8")
    assert course.cores(tmp_path / "cpu.max") == (most or mine)
