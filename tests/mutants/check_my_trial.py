"""Answers to check_my_trial: (ours, theirs, least, most) -> a verdict."""


def right_by_counting(ours, theirs, least, most):
    inside = sum(least <= a / b <= most for a, b in zip(ours, theirs, strict=True))
    return {0: "does not hold", len(ours): "holds"}.get(inside, "undecided")


def _of(values, least, most):
    inside = [least <= v <= most for v in values]
    return "holds" if all(inside) else "undecided" if any(inside) else "does not hold"


def right_by_ends(ours, theirs, least, most):
    values = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    if least <= values[0] and values[-1] <= most:
        return "holds"
    return "undecided" if any(least <= v <= most for v in values) else "does not hold"


def of_means(ours, theirs, least, most):
    """the pairs are lost"""
    return _of([sum(ours) / sum(theirs)], least, most)


def turned_round(ours, theirs, least, most):
    """the quotient is turned round"""
    return _of([b / a for a, b in zip(ours, theirs, strict=True)], least, most)


def differences(ours, theirs, least, most):
    """about a quotient"""
    return _of([a - b for a, b in zip(ours, theirs, strict=True)], least, most)


def any_seed(ours, theirs, least, most):
    """one seed inside is not all of them"""
    some = any(least <= a / b <= most for a, b in zip(ours, theirs, strict=True))
    return "holds" if some else "does not hold"


def no_doubt(ours, theirs, least, most):
    """one seed outside is not all of them"""
    whole = all(least <= a / b <= most for a, b in zip(ours, theirs, strict=True))
    return "holds" if whole else "does not hold"


def best_seed(ours, theirs, least, most):
    """the best seed decides"""
    return _of([max(a / b for a, b in zip(ours, theirs, strict=True))], least, most)
