"""Answers to check_fused_gather: kernels, without triton.jit."""

try:
    import triton.language as tl
except ImportError:  # the tests of these checks are skipped there

    class tl:
        constexpr = int


def right(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


def right_by_a_zero_gate(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r, r < kept, 0.0)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


def not_masked(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    """a row that nobody computed came in"""
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < D, 0.0)
    tl.store(out + t * D + d, acc, d < D)


def no_gate(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    """the gates are missing"""
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        acc += tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


def gate_of_the_pair(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    """not at the pair"""
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + t * K + k)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)


def last_only(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    """only the last of K"""
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc = g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)
