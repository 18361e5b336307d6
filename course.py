"""Start here: makes the environment, then runs the course in it.

    python course.py lab             open the notebooks in JupyterLab
    python course.py test            run every test
    python course.py explore "text"  see which experts each token goes to
    python course.py train           train a small Mixtral
    python course.py bench           time it beside other implementations
    python course.py build           rebuild notebooks and exercises from their sources
    python course.py reproduce NAME  run a paper's experiment again and judge it
    python course.py read            see which files to read, and one token's trip through them

The first run makes .venv and installs into it; inside an active environment (venv or
conda) that one is used instead. Everything goes on to `python -m moe_lite`, so
`python course.py train --help` says more.
"""

# Only the standard library, and nothing that a Python too old for the course cannot parse:
# it has to live long enough to say so.
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
EXTRAS = dict.fromkeys(("test", "build", "bench"), "test")  # which builds on "course", the others'
CPU_WHEELS = "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"


def require_python(version: tuple) -> None:
    """Exit with one sentence if this Python is too old."""
    if tuple(version[:2]) < (3, 11):
        sys.exit(
            "The course needs Python 3.11 or newer, but this is Python {}.{} ({}): run course.py "
            "with a newer one, for instance `python3.12 course.py lab`.".format(
                version[0], version[1], sys.executable
            )
        )


def run(*command: object, **options: object) -> int:
    """Run a command to its end and give its exit code.

    Ctrl-C is the command's to answer, which gets it too: JupyterLab asks back, pip tidies up.
    """
    process = subprocess.Popen([str(part) for part in command], **options)  # type: ignore
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted and code:
        raise KeyboardInterrupt
    return code if code >= 0 else 128 - code  # ended by a signal: told as a shell tells it


def starts(python: Path, code: str) -> bool:
    """Say whether this Python runs these words without an error."""
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:  # not there, or a link to a Python that is gone
        return False


def environment() -> tuple[Path, Path]:
    """Give the environment to use and its Python: the active one, else .venv, made if need be."""
    prefix = Path(sys.prefix)
    conda = (prefix / "conda-meta").is_dir() and not (prefix / "condabin").is_dir()  # not its base
    if sys.prefix != sys.base_prefix or conda:
        return prefix, Path(sys.executable)
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not starts(python, ""):
        print(f"Making {VENV} ...", flush=True)
        # Without pip: install() adds it, so a .venv cut off half-way is healed by the same step.
        if run(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV):
            sys.exit(f"Could not make {VENV}: is the folder writable, the disk full?")
    return VENV, python


def install(prefix: Path, python: Path, command: str) -> None:
    """Install the course, unless that was done for this very pyproject.toml and these extras."""
    extras = EXTRAS.get(command, "course")
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + bytes(ROOT)).hexdigest()
    stamp = prefix / "moe-lite-installed.txt"
    if stamp.is_file() and stamp.read_text("utf-8") in (f"{digest} {extras}", f"{digest} test"):
        return
    if not starts(python, "import pip") and run(python, "-m", "ensurepip"):
        major, minor = sys.version_info[:2]
        sys.exit(
            f"This Python has no pip and could not add it. On Debian or Ubuntu: "
            f"`sudo apt install python{major}.{minor}-venv`; then run the same command again."
        )
    print(f"Installing; the first time this takes minutes. {cpu_tip(command)}", flush=True)
    stamp.unlink(missing_ok=True)
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--editable", f".[{extras}]"]
    code = run(python, *pip, cwd=ROOT)
    if code:
        sys.exit(failed_install(command, shutil.disk_usage(prefix).free))
    stamp.write_text(f"{digest} {extras}", encoding="utf-8")  # last: only a finished install counts


def cpu_tip(command: str) -> str:
    """Say how to spare the CUDA libraries where nothing could use them: Linux, no NVIDIA GPU."""
    if sys.platform != "linux" or shutil.which("nvidia-smi") or "PIP_EXTRA_INDEX_URL" in os.environ:
        return ""
    return (
        "No NVIDIA GPU was found here; without the CUDA libraries\n"
        f"it is gigabytes less:\n  {CPU_WHEELS} python3 course.py {command}\n"
    )


def failed_install(command: str, free_bytes: int) -> str:
    """Say what usually stops pip, and what to do."""
    return f"""
The installation did not finish; pip's own words are above. Most often it is one of these:
  - no network: pip has to reach the Python package index once; check the connection or proxy.
  - disk full: {free_bytes / 1e9:.1f} GB are free here; the course takes about 2, with CUDA about 8.
  - "No matching distribution found for torch": PyTorch wants a 64-bit Python 3.11 to 3.13; this
    is {sys.version.split()[0]}. On a Mac with an Intel processor use conda (see README.md).
{cpu_tip(command)}Nothing is lost: when that is mended, run `python course.py {command}` again."""


def main(argv: list[str]) -> int:
    require_python(sys.version_info)
    if argv in ([], ["-h"], ["--help"]):
        print(__doc__.strip())
        return 0 if argv else 2
    prefix, python = environment()
    install(prefix, python, argv[0])
    return run(python, "-m", "moe_lite", *argv)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"course.py: {error}")
