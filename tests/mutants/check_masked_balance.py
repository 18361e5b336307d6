"""Answers to check_masked_balance.

Also true of in_f: one_divided_by_all.
Also true of in_p: one_divided_by_all.
Also true of one_divided_by_all: in_p.
Also true of logits_to_zero: in_p, one_divided_by_all.
"""

import torch

from moe_lite.losses import load_balancing_loss
from moe_lite.routing import Routing


def right_by_leaving_out(logits, expert, mask):
    logits, expert = logits[mask], expert[mask]
    E = logits.shape[1]
    f = expert.flatten().bincount(minlength=E) / expert.numel()
    return E * (f * logits.softmax(-1).mean(0)).sum()


def right_by_weights(logits, expert, mask):
    w, E, K = mask.float(), logits.shape[1], expert.shape[1]
    f = torch.zeros(E).index_add(0, expert.flatten(), w.repeat_interleave(K)) / (K * w.sum())
    return E * (f * (w @ logits.softmax(-1)) / w.sum()).sum()


def right_by_the_library(logits, expert, mask):
    p = logits.softmax(-1)
    return load_balancing_loss(Routing.from_choices(logits, p, expert, p.gather(1, expert)), mask)


def not_used(logits, expert, mask):
    """the mask is not used"""
    return right_by_leaving_out(logits, expert, torch.ones_like(mask))


def in_f(logits, expert, mask):
    """padding still counts in f"""
    E = logits.shape[1]
    f = expert.flatten().bincount(minlength=E) / expert.numel()
    return E * (f * logits[mask].softmax(-1).mean(0)).sum()


def in_p(logits, expert, mask):
    """padding still counts in P"""
    E = logits.shape[1]
    f = expert[mask].flatten().bincount(minlength=E) / expert[mask].numel()
    return E * (f * logits.softmax(-1).mean(0)).sum()


def upside_down(logits, expert, mask):
    """the mask is upside down"""
    return right_by_leaving_out(logits, expert, ~mask)


def divided_by_all(logits, expert, mask):
    """both are divided by all tokens"""
    return right_by_leaving_out(logits, expert, mask) * mask.float().mean() ** 2


def one_divided_by_all(logits, expert, mask):
    """one of the two means is still divided by all tokens"""
    w, E = mask.float()[:, None], logits.shape[1]
    f = expert[mask].flatten().bincount(minlength=E) / expert[mask].numel()
    return E * (f * (w * logits.softmax(-1)).mean(0)).sum()


def logits_to_zero(logits, expert, mask):
    """logits of 0 are not nothing"""
    E = logits.shape[1]
    f = expert[mask].flatten().bincount(minlength=E) / expert[mask].numel()
    return E * (f * (logits * mask[:, None]).softmax(-1).mean(0)).sum()
