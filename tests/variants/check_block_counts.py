"""Unusual right answers to check_block_counts; a docstring is a phrase of what is said."""

import numpy as np


def as_list_of_tensors(expert_N, num_experts, block):
    """asked is a tensor, and yours is a list"""
    return [part.bincount(minlength=num_experts) for part in expert_N.split(block)]


def as_array(expert_N, num_experts, block):
    """yours is a numpy ndarray"""
    parts = [expert_N[i : i + block].numpy() for i in range(0, len(expert_N), block)]
    return np.stack([np.bincount(part, minlength=num_experts) for part in parts])
