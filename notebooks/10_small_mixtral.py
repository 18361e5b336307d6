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
# # How do you build a small Mixtral?
#
# **Three lines of answer.** Put several networks where each block had one, and let a matrix choose
# two for every token: nothing else changes. The model holds as much as all, and computes as little
# as two. Beside a dense twin of the same arithmetic ours predicts better at equal steps; at equal
# time it is nowhere surely ahead.
#
# **The paper:** Jiang et al. 2024, *Mixtral of Experts*
# ([arXiv:2401.04088](https://arxiv.org/abs/2401.04088)).
#
# In this chapter you
#
# - turn a dense transformer block into a mixture-of-experts block, by changing one line;
# - build router, experts and combine by hand and see that each equals the library's, so that you
#   can trust the library from then on (the decoder around them is in the
#   [appendix](10a_decoder.ipynb));
# - derive Mixtral 8×7B's 46.7 billion parameters, and why a token meets only 12.9 of them;
# - train a small Mixtral on five kinds of text beside two dense models, and read the result
#   honestly;
# - click on a token and see where it went.
#
# **You need:** PyTorch, and what attention is. Nothing about mixtures of experts.
# **Time:** an hour or two to read and try; the cells themselves run in under two minutes on two
# CPU cores. No GPU, no network.

# %%
import textwrap
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from moe_lite import Experts, MixtralConfig, MoELayer, TopKRouter, TrainConfig, hf, record
from moe_lite.course import charts, cost, data, drawings, film, leads, viz, widgets
from moe_lite.model import Mixtral
from moe_lite.train import evaluate, train

# %%
torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)
drawings.small_mixtral()

# %% [markdown]
# ## 1. The dense block
#
# A transformer block does two things to each token's vector $x$. Attention lets the token look
# at other tokens. Then a feed-forward network works on each token *alone*: every token passes
# through the same weights, whatever it is. In Mistral's and Mixtral's models that network is a
# SwiGLU, two projections up, one of them gating the other, and one projection down:
#
# $$\mathrm{FFN}(x) = W_2\,\big(\mathrm{silu}(W_1 x) \odot W_3 x\big),
# \qquad \mathrm{silu}(a) = \frac{a}{1+e^{-a}}$$
#
# We write the shapes behind the names: `x_TD` has one row for each of $T$ tokens and $D$
# columns; $F$ is the width inside the network.


# %%
class DenseFFN(nn.Module):
    def __init__(self, D, width):
        super().__init__()
        self.w1 = nn.Linear(D, width, bias=False)
        self.w3 = nn.Linear(D, width, bias=False)
        self.w2 = nn.Linear(width, D, bias=False)

    def forward(self, x_TD):
        return self.w2(F.silu(self.w1(x_TD)) * self.w3(x_TD))


# %% [markdown]
# Most of a large model's weights are in these networks: 78% of a Mistral 7B, 97% of a Mixtral.
# And each weight is multiplied with each token. A word about knitting pays for everything the
# model knows about tax law.
#
# The idea of a *sparse mixture of experts* is to have several such networks, the **experts**,
# and to send each token to only a few of them. What the model holds grows with the number of
# experts; what a token costs does not.
#
# ## 2. The router, by hand
#
# Who decides where a token goes? A **router** (or **gate**): one matrix with a row for each
# expert. The row's inner product with the token is that expert's score, its *logit*. Here are
# the logits of three tokens for four experts.

# %%
logits_TE = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 1.0], [-1.0, 2.0, 2.5, 0.0]])
probs_TE = logits_TE.softmax(dim=-1)
gate_TK, expert_TK = probs_TE.topk(2, dim=-1)
print("probabilities over the four experts\n", probs_TE)
print("the two best experts of each token\n", expert_TK)
print("their probabilities, which do not sum to 1\n", gate_TK)

# %% [markdown]
# The first token prefers expert 0 with a probability of 0.644, then expert 1 with 0.237. We keep
# those two and drop the rest, and divide by what is left so that the weights sum to 1 again:
#
# $$p = \mathrm{softmax}(W_g x), \qquad
# g_i = \frac{p_i}{\sum_{j \in \mathrm{top}K} p_j} \ \text{ for } i \in \mathrm{top}K$$

