"""Answers to check_rows_enough: (peak, bandwidth, bytes_each) -> rows.

Also true of no_bytes: fewer_for_more.
Also true of the_balance: one_operation, no_bytes, fewer_for_more.
"""


def right(peak, bandwidth, bytes_each):
    return peak * bytes_each / (2 * bandwidth)


def right_by_the_weight(peak, bandwidth, bytes_each):
    seconds = bytes_each / bandwidth
    return seconds * peak / 2


def one_operation(peak, bandwidth, bytes_each):
    """multiplied and added"""
    return peak / bandwidth * bytes_each


def no_bytes(peak, bandwidth, bytes_each):
    """more bytes than one, or fewer"""
    return peak / bandwidth / 2


def fewer_for_more(peak, bandwidth, bytes_each):
    """more bytes need more rows"""
    return peak / bandwidth / bytes_each / 2


def the_balance(peak, bandwidth, bytes_each):
    """this is the machine's balance"""
    return peak / bandwidth
