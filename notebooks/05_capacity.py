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
# # What if an expert is full?
#
# **The papers:** Lepikhin et al. 2020, *GShard: Scaling Giant Models with Conditional Computation
# and Automatic Sharding* ([arXiv:2006.16668](https://arxiv.org/abs/2006.16668)), and Fedus, Zoph
# and Shazeer 2021, *Switch Transformers: Scaling to Trillion Parameter Models with Simple and
# Efficient Sparsity* ([arXiv:2101.03961](https://arxiv.org/abs/2101.03961)).
#
# In this chapter you
#
# - find out why an expert can be full at all, and what it costs to leave room;
# - rank tokens in a queue, by hand and then in one line;
# - build Switch's router (one expert) and GShard's (two, in two rounds);
# - see what becomes of a token that is turned away, and a well-known bug about it;
# - watch a token's fate hang on which other texts happen to be in the batch;
# - see when a sparse model begins to beat a dense one of equal arithmetic: the Switch paper's
#   Table 1 as a curve.
#
# **You need:** PyTorch, and what a router is (chapter 04, or the first half of 10).
# **Time:** an hour; the cells run in under a minute on two CPU cores.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from moe_lite import Experts, MoELayer, Routing, TopKRouter, load_pretrained, losses, record
from moe_lite.capacity import capacity, limit, queue_rank
from moe_lite.course import charts, data, ledger, sweep, viz, widgets
from moe_lite.routers import GShardRouter, SwitchRouter

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Why a queue has an end
#
# A router sends each token where it wants. So nobody knows beforehand how many tokens an expert
# will get. For a loop in Python that is no trouble. For the machines of these two papers it was:
# their programs are compiled once, for arrays of fixed shapes, and each expert sits on a chip of
# its own that has to reserve its memory *before* the tokens arrive. So each expert gets a fixed
# number of **places**, its **capacity** $C$, and what is computed is a block of shape $(E, C, D)$:
# every expert, every place, used or not.
#
# How many places? Switch's equation 3 takes the even share, and stretches it:
#
# $$C = \frac{\text{tokens per batch}}{\text{number of experts}} \times \text{capacity factor}
# \qquad (3)$$
#
# Twelve tokens, four experts, so an even share is three. Here is where they want to go:

# %%
expert_T = torch.tensor([0, 2, 0, 0, 1, 0, 3, 0, 2, 0, 1, 0])
wanted_E = expert_T.bincount(minlength=4)
print("wanted", wanted_E.tolist())
for factor in (1.0, 1.25, 1.5, 2.0):
    C = math.ceil(12 / 4 * factor)
    seated = wanted_E.clamp(max=C).sum().item()
    print(f"factor {factor:4}: {C} places each, {12 - seated} turned away, {4 * C - seated} empty")

# %%
# Your turn: at which factor is nobody turned away? Predict, then change the 2.5.
print(wanted_E.clamp(min=math.ceil(3 * 2.5)).sum().item() - 4 * math.ceil(3 * 2.5), "turned away")

# %% [markdown]
# There is the dilemma in four lines. With few places tokens are turned away *while places stand
# empty elsewhere*; with many, more than half of the work is done on nothing. With an even load
# there would be neither, which is why these papers care so much about balance, and why chapter 06
# is about nothing else. (Real code rounds: we round up, so that a factor of 1 always fits an even
# load.)
#
# ## 2. A place in the queue
#
# Who gets the places? The first to come: tokens stand in line in the order of the batch, and each
# one's **rank** is the number of tokens before it *in the same queue*. Rank below $C$: seated. By
# hand, or rather by foot:

# %%
length, rank = [0] * 4, []
for e in expert_T.tolist():
    rank.append(length[e])
    length[e] += 1
print("expert", expert_T.tolist())
print("rank  ", rank)

# %% [markdown]
# The seventh token that wants expert 0 has rank 6. Nobody wants to run this loop over a million
# tokens. The trick that all these papers use is a **running sum of one-hot rows**: a column then
# counts who has come to its expert so far. That includes the token itself, so take 1 away, and read
# off the column of the token's own expert.

