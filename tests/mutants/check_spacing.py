"""Answers to check_spacing: a wrong one's docstring is what its verdict must say.

Also true of nearest_power: upper_power.
Also true of upper_power: nearest_power.
"""

import math

import torch


def half(x):
    """the largest error of rounding"""
    return right(x) / 2


def float16(x):
    """the ten bits of float16"""
    return right(x) / 8


def float32(x):
    """that is float32's distance"""
    return right(x) / 2**16


def relative(x):
    """it is not x over 128"""
    return x / 128


def one_too_high(x):
    """twice too much"""
    return right(x) * 2


def constant(x):
    """the distance grows with x"""
    return 2**-7


def epsilon(x):
    """the distance grows with x"""
    return torch.finfo(torch.bfloat16).eps


def the_next(x):
    """that is the next number, not the distance to it"""
    return x + right(x)


def nearest_power(x):
    """the power of two below x, not the nearest one"""
    return 2.0 ** round(math.log2(x)) / 128


def upper_power(x):
    """round x down to a power of two, not up"""
    return 2.0 ** math.ceil(math.log2(x)) / 128


def several(x):
    """return one number"""
    return torch.tensor([right(x)] * 2).tolist()


def right(x):
    return 2.0 ** (math.floor(math.log2(x)) - 7)


def right_by_asking_torch(x):
    here = torch.tensor(2.0 ** math.floor(math.log2(x)), dtype=torch.bfloat16)
    return torch.nextafter(here, torch.tensor(math.inf, dtype=torch.bfloat16)) - here


def right_by_frexp(x):
    return math.ldexp(1.0, math.frexp(x)[1] - 8)
