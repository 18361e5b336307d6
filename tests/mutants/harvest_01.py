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
    ("an even prior", "the gate's prior is missing", lambda z, o, d: (-_off(o, d) / 2).softmax(-1)),
    (
        "no half",
        "the factor ½ in the exponent is missing",
        lambda z, o, d: (z - _off(o, d)).softmax(-1),
    ),
    (
        "the mean over the outputs",
        "outputs are averaged",
        lambda z, o, d: (z - (d[:, None] - o).square().mean(-1) / 2).softmax(-1),
    ),
    (
        "the norm, not its square",
        "the exponent holds the distance",
        lambda z, o, d: (z - _off(o, d).sqrt() / 2).softmax(-1),
    ),
    (
        "typed off the formula",
        "exp of a large negative number is 0, and 0 / 0 is not a number",
        _by_the_formula,
    ),
    ("a tiny number against 0/0", "right near by, wrong far off", _guarded),
    (
        "softmax over the cases",
        "these add up to 1 over the cases (dim 0)",
        lambda z, o, d: (z - _off(o, d) / 2).softmax(0),
    ),
    (
        "probabilities in the exponent",
        "the prior was added in the exponent, not its logarithm",
        lambda z, o, d: (z.softmax(-1) - _off(o, d) / 2).softmax(-1),
    ),
    (
        "the wrong sign",
        "the worst expert gets the most",
        lambda z, o, d: (z + _off(o, d) / 2).softmax(-1),
    ),
    (
        "all or nothing",
        "the best expert takes all",
        lambda z, o, d: F.one_hot((z - _off(o, d) / 2).argmax(-1), z.shape[1]).float(),
    ),
]


def _e3(z, out, d):
    return -(z.log_softmax(-1) - _off(out, d) / 2).logsumexp(-1)


def _clamped(z, out, d):
    return -(z.softmax(-1) * (-_off(out, d) / 2).exp()).sum(-1).clamp(min=1e-300).log()


check_mixture_error = [
    (
        "no minus",
        "the sign: a good fit must give a small error, so minus the logarithm",
        lambda z, o, d: -_e3(z, o, d),
    ),
    ("the mean over the cases", "one number for all cases", lambda z, o, d: _e3(z, o, d).mean()),
    (
        "the normal density's constant",
        "the normal density's constant, log 2π for two outputs, is kept",
        lambda z, o, d: _e3(z, o, d) + o.shape[-1] / 2 * math.log(2 * math.pi),
    ),
    (
        "logits instead of log-probabilities",
        "logits are not log-probabilities",
        lambda z, o, d: -(z - _off(o, d) / 2).logsumexp(-1),
    ),
    (
        "the expected error",
        "the logarithm was taken inside the sum",
        lambda z, o, d: (z.softmax(-1) * _off(o, d) / 2).sum(-1),
    ),
    (
        "the best expert's",
        "only the best expert counts, a max for the logsumexp",
        lambda z, o, d: -(z.log_softmax(-1) - _off(o, d) / 2).amax(-1),
    ),
    (
        "clamped before the logarithm",
        "far-off experts: exp(-800) is 0 in floating point, and log 0 is not finite",
        _clamped,
    ),
    (
        "gate detached",
        "right numbers, but no gradient reaches the gate's logits, so what is behind can",
        lambda z, o, d: _e3(z.detach(), o, d),
    ),
    (
        "the error of the blend",
        "this is not equation",
        lambda z, o, d: (d - (z.softmax(-1)[..., None] * o).sum(1)).square().sum(-1) / 2,
    ),
]

