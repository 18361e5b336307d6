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
# # Exercises 08: What if experts chose the tokens?
#
# Five exercises for the chapter [What if experts chose the
# tokens?](../notebooks/08_expert_choice.ipynb), about an hour and a quarter together, no GPU. The
# first three build expert choice and count what it does; the last two are about what it gives
# away, and how one could stop it.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | The other axis | ●●○○○ | ●●●●● | 15 |
# | 2 | Who gets how many? | ●●○○○ | ●●●○○ | 10 |
# | 3 | Back to the tokens | ●●○○○ | ●●●●○ | 15 |
# | 4 | A detector of leaks | ●●●○○ | ●●●●● | 20 |
# | 5 | Groups that do not leak | ●●●●○ | ●●●●○ | 15 |

# %%
import math

import torch
from torch import Tensor

from moe_lite.course import checks

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. The other axis
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# Equations 1 and 2 of Zhou et al. 2022: each token shares 1 out among the experts (a softmax),
# and each expert takes the $k = n \cdot c / e$ tokens that gave it most. If $k$ comes out uneven,
# round it up; there are never more than $n$ tokens to take.
#
# By hand first. Four tokens, two experts, $c = 1$, so each expert takes two. The scores are the
# logarithms of $(4, 1), (6, 2), (1, 3), (9, 9)$, so the tokens give expert 0
# $4/5,\ 6/8,\ 1/4,\ 1/2$. It takes tokens 0 and 1, in that order, though token 3 has the largest
# score of all. Expert 1 takes tokens 2 and 3.
#
# <details>
# <summary>Hint 1</summary>
#
# `topk` takes a `dim`. Within a row a softmax does not change the order; within a column it does,
# because every row is divided by a sum of its own. So: softmax first, over which axis? And `topk`
# then, over which?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Transposing the probabilities first makes both results come out with a row for each expert.
# `math.ceil` rounds up.
#
# </details>


