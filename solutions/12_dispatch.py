# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 12: Where do the tokens go, in silicon?
#
# Seven puzzles for the chapter [Where do the tokens go, in
# silicon?](../notebooks/12_dispatch.ipynb), about two hours together, no GPU. Together the first
# five are a dispatcher, from the router's answer to the tokens' sums; the last two are Triton
# kernels, which its interpreter runs on the CPU. (Where Triton is not installed, their checks say
# so in one sentence and check nothing.)
#
# Think of the five as a GPU would have them: many small programs at once, none of which may wait
# for another, so **no two of them write to the same place**. You may write yours in any way that
# gives the right numbers. The first four have pictures of what is given and what is wanted, the
# fifth of what is given, on the same twelve pairs. Every exercise ends with a check: it runs your
# function, first on numbers you can do by hand, and if the result is off, it says which idea would
# lead there.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Count, in blocks | ●●○○○ | ●●●●○ | 10 |
# | 2 | Where does each expert begin? | ●○○○○ | ●●●●● | 10 |
# | 3 | A row for each pair | ●●●○○ | ●●●●● | 20 |
# | 4 | Cut into tiles | ●●●○○ | ●●●●● | 20 |
# | 5 | The way back | ●●●○○ | ●●●●● | 15 |
# | 6 | A kernel with a mask | ●●●●○ | ●●●●○ | 25 |
# | 7 | A kernel that fetches | ●●●●○ | ●●●○○ | 20 |

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"  # kernels then run on the CPU; set before Triton comes in

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite import Experts, TopKRouter
from moe_lite.course import checks, viz
from moe_lite.fast import BACKENDS

try:
    import triton.language as tl
except ImportError:  # then the two kernels are only read

    class tl:
        constexpr = int


torch.set_printoptions(precision=3, sci_mode=False)
expert_N = torch.tensor([1, 0, 2, 1, 1, 2, 0, 2, 1, 0, 2, 1])  # six tokens, two pairs each
chosen = expert_N.tolist()

# %% [markdown]
# ## 1. Count, in blocks
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# How many pairs chose each expert? One program that counts all would take long; many that count
# into the same $E$ cells would have to wait for each other. So each program takes one **block** of
# neighbouring pairs and counts into *a row of its own*. The picture: twelve pairs, blocks of five;
# the last block has only two.

# %%
viz.strips({"pair's expert": (chosen, chosen)}, cuts=(5, 10))

# %%
wanted = torch.tensor([[1, 3, 1], [2, 1, 2], [0, 1, 1]])
viz.strips({f"block {b}": (row, [0, 1, 2]) for b, row in enumerate(wanted.tolist())})

# %% [markdown]
# <details>
# <summary>Hint 1</summary>
#
# `expert_N.split(block)` gives the blocks, the last one as short as it is.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `bincount` leaves out the experts behind the last one that it met, unless you tell it the number
# with `minlength`.
#
# </details>


# %%
def block_counts(expert_N: Tensor, num_experts: int, block: int) -> Tensor:
    """Count each block's pairs by expert.

    Args:    expert_N: the expert of each pair. block: pairs in a block; the last may have fewer.
    Returns: count_BE, int64, a row for each block.
    """
    ### BEGIN SOLUTION
    return torch.stack([part.bincount(minlength=num_experts) for part in expert_N.split(block)])
    ### END SOLUTION


# %%
checks.check_block_counts(block_counts)

# %% [markdown]
# ## 2. Where does each expert begin?
#
# *Difficulty ●○○○○ · importance ●●●●● · 10 minutes*
#
# The rows will lie in expert order: first all of expert 0's, then expert 1's. From the counts of
# the blocks, say where each expert's rows begin, and where the last one's end. Above: the counts,
# added up. Below: the rows, with the offsets as upright lines. There are $E + 1$ of them, the
# first and the last included.

