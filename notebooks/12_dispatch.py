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
# # Where do the tokens go, in silicon?
#
# **The papers:** Lepikhin et al. 2020, *GShard*
# ([arXiv:2006.16668](https://arxiv.org/abs/2006.16668)), where dispatch is an einsum with a one-hot
# tensor; Gale et al. 2022, *MegaBlocks* ([arXiv:2211.15841](https://arxiv.org/abs/2211.15841)),
# which made it a sort and one block-sparse product, so that nothing has to be dropped; Williams,
# Waterman and Patterson 2009, *Roofline*, for what a machine can do at best.
#
# Every chapter so far wrote `layer(x)` and left the rest to a *backend*. This one opens it. The
# question is small: tokens have chosen experts, each expert is three matrices; how do the right
# rows meet the right matrices, and how fast can that be? In this chapter you
#
# - write four ways to do it, each checked against the library, and count the work of each *before*
#   measuring any;
# - take the best of them apart: histogram, offsets, stable permutation, tiles;
# - read one GPU kernel line by line, and run it on your laptop;
# - measure your machine's two limits, and put every way on one picture with them;
# - find out where a mixture of experts is slower than the dense network it replaces, and why;
# - catch a backward pass that does $E$ times too much, and a NaN that comes and goes.
#
# **You need:** PyTorch and chapter 00 or 10. No GPU. Triton is optional (on Linux,
# `pip install -e ".[triton]"`): without it section 6 runs the same program in PyTorch.
# **Time:** an hour and a half to read and try; the cells run in under a minute on two CPU cores.

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"  # a kernel then runs on the CPU; set before Triton comes in

import inspect
import json
import time
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_lite import Experts, MoELayer, Routing, TopKRouter
from moe_lite.course import ledger, viz, widgets
from moe_lite.dispatch import plan
from moe_lite.fast import BACKENDS, linear

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Six tokens
#
# Six tokens, three experts, two choices each. Small enough to hold every number in your head. From
# the router's answer we need three lists of twelve, one entry for each (token, expert) **pair**:
# its token, its expert, its gate.

# %%
chosen_TK = torch.tensor([[1, 0], [2, 1], [1, 2], [0, 2], [1, 0], [2, 1]])
gate_TK = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.5, 0.5], [0.8, 0.2], [0.9, 0.1], [0.6, 0.4]])
scores_TE = torch.zeros(6, 3)
six = Routing.from_choices(scores_TE, scores_TE.softmax(-1), chosen_TK, gate_TK)
D = 4
small, x6_TD = Experts(3, D, 8), torch.randn(6, D)
tokens, chosen = six.token_N.tolist(), six.expert_N.tolist()
viz.strips({"token": (tokens, chosen), "expert": (chosen, chosen)}, cuts=range(2, 12, 2))

# %% [markdown]
# Between two black lines are the two pairs of one token. The colours are the experts, and they are
# scattered. That is the whole difficulty of this chapter in one picture: a matrix product wants
# *its rows side by side*, and the rows of one expert lie anywhere.
#
# ## 2. The loop
#
# The obvious way asks each expert in turn: *which pairs are yours?* It collects their tokens' rows
# (**gather**), runs the expert on them, weighs the answers and adds each to its token's place
# (**scatter**).


# %%
def by_loop(x_TD, experts, routing):
    """Ask one expert after another."""
    out_TD = torch.zeros_like(x_TD)
    for e, expert in enumerate(experts.each()):
        pair = (routing.expert_N == e).nonzero()[:, 0]
        token = routing.token_N[pair]
        answer = expert(x_TD[token]) * routing.gate_N[pair, None]
        out_TD = out_TD.index_add(0, token, answer)
    return out_TD


# %%
def same(way):
    """Hold one way to dispatch against the library's."""
    right = BACKENDS["loop"](x6_TD, small, six)
    torch.testing.assert_close(way(x6_TD, small, six), right, rtol=1e-4, atol=1e-5)
    print(f"{way.__name__}: the same as the library's loop")


same(by_loop)

# %% [markdown]
# Nobody can misread that, so the library keeps such a loop as the **oracle**: every other backend
# is tested against it, the output and every gradient. Its faults are two. Each expert is looked up,
# gathered, multiplied (three small products), added: a dozen operations *per expert*, each of
# which has to be launched. And on a GPU, `nonzero` has to tell the CPU *how many* rows it found
# before the next line can allocate them: the whole pipeline stops and waits, $E$ times per layer.
#
# ## 3. One big tensor of ones and zeros
#
# GShard ran on hardware that wants one shape, known beforehand, for everything. So every expert
# gets $C$ places, and a tensor $S$ of shape $(T, E, C)$ says who sits where: $S_{tec} = 1$ if token
# $t$ has place $c$ of expert $e$. Then there is no gather left; dispatch *is* a matrix product, and
# so is the way back:
#
# $$x_{ecd} = \sum_t S_{tec}\, x_{td}, \qquad y_{ecd} = \mathrm{FFN}_e(x_{ec}), \qquad
# \text{out}_{td} = \sum_{e,c} S_{tec}\, g_{te}\, y_{ecd}.$$
#
# Which place? The number of earlier pairs that chose the same expert (chapter 05 called it the
# *rank* in the queue). We drop nobody, so $C$ is the largest load.


# %%
def ffn(x_ECD, experts):
    """Run E experts on as many rows each, in three batched products."""
    up1, up3 = (torch.bmm(x_ECD, w.transpose(1, 2)) for w in (experts.w1, experts.w3))
    return torch.bmm(experts.activate(up1, up3), experts.w2.transpose(1, 2))


def place(routing):
    """Give each pair's place at its expert, and the number of places."""
    one_NE = F.one_hot(routing.expert_N, routing.num_experts)
    place_N = (one_NE.cumsum(0) * one_NE).sum(1) - 1
    return place_N, int(place_N.max()) + 1


# %%
def by_einsum(x_TD, experts, routing):
    """Let two einsums carry the rows there and back."""
    place_N, C = place(routing)
    seat = routing.token_N, routing.expert_N, place_N
    S_TEC = x_TD.new_zeros(len(x_TD), routing.num_experts, C).index_put(seat, torch.tensor(1.0))
    G_TEC = torch.zeros_like(S_TEC).index_put(seat, routing.gate_N)
    y_ECD = ffn(torch.einsum("tec,td->ecd", S_TEC, x_TD), experts)
    return torch.einsum("tec,ecd->td", G_TEC, y_ECD)


same(by_einsum)

# %% [markdown]
# It is beautiful, and nearly all of it is multiplication by zero. **Count it.** Each of the two
# einsums multiplies and adds once for each of $T \cdot E \cdot C \cdot D$ combinations, together
# $4\,T E C D$ operations. With even loads $E C = K T$, so that is $4 K T^2 D$: it grows with the
# *square* of the batch. The experts' own work on $K T$ rows is $6 K T D F$ (three matrices of
# $D \times F$, a multiplication and an addition for each weight and row). The ratio:
#
# $$\frac{4 K T^2 D}{6 K T D F} = \frac{2\,T}{3\,F}.$$
#
# With $F = 512$, at 768 tokens *carrying* the rows costs as much arithmetic as the experts. GShard
# therefore cuts the batch into groups, and its $T$ is the size of a group.
#
# Where gathering is possible the same places can be filled without arithmetic. That is the
# library's `padded`:


