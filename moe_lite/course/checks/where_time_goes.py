"""The checks of chapter 13: where does the time go?"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .verdict import Check, Mistakes, randn, refuse


def check_least_time(least_time: Callable[[float, float, float, float], float]) -> None:
    """Check the roofline: (operations, size, peak, bandwidth) -> seconds."""

    def mistakes(A: float, B: float, peak: float, bandwidth: float) -> Mistakes:
        a, b = A / peak, B / bandwidth
        return [
            ("the two go on at the same time: the slower one is what is waited for", a + b),
            ("the faster of the two is not what is waited for", min(a, b)),
            ("this knows no memory", a),
            ("this knows no arithmetic", b),
            ("this is a rate, operations a second; asked are seconds", A / max(a, b)),
            ("the limits are exchanged: operations over the peak", max(A / bandwidth, B / peak)),
            ("these are the numbers upside down", max(peak / A, bandwidth / B)),
        ]

    check = Check("least_time", least_time, lambda A, B, p, b: max(A / p, B / b), mistakes,
                  "not the slower of arithmetic and memory")  # fmt: skip
    for case in ((8e9, 2e9, 4e9, 1e9), (1e9, 4e9, 2e9, 1e9), (9e9, 1e9, 3e9, 2e9), (5.0, 7, 3, 2)):
        A, B, peak, bandwidth = case
        given = f"{A:g} operations, {B:g} bytes, peak {peak:g}, bandwidth {bandwidth:g}"
        check.on(given, *case)
    check.passed("the slower of the two binds; the other hides behind it.")


def check_rows_enough(rows_enough: Callable[[float, float, float], float]) -> None:
    """Check rows at which an expert stops to wait: (peak, bandwidth, bytes_each) -> rows."""

    def mistakes(peak: float, bandwidth: float, each: float) -> Mistakes:
        balance = peak / bandwidth
        return [
            ("a weight is multiplied and added for each row: two operations", balance * each),
            ("a weight has more bytes than one, or fewer", balance / 2),
            ("this is the machine's balance, in operations for a byte", balance),
            ("more bytes need more rows, not fewer", balance / each / 2),
            ("this is upside down: peak over bandwidth", bandwidth / peak * each / 2),
            ("two operations for a row: divide by two", 2 * balance * each),
            *(
                ("keep the decimals: a border need not be whole", float(whole(balance * each / 2)))
                for whole in (ceil, int, round)
            ),
        ]

    check = Check("rows_enough", rows_enough, lambda p, b, each: p / b * each / 2, mistakes,
                  "not the rows at which operations take as long as the fetch")  # fmt: skip
    for peak, bandwidth, each in ((8.0, 1.0, 4), (989e12, 3.35e12, 2), (60e9, 12e9, 4),
                                  (2e15, 3.35e12, 1), (100.0, 10.0, 0.5)):  # fmt: skip
        check.on(f"peak {peak:g}, bandwidth {bandwidth:g}, {each} bytes a weight", peak, bandwidth,
                 each)  # fmt: skip
    check.passed("2 m operations with each weight, over its bytes, is the balance.")


def check_useful_rows(useful_rows: Callable[[list[int], int], float]) -> None:
    """Check the share of tiles' rows that hold a token: (load_E, height) -> share."""

    def right(load_E: list[int], height: int) -> float:
        return sum(load_E) / (height * sum(ceil(n / height) for n in load_E))

    def mistakes(load_E: list[int], height: int) -> Mistakes:
        N, E, value = sum(load_E), len(load_E), right(load_E, height)
        shares = [n / (height * ceil(n / height)) for n in load_E if n]
        return [
            ("a tile belongs to one expert: round up for each", N / (height * ceil(N / height))),
            ("an expert without rows has no tile",
             N / (height * sum(max(1, ceil(n / height)) for n in load_E))),
            ("every expert padded to the largest load: that is padded, not tiles",
             N / (E * max(load_E))),
            ("a tile has `height` rows, not one", height * value),
            ("a last tile that is not full is computed too",
             N / (height * whole) if (whole := sum(n // height for n in load_E)) else None),
            ("a mean of the experts' shares; a busy expert counts more", sum(shares) / len(shares)),
            ("this is the share that is wasted", 1 - value),
            ("this is how many rows are computed for one that is wanted", 1 / value),
            ("every expert has a further tile here, also one that fills its own",
             N / (height * sum(n // height + 1 for n in load_E))),
        ]  # fmt: skip

    check = Check("useful_rows", useful_rows, right, mistakes,
                  "not the tokens' rows over the rows of all tiles")  # fmt: skip
    for load_E, height in (([3, 5, 4], 2), ([3, 0, 16, 1], 8), ([0, 128, 130, 1], 128),
                           ([7, 7, 7, 7], 4), ([40, 2, 3, 9, 0, 0], 16)):  # fmt: skip
        check.on(f"loads {load_E}, tiles of {height}", load_E, height)
    check.passed("rounded up for each expert: about half a tile each is work on nothing.")


Parts = tuple[float, float, float]


def check_three_reasons(
    three_reasons: Callable[[float, float, float, float], Parts],
) -> None:
    """Check a diagnosis: (dense, roofline, products, measured) -> (bytes, products, carrying)."""

    def right(dense: float, roofline: float, products: float, measured: float) -> Parts:
        return roofline - dense, products - roofline, measured - products

    def mistakes(dense: float, roofline: float, products: float, measured: float) -> Mistakes:
        a, b, c = right(dense, roofline, products, measured)
        return [
            ("each bound holds the ones before; take the difference, so that the parts add up",
             (roofline, products, measured)),
            ("each part beyond the one before, not beyond the dense network",
             (a, products - dense, measured - dense)),
            ("these are shares; asked are milliseconds",
             (a / (a + b + c), b / (a + b + c), c / (a + b + c))),
            ("these are ratios; asked are milliseconds",
             (roofline / dense, products / roofline, measured / products)),
            ("the first is what fetching costs *beyond* the dense network", (roofline, b, c)),
            ("the last two are exchanged: carrying is what the products do not explain", (a, c, b)),
            ("the sign is turned round", (-a, -b, -c)),
            *(("a part may be below zero (products timed alone may take longer than together): the "
               "three add up to what is lost", parts)
              for parts in ((a, b, max(0, c)), (abs(a), abs(b), abs(c)))),
        ]  # fmt: skip

    check = Check("three_reasons", three_reasons, right, mistakes,
                  "not what each step adds to the one before",
                  parts=("bytes", "small products", "carrying"))  # fmt: skip
    for case in (
        (2.0, 5, 9, 10),
        (40.0, 44, 45, 60),
        (1.0, 8, 8.5, 9.25),
        (10.0, 10, 31, 33),
        (3.0, 6, 11, 10),
    ):
        given = "dense {:g} ms, roofline {:g}, by the table {:g}, measured {:g}".format(*case)
        check.on(given, *case)
    check.passed("bytes, small products, carrying: three parts that add up to what is lost.")


class _Written(TorchDispatchMode):
    """Add up the bytes that operations write; a view writes none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        alias = [r.alias_info for r in func._schema.returns]
        if not any(a is not None and not a.is_write for a in alias):
            self.bytes += sum(t.nbytes for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


Block = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def check_expert_blocks(expert_blocks: Block) -> None:
    """Check experts over their blocks: (x_RD, w1, w3, w2, offsets_E1) -> y_RD, and its backward.

    The backward pass is watched: it has to write the weights' gradients once, not E times.
    """
    exercise = "expert_blocks"

    def rows(act: Any, *args: Tensor) -> Tensor:
        x, w1, w3, w2, offsets_E1 = args
        block_R = torch.arange(len(w1)).repeat_interleave(offsets_E1.diff())
        up1, up3 = (torch.einsum("rd,rfd->rf", x, w[block_R]) for w in (w1, w3))
        return torch.einsum("rf,rdf->rd", act(up1) * up3, w2[block_R])

    def mistakes(x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, offsets_E1: Tensor) -> Mistakes:
        first = [w[:1].expand_as(w) for w in (w1, w3, w2)]
        last = [w.roll(1, 0) for w in (w1, w3, w2)]
        even = (torch.arange(len(offsets_E1)) * len(x)).div(len(w1), rounding_mode="floor")
        return [
            ("silu belongs to w1's projection", rows(F.silu, x, w3, w1, w2, offsets_E1)),
            ("silu is missing", rows(lambda up: up, x, w1, w3, w2, offsets_E1)),
            ("that is a sigmoid, not silu", rows(torch.sigmoid, x, w1, w3, w2, offsets_E1)),
            ("that is a ReLU, not silu", rows(F.relu, x, w1, w3, w2, offsets_E1)),
            ("that is a GELU, not silu", rows(F.gelu, x, w1, w3, w2, offsets_E1)),
            ("expert 0's weights were used for every block", rows(F.silu, x, *first, offsets_E1)),
            ("each block is one expert off", rows(F.silu, x, *last, offsets_E1)),
            ("rows cut in equal blocks, not at the offsets", rows(F.silu, x, w1, w3, w2, even)),
        ]  # fmt: skip

    check = Check(exercise, expert_blocks, lambda *args: rows(F.silu, *args), mistakes,
                  "not each block of rows through its own expert")  # fmt: skip
    for sizes, D, width in (([2, 0, 3], 4, 6), ([0, 4, 1, 1], 3, 3), ([2] * 48, 16, 24),
                            ([16] * 4, 48, 64)):  # fmt: skip
        E, R = len(sizes), sum(sizes)
        given = f"{E} experts with {sizes if E < 9 else sizes[0]} rows each"
        offsets_E1 = F.pad(torch.tensor(sizes).cumsum(0), (1, 0))
        shapes = (R, D), (E, width, D), (E, width, D), (E, D, width)
        args = *[randn(i, *shape) / 2 for i, shape in enumerate(shapes)], offsets_E1
        check.on(given, *args)
        check.slopes(given, *args, of={"x_RD": 0, "w1": 1, "w3": 2, "w2": 3})
        if R < 64:
            continue
        check.judge()
        leaves = [arg.requires_grad_() for arg in args[:4]]
        y_RD = expert_blocks(*leaves, offsets_E1)  # type: ignore[call-arg]
        with _Written() as watch:
            torch.autograd.grad(y_RD, leaves, randn(9, R, D))
        times = watch.bytes / sum(w.nbytes for w in leaves[1:])
        why = "nothing may be copied for each row" if E < 9 else (
            "a slice's gradient is as large as the whole stack; take the stack apart once, before "
            "the loop")  # fmt: skip
        if times > 10:
            refuse(exercise, f"right, but the backward pass writes {times:.0f} times the bytes of "
                   f"the weights: {why}", given)  # fmt: skip
    check.passed("every block by its own expert, and every gradient written once.")
