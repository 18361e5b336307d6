"""Answers to check_score_gradient: a wrong one has in its docstring what its verdict must say.

Also true of of_the_probability: twice.
"""

import torch


def no_baseline(loss_S, b_S, p, baseline):
    """the baseline is not used"""
    return loss_S * (b_S - p)


def baseline_added(loss_S, b_S, p, baseline):
    """the baseline is added"""
    return (loss_S + baseline) * (b_S - p)


def uphill(loss_S, b_S, p, baseline):
    """that is uphill"""
    return (loss_S - baseline) * (p - b_S)


def of_the_probability(loss_S, b_S, p, baseline):
    """the slope for the probability"""
    return (loss_S - baseline) * (b_S - p) / (p * (1 - p))


def twice(loss_S, b_S, p, baseline):
    """p (1 - p) is there already"""
    return (loss_S - baseline) * (b_S - p) * p * (1 - p)


def right(loss_S, b_S, p, baseline):
    return (b_S - p) * (loss_S - baseline)


def right_by_autograd(loss_S, b_S, p, baseline):
    slopes = []
    for loss, b in zip(loss_S, b_S, strict=True):
        a = torch.logit(p.double()).requires_grad_()
        log_p = torch.distributions.Bernoulli(logits=a).log_prob(b.double())
        slopes.append((loss - baseline) * torch.autograd.grad(log_p, a)[0])
    return torch.stack(slopes)
