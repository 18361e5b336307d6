"""The two paths to learn from: one expert at a time, and all experts padded alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ..experts import Experts
from ..routing import Routing
from .grouped import plan


def loop(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Visit the experts in turn: gather its tokens, run it, add its weighted answers back.

    Takes float64 too, so it is what gradcheck sees and the other paths are held against.
    """
    expert_N, out_TD = routing.expert_N, torch.zeros_like(x_TD)
    if routing.keep_N is not None:
        expert_N = expert_N.where(routing.keep_N, -1)  # a dropped pair has no expert
    for e, expert in enumerate(experts.each()):
        # 1. its pairs, and their tokens
        pair = (expert_N == e).nonzero()[:, 0]
        token = routing.token_N[pair]
        # 2. its answers, weighed, to where the tokens stand
        answer = expert(x_TD[token]) * routing.gate_N[pair, None]
        out_TD = out_TD.index_add(0, token, answer.to(x_TD.dtype))
    return out_TD


def padded(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Give every expert as many rows as the busiest one and multiply them all in one batch.

    The work is E * C rows with C the largest load: right for hardware that wants one shape,
    wasteful when the load is uneven. GShard (arXiv:2006.16668) fixes C and drops the rest.
    """
    # 1. who sits where: expert e's rows, then empty places
    p = plan(routing)
    start_E, end_E = p.offsets_E1[:-1].long(), p.offsets_E1[1:].long()
    C = int((end_E - start_E).max())
    row_EC = start_E[:, None] + torch.arange(C, device=x_TD.device)
    used_EC1 = (row_EC < end_E[:, None])[..., None]
    row_EC = row_EC.where(used_EC1[..., 0], 0)  # an empty place reads row 0, and forgets it

    def product(x_ECI: Tensor, weight_EOI: Tensor) -> Tensor:
        """Multiply, and keep empty places empty: 0 times an infinite weight would be NaN."""
        return torch.bmm(x_ECI.where(used_EC1, 0), weight_EOI.transpose(1, 2)).where(used_EC1, 0)

    # 2. three products, all experts at once
    token_EC = p.token_R[row_EC]
    x_ECD = x_TD[token_EC]
    hidden_ECF = experts.activate(product(x_ECD, experts.w1), product(x_ECD, experts.w3))
    y_ECD = product(hidden_ECF, experts.w2)
    # 3. weigh, and add to each token's place
    weighted_ECD = (y_ECD * p.gate_R[row_EC][..., None]).where(used_EC1, 0).to(x_TD.dtype)
    return torch.zeros_like(x_TD).index_add(0, token_EC.view(-1), weighted_ECD.flatten(0, 1))
