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
# # Exercises 02: Can experts have managers?
#
# Five exercises for the chapter [Can experts have
# managers?](../notebooks/02_hierarchies.ipynb), an hour and twenty minutes together, no GPU. They
# build EM for a tree of experts from its parts.
#
# Each ends with a check that runs your function, first on numbers you can do by hand, and says
# which idea would lead to your result if it is off. Any correct solution passes.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Down the tree | ●●○○○ | ●●●●○ | 15 |
# | 2 | Who was it? | ●○○○○ | ●●●●● | 10 |
# | 3 | An expert's M step | ●●○○○ | ●●●●○ | 10 |
# | 4 | A gate's M step | ●●●○○ | ●●●○○ | 20 |
# | 5 | The M step, and its promise | ●●●●○ | ●●●●● | 25 |

# %%
import torch
from torch import Tensor

from moe_lite.course import checks
from moe_lite.course.hierarchy import HME, affine, random_tree

torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Down the tree
#
# *Difficulty ●●○○○ · importance ●●●●○ · 15 minutes*
#
# Each gate of a binary tree sends a token left with some probability, and right otherwise. Nodes
# are counted level by level: gate $n$ has the children $2n+1$ (left) and $2n+2$ (right). The
# probability of ending at a leaf is the product of what happens on the way there.
#
# By hand: gates with 0.5, 0.1 and 0.8. The first leaf is left, left: $0.5 \cdot 0.1 = 0.05$. The
# others are 0.45, 0.4 and 0.1. Your function gets trees of 1, 3, 7 or 15 gates.
#
# <details>
# <summary>Hint 1</summary>
#
# Go level by level. If `level` is the `(T, W)` probability of each node of a level, the next level
# is `level * left` and `level * (1 - left)`, in turns.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# The gates of a level that begins with node `first` are `left_TG[:, first : 2 * first + 1]`.
# `torch.stack([a, b], dim=-1).flatten(1)` puts the columns of two matrices in turns.
#
# </details>


# %%
def leaf_priors(left_TG: Tensor) -> Tensor:
    """Multiply the gates on the way to each leaf.

    Args:    left_TG: each gate's probability of going left, level by level.
    Returns: (T, G + 1), the leaves from left to right; each row adds up to 1.
    """
    ### BEGIN SOLUTION
    level, first = torch.ones_like(left_TG[:, :1]), 0
    while first < left_TG.shape[1]:
        left = left_TG[:, first : 2 * first + 1]
        level = torch.stack([level * left, level * (1 - left)], dim=-1).flatten(1)
        first = 2 * first + 1
    return level
    ### END SOLUTION


# %%
checks.check_leaf_priors(leaf_priors)

# %% [markdown]
# ## 2. Who was it?
#
# *Difficulty ●○○○○ · importance ●●●●● · 10 minutes*
#
# Now $y$ is known, and each expert has a density: how likely it thought that $y$. Bayes' rule turns
# priors into posteriors, $h_e = \pi_e P_e / \sum_k \pi_k P_k$. A manager's posterior is the sum of
# its two children's. Give all nodes: the root first, then level by level, the leaves last.
#
# By hand: the priors 0.4, 0.1, 0.3, 0.2 and densities 1, 2, 0, 2 have the products 0.4, 0.2, 0
# and 0.4, which add up to 1 already. The managers have 0.6 and 0.4, the root 1.
#
# <details>
# <summary>Hint 1</summary>
#
# Sum over the *experts* of a token, `dim=-1`, and keep the dimension so that the division works.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `level[:, 0::2] + level[:, 1::2]` is the level above. Collect the levels in a list, and
# `torch.cat` them from the top.
#
# </details>


