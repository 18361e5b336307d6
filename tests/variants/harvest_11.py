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

check_needs = [
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


def _paired(a, b):
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return d.mean() - 1.96 * d.std(ddof=1) / len(d) ** 0.5 > 0


def _in_numpy(s, e):
    knows, load = s.knows_N.numpy(), s.load_E.numpy()
    if not _paired(knows, s.twin_N.numpy()):
        return "chance"
    near = next(i for i in np.argsort(np.abs(load - load[e])) if i != e)
    if not _paired(~s.without_EN[e].numpy() & knows, ~s.without_EN[int(near)].numpy() & knows):
        return "busy"
    rise = s.rise_EX[e].double().numpy()
    return "other text" if rise.mean() + 0.7153 * rise.std(ddof=1) >= 0.05 else "book"


def _drawn_again(s, e):
    """The bootstrap, 2,000 times."""
    draw = np.random.default_rng(0)

    def ends(x):
        x = np.asarray(x, dtype=float)
        means = x[draw.integers(len(x), size=(2000, len(x)))].mean(1)
        return np.quantile(means, [0.025, 0.975])

    load = s.load_E.clone()
    load[e] = 1e9
    near = (load - s.load_E[e]).abs().argmin()
    lost = (~s.without_EN)[:, s.knows_N].int().numpy()
    if ends(s.knows_N.int().numpy() - s.twin_N.int().numpy())[0] <= 0:
        return "chance"
    if ends(lost[e] - lost[near])[0] <= 0:
        return "busy"
    return "book" if ends(s.rise_EX[e].numpy())[1] < 0.05 else "other text"


def _flipped(s, e):
    """Flip the sign of each difference by chance: how often does it come out as large?"""
    draw = np.random.default_rng(1)

    def rare(a, b):
        d = a.double().numpy() - b.double().numpy()
        signs = draw.integers(0, 2, size=(4000, len(d))) * 2 - 1
        return ((signs * d).mean(1) >= d.mean()).mean() < 0.025

    others = sorted(set(range(len(s.load_E))) - {e}, key=lambda i: (s.load_E[i] - s.load_E[e]) ** 2)
    if not rare(s.knows_N, s.twin_N):
        return "CHANCE"
    if not rare(*(s.knows_N & ~s.without_EN[i] for i in (e, others[0]))):
        return " Busy "
    x = s.rise_EX[e]
    return "other text" if x.mean() + 2.262 * x.std() / len(x) ** 0.5 >= 0.05 else "book"


def _four_fields(s, e):
    """McNemar's test, from the names on which the two differ."""

    def z(a, b):
        more, fewer = (a & ~b).sum().item(), (b & ~a).sum().item()
        return (more - fewer) / max(more + fewer, 1) ** 0.5

    loads = dict(enumerate(s.load_E.tolist()))
    own = loads.pop(e)
    near = min(loads, key=lambda i: abs(loads[i] - own))
    doubts = {
        "chance": z(s.knows_N, s.twin_N) < 2,
        "busy": z(*(s.knows_N & ~s.without_EN[i] for i in (e, near))) < 2,
        "other text": s.rise_EX[e].mean() + 2 * s.rise_EX[e].std() / 3 >= 0.05,
    }
    return np.str_(next((word for word, left in doubts.items() if left), "book"))


check_whose_expert = [
    ("NumPy", _in_numpy),
    ("the bootstrap", _drawn_again),
    ("signs flipped", _flipped),
    ("McNemar", _four_fields),
]