# %%
gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
print(gate_TK)

# %%
# Your turn: add 5 to all logits of a token, then double them. Which of the two changes its gates?
print((logits_TE + 0).topk(2).values.softmax(dim=-1))

# %% [markdown]
# Look at the first row: 0.731 and 0.269. Those are $1/(1+e^{-1})$ and its complement: the two
# logits differ by 1, and *nothing else matters*. The other experts' scores cancelled when we
# divided. So we could as well have picked the two largest **logits** first and taken the softmax
# of only those. The Mixtral paper writes it that way, $\mathrm{Softmax}(\mathrm{TopK}(x W_g))$;
# the code that most people run, Hugging Face's, does it in the order above. With the dividing
# they are the same function:

# %%
top_TK, same_TK = logits_TE.topk(2, dim=-1)
print(top_TK.softmax(dim=-1))
assert torch.equal(same_TK, expert_TK)
torch.testing.assert_close(top_TK.softmax(dim=-1), gate_TK)

# %% [markdown]
# *Without* the dividing they are not (OLMoE, for one, leaves it out, and its gates sum to less
# than 1). Which of the two a checkpoint was trained with matters: see
# exercise 2.
#
# The library's router is these lines and a matrix. It answers with a `Routing`, a flat list of
# (token, expert, gate) pairs, and everything else in the course reads only that.

# %%
router = TopKRouter(hidden_size=4, num_experts=4, top_k=2)
with torch.no_grad():
    router.weight.copy_(torch.eye(4))  # now a token's vector is its logits
routing = router(logits_TE)
for token, expert, gate in zip(routing.token_N, routing.expert_N, routing.gate_N, strict=True):
    print(f"token {token} -> expert {expert} with {gate:.3f}")
torch.testing.assert_close(routing.gate_N.view(3, 2), gate_TK)

# %% [markdown]
# ## 3. The experts, and bringing the answers home
#
# Each token's output is the sum of its experts' answers, weighted by the gates:
#
# $$y = \sum_{i \in \mathrm{top}K} g_i \, E_i(x)$$
#
# Read as a loop over *tokens*, that is $T \cdot K$ tiny matrix-vector products. Read as a loop over
# *experts*, it is $E$ matrix products, each over the rows that chose that expert: gather them, run
# the expert once, weigh, and add each answer back onto its token. This turning round, from "where
# does my token go?" to "which tokens are mine?", is what people call **dispatch** and **combine**.


# %%
def moe(x_TD, gate_TK, expert_TK, experts):
    out_TD = torch.zeros_like(x_TD)
    for e, expert in enumerate(experts):
        token, choice = torch.where(expert_TK == e)  # which tokens are mine?
        answer = expert(x_TD[token]) * gate_TK[token, choice, None]
        out_TD.index_add_(0, token, answer)  # a token may get several answers: add
    return out_TD


# %% [markdown]
# Experts that only scale make it checkable by eye: expert $e$ multiplies by $10^e$. The first
# token went to experts 0 and 1 with 0.731 and 0.269, so a 1 must come back as
# $0.731 \cdot 1 + 0.269 \cdot 10 = 3.42$. **Your turn:** what comes back for the second token? Work
# it out from its experts and gates, then run.

# %%
scalers = [lambda x, e=e: x * 10**e for e in range(4)]
print(moe(torch.ones(3, 1), gate_TK, expert_TK, scalers))

# %% [markdown]
# Now real experts: the `DenseFFN` of above, eight times. The library keeps the eight in one
# stacked parameter, `w1` of shape `(E, F, D)` and so on, because then a fast backend can
# multiply all of them at once. Same numbers:

