"""Answers to check_three_reasons: (dense, roofline, products, measured) -> three parts."""

from itertools import pairwise


def right(dense, roofline, products, measured):
    return roofline - dense, products - roofline, measured - products


def right_as_pairs(*times):
    return tuple(b - a for a, b in pairwise(times))


def as_they_are(dense, roofline, products, measured):
    """take the difference"""
    return roofline, products, measured


def beyond_dense(dense, roofline, products, measured):
    """not beyond the dense network"""
    return roofline - dense, products - dense, measured - dense


def shares(dense, roofline, products, measured):
    """these are shares"""
    lost = measured - dense
    return (roofline - dense) / lost, (products - roofline) / lost, (measured - products) / lost


def exchanged(dense, roofline, products, measured):
    """the last two are exchanged"""
    return roofline - dense, measured - products, products - roofline
