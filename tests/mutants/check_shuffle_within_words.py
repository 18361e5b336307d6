"""Answers to check_shuffle_within_words: a wrong one's docstring is what its verdict must say."""

import torch


def _rng(seed):
    return torch.Generator().manual_seed(seed)


def all_tokens(label_T, ids_T, seed):
    """a word gets a label of another word"""
    return label_T[torch.randperm(len(label_T), generator=_rng(seed))]


def in_the_order_of_words(label_T, ids_T, seed):
    """put them back where the tokens are"""
    order_T = torch.randperm(len(ids_T), generator=_rng(seed))
    return label_T[order_T[ids_T[order_T].argsort(stable=True)]]


def swapped_words(label_T, ids_T, seed):
    """a word gets a label of another word"""
    shuffled_T = right(label_T, ids_T, seed)
    return shuffled_T.roll(1)


def with_replacement(label_T, ids_T, seed):
    """some labels are lost and others doubled"""
    rng, out_T = _rng(seed), label_T.clone()
    for word in ids_T.unique():
        mine = (ids_T == word).nonzero()[:, 0]
        out_T[mine] = label_T[mine[torch.randint(len(mine), (len(mine),), generator=rng)]]
    return out_T


def nothing(label_T, ids_T, seed):
    """nothing was shuffled"""
    return label_T.clone()


def one_shuffle(label_T, ids_T, seed):
    """there is one shuffle and not a null"""
    return right(label_T, ids_T, 3)


def in_place(label_T, ids_T, seed):
    """changes its input in place"""
    label_T.copy_(right(label_T, ids_T, seed))
    return label_T


def right(label_T, ids_T, seed):
    rng, out_T = _rng(seed), label_T.clone()
    for word in ids_T.unique():
        mine = (ids_T == word).nonzero()[:, 0]
        out_T[mine] = label_T[mine[torch.randperm(len(mine), generator=rng)]]
    return out_T


def right_by_sorting(label_T, ids_T, seed):
    order_T = torch.randperm(len(ids_T), generator=_rng(seed))
    taken_T = order_T[ids_T[order_T].argsort(stable=True)]
    out_T = torch.empty_like(label_T)
    out_T[ids_T.argsort(stable=True)] = label_T[taken_T]
    return out_T


def pushed_along(label_T, ids_T, seed):
    """do not push all along together"""
    out_T = label_T.clone()
    for word in ids_T.unique():
        out_T[ids_T == word] = label_T[ids_T == word].roll(seed + 1)
    return out_T
