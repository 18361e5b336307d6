"""Dispatch: carry each token's vector to its experts and bring the weighted answers back.

Every backend has one signature, (x_TD, experts, plan) -> out_TD, and gives the same output
and the same gradients. ``loop`` is the one to read and the oracle of the tests; ``padded``
is what GShard's einsum amounts to; ``grouped`` is the one to use; ``triton`` is the same in fused
kernels for a GPU, where Triton is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..routing import Dispatch, DispatchPlan, Routing
from .grouped import grouped, single
from .reference import loop, padded

if TYPE_CHECKING:
    from ..experts import Experts

__all__ = ["BACKENDS", "carry", "plan"]


def plan(routing: Routing) -> DispatchPlan:
    """Sort the pairs by expert, keeping token order within each expert.

    >>> r = Routing.from_choices(
    ...     torch.zeros(3, 2), torch.full((3, 2), 0.5),
    ...     torch.tensor([[1], [0], [1]]), torch.tensor([[0.5], [0.6], [0.7]]))
    >>> p = plan(r)
    >>> p.token_R.tolist(), p.offsets_E1.tolist(), p.row_N.tolist()
    ([1, 0, 2], [0, 1, 3], [1, 0, 2])

    A dropped pair is sorted as if it went to an expert number E, so it lands behind the last
    offset: the shapes stay known and nothing waits for the device.
    """
    E = routing.num_experts
    key_N, gate_N = routing.expert_N, routing.gate_N
    if routing.keep_N is not None:
        key_N = key_N.where(routing.keep_N, E)
        gate_N = gate_N.where(routing.keep_N, 0.0)
    sorted_R, order_R = key_N.sort(stable=True)
    row_N = torch.empty_like(order_R)
    row_N[order_R] = torch.arange(len(order_R), device=order_R.device)
    return DispatchPlan(
        token_R=routing.token_N.index_select(0, order_R),
        gate_R=gate_N.index_select(0, order_R),
        offsets_E1=torch.searchsorted(
            sorted_R, torch.arange(E + 1, device=sorted_R.device), out_int32=True
        ),
        num_tokens=routing.num_tokens,
        order_R=order_R,
        row_N=row_N,
        per_token=routing.per_token,
        dropless=routing.keep_N is None,
    )


def carry(dispatch: Dispatch, x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Take tokens to their experts and back: plan, then dispatch; a single one needs no plan.

    Raises: ValueError if tokens and experts differ in their type, and autocast does not mend it.
    """
    weights, cast = experts.w1.dtype, torch.is_autocast_enabled(x_TD.device.type)
    if x_TD.dtype != weights and not cast:
        raise ValueError(
            f"the tokens are {x_TD.dtype} and the experts {weights}: convert one of them, or use "
            "torch.autocast"
        )
    alone = dispatch is grouped and x_TD.device.type == "cpu" and len(x_TD) == 1
    if alone and not cast and not torch.is_grad_enabled():
        return single(x_TD, experts, routing)
    return dispatch(x_TD, experts, plan(routing))


def _triton(x_TD: Tensor, experts: Experts, plan: DispatchPlan) -> Tensor:
    """Import Triton when it is asked for, not before."""
    try:
        from .triton import fused
    except ImportError as error:
        raise ValueError(
            "the triton backend needs Triton, which is not here (pip install triton, on Linux); "
            f'backend="grouped" needs nothing more ({error})'
        ) from error
    return fused(x_TD, experts, plan)


BACKENDS: dict[str, Dispatch] = {
    "loop": loop,
    "padded": padded,
    "grouped": grouped,
    "triton": _triton,
    "auto": grouped,  # the fastest on every device where both were measured so far: on CPUs
}
