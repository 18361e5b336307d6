"""What the suite itself promises: --quick says what it left out, and no test module is lost."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def collect(*options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    files = ["tests/test_files.py", "tests/test_notebooks.py", "tests/browser/test_rows.py"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow("the tests of --quick")
def test_quick_says_what_it_left_out():
    full = [line for line in collect("--collect-only") if "::" in line]
    *_, said, _ = collect("--quick")
    slow = {name: sum(line.startswith(f"tests/{path}") for line in full)
            for name, path in (("notebooks", "test_note"), ("browser", "browser"))}  # fmt: skip
    parts = ", ".join(f"{n} of {name}" for name, n in sorted(slow.items(), key=lambda i: -i[1]))
    assert min(slow.values()) > 3
    assert said == (
        f"--quick left out {sum(slow.values())} tests: {parts}. `python course.py test` runs all."
    )


def test_a_test_module_that_cannot_be_imported_is_an_error(tmp_path):
    """It was skipped, and all its tests with it, because its examples were looked for first."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\naddopts = {options['tool']['pytest']['ini_options']['addopts']}\n"
    )
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text("import no_such_module\n\ndef test_it(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "1 error in" in done.stdout, done.stdout
