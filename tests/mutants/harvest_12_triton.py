"""Kernels for chapter 12, wrong: (what was done, a phrase of what the check says, the answer)."""

import runpy
from pathlib import Path

_kernels = runpy.run_path(str(Path(__file__).with_name("kernels.py")))


def _product(name, *changes):
    return _kernels["changed"](_kernels["PRODUCT"], __name__, name, *changes)


def _gather(name, *changes):
    return _kernels["changed"](_kernels["GATHER"], __name__, name, *changes)


check_masked_product = [
    ("no row mask", "masked_product: ",
     _product("no_row_mask", ("r < tl.load(offsets + e + 1)", "r >= 0"))),
    ("tile number", "masked_product: ",
     _product("tile_number", ("(tl.load(tile_row + t) +", "(t * BM +"))),
    ("expert 0 for all", "masked_product: ",
     _product("one_expert", ("tl.load(tile_expert + t)", "tl.load(tile_expert + t) * 0"))),
    ("no tail", "the last columns of y were not written",
     _product("no_tail", ("mine & (c < M)", "mine & (c < M // BN * BN)"))),
    ("not added", "do not replace it", _product("not_added", ("acc += ", "acc = "))),
]  # fmt: skip

check_fused_gather = [
    ("half", "fused_gather: ", _gather("half", ("acc, d < D", "acc / 2, d < D"))),
    ("mean", "a mean; a token's rows are added", _gather("mean", ("acc, d < D", "acc / K, d < D"))),
    ("first", "only the first of K", _gather("first", ("range(K)", "range(1)"))),
    ("strided", "these are another's",
     _gather("strided", ("row + t * K + k", "row + k * tl.num_programs(0) + t"))),
    ("in order", "finds its own through row",
     _gather("in_order", ("tl.load(row + t * K + k)", "t * K + k"))),
]  # fmt: skip
