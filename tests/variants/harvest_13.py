"""Chapter 13's harvest of unusual right answers: (how it is done, the answer)."""

from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F

check_least_time = [
    ("sorted", lambda a, b, p, w: sorted((a / p, b / w))[-1]),
    ("as a tensor", lambda a, b, p, w: torch.tensor([a / p, b / w], dtype=torch.float64).amax()),
]
check_rows_enough = [
    ("bits", lambda p, w, b: p / w * (8 * b) / 16),
    ("as numpy", lambda p, w, b: np.float64(p) / w * b * 0.5),
]
check_useful_rows = [
    ("exactly", lambda n, h: float(Fraction(sum(n), h * sum(-(-a // h) for a in n)))),
    ("row by row", lambda n, h: sum(n) / sum(len(range(0, a, h)) * h for a in n)),
]
check_three_reasons = [
    ("as a list", lambda d, r, p, m: [r - d, p - r, m - p]),
    ("as numpy", lambda *t: np.diff(np.array(t))),
]


def _split_once(x, w1, w3, w2, o):
    parts = [torch.split(w, 1) for w in (w1, w3, w2)]
    return torch.vstack(
        [
            (F.silu(a @ b[0].T) * (a @ c[0].T)) @ d[0].T
            for a, b, c, d in zip(x.tensor_split(o[1:-1].tolist()), *parts, strict=True)
        ]
    )


def _padded(x, w1, w3, w2, o):
    n = o.diff()
    e = torch.repeat_interleave(torch.arange(len(n)), n)
    place = torch.arange(len(x)) - o[e]
    wide = x.new_zeros(len(n), max(int(n.max()), 1), x.shape[1]).index_put((e, place), x)
    up = F.silu(wide @ w1.mT) * (wide @ w3.mT)
    return (up @ w2.mT)[e, place]


check_expert_blocks = [("split once", _split_once), ("one batched product", _padded)]
