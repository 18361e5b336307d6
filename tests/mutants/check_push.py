"""Answers to check_push.

Also true of of_p_alone: only_its_own, no_p, the_mean_token.
Also true of only_its_own: the_diagonal_alone.
Also true of against_one_over_e: only_its_own, against_the_batch.
Also true of against_the_batch: only_its_own, against_one_over_e.
Also true of one_for_all: only_its_own, against_one_over_e, against_the_batch, the_mean_token.
Also true of the_mean_token: only_its_own, against_one_over_e, against_the_batch.
Also true of the_diagonal_alone: only_its_own.
"""

import torch


def right_by_hand(logits, f):
    (T, E), p = logits.shape, logits.softmax(-1)
    return E / T * p * (f - (p * f).sum(-1, keepdim=True))


def right_by_autograd(logits, f):
    leaf = logits.detach().clone().requires_grad_()
    loss = len(f) * (f * leaf.softmax(-1).mean(0)).sum()
    return torch.autograd.grad(loss, leaf)[0]


def right_by_the_jacobian(logits, f):
    T, E = logits.shape
    p = logits.softmax(-1)
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return (jacobian @ f.expand(T, E)[:, :, None])[..., 0] * E / T


def downhill(logits, f):
    """that is the way down"""
    return -right_by_hand(logits, f)


def of_p_alone(logits, f):
    """that is the slope by P; the softmax is to be passed"""
    return (len(f) / len(logits) * f).expand_as(logits)


def only_its_own(logits, f):
    """raising one logit lowers the token's other probabilities"""
    return len(f) / len(logits) * logits.softmax(-1) * f


def against_one_over_e(logits, f):
    """a token compares with its average of f, not 1 / E"""
    return len(f) / len(logits) * logits.softmax(-1) * (f - 1 / len(f))


def against_the_batch(logits, f):
    """that is the average over the batch"""
    p = logits.softmax(-1)
    return len(f) / len(logits) * p * (f - p.mean(0) @ f)


def no_p(logits, f):
    """the factor p is missing"""
    p = logits.softmax(-1)
    return len(f) / len(logits) * (f - (p * f).sum(-1, keepdim=True))


def no_mean(logits, f):
    """so each has a T-th of the slope"""
    return len(logits) * right_by_hand(logits, f)


def no_factor(logits, f):
    """the factor E in front of the loss is missing"""
    return right_by_hand(logits, f) / len(f)


def one_for_all(logits, f):
    """return a tensor of shape"""
    P = logits.softmax(-1).mean(0)
    return P * (f - P @ f)


def the_mean_token(logits, f):
    """every token has probabilities of its own"""
    P = logits.softmax(-1).mean(0)
    return (len(f) / len(logits) * P * (f - P @ f)).expand_as(logits)


def the_diagonal_alone(logits, f):
    """the diagonal of the softmax's derivative alone"""
    (T, E), p = logits.shape, logits.softmax(-1)
    return E / T * p * (1 - p) * f
