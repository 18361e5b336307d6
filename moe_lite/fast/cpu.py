"""The experts on a CPU: what :func:`moe_lite.dispatch.grouped` computes, in the order caches like.

============ ================================ ====================================================
path         taken                            beside its readable twin
============ ================================ ====================================================
blocks       large products                   each expert's rows go through all three products
                                              while they are in the cache; a backward pass by hand
few_calls    no gradients, short products     the twin in the fewest calls: every call counts
single       no gradients, one token          nothing to sort, permute or combine
dense        one expert has all tokens        rows are in order as they are
compiled     under torch.compile              the products are operators, so no graph breaks
============ ================================ ====================================================
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dispatch import Dispatch, grouped, plan
from ..dispatch.grouped import combine, grouped_mm_takes, grouped_product
from ..experts import Experts
from ..routing import DispatchPlan, Routing
from .onednn import linear, prefers_onednn


def choose(w1_EFD: Tensor, tokens: int, pairs: int, dtype: torch.dtype) -> tuple[Dispatch, str]:
    """Choose a path and say why; the arguments are as in :func:`moe_lite.fast.choose`.

    Measured on a core of an AMD EPYC, 8 and 64 experts, widths 192 to 1024: without gradients
    grouped products take 0.7 to 1.0 of the blocks' time, in bfloat16 always, in float32 up to about
    2^21 multiplications in an expert's mean block; beyond it the blocks win. With gradients, on a
    core of an Intel Xeon (widths 192 and 256): 0.7 to 0.9 up to there, 1.0 at 2^23, 1.2 beyond.
    """
    if torch.compiler.is_compiling():
        return compiled, "'compiled', whose products do not break the graph"
    autocast, gradients = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
    if tokens == 1 and not gradients and not autocast:
        return single, "'single', because one token needs no plan"
    E, F_, D = w1_EFD.shape
    if E == 1:
        return dense, "'dense', because one expert has all tokens"
    if autocast:
        dtype = torch.get_autocast_dtype("cpu")
    short, same = pairs * F_ * D // E < 1 << 21, dtype == w1_EFD.dtype
    if same and not gradients and (short or dtype != torch.float32):
        return few_calls, "'few_calls', because without gradients every call counts"
    if same and short and grouped_mm_takes(w1_EFD, w1_EFD):  # the tokens have the same type
        return grouped, "'grouped', because where experts have few rows three products are fewest"
    library = "oneDNN" if prefers_onednn() else "PyTorch's own choice"
    return blocks, (
        f"'blocks', which carries each expert's rows while they are in the cache; float32 products "
        f"by {library}"
    )


def single(x_1D: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Run one token without a plan, as decoding does.

    2 experts of 256, in width 192, take 0.6 of the time that sorting takes.
    """
    w1, w3, w2, x_D = experts.w1, experts.w3, experts.w2, x_1D[0]
    out_D, gate_N = torch.zeros_like(x_D), routing.gate_N.tolist()
    kept_N = None if routing.keep_N is None else routing.keep_N.tolist()
    for n, expert in enumerate(routing.expert_N.tolist()):
        if kept_N is None or kept_N[n]:
            hidden_F = F.silu(w1[expert].mv(x_D)).mul_(w3[expert].mv(x_D))
            out_D.addmv_(w2[expert], hidden_F, alpha=gate_N[n])
    return out_D[None]


def dense(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Run the one expert there is on the rows as they are, if it has each token once."""
    if routing.per_token != 1 or routing.keep_N is not None:
        return blocks(x_TD, experts, routing)
    x = _cast(x_TD)
    w1_FD, w3_FD, w2_DF = (w[0].to(x.dtype) for w in (experts.w1, experts.w3, experts.w2))
    hidden_TF = experts.activate(linear(x, w1_FD), linear(x, w3_FD))
    return (linear(hidden_TF, w2_DF) * routing.gate_N[:, None].to(x.dtype)).to(x_TD.dtype)


def few_calls(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Do as the readable twin does, without what only a backward pass needs."""
    p, x, w1, w3, w2 = plan(routing), _cast(x_TD), experts.w1, experts.w3, experts.w2
    x_RD, ends_E = x.index_select(0, p.token_R), p.offsets_E1[1:]
    by_torch = x.dtype == w1.dtype and grouped_mm_takes(x_RD, w1)  # w2 has the same sizes

    def product(x_RI: Tensor, weight_EOI: Tensor) -> Tensor:
        if by_torch:
            return F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=ends_E)
        return grouped_product(x_RI, weight_EOI, p.offsets_E1)

    hidden_RF = F.silu(product(x_RD, w1)).mul_(product(x_RD, w3))
    return _to_tokens(product(hidden_RF, w2), p, p.gate_R).to(x_TD.dtype)


