"""One run of a stack on one core: each token's experts alone, the step compiled.

What :class:`.stacked.Stack` computes with N = 1. There all experts compute all tokens, which on a
GPU costs less than sorting them, and on a core does not. The same first weights, batches, losses
and optimizer; tests/test_stacked.py holds the two together, compiled too, at the box's shape. One
much smaller shape, compiled, gave a gradient of NaN (torch 2.13, not understood), so a run whose
loss is not finite is not kept. On a CPU that multiplies bfloat16 slowly it computes in float32, and
what is stored says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.course.rounded import multiplies_slowly

from .stacked import Stack, _adamw

ROWS = 128  # of a block; each expert's last one has empty rows


class ToRows(torch.autograd.Function):
    """x_TD -> x_PD, each pair's vector to its row; an empty row has any token's."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_P: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_P, row_TK)
        return x_TD[token_P]

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad_PD[ctx.saved_tensors[1]].sum(1), None, None


class ToTokens(torch.autograd.Function):
    """y_PD -> out_TD, the sum of each token's rows."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, token_P: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_P, row_TK)
        return y_PD[row_TK].sum(1)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad_TD[ctx.saved_tensors[0]], None, None


@dataclass
class Alone(Stack):
    """Hold one run, and take its steps as fast as a core does.

    The pairs are sorted into blocks of equal size, each with one expert (Gale et al. 2022,
    arXiv:2211.15841), so no shape depends on what routers choose and a product is one call.
    """

    def __post_init__(self) -> None:
        fuse, self.fuse = self.fuse, False  # as a whole, not in parts
        super().__post_init__()
        if len(self.runs) != 1 or self.chunk:
            raise ValueError("one run, whose tokens choose")
        if multiplies_slowly():
            self.dtype = None
        if fuse:
            self.adamw = torch.compile(_adamw)
            self.losses = torch.compile(self.losses)  # type: ignore[method-assign]
            self._nats = torch.compile(self._nats)  # type: ignore[method-assign]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend by products and a softmax, which the compiler fuses with what is around.

        A quarter of the queries at a time: what stands after all of them is not computed.
        """
        S, many = q.shape[2], q.shape[1] // k.shape[1]
        k, v = (t.repeat_interleave(many, 1) for t in (k, v))
        size, out = -(-S // 4), []
        for start in range(0, S, size):
            end = min(start + size, S)
            later = torch.ones(end - start, end, dtype=torch.bool, device=q.device).triu(start + 1)
            score = (q[:, :, start:end] @ k[:, :, :end].mT).float() / math.sqrt(q.shape[-1])
            seen = score.masked_fill(later, -math.inf).softmax(-1).to(v.dtype)
            out.append(seen @ v[:, :, :end])
        return torch.cat(out, 2)

    def mix(
        self, x_NTD: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, gate_NTE: Tensor | None
    ) -> Tensor:
        """Let each token's experts alone compute."""
        if gate_NTE is None:
            return super().mix(x_NTD, w1, w3, w2, gate_NTE)
        x_TD, gate_TE, K = x_NTD[0], gate_NTE[0], self.model.num_experts_per_tok + self.shared
        dtype = self.dtype or x_TD.dtype
        (T, E), device = gate_TE.shape, gate_TE.device
        # 1. where each pair stands: experts in order, each from the start of a block
        with torch.no_grad():
            expert_TK = gate_TE.topk(K).indices
            chosen_TE = torch.zeros_like(gate_TE).scatter_(1, expert_TK, 1.0)
            blocks_E = (chosen_TE.sum(0) / ROWS).ceil().long()
            end_E = blocks_E.cumsum(0)
            before_TE = chosen_TE.cumsum(0).long() - 1  # of the same expert
            row_TK = (before_TE + (end_E - blocks_E) * ROWS).gather(1, expert_TK)
            B = T * K // ROWS + E
            token_P = torch.zeros(B * ROWS, dtype=torch.long, device=device)
            token_P[row_TK.flatten()] = torch.arange(T, device=device).repeat_interleave(K)
            of_BE = (torch.arange(B, device=device)[:, None] >= end_E).sum(1, keepdim=True)
            of_BE = (of_BE == torch.arange(E, device=device)).to(dtype)
        # 2. an empty row has a gate of 0, and so no part in any gradient
        gate_P = torch.zeros(B * ROWS, device=device).index_put(
            (row_TK.flatten(),), gate_TE.gather(1, expert_TK).flatten()
        )
        # 3. block by block; a block's weights are its expert's
        up_BUD, down_BDH = (
            (of_BE @ w.flatten(1).to(dtype)).view(B, *w.shape[1:])
            for w in (torch.cat([w1[0], w3[0]], 1), w2[0])
        )
        x_BRD = ToRows.apply(x_TD.to(dtype), token_P, row_TK).view(B, ROWS, -1)
        up1, up3 = (x_BRD @ up_BUD.mT).chunk(2, -1)
        a_BRH = F.silu(up1) * up3 * gate_P.view(B, ROWS, 1).to(dtype)
        y_BRD = a_BRH @ down_BDH.mT
        return ToTokens.apply(y_BRD.flatten(0, 1), token_P, row_TK)[None]
