"""Kernels for chapter 12, wrong: (what was done, a phrase of what the check says, the answer)."""

try:
    import triton.language as tl
except ImportError:  # the tests of these checks are skipped there

    class tl:
        constexpr = int


def _no_row_mask(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r >= 0
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def _tile_number(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (t * BM + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def _next_expert(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t) * 0
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def _no_tail(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M // BN * BN))


def _not_added(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc = tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def _half(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc / 2, d < D)


def _mean(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc / K, d < D)


def _first(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(1):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


def _strided(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + k * tl.num_programs(0) + t)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


def _in_order(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = t * K + k
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


check_masked_product = [
    ("no row mask", "masked_product: ", _no_row_mask),
    ("tile number", "masked_product: ", _tile_number),
    ("next expert", "masked_product: ", _next_expert),
    ("no tail", "the last columns of y were not written", _no_tail),
    ("not added", "do not replace it", _not_added),
]

check_fused_gather = [
    ("half", "fused_gather: ", _half),
    ("mean", "a mean; a token's rows are added", _mean),
    ("first", "only the first of K", _first),
    ("strided", "these are another's", _strided),
    ("in order", "finds its own through row", _in_order),
]
