"""Answers to check_disable_top: a wrong one's docstring is a phrase of its verdict.

Also true of not_replaced: gate_zero_instead_of_another.
Also true of gate_zero_instead_of_another: not_replaced.
"""

import math

import torch


def nothing_disabled(logits_TE, k, ratio):
    """nothing is disabled"""
    return right_by_masking(logits_TE, k, 0)


def masked_with_zero(logits_TE, k, ratio):
    """use -inf"""
    best_TM = logits_TE.topk(round(ratio * logits_TE.shape[1])).indices
    top_TK, expert_TK = logits_TE.scatter(1, best_TM, 0.0).topk(k)
    return top_TK.softmax(-1), expert_TK


def the_busiest_for_all(logits_TE, k, ratio):
    """it is each token's own best"""
    load_E = logits_TE.topk(k).indices.flatten().bincount(minlength=logits_TE.shape[1]).float()
    load_E -= 1e-3 * torch.arange(len(load_E))
    busy_M = load_E.topk(round(ratio * len(load_E))).indices
    masked_TE = logits_TE.clone()
    masked_TE[:, busy_M] = -torch.inf
    top_TK, expert_TK = masked_TE.topk(k)
    return top_TK.softmax(-1), expert_TK


def ratio_of_the_chosen(logits_TE, k, ratio):
    """of all E experts"""
    return right_by_masking(logits_TE, k, ratio * k / logits_TE.shape[1])


def the_least_likely(logits_TE, k, ratio):
    """these are the k least likely"""
    low_TK, expert_TK = logits_TE.topk(k, largest=False)
    return low_TK.softmax(-1), expert_TK


def not_replaced(logits_TE, k, ratio):
    """each token keeps its k experts"""
    off = round(ratio * logits_TE.shape[1])
    top_TK, expert_TK = logits_TE.topk(k)
    return top_TK[:, off:].softmax(-1), expert_TK[:, off:]


def gate_zero_instead_of_another(logits_TE, k, ratio):
    """the disabled ones are not replaced"""
    off = round(ratio * logits_TE.shape[1])
    top_TK, expert_TK = logits_TE.topk(k)
    top_TK[:, :off] = -torch.inf
    return top_TK.softmax(-1).nan_to_num(), expert_TK


def not_renormalised(logits_TE, k, ratio):
    """over those that are now chosen"""
    expert_TK = right_by_masking(logits_TE, k, ratio)[1]
    return logits_TE.softmax(-1).gather(1, expert_TK), expert_TK


def right_by_masking(logits_TE, k, ratio):
    best_TM = logits_TE.topk(round(ratio * logits_TE.shape[1])).indices
    top_TK, expert_TK = logits_TE.scatter(1, best_TM, -torch.inf).topk(k)
    return top_TK.softmax(-1), expert_TK


def right_by_sorting(logits_TE, k, ratio):
    off = round(ratio * logits_TE.shape[1])
    sorted_TE, order_TE = logits_TE.softmax(-1).sort(descending=True)
    gate_TK = sorted_TE[:, off : off + k]
    return gate_TK / gate_TK.sum(-1, keepdim=True), order_TE[:, off : off + k]


def cut_to_whole(logits_TE, k, ratio):
    """was cut to a whole number"""
    off = int(ratio * logits_TE.shape[1])
    top = logits_TE.scatter(1, logits_TE.topk(off).indices, -torch.inf).topk(k)
    return top.values.softmax(-1), top.indices


def rounded_up(logits_TE, k, ratio):
    """was rounded up"""
    off = math.ceil(ratio * logits_TE.shape[1])
    top = logits_TE.scatter(1, logits_TE.topk(off).indices, -torch.inf).topk(k)
    return top.values.softmax(-1), top.indices
