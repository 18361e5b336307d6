"""Unusual right answers to check_rank; a docstring is a phrase of what is said of them."""

import numpy as np
import torch


def as_fractions(expert_T, num_experts):
    return torch.tensor([float((expert_T[:t] == e).sum()) for t, e in enumerate(expert_T)])


def as_array(expert_T, num_experts):
    """asked is a tensor, and yours is a numpy ndarray"""
    hot_TE = np.eye(num_experts)[expert_T.numpy()]
    return ((hot_TE.cumsum(0) - 1) * hot_TE).sum(1)
