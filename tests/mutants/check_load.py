"""Answers to check_load: a wrong one's docstring is a phrase of its verdict.

Also true of sums_of_probabilities: sums_of_gates.
"""

import torch


def first_choices(routing):
    """only first choices are counted"""
    first_T = routing.expert_N.view(-1, routing.per_token)[:, 0]
    return first_T.bincount(minlength=routing.num_experts)


def shares(routing):
    """these are shares"""
    return right_by_bincount(routing) / len(routing.expert_N)


def no_idle_experts(routing):
    """experts that got nothing are missing"""
    return routing.expert_N.bincount()


def sums_of_gates(routing):
    """these are sums of gates"""
    return routing.gates_TE().sum(0)


def sums_of_probabilities(routing):
    """these are sums of probabilities"""
    return routing.probs_TE.sum(0)


def by_token(routing):
    """the pairs of each token"""
    return routing.token_N.bincount()


def right_by_bincount(routing):
    return routing.expert_N.bincount(minlength=routing.num_experts)


def right_by_loop(routing):
    return torch.tensor([int((routing.expert_N == e).sum()) for e in range(routing.num_experts)])
