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
# # Exercises 05: What if an expert is full?
#
# Six exercises for the chapter [What if an expert is full?](../notebooks/05_capacity.ipynb), about
# an hour and a half together, no GPU. There is little to type. In most of them some code is given
# that runs, raises nothing and is wrong; you say what is wrong by writing what is right.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | How many places? | ●○○○○ | ●●●●○ | 10 |
# | 2 | Stand in line | ●●○○○ | ●●●●● | 15 |
# | 3 | First choices first | ●●●○○ | ●●●●○ | 20 |
# | 4 | What a dropped token gets | ●●○○○ | ●●●●● | 10 |
# | 5 | Count before you drop | ●●●○○ | ●●●●○ | 15 |
# | 6 | Does it know the future? | ●●●●○ | ●●●●○ | 20 |

# %%
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.course import checks

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. How many places?
#
# *Difficulty ●○○○○ · importance ●●●●○ · 10 minutes*
#
# Two teams train the same top-2 model with "capacity factor 1.0" and a load that is perfectly
# even. One of them reports that nothing is dropped. The other one drops half of everything, and
# this is its code:


# %%
def hasty_places(num_tokens, num_experts, factor, top_k):
    return int(factor * num_tokens / num_experts)


print(
    f"1,000 tokens, 8 experts, top-2: {hasty_places(1000, 8, 1.0, 2)} places, 8 of them:", end=" "
)
print(f"{8 * hasty_places(1000, 8, 1.0, 2)} for {2 * 1000} pairs")
print(f"10 tokens, 4 experts, top-1: {4 * hasty_places(10, 4, 1.0, 1)} places for 10 pairs")

# %% [markdown]
# The first line shows a difference of convention (the second team may have read GShard or Switch,
# which say "tokens per expert"), the second one a real slip. Write the number of places so that a
# factor of 1 is *just enough* for all pairs when the load is even, whatever $K$ is:
#
# $$C = \Big\lceil \text{factor} \cdot \frac{K \cdot T}{E} \Big\rceil$$
#
# <details>
# <summary>Hint 1</summary>
#
# How many pairs ask for a place, all together? How many would come to each expert if the load were
# even?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# 10 tokens, 4 experts: 2.5 each. Two places each would leave two tokens standing. `math.ceil`
# rounds up.
#
# </details>


# %%
def places(num_tokens: int, num_experts: int, factor: float, top_k: int) -> int:
    """Give the number of places of each expert.

    Args:    factor: 1 is just enough for all pairs at an even load; top_k: choices of each token.
    Returns: a whole number.
    """
    ### BEGIN SOLUTION
    return math.ceil(factor * top_k * num_tokens / num_experts)
    ### END SOLUTION


# %%
checks.check_places(places)

# %% [markdown]
# Whenever somebody tells you a capacity factor, ask: of tokens, or of pairs? A top-2 router at
# "2.0" in GShard's words has the same number of places as one at 1.0 in these.
#
# ## 2. Stand in line
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# The rank of a token is the number of earlier tokens that chose the same expert. With the choices
# 2, 0, 2, 2, 1, 0 the ranks are 0, 0, 1, 2, 0, 1. This is the vectorised version from somebody's
# repository. Capacity is 2, so the fourth token alone should be dropped:


# %%
def hasty_rank(expert_T, num_experts):
    hot_TE = F.one_hot(expert_T, num_experts)
    return hot_TE.cumsum(dim=1).gather(1, expert_T[:, None])[:, 0]


expert_T = torch.tensor([2, 0, 2, 2, 1, 0])
print("ranks", hasty_rank(expert_T, 3).tolist(), "kept", (hasty_rank(expert_T, 3) < 2).tolist())

# %% [markdown]
# Nobody is dropped, ever. Change one character, `dim=0`, and it is wrong in another way: every
# expert then has one place less than you gave it, which no loss curve will tell you. Now write it
# right.
#
# <details>
# <summary>Hint 1</summary>
#
# Write down the one-hot matrix by hand, a row for each token. In which direction do you have to
# add up, so that a column counts who has come to its expert so far?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# "So far" contains the token itself. The first in a queue has *no one* before it: rank 0.
#
# </details>


# %%
def rank(expert_T: Tensor, num_experts: int) -> Tensor:
    """Give each token's place in the queue of its expert.

    Args:    expert_T: the expert of each token, int64.
    Returns: rank_T, int64: 0 for the first.
    """
    ### BEGIN SOLUTION
    hot_TE = F.one_hot(expert_T, num_experts)
    return (hot_TE.cumsum(dim=0) - 1).gather(1, expert_T[:, None])[:, 0]
    ### END SOLUTION


# %%
checks.check_rank(rank)

# %% [markdown]
# ## 3. First choices first
#
# *Difficulty ●●●○○ · importance ●●●●○ · 20 minutes*
#
# GShard gives each token two experts, and seats *all* first choices before any second one. So two
# running counts are needed. Here they are:


# %%
def hasty_top2(expert_T2, num_experts):
    first, second = F.one_hot(expert_T2, num_experts).unbind(dim=1)
    rank_first = (first.cumsum(0) - 1).gather(1, expert_T2[:, :1])
    rank_second = (second.cumsum(0) - 1).gather(1, expert_T2[:, 1:])
    return torch.cat([rank_first, rank_second], dim=1)


expert_T2 = torch.tensor([[0, 1], [1, 0], [1, 2], [0, 1]])
for (e1, e2), (r1, r2) in zip(expert_T2.tolist(), hasty_top2(expert_T2, 3).tolist(), strict=True):
    print(f"first choice: place {r1} of expert {e1};  second: place {r2} of expert {e2}")

# %% [markdown]
# Read the places one by one. Who sits in place 0 of expert 0? Two tokens do. With GShard's einsum
# (the one-hot of expert and place, times the vectors) nothing fails: the expert receives the *sum*
# of two tokens' vectors, and both get its answer. No shape is wrong and the loss even falls.
#
# By hand: expert 0 has the first choices of tokens 0 and 3 (ranks 0, 1), so token 1's second
# choice has rank 2.
#
# <details>
# <summary>Hint 1</summary>
#
# The second choices of an expert stand behind *all* of its first choices, also those of tokens that
# come later in the batch. So their ranks begin at the number of its first choices.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `first.sum(0)` has that number for each expert. Which entry does a token's second choice need?
# (Or: put all first choices in one list, all second ones behind, and use exercise 2.)
#
# </details>


# %%
def rank_top2(expert_T2: Tensor, num_experts: int) -> Tensor:
    """Give the place of each choice in the queue of its expert, first choices first.

    Args:    expert_T2: each token's first and second expert, int64.
    Returns: rank_T2, int64.
    """
    ### BEGIN SOLUTION
    first, second = F.one_hot(expert_T2, num_experts).unbind(dim=1)
    behind_TE = second.cumsum(0) - 1 + first.sum(0)
    return torch.stack([first.cumsum(0) - 1, behind_TE], 1).gather(2, expert_T2[..., None])[..., 0]
    ### END SOLUTION


# %%
checks.check_first_choices(rank_top2)

# %% [markdown]
# One question would have found it without any thought about order: *is there a place with two
# tokens in it?* It makes a good assertion in a test.
#
# ## 4. What a dropped token gets
#
# *Difficulty ●●○○○ · importance ●●●●● · 10 minutes*
#
# A much-read annotated Switch Transformer ends its layer like this. `x_TD` is the layer's input,
# which is $\mathrm{LN}(h)$; the block around it then adds the result to $h$:


# %%
def annotated(h_TD, x_TD, expert_TD, gate_T, keep_T):
    out_TD = torch.where(keep_T[:, None], expert_TD, x_TD)  # dropped: "pass through"
    return h_TD + gate_T[:, None] * out_TD


h_TD = torch.tensor([[2.0, 4.0], [3.0, 5.0]])
x_TD = F.layer_norm(h_TD, (2,))
answers_TD = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
print(annotated(h_TD, x_TD, answers_TD, torch.tensor([0.5, 0.8]), torch.tensor([True, False])))

# %% [markdown]
# The second token was dropped. By both papers' rule it should go on exactly as it came, with 3 and
# 5. Say to yourself what it leaves with instead, and why; then write the block that keeps the rule.
#
# <details>
# <summary>Hint 1</summary>
#
# The residual `h_TD + ...` *is* the pass-through. What has to be added to h for nothing to happen?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A gate of 0 is one way. `torch.where` with a zero is another.
#
# </details>


# %%
def block(h_TD: Tensor, x_TD: Tensor, expert_TD: Tensor, gate_T: Tensor, keep_T: Tensor) -> Tensor:
    """Give what leaves a Switch block.

    Args:    h_TD: what came in; x_TD: LN(h), which the experts saw; expert_TD: the answer of each
             token's expert (meaningless where dropped); gate_T: its probability p; keep_T: False
             where there was no place.
    Returns: out_TD.
    """
    ### BEGIN SOLUTION
    return h_TD + torch.where(keep_T[:, None], gate_T[:, None] * expert_TD, 0.0)
    ### END SOLUTION


# %%
checks.check_dropped_token(block)

# %% [markdown]
# ## 5. Count before you drop
#
# *Difficulty ●●●○○ · importance ●●●●○ · 15 minutes*
#
# The balancing loss multiplies $f_e$, the share of tokens whose first choice is expert $e$, with
# $P_e$, its mean probability. In this version the counting comes after the seating, "because those
# are the tokens that the expert really has". Watch it while the router collapses bit by bit:


# %%
def hasty_loss(probs_TE, expert_T2, keep_T2):
    T, E = probs_TE.shape
    seated_N = expert_T2[:, 0][keep_T2[:, 0]]
    return E * (seated_N.bincount(minlength=E) / T * probs_TE.mean(0)).sum()


