"""The fused GPU path: Triton kernels, forward and backward, without atomics or a host sync.

Rows are the pairs in expert order. A *tile* is up to BM rows of one expert; the schedule that says
which is made on the device (:func:`schedule`), so no shape depends on how the tokens were routed.

========== ==================================================== ================================
kernel     computes                                             fused into it
========== ==================================================== ================================
_up        h1 = x W1^T, h3 = x W3^T, a = silu(h1) h3            gather of x, SwiGLU
_product   y = a W2^T; dx = dh1 W1 + dh3 W3                     both products of the second
_combine   out_t = sum of gate * y over token t's rows          gate, k-way sum in float32
_down_back da = dO W2; dh1, dh3, gate * a, <da, a> by row       SwiGLU's backward
_weights   dW = A^T B over one expert's rows
========== ==================================================== ================================

Kept for the backward pass: x, h1, h3, gates, indices; a is made again. Every sum has one order:
two runs give the same bits. Weights, and rows side by side, come through tensor descriptors (TMA on
sm_90) where strides are multiples of 16 bytes. The fusions follow SonicMoE (Guo et al. 2025,
arXiv:2512.14080). Runs on a CPU too, in Triton's interpreter, with TRITON_INTERPRET=1 at import.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import plan
from ..experts import Experts
from ..routing import Routing

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# (BM, BN, BK, warps, stages), for 16-bit types; none spills a register (tests/test_triton.py).
SM_90 = {
    "up": (128, 128, 64, 8, 3), "down": (128, 256, 64, 8, 3), "down_back": (128, 128, 64, 8, 4),
    "up_back": (128, 256, 64, 8, 2), "weights": (128, 256, 64, 8, 4),
}  # fmt: skip
SM_80 = {
    "up": (128, 64, 64, 8, 3), "down": (128, 128, 64, 8, 3), "down_back": (64, 128, 64, 8, 3),
    "up_back": (128, 128, 64, 8, 2), "weights": (128, 128, 64, 8, 3),
}  # fmt: skip
FLOAT32 = (64, 64, 16, 8, 2)  # for every product
FEW_ROWS = (16, 64, 64, 4, 4)  # where an expert has hardly any, as in decoding


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    if INTERPRETED:  # which holds bfloat16 as integers, and would multiply those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _matrix(pointer, rows, columns, BR: tl.constexpr, BC: tl.constexpr, TMA: tl.constexpr):
    """Give what :func:`_block` reads from: a tensor descriptor, or the pointer as it is."""
    if TMA:
        matrix = tl.make_tensor_descriptor(pointer, [rows, columns], [columns, 1], [BR, BC])
    else:
        matrix = pointer
    return matrix


@triton.jit
def _block(
    matrix, row, column, rows, columns, BR: tl.constexpr, BC: tl.constexpr, TMA: tl.constexpr
):
    """Load (BR, BC) of a matrix, zeros outside of it: from ``rows`` on, unless it is by TMA."""
    if TMA:
        block = matrix.load([row, column])
    else:
        r, c = row + tl.arange(0, BR), column + tl.arange(0, BC)
        inside = (r < rows)[:, None] & (c < columns)[None, :]
        block = tl.load(matrix + r[:, None].to(tl.int64) * columns + c[None, :], inside, 0.0)
    return block


@triton.jit
def _place(tile, tiles, columns, GROUP: tl.constexpr = 8):
    """Turn a running number into (row tile, column block), GROUP row tiles at a time.

    Tiles that run side by side then share both rows and weights in the cache.
    """
    group = tile // (GROUP * columns) * GROUP
    height = tl.minimum(tiles - group, GROUP)
    within = tile % (GROUP * columns)
    return group + within % height, within // height


@triton.jit
def _rows(offsets, tile_expert, tile_row, t, BM: tl.constexpr):
    """Give a tile's expert, its rows and which of them are the expert's own."""
    expert = tl.load(tile_expert + t)
    row = tl.load(tile_row + t)
    r = row + tl.arange(0, BM)
    return expert, row, r.to(tl.int64), r < tl.load(offsets + expert + 1)


@triton.jit
def _up(
    x, w1, w3, h1, h3, a, token, offsets, tile_expert, tile_row, tiles, E, D, F,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    W1, W3 = _matrix(w1, E * F, D, BN, BK, TMA), _matrix(w3, E * F, D, BN, BK, TMA)
    count, columns = tl.load(tiles), tl.cdiv(F, BN)
    for tile in tl.range(tl.program_id(0), count * columns, tl.num_programs(0)):
        t, n = _place(tile, count, columns)
        e, _, r, mine = _rows(offsets, tile_expert, tile_row, t, BM)
        source = tl.load(token + r, mine, 0)[:, None] * D
        acc1, acc3 = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            c = (k + tl.arange(0, BK))[None, :]
            X = tl.load(x + source + c, mine[:, None] & (c < D), 0.0)
            acc1 = _dot(X, _block(W1, e * F + n * BN, k, E * F, D, BN, BK, TMA).T, acc1, PRECISION)
            acc3 = _dot(X, _block(W3, e * F + n * BN, k, E * F, D, BN, BK, TMA).T, acc3, PRECISION)
        c = (n * BN + tl.arange(0, BN))[None, :]
        at, inside = r[:, None] * F + c, mine[:, None] & (c < F)
        up1, up3 = acc1.to(h1.dtype.element_ty), acc3.to(h3.dtype.element_ty)
        tl.store(h1 + at, up1, inside)
        tl.store(h3 + at, up3, inside)
        up1, up3 = up1.to(tl.float32), up3.to(tl.float32)  # rounded, as the backward will find them
        tl.store(a + at, (up1 * tl.sigmoid(up1) * up3).to(a.dtype.element_ty), inside)


@triton.jit
def _product(
    a, w, a2, w2, y, offsets, tile_expert, tile_row, tiles, E, R, N, K,
    TRANSPOSED: tl.constexpr, TWO: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y = a w^T with w (E, N, K) if TRANSPOSED, else a w with w (E, K, N); TWO adds a2 w2."""
    # Flattened, one tile's stores overlap the next one's loads; with two products it would make
    # the compiler wait for each.
    A, A2 = _matrix(a, R, K, BM, BK, TMA), _matrix(a2, R, K, BM, BK, TMA)
    if TRANSPOSED:
        W = _matrix(w, E * N, K, BN, BK, TMA)
    else:
        W, W2 = _matrix(w, E * K, N, BK, BN, TMA), _matrix(w2, E * K, N, BK, BN, TMA)
    count, columns = tl.load(tiles), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), count * columns, tl.num_programs(0), flatten=not TWO):
        t, n = _place(tile, count, columns)
        e, row, r, mine = _rows(offsets, tile_expert, tile_row, t, BM)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            left = _block(A, row, k, R, K, BM, BK, TMA)
            if TRANSPOSED:
                right = _block(W, e * N + n * BN, k, E * N, K, BN, BK, TMA).T
            else:
                right = _block(W, e * K + k, n * BN, e * K + K, N, BK, BN, TMA)
            acc = _dot(left, right, acc, PRECISION)
            if TWO:
                left = _block(A2, row, k, R, K, BM, BK, TMA)
                right = _block(W2, e * K + k, n * BN, e * K + K, N, BK, BN, TMA)
                acc = _dot(left, right, acc, PRECISION)
        c = (n * BN + tl.arange(0, BN))[None, :]
        inside = mine[:, None] & (c < N)
        tl.store(y + r[:, None] * N + c, acc.to(y.dtype.element_ty), inside)


