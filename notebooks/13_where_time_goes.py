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
# # Where does the time go?
#
# **Three lines of answer.** Count operations and bytes before you measure. Where a mixture loses to
# a dense network of equal work, it is by bytes, by products too small to be fast, and by carrying;
# the size of the batch says which. And a slice of a stack has a gradient as large as the stack.
#
# **The papers:** Williams, Waterman and Patterson 2009, *Roofline*, for what a machine can do at
# best; Gale et al. 2022, *MegaBlocks* ([arXiv:2211.15841](https://arxiv.org/abs/2211.15841)), for
# the products of a mixture.
#
# Chapter 12 wrote three ways to run a layer. This one asks how fast each can be. In it you
#
# - measure your machine's two limits, and put every way on one picture with them;
# - find out where a mixture of experts is slower than the dense network it replaces, and why;
# - see what one token at a time costs, and from how many rows on an expert is worth its fetch;
# - catch a backward pass that does $E$ times too much;
# - hold your numbers against stored ones, of a CPU and of one H100.
#
# **You need:** PyTorch and chapter 12. No GPU. **Time:** an hour to read and try; the cells run in
# under a minute on two CPU cores.

# %%
import inspect
import os
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_lite import Experts, MoELayer, Routing, TopKRouter
from moe_lite.course import benched, charts, drawings, viz
from moe_lite.dispatch import plan
from moe_lite.fast import BACKENDS, linear

# %%
torch.manual_seed(0)
torch.set_num_threads(1)
drawings.where_time_goes()

# %% [markdown]
# ## 1. Predict, then measure
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
# Now the count, for each way, from the loads alone. Operations: rows times $6 D F$. Bytes, in
# float32: each expert's weights once; for each row what is written and read again on the way: $x$
# in, three times $F$ in the middle, $y$ out; and the tokens themselves, in and out. (That is if
# each step goes through memory. What stays in a cache costs less.) GShard's einsum is only counted:
# chapter 12 derived that carrying the rows alone takes $4 T E C D$ operations more.


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
# A fourth way is the library's own, whose secret is told below. **Your turn:** 1,024 tokens, 32
# experts, $K = 2$, $D = 256$, $F = 512$. Under Zipf's law, where expert $e$ is chosen in proportion
# to $1/(e+1)$, how many times slower does *padding* get than under random routing? And the sorted
# ways? Put your guesses in, then run on.

# %%
guess = {"padded": 1.0, "grouped": 1.0}  # times slower under Zipf's law

# %%
D, width, E, T = 256, 512, 32, 1024
experts, x_TD = Experts(E, D, width).requires_grad_(False), torch.randn(T, D)
WAYS = {way: BACKENDS[way] for way in ("loop", "padded", "grouped")} | {"library": BACKENDS["auto"]}
cases = {"random": routed(T, E), "zipf": routed(T, E, skew=1.0)}

# %%
seconds = {}
for name, routing in cases.items():
    load_E = routing.load_E()
    print(f"{name}: mean load {load_E.mean():.0f}, largest {load_E.max():.0f}")
    for way in ("einsum", *WAYS):
        flops, size = count(way, load_E, T, D, width)
        row = f"  {way:8}{flops / 1e9:5.1f} G operations,{size / 1e6:5.0f} MB: at least "
        row += f"{max(flops / peak, size / bandwidth) * 1e3:4.0f} ms"
        if run := WAYS.get(way):
            seconds[name, way] = least(lambda run=run, r=routing: run(x_TD, experts, r))
            row += f", took {seconds[name, way] * 1e3:4.0f} ms"
        print(row)
for way, said in guess.items():
    print(f"{way}: {seconds['zipf', way] / seconds['random', way]:.1f} times; you said {said:.1f}")