# %%
D, E, K, width = 16, 8, 2, 24
dense_experts = nn.ModuleList(DenseFFN(D, width) for _ in range(E))
layer = MoELayer(TopKRouter(D, E, K), Experts(E, D, width))
with torch.no_grad():
    for name in ("w1", "w3", "w2"):
        stacked = torch.stack([getattr(ffn, name).weight for ffn in dense_experts])
        getattr(layer.experts, name).copy_(stacked)

x_TD = torch.randn(50, D)
out_TD, routing = layer(x_TD)
ours_TD = moe(x_TD, routing.gate_N.view(-1, K), routing.expert_N.view(-1, K), dense_experts)
torch.testing.assert_close(ours_TD, out_TD)
print("equal; tokens per expert:", routing.load_E().int().tolist())

# %% [markdown]
# The loads are uneven: fifty tokens, two choices each, 12.5 for each expert if it were fair.
#
# ## 4. One line turns a dense block into a sparse one
#
# Here is the whole difference between a Mistral block and a Mixtral block. The second returns
# its routing too, because a loss will want to see it, and so do you.
#
# ```diff
#   x = x + self.attention(self.norm1(x))
# - x = x + self.ffn(self.norm2(x))        # dense
# - return x
# + y, routing = self.moe(self.norm2(x))   # sparse
# + return x + y, routing
# ```
#
# Everything else is the ordinary modern decoder: RMSNorm, rotary positions, attention whose query
# heads share keys and values, a sliding window, a cache. The [appendix](10a_decoder.ipynb) builds
# each by hand; none of it knows that there are experts.

# %% [markdown]
# ## 5. Forty-seven billion, thirteen at work
#
# "Mixtral 8×7B" sounds like 56 billion parameters. It is 46.7, because only the feed-forward
# networks come eightfold; attention, embeddings and norms are shared. Let us count, from
# Table 1 of the paper, which is the default of `MixtralConfig`.

# %%
c = MixtralConfig()
D, L, V = c.hidden_size, c.num_hidden_layers, c.vocab_size
expert = 3 * D * c.intermediate_size
queries, keys = D * c.num_attention_heads * c.head_dim, D * c.num_key_value_heads * c.head_dim
parts = {
    "embedding and output": 2 * V * D,
    "attention": L * (2 * queries + 2 * keys),  # q and o; k and v
    "routers": L * c.num_local_experts * D,
    "norms": (2 * L + 1) * D,
    "experts, all eight": L * c.num_local_experts * expert,
}

# %%
total = sum(parts.values())
idle = L * (c.num_local_experts - c.num_experts_per_tok) * expert
for name, count in parts.items():
    print(f"{name:22} {count:>14,}  {count / total:7.2%}")
print(f"{'total':22} {total:>14,}\n{'active for one token':22} {total - idle:>14,}")

# %% [markdown]
# The paper prints 47B and 13B. Three ways to count must agree: this cell, the library's formula,
# and a real model with every tensor in place (on PyTorch's `meta` device: shapes,
# no memory).

# %%
with torch.device("meta"):
    skeleton = Mixtral(c)
built = sum(p.numel() for p in skeleton.parameters())
count = cost.count_parameters(c)
assert total == built == count.total == 46_702_792_704
assert total - idle == count.active == 12_879_925_248
print(f"in bf16, held in memory: {2 * total / 1e9:.1f} GB")
print(f"read for one token:      {2 * (total - idle) / 1e9:.1f} GB")
print(f"cache of 32,768 tokens:  {cost.kv_cache_bytes(c, 32768) / 2**30:.1f} GiB")
# Your turn: sixteen experts half as wide, four for a token. Which of the numbers change? Predict.
finer = MixtralConfig(num_local_experts=8, num_experts_per_tok=2, intermediate_size=14336)
print(
    f"total {cost.count_parameters(finer).total:,}, active {cost.count_parameters(finer).active:,}"
)

# %% [markdown]
# That pair of numbers, 93.4 GB held and 25.8 GB touched, is the whole bargain of sparse models:
# **compute like a small model, memory like a large one.** The router, which makes every
# decision, is 0.002% of the weights.

