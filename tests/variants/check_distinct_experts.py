"""Unusual right answers to check_distinct_experts; a docstring is a phrase of what is said."""

import numpy as np


def as_float32(experts, top_k, tokens):
    return np.float32(experts * (1 - (1 - top_k / experts) ** tokens))
