"""Answers to check_paired_difference: a wrong one's docstring is a phrase of its verdict."""

import math


def _half(d_S, t):
    return t * d_S.std() / math.sqrt(len(d_S))


def two_bars(a_S, b_S, t):
    """take the difference first, seed by seed"""
    return a_S.mean() - b_S.mean(), _half(a_S, t) + _half(b_S, t)


def two_groups(a_S, b_S, t):
    """treated as strangers"""
    return a_S.mean() - b_S.mean(), math.hypot(_half(a_S, t), _half(b_S, t))


def normal(a_S, b_S, t):
    """few ask for Student's t"""
    return (a_S - b_S).mean(), _half(a_S - b_S, 1.96)


def of_the_seeds(a_S, b_S, t):
    """their mean is known better"""
    return (a_S - b_S).mean(), t * (a_S - b_S).std()


def over_n(a_S, b_S, t):
    """it is by its root"""
    return (a_S - b_S).mean(), t * (a_S - b_S).std() / len(a_S)


def whole_width(a_S, b_S, t):
    """half of it is asked"""
    return (a_S - b_S).mean(), 2 * _half(a_S - b_S, t)


def the_range(a_S, b_S, t):
    """that grows with the seeds"""
    d_S = a_S - b_S
    return d_S.mean(), (d_S.max() - d_S.min()) / 2


def the_ends(a_S, b_S, t):
    """these are the ends of the interval"""
    mean, half = right(a_S, b_S, t)
    return mean - half, mean + half


def the_median(a_S, b_S, t):
    """the median of the differences"""
    return (a_S - b_S).median(), _half(a_S - b_S, t)


def right(a_S, b_S, t):
    return (a_S - b_S).mean(), _half(a_S - b_S, t)


def right_by_hand(a_S, b_S, t):
    d = [float(x) - float(y) for x, y in zip(a_S, b_S, strict=True)]
    mean = sum(d) / len(d)
    return mean, t * math.sqrt(sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d))
