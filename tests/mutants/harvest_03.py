"""Chapter 03's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

import torch


def _in_place(gate, total, margin):
    gate *= total - total.mean() <= margin
    return gate / gate.sum(-1, keepdim=True)


def _divided(open_TE):
    return open_TE / open_TE.sum(-1, keepdim=True)


check_constrain = [
    (
        "not divided",
        "the gates of a token no longer add up to 1",
        lambda g, t, m: g * (t - t.mean() <= m),
    ),
    ("changes the gates it was given", "changes its input in place", _in_place),
    (
        "exactly at the margin closes",
        "exactly the margin ahead is still open",
        lambda g, t, m: _divided(g * (t - t.mean() < m)),
    ),
    (
        "ahead of the median",
        "totals are compared with their median",
        lambda g, t, m: _divided(g * (t - t.median() <= m)),
    ),
    (
        "ahead of the last",
        "totals are compared with the smallest",
        lambda g, t, m: _divided(g * (t - t.min() <= m)),
    ),
    (
        "behind by the margin too",
        "whoever is far behind is closed as well",
        lambda g, t, m: _divided(g * ((t - t.mean()).abs() <= m)),
    ),
    (
        "the total itself",
        "not the open gates over their sum",
        lambda g, t, m: _divided(g * (t <= m) + 1e-9),
    ),
    (
        "a softmax of what is left",
        "the open gates went through a softmax",
        lambda g, t, m: g.masked_fill(t - t.mean() > m, -torch.inf).softmax(-1),
    ),
    (
        "subtracted, not closed",
        "not the open gates over their sum",
        lambda g, t, m: _divided((g - (t - t.mean() > m) * 0.1).clamp(min=0)),
    ),
]

check_score_gradient = [
    ("no baseline", "the baseline is not used", lambda loss, b, p, base: loss * (b - p)),
    ("sign turned", "that is uphill", lambda loss, b, p, base: (loss - base) * (p - b)),
    (
        "the gate for b - p",
        "the gate's value stands there",
        lambda loss, b, p, base: (loss - base) * b,
    ),
    (
        "averaged",
        "that is the mean",
        lambda loss, b, p, base: ((loss - base) * (b - p)).mean().repeat(len(b)),
    ),
    (
        "baseline taken off at the end",
        "taken off the product",
        lambda loss, b, p, base: loss * (b - p) - base,
    ),
    (
        "slope for p",
        "the slope for the probability",
        lambda loss, b, p, base: (loss - base) * (b / p - (1 - b) / (1 - p)),
    ),
    (
        "the batch mean as baseline",
        "the baseline is the mean of the losses",
        lambda loss, b, p, base: (loss - loss.mean()) * (b - p),
    ),
]

check_straight_through = [
    ("soft", "the value is p", lambda p, b: p.clone()),
    ("hard", "no gradient reaches p", lambda p, b: b.clone()),
    ("product", "a soft weight, not a gate", lambda p, b: b * p),
    ("rounded", "p is rounded at one half", lambda p, b: p.round() + p - p.detach()),
    ("bracket turned", "the bracket detached", lambda p, b: p - (b - p).detach()),
    ("detached the wrong one", "the value is p", lambda p, b: p.detach() + b - b.detach() + 0 * p),
]

check_samples_for_sign = [
    ("one error", "one standard error", lambda s, d: max(1, math.ceil((d / s) ** 2))),
    ("no square", "deviation / sqrt(n)", lambda s, d: math.ceil(2 * d / abs(s))),
    ("two outside", "twice, then square", lambda s, d: math.ceil(2 * (d / s) ** 2)),
    ("floor", "rounded down", lambda s, d: int((2 * d / s) ** 2)),
    ("upside down", "the slope stands above", lambda s, d: math.ceil((2 * s / d) ** 2)),
    ("not rounded", "this is not the least n", lambda s, d: (2 * d / s) ** 2 + 0.5),
]
