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
# # Appendix to 09: the layer since 2024
#
# What became of the layer since 2024? Here are eight ideas, two of them DeepSeek-V3's own, and a
# ninth by name. Each is a small change of what you know: one or two of a router's four steps
# (score, choose, weigh, limit), one loss, or two matrices around the experts. All are in
# `moe_lite/course/recent.py`, and the tests of the library's routers run over them, too: all
# backends, padding, interventions, traces.
#
# The measurements are small: the model of chapters 05 to 09, 150 steps, five seeds, compared seed
# by seed (`python -m moe_lite reproduce recent2026`). The claims and their margins were written
# before the runs. 150 steps are the beginning of a training, so read a difference as a direction.
#
# **You need:** chapters 06, 08 and 09. **Time:** half an hour; the cells run in seconds.

# %%
import inspect

import matplotlib.pyplot as plt
import torch

from moe_lite import Experts, TopKRouter
from moe_lite.course import eras, ledger, recent, viz
from moe_lite.course.reading import count_lines
from moe_lite.routers import SigmoidBiasRouter

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %%
stored = ledger.stored("recent2026")


def less(a, b="top-2", what="loss"):
    return stored[ledger.Pair(f"{what} at {a}", f"{what} at {b}")]


# %%
for name in recent.RECENT:
    router = recent.RECENT[name].__self__
    steps = ", ".join(eras.changes(router))
    lines = count_lines(inspect.getsource(router)).code
    print(f"{name:13} starts from {router.__base__.__name__:18} changes {steps:14} {lines} lines")

# %% [markdown]
# (*Quantile*, a bias that balances the last batch at once, is on trial in chapter
# [18](18_claims.ipynb), section 9.)
#
# ## 1. A threshold that is trained
#
# Chapter 08 left a question open. Experts that choose among a batch see the future. Could they
# choose *without* comparing tokens? *Expert threshold* (Sun et al. 2026,
# [arXiv:2603.11535](https://arxiv.org/abs/2603.11535), abstract and introduction) gives each expert
# a bar: the score at which its choice among a batch would have stopped, averaged over batches. A
# token is taken by every expert whose bar it passes. It asks nobody else, so nothing leaks, and the
# load is right on average. A token may have no expert, or many.

# %%
router = recent.ThresholdRouter(16, num_experts=8, top_k=2)
batches = torch.randn(40, 1000, 16) + 0.3
for x_TD in batches[:-1]:
    router.update(router(x_TD).load_E())
routing = router.eval()(batches[-1])
counts_T = routing.token_N.bincount(minlength=1000)
print("tokens of each expert", routing.load_E().int().tolist(), "wanted: 250")
print("tokens with 0, 1, 2 ... experts", counts_T.bincount().tolist())
assert router(batches[-1][:1]).expert_N.equal(routing.expert_N[routing.token_N == 0])

# %%
print("loss, thresholds − top-2:", less("thresholds"))
print("loss, thresholds − experts choose, as trained:", less("thresholds", "experts choose"))
for name in ("experts choose", "thresholds"):
    future = stored[f"owed to the future at {name}"]
    print(f"lost with a stranger's future, {name}: {future.mean:z.4f} ± {future.half:.4f};",
          "experts of a token:", stored[f"experts per token at {name}"])  # fmt: skip

# %% [markdown]
# The load is even, and nothing comes from the future, by construction. But in 150 steps
# thresholds are *behind* top-2, by 0.11 ± 0.07 nats; the paper prints 0.067 ahead, for a model of
# 2.4 billion after a whole training. What we know here is the beginning alone, and not why.
# Thresholds that lag are not an easy answer: in the end a token has 2.05 ± 0.08 experts, just as
# many as wanted. Other differences are the sigmoid, gates that do not add up to 1, and tokens
# without an expert. (Experts that choose among 1,024 tokens tell so little of the future that five
# seeds do not see it: 0.0001 ± 0.0039 nats. Chapter 08 shows where they do.)
#
# ## 2. Experts that compute nothing
#
# Not every token is equally hard. Put experts beside the others that do nothing (MoE++, Jin et al.
# 2024, [arXiv:2410.07348](https://arxiv.org/abs/2410.07348), abstract; LongCat 2025,
# [arXiv:2509.01322](https://arxiv.org/abs/2509.01322), by
# [notes on it](https://jianyuh.github.io/moe/2025/12/08/LongCat.html)). A token that chooses one of
# them has less work done for it. If it chooses nothing else, the layer adds nothing, and its vector
# stays as it was. MoE++ has two more kinds: one that copies, as LongCat's do, and one that gives a
# constant.

