"""The checks of chapter 12: where do the tokens go, in silicon?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .verdict import CheckFailed, Mistakes, call, expect, passed, randn


def _numbers(exercise: str, value: Any, what: str) -> Tensor:
    """Take a list, an array or a tensor of whole numbers, whatever its integer type."""
    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        value = None
    if not isinstance(value, Tensor) or not (
        value.numel() == 0 or value.sub(value.round()).eq(0).all()
    ):
        raise CheckFailed(f"{exercise}: return {what}")
    return value.long()


def _chosen(seed: int, N: int, E: int) -> Tensor:
    """Draw experts, the last of them rarely, so that it is often empty."""
    return randn(seed, N, E).sub(torch.arange(E) / 2).argmax(1)


def _offsets(expert_N: Tensor, E: int) -> Tensor:
    return torch.tensor([int((expert_N < e).sum()) for e in range(E + 1)])


def _rows(expert_N: Tensor) -> Tensor:
    order = sorted(range(len(expert_N)), key=expert_N.tolist().__getitem__)
    row = [0] * len(order)
    for r, n in enumerate(order):
        row[n] = r
    return torch.tensor(row)


# --- the histogram -------------------------------------------------------------------------------


def check_block_counts(block_counts: Callable[[Tensor, int, int], Tensor]) -> None:
    """Check a histogram for each block of pairs: (expert_N, num_experts, block) -> count_BE.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "block_counts"

    def run(expert_N: Tensor, E: int, block: int) -> None:
        N = len(expert_N)
        given = f"experts {expert_N.tolist()}, E = {E}, blocks of {block}"
        yours = _numbers(exercise, call(exercise, block_counts, expert_N, E, block, on=given),
                         "one tensor of whole numbers, a row for each block")  # fmt: skip
        parts = expert_N.split(block)
        right = torch.stack([part.bincount(minlength=E) for part in parts])
        if yours.ndim == 2 and yours.shape[1] == right.shape[1] - 1:
            raise CheckFailed(f"{exercise}: an expert that nobody chose has a column too")
        whole = [part for part in parts if len(part) == block]
        padded = F.pad(expert_N, (0, -N % block)).split(block)
        mistakes: Mistakes = [
            ("the last block is shorter, and its pairs count too",
             torch.stack([part.bincount(minlength=E) for part in whole]) if whole else right[:0]),
            ("the last block was filled up with zeros, and zero is an expert: those are no pairs",
             torch.stack([part.bincount(minlength=E) for part in padded])),
            ("each program counts its own block alone; the running sum comes later",
             right.cumsum(0)),
            ("that is one histogram of all pairs: many programs would have to write into it at "
             "once", right.sum(0)),
            ("a row for each block, a column for each expert: yours is the transpose", right.T),
            ("block b has the pairs b·block, b·block + 1, …, neighbours; these were dealt in turn",
             torch.stack([expert_N[b :: len(parts)].bincount(minlength=E)
                          for b in range(len(parts))])),
        ]  # fmt: skip
        otherwise = "not the number of pairs of each block that chose each expert"
        expect(exercise, given, yours, right, mistakes, otherwise)

    run(torch.tensor([1, 0, 2, 1, 1, 2, 0, 2, 1, 0]), 3, 4)  # blocks of 4, 4 and 2
    for seed, (N, E, block) in enumerate(((12, 4, 3), (13, 5, 4), (7, 3, 16), (33, 6, 8))):
        run(_chosen(seed, N, E), E, block)
    passed(exercise, "each program counts its own pairs into its own row; nobody waits.")


# --- where each expert begins --------------------------------------------------------------------


