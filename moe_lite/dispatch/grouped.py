"""The backend to use: rows in expert order, one product per weight and expert's block."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..linear import linear, product
from ..routing import DispatchPlan, Routing

if TYPE_CHECKING:
    from ..experts import Experts


def grouped(x_TD: Tensor, experts: Experts, plan: DispatchPlan) -> Tensor:
    """Sort the tokens' rows by expert, multiply each expert's block, sum back by token.

    On a GPU that is three grouped products over all rows. On a CPU each expert's rows are
    carried through the whole expert while they are in the cache (:class:`Blocks`), unless no
    gradient is wanted and the products are short: then every call counts, and three are fewest.

    Permuting in and combining out are one linear map and its transpose, so each is the
    other's backward pass and both are plain gathers: no atomics, the same bits every run
    (unless experts choose and a token's number of pairs is unknown).
    """
    w1, w3, w2 = experts.w1, experts.w3, experts.w2
    kind = x_TD.device.type
    x = x_TD.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x_TD
    if experts.num_experts == 1 and plan.per_token == 1 and plan.dropless:
        # A dense twin: the rows are in order as they are.
        hidden_TF = experts.activate(linear(x, w1[0].to(x.dtype)), linear(x, w3[0].to(x.dtype)))
        out_TD = linear(hidden_TF, w2[0].to(x.dtype)) * plan.gate_R[:, None].to(x.dtype)
        return out_TD.to(x_TD.dtype)
    if kind == "cpu" and not _short(x, w1, plan):
        return Blocks.apply(x, w1, w3, w2, plan.gate_R, plan).to(x_TD.dtype)
    if not torch.is_grad_enabled():  # the same as below, in fewer calls
        x_RD = x.index_select(0, plan.token_R)
        hidden_RF = F.silu(_linear(x_RD, w1, plan)).mul_(_linear(x_RD, w3, plan))
        return _to_tokens(_linear(hidden_RF, w2, plan), plan, plan.gate_R).to(x_TD.dtype)
    x_RD = Permute.apply(x, plan)
    hidden_RF = experts.activate(_linear(x_RD, w1, plan), _linear(x_RD, w3, plan))
    y_RD = _linear(hidden_RF, w2, plan)
    return Combine.apply(y_RD * plan.gate_R[:, None].to(y_RD.dtype), plan).to(x_TD.dtype)


def single(x_1D: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Run one token without a plan, as decoding does: nothing to sort, permute or combine.

    On a CPU, without gradients: mixtral-mini's layer takes 0.6 of the time that sorting takes.
    """
    out_1D = torch.zeros_like(x_1D)
    kept_N = [True] * len(routing.expert_N) if routing.keep_N is None else routing.keep_N.tolist()
    pairs = zip(routing.expert_N.tolist(), routing.gate_N.tolist(), kept_N, strict=True)
    for expert, gate, kept in pairs:
        if kept:
            w1_FD, w3_FD, w2_DF = experts.w1[expert], experts.w3[expert], experts.w2[expert]
            hidden_1F = F.silu(F.linear(x_1D, w1_FD)).mul_(F.linear(x_1D, w3_FD))
            out_1D.add_(F.linear(hidden_1F, w2_DF), alpha=gate)
    return out_1D


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
            x_RD = x_TD.index_select(0, token_R[start:end])
            x_RD[stop - start :] = 0
            up1_RF, up3_RF = product(x_RD, w1_FD), product(x_RD, w3_FD)
            projections += up1_RF, up3_RF
            product(F.silu(up1_RF).mul_(up3_RF), w2_DF, y_RD[start:end])
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
        dw1_EFD, dw3_EFD, dw2_EDF = map(torch.empty_like, (w1_EFD, w3_EFD, w2_EDF))
        for expert in set(range(len(w1_EFD))).difference(expert for expert, *_ in blocks):
            for gradient in (dw1_EFD, dw3_EFD, dw2_EDF):
                gradient[expert] = 0
        ups = zip(projections[::2], projections[1::2], strict=True)
        for (expert, start, stop, end), (up1_RF, up3_RF) in zip(blocks, ups, strict=True):
            w1_FD, w3_FD, w2_DF = (w[expert].to(dtype) for w in (w1_EFD, w3_EFD, w2_EDF))
            x_RD, grad_RD = (
                all_TD.index_select(0, token_R[start:end]) for all_TD in (x_TD, grad_TD)
            )
            x_RD[stop - start :], grad_RD[stop - start :] = 0, 0
            gate_R1 = F.pad(gate_R[start:stop].to(dtype), (0, end - stop))[:, None]
            da_RF = product(grad_RD, w2_DF.t())
            silu_RF = F.silu(up1_RF)
            a_RF = silu_RF * up3_RF
            dgate_R[start:stop] = torch.linalg.vecdot(da_RF, a_RF)[: stop - start]
            product(grad_RD.mul_(gate_R1).t(), a_RF.t(), dw2_EDF[expert])
            da_RF *= gate_R1
            dup3_RF = silu_RF.mul_(da_RF)
            dup1_RF = torch.ops.aten.silu_backward(da_RF.mul_(up3_RF), up1_RF)
            product(dup1_RF.t(), x_RD.t(), dw1_EFD[expert])
            product(dup3_RF.t(), x_RD.t(), dw3_EFD[expert])
            product(dup1_RF, w1_FD.t(), dx_RD[start:end]).add_(product(dup3_RF, w3_FD.t()))
        return _to_tokens(dx_RD, ctx.plan), dw1_EFD, dw3_EFD, dw2_EDF, dgate_R, None


def _short(x_TD: Tensor, w1_EFD: Tensor, plan: DispatchPlan) -> bool:
    """Tell whether grouped products beat blocks on a CPU: no gradients, and short or 16-bit.

    Measured on one core of an AMD EPYC, 8 and 64 experts, widths 192 to 1024: in bfloat16 they
    take 0.7 to 1.0 of the blocks' time at every number of tokens; in float32 as much up to about
    2^21 multiplications in an expert's mean block, and beyond it the other library wins.
    """
    if torch.is_grad_enabled() or x_TD.dtype != w1_EFD.dtype:
        return False
    mean = len(plan.token_R) * w1_EFD.numel() // len(w1_EFD) ** 2
    return x_TD.dtype != torch.float32 or mean < 1 << 21


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


def _linear(x_RI: Tensor, weight_EOI: Tensor, plan: DispatchPlan) -> Tensor:
    """Multiply each expert's rows by its own matrix: (R, I) x (E, O, I) -> (R, O)."""
    weight_EOI = weight_EOI.to(x_RI.dtype)
    if _grouped_mm_takes(x_RI, weight_EOI):
        return F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=plan.offsets_E1[1:])
    sizes = plan.offsets_E1.diff().tolist()
    rows = x_RI.split([*sizes, len(x_RI) - sum(sizes)])
    # The first expert runs even without rows, so that gradients flow (as zeros) if none has any.
    pairs = enumerate(zip(rows, weight_EOI.unbind(), strict=False))
    out = [F.linear(x, w) for e, (x, w) in pairs if len(x) or e == 0]
    return torch.cat([*out, rows[-1].new_zeros(len(rows[-1]), weight_EOI.shape[1])])


