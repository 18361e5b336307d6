"""Answers to check_least_time: (operations, size, peak, bandwidth) -> seconds.

Also true of added: the_faster.
Also true of the_faster: added.
Also true of no_memory: added.
"""


def right(operations, size, peak, bandwidth):
    return max(operations / peak, size / bandwidth)


def right_by_the_balance(operations, size, peak, bandwidth):
    waits = operations / size < peak / bandwidth
    return size / bandwidth if waits else operations / peak


def added(operations, size, peak, bandwidth):
    """the two go on at the same time"""
    return operations / peak + size / bandwidth


def the_faster(operations, size, peak, bandwidth):
    """the faster of the two"""
    return min(operations / peak, size / bandwidth)


def no_memory(operations, size, peak, bandwidth):
    """this knows no memory"""
    return operations / peak


def a_rate(operations, size, peak, bandwidth):
    """this is a rate"""
    return min(peak, operations / size * bandwidth)
