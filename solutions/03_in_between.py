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
# # Exercises 03: What was tried between 1995 and 2016?
#
# Four exercises for the chapter [What was tried between 1995 and
# 2016?](../notebooks/03_in_between.ipynb), under an hour together, no GPU. The first is the
# constraint of 2013; the others are the first steps of a ladder that chapter 04 climbs.
#
# Each ends with a check that runs your function, first on numbers you can do by hand, and says
# which idea would lead to your result if it is off. Any correct solution passes.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Hold the leader back | ●○○○○ | ●●●●○ | 10 |
# | 2 | A gradient from samples | ●●○○○ | ●●●●● | 15 |
# | 3 | Straight through | ●●○○○ | ●●●●● | 10 |
# | 4 | How many samples for a sign? | ●●○○○ | ●●●○○ | 10 |

# %%
import math

import torch
from torch import Tensor

from moe_lite.course import checks

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Hold the leader back
#
# *Difficulty ●○○○○ · importance ●●●●○ · 10 minutes*
#
# Eigen, Ranzato and Sutskever keep, for each expert, the sum of its gates so far, `total_E`. An
# expert whose total is more than `margin` above the *mean* of all totals is closed for now: its
# gate is set to 0, and each token's other gates are divided by their sum.
#
# By hand: gates 0.5, 0.3, 0.2; totals 9, 5, 1, with the mean 5. With a margin of 3, expert 0 is 4
# ahead and closed: 0, 0.6, 0.4. With a margin of 6 nobody is.
#
# <details>
# <summary>Hint 1</summary>
#
# `total_E - total_E.mean() > margin` is a row of truth values, one for each expert.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Multiply the gates by the *opposite* of that row, and divide by `sum(dim=-1, keepdim=True)`. Do
# not change `gate_TE` itself: the caller still needs it.
#
# </details>


# %%
def constrain(gate_TE: Tensor, total_E: Tensor, margin: float) -> Tensor:
    """Close the gates of experts that are too far ahead.

    Args:    gate_TE: each token's gates, adding up to 1; total_E: their sums so far.
    Returns: (T, E), each row adding up to 1, with a gradient to gate_TE.
    """
    ### BEGIN SOLUTION
    open_TE = gate_TE * (total_E - total_E.mean() <= margin)
    return open_TE / open_TE.sum(dim=-1, keepdim=True)
    ### END SOLUTION


# %%
checks.check_constrain(constrain)

# %% [markdown]
# Why can this never close *all* experts, whatever the totals? (Somebody is always at or below the
# mean.) And why does the gate still learn, though a mask has no gradient? (The open gates have
# one: those that are left compete as before.)
#
# ## 2. A gradient from samples
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# A gate $b$ is open (1) with probability $p = \sigma(a)$. You drew it some times and saw a loss
# each time. The **score function** turns that into a gradient for $a$, one estimate for each
# sample:
#
# $$(L - c)\, \frac{\partial \log P(b)}{\partial a} = (L - c)\,(b - p)$$
#
# $c$ is the **baseline**: any number that does not depend on the $b$ it is used with. It does not
# move the mean, because $b - p$ is zero on average.
#
# By hand: $p = 0.2$, losses 0.3 for $b = 1$ and 0.2 for $b = 0$, baseline 0.25. The two estimates
# are
# $0.05 \cdot 0.8 = 0.04$ and $-0.05 \cdot (-0.2) = 0.01$.
#
# <details>
# <summary>Hint 1</summary>
#
# $\log P(b)$ is $\log p$ for an open gate and $\log(1-p)$ for a shut one. Their slopes for $a$ are
# $1 - p$ and $-p$: in both cases $b - p$.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# The baseline comes off the loss, before the product. One line, no loop.
#
# </details>


# %%
def score_gradient(loss_S: Tensor, b_S: Tensor, p: Tensor, baseline: float) -> Tensor:
    """Estimate the gradient of the expected loss for the gate's logit, sample by sample.

    Args:    loss_S: each sample's loss; b_S: 1 for an open gate, 0 for a shut one; p: P(open).
    Returns: (S,), right on average.
    """
    ### BEGIN SOLUTION
    return (loss_S - baseline) * (b_S - p)
    ### END SOLUTION


# %%
checks.check_score_gradient(score_gradient)

# %% [markdown]
# What does the baseline do? Here is the chapter's loss, $L(b) = (b - 0.45)^2$, at three baselines.
# One of them makes *every* sample right. Which number is it, and why? (With two outcomes, two
# estimates, and one free number, they can be made equal: $c = p\,L(0) + (1-p)\,L(1)$.)

# %%
p = torch.tensor(0.2)
b_S = torch.bernoulli(p.expand(50_000))
loss_S = (b_S - 0.45) ** 2
for baseline in (0.0, 0.2225, 0.8 * 0.3025 + 0.2 * 0.2025):
    try:
        each_S = score_gradient(loss_S, b_S, p, baseline)
    except NotImplementedError:
        print("... once score_gradient is written")
        break
    print(f"baseline {baseline:.4f}: mean {each_S.mean():.4f}, deviation {each_S.std():.4f}")

# %% [markdown]
# ## 3. Straight through
#
# *Difficulty ●●○○○ · importance ●●●●● · 10 minutes*
#
# Straight-through goes forward with the gate that was drawn, $b$, and backward as if it had been
# $p$. So you need one tensor with the *value* of $b$ and the *slope* of $p$.
#
# By hand: $p = (0.2, 0.9, 0.6)$ and $b = (1, 1, 0)$ give the values $(1, 1, 0)$, and a slope of 1
# for each $p$.
#
# <details>
# <summary>Hint 1</summary>
#
# `x.detach()` has the value of `x` and no slope.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Write $b$ as $p + (b - p)$. Which of the two terms may have a slope?
#
# </details>


# %%
def straight_through(p_T: Tensor, b_T: Tensor) -> Tensor:
    """Give a gate that is b forward and p backward.

    Args:    p_T: probabilities, with a gradient; b_T: what was drawn, 0 or 1.
    Returns: (T,), b in value.
    """
    ### BEGIN SOLUTION
    return p_T + (b_T - p_T).detach()
    ### END SOLUTION


# %%
checks.check_straight_through(straight_through)

# %% [markdown]
# ## 4. How many samples for a sign?
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# An estimator is right on average: its mean is the slope $g$. One sample has the deviation $s$, so
# the mean of $n$ samples has $s / \sqrt n$. Call the sign known when $g$ is at least *two* of these
# away from zero. What is the least $n$?
#
# By hand: $g = 0.1$, $s = 0.23$. Twice the deviation is 4.6 slopes, and $4.6^2 = 21.2$, so 22.
#
# <details>
# <summary>Hint 1</summary>
#
# Solve $|g| \ge 2 s / \sqrt n$ for $n$.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `math.ceil`, and at least one sample.
#
# </details>


# %%
def samples_for_sign(slope: float, deviation: float) -> int:
    """Count the samples whose mean is two standard errors away from zero.

    Args: slope: the true one, of either sign; deviation: of one sample.
    """
    ### BEGIN SOLUTION
    return max(1, math.ceil((2 * deviation / abs(slope)) ** 2 - 1e-9))
    ### END SOLUTION


# %%
checks.check_samples_for_sign(samples_for_sign)

# %% [markdown]
# ## What you can now say
#
# 1. A constraint on the gates' sums closes a leader for a while; a row still adds up to 1.
# 2. The score function is right on average for any loss; a baseline changes its spread alone.
# 3. Straight-through has the value of one thing and the slope of another.
# 4. To halve the error of a mean takes four times the samples.
