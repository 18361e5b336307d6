"""Answers to check_distinct_experts: a wrong one's docstring is what its verdict must say."""

import math

import torch


def never_agree(E, K, T):
    """as if no two tokens ever agreed"""
    return min(E, K * T)


def with_replacement(E, K, T):
    """a token's K experts differ"""
    return E * (1 - (1 - 1 / E) ** (K * T))


def a_chance(E, K, T):
    """the chance of one expert to be in use"""
    return 1 - (1 - K / E) ** T


def left_out(E, K, T):
    """how many are left out"""
    return E * (1 - K / E) ** T


def by_all(E, K, T):
    """an expert that every token chooses"""
    return E * (K / E) ** T


def right_in_closed_form(E, K, T):
    return E * (1 - (1 - K / E) ** T)


def right_token_by_token(experts, top_k, tokens):
    used = 0.0
    for _ in range(tokens):
        used += (experts - used) * top_k / experts
    return torch.tensor(used, dtype=torch.float64)


def right_by_logarithms(E, K, T):
    return float(E) if E == K else -E * math.expm1(T * math.log1p(-K / E))


def rounded(E, K, T):
    """an expectation need not be whole"""
    return round(right_in_closed_form(E, K, T))
