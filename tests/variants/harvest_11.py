"""Chapter 11's harvest of unusual right answers: (how it is done, the answer)."""

from fractions import Fraction

import numpy as np
import torch

check_stored_bits = [
    ("NumPy, bits first", lambda n, v, c: v * (np.log2(c) - n * np.log2(np.e))),
    ("0-d, float64", lambda n, v, c: torch.tensor(c / np.exp(n), dtype=torch.float64).log2() * v),
]

check_sizes = [
    (
        "a tensor",
        lambda D, F, E, K: torch.tensor([E * (3 * D * F + D), D * (3 * K * F + E), F * K, F * E]),
    ),
    (
        "a list of floats",
        lambda D, F, E, K: [
            float(sum(3 * D * F + D for _ in range(E))),
            float(K * 3 * F * D + E * D),
            float(sum([F] * K)),
            float(E * F),
        ],
    ),
]


def _first_that_differs(s, d):
    told = {
        "active": (s.per_token * s.width) / (d.per_token * d.width),
        "data": Fraction(s.steps, d.steps) * Fraction(s.batch, d.batch),
        "optimiser": s.optimiser == d.optimiser,
    }
    return [*[k for k, v in told.items() if v != 1], "fair"][0]


check_unfair = [
    ("quotients", _first_that_differs),
    ("NumPy's string", lambda s, d: np.str_(_first_that_differs(s, d))),
]


def _one_after_another(bits, per_expert, others, density):
    E = 1
    while (others + E * per_expert) * density < bits * (1 - 1e-12):
        E += 1
    return E


check_experts_needed = [
    ("one expert after another", _one_after_another),
    ("parameters rounded up first", lambda b, p, o, d: max(1, -((o - int(np.ceil(b / d))) // p))),
    ("NumPy's ceil", lambda b, p, o, d: np.maximum(np.ceil((b / d - o) / p), 1)),
    (
        "0-d",
        lambda b, p, o, d: torch.tensor((b / d - o) / p, dtype=torch.float64).ceil().clamp(min=1),
    ),
]

check_holders = [
    (
        "loops, a list",
        lambda k, w: [
            sum(bool(a) and not bool(b) for b in col) for a, col in zip(k, w.T, strict=True)
        ],
    ),
    ("products, einsum", lambda k, w: torch.einsum("n,en->n", k.float(), 1 - w.float())),
    ("NumPy", lambda k, w: np.logical_and(k.numpy(), np.logical_not(w.numpy())).sum(0)),
]


def _product(tokens, E, K, size):
    out = Fraction(1)
    for _ in range(tokens):
        out *= Fraction(E - K, E)
    return float(E * (1 - out) * size / tokens)


check_bytes_per_token = [
    ("fractions", _product),
    ("NumPy", lambda T, E, K, b: np.float64(b) / T * E * (1 - np.power((E - K) / E, T))),
]
