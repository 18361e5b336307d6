"""Kernels for chapter 12, right in another way: (what was done, the answer)."""

try:
    import triton.language as tl
except ImportError:  # the tests of these checks are skipped there

    class tl:
        constexpr = int


def _columns_first(x, w, y, offsets, tile_expert, tile_row, D, M,
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
        W = tl.load(w + (e * M + c.T) * D + i, (i < D) & (c.T < M), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def _one_address(x, w, y, offsets, tile_expert, tile_row, D, M,
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
        W = tl.load(w + e * M * D + c.T * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def _where(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc += tl.where(
            r < kept, g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0), 0.0
        )
    tl.store(out + t * D + d, acc, d < D)


def _backwards(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + (t + 1) * K - 1 - k)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


check_masked_product = [("columns first", _columns_first), ("one address", _one_address)]
check_fused_gather = [("where", _where), ("backwards", _backwards)]
