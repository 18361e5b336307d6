"""Claims for check_orders_agree: each wrong one says in its docstring what it must be told.

Also true of always: one_is_enough.
Also true of never: only_if_renormalised, the_other_way_round.
Also true of one_is_enough: always.
Also true of the_other_way_round: always, never, one_is_enough.
Also true of only_from_two_up: never.
"""


def always(renormalize, k, num_experts):
    """add up to less than 1"""
    return True


def never(renormalize, k, num_experts):
    """cancels the softmax's denominator"""
    return False


def only_if_renormalised(renormalize, k, num_experts):
    """with k = E nothing is left out"""
    return renormalize


def one_is_enough(renormalize, k, num_experts):
    """with k = 1, top-k → softmax gives a constant 1"""
    return renormalize or k in (1, num_experts)


def the_other_way_round(renormalize, k, num_experts):
    """cancels the softmax's denominator"""
    return not renormalize


def only_from_two_up(renormalize, k, num_experts):
    """cancels the softmax's denominator"""
    return k == num_experts or (renormalize and k > 1)


def says_nothing(renormalize, k, num_experts):
    """return True or False"""


def right_claim(renormalize, k, num_experts):
    return renormalize or k == num_experts


def right_at_length(renormalize, k, num_experts):
    left_out = num_experts - k
    if left_out == 0:
        return True
    return bool(renormalize)
