"""Chapter 01's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

import torch.nn.functional as F


def _off(out, d):
    return (d[:, None] - out).square().sum(-1)


def _h(z, out, d):
    return (z - _off(out, d) / 2).softmax(-1)


def _by_the_formula(z, out, d):
    w = z.softmax(-1) * (-_off(out, d) / 2).exp()
    return w / w.sum(-1, keepdim=True)


def _guarded(z, out, d):
    w = z.softmax(-1) * (-_off(out, d) / 2).exp()
    return w / (w.sum(-1, keepdim=True) + 1e-12)


check_responsibilities = [
    ("an even prior", lambda z, o, d: (-_off(o, d) / 2).softmax(-1)),
    ("no half", lambda z, o, d: (z - _off(o, d)).softmax(-1)),
    (
        "the mean over the outputs",
        lambda z, o, d: (z - (d[:, None] - o).square().mean(-1) / 2).softmax(-1),
    ),
    ("the norm, not its square", lambda z, o, d: (z - _off(o, d).sqrt() / 2).softmax(-1)),
    ("typed off the formula", _by_the_formula),
    ("a tiny number against 0/0", _guarded),
    ("softmax over the cases", lambda z, o, d: (z - _off(o, d) / 2).softmax(0)),
    ("probabilities in the exponent", lambda z, o, d: (z.softmax(-1) - _off(o, d) / 2).softmax(-1)),
    ("the wrong sign", lambda z, o, d: (z + _off(o, d) / 2).softmax(-1)),
    (
        "all or nothing",
        lambda z, o, d: F.one_hot((z - _off(o, d) / 2).argmax(-1), z.shape[1]).float(),
    ),
]


def _e3(z, out, d):
    return -(z.log_softmax(-1) - _off(out, d) / 2).logsumexp(-1)


def _clamped(z, out, d):
    return -(z.softmax(-1) * (-_off(out, d) / 2).exp()).sum(-1).clamp(min=1e-300).log()


check_mixture_error = [
    ("no minus", lambda z, o, d: -_e3(z, o, d)),
    ("the mean over the cases", lambda z, o, d: _e3(z, o, d).mean()),
    (
        "the normal density's constant",
        lambda z, o, d: _e3(z, o, d) + o.shape[-1] / 2 * math.log(2 * math.pi),
    ),
    ("logits instead of log-probabilities", lambda z, o, d: -(z - _off(o, d) / 2).logsumexp(-1)),
    ("the expected error", lambda z, o, d: (z.softmax(-1) * _off(o, d) / 2).sum(-1)),
    ("the best expert's", lambda z, o, d: -(z.log_softmax(-1) - _off(o, d) / 2).amax(-1)),
    ("clamped before the logarithm", _clamped),
    ("gate detached", lambda z, o, d: _e3(z.detach(), o, d)),
    (
        "the error of the blend",
        lambda z, o, d: (d - (z.softmax(-1)[..., None] * o).sum(1)).square().sum(-1) / 2,
    ),
]

check_gradients = [
    (
        "h less p",
        lambda z, o, d: (_h(z, o, d) - z.softmax(-1), -_h(z, o, d)[..., None] * (d[:, None] - o)),
    ),
    (
        "answers pushed away",
        lambda z, o, d: (z.softmax(-1) - _h(z, o, d), _h(z, o, d)[..., None] * (d[:, None] - o)),
    ),
    (
        "the square's two",
        lambda z, o, d: (
            z.softmax(-1) - _h(z, o, d),
            -2 * _h(z, o, d)[..., None] * (d[:, None] - o),
        ),
    ),
    (
        "p in the place of h",
        lambda z, o, d: (z.softmax(-1) - _h(z, o, d), -z.softmax(-1)[..., None] * (d[:, None] - o)),
    ),
    ("no weight at all", lambda z, o, d: (z.softmax(-1) - _h(z, o, d), o - d[:, None])),
    (
        "outputs swapped",
        lambda z, o, d: (_h(z, o, d)[..., None] * (o - d[:, None]), z.softmax(-1) - _h(z, o, d)),
    ),
    (
        "of the mean over the cases",
        lambda z, o, d: (
            (z.softmax(-1) - _h(z, o, d)) / len(z),
            _h(z, o, d)[..., None] * (o - d[:, None]) / len(z),
        ),
    ),
    (
        "the gate's without p",
        lambda z, o, d: (-_h(z, o, d), _h(z, o, d)[..., None] * (o - d[:, None])),
    ),
]


def _share_QE(z):
    return F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1)


check_working_experts = [
    ("more than the share", lambda z, s: (_share_QE(z) > s).sum(-1)),
    ("believed, not won", lambda z, s: (z.softmax(-1).mean(1) >= s).sum(-1)),
    ("whoever won once", lambda z, s: (_share_QE(z) > 0).sum(-1)),
    (
        "in whole cases, cut off",
        lambda z, s: (F.one_hot(z.argmax(-1), z.shape[-1]).sum(1) >= int(s * z.shape[1])).sum(-1),
    ),
    ("all runs pooled", lambda z, s: (_share_QE(z).mean(0) >= s).sum(-1).expand(len(z))),
    ("the winner of the mean", lambda z, s: F.one_hot(z.mean(1).argmax(-1), z.shape[-1]).sum(-1)),
    ("which, not how many", lambda z, s: _share_QE(z) >= s),
    ("the losers", lambda z, s: (_share_QE(z) < s).sum(-1)),
]

check_product = [
    ("the mean of the logarithms", lambda a: a.mean(-1).log_softmax(0)),
    ("not normalised", lambda a: a.sum(-1)),
    ("a mixture", lambda a: a.logsumexp(-1).log_softmax(0)),
    ("through the densities", lambda a: (a.exp().prod(-1) / a.exp().prod(-1).sum()).log()),
    ("probabilities", lambda a: a.sum(-1).softmax(0)),
    ("each made to add up to 1, the product not", lambda a: a.log_softmax(0).sum(-1)),
    ("over the experts", lambda a: a.log_softmax(-1).sum(-1)),
    ("the largest taken off", lambda a: a.sum(-1) - a.sum(-1).max()),
]
