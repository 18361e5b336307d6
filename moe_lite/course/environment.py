"""What course.py does: find or make the environment, install into it, run the command there.

Only the standard library: nothing else is there yet.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..files import lock

ROOT = Path(__file__).resolve().parents[2]
BINARY = "Scripts/python.exe" if os.name == "nt" else "bin/python"
STAMP = "moe-lite-installed.txt"  # in an environment: what was installed, by which machine, whence
LOCK = "moe-lite-installing.lock"  # there, while a process installs; a leftover one locks nothing
EXTRAS = {  # "test" builds on "course", the others', and holds what "book" needs
    "test": "test", "build": "test", "bench": "test", "book": "book",
}  # fmt: skip
CPU_WHEELS = "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
NEWEST = (3, 14)  # the last Python for which the versions of PyTorch that we ask for have wheels
WHEELS = {"Linux": ("x86_64", "aarch64"), "Darwin": ("arm64",), "Windows": ("AMD64",)}
LONGEST_FILE = 171  # characters below site-packages: a licence in torch's


def start(argv: Sequence[str], usage: str) -> int:
    """Be course.py's process: Ctrl-C and a reader that leaves end it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(argv, usage)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):
            sys.exit(f"course.py: {error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        return 141  # what a shell says of a command that SIGPIPE ended


def main(argv: Sequence[str], usage: str) -> int:
    if list(argv) in ([], ["-h"], ["--help"]):
        print(usage.strip())
        return 0 if argv else 2
    prefix, python = find()
    while not is_installed(prefix, argv[0]):
        if problem := hopeless(prefix, python):
            sys.exit(problem)
        with alone(prefix):
            # Who was here before may have installed it all, or made the folder another machine's.
            if find()[0] == prefix and not is_installed(prefix, argv[0]):
                make(prefix, python)
                install(prefix, python, argv[0])
        prefix, python = find()
    return run(python, "-m", "moe_lite", *argv, hold=True)


# --- processes -----------------------------------------------------------------------------------


def run(*command: object, hold: bool = False, **options: Any) -> int:
    """Run a command to its end and return its exit code.

    Ctrl-C is the command's to answer, which gets it too: JupyterLab asks back, pip tidies up.
    With ``hold`` it reaches the command only when that asks for it, as ``python -m moe_lite`` does
    once it can answer: while Python itself starts, it could only give a traceback.
    """
    mask = hold and hasattr(signal, "pthread_sigmask")
    if mask:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    process = subprocess.Popen([str(part) for part in command], **options)
    interrupted = False
    while True:
        try:
            if mask:
                mask = False
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted and code:
        raise KeyboardInterrupt
    return code if code >= 0 else 128 - code  # ended by a signal: told as a shell tells it


def cores(share: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores that this process may use: its mask's, fewer if a container has less."""
    try:
        mask = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        mask = os.cpu_count() or 1
    try:
        quota, period = map(int, share.read_text("utf-8").split())
    except (OSError, ValueError):  # no container, or one with "max"
        return mask
    return max(1, min(mask, quota // period))


def starts(python: Path, code: str) -> bool:
    """Return whether this Python runs these words without an error."""
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:  # not there, or a link to a Python that is gone
        return False


# --- the environment -----------------------------------------------------------------------------


def find() -> tuple[Path, Path]:
    """Return the environment to use and its Python: the active one, else .venv, perhaps to be made.

    A folder may be shared. What does not start here, or was installed by another machine that
    sees the folder elsewhere, is that machine's: it is left alone, and ours has a longer name.
    """
    prefix = Path(sys.prefix)
    conda = (prefix / "conda-meta").is_dir() and not (prefix / "condabin").is_dir()  # not its base
    if sys.prefix != sys.base_prefix or conda:
        return prefix, Path(sys.executable)
    major, minor = sys.version_info[:2]
    tried = [ROOT / ".venv", ROOT / f".venv-{sysconfig.get_platform()}-{major}.{minor}"]
    for folder in tried:
        python = folder / BINARY
        if not (folder / "pyvenv.cfg").exists() or (starts(python, "") and not is_foreign(folder)):
            return folder, python
    sys.exit(
        f"Neither {tried[0]} nor {tried[1].name} works here, and they may be another machine's: "
        f"if nobody needs it, delete {tried[1].name} and run the same command again."
    )


def read_stamp(prefix: Path) -> list[str]:
    """Return what an install left: the digest, the extras, the machine and where it saw ROOT."""
    try:
        lines = (prefix / STAMP).read_text("utf-8", "surrogateescape").splitlines()
    except (OSError, ValueError):
        lines = []
    return lines if len(lines) == 4 else ["", "", "", ""]


def stamp(extras: str) -> list[str]:
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return [digest, extras or "course", platform.node(), str(ROOT)]


def is_foreign(prefix: Path) -> bool:
    _, _, machine, root = read_stamp(prefix)
    return bool(root) and machine != platform.node() and root != str(ROOT)


def is_installed(prefix: Path, command: str) -> bool:
    """Return whether the install was done for this very pyproject.toml, folder and extras."""
    extras = EXTRAS.get(command, "course")
    there, now = read_stamp(prefix), stamp(extras)
    enough = extras == "course" or there[1] in (extras, "test")  # each brings the course's
    return there[0] == now[0] and there[3] == now[3] and enough


def hopeless(prefix: Path, python: Path) -> str:
    """Return in a sentence why an install cannot succeed here, before it begins; "" if it may."""
    if not os.access(ROOT, os.W_OK):
        return (
            f"{ROOT} is read-only, and installing writes there: copy the folder to one of your "
            "own, make that writable, and run course.py there."
        )
    if starts(python, "import importlib.util as u; u.find_spec('torch').origin"):
        return ""
    return no_wheel() or too_deep(str(prefix))


def no_wheel() -> str:
    """Return in a sentence why there is no PyTorch to be had for this Python; "" if there is."""
    major, minor = sys.version_info[:2]
    system, machine = platform.system(), platform.machine()
    host = sysconfig.get_config_var("HOST_GNU_TYPE") or ""
    libc, version = platform.libc_ver() if system == "Linux" else ("", "")
    if (major, minor) > NEWEST:
        why = "is not yet there for Python {}.{}: use Python 3.11 to {}.{}".format(
            major, minor, *NEWEST
        )
    elif machine not in WHEELS.get(system, ()):
        why = f"has no wheel for {system} on {machine}: use conda (see README.md)"
    elif sys.maxsize < 2**32:
        why = "needs a 64-bit Python, and this is a 32-bit one: install the other"
    elif "musl" in host:
        why = "has no wheel for musl (Alpine Linux): use a Linux with glibc, or conda"
    elif libc == "glibc" and [*map(int, version.split("."))] < [2, 28]:
        why = f"needs glibc 2.28 or newer, and this is {version}: use a newer Linux, or conda"
    else:
        return ""
    return f"PyTorch {why}. This is {sys.executable}."


def too_deep(prefix: str, windows: bool = os.name == "nt") -> str:
    """Return in a sentence that Windows cannot open files so far down; "" if it can."""
    needed = len(prefix) + len("\\Lib\\site-packages\\") + LONGEST_FILE
    if not windows or needed < 260 or long_paths():
        return ""
    return (
        f"Windows opens no path of more than 259 characters, and PyTorch would have one of {needed}"
        f" below {prefix}: move the course to a folder with a shorter path, such as C:\\moe."
    )


def long_paths() -> bool:
    """Return whether this Windows has been told to allow long paths."""
    try:
        import winreg

        where = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, where) as key:  # type: ignore[attr-defined]
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])  # type: ignore[attr-defined]
    except (ImportError, OSError):
        return False


@contextmanager
def alone(prefix: Path) -> Iterator[None]:
    """Wait for whoever installs into this folder, here or on another machine; keep others waiting.

    It may not be there yet. The lock ends with the process that holds it, however that ends.
    """
    prefix.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(lock(prefix / LOCK, "held"))
                break
            except BlockingIOError:
                if not told:
                    print(f"Something else is installing into {prefix}; waiting ...", flush=True)
                told = True
                time.sleep(1)
        yield


def make(prefix: Path, python: Path) -> None:
    """Make the environment, unless it is there; what is in its folder stays."""
    if starts(python, ""):
        return
    print(f"Making {prefix} ...", flush=True)
    # Without pip: install() adds it, so a .venv cut off half-way is healed by the same step.
    if run(sys.executable, "-m", "venv", "--without-pip", prefix):
        sys.exit(f"Could not make {prefix}: is the folder writable, the disk full?")


def install(prefix: Path, python: Path, command: str) -> None:
    """Install the course with what this command needs."""
    if not starts(python, "import pip") and run(python, "-m", "ensurepip"):
        major, minor = sys.version_info[:2]
        sys.exit(
            f"This Python has no pip and could not add it. On Debian or Ubuntu: "
            f"`sudo apt install python{major}.{minor}-venv`; then run the same command again."
        )
    print(f"Installing; the first time this takes minutes. {cpu_tip(command)}", flush=True)
    (prefix / STAMP).unlink(missing_ok=True)
    extras = EXTRAS.get(command, "course")
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--editable", f".[{extras}]"]
    if run(python, *pip, cwd=ROOT):
        sys.exit(failed_install(command, shutil.disk_usage(prefix).free))
    done = "\n".join(stamp(extras))  # last: only a finished install counts
    (prefix / STAMP).write_text(done + "\n", "utf-8", "surrogateescape")


def cpu_tip(command: str) -> str:
    """Return how to spare the CUDA libraries where nothing could use them: Linux, no NVIDIA GPU."""
    if sys.platform != "linux" or shutil.which("nvidia-smi") or "PIP_EXTRA_INDEX_URL" in os.environ:
        return ""
    return (
        "No NVIDIA GPU was found here; without the CUDA libraries\n"
        f"it is gigabytes less:\n  {CPU_WHEELS} python3 course.py {command}\n"
    )


def failed_install(command: str, free_bytes: int) -> str:
    """Return what usually stops pip, and what to do."""
    return f"""
The installation did not finish; pip's own words are above. Most often it is one of these:
  - no network: pip has to reach the Python package index once; check the connection or proxy.
  - disk full: {free_bytes / 1e9:.1f} GB are free here; the course takes about 2, with CUDA about 8.
{cpu_tip(command)}Nothing is lost: when that is fixed, run `python course.py {command}` again."""