# %%
load = wanted.sum(0).tolist()
by_expert = sorted(chosen)
viz.strips(
    {"load": (load, [0, 1, 2]), "row": (range(12), by_expert), "its expert": (by_expert,) * 2},
    cuts=(0, 3, 8, 12),
)

# %% [markdown]
# <details>
# <summary>Hint 1</summary>
#
# A running sum over the experts gives where each one *ends*.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Where one ends, the next begins; and expert 0 begins at 0. `F.pad(x, (1, 0))` puts a zero in
# front.
#
# </details>


# %%
def offsets(count_BE: Tensor) -> Tensor:
    """Say where each expert's rows begin, and the end.

    Args:    count_BE: pairs of each block by expert.
    Returns: offsets_E1, E + 1 whole numbers from 0 to the number of pairs.
    """
    ### BEGIN SOLUTION
    return F.pad(count_BE.sum(0).cumsum(0), (1, 0))
    ### END SOLUTION


# %%
checks.check_offsets(offsets)

# %% [markdown]
# `searchsorted(sorted_experts, arange(E + 1))` gives the same from a sorted list; the library does
# that. On which *side* of equal entries it stops is the classic slip there: `right=True` would
# give the ends.
#
# ## 3. A row for each pair
#
# *Difficulty ●●●○○ · importance ●●●●● · 20 minutes*
#
# Which row does each pair go to? Its expert's offset, plus the number of *earlier* pairs that chose
# the same expert. Then pairs of one expert keep their order; that is what **stable** means, and
# why two runs give the same bits. The chapter sorted the pairs and inverted the order. That is
# right here too; but try to do without a sort, by counting alone.

# %%
row_N = [3, 0, 8, 4, 5, 9, 1, 10, 6, 2, 11, 7]
viz.strips({"pair": (range(12), chosen), "its row": (row_N, chosen)})

# %%
pair_of = sorted(range(12), key=row_N.__getitem__)
viz.strips({"row": (range(12), by_expert), "its pair": (pair_of, by_expert)}, cuts=(3, 8))

# %% [markdown]
# <details>
# <summary>Hint 1</summary>
#
# The running sum of `F.one_hot(expert_N)` down the pairs says, in each pair's row, how many pairs
# each expert has had so far, the pair itself included.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Of that row you need one number, the pair's own expert's: multiply by the one-hot tensor again and
# add along the row, or `gather`. (By a sort: `expert_N.argsort(stable=True)` gives the lower
# picture, the pair of each row. You are asked for the upper one, its inverse.)
#
# </details>


# %%
def stable_rows(expert_N: Tensor, offsets_E1: Tensor) -> Tensor:
    """Give each pair's row in expert order, pairs of one expert in their old order.

    Returns: row_N, int64.
    """
    ### BEGIN SOLUTION
    one_NE = F.one_hot(expert_N, len(offsets_E1) - 1)
    earlier_N = (one_NE.cumsum(0) * one_NE).sum(1) - 1
    return offsets_E1[expert_N] + earlier_N
    ### END SOLUTION


# %%
checks.check_stable_rows(stable_rows)

# %% [markdown]
# With the counts of exercise 1 each *program* can do this for its own block: the offset, plus the
# counts of the earlier blocks, plus the earlier pairs within the block. Three sums, and again
# nobody waits. That is how a GPU sorts by a small key.

# %%
count_BE = block_counts(expert_N, 3, 5)
starts_BE = offsets(count_BE)[:-1] + count_BE.cumsum(0) - count_BE
print("where each block's pairs begin, by expert:", starts_BE.tolist())

# %% [markdown]
# ## 4. Cut into tiles
#
# *Difficulty ●●●○○ · importance ●●●●● · 20 minutes*
#
# A processor multiplies a **tile**: up to `height` rows of one expert. List the tiles, expert after
# expert: each one's expert and its first row. The chapter did it in a loop over the experts, which
# waits for the offsets to arrive on the CPU; a GPU makes all entries at once. Try it without a
# loop. Tiles of two rows here; hatched is what a tile computes for nothing.

