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
# # Exercises 09: Why many small experts?
#
# Seven exercises for the chapter [Why many small experts?](../notebooks/09_fine_grained.ipynb),
# about an hour and three quarters together, no GPU. The first two are about DeepSeekMoE's split,
# three about the bias that balances without a loss, the last two about what a few seeds can say.
# Most begin with code that is wrong in a way that has been seen in the wild: say what it is before
# you write it right.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Split without paying | ●○○○○ | ●●●●● | 10 |
# | 2 | Take the best away | ●●○○○ | ●●●○○ | 15 |
# | 3 | Select, and do not weigh | ●●○○○ | ●●●●● | 15 |
# | 4 | A controller that does the opposite | ●●●○○ | ●●●●● | 20 |
# | 5 | Two lopsided batches | ●●○○○ | ●●●●○ | 15 |
# | 6 | The same seeds | ●●○○○ | ●●●●● | 15 |
# | 7 | What an interval says | ●●●○○ | ●●●●● | 15 |

# %%
import torch
from torch import Tensor

from moe_lite.course import checks

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Split without paying
#
# *Difficulty ●○○○○ · importance ●●●●● · 10 minutes*
#
# A layer has $N$ experts of hidden width $F$, and each token uses $K$ of them. Somebody splits
# them in $m$ and sets one aside as shared. These are the numbers of that somebody's config, and
# then of what the layer has and does, in units of width:


# %%
def hasty_split(N, K, F, m, shared):
    return m * N, m * K, F // m  # and `shared` more that every token uses


for shared in (0, 1):
    routed, top_k, width = hasty_split(16, 2, 128, 4, shared)
    print(f"{shared} shared: all {(routed + shared) * width:,}, active {(top_k + shared) * width}")

# %% [markdown]
# It should have been 2,048 and 256, both times. A comparison in which one side works an eighth
# more does not say what splitting is good for. Write it so that *nothing* changes but the number
# of pieces: the same total width, the same active width, shared experts included.
#
# By hand: 16 experts of width 128, 2 for each token; split in four, one shared. There are 64
# pieces of width 32. How many are left to route, and how many of them does a token get?
#
# ($m$ divides $F$, and there are fewer shared experts than $m K$.)
#
# <details>
# <summary>Hint 1</summary>
#
# Think of seats. A token has $m K$ seats for pieces. Who sits on them before the router is asked?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A shared expert is a piece like the others: one of the $m N$, in one of the $m K$ seats.
#
# </details>


# %%
def split_experts(N: int, K: int, F: int, m: int, shared: int) -> tuple[int, int, int]:
    """Split N experts of width F in m pieces each, of which some are shared, at equal cost.

    Returns: how many experts are routed, how many of those a token gets, and the width of each.
    """
    ### BEGIN SOLUTION
    return m * N - shared, m * K - shared, F // m
    ### END SOLUTION


# %%
checks.check_split_experts(split_experts)

# %% [markdown]
# One thing did grow, and no choice of numbers helps: the router has a row for each routed expert.
# Sixty-three rows of width $D$ are little beside experts of $3 D F / m$ each, until $m$ is so large
# that they are not.
#
# ## 2. Take the best away
#
# *Difficulty ●●○○○ · importance ●●●○○ · 15 minutes*
#
# The paper's Figure 4 asks how replaceable experts are: for each token, disable the experts that
# the router wanted most, a given share of *all* of them, and let the token have the next best, as
# many as before. This code runs, and its curve is almost flat.


# %%
def gentle_disable(logits_TE, k, ratio):
    load_E = logits_TE.topk(k).indices.flatten().bincount(minlength=logits_TE.shape[1])
    busiest_M = load_E.topk(round(ratio * len(load_E))).indices
    top_TK, expert_TK = logits_TE.index_fill(1, busiest_M, 0.0).topk(k)
    return top_TK.softmax(dim=-1), expert_TK