# %%
def posteriors(prior_TE: Tensor, density_TE: Tensor) -> Tensor:
    """Find how responsible each node is for each token.

    Args:    prior_TE: the leaves' priors; density_TE: each expert's density at the token's y.
    Returns: (T, 2E - 1): all nodes, the root first.
    """
    ### BEGIN SOLUTION
    joint_TE = prior_TE * density_TE
    levels = [joint_TE / joint_TE.sum(dim=-1, keepdim=True)]
    while levels[0].shape[1] > 1:
        levels.insert(0, levels[0][:, 0::2] + levels[0][:, 1::2])
    return torch.cat(levels, dim=-1)
    ### END SOLUTION


# %%
checks.check_posteriors(posteriors)

# %% [markdown]
# ## 3. An expert's M step
#
# *Difficulty ●●○○○ · importance ●●●●○ · 10 minutes*
#
# An expert is a linear regression in which token $t$ counts $w_t$, its posterior:
#
# $$U = \arg\min_U \sum_t w_t \, \lVert y_t - U^\top x_t \rVert^2
# = (X^\top W X)^{-1} X^\top W Y$$
#
# By hand: $x = 1, 2, 1$, $y = 2, 4, -1$. The first two lie on $y = 2x$, the third does not, and
# counts a quarter: $X^\top W X = 1 + 4 + 1/4$ and $X^\top W Y = 2 + 8 - 1/4$, so
# $U = 9.75/5.25 = 1.857$.
#
# <details>
# <summary>Hint 1</summary>
#
# $W$ is a diagonal matrix. You need not build it: `x_TD.T * weight_T` multiplies each column of
# $X^\top$ with its weight.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# With `torch.linalg.lstsq` instead, both sides get the weight's square *root*, because the error
# will be squared.
#
# </details>


# %%
def fit_expert(x_TD: Tensor, y_TO: Tensor, weight_T: Tensor) -> Tensor:
    """Solve a weighted least-squares problem.

    Args:    weight_T: how much each token counts.
    Returns: (D, O), so that x_TD @ it predicts y_TO.
    """
    ### BEGIN SOLUTION
    xw_DT = x_TD.T * weight_T
    return torch.linalg.solve(xw_DT @ x_TD, xw_DT @ y_TO)
    ### END SOLUTION


# %%
checks.check_fit_expert(fit_expert)

# %% [markdown]
# ## 4. A gate's M step
#
# *Difficulty ●●●○○ · importance ●●●○○ · 20 minutes*
#
# A gate sees only the share of each token that came to its node, $h_n$ (`own_T`), and should have
# sent $h_{\text{left}}$ (`left_T`) of it left. Its log-likelihood is
# $\sum_t h_{\text{left}} \log p + (h_n - h_{\text{left}}) \log (1-p)$ with
# $p = \sigma(v^\top x)$. Take **one** Newton step uphill, with 0.001 added to the diagonal of the
# curvature so that it can always be solved:
#
# $$v + (X^\top W X + 0.001\, I)^{-1} X^\top (h_{\text{left}} - h_n\, p), \qquad
# W = \mathrm{diag}(h_n\, p (1-p))$$
#
# By hand: $v = 0$, so $p = 1/2$; $x = 1, 1$; own $= 1, 0.5$; left $= 0.8, 0.1$. The slope is
# $0.3 - 0.15 = 0.15$, the curvature $0.25 + 0.125 + 0.001 = 0.376$, the new $v$ is 0.399.
#
# <details>
# <summary>Hint 1</summary>
#
# Three lines: `p_T`, the slope `x_TD.T @ (...)`, the curvature `(x_TD.T * (...)) @ x_TD`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `torch.eye(D).to(x_TD)` has the type of `x_TD`. Solve with `torch.linalg.solve(curvature,
# slope)`, and do not forget to add `v_D`.
#
# </details>


