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
# # Exercises 07: Why did it blow up?
#
# Five exercises for the chapter [Why did it blow up?](../notebooks/07_stability.ipynb), about an
# hour together, no GPU. Two are for pencil and paper first; three begin with code that runs, raises
# nothing, and is wrong.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | How far to the next number? | ●○○○○ | ●●●○○ | 10 |
# | 2 | The loss without a floor | ●●○○○ | ●●●●● | 15 |
# | 3 | Which way does it push? | ●●○○○ | ●●●●○ | 10 |
# | 4 | Float32, but too late | ●●●○○ | ●●●●● | 15 |
# | 5 | Ten times smaller | ●●○○○ | ●●●○○ | 10 |

# %%
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.course import checks

torch.set_printoptions(precision=4, sci_mode=False)

# %% [markdown]
# ## 1. How far to the next number?
#
# *Difficulty ●○○○○ · importance ●●●○○ · 10 minutes*
#
# A bfloat16 has seven bits behind its leading one. How far is it from $x$ to the next larger
# number that bfloat16 has, for $x \ge 1$? (If $x$ itself is not one of them, take those on both
# sides of it: they are as far apart.)
#
# By hand first: between 4 and 8 there are $2^7 = 128$ steps. So at 5.5 a step is $4/128 = 1/32$.
#
# <details>
# <summary>Hint 1</summary>
#
# All numbers between $2^n$ and $2^{n+1}$ have the same step. Which $n$ belongs to 5.5? And to 8?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `math.floor(math.log2(x))` is that $n$. There are 128 steps on the way from $2^n$ to $2^{n+1}$.
#
# </details>


# %%
def spacing(x: float) -> float:
    """Give the distance between neighbouring bfloat16 numbers at x >= 1."""
    ### BEGIN SOLUTION
    return 2.0 ** (math.floor(math.log2(x)) - 7)
    ### END SOLUTION


# %%
checks.check_spacing(spacing)

# %% [markdown]
# ## 2. The loss without a floor
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# This z-loss stands in several tutorials. It runs, and it does fall. Let us give it five free
# logits of one token, and nothing else to please.


# %%
def copied_z_loss(logits_TE):
    return torch.logsumexp(logits_TE, dim=-1).mean()


logits_TE = torch.randn(1, 5, requires_grad=True)
for step in range(401):
    loss = copied_z_loss(logits_TE)
    if step % 100 == 0:
        print(f"step {step}: z-loss {loss.item():7.2f}, logits {logits_TE.detach()[0]}")
    (slope_TE,) = torch.autograd.grad(loss, logits_TE)
    logits_TE = (logits_TE - 0.5 * slope_TE).detach().requires_grad_()

# %% [markdown]
# Every step goes down, and there is no bottom. At −40 bfloat16 is as coarse as at +40. What is
# missing? Write the loss of ST-MoE's equation 5,
#
# $$L_z = \frac{1}{B} \sum_{i=1}^{B} \Big( \log \sum_{j=1}^{N} e^{x_j^{(i)}} \Big)^{2}$$
#
# for the logits of $B$ tokens and $N$ experts. It must also survive logits of 300.
#
# <details>
# <summary>Hint 1</summary>
#
# What has to happen to the log-sum-exp of *each token* so that −40 is as bad as +40?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# First `torch.logsumexp` over the experts, then the square, then the mean over the tokens. (The
# exponential of 300 is infinite in float32; `logsumexp` takes the largest logit out before.)
#
# </details>


# %%
def z_loss(logits_TE: Tensor) -> Tensor:
    """Give the router z-loss of a batch: a scalar, least where every log-sum-exp is 0."""
    ### BEGIN SOLUTION
    return torch.logsumexp(logits_TE, dim=-1).square().mean()
    ### END SOLUTION


# %%
checks.check_z_loss(z_loss)

# %% [markdown]
# ## 3. Which way does it push?
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# With pencil and paper: the derivative of $L_z$ with respect to the logit $x_j$ of token $i$. Then
# write it without autograd.
#
# By hand: a token alone ($B = 1$) has the logits 0, 0, 0, 0. Its log-sum-exp is $\ln 4 = 1.386$,
# and each of the four is pushed down by $2 \cdot 1.386 \cdot \frac14 = 0.693$.
#
# <details>
# <summary>Hint 1</summary>
#
# Two chain rules. The square: $2 \log Z$ times the derivative of $\log Z$. And
# $\log \sum_j e^{x_j}$, differentiated by $x_j$, is $e^{x_j}$ over that sum.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# $e^{x_j} / \sum_j e^{x_j}$ is the softmax. And do not forget the mean over the tokens.
#
# </details>