# %%
hot_TE = F.one_hot(expert_T, 4)
count_TE = hot_TE.cumsum(dim=0)
print("token  one-hot       so far        less one, own column")
for t in range(5):
    own = count_TE[t, expert_T[t]] - 1
    print(f"{t:5}  {hot_TE[t].tolist()}  {count_TE[t].tolist()}  {own}")


# %%
def my_rank(expert_N, num_experts):
    count_NE = F.one_hot(expert_N, num_experts).cumsum(dim=0)
    return (count_NE - 1).gather(1, expert_N[:, None])[:, 0]


assert my_rank(expert_T, 4).tolist() == rank

# %% [markdown]
# Two characters make two of the most common bugs of this field: `dim=1` for `dim=0`, and no `- 1`.
# You will fix both in the exercises.
#
# The library's `queue_rank` gives the same ranks by a sort: the queues then lie one behind the
# other, and no matrix of $T \times E$ is needed.

# %%
router = TopKRouter(16, num_experts=4, top_k=1)
routing = router(torch.randn(500, 16))
assert torch.equal(queue_rank(routing), my_rank(routing.expert_N, 4))
C = capacity(num_tokens=500, num_experts=4, factor=1.0)
limited = limit(routing, factor=1.0)
assert torch.equal(limited.keep_N, my_rank(routing.expert_N, 4) < C)
print("load", routing.load_E().tolist())
print("load, at capacity 1.0", limited.load_E().tolist())

# %% [markdown]
# `limit` is the whole step as one function: rank the pairs, drop those whose rank reaches the
# capacity, leave everything else as it is. It takes a `Routing` and gives a `Routing`, so it can
# follow *any* router, and no loss, backend or picture needs to know about it: they have always
# asked `keep_N` which pairs were kept.
#
# ## 3. What a token gets that is turned away
#
# The layer's output is a sum over the experts that a token uses, and for a dropped token the sum is
# empty. It is 0. That is not as bad as it sounds, because around every layer of a transformer there
# is a residual connection:
#
# $$h' = h + \sum_{e \text{ kept}} g_e \, E_e(\mathrm{LN}(h))
# \qquad\text{so for a dropped token}\qquad h' = h$$
#
# It is not lost, nor held back, nor made zero. It goes on **as it came**, having missed one
# layer's thought. The next layer's attention reads it as ever, and the next layer's router gets to
# see it again.

# %%
router.capacity_factor = 1.0
layer = MoELayer(router, Experts(4, 16, 32))
h_TD = torch.randn(12, 16)
out_TD, routing = layer(F.layer_norm(h_TD, (16,)))
print("kept       ", routing.keep_N.int().tolist())
print("answer is 0", (out_TD == 0).all(dim=1).int().tolist())
assert torch.equal((h_TD + out_TD)[~routing.keep_N], h_TD[~routing.keep_N])

# %% [markdown]
# Every router of the library ends with `limit`, which does nothing until it has a factor. So one
# line gives *any* router a capacity, for instance `gate.capacity_factor = 1.25`.
#
# ## 4. Switch: one expert, and mean it
#
# Chapter 04 said that $k \ge 2$ is needed for a router to learn. Switch takes $k = 1$ all the same,
# half the work of $k = 2$ and less to carry between chips. What chapter 04 really found is that a
# softmax *after* the choice has nothing left to compare. So Switch lets everyone compete first:
# softmax over all experts, then the best one, weighed by its probability $p$. And $p$ is not
# divided by itself.


# %%
def my_switch(x_TD, weight_ED, factor):
    p_TE = (x_TD @ weight_ED.T).softmax(dim=-1)
    gate_T, expert_T = p_TE.max(dim=-1)
    C = math.ceil(factor * len(x_TD) / len(weight_ED))
    keep_T = my_rank(expert_T, len(weight_ED)) < C
    return expert_T, gate_T, keep_T


