"""The MoE layer: a gate, experts, and a way to carry tokens between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .experts import Experts
from .fast import BACKENDS, choose
from .routing import Routing


class MoELayer(nn.Module):
    """Replace a feed-forward network by E experts of which each token uses K.

    Gate and experts are handed in, and either can be swapped in one line::

        layer = MoELayer(TopKRouter(D, E, K), Experts(E, D, F))
        out_BSD, routing = layer(x_BSD)
        layer.backend = "loop"

    Args:    gate: a :class:`~moe_lite.routers.Router`, or what else maps x_TD (with mask_T and
             ids_T) to a :class:`Routing` over as many experts as there are.
             backend: a key of ``moe_lite.fast.BACKENDS``.
             shared: experts that see every token, with a weight of 1, beside the routed ones.
    Shapes:  (B, S, D) or (T, D) in and out; the routing's T is B*S.
    Raises:  ValueError for an unknown backend, a gate over another number of experts, an
             input of another width or type, a mask or ids of another shape, or (checked on the
             CPU) an expert that is not there or router logits that are not finite.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eq. 1; shared: Dai et al. 2024
             (arXiv:2401.06066), eq. 9.
    """

    def __init__(
        self, gate: nn.Module, experts: Experts, backend: str = "auto",
        shared: Experts | None = None,
    ):  # fmt: skip
        super().__init__()
        self.gate, self.experts, self.backend, self.shared = gate, experts, backend, shared
        self.name = "MoELayer"  # a model gives its place; error messages say it

    def forward(
        self, x_BSD: Tensor, mask_BS: Tensor | None = None, ids_BS: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """Route, run the experts, and give their sum and the routing.

        Args: mask_BS: False for padding, which then takes no expert's time and no one's place.
              ids_BS: the tokens' ids, for a router that looks at them. Both also flat, (T,).
        """
        if x_BSD.shape[1:][-1:] != (w1 := self.experts.w1).shape[2:] or x_BSD.dtype != w1.dtype:
            if x_BSD.dim() < 2:
                raise ValueError(f"{self.name}: input is (T, D) or more, not {(*x_BSD.shape,)}")
            self._check_input(x_BSD)
        # 1. who goes where
        x_TD = x_BSD.flatten(0, -2)
        mask_T, ids_T = (x if x is None else self._flat(x, x_BSD) for x in (mask_BS, ids_BS))
        if mask_T is not None:
            x_TD = x_TD.where(mask_T[:, None].bool(), 0)  # padding may hold NaN: 0 * NaN is NaN
        routing: Routing = self.gate(x_TD, mask_T=mask_T, ids_T=ids_T).masked(mask_T)
        if x_TD.device.type == "cpu" and not torch.compiler.is_compiling():
            routing.check(self.name)  # on a GPU, looking would mean waiting
        # 2. to the experts and back
        out_TD = self.dispatch(x_TD, routing)
        # 3. and those that see every token
        if self.shared is not None:
            self._check_width(x_BSD, self.shared.w1, "shared experts")
            for expert in self.shared.each():
                out_TD = out_TD + expert(x_TD)
        return out_TD.view_as(x_BSD), routing

    def _check_input(self, x_BSD: Tensor) -> None:
        self._check_width(x_BSD, self.experts.w1, "experts")

    def _check_width(self, x_BSD: Tensor, w1: Tensor, who: str) -> None:
        if x_BSD.shape[-1] != (D := w1.shape[-1]):
            raise ValueError(f"{self.name}: input has width {x_BSD.shape[-1]}, the {who} {D}")
        other = x_BSD.dtype != w1.dtype
        if other and (w1.is_meta or not torch.is_autocast_enabled(w1.device.type)):
            raise ValueError(
                f"{self.name}: the tokens are {x_BSD.dtype} and the {who} {w1.dtype}: convert one "
                "of them, or use torch.autocast"
            )

    def _flat(self, given_BS: Tensor, x_BSD: Tensor) -> Tensor:
        if given_BS.shape not in (shape := x_BSD.shape[:-1], (shape.numel(),)):
            raise ValueError(
                f"{self.name}: mask or ids are {tuple(given_BS.shape)}, the tokens {tuple(shape)}"
            )
        return given_BS.reshape(-1)

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Return the weighted sum of what each token's experts answer, (T, D).

        Raises: ValueError for an unknown backend, or a routing to another number of experts.
        """
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {sorted(BACKENDS)}, not {self.backend!r}")
        if routing.num_experts != self.experts.num_experts:
            raise ValueError(
                f"{self.name}: the gate routes to {routing.num_experts} experts, but there are "
                f"{self.experts.num_experts}"
            )
        return BACKENDS[self.backend](x_TD, self.experts, routing)

    def explain(self, tokens: int = 1024) -> str:
        """Return a sentence that says which path carries so many tokens now, and why.

        Gradients, autocast and compiling count: ask within ``torch.no_grad()`` about decoding.
        """
        device = self.experts.w1.device.type
        if self.backend != "auto":
            return f"{self.name}: {self.backend!r} on the {device}, as asked"
        _, why = choose(self.experts, tokens, tokens * getattr(self.gate, "top_k", 1))
        how = f"on the {device}, {'with' if torch.is_grad_enabled() else 'without'} gradients"
        return f"{self.name}: 'auto' takes {tokens} tokens {how}, by {why}"

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"
