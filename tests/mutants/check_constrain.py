"""Answers to check_constrain: each wrong one says in its docstring what its verdict must say.

Also true of over_tokens: not_renormalised.
"""

import torch


def _closed(gate_TE, shut_E):
    open_TE = gate_TE.masked_fill(shut_E, 0)
    return open_TE / open_TE.sum(-1, keepdim=True)


def not_renormalised(gate_TE, total_E, margin):
    """no longer add up to 1"""
    return gate_TE.masked_fill(total_E - total_E.mean() > margin, 0)


def laggards_closed(gate_TE, total_E, margin):
    """lag behind are closed"""
    return _closed(gate_TE, total_E - total_E.mean() < -margin)


def no_margin(gate_TE, total_E, margin):
    """every expert above the mean is closed, whatever the margin"""
    return _closed(gate_TE, total_E > total_E.mean())


def no_mean(gate_TE, total_E, margin):
    """totals are compared with the margin, not mean plus it"""
    return _closed(gate_TE, total_E > margin)


def over_tokens(gate_TE, total_E, margin):
    """sum over the experts"""
    open_TE = gate_TE * (total_E - total_E.mean() <= margin)
    return open_TE / open_TE.sum(0, keepdim=True)


def untouched(gate_TE, total_E, margin):
    """not applied"""
    return gate_TE.clone()


def right(gate_TE, total_E, margin):
    return _closed(gate_TE, total_E > total_E.mean() + margin)


def right_in_logits(gate_TE, total_E, margin):
    logits = gate_TE.log().masked_fill(total_E - total_E.mean() > margin, -torch.inf)
    return logits.softmax(-1)


def masked_softmax_of_gates(gate_TE, total_E, margin):
    """the open gates went through a softmax"""
    return gate_TE.masked_fill(total_E - total_E.mean() > margin, -float("inf")).softmax(-1)


def closed_at_the_margin(gate_TE, total_E, margin):
    """exactly the margin ahead is still open"""
    open_TE = gate_TE * (total_E - total_E.mean() < margin)
    return open_TE / open_TE.sum(-1, keepdim=True)
