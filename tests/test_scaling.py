"""The published laws: their coefficients, their limits, and what they say."""

from itertools import pairwise

import pytest

from moe_lite.course import scaling


def test_the_coefficients_are_those_of_table_1():
    """Krajewski et al. 2024, Table 1, rows MoE and Dense: a, alpha, b, beta, g, gamma, c."""
    moe, dense = scaling.MOE, scaling.DENSE
    row = "18.1 0.115 30.8 0.147 2.1 0.58 0.47"
    assert [moe.a, moe.alpha, moe.b, moe.beta, moe.g, moe.gamma, moe.c] == [
        *map(float, row.split())
    ]
    row = "16.3 0.126 26.7 0.127 0.47"
    assert [dense.a, dense.alpha, dense.b, dense.beta, dense.c] == [*map(float, row.split())]


def test_by_hand():
    """With one parameter, one token, G = 1 every power is 1: c + g + a + b."""
    assert scaling.MOE.loss(1, 1) == pytest.approx(0.47 + 2.1 + 18.1 + 30.8)
    assert scaling.DENSE.loss(1, 1, 99) == pytest.approx(0.47 + 16.3 + 26.7)


def test_finer_is_better_and_less_and_less_so():
    losses = [scaling.MOE.loss(1e9, 1e10, G) for G in (1, 2, 4, 8)]
    gains = [a - b for a, b in pairwise(losses)]
    assert gains == sorted(gains, reverse=True) and gains[-1] > 0


def test_nothing_below_zero():
    with pytest.raises(ValueError, match="above 0, not -1"):
        scaling.MOE.loss(-1, 1)