logits_TE = torch.tensor([[3.0, 1.0, -1.0, -2.0], [-1.0, 0.5, 2.0, -3.0]])
print(gentle_disable(logits_TE, 2, ratio=1 / 4)[1])

# %% [markdown]
# It is expert 1 that was to be disabled, though it was neither token's favourite, and yet both
# still have it! Two mistakes. Find both, and write it right. For a plain top-k router the gates are
# the softmax over the $k$ that are chosen.
#
# By hand: probabilities .32, .16, .08, .04, .02, .01 (up to a factor), $k = 3$, ratio 1/3. Of six
# experts, two are disabled; the next three have .08, .04, .02, so the gates are 4/7, 2/7, 1/7.
#
# <details>
# <summary>Hint 1</summary>
#
# Whose best? Figure 4 disables "for each token". And a logit of 0 is a logit like any other:
# beside −1 it wins.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `logits.topk(n).indices` are each token's favourites, (T, n). `scatter(1, indices, -torch.inf)`
# puts them out of reach. With a ratio of 0 there are none, and `topk(0)` is fine with that.
#
# </details>


# %%
def disable_top(logits_TE: Tensor, k: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Choose k experts for each token without its best round(ratio * E).

    Returns: gate_TK, adding up to 1, and expert_TK (int64).
    """
    ### BEGIN SOLUTION
    best_TM = logits_TE.topk(round(ratio * logits_TE.shape[1]), dim=-1).indices
    top_TK, expert_TK = logits_TE.scatter(1, best_TM, -torch.inf).topk(k, dim=-1)
    return top_TK.softmax(dim=-1), expert_TK
    ### END SOLUTION


# %%
checks.check_disable_top(disable_top)

# %% [markdown]
# ## 3. Select, and do not weigh
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# In October 2025 somebody noticed by chance that a much-used library had changed DeepSeek-V3's
# gates ([transformers #41647](https://github.com/huggingface/transformers/pull/41647); vLLM had
# had the same mistake, [#12002](https://github.com/vllm-project/vllm/pull/12002)). In short,
# the cleaned-up code did this:


# %%
def tidy_choice(logits_TE, bias_E, k):
    gate_TK, expert_TK = (logits_TE.sigmoid() + bias_E).topk(k)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


bias_E = torch.tensor([-0.4, 0.1, -0.3, 0.2, 0.4])
print(*tidy_choice(torch.tensor([[0.5, 0.4, 0.3, 0.6, 0.2]]).logit(), bias_E, 2))

# %% [markdown]
# The experts are the right ones. The gates are not. Write it right: choose by score + bias, weigh
# by the score alone, divided by the sum over the *selected*.
#
# By hand, with the numbers above: score and bias add up to .1, .5, 0, .8, .6, so experts 3 and 4
# are chosen. Their own scores are .6 and .2, so the gates are 3/4 and 1/4.
#
# <details>
# <summary>Hint 1</summary>
#
# You need only the *indices* of the top-k of score + bias.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `scores.gather(1, expert_TK)` looks up each token's scores of its chosen experts, and keeps the
# gradient.
#
# </details>


# %%
def biased_choice(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose k experts for each token by sigmoid score + bias, and weigh them by the score.

    Returns: gate_TK, adding up to 1, with a gradient to the logits; expert_TK (int64).
    """
    ### BEGIN SOLUTION
    scores_TE = logits_TE.sigmoid()
    expert_TK = (scores_TE + bias_E).topk(k, dim=-1).indices
    gate_TK = scores_TE.gather(1, expert_TK)
    return gate_TK / gate_TK.sum(dim=-1, keepdim=True), expert_TK
    ### END SOLUTION


# %%
checks.check_biased_choice(biased_choice)

# %% [markdown]
# Why does it matter so much? The bias of an idle expert is large *because nobody wants it*. If the
# bias leaks into the gates, the expert that fits worst is given the largest voice.
#
# ## 4. A controller that does the opposite
#
# *Difficulty ●●●○○ · importance ●●●●● · 20 minutes*
#
# One turn of Algorithm 1: choose with the bias as it is, count, move each bias by $u$ towards an
# equal load. Below are two versions that one can find, or write on a tired evening. (The first is
# [a real one](https://github.com/gfyddha/FlyLoRA/issues/1).) Run them, and say of each *what* is
# wrong before you go on.


# %%
def against_a_share(load_E, bias_E, k, u):
    return bias_E + u * torch.sign(k / len(load_E) - load_E)


def by_excess(load_E, bias_E, k, u):
    return bias_E + u * torch.sign(load_E - load_E.mean())


lean_TE = torch.randn(400, 6) + torch.linspace(1, -1, 6)


def loads_after(rule, steps=60, k=2, u=0.02):
    scores_TE = lean_TE.sigmoid()
    bias_E = torch.zeros(6)
    for _ in range(steps):
        load_E = (scores_TE + bias_E).topk(k).indices.flatten().bincount(minlength=6).float()
        bias_E = rule(load_E, bias_E, k, u)
    return load_E.int().tolist()


print("no bias          ", loads_after(lambda load_E, bias_E, k, u: bias_E))
print("against a share  ", loads_after(against_a_share))
print("by excess        ", loads_after(by_excess))

# %% [markdown]
# The first compares a *count* with a *share*, so every expert that got even one token is told to
# get less. All biases fall together, and a bias that all have in common changes no choice: the
# loads are those without any. The second drives in the wrong direction. A third mistake would look
# better than the truth: to move the bias *before* the choice, with the counts of the very tokens
# that are to be routed. Then where a token goes depends on tokens that come after it, and a
# language model must not look there.
#
# Now the right one. By hand: four tokens with the scores
# (.8, .1, .5), (.3, .6, .2), (.1, .7, .6), (.1, .7, .6), $k = 1$, bias (0, −.2, 0), $u = .1$. The
# last two tokens prefer expert 1, and the bias sends them to 2. So the loads are 1, 1, 2 with a
# mean of 4/3, and the new bias is (.1, −.1, −.1).
#
# <details>
# <summary>Hint 1</summary>
#
# `torch.sign(mean − load)`: +1 for who has too little, −1 for who has too much.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `bincount(minlength=E)` counts idle experts too. The scores go in detached: a controller is not
# something that the loss should train.
#
# </details>


# %%
def balanced_step(logits_TE: Tensor, bias_E: Tensor, k: int, u: float) -> tuple[Tensor, Tensor]:
    """Choose by sigmoid score + bias, then move the bias by u towards an equal load.

    Returns: expert_TK (int64), as the *given* bias chose; the next bias_E, without gradient.
    """
    ### BEGIN SOLUTION
    expert_TK = (logits_TE.detach().sigmoid() + bias_E).topk(k, dim=-1).indices
    load_E = expert_TK.flatten().bincount(minlength=len(bias_E)).to(bias_E.dtype)
    return expert_TK, bias_E + u * torch.sign(load_E.mean() - load_E)
    ### END SOLUTION


# %%
checks.check_balanced_step(balanced_step)

# %% [markdown]
# Sixty turns of yours, on the same scores as above:

# %%
bias_E = torch.zeros(6)
for _ in range(60):
    expert_TK, bias_E = balanced_step(lean_TE, bias_E, 2, 0.02)
print(expert_TK.flatten().bincount(minlength=6).tolist(), "with the bias", bias_E)

# %% [markdown]
# ## 5. Two lopsided batches
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# $\mathrm{MaxVio} = (\max_i \mathrm{load}_i - \overline{\mathrm{load}}) / \overline{\mathrm{load}}$
# comes in two kinds. *Global*: of the loads of a whole data set. *Per batch*: of each batch's,
# then the mean. A dashboard had this, and reported that a well-balanced model was not:


# %%
def dashboard(loads_SE):
    each_S = loads_SE.amax(dim=1) / loads_SE.mean(dim=1) - 1
    return each_S.mean(), each_S.mean()  # global, per batch


loads_SE = torch.tensor([[4.0, 1.0, 1.0], [1.0, 3.0, 2.0]])
print(*dashboard(loads_SE))

# %% [markdown]
# By hand: the first batch has a violation of $4/2 - 1 = 1$, the second of $3/2 - 1 = 0.5$. Together
# the experts did 5, 4, 3: a violation of 0.25. Write both.
#
# <details>
# <summary>Hint 1</summary>
#
# Which comes first in the global one: the sum over the batches, or the maximum?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Write MaxVio once, as a function of one list of loads. Then call it on the sum of all rows, and
# on each row.
#
# </details>


# %%
def violations(loads_SE: Tensor) -> tuple[Tensor, Tensor]:
    """Measure MaxVio of S batches, pairs for each of E experts.

    Returns: the global one, of all batches pooled; the mean of the batches' own.
    """
    ### BEGIN SOLUTION
    pooled_E = loads_SE.sum(dim=0)
    each_S = loads_SE.amax(dim=1) / loads_SE.mean(dim=1) - 1
    return pooled_E.max() / pooled_E.mean() - 1, each_S.mean()
    ### END SOLUTION


# %%
checks.check_violations(violations)

# %% [markdown]
# How far apart can the two be when *nothing* is wrong? Here tokens go to experts by fair dice:

# %%
for tokens in (64, 1024, 16384):
    rolls = torch.rand(50, tokens, 16).topk(2).indices.flatten(1)
    loads_SE = torch.stack([roll.bincount(minlength=16) for roll in rolls]).float()
    whole, per_batch = violations(loads_SE)
    print(f"batches of {tokens:6} tokens: global {whole:.3f}, per batch {per_batch:.3f}")

# %% [markdown]
# Chance alone makes small batches lopsided. A per-batch MaxVio can only be read beside the size of
# the batch; the global one says what the *router* does.
#
# ## 6. The same seeds
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# Two settings, each trained from the same $n$ seeds. A figure of ours had a bar for each, and its
# reader was to see whether the bars overlap:


# %%
def two_bars(a_S, b_S, t):
    halves = [t * x_S.std() / len(x_S) ** 0.5 for x_S in (a_S, b_S)]
    return a_S.mean() - b_S.mean(), halves[0] + halves[1]


coarse_S, fine_S = torch.tensor([5.10, 4.83, 4.97]), torch.tensor([5.06, 4.78, 4.94])
print("two bars:", *two_bars(coarse_S, fine_S, t=4.303))

# %% [markdown]
# In each of the three seeds the second is ahead, by .04, .05 and .03, and the bars say 0.04
# ± 0.68. What the seeds have in common stands in both bars, and twice. Take it out.
#
# The 95% interval of a mean of $n$ numbers with spread $s$ (divide by $n - 1$) reaches
# $t\,s / \sqrt{n}$ to each side; $t$ is Student's, 4.303 for three numbers, and is given.
#
# By hand: $a = (5, 7, 6)$, $b = (6, 9, 9)$. The differences are −1, −2, −3. Their mean is −2, their
# spread 1, and half the interval is $4.303 / \sqrt{3} = 2.484$. So they might be equal.
#
# <details>
# <summary>Hint 1</summary>
#
# What would you compute of one list of numbers? Make it one list first.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `torch.std` divides by $n - 1$ already.
#
# </details>


# %%
def paired_difference(a_S: Tensor, b_S: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Estimate a - b from S seeds that both settings share; t is Student's for S numbers.

    Returns: the mean difference; half of its 95% interval.
    """
    ### BEGIN SOLUTION
    d_S = a_S - b_S
    return d_S.mean(), t * d_S.std() / len(d_S) ** 0.5
    ### END SOLUTION


# %%
checks.check_paired_difference(paired_difference)

# %%
mean, half = paired_difference(coarse_S, fine_S, t=4.303)
print(f"seed by seed: {mean:.3f} ± {half:.3f}")

# %% [markdown]
# ## 7. What an interval says
#
# *Difficulty ●●●○○ · importance ●●●●● · 15 minutes*
#
# A paper prints an effect: −0.06 nats, say. You have an interval. The first rule that this course
# had was:


# %%
def hasty_verdict(low, high, paper):
    mean = (low + high) / 2
    return "reproduced" if abs(mean / paper - 1) < 0.5 else "not reproduced"


print(hasty_verdict(-0.14, 0.02, -0.06), "|", hasty_verdict(-0.10, 0.09, -0.06))

# %% [markdown]
# The first interval holds 0 and twice the paper's effect, the second holds 0, the paper's effect
# and its opposite. Neither says anything, and they got two verdicts. Write the ledger's, in which 0
# is no effect and the paper's effect may have either sign:
#
# - "contradicted": all of the interval lies on the other side of 0;
# - "null": it holds 0, and on the paper's side it reaches less than *half* of the paper's effect
#   (on the other side as far as it likes);
# - "reproduced": all of it lies between half and twice the paper's effect;
# - "other size": all of it lies on the paper's side of 0, it is not "reproduced", and it leaves the
#   paper's number out;
# - "inconclusive": everything else.
#
# By hand: against −0.06, [−0.08, −0.05] is reproduced, [−0.02, −0.01] has another size,
# [−0.02, 0.01] is null, and [−0.04, 0.01] is inconclusive: it holds 0 and more than half.
#
# (No end is exactly 0, half, once or twice the effect.)
#
# <details>
# <summary>Hint 1</summary>
#
# In units of the paper's effect there are only four numbers to compare with: 0, 1/2, 1, 2.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `near, far = sorted((low / paper, high / paper))`: if the effect is negative, the ends change
# places.
#
# </details>


# %%
def what_it_says(low: float, high: float, paper: float) -> str:
    """Judge the interval [low, high] of an effect by the paper's.

    Returns: "reproduced", "other size", "null", "contradicted" or "inconclusive".
    """
    ### BEGIN SOLUTION
    near, far = sorted((low / paper, high / paper))
    if far < 0:
        return "contradicted"
    if near < 0:
        return "null" if far < 0.5 else "inconclusive"
    if near > 0.5 and far < 2:
        return "reproduced"
    return "other size" if far < 1 or near > 1 else "inconclusive"
    ### END SOLUTION


# %%
checks.check_what_it_says(what_it_says)

# %% [markdown]
# How often does it say something, if the paper is right and the noise is as large as its effect?

# %%
for seeds, t in ((3, 4.303), (6, 2.571), (12, 2.201), (24, 2.069)):
    found = []
    for _ in range(1000):
        noise_S = 0.06 * torch.randn(seeds)
        mean, half = paired_difference(noise_S, torch.full((seeds,), 0.06), t)
        found.append(what_it_says(mean.item() - half.item(), mean.item() + half.item(), -0.06))
    print(f"{seeds:2} seeds:", {word: found.count(word) / 1000 for word in sorted(set(found))})

# %% [markdown]
# Count the seeds *before* the run: the ledger prints, for what is inconclusive, how many would do.
#
# ## What you can now say
#
# 1. A fair split keeps $N F$ and $K F$: every piece, shared ones too, comes out of the same budget.
# 2. Disabling is per token, by $-\infty$, and the token is given the next best.
# 3. The bias selects. The score weighs, divided by the sum over the selected.
# 4. Choose, count with the bias on, then move each bias by $u$ towards the mean load.
# 5. Pool first for the global MaxVio. Small batches are lopsided by chance.
# 6. Subtract seed by seed, then ask how well the mean of the differences is known.
# 7. Where the whole interval lies decides. "It holds 0" is not "there is nothing".
