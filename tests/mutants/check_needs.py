"""Answers to check_needs: (known_N, without_EN) -> needed_N.

Also true of can_do_without: still_right.
Also true of every_change: never_known.
Also true of still_right: can_do_without.
"""

import torch


def right_in_one_line(known, without):
    return (known & ~without).sum(0)


def right_by_subtracting(known, without):
    return known.long() * (len(without) - without.sum(0))


def right_as_a_loop(known, without):
    held = torch.zeros(len(known), dtype=torch.long)
    for right in without:
        held[known & ~right] += 1
    return held


def never_known(known, without):
    """an entry that was not known before is not forgotten"""
    return (~without).sum(0)


def can_do_without(known, without):
    """counts the experts that it can do without"""
    return (known & without).sum(0)


def every_change(known, without):
    """counts every change"""
    return (known ^ without).sum(0)


def for_each_expert(known, without):
    """for each expert, how many entries need it"""
    return (known & ~without).sum(1)


def any_at_all(known, without):
    """says whether any expert is needed"""
    return (known & ~without).any(0).long()


def a_share(known, without):
    """a share of the experts"""
    return (known & ~without).float().mean(0)


def still_right(known, without):
    """what is right with the expert gone"""
    return without.sum(0)
