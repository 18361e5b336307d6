"""Chapter 09's harvest of unusual right answers: (how it is done, the answer)."""

import numpy as np
import torch
from scipy import stats

from moe_lite.course import ledger

check_split_experts = [
    ("a tensor", lambda N, K, F, m, s: torch.tensor([N * m - s, K * m - s, F // m])),
    ("NumPy, floats", lambda N, K, F, m, s: np.array([m * N - s, m * K - s, F / m])),
]


def _rows(z, k, ratio):
    gates, experts = [], []
    for row in z:
        order = sorted(range(len(row)), key=lambda e: -float(row[e].detach()))
        mine = order[round(ratio * len(row)) :][:k]
        gates.append(torch.nn.functional.softmax(row[mine], 0))
        experts.append(mine)
    return torch.stack(gates), experts


check_disable_top = [
    (
        "one longer topk, its head cut off",
        lambda z, k, r: (
            lambda n: (lambda top: (top.values[:, n:].softmax(1), top.indices[:, n:]))(
                z.topk(k + n)
            )
        )(round(r * z.shape[1])),
    ),
    ("row by row, lists", _rows),
    (
        "probabilities divided, float64",
        lambda z, k, r: (
            lambda n, p: (lambda o: (p.gather(1, o) / p.gather(1, o).sum(1, keepdim=True), o))(
                z.argsort(1, descending=True)[:, n : n + k]
            )
        )(round(r * z.shape[1]), z.double().softmax(1)),
    ),
]


def _masked(z, b, k):
    score = z.sigmoid()
    expert = (score + b).argsort(1, descending=True)[:, :k]
    mine = score * torch.zeros_like(score).scatter(1, expert, 1.0)
    return (mine / mine.sum(1, keepdim=True)).gather(1, expert), expert


def _logits_first(z, b, k):
    expert = (1 / (1 + (-z).exp()) + b).topk(k)[1]
    gate = torch.take_along_dim(z.double(), expert, 1).sigmoid()
    return gate / gate.sum(1, keepdim=True), expert.int()


check_biased_choice = [
    ("a mask", _masked),
    ("logits looked up, then the sigmoid, float64", _logits_first),
]


def _counted(z, b, k, u):
    score = z.detach().sigmoid().double().numpy() + b.detach().double().numpy()
    x = np.argsort(-score, 1, kind="stable")[:, :k]
    load = [int((x == e).sum()) for e in range(len(b))]
    mean = len(z) * k / len(b)
    return x, [
        float(a) + (u if n < mean else -u if n > mean else 0.0)
        for a, n in zip(b, load, strict=True)
    ]


def _in_whole_numbers(z, b, k, u):
    with torch.no_grad():
        x = (z.sigmoid() + b).topk(k, 1)[1]
        load = torch.nn.functional.one_hot(x, len(b)).sum((0, 1))
        return x, b + u * (x.numel() - load * len(b)).sign()


check_balanced_step = [
    ("NumPy and lists", _counted),
    ("whole numbers, no division", _in_whole_numbers),
]

check_violations = [
    (
        "NumPy",
        lambda x: (
            lambda a: (a.sum(0).max() / a.sum(0).mean() - 1, (a.max(1) / a.mean(1)).mean() - 1)
        )(x.double().numpy()),
    ),
    (
        "floats, loops",
        lambda x: (
            [max(c) * len(c) / sum(c) - 1 for c in [x.sum(0).tolist()]]
            + [sum(max(r) * len(r) / sum(r) - 1 for r in x.tolist()) / len(x)]
        ),
    ),
    (
        "by the excess",
        lambda x: torch.stack(
            [
                (x.sum(0) - x.sum(0).mean()).amax() / x.sum(0).mean(),
                ((x - x.mean(1, keepdim=True)) / x.mean(1, keepdim=True)).amax(1).mean(),
            ]
        ),
    ),
]

check_paired_difference = [
    (
        "SciPy",
        lambda a_S, b_S, t: (
            np.mean((a_S - b_S).numpy()),
            t * stats.sem((a_S - b_S).numpy()),
        ),
    ),
    (
        "sums in plain Python, as a list",
        lambda a_S, b_S, t: [
            mean := sum(d := [float(a) - float(b) for a, b in zip(a_S, b_S, strict=True)]) / len(d),
            t * (sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d)) ** 0.5,
        ],
    ),
    (
        "a tensor of two",
        lambda a_S, b_S, t: torch.stack(
            [a_S.mean() - b_S.mean(), t * torch.var(a_S - b_S).div(len(a_S)).sqrt()]
        ),
    ),
]


def _turned(low, high, paper):
    """Turn the axis, so that the paper's effect is above 0."""
    if paper < 0:
        low, high, paper = -high, -low, -paper
    if high < 0:
        return "contradicted"
    if low > paper / 2 and high < 2 * paper:
        return "reproduced"
    if low > 0 and not low <= paper <= high:
        return "other size"
    if low <= 0 and 2 * high < paper:
        return "null"
    return "inconclusive"


check_what_it_says = [
    ("turned round first", _turned),
    (
        "the ledger's own",
        lambda low, high, paper: ledger.Claim("", "", "gain", paper, void=0).verdict(
            ledger.Estimate((low + high) / 2, low, high, 1.0, 20)
        ),
    ),
]
