"""The backend to use: rows in expert order, one grouped product per weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts import DispatchPlan

if TYPE_CHECKING:
    from ..experts import Experts


def grouped(x_TD: Tensor, experts: Experts, plan: DispatchPlan) -> Tensor:
    """Sort the tokens' rows by expert, multiply each expert's block, sum back by token.

    Permuting in and combining out are one linear map and its transpose, so each is the
    other's backward pass and both are plain gathers: no atomics, the same bits every run
    (unless experts choose and a token's number of pairs is unknown).
    """
    w1, w3, w2 = experts.w1, experts.w3, experts.w2
    kind = x_TD.device.type
    x_RD = x_TD.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x_TD
    if experts.num_experts == 1 and plan.per_token == 1 and plan.dropless:
        # A dense twin: the rows are in order as they are.
        hidden_RF = experts.activate(F.linear(x_RD, w1[0]), F.linear(x_RD, w3[0]))
        out_TD = F.linear(hidden_RF, w2[0]) * plan.gate_R[:, None].to(hidden_RF.dtype)
        return out_TD.to(x_TD.dtype)
    x_RD = Permute.apply(x_RD, plan)
    hidden_RF = experts.activate(_linear(x_RD, w1, plan), _linear(x_RD, w3, plan))
    y_RD = _linear(hidden_RF, w2, plan)
    return Combine.apply(y_RD * plan.gate_R[:, None].to(y_RD.dtype), plan).to(x_TD.dtype)


def _linear(x_RI: Tensor, weight_EOI: Tensor, plan: DispatchPlan) -> Tensor:
    """Multiply each expert's rows by its own matrix: (R, I) x (E, O, I) -> (R, O)."""
    weight_EOI = weight_EOI.to(x_RI.dtype)
    if x_RI.is_cuda and _grouped_mm_takes(x_RI, weight_EOI):
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
    return aligned and x_RI.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _to_tokens(rows_RD: Tensor, plan: DispatchPlan) -> Tensor:
    """Sum each token's rows: (R, D) -> (T, D)."""
    if not plan.dropless:  # rows behind the last offset were never computed
        unused_R = torch.arange(len(rows_RD), device=rows_RD.device) >= plan.offsets_E1[-1]
        rows_RD = rows_RD.masked_fill(unused_R[:, None], 0.0)
    if plan.per_token is None:
        out_TD = rows_RD.new_zeros(plan.num_tokens, rows_RD.shape[1])
        return out_TD.index_add(0, plan.token_R, rows_RD)
    rows_ND = rows_RD.index_select(0, plan.row_N)
    return rows_ND.view(plan.num_tokens, plan.per_token, rows_RD.shape[1]).sum(1)


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