# %%
def z_gradient(logits_TE: Tensor) -> Tensor:
    """Give the gradient of the router z-loss with respect to the logits, (tokens, experts)."""
    ### BEGIN SOLUTION
    log_z_T1 = logits_TE.logsumexp(dim=-1, keepdim=True)
    return 2 * log_z_T1 * logits_TE.softmax(dim=-1) / len(logits_TE)
    ### END SOLUTION


# %%
checks.check_z_gradient(z_gradient)

# %% [markdown]
# Now look once more at exercise 2's mistake. Without the square, the factor $2 \log Z$ is missing:
# the push has the same sign for ever. And with the square: for which logits is there no push?

# %%
for shift in (-3.0, -math.log(4), 0.0, 3.0):
    print(
        f"four logits of {shift:5.2f}: gradient {z_gradient(torch.full((1, 4), shift))[0, 0]:6.3f}"
    )

# %% [markdown]
# ## 4. Float32, but too late
#
# *Difficulty ●●●○○ · importance ●●●●● · 15 minutes*
#
# "Our router runs in float32", says the documentation, and the code seems to agree:


# %%
def hasty_router(x_TD, weight_ED):
    logits_TE = F.linear(x_TD, weight_ED)
    return logits_TE.float().softmax(dim=-1)  # in float32!


torch.manual_seed(0)
weight_ED, x_TD = torch.randn(8, 256) / 16, torch.randn(4000, 256) + 2
with torch.autocast("cpu", torch.bfloat16):
    hasty_TE = hasty_router(x_TD, weight_ED)
exact_TE = hasty_router(x_TD, weight_ED)
moved = (hasty_TE.argmax(-1) != exact_TE.argmax(-1)).float().mean()
print(f"{hasty_TE.dtype}, and yet {moved:.1%} of the tokens go to another expert")

# %% [markdown]
# What the product has rounded off, no cast brings back. Write the *logits* so that they are exact
# in float32 whatever the inputs' types are, and whether or not the caller is inside
# `torch.autocast`.
#
# <details>
# <summary>Hint 1</summary>
#
# Cast what goes *into* the product. Then run the check: it may still say that a product came out in
# bfloat16. Who decides in which type a product runs inside `torch.autocast`?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `with torch.autocast(x_TD.device.type, enabled=False):` is an island without autocast.
#
# </details>


# %%
def selective_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Score every expert for every token, in float32: (tokens, experts)."""
    ### BEGIN SOLUTION
    with torch.autocast(x_TD.device.type, enabled=False):
        return F.linear(x_TD.float(), weight_ED.float())
    ### END SOLUTION


# %%
checks.check_selective_logits(selective_logits)

# %% [markdown]
# ## 5. Ten times smaller
#
# *Difficulty ●●○○○ · importance ●●●○○ · 10 minutes*
#
# A team reads that Switch "reduces the initialisation scale by a factor of 10". It multiplies the
# usual deviation $1/\sqrt{n}$ by 0.1 and is disappointed: the model takes for ever to get going.

# %%
n = 256
disappointing = torch.randn(8, n) * 0.1 / n**0.5
logits_TE = F.rms_norm(torch.randn(1000, n), (n,)) @ disappointing.T
print(f"variance of the first logits {logits_TE.var():.3f}, where s = 0.1 was wanted")

# %% [markdown]
# Write the first weights of Switch's section 2.4: normal, mean 0, $\sigma = \sqrt{s/n}$ with $n$
# the fan-in (the number of inputs), and values beyond $2\sigma$ drawn again.
#
# <details>
# <summary>Hint 1</summary>
#
# On what is the scale $s$, on the deviation or on the variance? And which of the weight's two sizes
# is the fan-in?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `torch.nn.init.trunc_normal_` draws again what falls outside `a` and `b`. Mind that its `a` and
# `b` are *values*, not multiples of the deviation: with the default −2 and 2 nothing here is ever
# cut.
#
# </details>


# %%
def first_weights(rows: int, fan_in: int, scale: float) -> Tensor:
    """Draw a weight (rows, fan_in) from a truncated normal of variance scale / fan_in."""
    ### BEGIN SOLUTION
    sigma = math.sqrt(scale / fan_in)
    weight = torch.empty(rows, fan_in)
    return torch.nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma)
    ### END SOLUTION


# %%
checks.check_first_weights(first_weights)

# %% [markdown]
# ## What you can now say
#
# 1. bfloat16 has 128 steps between two powers of two: 1 at 128, 8 at 1,024.
# 2. The square gives the z-loss its floor, at a log-sum-exp of 0.
# 3. Its gradient is $2 \log Z \cdot p_j / B$: the only push of a loss along the direction in which
#    all experts rise together.
# 4. Precision is lost in the product. A float32 softmax after it is a float32 softmax of rounded
#    numbers.
# 5. The scale is on the variance: ten times smaller $s$, $\sqrt{10}$ times smaller weights.