# %% [markdown]
# Who is slow was known before anything ran; the count gave it. Compare the two halves. Einsum and
# padding both pay for $E C$ rows, and the largest load $C$ explodes under Zipf. The others do not
# care how uneven the load is, because they count *pairs*. What they take above the bound is what
# the count left out: products too small to run at peak, and copies. (Loop and padding are written
# with PyTorch's own products. Where its two libraries differ, a part of the distance is that, and
# not the idea's fault.)
#
# Apart from that, with many rows for each expert there is little between loop and grouped on a CPU:
# one core has no idle processors to fill, and its loop has no device to wait for. With few rows the
# loop's calls cost up to about half its time. So what the library takes here (`fast/cpu.py`) sorts,
# then *is a loop* over blocks: it carries each expert's rows through all three products while they
# lie in the cache. With few rows for each expert and no gradients, calls cost more than trips to
# memory, and it takes PyTorch's grouped product, three calls in all.
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


# %%
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
marks = {"dense": "D", "library": "*", "grouped": "o", "loop": "s", "padded": "^"}
for (way, mark), color in zip(marks.items(), viz.expert_colors(5), strict=True):
    at = [flops / (flat if way == "dense" else sparse) for flops, sparse, flat in counts]
    ax.plot(at, [r / 1e9 for r in rates[way]], marker=mark, color=color, lw=1, label=way)
ax.set(xscale="log", yscale="log", xlabel="operations asked for, per byte moved",
       ylabel="billion operations a second",
       title="from left to right: 1 to 1,024 tokens")  # fmt: skip
ax.legend(frameon=False)
charts.alive(fig)

# %% [markdown]
# See three things. **One:** with a single token all stand at the same intensity: two experts'
# weights, as many as the dense network has. From there the dense network moves to the right with
# every token, because the same weights serve them all. At first the mixture stays where it is: each
# token brings *experts* of its own. It sets out when tokens begin to share experts, and moves on
# with every token once all are in use. **Two:** where each expert has many rows, the sorted ways
# climb towards the flat roof; what is missing there is section 2. **Three:** padding loses by what
# it computes for nothing, most of all with few tokens, where it runs all experts. (If a point lies
# above the slanted roof: a copy writes as much as it reads, these jobs nearly only read, and some
# of their weights may still lie in a cache.)
#
# ## 2. Where it loses, and why
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
heights, alone, shares = [2**i for i in range(11)], [], []
for m in heights:
    x_mD = torch.randn(m, D)
    alone.append(least(lambda x=x_mD: [swiglu(x, *expert) for expert in each]) / E)
    cached = least(lambda x=x_mD: [swiglu(x, *each[0]) for _ in each]) / E
    shares.append(6 * m * D * width / alone[-1] / peak)
    print(f"{m:4} rows: {alone[-1] * 1e6:5.0f} us, {shares[-1]:4.0%} of peak; "
          f"with its weights in the cache {cached * 1e6:5.0f} us")  # fmt: skip

# %% [markdown]
# Two different things are slow here. With one row most of the time goes into *fetching* three
# matrices: the same arithmetic on cached weights takes a fraction. From some sixteen rows on the
# larger part stays even when nothing is fetched: a product of so few rows is a bad product, far
# from the peak. That is chapter 12's tile in another form.
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
# roofline has the *shape* of it, up and down again, but promises too much on the way down: it knows
# bytes, and not that a product of ten rows is a bad one. The table knows; it comes closer. The gap
# above it, for one token, is the carrying: a sort, two gathers and a sum take some fixed
# microseconds, however few the rows. With some tens of tokens the layer can be faster than the
# table, whose experts were all cold: here some of a batch's experts were used by the batch before,
# and lie in a cache. (The library's line is far lower for one token, where it takes a path of its
# own, without a sort; at 1,024 tokens it can be the higher one.)
#
# **One token at a time**, as in decoding, is the left end: two experts' weights are fetched for two
# rows of work, and the dense network fetches as much. From there a batch of decoding texts walks up
# the hump: each text more brings *new experts*, while the dense network's weights are fetched
# anyway (chapter 15 serves a model by that).
#
# The curve falls towards 1 as the batch grows and every expert has rows enough to be worth its
# fetch. **Your turn:** how many are that, for nine tenths of the best an expert gets?

# %%
guess = 16  # rows for an expert

# %% [markdown]
# Two answers. An expert's product does $2 m$ operations with each weight, which
# has 4 bytes; by the roofline it waits for memory until $2m/4$ reaches the machine's balance:

