"""Chapter 12's harvest of unusual right answers: (how it is done, the answer)."""

from itertools import pairwise

import numpy as np
import torch

check_block_counts = [
    (
        "one count for all",
        lambda x, E, b: (
            (torch.arange(len(x)) // b * E + x).bincount(minlength=-(-len(x) // b) * E).view(-1, E)
        ),
    ),
    (
        "lists",
        lambda x, E, b: [
            [x[i : i + b].tolist().count(e) for e in range(E)] for i in range(0, len(x), b)
        ],
    ),
    (
        "NumPy",
        lambda x, E, b: np.array(
            [np.bincount(x.numpy()[i : i + b], minlength=E) for i in range(0, len(x), b)]
        ),
    ),
]

check_offsets = [
    ("a list, added up", lambda c: [int(c[:, :e].sum()) for e in range(c.shape[1] + 1)]),
    ("NumPy", lambda c: np.concatenate([[0], np.cumsum(c.numpy().sum(0))])),
    (
        "a triangle of ones",
        lambda c: torch.ones(c.shape[1] + 1, c.shape[1], dtype=torch.long).tril(-1) @ c.sum(0),
    ),
]


def _walk(x, o):
    free, out = o.tolist(), []
    for e in x.tolist():
        out.append(free[e])
        free[e] += 1
    return out


check_stable_rows = [
    ("one after another", _walk),
    ("the order inverted", lambda x, o: x.argsort(stable=True).argsort()),
    (
        "each with each",
        lambda x, o: (x[None] < x[:, None]).sum(1) + (x[None] == x[:, None]).tril(-1).sum(1),
    ),
    ("NumPy", lambda x, o: np.argsort(np.argsort(x.numpy(), kind="stable"))),
]


def _loops(o, h):
    o = o.tolist()
    tiles = [(e, r) for e in range(len(o) - 1) for r in range(o[e], o[e + 1], h)]
    return [e for e, _ in tiles], [r for _, r in tiles]


check_tile_schedule = [
    ("loops, lists", _loops),
    ("NumPy", lambda o, h: [np.array(a, dtype=np.int32) for a in _loops(o, h)]),
    (
        "a range for each, cat",
        lambda o, h: (
            lambda parts: (
                torch.cat([torch.full_like(p, e) for e, p in enumerate(parts)]),
                torch.cat(parts),
            )
        )([torch.arange(a, b, h) for a, b in pairwise(o.tolist())]),
    ),
]


def _fetch(y, g, n, K, kept):
    out = []
    for t in range(len(n) // K):
        mine = [r for r in n[t * K : t * K + K].tolist() if r < kept]
        out.append(sum((g[r] * y[r] for r in mine), torch.zeros_like(y[0])))
    return torch.stack(out)


def _scattered(y, g, n, K, kept):
    token = n.argsort()[:kept] // K
    return y.new_zeros(len(n) // K, y.shape[1]).index_add(0, token, y[:kept] * g[:kept, None])


check_sum_by_token = [
    ("token by token", _fetch),
    ("the kept rows added to their tokens", _scattered),
    (
        "where, einsum",
        lambda y, g, n, K, kept: torch.einsum(
            "tkd,tk->td",
            torch.where(n < kept, y[n].T, 0.0).T.unflatten(0, (-1, K)),
            g[n].view(-1, K),
        ),
    ),
]
