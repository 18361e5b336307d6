"""Unusual right answers to check_violations; a docstring is a phrase of what is said of them."""

import numpy as np


def by_arrays(loads_SE):
    loads = loads_SE.numpy()
    each = loads.max(1) / loads.mean(1) - 1
    return [np.float32(loads.sum(0).max() / loads.sum(0).mean() - 1), each.mean()]


def as_a_dict(loads_SE):
    whole_E = loads_SE.sum(0)
    each_S = loads_SE.amax(1) / loads_SE.mean(1) - 1
    return {"global": float(whole_E.max() / whole_E.mean() - 1), "batch": each_S.mean()[None]}
