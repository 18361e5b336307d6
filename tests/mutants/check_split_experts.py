"""Answers to check_split_experts: a wrong one's docstring is a phrase of its verdict.

Also true of all: multiplied_width.
Also true of as_many_routed_per_token: shared_is_extra_work, shared_is_large.
Also true of shared_is_extra_work: shared_on_top, shared_is_large.
Also true of shared_is_extra_parameters: shared_on_top.
Also true of shared_on_top: shared_is_extra_work, shared_is_extra_parameters, shared_is_large.
Also true of not_split: as_wide_as_before, as_many_per_token, as_many_experts.
"""


def as_wide_as_before(N, K, F, m, shared):
    """m times the parameters"""
    return m * N - shared, m * K - shared, F


def as_many_per_token(N, K, F, m, shared):
    """1/m of the work"""
    return m * N - shared, K - shared, F // m


def as_many_routed_per_token(N, K, F, m, shared):
    """1/m of the work"""
    return m * N - shared, K, F // m


def shared_is_extra_work(N, K, F, m, shared):
    """the shared experts are extra work"""
    return m * N - shared, m * K, F // m


def shared_is_extra_parameters(N, K, F, m, shared):
    """the shared experts are extra parameters"""
    return m * N, m * K - shared, F // m


def shared_on_top(N, K, F, m, shared):
    """the shared experts come on top"""
    return m * N, m * K, F // m


def shared_is_large(N, K, F, m, shared):
    """a shared expert takes one seat, not m"""
    return m * (N - shared), m * (K - shared), F // m


def as_many_experts(N, K, F, m, shared):
    """splitting in m gives m times as many"""
    return N - shared, m * K - shared, F // m


def not_split(N, K, F, m, shared):
    """nothing was split"""
    return N - shared, K - shared, F


def multiplied_width(N, K, F, m, shared):
    """must stay N * F and K * F"""
    return m * N - shared, m * K - shared, F * m


def right(N, K, F, m, shared):
    return m * N - shared, m * K - shared, F // m


def right_from_the_sums(N, K, F, m, shared):
    width = F / m
    return N * F / width - shared, K * F / width - shared, width
