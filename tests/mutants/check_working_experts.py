"""Answers to check_working_experts: each wrong one says in its docstring what it must be told.

Also true of over_the_cases: any_case.
Also true of rounds_the_share_down: any_case.
"""

import torch


def per_case(logits_QTE, share):
    """this asks each case"""
    return (logits_QTE.softmax(-1) >= share).sum(-1).double().mean(1)


def by_mean_proportion(logits_QTE, share):
    """count the cases each one wins"""
    return (logits_QTE.softmax(-1).mean(1) >= share).sum(-1)


def any_case(logits_QTE, share):
    """whatever the share"""
    return torch.tensor([len(winners.unique()) for winners in logits_QTE.argmax(-1)])


def idle(logits_QTE, share):
    """the experts that do not work"""
    E = logits_QTE.shape[-1]
    return E - right_short(logits_QTE, share)


def strictly(logits_QTE, share):
    """at least that share, not more than that"""
    won = torch.nn.functional.one_hot(logits_QTE.argmax(-1), logits_QTE.shape[-1])
    return (won.double().mean(1) > share).sum(-1)


def over_the_cases(logits_QTE, share):
    """over the cases (dim 1)"""
    return torch.tensor([len(winners.unique()) for winners in logits_QTE.argmax(1)])


def one_number(logits_QTE, share):
    """return a tensor of shape"""
    return int(right_short(logits_QTE, share)[0])


def right_short(logits_QTE, share):
    won = torch.nn.functional.one_hot(logits_QTE.argmax(-1), logits_QTE.shape[-1])
    return (won.double().mean(1) >= share).sum(-1)


def right_by_counting(logits_QTE, share):
    _, T, E = logits_QTE.shape
    counts = [torch.bincount(run.argmax(-1), minlength=E) for run in logits_QTE]
    return torch.stack([(count >= share * T).sum() for count in counts])


def rounds_the_share_down(logits_QTE, share):
    """rounded down before it was compared"""
    winner_QT, (T, E) = logits_QTE.argmax(-1), logits_QTE.shape[1:]
    return (torch.nn.functional.one_hot(winner_QT, E).sum(1) >= int(share * T)).sum(-1)