# %%
def by_padding(x_TD, experts, routing):
    """Copy rows to their places, as many places for each expert."""
    (place_N, C), (E, width) = place(routing), (routing.num_experts, x_TD.shape[1])
    slot_N = routing.expert_N * C + place_N
    x_SD = x_TD.new_zeros(E * C, width).index_copy(0, slot_N, x_TD[routing.token_N])
    y_ND = ffn(x_SD.view(E, C, width), experts).view(E * C, width)[slot_N]
    return (y_ND * routing.gate_N[:, None]).view(len(x_TD), -1, width).sum(1)


same(by_padding)

# %% [markdown]
# What remains is the padding: $E C$ rows are multiplied, $K T$ of them hold anything. For our six
# tokens $E C = 3 \cdot 5 = 15$ for 12 pairs. If one expert is among the choices of *all* tokens,
# $C = T$, and of $E\,T$ rows $(E-K)\,T$ are zeros. Chapter 05's answer was to fix $C$ and drop who
# comes late. MegaBlocks' answer: *do not pad*.
#
# ## 4. Sort
#
# If the rows of one expert should lie side by side, sort the pairs by expert. Three small steps,
# slowly; in the exercises you write each as a GPU has to, without a sort and without a loop.
#
# **Histogram.** How many pairs has each expert? **Offsets.** Where do its rows begin, if expert 0
# comes first? The running sum of the histogram, *starting with 0*: $E + 1$ numbers, so that expert
# $e$ owns the rows from `offsets[e]` up to, not including, `offsets[e+1]`, and the last number is
# the number of pairs.

# %%
load_E = six.expert_N.bincount(minlength=3)
offsets = torch.cat([torch.zeros(1, dtype=torch.long), load_E.cumsum(0)])
print("load", load_E.tolist(), " offsets", offsets.tolist())

# %% [markdown]
# **Stable permutation.** Sort by expert; *stable* means that pairs of one expert keep the order
# that they had. `order_R[r]` is the pair that lands in row $r$. For the way back we want the
# inverse, `row_N[n]`: the row to which pair $n$ went. One scatter of 0, 1, 2, … makes it (sorting
# `order_R` once more would give the same, and published dispatchers did just that, until somebody
# [looked](https://github.com/ByteDance-Seed/VeOmni/pull/888)).

# %%
order_R = six.expert_N.argsort(stable=True)
row_N = torch.empty_like(order_R).index_copy(0, order_R, torch.arange(12))
sorted_by = six.expert_N[order_R].tolist()
viz.strips({"pair": (range(12), chosen), "its row": (row_N.tolist(), chosen)})

# %%
rows = {
    "row": range(12), "its pair": order_R.tolist(), "its token": six.token_N[order_R].tolist()
}  # fmt: skip
viz.strips({name: (of, sorted_by) for name, of in rows.items()}, cuts=offsets.tolist()[1:-1])

# %% [markdown]
# Above: pairs in token order, with the row that each goes to. Below: the rows, in expert order. The
# upright lines are the offsets. Tokens ascend within each block: that is the stability, and it has
# two uses. Neighbouring rows come from neighbouring tokens, which memory likes. And the order is
# *the same in every run*, down to the last bit of every sum; a sort that is not stable may place
# equal keys differently each time, and then two runs of one program give two answers, both right up
# to rounding.
#
# Now the experts' products are products of *blocks*. A **grouped** product is one call that does
# all of them; on a GPU `F.grouped_mm(x, w, offs=...)`, below in words. (`linear` is `F.linear`,
# except where PyTorch carries a faster library for this processor than the one it would take.)


# %%
def grouped_product(x_RI, w_EOI, offsets):
    """Multiply each expert's block of rows by its own matrix."""
    blocks = x_RI.split(offsets.diff().tolist())
    return torch.cat([linear(x, w) for x, w in zip(blocks, w_EOI.unbind(), strict=True)])


# %%
def by_sorting(x_TD, experts, routing):
    """Sort, multiply block by block, gather back."""
    p = plan(routing)
    x_RD = x_TD[p.token_R]
    up1, up3 = (grouped_product(x_RD, w, p.offsets_E1) for w in (experts.w1, experts.w3))
    y_RD = grouped_product(experts.activate(up1, up3), experts.w2, p.offsets_E1)
    y_RD = y_RD * p.gate_R[:, None]
    return y_RD[p.row_N].view(len(x_TD), -1, x_TD.shape[1]).sum(1)


same(by_sorting)
assert torch.equal(plan(six).order_R, order_R) and torch.equal(plan(six).row_N, row_N)
assert plan(six).offsets_E1.tolist() == offsets.tolist()

# %% [markdown]
# No padding, no ones and zeros, nobody dropped; and `plan` gives just what we made by hand. One
# detail matters on a GPU: **no shape depends on what the router chose**. There
# are $R = K T$ rows whatever happens; only *numbers inside* `offsets` change. So the processor that
# launches the work need not wait for the device to say how many. (`.tolist()` above does wait. On a
# CPU there is nobody to wait for.)
#
# ## 5. Tiles
#
# Hardware does not multiply rows. It multiplies **tiles**: blocks of, say, 128 rows by 128 columns,
# each computed by one processor out of its own fast memory. A tile belongs to one expert, because
# it holds one expert's weights. So an expert with 130 rows needs two tiles of 128, and the second
# is nearly empty; and an expert with a single row pays for a whole tile. That is the last padding:
# about half a tile for each expert, however the rows were brought there.
#
# Which processor computes what? A list of tiles says so, the **tile schedule**: for each tile its
# expert and its first row. Cut each expert's rows from its own offset on:


# %%
def schedule(offsets, BM):
    """List each tile's expert and first row."""
    tiles = [
        (e, row)
        for e, (start, end) in enumerate(pairwise(offsets.tolist()))
        for row in range(start, end, BM)
    ]
    return torch.tensor([e for e, _ in tiles]), torch.tensor([row for _, row in tiles])


expert_M, row_M = schedule(offsets, 2)
print("tile's expert   ", expert_M.tolist())
print("tile's first row", row_M.tolist())

# %% [markdown]
# The offsets are 0, 3, 8, 12. Expert 0's three rows make tiles at rows 0 and 2; the second reaches
# over into row 3, which is *expert 1's*. It has to be told to keep off: we will meet that as a
# mask.
#
# The widget has all of it: 32 tokens with two pairs each; their rows in expert order, cut into
# tiles; and eight processors that take the tiles, wave by wave. **Before you touch it:** with
# random routing and 8 experts, which path wastes least? And when *all* tokens want the same two
# experts, which path is worst, and does the tile height matter then?

# %%
widgets.ExpertTiles(experts=8, routing="random", path="grouped", height=4)

# %% [markdown]
# **Try it.** Press *Play* once and watch a few pairs: each goes to the next free row of its expert.
# Then *one-hot* with *padded* and 16 experts: sixteen blocks for the work of two. Back to *random*,
# and *loop*: no more padding than *grouped*, but one expert at a time leaves most processors idle,
# because each expert is a launch of its own and the next one waits for it. (Under *one-hot* that
# does not hurt: two experts have work for everybody.) Then *grouped*, and raise the tile height
# from 1 to 16: large tiles use a processor well (each weight that is fetched serves 16 rows) and
# waste rows; small ones do the opposite. The useful share of the processors' time, in tiles of 4:

