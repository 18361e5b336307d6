"""Answers to check_z_loss: a wrong one's docstring is what its verdict must say.

Also true of no_square: square_outside.
Also true of absolute: no_square, square_outside.
Also true of of_log_probabilities: of_probabilities.
Also true of over_experts: summed, over_tokens_and_experts.
Also true of wrong_axis: over_experts.
Also true of squared_logits: over_tokens_and_experts.
Also true of per_token: summed.
"""

import torch


def no_square(logits_TE):
    """the square is missing"""
    return logits_TE.logsumexp(-1).mean()


def absolute(logits_TE):
    """the absolute value is not the square"""
    return logits_TE.logsumexp(-1).abs().mean()


def square_outside(logits_TE):
    """before the mean"""
    return logits_TE.logsumexp(-1).mean() ** 2


def of_probabilities(logits_TE):
    """this is the z-loss of the probabilities"""
    return logits_TE.softmax(-1).logsumexp(-1).square().mean()


def of_log_probabilities(logits_TE):
    """the log-sum-exp is always 0"""
    return logits_TE.log_softmax(-1).logsumexp(-1).square().mean()


def summed(logits_TE):
    """a mean over tokens, not a sum"""
    return logits_TE.logsumexp(-1).square().sum()


def over_tokens_and_experts(logits_TE):
    """divided by the number of experts too"""
    return logits_TE.logsumexp(-1).square().sum() / logits_TE.numel()


def over_experts(logits_TE):
    """by the number of experts instead of the number of tokens"""
    return logits_TE.logsumexp(-1).square().sum() / logits_TE.shape[1]


def wrong_axis(logits_TE):
    """not over the tokens"""
    return logits_TE.logsumexp(0).square().mean()


def squared_logits(logits_TE):
    """these are the squared logits"""
    return logits_TE.square().mean()


def mean_exp(logits_TE):
    """the mean of the exponentials, not their sum"""
    log_E = torch.tensor(logits_TE.shape[1]).log()
    return (logits_TE.logsumexp(-1) - log_E).square().mean()


def half(logits_TE):
    """that is half of it"""
    return right(logits_TE) / 2


def naive(logits_TE):
    """exp overflows"""
    return logits_TE.exp().sum(-1).log().square().mean()


def no_gradient(logits_TE):
    """no gradient reaches the logits"""
    return right(logits_TE.detach())


def half_detached(logits_TE):
    """not the right gradient for the logits"""
    lse_T = logits_TE.logsumexp(-1)
    return (lse_T * lse_T.detach()).mean()


def per_token(logits_TE):
    """one loss for each token: take their mean"""
    return logits_TE.logsumexp(-1).square()


def right(logits_TE):
    return logits_TE.logsumexp(dim=-1).square().mean()


def right_by_hand(logits_TE):
    top_T1 = logits_TE.amax(dim=1, keepdim=True).detach()
    lse_T1 = top_T1 + (logits_TE - top_T1).exp().sum(dim=1, keepdim=True).log()
    return (lse_T1**2).sum() / len(logits_TE)


def right_from_log_softmax(logits_TE):
    lse_T = logits_TE[:, 0] - logits_TE.log_softmax(-1)[:, 0]
    return lse_T.pow(2).mean()


def largest_never_added_back(logits_TE):
    """never added back"""
    top_T1 = logits_TE.amax(-1, keepdim=True)
    return (logits_TE - top_T1).exp().sum(-1).log().square().mean()
