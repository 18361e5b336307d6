"""Answers to check_judge: (low, high, least, most) -> a verdict.

Also true of by_the_middle: by_a_touch, never_undecided.
Also true of by_a_touch: never_undecided.
Also true of lower_end_alone: by_a_touch.
Also true of upper_end_alone: by_a_touch.
"""


def right_by_counting(low, high, least, most):
    inside = [least <= end <= most for end in (low, high)]
    if all(inside):
        return "holds"
    return "undecided" if any(inside) or low < least < high else "does not hold"


def right_by_overlap(low, high, least, most):
    if max(low, least) > min(high, most):
        return "does not hold"
    return "holds" if (max(low, least), min(high, most)) == (low, high) else "undecided"


def by_the_middle(low, high, least, most):
    """the middle decides"""
    return "holds" if least <= (low + high) / 2 <= most else "does not hold"


def by_a_touch(low, high, least, most):
    """only reaches into the range"""
    return "holds" if high >= least and low <= most else "does not hold"


def never_undecided(low, high, least, most):
    """not all inside is not the same as all outside"""
    return "holds" if least <= low and high <= most else "does not hold"


def lower_end_alone(low, high, least, most):
    """it has an upper one"""
    return "holds" if low >= least else "does not hold" if high < least else "undecided"


def upper_end_alone(low, high, least, most):
    """it has a lower one"""
    return "holds" if high <= most else "does not hold" if low > most else "undecided"


def ends_outside(low, high, least, most):
    """the ends of the range belong to it"""
    if least < low and high < most:
        return "holds"
    return "does not hold" if high < least or low > most else "undecided"
