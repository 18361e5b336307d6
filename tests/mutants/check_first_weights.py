"""Answers to check_first_weights: a wrong one's docstring is what its verdict must say.

Also true of clamped: not_cut.
"""

import math

import torch
from torch import nn


def _cut(rows, n, std):
    return nn.init.trunc_normal_(torch.empty(rows, n), std=std, a=-2 * std, b=2 * std)


def scale_on_std(rows, n, s):
    """the scale is on the variance"""
    return _cut(rows, n, s / math.sqrt(n))


def variance_as_std(rows, n, s):
    """that was the variance"""
    return _cut(rows, n, s / n)


def root_of_scale_only(rows, n, s):
    """this is sqrt(s) / n"""
    return _cut(rows, n, math.sqrt(s) / n)


def fan_out(rows, n, s):
    """not the number of rows"""
    return _cut(rows, n, math.sqrt(s / rows))


def glorot(rows, n, s):
    """as Glorot has it"""
    return _cut(rows, n, math.sqrt(2 * s / (rows + n)))


def no_scale(rows, n, s):
    """the scale is left out"""
    return _cut(rows, n, math.sqrt(1 / n))


def no_fan_in(rows, n, s):
    """the fan-in is left out"""
    return _cut(rows, n, math.sqrt(s))


def he(rows, n, s):
    """He's factor 2"""
    return _cut(rows, n, math.sqrt(2 * s / n))


def trunc_normal_in_units(rows, n, s):
    """values beyond two deviations must be drawn again"""
    return nn.init.trunc_normal_(torch.empty(rows, n), std=math.sqrt(s / n), a=-2, b=2)


def not_cut(rows, n, s):
    """values beyond two deviations must be drawn again"""
    return torch.randn(rows, n) * math.sqrt(s / n)


def clamped(rows, n, s):
    """clamping piles the tails up"""
    std = math.sqrt(s / n)
    return (torch.randn(rows, n) * std).clamp(-2 * std, 2 * std) * 0.915


def uniform(rows, n, s):
    """uniform distribution"""
    return (2 * torch.rand(rows, n) - 1) * math.sqrt(3 * s / n)


def shifted(rows, n, s):
    """the mean must be 0"""
    return right(rows, n, s).abs()


def turned(rows, n, s):
    """return a tensor of shape (800, 100)"""
    return right(rows, n, s).T


def right(rows, n, s):
    return _cut(rows, n, math.sqrt(s / n))


def right_after_the_cut(rows, n, s):
    return _cut(rows, n, math.sqrt(s / n) / 0.87962566)


def right_by_drawing_again(rows, n, s):
    weight = torch.randn(rows, n)
    while (far := weight.abs() > 2).any():
        weight[far] = torch.randn(int(far.sum()))
    return weight * (s / n) ** 0.5


def never_drawn(rows, fan_in, scale):
    """not all of them are finite"""
    return torch.full((rows, fan_in), torch.nan)
