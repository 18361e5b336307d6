"""Answers to check_rank_weights: a wrong one's docstring is what its verdict must say.

Also true of mean_of_means: upside_down.
Also true of as_for_sums: mean_of_means, upside_down.
Also true of upside_down: mean_of_means.
Also true of a_number: mean_of_means, as_for_sums, upside_down.
"""

import torch


def mean_of_means(tokens_R):
    """a mean of means"""
    return torch.ones(len(tokens_R))


def share_alone(tokens_R):
    """the gradient is R times too small"""
    return tokens_R / tokens_R.sum()


def as_for_sums(tokens_R):
    """each rank has a mean already"""
    return torch.full((len(tokens_R),), len(tokens_R) / tokens_R.sum().item())


def upside_down(tokens_R):
    """a rank with few tokens would count more"""
    inverse = 1 / tokens_R.clamp(min=1)
    return len(tokens_R) * inverse / inverse.sum()


def counts(tokens_R):
    """the tokens themselves are no weights"""
    return tokens_R.float()


def a_number(tokens_R):
    """return a tensor of shape (2,)"""
    return len(tokens_R) / tokens_R.sum()


def right_by_share(tokens_R):
    return len(tokens_R) * tokens_R / tokens_R.sum()


def right_by_mean(tokens_R):
    tokens_R = tokens_R.double()
    return tokens_R / tokens_R.mean()
