"""The checks of chapter 12's two kernels: Triton programs, run by its interpreter on the CPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .verdict import Check, Mistakes, passed, randn

Kernel = Callable[..., None]
MISSING = "Triton is not installed here, so nothing was checked: pip install triton, on Linux"


@contextmanager
def _interpreted() -> Iterator[Callable[[Kernel], Any]]:
    """Lend Triton's interpreter, also where Triton was imported to compile.

    Its language calls a few functions that are compiled themselves (zeros, cdiv, sum): those are
    interpreted too while this lasts.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    compiled = {n: f for n, f in vars(tl).items() if isinstance(f, JITFunction)}
    try:
        for name, function in compiled.items():
            setattr(tl, name, InterpretedFunction(function.fn))
        yield InterpretedFunction
    finally:
        for name, function in compiled.items():
            setattr(tl, name, function)


def _launcher(answer: Kernel, launch: Callable[[Any], Callable[..., Tensor]]) -> Any:
    """Make a function of tensors out of a kernel; an unfilled one raises NotImplementedError."""
    kernel = inspect.unwrap(getattr(answer, "fn", answer))

    def run(*args: Any) -> Tensor:
        with _interpreted() as interpret:
            try:
                return launch(interpret(kernel))(*args)
            except Exception as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                raise cause from None

    return run


def _roomy(values: Tensor) -> Tensor:
    """Put a tensor into the middle of a larger memory, so that a stray address hits nobody else."""
    around = values.new_full(
        (values.numel() + 8192,), torch.nan if values.is_floating_point() else 0
    )
    inside = around[4096:-4096].view(values.shape)
    inside.copy_(values)
    return inside


def _unfilled(answer: Kernel) -> None:
    """Let NotImplementedError through; whatever else a kernel outside of Triton does is no news."""
    kernel = inspect.unwrap(getattr(answer, "fn", answer))
    try:
        kernel(*range(len(inspect.signature(kernel).parameters)))
    except NotImplementedError:
        raise
    except Exception:
        return


