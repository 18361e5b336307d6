"""Unusual right answers to check_selective_logits; a docstring is a phrase of what is said."""

import torch


def in_float64(x, w):
    return torch.einsum("td,ed->te", x.double(), w.double())