# %%
def fit_gate(v_D: Tensor, x_TD: Tensor, own_T: Tensor, left_T: Tensor) -> Tensor:
    """Take one Newton step of a gate's weighted logistic regression.

    Args:    v_D: the gate's weights; own_T: the posterior of its node; left_T: of its left child.
    Returns: the new weights, (D,).
    """
    ### BEGIN SOLUTION
    p_T = (x_TD @ v_D).sigmoid()
    slope_D = x_TD.T @ (left_T - own_T * p_T)
    curve_DD = (x_TD.T * (own_T * p_T * (1 - p_T))) @ x_TD
    return v_D + torch.linalg.solve(curve_DD + 1e-3 * torch.eye(len(v_D)).to(x_TD), slope_D)
    ### END SOLUTION


# %%
checks.check_fit_gate(fit_gate)

# %% [markdown]
# ## 5. The M step, and its promise
#
# *Difficulty ●●●●○ · importance ●●●●● · 25 minutes*
#
# Put it together, for one tree (all its tensors begin with a dimension of 1). You get the
# posteriors of all nodes, root first, leaves last. Give back a new `HME`: each gate fitted by
# `fit_gate`, each expert by `fit_expert`, and each expert's variance, its mean squared error with
# its posteriors as weights, $\sum_t w_t (y_t - \hat y_t)^2 / \sum_t w_t$ (there is one output).
#
# The check looks at your first step from four random trees, and names the part that is off: the
# gates, the experts or the variances. Then it runs EM with your step from ten trees, twelve steps
# each, and watches the log-likelihood. (A full Newton step can go too far; on these trees it never
# does so much that the likelihood falls.)
#
# <details>
# <summary>Hint 1</summary>
#
# With `G, E = tree.gate_QGD.shape[1], tree.var_QE.shape[1]`, gate `n` has `own =
# posterior_TN[:, n]` and `left = posterior_TN[:, 2 * n + 1]`; expert `e` is weighted by
# `posterior_TN[:, G + e]`.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Collect the results in lists and `torch.stack` them; `[None]` puts the dimension of 1 in front.
# The variance needs the *new* expert's errors.
#
# </details>


# %%
def m_step(tree: HME, x_TD: Tensor, y_TO: Tensor, posterior_TN: Tensor) -> HME:
    """Fit every gate and every expert to the posteriors.

    Args:    tree: a batch of one; posterior_TN: of all nodes, root first.
    Returns: a tree of the same shapes, under which the data should be at least as likely.
    """
    ### BEGIN SOLUTION
    G, E = tree.gate_QGD.shape[1], tree.var_QE.shape[1]
    gates = [
        fit_gate(tree.gate_QGD[0, n], x_TD, posterior_TN[:, n], posterior_TN[:, 2 * n + 1])
        for n in range(G)
    ]
    experts, variances = [], []
    for e in range(E):
        weight_T = posterior_TN[:, G + e]
        experts.append(fit_expert(x_TD, y_TO, weight_T))
        error_T = (y_TO - x_TD @ experts[-1]).square().mean(dim=-1)
        variances.append((weight_T * error_T).sum() / weight_T.sum())
    return HME(torch.stack(gates)[None], torch.stack(experts)[None], torch.stack(variances)[None])
    ### END SOLUTION


# %%
checks.check_m_step(m_step)

# %% [markdown]
# Try to break it: swap `2 * n + 1` for `2 * n + 2`, or let the experts have `posterior_TN[:, e]`,
# or forget the variance, and read what the check says. Then look at your own climb:

# %%
rng = torch.Generator().manual_seed(1)
x_TD = affine(torch.randn(200, 1, generator=rng))
y_TO = x_TD[:, :1].abs() + 0.1 * torch.randn(200, 1, generator=rng)
tree = random_tree(1, 2, 1, seeds=[0], scale=1.0)
for step in range(6):
    print(f"step {step}: log-likelihood {tree.log_likelihood(x_TD, y_TO).item():8.2f}")
    try:
        tree = m_step(tree, x_TD, y_TO, tree.posterior(x_TD, y_TO)[0])
    except NotImplementedError:
        print("... once m_step is written")
        break
