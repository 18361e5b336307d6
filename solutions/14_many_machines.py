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
# # Exercises 11: How does it get bigger than a machine?
#
# Six exercises for the chapter [How does it get bigger than a
# machine?](../notebooks/14_many_machines.ipynb), about an hour and a half together, no GPU
# and no second machine. The first three are about ranks, the others about bytes.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Who sends what to whom | ●●○○○ | ●●●●● | 15 |
# | 2 | The way back | ●●○○○ | ●●●●○ | 15 |
# | 3 | One loss for uneven shares | ●●●○○ | ●●●●● | 15 |
# | 4 | How many experts does a batch need? | ●●○○○ | ●●●●● | 10 |
# | 5 | The bytes of a step | ●●●○○ | ●●●●○ | 15 |
# | 6 | Experts in a byte per weight | ●●●○○ | ●●●○○ | 20 |

# %%
import torch
from torch import Tensor

from moe_lite import MixtralConfig, evaluate, hf, train
from moe_lite.course import checks, cost, data

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Who sends what to whom
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# $R$ ranks have $T$ tokens each, and every token has chosen $K$ of $E$ experts. The experts lie in
# order: the first $E/R$ on rank 0, the next $E/R$ on rank 1, and so on. Count the (token, expert)
# **pairs** that travel from each rank to each, those that stay at home included.
#
# By hand first: two ranks, four experts. Rank 0's tokens chose (0, 1) and (1, 3), rank 1's chose
# (0, 2) and (0, 1). Then rank 0 keeps three pairs and sends one; rank 1 sends three and keeps one.
#
# <details>
# <summary>Hint 1</summary>
#
# An expert's number, divided by the number of experts that a rank has, rounded down, is its rank.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# One row of the matrix is a `bincount(minlength=R)` of one sender's ranks. Stack the rows.
#
# </details>


# %%
def traffic(expert_RTK: Tensor, num_experts: int) -> Tensor:
    """Count the pairs from each rank to each.

    Args:    expert_RTK: the chosen experts of each rank's tokens, int64.
    Returns: pairs_RR, [from, to].
    """
    ### BEGIN SOLUTION
    R = len(expert_RTK)
    to_RTK = expert_RTK // (num_experts // R)
    return torch.stack([to.flatten().bincount(minlength=R) for to in to_RTK])
    ### END SOLUTION


# %%
checks.check_traffic(traffic)

# %% [markdown]
# Its rows tell how much each rank sends, its columns how much each has to compute. Everybody waits
# for the largest column. Here the second half of the experts is popular:

# %%
scores = torch.randn(4, 100, 16, generator=torch.Generator().manual_seed(0)) + torch.arange(16) / 16
pairs_RR = traffic(scores.topk(2).indices, 16)
print(pairs_RR, "work", pairs_RR.sum(0).tolist())

# %% [markdown]
# ## 2. The way back
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# `all_to_all_single` wants two lists on each rank: how many rows it *sends* to each, and how many
# it *receives* from each. A colleague's layer calls it twice, out and back, with the same two
# lists. In the tests, where every rank sent as many rows to each, all was well. In training it
# crashes, or, on a good day, mixes up the tokens.


# %%
def hasty_round_trip(pairs_RR, rank):
    send, receive = pairs_RR[rank].tolist(), pairs_RR[:, rank].tolist()
    return send, receive, send, receive


print("even:  ", hasty_round_trip(torch.tensor([[2, 2], [2, 2]]), 0))
print("uneven:", hasty_round_trip(torch.tensor([[3, 1], [2, 4]]), 0))

# %% [markdown]
# In the uneven case rank 0 has received five rows, and wants to send back four. Give the four
# lists as they should be: what this rank sends and receives on the way out, and on the way back.
#
# <details>
# <summary>Hint 1</summary>
#
# Every row that came from rank 1 has to go back to rank 1. How many were there?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# On the way back the traffic matrix is the transpose of the one on the way out.
#
# </details>


