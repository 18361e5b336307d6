"""The checks of chapter 12's two kernels: Triton programs, run by its interpreter on the CPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .verdict import Check, Mistakes, NotWritten, passed, randn, refuse

Kernel = Callable[..., None]
MISSING = "Triton is not installed here, so nothing was checked: pip install triton, on Linux"


@contextmanager
def _interpreted() -> Iterator[Callable[[Kernel], Any]]:
    """Lend Triton's interpreter, also where Triton was imported to compile.

    Its language calls a few functions that are compiled themselves (zeros, cdiv, sum): those are
    interpreted too while this lasts. The interpreter changes the language itself, and does not
    put all of it back if one of those is called; here all is, or nothing would compile afterwards.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    core = tl.core
    places = (tl, core, tl.math, tl.tensor, tl.dtype, core.condition, core.tensor_descriptor_base)
    before = [(place, dict(vars(place))) for place in places]
    try:
        for name, function in before[0][1].items():
            if isinstance(function, JITFunction):
                setattr(tl, name, InterpretedFunction(function.fn))
        yield InterpretedFunction
    finally:
        for place, names in before:
            for name, was in names.items():
                if vars(place).get(name) is not was:
                    setattr(place, name, was)
            for name in vars(place).keys() - names.keys():
                if not inspect.ismodule(vars(place)[name]):  # imported meanwhile
                    delattr(place, name)


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