# %%
kinds = ("balanced", "random", "zipf", "one-hot")
print(f"{'':12}" + "".join(f"{kind:>12}" for kind in kinds))
for path in ("loop", "padded", "grouped"):
    cases = [widgets.ExpertTiles(path=path, routing=kind) for kind in kinds]
    print(f"{path:12}" + "".join(f"{case.layout.useful:12.0%}" for case in cases))

# %%
heights = (1, 2, 4, 8, 16)
print("grouped, tiles of" + "".join(f"{height:6}" for height in heights))
for kind in ("random", "one-hot"):
    cases = [widgets.ExpertTiles(routing=kind, height=height) for height in heights]
    print(f"{kind:17}" + "".join(f"{case.layout.useful:6.0%}" for case in cases))

# %% [markdown]
# So *grouped* is never behind. When all want the same two experts, *padded* is worst, and of the
# tile's height *grouped* feels nothing until there are fewer tiles than processors.

# %% [markdown]
# ## 6. One kernel, line by line
#
# A **kernel** is a program that a GPU runs many copies of at the same time. All copies run the same
# lines; the only thing that differs is their number, the **program id**. So a kernel is written
# from the inside: *I am program 17; which part of the answer is mine?* Here is the grouped product
# as one such program. Ours has two numbers, $t$ for the tile of rows and $n$ for a block of
# columns, and computes `BM` × `BN` cells of $y$. First in PyTorch; `load` and `store` are the only
# new words, and they do what the GPU's do: touch memory only where the mask says.


# %%
def load(matrix, r, c, mask):
    """Read cells, zeros where the mask is off; those are not touched."""
    cells, (r, c) = torch.zeros(mask.shape), torch.broadcast_tensors(r, c)
    cells[mask] = matrix[r[mask], c[mask]]
    return cells


def store(matrix, r, c, cells, mask):
    """Write cells where the mask is on."""
    r, c = torch.broadcast_tensors(r, c)
    matrix[r[mask], c[mask]] = cells[mask]


# %%
def program(t, n, x, w, y, offsets, tile_expert, tile_row, BM, BN, BK):
    """Compute my tile of y = x w^T, for the expert whose tile it is."""
    (_, M, D), e = w.shape, tile_expert[t]  # whose rows are mine?
    r = (tile_row[t] + torch.arange(BM))[:, None]  # these BM
    mine = r < offsets[e + 1]  # those past its last are somebody else's
    c = (n * BN + torch.arange(BN))[None, :]
    acc = torch.zeros(BM, BN)
    for k in range(0, D, BK):  # along the rows, a piece at a time
        i = (k + torch.arange(BK))[None, :]
        X = load(x, r, i, mine & (i < D))
        W = load(w[e], c.T, i, (c.T < M) & (i < D))
        acc += X @ W.T
    store(y, r, c, acc, mine & (c < M))  # each cell is written once, by one


# %% [markdown]
# Run all programs, in any order; a GPU runs them at the same time. $y$ starts as NaN, so that a
# cell that nobody wrote would show.

