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
# **Three lines of answer.** Dispatch is a permutation: sort the pairs by expert, and each expert's
# rows lie side by side. Then one program for each tile does the work, and each token fetches its
# answers back. All else, one-hot tensors and padding, is work on zeros.
#
# **The papers:** Lepikhin et al. 2020, *GShard*
# ([arXiv:2006.16668](https://arxiv.org/abs/2006.16668)), where dispatch is an einsum with a one-hot
# tensor; Gale et al. 2022, *MegaBlocks* ([arXiv:2211.15841](https://arxiv.org/abs/2211.15841)),
# which made it a sort and one block-sparse product, so that nothing has to be dropped.
#
# Most chapters wrote `layer(x)` and left the rest to a *backend*; chapter 10 wrote one loop by
# hand. This one opens the rest. You
#
# - write the loop, the padded way and the sorted way, each checked against the library;
# - take the last apart: histogram, offsets, stable permutation, tiles;
# - read one GPU kernel line by line, and run it on your laptop;
# - see why the way back gathers, and catch a NaN that comes and goes.
#
# **You need:** PyTorch and chapter 00 or 10. No GPU. Triton is optional (on Linux,
# `pip install -e ".[triton]"`): without it section 6 runs the same program in PyTorch.
# **Time:** an hour to read and try; the cells run in half a minute on two CPU cores. How fast each
# way is, and why, is chapter 13's question.

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"  # a kernel then runs on the CPU; set before Triton comes in

from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from moe_lite import Experts, Routing, TopKRouter
from moe_lite.course import drawings, viz, widgets
from moe_lite.dispatch import plan
from moe_lite.fast import BACKENDS, linear

# %%
try:
    import triton
    import triton.language as tl
except ImportError:  # then section 6's kernel is there to be read
    triton, tl = None, SimpleNamespace(constexpr=int)
jit = triton.jit if triton else lambda kernel: kernel

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %%
drawings.dispatch()

# %% [markdown]
# ## 1. Six tokens
#
# Six tokens, three experts, two choices each: small enough for the hand. The router's answer is
# three lists of twelve, one entry for each (token, expert) **pair**: its token, expert and gate.

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
# scattered. That is the whole difficulty: a matrix product wants *its rows side by side*, and the
# rows of one expert lie anywhere.
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
#
# It is beautiful, and nearly all of it is multiplication by zero. **Count it** before you write it.
# Each of the two einsums multiplies and adds once for each of $T \cdot E \cdot C \cdot D$
# combinations, together $4\,T E C D$ operations. With even loads $E C = K T$, so that is
# $4 K T^2 D$: it grows with the *square* of the batch. The experts' own work on $K T$ rows is
# $6 K T D F$ (three matrices of $D \times F$, a multiplication and an addition for each weight and
# row). The ratio:
#
# $$\frac{4 K T^2 D}{6 K T D F} = \frac{2\,T}{3\,F}.$$
#
# **Your turn.** From how many tokens on does *carrying* the rows cost as much arithmetic as the
# experts' own work? Work it out, put it in, and change $F$.

# %%
inner, guess = 512, 100  # F, and a number of tokens
print(f"carrying / computing at {guess} tokens: {2 * guess / (3 * inner):.2f}")

# %% [markdown]
# GShard therefore cuts the batch into groups, and its $T$ is the size of a group. Where gathering
# is possible the same places can be filled without arithmetic. That is the library's `padded`:


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
def by_padding(x_TD, experts, routing):
    """Copy rows to their places, as many places for each expert."""
    (place_N, C), (E, D) = place(routing), (routing.num_experts, x_TD.shape[1])
    slot_N = routing.expert_N * C + place_N
    x_SD = x_TD.new_zeros(E * C, D).index_copy(0, slot_N, x_TD[routing.token_N])
    y_ND = ffn(x_SD.view(E, C, D), experts).view(E * C, D)[slot_N]
    return (y_ND * routing.gate_N[:, None]).view(len(x_TD), -1, D).sum(1)


