"""Answers to check_reads_per_token: a wrong one's docstring is what its verdict must say."""


def _read(E, K, T):
    return E * (1 - (1 - K / E) ** T)


def _kept(g, right):
    return sum(right**i for i in range(g + 1))


def never_agreed(E, K, g, right):
    """tokens of one check share experts by chance"""
    return K * (g + 1) / _kept(g, right)


def guesses_only(E, K, g, right):
    """g + 1"""
    return _read(E, K, g) / _kept(g, right)


def as_if_dense(E, K, g, right):
    """so it is in a dense model"""
    return K / _kept(g, right)


def each_alone(E, K, g, right):
    """a guess counts only if all before it are right"""
    return _read(E, K, g + 1) / (1 + g * right)


def all_right(E, K, g, right):
    """as if every guess were right"""
    return _read(E, K, g + 1) / (g + 1)


def a_check(E, K, g, right):
    """that is one check"""
    return _read(E, K, g + 1)


def upside_down(E, K, g, right):
    """asked is experts for a token"""
    return _kept(g, right) / _read(E, K, g + 1)


def right_geometric(E, K, g, right):
    kept = g + 1 if right == 1 else (1 - right ** (g + 1)) / (1 - right)
    return _read(E, K, g + 1) / kept


def right_by_loop(E, K, g, right):
    spared, kept = 1.0, 0.0
    for i in range(g + 1):
        spared *= 1 - K / E
        kept += right**i
    return E * (1 - spared) / kept
