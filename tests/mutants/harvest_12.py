"""Chapter 12's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch
import torch.nn.functional as F


def _blocks(x, E, block):
    return torch.stack([part.bincount(minlength=E) for part in x.split(block)])


check_block_counts = [
    (
        "without the short block",
        "the last block is shorter, and counts too",
        lambda x, E, b: (
            _blocks(x[: len(x) // b * b], E, b)
            if len(x) >= b
            else torch.zeros(0, E, dtype=torch.long)
        ),
    ),
    (
        "everything in one row",
        "return a tensor of shape (3, 3), not one of shape (1, 3)",
        lambda x, E, b: x.bincount(minlength=E)[None],
    ),
    (
        "so many blocks",
        "chunk(n) makes n pieces",
        lambda x, E, b: torch.stack([p.bincount(minlength=E) for p in x.chunk(b)]),
    ),
    (
        "no minlength",
        "raised RuntimeError",
        lambda x, E, b: torch.stack([p.bincount() for p in x.split(b)]),
    ),
    (
        "turned",
        "a row for each block, a column for each expert",
        lambda x, E, b: _blocks(x, E, b).T,
    ),
    (
        "added up from block to block",
        "each program counts its block alone",
        lambda x, E, b: _blocks(x, E, b).cumsum(0),
    ),
    (
        "every so-manieth pair",
        "block b has the pairs b·block, b·block + 1, …, neighbours",
        lambda x, E, b: torch.stack(
            [x[i :: -(-len(x) // b)].bincount(minlength=E) for i in range(-(-len(x) // b))]
        ),
    ),
    ("shares", "right up to a factor", lambda x, E, b: _blocks(x, E, b) / b),
    (
        "filled up with expert 0",
        "the last block was filled up with zeros, and zero is an expert",
        lambda x, E, b: _blocks(F.pad(x, (0, -len(x) % b)), E, b),
    ),
    (
        "three experts, as shown",
        "an expert that nobody chose has a column too",
        lambda x, E, b: _blocks(x, 3, b)[:, :3],
    ),
    (
        "whether any",
        "at most one is counted",
        lambda x, E, b: _blocks(x, E, b).bool(),
    ),
]


def _offsets(c):
    return F.pad(c.sum(0).cumsum(0), (1, 0))


check_offsets = [
    ("the ends", "these are the ends", lambda c: c.sum(0).cumsum(0)),
    ("the beginnings, no end", "one number is missing", lambda c: _offsets(c)[:-1]),
    ("the counts themselves", "these are the loads", lambda c: F.pad(c.sum(0), (1, 0))),
    ("over the blocks", "this adds up experts", lambda c: F.pad(c.sum(1).cumsum(0), (1, 0))),
    (
        "block by block",
        "return a tensor of shape (4,), not one of shape (3, 4)",
        lambda c: F.pad(c.cumsum(0), (1, 0)),
    ),
    ("a zero behind", "the zero belongs in front", lambda c: F.pad(c.sum(0).cumsum(0), (0, 1))),
    ("from 1", "every number is off by +1", lambda c: _offsets(c) + 1),
    (
        "the first block's",
        "this counts the first block only",
        lambda c: F.pad(c[0].cumsum(0), (1, 0)),
    ),
    (
        "the last row",
        "not the running sum of the loads, from 0 to the number of pairs",
        lambda c: torch.cat([_offsets(c)[:-1], _offsets(c)[-1:] - 1]),
    ),
    (
        "idle experts left out",
        "an expert without rows has an offset too",
        lambda c: F.pad(c.sum(0)[c.sum(0) > 0].cumsum(0), (1, 0)),
    ),
]


def _rows(x, offsets):
    one = F.one_hot(x, len(offsets) - 1)
    return offsets[x] + (one.cumsum(0) * one).sum(1) - 1


check_stable_rows = [
    ("the pair of each row", "this is the pair in each row", lambda x, o: x.argsort(stable=True)),
    (
        "itself counted",
        "one too many: the first pair of an expert lands at its offset",
        lambda x, o: _rows(x, o) + 1,
    ),
    (
        "without the offset",
        "this is the place among the expert's own rows",
        lambda x, o: _rows(x, o) - o[x],
    ),
    ("all at the beginning", "all pairs of an expert land in one row", lambda x, o: o[x]),
    (
        "the ends for the beginnings",
        "pairs start at their expert's end",
        lambda x, o: _rows(x, o) - o[x] + o[x + 1],
    ),
    (
        "the last pair first",
        "pairs of one expert come in reverse",
        lambda x, o: _rows(x.flip(0), o).flip(0),
    ),
    (
        "sorted",
        "not a row of its own for each pair, in expert order",
        lambda x, o: x.sort(stable=True).values,
    ),
    (
        "the last expert first",
        "experts come from the last to the first",
        lambda x, o: (-x).argsort(stable=True).argsort(),
    ),
    (
        "earlier pairs of any expert",
        "not a row of its own for each pair, in expert order",
        lambda x, o: o[x] + torch.arange(len(x)),
    ),
    (
        "offsets of the neighbour",
        "not a row of its own for each pair, in expert order",
        lambda x, o: _rows(x, o) - o[x] + o[(x - 1).clamp(min=0)],
    ),
    (
        "from the end back",
        "pairs of one expert come in reverse",
        lambda x, o: o[x + 1] - 1 - (_rows(x, o) - o[x]),
    ),
]


def _tiles(o, h, number=None):
    n = o.diff()
    tiles = (n + h - 1) // h if number is None else number(n)
    expert = torch.arange(len(tiles)).repeat_interleave(tiles)
    nth = torch.arange(len(expert)) - (tiles.cumsum(0) - tiles)[expert]
    return expert, o[expert] + nth * h, nth


check_tile_schedule = [
    (
        "rounded down",
        "the last rows need a tile too, even if they do not fill it",
        lambda o, h: _tiles(o, h, lambda n: n // h)[:2],
    ),
    (
        "one more where it fits",
        "an expert whose rows fill its tiles needs no further one",
        lambda o, h: _tiles(o, h, lambda n: torch.where(n > 0, n // h + 1, 0))[:2],
    ),
    (
        "one for the idle too",
        "an expert without rows needs none",
        lambda o, h: _tiles(o, h, lambda n: ((n + h - 1) // h).clamp(min=1))[:2],
    ),
    (
        "one each",
        "return a tensor of shape (7,), not one of shape (3,)",
        lambda o, h: _tiles(o, h, lambda n: torch.ones_like(n))[:2],
    ),
    ("swapped", "the two are swapped", lambda o, h: _tiles(o, h)[1::-1]),
    (
        "from each expert's own beginning",
        "rows count from the first of all",
        lambda o, h: (_tiles(o, h)[0], _tiles(o, h)[2] * h),
    ),
    (
        "numbers of tiles for rows",
        "row_M: not each expert's rows, cut into tiles from its offset on",
        lambda o, h: (_tiles(o, h)[0], _tiles(o, h)[2]),
    ),
    (
        "a grid over all rows",
        "rows of one expert follow those of the one before",
        lambda o, h: (_tiles(o, h)[0], torch.arange(len(_tiles(o, h)[0])) * h),
    ),
    (
        "first rows only",
        "number the tiles of each expert anew",
        lambda o, h: (_tiles(o, h)[0], o[_tiles(o, h)[0]]),
    ),
    (
        "two rows, as shown",
        "return a tensor of shape (3,), not one of shape (5,)",
        lambda o, h: _tiles(o, 2)[:2],
    ),
    (
        "the last row of each tile",
        "row_M: not each expert's rows, cut into tiles from its offset on",
        lambda o, h: (_tiles(o, h)[0], (_tiles(o, h)[1] + h).minimum(o[_tiles(o, h)[0] + 1]) - 1),
    ),
]


def _sum(y, g, n, K, kept):
    y = y.masked_fill((torch.arange(len(y)) >= kept)[:, None], 0.0)
    return (y * g[:, None])[n].view(-1, K, y.shape[1]).sum(1)


def _clears(y, g, n, K, kept):
    y[kept:] = 0
    return (y * g[:, None])[n].view(-1, K, y.shape[1]).sum(1)


check_sum_by_token = [
    (
        "times 0",
        "NaN came in from rows that nobody computed",
        lambda y, g, n, K, kept: (y * g[:, None])[n].view(-1, K, y.shape[1]).sum(1),
    ),
    (
        "no gates",
        "the gates are missing",
        lambda y, g, n, K, kept: _sum(y, torch.ones_like(g), n, K, kept),
    ),
    (
        "gates in the order of the pairs",
        "rows and gates are both in expert order",
        lambda y, g, n, K, kept: (
            (_sum(y, torch.ones_like(g), n, 1, kept) * g[:, None]).view(-1, K, y.shape[1]).sum(1)
        ),
    ),
    (
        "rows in expert order",
        "rows lie in expert order",
        lambda y, g, n, K, kept: _sum(y, g, torch.arange(len(n)), K, kept),
    ),
    (
        "the inverse order",
        "row_N was taken for its inverse",
        lambda y, g, n, K, kept: _sum(y, g, n.argsort(), K, kept),
    ),
    (
        "the mean",
        "these are means; a token's answers are added",
        lambda y, g, n, K, kept: _sum(y, g, n, K, kept) / K,
    ),
    (
        "choices for tokens",
        "a token's pairs are (T, K), not (K, T)",
        lambda y, g, n, K, kept: (
            (y.masked_fill((torch.arange(len(y)) >= kept)[:, None], 0.0) * g[:, None])[n]
            .view(K, -1, y.shape[1])
            .sum(0)
        ),
    ),
    (
        "one row too many",
        "row kept itself was not",
        lambda y, g, n, K, kept: _sum(y, g, n, K, kept + 1),
    ),
    (
        "one row too few",
        "the last row that was computed is left out",
        lambda y, g, n, K, kept: _sum(y, g, n, K, kept - 1),
    ),
    (
        "two choices, as shown",
        "raised RuntimeError",
        lambda y, g, n, K, kept: _sum(y, g, n, 2, kept),
    ),
    ("clears the answers it was given", "changes its input in place", _clears),
    (
        "pairs for rows",
        "kept is compared with the number of a pair",
        lambda y, g, n, K, kept: (
            (y * g[:, None])[n]
            .masked_fill((torch.arange(len(n)) >= kept)[:, None], 0.0)
            .view(-1, K, y.shape[1])
            .sum(1)
        ),
    ),
]
