"""Fast: every path by its name, the tuned ones too, and what "auto" takes. Made to be skipped.

Each tuned path has a readable twin in :mod:`moe_lite.dispatch`; tests/fuzz_dispatch.py holds the
two equal, in the output and every gradient.
"""

from __future__ import annotations

from importlib.util import find_spec

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

    Args: dtype: of the tokens; None: the experts' own. Gradients, autocast: torch is asked.
    """
    w1, dtype, kind = experts.w1, dtype or experts.w1.dtype, experts.w1.device.type
    if kind == "cpu":
        return cpu.choose(w1, tokens, pairs, dtype)
    if kind == "meta":
        return cpu.compiled, "'compiled', whose products ask for shapes alone"
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    # Measured on an H100 (experiments/results/bench): 64 experts of 2,048 rows, forward and back.
    measured = kind == "cuda" and dtype == torch.bfloat16 and pairs >= 2000 * len(w1)
    if measured and find_spec("triton") and torch.cuda.get_device_capability(w1.device) >= (9, 0):
        return _triton, "'triton', 1.24 times as fast as 'grouped' with 2,000 rows an expert"
    return grouped, "'grouped', because nothing was measured there yet"


def auto(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Return what the path of :func:`choose` does."""
    backend, _ = choose(experts, len(x_TD), len(routing.token_N), x_TD.dtype)
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
