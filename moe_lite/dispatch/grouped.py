"""The path to use: sort the pairs by expert, multiply block by block, sum each token's rows.

No shape depends on what the router chose, so on a GPU nothing waits for the device.

Source: Gale et al. 2022, MegaBlocks (arXiv:2211.15841), section 5: nothing padded or dropped.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from ..experts import Experts
from ..routing import DispatchPlan, Routing


def grouped(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Return each token's weighted sum of its experts' answers: sort, three products, combine.

    Permuting in and combining out are each other's backward pass, and plain gathers: the same
    bits every run (unless experts choose and a token's number of pairs is unknown).
    """
    # 1. who goes where
    p = plan(routing)
    # 2. rows in expert order
    x_RD = Permute.apply(x_TD, p)
    # 3. the experts: each its own block of rows
    up1_RF, up3_RF = (grouped_product(x_RD, w, p.offsets_E1) for w in (experts.w1, experts.w3))
    y_RD = grouped_product(experts.activate(up1_RF, up3_RF), experts.w2, p.offsets_E1)
    # 4. weigh, and sum each token's rows
    return Combine.apply(y_RD * p.gate_R[:, None].to(y_RD.dtype), p).to(x_TD.dtype)


def plan(routing: Routing) -> DispatchPlan:
    """Sort the pairs by expert, keeping token order within each expert.

    >>> r = Routing.from_choices(
    ...     torch.zeros(3, 2), torch.full((3, 2), 0.5),
    ...     torch.tensor([[1], [0], [1]]), torch.tensor([[0.5], [0.6], [0.7]]))
    >>> p = plan(r)
    >>> p.token_R.tolist(), p.offsets_E1.tolist(), p.row_N.tolist()
    ([1, 0, 2], [0, 1, 3], [1, 0, 2])

    A dropped pair goes to an expert number E, behind the last offset, with a gate of zero.
    """
    # 1. dropped pairs to the end; their number stays on the device
    E, expert_N, gate_N = routing.num_experts, routing.expert_N, routing.gate_N
    if (keep_N := routing.keep_N) is not None:
        expert_N, gate_N = expert_N.where(keep_N, E), gate_N.where(keep_N, 0.0)
    # 2. from pairs to rows, and back
    sorted_R, order_R = expert_N.sort(stable=True)
    row_N = torch.empty_like(order_R)
    row_N[order_R] = torch.arange(len(order_R), device=order_R.device)
    # 3. where each expert's rows begin
    expert_E1 = torch.arange(E + 1, device=order_R.device)
    offsets_E1 = torch.searchsorted(sorted_R, expert_E1, out_int32=True)
    token_R, gate_R = (t.index_select(0, order_R) for t in (routing.token_N, gate_N))
    T, K, dropless = routing.num_tokens, routing.per_token, routing.keep_N is None
    return DispatchPlan(token_R, gate_R, offsets_E1, T, order_R, row_N, K, dropless)


def grouped_product(x_RI: Tensor, weight_EOI: Tensor, offsets_E1: Tensor) -> Tensor:
    """Multiply each expert's rows by its own matrix: (R, I) x (E, O, I) -> (R, O).

    Rows behind the last offset belong to nobody, and may hold anything afterwards.
    """
    if torch.is_autocast_enabled(x_RI.device.type):  # as F.linear does
        x_RI = x_RI.to(torch.get_autocast_dtype(x_RI.device.type))
    weight_EOI = weight_EOI.to(x_RI.dtype)
    if grouped_mm_takes(x_RI, weight_EOI):
        return F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=offsets_E1[1:])
    # one product after the other; on a GPU, reading the sizes would wait
    sizes = offsets_E1.diff().tolist()
    *blocks, rest = x_RI.split([*sizes, len(x_RI) - sum(sizes)])
    out = [F.linear(block, w) for block, w in zip(blocks, weight_EOI.unbind(), strict=True)]
    return torch.cat([*out, rest.new_zeros(len(rest), weight_EOI.shape[1])])


def grouped_mm_takes(x_RI: Tensor, weight_EOI: Tensor) -> bool:
    """Return whether torch's grouped product takes these types and strides (16-byte multiples)."""
    # The compiler knows the first of these alone.
    types = (torch.bfloat16, torch.float16, torch.float32)[: 1 if is_compiling() else 3]
    aligned = all(size * x_RI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    return aligned and weight_EOI.is_contiguous() and x_RI.dtype in types


def combine(rows_RD: Tensor, plan: DispatchPlan) -> Tensor:
    """Sum each token's rows: (R, D) -> (T, D)."""
    if not plan.dropless:  # rows behind the last offset were never computed
        unused_R = torch.arange(len(rows_RD), device=rows_RD.device) >= plan.offsets_E1[-1]
        rows_RD = rows_RD.masked_fill(unused_R[:, None], 0.0)
    if plan.per_token is None:
        out_TD = rows_RD.new_zeros(plan.num_tokens, rows_RD.shape[1])
        return out_TD.index_add(0, plan.token_R, rows_RD)
    return rows_RD[plan.row_N.view(plan.num_tokens, plan.per_token)].sum(1)


class Permute(torch.autograd.Function):
    """x_TD -> x_RD, each pair's token vector in expert order."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.plan = plan
        return x_TD.index_select(0, plan.token_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return combine(grad_RD, ctx.plan), None


class Combine(torch.autograd.Function):
    """y_RD -> out_TD, the sum of each token's rows."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.plan = plan
        return combine(y_RD, plan)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad_TD.index_select(0, ctx.plan.token_R), None
