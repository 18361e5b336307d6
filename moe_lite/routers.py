"""Routers: from a token's vector to its experts and their weights."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contracts import Routing

SoftmaxOrder = Literal["softmax_topk", "topk_softmax"]


class TopKRouter(nn.Module):
    """Send each token to its K best experts by a linear score.

    Two orders are in use. ``softmax_topk`` takes the softmax over all E experts, keeps the K
    largest and, with ``renormalize``, divides them by their sum (Hugging Face's Mixtral code;
    OLMoE leaves them undivided). ``topk_softmax`` keeps the K largest logits and takes the
    softmax over those (the Mixtral paper). With renormalising the two are equal up to
    rounding, because exp(l_i)/sum_all cancels its denominator; without it they are not.

    >>> router = TopKRouter(4, num_experts=8, top_k=2)
    >>> routing = router(torch.randn(3, 4))
    >>> routing.expert_N.shape, routing.gate_N.view(3, 2).sum(-1).allclose(torch.ones(3))
    (torch.Size([6]), True)

    Args:    order: which of the two; renormalize: only for ``softmax_topk``.
    Shapes:  weight (E, D); forward takes x_TD and gives a :class:`Routing` with N = T*K.
             Scores are computed in float32 (float64 for float64 input) whatever x is, even
             under autocast: bf16 rounding changes which expert wins.
    Raises:  ValueError if K is not in 1..E, or the order is unknown, or the width differs.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eqs. 3 and 5 without noise; Jiang et al.
             2024 (arXiv:2401.04088), section 2.1; float32: Fedus et al. 2021 (arXiv:2101.03961),
             section 2.4.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int = 2,
        *,
        order: SoftmaxOrder = "softmax_topk",
        renormalize: bool = True,
    ):
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be between 1 and {num_experts} experts, not {top_k}")
        if order not in get_args(SoftmaxOrder):
            raise ValueError(f"order must be one of {get_args(SoftmaxOrder)}, not {order!r}")
        self.top_k, self.order, self.renormalize = top_k, order, renormalize
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.normal_(self.weight, std=hidden_size**-0.5)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Score every expert for every token: (T, E), in float32 at least."""
        if x_TD.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"the router scores vectors of width {self.weight.shape[1]}, not {x_TD.shape[-1]}"
            )
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.to(dtype), self.weight.to(dtype))

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        if self.order == "softmax_topk":
            gate_TK, expert_TK = probs_TE.topk(self.top_k, dim=-1)
            if self.renormalize:
                gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
        else:
            top_TK, expert_TK = logits_TE.topk(self.top_k, dim=-1)
            gate_TK = top_TK.softmax(dim=-1)
        return Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK)

    def extra_repr(self) -> str:
        E, D = self.weight.shape
        return f"D={D}, E={E}, K={self.top_k}, {self.order}, renormalize={self.renormalize}"
