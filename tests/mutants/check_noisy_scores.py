"""Answers to check_noisy_scores: a wrong one's docstring is what its verdict must say.

Also true of all: own_draw.
Also true of wrong_weights: size_detached.
Also true of no_noise: same_everywhere, size_detached.
Also true of multiplied: wrong_weights.
Also true of same_everywhere: size_detached.
Also true of shifted: no_noise.
Also true of own_draw: no_noise, shifted.
"""

import torch
import torch.nn.functional as F


def wrong_weights(x, g, n, eps, training):
    """the noise is scaled by the gate's own weights"""
    return x @ g.T + eps * F.softplus(x @ g.T) * training


def noise_in_evaluation(x, g, n, eps, training):
    """there is noise in evaluation"""
    return x @ g.T + eps * F.softplus(x @ n.T)


def no_noise(x, g, n, eps, training):
    """there is no noise at all"""
    return x @ g.T


def turned_round(x, g, n, eps, training):
    """the two are exchanged"""
    return right(x, g, n, eps, not training)


def no_softplus(x, g, n, eps, training):
    """without the softplus"""
    return x @ g.T + eps * (x @ n.T) * training


def exponential(x, g, n, eps, training):
    """that is exp, not softplus"""
    return x @ g.T + eps * (x @ n.T).exp() * training


def variance(x, g, n, eps, training):
    """no square root of it"""
    return x @ g.T + eps * F.softplus(x @ n.T).sqrt() * training


def multiplied(x, g, n, eps, training):
    """noise is added, not multiplied"""
    return x @ g.T * (1 + eps * F.softplus(x @ n.T) * training)


def same_everywhere(x, g, n, eps, training):
    """the same size everywhere"""
    return x @ g.T + eps * training


def shifted(x, g, n, eps, training):
    """that is a shift, not noise"""
    return x @ g.T + F.softplus(x @ n.T) * training


def own_draw(x, g, n, eps, training):
    """not clean + normal × softplus"""
    return x @ g.T + torch.full_like(eps, 0.1) * F.softplus(x @ n.T) * training


def size_detached(x, g, n, eps, training):
    """no gradient reaches w_noise"""
    return x @ g.T + eps * F.softplus(x @ n.detach().T) * training


def transposed(x, g, n, eps, training):
    """transposed"""
    return right(x, g, n, eps, training).T


def right(x, g, n, eps, training):
    return x @ g.T + eps * F.softplus(x @ n.T) * training


def right_by_hand(x, g, n, eps, training):
    scores = torch.einsum("td,ed->te", x, g)
    if training:
        scores = scores + eps * torch.log1p(torch.exp(torch.einsum("td,ed->te", x, n)))
    return scores


def weights_swapped(x, g, n, eps, training):
    """w_gate and w_noise are swapped"""
    return right(x, n, g, eps, training)
