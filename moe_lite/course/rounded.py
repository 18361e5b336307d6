"""Products of bfloat16 on a CPU that has no units for them.

PyTorch then multiplies them number by number: on a core of an AMD EPYC with AVX2 alone, at 0.6
GFLOP/s, where float32 runs at 60. The product of two bfloat16 numbers is exact in float32, and
units for bfloat16 add up in float32 as well: so float32's products, rounded at their end, are the
same numbers but for the order of the sums.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..config import Autocast
from ..fast.onednn import multiplies_bfloat16

aten = torch.ops.aten
PRODUCTS = {
    aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten._grouped_mm,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}  # fmt: skip


def bfloat16_products(autocast: Autocast) -> AbstractContextManager[Any]:
    """Let what asks for bfloat16 ("on") train in here in about float32's time, forward and back.

    Where the CPU multiplies it, and for anything that is not on a CPU, nothing is done. Of
    attention, what comes out is rounded, not its weights as well.
    """
    return nullcontext() if autocast != "on" or multiplies_bfloat16() else _InFloat32()


class _InFloat32(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket
        if name not in PRODUCTS or func not in (name.default, getattr(name, "out", None)):
            return func(*args, **kwargs)
        if args[0].device.type != "cpu" or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        wide, options = tree_map_only(Tensor, _widen, (args, kwargs))
        found = name.default(*wide, **options)
        if name is aten._scaled_dot_product_flash_attention_for_cpu:
            return found[0].bfloat16(), found[1]  # the log-sum-exp is float32 there too
        return tree_map_only(Tensor, Tensor.bfloat16, found) if out is None else out.copy_(found)


def _widen(t: Tensor) -> Tensor:
    return t.float() if t.dtype == torch.bfloat16 else t