# %%
x_TD = torch.randn(200, 16)
router = SwitchRouter(16, num_experts=8, capacity_factor=1.25)
theirs = router(x_TD)
mine = my_switch(x_TD, router.weight, 1.25)
for ours, library in zip(mine, (theirs.expert_N, theirs.gate_N, theirs.keep_N), strict=True):
    torch.testing.assert_close(ours, library)
print(f"gates from {theirs.gate_N.min():.2f} to {theirs.gate_N.max():.2f}, "
      f"dropped {losses.drop_rate(theirs):.1%}")  # fmt: skip

# %% [markdown]
# ## 5. GShard: two, in two rounds
#
# GShard's Algorithm 1 is half a year older and gives each token two experts. Four things in it are
# worth reading. With $g_1 \ge g_2$ the two best probabilities, divided by their sum:
#
# 1. **First choices first.** One pass seats all first choices, a second one the second choices,
#    which stand *behind* them. Nobody's second wish takes the place of somebody's first.
# 2. **The second one by chance.** A second expert with a small weight hardly matters, so why take a
#    place for it? It is asked with probability $\min(1, 2 g_2)$: certainly if $g_2 = \tfrac12$,
#    rarely if $g_2$ is near 0. In evaluation our library leaves nothing to chance and asks every
#    one.
# 3. **Groups.** The batch is cut into groups, and each group has a share of every expert's places
#    to itself. Within a group of $S$ tokens, $C = 2S/E$: just enough for all, if the load is even.
# 4. **The loss looks at first choices**, and counts them *before* anyone is turned away. More
#    below.
#
# The second round's ranks begin where the first round's end. That is the line that people forget:


# %%
def my_gshard_ranks(expert_T2, asked_T2, num_experts):
    first_TE, second_TE = (F.one_hot(expert_T2, num_experts) * asked_T2[..., None]).unbind(1)
    rank_first = first_TE.cumsum(0) - 1
    rank_second = second_TE.cumsum(0) - 1 + first_TE.sum(0)  # behind all first choices
    both = torch.stack([rank_first, rank_second], dim=1).gather(2, expert_T2[..., None])
    return both[..., 0]


expert_T2 = torch.tensor([[0, 1], [1, 0], [1, 2], [0, 1]])
print(my_gshard_ranks(expert_T2, torch.ones(4, 2, dtype=torch.long), 3))

# %%
# Your turn: token 3 now asks expert 2 first. Whose rank changes? Predict, then run.
print(my_gshard_ranks(torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1]]), torch.ones(4, 2).long(), 3))

# %% [markdown]
# Read it. Expert 0 is the first choice of tokens 0 and 3: ranks 0 and 1. Token 1 has it as its
# second choice and comes behind both, although token 3 comes later in the batch: rank 2. Now the
# whole router.


# %%
def my_gshard(x_TD, weight_ED, factor, training):
    top_T2, expert_T2 = (x_TD @ weight_ED.T).softmax(dim=-1).topk(2)
    gate_T2 = top_T2 / top_T2.sum(dim=-1, keepdim=True)
    asked_T2 = torch.ones_like(expert_T2)
    if training:
        asked_T2[:, 1] = (torch.rand_like(gate_T2) < 2 * gate_T2)[:, 1]
    rank_T2 = my_gshard_ranks(expert_T2, asked_T2, len(weight_ED))
    C = math.ceil(factor * len(x_TD) / len(weight_ED))
    return expert_T2, gate_T2, (rank_T2 < C) & (asked_T2 > 0)


# %%
router = GShardRouter(16, num_experts=8, capacity_factor=2.0)
for training in (False, True):
    torch.manual_seed(1)
    mine = my_gshard(x_TD, router.weight, 2.0, training)
    torch.manual_seed(1)
    theirs = router.train(training)(x_TD)
    library = theirs.expert_N, theirs.gate_N, theirs.keep_N
    for ours, other in zip(mine, library, strict=True):
        torch.testing.assert_close(ours.flatten(), other)
    print(f"training={training}: {theirs.keep_N.sum()} of 400 pairs kept")

