"""Experts with managers: the hierarchical mixture of experts of 1994, fitted by EM.

A binary tree. At each inner node a gate, a logistic regression, says how likely a token goes
left; at each leaf an expert, a linear regression, says what it predicts. Nodes are counted level
by level, so node n has the children 2n+1 (left) and 2n+2, and the leaves come last.

====== ============================== ====== ==================================
letter meaning                        letter meaning
====== ============================== ====== ==================================
Q      trees, fitted side by side     T      tokens (1994: training points)
G      gates, the inner nodes: E - 1  E      experts, the leaves: 2 ** depth
N      all nodes: G + E               D O    inputs, their last one a 1; outputs
====== ============================== ====== ==================================

Everything is float64: EM's promise, a likelihood that never falls, is checked to the last digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HME:
    """Hold Q trees: what a step of EM takes and gives.

    Shapes: gate_QGD, one logistic regression for each inner node; expert_QEDO, one linear
            regression for each leaf; var_QE, the variance of each expert's Gaussian.
    Source: Jordan & Jacobs 1994, "Hierarchical mixtures of experts and the EM algorithm",
            Neural Computation 6:181-214.
    """

    gate_QGD: Tensor
    expert_QEDO: Tensor
    var_QE: Tensor

    @property
    def depth(self) -> int:
        """Levels of gates above the experts."""
        return self.var_QE.shape[1].bit_length() - 1

    def log_prior(self, x_TD: Tensor) -> Tensor:
        """Return log P(a token passes node n | x) for every node: (Q, T, N), the root's is 0.

        Source: Jordan & Jacobs 1994, the products of g_i and g_j|i.
        """
        score_QTG = x_TD @ self.gate_QGD.mT
        step_QTG2 = F.logsigmoid(torch.stack([score_QTG, -score_QTG], dim=-1))
        levels = [torch.zeros_like(score_QTG[..., :1])]
        for level in range(self.depth):
            first = 2**level - 1  # the level's nodes are first .. 2 * first
            step = step_QTG2[..., first : 2 * first + 1, :]
            levels.append((levels[-1][..., None] + step).flatten(-2))
        return torch.cat(levels, dim=-1)

    def predict(self, x_TD: Tensor) -> Tensor:
        """Mix the experts' predictions by their gates: (Q, T, O)."""
        prior_QTE = self.log_prior(x_TD)[..., -self.var_QE.shape[1] :].exp()
        return torch.einsum("qte,qeto->qto", prior_QTE, x_TD @ self.expert_QEDO)

    def log_joint(self, x_TD: Tensor, y_TO: Tensor) -> Tensor:
        """Return log(prior of the leaf x density of y under its expert): (Q, T, E)."""
        error_QET = (y_TO - x_TD @ self.expert_QEDO).square().sum(dim=-1)
        var_QE1 = self.var_QE[..., None]
        log_density_QET = -0.5 * (
            error_QET / var_QE1 + y_TO.shape[-1] * (2 * math.pi * var_QE1).log()
        )
        return self.log_prior(x_TD)[..., -self.var_QE.shape[1] :] + log_density_QET.mT

    def log_likelihood(self, x_TD: Tensor, y_TO: Tensor) -> Tensor:
        """Return sum over tokens of log P(y | x), in nats, for each tree: (Q,)."""
        return self.log_joint(x_TD, y_TO).logsumexp(dim=-1).sum(dim=-1)

    def posterior(self, x_TD: Tensor, y_TO: Tensor) -> Tensor:
        """Return P(the token passed node n | x, y) for every node: (Q, T, N), the root's is 1.

        A leaf's follows from Bayes' rule, a manager's is the sum of its two children's.

        Source: Jordan & Jacobs 1994, eqs. 2.10-2.12 (h_j|i is a child's over its parent's).
        """
        return sum_upwards(self.log_joint(x_TD, y_TO).softmax(dim=-1))

    def __getitem__(self, tree: int) -> HME:
        """Take one tree out of the Q, as a batch of one."""
        return HME(*(part[tree : tree + 1 or None] for part in vars(self).values()))


