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
# # Exercises 01: Why would experts divide the work?
#
# Five exercises for the chapter [Why would experts divide the
# work?](../notebooks/01_competing_experts.ipynb), about an hour and a quarter together, no GPU.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Who was it? | ●●○○○ | ●●●●● | 15 |
# | 2 | An error that does not overflow | ●●○○○ | ●●●●○ | 15 |
# | 3 | Two gradients, by hand | ●●●○○ | ●●●●● | 20 |
# | 4 | Four that do no better than one | ●●○○○ | ●●●●○ | 15 |
# | 5 | Everyone may veto | ●●○○○ | ●●○○○ | 10 |

# %%
import torch
from torch import Tensor

from moe_lite.course import checks
from moe_lite.course.mixtures import Mixture, descend
from moe_lite.course.vowels import load_vowels

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Who was it?
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# The gate believed $p = \mathrm{softmax}(x)$. Then the answer $d$ arrived. Share out each case
# among the experts:
#
# $$h_i = \frac{p_i\, e^{-\frac12\|d-o_i\|^2}}{\sum_j p_j\, e^{-\frac12\|d-o_j\|^2}}$$
#
# By hand first: two experts, $p = (½, ½)$, the first exactly right, the second off by 1. The
# weights are $1$ and $e^{-1/2} = 0.607$, so $h = (0.622, 0.378)$. The last numbers of the check
# have experts off by 60 and by 61; see what $e^{-1800}$ is in floating point before you hand in.
#
# <details>
# <summary>Hint 1</summary>
#
# `target_TO` is `(T, O)`, `out_TEO` is `(T, E, O)`. Put a dimension into the first for the experts:
# `target_TO[:, None]`. The norm's square sums over the outputs.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A softmax is $e^{a_i} / \sum_j e^{a_j}$, and it takes care of large numbers. For which $a$ is it
# $h$? The constant that turns logits into log-probabilities cancels.
#
# </details>