# %% [markdown]
# Two details, for those who compare. In the paper's listing the counter of an expert also goes up
# for a second choice that was *not* asked, so that it holds a place it does not use. And what is
# asked with $2 g_2$ there is asked with $5 g_2$ by default in Mesh TensorFlow, the library in which
# some of the same people published the method as code. That code masks out those who are not asked
# *before* it counts, and so do we.
#
# **A word on factors.** Both papers count places per *token*. So a top-2 router at factor 2.0 has
# just enough places for all its pairs, and at 1.0 it must drop half of them even if the load is
# perfectly even. `limit` counts pairs instead, so that 1 means "just enough" whatever $K$ is;
# `GShardRouter` keeps the paper's count. When somebody tells you a capacity factor, ask: of what?
#
# ### The loss, counted before the drop
#
# Algorithm 1 closes its first round with $\ell_{aux} = \frac{1}{E} \sum_e \frac{c_e}{S} m_e$, where
# $c_e$ counts the first choices of expert $e$ and $m_e$ is its mean probability. Switch writes $E
# \sum_e f_e P_e$ for the same thing at another scale: $E^2$ times as large, and 1 at balance.

# %%
first_T = theirs.expert_N.view(-1, 2)[:, 0]
c_E, m_E = first_T.bincount(minlength=8), theirs.probs_TE.mean(0)
gshard_loss = (c_E / 200 * m_E).sum() / 8
torch.testing.assert_close(losses.load_balancing_loss(theirs, choices=1), 64 * gshard_loss)
print(f"GShard's {gshard_loss:.5f}, times 64: {64 * gshard_loss:.3f}")

# %% [markdown]
# Counting *after* the drop looks harmless, even sensible. But then no expert can ever count more
# than its places, and a queue twice as long as allowed looks like a full one. An exercise shows how
# such a loss falls while the router collapses.
#
# ## 6. Watch it fill
#
# The model below is the course's `mixtral-mini`, trained with no capacity at all. We give its first
# layer's queues an end, and let the tokens come.
#
# **Guess first:** if the queues are filled by position, where will the dropped ones be? What
# changes if all first choices go first (the box asks that)? And if the largest gate?

# %%
model = load_pretrained("mixtral-mini").eval()
tokenizer = data.load_tokenizer()
text = "To be, or not to be: that is the question.\ndef mean(xs):\n    return sum(xs) / len(xs)\n"
with record(model, tokenizer) as recorder, torch.no_grad():
    model(torch.tensor([tokenizer.encode(text).ids]))
first = recorder.trace.layers[0]
queues = widgets.ExpertQueues(first, recorder.trace.tokens, capacity=10)
queues

# %% [markdown]
# **Try it.** Set *Arrived* to 0 and press *Play*. Then drag the capacity, and watch empty places
# and dropped pairs trade against each other. Far enough to the right nobody is dropped, and three
# fifths of the block is air. Then the menu. *By position*, four victims in five are in the
# code, which has 58% of the tokens, and first choices fare little better than fourth ones. *By
# choice*, most are fourth choices, and no token loses all. *By gate*, those whose gate is small.
# (That third order is not in either paper; it came with vision models a little later, as *batch
# prioritized routing*.) And then
# **Shuffle the batch**: not a single choice changes, and others are dropped. Keep that in mind. (In
# Python the same is `queues.routing`; without a kernel, on GitHub for instance, you see a picture.)

# %%
for priority in ("choice", "gate", "position"):
    queues.priority = priority
    keep_TK = queues.routing.keep_N.view(-1, model.config.num_experts_per_tok)
    print(f"by {priority:8}: dropped of first to fourth choices {(~keep_TK).sum(0).tolist()}, "
          f"{(~keep_TK).all(1).sum()} tokens without any expert")  # fmt: skip

