"""`python course.py test --quick` leaves out what takes long, and says so."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def collect(*options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    files = ["tests/test_files.py", "tests/test_notebooks.py", "tests/browser/test_rows.py"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_quick_says_what_it_left_out():
    full = [line for line in collect("--collect-only") if "::" in line]
    *_, said, _ = collect("--quick")
    slow = {name: sum(line.startswith(f"tests/{path}") for line in full)
            for name, path in (("notebooks", "test_notebooks"), ("browser", "browser"))
    }  # fmt: skip
    parts = ", ".join(f"{n} of {name}" for name, n in sorted(slow.items(), key=lambda i: -i[1]))
    assert min(slow.values()) > 3
    assert said == (
        f"--quick left out {sum(slow.values())} tests: {parts}. `python course.py test` runs all."
    )
