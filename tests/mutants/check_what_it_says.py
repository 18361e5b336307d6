"""Answers to check_what_it_says: a wrong one's docstring is a phrase of its verdict."""


def by_the_mean(low, high, paper):
    """judged by the middle"""
    return right((low + high) / 2, (low + high) / 2, paper) if low + high else "null"


def absence_of_evidence(low, high, paper):
    """it may hold the paper's effect as well"""
    return "null" if low <= 0 <= high else right(low, high, paper)


def significant(low, high, paper):
    """not yet the paper's size"""
    return "reproduced" if min(low * paper, high * paper) > 0 else right(low, high, paper)


def agrees_with_the_paper(low, high, paper):
    """so wide that it holds 0"""
    return "reproduced" if low <= paper <= high else right(low, high, paper)


def never_null(low, high, paper):
    """an interval that holds 0 is never null"""
    return "inconclusive" if low <= 0 <= high else right(low, high, paper)


def nothing_is_open(low, high, paper):
    """what cannot be told is called null"""
    word = right(low, high, paper)
    return "null" if word == "inconclusive" else word


def smaller_is_wrong(low, high, paper):
    """another size is no contradiction"""
    word = right(low, high, paper)
    return "contradicted" if word == "other size" else word


def one_sided(low, high, paper):
    """the paper's effect may be below 0"""
    return right(low, high, abs(paper))


def ends_as_they_came(low, high, paper):
    """the ends change places"""
    near, far = low / paper, high / paper
    if far < 0:
        return "contradicted"
    if near <= 0:
        return "null" if far < 0.5 else "inconclusive"
    return right(near, far, 1)


def right(low, high, paper):
    near, far = sorted((low / paper, high / paper))
    if far < 0:
        return "contradicted"
    if near <= 0:
        return "null" if far < 0.5 else "inconclusive"
    if near > 0.5 and far < 2:
        return "reproduced"
    return "other size" if far < 1 or near > 1 else "inconclusive"


def right_as_a_table(low, high, paper):
    near, far = sorted((low / paper, high / paper))
    rules = {
        "contradicted": far < 0,
        "null": near <= 0 <= far < 0.5,
        "reproduced": near > 0.5 and far < 2,
        "other size": near > 0 and (far < 1 or near > 1),
    }
    return next((word for word, holds in rules.items() if holds), "inconclusive")
