"""The two backends to learn from: one expert at a time, and all experts padded alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..routing import DispatchPlan

if TYPE_CHECKING:
    from ..experts import Experts


def loop(x_TD: Tensor, experts: Experts, plan: DispatchPlan) -> Tensor:
    """Visit the experts in turn: gather its tokens, run it, add its weighted answers back.

    Takes every floating type, float64 included, so it is what gradcheck sees and what the
    other backends are held against.
    """
    out_TD = torch.zeros_like(x_TD)
    start = 0
    for expert, end in zip(experts.each(), plan.offsets_E1[1:].tolist(), strict=True):
        token_R, gate_R1 = plan.token_R[start:end], plan.gate_R[start:end, None]
        out_TD = out_TD.index_add(0, token_R, (expert(x_TD[token_R]) * gate_R1).to(x_TD.dtype))
        start = end
    return out_TD


def padded(x_TD: Tensor, experts: Experts, plan: DispatchPlan) -> Tensor:
    """Give every expert as many rows as the busiest one and multiply them all in one batch.

    The work is E * C rows with C the largest load: right for hardware that wants one shape,
    wasteful when the load is uneven. GShard (arXiv:2006.16668) fixes C and drops the rest.
    """
    D = x_TD.shape[1]
    start_E, end_E = plan.offsets_E1[:-1].long(), plan.offsets_E1[1:].long()
    C = int((end_E - start_E).max())
    row_EC = start_E[:, None] + torch.arange(C, device=x_TD.device)
    used_EC1 = (row_EC < end_E[:, None])[..., None]
    row_EC = row_EC.where(used_EC1[..., 0], 0)  # an empty place reads row 0, and forgets it

    def product(x_ECI: Tensor, weight_EOI: Tensor) -> Tensor:
        """Multiply, and keep empty places empty: 0 times an infinite weight would be NaN."""
        return torch.bmm(x_ECI.where(used_EC1, 0), weight_EOI.transpose(1, 2)).where(used_EC1, 0)

    token_EC = plan.token_R[row_EC]
    x_ECD = x_TD[token_EC]
    hidden_ECF = experts.activate(product(x_ECD, experts.w1), product(x_ECD, experts.w3))
    y_ECD = product(hidden_ECF, experts.w2)
    weighted_ECD = (y_ECD * plan.gate_R[row_EC][..., None]).where(used_EC1, 0).to(x_TD.dtype)
    return torch.zeros_like(x_TD).index_add(0, token_EC.view(-1), weighted_ECD.view(-1, D))
