"""Answers to check_stable_rows: a wrong one's docstring is what its verdict must say."""

import torch
import torch.nn.functional as F


def the_order(expert_N, offsets_E1):
    """asked for is the row of each pair, the inverse"""
    return expert_N.argsort(stable=True)


def the_rank_alone(expert_N, offsets_E1):
    """its offset has to be added"""
    one = F.one_hot(expert_N)
    return (one.cumsum(0) * one).sum(1) - 1


def one_too_many(expert_N, offsets_E1):
    """one too many"""
    return right_by_rank(expert_N, offsets_E1) + 1


def backwards(expert_N, offsets_E1):
    """not stable"""
    flipped = right_by_rank(expert_N.flip(0), offsets_E1).flip(0)
    return flipped


def shuffled_within(expert_N, offsets_E1):
    """in its expert's block each, but some changed their order: not stable"""
    key = expert_N * len(expert_N) + (torch.arange(len(expert_N)) * 7 + 3) % len(expert_N)
    return key.argsort().argsort()


def from_the_end(expert_N, offsets_E1):
    """pairs start at their expert's end"""
    return right_by_rank(expert_N, offsets_E1) + offsets_E1.diff()[expert_N]


def in_one_row(expert_N, offsets_E1):
    """all pairs of an expert land in one row"""
    return offsets_E1[expert_N]


def right_by_rank(expert_N, offsets_E1):
    one = F.one_hot(expert_N)
    return offsets_E1[expert_N] + (one.cumsum(0) * one).sum(1) - 1


def right_by_two_sorts(expert_N, offsets_E1):
    return expert_N.argsort(stable=True).argsort()


def right_by_a_loop(expert_N, offsets_E1):
    free, rows = offsets_E1.tolist(), []
    for e in expert_N.tolist():
        rows.append(free[e])
        free[e] += 1
    return torch.tensor(rows, dtype=torch.int32)


def right_as_an_array(expert_N, offsets_E1):
    return right_by_two_sorts(expert_N, offsets_E1).numpy()
