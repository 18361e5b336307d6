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
# # Exercises 04: How do you skip the work without losing the gradient?
#
# Five exercises for the chapter [How do you skip the work without losing the
# gradient?](../notebooks/04_sparsely_gated.ipynb), about an hour and a quarter together, no GPU.
# The first three build the gate of Shazeer et al. 2017. The bugs of exercises 2 and 5 were in
# published code; that of exercise 4 is one that users make.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Choose hard, weigh soft | ●○○○○ | ●●●●● | 10 |
# | 2 | Noise of its own size | ●●○○○ | ●●●●○ | 15 |
# | 3 | How probably? | ●●●○○ | ●●●●● | 25 |
# | 4 | A gate that never learns | ●●○○○ | ●●●●○ | 10 |
# | 5 | The load that was not a number | ●●●○○ | ●●●○○ | 15 |

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.course import checks
from moe_lite.routers import kth_excluding

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Choose hard, weigh soft
#
# *Difficulty ●○○○○ · importance ●●●●● · 10 minutes*
#
# Equations 3 and 5: keep each token's $k$ highest scores, put $-\infty$ instead of the
# others, take the softmax. What comes out has a column for *every* expert, and exactly 0 for those
# that were not chosen. Exactly $k$ are chosen, also where scores tie (as they all do in a router
# that starts from zeros); which of those that tie is left to you.
#
# By hand first: a token has the scores $\ln 4, \ln 1, \ln 3, \ln 2$. With $k = 2$ the experts 0 and
# 2 stay, and their gates are 4/7 and 3/7.
#
# <details>
# <summary>Hint 1</summary>
#
# `topk` gives the $k$ best values of each row, and their places. (Who asks only for scores that are
# at least the $k$-th keeps more than $k$ where they tie.)
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `a.scatter(-1, index, b)` puts `b` into the places `index` of `a`. What stands in the other places
# has to vanish under $\exp$, and 0 does not: $e^0 = 1$. Or scatter the gates, not the scores.
#
# </details>


# %%
def sparse_gates(scores_TE: Tensor, k: int) -> Tensor:
    """Give softmax(KeepTopK(scores, k)).

    Args:    scores_TE: the router's scores, (tokens, experts).
    Returns: gates_TE, each row with k numbers that add up to 1, and zeros.
    """
    ### BEGIN SOLUTION
    top_TK, expert_TK = scores_TE.topk(k, dim=-1)
    return torch.zeros_like(scores_TE).scatter(-1, expert_TK, top_TK.softmax(dim=-1))
    ### END SOLUTION


# %%
checks.check_sparse_gates(sparse_gates)

# %% [markdown]
# The check also asked for the gradient. It went through, because `scatter` hands the slope on to
# the scores that were kept.
#
# ## 2. Noise of its own size
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# Here is a router's scoring from a collection of MoE parts. Its gates come out random in
# training, sum to 1, and the loss falls.


# %%
def hasty_scores(x_TD, w_gate_ED, w_noise_ED, normal_TE, training):
    clean_TE = x_TD @ w_gate_ED.T
    std_TE = F.softplus(x_TD @ w_gate_ED.T)
    return clean_TE + normal_TE * std_TE


x_TD, w_gate_ED = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
w_noise_ED = torch.zeros(5, 4, requires_grad=True)
for training in (True, False):
    print(hasty_scores(x_TD, w_gate_ED, w_noise_ED, torch.randn(3, 5), training).detach()[0])

# %% [markdown]
# Two things are wrong with it. Write it right: equation 4 when training, and the clean scores when
# not. The random numbers are handed in as `normal_TE`, so that your answer can be compared.
#
# $$H(x)_i = (x W_g)_i + \varepsilon_i \cdot \mathrm{Softplus}\big((x W_{\text{noise}})_i\big)$$
#
# <details>
# <summary>Hint 1</summary>
#
# Ask of `hasty_scores` which parameters get a gradient. One of the two is never used.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `F.softplus(a)` is $\ln(1 + e^a)$, and it is the standard deviation itself. With `w_noise_ED` at
# zero it is $\ln 2$ for everyone.
#
# </details>


