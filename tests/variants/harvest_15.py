"""Right answers to chapter 15's new check, written another way."""

from fractions import Fraction

import torch


def _exact(load_E, spare):
    copies_E = [1] * len(load_E)
    for _ in range(spare):
        e = max(range(len(load_E)), key=lambda e: (Fraction(load_E[e], copies_E[e]), -e))
        copies_E[e] += 1
    return copies_E


def _by_recursion(load_E, spare):
    if not spare:
        return [1] * len(load_E)
    copies_E = _by_recursion(load_E, spare - 1)
    heaviest = max(load / n for load, n in zip(load_E, copies_E, strict=True))
    first = next(e for e, n in enumerate(copies_E) if load_E[e] / n == heaviest)
    return [n + (e == first) for e, n in enumerate(copies_E)]


check_replicas = [("compares exact fractions", _exact), ("by recursion", _by_recursion)]


def _draws_by_expectation(E, K, g, p):
    spared = 1.0
    for _ in range(g + 1):
        spared *= (E - K) / E
    # 1, p, p², ...: the chance that the token after so many guesses is kept
    kept, chance = 0.0, 1.0
    for _ in range(g + 1):
        kept, chance = kept + chance, chance * p
    return (E - E * spared) / kept


check_reads_per_token = [
    ("step by step", _draws_by_expectation),
    ("as a tensor", lambda E, K, g, p: torch.tensor(
        E * (1 - (1 - K / E) ** (g + 1)), dtype=torch.float64)
        / (torch.tensor(p, dtype=torch.float64) ** torch.arange(g + 1)).sum()),
]  # fmt: skip
