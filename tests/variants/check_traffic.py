"""Unusual right answers to check_traffic; a docstring is a phrase of what is said of them."""


def as_lists(expert_RTK, num_experts):
    """asked is a tensor, and yours is a list"""
    R = len(expert_RTK)
    each = num_experts // R
    return [[int((rank // each == to).sum()) for to in range(R)] for rank in expert_RTK]
