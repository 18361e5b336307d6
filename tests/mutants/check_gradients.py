"""Answers to check_gradients: each wrong one says in its docstring what it must be told."""

import torch


def _parts(logits_TE, out_TEO, target_TO):
    rest_TEO = target_TO[:, None] - out_TEO
    h_TE = (logits_TE - rest_TEO.square().sum(-1) / 2).softmax(-1)
    return logits_TE.softmax(-1), h_TE, rest_TEO


def gate_uphill(logits_TE, out_TEO, target_TO):
    """this is h - p"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return h - p, -h[..., None] * rest


def gate_forgets_the_prior(logits_TE, out_TEO, target_TO):
    """so p - h"""
    _, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return -h, -h[..., None] * rest


def by_p(logits_TE, out_TEO, target_TO):
    """the softmax in between is missing"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return -h / p, -h[..., None] * rest


def experts_uphill(logits_TE, out_TEO, target_TO):
    """the derivative is negative where d is larger"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return p - h, h[..., None] * rest


def prior_for_posterior(logits_TE, out_TEO, target_TO):
    """p where h belongs"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return p - h, -p[..., None] * rest


def of_the_second_error(logits_TE, out_TEO, target_TO):
    """that is E2's derivative: each expert is weighted by p, not by h"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return p - h, -2 * p[..., None] * rest


def of_the_first_error(logits_TE, out_TEO, target_TO):
    """that is E1's derivative: all are told the blend's error"""
    p, h, _ = _parts(logits_TE, out_TEO, target_TO)
    rest_TO = target_TO - (p[..., None] * out_TEO).sum(1)
    return p - h, -2 * p[..., None] * rest_TO[:, None]


def everyone(logits_TE, out_TEO, target_TO):
    """whoever is responsible"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return p - h, -rest


def twice(logits_TE, out_TEO, target_TO):
    """a factor of 2 too much"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return p - h, -2 * h[..., None] * rest


def one_tensor(logits_TE, out_TEO, target_TO):
    """return two tensors"""
    p, h, _ = _parts(logits_TE, out_TEO, target_TO)
    return p - h


def swapped(logits_TE, out_TEO, target_TO):
    """the two are swapped"""
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return -h[..., None] * rest, p - h


def right_by_hand(logits_TE, out_TEO, target_TO):
    p, h, rest = _parts(logits_TE, out_TEO, target_TO)
    return p - h, -h[..., None] * rest


def right_by_autograd(logits_TE, out_TEO, target_TO):
    leaves = [logits_TE.clone().requires_grad_(), out_TEO.clone().requires_grad_()]
    off_TE = (target_TO[:, None] - leaves[1]).square().sum(-1)
    error_T = -(leaves[0].log_softmax(-1) - off_TE / 2).logsumexp(-1)
    return torch.autograd.grad(error_T.sum(), leaves)