def sum_upwards(leaf_TE: Tensor) -> Tensor:
    """Return, for each inner node, the sum of its children: (..., E) -> (..., 2E - 1).

    >>> sum_upwards(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    tensor([1.0000, 0.3000, 0.7000, 0.1000, 0.2000, 0.3000, 0.4000])
    """
    levels = [leaf_TE]
    while levels[0].shape[-1] > 1:
        levels.insert(0, levels[0].unflatten(-1, (-1, 2)).sum(dim=-1))
    return torch.cat(levels, dim=-1)


def affine(x_TD: Tensor) -> Tensor:
    """Append the input that is always 1, in float64: (T, D-1) -> (T, D)."""
    return F.pad(x_TD.double(), (0, 1), value=1.0)


def random_tree(
    depth: int, inputs: int, outputs: int, *, seeds: Tensor | range | list[int], scale: float = 0.3
) -> HME:
    """Draw one tree for each seed, all weights normal with std ``scale``, all variances 1.

    Args:   inputs: D, with the constant one that :func:`affine` appends.
    Raises: ValueError if depth is below 1, a size is below 1, or there is no seed.
    """
    for name, size in (("depth", depth), ("inputs", inputs), ("outputs", outputs)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    if not len(seeds):
        raise ValueError("there is no seed: a tree needs one")
    E, gates, experts = 2**depth, [], []
    for seed in seeds:
        rng = torch.Generator().manual_seed(int(seed))
        draw = torch.randn((2 * E - 1) * inputs * outputs, generator=rng, dtype=torch.float64)
        gates.append(scale * draw[: (E - 1) * inputs].view(E - 1, inputs))
        experts.append(scale * draw[-E * inputs * outputs :].view(E, inputs, outputs))
    gate_QGD, expert_QEDO = torch.stack(gates), torch.stack(experts)
    return HME(gate_QGD, expert_QEDO, torch.ones_like(expert_QEDO[..., 0, 0]))


def em_step(
    tree: HME,
    x_TD: Tensor,
    y_TO: Tensor,
    *,
    irls_steps: int = 1,
    damping: float = 1e-3,
    min_var: float = 1e-4,
) -> HME:
    """Take one step of EM: posteriors, then a weighted regression at every node.

    The M step falls apart: each expert is a least-squares problem weighted by its posteriors,
    each gate a logistic regression whose target is the posterior of its left child, weighted by
    its own. Damping pulls a solution towards where it already is, never towards zero, so that no
    step can lower the likelihood and an expert that nobody asks stays put.

    Args:    irls_steps: Newton steps of each gate; one is enough to climb, if not to the top of
             its hill; min_var: least variance, in y's units squared.
    Returns: trees whose log-likelihood is at least that of ``tree``.
    Source:  Jordan & Jacobs 1994, Algorithm 1.
    """
    posterior_QTN = tree.posterior(x_TD, y_TO)
    E = tree.var_QE.shape[1]
    expert_QEDO, var_QE = fit_experts(
        tree, x_TD, y_TO, posterior_QTN[..., -E:], damping=damping, min_var=min_var
    )
    gate_QGD = tree.gate_QGD
    for _ in range(irls_steps):
        gate_QGD = fit_gates(gate_QGD, x_TD, posterior_QTN, damping=damping)
    return HME(gate_QGD, expert_QEDO, var_QE)


def fit_experts(
    tree: HME, x_TD: Tensor, y_TO: Tensor, weight_QTE: Tensor, *, damping: float, min_var: float
) -> tuple[Tensor, Tensor]:
    """Solve every expert's weighted least squares: (expert_QEDO, var_QE).

    Source: Jordan & Jacobs 1994, the experts' part of the M step, for Gaussian experts.
    """
    Q, _, E = weight_QTE.shape
    D, outputs = x_TD.shape[1], y_TO.shape[1]
    # All experts' sums over tokens at once: their weights times the same outer products.
    weight_QET = weight_QTE.mT
    xx_QEDD = (weight_QET @ _outer(x_TD, x_TD)).view(Q, E, D, D)
    xy_QEDO = (weight_QET @ _outer(x_TD, y_TO)).view(Q, E, D, outputs)
    yy_QE = weight_QET @ y_TO.square().sum(dim=-1)
    ridge_DD = damping * torch.eye(D, dtype=x_TD.dtype, device=x_TD.device)
    expert_QEDO = torch.linalg.solve(xx_QEDD + ridge_DD, xy_QEDO + damping * tree.expert_QEDO)
    error_QE = yy_QE + (expert_QEDO * (xx_QEDD @ expert_QEDO - 2 * xy_QEDO)).sum(dim=(-2, -1))
    mass_QE = weight_QTE.sum(dim=1)
    var_QE = (error_QE / (outputs * mass_QE)).clamp(min=min_var)
    return expert_QEDO, torch.where(mass_QE > 1e-6, var_QE, tree.var_QE)


def fit_gates(gate_QGD: Tensor, x_TD: Tensor, posterior_QTN: Tensor, *, damping: float) -> Tensor:
    """Take one Newton step of every gate's weighted logistic regression (IRLS): gate_QGD.

    A step that would lower a gate's own likelihood is halved until it does not.

    Source: Jordan & Jacobs 1994, the gates' part of the M step.
    """
    Q, G, D = gate_QGD.shape
    child_QTG2 = posterior_QTN[..., 1:].unflatten(-1, (G, 2))
    own_QTG = posterior_QTN[..., :G]

    def likelihood(gate_QGD: Tensor) -> Tensor:
        score_QTG = x_TD @ gate_QGD.mT
        log_QTG2 = F.logsigmoid(torch.stack([score_QTG, -score_QTG], dim=-1))
        return (child_QTG2 * log_QTG2).sum(dim=(1, 3))

    left_QTG = (x_TD @ gate_QGD.mT).sigmoid()
    slope_QGD = (child_QTG2[..., 0] - own_QTG * left_QTG).mT @ x_TD
    curve_QGT = (own_QTG * left_QTG * (1 - left_QTG)).mT
    ridge_DD = damping * torch.eye(D, dtype=x_TD.dtype, device=x_TD.device)
    curve_QGDD = (curve_QGT @ _outer(x_TD, x_TD)).view(Q, G, D, D) + ridge_DD
    step_QGD = torch.linalg.solve(curve_QGDD, slope_QGD[..., None])[..., 0]
    before_QG = likelihood(gate_QGD)
    for _ in range(8):
        worse_QG = likelihood(gate_QGD + step_QGD) < before_QG
        if not worse_QG.any():
            return gate_QGD + step_QGD
        step_QGD = torch.where(worse_QG[..., None], step_QGD / 2, step_QGD)
    return torch.where(worse_QG[..., None], gate_QGD, gate_QGD + step_QGD)


def constrain(gate_TE: Tensor, total_E: Tensor, margin: float) -> Tensor:
    """Close the gates of experts that are too far ahead, and share out their weight anew.

    Args:    gate_TE: each token's gates, adding up to 1; total_E: what each expert's gates have
             added up to so far; margin: how far above the mean of those a total may be, in tokens.
    Returns: gate_TE with the columns of leading experts 0, each row adding up to 1 again.
    Raises:  ValueError if margin is negative: then all experts might be closed.
    Source:  Eigen, Ranzato & Sutskever 2013 (arXiv:1312.4314), the constraint on G_i.
    """
    if margin < 0:
        raise ValueError(f"margin must be at least 0 tokens, not {margin}")
    open_TE = gate_TE * (total_E - total_E.mean() <= margin)
    return open_TE / open_TE.sum(dim=-1, keepdim=True)


def _outer(a_TD: Tensor, b_TO: Tensor) -> Tensor:
    """Give each token's outer product as one row: (T, D * O)."""
    return (a_TD[:, :, None] * b_TO[:, None, :]).flatten(1)