check_gradients = [
    (
        "h less p",
        "this is h - p, the way the gate should move",
        lambda z, o, d: (_h(z, o, d) - z.softmax(-1), -_h(z, o, d)[..., None] * (d[:, None] - o)),
    ),
    (
        "answers pushed away",
        "the sign: the error falls when an answer moves towards d, so the derivative is",
        lambda z, o, d: (z.softmax(-1) - _h(z, o, d), _h(z, o, d)[..., None] * (d[:, None] - o)),
    ),
    (
        "the square's two",
        "a factor of 2 too much",
        lambda z, o, d: (
            z.softmax(-1) - _h(z, o, d),
            -2 * _h(z, o, d)[..., None] * (d[:, None] - o),
        ),
    ),
    (
        "p in the place of h",
        "p where h belongs: this is half of E2's derivative",
        lambda z, o, d: (z.softmax(-1) - _h(z, o, d), -z.softmax(-1)[..., None] * (d[:, None] - o)),
    ),
    (
        "no weight at all",
        "every expert is moved by its whole error, whoever is responsible",
        lambda z, o, d: (z.softmax(-1) - _h(z, o, d), o - d[:, None]),
    ),
    (
        "outputs swapped",
        "the two are swapped",
        lambda z, o, d: (_h(z, o, d)[..., None] * (o - d[:, None]), z.softmax(-1) - _h(z, o, d)),
    ),
    (
        "of the mean over the cases",
        "each case has its own error",
        lambda z, o, d: (
            (z.softmax(-1) - _h(z, o, d)) / len(z),
            _h(z, o, d)[..., None] * (o - d[:, None]) / len(z),
        ),
    ),
    (
        "the gate's without p",
        "only the responsibilities",
        lambda z, o, d: (-_h(z, o, d), _h(z, o, d)[..., None] * (o - d[:, None])),
    ),
]


def _share_QE(z):
    return F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1)


check_working_experts = [
    (
        "more than the share",
        "at least that share, not more than that",
        lambda z, s: (_share_QE(z) > s).sum(-1),
    ),
    (
        "believed, not won",
        "this counts experts by their mean proportion",
        lambda z, s: (z.softmax(-1).mean(1) >= s).sum(-1),
    ),
    (
        "whoever won once",
        "this counts every expert that wins a single case, whatever the share",
        lambda z, s: (_share_QE(z) > 0).sum(-1),
    ),
    (
        "in whole cases, cut off",
        "the share of the cases was rounded down before it was compared",
        lambda z, s: (F.one_hot(z.argmax(-1), z.shape[-1]).sum(1) >= int(s * z.shape[1])).sum(-1),
    ),
    (
        "all runs pooled",
        "that is not how many experts work",
        lambda z, s: (_share_QE(z).mean(0) >= s).sum(-1).expand(len(z)),
    ),
    (
        "the winner of the mean",
        "that is not how many experts work",
        lambda z, s: F.one_hot(z.mean(1).argmax(-1), z.shape[-1]).sum(-1),
    ),
    (
        "which, not how many",
        "return a tensor of shape (1,), not one of shape (1, 3)",
        lambda z, s: _share_QE(z) >= s,
    ),
    (
        "the losers",
        "this counts the experts that do not work",
        lambda z, s: (_share_QE(z) < s).sum(-1),
    ),
]

check_product = [
    (
        "the mean of the logarithms",
        "a mean of logarithms is the product's E-th root",
        lambda a: a.mean(-1).log_softmax(0),
    ),
    ("not normalised", "the product is not normalised", lambda a: a.sum(-1)),
    (
        "a mixture",
        "that is a mixture: probabilities were added",
        lambda a: a.logsumexp(-1).log_softmax(0),
    ),
    (
        "through the densities",
        "exp underflows, and 0 / 0 is not a number",
        lambda a: (a.exp().prod(-1) / a.exp().prod(-1).sum()).log(),
    ),
    ("probabilities", "this is the probability", lambda a: a.sum(-1).softmax(0)),
    (
        "each made to add up to 1, the product not",
        "not the normalised product",
        lambda a: a.log_softmax(0).sum(-1),
    ),
    ("over the experts", "not the normalised product", lambda a: a.log_softmax(-1).sum(-1)),
    ("the largest taken off", "not the normalised product", lambda a: a.sum(-1) - a.sum(-1).max()),
]