# %%
rows = peak / bandwidth * 4 / 2
print(f"by the roofline, float32: {rows:.0f} rows per expert, {rows * E / 2:.0f} tokens")
reached = dict(zip(heights, shares, strict=True))
most = max(shares)
enough = next(m for m in heights if reached[m] >= 0.9 * most)
print(f"by the table: nine tenths of the best it gets ({most:.0%} of peak) from {enough} rows on,")
print(f"{enough * E / 2:.0f} tokens (E = 64, K = 2); you said {guess} rows")
print(f"an H200, bf16: {989e12 / 4.8e12 * 2 / 2:.0f} rows, by the roofline")

# %% [markdown]
# **Take the second answer, not the first.** The roofline says from where on a product is no longer
# *bound* to wait for memory. It knows nothing of tiles and vector units, so it is a lower limit,
# and the table shows by how much: at the roofline's number of rows a product is still far from the
# best that it gets with more.
#
# The last line is an H200 by its data sheet (989e12 operations and 4.8e12 bytes a second): the
# faster the arithmetic, the more rows it takes to be worth a fetch, and a kernel's tiles (128 rows
# or more) ask for their part besides.
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
# ## 3. What goes wrong: a backward pass that does E times too much
#
# All of that was forward. Here is a loop as most people write it first, and as transformers'
# *eager* experts have it. Forward, it is as good as ours. One line is expensive:


# %%
def by_slices(x_TD, experts, routing):
    """Visit the experts, and take each one's weights out of the stack."""
    p, out_TD = plan(routing), torch.zeros_like(x_TD)
    ends, (w1, w3, w2) = p.offsets_E1.tolist(), experts.parameters()
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
            self.bytes += sum(t.nbytes for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        return out


# %%
def backward_cost(way, E, D=64, width=128, T=256):
    """Give the seconds of a backward pass, and the bytes it writes over those of the weights."""
    torch.manual_seed(0)
    experts, x_TD = Experts(E, D, width), torch.randn(T, D, requires_grad=True)
    weights = [*experts.parameters()]
    run = by_slices if way == "slices" else BACKENDS[way]
    loss = run(x_TD, experts, routed(T, E)).square().mean()

    def backward():
        return torch.autograd.grad(loss, [x_TD, *weights], retain_graph=True)

    with Written() as watch:
        backward()
    return least(backward), watch.bytes / sum(w.nbytes for w in weights)


# %% [markdown]
# **Your turn.** At 128 experts, how many times the weights' bytes will the slices' backward pass
# write, and the loop's?

# %%
guess = {"slices": 1, "loop": 1}
Es = [4, 8, 16, 32, 64, 128]
found = {way: [backward_cost(way, E) for E in Es] for way in ("slices", "loop", "grouped")}
print("E      " + "".join(f"{E:8}" for E in Es))
for way, costs in found.items():
    print(f"{way:8}" + "".join(f"{size:8.1f}" for _, size in costs), " bytes over the weights'")
print("your guess at 128:", guess)

# %%
fig = viz.curves({way: (Es, [t * 1e3 for t, _ in costs]) for way, costs in found.items()},
                 "experts, with 512 pairs in all", "ms for a backward pass")  # fmt: skip
fig.axes[0].set(xscale="log", yscale="log", xticks=Es, xticklabels=Es)
fig

# %% [markdown]
# The arithmetic is the same for every $E$, and the weights grow in proportion to $E$. Written bytes
# over the weights' should therefore fall towards a constant, and for `loop` and `grouped` it does.
# For the slices it grows *with* $E$, near $2E$, as derived: at 128 experts the backward pass writes
# 260 times what it has to deliver. In time, once that dominates, twice the experts take about
# four times as long (the steep end of the blue line).
#
# The fix is a single word: `w1.unbind()` *once*, before the loop. The backward pass of `unbind`
# is a stack: one tensor, each slice written once. The library's `Experts.each` does so, and a
# comment in it says why:

# %%
print(inspect.getsource(Experts.each))

# %% [markdown]
# And transformers itself, if you have it (it comes with `pip install -e ".[test]"`): the same
# count on its Mixtral experts with the eager loop. (Its default since version 5 is a grouped
# product, which has no such slices.)

# %%
try:
    from transformers import MixtralConfig as TheirConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts
except ImportError:
    TheirConfig = print("transformers is not installed here.")

# %%
for E in (8, 32, 128) if TheirConfig else ():
    config = TheirConfig(hidden_size=64, intermediate_size=128, num_local_experts=E)
    config._experts_implementation = "eager"
    theirs, r = MixtralExperts(config), routed(256, E)
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    chosen = r.expert_N.view(256, 2), r.gate_N.view(256, 2)
    loss = theirs(torch.randn(256, 64), *chosen).square().mean()
    with Written() as watch:
        loss.backward()
    size = sum(w.nbytes for w in theirs.parameters())
    print(f"transformers eager, E = {E:3}: {watch.bytes / size:6.1f} times the weights' bytes")

# %% [markdown]
# ## 4. The same way, tuned
#
# So the library has the sorted way twice. `dispatch/grouped.py` is chapter 12's `by_sorting`, to be
# read. `fast/cpu.py` has what a layer takes on a CPU, by bounds that were measured on two
# processors and may be off on yours: compare the two rightmost points of *grouped* and *library* in
# section 1's figure. The two give the same output and the same gradients (a test holds them
# together over hundreds of routings, ten thousand on demand), and differ in the order of the same
# steps:
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
    print(layer.explain(T).replace(", ", ",\n  "))
with torch.no_grad():
    print(layer.explain(1).replace(", ", ",\n  "))

# %% [markdown]
# What is it worth? **Guess first:** the arithmetic is the same to the last operation. We time
# the two in *pairs*, one right after the other, so that whatever else the machine does hits both;
# and take the median of the pairs' ratios, so that one bad moment counts for nothing.


# %%
def speed_up(readable, fast, pairs=7):
    """Give how many times faster the second is: the median of paired runs, and the extremes."""
    ratios = sorted(least(readable, 1) / least(fast, 1) for _ in range(pairs))
    return ratios[pairs // 2], ratios[0], ratios[-1]


# %%
def forward(run, x_TD, experts, routing):
    """Give a job: forward alone."""
    return torch.no_grad()(lambda: run(x_TD, experts, routing))


def both_ways(run, x_TD, experts, routing):
    """Give a job: forward and backward, all gradients."""
    leaves, grad = [x_TD.requires_grad_(), *experts.parameters()], torch.randn(x_TD.shape)
    return lambda: torch.autograd.grad(run(x_TD, experts, routing), leaves, grad)


# %%
for T in (1, 64, 4096):
    x_TD, r = torch.randn(T, D), routed(T, 32)
    for what, job in (("forward", forward), ("forward + backward", both_ways)):
        ways = (job(BACKENDS[way], x_TD, layer.experts, r) for way in ("grouped", "auto"))
        middle, low, high = speed_up(*ways)
        print(f"{T:5} tokens, {what:18}: {middle:5.2f} times as fast ({low:.2f} to {high:.2f})")

# %% [markdown]
# Two effects, at the two ends. With one token and no gradients nearly all time is calls, and the
# tuned path makes fewer: a single token needs no sorting. With many tokens it is memory: what was
# just written is still near when the next product reads it. How much that is depends on the
# machine's caches, and here it may be little. Where an expert has few rows and gradients are
# wanted, one token included, the layer takes the readable path itself. All of it is a matter of
# *order*: nothing was computed less. Worth having, not worth reading first.

# %% [markdown]
# ## 5. On other machines
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
RUNS = {way: BACKENDS[way] for way in ("auto", "grouped", "padded", "loop")}
RUNS |= {
    "eager loop": by_slices,
    "dense, F.linear": lambda x_TD, one, _: one.each()[0](x_TD),
    "dense": lambda x_TD, one, _: swiglu(x_TD, *(w[0] for w in one.parameters())),
}
yours, batch, rows = {}, torch.randn(4096, D), torch.randn(8192, D)
for E in (8, 64):
    mixture = batch, Experts(E, D, width), routed(4096, E)
    one = rows, Experts(1, D, width), None
    taken = {way: least(both_ways(run, *(one if "dense" in way else mixture)))
             for way, run in RUNS.items()}  # fmt: skip
    yours[E] = {way: seconds / taken["dense"] for way, seconds in taken.items()}

# %%
names = {"auto": "moe_lite auto", "grouped": "moe_lite grouped", "padded": "moe_lite padded",
         "loop": "moe_lite loop", "eager loop": "transformers eager",
         "dense, F.linear": "dense"}  # fmt: skip
stored = benched.stored()
for name, result in stored.items():
    machine, rows = result["machine"], result["layers"]
    timed, what = sum("seconds" in row for row in rows), machine.get("chip", machine["device"])
    print(f"{name}: {what}, {timed} of {len(rows)} rows timed. {result.get('note', '')}")
for shape in ("mixtral", "olmoe"):
    found = benched.over_dense(stored["h100"], shape)
    said = (f"{path}: {t:.2f}" for path, t in found.items())
    print(f"on the H100, {shape}:", *(said if found else ("not measured",)), sep="\n  ")

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
for ax, E in zip(panels, (8, 64), strict=True):
    there = benched.over_dense(stored["cpu"], f"course-e{E}")
    theirs = {way: there[path] for way, path in names.items() if path in there}
    for shift, found, color, label in ((-0.2, theirs, "#7F7F7F", "stored"),
                                       (0.2, yours[E], "#0072B2", "yours, now")):  # fmt: skip
        for y, way in enumerate(names):
            if way in found:
                ax.barh(y + shift, found[way], 0.38, color=color, label=label if y == 0 else None)
                ax.text(found[way], y + shift, f" {found[way]:.1f}", va="center", fontsize=8)
    ax.axvline(1, color="#1b1f24", lw=0.8)
    ax.set(title=f"{E} experts", xlabel="time over the dense network's", xmargin=0.12)
    ax.set_yticks(range(len(names)), list(names))
panels[0].invert_yaxis()
_ = panels[1].legend(frameon=False)

# %% [markdown]
# On the line a path takes as long as the dense network. The bottom bars are that network again, by
# plain `F.linear`: what the faster product is worth by itself. On "stored", one core of the
# processor named above, that is nearly a factor of two, and loop and padded, written with plain
# products, lose as much to it. What dispatch costs is the bar of *auto*: ("stored") an eighth of
# the dense network's time at 8 experts, and more than a third at 64, where each has 128 rows. The
# eager loop (stored: transformers'; yours: `by_slices`) shows section 3: harmless at 8 experts, far
# too slow at 64. (*grouped* was not among the stored CPU paths.)
#
# The rows that were not timed say why: most need a GPU, the others too much memory. On the H100
# (one run) the library's Triton kernels, at OLMoE's shape, take 1.2 times as long as the dense
# network; the same sort with torch's grouped product 1.6, transformers' grouped path 2.8. At
# Mixtral's, where an expert has 4,096 rows: 1.1, 1.1 and 1.4.
# What is *not measured* we say nothing about. If you have a GPU: `python -m moe_lite bench --help`.
#
# ## Exercises
#
# [`exercises/13_exercises.ipynb`](../exercises/13_exercises.ipynb): the roofline in
# three lines, rows enough to be worth a fetch, what padding wastes, a slow layer to be diagnosed,
# and a backward pass to be fixed. Each check tells you *what* you misunderstood. Solutions are in
# [`solutions/`](../solutions/13_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In four lines
#
# 1. At least the operations over the peak, at least the bytes over the bandwidth: the larger binds.
# 2. What a mixture loses to dense it loses by bytes, small products and carrying; which, the batch
#    size says.
# 3. The roofline is a lower limit. How many rows an expert needs is measured.
# 4. A slice of a stack has a gradient as large as the stack. Take the stack apart once.
#
# | in the field | in the code | |
# |---|---|---|
# | peak, bandwidth | `peak`, `bandwidth` | measured above |
# | arithmetic intensity | operations / bytes | of what is asked for |
# | machine balance | `peak / bandwidth` | operations for each byte |
# | grouped GEMM | `F.grouped_mm(x, w, offs=...)` | on a GPU |
# | which backend? | `layer.explain()` | and why |
# | the benchmark | `python -m moe_lite bench` | all shapes, all paths |
#
# **Read on:** Williams et al. 2009; MegaBlocks, section 5. Next,
# [chapter 14: the same permutation, between machines](14_many_machines.ipynb).
