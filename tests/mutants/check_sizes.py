"""Answers to check_sizes: (D, F, E, K) -> total, active, width of both twins.

Also true of as_wide_as_one: one_expert.
"""


def right_in_one_line(D, F, E, K):
    return E * (3 * D * F + D), 3 * K * D * F + E * D, K * F, E * F


def right_from_shapes(D, F, E, K):
    """As the layer holds them: a gate (E, D), and w1, w3 (E, F, D) and w2 (E, D, F)."""
    gate, stack = E * D, E * F * D + E * F * D + E * D * F
    return gate + stack, gate + stack * K // E, F * K, F * E


def two_matrices(D, F, E, K):
    """these are two"""
    return E * (2 * D * F + D), 2 * K * D * F + E * D, K * F, E * F


def no_router(D, F, E, K):
    """are missing in both counts"""
    return 3 * E * D * F, 3 * K * D * F, K * F, E * F


def router_of_the_chosen(D, F, E, K):
    """a token asks the router about all E experts"""
    return E * (3 * D * F + D), K * (3 * D * F + D), K * F, E * F


def one_expert(D, F, E, K):
    """a token uses K experts, not one"""
    return E * (3 * D * F + D), 3 * D * F + E * D, K * F, E * F


def all_active(D, F, E, K):
    """all experts are counted as active"""
    return E * (3 * D * F + D), E * (3 * D * F + D), K * F, E * F


def only_the_chosen(D, F, E, K):
    """the others take memory too"""
    return 3 * K * D * F + E * D, 3 * K * D * F + E * D, K * F, E * F


def twins_exchanged(D, F, E, K):
    """right, but in another order"""
    return E * (3 * D * F + D), 3 * K * D * F + E * D, E * F, K * F


def as_wide_as_one(D, F, E, K):
    """as wide as one expert; a token uses K of them"""
    return E * (3 * D * F + D), 3 * K * D * F + E * D, F, E * F
