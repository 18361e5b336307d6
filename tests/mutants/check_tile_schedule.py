"""Answers to check_tile_schedule: a wrong one's docstring is what its verdict must say."""

import torch


def _cut(offsets_E1, tiles_E, step):
    expert = torch.arange(len(tiles_E)).repeat_interleave(tiles_E)
    nth = torch.arange(len(expert)) - (tiles_E.cumsum(0) - tiles_E)[expert]
    return expert, offsets_E1[expert] + nth * step


def rounded_down(offsets_E1, height):
    """need a tile too, even if they do not fill it"""
    return _cut(offsets_E1, offsets_E1.diff() // height, height)


def one_for_the_empty(offsets_E1, height):
    """an expert without rows needs none"""
    return _cut(offsets_E1, (-(-offsets_E1.diff() // height)).clamp(min=1), height)


def always_one_more(offsets_E1, height):
    """needs no further one"""
    tiles = offsets_E1.diff() // height + 1
    return _cut(offsets_E1, tiles * (offsets_E1.diff() > 0), height)


def cut_through_experts(offsets_E1, height):
    """each expert's tiles start at its own offset"""
    row = torch.arange(0, int(offsets_E1[-1]), height)
    return torch.searchsorted(offsets_E1[1:].contiguous(), row, right=True), row


def anew_for_each(offsets_E1, height):
    """these start anew with each expert"""
    expert, row = right_by_repeat(offsets_E1, height)
    return expert, row - offsets_E1[expert]


def in_tiles(offsets_E1, height):
    """these count tiles, not rows"""
    return _cut(offsets_E1, -(-offsets_E1.diff() // height), 1)


def exchanged(offsets_E1, height):
    """the two are swapped"""
    return right_by_repeat(offsets_E1, height)[::-1]


def right_by_repeat(offsets_E1, height):
    return _cut(offsets_E1, (offsets_E1.diff() + height - 1) // height, height)


def right_by_loops(offsets_E1, height):
    found = [
        (e, row)
        for e in range(len(offsets_E1) - 1)
        for row in range(int(offsets_E1[e]), int(offsets_E1[e + 1]), height)
    ]
    return [e for e, _ in found], [row for _, row in found]


def right_by_search(offsets_E1, height):
    tiles = -(-offsets_E1.diff() // height)
    end = tiles.cumsum(0)
    tile = torch.arange(int(end[-1]))
    expert = torch.searchsorted(end, tile, right=True)
    return expert.int(), (offsets_E1[expert] + (tile - (end - tiles)[expert]) * height).int()


def in_padded_coordinates(offsets_E1, height):
    """no row is padding here"""
    expert_M, _ = right_by_loops(offsets_E1, height)
    return expert_M, height * torch.arange(len(expert_M))
