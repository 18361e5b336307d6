"""The experts of one layer: E feed-forward networks, their weights stacked."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """Hold E SwiGLU networks, y = W2 (silu(W1 x) * W3 x), as three stacked parameters.

    A backend reads the weights; this module knows no tokens and no routing.

    Shapes: w1, w3 (E, F, D); w2 (E, D, F).
    Raises: ValueError if a size is below 1.
    Source: Shazeer 2020 (arXiv:2002.05202), eq. 6 without biases; names as in Mixtral's checkpoint.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int):
        super().__init__()
        E, D, F_ = num_experts, hidden_size, intermediate_size
        for name, size in (("num_experts", E), ("hidden_size", D), ("intermediate_size", F_)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        self.w1 = nn.Parameter(torch.empty(E, F_, D))
        self.w3 = nn.Parameter(torch.empty(E, F_, D))
        self.w2 = nn.Parameter(torch.empty(E, D, F_))
        self.reset_parameters()

    def reset_parameters(self, std: float | None = None) -> None:
        """Draw each weight from a normal of the given std (default: 1/sqrt(fan-in))."""
        for weight in (self.w1, self.w3, self.w2):
            nn.init.normal_(weight, std=std if std is not None else weight.shape[-1] ** -0.5)

    @property
    def num_experts(self) -> int:
        return self.w1.shape[0]

    @staticmethod
    def activate(up1: Tensor, up3: Tensor) -> Tensor:
        """Gate one projection by the other: silu(up1) * up3, any shape."""
        return F.silu(up1) * up3

    def each(self) -> list[Callable[[Tensor], Tensor]]:
        """Return one function (R, D) -> (R, D) per expert."""

        def run(w1_FD: Tensor, w3_FD: Tensor, w2_DF: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x_RD: F.linear(
                self.activate(F.linear(x_RD, w1_FD), F.linear(x_RD, w3_FD)), w2_DF
            )

        # Unbound once: each slice w1[e] would fill a gradient of the whole stack's size.
        stacks = self.w1.unbind(), self.w3.unbind(), self.w2.unbind()
        return [run(*weights) for weights in zip(*stacks, strict=True)]

    def extra_repr(self) -> str:
        E, F_, D = self.w1.shape
        return f"E={E}, D={D}, F={F_}"
