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
# # What if experts chose the tokens?
#
# **The paper:** Zhou et al. 2022, *Mixture-of-Experts with Expert Choice Routing*
# ([arXiv:2202.09368](https://arxiv.org/abs/2202.09368)). Around it, three other ways to be balanced
# without a balancing loss: BASE layers (Lewis et al. 2021,
# [arXiv:2103.16716](https://arxiv.org/abs/2103.16716)), Hash layers (Roller et al. 2021,
# [arXiv:2106.04426](https://arxiv.org/abs/2106.04426)) and Soft MoE (Puigcerver et al. 2023,
# [arXiv:2308.00951](https://arxiv.org/abs/2308.00951)).
#
# In this chapter you
#
# - turn a router on its side with one `.T`, and get perfect balance for nothing;
# - find out the price, by a test that reads the future;
# - measure in bits how much a model learns of tokens it has not been shown;
# - learn to ask of every new layer whether it is causal.
#
# **You need:** PyTorch, and what top-k routing is (chapter 04 or 10). **Time:** an hour and a half;
# the cells run in about a minute on two CPU cores.

# %%
import itertools
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from moe_lite import Experts, KVCache, Mixtral, MixtralConfig, MoELayer
from moe_lite.course import data, ledger, recent, sweep, viz
from moe_lite.course.widgets import RowsOrColumns
from moe_lite.routers import ExpertChoiceRouter, HashRouter, SwitchRouter, TopKRouter

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## 1. One matrix, two ways to choose
#
# Every router of this course begins with a table of scores: a row for each token, a column for each
# expert. So far **tokens chose**: top-k along each row. That leaves the columns to chance. One
# expert is asked by half the batch, another by nobody, and chapters 04 to 07 are about fixing that.
#
# The paper turns the question on its side. Let each *expert* choose its best $k$ *tokens*: top-k
# down each column. With $n$ tokens, $e$ experts and a capacity factor $c$ (equations 1 and 2):
#
# $$k = \frac{n \cdot c}{e}, \qquad S = \mathrm{Softmax}(X W_g), \qquad
# G, I = \mathrm{TopK}(S^\top, k)$$
#
# $c$ is how many experts a token has **on average**. The softmax still runs over the experts: each
# token has 1 to share out. Only the top-k changes its axis. Four tokens, two experts, $c = 1$, so
# each expert takes two:

# %%
S_TE = torch.tensor([[4.0, 1.0], [6.0, 2.0], [1.0, 3.0], [9.0, 9.0]]).log().softmax(-1)
print("what each token gives (a column each):", S_TE.T, sep="\n")
gate_EC, token_EC = S_TE.T.topk(2)
for e in range(2):
    print(f"expert {e} takes tokens {token_EC[e].tolist()} with gates", gate_EC[e])

# %%
# Your turn: with c = 1/2 each expert takes one token. Which? Predict, then change the 1.
print(S_TE.T.topk(1).indices.flatten())

# %% [markdown]
# Token 3 had the highest score in the table, 9 for both. It gives each expert only a half,
# so expert 0 prefers tokens 0 and 1. That is what the softmax is for: in a row it changes no
# order, in a column it does.
#
# The library's `ExpertChoiceRouter` is these three lines. What comes out is a `Routing` like any
# other: a flat list of (token, expert) pairs. In the others it has $T \cdot K$ pairs, here
# $E \cdot k$, and the layer, the backends and the losses do not notice.


# %%
def expert_choice(x_TD, weight_ED, c):
    probs_TE = (x_TD @ weight_ED.T).softmax(dim=-1)
    (T, E) = probs_TE.shape
    k = math.ceil(c * T / E)
    gate_EC, token_EC = probs_TE.T.topk(k)
    gates_TE = torch.zeros(T, E)
    return gates_TE.T.scatter(1, token_EC, gate_EC).T


x_TD = 2 * torch.randn(32, 16)
router = ExpertChoiceRouter(16, num_experts=8, capacity_factor=1.0)
torch.testing.assert_close(expert_choice(x_TD, router.weight, 1.0), router(x_TD).gates_TE())

# %% [markdown]
# What it buys, and costs: the same scores, by row and by column:

# %%
by_row = TopKRouter(16, num_experts=8, top_k=1, renormalize=False)
by_row.weight = router.weight
for name, gate in (("tokens choose", by_row), ("experts choose", router)):
    routing = gate(x_TD)
    experts_T = routing.token_N.bincount(minlength=32)
    print(f"{name:15} tokens of each expert ", *routing.load_E().int().tolist())
    print(f"{'':15} experts of each token ", *experts_T.tolist())

