"""Hold the GPU paths to their promises on the device itself, before anything is timed there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from .measure import Row

ROOT = Path(__file__).resolve().parents[2]
SANITIZED = (
    "output_and_gradients and (shape1 or shape6)"  # the tool makes a test 10 to 100 times as long
)


def checks(folder: Path) -> list[Row]:
    """Run tests/gpu, and where compute-sanitizer is installed a few of them under its tools.

    Args:    folder: where the test reports go.
    Returns: a row for each: its name, how many tests passed, failed and were skipped, and the
             names of those that failed; status "passed", "failed" or "missing".
    """
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        str(ROOT / "tests" / "gpu"),
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    rows = [_run("tests/gpu", pytest, folder / "tests.xml")]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        name = f"compute-sanitizer {tool}"
        if sanitizer is None:
            rows.append(
                {"check": name, "status": "missing", "note": "not installed (CUDA toolkit)"}
            )
            continue
        under = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        rows.append(_run(name, [*under, *pytest, "-k", SANITIZED], folder / f"{tool}.xml"))
    return rows


def _run(name: str, command: list[str], file: Path) -> Row:
    done = subprocess.run(
        [*command, f"--junitxml={file}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    row: Row = {"check": name, "status": "passed" if done.returncode == 0 else "failed", "note": ""}
    if not file.is_file():
        said = (done.stdout + done.stderr).strip().splitlines()
        return row | {"status": "failed", "note": said[-1][:200] if said else "it said nothing"}
    cases = list(ElementTree.parse(file).iter("testcase"))
    failed = [
        c.get("name") for c in cases if c.find("failure") is not None or c.find("error") is not None
    ]
    skipped = sum(c.find("skipped") is not None for c in cases)
    row |= {"passed": len(cases) - len(failed) - skipped, "failed": failed, "skipped": skipped}
    if row["status"] == "passed" and not row["passed"]:
        row |= {"status": "failed", "note": "no test ran"}
    elif row["status"] == "failed" and not failed:
        row["note"] = f"the tool gave exit code {done.returncode}"
    return row
