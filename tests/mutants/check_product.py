"""Answers to check_product: each wrong one says in its docstring what it must be told."""

import torch


def mixture(log_XE):
    """that is a mixture"""
    return log_XE.logsumexp(-1) - torch.tensor(float(log_XE.shape[-1])).log()


def unnormalised(log_XE):
    """the product is not normalised"""
    return log_XE.sum(-1)


def geometric_mean(log_XE):
    """a mean of logarithms is the product's E-th root"""
    return log_XE.mean(-1).log_softmax(0)


def probability(log_XE):
    """return its logarithm"""
    return log_XE.sum(-1).softmax(0)


def underflows(log_XE):
    """exp underflows"""
    density_X = log_XE.exp().prod(-1)
    return (density_X / density_X.sum()).log()


def over_experts(log_XE):
    """this multiplies the points, not the experts"""
    return log_XE.sum(0).log_softmax(0)


def right_short(log_XE):
    return log_XE.sum(-1).log_softmax(0)


def right_step_by_step(log_XE):
    log_X = torch.zeros(len(log_XE))
    for log_expert_X in log_XE.unbind(-1):
        log_X = log_X + log_expert_X
    return log_X - log_X.logsumexp(0)
