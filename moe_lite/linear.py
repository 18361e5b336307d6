"""Multiply by a weight with the faster of the two libraries that PyTorch carries for CPUs.

PyTorch gives float32 products on x86 to MKL, which on AMD keeps to AVX2. oneDNN, which PyTorch
uses for bfloat16, has AVX-512 kernels for float32 too: measured on one core of an AMD EPYC,
1024 x 256 times 256 x 512, MKL makes 106 GFLOP/s of all three products of a training step,
oneDNN 243 (forward), 250 (input's gradient) and 207 (weight's). Elsewhere, F.linear it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@cache
def prefers_onednn() -> bool:
    """Tell whether this machine's float32 products go to oneDNN: AMD, with AVX-512."""
    about: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and "AMD" in about.get("cpu_name", "") and bool(about.get("avx512_f"))


def product(x_RI: Tensor, weight_OI: Tensor, out_RO: Tensor | None = None) -> Tensor:
    """Compute x W^T, (R, I) x (O, I) -> (R, O), without a gradient; either may be a transpose.

    Written into out_RO, if that is given, in its type.
    """
    # Below about 2^20 multiplications oneDNN's 12 microseconds a call are more than it saves.
    large = x_RI.dtype == torch.float32 and x_RI.numel() * weight_OI.shape[0] >= 1 << 20
    if large and x_RI.device.type == "cpu" and prefers_onednn():
        result_RO = torch.ops.mkldnn._linear_pointwise(x_RI, weight_OI, None, "none", [], "")
    elif out_RO is None or out_RO.dtype != x_RI.dtype:
        result_RO = x_RI @ weight_OI.t()
    else:
        return torch.mm(x_RI, weight_OI.t(), out=out_RO)
    return result_RO if out_RO is None else out_RO.copy_(result_RO)


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """Compute x W^T for x of shape (..., I); the same as F.linear, and differentiable."""
    kind = x.device.type
    if kind != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled(kind):
        return F.linear(x, weight_OI)
    if x.numel() * weight_OI.shape[0] < 1 << 20 or torch.compiler.is_compiling():
        return F.linear(x, weight_OI)
    if not prefers_onednn():
        return F.linear(x, weight_OI)
    return Linear.apply(x.reshape(-1, x.shape[-1]), weight_OI).view(*x.shape[:-1], -1)


class Projection(nn.Linear):
    """A linear layer without bias, by :func:`linear`."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight)


class Linear(torch.autograd.Function):
    """The three products of a linear layer: forward, its input's gradient, its weight's."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        return product(x_RI, weight_OI)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x_RI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        return (
            product(grad_RO, weight_OI.t()) if needs_x else None,
            product(grad_RO.t(), x_RI.t()) if needs_weight else None,
        )