# %%
slots = [0, 0, 0, -1, 1, 1, 1, 1, 1, -1, 2, 2, 2, 2]
rows = [0, 1, 2, "", 3, 4, 5, 6, 7, "", 8, 9, 10, 11]
viz.strips({"row": (rows, slots)}, cuts=range(0, 15, 2))

# %%
tile_expert, tile_row = [0, 0, 1, 1, 1, 2, 2], [0, 2, 3, 5, 7, 8, 10]
viz.strips({"tile's expert": (tile_expert,) * 2, "tile's first row": (tile_row, tile_expert)})

# %% [markdown]
# <details>
# <summary>Hint 1</summary>
#
# How many tiles does an expert of $n$ rows need? Rounded *up*; and none if $n = 0$. In whole
# numbers: `(n + height - 1) // height`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `torch.arange(E).repeat_interleave(tiles_E)` names each tile's expert. Which of the expert's tiles
# is it? Its number, less the number of tiles of all experts before.
#
# </details>


# %%
def tile_schedule(offsets_E1: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """List each tile's expert and first row.

    Returns: (expert_M, row_M), int64, in the order of the rows.
    """
    ### BEGIN SOLUTION
    tiles_E = (offsets_E1.diff() + height - 1) // height
    expert_M = torch.arange(len(tiles_E)).repeat_interleave(tiles_E)
    nth_M = torch.arange(len(expert_M)) - (tiles_E.cumsum(0) - tiles_E)[expert_M]
    return expert_M, offsets_E1[expert_M] + nth_M * height
    ### END SOLUTION


# %%
checks.check_tile_schedule(tile_schedule)

# %% [markdown]
# How much is computed for nothing depends on the height, and on the rows that an expert has:

# %%
scores_TE = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
many_E1 = offsets(block_counts(scores_TE.topk(2).indices.flatten(), 64, 512))
for height in (16, 32, 64, 128, 256):
    tiles = len(tile_schedule(many_E1, height)[0])
    print(f"tiles of {height:3}: {tiles:4}, {8192 / (tiles * height):4.0%} of their rows are used")

# %% [markdown]
# ## 5. The way back
#
# *Difficulty ●●●○○ · importance ●●●●● · 15 minutes*
#
# Each token has $K$ answers, in $K$ different rows, each with a gate. Add them up: one program per
# token, which *fetches* its rows (pair $n$'s row is `row_N[n]`, and the pairs of token $t$ are
# $tK, \dots, tK + K - 1$).
#
# And there is a trap in it, from real code. Pairs that were dropped are sorted behind all others,
# into rows from `kept` on, with a gate of 0. **Nobody computed those rows.** They hold what lay in
# that memory before: often zeros, sometimes NaN.

# %%
labels = [f"y{r}" if r < 10 else "?" for r in range(12)]
fates = [*by_expert[:10], -1, -1]
viz.strips({"row": (range(12), fates), "what it holds": (labels, fates)}, cuts=(3, 8, 10))

# %% [markdown]
# <details>
# <summary>Hint 1</summary>
#
# `y_RD[row_N]` lists the answers pair by pair. With `.view(T, K, D)` a token's answers lie along
# one dimension.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A weight of 0 does not help: $0 \times \mathrm{NaN}$ is NaN. Replace the rows themselves, for
# instance with `masked_fill` where the row's number is at least `kept`.
#
# </details>


# %%
def sum_by_token(y_RD: Tensor, gate_R: Tensor, row_N: Tensor, per_token: int, kept: int) -> Tensor:
    """Add up each token's answers, each times its gate.

    Args:    y_RD, gate_R: answers and gates, in expert order; rows from kept on hold anything.
             row_N: the row of each pair. per_token: K.
    Returns: out_TD.
    """
    ### BEGIN SOLUTION
    unused_R = torch.arange(len(y_RD)) >= kept
    y_RD = y_RD.masked_fill(unused_R[:, None], 0.0) * gate_R[:, None]
    return y_RD[row_N].view(-1, per_token, y_RD.shape[1]).sum(1)
    ### END SOLUTION


# %%
checks.check_sum_by_token(sum_by_token)

# %% [markdown]
# Together they are a dispatcher. Against the library, on random tokens:

# %%
router, experts, x_TD = TopKRouter(8, 4, 2), Experts(4, 8, 16), torch.randn(20, 8)
routing = router(x_TD)
offsets_E1 = offsets(block_counts(routing.expert_N, 4, 16))
rows_N = stable_rows(routing.expert_N, offsets_E1)
pair_R = rows_N.argsort()
blocks = x_TD[routing.token_N[pair_R]].split(offsets_E1.diff().tolist())
y_RD = torch.cat([run(rows) for run, rows in zip(experts.each(), blocks, strict=True)])
out_TD = sum_by_token(y_RD, routing.gate_N[pair_R], rows_N, 2, len(rows_N))
torch.testing.assert_close(out_TD, BACKENDS["loop"](x_TD, experts, routing))
print("your dispatcher gives what the library gives")

# %% [markdown]
# ## 6. A kernel with a mask
#
# *Difficulty ●●●●○ · importance ●●●●○ · 25 minutes*
#
# The grouped product of the chapter's section 6, from the inside: you are one program and compute
# `BM` × `BN` cells of $y = x w^T$ for one expert. The check launches all programs, on sizes that
# are no multiple of the tile, and the memory around every tensor is NaN. Write the body of
# the kernel
# only; the check calls Triton. (`tl.dot` wants tiles of 16 on a GPU; in the interpreter, and with
# `tl.sum(X[:, None, :] * W[None, :, :], 2)` anywhere, 4 will do.)
#
# <details>
# <summary>Hint 1</summary>
#
# `x` is the address of $x$'s first cell, and row $r$ begins `r * D` further on. Expert $e$'s row
# $c$ of $w$ begins at `(e * M + c) * D`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Three masks: rows before `offsets[e + 1]`, columns of $y$ before $M$, and along the sum, $i < D$.
# A load takes a mask and what to read where it is off: `tl.load(address, mask, 0.0)`.
#
# </details>


# %%
def masked_product(
    x, w, y, offsets, tile_expert, tile_row, D, M,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
) -> None:  # fmt: skip
    """Compute my tile of y = x w^T: program 0 is the tile's number, program 1 the columns' block.

    Args:    x: (R, D). w: (E, M, D). y: (R, M). offsets: (E + 1). tile_expert, tile_row: each
             tile's expert and first row. BM, BN, BK: rows, columns and the pieces of D in a tile.
    """
    ### BEGIN SOLUTION
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))
    ### END SOLUTION


# %%
checks.check_masked_product(masked_product)

# %% [markdown]
# ## 7. A kernel that fetches
#
# *Difficulty ●●●●○ · importance ●●●○○ · 20 minutes*
#
# Exercise 5 once more, fused: program $t$ is a token, and fetches its $K$ rows of $y$ where they
# lie, weighs each with its gate on the way, and writes the sum once. No sorted copy is made,
# and nobody else writes there. Rows from `kept` on were never computed, and hold NaN.
#
# <details>
# <summary>Hint 1</summary>
#
# Pair $n = tK + k$ lies in row `row[n]`, and `gate` is in the order of the rows.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A mask that knows both, the row and the width: `d < tl.where(r < kept, D, 0)`. A gate of 0 is not
# enough.
#
# </details>


# %%
def fused_gather(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr) -> None:
    """Add up one token's K rows: program 0 is the token, program 1 the block of columns.

    Args:    y: (R, D), in expert order. gate: (R). row: the row of each pair. out: (T, D).
             kept: rows that were computed. K: rows for each token. BD: columns in a block.
    """
    ### BEGIN SOLUTION
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        acc += tl.load(gate + r) * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)
    ### END SOLUTION


# %%
checks.check_fused_gather(fused_gather)
