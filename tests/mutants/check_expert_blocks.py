"""Answers to check_expert_blocks: a wrong one's docstring is what its verdict must say."""

import torch
import torch.nn.functional as F


def _one(x, w1, w3, w2):
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


def _blocks(x_RD, offsets_E1):
    return x_RD.split(offsets_E1.diff().tolist())


def by_slices(x_RD, w1, w3, w2, offsets_E1):
    """a slice's gradient is as large as the whole stack"""
    blocks = enumerate(_blocks(x_RD, offsets_E1))
    return torch.cat([_one(x, w1[e], w3[e], w2[e]) for e, x in blocks])


def by_index_select(x_RD, w1, w3, w2, offsets_E1):
    """take the stack apart once, before the loop"""
    out = []
    for e, x in enumerate(_blocks(x_RD, offsets_E1)):
        at = torch.tensor([e])
        out.append(_one(x, *(w.index_select(0, at)[0] for w in (w1, w3, w2))))
    return torch.cat(out)


def by_cloned_slices(x_RD, w1, w3, w2, offsets_E1):
    """the backward pass writes"""
    blocks = enumerate(_blocks(x_RD, offsets_E1))
    return torch.cat([_one(x, w1[e].clone(), w3[e].clone(), w2[e].clone()) for e, x in blocks])


def silu_on_the_other(x_RD, w1, w3, w2, offsets_E1):
    """silu belongs to w1's projection"""
    return right_by_unbind(x_RD, w3, w1, w2, offsets_E1)


def without_silu(x_RD, w1, w3, w2, offsets_E1):
    """silu is missing"""
    weights = zip(w1.unbind(), w3.unbind(), w2.unbind(), strict=True)
    return torch.cat([
        F.linear(F.linear(x, a) * F.linear(x, b), c)
        for x, (a, b, c) in zip(_blocks(x_RD, offsets_E1), weights, strict=True)
    ])  # fmt: skip


def first_expert_for_all(x_RD, w1, w3, w2, offsets_E1):
    """expert 0's weights were used for every block"""
    return _one(x_RD, w1[0], w3[0], w2[0])


def detached(x_RD, w1, w3, w2, offsets_E1):
    """no gradient reaches x_RD"""
    return right_by_unbind(x_RD, w1, w3, w2, offsets_E1).detach()


def weights_as_data(x_RD, w1, w3, w2, offsets_E1):
    """no gradient reaches w1"""
    return right_by_unbind(x_RD, w1.data, w3.data, w2.data, offsets_E1)


def right_by_unbind(x_RD, w1, w3, w2, offsets_E1):
    weights = zip(w1.unbind(), w3.unbind(), w2.unbind(), strict=True)
    blocks = _blocks(x_RD, offsets_E1)
    return torch.cat([_one(x, *own) for x, own in zip(blocks, weights, strict=True)])


def right_by_padding(x_RD, w1, w3, w2, offsets_E1):
    blocks = _blocks(x_RD, offsets_E1)
    x_ECD = torch.nn.utils.rnn.pad_sequence(blocks, batch_first=True)
    hidden = F.silu(x_ECD @ w1.transpose(1, 2)) * (x_ECD @ w3.transpose(1, 2))
    y_ECD = hidden @ w2.transpose(1, 2)
    return torch.cat([y[: len(x)] for y, x in zip(y_ECD.unbind(), blocks, strict=True)])
