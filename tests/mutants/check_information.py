"""Answers to check_information: a wrong one's docstring is what its verdict must say."""

import math

import torch


def _entropy(count):
    p = count.flatten().double() / count.sum()
    return -(p * p.clamp(min=1e-300).log2()).sum()


def nats(count_CE):
    """these are nats"""
    return right(count_CE) * math.log(2)


def zero_log_zero(count_CE):
    """0 times log 0 is NaN"""
    p = count_CE / count_CE.sum()
    return (p * (p / (p.sum(0) * p.sum(1, keepdim=True))).log2()).sum()


def what_is_left_of_the_label(count_CE):
    """what a label leaves open once the expert is known"""
    return _entropy(count_CE) - _entropy(count_CE.sum(0))


def joint(count_CE):
    """the entropy of label and expert together"""
    return _entropy(count_CE)


def entropy_of_the_label(count_CE):
    """that is the label's entropy"""
    return _entropy(count_CE.sum(1))


def share(count_CE):
    """divided by the label's entropy"""
    return right(count_CE) / _entropy(count_CE.sum(1))


def against_uniform(count_CE):
    """labels and experts are not equally frequent"""
    return math.log2(count_CE.numel()) - _entropy(count_CE)


def labels_alike(count_CE):
    """each label counts as much as every other here"""
    row = count_CE.double() / count_CE.sum(1, keepdim=True)
    return torch.special.xlogy(row, row / (count_CE.sum(0) / count_CE.sum())).sum() / math.log(2)


def negative(count_CE):
    """information is never negative"""
    return -right(count_CE)


def without_a_dimension(count_CE):
    """keep one's dimension"""
    p = count_CE.double() / count_CE.sum()
    return torch.special.xlogy(p, p / (p.sum(1) * p.sum(0))).sum() / math.log(2)


def right(count_CE):
    return _entropy(count_CE.sum(0)) + _entropy(count_CE.sum(1)) - _entropy(count_CE)


def right_cell_by_cell(count_CE):
    total, bits = count_CE.sum().item(), 0.0
    for c, row in enumerate(count_CE.tolist()):
        for e, n in enumerate(row):
            if n:
                chance = count_CE[c].sum().item() * count_CE[:, e].sum().item() / total
                bits += n / total * math.log2(n / chance)
    return bits


def right_as_a_divergence(count_CE):
    p = count_CE.double() / count_CE.sum()
    q = p.sum(0) * p.sum(1, keepdim=True)
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum() / math.log(2)
