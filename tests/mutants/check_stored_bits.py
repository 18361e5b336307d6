"""Answers to check_stored_bits: (nats, values, choices) -> bits.

Also true of multiplied: in_nats.
Also true of what_is_missing: turned_round.
Also true of two_units: in_nats.
"""

import math

import torch


def right_as_a_difference(nats, values, choices):
    return values * (math.log2(choices) - nats / math.log(2))


def right_through_the_likelihood(nats, values, choices):
    """How many times likelier than chance the model makes the right value, in powers of two."""
    return values * math.log2(choices * math.exp(-nats))


def right_in_torch(nats, values, choices):
    chance = torch.tensor(choices, dtype=torch.float64).log()
    return values * (chance - nats) / torch.tensor(2.0, dtype=torch.float64).log()


def in_nats(nats, values, choices):
    """these are nats"""
    return values * (math.log(choices) - nats)


def multiplied(nats, values, choices):
    """a nat is more than a bit, so divide"""
    return values * (math.log(choices) - nats) * math.log(2)


def what_is_missing(nats, values, choices):
    """that is what is missing"""
    return values * nats / math.log(2)


def two_units(nats, values, choices):
    """bring them to one unit"""
    return values * (math.log2(choices) - nats)


def for_one_value(nats, values, choices):
    """that is for one value"""
    return math.log2(choices) - nats / math.log(2)


def all_there_is(nats, values, choices):
    """that is what there is to know"""
    return values * math.log2(choices)


def of_the_wrong_log(nats, values, choices):
    """log2 of the values, where it should be of the choices"""
    return values * (math.log(values) - nats) / math.log(2)


def base_ten(nats, values, choices):
    """bits have the base 2"""
    return values * (math.log10(choices) - nats / math.log(10))


def never_below_zero(nats, values, choices):
    """it is sure of wrong things"""
    return max(0.0, values * (math.log(choices) - nats) / math.log(2))


def turned_round(nats, values, choices):
    """the smaller the loss, the more is stored"""
    return values * (nats - math.log(choices)) / math.log(2)
