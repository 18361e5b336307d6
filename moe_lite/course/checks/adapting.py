"""The checks of chapter 16: how do you adapt a sparse model?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .verdict import Check, fit, number, randn, refuse


def check_quantize(quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check int8 by rows: w_FD -> (q_FD int8, scale_F1), so that q * scale is close to w."""
    check = Check("quantize", quantize, lambda w_FD: True, see=_is_close)
    check.on("[[1, -2, 0.5], [100, 50, -25]]", torch.tensor([[1.0, -2, 0.5], [100, 50, -25]]))
    check.on("random rows of many sizes", randn(0, 6, 40) * torch.logspace(-3, 2, 6)[:, None])
    check.on("a row of zeros", torch.cat([torch.zeros(1, 5), randn(1, 2, 5)]))
    check.on("one column", randn(2, 4, 1))
    check.on("weights that are all below zero", -randn(3, 5, 8).abs())
    check.passed("a byte for each weight, a scale for each row, half a step of error.")


def _is_close(value: Any, w_FD: Tensor) -> bool:
    def wrong(why: str) -> None:
        refuse("quantize", why)

    pair = fit(value, (w_FD, w_FD))
    both = isinstance(pair, tuple) and len(pair) == 2
    q_FD, scale_F1 = map(number, pair) if both else (None, None)
    if q_FD is None or scale_F1 is None:
        wrong("return two tensors, q_FD and scale_F1")
        raise AssertionError
    if scale_F1.dtype == torch.int8 != q_FD.dtype:
        wrong("the two are swapped: return q_FD, then scale_F1")
    if q_FD.dtype != torch.int8:
        wrong("q has to be int8, or nothing is saved")
    if q_FD.shape != w_FD.shape:
        wrong(f"q has to have the shape of w, {tuple(w_FD.shape)}, not {tuple(q_FD.shape)}")
    F, largest = len(w_FD), w_FD.abs().amax(1, keepdim=True)
    if scale_F1.numel() == 1 != F:
        wrong("one scale for the whole matrix: a row of small weights is lost beside one of large "
              "ones; give each row its own")  # fmt: skip
    if scale_F1.shape != (F, 1):
        wrong(f"return a tensor of shape {(F, 1)} for the scale: one for each row of w, not "
              f"{tuple(scale_F1.shape)}")  # fmt: skip
    step, back = (largest / 127).clamp(min=1e-12), q_FD * scale_F1.to(w_FD)
    if not back.isfinite().all():
        wrong("a row of zeros was divided by its largest value, zero")
    worst, ratio = ((back - w_FD).abs() / step).max().item(), w_FD / step
    wrapped = (w_FD / (largest / 128).clamp(min=1e-12)).round().to(torch.int16)
    if torch.equal(q_FD, wrapped.to(torch.int8)) and (wrapped > 127).any():
        wrong("int8 ends at 127, and the largest weight became 128, which wraps around to -128: "
              "divide by 127")  # fmt: skip
    for cut, how in ((ratio.trunc(), "cut off towards zero"), (ratio.floor(), "rounded down")):
        if torch.equal(q_FD, cut.to(torch.int8)) and worst > 0.6:
            wrong(f"{how} instead of rounded: twice the error, and all to one side")
    if torch.allclose(q_FD / scale_F1.to(w_FD), w_FD, atol=step.max().item()) and worst > 1:
        wrong("the scale is one over what it should be: w is q times scale")
    if w_FD.any() and (q_FD.to(torch.int16).abs().amax(1)[w_FD.any(1)] < 100).any():
        wrong("not the whole range of int8: the largest of each row is to be 127")
    if worst > 0.51:
        wrong(f"q * scale is up to {worst:.3g} steps away from w; rounding costs half a step, the "
              "step being the row's largest absolute value / 127")  # fmt: skip
    return True
