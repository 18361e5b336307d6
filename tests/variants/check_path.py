"""Unusual right answers to check_path; a docstring is a phrase of what is said of them."""

import numpy as np
import torch


def _best(r, token):
    mine = r.token_N == token
    return r.expert_N[mine][r.gate_N[mine].argmax()]


def as_tensor(trace, token):
    return torch.stack([_best(r, token) for r in trace.layers])


def as_array(trace, token):
    return np.array([_best(r, token) for r in trace.layers], dtype=np.float32)


def as_generator(trace, token):
    return (_best(r, token) for r in trace.layers)
