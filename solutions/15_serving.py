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
# # Exercises 15: How is a sparse model served?
#
# Four exercises for the chapter [How is a sparse model served?](../notebooks/15_serving.ipynb),
# an hour together, about bytes and about who does the work.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | How many experts does a batch need? | ●●○○○ | ●●●●● | 10 |
# | 2 | The bytes of a step | ●●●○○ | ●●●●○ | 15 |
# | 3 | Hold the busy ones twice | ●●●○○ | ●●●●○ | 20 |
# | 4 | What a guess costs | ●●●○○ | ●●●●○ | 15 |

# %%
from moe_lite import MixtralConfig
from moe_lite.course import checks, cost, placement

# %% [markdown]
# ## 1. How many experts does a batch need?
#
# *Difficulty ●●○○○ · importance ●●●●● · 10 minutes*
#
# $T$ tokens each choose $K$ *different* experts of $E$, evenly and independently. How many experts
# are chosen by at least one of them, on average?
#
# By hand: $E = 8$, $K = 2$, $T = 2$. Not 4, because they may agree.
#
# <details>
# <summary>Hint 1</summary>
#
# Look at one expert. With what probability does the first token leave it out? And both tokens?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# The mean of a sum is the sum of the means, even if the parts depend on each other. There are $E$
# experts, each in use with the same probability.
#
# </details>


# %%
def distinct_experts(experts: int, top_k: int, tokens: int) -> float:
    """Expect the number of experts that at least one token uses."""
    ### BEGIN SOLUTION
    return experts * (1 - (1 - top_k / experts) ** tokens)
    ### END SOLUTION


# %%
checks.check_distinct_experts(distinct_experts)

# %% [markdown]
# With how many tokens is half of the layer in use?

# %%
for name, E, K in (
    ("Mixtral", 8, 2),
    ("OLMoE", 64, 8),
    ("DeepSeek-V3", 256, 8),
    ("Switch-C", 2048, 1),
):
    T = next(T for T in range(1, 9999) if distinct_experts(E, K, T) >= E / 2)
    print(f"{name:12} {E:4} experts, K = {K}: from {T} tokens on")

# %% [markdown]
# ## 2. The bytes of a step
#
# *Difficulty ●●●○○ · importance ●●●●○ · 15 minutes*
#
# In one step of decoding, each text of a batch gets one token. How many bytes of *weights* does
# the device read from its memory, in bf16? Count what every token uses once for the whole batch;
# of the experts those that you expect in use; of the input embedding nothing (a row per token does
# not matter), unless it is the output matrix as well. Leave the cache aside.
#
# `cost.count_parameters(config)` gives the parameters by part: `total`, `embedding`, `experts` and
# others.
#
# <details>
# <summary>Hint 1</summary>
#
# Two parts: `total - experts - embedding` is read always. With a tied embedding
# (`tie_word_embeddings`) there is one matrix for both purposes, and it is read whole.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `experts` counts all of them, in all layers. Which share of that is in use you know from exercise
# 1.
#
# </details>


# %%
def decode_bytes(config: MixtralConfig, batch: int) -> float:
    """Expect the bytes of bf16 weights that one decoding step of a batch reads."""
    ### BEGIN SOLUTION
    count, E = cost.count_parameters(config), config.num_local_experts
    common = count.total - count.experts
    if not config.tie_word_embeddings:
        common -= count.embedding
    share = distinct_experts(E, config.num_experts_per_tok, batch) / E
    return 2 * (common + share * count.experts)
    ### END SOLUTION


# %%
checks.check_decode_bytes(decode_bytes)

# %%
device = cost.DEVICES["H200 SXM"]
for batch in (1, 4, 16, 64):
    size = decode_bytes(MixtralConfig(), batch)
    speed = batch * device.bandwidth / size
    print(f"{batch:3} texts: {size / 1e9:5.1f} GB, at best {speed:7,.0f} tokens/s")