@triton.jit
def _combine(y, gate, out, slot_row, first, offsets, E, D, GATED: tl.constexpr, BD: tl.constexpr):
    t, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BD + tl.arange(0, BD)
    last = tl.load(offsets + E)
    acc = tl.zeros((BD,), tl.float32)
    for slot in range(tl.load(first + t), tl.load(first + t + 1)):
        r = tl.load(slot_row + slot)
        row = tl.load(y + r * D + c, c < tl.where(r < last, D, 0), 0.0).to(tl.float32)
        if GATED:
            row *= tl.load(gate + r)
        acc += row
    tl.store(out + t * D + c, acc.to(out.dtype.element_ty), c < D)


@triton.jit
def _through_swiglu(da, g, h1, h3, dh1, dh3, gated, r, mine, begin, F, BN: tl.constexpr):
    """Turn BN columns of a's gradient into h1's and h3's; return <da, a> of each row."""
    c = (begin + tl.arange(0, BN))[None, :]
    at, inside = r[:, None] * F + c, mine[:, None] & (c < F)
    up1 = tl.load(h1 + at, inside, 0.0).to(tl.float32)
    up3 = tl.load(h3 + at, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(up1)
    silu = up1 * sigmoid
    a = silu * up3
    tl.store(gated + at, (g * a).to(gated.dtype.element_ty), inside)
    found = tl.sum(da * a, axis=1)
    da *= g
    slope = sigmoid + silu * (1 - sigmoid)
    tl.store(dh1 + at, (da * up3 * slope).to(dh1.dtype.element_ty), inside)
    tl.store(dh3 + at, (da * silu).to(dh3.dtype.element_ty), inside)
    return found


@triton.jit
def _down_back(
    grad, w2, gate, h1, h3, dh1, dh3, gated, dot, offsets, tile_expert, tile_row, tiles,
    E, R, D, F, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """From dO to h's gradient, gate * a (for dW2), and each row's <da, a>, block by block."""
    G, W2 = _matrix(grad, R, D, BM, BK, TMA), _matrix(w2, E * D, F, BK, BN, TMA)
    count, columns = tl.load(tiles), tl.cdiv(F, BN)
    for tile in tl.range(tl.program_id(0), count * columns, tl.num_programs(0)):
        t, n = _place(tile, count, columns)
        e, row, r, mine = _rows(offsets, tile_expert, tile_row, t, BM)
        da = tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            dO = _block(G, row, k, R, D, BM, BK, TMA)
            W = _block(W2, e * D + k, n * BN, e * D + D, F, BK, BN, TMA)
            da = _dot(dO, W, da, PRECISION)
        g = tl.load(gate + r, mine, 0.0)[:, None]
        # A quarter of the columns at a time: SwiGLU's numbers would not all fit into registers.
        Q: tl.constexpr = BN // 4
        left, right = tl.split(tl.permute(tl.reshape(da, (BM, 2, BN // 2)), (0, 2, 1)))
        found = tl.zeros((BM,), tl.float32)
        for half in tl.static_range(2):
            part = left if half == 0 else right
            da0, da1 = tl.split(tl.permute(tl.reshape(part, (BM, 2, Q)), (0, 2, 1)))
            c = n * BN + 2 * half * Q
            found += _through_swiglu(da0, g, h1, h3, dh1, dh3, gated, r, mine, c, F, Q)
            found += _through_swiglu(da1, g, h1, h3, dh1, dh3, gated, r, mine, c + Q, F, Q)
        tl.store(dot + r * columns + n, found, mine)


@triton.jit
def _weights(
    a, b, dw, offsets, E, R, M, N, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dw[e] = a^T b, (M, N), over the rows of expert e; zeros if it has none."""
    A, B = _matrix(a, R, M, BK, BM, TMA), _matrix(b, R, N, BK, BN, TMA)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), E * rows * columns, tl.num_programs(0)):
        t, n = _place(tile, E * rows, columns)
        e, at_m, at_n = t // rows, t % rows * BM, n * BN
        begin, end = tl.load(offsets + e), tl.load(offsets + e + 1)
        whole = begin + (end - begin) // BK * BK
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(begin, whole, BK):  # blocks in which all rows are the expert's
            left = _block(A, k, at_m, R, M, BK, BM, TMA)
            acc = _dot(left.T, _block(B, k, at_n, R, N, BK, BN, TMA), acc, PRECISION)
        if whole < end:  # its last rows, without the next expert's, which may be NaN
            left = _block(a, whole, at_m, end, M, BK, BM, False)
            acc = _dot(left.T, _block(b, whole, at_n, end, N, BK, BN, False), acc, PRECISION)
        m, c = (at_m + tl.arange(0, BM))[:, None], (at_n + tl.arange(0, BN))[None, :]
        at = e.to(tl.int64) * M * N + m * N + c
        tl.store(dw + at, acc.to(dw.dtype.element_ty), (m < M) & (c < N))


def schedule(offsets_E1: Tensor, rows: int, BM: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut each expert's rows into tiles of BM, without looking at their number.

    >>> expert, row, count = schedule(torch.tensor([0, 3, 3, 8], dtype=torch.int32), 8, 4)
    >>> count.tolist(), expert[:3].tolist(), row[:3].tolist()
    ([3], [0, 2, 2], [0, 3, 7])

    Returns: each tile's expert and first row, int32 (rows // BM + E,) of which the first
             ``count``, int32 (1,), are used.
    """
    E = len(offsets_E1) - 1
    tiles_E = (offsets_E1.diff() + (BM - 1)) // BM
    end_E = tiles_E.cumsum(0, dtype=torch.int32)
    tile = torch.arange(rows // BM + E, device=offsets_E1.device, dtype=torch.int32)
    expert = torch.searchsorted(end_E, tile, right=True, out_int32=True).clamp(max=E - 1)
    row = offsets_E1[expert] + (tile - (end_E - tiles_E)[expert]) * BM
    return expert, row.int(), end_E[-1:]


def _config(kernel: str, x: Tensor, rows: int = 0, experts: int = 1) -> dict[str, Any]:
    if INTERPRETED.value:
        config = (16, 16, 16, 1, 1)  # small, so that small tests have edges
    elif x.dtype == torch.float32:
        config = FLOAT32
    elif kernel != "weights" and rows <= 16 * experts:
        config = FEW_ROWS
    else:
        config = (SM_90 if torch.cuda.get_device_capability(x.device) >= (9, 0) else SM_80)[kernel]
    exact = x.dtype != torch.float32 or not torch.backends.cuda.matmul.allow_tf32
    names = ("BM", "BN", "BK", "num_warps", "num_stages")
    return dict(zip(names, config, strict=True)) | {"PRECISION": "ieee" if exact else "tf32"}


def _tma(*matrices: Tensor) -> bool:
    """Return whether every matrix has rows of a multiple of 16 bytes, as a descriptor must.

    It ends with the last expert. A sum down one expert's weights (both backward products) must be
    of a multiple of BK too, or it takes 0 times the next expert's weights, which may be NaN.
    """
    return all(m.shape[-1] * m.element_size() % 16 == 0 and m.numel() for m in matrices)


def _programs(x: Tensor) -> tuple[int]:
    cuda = torch.cuda
    return (cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 3,)


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")  # a descriptor's 128 bytes


def _summed(
    y_RD: Tensor, gate_R: Tensor | None, row_S: Tensor, first_T1: Tensor, offsets_E1: Tensor
) -> Tensor:
    """Sum each token's rows, in float32, weighted if there are gates: (R, D) -> (T, D)."""
    T, D, E = len(first_T1) - 1, y_RD.shape[1], len(offsets_E1) - 1
    out_TD = y_RD.new_empty(T, D)
    if T:
        BD = 16 if INTERPRETED.value else min(1024, triton.next_power_of_2(D))
        _combine[(T, triton.cdiv(D, BD))](
            y_RD, gate_R, out_TD, row_S, first_T1, offsets_E1, E, D, gate_R is not None, BD
        )
    return out_TD


@torch.library.custom_op("moe_lite::experts", mutates_args=())
def _experts(
    x_TD: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, gate_R: Tensor,
    token_R: Tensor, offsets_E1: Tensor, row_S: Tensor, first_T1: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (E, F, D), R = w1.shape, len(token_R)
    triton.set_allocator(_allocate)
    h1, h3, a = (x_TD.new_empty(R, F) for _ in range(3))
    y_RD = x_TD.new_empty(R, D)
    if R:
        config = _config("up", x_TD, R, E)
        tiles = schedule(offsets_E1, R, config["BM"])
        _up[_programs(x_TD)](
            x_TD, w1, w3, h1, h3, a, token_R, offsets_E1, *tiles, E, D, F,
            TMA=_tma(w1), **config,
        )  # fmt: skip
        config = _config("down", x_TD, R, E)
        tiles = schedule(offsets_E1, R, config["BM"])
        _product[_programs(x_TD)](
            a, w2, a, w2, y_RD, offsets_E1, *tiles, E, R, D, F,
            TRANSPOSED=True, TWO=False, TMA=_tma(w2), **config,
        )  # fmt: skip
    return _summed(y_RD, gate_R, row_S, first_T1, offsets_E1), h1, h3


@_experts.register_fake
def _(x_TD, w1, w3, w2, gate_R, token_R, offsets_E1, row_S, first_T1):  # type: ignore[no-untyped-def]
    R, F = len(token_R), w1.shape[1]
    return torch.empty_like(x_TD), x_TD.new_empty(R, F), x_TD.new_empty(R, F)


@torch.library.custom_op("moe_lite::experts_backward", mutates_args=())
def _experts_backward(
    grad_TD: Tensor, x_TD: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, gate_R: Tensor,
    token_R: Tensor, offsets_E1: Tensor, row_S: Tensor, first_T1: Tensor, h1: Tensor, h3: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (E, F, D), R = w1.shape, len(token_R)
    triton.set_allocator(_allocate)
    dh1, dh3, gated = (torch.empty_like(h1) for _ in range(3))
    dx_RD = x_TD.new_empty(R, D)
    # Several kernels read both: gathered once, their rows come by TMA.
    x_RD, grad_RD = x_TD[token_R], grad_TD[token_R]
    config = _config("down_back", x_TD, R, E)
    dot = gate_R.new_zeros(R, triton.cdiv(F, config["BN"]))
    if R:
        tiles = schedule(offsets_E1, R, config["BM"])
        _down_back[_programs(x_TD)](
            grad_RD, w2, gate_R, h1, h3, dh1, dh3, gated, dot, offsets_E1, *tiles,
            E, R, D, F, TMA=_tma(w2, grad_RD) and D % config["BK"] == 0, **config,
        )  # fmt: skip
        config = _config("up_back", x_TD, R, E)
        tiles = schedule(offsets_E1, R, config["BM"])
        _product[_programs(x_TD)](
            dh1, w1, dh3, w3, dx_RD, offsets_E1, *tiles, E, R, D, F,
            TRANSPOSED=False, TWO=True, TMA=_tma(w1, dh1) and F % config["BK"] == 0, **config,
        )  # fmt: skip
    config = _config("weights", x_TD)
    grads = []
    for a, b in ((dh1, x_RD), (dh3, x_RD), (grad_RD, gated)):
        M, N = a.shape[1], b.shape[1]
        dw = a.new_empty(E, M, N)
        _weights[_programs(x_TD)](a, b, dw, offsets_E1, E, R, M, N, TMA=_tma(a, b), **config)
        grads.append(dw)
    return _summed(dx_RD, None, row_S, first_T1, offsets_E1), *grads, dot.sum(1)  # type: ignore


@_experts_backward.register_fake
def _(grad_TD, x_TD, w1, w3, w2, gate_R, *rest):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(t) for t in (x_TD, w1, w3, w2, gate_R))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_TD: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_TD is None:
        return (None,) * 9
    return (*_experts_backward(grad_TD.contiguous(), *ctx.saved_tensors), None, None, None, None)


_experts.register_autograd(_differentiate, setup_context=_keep)


def fused(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Run the experts in fused kernels; shapes, results and gradients as the other backends.

    Raises: ValueError for float64 (the loop takes it), or for tensors that are not on a GPU,
            unless Triton interprets.
    """
    kind = x_TD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_TD.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f'the triton backend does not compute in {dtype}; backend="loop" does')
    if kind != "cuda" and not INTERPRETED.value:
        raise ValueError(
            f"the triton backend needs a GPU, but the tokens are on the {kind}; "
            'backend="grouped" runs here'
        )
    p = plan(routing)
    if p.per_token is not None:  # token t's rows are those of its pairs t*K .. t*K+K-1
        row_S = p.row_N
        first_T1 = torch.arange(p.num_tokens + 1, device=row_S.device) * p.per_token
    else:
        token_S, row_S = p.token_R.sort(stable=True)
        first_T1 = torch.searchsorted(token_S, torch.arange(p.num_tokens + 1, device=row_S.device))
    x, w1, w3, w2 = (t.to(dtype).contiguous() for t in (x_TD, experts.w1, experts.w3, experts.w2))
    gate_R, where = p.gate_R.float().contiguous(), (p.token_R, p.offsets_E1, row_S, first_T1)
    return _experts(x, w1, w3, w2, gate_R, *where)[0].to(x_TD.dtype)
