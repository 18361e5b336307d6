"""Answers to check_masked_product: kernels, without triton.jit."""

try:
    import triton.language as tl
except ImportError:  # the tests of these checks are skipped there

    class tl:
        constexpr = int


def right(x, w, y, offsets, tile_expert, tile_row, D, M,
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
    tl.store(y + r * M + c, acc, mine & (c < M))


def right_with_dot(x, w, y, offsets, tile_expert, tile_row, D, M,
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
        acc = tl.dot(X, W.T, acc, input_precision="ieee")
    tl.store(y + r * M + c, acc, mine & (c < M))


def expert_0(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """expert 0's matrix"""
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + c.T * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def replaced(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """do not replace it"""
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


def first_piece(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """only the first piece of D"""
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, BK, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))


def whole_pieces(x, w, y, offsets, tile_expert, tile_row, D, M,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """the last columns of D are left out"""
    t, n = tl.program_id(0), tl.program_id(1)
    e = tl.load(tile_expert + t)
    r = (tl.load(tile_row + t) + tl.arange(0, BM))[:, None]
    mine = r < tl.load(offsets + e + 1)
    c = (n * BN + tl.arange(0, BN))[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D // BK * BK, BK):
        i = (k + tl.arange(0, BK))[None, :]
        X = tl.load(x + r * D + i, mine & (i < D), 0.0)
        W = tl.load(w + (e * M + c.T) * D + i, (c.T < M) & (i < D), 0.0)
        acc += tl.sum(X[:, None, :] * W[None, :, :], 2)
    tl.store(y + r * M + c, acc, mine & (c < M))
