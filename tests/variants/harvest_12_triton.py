"""Kernels for chapter 12, right in another way: (what was done, the answer)."""

import runpy
from pathlib import Path

_kernels = runpy.run_path(str(Path(__file__).parents[1] / "mutants" / "kernels.py"))


def _product(name, *changes):
    return _kernels["changed"](_kernels["PRODUCT"], __name__, name, *changes)


def _gather(name, *changes):
    return _kernels["changed"](_kernels["GATHER"], __name__, name, *changes)


check_masked_product = [
    ("columns first", _product("columns_first", ("(c.T < M) & (i < D)", "(i < D) & (c.T < M)"))),
    ("one address",
     _product("one_address", ("w + (e * M + c.T) * D + i", "w + e * M * D + c.T * D + i"))),
]  # fmt: skip
check_fused_gather = [
    ("where", _gather("where", (
        "g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)",
        "tl.where(r < kept, g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0), 0.0)"))),
    ("backwards", _gather("backwards", ("row + t * K + k", "row + (t + 1) * K - 1 - k"))),
]  # fmt: skip
