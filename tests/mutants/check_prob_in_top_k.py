"""Answers to check_prob_in_top_k: a wrong one's docstring is what its verdict must say.

Also true of own_score_counts: swapped.
Also true of swapped: own_score_counts.
Also true of step: next_for_all.
"""

import torch

_phi = torch.special.ndtr


def _bar(noisy, k):
    top = noisy.topk(k + 1).values
    return torch.where(noisy > top[:, k:], top[:, k:], top[:, k - 1 : k])


def own_score_counts(clean, noisy, std, k):
    """an expert that is in would have to beat itself"""
    return _phi((clean - noisy.topk(k).values[:, -1:]) / std)


def next_for_all(clean, noisy, std, k):
    """the bar is the k+1-th of all"""
    return _phi((clean - noisy.topk(k + 1).values[:, -1:]) / std)


def swapped(clean, noisy, std, k):
    """the two bars are swapped"""
    top = noisy.topk(k + 1).values
    bar = torch.where(noisy > top[:, k:], top[:, k - 1 : k], top[:, k:])
    return _phi((clean - bar) / std)


def centred_on_noisy(clean, noisy, std, k):
    """centred on the clean score"""
    return _phi((noisy - _bar(noisy, k)) / std)


def clean_bar(clean, noisy, std, k):
    """made of the others' noisy scores"""
    return _phi((clean - _bar(clean, k)) / std)


def not_divided(clean, noisy, std, k):
    """measured in standard deviations"""
    return _phi(clean - _bar(noisy, k))


def variance(clean, noisy, std, k):
    """a standard deviation, not a variance"""
    return _phi((clean - _bar(noisy, k)) / std.sqrt())


def below(clean, noisy, std, k):
    """to stay below the bar"""
    return _phi((_bar(noisy, k) - clean) / std)


def step(clean, noisy, std, k):
    """a step has no slope"""
    return (noisy > noisy.topk(k + 1).values[:, -1:]).float()


def density(clean, noisy, std, k):
    """that is the normal density"""
    return torch.distributions.Normal(0, 1).log_prob((clean - _bar(noisy, k)) / std).exp()


def logistic(clean, noisy, std, k):
    """that is a logistic curve"""
    return torch.sigmoid((clean - _bar(noisy, k)) / std)


def zero_if_all(clean, noisy, std, k):
    """with k = E everyone is always chosen"""
    return torch.zeros_like(clean) if k == clean.shape[1] else _phi((clean - _bar(noisy, k)) / std)


def crashes_if_all(clean, noisy, std, k):
    """prob_in_top_k raised RuntimeError"""
    return _phi((clean - _bar(noisy, k)) / std)


def detached(clean, noisy, std, k):
    """no gradient reaches the clean scores"""
    return right_by_removing(clean.detach(), noisy, std, k)


def right_by_removing(clean, noisy, std, k):
    E = clean.shape[1]
    if k == E:
        return clean * 0 + 1
    bars = []
    for e in range(E):
        others = torch.cat([noisy[:, :e], noisy[:, e + 1 :]], dim=1)
        bars.append(others.sort(descending=True).values[:, k - 1])
    return torch.distributions.Normal(clean, std).cdf(2 * clean - torch.stack(bars, dim=1))


def right_by_erf(clean, noisy, std, k):
    padded = torch.nn.functional.pad(noisy, (0, 1), value=-1e9)
    top = padded.topk(k + 1).values
    bar = torch.where(noisy > top[:, k:], top[:, k:], top[:, k - 1 : k])
    return (1 + torch.erf((clean - bar) / std / 2**0.5)) / 2


def erf_without_root_two(clean, noisy, std, k):
    """the √2 is missing"""
    if k == clean.shape[1]:
        return torch.ones_like(clean)
    return (1 + torch.erf((clean - _bar(noisy, k)) / std)) / 2


def the_next_of_the_others(clean, noisy, std, k):
    """the bar is the others' k+1-th, one too low"""
    if k >= clean.shape[1] - 1:  # there is none, and everybody clears it
        return 0 * clean + 1
    return torch.special.ndtr((clean - _bar(noisy, k + 1)) / std)


def the_one_before_of_the_others(clean, noisy, std, k):
    """the bar is the k-1-th of the others, which is one too high"""
    if k == 1 or k == clean.shape[1]:
        return right_by_removing(clean, noisy, std, k)
    return torch.special.ndtr((clean - _bar(noisy, k - 1)) / std)
