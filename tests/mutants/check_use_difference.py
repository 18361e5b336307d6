"""Answers to check_use_difference: a wrong one's docstring is what its verdict must say."""

import torch


def _count(expert_TK, E):
    return expert_TK.flatten().bincount(minlength=E)


def of_pairs(one_TK, two_SK, E):
    """shares of the pairs"""
    return _count(one_TK, E) / one_TK.numel() - _count(two_SK, E) / two_SK.numel()


def counts(one_TK, two_SK, E):
    """texts of unequal length"""
    return _count(one_TK, E) - _count(two_SK, E)


def one_length_for_both(one_TK, two_SK, E):
    """the first text's tokens; each by its own"""
    return (_count(one_TK, E) - _count(two_SK, E)) / len(one_TK)


def first_choices(one_TK, two_SK, E):
    """only first choices were counted"""
    return _count(one_TK[:, 0], E) / len(one_TK) - _count(two_SK[:, 0], E) / len(two_SK)


def the_other_way_round(one_TK, two_SK, E):
    """the sign"""
    return _count(two_SK, E) / len(two_SK) - _count(one_TK, E) / len(one_TK)


def size_only(one_TK, two_SK, E):
    """without a sign"""
    return (_count(two_SK, E) / len(two_SK) - _count(one_TK, E) / len(one_TK)).abs()


def first_text_alone(one_TK, two_SK, E):
    """the first text alone"""
    return _count(one_TK, E) / len(one_TK)


def whose_pairs(one_TK, two_SK, E):
    """asks whose they are"""
    one_E, two_E = _count(one_TK, E), _count(two_SK, E)
    return (one_E - two_E) / (one_E + two_E).clamp(min=1)


def forgets_the_unused(one_TK, two_SK, E):
    """shape"""
    E = int(max(one_TK.max(), two_SK.max())) + 1
    return _count(one_TK, E) / len(one_TK) - _count(two_SK, E) / len(two_SK)


def right_by_loop(one_TK, two_SK, E):
    return [
        (one_TK == e).any(1).float().mean() - (two_SK == e).any(1).float().mean() for e in range(E)
    ]


def right_by_one_hot(one_TK, two_SK, E):
    hot = torch.nn.functional.one_hot
    return hot(one_TK, E).sum(1).double().mean(0) - hot(two_SK, E).sum(1).double().mean(0)
