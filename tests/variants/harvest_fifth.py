"""Right answers to chapter 03 by a reader who had not seen the checks: (how it is done, answer)."""

import itertools
import math

import torch


def _autograd(loss_S, b_S, p, baseline):
    a = p.logit().requires_grad_()
    log_S = [torch.distributions.Bernoulli(logits=a).log_prob(b) for b in b_S]
    slope_S = torch.stack([torch.autograd.grad(log, a)[0] for log in log_S])
    return (loss_S - baseline) * slope_S


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p_T, b_T):
        return b_T.clone()

    @staticmethod
    def backward(ctx, slope_T):
        return slope_T, None


def _by_loops(gate_TE, total_E, margin):
    rows = []
    for row in gate_TE:
        kept = [g * float(t - total_E.mean() <= margin) for g, t in zip(row, total_E, strict=True)]
        rows.append(torch.stack([g / sum(kept) for g in kept]))
    return torch.stack(rows)


check_constrain = [("by loops", _by_loops)]

check_score_gradient = [
    ("by autograd", _autograd),
    ("numpy", lambda loss, b, p, c: ((loss - c) * (b - p)).numpy()),
]

check_straight_through = [("a function with its own backward", _Through.apply)]

check_samples_for_sign = [
    ("four times over the square", lambda s, d: max(1, math.ceil(4 * d * d / s**2))),
    ("searched without a root", lambda s, d: next(
        n for n in itertools.count(1) if n * s * s >= 4 * d * d)),
    ("turned round twice", lambda s, d: max(1, int(-(-((2 * d / s) ** 2) // 1)))),
]  # fmt: skip
