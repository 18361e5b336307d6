"""Answers to check_experts_per_token: a wrong one's docstring is what its verdict must say."""

import torch


def _shares(count, total):
    bins = [count == 0, count == 1, count == 2, (count == 3) | (count == 4), count > 4]
    return torch.stack([b.sum() for b in bins]) / total


def only_the_chosen(token_EC, num_tokens):
    """tokens that nobody chose are missing"""
    count = token_EC.unique(return_counts=True)[1]
    return _shares(count, len(count))


def none_is_always_zero(token_EC, num_tokens):
    """tokens that nobody chose are missing"""
    return _shares(token_EC.unique(return_counts=True)[1], num_tokens)


def without_minlength(token_EC, num_tokens):
    """bincount stops at the last token"""
    count = token_EC.flatten().bincount()
    return _shares(count, len(count))


def numbers(token_EC, num_tokens):
    """these are numbers of tokens"""
    return _shares(token_EC.flatten().bincount(minlength=num_tokens), 1)


def of_the_pairs(token_EC, num_tokens):
    """these are shares of the pairs"""
    return _shares(token_EC.flatten().bincount(minlength=num_tokens), token_EC.numel())


def of_the_experts(token_EC, num_tokens):
    """this counts each expert's tokens, not each token's"""
    return _shares(torch.tensor([len(row) for row in token_EC]), len(token_EC))


def other_bins(token_EC, num_tokens):
    """the fourth share is of three or four"""
    count = token_EC.flatten().bincount(minlength=num_tokens).clamp(max=4)
    return count.bincount(minlength=5) / num_tokens


def right_by_bincount(token_EC, num_tokens):
    return _shares(token_EC.flatten().bincount(minlength=num_tokens), num_tokens)


def right_by_counting(token_EC, num_tokens):
    shares = torch.zeros(5)
    for n in range(num_tokens):
        experts = int((token_EC == n).sum())
        shares[[0, 1, 2, 3, 3][experts] if experts < 5 else 4] += 1
    return shares / num_tokens
