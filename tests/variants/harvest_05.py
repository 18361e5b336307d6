"""Chapter 05's harvest of unusual right answers: (how it is done, the answer)."""

from collections import defaultdict

import numpy as np
import torch

check_places = [
    ("a negative floor", lambda T, E, f, K: -int(-(K * T) * f // E)),
    ("NumPy's ceil", lambda T, E, f, K: np.ceil(K * T / E * f)),
    ("0-d, float64", lambda T, E, f, K: torch.tensor(f * (T * K) / E, dtype=torch.float64).ceil()),
]


def _queue(expert, E):
    seen, out = defaultdict(int), []
    for e in expert.tolist():
        out.append(seen[e])
        seen[e] += 1
    return out


def _sorted_rank(x, E):
    order = x.argsort(stable=True)
    first = torch.searchsorted(x[order], torch.arange(E))
    out = torch.empty_like(x)
    out[order] = torch.arange(len(x)) - first[x[order]]
    return out


check_rank = [
    ("a dictionary, a list", _queue),
    ("each with each", lambda x, E: (x[:, None] == x).tril(-1).sum(1)),
    ("by a sort", _sorted_rank),
    (
        "NumPy",
        lambda x, E: np.array([(x.numpy()[:t] == x.numpy()[t]).sum() for t in range(len(x))]),
    ),
]


def _seats(x, E):
    taken = [0] * E
    out = [[None, None] for _ in x]
    for k in (0, 1):
        for t, e in enumerate(x[:, k].tolist()):
            out[t][k], taken[e] = taken[e], taken[e] + 1
    return out


check_first_choices = [
    ("a loop over choices, then tokens", _seats),
    ("one list", lambda x, E: _sorted_rank(x.T.reshape(-1), E).view(2, -1).T),
    (
        "each with each, NumPy",
        lambda x, E: (lambda a: np.tril(a[:, None] == a[None], -1).sum(1).reshape(2, -1).T)(
            x.numpy().T.ravel()
        ),
    ),
]


def _kept_rows(h, x, y, p, keep):
    out = h.clone()
    out[keep] += p[keep, None] * y[keep]
    return out


check_dropped_token = [
    ("a gate of 0", lambda h, x, y, p, keep: h + keep[:, None] * p[:, None] * y),
    ("only the kept rows", _kept_rows),
    (
        "answers and gates cleared",
        lambda h, x, y, p, keep: torch.addcmul(
            h, (p * keep)[:, None], y.masked_fill(~keep[:, None], 0)
        ),
    ),
    (
        "row by row",
        lambda h, x, y, p, keep: torch.stack(
            [h[t] + p[t] * y[t] if keep[t] else h[t] for t in range(len(h))]
        ),
    ),
]

check_counted_before = [
    ("the mean belief in what was chosen", lambda P, x, k: P.shape[1] * P.mean(0)[x[:, 0]].mean()),
    (
        "einsum, float64",
        lambda P, x, k: (
            P.shape[1]
            / len(P) ** 2
            * torch.einsum(
                "te,se->", P.double(), torch.nn.functional.one_hot(x[:, 0], P.shape[1]).double()
            )
        ),
    ),
]


def _two_by_two(seat, x, g):
    """Put another tail in, gates of all sizes, and look at what stands before it."""
    E = int(x.max()) + 1
    for n in range(24):
        for t in range(1, len(x)):
            tail = torch.stack([torch.randperm(E)[: x.shape[1]] for _ in range(len(x) - t)])
            other = (
                torch.cat([x[:t], tail]),
                torch.cat([g[:t], torch.rand(len(x) - t, g.shape[1]) * 2.0 ** (n % 3 - 1)]),
            )
            if (torch.as_tensor(seat(*other))[:t] != torch.as_tensor(seat(x, g))[:t]).any():
                return np.True_
    return np.False_


def _from_other_starts(seat, x, g):
    for _ in range(8):
        for t in range(len(x) - 1):
            for _ in range(3):
                y, h = x.clone(), g.clone()
                y[t + 1 :] = torch.randint(int(x.max()) + 1, (len(x) - t - 1, x.shape[1]))
                h[t + 1 :] = torch.rand(len(x) - t - 1, g.shape[1])
                if not torch.equal(seat(y, h)[: t + 1], seat(x, g)[: t + 1]):
                    return 1
    return 0


check_looks_ahead = [("NumPy's bool", _two_by_two), ("0 and 1, randint", _from_other_starts)]
