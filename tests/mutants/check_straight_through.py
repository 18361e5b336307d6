"""Answers to check_straight_through: a wrong one has in its docstring what its verdict must say.

Also true of weighted: open_only.
"""


def soft(p_T, b_T):
    """the value is p"""
    return p_T * 1


def cut_off(p_T, b_T):
    """no slope reaches p"""
    return b_T + 0 * p_T


def weighted(p_T, b_T):
    """a soft weight, not a gate"""
    return b_T * p_T


def open_only(p_T, b_T):
    """only open gates get a slope"""
    return b_T + b_T * (p_T - p_T.detach())


def right(p_T, b_T):
    return p_T + (b_T - p_T).detach()


def right_turned(p_T, b_T):
    return b_T.detach() + p_T - p_T.detach()