torch.manual_seed(0)
noise_TE = torch.randn(64, 4)
for pull in (0.0, 1.0, 2.0, 4.0):
    probs_TE = (noise_TE + torch.tensor([pull, 0, 0, 0])).softmax(-1)
    expert_T2 = probs_TE.topk(2).indices
    keep_T2 = rank_top2(expert_T2, 4) < 16
    wanted = (expert_T2[:, 0] == 0).float().mean()
    loss = hasty_loss(probs_TE, expert_T2, keep_T2)
    print(f"{wanted:4.0%} want expert 0: loss {loss:.2f}")

# %% [markdown]
# The right loss climbs from 1 to beyond 3. This one falls below 1 while the crowd grows, and is at
# its least where most want one expert: to minimise it is to be paid for crowding, because those
# who find no place no longer count. Write it right: $E \sum_e f_e P_e$ with $f$ from all *first
# choices*, whether or not they found a place. (GShard's own line
# is $\frac{1}{E} \sum_e \frac{c_e}{S} m_e$: the same, divided by $E^2$.)
#
# <details>
# <summary>Hint 1</summary>
#
# The loss shall tell the router what it *asked for*. Which of the three arguments does that leave
# unused?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `expert_T2[:, 0].bincount(minlength=E) / T` is $f$. The gradient comes through $P$ alone, from
# `probs_TE.mean(0)`.
#
# </details>


# %%
def first_choice_loss(probs_TE: Tensor, expert_T2: Tensor, keep_T2: Tensor) -> Tensor:
    """Give GShard's balancing loss at the scale where an even load has 1.

    Args:    probs_TE: softmax of the router; expert_T2: first and second choice; keep_T2: who
             found a place.
    Returns: a scalar with a gradient.
    """
    ### BEGIN SOLUTION
    T, E = probs_TE.shape
    f_E = expert_T2[:, 0].bincount(minlength=E) / T
    return E * (f_E * probs_TE.mean(0)).sum()
    ### END SOLUTION


# %%
checks.check_counted_before(first_choice_loss)

# %% [markdown]
# ## 6. Does it know the future?
#
# *Difficulty ●●●●○ · importance ●●●●○ · 20 minutes*
#
# A language model predicts the next token, so nothing that it computes for a token may depend on
# later ones. Attention has its mask for that. Does the *queue* respect it? Here are two ways to
# seat the same choices in four places each.


# %%
def by_position(expert_TK, gate_TK):
    return rank(expert_TK.flatten(), 4).view(expert_TK.shape) < 4


def by_choice(expert_TK, gate_TK):
    return rank_top2(expert_TK, 4) < 4


expert_T2 = torch.randn(10, 4).topk(2).indices
gate_T2 = torch.full((10, 2), 0.5)
for seat in (by_position, by_choice):
    print(seat.__name__, seat(expert_T2, gate_T2).int().flatten().tolist())

# %% [markdown]
# Write a detector that takes *any* such function and answers whether an earlier token's fate can
# depend on a later token. The check will try it on seats by position, by choice, by gate and some
# others. It need not be a proof: try many changes, and see if one of them moves the past.
#
# <details>
# <summary>Hint 1</summary>
#
# Pick a cut t. Keep the tokens before it exactly as they are, replace all others by something
# random, and compare what happens *before the cut*. Behind it, change is expected.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# There are two things to replace: the choices, and the gates. Some seats look at one of them only.
# `torch.randint` and `torch.rand` will do; try every cut, 25 times, from small gates to large. (A
# token that is told one thing by one other shows it in half of the draws.)
#
# </details>


# %%
def looks_ahead(
    seat: Callable[[Tensor, Tensor], Tensor], expert_TK: Tensor, gate_TK: Tensor
) -> bool:
    """Say whether a later token can change an earlier one's fate.

    Args:    seat: from each token's experts and gates, (T, K) both, to keep_TK; expert_TK, gate_TK:
             choices to begin with.
    """
    ### BEGIN SOLUTION
    before_TK = seat(expert_TK, gate_TK)
    E = int(expert_TK.max()) + 1
    for _ in range(25):
        for cut in range(1, len(expert_TK)):
            expert, gate = expert_TK.clone(), gate_TK.clone()
            expert[cut:] = torch.rand(len(expert) - cut, E).topk(expert.shape[1]).indices
            gate[cut:] = torch.rand_like(gate[cut:])
            if not torch.equal(seat(expert, gate)[:cut], before_TK[:cut]):
                return True
    return False
    ### END SOLUTION


# %%
checks.check_looks_ahead(looks_ahead)

# %% [markdown]
# So GShard's order, fair as it is, lets a token's second expert depend on words that have not been
# spoken. It is a small leak: one bit, "there was room". Chapter 08 meets a router with a large one,
# and measures what a model can make of it.
#
# ## What you can now say
#
# 1. Places are the even share of all *pairs*, times the factor, rounded up. Some mean tokens.
# 2. A rank is a running count along the tokens, less the token itself.
# 3. Second choices stand behind all first ones; two tokens in one place raise no error.
# 4. A dropped token leaves as it came. The residual is already there: add nothing.
# 5. Count what was asked for, before the drop; to count the seated is not to see the queue.
# 6. Change the future and look whether the past moves: this tests any layer for causality.
