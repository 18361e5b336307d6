"""The checks of chapter 12: where do the tokens go, in silicon?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .verdict import Check, Mistakes, randn, same


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


def check_block_counts(block_counts: Callable[[Tensor, int, int], Tensor]) -> None:
    """Check a histogram for each block of pairs: (expert_N, num_experts, block) -> count_BE."""

    def of(parts: Any, E: int) -> Tensor:
        return torch.stack([part.bincount(minlength=E) for part in parts])

    def mistakes(expert_N: Tensor, E: int, block: int) -> Mistakes:
        N, parts = len(expert_N), expert_N.split(block)
        right, whole = of(parts, E), [part for part in parts if len(part) == block]
        empty = "an expert that nobody chose has a column too"
        pieces = "chunk(n) makes n pieces; split(n) makes pieces of n, and a block has so many"
        return [
            ("the last block is shorter, and counts too", of(whole, E) if whole else right[:0]),
            ("the last block was filled up with zeros, and zero is an expert: those are no pairs",
             of(F.pad(expert_N, (0, -N % block)).split(block), E)),
            ("each program counts its block alone; the running sum comes later", right.cumsum(0)),
            ("one histogram of all pairs: many programs would write into it at once", right.sum(0)),
            ("a row for each block, a column for each expert: yours is the transpose", right.T),
            ("block b has the pairs b·block, b·block + 1, …, neighbours; these were dealt in turn",
             of([expert_N[b :: len(parts)] for b in range(len(parts))], E)),
            ("at most one is counted: += adds once where an index repeats", right.clamp(max=1)),
            (empty, right[:, : int(expert_N.max()) + 1]),
            (empty, right[:, :-1]),
            (empty, right[:, right.any(0)]),
            (pieces, of(expert_N.chunk(block), E)),
            (pieces, of(expert_N.chunk(len(parts)), E))]  # fmt: skip

    check = Check("block_counts", block_counts, lambda e_N, E, block: of(e_N.split(block), E),
                  mistakes, "not each block's number of pairs for each expert")  # fmt: skip
    cases = [(torch.tensor([1, 0, 2, 1, 1, 2, 0, 2, 1, 0]), 3, 4)]  # blocks of 4, 4 and 2
    sizes = (12, 4, 3), (13, 5, 4), (7, 3, 16), (33, 6, 8), (9, 3, 4), (5, 4, 1), (16, 4, 4)
    cases += [(_chosen(seed, N, E), E, block) for seed, (N, E, block) in enumerate(sizes)]
    for expert_N, E, block in cases:
        check.on(f"experts {expert_N.tolist()}, E = {E}, blocks of {block}", expert_N, E, block)
    check.passed("each program counts its own pairs into its own row; nobody waits.")


def check_offsets(offsets: Callable[[Tensor], Tensor]) -> None:
    """Check where each expert's rows begin, and the end: count_BE -> offsets_E1."""

    def right(count_BE: Tensor) -> Tensor:
        return F.pad(count_BE.sum(0).cumsum(0), (1, 0))

    def mistakes(count_BE: Tensor) -> Mistakes:
        load_E, value = count_BE.sum(0), right(count_BE)
        loads = "these are the loads; where an expert begins is the sum of those before it"
        return [
            ("these are the ends; expert 0 begins at row 0", load_E.cumsum(0)),
            ("the zero belongs in front: expert 0 begins there", F.pad(load_E.cumsum(0), (0, 1))),
            ("one number is missing: where the last expert's rows end", value[:-1]),
            (loads, load_E),
            (loads, F.pad(load_E, (1, 0))),
            ("this counts the first block only", F.pad(count_BE[0].cumsum(0), (1, 0))),
            ("this adds up experts; add up the blocks first, then run over the experts",
             F.pad(count_BE.sum(1).cumsum(0), (1, 0))),
            ("the running sum goes over the experts; here it went over the blocks",
             F.pad(count_BE.cumsum(0).sum(0), (1, 0))),
            ("offsets are where rows begin, not the last row of the one before", value - 1),
            ("E + 1 offsets: the end is there twice", F.pad(value, (0, 1), value=int(value[-1]))),
            ("offsets within a block; add up the blocks first", F.pad(count_BE.cumsum(1), (1, 0))),
            ("an expert without rows has an offset too", value.unique())]  # fmt: skip

    check = Check("offsets", offsets, right, mistakes,
                  "not the running sum of the loads, from 0 to the number of pairs")  # fmt: skip
    rest = [randn(s, B, E).mul(3).abs().long() for s, (B, E) in enumerate(((4, 4), (1, 7), (6, 3)))]
    for count_BE in (
        torch.tensor([[1, 2, 1], [1, 1, 2], [1, 1, 0]]),  # loads 3, 4, 3
        torch.tensor([[0, 5, 0, 2]]), torch.tensor([[0, 0, 3], [0, 0, 1], [2, 0, 2], [0, 0, 0]]),
        torch.tensor([[0, 0]]), *rest):  # fmt: skip
        check.on(f"counts {count_BE.tolist()}", count_BE)
    check.passed("E + 1 numbers: 0, where each next one begins, and the end.")


