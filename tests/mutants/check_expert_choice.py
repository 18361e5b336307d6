"""Answers to check_expert_choice: a wrong one's docstring is what its verdict must say.

Also true of tokens_choose: rounded_down.
"""

import math

import torch


def _k(logits_TE, c):
    T, E = logits_TE.shape
    return min(T, math.ceil(c * T / E))


def tokens_choose(logits_TE, c):
    """here each token took its best experts"""
    gate, expert = logits_TE.softmax(-1).topk(max(1, int(c)), dim=1)
    return expert, gate


def softmax_over_tokens(logits_TE, c):
    """the softmax ran over the tokens (dim 0)"""
    gate, token = logits_TE.softmax(0).topk(_k(logits_TE, c), dim=0)
    return token.T, gate.T


def gate_over_tokens(logits_TE, c):
    """the gate is the softmax over the experts, not over the tokens"""
    token = logits_TE.softmax(-1).topk(_k(logits_TE, c), dim=0).indices.T
    return token, logits_TE.softmax(0).T.gather(1, token)


def by_raw_scores(logits_TE, c):
    """a column of raw scores has another order"""
    token = logits_TE.topk(_k(logits_TE, c), dim=0).indices.T
    return token, logits_TE.softmax(-1).T.gather(1, token)


def raw_scores_throughout(logits_TE, c):
    """a column of raw scores has another order"""
    score, token = logits_TE.topk(_k(logits_TE, c), dim=0)
    return token.T, score.T


def scores_as_gates(logits_TE, c):
    """these are scores; the gate is their softmax"""
    token = logits_TE.softmax(-1).topk(_k(logits_TE, c), dim=0).indices.T
    return token, logits_TE.T.gather(1, token)


def renormalized(logits_TE, c):
    """an expert's gates need not sum to 1"""
    gate, token = logits_TE.softmax(-1).topk(_k(logits_TE, c), dim=0)
    return token.T, (gate / gate.sum(0)).T


def least(logits_TE, c):
    """the tokens that want each expert least"""
    gate, token = logits_TE.softmax(-1).topk(_k(logits_TE, c), dim=0, largest=False)
    return token.T, gate.T


def not_transposed(logits_TE, c):
    """a row for each expert is wanted"""
    gate, token = logits_TE.softmax(-1).topk(_k(logits_TE, c), dim=0)
    return token, gate


def without_the_factor(logits_TE, c):
    """the capacity factor is missing"""
    T, E = logits_TE.shape
    gate, token = logits_TE.softmax(-1).T.topk(math.ceil(T / E))
    return token, gate


def rounded_down(logits_TE, c):
    """rounding down leaves tokens without a place"""
    T, E = logits_TE.shape
    gate, token = logits_TE.softmax(-1).T.topk(int(c * T // E))
    return token, gate


def c_tokens_each(logits_TE, c):
    """c is a token's experts, not an expert's"""
    gate, token = logits_TE.softmax(-1).T.topk(max(1, math.ceil(c)))
    return token, gate


def unbounded(logits_TE, c):
    """expert_choice raised RuntimeError"""
    T, E = logits_TE.shape
    gate, token = logits_TE.softmax(-1).T.topk(math.ceil(c * T / E) + (T < 4))
    return token, gate


def worst_first(logits_TE, c):
    """an expert's best first"""
    gate, token = logits_TE.softmax(-1).T.topk(_k(logits_TE, c))
    return token.flip(1), gate.flip(1)


def detached(logits_TE, c):
    """no gradient reaches the logits"""
    gate, token = logits_TE.detach().softmax(-1).T.topk(_k(logits_TE, c))
    return token, gate


def right_by_transposing(logits_TE, c):
    gate, token = logits_TE.softmax(-1).T.topk(_k(logits_TE, c))
    return token, gate


def right_by_sorting(logits_TE, c):
    rows = []
    for column in (logits_TE - logits_TE.logsumexp(1, keepdim=True)).unbind(1):
        rows.append(column.argsort(descending=True)[: _k(logits_TE, c)])
    token = torch.stack(rows)
    return token, logits_TE.softmax(1)[token, torch.arange(len(rows))[:, None]]


def values_for_indices(logits_TE, c):
    """the two are swapped"""
    token_EC, gate_EC = right_by_transposing(logits_TE, c)
    return gate_EC, token_EC


def best_in_the_middle(logits_TE, c):
    """right tokens, but in order: an expert's best first"""
    k = math.ceil(min(c * len(logits_TE) / logits_TE.shape[1], len(logits_TE)))
    gate_CE, token_CE = logits_TE.softmax(-1).topk(k, dim=0)
    return token_CE.roll(1, 0).T, gate_CE.roll(1, 0).T
