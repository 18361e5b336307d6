"""Answers to check_balance_loss; the first mutants are real code bases'."""

import torch
import torch.nn.functional as F

from moe_lite.losses import load_balancing_loss
from moe_lite.routing import Routing


def _parts(logits, expert):
    (T, E), K = logits.shape, expert.shape[1]
    f = expert.flatten().bincount(minlength=E) / (T * K)
    return f, logits.softmax(-1), E, K


def right_by_one_hot(logits, expert):
    E = logits.shape[1]
    f = F.one_hot(expert, E).float().mean((0, 1))
    return E * f @ logits.softmax(-1).mean(0)


def right_by_the_library(logits, expert):
    p = logits.softmax(-1)
    return load_balancing_loss(Routing.from_choices(logits, p, expert, p.gather(1, expert)))


def right_as_a_loop(logits, expert):
    p, (T, E) = logits.softmax(-1), logits.shape
    total = 0.0
    for e in range(E):
        total = total + (expert == e).sum() / expert.numel() * p[:, e].sum() / T
    return E * total


def right_as_the_mean_price(logits, expert):
    f, p, E, _ = _parts(logits, expert)
    return E * (p @ f).mean()


def f_adds_up_to_k(logits, expert):
    """f is not divided by K"""
    f, p, E, K = _parts(logits, expert)
    return E * (K * f * p.mean(0)).sum()


def p_of_the_masked_softmax(logits, expert):
    """P comes from the chosen probabilities alone, the others set to 0"""
    f, p, E, _ = _parts(logits, expert)
    chosen = torch.zeros_like(p).scatter(1, expert, p.gather(1, expert))
    return E * (f * chosen.mean(0)).sum()


def p_of_the_top_k_weights(logits, expert):
    """P comes from the renormalised top-k weights"""
    f, p, E, _ = _parts(logits, expert)
    weights = logits.gather(1, expert).softmax(-1)
    return E * (f * torch.zeros_like(p).scatter(1, expert, weights).mean(0)).sum()


def mean_over_experts(logits, expert):
    """Switch multiplies the sum by N"""
    f, p, _, _ = _parts(logits, expert)
    return (f * p.mean(0)).mean()


def no_factor(logits, expert):
    """the factor N (the number of experts) is missing"""
    f, p, _, _ = _parts(logits, expert)
    return (f * p.mean(0)).sum()


def first_choices(logits, expert):
    """f counts each token's first choice only; here all K count"""
    f, p, E, _ = _parts(logits, expert[:, :1])
    return E * (f * p.mean(0)).sum()


def counts_the_logits_again(logits, expert):
    """f is counted from the logits; the choices are given"""
    f, p, E, _ = _parts(logits, logits.topk(expert.shape[1]).indices)
    return E * (f * p.mean(0)).sum()


def beliefs_twice(logits, expert):
    """both factors are probabilities; f counts choices"""
    P = logits.softmax(-1).mean(0)
    return len(P) * (P * P).sum()


def counts_twice(logits, expert):
    """both factors are counts"""
    f, _, E, _ = _parts(logits, expert)
    return E * (f * f).sum()


def over_the_tokens(logits, expert):
    """the softmax runs over the tokens"""
    f, _, E, _ = _parts(logits, expert)
    return E * (f * logits.softmax(0).mean(0)).sum()


def sum_of_probabilities(logits, expert):
    """P is a sum over the tokens"""
    f, p, E, _ = _parts(logits, expert)
    return E * (f * p.sum(0)).sum()


def detached(logits, expert):
    """no gradient reaches the logits"""
    return right_by_one_hot(logits.detach(), expert)


def a_vector(logits, expert):
    """add them up"""
    f, p, E, _ = _parts(logits, expert)
    return E * f * p.mean(0)


def half_detached(logits, expert):
    """not the right gradient for the logits"""
    f, p, E, _ = _parts(logits, expert)
    return E * (f * (p / 2 + p.detach() / 2).mean(0)).sum()


def token_by_token(logits, expert):
    """multiplied token by token, then averaged"""
    E = logits.shape[1]
    f_TE = torch.nn.functional.one_hot(expert, E).sum(1) / expert.shape[1]
    return E * (f_TE * logits.softmax(-1)).sum(-1).mean()