def blocks(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Carry each expert's rows through the whole expert: see :class:`Blocks`."""
    p, w1, w3, w2 = plan(routing), experts.w1, experts.w3, experts.w2
    return Blocks.apply(_cast(x_TD), w1, w3, w2, p.gate_R, p).to(x_TD.dtype)


def _cast(x_TD: Tensor) -> Tensor:
    """Convert to the type that autocast computes in, if it is on."""
    return x_TD.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x_TD


class Blocks(torch.autograd.Function):
    """Carry each expert's rows through the whole expert, forward and back, on a CPU.

    Kept for the backward pass: x, the two projections of each row, weights and gates. What an
    elementwise pass writes, the next product reads from the cache. The gradient of a gate needs no
    output row: with dA = dO W2, dO . (W2 a) = dA . a.

    A block's number of rows is another in every step, and oneDNN compiles a kernel for each
    size it has not seen (0.4 ms, more than many a product takes); so blocks are lengthened
    to one of few sizes. The rows behind a block's end are its neighbour's. They count as zeros, in
    x and in the gradient: what the neighbour holds may be infinite here, and a gate of 0 is no
    help against that. Their results are written over by the neighbour's own.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x_TD: Tensor,
        w1_EFD: Tensor,
        w3_EFD: Tensor,
        w2_EDF: Tensor,
        gate_R: Tensor,
        plan: DispatchPlan,
    ) -> Tensor:
        blocks, token_R = _blocks(plan)
        y_RD = x_TD.new_empty(len(token_R), x_TD.shape[1])
        projections: list[Tensor] = []
        for expert, start, stop, end in blocks:
            w1_FD, w3_FD, w2_DF = (w[expert].to(x_TD.dtype) for w in (w1_EFD, w3_EFD, w2_EDF))
            x_RD = _gather(x_TD, token_R[start:end], stop - start)
            up1_RF, up3_RF = linear(x_RD, w1_FD), linear(x_RD, w3_FD)
            projections += up1_RF, up3_RF
            linear(F.silu(up1_RF).mul_(up3_RF), w2_DF, y_RD[start:end])
        ctx.save_for_backward(x_TD, w1_EFD, w3_EFD, w2_EDF, gate_R, *projections)
        ctx.plan = plan
        return _to_tokens(y_RD, plan, gate_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TD, w1_EFD, w3_EFD, w2_EDF, gate_R, *projections = ctx.saved_tensors
        dtype, grad_TD = x_TD.dtype, grad_TD.contiguous()
        blocks, token_R = _blocks(ctx.plan)
        dx_RD = x_TD.new_empty(len(token_R), x_TD.shape[1])
        dgate_R = torch.zeros_like(gate_R)
        gates_R = F.pad(gate_R.to(dtype), (0, len(token_R) - len(gate_R)))
        dw1_EFD, dw3_EFD, dw2_EDF = map(torch.empty_like, (w1_EFD, w3_EFD, w2_EDF))
        for expert in set(range(len(w1_EFD))).difference(expert for expert, *_ in blocks):
            for gradient in (dw1_EFD, dw3_EFD, dw2_EDF):
                gradient[expert] = 0
        ups = zip(projections[::2], projections[1::2], strict=True)
        for (expert, start, stop, end), (up1_RF, up3_RF) in zip(blocks, ups, strict=True):
            w1_FD, w3_FD, w2_DF = (w[expert].to(dtype) for w in (w1_EFD, w3_EFD, w2_EDF))
            x_RD = _gather(x_TD, token_R[start:end], stop - start)
            grad_RD = _gather(grad_TD, token_R[start:end], stop - start)
            gate_R1 = gates_R[start:end, None]
            da_RF = linear(grad_RD, w2_DF.t())
            silu_RF = F.silu(up1_RF)
            a_RF = silu_RF * up3_RF
            dgate_R[start:stop] = torch.linalg.vecdot(da_RF, a_RF)[: stop - start]
            linear(grad_RD.mul_(gate_R1).t(), a_RF.t(), dw2_EDF[expert])
            da_RF *= gate_R1
            dup3_RF = silu_RF.mul_(da_RF)
            dup1_RF = torch.ops.aten.silu_backward(da_RF.mul_(up3_RF), up1_RF)
            linear(dup1_RF.t(), x_RD.t(), dw1_EFD[expert])
            linear(dup3_RF.t(), x_RD.t(), dw3_EFD[expert])
            linear(dup1_RF, w1_FD.t(), dx_RD[start:end]).add_(linear(dup3_RF, w3_FD.t()))
        return _to_tokens(dx_RD, ctx.plan), dw1_EFD, dw3_EFD, dw2_EDF, dgate_R, None


def _blocks(plan: DispatchPlan) -> tuple[list[tuple[int, int, int, int]], Tensor]:
    """List (expert, start, stop, lengthened stop) of those with rows, and all rows' tokens."""
    offsets = plan.offsets_E1.tolist()
    blocks, last = [], len(plan.token_R)
    for expert, (start, stop) in enumerate(pairwise(offsets)):
        if rows := stop - start:
            # 16 sizes or more from each power of two to the next: at most a 16th too many rows.
            step = max(16, 1 << max(rows.bit_length() - 5, 0)) if rows > 8 else 1
            blocks.append((expert, start, stop, start + -(-rows // step) * step))
            last = max(last, blocks[-1][-1])
    return blocks, F.pad(plan.token_R, (0, last - len(plan.token_R)))


def _gather(all_TD: Tensor, token_R: Tensor, own: int) -> Tensor:
    """Collect a block's rows, zeros behind its own."""
    rows_RD = all_TD.index_select(0, token_R)
    if own < len(token_R):
        rows_RD[own:].zero_()
    return rows_RD


def _to_tokens(rows_RD: Tensor, plan: DispatchPlan, gate_R: Tensor | None = None) -> Tensor:
    """Sum each token's rows, times their gates if there are any: (R, D) -> (T, D)."""
    rows_RD = rows_RD[: len(plan.token_R)]  # without what lengthened the last block
    gate_R = None if gate_R is None else gate_R.to(rows_RD.dtype)
    if plan.per_token is None or not rows_RD.numel():
        return combine(rows_RD if gate_R is None else rows_RD * gate_R[:, None], plan)
    if not plan.dropless:  # rows behind the last offset were never computed
        unused_R = torch.arange(len(rows_RD)) >= plan.offsets_E1[-1]
        rows_RD = rows_RD.masked_fill(unused_R[:, None], 0.0)
    row_TK = plan.row_N.view(plan.num_tokens, plan.per_token)
    gate_TK = None if gate_R is None else gate_R[row_TK]
    return F.embedding_bag(row_TK, rows_RD, mode="sum", per_sample_weights=gate_TK)  # in one pass


# --- under torch.compile -------------------------------------------------------------------------


def compiled(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Do as the readable twin does, with products that the compiler takes as they are.

    Gather and sum are left to autograd: with sizes that vary, the compiler loses the plan's
    number of tokens in a Function.
    """
    p, x = plan(routing), _cast(x_TD)
    w1, w3, w2 = (w.to(x.dtype) for w in (experts.w1, experts.w3, experts.w2))
    x_RD = x.index_select(0, p.token_R)
    up1_RF, up3_RF = _product(x_RD, w1, p.offsets_E1), _product(x_RD, w3, p.offsets_E1)
    y_RD = _product(experts.activate(up1_RF, up3_RF), w2, p.offsets_E1)
    return combine(y_RD * p.gate_R[:, None].to(y_RD.dtype), p).to(x_TD.dtype)


@torch.library.custom_op("moe_lite::grouped_product", mutates_args=())
def _product(x_RI: Tensor, weight_EOI: Tensor, offsets_E1: Tensor) -> Tensor:
    """Multiply each expert's rows by its own matrix; rows behind the last offset become zeros."""
    out_RO = x_RI.new_zeros(len(x_RI), weight_EOI.shape[1])
    for expert, (start, stop) in enumerate(pairwise(offsets_E1.tolist())):
        if start < stop:
            linear(x_RI[start:stop], weight_EOI[expert], out_RO[start:stop])
    return out_RO


@_product.register_fake
def _(x_RI: Tensor, weight_EOI: Tensor, offsets_E1: Tensor) -> Tensor:
    return x_RI.new_empty(len(x_RI), weight_EOI.shape[1])


@torch.library.custom_op("moe_lite::grouped_outer", mutates_args=())
def _outer(grad_RO: Tensor, x_RI: Tensor, offsets_E1: Tensor) -> Tensor:
    """Give each expert's matrix its gradient, dW = grad^T x over its own rows."""
    dw_EOI = x_RI.new_zeros(len(offsets_E1) - 1, grad_RO.shape[1], x_RI.shape[1])
    for expert, (start, stop) in enumerate(pairwise(offsets_E1.tolist())):
        if start < stop:
            linear(grad_RO[start:stop].t(), x_RI[start:stop].t(), dw_EOI[expert])
    return dw_EOI


@_outer.register_fake
def _(grad_RO: Tensor, x_RI: Tensor, offsets_E1: Tensor) -> Tensor:
    return x_RI.new_empty(len(offsets_E1) - 1, grad_RO.shape[1], x_RI.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_RO: Tensor) -> tuple[Tensor, Tensor, None]:
    x_RI, weight_EOI, offsets_E1 = ctx.saved_tensors
    dx_RI = _product(grad_RO, weight_EOI.transpose(1, 2), offsets_E1)
    return dx_RI, _outer(grad_RO, x_RI, offsets_E1), None


_product.register_autograd(_differentiate, setup_context=_keep)