def _here() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def check_masked_product(masked_product: Kernel) -> None:
    """Check a kernel of the grouped product: one tile of y = x w^T for each program.

    Its arguments: x (R, D), w (E, M, D), y (R, M), offsets (E + 1), tile_expert, tile_row, D, M and
    the sizes BM, BN, BK of a tile. D and M need not be multiples of them.
    """
    _unfilled(masked_product)
    if not _here():
        return passed("masked_product", MISSING)
    BLOCK = 4

    def launch(kernel: Any) -> Callable[..., Tensor]:
        def run(x_RD: Tensor, w_EMD: Tensor, loads: list[int]) -> Tensor:
            offsets, expert, row = _tiles(loads, BLOCK)
            (_, M, D), R = w_EMD.shape, len(x_RD)
            y_RM = _roomy(torch.full((R, M), torch.nan))  # what nobody writes stays NaN
            lists = map(_roomy, (offsets, expert, row))
            grid = len(expert), -(-M // BLOCK)
            kernel[grid](_roomy(x_RD), _roomy(w_EMD), y_RM, *lists, D, M, BM=BLOCK, BN=BLOCK,
                         BK=BLOCK)  # fmt: skip
            return y_RM.clone()

        return run

    def product(x_RD: Tensor, w_EMD: Tensor, expert_R: Tensor) -> Tensor:
        return torch.einsum("rd,rmd->rm", x_RD, w_EMD[expert_R])

    def right(x_RD: Tensor, w_EMD: Tensor, loads: list[int]) -> Tensor:
        return product(x_RD, w_EMD, _experts(loads))

    def mistakes(x_RD: Tensor, w_EMD: Tensor, loads: list[int]) -> Mistakes:
        value, expert_R = right(x_RD, w_EMD, loads), _experts(loads)
        _, M, D = w_EMD.shape
        whole_D, whole_M = D // BLOCK * BLOCK, M // BLOCK * BLOCK
        last_D, cut_RM = (D - 1) // BLOCK * BLOCK, value.clone()
        cut_RM[:, whole_M:] = torch.nan
        other_RM = value.clone()
        for start, end in _spans(loads, BLOCK):  # the rows that the tile before reaches into
            other_RM[start:end] = product(x_RD[start:end], w_EMD, expert_R[start - 1].expand(
                end - start))  # fmt: skip
        return [
            ("the last columns of D are left out: run over whole and broken pieces, with a mask",
             product(x_RD[:, :whole_D], w_EMD[..., :whole_D], expert_R)),
            ("only the last piece of D is there: add to acc, do not replace it",
             product(x_RD[:, last_D:], w_EMD[..., last_D:], expert_R)),
            ("only the first piece of D is there: run over all of them",
             product(x_RD[:, :BLOCK], w_EMD[..., :BLOCK], expert_R)),
            ("expert 0's matrix was used for every tile",
             product(x_RD, w_EMD, torch.zeros_like(expert_R))),
            ("the last columns of y were not written: round the grid's blocks up, mask the rest",
             cut_RM if whole_M < M else None),
            ("a tile wrote over the rows of the next expert: mask rows at offsets[e + 1]",
             other_RM),
        ]  # fmt: skip

    check = Check("masked_product", _launcher(masked_product, launch), right, mistakes,
                  "not each row times its own expert's matrix")  # fmt: skip
    for seed, (loads, D, M) in enumerate((([4, 8], 8, 4), ([3, 5, 4], 6, 10), ([1, 0, 6], 5, 7))):
        x_RD, w_EMD = randn(seed, sum(loads), D), randn(seed + 9, len(loads), M, D)
        check.on(f"loads {loads}, D = {D}, M = {M}", x_RD, w_EMD, loads)
    check.passed("my tile, my expert, my mask; every cell of y was written once.")


def _tiles(loads: list[int], BM: int) -> tuple[Tensor, Tensor, Tensor]:
    starts = [sum(loads[:e]) for e in range(len(loads) + 1)]
    tiles = [(e, r) for e, n in enumerate(loads) for r in range(starts[e], starts[e] + n, BM)]
    expert, row = zip(*reversed(tiles), strict=True)  # whoever writes too far does it last
    whole = torch.int32
    return tuple(torch.tensor(v, dtype=whole) for v in (starts, expert, row))  # type: ignore[return-value]


def _experts(loads: list[int]) -> Tensor:
    return torch.arange(len(loads)).repeat_interleave(torch.tensor(loads))


def _spans(loads: list[int], BM: int) -> list[tuple[int, int]]:
    """List the rows that each expert's last tile reaches into, of the expert behind it."""
    spans, end = [], 0
    for load in loads[:-1]:
        end += load
        over = min(sum(loads), end + -load % BM)
        if load % BM:
            spans.append((end, over))
    return spans


def check_fused_gather(fused_gather: Kernel) -> None:
    """Check a kernel of the combine: each program sums one token's K rows, with their gates.

    Its arguments: y (R, D), gate (R), row (T K), out (T, D), D, kept and the sizes K, BD. Rows from
    kept on were never computed and hold anything.
    """
    _unfilled(fused_gather)
    if not _here():
        return passed("fused_gather", MISSING)

    def launch(kernel: Any) -> Callable[..., Tensor]:
        def run(y_RD: Tensor, gate_R: Tensor, row_N: Tensor, K: int, kept: int) -> Tensor:
            D, T = y_RD.shape[1], len(row_N) // K
            out_TD = _roomy(torch.full((T, D), torch.nan))
            kernel[T, -(-D // 4)](*map(_roomy, (y_RD, gate_R, row_N)), out_TD, D, kept, K=K, BD=4)
            return out_TD.clone()

        return run

    def add(y_RD: Tensor, row_N: Tensor, K: int) -> Tensor:
        return y_RD[row_N].view(-1, K, y_RD.shape[1]).sum(1)

    def right(y_RD: Tensor, gate_R: Tensor, row_N: Tensor, K: int, kept: int) -> Tensor:
        kept_R1 = (torch.arange(len(y_RD)) < kept)[:, None]
        return add(y_RD.where(kept_R1, 0.0) * gate_R[:, None], row_N, K)

    def mistakes(y_RD: Tensor, gate_R: Tensor, row_N: Tensor, K: int, kept: int) -> Mistakes:
        value, N = right(y_RD, gate_R, row_N, K, kept), len(row_N)
        clean_RD = y_RD.where((torch.arange(len(y_RD)) < kept)[:, None], 0.0)
        weighed_RD = clean_RD * gate_R[:, None]
        pairs_TKD = weighed_RD[row_N].view(-1, K, y_RD.shape[1])
        in_order = torch.arange(N)
        return [
            ("a row that nobody computed came in: its gate is 0, but 0 times NaN is NaN; mask the "
             "load at kept", add(y_RD * gate_R[:, None], row_N, K)),
            ("the gates are missing", add(clean_RD, row_N, K)),
            ("the gate of a row lies at that row, not at the pair",
             add(clean_RD[row_N] * gate_R[:, None], in_order, K)),
            ("rows lie in expert order; a token finds its own through row",
             add(weighed_RD, in_order, K)),
            ("only the last of K is there: add to acc, do not replace it", pairs_TKD[:, -1]),
            ("only the first of K is there", pairs_TKD[:, 0]),
            ("token t's pairs are t K to t K + K - 1; these are another's",
             add(weighed_RD, row_N.view(K, -1).T.flatten(), K)),
            ("a mean; a token's rows are added", value / K),
        ]  # fmt: skip

    check = Check("fused_gather", _launcher(fused_gather, launch), right, mistakes,
                  "not the sum of each token's rows, each times its gate")  # fmt: skip
    for T, K, D, kept in ((3, 2, 4, 6), (4, 3, 6, 10), (5, 2, 7, 7)):
        N = T * K
        y_RD, gate_R = randn(N, N, D), randn(K, N).sigmoid()
        y_RD[kept:], gate_R[kept:] = torch.nan, 0.0
        row_N = randn(T, N).argsort().to(torch.int32)
        given = f"{T} tokens, K = {K}, D = {D}, {kept} of {N} rows computed"
        check.on(given, y_RD, gate_R, row_N, K, kept)
    check.passed("read where it lies, weighed on the way, written once.")
