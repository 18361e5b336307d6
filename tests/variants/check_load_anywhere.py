"""Unusual right answers to check_load_anywhere; a docstring is a phrase of what is said."""

import torch

from moe_lite.routers import prob_in_top_k


def last_of_a_tie(clean, noisy, std, k):
    if std is not None:
        return prob_in_top_k(clean, noisy, std, k).sum(0)
    chosen = noisy.shape[1] - 1 - noisy.flip(-1).topk(k).indices
    return [int((chosen == e).sum()) for e in range(noisy.shape[1])]


def counts_as_integers(clean, noisy, std, k):
    if std is not None:
        return prob_in_top_k(clean, noisy, std, k).sum(0)
    return torch.bincount(
        noisy.argsort(-1, descending=True)[:, :k].flatten(), minlength=noisy.shape[1]
    )