def _grouped_mm_takes(x_RI: Tensor, weight_EOI: Tensor) -> bool:
    """Tell whether torch's grouped product takes these types and strides (16-byte multiples)."""
    aligned = all(size * x_RI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    return (
        aligned
        and weight_EOI.is_contiguous()
        and x_RI.dtype in (torch.float32, torch.bfloat16, torch.float16)
    )


def _to_tokens(rows_RD: Tensor, plan: DispatchPlan, gate_R: Tensor | None = None) -> Tensor:
    """Sum each token's rows, times their gates if there are any: (R, D) -> (T, D)."""
    if not plan.dropless:  # rows behind the last offset were never computed
        unused_R = torch.arange(len(rows_RD), device=rows_RD.device) >= plan.offsets_E1[-1]
        rows_RD = rows_RD.masked_fill(unused_R[:, None], 0.0)
    if plan.per_token is None:
        rows_RD = rows_RD[: len(plan.token_R)]
        if gate_R is not None:
            rows_RD = rows_RD * gate_R[:, None].to(rows_RD.dtype)
        out_TD = rows_RD.new_zeros(plan.num_tokens, rows_RD.shape[1])
        return out_TD.index_add(0, plan.token_R, rows_RD)
    row_TK = plan.row_N.view(plan.num_tokens, plan.per_token)
    if rows_RD.device.type == "cpu" and rows_RD.numel():  # gather, weigh and sum in one pass
        gate_TK = None if gate_R is None else gate_R.to(rows_RD.dtype)[row_TK]
        return F.embedding_bag(row_TK, rows_RD, mode="sum", per_sample_weights=gate_TK)
    if gate_R is not None:
        rows_RD = rows_RD * gate_R[:, None].to(rows_RD.dtype)
    return rows_RD[row_TK].sum(1)


class Permute(torch.autograd.Function):
    """x_TD -> x_RD, each pair's token vector in expert order."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.plan = plan
        return x_TD.index_select(0, plan.token_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _to_tokens(grad_RD, ctx.plan), None


class Combine(torch.autograd.Function):
    """y_RD -> out_TD, the sum of each token's rows."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.plan = plan
        return _to_tokens(y_RD, plan)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad_TD.index_select(0, ctx.plan.token_R), None