class _Watch:
    """Look at every address that a kernel reads or writes: what the numbers cannot show."""

    def __init__(self, out: str, nan: str = "") -> None:
        self.out, self.nan = out, nan
        self.strays: list[tuple[str, str]] = []  # what is wrong, and where
        self.unwritten: list[tuple[str, Tensor]] = []

    @contextmanager
    def over(self, given: str, **tensors: Tensor) -> Iterator[None]:
        """Watch a launch on these tensors, of which the kernel writes the one named out."""
        from triton.runtime.interpreter import interpreter_builder as builder

        ends = {n: (t.data_ptr(), t.data_ptr() + t.nbytes) for n, t in tensors.items()}
        out = tensors[self.out]
        writer = np.full(out.numel(), -1)  # the program that wrote each cell
        found: list[str] = []
        inside, load, store, atomic = 0, builder.create_masked_load, builder.create_masked_store, (
            builder.create_atomic_rmw)  # fmt: skip

        def look(what: str, ptrs: Any, mask: Any) -> None:
            nonlocal inside
            at = ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)].astype(int)
            home = np.zeros(at.shape, bool)
            mine = ends if what == "load" else {self.out: ends[self.out]}
            for low, high in mine.values():
                home |= (low <= at) & (at < high)
            inside += int(home.sum())
            if not home.all():
                near = min(mine, key=lambda n: min(abs(at[~home][0] - end) for end in ends[n]))
                found.append(f"a {what} reaches outside of {near}; what is not there takes a mask, "
                             "whatever becomes of it later")  # fmt: skip
            low, high = ends[self.out]
            if what == "store":
                cells = (at[(low <= at) & (at < high)] - low) // out.element_size()
                me = builder.grid_idx[0] * 10**6 + builder.grid_idx[1]
                if not np.isin(writer[cells], (-1, me)).all():
                    found.append(f"two programs write the same cell of {self.out}, and on a GPU "
                                 "nobody knows who is last: mask the store")  # fmt: skip
                writer[cells] = me

        def loads(ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
            look("load", ptrs, mask)
            value = load(ptrs, mask, other, *rest)
            if other is None and value.data.size > 1 and value.data.dtype.kind == "f":
                # A GPU may give anything there. (The interpreter takes a lone 0.0 for None.)
                value.data[~np.broadcast_to(mask.data, value.data.shape).astype(bool)] = np.nan
            return value

        def stores(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            look("store", ptrs, mask)
            return store(ptrs, value, mask, *rest)

        def atomics(op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
            writer.fill(0)  # no store, and no cell left out
            return atomic(op, ptr, value, mask, *rest)

        builder.create_masked_load, builder.create_masked_store = loads, stores
        builder.create_atomic_rmw = atomics
        try:
            yield
        finally:
            for name in ("create_masked_load", "create_masked_store", "create_atomic_rmw"):
                delattr(builder, name)
        if inside:  # else the interpreter worked on copies, elsewhere
            self.strays += [(text, given) for text in found]
        if inside and (writer < 0).any():
            self.unwritten.append((given, torch.from_numpy(writer < 0).view(out.shape)))

    def passed(self, check: Check, praise: str) -> None:
        """Judge the numbers and, where they do not tell, the addresses."""
        check.nan = (f"{self.nan}{self.out} was NaN before, and so is what a load without a third "
                     "argument gives where its mask is off: mask, with 0.0, and add to nothing "
                     "that lay there")  # fmt: skip
        if self.unwritten:
            given, mask = self.unwritten[-1]
            tail = all(bool((m == m[0]).all() and not m[0, 0]) for _, m in self.unwritten)
            row, column = mask.nonzero()[0].tolist()
            verdict = f"cells of {self.out} were never written, as row {row}, column {column}"
            if tail:
                verdict = (f"the last columns of {self.out} were not written: round the grid's "
                           "blocks up, mask the rest")  # fmt: skip
            refuse(check.exercise, verdict, given)
        if self.strays:
            check.nan = self.strays[0][0]
            check.others = (check.nan,)
        check.judge()
        if self.strays:
            refuse(check.exercise, *self.strays[0])
        check.passed(praise)


def _unfilled(answer: Kernel) -> None:
    """Say of a kernel that it is not written; what else it does outside of Triton is no news."""
    kernel = inspect.unwrap(getattr(answer, "fn", answer))
    try:
        kernel(*range(len(inspect.signature(kernel).parameters)))
    except NotImplementedError:
        raise NotWritten from None
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
    watch = _Watch("y")

    def launch(kernel: Any) -> Callable[..., Tensor]:
        def run(x_RD: Tensor, w_EMD: Tensor, loads: list[int], BM: int, BN: int, BK: int) -> Tensor:
            offsets, expert, row = map(_roomy, _tiles(loads, BM))
            (_, M, D), R = w_EMD.shape, len(x_RD)
            y_RM = _roomy(torch.full((R, M), torch.nan))  # what nobody writes stays NaN
            x_RD, w_EMD = _roomy(x_RD), _roomy(w_EMD)
            grid = len(expert), -(-M // BN)
            with watch.over(said(loads, D, M, BM, BN, BK), x=x_RD, w=w_EMD, y=y_RM, offsets=offsets,
                            tile_expert=expert, tile_row=row):  # fmt: skip
                kernel[grid](x_RD, w_EMD, y_RM, offsets, expert, row, D, M, BM=BM, BN=BN, BK=BK)
            return y_RM.clone()

        return run

    def said(loads: list[int], D: int, M: int, *sizes: int) -> str:
        return f"loads {loads}, D = {D}, M = {M}; BM, BN, BK = {sizes}"

    def product(x_RD: Tensor, w_EMD: Tensor, expert_R: Tensor) -> Tensor:
        return torch.einsum("rd,rmd->rm", x_RD, w_EMD[expert_R])

    def right(x_RD: Tensor, w_EMD: Tensor, loads: list[int], *sizes: int) -> Tensor:
        return product(x_RD, w_EMD, _experts(loads))

    def mistakes(
        x_RD: Tensor, w_EMD: Tensor, loads: list[int], BM: int, BN: int, BK: int
    ) -> Mistakes:
        value, expert_R = right(x_RD, w_EMD, loads), _experts(loads)
        D = w_EMD.shape[2]
        whole_D, last_D = D // BK * BK, (D - 1) // BK * BK
        other_RM, zero_RM = value.clone(), value.clone()
        for start, end in _spans(loads, BM):  # the rows that the tile before reaches into
            zero_RM[start:end] = 0.0
            other_RM[start:end] = product(x_RD[start:end], w_EMD, expert_R[start - 1].expand(
                end - start))  # fmt: skip
        return [
            ("the last columns of D are left out: run over whole and broken pieces, with a mask",
             product(x_RD[:, :whole_D], w_EMD[..., :whole_D], expert_R)),
            ("only the last piece of D is there: add to acc, do not replace it",
             product(x_RD[:, last_D:], w_EMD[..., last_D:], expert_R)),
            ("only the first piece of D is there: run over all of them",
             product(x_RD[:, :BK], w_EMD[..., :BK], expert_R)),
            ("expert 0's matrix was used for every tile",
             product(x_RD, w_EMD, torch.zeros_like(expert_R))),
            ("a tile wrote over the rows of the next expert: mask rows at offsets[e + 1]",
             other_RM),
            ("a tile wrote zeros over the rows of the next expert: mask the store too, not the "
             "load alone", zero_RM),
        ]  # fmt: skip

    check = Check("masked_product", _launcher(masked_product, launch), right, mistakes,
                  "not each row times its own expert's matrix")  # fmt: skip
    for seed, (loads, D, M, *sizes) in enumerate((
        ([4, 8], 8, 4, 4, 4, 4), ([3, 5, 4], 12, 9, 4, 2, 8), ([1, 0, 6], 5, 7, 4, 4, 2)
    )):  # fmt: skip
        x_RD, w_EMD = randn(seed, sum(loads), D), randn(seed + 9, len(loads), M, D)
        check.on(said(loads, D, M, *sizes), x_RD, w_EMD, loads, *sizes)
    watch.passed(check, "my tile, my expert, my mask; every cell of y was written once.")


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

    watch = _Watch("out", "rows from kept on are NaN, the row kept among them; ")

    def said(T: int, K: int, D: int, kept: int) -> str:
        return f"{T} tokens, K = {K}, D = {D}, {kept} of {T * K} rows computed"

    def launch(kernel: Any) -> Callable[..., Tensor]:
        def run(y_RD: Tensor, gate_R: Tensor, row_N: Tensor, K: int, kept: int) -> Tensor:
            D, T = y_RD.shape[1], len(row_N) // K
            out_TD = _roomy(torch.full((T, D), torch.nan))
            y_RD, gate_R, row_N = map(_roomy, (y_RD, gate_R, row_N))
            given = said(T, K, D, kept)
            with watch.over(given, y=y_RD, gate=gate_R, row=row_N, out=out_TD):
                kernel[T, -(-D // 4)](y_RD, gate_R, row_N, out_TD, D, kept, K=K, BD=4)
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
        check.on(said(T, K, D, kept), y_RD, gate_R, row_N, K, kept)
    watch.passed(check, "read where it lies, weighed on the way, written once.")
