"""Chapter 07's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

import torch
import torch.nn.functional as F


def _nextafter(x):
    a = torch.tensor(x).bfloat16()
    return float(torch.nextafter(a, torch.tensor(torch.inf).bfloat16()) - a)


check_spacing = [
    ("eight bits", lambda x: 2.0 ** (math.floor(math.log2(x)) - 8)),
    ("a share of x itself", lambda x: x / 128),
    ("the natural logarithm", lambda x: 2.0 ** (math.floor(math.log(x)) - 7)),
    ("not rounded down", lambda x: 2.0 ** (math.log2(x) - 7)),
    ("rounded", lambda x: 2.0 ** (round(math.log2(x)) - 7)),
    ("rounded up", lambda x: 2.0 ** (math.ceil(math.log2(x)) - 7)),
    ("as shown at 5.5", lambda x: 1 / 32),
    ("frexp, one too high", lambda x: 2.0 ** (math.frexp(x)[1] - 7)),
    ("from the rounded x", _nextafter),
    ("half a step", lambda x: 2.0 ** (math.floor(math.log2(x)) - 7) / 2),
    ("127 steps", lambda x: 2.0 ** math.floor(math.log2(x)) / 127),
]

check_z_loss = [
    ("no square", lambda z: z.logsumexp(-1).mean()),
    ("the square of the mean", lambda z: z.logsumexp(-1).mean().square()),
    ("the sum", lambda z: z.logsumexp(-1).square().sum()),
    ("over the tokens", lambda z: z.logsumexp(0).square().mean()),
    ("overflows", lambda z: z.exp().sum(-1).log().square().mean()),
    ("the size", lambda z: z.logsumexp(-1).abs().mean()),
    ("half of it", lambda z: z.logsumexp(-1).square().mean() / 2),
    ("logits squared", lambda z: z.square().mean()),
    ("of the softmax", lambda z: z.softmax(-1).logsumexp(-1).square().mean()),
    ("divided by the experts too", lambda z: z.logsumexp(-1).square().mean() / z.shape[1]),
    (
        "the mean of the exponentials",
        lambda z: (z.logsumexp(-1) - math.log(z.shape[1])).square().mean(),
    ),
    ("detached", lambda z: z.detach().logsumexp(-1).square().mean()),
    ("the largest logit", lambda z: z.amax(-1).square().mean()),
]


def _lz(z):
    return z.logsumexp(-1, keepdim=True)


check_z_gradient = [
    ("no two", lambda z: _lz(z) * z.softmax(-1) / len(z)),
    ("not divided", lambda z: 2 * _lz(z) * z.softmax(-1)),
    ("no logarithm of Z", lambda z: 2 * z.softmax(-1) / len(z)),
    ("no softmax", lambda z: (2 * _lz(z) / len(z)).expand_as(z)),
    ("divided by the experts", lambda z: 2 * _lz(z) * z.softmax(-1) / z.shape[1]),
    ("divided by both", lambda z: 2 * _lz(z) * z.softmax(-1) / z.numel()),
    ("the mean logarithm", lambda z: 2 * _lz(z).mean() * z.softmax(-1) / len(z)),
    ("downhill", lambda z: -2 * _lz(z) * z.softmax(-1) / len(z)),
    ("over the tokens", lambda z: 2 * z.logsumexp(0, keepdim=True) * z.softmax(0) / z.shape[1]),
    ("two softmaxes", lambda z: 2 * _lz(z) * z.softmax(-1).softmax(-1) / len(z)),
    ("added up over the experts", lambda z: 2 * _lz(z)[:, 0] / len(z)),
]


def _island(f):
    def logits(x, w):
        with torch.autocast("cpu", enabled=False):
            return f(x, w)

    return logits


check_selective_logits = [
    ("cast afterwards", lambda x, w: F.linear(x, w).float()),
    ("inputs cast, autocast left on", lambda x, w: F.linear(x.float(), w.float())),
    ("an island without a cast", _island(lambda x, w: F.linear(x, w.to(x.dtype)))),
    (
        "one of the two cast",
        _island(lambda x, w: F.linear(x.float(), w.to(torch.bfloat16).float())),
    ),
    ("rounded at the end", _island(lambda x, w: F.linear(x.float(), w.float()).bfloat16().float())),
    ("probabilities", _island(lambda x, w: F.linear(x.float(), w.float()).softmax(-1))),
    ("turned", _island(lambda x, w: w.float() @ x.float().T)),
    ("float16", _island(lambda x, w: (x.half() @ w.half().T).float())),
    ("detached", _island(lambda x, w: F.linear(x.detach().float(), w.detach().float()))),
]


def _cut(rows, n, sigma, at=2.0, mean=0.0):
    return torch.nn.init.trunc_normal_(
        torch.empty(rows, n), mean=mean, std=sigma, a=mean - at * sigma, b=mean + at * sigma
    )


check_first_weights = [
    ("the scale on the deviation", lambda r, n, s: _cut(r, n, s / math.sqrt(n))),
    ("not cut", lambda r, n, s: torch.randn(r, n) * math.sqrt(s / n)),
    (
        "cut at the values -2 and 2",
        lambda r, n, s: torch.nn.init.trunc_normal_(torch.empty(r, n), std=math.sqrt(s / n)),
    ),
    (
        "clamped",
        lambda r, n, s: (torch.randn(r, n) * math.sqrt(s / n)).clamp(
            -2 * math.sqrt(s / n), 2 * math.sqrt(s / n)
        ),
    ),
    ("the rows for the fan-in", lambda r, n, s: _cut(r, n, math.sqrt(s / r))),
    ("turned", lambda r, n, s: _cut(n, r, math.sqrt(s / n))),
    ("uniform", lambda r, n, s: (torch.rand(r, n) * 2 - 1) * math.sqrt(3 * s / n)),
    ("variance for deviation", lambda r, n, s: _cut(r, n, s / n)),
    ("cut at one", lambda r, n, s: _cut(r, n, math.sqrt(s / n), at=1.0)),
    ("cut at three", lambda r, n, s: _cut(r, n, math.sqrt(s / n), at=3.0)),
    ("widened to make up for the cut", lambda r, n, s: _cut(r, n, math.sqrt(s / n) / 0.8796)),
    ("both sizes", lambda r, n, s: _cut(r, n, math.sqrt(2 * s / (n + r)))),
    (
        "not in the middle",
        lambda r, n, s: _cut(r, n, math.sqrt(s / n), mean=0.5 * math.sqrt(s / n)),
    ),
]
