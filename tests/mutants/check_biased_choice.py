"""Answers to check_biased_choice: a wrong one's docstring is a phrase of its verdict.

Also true of leaks_and_is_not_normalised: not_normalised.
Also true of inside_the_sigmoid: leaks.
Also true of chosen_by_logit: not_normalised.
Also true of softmax_of_the_chosen: not_normalised.
"""

import torch


def leaks(logits_TE, bias_E, k):
    """the bias leaks into the gates"""
    gate_TK, expert_TK = (logits_TE.sigmoid() + bias_E).topk(k)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def leaks_and_is_not_normalised(logits_TE, bias_E, k):
    """the bias leaks into the gates"""
    return tuple((logits_TE.sigmoid() + bias_E).topk(k))


def not_normalised(logits_TE, bias_E, k):
    """not divided by the sum of the selected"""
    scores_TE = logits_TE.sigmoid()
    expert_TK = (scores_TE + bias_E).topk(k).indices
    return scores_TE.gather(1, expert_TK), expert_TK


def normalised_over_all(logits_TE, bias_E, k):
    """over the k selected, not over all experts"""
    scores_TE = logits_TE.sigmoid()
    expert_TK = (scores_TE + bias_E).topk(k).indices
    return (scores_TE / scores_TE.sum(-1, keepdim=True)).gather(1, expert_TK), expert_TK


def without_bias(logits_TE, bias_E, k):
    """the bias is not used"""
    return right_by_gather(logits_TE, 0 * bias_E, k)


def subtracted(logits_TE, bias_E, k):
    """the wrong way round"""
    return right_by_gather(logits_TE, -bias_E, k)


def inside_the_sigmoid(logits_TE, bias_E, k):
    """add it after the sigmoid"""
    gate_TK, expert_TK = (logits_TE + bias_E).sigmoid().topk(k)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def chosen_by_logit(logits_TE, bias_E, k):
    """add it after the sigmoid"""
    expert_TK = (logits_TE + bias_E).topk(k).indices
    gate_TK = logits_TE.sigmoid().gather(1, expert_TK)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def softmax_of_the_chosen(logits_TE, bias_E, k):
    """these gates are a softmax"""
    expert_TK = (logits_TE.sigmoid() + bias_E).topk(k).indices
    return logits_TE.gather(1, expert_TK).softmax(-1), expert_TK


def sum_detached(logits_TE, bias_E, k):
    """the sum that is divided by is detached"""
    scores_TE = logits_TE.sigmoid()
    expert_TK = (scores_TE + bias_E).topk(k).indices
    gate_TK = scores_TE.gather(1, expert_TK)
    return gate_TK / gate_TK.sum(-1, keepdim=True).detach(), expert_TK


def detached(logits_TE, bias_E, k):
    """no gradient reaches the logits"""
    return right_by_gather(logits_TE.detach(), bias_E, k)


def one_tensor(logits_TE, bias_E, k):
    """return two tensors"""
    return right_by_gather(logits_TE, bias_E, k)[0]


def swapped(logits_TE, bias_E, k):
    """experts are whole numbers"""
    return right_by_gather(logits_TE, bias_E, k)[::-1]


def always_the_first(logits_TE, bias_E, k):
    """the same expert twice"""
    gate_TK, expert_TK = right_by_gather(logits_TE, bias_E, k)
    return gate_TK, 0 * expert_TK


def counted_from_one(logits_TE, bias_E, k):
    """numbered from 0 to"""
    gate_TK, expert_TK = right_by_gather(logits_TE, bias_E, k)
    return gate_TK, expert_TK + logits_TE.shape[1]


def right_by_gather(logits_TE, bias_E, k):
    scores_TE = logits_TE.sigmoid()
    expert_TK = (scores_TE + bias_E).topk(k).indices
    gate_TK = scores_TE.gather(1, expert_TK)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def right_by_taking_the_bias_off(logits_TE, bias_E, k):
    sum_TK, expert_TK = (1 / (1 + (-logits_TE).exp()) + bias_E).sort(descending=True)
    gate_TK = sum_TK[:, :k] - bias_E[expert_TK[:, :k]]
    return gate_TK / gate_TK.sum(1).unsqueeze(1), expert_TK[:, :k]


def right_in_the_experts_order(logits_TE, bias_E, k):
    scores_TE = logits_TE.sigmoid()
    expert_TK = torch.topk(scores_TE + bias_E, k).indices.sort(dim=-1).values
    gate_TK = scores_TE.gather(1, expert_TK)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK
