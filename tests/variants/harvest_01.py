"""Chapter 01's harvest of unusual right answers: (how it is done, the answer)."""

import math

import numpy as np
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal


def _a(z, o, d):
    return z.log_softmax(-1) - torch.einsum("teo,teo->te", o - d[:, None], o - d[:, None]) / 2


def _numpy_h(z, o, d):
    a = z.double().numpy() - 0.5 * ((o - d[:, None]).double().numpy() ** 2).sum(-1)
    w = np.exp(a - a.max(1, keepdims=True))
    return w / w.sum(1, keepdims=True)


def _case_by_case(z, o, d):
    rows = []
    for t in range(len(z)):
        a = [
            float(z[t, e]) - sum(float(x) ** 2 for x in d[t] - o[t, e]) / 2
            for e in range(z.shape[1])
        ]
        w = [math.exp(x - max(a)) for x in a]
        rows.append([x / sum(w) for x in w])
    return rows


check_responsibilities = [
    ("NumPy, float64", _numpy_h),
    ("lists", _case_by_case),
    (
        "log-probabilities less their logsumexp",
        lambda z, o, d: (_a(z, o, d) - _a(z, o, d).logsumexp(-1, keepdim=True)).exp(),
    ),
    (
        "cdist",
        lambda z, o, d: (
            z
            - torch.cdist(d[:, None], o, compute_mode="donot_use_mm_for_euclid_dist")[:, 0] ** 2 / 2
        ).softmax(-1),
    ),
]


def _folded(z, o, d):
    a = _a(z, o, d)
    total = a[:, 0]
    for e in range(1, a.shape[1]):
        total = torch.logaddexp(total, a[:, e])
    return -total


def _torch_mixture(z, o, d):
    m = MixtureSameFamily(Categorical(logits=z), Independent(Normal(o, torch.ones_like(o)), 1))
    return -m.log_prob(d) - d.shape[-1] / 2 * math.log(2 * math.pi)


check_mixture_error = [
    ("logaddexp, expert by expert", _folded),
    ("torch's mixture, its constant taken off", _torch_mixture),
    (
        "two logsumexps",
        lambda z, o, d: z.logsumexp(-1) - (z - (o - d[:, None]).pow(2).sum(-1) / 2).logsumexp(-1),
    ),
]


def _autograd(z, o, d):
    z, o = z.detach().clone().requires_grad_(), o.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(-_a(z, o, d).logsumexp(-1).sum(), (z, o))


check_gradients = [
    ("autograd after all", _autograd),
    (
        "einsum, float64",
        lambda z, o, d: (
            z.double().softmax(-1) - _a(z, o, d).double().softmax(-1),
            torch.einsum("te,teo->teo", _a(z, o, d).softmax(-1), o - d[:, None]),
        ),
    ),
    (
        "a list of arrays",
        lambda z, o, d: [
            z.softmax(-1).numpy() - _numpy_h(z, o, d),
            _numpy_h(z, o, d)[..., None] * (o - d[:, None]).numpy(),
        ],
    ),
]

check_working_experts = [
    (
        "lists",
        lambda z, s: [
            sum((run.argmax(-1) == e).double().mean().item() >= s for e in range(z.shape[-1]))
            for run in z
        ],
    ),
    (
        "NumPy",
        lambda z, s: (
            np.stack([np.bincount(q, minlength=z.shape[-1]) for q in z.argmax(-1).numpy()])
            / z.shape[1]
            >= s
        ).sum(1),
    ),
]

check_product = [
    ("less the logsumexp", lambda a: a.sum(1) - a.sum(1).logsumexp(0)),
    ("expert by expert, normalised each time", lambda a: sum(a.unbind(1)).double().log_softmax(0)),
    ("each normalised first, and again", lambda a: a.log_softmax(0).sum(1).log_softmax(0)),
    (
        "NumPy",
        lambda a: (lambda s: s - s.max() - np.log(np.exp(s - s.max()).sum()))(
            a.double().numpy().sum(1)
        ),
    ),
]
