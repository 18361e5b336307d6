"""Hold the GPU paths to their promises on the device itself, before anything is timed there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from .measure import Row

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/gpu")]
# Two shapes of ten: under the tool a test takes 10 to 100 times as long.
SANITIZED = "output_and_gradients and (shape1 or shape6)"


def checks(folder: Path) -> list[Row]:
    """Run tests/gpu, and where compute-sanitizer is installed a few of them under its tools.

    Args:    folder: where the test reports go.
    Returns: a row for each: its name, how many tests passed, failed and were skipped, and the
             names of those that failed; status "passed", "failed" or "missing".
    """
    rows = [count("tests/gpu", PYTEST, folder / "tests.xml")]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        name = f"compute-sanitizer {tool}"
        if sanitizer is None:
            rows.append({"check": name, "status": "missing", "note": "comes with the CUDA toolkit"})
            continue
        under = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        rows.append(count(name, [*under, *PYTEST, "-k", SANITIZED], folder / f"{tool}.xml"))
    return rows


def count(name: str, command: list[str], file: Path) -> Row:
    """Run pytest, or a tool over it, and count what its report in ``file`` says."""
    done = subprocess.run(
        [*command, f"--junitxml={file}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    row: Row = {"check": name, "status": "failed" if done.returncode else "passed", "note": ""}
    if not file.is_file():
        said = (done.stdout + done.stderr).strip().splitlines()
        return row | {"status": "failed", "note": said[-1][:200] if said else "it said nothing"}
    bad, skipped, cases = [], 0, list(ElementTree.parse(file).iter("testcase"))
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            bad.append(case.get("name"))
        skipped += case.find("skipped") is not None
    if done.returncode and not bad:  # 5: no test ran; 9: the tool found something
        row["note"] = f"gave exit code {done.returncode}"
    return row | {"passed": len(cases) - len(bad) - skipped, "failed": bad, "skipped": skipped}
