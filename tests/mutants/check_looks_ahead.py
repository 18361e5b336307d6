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
    for _ in range(25):
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
    """it says False of all"""
    return False


def always(seat, expert, gate):
    """it says True of all"""
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


def changes_the_last_alone(seat, expert, gate):
    """misses that a single token"""
    before = seat(expert, gate)
    for _ in range(40):
        changed = _changed(expert, gate, len(expert) - 1)
        if not torch.equal(seat(*changed)[:-1], before[:-1]):
            return True
    return False


def never_changes_a_gate(seat, expert, gate):
    """misses that only gates count here"""
    return _search(seat, expert, gate, gates=False)


def one_cut_in_the_middle(seat, expert, gate):
    """misses that a single token"""
    before, cut = seat(expert, gate), len(expert) // 2
    for _ in range(40):
        if not torch.equal(seat(*_changed(expert, gate, cut))[:cut], before[:cut]):
            return True
    return False