# %%
def round_trip(pairs_RR: Tensor, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """List the rows that a rank sends and receives, out and back.

    Args:    pairs_RR: [from, to].
    Returns: (sends out, receives out, sends back, receives back), R numbers each.
    """
    ### BEGIN SOLUTION
    row, column = pairs_RR[rank].tolist(), pairs_RR[:, rank].tolist()
    return row, column, column, row
    ### END SOLUTION


# %%
checks.check_round_trip(round_trip)

# %% [markdown]
# Tests with equal sizes hide every mistake about sizes. Give each rank another number of tokens,
# and one of them none.
#
# ## 3. One loss for uneven shares
#
# *Difficulty ●●●○○ · importance ●●●●● · 15 minutes*
#
# Each rank takes the mean loss of its own tokens, and `DistributedDataParallel` averages the
# ranks' gradients: sum over the ranks, divided by $R$. With uneven shares that is a mean of means
# (a bug that transformers' trainer had until October 2024, with accumulation steps in the place of
# ranks: pull request 34191). Fix it with one number per rank, by which it multiplies its mean
# loss before `backward()`, so that the average is the gradient of the mean over **all** tokens. A
# rank without a token has a weight too.

# %%
losses = torch.tensor([1.0, 1.0, 1.0, 5.0])
print(
    "all four:", losses.mean().item(), " three and one:", (losses[:3].mean() + losses[3]).item() / 2
)

# %% [markdown]
# <details>
# <summary>Hint 1</summary>
#
# Write the mean over all tokens as a weighted sum of the ranks' means. What is each weight?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# DDP will divide by $R$ whatever you do. Multiply by it first. With even shares every weight is
# then 1.
#
# </details>


# %%
def rank_weights(tokens_R: Tensor) -> Tensor:
    """Give the factor for each rank's mean loss.

    Args:    tokens_R: how many tokens each rank has, int64; some may be 0.
    Returns: weight_R.
    """
    ### BEGIN SOLUTION
    return len(tokens_R) * tokens_R / tokens_R.sum()
    ### END SOLUTION


# %%
checks.check_rank_weights(rank_weights)

# %%
weight_R = rank_weights(torch.tensor([3, 1]))
print("weighed:", (weight_R * torch.stack([losses[:3].mean(), losses[3]])).mean().item())

# %% [markdown]
# ## 4. How many experts does a batch need?
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
# ## 5. The bytes of a step
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
# 4.
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
# ## 6. Experts in a byte per weight
#
# *Difficulty ●●●○○ · importance ●●●○○ · 20 minutes*
#
# If reading weights is what takes the time, make them smaller. In **int8** a weight is a whole
# number from -127 to 127, and each row of a matrix has one scale: $w \approx q \cdot s$. Take for
# $s$ the row's largest absolute value divided by 127, so that nothing overflows and the whole
# range is used. A row of zeros should stay one.
#
# By hand: the row (1, -2, 0.5) has the scale 2/127, and becomes (64, -127, 32).
#
# <details>
# <summary>Hint 1</summary>
#
# `w.abs().amax(dim=1, keepdim=True)` is each row's largest absolute value. `clamp(min=...)` keeps
# you from dividing by zero.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Converting to int8 cuts off towards zero. Round first. And $127.4$ would round to 127, but $128$
# wraps around to -128: why can it not occur with your scale?
#
# </details>


# %%
def quantize(w_FD: Tensor) -> tuple[Tensor, Tensor]:
    """Write a matrix in int8 with a scale per row.

    Returns: q_FD, int8; scale_F1, float, so that q_FD * scale_F1 is within half a step of w_FD.
    """
    ### BEGIN SOLUTION
    scale_F1 = (w_FD.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (w_FD / scale_F1).round().to(torch.int8), scale_F1
    ### END SOLUTION


# %%
checks.check_quantize(quantize)

# %% [markdown]
# What does it do to a model? Every expert of the course's small Mixtral through your function and
# back, then held-out bits per byte. (Here nothing gets faster: we multiply with what comes *back*.
# A real kernel reads int8 and unpacks it on the way.)

# %%
model, text = hf.load_pretrained(), data.load_corpus(max_bytes=200_000)
config = train.TrainConfig(seq_len=64, eval_windows=8, autocast="off")
before = evaluate(model, text, config=config)
with torch.no_grad():
    for layer in model.moe_layers:
        for weight_EFD in layer.experts.parameters():
            for w_FD in weight_EFD:
                q_FD, scale_F1 = quantize(w_FD)
                w_FD.copy_(q_FD * scale_F1)
after = evaluate(model, text, config=config)
for domain in before:
    print(f"{domain:10} {before[domain]:.4f} -> {after[domain]:.4f} bits per byte")

# %% [markdown]
# A byte in the place of two, and you have to look at the third or fourth digit. Routers, attention
# and norms stay as they were: they are a few percent of the bytes, and a router that errs sends a
# token somewhere else altogether.
