"""Answers to check_places: a wrong one's docstring is a phrase of its verdict.

Also true of rounded_to_nearest: rounded_down.
"""

import math


def of_tokens(T, E, factor, K):
    """count pairs (K·T), not tokens"""
    return math.ceil(factor * T / E)


def rounded_down(T, E, factor, K):
    """rounded down"""
    return int(factor * K * T / E)


def rounded_to_nearest(T, E, factor, K):
    """rounded to the nearest"""
    return math.floor(factor * K * T / E + 0.49)


def without_the_factor(T, E, factor, K):
    """whatever the factor"""
    return math.ceil(K * T / E)


def of_all(T, E, factor, K):
    """these are the places of all experts; divide by E"""
    return math.ceil(factor * K * T)


def shrunk(T, E, factor, K):
    """the factor shrinks the share"""
    return math.ceil(K * T / E / factor)


def rounded_too_early(T, E, factor, K):
    """rounded before the factor came"""
    return math.ceil(factor * math.ceil(K * T / E))


def not_whole(T, E, factor, K):
    """not rounded: places are counted"""
    return factor * K * T / E


def right(T, E, factor, K):
    return math.ceil(factor * K * T / E)


def right_by_floor(T, E, factor, K):
    return -int(-factor * K * T // E)


def rounded_before_k(num_tokens, num_experts, factor, top_k):
    """rounded up before K came"""
    return top_k * math.ceil(factor * num_tokens / num_experts)