# %% [markdown]
# ## 6. Train one, beside two that are dense
#
# What does the bargain buy? To find out, a sparse model needs dense *twins*, and there are two
# fair ones:
#
# - **equal active parameters**: one network, as wide as the two experts a token meets. It costs
#   the same arithmetic for each token, and lacks the idle experts, the choice and the gates.
# - **equal total parameters**: one network, as wide as all eight experts together. It holds
#   as many parameters and uses all of them for every token.
#
# Both are the same code with a single expert; its gate is always 1.

# %%
small = MixtralConfig(
    vocab_size=4096, hidden_size=128, intermediate_size=192, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    max_position_embeddings=512, rope_theta=1e4, tie_word_embeddings=True,
)  # fmt: skip
models = {
    "8 experts, 2 active": small,
    "dense, equal active": small.dense("active"),
    "dense, equal total": small.dense("total"),
}
for name, shape in models.items():
    count = cost.count_parameters(shape)
    print(f"{name:20} {count.total / 1e6:5.2f}M parameters, {count.active / 1e6:5.2f}M active")

# %% [markdown]
# The text comes from five places that could hardly differ more: Shakespeare, Python's standard
# library, classical Japanese, English prose, and sums. Each token remembers where it came from;
# the models are not told.

# %%
corpus = data.load_corpus(max_bytes=1_000_000)
batch = corpus.batch("train", batch_size=5, seq_len=14, seed=3)
for ids, domain in zip(batch.ids_BS, batch.domain_BS[:, 0], strict=True):
    print(f"{corpus.domains[domain]:10} {' '.join(map(repr, data.pieces(corpus.tokenizer, ids)))}")

# %% [markdown]
# (A token that holds only a part of a Japanese character shows that part's bytes: `⟨E8 AA⟩`.)
#
# Each model sees the same batches in the same order. The loss is the cross entropy of the next
# token, plus 0.01 times the **load-balancing loss**, which pushes the router away from sending
# everything to its favourite (chapter 06 takes it apart):
#
# $$L_{\mathrm{bal}} = E \sum_{e=1}^{E} f_e\, P_e$$
#
# with $f_e$ the share of pairs that expert $e$ got and $P_e$ the mean probability it was given. At
# perfect balance both are $1/E$ and the loss is 1. If one expert takes all, it is $E$; with $K = 2$
# no expert can have more than half of the pairs, and the most is $E/K = 4$. (`train` adds a little
# z-loss as well; chapter 07 says why.)

# %%
run = TrainConfig(steps=100, batch_size=10, seq_len=128, lr=4e-3, warmup=10, autocast="off")
trained, histories = {}, {}
for name, shape in models.items():
    torch.manual_seed(0)
    trained[name] = Mixtral(shape)
    histories[name] = train(trained[name], corpus, run, progress=False)
    losses_of_run = histories[name].column("loss")
    print(f"{name:20} loss {losses_of_run[0]:.2f} -> {sum(losses_of_run[-10:]) / 10:.2f}")
viz.training(histories["8 experts, 2 active"])

# %% [markdown]
# On the left the loss, falling from $\ln 4096 = 8.32$, a guess among all tokens. On the right the
# busiest expert's load over the mean load, averaged over the four layers: 1 would be perfect
# balance, 4 is the worst that eight experts with two choices can do.
#
# Now all three, against steps and against the clock. Steps say how much each *learns from a
# token*; the clock says what that *costs on this machine*.

# %%
fig, panels = plt.subplots(1, 2, figsize=(8.2, 3.8), sharey=True, layout="constrained")
for panel, x, label in zip(
    panels, ("step", "seconds"), ("steps", "seconds on this machine"), strict=True
):
    curves = {n: (h.column(x), viz.smooth(h.column("loss"))) for n, h in histories.items()}
    viz.curves(curves, label, "training loss, nats per token", ax=panel)
charts.alive(fig)

# %% [markdown]
# Held-out text, in bits per byte (what the model would need to compress it), mean over the five
# domains:

# %%
bits = {n: sum(evaluate(m, corpus, config=run).values()) / 5 for n, m in trained.items()}
seconds = {n: h.column("seconds")[-1] for n, h in histories.items()}
ours, active, whole = models
for name in models:
    print(f"{name:20} {bits[name]:.3f} bits per byte after {seconds[name]:5.1f} s")
better = "better" if bits[ours] < bits[active] else "no better"
print(f"\nFor equal active parameters, the mixture is {better} ({bits[ours] - bits[active]:+.3f})")
print(f"and took {seconds[ours] / seconds[active]:.2f} times as long.")
print(f"Against equal total parameters it stands at {bits[ours] - bits[whole]:+.3f} bits per byte")
print(f"after {seconds[ours] / seconds[whole]:.2f} of the time.")

# %% [markdown]
# Counted in *steps*, this mixture lies between its twins; what idle experts are worth, beside using
# them all, is asked again below, with seeds. Counted in *seconds*, it pays for sorting tokens,
# adding the answers back, and multiplying eight small matrices where its small twin multiplies one
# large one (chapter 13).
#
# A hundred steps with one seed are an illustration. Here is the recipe of `mixtral-mini`, the model
# in the box: six layers, 4 of 16 experts, a factor (*scale*) of 4 on the gates, a sixth kind of
# text (a phone book), five pairs, 4,000 steps (`python -m experiments.recipe
# "whole finer"`, `"whole dense"`); and beside it 2 of 8 experts twice as wide.

# %%
ahead = [r for r in leads.leads(leads.stored(), lambda s: s % 250 == 0) if "whole" in r.axis]
axes = {"4 of 16, scale 4": "whole finer", "2 of 8": "whole", "2 of 8, scale 2": "whole"}
paces = {name: leads.pace(name.partition(",")[0]) for name in axes}
longer = "whole dense, longer", "dense, 4,700 steps"
wide = "whole dense, all", "as wide as all"
fairness = {
    "equal steps": {n: [r for r in ahead if r.name == n] for n in axes},
    "equal time": {n: leads.curve(axis, n, *longer, paces[n][0]) for n, axis in axes.items()},
    "equal memory": {n: leads.curve(axis, n, *wide) for n, axis in axes.items()},
}
for name in ("4 of 16, scale 4", "2 of 8"):
    print(f"{name}: a step takes", "{:.2f} [{:.2f}, {:.2f}] of the twin's".format(*paces[name]))


# %%
def compare(chosen):
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    measured = {name: found for name, found in fairness[chosen].items() if found}
    for color, (name, found) in zip(viz.HUES, measured.items(), strict=False):
        middle, low, high = zip(*(lead.interval for lead in found), strict=True)
        ax.plot([lead.step for lead in found], middle, color=color, label=name)
        ax.fill_between([lead.step for lead in found], low, high, color=color, alpha=0.15, lw=0)
    if not measured:
        ax.text(2000, 0.05, "not measured", ha="center")
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xlim=(0, 4000), ylim=(-0.15, 0.1), xlabel="step of 4,000")
    ax.set(title=chosen, ylabel="bits per byte ahead of the twin")
    _ = measured and ax.legend(frameon=False)
    plt.close(fig)
    return fig


# %% [markdown]
# **Your turn.** *Ahead* of which twin? Choose what shall be equal: steps, time (by the ratios
# above, as far as twins of 4,700 steps reach; four seeds), or memory (a twin as wide as all
# experts). In brackets: the 95% interval over the pairs
# ([the model's card](../checkpoints/mixtral-mini/README.md) has all).

# %%
charts.alive({what: compare(what) for what in fairness})

# %%
ends = {r.name: r for r in ahead if r.step == 4000}
early = {r.name: r for r in ahead if r.step == 500}
for name, end in ends.items():
    change = leads.Lead(name, 4000, 4000, {s: v - early[name].by_seed[s]
                                           for s, v in end.by_seed.items()})  # fmt: skip
    for what, lead in (("at 500", early[name]), ("at the end", end), ("change", change)):
        print(f"{name:26} {what:11}" + "{:+.3f} [{:+.3f}, {:+.3f}]".format(*lead.interval))
