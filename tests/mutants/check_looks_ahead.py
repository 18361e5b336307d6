"""Answers to check_looks_ahead: a wrong one's docstring is a phrase of its verdict."""

import torch


def _changed(expert, gate, cut, choices=True, gates=True):
    expert, gate = expert.clone(), gate.clone()
    if choices:
        E = int(expert.max()) + 1
        expert[cut:] = torch.rand(len(expert) - cut, E).topk(expert.shape[1]).indices
    if gates:
        gate[cut:] = torch.rand_like(gate[cut:])
    return expert, gate


def _search(seat, expert, gate, upto=lambda cut: cut, **what):
    before = seat(expert, gate)
    for _ in range(10):
        for cut in range(1, len(expert)):
            after = seat(*_changed(expert, gate, cut, **what))
            if not torch.equal(after[: upto(cut)], before[: upto(cut)]):
                return True
    return False


def compares_everything(seat, expert, gate):
    """compare only the tokens before the change"""
    return _search(seat, expert, gate, upto=lambda cut: None)


def compares_one_too_many(seat, expert, gate):
    """compare only the tokens before the change"""
    return _search(seat, expert, gate, upto=lambda cut: cut + 1)


def gates_alone(seat, expert, gate):
    """all first choices come before any second one"""
    return _search(seat, expert, gate, choices=False)


def choices_alone(seat, expert, gate):
    """the largest gate comes first"""
    equal = torch.full_like(gate, 0.5)  # so that no gate is ever the larger
    return _search(lambda e, g: seat(e, equal[: len(e)]), expert, gate, gates=False)


def never(seat, expert, gate):
    """all first choices come before any second one"""
    return False


def always(seat, expert, gate):
    """seating by position looks ahead, which it does not"""
    return True


def a_mask(seat, expert, gate):
    """return True or False"""
    return seat(expert, gate)


def right(seat, expert, gate):
    return _search(seat, expert, gate)


def right_by_cutting_off(seat, expert, gate):
    """Take the later tokens away instead of changing them."""
    whole = seat(expert, gate)
    return any(
        not torch.equal(seat(expert[:cut], gate[:cut]), whole[:cut])
        for cut in range(1, len(expert))
    )
