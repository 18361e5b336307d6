"""Answers to check_rank: a wrong one's docstring is a phrase of its verdict.

Also true of last_column: matrix.
"""

import torch
import torch.nn.functional as F


def from_one(expert_T, E):
    """the first in a queue has rank 0"""
    return right(expert_T, E) + 1


def across_experts(expert_T, E):
    """let it run over the tokens (dim 0)"""
    return F.one_hot(expert_T, E).cumsum(1).gather(1, expert_T[:, None])[:, 0]


def across_experts_less_one(expert_T, E):
    """let it run over the tokens (dim 0)"""
    return across_experts(expert_T, E) - 1


def in_the_batch(expert_T, E):
    """that is the place in the batch"""
    return torch.arange(len(expert_T))


def behind(expert_T, E):
    """these stand behind the token"""
    return right(expert_T.flip(0), E).flip(0)


def length(expert_T, E):
    """the length of the queue"""
    return expert_T.bincount()[expert_T]


def sorted_place(expert_T, E):
    """take away where the token's own begins"""
    return expert_T.argsort(stable=True).argsort()


def matrix(expert_T, E):
    """running counts of all experts; take the token's own column"""
    return F.one_hot(expert_T, E).cumsum(0) - 1


def last_column(expert_T, E):
    """that is the last expert's count; take its own"""
    return F.one_hot(expert_T, E).cumsum(0)[:, -1] - 1


def unstable(expert_T, E):
    """not the number of earlier tokens"""
    return (right(expert_T, E) * 7) % 5


def right(expert_T, E):
    return (F.one_hot(expert_T, E).cumsum(0) - 1).gather(1, expert_T[:, None])[:, 0]


def right_by_comparing(expert_T, E):
    return (expert_T[:, None] == expert_T).tril(-1).sum(1)


def right_by_walking(expert_T, E):
    length, rank = [0] * E, []
    for e in expert_T.tolist():
        rank.append(length[e])
        length[e] += 1
    return torch.tensor(rank)


def right_by_sorting(expert_T, E):
    begin_E = expert_T.bincount(minlength=E).cumsum(0) - expert_T.bincount(minlength=E)
    return expert_T.argsort(stable=True).argsort() - begin_E[expert_T]


def in_the_order_of_the_experts(expert_T, num_experts):
    """put them back in the order of the tokens"""
    sorted_T = expert_T.sort(stable=True).values
    first_T = torch.searchsorted(sorted_T, sorted_T)
    return torch.arange(len(expert_T)) - first_T
