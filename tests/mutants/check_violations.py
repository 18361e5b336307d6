"""Answers to check_violations: a wrong one's docstring is a phrase of its verdict."""


def _vio(load):
    return load.amax(-1) / load.mean(-1) - 1


def mean_of_batches(loads_SE):
    """pool the loads first"""
    return _vio(loads_SE).mean(), _vio(loads_SE).mean()


def worst_batch(loads_SE):
    """the global one is the worst batch"""
    return _vio(loads_SE).max(), _vio(loads_SE).mean()


def worst_batch_second(loads_SE):
    """it should be the mean of the batches"""
    return _vio(loads_SE.sum(0)), _vio(loads_SE).max()


def swapped(loads_SE):
    """the two are swapped"""
    return right(loads_SE)[::-1]


def max_over_mean(loads_SE):
    """how far it is above 1"""
    return tuple(value + 1 for value in right(loads_SE))


def over_the_largest(loads_SE):
    """not by the largest"""
    pooled_E = loads_SE.sum(0)
    each_S = (loads_SE.amax(1) - loads_SE.mean(1)) / loads_SE.amax(1)
    return (pooled_E.max() - pooled_E.mean()) / pooled_E.max(), each_S.mean()


def the_idlest(loads_SE):
    """MaxVio looks at the busiest"""
    pooled_E = loads_SE.sum(0)
    each_S = 1 - loads_SE.amin(1) / loads_SE.mean(1)
    return 1 - pooled_E.min() / pooled_E.mean(), each_S.mean()


def pooled_shares(loads_SE):
    """pool the counts, not the shares"""
    return _vio((loads_SE / loads_SE.sum(1, keepdim=True)).mean(0)), _vio(loads_SE).mean()


def in_pairs(loads_SE):
    """divide it by the mean load"""
    pooled_E = loads_SE.sum(0)
    return pooled_E.max() - pooled_E.mean(), (loads_SE.amax(1) - loads_SE.mean(1)).mean()


def one_number(loads_SE):
    """return two numbers"""
    return _vio(loads_SE.sum(0))


def right(loads_SE):
    return _vio(loads_SE.sum(0)), _vio(loads_SE).mean()


def right_in_a_loop(loads_SE):
    rows = loads_SE.tolist()
    pooled = [sum(column) for column in zip(*rows, strict=True)]
    found = [max(row) * len(row) / sum(row) - 1 for row in (pooled, *rows)]
    return found[0], sum(found[1:]) / len(rows)