# %%
router = recent.IdleRouter(16, num_experts=8, top_k=2, idle=2)
routing = router(torch.randn(1000, 16))
counts_T = routing.token_N.bincount(minlength=1000)
gates_T = torch.zeros(1000).index_add(0, routing.token_N, routing.gate_N.detach())
for n in range(3):
    own = counts_T == n
    mean = gates_T[own].mean()
    print(f"{own.float().mean():4.0%} of the tokens have {n}, gates add up to {mean:.2f}")
print("trained: experts of a token", stored["experts per token at idle experts"])
print("loss, idle experts − top-2:", less("idle experts"))

# %% [markdown]
# Nothing holds how much is saved, and here that went far: a token ends with 1.05 ± 0.47 experts of
# two, and the model is *behind* by 0.12 ± 0.08 nats. MoE++ and LongCat hold the share (a weight in
# the balancing loss; a bias with a controller), which ours does not. So this says what saving about
# half of the work costs at the start, not that the idea fails.
#
# ## 3. ReLU: a choice with a slope
#
# Top-k jumps: a score that moves by a hair can change who is chosen. ReMoE (Wang et al. 2024,
# [arXiv:2412.14711](https://arxiv.org/abs/2412.14711), abstract; the rule as others describe it; we
# have not read that section) chooses and weighs by ReLU. An expert is active if its score is above
# 0, and its weight grows from 0. Now nothing holds the number of active experts, so a penalty on
# the gates does. Its weight is a controller: times 1.2 if too many are active, divided by 1.2 if
# too few. Here it holds a loss that likes experts, until a token's gates add up to 1:

# %%
router, shares = recent.ReLURouter(16, num_experts=8, top_k=2), []
optimizer = torch.optim.SGD(router.parameters(), 0.1)
for _ in range(500):
    routing = router(torch.randn(100, 16) + 1)
    wants_more = -0.1 * routing.gates_TE().sum(1).clamp(max=1).mean()
    optimizer.zero_grad()
    (router.penalty(routing) + wants_more).backward()
    optimizer.step()
    router.update(routing.load_E())
    shares.append(router.active)
fig = viz.curves({"active": (range(500), shares)}, "step", "share of experts that are active")
fig.axes[0].axhline(2 / 8, color=viz.INK, lw=0.8, ls=":")
fig

# %% [markdown]
# Half of the experts are active while the penalty is light. Then there are too few, then a few too
# many, and then the quarter that was asked for. (The 1 that is added to the inputs matters: were
# their mean 0, half of all scores would be above 0, whatever the router's weights.)

# %%
print("trained: experts of a token", stored["experts per token at relu"])
print("loss, ReLU − top-2:", less("relu"), end="; ")
print("MaxVio, the same:", less("relu", what="MaxVio"))

# %% [markdown]
# **ReLU is ahead of top-2, by 0.15 ± 0.07 nats**, in the end with about two experts, 1.79 ± 0.27.
# But it starts with half of the eight, as half of the scores are above 0, and the penalty needs
# time. Some of the lead may be that work; at equal work it was not measured. Nor is it the whole
# ReMoE: the part of its penalty that balances is left out, and ours begins at 1e-4. Top-2 paid a
# balancing loss, ReLU did not, and its load is less even: MaxVio is higher by 0.62 ± 0.58.
#
# ## 4. A table in the first layers
#
# DeepSeek-V4 (2026, [arXiv:2606.19348](https://arxiv.org/abs/2606.19348), sections 2.1 and 4.2.1)
# chooses the experts of its first three layers by a table: the token's id says which. It is chapter
# 08's hash, for K experts, and the weights are still learned. Why there? Near the embedding a
# token's vector holds little but its id, so a router can hardly do more than a table. Chapter
# [17](17_what_experts_learn.ipynb) measures it: in layer 0 words explain nearly all that an expert
# tells about the domain; only in the last layer do they leave more than in an untrained model. And
# a table needs no balancing loss (ours had it all the same, in both layers). It is not even,
# though: it deals out words, and frequent words weigh more (chapter 08, section 4).

# %%
router = recent.TableRouter(16, num_experts=8, top_k=2, vocab_size=100)
ids_T = torch.tensor([17, 5, 17])
routing = router(torch.randn(3, 16), ids_T=ids_T)
for t, v in enumerate(ids_T.tolist()):
    experts, gates = (x.view(3, 2)[t].tolist() for x in (routing.expert_N, routing.gate_N))
    print(f"id {v:2}: experts {experts}, weights {gates[0]:.2f} {gates[1]:.2f}")
for name in ("table first", "table last"):
    print(f"loss, {name} − top-2: {less(name)}; MaxVio, the same: {less(name, what='MaxVio')}")
print("loss, table last − first:", less("table last", "table first"))