# %% [markdown]
# By row, every token has one expert and the experts have what they get. By column, every expert
# has exactly 4 tokens: **no loss, no overflow, no idle expert, from the first step on**. What
# varies now is the other count. Some tokens have two experts, and some have none: they pass the
# layer unchanged, like chapter 05's dropped tokens.
#
# ## 2. Rows or columns
#
# Ten tokens, four experts. **Make the guess** in its box, and another: which token loses an expert
# if the last row's first score goes up, by row, by column?

# %%
words = ["To", " be", ",", " or", " not", " to", " be", ":", " that", " is"]
scores_TE = 1.5 * torch.randn(10, 4, generator=torch.Generator().manual_seed(7))
rows = RowsOrColumns(scores_TE, words, by="column", c=1)
rows

# %% [markdown]
# **Try it.** Click into the last row, column 0, a few times (with Shift it goes down again). When
# experts choose, at some click another token loses its place. When tokens choose, only the row you
# click in ever changes. Then drag *Tokens seen* to the left, as if the rest had not been written
# yet. Dashed cells are choices that the missing words will change. By row there are none, wherever
# you cut.

# %%
for by in ("row", "column"):
    cut = [len(RowsOrColumns(scores_TE, words, by=by, c=1, seen=n).changed) for n in range(2, 11)]
    print(f"by {by:6} choices that later tokens change, with 2 to 10 tokens seen: {cut}")

# %% [markdown]
# ## 3. Who gets how many?
#
# The paper's Figure 3 counts how many experts a token gets, in a model with 64 experts and $c = 2$.
# Section 4.5 puts numbers to it: most tokens have one or two, 23% have three or four, and about 3%
# have more than four. Ours has 64 experts too, small ones, on the course's text. This is the stored
# result; `python -m moe_lite reproduce zhou2022 --seeds 3` makes it again. Beside it stands
# **chance**: 64 experts that draw their tokens at random. Always ask what chance would do.

# %%
stored = ledger.stored("zhou2022")
bins = "none", "one or two", "three or four", "more than four"
print(f"stored result, {len(stored.seeds)} seeds, shares of the tokens, in percent")
for where, label in (("at 64 experts", "ours"), ("by lot", "by lot")):
    shares = (stored[f"{b} {where}"] for b in bins)
    print(f"{label:8}" + "".join(f"{b}: {100 * s.mean:.0f} ± {100 * s.half:.0f}   " for b, s in
                                 zip(bins, shares, strict=True)))  # fmt: skip
print("paper   at most two: 74   three or four: 23   more than four: 3")

# %% [markdown]
# The shape is the paper's. But look at the row in the middle: **drawing lots gives a picture that
# we cannot tell from ours**: seed by seed each bin's interval includes 0, and none reaches further
# than a tenth. A token's count is nearly a Poisson variable of mean 2. The paper's 74, 23 and 3 are
# *more even* than dice, so something is chosen there; the spread by itself is no sign of it.
#
# ### When does it begin to pay?
#
# And the headline, that training converges more than twice as fast as with top-2? On the bench of
# chapter 05, over 3,000 steps and twelve seeds (`zhou2022_long`): experts that choose among a whole
# batch of 256 tokens, or among 8 neighbours, against tokens that choose.

# %%
stored = ledger.stored("zhou2022_long")
rival = "tokens choose"
pairs = {f"{name} − tokens": ledger.Pair(name, rival)
         for name in ("experts choose, 256", "experts choose, 8")}  # fmt: skip
viz.effects(stored, pairs, None, "held-out loss less token choice's, nats")

# %%
ledger.verdicts("zhou2022_long")

# %% [markdown]
# **Among the batch no speed-up is seen**: the factor is 0.98 ± 0.05, and half of the paper's gain,
# a factor of 1.5, is excluded. So where nobody is dropped (no queues here; the paper's rivals have
# them) balance alone buys no speed that we see. **Among 8 neighbours the loss ends 5% lower**,
# 0.153 ± 0.005 nats; it is ahead from step 100 on. It looks like the better router; section 8 says
# what that lead is made of.
#
# ## 4. Three more ways to be balanced
#
# **Hash layers: do not choose at all.** Deal the vocabulary out to the experts once and for all.
# No router, no gradient, no loss. The expert of a token depends on the token's id alone, not on
# its neighbours. In the paper's abstract that is competitive with Switch and with BASE, which says
# as much about learned routers as about hashing. (Zhou et al. found it worse than expert choice,
# 81.3 against 84.0 in their Table 4.)

