"""Products of bfloat16 on a CPU for which PyTorch has no library to multiply them.

It then has loops of its own: on a core of an AMD EPYC with AVX2 alone 0.5 to 17 GFLOP/s, by sizes
and layout, where float32 makes 42 to 72. The product of two bfloat16 numbers is exact in float32,
and units for bfloat16 add up in float32 as well: so float32's products, rounded at their end, are
the same numbers but for the order of the sums.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..config import Autocast
from ..fast.onednn import multiplies_bfloat16

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACK = aten._scaled_dot_product_flash_attention_for_cpu_backward
PRODUCTS = {
    aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten._grouped_mm, ATTENTION, ATTENTION_BACK,
}  # fmt: skip


def multiplies_slowly(device: torch.device | str = "cpu") -> bool:
    """Say whether PyTorch has no library for products of bfloat16 on this device."""
    if torch.device(device).type != "cpu" or multiplies_bfloat16():
        return False
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is None or not asked()


def bfloat16_products(
    autocast: Autocast, device: torch.device | str
) -> AbstractContextManager[Any]:
    """Let what asks for bfloat16 ("on") train in here nearly as fast as in float32.

    Where PyTorch has a library for it nothing is done, nor for any other device. Of attention,
    what comes out is rounded, not its weights as well. Not for inference_mode, nor for
    torch.compile, which compiles nothing in here.
    """
    on = autocast == "on" and multiplies_slowly(device)
    return _InFloat32() if on else nullcontext()


class _InFloat32(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket
        if name not in PRODUCTS or not _all_bfloat16(name, args, kwargs):
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        wide, options = tree_map_only(Tensor, _widen, (args, kwargs))
        found = name.default(*wide, **options)
        if name is ATTENTION:
            return found[0].bfloat16(), found[1]  # the log-sum-exp is float32 there too
        found = tree_map_only(Tensor, Tensor.bfloat16, found)
        return found if out is None else out.resize_(found.shape).copy_(found)


def _all_bfloat16(name: Any, args: Any, kwargs: Any) -> bool:
    """Say whether all that is multiplied, and written into, is bfloat16 on a CPU.

    What is mixed PyTorch shall refuse as ever; attention has a mask and a log-sum-exp beside.
    """
    given = args[:3] if name in (ATTENTION, ATTENTION_BACK) else (args, kwargs)
    if any(isinstance(leaf, torch.dtype) for leaf in tree_leaves((args, kwargs))):
        return False  # another type is asked for
    tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.is_floating_point()]
    return all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)


def _widen(t: Tensor) -> Tensor:
    return t.float() if t.dtype == torch.bfloat16 else t
