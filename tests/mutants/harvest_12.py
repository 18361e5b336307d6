"""Chapter 12's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch
import torch.nn.functional as F


def _blocks(x, E, block):
    return torch.stack([part.bincount(minlength=E) for part in x.split(block)])


check_block_counts = [
    (
        "without the short block",
        lambda x, E, b: (
            _blocks(x[: len(x) // b * b], E, b)
            if len(x) >= b
            else torch.zeros(0, E, dtype=torch.long)
        ),
    ),
    ("everything in one row", lambda x, E, b: x.bincount(minlength=E)[None]),
    ("so many blocks", lambda x, E, b: torch.stack([p.bincount(minlength=E) for p in x.chunk(b)])),
    ("no minlength", lambda x, E, b: torch.stack([p.bincount() for p in x.split(b)])),
    ("turned", lambda x, E, b: _blocks(x, E, b).T),
    ("added up from block to block", lambda x, E, b: _blocks(x, E, b).cumsum(0)),
    (
        "every so-manieth pair",
        lambda x, E, b: torch.stack(
            [x[i :: -(-len(x) // b)].bincount(minlength=E) for i in range(-(-len(x) // b))]
        ),
    ),
    ("shares", lambda x, E, b: _blocks(x, E, b) / b),
    ("filled up with expert 0", lambda x, E, b: _blocks(F.pad(x, (0, -len(x) % b)), E, b)),
    ("three experts, as shown", lambda x, E, b: _blocks(x, 3, b)[:, :3]),
    ("whether any", lambda x, E, b: _blocks(x, E, b).bool()),
]


def _offsets(c):
    return F.pad(c.sum(0).cumsum(0), (1, 0))


check_offsets = [
    ("the ends", lambda c: c.sum(0).cumsum(0)),
    ("the beginnings, no end", lambda c: _offsets(c)[:-1]),
    ("the counts themselves", lambda c: F.pad(c.sum(0), (1, 0))),
    ("over the blocks", lambda c: F.pad(c.sum(1).cumsum(0), (1, 0))),
    ("block by block", lambda c: F.pad(c.cumsum(0), (1, 0))),
    ("a zero behind", lambda c: F.pad(c.sum(0).cumsum(0), (0, 1))),
    ("from 1", lambda c: _offsets(c) + 1),
    ("the first block's", lambda c: F.pad(c[0].cumsum(0), (1, 0))),
    ("the last row", lambda c: torch.cat([_offsets(c)[:-1], _offsets(c)[-1:] - 1])),
    ("idle experts left out", lambda c: F.pad(c.sum(0)[c.sum(0) > 0].cumsum(0), (1, 0))),
]


def _rows(x, offsets):
    one = F.one_hot(x, len(offsets) - 1)
    return offsets[x] + (one.cumsum(0) * one).sum(1) - 1


check_stable_rows = [
    ("the pair of each row", lambda x, o: x.argsort(stable=True)),
    ("itself counted", lambda x, o: _rows(x, o) + 1),
    ("without the offset", lambda x, o: _rows(x, o) - o[x]),
    ("all at the beginning", lambda x, o: o[x]),
    ("the ends for the beginnings", lambda x, o: _rows(x, o) - o[x] + o[x + 1]),
    ("the last pair first", lambda x, o: _rows(x.flip(0), o).flip(0)),
    ("sorted", lambda x, o: x.sort(stable=True).values),
    ("the last expert first", lambda x, o: (-x).argsort(stable=True).argsort()),
    ("earlier pairs of any expert", lambda x, o: o[x] + torch.arange(len(x))),
    ("offsets of the neighbour", lambda x, o: _rows(x, o) - o[x] + o[(x - 1).clamp(min=0)]),
    ("from the end back", lambda x, o: o[x + 1] - 1 - (_rows(x, o) - o[x])),
]


def _tiles(o, h, number=None):
    n = o.diff()
    tiles = (n + h - 1) // h if number is None else number(n)
    expert = torch.arange(len(tiles)).repeat_interleave(tiles)
    nth = torch.arange(len(expert)) - (tiles.cumsum(0) - tiles)[expert]
    return expert, o[expert] + nth * h, nth


check_tile_schedule = [
    ("rounded down", lambda o, h: _tiles(o, h, lambda n: n // h)[:2]),
    (
        "one more where it fits",
        lambda o, h: _tiles(o, h, lambda n: torch.where(n > 0, n // h + 1, 0))[:2],
    ),
    (
        "one for the idle too",
        lambda o, h: _tiles(o, h, lambda n: ((n + h - 1) // h).clamp(min=1))[:2],
    ),
    ("one each", lambda o, h: _tiles(o, h, lambda n: torch.ones_like(n))[:2]),
    ("swapped", lambda o, h: _tiles(o, h)[1::-1]),
    ("from each expert's own beginning", lambda o, h: (_tiles(o, h)[0], _tiles(o, h)[2] * h)),
    ("numbers of tiles for rows", lambda o, h: (_tiles(o, h)[0], _tiles(o, h)[2])),
    (
        "a grid over all rows",
        lambda o, h: (_tiles(o, h)[0], torch.arange(len(_tiles(o, h)[0])) * h),
    ),
    ("first rows only", lambda o, h: (_tiles(o, h)[0], o[_tiles(o, h)[0]])),
    ("two rows, as shown", lambda o, h: _tiles(o, 2)[:2]),
    (
        "the last row of each tile",
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
    ("times 0", lambda y, g, n, K, kept: (y * g[:, None])[n].view(-1, K, y.shape[1]).sum(1)),
    ("no gates", lambda y, g, n, K, kept: _sum(y, torch.ones_like(g), n, K, kept)),
    (
        "gates in the order of the pairs",
        lambda y, g, n, K, kept: (
            (_sum(y, torch.ones_like(g), n, 1, kept) * g[:, None]).view(-1, K, y.shape[1]).sum(1)
        ),
    ),
    ("rows in expert order", lambda y, g, n, K, kept: _sum(y, g, torch.arange(len(n)), K, kept)),
    ("the inverse order", lambda y, g, n, K, kept: _sum(y, g, n.argsort(), K, kept)),
    ("the mean", lambda y, g, n, K, kept: _sum(y, g, n, K, kept) / K),
    (
        "choices for tokens",
        lambda y, g, n, K, kept: (
            (y.masked_fill((torch.arange(len(y)) >= kept)[:, None], 0.0) * g[:, None])[n]
            .view(K, -1, y.shape[1])
            .sum(0)
        ),
    ),
    ("one row too many", lambda y, g, n, K, kept: _sum(y, g, n, K, kept + 1)),
    ("one row too few", lambda y, g, n, K, kept: _sum(y, g, n, K, kept - 1)),
    ("two choices, as shown", lambda y, g, n, K, kept: _sum(y, g, n, 2, kept)),
    ("clears the answers it was given", _clears),
    (
        "pairs for rows",
        lambda y, g, n, K, kept: (
            (y * g[:, None])[n]
            .masked_fill((torch.arange(len(n)) >= kept)[:, None], 0.0)
            .view(-1, K, y.shape[1])
            .sum(1)
        ),
    ),
]


def _run(x, w1, w3, w2, o, cut=None, act=F.silu):
    out = [
        F.linear(act(F.linear(a, b)) * F.linear(a, c), d)
        for a, b, c, d in zip(
            (cut or x.split)(o.diff().tolist()), w1.unbind(), w3.unbind(), w2.unbind(), strict=True
        )
    ]
    return torch.cat(out)


def _sliced(x, w1, w3, w2, o):
    return torch.cat(
        [
            F.linear(F.silu(F.linear(a, w1[e])) * F.linear(a, w3[e]), w2[e])
            for e, a in enumerate(x.split(o.diff().tolist()))
        ]
    )


def _row_by_row(x, w1, w3, w2, o):
    e = torch.searchsorted(o[1:].contiguous(), torch.arange(len(x)), right=True)
    up = F.silu(torch.einsum("rd,rfd->rf", x, w1[e])) * torch.einsum("rd,rfd->rf", x, w3[e])
    return torch.einsum("rf,rdf->rd", up, w2[e])


check_expert_blocks = [
    ("one slice after another", _sliced),
    ("a copy of the weights for each row", _row_by_row),
    ("w1 and w3 swapped", lambda x, a, b, c, o: _run(x, b, a, c, o)),
    ("relu", lambda x, a, b, c, o: _run(x, a, b, c, o, act=torch.relu)),
    (
        "even blocks",
        lambda x, a, b, c, o: torch.cat(
            [
                F.linear(F.silu(F.linear(p, q)) * F.linear(p, r), s)
                for p, q, r, s in zip(
                    x.tensor_split(len(a)), a.unbind(), b.unbind(), c.unbind(), strict=True
                )
            ]
        ),
    ),
    ("weights detached", lambda x, a, b, c, o: _run(x, a.detach(), b.detach(), c.detach(), o)),
    ("rows detached", lambda x, a, b, c, o: _run(x.detach(), a, b, c, o)),
    (
        "expert 0 for all",
        lambda x, a, b, c, o: F.linear(F.silu(F.linear(x, a[0])) * F.linear(x, b[0]), c[0]),
    ),
    ("experts from the back", lambda x, a, b, c, o: _run(x, a.flip(0), b.flip(0), c.flip(0), o)),
    (
        "silu of the product",
        lambda x, a, b, c, o: torch.cat(
            [
                F.linear(F.silu(F.linear(p, q) * F.linear(p, r)), s)
                for p, q, r, s in zip(
                    x.split(o.diff().tolist()), a.unbind(), b.unbind(), c.unbind(), strict=True
                )
            ]
        ),
    ),
]