# %%
def expert_choice(logits_TE: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Let each expert take its k = n * c / e best tokens.

    Args:    c: the experts that a token has on average.
    Returns: token_EC, each expert's tokens, best first (int64); gate_EC, what they gave it.
    """
    ### BEGIN SOLUTION
    T, E = logits_TE.shape
    k = min(T, math.ceil(c * T / E))
    gate_EC, token_EC = logits_TE.softmax(dim=-1).T.topk(k, dim=-1)
    return token_EC, gate_EC
    ### END SOLUTION


# %%
checks.check_expert_choice(expert_choice)

# %% [markdown]
# ## 2. Who gets how many?
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# The experts are balanced; the tokens are not. Figure 3 of the paper counts, for every token, how
# many experts took it. Write that count: the shares of the tokens with **0, 1, 2, 3 or 4, and more
# than 4** experts, five numbers that sum to 1.
#
# By hand: of six tokens, four experts took (0, 1), (0, 3), (0, 4) and (1, 4). Token 0 has three
# experts, tokens 1 and 4 have two, token 3 has one, and tokens 2 and 5 have none. The shares are
# 2/6, 1/6, 2/6, 1/6, 0.
#
# <details>
# <summary>Hint 1</summary>
#
# It does not matter which expert a number stands under. Flatten the list and count how often each
# token is in it.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `bincount` counts 0, 1, 2, ... up to the largest number that it meets. Nobody may have met the
# last token: `minlength` is for that.
#
# </details>


# %%
def experts_per_token(token_EC: Tensor, num_tokens: int) -> Tensor:
    """Share the tokens out by how many experts took them.

    Args:    token_EC: each expert's tokens.
    Returns: five shares: of the tokens with 0, 1, 2, 3 or 4, and more than 4 experts.
    """
    ### BEGIN SOLUTION
    count_T = token_EC.flatten().bincount(minlength=num_tokens)
    bin_T = torch.tensor([0, 1, 2, 3, 3, 4])[count_T.clamp(max=5)]
    return bin_T.bincount(minlength=5) / num_tokens
    ### END SOLUTION


# %%
checks.check_experts_per_token(experts_per_token)

# %% [markdown]
# ## 3. Back to the tokens
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# Somebody carries the experts' answers back. It runs, the shapes are right, and the loss falls.


# %%
def hasty_combine(out_ECD, token_EC, gate_EC, num_tokens):
    y_TD = out_ECD.new_zeros(num_tokens, out_ECD.shape[-1])
    for e in range(len(token_EC)):
        y_TD[token_EC[e]] = gate_EC[e][:, None] * out_ECD[e]
    return y_TD


out_ECD = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]])
token_EC = torch.tensor([[1, 0], [1, 2]])
gate_EC = torch.tensor([[0.5, 1.0], [0.5, 0.25]])
print(hasty_combine(out_ECD, token_EC, gate_EC, num_tokens=4).flatten())

# %% [markdown]
# Do it by hand: token 1 was taken by both experts, and should get $0.5 \cdot 1 + 0.5 \cdot 10 =
# 5.5$. What did it get? Write equation 4: for each token the sum, over the experts that took it,
# of gate times answer; zero for a token that nobody took.
#
# <details>
# <summary>Hint 1</summary>
#
# Where experts choose, a token can be in several rows of the list. What does `y[index] = ...` do
# with an index that comes twice?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `zeros.index_add(0, index_N, rows_ND)` adds row after row to the places in `index_N`. Flatten the
# first two axes of tokens and of weighted answers alike.
#
# </details>


# %%
def combine(out_ECD: Tensor, token_EC: Tensor, gate_EC: Tensor, num_tokens: int) -> Tensor:
    """Bring the experts' weighted answers back to their tokens.

    Args:    out_ECD: each expert's answers; token_EC, gate_EC: whose they are, with what weight.
    Returns: y_TD, a row for every token.
    """
    ### BEGIN SOLUTION
    rows_ND = (gate_EC[..., None] * out_ECD).flatten(0, 1)
    y_TD = out_ECD.new_zeros(num_tokens, out_ECD.shape[-1])
    return y_TD.index_add(0, token_EC.flatten(), rows_ND)
    ### END SOLUTION


# %%
checks.check_combine(combine)

# %% [markdown]
# ## 4. A detector of leaks
#
# *Difficulty ●●●○○ · importance ●●●●● · 20 minutes*
#
# You are handed a router as a black box: `route(x_TD)` says for every token and expert whether it
# is chosen (`True` or `False`, shape (T, E)). Does it **read the future**? That is: is there any
# token whose choices change when only *later* tokens change?
#
# The check has several routers. Three of them are innocent, and not all of those are simple: one
# reads the past, which is allowed, and one has queues of limited length. The others leak, and some
# of these tell a single token about a single other one.
#
# <details>
# <summary>Hint 1</summary>
#
# Keep the first $t$ tokens, replace all that follow by others (random ones, not tiny changes),
# and compare the first $t$ rows of the answer. Keep the *number* of tokens: a capacity is
# computed from it.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# One $t$ is not enough, and a few random draws are not either: a third of them may show nothing.
# Try every $t$ from 1 to $T - 1$, 20 times.
#
# </details>


# %%
def reads_future(route, x_TD: Tensor) -> bool:
    """Say whether any token's choice of experts depends on a later token.

    Args: route: from x_TD to chosen_TE; x_TD: a text to begin from.
    """
    ### BEGIN SOLUTION
    before_TE = route(x_TD)
    for t in range(1, len(x_TD)):
        for _ in range(20):
            changed_TD = torch.cat([x_TD[:t], 3 * torch.randn_like(x_TD[t:])])
            if not torch.equal(route(changed_TD)[:t], before_TE[:t]):
                return True
    return False
    ### END SOLUTION


# %%
checks.check_reads_future(reads_future)

# %% [markdown]
# A test like this finds leaks; it cannot prove that there are none. A dozen lines like these belong
# beside every new layer of a language model, next to the test that its gradient is right.
#
# ## 5. Groups that do not leak
#
# *Difficulty ●●●●○ · importance ●●●●○ · 15 minutes*
#
# Experts may choose, if those they choose among may know of each other. A batch of $B$ sequences
# with $S$ tokens each is laid out so that token $b \cdot S + s$ is the $s$-th of sequence $b$.
# Divide all tokens into groups, more than one token in each, so that expert choice *within each
# group* tells no token of its own sequence's future, even in a model of several layers with causal
# attention between. (What it hears of *other* sequences is not counted here.) There is more than
# one such division; the check takes any.
#
# <details>
# <summary>Hint 1</summary>
#
# Two tokens of one sequence must not meet. So a group has at most one token of each sequence. Is
# any such group safe? Let token 7 of sequence A compete with token 2 of B. By the next layer token
# 5 of B has attended to its token 2. Let it compete with token 3 of A there. What has that one
# heard of?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# If all members of a group stand at the same position $s$, nothing that happens there can reach
# anybody's position before $s$. `arange`, `view`, and a transpose.
#
# </details>


# %%
def causal_groups(num_sequences: int, seq_len: int) -> Tensor:
    """Divide the tokens of a batch into groups in which experts may choose.

    Returns: token_GS, int64, a row of token numbers for each group; groups of differing sizes may
             come as a list.
    """
    ### BEGIN SOLUTION
    return torch.arange(num_sequences * seq_len).view(num_sequences, seq_len).T
    ### END SOLUTION


# %%
checks.check_causal_groups(causal_groups)

# %% [markdown]
# The paper names this way out itself, in its section 6. It has a price: such a model can only be
# used with many sequences at once, and what one user reads then depends, a little, on what the
# others write.
#
# ## What you can now say
#
# 1. Expert choice is `topk` over the other axis; the softmax stays where it was.
# 2. Its experts are balanced, its tokens are not, and some get nothing.
# 3. Where a token can come twice, answers are added; an assignment keeps the last.
# 4. A layer is causal if nothing before $t$ changes when all from $t$ on does. Try it.
# 5. Experts may choose among tokens at one position of different sequences. Across positions, the
#    future may come back in a layer or two.
