"""Answers to check_shuffle_texts: a wrong one's docstring is what its verdict must say."""

import torch


def _rng(seed):
    return torch.Generator().manual_seed(seed)


def tokens(label_T, length, seed):
    """this tears texts apart"""
    return label_T[torch.randperm(len(label_T), generator=_rng(seed))]


def within_texts(label_T, length, seed):
    """the tokens moved within their own text"""
    rng = _rng(seed)
    texts = [text[torch.randperm(length, generator=rng)] for text in label_T.split(length)]
    return torch.cat(texts)


def twice(label_T, length, seed):
    """inside them the order stays"""
    return within_texts(right(label_T, length, seed), length, seed)


def nothing(label_T, length, seed):
    """nothing was shuffled"""
    return label_T.clone()


def drawn_anew(label_T, length, seed):
    """some labels are lost and others doubled"""
    texts = label_T.view(-1, length)
    return texts[torch.randint(len(texts), (len(texts),), generator=_rng(seed))].flatten()


def one_shuffle(label_T, length, seed):
    """there is one shuffle and not a null"""
    return right(label_T, length, 7)


def columns(label_T, length, seed):
    """not one in each row"""
    texts = label_T.view(length, -1)
    return texts[:, torch.randperm(texts.shape[1], generator=_rng(seed))].flatten()


def shape(label_T, length, seed):
    """return a tensor of shape"""
    return right(label_T, length, seed).view(-1, length)


def no_seed(label_T, length, seed):
    """the same seed gives another order the second time"""
    texts = label_T.view(-1, length)
    return texts[torch.randperm(len(texts))].flatten()


def right(label_T, length, seed):
    texts = label_T.view(-1, length)
    return texts[torch.randperm(len(texts), generator=_rng(seed))].flatten()


def right_by_keys(label_T, length, seed):
    key_B = torch.rand(len(label_T) // length, generator=_rng(seed))
    order_B = key_B.argsort()
    return torch.cat([label_T[b * length : (b + 1) * length] for b in order_B.tolist()])


def pushed_along(label_T, length, seed):
    """do not push all along together"""
    return label_T.view(-1, length).roll(seed + 1, 0).flatten()