def check_offsets(offsets: Callable[[Tensor], Tensor]) -> None:
    """Check where each expert's rows begin, and the end: count_BE -> offsets_E1.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "offsets"

    def run(count_BE: Tensor) -> None:
        given = f"counts {count_BE.tolist()}"
        yours = _numbers(exercise, call(exercise, offsets, count_BE, on=given),
                         "E + 1 whole numbers")  # fmt: skip
        load_E = count_BE.sum(0)
        ends_E = load_E.cumsum(0)
        right = F.pad(ends_E, (1, 0))
        mistakes: Mistakes = [
            ("these are the ends; expert 0 begins at row 0", ends_E),
            ("the zero belongs in front: expert 0 begins there", F.pad(ends_E, (0, 1))),
            ("one number is missing: where the last expert's rows end", right[:-1]),
            ("these are the loads; where an expert begins is the sum of those before it", load_E),
            ("these are the loads; where an expert begins is the sum of those before it",
             F.pad(load_E, (1, 0))),
            ("this counts the first block only", F.pad(count_BE[0].cumsum(0), (1, 0))),
            ("this adds up experts; add up the blocks first, then run over the experts",
             F.pad(count_BE.sum(1).cumsum(0), (1, 0))),
            ("the running sum goes over the experts; here it went over the blocks",
             F.pad(count_BE.cumsum(0).sum(0), (1, 0))),
            ("offsets are where rows begin, not the last row of the one before", right - 1),
        ]  # fmt: skip
        otherwise = "not the running sum of the loads, from 0 to the number of pairs"
        expect(exercise, given, yours, right, mistakes, otherwise)

    run(torch.tensor([[1, 2, 1], [1, 1, 2], [1, 1, 0]]))  # loads 3, 4, 3
    run(torch.tensor([[0, 5, 0, 2]]))
    run(torch.tensor([[0, 0, 3], [0, 0, 1], [2, 0, 2], [0, 0, 0]]))
    run(torch.tensor([[0, 0]]))
    passed(exercise, "E + 1 numbers: 0, where each next one begins, and the end.")


# --- the stable permutation ----------------------------------------------------------------------


def check_stable_rows(stable_rows: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the row of each pair in expert order: (expert_N, offsets_E1) -> row_N.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "stable_rows"

    def run(expert_N: Tensor, E: int) -> None:
        offsets_E1 = _offsets(expert_N, E)
        given = f"experts {expert_N.tolist()}, offsets {offsets_E1.tolist()}"
        yours = _numbers(exercise, call(exercise, stable_rows, expert_N, offsets_E1, on=given),
                         "a whole number for each pair")  # fmt: skip
        right = _rows(expert_N)
        order = torch.empty_like(right)
        order[right] = torch.arange(len(right))
        rank = right - offsets_E1[expert_N]
        load = offsets_E1.diff()
        mistakes: Mistakes = [
            ("this is the pair in each row; asked for is the row of each pair, the inverse", order),
            ("this is the place among the expert's own rows; its offset has to be added", rank),
            ("one too many: the first pair of an expert lands at its offset", right + 1),
            ("pairs of one expert come in reverse: not stable",
             offsets_E1[expert_N] + load[expert_N] - 1 - rank),
            ("each pair starts at its expert's end, not at its beginning",
             offsets_E1[expert_N + 1] + rank),
            ("all pairs of an expert land in one row", offsets_E1[expert_N]),
        ]  # fmt: skip
        if yours.shape == right.shape and not torch.equal(yours, right):
            own = [yours[expert_N == e].sort().values for e in range(E)]
            home = [torch.arange(a, b) for a, b in pairwise(offsets_E1.tolist())]
            if not any(torch.equal(yours, wrong) for _, wrong in mistakes) and all(
                map(torch.equal, own, home)
            ):
                raise CheckFailed(
                    f"{exercise}: every pair is in its expert's block, but pairs of one expert "
                    f"changed their order: not stable\n  given    {given}"
                )
        otherwise = "not a row of its own for each pair, in expert order"
        expect(exercise, given, yours, right, mistakes, otherwise)

    run(torch.tensor([1, 0, 2, 1, 1, 2, 0, 2, 1, 0, 2, 1]), 3)
    for seed, (N, E) in enumerate(((9, 4), (40, 5), (16, 1), (30, 8))):
        run(_chosen(seed, N, E), E)
    passed(exercise, "the offset, and the number of earlier pairs of the same expert.")


# --- the tile schedule ---------------------------------------------------------------------------


def check_tile_schedule(tile_schedule: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check each tile's expert and first row: (offsets_E1, height) -> (expert_M, row_M).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "tile_schedule"

    def cut(
        offsets: list[int], BM: int, tiles: Callable[[int], int], place: Callable[[int, int], int]
    ) -> tuple[Tensor, Tensor]:
        pairs = [
            (e, place(start, i))
            for e, (start, end) in enumerate(pairwise(offsets))
            for i in range(tiles(end - start))
        ]
        expert, row = zip(*pairs, strict=True) if pairs else ((), ())
        return torch.tensor(expert).long(), torch.tensor(row).long()

    def run(offsets: list[int], BM: int) -> None:
        given = f"offsets {offsets}, tiles of {BM} rows"
        yours = call(exercise, tile_schedule, torch.tensor(offsets), BM, on=given)
        if not isinstance(yours, tuple) or len(yours) != 2:
            raise CheckFailed(f"{exercise}: return two tensors, each tile's expert and first row")
        words = "two tensors of whole numbers, each tile's expert and first row"
        yours = tuple(_numbers(exercise, part, words) for part in yours)
        up = lambda n: -(-n // BM)  # noqa: E731
        right = cut(offsets, BM, up, lambda start, i: start + i * BM)
        whole = torch.arange(0, offsets[-1], BM)
        owner = torch.searchsorted(torch.tensor(offsets[1:]), whole, right=True)
        mistakes: Mistakes = [
            ("an expert's last rows need a tile too, even if they do not fill it",
             cut(offsets, BM, lambda n: n // BM, lambda start, i: start + i * BM)),
            ("an expert without rows needs no tile",
             cut(offsets, BM, lambda n: max(1, up(n)), lambda start, i: start + i * BM)),
            ("an expert whose rows fill its tiles needs no further one",
             cut(offsets, BM, lambda n: n // BM + 1, lambda start, i: start + i * BM)),
            ("a tile has one expert's weights, so each expert's tiles start at its own offset",
             (owner, whole)),
            ("rows count from the first of all; these start anew with each expert",
             cut(offsets, BM, up, lambda start, i: i * BM)),
            ("these count tiles, not rows",
             cut(offsets, BM, up, lambda start, i: start + i)),
            ("the two are exchanged: first the experts, then the rows", right[::-1]),
        ]  # fmt: skip
        otherwise = "not each expert's rows, cut into tiles from its offset on"
        expect(exercise, given, yours, right, mistakes, otherwise)

    run([0, 3, 8, 12], 2)
    run([0, 3, 3, 8], 4)
    run([0, 0, 16, 16, 17, 17], 8)
    run([0, 5], 16)
    run([0, 0, 0], 4)
    passed(exercise, "rounded up for each expert, from its own offset; none for who has no rows.")


# --- the way back --------------------------------------------------------------------------------


def check_sum_by_token(
    sum_by_token: Callable[[Tensor, Tensor, Tensor, int, int], Tensor],
) -> None:
    """Check the combine: (y_RD, gate_R, row_N, per_token, kept) -> out_TD, rows past kept unread.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "sum_by_token"

    def run(T: int, K: int, E: int, dropped: int) -> None:
        N, expert_N = T * K, _chosen(T, T * K, E)
        if dropped:  # the last pairs of the batch: sorted behind all others
            expert_N[-dropped:] = E
        row_N, kept = _rows(expert_N), N - dropped
        y_RD, gate_R = randn(K, N, 4), randn(E, N).sigmoid()
        gate_R[kept:] = 0.0
        clean_RD = y_RD.clone()
        clean_RD[kept:] = 0.0
        y_RD[kept:] = torch.nan
        given = f"{T} tokens, K = {K}, {kept} of {N} rows computed" + (
            ", NaN in the others" if dropped else ""
        )
        yours = call(exercise, sum_by_token, y_RD, gate_R, row_N, K, kept, on=given)
        if not isinstance(yours, Tensor) or yours.shape != (T, 4):
            got = tuple(yours.shape) if isinstance(yours, Tensor) else repr(yours)
            raise CheckFailed(f"{exercise}: return one row for each token, {(T, 4)}, not {got}")
        if dropped and yours.isnan().any():
            raise CheckFailed(
                f"{exercise}: NaN came in from rows that nobody computed; their gate is 0, but "
                f"0 × NaN is NaN: take the rows away, not only their weight\n  given    {given}"
            )
        order_R = torch.empty_like(row_N)
        order_R[row_N] = torch.arange(N)

        def add(rows_ND: Tensor) -> Tensor:
            return rows_ND.view(T, K, 4).sum(1)

        weighed_RD = clean_RD * gate_R[:, None]
        right = add(weighed_RD[row_N])
        mistakes: Mistakes = [
            ("the gates are missing", add(clean_RD[row_N])),
            ("rows lie in expert order; a token finds its own through row_N", add(weighed_RD)),
            ("row_N was taken for its inverse: it says for each pair where its row is",
             add(weighed_RD[order_R])),
            ("rows and gates are both in expert order; weigh before you move, or move both",
             add(clean_RD[row_N] * gate_R[:, None])),
            ("these are means; a token's answers are added", right / K),
            ("the pairs of one token lie side by side: (T, K), not (K, T)",
             weighed_RD[row_N].view(K, T, 4).sum(0)),
            ("each token has K answers; this keeps the last that came",
             weighed_RD[row_N].view(T, K, 4)[:, -1]),
        ]  # fmt: skip
        otherwise = "not the sum of each token's rows, each times its gate"
        expect(exercise, given, yours, right, mistakes, otherwise)

    run(3, 2, 2, 0)
    run(7, 3, 4, 0)
    run(6, 2, 3, 5)
    run(5, 1, 4, 2)
    passed(exercise, "each token fetches its own rows, in the order of its choices.")


