"""Dispatch: carry each token's vector to its experts and bring the weighted answers back.

Three paths to read, one way through each. All have one signature, (x_TD, experts, routing) ->
out_TD, and give the same output and the same gradients. ``loop`` is the definition and the oracle
of the tests; ``padded`` is what GShard's einsum amounts to; ``grouped`` sorts. What is tuned is in
:mod:`moe_lite.fast`.
"""

from collections.abc import Callable

from torch import Tensor

from ..experts import Experts
from ..routing import Routing
from .grouped import combine, grouped, plan
from .reference import loop, padded

__all__ = ["Dispatch", "combine", "grouped", "loop", "padded", "plan"]

Dispatch = Callable[[Tensor, Experts, Routing], Tensor]
"""A path: (x_TD, experts, routing) -> out_TD."""