def check_stable_rows(stable_rows: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the row of each pair in expert order: (expert_N, offsets_E1) -> row_N."""

    def mistakes(expert_N: Tensor, offsets_E1: Tensor) -> Mistakes:
        right, load_E = _rows(expert_N), offsets_E1.diff()
        order, rank = right.argsort(), right - offsets_E1[expert_N]
        return [
            ("this is the pair in each row; asked for is the row of each pair, the inverse", order),
            ("this is the place among the expert's own rows; its offset has to be added", rank),
            ("one too many: the first pair of an expert lands at its offset", right + 1),
            ("pairs of one expert come in reverse: not stable",
             offsets_E1[expert_N] + load_E[expert_N] - 1 - rank),
            ("pairs start at their expert's end", offsets_E1[expert_N + 1] + rank),
            ("all pairs of an expert land in one row", offsets_E1[expert_N]),
            ("the pairs are left in the order in which they came", torch.arange(len(right))),
            ("experts come from the last to the first", (-expert_N).argsort(stable=True).argsort()),
        ]  # fmt: skip

    check = Check("stable_rows", stable_rows, lambda expert_N, _: _rows(expert_N), mistakes,
                  "not a row of its own for each pair, in expert order")  # fmt: skip
    cases = [(torch.tensor([1, 0, 2, 1, 1, 2, 0, 2, 1, 0, 2, 1]), 3)]
    cases += [(_chosen(s, N, E), E) for s, (N, E) in enumerate(((9, 4), (40, 5), (16, 1), (30, 8)))]
    for expert_N, E in cases:
        offsets_E1 = _offsets(expert_N, E)
        given = f"experts {expert_N.tolist()}, offsets {offsets_E1.tolist()}"
        check.on(given, expert_N, offsets_E1)
    for case, (expert_N, E) in zip(check.cases, cases, strict=True):
        blocks = [(case.yours[mine], case.right[mine]) for mine in (expert_N == e for e in range(E))
                  if getattr(case.yours, "shape", 0) == case.right.shape]  # fmt: skip
        if blocks and all(same(a.sort().values, b.sort().values) for a, b in blocks):
            case.otherwise = "in its expert's block each, but some changed their order: not stable"
    check.passed("the offset, and the number of earlier pairs of the same expert.")


def check_tile_schedule(tile_schedule: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check each tile's expert and first row: (offsets_E1, height) -> (expert_M, row_M)."""

    def cut(
        offsets_E1: Tensor, tiles: Callable[[int], int], place: Callable[[int, int], int]
    ) -> tuple[Tensor, Tensor]:
        pairs = [
            (e, place(start, i))
            for e, (start, end) in enumerate(pairwise(offsets_E1.tolist()))
            for i in range(tiles(end - start))
        ]
        expert, row = zip(*pairs, strict=True) if pairs else ((), ())
        return torch.tensor(expert).long(), torch.tensor(row).long()

    def right(offsets_E1: Tensor, BM: int) -> tuple[Tensor, Tensor]:
        return cut(offsets_E1, lambda n: -(-n // BM), lambda start, i: start + i * BM)

    def mistakes(offsets_E1: Tensor, BM: int) -> Mistakes:
        rows, (expert_M, row_M) = lambda a, i: a + i * BM, right(offsets_E1, BM)
        up, whole = lambda n: -(-n // BM), torch.arange(0, int(offsets_E1[-1]), BM)
        full = "an expert whose rows fill its tiles needs no further one"
        padded = "rows of one expert follow those of the one before: no row is padding here"
        return [
            ("the last rows need a tile too, even if they do not fill it",
             cut(offsets_E1, lambda n: n // BM, rows)),
            ("an expert without rows needs none", cut(offsets_E1, lambda n: max(1, up(n)), rows)),
            (full, cut(offsets_E1, lambda n: n // BM + 1, rows)),
            (full, cut(offsets_E1, lambda n: n // BM + 1 if n else 0, rows)),
            ("a tile has one expert's weights, so each expert's tiles start at its own offset",
             (torch.searchsorted(offsets_E1[1:].contiguous(), whole, right=True), whole)),
            ("rows count from the first of all; these start anew with each expert",
             cut(offsets_E1, up, lambda start, i: i * BM)),
            *(("an expert's second tile begins `height` rows after its first: number the tiles of "
               "each expert anew", (expert_M, offsets_E1[expert_M] + late_M)) for late_M in (
                   torch.zeros_like(expert_M), BM * torch.arange(len(expert_M)))),
            ("these count tiles, not rows", cut(offsets_E1, up, lambda start, i: start + i)),
            (padded, (expert_M, BM * torch.arange(len(expert_M)))),
            ("these are the tiles' last rows; asked are the first", (expert_M, row_M + BM - 1)),
            ("one tile for each expert", cut(offsets_E1, lambda n: min(1, n), rows))]  # fmt: skip

    check = Check("tile_schedule", tile_schedule, right, mistakes,
                  "not each expert's rows, cut into tiles from its offset on",
                  parts=("expert_M", "row_M"))  # fmt: skip
    for offsets, BM in (([0, 3, 8, 12], 2), ([0, 3, 3, 8], 4), ([0, 0, 16, 16, 17, 17], 8),
                        ([0, 5], 16), ([0, 0, 0], 4), ([0, 7, 9, 30], 5), ([0, 1], 1)):  # fmt: skip
        check.on(f"offsets {offsets}, tiles of {BM} rows", torch.tensor(offsets), BM)
    check.passed("rounded up for each expert, from its own offset; none for who has no rows.")


def check_sum_by_token(
    sum_by_token: Callable[[Tensor, Tensor, Tensor, int, int], Tensor],
) -> None:
    """Check the combine: (y_RD, gate_R, row_N, per_token, kept) -> out_TD; no row past kept."""

    def clean(y_RD: Tensor, kept: int) -> Tensor:
        return y_RD.where((torch.arange(len(y_RD)) < kept)[:, None], 0.0)

    def add(rows_ND: Tensor, K: int) -> Tensor:
        return rows_ND.view(-1, K, rows_ND.shape[-1]).sum(1)

    def right(y_RD: Tensor, gate_R: Tensor, row_N: Tensor, K: int, kept: int) -> Tensor:
        return add((clean(y_RD, kept) * gate_R[:, None])[row_N], K)

    def mistakes(y_RD: Tensor, gate_R: Tensor, row_N: Tensor, K: int, kept: int) -> Mistakes:
        value, clean_RD = right(y_RD, gate_R, row_N, K, kept), clean(y_RD, kept)
        weighed_RD, D = clean_RD * gate_R[:, None], y_RD.shape[1]
        hidden = (
            "a NaN that an expert did compute has to come out: take away the rows past kept, and "
            "no others"
        )
        mine_TKD = weighed_RD[row_N].view(-1, K, D)
        return [
            ("NaN came in from rows that nobody computed; their gate is 0, but 0 × NaN is NaN: "
             "take the rows away, not only their weight", add((y_RD * gate_R[:, None])[row_N], K)),
            ("rows before number kept were computed; row kept itself was not",
             add((y_RD.masked_fill((torch.arange(len(y_RD)) > kept)[:, None], 0.0)
                  * gate_R[:, None])[row_N], K)),
            (hidden, value.nan_to_num()),
            (hidden, add(weighed_RD.nan_to_num()[row_N], K)),
            ("the gates are missing", add(clean_RD[row_N], K)),
            ("rows lie in expert order; a token finds its own through row_N", add(weighed_RD, K)),
            ("row_N was taken for its inverse", add(weighed_RD[row_N.argsort()], K)),
            ("rows and gates are both in expert order; weigh before you move, or move both",
             add(clean_RD[row_N] * gate_R[:, None], K)),
            ("these are means; a token's answers are added", value / K),
            ("a token's pairs are (T, K), not (K, T)", weighed_RD[row_N].view(K, -1, D).sum(0)),
            ("each token has K answers; this keeps the last that came, as += does where an index "
             "comes twice", mine_TKD[:, -1]),
            ("each token has K answers; this keeps the first", mine_TKD[:, 0]),
            ("kept is compared with the number of a pair; it counts rows",
             add(clean((y_RD * gate_R[:, None])[row_N], kept), K)),
            ("the last row that was computed is left out", right(y_RD, gate_R, row_N, K, kept - 1)),
        ]  # fmt: skip

    check = Check("sum_by_token", sum_by_token, right, mistakes,
                  "not the sum of each token's rows, each times its gate")  # fmt: skip
    for T, K, E, dropped, poison in (
        (3, 2, 2, 0, None), (7, 3, 4, 0, None), (6, 2, 3, 5, torch.nan), (5, 1, 4, 2, torch.inf),
        (4, 4, 4, 4, torch.nan), (6, 3, 3, 4, torch.nan)):  # fmt: skip
        N, expert_N = T * K, _chosen(T, T * K, E)
        expert_N[randn(N, N).argsort()[:dropped]] = E  # sorted behind all others
        kept, y_RD, gate_R = N - dropped, randn(K, N, 4), randn(E, N).sigmoid()
        gate_R[kept:] = 0.0
        given = f"{T} tokens, K = {K}, {kept} of {N} rows computed"
        if poison is not None:
            y_RD[kept:] = poison
            given += f", {poison} in the others"
        if T == 6 and K == 3:
            y_RD[2, 1] = torch.nan
            given += ", and a NaN that was computed, in row 2"
        check.on(given, y_RD, gate_R, _rows(expert_N), K, kept)
    check.passed("each token fetches its own rows, in the order of its choices.")
