"""Chapter 07's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

import torch
import torch.nn.functional as F


def _nextafter(x):
    a = torch.tensor(x).bfloat16()
    return float(torch.nextafter(a, torch.tensor(torch.inf).bfloat16()) - a)


check_spacing = [
    (
        "eight bits",
        "half of it: the largest error of rounding, not the distance",
        lambda x: 2.0 ** (math.floor(math.log2(x)) - 8),
    ),
    (
        "a share of x itself",
        "within a power of two the numbers are evenly spaced",
        lambda x: x / 128,
    ),
    (
        "the natural logarithm",
        "not the distance from x to the next larger bfloat16",
        lambda x: 2.0 ** (math.floor(math.log(x)) - 7),
    ),
    (
        "not rounded down",
        "within a power of two the numbers are evenly spaced",
        lambda x: 2.0 ** (math.log2(x) - 7),
    ),
    (
        "rounded",
        "the power of two below x, not the nearest one",
        lambda x: 2.0 ** (round(math.log2(x)) - 7),
    ),
    (
        "rounded up",
        "round x down to a power of two, not up",
        lambda x: 2.0 ** (math.ceil(math.log2(x)) - 7),
    ),
    ("as shown at 5.5", "not the distance from x to the next larger bfloat16", lambda x: 1 / 32),
    ("frexp, one too high", "that is twice too much", lambda x: 2.0 ** (math.frexp(x)[1] - 7)),
    ("from the rounded x", "not the distance from x to the next larger bfloat16", _nextafter),
    (
        "half a step",
        "half of it: the largest error of rounding, not the distance",
        lambda x: 2.0 ** (math.floor(math.log2(x)) - 7) / 2,
    ),
    ("127 steps", "right up to a factor", lambda x: 2.0 ** math.floor(math.log2(x)) / 127),
]

check_z_loss = [
    ("no square", "the square is missing", lambda z: z.logsumexp(-1).mean()),
    (
        "the square of the mean",
        "the square goes on each token's log-sum-exp, before the mean",
        lambda z: z.logsumexp(-1).mean().square(),
    ),
    ("the sum", "a mean over tokens, not a sum", lambda z: z.logsumexp(-1).square().sum()),
    (
        "over the tokens",
        "the log-sum-exp runs over the experts, not over the tokens",
        lambda z: z.logsumexp(0).square().mean(),
    ),
    (
        "overflows",
        "exp overflows; logsumexp takes the largest logit out first",
        lambda z: z.exp().sum(-1).log().square().mean(),
    ),
    ("the size", "the absolute value is not the square", lambda z: z.logsumexp(-1).abs().mean()),
    ("half of it", "that is half of it", lambda z: z.logsumexp(-1).square().mean() / 2),
    (
        "logits squared",
        "these are the squared logits, not their log-sum-exp",
        lambda z: z.square().mean(),
    ),
    (
        "of the softmax",
        "this is the z-loss of the probabilities",
        lambda z: z.softmax(-1).logsumexp(-1).square().mean(),
    ),
    (
        "divided by the experts too",
        "the mean runs over the T tokens",
        lambda z: z.logsumexp(-1).square().mean() / z.shape[1],
    ),
    (
        "the mean of the exponentials",
        "the mean of the exponentials, not their sum",
        lambda z: (z.logsumexp(-1) - math.log(z.shape[1])).square().mean(),
    ),
    (
        "detached",
        "right numbers, but no gradient reaches the logits, so what is behind can never learn",
        lambda z: z.detach().logsumexp(-1).square().mean(),
    ),
    (
        "the largest logit",
        "the largest logit stands for the log-sum-exp",
        lambda z: z.amax(-1).square().mean(),
    ),
]


def _lz(z):
    return z.logsumexp(-1, keepdim=True)


check_z_gradient = [
    ("no two", "the 2 of the square is missing", lambda z: _lz(z) * z.softmax(-1) / len(z)),
    ("not divided", "the mean's 1/T is missing", lambda z: 2 * _lz(z) * z.softmax(-1)),
    (
        "no logarithm of Z",
        "not 2 · log-sum-exp · softmax / T",
        lambda z: 2 * z.softmax(-1) / len(z),
    ),
    ("no softmax", "the inner derivative is missing", lambda z: (2 * _lz(z) / len(z)).expand_as(z)),
    (
        "divided by the experts",
        "right up to a factor",
        lambda z: 2 * _lz(z) * z.softmax(-1) / z.shape[1],
    ),
    (
        "divided by both",
        "divided by the number of experts too",
        lambda z: 2 * _lz(z) * z.softmax(-1) / z.numel(),
    ),
    (
        "the mean logarithm",
        "the mean log-sum-exp for all",
        lambda z: 2 * _lz(z).mean() * z.softmax(-1) / len(z),
    ),
    ("downhill", "this points downhill", lambda z: -2 * _lz(z) * z.softmax(-1) / len(z)),
    (
        "over the tokens",
        "not 2 · log-sum-exp · softmax / T",
        lambda z: 2 * z.logsumexp(0, keepdim=True) * z.softmax(0) / z.shape[1],
    ),
    (
        "two softmaxes",
        "not 2 · log-sum-exp · softmax / T",
        lambda z: 2 * _lz(z) * z.softmax(-1).softmax(-1) / len(z),
    ),
    (
        "added up over the experts",
        "return a tensor of shape (3, 4), not one of shape (3,)",
        lambda z: 2 * _lz(z)[:, 0] / len(z),
    ),
]


def _island(f):
    def logits(x, w):
        with torch.autocast("cpu", enabled=False):
            return f(x, w)

    return logits


check_selective_logits = [
    (
        "cast afterwards",
        "under autocast a product runs in bfloat16 even if you cast its inputs",
        lambda x, w: F.linear(x, w).float(),
    ),
    (
        "inputs cast, autocast left on",
        "the logits are bfloat16, and the softmax would be too",
        lambda x, w: F.linear(x.float(), w.float()),
    ),
    (
        "an island without a cast",
        "the logits are bfloat16, and the softmax would be too",
        _island(lambda x, w: F.linear(x, w.to(x.dtype))),
    ),
    (
        "one of the two cast",
        "the weights: use them as they are",
        _island(lambda x, w: F.linear(x.float(), w.to(torch.bfloat16).float())),
    ),
    (
        "rounded at the end",
        "that is rounded once more at the end",
        _island(lambda x, w: F.linear(x.float(), w.float()).bfloat16().float()),
    ),
    (
        "probabilities",
        "these are probabilities",
        _island(lambda x, w: F.linear(x.float(), w.float()).softmax(-1)),
    ),
    (
        "turned",
        "transposed: rows and columns are exchanged",
        _island(lambda x, w: w.float() @ x.float().T),
    ),
    ("float16", "not x Wᵀ in float32", _island(lambda x, w: (x.half() @ w.half().T).float())),
    (
        "detached",
        "right numbers, but no gradient reaches the weights, so what is behind can never",
        _island(lambda x, w: F.linear(x.detach().float(), w.detach().float())),
    ),
]


def _cut(rows, n, sigma, at=2.0, mean=0.0):
    return torch.nn.init.trunc_normal_(
        torch.empty(rows, n), mean=mean, std=sigma, a=mean - at * sigma, b=mean + at * sigma
    )


check_first_weights = [
    (
        "the scale on the deviation",
        "the scale is on the variance",
        lambda r, n, s: _cut(r, n, s / math.sqrt(n)),
    ),
    (
        "not cut",
        "right deviation, but values beyond two deviations must be drawn again",
        lambda r, n, s: torch.randn(r, n) * math.sqrt(s / n),
    ),
    (
        "cut at the values -2 and 2",
        "right deviation, but values beyond two deviations must be drawn again",
        lambda r, n, s: torch.nn.init.trunc_normal_(torch.empty(r, n), std=math.sqrt(s / n)),
    ),
    (
        "clamped",
        "clamping piles the tails up at the edge",
        lambda r, n, s: (torch.randn(r, n) * math.sqrt(s / n)).clamp(
            -2 * math.sqrt(s / n), 2 * math.sqrt(s / n)
        ),
    ),
    (
        "the rows for the fan-in",
        "n is the fan-in, the inputs of a row, not the number of rows",
        lambda r, n, s: _cut(r, n, math.sqrt(s / r)),
    ),
    ("turned", "return a tensor of shape (800, 100)", lambda r, n, s: _cut(n, r, math.sqrt(s / n))),
    (
        "uniform",
        "that is a uniform distribution, not a normal one",
        lambda r, n, s: (torch.rand(r, n) * 2 - 1) * math.sqrt(3 * s / n),
    ),
    ("variance for deviation", "sigma is the root of s / n", lambda r, n, s: _cut(r, n, s / n)),
    (
        "cut at one",
        "not of sigma sqrt(s / n), cut at two of it",
        lambda r, n, s: _cut(r, n, math.sqrt(s / n), at=1.0),
    ),
    (
        "cut at three",
        "right deviation, but values beyond two deviations must be drawn again",
        lambda r, n, s: _cut(r, n, math.sqrt(s / n), at=3.0),
    ),
    (
        "both sizes",
        "this is the mean of fan-in and rows, as Glorot has it",
        lambda r, n, s: _cut(r, n, math.sqrt(2 * s / (n + r))),
    ),
    (
        "not in the middle",
        "the mean must be 0",
        lambda r, n, s: _cut(r, n, math.sqrt(s / n), mean=0.5 * math.sqrt(s / n)),
    ),
]