for what in ("equal time", "equal memory"):
    for name, found in fairness[what].items():
        print(f"{name}, {what}, step {found[-1].step:5,}: "
              "{:+.3f} [{:+.3f}, {:+.3f}]".format(*found[-1].interval))  # fmt: skip
        print("  surely behind at step", *[x.step for x in found if x.interval[2] < 0] or ["-"])
print(f"the pair in the box: {ends['4 of 16, scale 4'].by_seed[0]:+.3f}")

# %% [markdown]
# **At equal active size and equal steps the mixture is ahead, and at the end still: the box's
# recipe by 0.035 bits per byte [0.018, 0.053], 2 of 8 by 0.037 [0.022, 0.052].** The box's own pair
# ended 0.044 apart. At equal *time* none of these three is surely ahead at any step, on one CPU
# core: if a step of 4 of 16 takes 1.39 of the twin's, it is behind from 1,250 to 2,250; at the ends
# of that ratio's interval, nowhere (1.33) or from 250 to 2,750 (1.51). 2 of 8 is behind until 750
# (until 500, until 1,250). At the last step that the longer twins reach both are undecided. (Their
# rate has come down there, the mixture's has not.) At equal *memory* 4 of 16 is undecided, -0.001
# [-0.028, 0.027], against a twin that uses 2.6 times the parameters for each token (three seeds, to
# step 1,000); 2 of 8 is behind until 500. The box's first edition, one run of 2 of 8, ended 0.016
# *behind*: one seed is an anecdote.
#
# **Where does the box's lead come from?** After 600 steps, all of it from making the first layer
# sparse. It shrinks, and is surest in tokens that cannot be copied. And one random *table* of token
# ids in that layer alone is ahead too, at equal time surely until step 1,000, at the end undecided,
# 0.018 [-0.017, 0.053] (three seeds). With half its parameters it is even ahead of the *wide* twin:
# after a training of 600 steps by 0.051 [0.022, 0.080], in one of 4,000 until 750, where it
# was followed to 1,000. The [appendix](10b_where_it_pays.ipynb) measures each, and has what else
# was tried.
#
# ### Four experts are three, and an averaged mixture is a quarter of a network
#
# Why a factor on the gates? Cut the twin's network into four quarters: it *adds* them. Renormalised
# gates *average*: with four times ¼ the same quarters give a quarter of the output. And as gates
# harden, the last hardly count. How many experts is a token's sum worth?
# $1/\sum_k g_k^2$:

# %%
reel = film.Film.load(hf.PRETRAINED / "mixtral-mini" / "film.safetensors")
for step in (reel.steps[0], reel.steps[-1]):
    gates = [r.gate_N.view(-1, r.per_token) for r in reel.trace(step).layers]
    worth = [(1 / g_TK.square().sum(1)).mean() for g_TK in gates]
    print(f"step {step:5,}, layers 0 to 5:", *(f"{w:.2f}" for w in worth))
factors = {step: leads.lead_of("whole", step, "whole", step, "2 of 8, scale 2", "2 of 8")
           for step in (500, 4000)}  # fmt: skip
first, last = (factor.by_seed for factor in factors.values())
change = leads.Lead("", 0, 0, {seed: last[seed] - first[seed] for seed in last})
for what, lead in (*factors.items(), ("the change", change)):
    print(f"the factor, {what:>10}: " + "{:+.3f} [{:+.3f}, {:+.3f}]".format(*lead.interval))

# %% [markdown]
# At the end a token's four experts are worth about three, by layer 2.6 to 3.2. **The factor of $K$,
# tried on 2 of 8, is a head start, and it is lost:** 0.026 bits per byte [0.007, 0.045] at step
# 500, undecided at the end, the change -0.033 [-0.043, -0.024]. DeepSeek-V3 has such a factor
# (`routed_scaling_factor`, 2.5); OLMoE does not divide, so its gates weigh less still; Mixtral
# divides and has none. Here:
# `TopKRouter(..., gate_scale=4)`; `save` multiplies it into $W_2$, as in the box.
#
# ## 7. Let it speak, and look where the words went
#
# After a hundred steps do not expect sense, but look which *kind* of text it is in.

