"""Answers to check_offsets: a wrong one's docstring is what its verdict must say."""

import torch


def ends(count_BE):
    """these are the ends; expert 0 begins at row 0"""
    return count_BE.sum(0).cumsum(0)


def without_the_end(count_BE):
    """one number is missing"""
    return right_by_cumsum(count_BE)[:-1]


def loads(count_BE):
    """these are the loads"""
    return count_BE.sum(0)


def first_block(count_BE):
    """this counts the first block only"""
    return right_by_cumsum(count_BE[:1])


def over_the_blocks(count_BE):
    """add up the blocks first"""
    return right_by_cumsum(count_BE.T)


def last_rows(count_BE):
    """not the last row of the one before"""
    return right_by_cumsum(count_BE) - 1


def zero_at_the_end(count_BE):
    """the zero belongs in front"""
    return right_by_cumsum(count_BE).roll(-1)


def running_over_blocks(count_BE):
    """here it went over the blocks"""
    return torch.cat([torch.zeros(1, dtype=torch.long), count_BE.cumsum(0).sum(0)])


def right_by_cumsum(count_BE):
    return torch.cat([torch.zeros(1, dtype=torch.long), count_BE.sum(0).cumsum(0)])


def right_by_comparison(count_BE):
    load_E = count_BE.sum(0)
    E = len(load_E)
    before = torch.arange(E)[None, :] < torch.arange(E + 1)[:, None]
    return (load_E * before).sum(1).int()


def right_by_a_loop(count_BE):
    found = [0]
    for n in count_BE.sum(0).tolist():
        found.append(found[-1] + n)
    return found
