"""Answers to check_softmax_order: each wrong one says in its docstring what it must be told.

Also true of over_tokens: softmax_first_and_undivided.
Also true of zeroed: softmax_first_and_undivided.
Also true of no_softmax: softmax_first_and_undivided.
Also true of sorted_by_number: best_anywhere.
Also true of best_anywhere: sorted_by_number.
"""

import torch


def softmax_first_and_undivided(logits_TE, k):
    """do not add up to 1"""
    return tuple(logits_TE.softmax(-1).topk(k))


def over_tokens(logits_TE, k):
    """the softmax runs over the tokens"""
    top_TK, expert_TK = logits_TE.topk(k)
    return top_TK.softmax(dim=0), expert_TK


def zeroed(logits_TE, k):
    """exp(0) is 1"""
    expert_TK = logits_TE.topk(k).indices
    kept_TE = torch.zeros_like(logits_TE).scatter(-1, expert_TK, 1.0)
    return (logits_TE * kept_TE).softmax(-1).gather(-1, expert_TK), expert_TK


def no_softmax(logits_TE, k):
    """these are the logits themselves"""
    return tuple(logits_TE.topk(k))


def sigmoid(logits_TE, k):
    """in a softmax the experts compete"""
    top_TK, expert_TK = logits_TE.topk(k)
    gate_TK = top_TK.sigmoid()
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def unstable(logits_TE, k):
    """exp overflows"""
    top_TK, expert_TK = logits_TE.topk(k)
    return top_TK.exp() / top_TK.exp().sum(-1, keepdim=True), expert_TK


def no_grad(logits_TE, k):
    """no gradient reaches the logits"""
    with torch.no_grad():
        return right_short(logits_TE, k)


def of_the_least(logits_TE, k):
    """the least likely experts"""
    low_TK, expert_TK = logits_TE.topk(k, largest=False)
    return low_TK.softmax(-1), expert_TK


def sorted_by_number(logits_TE, k):
    """in order of their numbers"""
    expert_TK = logits_TE.topk(k).indices.sort(dim=-1).values
    return logits_TE.gather(-1, expert_TK).softmax(-1), expert_TK


def right_short(logits_TE, k):
    top_TK, expert_TK = logits_TE.topk(k, dim=-1)
    return top_TK.softmax(dim=-1), expert_TK


def right_by_hand(logits_TE, k):
    expert_TK = logits_TE.argsort(dim=-1, descending=True)[:, :k]
    top_TK = torch.take_along_dim(logits_TE, expert_TK, dim=-1)
    weight_TK = (top_TK - top_TK[:, :1]).exp()
    return [weight_TK / weight_TK.sum(-1, keepdim=True), expert_TK]


def best_anywhere(logits_TE, k):
    """the right experts; put the best first"""
    gate_TK, expert_TK = logits_TE.topk(k, sorted=False)
    return gate_TK.softmax(-1), expert_TK


def best_in_the_middle(logits_TE, k):
    """the right experts; put the best first"""
    gate_TK, expert_TK = right_short(logits_TE, k)
    return gate_TK.roll(1, -1), expert_TK.roll(1, -1)
