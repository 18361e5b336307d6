"""Answers to check_experts_needed: (bits, per_expert, others, bits_per_parameter) -> E.

Also true of rounded_down: cut_to_whole_parameters.
Also true of rounded: rounded_down, cut_to_whole_parameters.
Also true of others_in_the_way: experts_alone.
Also true of cut_to_whole_parameters: rounded_down.
Also true of divided_to_whole_parameters: rounded_down.
Also true of rounded_to_whole_parameters: rounded_down, rounded.
"""

import math


def right_by_rounding_up(bits, per_expert, others, density):
    return max(1, math.ceil((bits / density - others) / per_expert))


def right_by_trying(bits, per_expert, others, density):
    experts = 1
    while (others + experts * per_expert) * density < bits:
        experts += 1
    return experts


def rounded_down(bits, per_expert, others, density):
    """with that many experts the book does not fit yet"""
    return max(1, int((bits / density - others) / per_expert))


def rounded(bits, per_expert, others, density):
    """rounded to the nearest"""
    return max(1, round((bits / density - others) / per_expert))


def one_more(bits, per_expert, others, density):
    """one more than is needed"""
    return max(1, int((bits / density - others) / per_expert) + 1)


def experts_alone(bits, per_expert, others, density):
    """the other parameters store bits too"""
    return max(1, math.ceil(bits / density / per_expert))


def one_bit_each(bits, per_expert, others, density):
    """a parameter does not hold one bit"""
    return max(1, math.ceil((bits - others) / per_expert))


def times(bits, per_expert, others, density):
    """divide, to get parameters"""
    return max(1, math.ceil((bits * density - others) / per_expert))


def others_in_each(bits, per_expert, others, density):
    """once for each expert"""
    return max(1, math.ceil(bits / density / (per_expert + others)))


def others_in_the_way(bits, per_expert, others, density):
    """they take a part of it"""
    return max(1, math.ceil((bits / density + others) / per_expert))


def below_one(bits, per_expert, others, density):
    """there is at least one expert"""
    return math.ceil((bits / density - others) / per_expert)


def cut_to_whole_parameters(bits, per_expert, others, density):
    """a part of a parameter takes a whole one"""
    return max(1, math.ceil((int(bits / density) - others) / per_expert))


def divided_to_whole_parameters(bits, per_expert, others, density):
    """a part of a parameter takes a whole one"""
    return max(1, -(-(bits // density - others) // per_expert))


def rounded_to_whole_parameters(bits, per_expert, others, density):
    """a part of a parameter takes a whole one"""
    return max(1, math.ceil((round(bits / density) - others) / per_expert))


def right_with_whole_parameters(bits, per_expert, others, density):
    return int(max(1, -(-(math.ceil(bits / density) - others) // per_expert)))
