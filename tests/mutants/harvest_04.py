"""Chapter 04's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch
import torch.nn.functional as F

from moe_lite.routers import kth_excluding


def _kept(s, k, fill):
    i = s.topk(k, -1).indices
    return torch.full_like(s, fill).scatter(-1, i, s.gather(-1, i))


def _first_columns(s, k):
    return F.pad(s.topk(k, -1).values.softmax(-1), (0, s.shape[1] - k))


def _threshold(s, k):
    return s.masked_fill(s < s.topk(k, -1).values[:, -1:], -torch.inf).softmax(-1)


check_sparse_gates = [
    (
        "0 in the place of the others",
        "the scores that were not kept became 0, and exp(0) is 1",
        lambda s, k: _kept(s, k, 0.0).softmax(-1),
    ),
    (
        "-10 in the place of the others",
        "became a small number, and still take a share; use -inf",
        lambda s, k: _kept(s, k, -10.0).softmax(-1),
    ),
    ("all that are at least the k-th", "k experts are kept, also where scores tie", _threshold),
    (
        "a softmax over all, not divided",
        "a token's gates must add up to 1",
        lambda s, k: torch.zeros_like(s).scatter(
            -1, s.topk(k, -1).indices, s.softmax(-1).topk(k, -1).values
        ),
    ),
    ("in the first columns", "the right numbers, but in another order", _first_columns),
    (
        "the k gates alone",
        "these are the gates of the chosen alone",
        lambda s, k: s.topk(k, -1).values.softmax(-1),
    ),
    (
        "the best tokens of each expert",
        "each expert keeps its k best tokens (dim 0)",
        lambda s, k: (
            torch.full_like(s, -torch.inf)
            .scatter(0, s.topk(min(k, len(s)), 0).indices, s.topk(min(k, len(s)), 0).values)
            .softmax(-1)
        ),
    ),
    (
        "one too many",
        "one expert too many is kept",
        lambda s, k: _kept(s, min(k + 1, s.shape[1]), -torch.inf).softmax(-1),
    ),
    (
        "detached",
        "right numbers, but no gradient reaches the scores, so what is behind can never learn",
        lambda s, k: _kept(s.detach(), k, -torch.inf).softmax(-1),
    ),
    (
        "hard: 1/k each",
        "each chosen expert counts the same",
        lambda s, k: torch.zeros_like(s).scatter(-1, s.topk(k, -1).indices, 1 / k),
    ),
]


def _noisy(size, when=lambda training: training):
    def scores(x, wg, wn, eps, training):
        return x @ wg.T + eps * size(x @ wn.T) if when(training) else x @ wg.T

    return scores


check_noisy_scores = [
    (
        "noise in evaluation",
        "there is noise in evaluation",
        _noisy(F.softplus, lambda training: True),
    ),
    (
        "training turned round",
        "training and evaluation",
        _noisy(F.softplus, lambda training: not training),
    ),
    (
        "no softplus",
        "without the softplus a deviation can be negative, and starts at 0",
        _noisy(lambda a: a),
    ),
    ("relu", "a ReLU gives no noise below 0, and no gradient to grow it", _noisy(torch.relu)),
    ("exp", "that is exp, not softplus", _noisy(torch.exp)),
    ("a sigmoid", "that is a sigmoid; softplus is ln(1 + e^a)", _noisy(torch.sigmoid)),
    (
        "a little more, as in the code of 2017",
        "0.01 is added to the deviation, as published code does",
        _noisy(lambda a: F.softplus(a) + 0.01),
    ),
    (
        "its size detached",
        "right numbers, but no gradient reaches w_noise, so what is behind can never learn",
        _noisy(lambda a: F.softplus(a).detach()),
    ),
    (
        "noise of its own drawing",
        "the same input gives another answer the second time",
        lambda x, wg, wn, eps, tr: (
            x @ wg.T + (torch.randn_like(eps) * F.softplus(x @ wn.T) if tr else 0)
        ),
    ),
    (
        "softplus of all",
        "the softplus is of noise times size",
        lambda x, wg, wn, eps, tr: x @ wg.T + F.softplus(eps * (x @ wn.T)) if tr else x @ wg.T,
    ),
]


def _prob(clean, noisy, std, k):
    if k == clean.shape[1]:
        return torch.ones_like(clean)
    top = noisy.topk(k + 1, -1).values
    return torch.special.ndtr(
        (clean - torch.where(noisy > top[:, k:], top[:, k:], top[:, k - 1 : k])) / std
    )


def _bars(clean, noisy, std, k, whose=None, number=None):
    if k == clean.shape[1]:
        return torch.ones_like(clean)
    return torch.special.ndtr(
        ((whose if whose is not None else clean) - kth_excluding(noisy, number or k)) / std
    )


def _kth_of_all(c, n, s, k):
    return torch.special.ndtr((c - n.topk(k, -1).values[:, -1:]) / s)


check_prob_in_top_k = [
    ("the k-th of all", "an expert that is in would have to beat itself", _kth_of_all),
    (
        "the k+1-th of all, k = E forgotten",
        "the bar is the k+1-th of all",
        lambda c, n, s, k: torch.special.ndtr((c - n.topk(k + 1, -1).values[:, -1:]) / s),
    ),
    (
        "the bar among clean scores",
        "the bar is made of the others' noisy scores",
        lambda c, n, s, k: _bars(c, c, s, k),
    ),
    (
        "the bell on the noisy score",
        "the bell is centred on the clean score",
        lambda c, n, s, k: _bars(c, n, s, k, whose=n),
    ),
    (
        "turned round",
        "that is the probability to stay below the bar",
        lambda c, n, s, k: 1 - _prob(c, n, s, k) if k < c.shape[1] else torch.ones_like(c),
    ),
    (
        "divided by the variance",
        "std is a standard deviation, not a variance",
        lambda c, n, s, k: _prob(c, n, s**2, k),
    ),
    (
        "the standard deviation forgotten",
        "the distance is measured in standard deviations",
        lambda c, n, s, k: _prob(c, n, 1.0, k),
    ),
    (
        "a sigmoid for the bell",
        "that is a logistic curve",
        lambda c, n, s, k: (
            _prob(c, n, s, k) if k == c.shape[1] else ((c - kth_excluding(n, k)) / s).sigmoid()
        ),
    ),
    (
        "nobody where k = E",
        "with k = E everyone is always chosen",
        lambda c, n, s, k: _prob(c, n, s, k) * (k < c.shape[1]),
    ),
    (
        "made to add up to k",
        "not Phi((clean - bar) / std)",
        lambda c, n, s, k: k * _prob(c, n, s, k) / _prob(c, n, s, k).sum(-1, keepdim=True),
    ),
    (
        "in or out",
        "not Phi((clean - bar) / std)",
        lambda c, n, s, k: (_prob(c, n, s, k) > 0.5).float(),
    ),
    (
        "one mean deviation",
        "not Phi((clean - bar) / std)",
        lambda c, n, s, k: _prob(c, n, s.mean(), k),
    ),
]

check_top1_gate = [
    (
        "softmax of the one",
        "the gate is 1 whatever the score",
        lambda s: (s.topk(1).values.softmax(-1)[:, 0], s.argmax(-1)),
    ),
    ("the score itself", "that is the score itself", lambda s: (s.amax(-1), s.argmax(-1))),
    ("swapped", "the two are swapped", lambda s: (s.argmax(-1), s.softmax(-1).amax(-1))),
    (
        "softmax over the tokens",
        "gate_T: not the best probability and whose it is",
        lambda s: (s.softmax(0).amax(-1), s.argmax(-1)),
    ),
    ("a sigmoid", "each score's own sigmoid", lambda s: (s.sigmoid().amax(-1), s.argmax(-1))),
    (
        "detached",
        "right numbers, but no gradient reaches the scores, so what is behind can never learn",
        lambda s: (s.softmax(-1).amax(-1).detach(), s.argmax(-1)),
    ),
    (
        "two softmaxes",
        "a second softmax was taken",
        lambda s: (s.softmax(-1).softmax(-1).amax(-1), s.argmax(-1)),
    ),
    (
        "log-probability",
        "that is the logarithm of the gate",
        lambda s: (s.log_softmax(-1).amax(-1), s.argmax(-1)),
    ),
    (
        "the best of softmax over the tokens",
        "not the best probability and whose it is",
        lambda s: tuple(s.softmax(0).max(-1)),
    ),
    (
        "the second best",
        "not the best probability and whose it is",
        lambda s: (s.softmax(-1).topk(2).values[:, 1], s.topk(2).indices[:, 1]),
    ),
]


def _load(c, n, s, k, count):
    return count(n, k) if s is None else _prob(c, n, s, k).sum(0)


def _hard(n, k):
    return n.topk(k).indices.flatten().bincount(minlength=n.shape[1]).to(n)


check_load_anywhere = [
    (
        "a deviation of 1e-9",
        "a noise however small settles all but a tie, and there every expert counts half",
        lambda c, n, s, k: _prob(c, n, torch.full_like(c, 1e-9) if s is None else s, k).sum(0),
    ),
    (
        "all that reach the k-th",
        "each token counts for exactly k experts",
        lambda c, n, s, k: _load(
            c, n, s, k, lambda n, k: (n >= n.topk(k).values[:, -1:]).sum(0).float()
        ),
    ),
    (
        "first choices counted",
        "only first choices are counted",
        lambda c, n, s, k: _load(c, n, s, k, lambda n, k: _hard(n, 1)),
    ),
    (
        "idle experts left out",
        "an expert that nobody chose has a load too, 0",
        lambda c, n, s, k: _load(
            c, n, s, k, lambda n, k: n.topk(k).indices.flatten().bincount().to(n)
        ),
    ),
    ("always counted", "in training a count has no gradient", lambda c, n, s, k: _hard(n, k)),
    (
        "shares of the tokens",
        "the load is a sum over the batch, not a mean",
        lambda c, n, s, k: _load(c, n, s, k, _hard) / len(c),
    ),
    (
        "one number for each token",
        "this is the load of each token",
        lambda c, n, s, k: _prob(c, n, s, k).sum(1) if s is not None else _hard(n, k),
    ),
    (
        "NaN turned to 0",
        "each token counts for exactly k experts",
        lambda c, n, s, k: (
            torch.special.ndtr((c - kth_excluding(n, k)) / (0 if s is None else s))
            .nan_to_num()
            .sum(0)
            if k < c.shape[1]
            else _load(c, n, s, k, _hard)
        ),
    ),
    (
        "softly where nothing is random",
        "without noise there is nothing to ask a probability about",
        lambda c, n, s, k: _load(c, n, s, k, lambda n, k: k * n.softmax(-1).sum(0)),
    ),
]
