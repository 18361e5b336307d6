"""Answers to check_useful_rows: (load_E, height) -> share."""

import torch


def right(load_E, height):
    return sum(load_E) / sum(-(-n // height) * height for n in load_E)


def right_in_torch(load_E, height):
    load_E = torch.tensor(load_E)
    return load_E.sum() / (((load_E + height - 1) // height).sum() * height)


def all_in_a_row(load_E, height):
    """a tile belongs to one expert"""
    return sum(load_E) / (-(-sum(load_E) // height) * height)


def a_tile_for_nobody(load_E, height):
    """an expert without rows has no tile"""
    return sum(load_E) / sum(max(1, -(-n // height)) * height for n in load_E)


def padded(load_E, height):
    """padded, not tiles"""
    return sum(load_E) / (len(load_E) * max(load_E))


def wasted(load_E, height):
    """the share that is wasted"""
    return 1 - right(load_E, height)
