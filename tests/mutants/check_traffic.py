"""Answers to check_traffic: a wrong one's docstring is what its verdict must say."""

import torch


def _count(expert_RTK, place, R):
    return torch.stack([torch.bincount(place(e.flatten()), minlength=R) for e in expert_RTK])


def transposed(expert_RTK, E):
    """rows and columns are exchanged"""
    R = len(expert_RTK)
    return _count(expert_RTK, lambda e: e * R // E, R).T


def dealt(expert_RTK, E):
    """dealt like cards"""
    R = len(expert_RTK)
    return _count(expert_RTK, lambda e: e % R, R)


def tokens(expert_RTK, E):
    """two experts of one token on one rank are two pairs"""
    R = len(expert_RTK)
    to_RTK = expert_RTK * R // E
    return torch.stack([(to_RTK == r).any(-1).sum(-1) for r in range(R)], dim=1)


def abroad_only(expert_RTK, E):
    """what stays at home is in the matrix too"""
    R = len(expert_RTK)
    return _count(expert_RTK, lambda e: e * R // E, R).fill_diagonal_(0)


def by_expert(expert_RTK, E):
    """several experts live on one rank"""
    return _count(expert_RTK, lambda e: e, E)


def right_by_bincount(expert_RTK, E):
    R = len(expert_RTK)
    return _count(expert_RTK, lambda e: e // (E // R), R)


def right_by_loops(expert_RTK, num_experts):
    R = len(expert_RTK)
    pairs = torch.zeros(R, R)
    for sender in range(R):
        for receiver in range(R):
            first = receiver * num_experts // R
            mine = (expert_RTK[sender] >= first) & (expert_RTK[sender] < first + num_experts // R)
            pairs[sender, receiver] = mine.sum()
    return pairs


def first_choices_alone(expert_RTK, E):
    """only first choices travel here"""
    return right_by_bincount(expert_RTK[..., :1], E)