# %%
BM, BN, BK, M = 2, 4, 4, 10
x_RD, w_EMD = x6_TD[plan(six).token_R], torch.randn(3, M, D)
y_RM, by_RM = torch.full((12, M), torch.nan), torch.full((12, M), -1)
columns, expert_M, row_M = -(-M // BN), *schedule(offsets, BM)
for number in torch.randperm(len(expert_M) * columns).tolist():
    t, n = divmod(number, columns)
    before = y_RM.isnan()
    program(t, n, x_RD, w_EMD, y_RM, offsets, expert_M, row_M, BM, BN, BK)
    by_RM[before & ~y_RM.isnan()] = number
torch.testing.assert_close(y_RM, grouped_product(x_RD, w_EMD, offsets))

fig, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
ax.imshow(by_RM % 9, cmap="Pastel1", aspect="auto")
for r, row in enumerate(by_RM.tolist()):
    for c, number in enumerate(row):
        ax.text(c, r, number, ha="center", va="center", fontsize=8)
ax.hlines(offsets[1:-1] - 0.5, -0.5, M - 0.5, color="#1b1f24", lw=2)
ax.set(xlabel="column of y", ylabel="row of y, in expert order", title="which program wrote it")
_ = ax.set_yticks(range(12), [f"{r} (expert {e})" for r, e in enumerate(sorted_by)])  # fmt: skip

# %% [markdown]
# Every cell has one number: written once, by one program, so nobody has to wait for anybody. Black
# lines are the offsets; look at row 2, where the tile of expert 0's last row ends after one row,
# and at the last two columns, where 10 is no multiple of 4. Those are the masks at work.
#
# And now for real. Triton compiles this for a GPU; with `TRITON_INTERPRET=1` it runs the same lines
# on the CPU, one program after another. Compare it with the function above, line by line:

# %%
if triton is not None:

    @triton.jit
    def kernel(x, w, y, offsets, tile_expert, tile_row, D, M,
                BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
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
            acc = tl.dot(X, W.T, acc, input_precision="ieee")
        tl.store(y + r * M + c, acc, mine & (c < M))


# %% [markdown]
# - `tl.program_id(0)`: my number, all that tells me from the other programs.
# - `tl.load(tile_expert + t)`: a tensor is the *address* of its first entry, so this is the entry
#   number $t$. No bounds are checked; that is what masks are for.
# - `tl.arange(0, BM)`: BM numbers at once. A program thinks in blocks, and the compiler deals them
#   out to threads. `BM` is a `constexpr`, known when the kernel is compiled, because registers
#   are allocated then.
# - `mine`: rows past my expert's last are not mine. Without it I would write over the next
#   expert's.
# - `x + r * D + i`: the addresses of a whole block; `r` is a column of numbers, `i` a row, and they
#   broadcast. Masked cells are not touched, and count as 0. Likewise for $W$: with all experts'
#   matrices one below the other, `e * M + c.T` is the row.
# - `tl.dot(X, W.T, acc)`: a product of two tiles, added to `acc`. The one line of arithmetic, and
#   on a GPU the work of the tensor cores. They would round float32 to 11 significant bits first;
#   `input_precision="ieee"` forbids it, at a price in speed.
# - `acc` is float32, whatever `x` is: bfloat16 has 8 significant bits, and a term that is added to
#   a sum of more than 256 times its size vanishes.
# - `tl.store(..., mask)`: my cells, once. Nobody else writes there: no locks, no atomics.
#
# Calling it names the grid, how many programs along each number:

# %%
if triton is not None:
    tiled = schedule(offsets, 16)  # the GPU's smallest tile; in the interpreter too
    y_RM = torch.full((12, M), torch.nan)
    grid = (len(tiled[0]), triton.cdiv(M, 16))
    kernel[grid](x_RD, w_EMD, y_RM, offsets, *tiled, D, M, BM=16, BN=16, BK=16)
    torch.testing.assert_close(y_RM, grouped_product(x_RD, w_EMD, offsets))
    print(f"the kernel, {grid[0]} x {grid[1]} programs: the same as the loop over blocks")
else:
    print("Triton is not installed here; the PyTorch program above is the same, line by line.")

# %% [markdown]
# The library has five kernels, `moe_lite/fast/triton.py`, of the same build: tile, mask, loop,
# store. Each has its neighbours *fused* into it, so that what one computes the next need not fetch:
#
# - *up*: both first products and SwiGLU. Reads $x$ by token, so the sorted copy is never made.
# - *product*: ours, with the tiles dealt to as many programs as the GPU has processors, and in an
#   order in which neighbours find rows and weights in the cache.
# - *combine*: each token's sum with its gates, in one pass: section 7.
# - *down back*: the way back through SwiGLU, and the gates' gradient on the side. Computes the
#   activations again, so that nobody had to keep them.
# - *weights*: $\mathrm{d}W_e$ over one expert's rows. Each is written once; section 10 shows the
#   opposite.
#
# It is a backend like the others, and on a laptop the interpreter lets you hold it against them:

# %%
if triton is not None:
    from moe_lite.fast import triton as shipped

    fused = BACKENDS["triton"](x6_TD, small, six)
    torch.testing.assert_close(fused, by_sorting(x6_TD, small, six), rtol=1e-4, atol=1e-5)
    expert, row, count = shipped.schedule(plan(six).offsets_E1, rows=12, BM=2)
    print(f"its schedule: {int(count)} tiles, and room for {len(expert)}:", expert.tolist())

# %% [markdown]
# Its schedule has *room* for more tiles than there are: there are never more than
# $\lfloor R / \mathrm{BM} \rfloor + E$, whatever the router chose. Again no shape depends on the
# routing, and the number that does stays on the device.
#
# ## 7. The way back, twice the same
#
# A token's $K$ answers lie in $K$ different rows, and have to be added. The loop *scatters*: each
# row is added to its token's place. On a GPU thousands of rows do so at once; two that meet at one
# token take turns by an **atomic** addition, and who comes first is chance. Does it matter? Sums
# of floating point numbers depend on their order:

# %%
terms = torch.tensor([1e8, 1.0, -1e8, 1.0])
print("one order", sum(terms.tolist(), torch.tensor(0.0)).item(),
      " another", sum(terms[[0, 2, 1, 3]].tolist(), torch.tensor(0.0)).item())  # fmt: skip

# %% [markdown]
# To see it in a layer, we play chance: the rows arrive in a random order, five times, with $K = 2$
# and with $K = 4$. In a model that writes text, a last bit decides now and then which of two words
# is likelier, and from there on the texts differ; greedy decoding with transformers' MoE models did
# that on GPUs until January 2026 ([pull request
# 43362](https://github.com/huggingface/transformers/pull/43362)).
#
# The **gather** turns the question around: each *token* asks for its $K$ rows, which it finds with
# `row_N`, and adds them in the order of its choices. One writer per cell, one order.


# %%
def scatter(y_RD, token_R, T, arrival_R):
    """Add rows to their tokens as they happen to arrive."""
    return torch.zeros(T, y_RD.shape[1]).index_add(0, token_R[arrival_R], y_RD[arrival_R])


def gather(y_RD, row_N, T):
    """Let each token fetch its rows."""
    return y_RD[row_N].view(T, -1, y_RD.shape[1]).sum(1)


for K in (2, 4):
    p, y_RD = plan(TopKRouter(32, 16, K)(torch.randn(512, 32)).detach()), torch.randn(512 * K, 32)
    first, *runs = (scatter(y_RD, p.token_R, 512, torch.randperm(512 * K)) for _ in range(5))
    once, *again = (gather(y_RD, p.row_N, 512) for _ in range(5))
    for name, one, others in (("scatter", first, runs), ("gather", once, again)):
        cells = [int((run != one).sum()) for run in others]
        most = max(float((run - one).abs().max()) for run in others)
        print(f"K = {K}, {name:8} of {one.numel():,} cells {cells} differ, by {most:.0e} at most")

# %% [markdown]
# With two addends there is nothing to see, since $a + b = b + a$ to the last bit. From three on it
# matters who comes first: a third of the cells change, each in its last bits.
#
# Gathering in is "row $r$ is a copy of token `token_R[r]`"; combining is "token $t$ is the sum of
# its rows". Each is the other's transpose, so each is also the other's *backward pass*. The
# library writes both by hand, so that neither direction ever scatters. (Left to autograd, the
# backward pass of a gather is a scatter.)

# %% [markdown]
# ## 8. Predict, then measure
#
# Two numbers say what a machine can do at best: how many operations a second (its **peak**), and
# how many bytes a second come from memory (its **bandwidth**). A job that needs $A$ operations and
# $B$ bytes takes at least
#
# $$t \ge \max\left(\frac{A}{\text{peak}},\ \frac{B}{\text{bandwidth}}\right).$$
#
# That is the **roofline**. Both are measured, not read off a data sheet, by jobs that do nothing
# else: one large product (by the faster of the two libraries that PyTorch carries, MKL and oneDNN),
# one large copy. We take the least of several runs, and where the system has it the time of *this
# thread*, so that other programs count as little as possible.


# %%
clock = time.perf_counter if os.name == "nt" else time.thread_time


def least(job, repeats=3):
    """Time a job a few times and give the seconds of the best."""
    times = []
    for _ in range(repeats):
        begin = clock()
        job()
        times.append(clock() - begin)
    return min(times)


# %%
a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
long, there = torch.randn(2**24), torch.zeros(2**24)
peak = 2 * 1024**3 / min(least(lambda: a @ b, 7), least(lambda: linear(a, b), 7))
bandwidth = 2 * 4 * len(long) / least(lambda: there.copy_(long), 7)
print(f"one core here: {peak / 1e9:.0f} billion operations and {bandwidth / 1e9:.0f} billion bytes "
      f"a second, {peak / bandwidth:.1f} operations for each byte")  # fmt: skip

# %% [markdown]
# The last number is the machine's **balance**: a job that does fewer operations with each byte
# waits for memory. Remember it.
#
# Now the count, for each way, from the loads alone. Operations: rows times $6 D F$, and for the
# einsum its two carriages. Bytes, in float32: each expert's weights once; for each row what is
# written and read again on the way: $x$ in, three times $F$ in the middle, $y$ out; and the tokens
# themselves, in and out. (That is if each step goes through memory. What stays in a cache costs
# less, and the library arranges for some of it to stay.)


# %%
SORTED = ("loop", "grouped", "library")  # these compute pairs; the others, places


def count(way, load_E, T, D, F):
    """Count operations and bytes of a forward pass."""
    E, N, C = len(load_E), int(load_E.sum()), int(load_E.max())
    rows = N if way in SORTED else E * C
    used = int((load_E > 0).sum()) if way in SORTED else E
    flops, cells = 6 * rows * D * F, 3 * used * D * F + 2 * rows * (2 * D + 3 * F) + 2 * T * D
    if way == "einsum":
        flops, cells = flops + 4 * T * E * C * D, cells + 4 * T * E * C
    return flops, 4 * cells


# %%
def routed(T, E, skew=0.0):
    """Route T tokens by chance, two experts each: expert e in proportion to 1/(e+1)^skew."""
    chance_TE = -(-torch.rand(T, E).log()).log() - skew * torch.arange(1, E + 1).log()
    gate_TK, expert_TK = chance_TE.softmax(-1).topk(2)
    return Routing.from_choices(chance_TE, chance_TE.softmax(-1), expert_TK, gate_TK)


# %% [markdown]
# A fifth way is the library's own, whose secret is told below. **Write down your guess before you
# run the next cell:** 1,024 tokens, 32 experts, $K = 2$, $D = 256$, $F = 512$. Under random
# routing, how much slower is the einsum than the sorted way? And under Zipf's law, where expert
# $e$ is chosen in proportion to $1/(e+1)$, what happens to *padding*?

# %%
D, width, E, T = 256, 512, 32, 1024
experts, x_TD = Experts(E, D, width).requires_grad_(False), torch.randn(T, D)
WAYS = {"loop": by_loop, "einsum": by_einsum, "padded": by_padding, "grouped": by_sorting,
        "library": BACKENDS["auto"]}  # fmt: skip
cases = {"random": routed(T, E), "zipf": routed(T, E, skew=1.0)}
seconds = {}
for name, routing in cases.items():
    load_E = routing.load_E()
    print(f"{name}: mean load {load_E.mean():.0f}, largest {load_E.max():.0f}")
    for way, run in WAYS.items():
        flops, size = count(way, load_E, T, D, width)
        seconds[name, way] = least(lambda run=run, r=routing: run(x_TD, experts, r))
        bound, taken = max(flops / peak, size / bandwidth), seconds[name, way]
        print(f"  {way:8}{flops / 1e9:5.1f} G operations,{size / 1e6:5.0f} MB: at least "
              f"{bound * 1e3:4.0f} ms, took {taken * 1e3:4.0f} ms")  # fmt: skip

# %% [markdown]
# Who is slow was known before anything ran; the count gave it. Compare the two halves. Einsum and
# padding both pay for $E C$ rows, and the largest load $C$ explodes under Zipf. The other three do
# not care how uneven the load is, because they count *pairs*. What they take above the bound is
# what the count left out: products too small to run at peak, and copies. (Loop and padding are
# written with PyTorch's own products. The two libraries differ on the machine that printed this;
# there a part of the distance is that, and not the idea's fault.)
#
# Apart from that, there is little between loop and grouped on a CPU: one core has no idle
# processors to fill, and its loop has no device to wait for. (A GPU has both: see section 2 and
# the widget.) So what the library takes on a CPU (`fast/cpu.py`) sorts as you did, then *is a loop*
# over blocks: it carries each expert's rows through all three products while they lie in the cache,
# instead of writing all rows of one product before the next begins. And its backward pass is
# written out by hand, for the reason of section 10. (Without gradients, and with few rows for each
# expert, calls cost more than trips to memory; there it takes PyTorch's grouped product, three
# calls in all.) On a GPU fewer trips to memory are had by fusion.
#
# Now the picture. Horizontally the **intensity**, operations that are *asked for* ($6 K T D F$, no
# credit for padding) over the bytes that the sorted way has to move; vertically the rate at
# which those operations come out. The roof is the least of peak and intensity times bandwidth.
# Batches from 1 to 1,024 tokens, and beside them the dense network of equal work: width $K F$, no
# router.


# %%
def swiglu(x, w1, w3, w2):
    """Run one network: an expert, or a dense one."""
    return linear(F.silu(linear(x, w1)) * linear(x, w3), w2)


dense = Experts(16, D, 2 * width).requires_grad_(False)  # one of equal work, and 15 copies
copies = list(zip(dense.w1, dense.w3, dense.w2, strict=True))


@torch.no_grad()
def rate(way, T, E, experts):
    """Give the operations asked for, a second; each time the same loads, but other experts'."""
    x_TD, r, network = torch.randn(T, D), routed(T, E), iter(copies)
    turns = iter([replace(r, expert_N=(r.expert_N + 7 * i) % E) for i in range(9)])
    if way == "dense":
        return 12 * T * D * width / least(lambda: swiglu(x_TD, *next(network)), 9)
    return 12 * T * D * width / least(lambda: WAYS[way](x_TD, experts, next(turns)), 9)


# %%
sizes = [1, 4, 16, 64, 256, 1024]
rates = {way: [rate(way, T, E, experts) for T in sizes] for way in ("dense", *WAYS)}


# %%
def counted(T, E):
    """Count operations, the mixture's bytes and the dense network's."""
    size = 4 * (6 * D * width + 2 * T * (2 * D + 6 * width))
    return *count("grouped", routed(T, E).load_E(), T, D, width), size


counts = [counted(T, E) for T in sizes]

# %%
fig, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
x = torch.logspace(-1, 2.3, 50)
ax.plot(x, (x * bandwidth).clamp(max=peak) / 1e9, color="#1b1f24", lw=2, label="roof, measured")
marks = {"dense": "D", "library": "*", "grouped": "o", "loop": "s", "padded": "^", "einsum": "v"}
for (way, mark), color in zip(marks.items(), viz.expert_colors(6), strict=True):
    at = [flops / (flat if way == "dense" else sparse) for flops, sparse, flat in counts]
    ax.plot(at, [r / 1e9 for r in rates[way]], marker=mark, color=color, lw=1, label=way)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="operations asked for, per byte moved",
    ylabel="billion operations a second",
    title="from left to right: 1 to 1,024 tokens",
)
_ = ax.legend(frameon=False)  # fmt: skip

# %% [markdown]
# See three things. **One:** a single token is the same for all: two experts' weights are fetched,
# as many as the dense network has. From there the dense network moves to the right with every
# token, because the same weights serve them all. The mixture stays where it is: more tokens need
# more *experts*. It sets out only when all experts are in use. **Two:** where each expert has many
# rows, the sorted ways climb towards the flat roof; what is missing there is section 9.
# **Three:** padding and einsum lose by what they compute for nothing, most of all at the ends:
# with few tokens they run all experts, with many the einsum's square takes over.
#
# ## 9. Where it loses, and why
#
# "MOE uses much more memory than dense model and is substantially slower", somebody wrote of layers
# of 48 experts of width 128, eight for each token ([megablocks issue
# 166](https://github.com/databricks/megablocks/issues/166)). Why? The answer comes in parts that
# can be measured one by one. Take 64 experts, and time one *expert* on $m$ rows: with weights that
# were not used just before, and with weights that lie in the cache because the same expert ran just
# now.

# %%
E = 64
experts = Experts(E, D, width).requires_grad_(False)
each = list(zip(experts.w1, experts.w3, experts.w2, strict=True))
heights, alone, shares = [1, 2, 4, 8, 16, 32, 64, 128, 256], [], []
for m in heights:
    x_mD = torch.randn(m, D)
    alone.append(least(lambda x=x_mD: [swiglu(x, *expert) for expert in each]) / E)
    cached = least(lambda x=x_mD: [swiglu(x, *each[0]) for _ in each]) / E
    shares.append(6 * m * D * width / alone[-1] / peak)
    print(f"{m:3} rows: {alone[-1] * 1e6:5.0f} us, {shares[-1]:4.0%} of peak; "
          f"with its weights in the cache {cached * 1e6:5.0f} us")  # fmt: skip

# %% [markdown]
# Two different things are slow here. With one row most of the time goes into *fetching* three
# matrices: the same arithmetic on cached weights takes a fraction. From about eight rows on the
# larger part stays even when nothing is fetched: a product of so few rows is a bad product, far
# from the peak. That is the tile of section 5 in another form.
#
# So a layer's time should be the sum over its experts of the first column, each at its own load;
# what is left then belongs to sorting, gathering and adding up. Predicted twice, by the roofline
# and by the table, then measured, all over the dense network's time:


# %%
def by_table(load_E):
    """Add up the experts' times from the table, straight lines between its entries."""
    xs, ts, total = [0, *heights], [0.0, *alone], 0.0
    for m in load_E.tolist():
        i = min(sum(x < m for x in xs) or 1, len(xs) - 1)
        slope = (ts[i] - ts[i - 1]) / (xs[i] - xs[i - 1])
        total += 0.0 if m == 0 else ts[i] + slope * (m - xs[i])
    return total


# %%
names = ("by the roofline", "by the table", "measured: grouped", "measured: library")
lines = {name: [] for name in names}
for T in sizes:
    flops, sparse, flat = counted(T, E)
    taken = flops / rate("dense", T, E, experts)
    roofs = [max(flops / peak, size / bandwidth) for size in (sparse, flat)]
    ours = [flops / rate(way, T, E, experts) for way in ("grouped", "library")]
    tabled = by_table(routed(T, E).load_E())
    over = (roofs[0] / roofs[1], tabled / taken, ours[0] / taken, ours[1] / taken)
    for line, ratio in zip(lines.values(), over, strict=True):
        line.append(ratio)

# %%
curves = {name: (sizes, values) for name, values in lines.items()}
fig = viz.curves(curves, "tokens in the batch", "time over the dense network's")
fig.axes[0].set(xscale="log", yscale="log", yticks=[1, 2, 5, 10, 20], yticklabels=[1, 2, 5, 10, 20])
fig.axes[0].axhline(1, color="#57606A", lw=0.8)
fig

# %% [markdown]
# Both do the same arithmetic, and with some tens of tokens the dense network is ahead by far. The
# roofline has the *shape* of it, up and down again, but promises too much on the way down: it
# knows bytes, and not that a product of ten rows is a bad one. The table knows; it comes close. The
# gap above it, widest for one token, is the carrying: a sort, two gathers and a sum take some fixed
# microseconds, however few the rows. (The library's line lies lower there. For decoding, one token
# at a time, a layer of the library has a path of its own besides, without a sort.)
#
# The curve falls towards 1 as the batch grows and every expert has rows enough to be worth its
# fetch. When is that? An expert's product does $2 m$ operations with each weight, which
# has 4 bytes; by the roofline it waits for memory until $2m/4$ reaches the machine's balance:

# %%
rows = peak / bandwidth * 4 / 2
print(f"by the roofline, float32: {rows:.0f} rows per expert, {rows * E / 2:.0f} tokens")
reached = dict(zip(heights, shares, strict=True))
most = max(shares)
enough = next(m for m in heights if reached[m] >= 0.9 * most)
print(f"by the table: nine tenths of the best it gets ({most:.0%} of peak) from {enough} rows on,")
print(f"{enough * E / 2:.0f} tokens (E = 64, K = 2)")
print(
    f"989e12 operations and 4.8e12 bytes a second, bf16: {989 / 4.8 * 2 / 2:.0f} rows, by roofline"
)

# %% [markdown]
# **Take the second answer, not the first.** The roofline says from where on a product is no longer
# *bound* to wait for memory. It knows nothing of tiles and vector units, so it is a lower limit,
# and the table shows by how much: at the roofline's number of rows a product is still far from the
# best that it gets with more.
#
# The last line is an H200 by its data sheet (chapter 14): the faster the arithmetic, the more rows
# it takes to be worth a fetch, and a kernel's tiles (128 rows or more) ask for their part besides.
# So there are three reasons, and the size of the batch tells them apart:
#
# 1. **Bytes.** Small batches fetch up to $E/K$ times the weights for the same arithmetic. It is the
#    same in every implementation; only larger batches, smaller weights or fewer experts help.
# 2. **Tiles.** $K T / E$ rows per expert do not fill a tile, or a vector unit. Better kernels help
#    a little; many small experts (chapter 09) hurt.
# 3. **Carrying.** Sort, gather, combine: what is left between "by the table" and "measured".
#    Fusing helps: it is why the library's kernels read $x$ by token.
#
# And then what one does *not* see in a layer's time: at equal arithmetic the mixture has $E/K$
# times the parameters. Whether that was worth it is the rest of the course.
#
# ## 10. A backward pass that does E times too much
#
# All of that was forward. Here is a loop as most people write it first, and as transformers'
# *eager* experts have it. Forward, it is as good as ours. One line is expensive:


# %%
def by_slices(x_TD, w1, w3, w2, p):
    """Visit the experts, and take each one's weights out of the stack."""
    out_TD = torch.zeros_like(x_TD)
    ends = p.offsets_E1.tolist()
    for e in range(len(w1)):
        token = p.token_R[ends[e] : ends[e + 1]]
        hidden = F.silu(F.linear(x_TD[token], w1[e])) * F.linear(x_TD[token], w3[e])
        answer = F.linear(hidden, w2[e]) * p.gate_R[ends[e] : ends[e + 1], None]
        out_TD = out_TD.index_add(0, token, answer)
    return out_TD


# %% [markdown]
# What is the gradient of `w1[e]` *as a function of `w1`*? A tensor of the **whole stack's** shape:
# zeros, with one slice filled. Autograd makes it, for every expert, and adds the $E$ tensors up. So
# $E$ experts write $E$ times a stack of $E$ experts: zeros, and the sum again, together $2 E^2$
# times one expert's size, while $E$ times would do. It cannot be seen in the source; it can be
# counted. PyTorch lets us watch every operation, and add up the bytes that it writes:


# %%
class Written(TorchDispatchMode):
    """Add up the bytes that operations write; a view writes none."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        alias = [r.alias_info for r in func._schema.returns]
        if not any(a is not None and not a.is_write for a in alias):
            self.bytes += sum(t.nbytes for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


# %%
def backward_cost(way, E, D=64, width=128, T=256):
    """Give the seconds of a backward pass, and the bytes it writes over those of the weights."""
    torch.manual_seed(0)
    experts, x_TD, routing = Experts(E, D, width), torch.randn(T, D), routed(T, E)
    weights = [experts.w1, experts.w3, experts.w2]
    x_TD.requires_grad_()

    def backward():
        return torch.autograd.grad(loss, [x_TD, *weights], retain_graph=True)

    if way == "slices":
        loss = by_slices(x_TD, *weights, plan(routing)).square().mean()
    else:
        loss = BACKENDS[way](x_TD, experts, routing).square().mean()
    with Written() as watch:
        backward()
    return least(backward), watch.bytes / sum(w.nbytes for w in weights)


# %%
Es = [4, 8, 16, 32, 64, 128]
found = {way: [backward_cost(way, E) for E in Es] for way in ("slices", "loop", "grouped")}
print("E      " + "".join(f"{E:8}" for E in Es))
for way, costs in found.items():
    print(f"{way:8}" + "".join(f"{size:8.1f}" for _, size in costs), " bytes over the weights'")

# %%
fig = viz.curves({way: (Es, [t * 1e3 for t, _ in costs]) for way, costs in found.items()},
                 "experts, with 512 pairs in all", "ms for a backward pass")  # fmt: skip
fig.axes[0].set(xscale="log", yscale="log", xticks=Es, xticklabels=Es)
fig

# %% [markdown]
# The arithmetic is the same for every $E$, and the weights grow in proportion to $E$. Written bytes
# over the weights' should therefore fall towards a constant, and for `loop` and `grouped` it does.
# For the slices it grows *with* $E$, near $2E$, as derived: at 128 experts the backward pass writes
# some 250 times what it has to deliver. In time, once that dominates, twice the experts take about
# four times as long (the steep end of the blue line).
#
# The fix is a single word: `w1.unbind()` *once*, before the loop. The backward pass of `unbind`
# is a stack: one tensor, each slice written once. The library's `Experts.each` says so in its
# docstring:

# %%
print(inspect.getdoc(Experts.each))

# %% [markdown]
# And transformers itself, if you have it (it comes with `pip install -e ".[test]"`): the same
# count on its Mixtral experts with the eager loop. (Its default since version 5 is a grouped
# product, which has no such slices.)

# %%
try:
    from transformers import MixtralConfig as TheirConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    for E in (8, 32, 128):
        config = TheirConfig(hidden_size=64, intermediate_size=128, num_local_experts=E)
        config._experts_implementation = "eager"
        theirs, r = MixtralExperts(config), routed(256, E)
        for weight in theirs.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        loss = (
            theirs(torch.randn(256, 64), r.expert_N.view(256, 2), r.gate_N.view(256, 2))
            .square()
            .mean()
        )
        with Written() as watch:
            loss.backward()
        size = sum(w.nbytes for w in theirs.parameters())
        print(f"transformers eager, E = {E:3}: {watch.bytes / size:6.1f} times the weights' bytes")
except ImportError:
    print("transformers is not installed here.")

# %% [markdown]
# ### The same way, tuned
#
# So the library has the sorted way twice. `dispatch/grouped.py` is your `by_sorting`, written to be
# read. `fast/cpu.py` has what a layer takes on a CPU where that is faster. The two give the same
# output and the same gradients (a test holds them together over ten thousand routings), and differ
# in the order of the same steps:
#
# | step | `dispatch.grouped`, to read | `fast.cpu.blocks`, to run |
# |---|---|---|
# | sort | once | once |
# | gather | all rows, before the first product | one expert's rows, when it is their turn |
# | products | three, each over all rows | three for each expert, its rows still in the cache |
# | way back | by autograd, product by product | by hand: an expert's six products in one go |
# | combine | weigh, then gather, then sum | all three in one pass |
#
# A layer says what it would take, and why:

# %%
layer = MoELayer(TopKRouter(D, 32, 2), Experts(32, D, width))
for T in (4096, 64):
    print(layer.explain(T))
with torch.no_grad():
    print(layer.explain(1))

# %% [markdown]
# What is it worth? **Guess first:** the arithmetic is the same to the last operation. We time
# the two in *pairs*, one right after the other, so that whatever else the machine does hits both;
# and take the median of the pairs' ratios, so that one bad moment counts for nothing.


# %%
def speed_up(readable, fast, pairs=7):
    """Give how many times faster the second is: the median of paired runs, and the extremes."""
    ratios = sorted(least(readable, 1) / least(fast, 1) for _ in range(pairs))
    return ratios[pairs // 2], ratios[0], ratios[-1]


def forward_backward(way, x_TD, routing):
    """Give a job: forward and backward, all gradients."""
    leaves = [x_TD, *layer.experts.parameters()]
    return lambda: torch.autograd.grad(
        BACKENDS[way](x_TD, layer.experts, routing), leaves, torch.ones_like(x_TD)
    )


def forward(way, x_TD, routing):
    """Give a job: forward alone."""
    return torch.no_grad()(lambda: BACKENDS[way](x_TD, layer.experts, routing))


# %%
for T in (1, 64, 4096):
    x_TD, r = torch.randn(T, D, requires_grad=True), routed(T, 32)
    for what, job in (("forward", forward), ("forward + backward", forward_backward)):
        ways = job("grouped", x_TD, r), job("auto", x_TD, r)
        middle, low, high = speed_up(*ways)
        print(f"{T:5} tokens, {what:18}: {middle:5.2f} times as fast ({low:.2f} to {high:.2f})")

# %% [markdown]
# Two effects, at the two ends. With one token nearly all time is calls, and the tuned path makes
# fewer: a single token needs no sorting. With many tokens it is memory: what was just written
# is still near when the next product reads it. How much that is depends on the machine's caches,
# and here it may be little. In between, where an expert has few rows and gradients are wanted, the
# layer takes the readable path itself. All of it is a matter of *order*: nothing was computed
# less. Worth having, not worth reading first.

# %% [markdown]
# ## 11. On other machines
#
# `python -m moe_lite bench` times all of it with more care: the experts and the whole layer,
# forward and backward, five kinds of routing, beside what people would otherwise use. Its results
# are kept with the course. Here is what they say beside what *your* machine says now, forward and
# backward together, at $T = 4096$, all over the dense network's time: here one expert that gets all
# $K T = 8192$ rows, multiplied by the faster library. That has the same arithmetic and nothing to
# carry: what a dispatch would take that cost nothing *and whose products ran at the same speed*. It
# is a mark, not a floor. A path can come out below 1, where 8192 rows cut into an expert's blocks
# suit the caches better than 8192 rows at once.


# %%
def step(way, x_TD, routing, weights):
    """Give a job: forward and backward, all gradients."""
    grad, p = torch.randn(x_TD.shape), routing and plan(routing)
    x_TD.requires_grad_()

    def job():
        if way == "eager loop":
            out = by_slices(x_TD, *weights.parameters(), p)
        elif way == "dense":
            out = swiglu(x_TD, *(w[0] for w in weights.parameters()))
        elif way == "dense, F.linear":
            out = weights.each()[0](x_TD)
        else:
            out = BACKENDS[way](x_TD, weights, routing)
        torch.autograd.grad(out, [x_TD, *weights.parameters()], grad)

    return job


# %%
names = {"auto": "moe_lite auto", "grouped": "moe_lite grouped", "padded": "moe_lite padded",
         "loop": "moe_lite loop", "eager loop": "transformers eager",
         "dense, F.linear": "dense"}  # fmt: skip
yours, batch, rows = {}, torch.randn(4096, D), torch.randn(8192, D)
for E in (8, 64):
    one, routing, experts = Experts(1, D, width), routed(4096, E), Experts(E, D, width)
    given = {way: (rows, None, one) if "dense" in way else (batch, routing, experts)
             for way in ("dense", *names)}  # fmt: skip
    taken = {way: least(step(way, *args)) for way, args in given.items()}
    yours[E] = {way: taken[way] / taken["dense"] for way in names}

# %%
folder = ledger.ROOT / "experiments" / "results" / "bench"
files = sorted(folder.glob("*.json"))
stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def kept(result, shape):
    """Read a stored shape's times over the dense network's; none where it was not timed."""
    those = ("float32" if result["machine"]["device"] == "cpu" else "bfloat16", "random")
    found = {
        row["path"]: row["seconds"]["median"]
        for row in result["layers"]
        if (row["shape"], row["dtype"], row["routing"]) == (shape, *those)
        and row["what"] == "forward+backward" and "seconds" in row
    }  # fmt: skip
    plain = found.pop("dense", None)
    dense = found.pop("moe_lite dense", plain)  # by the library's own product, where it has one
    return {path: t / dense for path, t in found.items()} if dense else {}


# %%
for name, result in stored.items():
    machine, rows = result["machine"], result["layers"]
    timed, what = sum("seconds" in row for row in rows), machine.get("chip", machine["device"])
    print(f"{name}: {what}, {timed} of {len(rows)} rows timed. {result.get('note', '')}")
for shape in ("mixtral", "olmoe"):
    found = kept(stored["h100"], shape)
    said = {path: round(t, 2) for path, t in found.items()} or "not measured"
    print(f"on the H100, {shape}: {said}")

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
for ax, E in zip(panels, (8, 64), strict=True):
    there = kept(stored["cpu"], f"course-e{E}")
    theirs = {way: there[path] for way, path in names.items() if path in there}
    for shift, found, color, label in (
        (-0.2, theirs, "#7F7F7F", "stored"), (0.2, yours[E], "#0072B2", "yours, now")
    ):  # fmt: skip
        for y, way in enumerate(names):
            if way in found:
                ax.barh(y + shift, found[way], 0.38, color=color, label=label if y == 0 else None)
                ax.text(found[way], y + shift, f" {found[way]:.1f}", va="center", fontsize=8)
    ax.axvline(1, color="#1b1f24", lw=0.8)
    ax.set(title=f"{E} experts", xlabel="time over the dense network's")
    ax.set_yticks(range(len(names)), list(names))
    ax.spines[["top", "right"]].set_visible(False)
panels[0].invert_yaxis()
_ = panels[1].legend(frameon=False)

# %% [markdown]
# On the line a path takes as long as the dense network. The lowest bars are that network again, by
# plain `F.linear`: what the faster product is worth by itself. On "stored", one core of the
# processor named above, that is nearly a factor of two, and loop and padded, written with plain
# products, owe as much of their distance to it. What dispatch costs is the bar of *auto*: next to
# nothing at 8 experts, and a third of the dense network's time ("stored") at 64, where each has 128
# rows. The eager loop (stored: transformers'; yours: `by_slices`) shows section 10: harmless at 8
# experts, far too slow at 64.
#
# The rows that were not timed say why: mostly something that was not installed there. On the H100
# (one run) the kernels of section 6, at OLMoE's shape, take 1.2 times as long as the dense
# network; the same sort with torch's grouped product 1.5, transformers' grouped path 2.8.
# What is *not measured* we say nothing about. If you have a GPU: `python -m moe_lite bench --help`.
#
# ## 12. What goes wrong: a NaN that comes and goes
#
# In May 2025 somebody trained PyTorch's own Llama 4, a mixture of experts, and met losses of NaN;
# the grouped product gave *sometimes* huge values in rows where there was nothing but padding
# ([torchtitan issue 1237](https://github.com/pytorch/torchtitan/issues/1237)). Others met it in the
# second backward pass and not in the first ([PyTorch issue
# 193633](https://github.com/pytorch/pytorch/issues/193633)). Here it is in small. Two of the twelve
# pairs are dropped. As usual they are sorted behind all others, with a gate of 0, and the product
# is told to stop before them:

# %%
memory = torch.zeros(12, 4)  # what the allocator hands out; fresh from the system, it is zeros
some = six.kept(torch.tensor([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0]).bool())
w_EDD = torch.randn(3, 4, 4)


def grouped_mm(x_RD, w_EDD, offsets):
    """Multiply the blocks; like the real one, into memory as it comes."""
    last = int(offsets[-1])
    memory[:last] = grouped_product(x_RD[:last], w_EDD, offsets)
    return memory


def layer(x_TD):
    p = plan(some)
    y_RD = grouped_mm(x_TD[p.token_R], w_EDD, p.offsets_E1)
    return (y_RD * p.gate_R[:, None])[p.row_N].view(6, 2, 4).sum(1)


# %%
first = layer(x6_TD)
memory.fill_(torch.nan)  # in between the memory was somebody else's, who left something there
second = layer(x6_TD)
print("step 1, NaN in tokens", first.isnan().any(1).nonzero()[:, 0].tolist())
print("step 2, NaN in tokens", second.isnan().any(1).nonzero()[:, 0].tolist())

# %% [markdown]
# Same input, same weights. Which tokens are hit, and why did step 1 go well? And why does the gate
# not help, which is exactly 0 for them?
#
# <details>
# <summary>What is it?</summary>
#
# The tokens are those whose pair was dropped. Their rows lie behind the last offset, and **nobody
# computes them**: the product leaves there whatever was in that memory before. (That is how
# `grouped_mm` is meant, [PyTorch issue
# 154557](https://github.com/pytorch/pytorch/issues/154557); clearing the rows would cost a pass.)
# In the first step memory came fresh and was zero. Later it is recycled, and some bit patterns are
# NaN. The gate does not help, because $0 \times \mathrm{NaN} = \mathrm{NaN}$. And the same holds
# for the *gradient* of the input on the way back, which no one sees.
#
# The fix is to take the *rows* away, not their weight: `masked_fill`, or `torch.where`, or not to
# fetch them. The library's backends do, forward and backward, and the tests of its kernels fill
# every output with NaN beforehand: a cell that should have been written and was not, shows.
#
# </details>
#
# ## Exercises
#
# [`exercises/12_dispatch.ipynb`](../exercises/12_dispatch.ipynb): five puzzles with pictures,
# histogram, offsets, stable permutation, tile schedule and combine, and a backward pass to be
# fixed. The first five make a whole dispatcher. Each check tells you *what* you misunderstood.
# Solutions are in [`solutions/`](../solutions/12_dispatch.ipynb).
#
# ## In six lines
#
# 1. Dispatch is a permutation; everything else, one-hot tensors and padding, is work on zeros.
# 2. Histogram, offsets, stable sort, tiles: four small integer steps, and no shape that depends on
#    the routing.
# 3. A kernel is written from the inside: my tile, my mask, my cells, written once.
# 4. Gather on the way in, gather on the way back: one writer per cell, the same bits every time.
# 5. Count operations and bytes first. A mixture loses to dense by bytes, by small tiles and by
#    carrying; which one, the batch size says.
# 6. A slice of a stack has a gradient as large as the stack. Take the stack apart once.
#
# | in the field | in the code | |
# |---|---|---|
# | dispatch, permute | `plan(routing).token_R` | the token of each row |
# | offsets | `plan(routing).offsets_E1` | E + 1, from 0 |
# | combine, unpermute | `plan(routing).row_N` | the row of each pair |
# | grouped GEMM | `F.grouped_mm(x, w, offs=...)` | on a GPU |
# | tile schedule | `fast.triton.schedule(offsets, rows, BM)` | static size |
# | capacity buffer | `BACKENDS["padded"]` | C = the largest load |
# | oracle | `BACKENDS["loop"]` | takes float64 |
# | which backend? | `layer.explain()` | and why |
#
# **Read on:** MegaBlocks (Gale et al. 2022); ScatterMoE (Tan et al. 2024,
# [arXiv:2403.08245](https://arxiv.org/abs/2403.08245)); SonicMoE (Guo et al. 2025,
# [arXiv:2512.14080](https://arxiv.org/abs/2512.14080)), whose fusions the library's kernels follow.
# Sasha Rush's *GPU-Puzzles* and *Triton-Puzzles* are where puzzles with pictures come from. Next,
# chapter 14: the same permutation, between machines.
