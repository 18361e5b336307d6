"""Unusual right answers to check_sizes; a docstring is a phrase of what is said of them."""

import torch


def as_a_list(D, F, E, K):
    return [E * (3 * D * F + D), 3 * K * D * F + E * D, K * F, E * F]


def as_a_tensor(D, F, E, K):
    return torch.tensor([E * (3 * D * F + D), 3 * K * D * F + E * D, K * F, E * F])


def as_a_dict(D, F, E, K):
    active = 3 * K * D * F + E * D
    return {"total": E * (3 * D * F + D), "active": active, "one": K * F, "all": E * F}
