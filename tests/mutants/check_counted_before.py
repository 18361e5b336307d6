"""Answers to check_counted_before: a wrong one's docstring is a phrase of its verdict."""

import torch.nn.functional as F


def after_the_drop(probs, expert, keep):
    """f was counted after the drop"""
    T, E = probs.shape
    return E * (expert[:, 0][keep[:, 0]].bincount(minlength=E) / T * probs.mean(0)).sum()


def share_of_the_seated(probs, expert, keep):
    """f was counted after the drop"""
    E, seated = probs.shape[1], expert[:, 0][keep[:, 0]]
    return E * (seated.bincount(minlength=E) / len(seated) * probs.mean(0)).sum()


def both_after_the_drop(probs, expert, keep):
    """f was counted after the drop"""
    E, seated = probs.shape[1], expert[keep]
    return E * (seated.bincount(minlength=E) / len(seated) * probs.mean(0)).sum()


def both_choices(probs, expert, keep):
    """both choices are counted"""
    E = probs.shape[1]
    return E * (expert.flatten().bincount(minlength=E) / expert.numel() * probs.mean(0)).sum()


def second_choices(probs, expert, keep):
    """those are second choices"""
    return right(probs, expert.flip(1), keep)


def the_papers_scale(probs, expert, keep):
    """at balance this is 1/E²"""
    return right(probs, expert, keep) / probs.shape[1] ** 2


def no_number_of_experts(probs, expert, keep):
    """at balance this is 1/E;"""
    return right(probs, expert, keep) / probs.shape[1]


def chosen_only(probs, expert, keep):
    """P is made of the chosen gates only"""
    T, E = probs.shape
    chosen = probs * F.one_hot(expert, E).sum(1)
    return E * (expert[:, 0].bincount(minlength=E) / T * chosen.mean(0)).sum()


def squared_shares(probs, expert, keep):
    """f times f has no gradient"""
    T, E = probs.shape
    return E * (expert[:, 0].bincount(minlength=E) / T).square().sum()


def squared_means(probs, expert, keep):
    """P times P does not see who was chosen"""
    return probs.shape[1] * probs.mean(0).square().sum()


def no_mean(probs, expert, keep):
    """a sum over the tokens"""
    return right(probs, expert, keep) * len(probs)


def detached(probs, expert, keep):
    """no gradient reaches the probabilities"""
    return right(probs.detach(), expert, keep)


def right(probs, expert, keep):
    T, E = probs.shape
    return E * (expert[:, 0].bincount(minlength=E) / T * probs.mean(0)).sum()


def right_by_tokens(probs, expert, keep):
    """Each token gives P of the expert that it chose first; the mean over the tokens."""
    return probs.shape[1] * probs.mean(0)[expert[:, 0]].mean()
