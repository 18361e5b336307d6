"""Answers to check_first_choices: a wrong one's docstring is a phrase of its verdict."""

import torch
import torch.nn.functional as F


def _alone(expert_T2, E):
    hot = F.one_hot(expert_T2, E)
    return (hot.cumsum(0) - 1).gather(2, expert_T2[..., None])[..., 0]


def _second_plus(expert_T2, E, offset_T):
    rank = _alone(expert_T2, E)
    return torch.stack([rank[:, 0], rank[:, 1] + offset_T], 1)


def forgotten_offset(expert_T2, E):
    """two tokens would sit in one place"""
    return _alone(expert_T2, E)


def by_position(expert_T2, E):
    """a second choice stands before the first choices of later tokens"""
    flat = expert_T2.flatten()
    rank = (F.one_hot(flat, E).cumsum(0) - 1).gather(1, flat[:, None])
    return rank.view(-1, 2)


def earlier_first_choices(expert_T2, E):
    """counts only the first choices that came earlier"""
    came = F.one_hot(expert_T2[:, 0], E).cumsum(0).gather(1, expert_T2[:, 1:])[:, 0]
    return _second_plus(expert_T2, E, came)


def all_tokens(expert_T2, E):
    """the number of all tokens"""
    return _second_plus(expert_T2, E, len(expert_T2))


def seconds_first(expert_T2, E):
    """the second choices are seated before the first"""
    return right(expert_T2.flip(1), E).flip(1)


def from_one(expert_T2, E):
    """ranks begin at 0"""
    return right(expert_T2, E) + 1


def a_gap(expert_T2, E):
    """one place is left free"""
    return right(expert_T2, E) + torch.tensor([0, 1])


def wrong_expert(expert_T2, E):
    """the offset belongs to the second choice's expert"""
    return _second_plus(expert_T2, E, expert_T2[:, 0].bincount(minlength=E)[expert_T2[:, 0]])


def transposed(expert_T2, E):
    """give a row for each token"""
    return right(expert_T2, E).T


def right(expert_T2, E):
    count_E = expert_T2[:, 0].bincount(minlength=E)
    return _second_plus(expert_T2, E, count_E[expert_T2[:, 1]])


def right_as_one_queue(expert_T2, E):
    flat = torch.cat([expert_T2[:, 0], expert_T2[:, 1]])
    rank = (flat[:, None] == flat).tril(-1).sum(1)
    return rank.view(2, -1).T


def view_for_transpose(expert_T2, num_experts):
    """by a transpose, not by view"""
    return right(expert_T2, num_experts).T.reshape(-1, 2)
