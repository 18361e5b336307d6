"""Answers to check_distinct_copies: a wrong one's docstring is what its verdict must say.

Also true of by_sum: by_rounding.
Also true of by_first_row: by_rounding.
Also true of by_rounding: exactly.
"""

import torch


def _near(w_EFD):
    return (w_EFD[:, None] - w_EFD).flatten(2).abs().amax(-1) <= 1e-6


def exactly(w_EFD):
    """copies that differ by rounding alone"""
    return len(w_EFD.flatten(1).unique(dim=0))


def unlike_the_first(w_EFD):
    """these differ from expert 0, and expert 0"""
    return int((~_near(w_EFD)[0]).sum()) + 1


def pairs(w_EFD):
    """these are pairs that differ"""
    return int((~_near(w_EFD)).sum()) // 2


def without_twins(w_EFD):
    """these have no twin"""
    return int((_near(w_EFD).sum(1) == 1).sum())


def by_sum(w_EFD):
    """equal sums do not make equal experts"""
    return len(w_EFD.sum((1, 2)).mul(1e4).round().unique())


def by_first_row(w_EFD):
    """the first row alone"""
    return len(w_EFD[:, 0].mul(1e4).round().unique(dim=0))


def superfluous(w_EFD):
    """that is how many are superfluous"""
    return len(w_EFD) - right_greedy(w_EFD)


def right_greedy(w_EFD):
    seen = []
    for w_FD in w_EFD:
        if not any(torch.allclose(w_FD, other, rtol=0, atol=1e-6) for other in seen):
            seen.append(w_FD)
    return len(seen)


def by_rounding(w_EFD):
    """one weight that differs by more than 1e-6, up or down"""
    return len(w_EFD.flatten(1).mul(1e5).round().unique(dim=0))


def right_by_distance(w_EFD):
    return int((_near(w_EFD).tril(-1).sum(1) == 0).sum())
