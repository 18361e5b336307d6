"""The published laws: their coefficients, their limits, and what they say."""

import math
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


def test_clark_gives_the_numbers_that_are_printed():
    """Table 3, three decimals each; "N = 5M with E = 128" is worth 55M, cutoffs 937B, 85B, 83B."""
    assert scaling.S_BASE.worth(5e6, 128) == pytest.approx(55e6, rel=0.08)
    assert scaling.S_BASE.worth(5e6, 1) == pytest.approx(5e6)
    for law, printed in ((scaling.S_BASE, 937e9), (scaling.RL_R, 85e9), (scaling.HASH, 83e9)):
        # b and c have three decimals, so the cutoff is known to a range of powers
        ends = [
            10 ** ((-law.b + db) / (law.c + dc)) for db in (-5e-4, 5e-4) for dc in (-5e-4, 5e-4)
        ]
        assert min(ends) <= printed <= max(ends)
        assert min(ends) <= law.cutoff <= max(ends)
    # beyond the cutoff more experts make it worse
    assert scaling.S_BASE.loss(1e13, 64) > scaling.S_BASE.loss(1e13, 1)


@pytest.mark.parametrize(
    ("N", "E", "loss"), [(15e6, 1, 3.15), (15e6, 512, 2.6), (1.3e9, 1, 2.30), (1.3e9, 512, 2.0)]
)
def test_clark_goes_through_the_ends_of_the_published_curves(N, E, loss):
    """Validation loss of S-BASE, read off arXiv:2202.01169's figure by the eye.

    Source: CS336 (Stanford), lecture 4, slide "RL for MoEs", which shows it, in a description: the
    smallest and the largest of its six sizes, at 1 expert and at 512.
    """
    assert scaling.S_BASE.loss(N, E) == pytest.approx(loss, abs=0.07)
    assert scaling.inside(N=N, E=E)
    assert not scaling.inside(N=2 * N) or N < 1e9  # beyond the largest the curve is dotted


def test_tian_gives_the_numbers_that_are_printed():
    """Section 4.2.2: above 7 at 1e22, A = 3.1% and G = 12; optimum G about 12; dense is 1."""
    assert 7 < scaling.leverage(0.031, 12, 1e22) < 7.5
    best = max(range(2, 40), key=lambda G: scaling.leverage(0.031, G, 1e20))
    assert abs(best - 12) <= 1
    assert scaling.leverage(1, 2, 1e20) == pytest.approx(1, abs=0.02)
    assert scaling.leverage(0.008, 2, 1e20) > scaling.leverage(0.25, 2, 1e20) > 1


def test_abnar_says_what_its_abstract_says():
    """Section 3: at a fixed compute the best share of idle experts grows with the size."""

    def best(N, C=1e21):
        idle = [i / 200 for i in range(199)]
        return min(idle, key=lambda S: scaling.sparse_loss(N, C / (6 * N * (1 - S)), S))

    sizes = [best(N) for N in (1e9, 4e9, 16e9, 64e9)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    # by hand, with every power at 1 and nothing idle
    assert scaling.sparse_loss(1, 1, 0) == pytest.approx(16612.50 + 5455.67 + 0.4598 + 17.26 + 0.94)


def test_krajewski_gives_the_numbers_that_are_printed():
    """At 1e20 operations the best mixture equals a dense model of 20 times the compute.

    The paper counts the router's work too, which grows with G, and we do not: so its 20 has to lie
    between what we get for the coarsest and for the finest experts of the fit.
    """

    def best(law, C, G=1.0, total=1):  # N of the law is total: 64 times the active ones
        return min(
            law.loss(total * N, C / (6 * N), G) for N in (10 ** (6 + i / 40) for i in range(200))
        )

    def times(G):
        goal, low, high = best(scaling.MOE, 1e20, G, scaling.EXPERTS), 20.0, 24.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if best(scaling.DENSE, 10**middle) > goal else (low, middle)
        return 10 ** (low - 20)

    assert times(1) < 20 < times(16) < 40


@pytest.mark.parametrize(
    ("call", "says"),
    [(lambda: scaling.S_BASE.loss(1e6, 0.5), "at least 1 expert, not 0.5"),
     (lambda: scaling.S_BASE.worth(0, 2), "N is above 0, not 0"),
     (lambda: scaling.leverage(2, 12, 1e20), "at most all experts are active, not 2"),
     (lambda: scaling.sparse_loss(1, 1, 1), "from 0 to below 1, not 1"),
     (lambda: scaling.experts_for(-1, 1e6), "memory_GB is above 0, not -1")],
)  # fmt: skip
def test_bad_numbers_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_memory_counts_experts():
    """16 bytes each: 1.6 MB hold 100,000; with 10,000 active, 9,000 of them experts', 11 fit."""
    assert scaling.experts_for(1.6e-3, 1e4, share=0.9) == 11
    assert scaling.experts_for(1e-9, 1e6) == 1


def test_the_calculators_curves_are_whole_only_where_they_were_fitted():
    fig = scaling.draw()
    lines = [line for ax in fig.axes for line in ax.get_lines()]
    whole = [line for line in lines if line.get_linestyle() == "-"]
    assert whole and len(whole) < len(lines) - len(whole)
    assert not [line for line in whole if "your evening" in line.get_label()]  # no laptop is there
    for line in whole:
        if "active" in line.get_label():
            assert all(
                math.isnan(y) != scaling.inside(E=x) for x, y in zip(*line.get_data(), strict=True)
            )
    assert "100 Gflop/s" in fig.get_suptitle()
