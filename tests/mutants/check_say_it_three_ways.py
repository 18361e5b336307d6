"""Answers to check_say_it_three_ways: (slow, fast) -> times, percent faster, percent saved.

Also true of what_is_left: turned_round.
"""


def right_by_speeds(slow, fast):
    speed, base = 1 / fast, 1 / slow
    return speed / base, 100 * (speed - base) / base, 100 * (slow - fast) / slow


def right_in_a_list(slow, fast):
    times = slow / fast
    return [times, 100 * times - 100, 100 - 100 / times]


def four_times_is_400_percent(slow, fast):
    """times as fast is not times faster"""
    return slow / fast, 100 * slow / fast, 100 * (1 - fast / slow)


def saved_of_the_fast(slow, fast):
    """a share of the slow model's time"""
    return slow / fast, 100 * (slow / fast - 1), 100 * (slow - fast) / fast


def what_is_left(slow, fast):
    """that is left, not saved"""
    return slow / fast, 100 * (slow / fast - 1), 100 * fast / slow


def shares(slow, fast):
    """percent, not shares"""
    return slow / fast, slow / fast - 1, 1 - fast / slow


def turned_round(slow, fast):
    """the quotient of times is turned round"""
    return fast / slow, 100 * (slow / fast - 1), 100 * (1 - fast / slow)


def faster_by_times(slow, fast):
    """percent faster compares speeds"""
    return slow / fast, 100 * (slow - fast) / slow, 100 * (slow - fast) / slow
