"""The MoE layer: a gate, experts, and a way to carry tokens between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .dispatch import BACKENDS, carry
from .experts import Experts
from .linear import prefers_onednn
from .routing import Routing

if TYPE_CHECKING:
    from .parallel import Across


class MoELayer(nn.Module):
    """Replace a feed-forward network by E experts of which each token uses K.

    Gate and experts are handed in, and either can be swapped in one line::

        layer = MoELayer(TopKRouter(D, E, K), Experts(E, D, F))
        out_BSD, routing = layer(x_BSD)
        layer.backend = "loop"

    The layer returns its routing; nothing is collected behind the caller's back.

    Args:    gate: a :class:`~moe_lite.routers.Router`, or what else maps x_TD (with mask_T and
             ids_T) to a :class:`Routing` over as many experts as there are.
             backend: a key of ``moe_lite.dispatch.BACKENDS``.
             shared: experts that see every token, with a weight of 1, beside the routed ones.
    Attrs:   across: None, or the way to experts on other ranks, of which ``experts`` are then
             this rank's share; :func:`moe_lite.parallel.shard_experts` sets it.
    Shapes:  (B, S, D) or (T, D) in and out; the routing's T is B*S.
    Raises:  ValueError for an unknown backend, a gate over another number of experts, an
             input of another width, or (checked on the CPU) router logits that are not finite.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eq. 1; shared: Dai et al. 2024
             (arXiv:2401.06066), eq. 9.
    """

    def __init__(
        self,
        gate: nn.Module,
        experts: Experts,
        backend: str = "auto",
        shared: Experts | None = None,
    ):
        super().__init__()
        self.gate, self.experts, self.backend, self.shared = gate, experts, backend, shared
        self.across: Across | None = None
        self.name = "MoELayer"  # a model gives its place; error messages say it

    def forward(
        self, x_BSD: Tensor, mask_BS: Tensor | None = None, ids_BS: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """Route, run the experts, and give their sum and the routing.

        Args: mask_BS: False for padding, which then takes no expert's time and no one's place.
              ids_BS: the tokens' ids, for a router that looks at them.
        """
        D = self.experts.w1.shape[-1]
        if x_BSD.shape[-1] != D:
            raise ValueError(f"{self.name}: input has width {x_BSD.shape[-1]}, the experts {D}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {sorted(BACKENDS)}, not {self.backend!r}")
        x_TD = x_BSD.reshape(-1, D)
        mask_T, ids_T = (x if x is None else x.reshape(-1) for x in (mask_BS, ids_BS))
        routing: Routing = self.gate(x_TD, mask_T=mask_T, ids_T=ids_T).masked(mask_T)
        E, dispatch = self.experts.num_experts, BACKENDS[self.backend]
        if self.across is not None:
            E, dispatch = E * self.across.ranks, self.across.reach(dispatch)
        if routing.num_experts != E:
            raise ValueError(
                f"{self.name}: the gate routes to {routing.num_experts} experts, but there are {E}"
            )
        if x_TD.device.type == "cpu" and not torch.compiler.is_compiling():
            routing.check_finite(self.name)  # on a GPU, looking would mean waiting
        out_TD = carry(dispatch, x_TD, self.experts, routing)
        for expert in self.shared.each() if self.shared is not None else ():
            out_TD = out_TD + expert(x_TD)
        return out_TD.view_as(x_BSD), routing

    def explain(self) -> str:
        """Say in a sentence which backend carries this layer's tokens, and why."""
        device = self.experts.w1.device.type
        if self.backend != "auto":
            return f"{self.name}: {self.backend!r} on the {device}, as asked"
        why = "nothing was measured there yet"
        if device == "cpu":
            library = "oneDNN" if prefers_onednn() else "PyTorch's own choice"
            why = f"the fastest measured there at most sizes; float32 products by {library}"
        return f"{self.name}: 'grouped' on the {device}, chosen by 'auto': {why}"

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"