# %%
hashed = HashRouter(vocab_size=4096, num_experts=8)
ids_T = torch.tensor([17, 5, 17, 301, 5])
print(
    "experts", hashed(torch.randn(5, 16), ids_T=ids_T).expert_N.tolist(), "for ids", ids_T.tolist()
)
print("ids of each expert", hashed.expert_V.bincount().tolist())

# %% [markdown]
# **BASE layers: solve it.** One expert for each token, exactly $T/E$ tokens for each expert, and
# among all ways to do so the one with the largest sum of scores (equation 2 of Lewis et al.):
#
# $$\max_a \sum_t h_t \cdot w_{a_t} \quad \text{so that} \quad \sum_t [a_t = e] = T/E
# \text{ for every } e$$
#
# That is the *assignment problem*, and they solve it by **auction**. Every place with an expert has
# a price, at first 0. A token without a place bids for the one that is worth most to it after the
# price. It raises that price by what the place is better than its second best, and a little more.
# The token that held the place has to look again.


# %%
def auction(scores_TE, step=0.01):
    T, E = scores_TE.shape
    worth_TP = scores_TE.repeat_interleave(T // E, dim=1)  # T/E places with each expert
    price_P, holder_P, waiting = torch.zeros(T), [None] * T, list(range(T))
    while waiting:
        t = waiting.pop()
        (best, second), (place, _) = (worth_TP[t] - price_P).topk(2)
        price_P[place] += best - second + step
        if holder_P[place] is not None:
            waiting.append(holder_P[place])
        holder_P[place] = t
    return torch.tensor(holder_P).argsort() // (T // E), price_P.view(E, -1).amin(1)


# %% [markdown]
# Does it find the best? With eight tokens and two experts there are $\binom{8}{4} = 70$ ways: try
# them all. It has to come within $T$ times the little more.

# %%
small_TE = torch.randn(8, 2)
choice_T, _ = auction(small_TE)
found = small_TE.gather(1, choice_T[:, None]).sum().item()
every = (small_TE[list(c), 0].sum() + small_TE[[t for t in range(8) if t not in c], 1].sum()
         for c in itertools.combinations(range(8), 4))  # fmt: skip
print(f"auction {found:.3f}, best of 70: {max(every).item():.3f}, greedy (no balance): "
      f"{small_TE.amax(1).sum():.3f}")  # fmt: skip
loads = [choice.bincount(minlength=2).tolist() for choice in (choice_T, small_TE.argmax(1))]
print("loads by auction {}, by argmax, as in testing, {}".format(*loads))

# %% [markdown]
# **One market.** As a linear programme the assignment has a *dual*: prices $p_e$ that minimise
#
# $$\textstyle \sum_t \max_e\,(s_{te} - p_e) + \frac TE \sum_e p_e$$
#
# It lies above every balanced choice; where one meets it, both are best. Its slope in $p_e$ is
# $T/E$ less the tokens that come at these prices, so going down *raises the price of what is
# crowded*.


# %%
T, E = 256, 4
tokens_TE = torch.randn(T, E) + torch.linspace(0.6, -0.6, E)  # expert 0 is a favourite


def load(price_E):
    return (tokens_TE - price_E).argmax(1).bincount(minlength=E)


def dual(price_E):
    return (tokens_TE - price_E).amax(1).sum() + T / E * price_E.sum()


# %%
price_E = torch.zeros(E, requires_grad=True)
(slope_E,) = torch.autograd.grad(dual(price_E), price_E)
torch.testing.assert_close(slope_E, T / E - load(price_E.detach()))
choice_T, auctioned_E = auction(tokens_TE, step=0.02)
chosen = tokens_TE.gather(1, choice_T[:, None]).sum()
print(f"a balanced choice: {chosen:.2f}; above all of them: {dual(auctioned_E):.2f}")

# %% [markdown]
# Three more rules: chapter 06's loss charges $\alpha f_e$; chapter 09's bias is $-p$, in small
# steps; a *quantile* asks at once what lets in $T/E$. Dashed: the auction's prices.


# %%
def by_loss(price_E):
    return 0.9 * price_E + 0.1 * E * load(price_E) / T


def by_bias(price_E):
    return price_E + 0.02 * (load(price_E) - T / E).sign()


# %%
def by_quantile(price_E):
    price_E = price_E.clone()
    for e in range(E):
        rest_TE = (tokens_TE - price_E).index_fill(1, torch.tensor(e), -torch.inf)
        gain_T = (tokens_TE[:, e] - rest_TE.amax(1)).sort(descending=True).values
        price_E[e] = gain_T[T // E - 1 : T // E + 1].mean()
    return price_E


# %%
fig, panels = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", sharey=True)
for panel, rule in zip(panels, (by_loss, by_bias, by_quantile), strict=True):
    price_E, path = torch.zeros(E), []
    for _ in range(60):
        path.append(price_E - price_E.mean())
        price_E = rule(price_E)
    for e, color in enumerate(viz.HUES[:E]):
        panel.plot([prices_E[e] for prices_E in path], color=color, label=f"expert {e}")
        panel.axhline(auctioned_E[e] - auctioned_E.mean(), color=color, ls="--", lw=0.8)
    panel.set(title=f"{rule.__name__[3:]}: loads {load(price_E).tolist()}", xlabel="round")
panels[0].set_ylabel("price less the mean")
_ = panels[2].legend(frameon=False, fontsize=8, loc="center right")

# %% [markdown]
# The bias trembles round the same prices; the quantile is there in a few rounds. The loss stops
# short: at equal counts its prices are equal, so some unevenness stays.
#
# **Soft MoE: do not choose, mix.** Each expert has $p$ *slots*, and a slot is filled with a
# weighted mean of *all* tokens. Each token gets back a weighted mean of all slots' answers. With
# $\Phi$ a column of weights for each slot (equations 1 and 2 of Puigcerver et al.):
#
# $$D = \mathrm{softmax}_{\text{tokens}}(X\Phi), \quad \tilde X = D^\top X, \quad
# \tilde Y_i = f_{\lfloor i/p \rfloor}(\tilde X_i), \quad
# C = \mathrm{softmax}_{\text{slots}}(X\Phi), \quad Y = C\,\tilde Y$$
#
# One table of scores, two softmaxes: down the columns to send, along the rows to bring back. Every
# expert has the same work, every token takes part, and there is no top-k, so everything has a
# slope.


# %%
def soft_moe(x_TD, phi_DP, experts):
    scores_TP = x_TD @ phi_DP
    D_TP, C_TP = scores_TP.softmax(dim=0), scores_TP.softmax(dim=1)
    slots_PD = D_TP.T @ x_TD
    runs = experts.each()
    p = len(slots_PD) // len(runs)
    answers = [run(slots) for run, slots in zip(runs, slots_PD.split(p), strict=True)]
    return C_TP @ torch.cat(answers)


experts, phi_DP = Experts(8, 16, 32), torch.randn(16, 8)
y_TD = soft_moe(x_TD, phi_DP, experts)
print(f"{len(x_TD)} tokens in, 8 slots between, {len(y_TD)} answers out")

# %%
# Your turn: raise one score of the first token. Does the auction move others as well?
print(auction(small_TE)[0], auction(small_TE + torch.eye(8, 2))[0])

# %% [markdown]
# Balanced, all four of them, if not all equally: a hash deals out the *vocabulary* evenly, and
# frequent words weigh more (`counts_V` tells it how much). Hashing gets its balance by not looking;
# the other three by looking at *all tokens at once*. And there is the catch.
#
# ## 5. A test that reads the future
#
# A language model predicts token $t+1$ from the tokens up to $t$. Attention is masked so that
# nothing later gets in. Does a layer keep to that? Ask it: **put other tokens in the place
# of all from $t$ on, and see whether anything before $t$ moves.** If it does, then what comes out
# for an early token depends on later ones, and the model has seen what it is to predict.


# %%
def looks_ahead(layer, x_TD):
    before_TD, most = layer(x_TD), 0.0
    for t in range(1, len(x_TD)):
        changed_TD = torch.cat([x_TD[:t], torch.randn_like(x_TD[t:])])
        most = max(most, (layer(changed_TD)[:t] - before_TD[:t]).abs().max().item())
    return most


# %%
def base_layer(x_TD):
    scores_TE = x_TD @ phi_DP
    expert_T, _ = auction(scores_TE.detach())
    answers_ETD = torch.stack([run(x_TD) for run in experts.each()])
    gate_T1 = scores_TE.gather(1, expert_T[:, None]).sigmoid()
    return gate_T1 * answers_ETD[expert_T, torch.arange(len(x_TD))]


def hash_layer(x_TD):
    ids_T = (1000 * x_TD[:, 0].abs()).long() % 4096  # an id for each vector
    return MoELayer(hashed, experts)(x_TD, ids_BS=ids_T)[0]


# %%
switch = SwitchRouter(16, num_experts=8)
layers = {
    "top-1, tokens choose": lambda x_TD: MoELayer(by_row, experts)(x_TD)[0],
    "Switch, with capacity": lambda x_TD: MoELayer(switch, experts)(x_TD)[0],
    "hash": hash_layer,
    "expert choice": lambda x_TD: MoELayer(router, experts)(x_TD)[0],
    "BASE, as in training": base_layer,
    "Soft MoE": lambda x_TD: soft_moe(x_TD, phi_DP, experts),
}
for name, layer in layers.items():
    with torch.no_grad():
        moved = looks_ahead(layer, x_TD)
    verdict = "looks ahead" if moved > 1e-3 else "causal"
    print(f"{name:22} earlier answers move by {moved:5.2f}: {verdict}")

# %% [markdown]
# Three of six. Nothing in their code says "future". They only compare tokens with each other,
# later ones included. None of the papers hides it.
#
# Switch's queue depends on other tokens too, but only on *earlier* ones, and on *how many* there
# are: its length is counted from that. (The test above keeps the number.)
#
# Change the very last word and ask an (untrained) language model again: how many of its *earlier*
# predictions move?

# %%
config = MixtralConfig(
    vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    max_position_embeddings=64, rope_theta=1e4,
)  # fmt: skip


def model_with(gate):
    model = Mixtral(config)
    for layer in model.moe_layers:
        layer.gate = gate()
    return model


# %%
ids = torch.randint(16, (1, 32))
other = ids.clone()
other[0, -1] = (ids[0, -1] + 1) % 16  # one token, the very last
for c in (TopKRouter, ExpertChoiceRouter):
    model = model_with(lambda c=c: c(32, 8))
    moved_S = (model(ids).logits_BSV - model(other).logits_BSV).abs().amax(-1)[0]
    print(f"{c.__name__:20} {int((moved_S[:-1] > 1e-5).sum())} of 31 earlier predictions moved")

# %% [markdown]
# ## 6. How much can a choice tell?
#
# Which tokens an expert takes is a message. An expert that takes $k$ of $T$ tokens picks one of
# $\binom{T}{k}$ sets, so all experts of a layer together can say at most
#
# $$\frac{e}{T} \log_2 \binom{T}{k} \;\text{ bits per token}.$$
#
# Wang et al. 2024 ([arXiv:2408.15664](https://arxiv.org/abs/2408.15664), section 5.2, appendix D)
# bound this from below by $K \log_2 \frac{1-R}{R}$ with $R = K/e$. They conclude that 9 layers of
# 16 experts, two for each token, can leak more than 50 bits per token, "sufficient for each token
# to determine its successor's identity". By hand: $2 \log_2 7 = 5.6$ bits, times 9.


# %%
def ceiling(T, experts, c):
    return experts / T * math.log2(math.comb(T, math.ceil(c * T / experts)))


print(f"their bound   {9 * 2 * math.log2((1 - 2 / 16) / (2 / 16)):.1f} bits per token")
print(f"exact         {9 * ceiling(2048, 16, 2):.1f} bits per token, in a chunk of 2,048 tokens")
for T in (2, 4, 8, 16, 64, 1024):
    print(f"one layer of 8 experts, c = 2, groups of {T:4}: {ceiling(T, 8, 2):.2f} bits")

# %%
# Your turn: which group size tells most per token, with c = 1? Predict, then run.
print({T: round(ceiling(T, 8, 1), 2) for T in (2, 4, 8, 16, 64)})

# %% [markdown]
# That is what *could* be told. What a model learns to tell, and to read, is an empirical question.
#
# ## 7. A text without a past
#
# To measure a leak one needs a text in which everything else is worth nothing. Here is one: **ids
# drawn at random**, 16 of them, each as likely as the others whatever came before. Nothing that
# looks back can predict the next one better than by guessing, with $\log_2 16 = 4$ bits. So if a
# model comes below 4 bits, every bit of it is leaked.
#
# We let the experts choose within groups of four neighbouring tokens (`group_size=4`), and train
# for 300 steps, each on a fresh text, so there is nothing to memorise either.


# %%
def train_on_lots(gate, steps=300, seed=0):
    torch.manual_seed(seed)
    model, bits = model_with(gate), []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        ids_BS = torch.randint(16, (32, 33))
        logits_BSV = model(ids_BS[:, :-1]).logits_BSV
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(loss.item() / math.log(2))
    return bits


# %%
curves = {
    "tokens choose": train_on_lots(lambda: TopKRouter(32, 8)),
    "experts choose in groups of 4": train_on_lots(lambda: ExpertChoiceRouter(32, 8, group_size=4)),
}
viz.curves({n: (range(1, 301), b) for n, b in curves.items()}, "steps", "bits per token")

# %% [markdown]
# Nobody can learn to predict a fair die, and yet one line falls. The model did not have to *learn*
# to send itself messages: an untrained router already treats tokens differently, so being taken or
# left says something about who else was there. What training has to find is how to listen.
#
# Now with more group sizes, 400 steps and three seeds each. Stored, from
# `python -m moe_lite reproduce wang2024_leak --seeds 3`:

# %%
leak = ledger.stored("wang2024_leak")
sizes = [2, 4, 8, 16, 32, 1024]
told = [leak[f"bits leaked, {size}"] for size in sizes]
fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
ax.errorbar(sizes, [b.mean for b in told], [b.half for b in told], fmt="o-", color="#0072B2",
            capsize=3, label="experts choose in groups of so many neighbours")  # fmt: skip
ax.axhline(0, color="black", lw=1, ls="--", label="the most that the past can give")
ax.set_xscale("log", base=2)
ax.set(xticks=sizes, xticklabels=sizes, xlabel="tokens in a group", ylabel="bits leaked per token")
ax.legend(frameon=False)
for name in ("4", "8", "32", "1024", "top-2", "by position"):
    print(f"{name:12} {leak[f'bits leaked, {name}']} bits leaked")

# %% [markdown]
# **Groups of four and eight leak, 0.31 ± 0.25 and 0.20 ± 0.10 bits; the whole batch leaks less than
# a thousandth of one** (95% intervals over three seeds). Thirty-two leak a little, 0.022 ± 0.007;
# of two and of sixteen (in the figure only) three seeds cannot say whether they leak. In a small
# group the next token is one of few, so being taken or left says much about it; but in a group of
# two, every second token hears nothing.
#
# The last row of the print is the way out that Zhou et al. propose: give tokens of one sequence to
# *different* groups. **By position** means that the experts choose among all sequences' tokens
# at one and the same position, never among two tokens of one sequence. It is still expert choice,
# and it leaks nothing. (Exercise 5 asks why the place matters.)
#
# ## 8. In a language model
#
# Text is not a die: there the leak competes with honest ways to predict. How do you tell what a
# model gains from the future? Another model differs in everything. Ask the *same* one twice:
#
# - **as trained**: the whole text at once, so experts choose among later tokens too;
# - **with a stranger's future**: the text up to the token that is asked, and from there on another
#   text. The routing has as many tokens, of the usual kind, and they tell nothing.
#
# What the second loses is what the first gained from the future. One model, live: groups of 16
# neighbours, 150 steps.

# %%
corpus = data.load_corpus(max_bytes=sweep.MAX_BYTES)
setting = sweep.Setting("expert choice", {"group_size": 16}, training={"steps": 150})
model = sweep.run(setting, corpus, seed=0).model.eval()
batches = [corpus.batch("validation", batch_size=16, seq_len=64, step=step) for step in range(3)]


# %%
@torch.no_grad()
def nats(ids_BS, targets_BS):
    logits_BVS = model(ids_BS).logits_BSV.transpose(1, 2)
    return F.cross_entropy(logits_BVS, targets_BS, reduction="none").mean(0)


def with_a_strangers_future(ids_BS, targets_BS):
    stranger_BS = ids_BS.roll(1, dims=0)
    mixed = (torch.cat([ids_BS[:, : t + 1], stranger_BS[:, t + 1 :]], dim=1) for t in range(64))
    return torch.stack([nats(ids, targets_BS)[t] for t, ids in enumerate(mixed)])


# %%
own_S, stranger_S = (
    torch.stack([ask(batch.ids_BS, batch.targets_BS) for batch in batches]).mean(0)
    for ask in (nats, with_a_strangers_future)
)
print(f"as trained {own_S.mean():.3f}, with a stranger's future {stranger_S.mean():.3f} nats")
last_4 = (stranger_S - own_S).view(4, 16)[:, -1]
print(f"at the last place of each group, where no future is left: {last_4.abs().max():.6f}")

# %% [markdown]
# (The second line is a check: a group's 16th token has none after it.)
#
# Now the stored result: 250 steps, three seeds, held-out text. A third column asks how to *write*
# with such a model, where there is no later token to choose among. One remedy is a fixed bar for
# each expert, the score that let in the right share of training tokens (**with thresholds**).

# %%
names = "top-2", "chunks of 16", "chunks of 64", "chunks of 256", "16, shuffled", "by position"
print(f"stored result, {len(leak.seeds)} seeds, nats per token")
print("each less top-2 as trained, the same seed; shuffled: before the chunks are cut")
print(f"{'':15}{'as trained':17}{'owed to the future':22}with thresholds")
for name in names:
    owed, top_2 = leak[f"gain from the future at {name}"], "loss at top-2"
    trained = leak[ledger.Pair(f"loss at {name}", top_2)]
    bars = "" if name == "top-2" else leak[ledger.Pair(f"loss with thresholds at {name}", top_2)]
    print(f"{name:15}{trained!s:17}{abs(owed.mean):.3f} ± {owed.half:.3f}         {bars}")
# %%
owed = "gain from the future at chunks of {}"
for a, b in ((16, 64), (64, 256)):
    print(f"owed within {a} less {b}: {leak[ledger.Pair(owed.format(a), owed.format(b))]}")
honest = {n: [sum(of_seed) for of_seed in zip(leak.measures[f"loss at chunks of {n}"],
                                              leak.measures[owed.format(n)], strict=True)]
          for n in (16, 256)}  # fmt: skip
less = ledger.Estimate.of([a - b for a, b in zip(honest[16], honest[256], strict=True)])
print("loss with a stranger's future, 16 less 256:", less)

# %% [markdown]
# The middle column compares each model with itself. **Within a quarter of a sequence the experts
# tell most, within a whole one less, within four least**: both differences are clear of 0, and what
# is left within four, 0.003 ± 0.016 nats, is not. The two causal ways gain exactly nothing. The
# first column compares *different* models after 250 steps, and three seeds rank none of them
# against top-2. Of other pairs only "16, shuffled" less "chunks of 256" is clear of 0, 0.023 ±
# 0.009.
#
# **On the longer bench lead and leak can both be measured.** The model whose experts choose among 8
# neighbours, 5% better as trained, loses 0.63 ± 0.02 nats with a stranger's future. Without the
# future it is *worse* than choice among the batch by 0.47 ± 0.02. The whole lead, and more, is the
# leak.

# %%
ledger.verdicts("wang2024_leak")

# %% [markdown]
# *Expert threshold* (Sun et al. 2026) trains with bars, running means: a token asks nobody. Section
# 5's test:

# %%
bars, since = recent.ThresholdRouter(16, num_experts=8), ledger.stored("recent2026")
for _ in range(30):
    bars.update(bars(2 * torch.randn(256, 16)).load_E())
for name, gate in (("experts choose", router), ("thresholds", bars.eval())):
    with torch.no_grad():
        moved = looks_ahead(lambda x_TD, gate=gate: MoELayer(gate, experts)(x_TD)[0], x_TD)
    lost = since[f"owed to the future at {name}"]
    print(f"{name:15} earlier answers move by {moved:.2f};\n  trained, it loses {lost.mean:z.4f} ± "
          f"{lost.half:.4f} nats with a stranger's future")  # fmt: skip
print("loss, thresholds − top-2:", since[ledger.Pair("loss at thresholds", "loss at top-2")])

# %% [markdown]
# With thresholds nothing leaks. Among 1,024 tokens a trained model's leak is too small for five
# seeds, 0.0001 ± 0.0039 nats; the untrained layer shows that the way is open. After 150 steps
# thresholds are *behind* top-2, by 0.11 ± 0.07 nats; their paper has them ahead by 0.067 in the end
# ([appendix 09a](09a_since_2024.ipynb)).
#
# **What you may believe now, at this scale:** expert choice among a large batch ends level with
# token choice (0.0015 ± 0.0061 nats, inside the margin of 0.02); among neighbours its lead is made
# of the future. **What is open:** whether the two causal ways, across sequences and with trained
# bars, cost anything in the end; and how large models compare: OLMoE (section 4.1.4) found token
# choice better on every task shown.
#
# ## 9. What goes wrong: a model that is another when it writes
#
# Here is a bug that raises no error. Somebody trains with expert choice and then generates with a
# KV cache, as everybody does: the prompt at once, then **one token at a time**. What is wrong? Look
# at the router's load before you open the answer.

# %%
writer = ExpertChoiceRouter(16, num_experts=8, capacity_factor=2.0)
for T in (512, 64, 8, 4, 2, 1):
    routing = writer(torch.randn(T, 16))
    mean = len(routing.token_N) / T
    print(f"{T:3} tokens: each expert takes {len(routing.token_N) // 8:3}, "
          f"a token has {mean:.0f} experts on average")  # fmt: skip

# %% [markdown]
# <details>
# <summary>What is it?</summary>
#
# $k = \lceil 1 \cdot 2 / 8 \rceil = 1$: every expert takes its best token, and there is only one.
# So while it writes, every token goes through *all eight* experts, four times the work, as hardly
# ever in training. Rounding down instead would give $k = 0$: no expert at all. There is no right
# capacity for one token, because the choice was never the token's own. It also means that a model
# *evaluated* on whole texts is not the model that writes, and its perplexity says nothing about it.
#
# </details>
#
# The trained model of section 8 becomes another too: the same 16 tokens, in one go and one after
# another. (Groups of 16 would refuse a single token, so what comes is now one group.)

# %%
for layer in model.moe_layers:
    layer.gate.group_size = None
text = batches[0].ids_BS[:1, :16]
with torch.no_grad():
    whole_SV = model(text).logits_BSV[0]
    cache = KVCache(model.config, 1, 16, torch.device("cpu"), torch.float32)
    steps_SV = torch.cat([model(text[:, t : t + 1], cache=cache).logits_BSV[0] for t in range(16)])
same = (whole_SV.argmax(-1) == steps_SV.argmax(-1)).sum()
print(f"greedy next token agrees at {same} of 16 places; logits differ by up to "
      f"{(whole_SV - steps_SV).abs().max():.1f}")  # fmt: skip

# %% [markdown]
# That is how to catch it: a causal model gives the same logits in one go and step by step, up to
# rounding. One `allclose` in a test. (It fails for an honest queue too, whose length is counted
# from the batch: there take section 5's test.)
#
# ## Exercises
#
# [`exercises/08_exercises.ipynb`](../exercises/08_exercises.ipynb): choose along the other
# axis, count and carry back, then build a detector of leaks that clears three routers and catches
# seven, and groups that it cannot fault. Each check tells you *what* you misunderstood. Solutions
# are in [`solutions/`](../solutions/08_solutions.ipynb). [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. Top-k down the columns instead of along the rows: perfect balance, no loss, no overflow.
# 2. What varies is how many experts a token gets, and for some it is none.
# 3. A rule that compares tokens with each other compares them with later ones: expert
#    choice, BASE and Soft MoE are not causal. Hashing, top-k and a first-come queue are.
# 4. A model learns to use the leak, most where a few neighbours share a group. Groups across
#    sequences, at one position for example, close it.
# 5. A low loss is worth what its routing was allowed to see. Swap the future and measure again.
#
# | in the papers | in the code | |
# |---|---|---|
# | $n$, $e$, $c$ | `T`, `E`, `capacity_factor` | tokens, experts, experts per token |
# | $k = nc/e$ | `routers.capacity` | tokens per expert, rounded up |
# | $S$ | `routing.probs_TE` | softmax over the experts |
# | $I$, $G$ | `routing.token_N`, `routing.gate_N` | expert by expert |
# | a group, a chunk | `group_size` | tokens among which an expert chooses |
# | hash | `routers.HashRouter` | a table of ids |
# | $D$, $C$ (Soft MoE) | `scores.softmax(0)`, `scores.softmax(1)` | dispatch, combine |
#
# **Read on:** Zhou et al., sections 3.2, 4.5 and 6; Wang et al., section 5.2 and appendix D; OLMoE,
# section 4.1.4.
