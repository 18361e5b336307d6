"""Unusual right answers to check_load; a docstring is a phrase of what is said of them."""

import numpy as np


def as_list(routing):
    """asked is a tensor, and yours is a list"""
    return [routing.expert_N.tolist().count(e) for e in range(routing.num_experts)]


def as_array(routing):
    """yours is a numpy ndarray"""
    return np.bincount(routing.expert_N.numpy(), minlength=routing.num_experts)


def as_generator(routing):
    return ((routing.expert_N == e).sum() for e in range(routing.num_experts))


def as_doubles(routing):
    return routing.load_E().double().requires_grad_()


def as_dict(routing):
    """yours is a dict"""
    return {e: int((routing.expert_N == e).sum()) for e in range(routing.num_experts)}
