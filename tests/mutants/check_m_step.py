"""Answers to check_m_step: each wrong one says in its docstring what its verdict must say."""

import torch

from moe_lite.course.hierarchy import HME, em_step, fit_experts, fit_gates


def _experts(tree, x_TD, y_TO, weight_TE):
    return fit_experts(tree, x_TD, y_TO, weight_TE[None], damping=1e-3, min_var=1e-4)


def _gates(tree, x_TD, posterior_TN):
    return fit_gates(tree.gate_QGD, x_TD, posterior_TN[None], damping=1e-3)


def _leaves(tree, posterior_TN):
    return posterior_TN[:, -tree.var_QE.shape[1] :]


def nothing_about_gates(tree, x_TD, y_TO, posterior_TN):
    """the gates are left as they were"""
    return HME(tree.gate_QGD, *_experts(tree, x_TD, y_TO, _leaves(tree, posterior_TN)))


def variances_forgotten(tree, x_TD, y_TO, posterior_TN):
    """the variances are left as they were"""
    experts, _ = _experts(tree, x_TD, y_TO, _leaves(tree, posterior_TN))
    return HME(_gates(tree, x_TD, posterior_TN), experts, tree.var_QE)


def gates_swapped(tree, x_TD, y_TO, posterior_TN):
    """left and right are swapped"""
    gates = _gates(tree, x_TD, posterior_TN)
    return HME(-gates, *_experts(tree, x_TD, y_TO, _leaves(tree, posterior_TN)))


def leaves_from_the_wrong_end(tree, x_TD, y_TO, posterior_TN):
    """weighted by the posterior of its own leaf"""
    weight_TE = posterior_TN[:, : tree.var_QE.shape[1]]
    return HME(_gates(tree, x_TD, posterior_TN), *_experts(tree, x_TD, y_TO, weight_TE))


def leaves_mirrored(tree, x_TD, y_TO, posterior_TN):
    """weighted by the posterior of its own leaf"""
    weight_TE = _leaves(tree, posterior_TN).flip(-1)
    return HME(_gates(tree, x_TD, posterior_TN), *_experts(tree, x_TD, y_TO, weight_TE))


def variance_is_a_deviation(tree, x_TD, y_TO, posterior_TN):
    """is not its expert's mean squared error"""
    experts, var = _experts(tree, x_TD, y_TO, _leaves(tree, posterior_TN))
    return HME(_gates(tree, x_TD, posterior_TN), experts, var**2 / 4)


def gates_overshoot(tree, x_TD, y_TO, posterior_TN):
    """fits its posteriors worse than"""
    gates = tree.gate_QGD + 60 * (_gates(tree, x_TD, posterior_TN) - tree.gate_QGD)
    return HME(gates, *_experts(tree, x_TD, y_TO, _leaves(tree, posterior_TN)))


def one_expert_missing(tree, x_TD, y_TO, posterior_TN):
    """should be (1, 4)"""
    new = right_library(tree, x_TD, y_TO, posterior_TN)
    return HME(new.gate_QGD, new.expert_QEDO, new.var_QE[:, 1:])


def right_library(tree, x_TD, y_TO, posterior_TN):
    return em_step(tree, x_TD, y_TO)


def right_by_loops(tree, x_TD, y_TO, posterior_TN):
    gate_GD, D = tree.gate_QGD[0].clone(), x_TD.shape[1]
    E = len(gate_GD) + 1
    ridge = 1e-3 * torch.eye(D).double()
    for n in range(E - 1):
        p = (x_TD @ gate_GD[n]).sigmoid()
        own, left = posterior_TN[:, n], posterior_TN[:, 2 * n + 1]
        curve = (x_TD.T * (own * p * (1 - p))) @ x_TD + ridge
        gate_GD[n] += torch.linalg.solve(curve, x_TD.T @ (left - own * p))
    experts, variances = [], []
    for e in range(E):
        w = posterior_TN[:, E - 1 + e]
        a = (x_TD.T * w) @ x_TD
        experts.append(torch.linalg.solve(a + 1e-9 * ridge, (x_TD.T * w) @ y_TO))
        error = (y_TO - x_TD @ experts[-1]).square().mean(-1)
        variances.append((w * error).sum() / w.sum())
    return HME(gate_GD[None], torch.stack(experts)[None], torch.stack(variances)[None])


def right_with_more_newton(tree, x_TD, y_TO, posterior_TN):
    return em_step(tree, x_TD, y_TO, irls_steps=4)


def variance_as_deviation(tree, x_TD, y_TO, posterior_TN):
    """the root of it, the deviation"""
    new = right_library(tree, x_TD, y_TO, posterior_TN)
    return HME(new.gate_QGD, new.expert_QEDO, new.var_QE.sqrt())


def root_never_fitted(tree, x_TD, y_TO, posterior_TN):
    """the root's gate is left as it was"""
    new = right_by_loops(tree, x_TD, y_TO, posterior_TN)
    gate_QGD = torch.cat([tree.gate_QGD[:, :1], new.gate_QGD[:, 1:]], dim=1)
    return HME(gate_QGD, new.expert_QEDO, new.var_QE)


def errors_of_the_old_expert(tree, x_TD, y_TO, posterior_TN):
    """the old expert's errors"""
    new = right_library(tree, x_TD, y_TO, posterior_TN)
    error_TE = (y_TO - x_TD @ tree.expert_QEDO[0]).square().mean(-1).mT
    weight_TE = _leaves(tree, posterior_TN)
    var_QE = ((weight_TE * error_TE).sum(0) / weight_TE.sum(0))[None]
    return HME(new.gate_QGD, new.expert_QEDO, var_QE)


def each_to_its_likeliest(tree, x_TD, y_TO, posterior_TN):
    """an expert fits its tokens worse than it could"""
    leaf_TE = _leaves(tree, posterior_TN)
    hard_TE = torch.nn.functional.one_hot(leaf_TE.argmax(-1), leaf_TE.shape[1]).to(leaf_TE)
    return HME(_gates(tree, x_TD, posterior_TN), *_experts(tree, x_TD, y_TO, hard_TE))