same(by_padding)

# %% [markdown]
# What remains is the padding: $E C$ rows are multiplied, $K T$ of them hold anything; for our six
# tokens $3 \cdot 5 = 15$ and 12. If one expert is among the choices of *all* tokens, $C = T$, and
# $(E-K)\,T$ of $E\,T$ rows are zeros. Chapter 05's answer was to fix $C$ and drop who comes late.
# MegaBlocks' answer: *do not pad*.
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
# *the same in every run*, down to the last bit of every sum.
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
# tiles; and eight processors that take the tiles, wave by wave. **Your turn.** When *all* tokens
# want the same two experts, how much of the processors' time is useful? Guess in its box. Which
# path is worst then, and does the tile height matter?

# %%
widgets.ExpertTiles(experts=8, routing="random", path="grouped", height=4)

# %% [markdown]
# Press *Play* once and watch a few pairs: each goes to the next free row of its expert. Then
# *one-hot* with *padded* and 16 experts: sixteen blocks for the work of two. (*Half empty* leaves
# the second half of the experts without a token.) Back to *random*, and
# *loop*: no more padding than *grouped*, but each expert is a launch of its own, and the next one
# waits for it. Then *grouped*, and raise the tile height from 1 to 16: large tiles use a processor
# well (each weight that is fetched serves 16 rows) and waste rows. The useful share of the
# processors' time:


# %%
kinds = ("balanced", "random", "zipf", "one-hot")
print(f"{'':12}" + "".join(f"{kind:>12}" for kind in kinds))
for path in ("loop", "padded", "grouped"):
    cases = [widgets.ExpertTiles(path=path, routing=kind) for kind in kinds]
    print(f"{path:12}" + "".join(f"{case.layout.useful:12.0%}" for case in cases))
# Your turn: which row changes most with tiles of 16 rows (height=16)? Predict, then add it above.

# %% [markdown]
# So *grouped* is never behind, and when all want the same two experts, *padded* is worst. The
# height then matters to *grouped* only at 16: its rows make four tiles, and half of the eight
# processors have none. Every number of *loop* falls to a quarter, no other row so far.
#
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


# %%
fig, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
ax.imshow(by_RM % 9, cmap="Pastel1", aspect="auto")
for r, row in enumerate(by_RM.tolist()):
    for c, number in enumerate(row):
        ax.text(c, r, number, ha="center", va="center", fontsize=8)
ax.hlines(offsets[1:-1] - 0.5, -0.5, M - 0.5, color="#1b1f24", lw=2)
ax.set(xlabel="column of y", ylabel="row of y, in expert order", title="which program wrote it")
runs = (f"row {r}: {[*dict.fromkeys(row)]}" for r, row in enumerate(by_RM.tolist()))
fig.set_label("Which programs wrote each row of y, from left to right. " + "; ".join(runs) + ".")
_ = ax.set_yticks(range(12), [f"{r} (expert {e})" for r, e in enumerate(sorted_by)])  # fmt: skip

# %% [markdown]
# Every cell has one number: written once, by one program, so nobody has to wait for anybody. Look
# at row 2, where the tile of expert 0's last row ends after one row, and at the last two columns,
# where 10 is no multiple of 4: the masks at work.
#
# And now for real. Triton compiles this for a GPU; with `TRITON_INTERPRET=1` it runs the same lines
# on the CPU, one program after another. Compare it with the function above, line by line:


