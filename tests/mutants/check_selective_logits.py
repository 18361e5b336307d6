"""Answers to check_selective_logits: a wrong one's docstring is what its verdict must say.

Also true of too_late: casts_but_stays_in_autocast, rounds_what_comes_in, rounds_the_weights,
    rounds_the_input.
Also true of casts_but_stays_in_autocast: too_late, rounds_what_comes_in.
Also true of plain: too_late, casts_but_stays_in_autocast.
Also true of left_in_bfloat16: too_late.
Also true of rounds_what_comes_in: rounds_the_weights, rounds_the_input.
Also true of rounds_the_weights: rounds_what_comes_in.
Also true of rounds_the_input: rounds_what_comes_in.
"""

import torch
import torch.nn.functional as F


def too_late(x, w):
    """too late"""
    return F.linear(x.bfloat16(), w.bfloat16()).float()


def casts_but_stays_in_autocast(x, w):
    """switch autocast off around it"""
    return F.linear(x.float(), w.float()).float()


def plain(x, w):
    """the logits are bfloat16"""
    return F.linear(x, w)


def left_in_bfloat16(x, w):
    """the logits are bfloat16"""
    with torch.autocast("cpu", enabled=False):
        return F.linear(x.float(), w.float()).bfloat16()


def rounds_what_comes_in(x, w):
    """float32 inputs must not be rounded on the way in"""
    with torch.autocast("cpu", enabled=False):
        return F.linear(x.bfloat16().float(), w.bfloat16().float())


def rounds_the_weights(x, w):
    """use them as they are"""
    with torch.autocast("cpu", enabled=False):
        return F.linear(x.float(), w.bfloat16().float())


def rounds_the_input(x, w):
    """use it as it is"""
    with torch.autocast("cpu", enabled=False):
        return F.linear(x.bfloat16().float(), w.float())


def softmax_in_float32(x, w):
    """these are probabilities"""
    return right(x, w).softmax(-1)


def rounds_at_the_end(x, w):
    """rounded once more at the end"""
    return right(x, w).bfloat16().float()


def detached(x, w):
    """no gradient reaches the weights"""
    return right(x, w.detach())


def transposed(x, w):
    """transposed"""
    return right(x, w).T


def right(x, w):
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), w.float())


def right_by_sum(x, w):
    with torch.autocast("cpu", enabled=False):
        return (x.float()[:, None, :] * w.float()[None]).sum(-1)


@torch.autocast("cpu", enabled=False)
def right_by_decorator(x, w):
    return x.to(torch.float32) @ w.to(torch.float32).T