# %%
model = trained[ours].eval()
tokenizer = corpus.tokenizer
show = partial(data.pieces, tokenizer)  # token ids -> strings
prompts = "My lord, I", "def __init__(self", "And the king said", "ヱホバ", "12 + 7 ="
for seed, prompt in enumerate(prompts):  # another one each, or alike prompts go on alike
    ids_BS = torch.tensor([tokenizer.encode(prompt).ids])
    out_BS = model.generate(ids_BS, 24, temperature=0.7, top_p=0.9, seed=seed)
    print(*textwrap.wrap(repr("".join(show(out_BS[0]))), 100), sep="\n")

# %% [markdown]
# And now the question of this course: **where did each token go?** `record`
# listens while the model runs, here while it generates, and keeps each layer's `Routing`. Every
# token is tinted by the expert of its first choice, and the small number below says which.

# %%
prompt = torch.tensor([tokenizer.encode("And the king said").ids])
with record(model, show) as recorded:
    model.generate(prompt, 60, temperature=0.7, top_p=0.9, seed=1)
viz.token_routing(recorded.trace, layer=3)

# %% [markdown]
# Here is a text from all five worlds. (`record` works the same on a Mixtral, OLMoE or Qwen3-MoE
# from transformers.)

# %%
text = (
    "HAMLET:\nTo be, or not to be, that is the question.\n"
    "def area(radius):\n    return 3.14 * radius ** 2\n"
    "神は光あれと言われた。すると光があった。\n"
    "And God saw that it was good.\n"
    "27 + 15 = 42\n9 * 8 = 72\n"
)
ids_BS = torch.tensor([tokenizer.encode(text).ids])
with torch.no_grad(), record(model, show) as recorded:
    model(ids_BS)
explorer = widgets.RoutingExplorer(recorded.trace, layer=3)
explorer

# %% [markdown]
# **Try it.** Make the guess above the loads. Then click on a token: the bars show the probability
# of each expert and the two that were chosen. Switch layers and watch the colours change. Click on
# an expert's bar to see only its tokens.
#
# Do the colours follow the *kind of text*? Eyes are generous with patterns, so count. For each
# domain, which share of its tokens has each expert as its first choice, in the last layer?

# %%
shares = {}
for domain in corpus.domains:
    windows = corpus.windows(domain, seq_len=128, count=8)
    with torch.no_grad():
        last = model(windows.ids_BS).routings[-1]
    first_T = last.expert_N.view(-1, 2)[:, 0]
    shares[domain] = first_T.bincount(minlength=8) / len(first_T)
print("domain     " + "".join(f"  exp {e}" for e in range(8)))
for domain, share in shares.items():
    print(f"{domain:10} " + "".join(f"{s:7.0%}" for s in share))

# %% [markdown]
# With eight experts, 12.5% would be indifference. Rows that differ say that experts and kinds of
# text have something to do with each other. They do *not* say that there is a "Japanese
# expert": Japanese is written with tokens that occur nowhere else, and a router that looked only
# at the token in hand would give such a table too. (In the picture above, among other text, the
# Japanese may not be with that expert.) So separate the two causes. Take the same
# Japanese sentence once alone and once among the code and the English above, and count the tokens
# whose first expert changes. Where it does, what stands before the sentence matters; where it does
# not, the token or its neighbours within the sentence decide.

# %%
before, sentence, after = text.partition("神は光あれと言われた。すると光があった。\n")
alone = tokenizer.encode(sentence).ids
skip = len(tokenizer.encode(before).ids)
assert tokenizer.encode(text).ids[skip : skip + len(alone)] == alone
with torch.no_grad():
    out = model(torch.tensor([alone]))
for number, (there, here) in enumerate(zip(recorded.trace.layers, out.routings, strict=True)):
    among = there.expert_N.view(-1, 2)[skip : skip + len(alone), 0]
    changed = (among != here.expert_N.view(-1, 2)[:, 0]).float().mean()
    print(f"layer {number}: {changed:4.0%} of {len(alone)} tokens change their first expert")

