"""Answers to check_load_anywhere: a wrong one's docstring is what its verdict must say.

Also true of per_token: divides_by_zero.
"""

import torch

from moe_lite.routers import kth_excluding, prob_in_top_k


def divides_by_zero(clean, noisy, std, k):
    """0 / 0 is not a number"""
    std = torch.zeros_like(clean) if std is None else std
    return torch.special.ndtr((clean - kth_excluding(noisy, k)) / std).sum(0)


def size_one(clean, noisy, std, k):
    """a noise of size 1 where there is none"""
    return prob_in_top_k(clean, noisy, torch.ones_like(clean) if std is None else std, k).sum(0)


def nothing(clean, noisy, std, k):
    """no load at all in evaluation"""
    return (
        clean.new_zeros(clean.shape[1]) if std is None else right_by_scatter(clean, noisy, std, k)
    )


def importance(clean, noisy, std, k):
    """these are sums of gates"""
    if std is not None:
        return prob_in_top_k(clean, noisy, std, k).sum(0)
    top, expert = noisy.topk(k)
    return torch.zeros_like(noisy).scatter(1, expert, top.softmax(-1)).sum(0)


def always_counts(clean, noisy, std, k):
    """in training a count has no gradient"""
    return right_by_scatter(clean, noisy, None, k)


def mean(clean, noisy, std, k):
    """a sum over the batch, not a mean"""
    load = right_by_scatter(clean, noisy, std, k)
    return load if std is None else load / len(clean)


def half_counted(clean, noisy, std, k):
    """count who was chosen"""
    load = right_by_scatter(clean, noisy, std, k)
    return load / k if std is None else load


def ties_count_twice(clean, noisy, std, k):
    """counts all that tie"""
    if std is None:
        return (noisy >= noisy.topk(k).values[:, -1:]).sum(0)
    return prob_in_top_k(clean, noisy, std, k).sum(0)


def per_token(clean, noisy, std, k):
    """return a tensor of shape (5,)"""
    return prob_in_top_k(clean, noisy, std, k)


def detached(clean, noisy, std, k):
    """no gradient reaches the clean scores"""
    return right_by_scatter(clean.detach(), noisy, std, k)


def right_by_scatter(clean, noisy, std, k):
    if std is None:
        return torch.zeros_like(noisy).scatter(1, noisy.topk(k).indices, 1.0).sum(0)
    return prob_in_top_k(clean, noisy, std, k).sum(0)


def right_token_by_token(clean, noisy, std, k):
    load = torch.zeros(clean.shape[1])
    for t in range(len(clean)):
        row = slice(t, t + 1)
        if std is None:
            load[noisy[t].topk(k).indices] += 1
        else:
            load = load + prob_in_top_k(clean[row], noisy[row], std[row], k)[0]
    return load


def hardly_any_noise(clean, noisy, std, k):
    """settles all but a tie"""
    std = torch.full_like(clean, 1e-6) if std is None else std
    return right_by_scatter(clean, noisy, std, k)


def as_many_as_reach_the_kth(clean, noisy, std, k):
    """>= the k-th counts all that tie"""
    if std is not None:
        return right_by_scatter(clean, noisy, std, k)
    return (noisy >= noisy.topk(k).values[:, -1:]).sum(0)
