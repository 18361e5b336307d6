"""Answers to check_fit_expert: each wrong one says in its docstring what its verdict must say.

Also true of hard: unweighted.
"""

import torch


def unweighted(x_TD, y_TO, weight_T):
    """the weights are not used"""
    return torch.linalg.lstsq(x_TD, y_TO).solution


def weighted_twice(x_TD, y_TO, weight_T):
    """count twice"""
    w = weight_T[:, None]
    return torch.linalg.lstsq(w * x_TD, w * y_TO).solution


def root_of_weights(x_TD, y_TO, weight_T):
    """as square roots"""
    w = weight_T.sqrt()[:, None]
    return torch.linalg.solve(x_TD.T @ (w * x_TD), x_TD.T @ (w * y_TO))


def only_y(x_TD, y_TO, weight_T):
    """only y is weighted"""
    return torch.linalg.solve(x_TD.T @ x_TD, x_TD.T @ (weight_T[:, None] * y_TO))


def only_x(x_TD, y_TO, weight_T):
    """only x is weighted"""
    return torch.linalg.solve(x_TD.T @ (weight_T[:, None] * x_TD), x_TD.T @ y_TO)


def hard(x_TD, y_TO, weight_T):
    """hard choice"""
    mine = weight_T > 0.5
    return torch.linalg.lstsq(x_TD[mine], y_TO[mine]).solution


def transposed(x_TD, y_TO, weight_T):
    """transposed"""
    return right_normal_equations(x_TD, y_TO, weight_T).T


def right_normal_equations(x_TD, y_TO, weight_T):
    xw_DT = x_TD.T * weight_T
    return torch.linalg.solve(xw_DT @ x_TD, xw_DT @ y_TO)


def right_by_roots(x_TD, y_TO, weight_T):
    w = weight_T.sqrt()[:, None]
    return torch.linalg.lstsq(w * x_TD, w * y_TO).solution


def right_with_a_diagonal_matrix(x_TD, y_TO, weight_T):
    W = torch.diag(weight_T)
    return torch.linalg.inv(x_TD.T @ W @ x_TD) @ x_TD.T @ W @ y_TO


def ridge_towards_zero(x_TD, y_TO, weight_T):
    """pulls the weights towards zero"""
    xw_DT = x_TD.T * weight_T
    return torch.linalg.solve(xw_DT @ x_TD + 0.01 * torch.eye(x_TD.shape[1]).to(x_TD), xw_DT @ y_TO)
