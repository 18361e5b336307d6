"""Answers to check_top_k: each wrong one says in its docstring what its verdict must say.

Also true of softmax_over_tokens_left_as_it_is: not_renormalised.
Also true of tokens_chosen_by_experts: not_renormalised, divided_over_the_tokens.
Also true of ascending: best_anywhere.
Also true of masked_with_zero: not_renormalised.
Also true of detached: sum_detached.
Also true of raw_logits: not_renormalised.
Also true of divided_over_the_tokens: not_renormalised.
Also true of best_anywhere: ascending.
"""

import torch


def not_renormalised(logits_TE, k):
    """do not add up to 1"""
    return tuple(logits_TE.softmax(-1).topk(k))


def softmax_over_tokens(logits_TE, k):
    """the softmax runs over the tokens"""
    gate_TK, expert_TK = logits_TE.softmax(dim=0).topk(k)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def softmax_over_tokens_left_as_it_is(logits_TE, k):
    """the softmax runs over the tokens"""
    return tuple(logits_TE.softmax(0).topk(k))


def tokens_chosen_by_experts(logits_TE, k):
    """each expert chose k tokens"""
    gate, expert = logits_TE.softmax(-1).topk(k, dim=0)
    return gate / gate.sum(dim=0, keepdim=True), expert


def ascending(logits_TE, k):
    """worst first"""
    order_TE = logits_TE.argsort(dim=-1)[:, -k:]
    gate_TK = logits_TE.softmax(-1).gather(-1, order_TE)
    return gate_TK / gate_TK.sum(-1, keepdim=True), order_TE


def smallest(logits_TE, k):
    """the least likely experts"""
    expert_TK = logits_TE.argsort(dim=-1)[:, :k]
    gate_TK = logits_TE.softmax(-1).gather(-1, expert_TK)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def masked_with_zero(logits_TE, k):
    """exp(0) is 1"""
    top_TK, expert_TK = logits_TE.topk(k)
    masked_TE = torch.zeros_like(logits_TE).scatter(-1, expert_TK, top_TK)
    return masked_TE.softmax(-1).gather(-1, expert_TK), expert_TK


def detached(logits_TE, k):
    """no gradient reaches the logits"""
    gate_TK, expert_TK = logits_TE.detach().softmax(-1).topk(k)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def sum_detached(logits_TE, k):
    """the sum you divide by is detached"""
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(k)
    return gate_TK / gate_TK.sum(-1, keepdim=True).detach(), expert_TK


def straight_through(logits_TE, k):
    """not the right gradient for the"""
    gate_TK, expert_TK = right_by_sorting(logits_TE, k)
    raw_TK = logits_TE.gather(-1, expert_TK)
    return gate_TK.detach() + raw_TK - raw_TK.detach(), expert_TK


def swapped(logits_TE, k):
    """the two are swapped"""
    gate_TK, expert_TK = right_by_sorting(logits_TE, k)
    return expert_TK, gate_TK


def overflows(logits_TE, k):
    """exp overflows"""
    gate_TK, expert_TK = logits_TE.exp().topk(k)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def always_two(logits_TE, k):
    """is the 2 written into the code?"""
    return right_by_sorting(logits_TE, 2)


def two_then_padded(logits_TE, k):
    """is the 2 written into the code?"""
    gate_TK, expert_TK = right_by_sorting(logits_TE, k)
    if k > 2:
        gate_TK = torch.cat([right_by_sorting(logits_TE, 2)[0], 0 * gate_TK[:, 2:]], dim=-1)
    return gate_TK, expert_TK


def raw_logits(logits_TE, k):
    """these are the logits themselves"""
    return tuple(logits_TE.topk(k))


def in_place(logits_TE, k):
    """changes its input in place"""
    gate_TK, expert_TK = right_by_sorting(logits_TE, k)
    logits_TE -= logits_TE.amax(-1, keepdim=True)
    return gate_TK, expert_TK


def only_the_gates(logits_TE, k):
    """return two tensors"""
    return right_by_sorting(logits_TE, k)[0]


def crashes(logits_TE, k):
    """top_k raised RuntimeError"""
    return tuple(logits_TE.softmax(-1).topk(k + 10))


def wrong_experts(logits_TE, k):
    """the experts are not the right ones"""
    gate_TK, expert_TK = right_by_sorting(logits_TE, k)
    return gate_TK, (expert_TK + 1) % logits_TE.shape[-1]


def squared(logits_TE, k):
    """the gates are not the right ones"""
    gate_TK, expert_TK = right_by_sorting(2 * logits_TE, k)
    return gate_TK, expert_TK


def right_by_sorting(logits_TE, k):
    probs_TE, expert_TE = logits_TE.softmax(-1).sort(dim=-1, descending=True)
    top_TK = probs_TE[:, :k]
    return top_TK / top_TK.sum(-1, keepdim=True), expert_TE[:, :k]


def right_by_masking(logits_TE, k):
    expert_TK = logits_TE.topk(k, dim=1).indices
    mask_TE = torch.full_like(logits_TE, -torch.inf).scatter(1, expert_TK, 0.0)
    return (logits_TE + mask_TE).softmax(dim=1).gather(1, expert_TK), expert_TK


def right_token_by_token(logits_TE, k):
    gates, experts = [], []
    for logits_E in logits_TE:
        gate_K, expert_K = logits_E.log_softmax(0).topk(k)
        gates.append((gate_K - gate_K.logsumexp(0)).exp())
        experts.append(expert_K)
    return torch.stack(gates), torch.stack(experts)


def divided_over_the_tokens(logits_TE, k):
    """divided by the sum over the tokens"""
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(k)
    return gate_TK / gate_TK.sum(0), expert_TK


def double_softmax(logits_TE, k):
    """two softmaxes, one after the other"""
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(k)
    return gate_TK.softmax(-1), expert_TK


def best_anywhere(logits_TE, k):
    """the right experts; put the best first"""
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(k, sorted=False)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def best_in_the_middle(logits_TE, k):
    """the right experts; put the best first"""
    gate_TK, expert_TK = right_by_sorting(logits_TE, k)
    return gate_TK.roll(1, -1), expert_TK.roll(1, -1)
