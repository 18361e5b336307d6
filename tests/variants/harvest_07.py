"""Chapter 07's harvest of unusual right answers: (how it is done, the answer)."""

import math

import numpy as np
import torch


def _doubling(x):
    step = 1 / 128
    while x >= 256 * step:
        step *= 2
    return step


check_spacing = [
    ("frexp", lambda x: math.ldexp(1.0, math.frexp(x)[1] - 8)),
    ("by doubling", _doubling),
    ("float64's own step, times 2^45", lambda x: math.ulp(x) * 2**45),
    ("whole numbers, 0-d", lambda x: torch.tensor(2.0 ** (int(x).bit_length() - 8))),
    ("NumPy", lambda x: np.exp2(np.floor(np.log2(x))) / 128),
]

check_z_loss = [
    (
        "the largest taken out",
        lambda z: ((z - z.amax(-1, keepdim=True)).exp().sum(-1).log() + z.amax(-1)).pow(2).mean(),
    ),
    ("a scalar product, float64", lambda z: (lambda a: a @ a / len(a))(z.double().logsumexp(1))),
    (
        "z less log_softmax",
        lambda z: (z[:, 0] - z.log_softmax(-1)[:, 0]).square().sum() / z.shape[0],
    ),
]


def _autograd(z):
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        return torch.autograd.grad(z.logsumexp(-1).square().mean(), z)[0]


def _numpy(z):
    a = z.double().numpy()
    w = np.exp(a - a.max(1, keepdims=True))
    log_z = np.log(w.sum(1, keepdims=True)) + a.max(1, keepdims=True)
    return 2 / len(a) * log_z * w / w.sum(1, keepdims=True)


check_z_gradient = [
    ("autograd after all", _autograd),
    ("NumPy, float64", _numpy),
    (
        "einsum",
        lambda z: (
            torch.einsum("t,te->te", z.logsumexp(1), (z - z.logsumexp(1, keepdim=True)).exp())
            * (2 / z.size(0))
        ),
    ),
]


def _products(x, w):
    return (x.float()[:, None] * w.float()).sum(-1)


def _decorated(x, w):
    with torch.amp.autocast(device_type="cpu", enabled=False):
        return torch.einsum("td,ed->te", x.to(torch.float32), w.to(torch.float32))


check_selective_logits = [
    ("products and a sum, which autocast leaves alone", _products),
    ("float64, then float32", lambda x, w: (x.double() @ w.double().T).float()),
    ("einsum on an island", _decorated),
]


def _again(rows, fan_in, scale):
    sigma = (scale / fan_in) ** 0.5
    w = torch.randn(rows, fan_in)
    while (w.abs() > 2).any():
        w = torch.where(w.abs() > 2, torch.randn(rows, fan_in), w)
    return w * sigma


def _inverse(rows, fan_in, scale):
    low = torch.special.ndtr(torch.tensor(-2.0, dtype=torch.float64))
    u = low + (1 - 2 * low) * torch.rand(rows, fan_in, dtype=torch.float64)
    return torch.special.ndtri(u) * math.sqrt(scale / fan_in)


check_first_weights = [
    ("drawn again in a loop", _again),
    ("by the inverse of the bell, float64", _inverse),
    (
        "widened, so that what is left has the variance s / n",
        lambda r, n, s: _again(r, n, s) / 0.8796,
    ),
    ("a parameter", lambda r, n, s: torch.nn.Parameter(_again(r, n, s))),
]