# %%
def noisy_scores(
    x_TD: Tensor, w_gate_ED: Tensor, w_noise_ED: Tensor, normal_TE: Tensor, training: bool
) -> Tensor:
    """Score each token for each expert, with noise of a learned size while training.

    Args:    normal_TE: standard normal numbers, the epsilon of equation 4.
    Returns: scores_TE.
    """
    ### BEGIN SOLUTION
    clean_TE = x_TD @ w_gate_ED.T
    if not training:
        return clean_TE
    return clean_TE + normal_TE * F.softplus(x_TD @ w_noise_ED.T)
    ### END SOLUTION


# %%
checks.check_noisy_scores(noisy_scores)

# %% [markdown]
# "Does every parameter get a gradient?" would have caught the first mistake without any thought
# about noise. It is worth asking of every new module, once.
#
# ## 3. How probably?
#
# *Difficulty ●●●○○ · importance ●●●●● · 25 minutes*
#
# Equations 8 and 9. If expert $i$'s noise were drawn again, and nobody else's, how probably would
# it be among the $k$ best? It has to clear its **bar**, the $k$-th highest noisy score of the
# *others*; its own score is normal around the *clean* one, with deviation `std`:
#
# $$P(x, i) = \Phi\left(\frac{\mathrm{clean}_i - \mathrm{bar}_i}{\mathrm{std}_i}\right)$$
#
# By hand: scores 5, 1, 3, 2 without any noise drawn, `std` 2, $k = 2$. The bars are 2, 3, 2, 3, so
# the probabilities are $\Phi(1.5)$, $\Phi(-1)$, $\Phi(0.5)$ and $\Phi(-0.5)$. Please find the bars
# yourself rather than with the library's `kth_excluding`.
#
# And if $k$ is the number of all experts?
#
# <details>
# <summary>Hint 1</summary>
#
# Sort all noisy scores. For an expert that is in, remove it: who is now $k$-th? For one that is
# out, remove it: who is $k$-th? Only two values occur in a row, and `topk(k + 1)` has both.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `torch.special.ndtr` is $\Phi$. With $k = E$ there is no $k{+}1$-th, and no bar: everyone is
# chosen with certainty.
#
# </details>


