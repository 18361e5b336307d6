"""Routers: from a token's vector to its experts and their weights.

A router is a module that maps x_TD to a :class:`~moe_lite.routing.Routing`. One that must know
more than the vectors names it in ``reads``, and the layer hands it over: ``mask_T``, False for
padding, if padding must not take anyone's place; ``ids_T``, the tokens' ids.
"""

from .choice import ExpertChoiceRouter, HashRouter, SigmoidBiasRouter
from .queues import (
    Capacity,
    GShardRouter,
    Priority,
    SwitchRouter,
    capacity,
    limit,
    queue_rank,
)
from .top_k import NoisyTopKRouter, SoftmaxOrder, TopKRouter, kth_excluding, prob_in_top_k
from .tree import HierarchicalRouter

__all__ = [
    "Capacity", "ExpertChoiceRouter", "GShardRouter", "HashRouter", "HierarchicalRouter",
    "NoisyTopKRouter", "Priority", "SigmoidBiasRouter", "SoftmaxOrder", "SwitchRouter",
    "TopKRouter", "capacity", "kth_excluding", "limit", "prob_in_top_k", "queue_rank",
]  # fmt: skip
