"""Answers to check_below_one.

Also true of even: torn_between_all.
Also true of torn_between_all: collapsed.
Also true of ties: torn_between_all.
Also true of minus_infinity: ties.
Also true of one_token: torn_between_all, ties.
"""

import torch


def right_half_of_them_empty(E):
    if E == 2:
        return torch.tensor([[0.01, 0.0], [0.01, 0.0], [0.01, 0.0], [0.0, 9.0]])
    busy = (E + 1) // 2
    logits = torch.zeros(busy, E)
    logits[:, :busy] = -9.0
    return logits + 9.01 * torch.eye(busy, E)


def right_by_descent(E):
    """Let the choices stand and walk down the loss, keeping each choice best by a hair."""
    busy = 1 if E == 2 else (E + 1) // 2
    expert = torch.tensor([0, 0, 0, 1]) if E == 2 else torch.arange(busy)
    f = expert.bincount(minlength=E) / len(expert)
    logits = torch.zeros(len(expert), E)
    rows = torch.arange(len(expert))
    for _ in range(3000):
        p = logits.softmax(-1)
        logits = logits - 0.5 * p * (f - (p * f).sum(-1, keepdim=True))
        others = logits.index_put((rows, expert), torch.tensor(-torch.inf)).amax(-1)
        logits[rows, expert] = logits[rows, expert].maximum(others + 1e-3)
    return logits


def even(E):
    """f is uniform, and then the value is 1 whatever P is"""
    return torch.eye(E)


def torn_between_all(E):
    """P is uniform, and then the value is 1 whatever f is"""
    return 1e-5 * torch.eye(E)[:1].repeat(4, 1)


def collapsed(E):
    """P is large where f is large"""
    return 3 * torch.eye(E)[:1].repeat(4, 1)


def ties(E):
    """a token's best two logits tie"""
    return torch.zeros(4, E)


def only_a_little(E):
    """with more experts, more of them can be left without a token"""
    surely = 9.0 * torch.eye(E)[1:].repeat(1, 1)
    return torch.cat([0.01 * torch.eye(E)[:1].repeat(3 if E == 2 else E - 1, 1), surely])


def a_little_with_two(E):
    """below 1, but it can be below 0.9"""
    return torch.tensor([[0.01] + [0.0] * (E - 1)] * 6 + [[0.0, 9.0] + [0.0] * (E - 2)] * 1)


def minus_infinity(E):
    """a logit is not finite"""
    return torch.full((3, E), -torch.inf)


def one_token(E):
    """return logits of shape (tokens, 2)"""
    return torch.zeros(E)
