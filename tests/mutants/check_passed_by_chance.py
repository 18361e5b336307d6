"""Answers to check_passed_by_chance: (null, least, most) -> a share."""


def right_by_a_list(null, least, most):
    passed = [value for value in null if not value < least and not value > most]
    return len(passed) / len(null)


def right_by_filter(null, least, most):
    return len([x for x in null if not (x < least or x > most)]) / len(null)


def refused(null, least, most):
    """the share that the rule refuses"""
    return sum(not least <= x <= most for x in null) / len(null)


def count(null, least, most):
    """a number of draws"""
    return sum(least <= x <= most for x in null)


def lower_alone(null, least, most):
    """only the lower end"""
    return sum(x >= least for x in null) / len(null)


def upper_alone(null, least, most):
    """only the upper end"""
    return sum(x <= most for x in null) / len(null)


def ends_outside(null, least, most):
    """the ends of the range belong to it"""
    return sum(least < x < most for x in null) / len(null)


def of_the_mean(null, least, most):
    """the middle of the draws is asked, not each"""
    return float(least <= sum(null) / len(null) <= most)