# %% [markdown]
# ## 7. Your neighbours decide
#
# Now a model of our own: the small language model that the next chapters use too, with Switch's
# router at a capacity factor of 1.0. It is a *setting* of a common recipe, which is how all the
# experiments of these chapters are written: what differs, and nothing else. One seed, 100 steps.

# %%
corpus = data.load_corpus(max_bytes=sweep.MAX_BYTES)
setting = sweep.Setting(
    router="switch", options={"capacity_factor": 1.0},
    model={"num_experts_per_tok": 1}, training={"steps": 100},
)  # fmt: skip
outcome = sweep.run(setting, corpus, seed=0)
model, history = outcome.model.eval(), outcome.history

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for panel, name, label in zip(
    panels, ("dropped", "load"), ("share of tokens dropped", "busiest expert / mean"), strict=True
):
    viz.curves({"Switch, capacity 1.0": (history.column("step"), history.column(name))},
               "steps", label, ax=panel)  # fmt: skip
    panel.set_ylim(bottom=0)
    panel.get_legend().remove()

# %% [markdown]
# The router collapses in its first steps, as routers do; the balancing loss then slowly pulls it
# back, and the drops go with it. After a hundred steps a good part of the tokens still finds no
# place. We stop here on purpose, because *who* these are can now be seen well.
#
# A batch has 16 texts of 64 tokens. The queue runs through them one after the other. So where are
# the dropped tokens?

# %%
batch = corpus.batch("validation", 16, 64, step=0)
ids_BS, domain_B = batch.ids_BS, batch.domain_BS[:, 0]


@torch.no_grad()
def route(ids_BS):
    out = model(ids_BS)
    return out.logits_BSV, torch.stack([r.keep_N.view(ids_BS.shape) for r in out.routings])


# %%
logits_BSV, keep_LBS = route(ids_BS)
fig, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
for n, keep_BS in enumerate(keep_LBS):
    ax.bar(torch.arange(16) + 0.4 * n - 0.2, 100 - 100 * keep_BS.float().mean(1), 0.38,
           color=("#0072B2", "#E69F00")[n], label=f"layer {n}")  # fmt: skip
ax.set(xlabel="row of the batch", ylabel="tokens dropped, %")
names = [f"{row}: {data.DOMAINS[d]}" for row, d in enumerate(domain_B)]
ax.set_xticks(range(16), names, rotation=40, ha="right", fontsize=8)
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# **The last rows pay.** Shakespeare (*drama*) finds every place free. Then those experts are full
# that everybody likes, and those who come later are turned away. And there is a trap that we did
# not plan: *our batches hold their five domains in a fixed order.* So it is no lottery; the same
# domains go without, step after step, in training too. What if the rows came in another order? Not
# a weight and not a text is changed:


# %%
@torch.no_grad()
def rows_in(order, batches=8):
    """Give (domain, share refused, loss) of every row."""
    rows = []
    for step in range(batches):
        batch, order_B = corpus.batch("validation", 16, 64, step=step), order(16)
        logits_BSV, keep_LBS = route(batch.ids_BS[order_B])
        targets_BS, domain_B = batch.targets_BS[order_B], batch.domain_BS[order_B, 0]
        nats_BS = F.cross_entropy(logits_BSV.transpose(1, 2), targets_BS, reduction="none")
        rows.append(torch.stack([domain_B, (~keep_LBS).float().mean((0, 2)), nats_BS.mean(1)], 1))
    return torch.cat(rows)


# %%
orders = {"as given": torch.arange, "reversed": lambda n: torch.arange(n).flip(0),
          "shuffled": torch.randperm}  # fmt: skip
print("refused, loss   " + "".join(f"{domain:14}" for domain in data.DOMAINS) + "all")
for name, order in orders.items():
    rows = rows_in(order)
    means = [rows[rows[:, 0] == d].mean(0).tolist() for d in range(5)]
    cells = "".join(f"{refused:4.0%}, {loss:.2f}    " for _, refused, loss in means)
    print(f"{name:15} {cells}{rows[:, 2].mean():.3f}")

