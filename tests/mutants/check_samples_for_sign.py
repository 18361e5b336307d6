"""Answers to check_samples_for_sign: a wrong one has in its docstring what its verdict must say."""

import math


def one_error(slope, deviation):
    """one standard error is not enough"""
    return max(1, math.ceil((deviation / slope) ** 2))


def not_squared(slope, deviation):
    """deviation / sqrt(n): square"""
    return math.ceil(2 * deviation / abs(slope))


def square_then_twice(slope, deviation):
    """twice, then square"""
    return math.ceil(2 * (deviation / slope) ** 2)


def rounded_down(slope, deviation):
    """rounded down"""
    return int((2 * deviation / slope) ** 2)


def right(slope, deviation):
    return max(1, math.ceil((2 * deviation / slope) ** 2 - 1e-9))


def right_by_search(slope, deviation):
    n = 1
    while abs(slope) < 2 * deviation / n**0.5 - 1e-12:
        n += 1
    return n