# %% [markdown]
# **In the first layer the table costs nothing: it is ahead**, by 0.06 ± 0.03 nats. Perhaps because
# a router has to learn in 150 steps what a table has from the start; neither that nor whether it
# lasts was measured. Our table is a plain one: experts e and e + 4 always come together. With it
# the model's load is more even than top-2's, all the same: MaxVio is lower by 0.11 ± 0.09.
#
# And *why the first layers?* In our model of two layers a table in the last one is ahead too, by
# 0.03 ± 0.02 (not a row written before the runs); the difference between the two places, 0.03 ±
# 0.04, is undecided. Two layers are few: the last one is near the embedding, too.
#
# ## 5. Narrower experts
#
# Between devices travel vectors, and from memory come weights. Both are as wide as the model.
# *LatentMoE* (Elango et al. 2026, [arXiv:2601.18089](https://arxiv.org/abs/2601.18089), abstract,
# and the authors' page on it) puts one matrix before the dispatch and one after the combine:
# experts live in a space of $\ell$ numbers instead of $d$. What is saved goes into more experts.
# Nemotron 3 Super has $d$ = 4,096 and $\ell$ = 1,024 (from
# [Raschka's note](https://sebastianraschka.com/blog/2026/nemotron-3-ultra-latent-moe.html)).

# %%
layer = recent.LatentLayer(64, TopKRouter(64, 16, 2), Experts(16, 32, 128))
out_TD, routing = layer(torch.randn(5, 64))
print("in and out", tuple(out_TD.shape), "; an expert sees", layer.experts.w1.shape[-1], "numbers")
for name, width, K in (("top-2", 64, 2), ("latent, 2 of 16", 32, 2), ("latent, 4 of 16", 32, 4)):
    sent = 2 * K * width * 2  # out and back, bfloat16
    found = "" if name == "top-2" else f"loss − top-2's: {less(name)}"
    print(f"{name:16} {sent} bytes of a token in a layer, {K * 3 * 128 * width:,} weights  {found}")
print(f"Nemotron 3 Super's widths: {2 * 4096 * 2:,} bytes for each expert, or {2 * 1024 * 2:,}")

# %% [markdown]
# Half the bytes with two of 16 experts, or the same bytes with four of 16: both are undecided, and
# the means lie on top-2's side. The two new matrices, 4,096 weights that the print leaves out, have
# to be learned, too; 150 steps are short for that. The paper's models are trained on up to a
# trillion tokens.
#
# ## 6. Two machines of four
#
# DeepSeek-V3 (section 2.1.2) sends a token to at most $M$ = 4 of its machines, and asks for $K$ = 8
# experts. A machine counts as much as its $K/M$ best experts for this token together; the choice is
# then among the experts of the best $M$. Chapter [14](14_many_machines.ipynb) says what that saves:
# bytes between machines. In small, 32 experts on four machines, four for a token, two machines at
# most:

# %%
free, tied = SigmoidBiasRouter(16, 32, 4), recent.NodeLimitedRouter(16, 32, 4, nodes=4, most=2)
tied.load_state_dict(free.state_dict())
x_TD = torch.randn(1000, 16)
for name, router in (("any", free), ("two at most", tied)):
    nodes_TK = router(x_TD).expert_N.view(1000, 4) // 8
    met = sum(len(set(row)) for row in nodes_TK.tolist()) / 1000
    print(f"{name:12} a token's experts lie on {met:.2f} machines")
any_two = (stored[f"nodes per token at {name}"] for name in ("node-free", "two nodes"))
print("trained:", *any_two, sep="  ")
print("loss, two nodes − any:", less("two nodes", "node-free"))

# %% [markdown]
# The limit does what it says: 2.9 machines become 2. Whether it costs anything, five seeds cannot
# say: the interval reaches 0.1.
#
# **Each text by itself.** The bias balances a batch, and one text may still crowd a few experts. So
# V3 adds chapter 06's loss, counted in each sequence and with "an extremely small" weight
# (equations 17 to 20). V3's is 0.0001 (section 4.2). Chapter 06 measured that such a loss *costs*.
# In 150 steps so small a weight would do little, so here it is 0.01, a hundred times as much:

# %%
pair = "two nodes, by sequence", "two nodes"
for what in ("MaxVio in a sequence", "MaxVio", "loss"):
    print(f"{what:21} {stored[f'{what} at {pair[1]}']} -> {stored[f'{what} at {pair[0]}']}"
          f"; seed by seed {less(*pair, what)}")  # fmt: skip

