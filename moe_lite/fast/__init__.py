"""Fast: every path by its name, the tuned ones too, and what "auto" takes. Made to be skipped.

Each tuned path has a readable twin in :mod:`moe_lite.dispatch`; tests/fuzz_dispatch.py holds the
two equal, in the output and every gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Dispatch, grouped, loop, padded
from ..experts import Experts
from ..routing import Routing
from . import cpu
from .onednn import Linear, autocast_dtype, linear

__all__ = ["BACKENDS", "Linear", "autocast_dtype", "choose", "linear"]


def choose(
    experts: Experts, tokens: int, pairs: int, dtype: torch.dtype | None = None
) -> tuple[Dispatch, str]:
    """Choose the fastest path that was measured for these sizes, and say in words which and why.

    Args: dtype: of the tokens; None: the experts' own. Whether gradients are wanted, autocast is
          on, or a graph is being compiled is asked of torch.
    """
    if experts.w1.device.type == "cpu":
        return cpu.choose(experts.w1, tokens, pairs, dtype or experts.w1.dtype)
    return grouped, "'grouped', because nothing was measured there yet"


def auto(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Return what the path of :func:`choose` does."""
    if x_TD.device.type != "cpu":
        return grouped(x_TD, experts, routing)
    backend, _ = cpu.choose(experts.w1, len(x_TD), len(routing.token_N), x_TD.dtype)
    return backend(x_TD, experts, routing)


def _triton(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Import Triton when it is asked for, not before."""
    try:
        from .triton import fused
    except ImportError as error:
        raise ValueError(
            "the triton backend needs Triton, which is not here (pip install triton, on Linux); "
            f'backend="grouped" needs nothing more ({error})'
        ) from error
    return fused(x_TD, experts, routing)


BACKENDS: dict[str, Dispatch] = {
    "auto": auto, "loop": loop, "padded": padded, "grouped": grouped, "triton": _triton,
}  # fmt: skip
