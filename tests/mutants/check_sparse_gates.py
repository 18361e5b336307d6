"""Answers to check_sparse_gates: a wrong one's docstring is what its verdict must say.

Also true of masked_with_zero: dense, at_least_the_kth.
Also true of softmax_first: at_least_the_kth.
Also true of dense: at_least_the_kth.
Also true of lowest: at_least_the_kth.
Also true of over_tokens: softmax_first, at_least_the_kth.
Also true of kept_scores: masked_with_zero, softmax_first, at_least_the_kth.
Also true of all_alike: at_least_the_kth.
"""

import torch


def masked_with_zero(scores_TE, k):
    """exp(0) is 1"""
    kth_T1 = scores_TE.topk(k).values[:, -1:]
    return scores_TE.where(scores_TE >= kth_T1, 0.0).softmax(-1)


def softmax_first(scores_TE, k):
    """the softmax ran before the others were dropped"""
    probs_TE = scores_TE.softmax(-1)
    return probs_TE.where(probs_TE >= probs_TE.topk(k).values[:, -1:], 0.0)


def dense(scores_TE, k):
    """nothing was dropped"""
    return scores_TE.softmax(-1)


def lowest(scores_TE, k):
    """these are the lowest scores"""
    kth_T1 = scores_TE.topk(k, largest=False).values[:, -1:]
    return scores_TE.where(scores_TE <= kth_T1, -torch.inf).softmax(-1)


def over_tokens(scores_TE, k):
    """over the tokens (dim 0)"""
    kth_T1 = scores_TE.topk(k).values[:, -1:]
    return scores_TE.where(scores_TE >= kth_T1, -torch.inf).softmax(0).nan_to_num()


def kept_scores(scores_TE, k):
    """a gate is their softmax"""
    return scores_TE.where(scores_TE >= scores_TE.topk(k).values[:, -1:], 0.0)


def all_alike(scores_TE, k):
    """each chosen expert counts the same"""
    return (scores_TE >= scores_TE.topk(k).values[:, -1:]) / k


def only_the_chosen(scores_TE, k):
    """these are the gates of the chosen alone"""
    return scores_TE.topk(k).values.softmax(-1)


def detached(scores_TE, k):
    """no gradient reaches the scores"""
    return right_by_masking(scores_TE.detach(), k)


def straight_through(scores_TE, k):
    """not the right gradient for the"""
    return right_by_masking(scores_TE, k).detach() + scores_TE - scores_TE.detach()


def right_by_masking(scores_TE, k):
    mask_TE = torch.full_like(scores_TE, -torch.inf).scatter(1, scores_TE.topk(k).indices, 0.0)
    return (scores_TE + mask_TE).softmax(1)


def right_by_scattering(scores_TE, k):
    top_TK, expert_TK = scores_TE.sort(dim=1, descending=True)
    gate_TK = top_TK[:, :k].exp() / top_TK[:, :k].exp().sum(1, keepdim=True)
    return torch.zeros_like(scores_TE).scatter(1, expert_TK[:, :k], gate_TK)


def at_least_the_kth(scores_TE, k):
    """keeps all that tie"""
    kth_T1 = scores_TE.topk(k).values[:, -1:]
    return scores_TE.where(scores_TE >= kth_T1, -torch.inf).softmax(-1)


def twice(scores_TE, k):
    """a second softmax"""
    return right_by_masking(scores_TE, k).softmax(-1)