# %% [markdown]
# Reversed, Shakespeare goes without. And the prose, *now* heard, is predicted worse: the experts
# that it now reaches have perhaps seen little of it. (One model, one seed; arithmetic does not
# move.)
#
# Let us look closer, at *one* text in different rows, among the same fifteen others.

# %%
others_BS = ids_BS[1:]
for row in (0, 4, 8, 12, 15):
    moved_BS = torch.cat([others_BS[:row], ids_BS[:1], others_BS[row:]])
    logits, keep = route(moved_BS)
    change = (logits[row] - logits_BSV[0]).abs().amax(dim=-1)
    print(f"in row {row:2}: {(~keep[:, row]).sum():3} of 128 places refused; "
          f"prediction changed at {(change > 1e-3).sum():2} of 64 tokens")  # fmt: skip

# %% [markdown]
# The same text, the same weights, another prediction, because of *who else was in the room*. In
# training that is noise. When a model serves people, your answer depends on what strangers asked in
# the same moment. Routing without a capacity (chapter 10) knows no such trouble.
#
# **The remedy within these papers is groups.** With `group_size=64` each text has its own share of
# every expert's places, and no stranger can take it:

# %%
for layer in model.moe_layers:
    layer.gate.group_size = 64
alone, _ = route(ids_BS[:1])
for row in (0, 8, 15):
    moved_BS = torch.cat([others_BS[:row], ids_BS[:1], others_BS[row:]])
    print(f"in row {row:2}: largest change {(route(moved_BS)[0][row] - alone[0]).abs().max():.1e}")

# %% [markdown]
# It has its price: in a small crowd the load is less even, and more are turned away.

# %%
for size in (1024, 256, 64, 16):
    for layer in model.moe_layers:
        layer.gate.group_size = size
    _, keep_LBS = route(ids_BS)
    print(f"groups of {size:4}: {(~keep_LBS).float().mean():.0%} dropped")
for layer in model.moe_layers:
    layer.gate.group_size = None

# %% [markdown]
# **Does the queue know the future?** A language model's token must not depend on later ones. By
# position it does not: those behind you cannot take your place. By choice they can: a later token's
# *first* choice goes before your *second*. By gate they can as well. Watch one token's seat as the
# last token of the text changes its mind:


# %%
def fate(expert_T2, gate_T2, priority, places=2):
    blank_TE = torch.zeros(len(expert_T2), 3)
    routing = Routing.from_choices(blank_TE, blank_TE, expert_T2, gate_T2)
    return (queue_rank(routing, priority) < places).view(-1, 2)[1].tolist()


gate_T2 = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.9, 0.1]])
for priority in ("position", "choice", "gate"):
    fates = []
    for last in ([1, 2], [0, 2]):
        expert_T2 = torch.tensor([[0, 2], [1, 0], [2, 1], last])
        fates.append(fate(expert_T2, gate_T2, priority))
    print(f"by {priority:8}: token 1's choices kept {fates[0]}, then {fates[1]}")

# %%
# Your turn: with 3 places instead of 2, is there an order in which the last token still matters?
print(fate(expert_T2, gate_T2, "choice", places=3))

# %% [markdown]
# So GShard's order, made for fairness, leaks a bit of the future into a language model. Chapter 08
# meets a router with a large one, and measures what a model makes of it.
#
# ## 8. Table 1, in small
#
# How much does a drop cost? A factor can be changed after training, so ask the model above:

# %%
print("factor  dropped  loss, nats per token")
for factor in (0.5, 1.0, 1.25, 2.0, 8.0):
    for layer in model.moe_layers:
        layer.gate.capacity_factor = factor
    found = sweep.measure(model, corpus, batches=4)
    print(f"{factor:6} {found['dropped']:8.1%} {found['loss']:8.3f}")