# --- the gradient of a slice ---------------------------------------------------------------------


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

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "expert_blocks"

    def run(E: int, sizes: list[int], D: int, width: int) -> None:
        given = f"{E} experts with {sizes if E < 9 else sizes[0]} rows each"
        offsets_E1 = F.pad(torch.tensor(sizes).cumsum(0), (1, 0))
        R = int(offsets_E1[-1])
        shapes = (R, D), (E, width, D), (E, width, D), (E, D, width)
        leaves = [(randn(i, *shape) / 4).requires_grad_() for i, shape in enumerate(shapes)]
        yours = call(exercise, expert_blocks, *leaves, offsets_E1, on=given)
        x, w1, w3, w2 = leaves
        block_R = torch.arange(E).repeat_interleave(torch.tensor(sizes))

        def rows(act: Any, a: Tensor, b: Tensor) -> Tensor:
            up1, up3 = (torch.einsum("rd,rfd->rf", x, w[block_R]) for w in (a, b))
            return torch.einsum("rf,rdf->rd", act(up1) * up3, w2[block_R])

        right = rows(F.silu, w1, w3)
        if not isinstance(yours, Tensor) or yours.shape != right.shape:
            raise CheckFailed(f"{exercise}: return one row for each row of x, {tuple(right.shape)}")
        mistakes: Mistakes = [
            ("silu belongs to w1's projection, not to w3's", rows(F.silu, w3, w1).detach()),
            ("silu is missing", rows(lambda up: up, w1, w3).detach()),
            ("expert 0's weights were used for every block",
             _expert(x, w1[0], w3[0], w2[0]).detach()),
        ]  # fmt: skip
        otherwise = "not each block of rows through its own expert"
        expect(exercise, given, yours.detach(), right.detach(), mistakes, otherwise)
        if not yours.requires_grad:
            raise CheckFailed(f"{exercise}: no gradient flows back; was something detached?")
        grad = randn(9, *right.shape)
        with _Written() as watch:
            got = torch.autograd.grad(yours, leaves, grad, retain_graph=True, allow_unused=True)
        if any(g is None for g in got):
            raise CheckFailed(f"{exercise}: no gradient reaches some of the weights")
        want = torch.autograd.grad(right, leaves, grad)
        if not all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(got, want, strict=True)
        ):
            raise CheckFailed(f"{exercise}: the output is right, a gradient is not")
        times = watch.bytes / sum(w.nbytes for w in leaves[1:])
        if E >= 32 and times > 10:
            raise CheckFailed(
                f"{exercise}: right, but the backward pass writes {times:.0f} times the weights' "
                f"bytes: a slice's gradient is as large as the whole stack, and there are {E} of "
                "them; take the stack apart once, before the loop"
            )

    run(3, [2, 0, 3], 4, 6)
    run(48, [2] * 48, 16, 24)
    passed(exercise, "every block by its own expert, and every gradient written once.")


def _expert(x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)
