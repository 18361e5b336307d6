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
# # Exercises 06: What does a balancing loss really push on?
#
# Six exercises for the chapter [What does a balancing loss really push
# on?](../notebooks/06_balancing.ipynb), about an hour and a half together, no GPU. In the first
# three you learn what the loss is, where it pushes, and how little its value says. Then come two
# questions on which published code bases disagree, and last you become a doctor: seven losses, one
# of them sound.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Count and believe | ●○○○○ | ●●●●● | 10 |
# | 2 | The push on one logit | ●●●○○ | ●●●●● | 20 |
# | 3 | Better than balanced | ●●●○○ | ●●●○○ | 15 |
# | 4 | Nobody asked the padding | ●●○○○ | ●●●●○ | 10 |
# | 5 | What to average, and when | ●●○○○ | ●●●●○ | 10 |
# | 6 | Which bug is it? | ●●●●○ | ●●●●● | 30 |

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.course import checks

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Count and believe
#
# *Difficulty ●○○○○ · importance ●●●●● · 10 minutes*
#
# $$L = N \sum_{e=1}^{N} f_e\, P_e$$
#
# $f_e$ is the share of all *choices* that went to expert $e$: of $T$ tokens with $K$ choices each,
# there are $TK$. $P_e$ is the mean over the tokens of the softmax probability of expert $e$,
# chosen or not. There is no weight $\alpha$ here; that comes later.
#
# By hand: three tokens believe $(4, 3, 1)/8$, $(2, 5, 1)/8$ and $(1, 3, 4)/8$, and went to the
# experts 0 and 2, 1 and 2, 0 and 2. So $P = (7, 11, 6)/24$, $f = (2, 1, 3)/6$, and the loss is
# $3 \cdot 43/144 = 0.896$.
#
# Three published code bases take something else for $P$ or forget to divide $f$. All train.
#
# <details>
# <summary>Hint 1</summary>
#
# `F.one_hot(expert_TK, E)` has the shape (T, K, E). What is its mean over the first two
# dimensions?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Do not work out the choices again from the logits: with noise, a bias or a capacity they are not
# the best $K$. And whatever you do to the probabilities before the mean, ask whether experts that
# were not chosen are still in it.
#
# </details>