# %%
def responsibilities(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Tensor:
    """Give the posterior probability that expert i was in charge of case t.

    Args:    logits_TE: the gate's scores; out_TEO: the experts' answers; target_TO: the right ones.
    Returns: h_TE, each row adds up to 1.
    """
    ### BEGIN SOLUTION
    off_TE = (target_TO[:, None] - out_TEO).square().sum(dim=-1)
    return (logits_TE - off_TE / 2).softmax(dim=-1)
    ### END SOLUTION


# %%
checks.check_responsibilities(responsibilities)

# %% [markdown]
# ## 2. An error that does not overflow
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# Here is the third error as it stands in the paper, typed off. It is right, until it meets an
# expert that is far off, for instance on data nobody has scaled:

# %%
logits = torch.zeros(1, 2)
out = torch.tensor([[[40.0], [40.0]]], requires_grad=True)  # the answer would be 0
p_TE = logits.softmax(-1)
error = -(p_TE * (-out.square().sum(-1) / 2).exp()).sum(-1).log()
(gradient,) = torch.autograd.grad(error.sum(), out)
print("error", error.item(), " gradient", gradient.flatten())

# %% [markdown]
# $e^{-800}$ is 0, its logarithm is $-\infty$, and the gradient is not a number. One such case among
# four hundred, and after one step every weight is `nan`. Write $E_3$ so that it gives 800 here, and
# a gradient:
#
# $$E_3 = -\log \sum_i p_i\, e^{-\frac12\|d-o_i\|^2}$$
#
# <details>
# <summary>Hint 1</summary>
#
# $p\,e^{a} = e^{a + \log p}$. Where could $\log p$ come from without passing through $p$?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `Tensor.logsumexp(dim)` is $\log \sum e^{\,\cdot}$, with the largest term taken out first.
#
# </details>


# %%
def mixture_error(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Tensor:
    """Give the error E3 of each case: its negative log-likelihood, without the constant.

    Args:    as in exercise 1.
    Returns: one error for each case, (T,), with gradients to logits_TE and out_TEO; without the
             constant of the normal density, as in the formula.
    """
    ### BEGIN SOLUTION
    off_TE = (target_TO[:, None] - out_TEO).square().sum(dim=-1)
    return -(logits_TE.log_softmax(dim=-1) - off_TE / 2).logsumexp(dim=-1)
    ### END SOLUTION


# %%
checks.check_mixture_error(mixture_error)

# %% [markdown]
# Clamping the exponential at some tiny number would silence the `nan` too. But then the gradient is
# zero for just those experts that need it most.
#
# ## 3. Two gradients, by hand
#
# *Difficulty ●●●○○ · importance ●●●●● · 20 minutes*
#
# Differentiate $E_3$ of one case by the gate's logits $x_i$ and by the experts' answers $o_i$. On
# paper, then in code, without autograd.
#
# <details>
# <summary>Hint 1</summary>
#
# Let $w_i = p_i e^{-\frac12\|d-o_i\|^2}$, so that $E_3 = -\log \sum_i w_i$. The derivative of a
# logarithm brings $w_i$ over the sum of all $w$, and that has a name.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# For the gate: $\log w_i = x_i - \log\sum_j e^{x_j} - \dots$; the second term gives $p$ when
# differentiated, the first gives $h$. For the experts: the $½$ meets the 2 of the square.
#
# </details>


# %%
def gradients(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> tuple[Tensor, Tensor]:
    """Give the derivatives of each case's E3.

    Returns: by the logits, (T, E), and by the answers, (T, E, O).
    """
    ### BEGIN SOLUTION
    h_TE = responsibilities(logits_TE, out_TEO, target_TO)
    by_logits_TE = logits_TE.softmax(dim=-1) - h_TE
    return by_logits_TE, -h_TE[..., None] * (target_TO[:, None] - out_TEO)
    ### END SOLUTION


# %%
checks.check_gradients(gradients)

# %% [markdown]
# Both are differences between what was thought and what turned out. Neither mentions the other
# experts except through $h$. That is the whole bargaining.
#
# ## 4. Four that do no better than one
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# Give each expert more: a softmax over all four vowels, instead of one line. Accuracy is fine,
# over 90 %. But four of them do no better than one. There is no bug in this cell:

# %%
vowels = load_vowels(("iy", "ih", "aa", "ah"))
x_TD, four_TO = vowels.x_T2[vowels.train_T], vowels.one_hot()[vowels.train_T]
for experts in (1, 4):
    able = Mixture(num_inputs=2, num_experts=experts, num_outputs=4, seeds=range(25))
    descent = descend(able, x_TD, four_TO, step=5.0)
    with torch.no_grad():
        _, answer_QTO = able.learn(x_TD, four_TO)
        logits_QTE, _ = able(x_TD)
    right = (answer_QTO.argmax(-1) == four_TO.argmax(-1)).double().mean()
    print(f"{experts} experts: {right:.0%} right after {descent.epochs_Q.mean():.0f} epochs")

# %% [markdown]
# Accuracy says nothing about *who* was right. Write the instrument that does: with how many experts
# does a run end up? An expert **works** if, in at least a given share of the cases, the gate trusts
# it more than any other.
#
# <details>
# <summary>Hint 1</summary>
#
# First the winner of each case: `argmax` over the experts, (Q, T). Then each expert's share of the
# wins. Only then compare with `share`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `torch.nn.functional.one_hot(winner_QT, E)` marks each win with a 1; the mean over T is the share.
#
# </details>


# %%
def working_experts(logits_QTE: Tensor, share: float) -> Tensor:
    """Count the experts that win at least this share of the cases, in each run.

    Args:    logits_QTE: the gate's scores in Q runs.
    Returns: int64 (Q,).
    """
    ### BEGIN SOLUTION
    winner_QT = logits_QTE.argmax(dim=-1)
    wins_QTE = torch.nn.functional.one_hot(winner_QT, logits_QTE.shape[-1])
    return (wins_QTE.double().mean(dim=1) >= share).sum(dim=-1)
    ### END SOLUTION


# %%
checks.check_working_experts(working_experts)
print("working experts, of 4, in 25 runs:", *working_experts(logits_QTE, 0.02).tolist())

# %% [markdown]
# At this small step one expert takes everything, in all runs but the odd one. It can: as a softmax
# over four classes, a single one separates all four vowels. What was trained is *one linear
# classifier*, dressed as a mixture. In the chapter each expert had one line, and one line could
# not do it.
#
# ## 5. Everyone may veto
#
# *Difficulty ●●○○○ · importance ●●○○○ · 10 minutes*
#
# Each of $E$ experts gives log densities at $X$ points. Combine them to a **product** of experts:
# multiply, then normalise so that the probabilities add up to 1. In logarithms, all the way: two
# experts that give a point $e^{-400}$ and $e^{-500}$ can still tell it from its neighbour.
#
# <details>
# <summary>Hint 1</summary>
#
# The logarithm of a product is a sum. Over which dimension?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# To normalise is to subtract the logarithm of the total. `log_softmax` over the *points* does that.
#
# </details>


# %%
def product(log_XE: Tensor) -> Tensor:
    """Combine experts' log densities at X points to the log density of their product, (X,)."""
    ### BEGIN SOLUTION
    return log_XE.sum(dim=-1).log_softmax(dim=0)
    ### END SOLUTION


# %%
checks.check_product(product)

# %% [markdown]
# A point to which one expert gives probability zero has probability zero, whatever the others say.
# In a mixture it would only have lost one voice.
