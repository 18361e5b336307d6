"""Answers to check_replay_weights: a wrong one's docstring is what its verdict must say.

Also true of chooses_anew: sorted_best_first.
Also true of masked_with_zero: softmax_over_all.
Also true of by_mask_in_order_of_number: sorted_best_first.
Also true of all_alike: no_gradient.
Also true of logits_only: not_divided.
Also true of not_divided: overflows.
Also true of whole_rows: by_mask_in_order_of_number.
"""

import torch


def chooses_anew(logits_TE, expert_TK):
    """the router would choose now"""
    return logits_TE.topk(expert_TK.shape[1]).values.softmax(1)


def softmax_over_all(logits_TE, expert_TK):
    """the softmax is over all experts"""
    return logits_TE.softmax(1).gather(1, expert_TK)


def masked_with_zero(logits_TE, expert_TK):
    """a logit of 0 is not nothing"""
    mask_TE = torch.zeros_like(logits_TE).scatter(1, expert_TK, 1.0)
    return (logits_TE * mask_TE).softmax(1).gather(1, expert_TK)


def sorted_best_first(logits_TE, expert_TK):
    """weights go to the wrong experts"""
    return logits_TE.gather(1, expert_TK).softmax(1).sort(1, descending=True).values


def by_mask_in_order_of_number(logits_TE, expert_TK):
    """order of number"""
    mask_TE = torch.zeros_like(logits_TE).scatter(1, expert_TK, 1.0).bool()
    return logits_TE[mask_TE].view(expert_TK.shape).softmax(1)


def all_alike(logits_TE, expert_TK):
    """all weigh the same"""
    return torch.full(expert_TK.shape, 1 / expert_TK.shape[1])


def logits_only(logits_TE, expert_TK):
    """these are logits"""
    return logits_TE.gather(1, expert_TK)


def over_the_tokens(logits_TE, expert_TK):
    """not over the tokens"""
    return logits_TE.gather(1, expert_TK).softmax(0)


def not_divided(logits_TE, expert_TK):
    """nothing was divided"""
    return logits_TE.gather(1, expert_TK).exp()


def no_gradient(logits_TE, expert_TK):
    """gradient"""
    return logits_TE.detach().gather(1, expert_TK).softmax(1)


def whole_rows(logits_TE, expert_TK):
    """shape"""
    mask_TE = torch.zeros_like(logits_TE).scatter(1, expert_TK, 1.0).bool()
    return logits_TE.masked_fill(~mask_TE, -torch.inf).softmax(1)


def overflows(logits_TE, expert_TK):
    """NaN"""
    weight_TK = logits_TE.gather(1, expert_TK).exp()
    return weight_TK / weight_TK.sum(1, keepdim=True)


def right_by_mask(logits_TE, expert_TK):
    mask_TE = torch.zeros_like(logits_TE).scatter(1, expert_TK, 1.0).bool()
    return logits_TE.masked_fill(~mask_TE, -torch.inf).softmax(1).gather(1, expert_TK)


def right_by_log_sum_exp(logits_TE, expert_TK):
    own_TK = logits_TE.gather(1, expert_TK)
    return (own_TK - own_TK.logsumexp(1, keepdim=True)).exp()


def right_token_by_token(logits_TE, expert_TK):
    return torch.stack([z_E[e_K].softmax(0) for z_E, e_K in zip(logits_TE, expert_TK, strict=True)])