# %%
def balance_loss(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """Compute N * sum(f * P), which is 1 where the counts are equal.

    Args:    logits_TE: the router's scores; expert_TK: the experts that each token went to.
    Returns: a scalar, with a gradient for the logits.
    """
    ### BEGIN SOLUTION
    E = logits_TE.shape[1]
    f_E = F.one_hot(expert_TK, E).float().mean(dim=(0, 1))
    return E * (f_E * logits_TE.softmax(dim=-1).mean(dim=0)).sum()
    ### END SOLUTION


# %%
checks.check_balance_loss(balance_loss)

# %% [markdown]
# ## 2. The push on one logit
#
# *Difficulty ●●●○○ · importance ●●●●● · 20 minutes*
#
# $f$ is a count and stands still. So the loss is linear in the probabilities, and only the softmax
# has to be differentiated. Write down the slope with respect to every logit, without autograd.
#
# By hand: one token believes 1/2, 1/4, 1/4, and $f = (1, 0, 0)$. The loss is $3 p_0$. Raising
# $z_0$ raises $p_0$ by $p_0 (1 - p_0) = 1/4$; raising $z_1$ lowers it by $p_0 p_1 = 1/8$. So the
# slopes are $3/4$, $-3/8$, $-3/8$.
#
# <details>
# <summary>Hint 1</summary>
#
# A softmax's slopes are $\partial p_i / \partial z_j = p_j (\delta_{ij} - p_i)$: $p_j$ times
# something. Multiply by $f_i$ and sum over $i$.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# What is left is $p_j$ times the difference between $f_j$ and an average of $f$. Over which
# weights? They belong to *this* token.
#
# </details>


# %%
def push(logits_TE: Tensor, f_E: Tensor) -> Tensor:
    """Give the slope of N * sum(f * P) with respect to each logit, f standing still.

    Args:    logits_TE: the router's scores; f_E: each expert's share of the choices.
    Returns: slope_TE.
    """
    ### BEGIN SOLUTION
    T, E = logits_TE.shape
    p_TE = logits_TE.softmax(dim=-1)
    own_T1 = (p_TE * f_E).sum(dim=-1, keepdim=True)  # how crowded this token's experts are
    return E / T * p_TE * (f_E - own_T1)
    ### END SOLUTION


# %%
checks.check_push(push)

# %% [markdown]
# Read your formula aloud. A score goes down if its expert is *more crowded than what this token has
# on average*, and what a token hardly believes in hardly moves. Here is the same push on a token
# that is torn, and on tokens that are more and more sure of the crowded expert:

# %%
f_E = torch.tensor([1.0, 0.0, 0.0])
for score in (0.0, 2.0, 5.0, 10.0):
    slope = push(torch.tensor([[score, 0.0, 0.0]]), f_E)[0, 0].item()
    print(f"score {score:4.1f} ahead of the others: slope {slope:.5f}")

# %% [markdown]
# A router that has been allowed to become sure can hardly be talked out of it. Balance early.
#
# ## 3. Better than balanced
#
# *Difficulty ●●●○○ · importance ●●●○○ · 15 minutes*
#
# "The minimum is 1, at perfect balance." You have read it in many places. Find logits that refute
# it: each token goes to the expert with its highest logit ($K = 1$), and $N \sum f P$ is below 0.9
# for two experts, below 0.8 for three, below 0.45 for eight. Take as many tokens as you like.
#
# <details>
# <summary>Hint 1</summary>
#
# For two experts: some tokens go to expert 0 *by a hair* (they believe one half in each), the
# others to expert 1 with certainty. Which share of the first makes the loss least? Four tokens are
# enough.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# With more experts, let some have no tokens at all. What should the tokens of the busy experts
# believe in? They have to believe in their own expert most, but only by a hair; everything else
# can go where nobody is. How many experts would you leave empty?
#
# </details>


# %%
def below_one(E: int) -> Tensor:
    """Give logits whose loss, each token going to its best expert, lies well below 1.

    Args:    E: the number of experts: 2, 3 or 8.
    Returns: logits_TE, of as many tokens as you like, without ties.
    """
    ### BEGIN SOLUTION
    if E == 2:  # three torn, one sure: f = (3/4, 1/4), P = (3/8, 5/8)
        return torch.tensor([[0.01, 0.0]] * 3 + [[0.0, 9.0]])
    busy = (E + 1) // 2  # one token each; the other half of the experts stays empty
    logits_TE = torch.zeros(busy, E)
    logits_TE[:, :busy] = -9.0
    return logits_TE + 9.01 * torch.eye(busy, E)
    ### END SOLUTION


# %%
checks.check_below_one(below_one)

# %% [markdown]
# With eight experts, half of them dead, the loss can be 0.4. A monitor that only shows this number
# would show you the best balance of your life.
#
# ## 4. Nobody asked the padding
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# A batch of texts of unequal length is filled up with padding. The router sees it too, and since
# all padding looks alike, it goes to one expert. The loss that transformers gives Mixtral counted
# it at first ([issue 28505](https://github.com/huggingface/transformers/issues/28505)), and so
# pushed *real* tokens away from the expert that padding had filled.
#
# Write the loss of the real tokens alone. `mask_T` is True for them.
#
# By hand: $(3, 1)/4$ goes to expert 0, $(1, 3)/4$ to expert 1, and two tokens of padding,
# $(3, 1)/4$ both, to expert 0. The real ones have $f = (1/2, 1/2)$, so the loss is 1. With padding
# it is 1.125.
#
# <details>
# <summary>Hint 1</summary>
#
# The shortest way is to leave the padding out at the very start. The way that keeps shapes (as a
# GPU likes it) gives every token the weight 1 or 0.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Three numbers know of the tokens: the counts, the sum of probabilities, and what both are divided
# by. A logit of 0 is not "nothing": its softmax is uniform.
#
# </details>


# %%
def masked_balance(logits_TE: Tensor, expert_TK: Tensor, mask_T: Tensor) -> Tensor:
    """Compute N * sum(f * P) over the real tokens.

    Args:    logits_TE, expert_TK: of all tokens; mask_T: True for real ones.
    Returns: a scalar.
    """
    ### BEGIN SOLUTION
    return balance_loss(logits_TE[mask_T], expert_TK[mask_T])
    ### END SOLUTION


# %%
checks.check_masked_balance(masked_balance)

# %% [markdown]
# ## 5. What to average, and when
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# A model with $L$ layers sees a batch in $G$ micro-batches of equal size, and has written down $f$
# and $P$ of each: `f_LGE` and `P_LGE`. You want the loss of the **global batch**: each layer
# balanced over all micro-batches together, not within each; and of the layers, the mean.
#
# The same two operations, a mean and a product, in another order make another loss. Averaging
# *before* the product says: these may make up for each other. Averaging *after* it says: each has
# to be balanced by itself. Which of the two do you want for micro-batches, and which for layers?
#
# By hand: one layer, two micro-batches, the first all at expert 0, the second all at expert 1, and
# $P = f$. Each by itself has the loss 2; the global batch has 1. Now the same numbers as two
# *layers*: there, 2 is right.
#
# <details>
# <summary>Hint 1</summary>
#
# If expert 0 of layer 3 gets everything, does it help that expert 0 of layer 7 gets nothing? They
# share a number and nothing else.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `mean(1)` of both, product, sum over the experts, mean over the layers. It is enough, by the way,
# to average $f$ over the micro-batches: then the mean of the products is the product of the means.
# That is how it is done across machines, because $f$ is a few numbers without a gradient.
#
# </details>


# %%
def over_batches(f_LGE: Tensor, P_LGE: Tensor) -> Tensor:
    """Compute the loss of the global batch, the mean over the layers.

    Args:    f_LGE, P_LGE: of each layer and micro-batch, for each expert.
    Returns: a scalar.
    """
    ### BEGIN SOLUTION
    E = f_LGE.shape[-1]
    return E * (f_LGE.mean(dim=1) * P_LGE.mean(dim=1)).sum(dim=-1).mean()
    ### END SOLUTION


# %%
checks.check_over_batches(over_batches)

# %% [markdown]
# ## 6. Which bug is it?
#
# *Difficulty ●●●●○ · importance ●●●●● · 30 minutes*
#
# You are handed a balancing loss as a closed box. It takes the logits of all layers, the choices
# and a mask, and gives a number with a gradient:
#
# `loss(logits_LTE, expert_LTK, mask_T)`
#
# Ask it questions, by choosing what you put in, and return what is wrong with it:
#
# | answer | what the box does |
# |---|---|
# | `"sound"` | $N \sum f P$ over the real tokens, the mean over the layers |
# | `"K"` | forgets to divide $f$ by $K$ |
# | `"sum"` | sums over the layers |
# | `"pooled"` | averages the layers' $f$ and $P$ before it multiplies them |
# | `"padding"` | counts padding |
# | `"top-k"` | takes $P$ from the chosen experts' renormalised weights |
# | `"detached"` | is right, and teaches nothing: its gradient is zero |
#
# One box has one fault. A good question has an answer that you know in advance for a sound loss,
# and that *one* fault changes. `even` below makes the simplest: all beliefs equal, all counts
# equal. The answer is 1.
#
# <details>
# <summary>Hint 1</summary>
#
# At even beliefs and counts, use two choices per token and one layer; then one choice and two
# layers. What are the six others silent about that? For "pooled", think of exercise 5; for
# "padding" and "top-k", change something that a sound loss must not notice, or must.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Do not ask for a gradient where the counts are even: there it is zero by right. A box can
# `requires_grad` and still give nothing but zeros. And in whatever you ask, keep $f$ uneven unless
# you have a reason: where $f$ is even the loss is 1 whatever $P$ is, so it hides what is wrong
# with $P$.
#
# </details>


# %%
def even(L: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make L layers of four tokens with K of four experts each: all beliefs and counts equal."""
    expert_TK = (torch.arange(4)[:, None] + torch.arange(K)) % 4
    return torch.zeros(L, 4, 4), expert_TK.expand(L, 4, K), torch.ones(4, dtype=torch.bool)


def diagnose(loss) -> str:
    """Say what is wrong with a balancing loss, without looking at its code.

    Args:    loss: (logits_LTE, expert_LTK, mask_T) -> scalar with a gradient.
    Returns: "sound", "K", "sum", "pooled", "padding", "top-k" or "detached".
    """
    ### BEGIN SOLUTION
    if loss(*even(L=1, K=2)) > 1.5:
        return "K"
    if loss(*even(L=2, K=1)) > 1.5:
        return "sum"

    lean_TE = torch.tensor([5.0, 0.0, 0.0, 0.0]).repeat(4, 1)
    at_0, all_real = torch.zeros(4, 1, dtype=torch.long), torch.ones(4, dtype=torch.bool)
    mirrored = torch.stack([lean_TE, lean_TE.flip(-1)]), torch.stack([at_0, at_0 + 3])
    if loss(*mirrored, all_real) < 2:  # each layer has collapsed; pooled, they look better
        return "pooled"

    logits_LTE, expert_LTK = lean_TE[None].clone(), at_0[None]
    other_LTE = logits_LTE.clone()
    other_LTE[0, 3] = torch.tensor([0.0, 0.0, 0.0, 9.0])
    three_real = torch.tensor([True, True, True, False])
    before, after = (loss(z, expert_LTK, three_real) for z in (logits_LTE, other_LTE))
    if (before - after).abs() > 1e-4:  # it noticed a token that is not there
        return "padding"
    before, after = (loss(z, expert_LTK, all_real) for z in (logits_LTE, other_LTE))
    if (before - after).abs() < 1e-4:  # it did not notice belief in an expert not chosen
        return "top-k"

    logits_LTE.requires_grad_()
    (slope_LTE,) = torch.autograd.grad(loss(logits_LTE, expert_LTK, all_real), logits_LTE)
    return "sound" if slope_LTE.any() else "detached"
    ### END SOLUTION


# %%
checks.check_diagnose(diagnose)

# %% [markdown]
# ## What you can now say
#
# 1. $f$ counts, $P$ believes; at equal counts $N \sum f P$ is 1 whatever $P$ is.
# 2. The push on a score is its probability times how much more crowded its expert is than the
#    token's own average.
# 3. The value can be far below 1 with half of the experts dead. Watch MaxVio, not this.
# 4. Padding routes too; leave it out of the counts, the probabilities and the divisor.
# 5. What may make up for each other is averaged before the product: micro-batches, never layers.
# 6. A loss that trains is not yet a loss that is right; a few questions with known answers tell.
