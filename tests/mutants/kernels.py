"""Chapter 12's two kernels as text, and other kernels made of them by changing a line or two."""

import linecache

try:
    import triton.language as tl
except ImportError:  # the tests of these checks are skipped there

    class tl:
        constexpr = int


PRODUCT = """
def kernel(x, w, y, offsets, tile_expert, tile_row, D, M,
           BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
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
"""
GATHER = """
def kernel(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), tl.float32)
    for k in range(K):
        r = tl.load(row + t * K + k)
        g = tl.load(gate + r)
        acc += g * tl.load(y + r * D + d, d < tl.where(r < kept, D, 0), 0.0)
    tl.store(out + t * D + d, acc, d < D)
"""


def changed(template, module, name, *changes, says=None):
    """Return the template's kernel as module.name, each change (what stood there, what stands).

    Its source stays readable to inspect, which is how Triton's interpreter comes by it.
    """
    text = template.lstrip().replace("def kernel", f"def {name}")
    for old, new in changes:
        assert text.count(old) == 1, f"{name}: {old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    file = f"<{module}: {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space = {"tl": tl, "__name__": module}
    exec(compile(text, file, "exec"), space)
    space[name].__doc__ = says
    return space[name]
