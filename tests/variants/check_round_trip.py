"""Unusual right answers to check_round_trip; a docstring is a phrase of what is said of them."""

import numpy as np


def as_arrays(pairs_RR, rank):
    pairs = pairs_RR.numpy()
    return pairs[rank], pairs[:, rank], pairs[:, rank], pairs[rank]


def as_one_array(pairs_RR, rank):
    pairs = pairs_RR.numpy()
    return np.stack([pairs[rank], pairs[:, rank], pairs[:, rank], pairs[rank]])
