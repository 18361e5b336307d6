"""Answers to check_combine: a wrong one's docstring is what its verdict must say."""

import torch


def overwrites(out_ECD, token_EC, gate_EC, num_tokens):
    """an assignment keeps one expert of a token"""
    y = out_ECD.new_zeros(num_tokens, out_ECD.shape[-1])
    for e in range(len(token_EC)):
        y[token_EC[e]] = gate_EC[e][:, None] * out_ECD[e]
    return y


def adds_by_index(out_ECD, token_EC, gate_EC, num_tokens):
    """an assignment keeps one expert of a token"""
    y = out_ECD.new_zeros(num_tokens, out_ECD.shape[-1])
    rows = (gate_EC[..., None] * out_ECD).flatten(0, 1)
    for n, row in zip(token_EC.flatten(), rows, strict=True):
        y[n] = 0 * y[n] + row
    return y


def without_gates(out_ECD, token_EC, gate_EC, num_tokens):
    """the gates are missing"""
    y = out_ECD.new_zeros(num_tokens, out_ECD.shape[-1])
    return y.index_add(0, token_EC.flatten(), out_ECD.flatten(0, 1))


def mean(out_ECD, token_EC, gate_EC, num_tokens):
    """this is a mean over a token's experts"""
    count = token_EC.flatten().bincount(minlength=num_tokens).clamp(min=1)
    return right_by_index_add(out_ECD, token_EC, gate_EC, num_tokens) / count[:, None]


def normalized(out_ECD, token_EC, gate_EC, num_tokens):
    """the gates of a token need not sum to 1"""
    total = gate_EC.new_zeros(num_tokens).index_add(0, token_EC.flatten(), gate_EC.flatten())
    y = right_by_index_add(out_ECD, token_EC, gate_EC, num_tokens)
    return y / total.clamp(min=1e-9)[:, None]


def gathers(out_ECD, token_EC, gate_EC, num_tokens):
    """a gather where a scatter is wanted"""
    rows = (gate_EC[..., None] * out_ECD).flatten(0, 1)
    return rows[token_EC.flatten()[:num_tokens]]


def only_those_chosen(out_ECD, token_EC, gate_EC, num_tokens):
    """a row for each token is wanted"""
    y = right_by_index_add(out_ECD, token_EC, gate_EC, num_tokens)
    return y[token_EC.unique()]


def detached(out_ECD, token_EC, gate_EC, num_tokens):
    """no gradient reaches the gates"""
    return right_by_index_add(out_ECD, token_EC, gate_EC.detach(), num_tokens)


def right_by_index_add(out_ECD, token_EC, gate_EC, num_tokens):
    y = out_ECD.new_zeros(num_tokens, out_ECD.shape[-1])
    return y.index_add(0, token_EC.flatten(), (gate_EC[..., None] * out_ECD).flatten(0, 1))


def right_by_one_hot(out_ECD, token_EC, gate_EC, num_tokens):
    P = torch.nn.functional.one_hot(token_EC, num_tokens).to(out_ECD.dtype)
    return torch.einsum("ect,ec,ecd->td", P, gate_EC, out_ECD)