# %% [markdown]
# Each text is a little more even: MaxVio falls from 3.7 to 3.1, by 0.6 ± 0.4. What it does to the
# loss is undecided here.
#
# (DeepSeek-V4 keeps the loss and removes the limit of nodes: section 2.1 of its report.)
#
# ## 7. Pools: specialists made on purpose
#
# Chapter 17 looks for specialists where nobody asked for them. *EMO* (Wang, Bhagia and Min 2026,
# [arXiv:2605.06663](https://arxiv.org/abs/2605.06663), section 3) asks. While training, the
# tokens of a document must share a small **pool**: the experts that they believe in most, on
# average. Its size is drawn anew for each document. Nobody says what a document is about. Later
# one may keep a quarter of the experts, those that a kind of text likes, and give the rest away.

# %%
router = recent.PoolRouter(16, num_experts=8, top_k=2, document=50)
texts_GSD = torch.randn(4, 50, 16) + torch.randn(4, 1, 16)  # four documents, each with a subject
for training in (False, True):
    routing = router.train(training)(texts_GSD.flatten(0, 1))
    used = [sorted(set(experts)) for experts in routing.expert_N.view(4, -1).tolist()]
    print("in training:" if training else "in use:", *used, sep="\n  ")

# %%
names, what = ("top-2", "pools"), "cost of keeping a quarter"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for at, (name, hue) in enumerate(zip(names, viz.HUES, strict=False)):
    costs = stored.measures[f"{what} at {name}"]
    ax.plot([at] * len(costs), costs, "o", color=hue, alpha=0.6)
    ax.errorbar(at + 0.1, (e := stored[f"{what} at {name}"]).mean, e.half, fmt="s", color=hue)
ax.set(xticks=range(2), xticklabels=names, xlim=(-0.5, 1.5), ylabel="nats lost",
       title="one kind of text, 2 of 8 experts kept")  # fmt: skip
print("lost by keeping a quarter, pools:", stored[f"{what} at pools"], end="; ")
print("pools − top-2:", less("pools", what=what))
print("loss with all experts, pools − top-2:", less("pools"))

# %% [markdown]
# **With pools a quarter of the experts is nearly enough for one kind of text**: it costs 0.014 ±
# 0.009 nats, and 0.08 ± 0.06 more without pools. EMO's paper has 1 point of accuracy against more
# than 10 (Figure 3). But ours keeps two experts of which a token needs two, so nothing is left to
# choose; EMO keeps 32 and chooses 8. And our documents are windows of 64 tokens. With all experts
# the pooled model is behind by 0.030 ± 0.022 nats, where the paper finds no loss (its Table 1).
# Whether that is more than our margin of 0.02 is undecided.
#
# A pool looks at a whole document, so a token's choice depends on later ones while training. In use
# there is no pool, and nothing leaks; a test holds both.
#
# ## 8. All of them

# %%
names = ["thresholds", "idle experts", "relu", "table first", "table last", "latent, 2 of 16",
         "latent, 4 of 16", "pools"]  # fmt: skip
fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for at, name in enumerate(names):
    e, work = less(name), stored[f"experts per token at {name}"].mean
    ax.errorbar(e.mean, at, xerr=e.half, fmt="o", color=viz.HUES[0], capsize=3)
    ax.annotate(f"{work:.1f}", (1.01, at), xycoords=("axes fraction", "data"), va="center")
ax.axvline(0, color=viz.INK, lw=0.8)
ax.set(yticks=range(len(names)), yticklabels=names, xlabel="held-out loss − top-2's, nats",
       title="five seeds, 95% intervals; on the right: experts of a token")  # fmt: skip
ax.invert_yaxis()

# %%
ledger.verdicts("recent2026")

# %% [markdown]
# Twelve rows, five seeds: three on the papers' side, three against (one of them because a table is
# better than equal), six undecided. Read them as beginnings. Chapter 09, section 10, has a case in
# which a method is behind early on and ahead at the end. And of the six that are decided, four
# (thresholds, idle experts, a quarter of the experts, each sequence) carry a † in the
# [ledger](../LEDGER.md): among so many rows, chance alone could give such an interval now and then.
#
# What else was proposed, and is not built here, is on [`docs/map.md`](../docs/map.md).
# [Glossary](../docs/glossary.md).
#
# | idea | in the code | changes |
# |---|---|---|
# | expert threshold | `recent.ThresholdRouter` | score, choose |
# | experts that compute nothing | `recent.IdleRouter` | score, choose |
# | ReLU | `recent.ReLURouter`, `.penalty` | score, choose, a loss |
# | table of ids | `recent.TableRouter` | score |
# | latent experts | `recent.LatentLayer` | two matrices |
# | node limit | `recent.NodeLimitedRouter` | choose |
# | balance in each sequence | `recent.sequence_loss` | a loss |
# | document pools | `recent.PoolRouter` | choose, in training |
