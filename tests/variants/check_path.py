"""Unusual right answers to check_path; a docstring is a phrase of what is said of them."""

import numpy as np
import torch


def as_tensor(trace, token):
    return torch.stack([r.expert_N[r.token_N == token][0] for r in trace.layers])


def as_array(trace, token):
    return np.array([r.expert_N[r.token_N == token][0] for r in trace.layers], dtype=np.float32)


def as_generator(trace, token):
    return (r.expert_N[r.token_N == token][0] for r in trace.layers)
