"""Chapter 13's harvest of unusual right answers: (how it is done, the answer)."""

from fractions import Fraction

import numpy as np
import torch

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
