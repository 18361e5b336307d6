"""Answers to check_bytes_per_token: (tokens, E, K, expert_bytes) -> bytes.

Also true of each_by_itself: pairs.
Also true of pairs: each_by_itself.
Also true of one_choice: with_replacement.
Also true of with_replacement: one_choice.
"""

from moe_lite.course.cost import distinct_experts


def right_by_hand(tokens, E, K, size):
    return E * (1 - ((E - K) / E) ** tokens) * size / tokens


def right_by_the_library(tokens, E, K, size):
    return distinct_experts(E, K, tokens) * size / tokens


def right_token_by_token(tokens, E, K, size):
    """Each new token adds its K experts, less those that somebody has read already."""
    read = 0.0
    for _ in range(tokens):
        read += K * (1 - read / E)
    return read * size / tokens


def the_whole_batch(tokens, E, K, size):
    """that is the whole batch's"""
    return distinct_experts(E, K, tokens) * size


def each_by_itself(tokens, E, K, size):
    """tokens that meet at an expert share it"""
    return K * size


def all_of_them(tokens, E, K, size):
    """all experts are read whatever the batch"""
    return E * size / tokens


def pairs(tokens, E, K, size):
    """two tokens may choose the same expert"""
    return min(E, K * tokens) * size / tokens


def one_choice(tokens, E, K, size):
    """K counts"""
    return distinct_experts(E, 1, tokens) * size / tokens


def nobody_reads(tokens, E, K, size):
    """that is the share that nobody reads"""
    return E * (1 - K / E) ** tokens * size / tokens


def experts_not_bytes(tokens, E, K, size):
    """that is a number of experts"""
    return distinct_experts(E, K, tokens) / tokens


def with_replacement(tokens, E, K, size):
    """the K choices of a token are all different"""
    return E * (1 - (1 - 1 / E) ** (K * tokens)) * size / tokens
