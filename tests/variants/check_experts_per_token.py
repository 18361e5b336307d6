"""Unusual right answers to check_experts_per_token; a docstring is a phrase of what is said."""

import numpy as np


def as_list(token_EC, num_tokens):
    """asked is a tensor, and yours is a list"""
    counts = [int((token_EC == t).sum()) for t in range(num_tokens)]
    bins = [{0}, {1}, {2}, {3, 4}, set(range(5, 99))]
    return [sum(c in one for c in counts) / num_tokens for one in bins]


def as_float16_array(token_EC, num_tokens):
    return np.array(as_list(token_EC, num_tokens)).astype(np.float64)