# %% [markdown]
# From more than half of the tokens dropped to none, and the loss moves by hundredths. So do not
# wait for a loss curve to tell you: count drops.
#
# ### When does it begin to pay?
#
# The Switch paper's Table 1 compares, with 128 experts on 32 TPUs, dense models with top-1 (Switch,
# of the same arithmetic) and top-2 (of more). Its finding is about speed: in the same *time* top-1
# beats both. We ask at equal steps: *does sparse beat dense?* After 300 steps of the model above no
# lead shows: see its ten seeds in the [ledger](../LEDGER.md#switch2021), with capacities and clock.
#
# So here is a narrower model (32 wide, a vocabulary of 512), chosen on three other seeds because an
# effect shows in it: 3,000 steps, twelve seeds, no capacity (`python -m moe_lite reproduce
# switch2021_long`, ten minutes of one core).

# %%
stored = ledger.stored("switch2021_long")
pairs = {f"dense − {name}": ledger.Pair("dense", name) for name in ("top-1", "top-2")}
charts.alive(viz.effects(stored, pairs, 1.731 - 1.554, "held-out loss, dense − sparse, nats"))

# %%
early = "loss: step 200 at top-2"
for pair in (("loss: step 2500 at dense", "loss: step 2500 at top-1"),
             ("loss at dense", "loss at top-1"), (early, f"{early}, gates x 2")):  # fmt: skip
    print(f"{ledger.Pair(*pair)!s:62}", stored[ledger.Pair(*pair)])
ledger.verdicts("switch2021_long")

# %% [markdown]
# Each point is the mean over seeds of dense less sparse *with the same seed*, which has read the
# same text; the band is its 95% interval.
#
# **At equal steps experts pay here, and late.** (At equal *time* nothing was measured: to train
# many seeds at once our program runs all experts.) At 300 twelve seeds cannot tell. From 600 on
# top-2 is ahead, from 1,500 on top-1 too, and both leads still grow after 2,500: 0.067 and 0.043
# nats, a third and a quarter of the paper's. (Chapter 10's larger mixture leads at 500, and less
# later.) **Two experts of half the width beat one here**; the paper's two have the full width.
#
# **What you may believe now**: at this size and equal steps a sparse model beats its dense twin
# once it has trained for long enough. **What is open:** how far the lead grows, and what capacity
# costs after long training. On the first bench top-2 loses by a capacity of 1.0; of top-1 we
# cannot tell.
# **Does the output's size matter?** Two gates that sum to 1 make the layer's output half of what
# its dense twin's two halves give. Twice the gates are a head start, 0.045 ± 0.024 nats at step
# 200, and at 3,000 *equal* to 0.02 nats. Chapter 10 finds it lost in a larger model too.
#
# ## 9. What goes wrong: three bugs that run
#
# Each is in published code or is what people write first, and none raises an error. Find the cause,
# then open the answer.
#
# **Tokens that grow.** From an annotated Switch Transformer that many have learned from. Its layer
# puts the input of the dropped tokens back in their places, "passed through", and weighs the
# result. We watch how long the vectors are.

# %%
h_TD = 3 * torch.randn(6, 64)
keep_T, p_T = torch.tensor([1, 0, 1, 0, 1, 0]).bool(), torch.full((6,), 0.6)
x_TD = F.layer_norm(h_TD, (64,))
answer_TD = 0.1 * torch.randn(6, 64)
out_TD = torch.where(keep_T[:, None], answer_TD, x_TD) * p_T[:, None]
for t in range(4):
    before, after = h_TD[t].norm(), (h_TD + out_TD)[t].norm()
    print(f"token {t}, {'kept' if keep_T[t] else 'dropped':7}: {before:.1f} -> {after:.1f}")

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# The dropped tokens should come out exactly as they went in. The layer's input is
# $\mathrm{LN}(h)$, not $h$; it was put where an expert's answer would be; then *everything* was
# multiplied by $p$, and the block added it to $h$. So a dropped token leaves as $h + p \cdot
# \mathrm{LN}(h)$: nearly the same direction, and longer every time it is dropped. The pass-through
# is the residual, which was there all along. The thing to put in the dropped places is 0.
#
# </details>
#
# **An expert that hears two voices.** A top-2 router, seats given by GShard's einsum: the one-hot
# of (expert, place) times the tokens' vectors. Three tokens whose vectors are 1, 10 and 100:

