"""Answers to check_dropped_token: a wrong one's docstring is a phrase of its verdict.

Also true of labml: adds_its_input, weighed.
Also true of weighed: gates_the_residual.
Also true of mixed_up: keeps_all.
"""

import torch


def labml(h, x, expert, gate, keep):
    """a dropped token leaves as h + p·LN(h)"""
    out = torch.where(keep[:, None], expert, x)
    return h + gate[:, None] * out


def adds_its_input(h, x, expert, gate, keep):
    """gets its normalised input added"""
    return h + torch.where(keep[:, None], gate[:, None] * expert, x)


def twice(h, x, expert, gate, keep):
    """gets h added once more"""
    return h + torch.where(keep[:, None], gate[:, None] * expert, h)


def keeps_all(h, x, expert, gate, keep):
    """nobody was dropped"""
    return h + gate[:, None] * expert


def wiped_out(h, x, expert, gate, keep):
    """a dropped token is wiped out"""
    return (h + gate[:, None] * expert) * keep[:, None]


def weighed(h, x, expert, gate, keep):
    """a dropped token is weighed by p"""
    return torch.where(keep[:, None], h + gate[:, None] * expert, gate[:, None] * h)


def normalised(h, x, expert, gate, keep):
    """a dropped token leaves as LN(h), not as it came"""
    return torch.where(keep[:, None], h + gate[:, None] * expert, x)


def mixed_up(h, x, expert, gate, keep):
    """kept and dropped are mixed up"""
    return h + torch.where(keep[:, None], 0.0, gate[:, None] * expert)


def no_gate(h, x, expert, gate, keep):
    """the gate is missing"""
    return h + torch.where(keep[:, None], expert, 0.0)


def no_residual(h, x, expert, gate, keep):
    """the residual is missing where the token was kept"""
    return torch.where(keep[:, None], gate[:, None] * expert, h)


def gates_the_residual(h, x, expert, gate, keep):
    """p weighs the residual too"""
    return torch.where(keep[:, None], gate[:, None] * (h + expert), h)


def gate_detached(h, x, expert, gate, keep):
    """no gradient reaches the gate"""
    return h + (gate.detach() * keep)[:, None] * expert


def right(h, x, expert, gate, keep):
    return h + (gate * keep)[:, None] * expert


def right_by_where(h, x, expert, gate, keep):
    return torch.where(keep[:, None], h + gate[:, None] * expert, h)


def right_by_rows(h, x, expert, gate, keep):
    rows = [h[t] + gate[t] * expert[t] if keep[t] else h[t] for t in range(len(h))]
    return torch.stack(rows)
