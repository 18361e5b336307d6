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
# # Exercises 14: How does it get bigger than a machine?
#
# Four exercises for the chapter [How does it get bigger than a
# machine?](../notebooks/14_many_machines.ipynb), an hour together, no GPU and no
# second machine.
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
# | 4 | Copies that leave a node | ●●●○○ | ●●●●○ | 20 |

# %%
import torch
from torch import Tensor

from moe_lite.course import checks

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
# (a bug that transformers' trainer had until October 2024, with accumulation steps instead of
# ranks: pull request 34191). Fix it with one number per rank, by which it multiplies its mean
# loss before `backward()`, so that the average is the gradient of the mean over **all** tokens. A
# rank without a token has a weight too: which? (A mean over nothing is NaN, and 0 times NaN is
# NaN: such a rank runs a row of padding, so that it has a loss to multiply.)

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
# ## 4. Copies that leave a node
#
# *Difficulty ●●●○○ · importance ●●●●○ · 20 minutes*
#
# Between nodes the network is slow, so DeepSeek-V3 sends **one copy to each node** that holds one
# of a token's experts, and limits the nodes (its section 2.1.2). The rule: a node is worth the sum
# of the token's `top_k // limit` highest scores there. Keep the `limit` best nodes, then choose the
# `top_k` best experts among *theirs*. Experts lie in order, equally many on each node. How many
# copies of each token leave its own node, `home_T`?
#
# By hand: three nodes of two experts, scores 8 3, 9 1, 7 6, $K = 2$, limit 1. The nodes are worth
# 11, 10 and 13: node 2. Experts 4 and 5, and for a token at home in node 0 one copy. (Without the
# limit it would be experts 0 and 2.)
#
# <details>
# <summary>Hint 1</summary>
#
# `score_TE.view(T, nodes, -1)` has a node's experts in its last dimension. Put `-inf` where a node
# is not allowed, flatten, `topk`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# From the experts to their nodes by `//`. Mark in a table `(T, nodes)` which nodes are needed,
# strike out the home, and count.
#
# </details>


# %%
def copies_leaving(score_TE: Tensor, home_T: Tensor, nodes: int, top_k: int, limit: int) -> Tensor:
    """Count the copies of each token that leave its node, under a limit on nodes.

    Returns: copies_T, whole numbers.
    """
    ### BEGIN SOLUTION
    T, size = len(score_TE), score_TE.shape[1] // nodes
    score_TNE = score_TE.view(T, nodes, size)
    worth_TN = score_TNE.topk(top_k // limit).values.sum(-1)
    kept_TN = torch.zeros(T, nodes).scatter(1, worth_TN.topk(limit).indices, 1) > 0
    allowed_TE = score_TNE.masked_fill(~kept_TN[..., None], -torch.inf).flatten(1)
    node_TK = allowed_TE.topk(top_k).indices // size
    there_TN = torch.zeros(T, nodes).scatter(1, node_TK, 1)
    return there_TN.scatter(1, home_T[:, None], 0).sum(1).long()
    ### END SOLUTION


# %%
checks.check_copies_leaving(copies_leaving)

# %% [markdown]
# DeepSeek-V3's 8 of 256 on 8 nodes, random scores: with all nodes allowed, and with four. (With all
# eight a node is worth its best score, which decides nothing: all are kept.)

# %%
scores = torch.rand(4096, 256, generator=torch.Generator().manual_seed(0))
home_T = torch.arange(4096) % 8
for limit in (8, 4, 2, 1):
    copies = copies_leaving(scores, home_T, 8, 8, limit).double().mean()
    print(f"at most {limit} nodes: {copies:.2f} copies leave the node")
