"""Answers to check_read_back: a wrong one's docstring is what its verdict must say."""

import torch


def _word(count_V):
    return ((count_V + 1) / (count_V + 1).sum()).log()


def _told(count_V, count_LVR, seen_NL, each=None):
    R = count_LVR.shape[-1]
    each = 1 / R if each is None else each
    log_LVR = ((count_LVR + each) / (count_V[:, None] + each * R)).log()
    return torch.stack([log_LVR[n][:, seen_NL[:, n]].T for n in range(len(count_LVR))])


def no_prior(count_V, count_LVR, seen_NL):
    """how often a word comes is left out"""
    return _told(count_V, count_LVR, seen_NL).sum(0)


def prior_in_each_layer(count_V, count_LVR, seen_NL):
    """once is enough"""
    return (_word(count_V) + _told(count_V, count_LVR, seen_NL)).sum(0)


def shares_of_the_route(count_V, count_LVR, seen_NL):
    """shares of the route's words"""
    some_LVR = count_LVR + 1 / count_LVR.shape[-1]
    log_LVR = (some_LVR / some_LVR.sum(1, keepdim=True)).log()
    return _word(count_V) + sum(log_LVR[n][:, seen_NL[:, n]].T for n in range(len(count_LVR)))


def one_for_each_route(count_V, count_LVR, seen_NL):
    """1/R for each, not 1"""
    return _word(count_V) + _told(count_V, count_LVR, seen_NL, 1.0).sum(0)


def last_layer(count_V, count_LVR, seen_NL):
    """not the last alone"""
    return _word(count_V) + _told(count_V, count_LVR, seen_NL)[-1]


def mean_of_probabilities(count_V, count_LVR, seen_NL):
    """this is the logarithm of a mean"""
    return _word(count_V) + _told(count_V, count_LVR, seen_NL).exp().mean(0).log()


def mean_of_logarithms(count_V, count_LVR, seen_NL):
    """it is their sum"""
    return _word(count_V) + _told(count_V, count_LVR, seen_NL).mean(0)


def probabilities(count_V, count_LVR, seen_NL):
    """these are probabilities"""
    return (_word(count_V) + _told(count_V, count_LVR, seen_NL).sum(0)).exp()


def posterior(count_V, count_LVR, seen_NL):
    """the same best word"""
    return (_word(count_V) + _told(count_V, count_LVR, seen_NL).sum(0)).log_softmax(1)


def no_sight_more(count_V, count_LVR, seen_NL):
    """not impossible"""
    word_V = (count_V / count_V.sum()).log()
    log_LVR = (count_LVR / count_V[:, None]).log()
    return word_V + sum(log_LVR[n][:, seen_NL[:, n]].T for n in range(len(count_LVR)))


def the_best_word(count_V, count_LVR, seen_NL):
    """shape"""
    return (_word(count_V) + _told(count_V, count_LVR, seen_NL).sum(0)).argmax(1)


def right_by_loop(count_V, count_LVR, seen_NL):
    R = count_LVR.shape[-1]
    rows = []
    for seen_L in seen_NL.tolist():
        score_V = (count_V + 1).log() - (count_V + 1).sum().log()
        for layer, route in enumerate(seen_L):
            score_V = score_V + (count_LVR[layer, :, route] + 1 / R).log() - (count_V + 1).log()
        rows.append(score_V)
    return torch.stack(rows)


def right_by_indexing(count_V, count_LVR, seen_NL):
    L, R = len(count_LVR), count_LVR.shape[-1]
    told = count_LVR[torch.arange(L), :, seen_NL]  # (N, L, V)
    return _word(count_V) + ((told + 1 / R) / (count_V + 1)).log().sum(1)