# %%
@jit
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
#   out to threads. `BM` is a `constexpr`: registers are allocated when the kernel is compiled.
# - `x + r * D + i`: the addresses of a whole block; `r` is a column of numbers, `i` a row, and they
#   broadcast. For $W$, with all experts' matrices one below the other, `e * M + c.T` is the row.
# - `tl.dot(X, W.T, acc)`: a product of two tiles, on a GPU the work of the tensor cores. They would
#   round float32 to 11 significant bits first; `input_precision="ieee"` forbids it.
# - `acc` is float32, whatever `x` is: bfloat16 has 8 significant bits, and a term that is added to
#   a sum of more than 512 times its size always vanishes.
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
# The library has five kernels of the same build (`moe_lite/fast/triton.py`): tile, mask, loop,
# store. Each has its neighbours *fused* into it, so that what one computes the next need not fetch:
# *up* is both first products and SwiGLU, and reads $x$ by token, so that the sorted copy is never
# made; *product* is ours; *combine* is section 7; *down back* goes back through SwiGLU and computes
# the activations again, so that nobody had to keep them; *weights* is $\mathrm{d}W_e$ over one
# expert's rows. Exercises 6 and 7 are two small ones of yours.
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
# To see it in a layer, we play chance: the rows arrive in a random order, five times. In a model
# that writes text, a last bit decides now and then which of two words is likelier, and from there
# on the texts differ; greedy decoding with transformers' MoE models did that on GPUs until January
# 2026 ([pull request 43362](https://github.com/huggingface/transformers/pull/43362)). **Your
# turn:** with $K = 2$ and with $K = 4$, what share of the cells will change? One of the two answers
# is exact.
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


# %%
for K in (2, 4):
    p, y_RD = plan(TopKRouter(32, 16, K)(torch.randn(512, 32)).detach()), torch.randn(512 * K, 32)
    first, *runs = (scatter(y_RD, p.token_R, 512, torch.randperm(512 * K)) for _ in range(5))
    once, *again = (gather(y_RD, p.row_N, 512) for _ in range(5))
    for name, one, others in (("scatter", first, runs), ("gather", once, again)):
        cells = [int((run != one).sum()) for run in others]
        most = max(float((run - one).abs().max()) for run in others)
        print(f"K = {K}, {name:8} of {one.numel():,} cells {cells} differ, by {most:.0e} at most")

# %% [markdown]
# With two addends none, since $a + b = b + a$ to the last bit. From three on it matters who comes
# first: a third of the cells change, each in its last bits.
#
# Gathering in is "row $r$ is a copy of token `token_R[r]`"; combining is "token $t$ is the sum of
# its rows". Each is the other's transpose, so each is also the other's *backward pass*. The
# library writes both by hand, so that neither direction ever scatters. (Left to autograd, the
# backward pass of a gather is a scatter.)

# %% [markdown]
# ## 8. What goes wrong: a NaN that comes and goes
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


# %%
def layer(x_TD):
    p = plan(some)
    y_RD = grouped_mm(x_TD[p.token_R], w_EDD, p.offsets_E1)
    return (y_RD * p.gate_R[:, None])[p.row_N].view(6, 2, 4).sum(1)


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
# [`exercises/12_exercises.ipynb`](../exercises/12_exercises.ipynb): five puzzles with pictures,
# histogram, offsets, stable permutation, tile schedule and combine, which together make a whole
# dispatcher; and two Triton kernels, a masked grouped product and a fused gather. Each check tells
# you *what* you misunderstood. Solutions are in [`solutions/`](../solutions/12_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In four lines
#
# 1. Dispatch is a permutation; everything else, one-hot tensors and padding, is work on zeros.
# 2. Histogram, offsets, stable sort, tiles: four small integer steps, and no shape that depends on
#    the routing.
# 3. A kernel is written from the inside: my tile, my mask, my cells, written once.
# 4. Gather on the way in, gather on the way back: one writer per cell, the same bits every time.
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
#
# **Read on:** MegaBlocks (Gale et al. 2022); ScatterMoE (Tan et al. 2024,
# [arXiv:2403.08245](https://arxiv.org/abs/2403.08245)); SonicMoE (Guo et al. 2025,
# [arXiv:2512.14080](https://arxiv.org/abs/2512.14080)), whose fusions the library's kernels follow.
# Sasha Rush's *GPU-Puzzles* and *Triton-Puzzles* are where puzzles with pictures come from. Next,
# [chapter 13: Where does the time go?](13_where_time_goes.ipynb)
