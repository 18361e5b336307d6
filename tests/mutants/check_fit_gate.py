"""Answers to check_fit_gate: each wrong one says in its docstring what its verdict must say."""

import torch


def _step(x_TD, slope_T, curve_T):
    curve_DD = x_TD.T @ (curve_T[:, None] * x_TD) + 1e-3 * torch.eye(x_TD.shape[1]).to(x_TD)
    return torch.linalg.solve(curve_DD, x_TD.T @ slope_T)


def downhill(v_D, x_TD, own_T, left_T):
    """downhill"""
    p = (x_TD @ v_D).sigmoid()
    return v_D + _step(x_TD, own_T * p - left_T, own_T * p * (1 - p))


def gradient(v_D, x_TD, own_T, left_T):
    """the gradient alone"""
    return v_D + x_TD.T @ (left_T - own_T * (x_TD @ v_D).sigmoid())


def only_the_step(v_D, x_TD, own_T, left_T):
    """add it to v"""
    return right(v_D, x_TD, own_T, left_T) - v_D


def expects_all(v_D, x_TD, own_T, left_T):
    """only own of it came here"""
    p = (x_TD @ v_D).sigmoid()
    return v_D + _step(x_TD, left_T - p, p * (1 - p))


def expects_all_but_weighs(v_D, x_TD, own_T, left_T):
    """only own of it came here"""
    p = (x_TD @ v_D).sigmoid()
    return v_D + _step(x_TD, left_T - p, own_T * p * (1 - p))


def curvature_without_own(v_D, x_TD, own_T, left_T):
    """own is missing from the curvature"""
    p = (x_TD @ v_D).sigmoid()
    return v_D + _step(x_TD, left_T - own_T * p, p * (1 - p))


def target_unweighted(v_D, x_TD, own_T, left_T):
    """each token has to count own times"""
    p = (x_TD @ v_D).sigmoid()
    return v_D + _step(x_TD, left_T / own_T - p, p * (1 - p))


def linear_curvature(v_D, x_TD, own_T, left_T):
    """the curvature is a linear regression's"""
    p = (x_TD @ v_D).sigmoid()
    return v_D + _step(x_TD, left_T - own_T * p, own_T)


def right(v_D, x_TD, own_T, left_T):
    p = (x_TD @ v_D).sigmoid()
    return v_D + _step(x_TD, left_T - own_T * p, own_T * p * (1 - p))


def right_as_weighted_least_squares(v_D, x_TD, own_T, left_T):
    """IRLS by its name: a least-squares problem with a working target."""
    p = (x_TD @ v_D).sigmoid()
    w = own_T * p * (1 - p)
    working = x_TD @ v_D + (left_T / own_T - p) / (p * (1 - p))
    a = (x_TD.T * w) @ x_TD
    ridge = 1e-3 * torch.eye(len(v_D)).to(a)
    return torch.linalg.solve(a + ridge, (x_TD.T * w) @ working + ridge @ v_D)


def right_by_autograd(v_D, x_TD, own_T, left_T):
    def likelihood(v):
        s = x_TD @ v
        log = torch.nn.functional.logsigmoid
        return (left_T * log(s) + (own_T - left_T) * log(-s)).sum()

    slope = torch.func.grad(likelihood)(v_D)
    curve = -torch.func.hessian(likelihood)(v_D)
    return v_D + torch.linalg.solve(curve + 1e-3 * torch.eye(len(v_D)).to(curve), slope)


def child_on_the_right(v_D, x_TD, own_T, left_T):
    """it should be the left one's"""
    return right(v_D, x_TD, own_T, own_T - left_T)
