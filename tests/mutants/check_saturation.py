"""Answers to check_saturation: a wrong one's docstring is what its verdict must say.

Also true of first: place_by_place.
Also true of loads: of_any_token.
Also true of of_any_token: loads.
"""

import torch


def _shared(early_TK, final_TK):
    return (early_TK[:, :, None] == final_TK[:, None, :]).any(1)


def place_by_place(early_TK, final_TK):
    """compare sets"""
    return (early_TK == final_TK).float().mean().item()


def union(early_TK, final_TK):
    """not by the size of the union"""
    n = _shared(early_TK, final_TK).sum(1)
    return (n / (2 * early_TK.shape[1] - n)).mean().item()


def all_of_them(early_TK, final_TK):
    """only if all its experts are the same"""
    return _shared(early_TK, final_TK).all(1).float().mean().item()


def any_of_them(early_TK, final_TK):
    """any one of its experts is the same"""
    return _shared(early_TK, final_TK).any(1).float().mean().item()


def not_divided(early_TK, final_TK):
    """divided by k as well"""
    return _shared(early_TK, final_TK).float().sum(1).mean().item()


def changed(early_TK, final_TK):
    """that is what changed"""
    return 1 - right(early_TK, final_TK)


def first(early_TK, final_TK):
    """only first choices"""
    return (early_TK[:, 0] == final_TK[:, 0]).float().mean().item()


def loads(early_TK, final_TK):
    """not token by token"""
    E = 1 + max(early_TK.max(), final_TK.max())
    a, b = (x.flatten().bincount(minlength=E) for x in (early_TK, final_TK))
    return (torch.minimum(a, b).sum() / final_TK.numel()).item()


def divided_twice(early_TK, final_TK):
    """divided by k twice"""
    return (early_TK[:, :, None] == final_TK[:, None, :]).double().mean()


def of_any_token(early_TK, final_TK):
    """whether any token had it"""
    return torch.isin(final_TK, early_TK).double().mean()


def right(early_TK, final_TK):
    return _shared(early_TK, final_TK).float().mean().item()


def right_by_sets(early_TK, final_TK):
    pairs = zip(early_TK.tolist(), final_TK.tolist(), strict=True)
    return sum(len({*a} & {*b}) for a, b in pairs) / final_TK.numel()


def right_by_masks(early_TK, final_TK):
    E = 1 + int(torch.cat([early_TK, final_TK]).max())
    a, b = (torch.zeros(len(x), E).scatter(1, x, 1.0) for x in (early_TK, final_TK))
    return (a * b).sum() / final_TK.numel()