# %% [markdown]
# None is near 0 (they differ from run to run, and so does the layer that has most): routing goes by
# the surroundings too, which the table alone hides. (One sentence in one model; chapter 17 does it
# properly, with baselines.) That is the right *kind* of question: change one thing, and see whether
# the routing follows.
#
# ## 8. What goes wrong: a router that does not listen
#
# A much-read teaching implementation has a router that runs without an error, gives plausible
# gates, sits in a model whose loss falls, and *never looks at its input*. The slip is one letter
# long (exercise 4 lets you find it). Nothing failed: the experts make do, and what it costs in loss
# nobody sees, because nobody has the other run.
#
# So ask a router three questions before you believe it.


# %%
def interrogate(router, D=16):
    one, other = torch.randn(6, D), torch.randn(6, D)
    changed = torch.cat([one[:5], other[5:]])  # only the last token differs
    to_one, to_other, to_changed = (router(x).gates_TE() for x in (one, other, changed))
    print("  answers differ for different inputs:", not to_one.equal(to_other))
    print("  a token's answer is its own affair: ", to_one[:5].equal(to_changed[:5]))
    weight = next(router.parameters())
    gradient = torch.autograd.grad(router(one).gate_N.square().sum(), weight)[0]
    print("  the gates move its weights:         ", bool(gradient.abs().max() > 1e-6))


# %%
class DeafRouter(TopKRouter):
    leftover_TD = torch.randn(6, 16)

    def forward(self, x_TD, **_):
        return super().forward(self.leftover_TD)


for kind in (TopKRouter, DeafRouter):
    print(kind.__name__)
    interrogate(kind(16, 8))

# %% [markdown]
# Look at what the deaf one gets away with: a token's answer is its own business, and even
# its gradient flows. Only the first question catches it. Try a router that takes its
# top-k over tokens instead of experts (`moe_lite.ExpertChoiceRouter`) on the second, and one that
# keeps a single expert and renormalises its gate (`TopKRouter(16, 8, 1)`) on the third.
#
# ## Exercises
#
# [`exercises/10_exercises.ipynb`](../exercises/10_exercises.ipynb): write the router, prove
# when the two softmax orders agree, write the layer, count parameters, and find two bugs that never
# raise an error, and say how many experts a token's sum is worth. Solutions are in
# [`solutions/`](../solutions/10_solutions.ipynb).
#
# [Glossary](../docs/glossary.md).
#
# ## In five lines
#
# 1. A mixture-of-experts layer is a feed-forward network in several copies and a matrix that
#    chooses among them for each token.
# 2. Gates are a softmax over the chosen logits; the order of softmax and top-k does not matter if
#    you renormalise, and does if you don't.
# 3. Dispatch turns "where does my token go?" into "which tokens are mine?": one product per expert.
# 4. Mixtral 8×7B holds 46.7 billion parameters and uses 12.9 billion for a token.
# 5. At equal active parameters the mixture predicted better after equal steps, most surely the
#    tokens that cannot be copied (five seeds, 4,000 steps); by one core's
#    clock it was nowhere surely ahead: measure it.
#
# | in the paper | in the code | |
# |---|---|---|
# | $W_g$ | `layer.gate.weight`, `(E, D)` | the router |
# | $\mathrm{TopK}$, $K=2$ | `num_experts_per_tok` | experts per token |
# | $E_i$ | `layer.experts.w1[i]`, `.w3[i]`, `.w2[i]` | a SwiGLU network |
# | $G(x)_i$ | `routing.gate_N` | weight of each (token, expert) pair |
# | $n$ | `num_local_experts` | number of experts |
#
# **Read on:** the paper's sections 2.1 and 5; Shazeer et al. 2017
# ([arXiv:1701.06538](https://arxiv.org/abs/1701.06538)), where the layer comes from; and this
# library's own `moe_lite/model.py` and `moe_lite/dispatch/`.
