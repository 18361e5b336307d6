"""Unusual right answers to check_below_one; a docstring is a phrase of what is said of them."""


def best_by_a_millionth(E):
    if E == 2:
        return [[1e-6, 0.0]] * 3 + [[0.0, 9.0]]
    busy = (E + 1) // 2
    return [[1e-6 if e == t else -9.0 * (e < busy) for e in range(E)] for t in range(busy)]
