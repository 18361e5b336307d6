"""Answers to check_fused_gather: a kernel without triton.jit, and it changed."""

import runpy
from functools import partial
from pathlib import Path

_kernels = runpy.run_path(str(Path(__file__).with_name("kernels.py")))
_make = partial(_kernels["changed"], _kernels["GATHER"], __name__)

right = _make("right")
right_by_a_zero_gate = _make("right_by_a_zero_gate", ("gate + r)", "gate + r, r < kept, 0.0)"))
not_masked = _make("not_masked", ("tl.where(r < kept, D, 0)", "D"),
                   says="a row that nobody computed came in")  # fmt: skip
no_gate = _make("no_gate", ("g * tl.load(y", "tl.load(y"), says="the gates are missing")
gate_of_the_pair = _make("gate_of_the_pair", ("gate + r)", "gate + t * K + k)"),
                         says="not at the pair")  # fmt: skip
last_only = _make("last_only", ("acc += ", "acc = "), says="only the last of K")
