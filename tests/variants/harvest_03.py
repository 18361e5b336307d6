"""Chapter 03's harvest of unusual right answers: (how it is done, the answer)."""

import math

import torch

check_constrain = [
    (
        "where",
        lambda g, t, m: torch.nn.functional.normalize(
            torch.where(t > t.mean() + m, 0.0, g), p=1, dim=-1
        ),
    ),
    (
        "token by token, float64",
        lambda g, t, m: torch.stack([row / sum(row) for row in g.double() * (t <= t.mean() + m)]),
    ),
    (
        "logarithms of the open",
        lambda g, t, m: (g.log() + torch.where(t - t.mean() > m, -torch.inf, 0.0)).softmax(-1),
    ),
]

check_score_gradient = [
    (
        "by cases",
        lambda loss, b, p, base: torch.where(b > 0, (loss - base) * (1 - p), (base - loss) * p),
    ),
    (
        "a list",
        lambda loss, b, p, base: [(x - base) * (g - p) for x, g in zip(loss, b, strict=True)],
    ),
]

check_straight_through = [
    ("the other way to write it", lambda p, b: b + p - p.detach()),
    ("b weighs nothing", lambda p, b: b.detach() + (p - p.detach())),
]

check_samples_for_sign = [
    ("a loop", lambda s, d: next(n for n in range(1, 10**6) if abs(s) * n**0.5 >= 2 * d - 1e-9)),
    ("a float", lambda s, d: float(max(1, math.ceil(4 * d * d / (s * s) - 1e-9)))),
]
