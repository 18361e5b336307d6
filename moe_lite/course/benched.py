"""What ``python -m moe_lite bench`` found on machines that a reader may not have."""

from __future__ import annotations

from typing import Any

from ..checked import read_json
from .ledger import ROOT

RESULTS = ROOT / "experiments" / "results" / "bench"


def stored() -> dict[str, dict[str, Any]]:
    """Read every stored result by its name, "cpu" or "h100": what a result holds, report.py says.

    Raises: OSError, ValueError if a file cannot be read.
    """
    return {path.stem: read_json(path) for path in sorted(RESULTS.glob("*.json"))}


def over_dense(result: dict[str, Any], shape: str) -> dict[str, float]:
    """Return each path's time at a shape over the dense network's; nothing if that has none.

    Forward and backward under random routing, in float32 on a CPU and in bfloat16 elsewhere. The
    dense network is that of the library's own product, where it was timed.
    """
    dtype = "float32" if result["machine"]["device"] == "cpu" else "bfloat16"
    those = {"shape": shape, "dtype": dtype, "routing": "random", "what": "forward+backward"}
    times = {
        row["path"]: row["seconds"]["median"]
        for row in result["layers"]
        if "seconds" in row and all(row[key] == value for key, value in those.items())
    }
    dense = times.pop("moe_lite dense", None) or times.pop("dense", None)
    return {path: time / dense for path, time in times.items()} if dense else {}
