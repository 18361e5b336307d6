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
from torch.autograd.function import once_differentiable

from ..config import Autocast


@cache
def prefers_onednn() -> bool:
    """Return whether this machine's float32 products go to oneDNN: AMD, with AVX-512."""
    about: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and "AMD" in about.get("cpu_name", "") and bool(about.get("avx512_f"))


@cache
def multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 itself: by AMX or AVX512-BF16."""
    asks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, ask, lambda: False)() for ask in asks)


def linear(x: Tensor, weight_OI: Tensor, out: Tensor | None = None) -> Tensor:
    """Return x W^T for x of shape (..., I), as F.linear does.

    Args: out: written into, in its type; then x is (R, I), and there are no gradients.
    """
    if torch.compiler.is_compiling() or not prefers_onednn() or not _large(x, weight_OI):
        if out is None:
            return F.linear(x, weight_OI)
        if out.dtype == x.dtype:
            return torch.mm(x, weight_OI.t(), out=out)
        return out.copy_(x @ weight_OI.t())
    x_RI = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or weight_OI.requires_grad):
        result_RO = _Linear.apply(x_RI, weight_OI)
    else:
        result_RO = torch.ops.mkldnn._linear_pointwise(x_RI, weight_OI, None, "none", [], "")
    return result_RO.view(*x.shape[:-1], -1) if out is None else out.copy_(result_RO)


def _large(x: Tensor, weight_OI: Tensor) -> bool:
    """Return whether a product is float32 and large enough for oneDNN's 12 microseconds a call."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return x.numel() * weight_OI.shape[0] >= 1 << 20


class Linear(nn.Linear):
    """An ``nn.Linear`` that multiplies by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        out = linear(input, self.weight)
        return out if self.bias is None else out + self.bias


class _Linear(torch.autograd.Function):
    """The three products of a linear layer: forward, its input's gradient, its weight's."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        return linear(x_RI, weight_OI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x_RI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        return (
            linear(grad_RO, weight_OI.t()) if needs_x else None,
            linear(grad_RO.t(), x_RI.t()) if needs_weight else None,
        )


def autocast_dtype(model: nn.Module, autocast: Autocast = "auto") -> torch.dtype | None:
    """Return bfloat16 where the machine multiplies it faster, else None: the weights' own type.

    That is a CUDA device with bfloat16 in hardware, or a CPU that multiplies it (AMX or
    AVX512-BF16), there from a width of 256 on. Measured with AVX512-BF16 on one core, three
    layers of 8 experts, F = 1.75 D, a step in bfloat16 took 0.97 of float32's time at
    width 128, 0.84 at 256 and 0.73 at 512. "on" forces it.
    """
    weight = next(model.parameters())
    if autocast == "off" or weight.dtype != torch.float32:
        return None
    if weight.is_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        wide = weight.device.type == "cpu" and weight.shape[-1] >= 256
        fast = wide and multiplies_bfloat16()
    return torch.bfloat16 if fast or autocast == "on" else None
