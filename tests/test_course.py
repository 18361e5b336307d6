"""course.py, the one file that meets a machine with nothing on it: here it meets many such."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import course  # noqa: E402

sys.path.remove(str(ROOT))


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Put course.py into a folder of its own, outside any environment, and record what it runs."""
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(course.shutil, "which", lambda name: None)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return Machine(tmp_path, monkeypatch)


class Machine:
    """Stand in for the machine: what starts, what fails, and every command that was run."""

    def __init__(self, root, monkeypatch):
        self.root, self.commands = root, []
        self.starting, self.pip_there, self.codes = False, False, {}
        monkeypatch.setattr(course, "run", self.run)
        monkeypatch.setattr(course, "starts", self.starts)

    def run(self, *command, **options):
        words = [str(word) for word in command[1:]]
        self.commands.append(" ".join(words))
        module = words[1]
        code = self.codes.get(module, 0)
        if module == "venv" and not code:
            (self.root / ".venv").mkdir(exist_ok=True)
            self.starting = True
        if module == "ensurepip" and not code:
            self.pip_there = True
        return code

    def starts(self, python, code):
        return self.starting and (self.pip_there or "pip" not in code)

    @property
    def modules(self):
        """Give the modules run since the last look."""
        seen, self.commands = [command.split()[1] for command in self.commands], []
        return seen


def test_first_run_makes_installs_and_forwards(bare):
    assert course.main(["lab", "--no-browser"]) == 0
    assert bare.commands[2].endswith("install --editable .[course]")
    assert bare.commands[3] == "-m moe_lite lab --no-browser"
    assert bare.modules == ["venv", "ensurepip", "pip", "moe_lite"]


def test_second_run_only_forwards(bare):
    course.main(["lab"])
    assert bare.modules
    course.main(["lab"])
    assert bare.modules == ["moe_lite"]


def test_extras_are_added_once_and_cover_the_course(bare):
    course.main(["lab"])
    assert bare.modules
    course.main(["test", "-k", "router"])
    assert bare.commands[0].endswith("install --editable .[test]")
    assert bare.modules == ["pip", "moe_lite"]
    for command in ("build", "bench", "lab", "test"):
        course.main([command])
        assert bare.modules == ["moe_lite"]


def test_changed_dependencies_install_again(bare):
    course.main(["lab"])
    (bare.root / "pyproject.toml").write_text("[project]\nversion = '2'\n", encoding="utf-8")
    assert bare.modules
    course.main(["lab"])
    assert bare.modules == ["pip", "moe_lite"]


def test_exit_code_is_passed_on(bare):
    bare.codes["moe_lite"] = 7
    assert course.main(["test"]) == 7


def test_failed_install_says_what_to_do_and_does_not_count(bare, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    bare.codes["pip"] = 1
    with pytest.raises(SystemExit) as stop:
        course.main(["lab"])
    for advice in ("network", "disk full", "64-bit", "whl/cpu", "`python course.py lab`"):
        assert advice in stop.value.code
    assert bare.modules == ["venv", "ensurepip", "pip"]
    del bare.codes["pip"]
    assert course.main(["lab"]) == 0
    assert bare.modules == ["pip", "moe_lite"]


def test_failed_update_forgets_the_install_before_it(bare):
    course.main(["lab"])
    bare.codes["pip"] = 1
    with pytest.raises(SystemExit):
        course.main(["test"])
    del bare.codes["pip"]
    assert bare.modules
    course.main(["lab"])
    assert bare.modules == ["pip", "moe_lite"]


def test_missing_pip_names_the_debian_package(bare):
    bare.codes["ensurepip"] = 1
    with pytest.raises(SystemExit, match=r"sudo apt install python3\.\d+-venv"):
        course.main(["lab"])
    assert bare.modules == ["venv", "ensurepip"]


def test_half_made_venv_is_completed(bare):
    """A first run that was stopped before pip arrived does not break the second."""
    (bare.root / ".venv").mkdir()
    bare.starting = True
    course.main(["lab"])
    assert bare.modules == ["ensurepip", "pip", "moe_lite"]


def test_venv_that_cannot_be_made_is_one_sentence(bare):
    bare.codes["venv"] = 1
    with pytest.raises(SystemExit, match="Could not make"):
        course.main(["lab"])


@pytest.mark.parametrize(
    ("marks", "used"), [(["conda-meta"], True), (["conda-meta", "condabin"], False), ([], False)]
)
def test_conda_environment_is_used_but_not_its_base(bare, monkeypatch, marks, used):
    prefix = bare.root / "conda"
    for mark in marks:
        (prefix / mark).mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "base_prefix", str(prefix))
    assert (course.environment()[0] == prefix) is used


def test_active_venv_is_used(bare, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(bare.root / "mine"))
    assert course.environment() == (bare.root / "mine", Path(sys.executable))
    assert bare.commands == []


@pytest.mark.parametrize("version", [(3, 8, 10), (3, 10, 14)])
def test_old_python_is_told_in_one_sentence(version):
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, but this is Python 3\.\d+"):
        course.require_python(version)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 2), (4, 0, 0)])
def test_new_python_is_let_in(version):
    course.require_python(version)


def test_it_can_be_read_by_an_old_python_and_needs_no_package():
    tree = ast.parse((ROOT / "course.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


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
    assert "pyproject.toml" in done.stderr and "Traceback" not in done.stderr


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
import course
try:
    sys.exit(course.run(sys.executable, "-c", {child!r}))
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
