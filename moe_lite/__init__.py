"""Mixture of Experts from 1991 to today: one small layer, and a model around it.

What an engineer needs stands here, each name imported when it is asked for::

    from moe_lite import Experts, MoELayer, TopKRouter
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .causal import intervene as intervene
    from .config import MixtralConfig as MixtralConfig
    from .config import TrainConfig as TrainConfig
    from .experts import Experts as Experts
    from .hf import load as load
    from .hf import load_pretrained as load_pretrained
    from .hf import save as save
    from .layer import MoELayer as MoELayer
    from .losses import load_balancing_loss as load_balancing_loss
    from .losses import router_z_loss as router_z_loss
    from .model import Mixtral as Mixtral
    from .routers import ExpertChoiceRouter as ExpertChoiceRouter
    from .routers import GShardRouter as GShardRouter
    from .routers import HashRouter as HashRouter
    from .routers import NoisyTopKRouter as NoisyTopKRouter
    from .routers import Router as Router
    from .routers import Scores as Scores
    from .routers import SigmoidBiasRouter as SigmoidBiasRouter
    from .routers import SwitchRouter as SwitchRouter
    from .routers import TopKRouter as TopKRouter
    from .routing import DispatchPlan as DispatchPlan
    from .routing import Routing as Routing
    from .routing import RoutingTrace as RoutingTrace
    from .trace import record as record
    from .train import train as train
    from .tree import HierarchicalRouter as HierarchicalRouter

__version__ = "0.1.0.dev0"

_HOME = {
    "causal": ("intervene",),
    "config": ("MixtralConfig", "TrainConfig"),
    "experts": ("Experts",),
    "hf": ("load", "load_pretrained", "save"),
    "layer": ("MoELayer",),
    "losses": ("load_balancing_loss", "router_z_loss"),
    "model": ("Mixtral",),
    "routers": (
        "ExpertChoiceRouter", "GShardRouter", "HashRouter", "NoisyTopKRouter", "Router", "Scores",
        "SigmoidBiasRouter", "SwitchRouter", "TopKRouter",
    ),
    "routing": ("DispatchPlan", "Routing", "RoutingTrace"),
    "trace": ("record",),
    "tree": ("HierarchicalRouter",),
}  # fmt: skip
__all__ = sorted(name for names in _HOME.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
