"""Answers to check_z_gradient: a wrong one's docstring is what its verdict must say.

Also true of no_inner: inner_logits.
Also true of inner_logits: no_inner.
"""

import torch


def no_two(z):
    """the 2 of the square is missing"""
    return right(z) / 2


def no_mean(z):
    """the mean's 1/T is missing"""
    return right(z) * len(z)


def no_square(z):
    """this is the gradient without the square"""
    return z.softmax(-1) / len(z)


def squared_factor(z):
    """the factor is the log-sum-exp, not its square"""
    return 2 * z.logsumexp(-1, keepdim=True) ** 2 * z.softmax(-1) / len(z)


def no_inner(z):
    """the inner derivative is missing"""
    return (2 * z.logsumexp(-1, keepdim=True) / len(z)).expand_as(z)


def inner_logits(z):
    """the inner derivative is the softmax, not the logits"""
    return 2 * z.logsumexp(-1, keepdim=True) * z / len(z)


def cross_entropy(z):
    """that is a cross entropy's gradient"""
    one_hot = torch.nn.functional.one_hot(z.argmax(-1), z.shape[1])
    return 2 * z.logsumexp(-1, keepdim=True) * (z.softmax(-1) - one_hot) / len(z)


def over_experts_too(z):
    """divided by the number of experts too"""
    return right(z) / z.shape[1]


def downhill(z):
    """this points downhill"""
    return -right(z)


def neither(z):
    """both the 2 and the 1/T forgotten"""
    return z.logsumexp(-1, keepdim=True) * z.softmax(-1)


def summed(z):
    """return a tensor of shape (3, 4)"""
    return right(z).sum(-1)


def right(z):
    return 2 * z.logsumexp(-1, keepdim=True) * z.softmax(-1) / len(z)


def right_by_exp(z):
    lse = z.logsumexp(-1)
    return torch.einsum("t,te->te", 2 * lse / lse.numel(), torch.exp(z - lse[:, None]))


def right_by_autograd(z):
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(leaf.logsumexp(-1).square().mean(), leaf)[0]
