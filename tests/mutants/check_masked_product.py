"""Answers to check_masked_product: a kernel without triton.jit, and it changed."""

import runpy
from functools import partial
from pathlib import Path

_kernels = runpy.run_path(str(Path(__file__).with_name("kernels.py")))
_make = partial(_kernels["changed"], _kernels["PRODUCT"], __name__)

right = _make("right")
right_with_dot = _make("right_with_dot", (
    "acc += tl.sum(X[:, None, :] * W[None, :, :], 2)",
    'acc = tl.dot(X, W.T, acc, input_precision="ieee")'))  # fmt: skip
expert_0 = _make("expert_0", ("(e * M + c.T) * D", "c.T * D"), says="expert 0's matrix")
replaced = _make("replaced", ("acc += ", "acc = "), says="do not replace it")
first_piece = _make("first_piece", ("range(0, D, BK)", "range(0, BK, BK)"),
                    says="only the first piece of D")  # fmt: skip
whole_pieces = _make("whole_pieces", ("range(0, D, BK)", "range(0, D // BK * BK, BK)"),
                     says="the last columns of D are left out")  # fmt: skip