# %% [markdown]
# From one text to four: a dense model would give four times the tokens per second. A sparse one
# pays for most of them in bytes. From sixteen on it behaves like a dense one.
#
# ## 3. Hold the busy ones twice
#
# *Difficulty ●●●○○ · importance ●●●●○ · 20 minutes*
#
# A server knows from yesterday how many pairs each expert got. It has room for some more than one
# copy of each, and the pairs of an expert that is held twice take turns. How many copies of each?
# What counts is the **heaviest copy**: everybody waits for it. So hand the spare places out one by
# one, each to the expert whose copies have the most to do at that moment (the first of equals).
#
# By hand: loads 9, 4, 1, 2 and room for two more. The first goes to expert 0: 4.5 for each copy.
# That is still the most, so it gets the second too: three copies with 3 each.
#
# <details>
# <summary>Hint 1</summary>
#
# Start with one copy of each. What a copy has to do is its expert's load divided by the copies.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `share.index(max(share))` is the first of the largest.
#
# </details>


# %%
def replicas(load_E: list[int], spare: int) -> list[int]:
    """Count the copies of each expert.

    Args:    load_E: pairs of each expert; spare: places beyond one for each.
    Returns: copies_E, E whole numbers that add up to E + spare.
    """
    ### BEGIN SOLUTION
    copies_E = [1] * len(load_E)
    for _ in range(spare):
        share_E = [load / copies for load, copies in zip(load_E, copies_E, strict=True)]
        copies_E[share_E.index(max(share_E))] += 1
    return copies_E
    ### END SOLUTION


# %%
checks.check_replicas(replicas)

# %% [markdown]
# Sixteen experts whose loads fall like $1/\text{rank}$, on four devices. How busy is the busiest,
# with the copies laid out by the course's `placement.place`?

# %%
load_E = [round(1000 / (e + 1)) for e in range(16)]
for spare in (0, 4, 8, 16):
    copies_E = replicas(load_E, spare)
    held = placement.place(load_E, copies_E, ranks=4)
    work_R = [0.0] * 4
    for load, ranks in zip(load_E, held, strict=True):
        for rank in ranks:
            work_R[rank] += load / len(ranks)
    print(f"{spare:2} spare: busiest / mean {max(work_R) * 4 / sum(work_R):.2f}")

# %% [markdown]
# One more place for each device is enough. It costs memory, a quarter more experts there, and no
# arithmetic at all.
#
# ## 4. What a guess costs
#
# *Difficulty ●●●○○ · importance ●●●●○ · 15 minutes*
#
# A small model guesses $g$ tokens, the large one checks them in one step: it runs the $g$ guesses
# and the token before them, $g + 1$ in all. Each guess is right with probability $p$.
# The check keeps the guesses up to the first wrong one, and gives one token of its own in any case.
# How many **experts of a layer** are read for each token that is **kept**: the expected number of
# distinct experts of a check over the expected number of tokens? (Tokens choose evenly and
# independently, as in exercise 1.)
#
# By hand: $E = 8$, $K = 2$, one guess that is right half of the time. Two tokens read 3.5 experts,
# and a check keeps 1.5 tokens: 2.33 experts for a token. Without guessing it would be 2.
#
# <details>
# <summary>Hint 1</summary>
#
# What is read you know from exercise 1, with $T = g + 1$.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# The second guess is kept only if the first one is: $1 + p + p^2 + \dots + p^g$.
#
# </details>


# %%
def reads_per_token(experts: int, top_k: int, guesses: int, right: float) -> float:
    """Expect the experts of a layer that are read for each token that is kept."""
    ### BEGIN SOLUTION
    kept = sum(right**i for i in range(guesses + 1))
    return distinct_experts(experts, top_k, guesses + 1) / kept
    ### END SOLUTION


# %%
checks.check_reads_per_token(reads_per_token)

# %% [markdown]
# Four guesses of five are right. A dense model reads its one network for each check, so its reads
# for each token fall; how about sparse ones?

# %%
for name, E, K in (("dense", 1, 1), ("Mixtral", 8, 2), ("DeepSeek-V3", 256, 8)):
    reads = [reads_per_token(E, K, g, 0.8) / K for g in (0, 1, 3, 7)]
    print(f"{name:12} 0, 1, 3, 7 guesses: " + ", ".join(f"{r:.2f}" for r in reads))

# %% [markdown]
# (As a multiple of what one token reads without guessing.) A dense model reads a
# quarter for each token with seven guesses. Mixtral, alone on its machine, saves an eighth, and
# DeepSeek-V3 reads *more* the more it guesses. What both save is attention, which a check reads
# once.
