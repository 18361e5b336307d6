"""Wrong answers to chapters 09 to 18 by a reader who had not seen the checks.

Each is (what a learner did, a phrase of what the check says, the answer).
"""

import itertools

import torch

# --- chapter 16 ----------------------------------------------------------------------------------


def _last_pair(expert_N, gate_N, answer_ND, E):
    last_E = torch.zeros(E)
    for e, gate, answer_D in zip(expert_N, gate_N, answer_ND, strict=True):
        last_E[e] = gate * answer_D.norm()  # what s[expert_N] += ... leaves
    return last_E / expert_N.bincount(minlength=E).clamp(min=1)


def _by_gates(expert_N, gate_N, answer_ND, E):
    sums = [
        torch.zeros(E).index_add(0, expert_N, x) for x in (gate_N * answer_ND.norm(dim=1), gate_N)
    ]
    return sums[0] / sums[1].clamp(min=1e-9)


check_reap = [
    ("adds with repeated indices", "keeps one pair of each expert", _last_pair),
    ("weighted by the gates", "not by the sum of their gates", _by_gates),
    ("the norm of all answers", "reap: ",
     lambda e, g, y, E: torch.zeros(E).index_add(0, e, g * y.norm())
     / e.bincount(minlength=E).clamp(min=1)),
    ("experts that nobody came to left out", "of shape (3,)",
     lambda e, g, y, E: torch.stack([(g * y.norm(dim=1))[e == k].mean() for k in e.unique()])),
]  # fmt: skip


def _stay(stays_E, gone, router_ED):
    return router_ED[stays_E], (stays_E.cumsum(0) - 1).where(stays_E, gone)


check_prune_router = [
    ("gone is 0", "an expert that is gone has no number, -1",
     lambda w, s, n: _stay(s.argsort().argsort() >= n, 0, w)),
    ("gone is one past the last", "an expert that is gone has no number, -1",
     lambda w, s, n: _stay(s.argsort().argsort() >= n, len(s) - n, w)),
    ("argsort taken for ranks", "argsort gives the expert at each place",
     lambda w, s, n: _stay(s.argsort() >= n, -1, w)),
    ("all at or below the mean", "prune_router: ", lambda w, s, n: _stay(s > s.mean(), -1, w)),
]  # fmt: skip


def _greedy(like):
    def count(w_EFD):
        return sum(not any(like(x, y) for y in w_EFD[:e]) for e, x in enumerate(w_EFD))

    return count


check_distinct_copies = [
    ("rounded to six digits", "rounding parts two neighbours",
     lambda w: len({tuple((x * 1e6).round().long().flatten().tolist()) for x in w})),
    ("by the length of the difference", "a norm adds up all their differences",
     _greedy(lambda x, y: (x - y).norm() <= 1e-6)),
    ("allclose as it is", "allclose allows 1e-5 of a weight's size", _greedy(torch.allclose)),
    ("no absolute value", "up or down", _greedy(lambda x, y: (x - y).max() <= 1e-6)),
    ("the mean difference", "one weight that differs by more than 1e-6",
     _greedy(lambda x, y: (x - y).abs().mean() <= 1e-6)),
    ("within a thousandth", "one weight that differs by more than 1e-6",
     _greedy(lambda x, y: (x - y).abs().max() <= 1e-3)),
    ("with the one before", "compared with the one before it alone",
     lambda w: 1 + sum(bool((x - y).abs().max() > 1e-6) for x, y in itertools.pairwise(w))),
    ("with itself too", "an expert is always like itself",
     lambda w: sum(not any((x - y).abs().max() <= 1e-6 for y in w) for x in w)),
    ("as many as are independent", "distinct_copies: ",
     lambda w: int(torch.linalg.matrix_rank(w.flatten(1)))),
]  # fmt: skip