# %%
expert_T2 = torch.tensor([[0, 1], [1, 0], [0, 1]])
first, second = F.one_hot(expert_T2, 2).unbind(1)
rank_T2E = torch.stack([first.cumsum(0) - 1, second.cumsum(0) - 1], dim=1)
rank_T2 = rank_T2E.gather(2, expert_T2[..., None])[..., 0]
seat_T2EC = F.one_hot(expert_T2, 2)[..., None] * F.one_hot(rank_T2, 3)[:, :, None]
block_EC = torch.einsum("tkec,t->ec", seat_T2EC.float(), torch.tensor([1.0, 10.0, 100.0]))
print(block_EC)

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# Expert 0's first place holds 11: the vectors of tokens 0 and 1, added. The second choices' ranks
# begin again at 0, where the first choices already sit; the number of first choices was not added.
# Both tokens get the same answer, to a question that neither asked, and the last place stays empty.
# A test for it needs no thought: *no place has two tokens*.
#
# </details>
#
# **A loss that likes a crowd.** As above, $E \sum_e f_e P_e$, where the shares $f$ are those of the
# tokens that an expert *really has*.

# %%
for pull in (0.0, 1.0, 2.0):
    logits_TE = torch.randn(400, 4) + torch.tensor([pull, 0, 0, 0])
    probs_TE, first_T = logits_TE.softmax(-1), logits_TE.argmax(-1)
    seated_T = my_rank(first_T, 4) < 100
    loss = 4 * (first_T[seated_T].bincount(minlength=4) / 400 * probs_TE.mean(0)).sum()
    print(f"{(first_T == 0).float().mean():.0%} want expert 0: loss {loss:.2f}")

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# $f$ was counted after the drop. Expert 0 can count no more than its 100 places, however many want
# it, while those who were turned away count nowhere. So crowding *lowers* the loss, and to
# minimise it teaches the router to crowd. Count what was asked for: `losses.load_balancing_loss`
# counts pairs before any are dropped.
#
# </details>
#
# ## Exercises
#
# [`exercises/05_exercises.ipynb`](../exercises/05_exercises.ipynb): six diagnoses, from an
# off-by-one in a queue to a detector of foresight. Each check tells you *what* you misunderstood.
# Solutions are in [`solutions/`](../solutions/05_solutions.ipynb).
# [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. Fixed shapes give every expert $C$ places; few places drop tokens, many compute on nothing.
# 2. A rank is a running count along the queue, less one; GShard's second choices stand behind all
#    first ones.
# 3. A dropped token gets 0 from the layer and goes on along the residual, as it came.
# 4. A queue makes a token's fate depend on its neighbours in the batch; groups keep strangers out,
#    and drop more.
# 5. Losses count what the tokens asked for, before the drop.
#
# | in the papers | in the code | |
# |---|---|---|
# | expert capacity, $C$ | `capacity(T, E, factor, top_k)` | rounded up |
# | position in the expert's buffer | `queue_rank(routing, priority, group_size)` | 0 is first |
# | overflow, dropping | `limit(routing, factor)`, `router.capacity_factor` | sets `keep_N` |
# | Switch, $y = p_i(x) E_i(x)$ | `SwitchRouter` | $p$ not renormalised |
# | GShard, Algorithm 1 | `GShardRouter` | factor per token; second by chance |
# | group, $S$ | `group_size` | tokens that share places |
# | $E^2 \ell_{aux}$ of Algorithm 1 | `load_balancing_loss(routing, choices=1)` | 1 at balance |
# | drop rate | `losses.drop_rate(routing)` | share of pairs |
#
# **Read on:** GShard's section 2.2 with Algorithm 1, and Switch's sections 2.2 and 2.3.