# %%
def prob_in_top_k(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """Give the probability that each expert is chosen if its own noise is drawn again.

    Args:    clean_TE, noisy_TE: scores without and with the noise; std_TE: its deviation.
    Returns: p_TE, between 0 and 1; it has a gradient.
    """
    ### BEGIN SOLUTION
    if k == clean_TE.shape[1]:
        return torch.ones_like(clean_TE)
    top = noisy_TE.topk(k + 1, dim=-1).values
    kth_T1, behind_T1 = top[:, k - 1 : k], top[:, k:]
    bar_TE = torch.where(noisy_TE > behind_T1, behind_T1, kth_T1)
    return torch.special.ndtr((clean_TE - bar_TE) / std_TE)
    ### END SOLUTION


# %%
checks.check_prob_in_top_k(prob_in_top_k)

# %% [markdown]
# Now use it as it was meant. One score of one token is raised bit by bit. The count jumps from 0
# to 1; the probability climbs, and tells the router all the way which direction is up.

# %%
noisy_TE, std_TE = torch.tensor([[0.9, 0.2, 0.4]]), torch.full((1, 3), 0.5)
for score in (-0.6, 0.0, 0.4, 0.8, 1.4):
    clean_TE = torch.tensor([[0.9, score, 0.4]])
    p = prob_in_top_k(clean_TE, noisy_TE, std_TE, 1)[0, 1].item()
    print(f"clean score {score:4.1f}: best of all? {score > 0.9!s:5} P = {p:.2f}")

# %% [markdown]
# ## 4. A gate that never learns
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# Somebody uses a much-copied noisy top-k layer with $k = 1$, because one expert is cheaper than
# two. Everything runs. After a day the router's weights are what they were.


# %%
def silent_gate(scores_TE):
    top_T1, expert_T1 = scores_TE.topk(1, dim=-1)
    return top_T1.softmax(dim=-1)[:, 0], expert_T1[:, 0]


scores_TE = torch.randn(4, 3, requires_grad=True)
gate_T, expert_T = silent_gate(scores_TE)
(slope_TE,) = torch.autograd.grad((gate_T * torch.randn(4)).sum(), scores_TE)
print("gates", gate_T.detach(), "largest slope", slope_TE.abs().max().item())

# %% [markdown]
# Write a top-1 gate from which a router *can* learn. It should choose the same expert, and weigh
# it by its share in a softmax over all of them. (That is what Switch did in 2021; chapter 05 meets
# it.)
#
# <details>
# <summary>Hint 1</summary>
#
# What is the softmax of a list with one number in it? Does the number matter?
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Exchange two lines. First everyone competes, then one is chosen.
#
# </details>


# %%
def top1_gate(scores_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Choose one expert for each token.

    Returns: gate_T, the chosen expert's share in the softmax over all; expert_T (int64).
    """
    ### BEGIN SOLUTION
    gate_T, expert_T = scores_TE.softmax(dim=-1).max(dim=-1)
    return gate_T, expert_T
    ### END SOLUTION


# %%
checks.check_top1_gate(top1_gate)

# %% [markdown]
# ## 5. The load that was not a number
#
# *Difficulty ●●●○○ · importance ●●●○○ · 15 minutes*
#
# This load is fine for as long as you train. In evaluation its noise is multiplied by 0, which
# looks like an elegant way to write both cases in one line.


# %%
def fragile_load(clean_TE, noise_std_TE, k, training):
    std_TE = noise_std_TE * float(training)
    noisy_TE = clean_TE + torch.randn_like(clean_TE) * std_TE
    return torch.special.ndtr((clean_TE - kth_excluding(noisy_TE, k)) / std_TE).sum(0)


clean_TE = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
for training in (True, False):
    print(training, fragile_load(clean_TE, torch.ones(2, 3), 1, training))

# %% [markdown]
# One token with a tie, $0/0$, and the whole load is gone; a monitor that averages over batches
# keeps the NaN for ever. Write a load for both cases: with noise, the sum over the tokens of
# $P(x, i)$ (your function from exercise 3 is at hand); without, `std_TE` is `None`, and what is
# left is to count. Each token counts for exactly $k$ experts, ties or not.
#
# <details>
# <summary>Hint 1</summary>
#
# Without noise nothing is left to chance, and $P$ is 1 for the chosen and 0 for the others. You do
# not need $\Phi$ to sum that.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `topk(k).indices` has exactly $k$ experts for each token even where scores tie. Flatten it, and
# `bincount(minlength=E)` counts.
#
# </details>


# %%
def load_anywhere(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor | None, k: int) -> Tensor:
    """Give the load of each expert: smooth where there is noise, else a count.

    Args:    std_TE: the noise's deviation, or None where there was none (then noisy is clean).
    Returns: load_E, in tokens.
    """
    ### BEGIN SOLUTION
    if std_TE is None:
        chosen_N = noisy_TE.topk(k, dim=-1).indices.flatten()
        return chosen_N.bincount(minlength=noisy_TE.shape[1]).to(clean_TE.dtype)
    return prob_in_top_k(clean_TE, noisy_TE, std_TE, k).sum(dim=0)
    ### END SOLUTION


# %%
checks.check_load_anywhere(load_anywhere)

# %% [markdown]
# ## What you can now say
#
# 1. Dropped scores become $-\infty$, not 0; then the softmax gives them nothing.
# 2. The noise has weights of its own, and only exists in training.
# 3. An expert's bar is the $k$-th best of the *others*; its bell stands on its *clean* score.
# 4. With one expert the softmax has to come before the choice.
# 5. Without noise the load is a count. A zero that switches something off must not be divided by.
