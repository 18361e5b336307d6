"""Mixture of Experts from 1991 to today: one small layer, and a model around it.

Each name here is imported when it is first asked for::

    from moe_lite import Experts, MoELayer, TopKRouter
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOME = {
    "config": ("MixtralConfig", "TrainConfig"),
    "evaluation": ("evaluate",),
    "experts": ("Experts",),
    "generate": ("KVCache",),
    "hf": ("load", "load_pretrained", "save", "upcycle"),
    "layer": ("MoELayer",),
    "losses": ("load_balancing_loss", "max_violation", "router_z_loss"),
    "model": ("Mixtral",),
    "routers": (
        "ExpertChoiceRouter", "GShardRouter", "HashRouter", "NoisyTopKRouter", "Router", "Scores",
        "SigmoidBiasRouter", "SwitchRouter", "TopKRouter",
    ),
    "routing": ("DispatchPlan", "Routing"),
    "trace": ("RoutingTrace", "record"),
}  # fmt: skip
__all__ = sorted(name for names in _HOME.values() for name in names)

if TYPE_CHECKING:  # the same for who reads types; tests/test_facade.py holds the two equal
    # isort: off
    from .config import MixtralConfig as MixtralConfig, TrainConfig as TrainConfig
    from .evaluation import evaluate as evaluate
    from .experts import Experts as Experts
    from .generate import KVCache as KVCache
    from .hf import load as load, load_pretrained as load_pretrained
    from .hf import save as save, upcycle as upcycle
    from .layer import MoELayer as MoELayer
    from .losses import load_balancing_loss as load_balancing_loss
    from .losses import max_violation as max_violation, router_z_loss as router_z_loss
    from .model import Mixtral as Mixtral
    from .routers import ExpertChoiceRouter as ExpertChoiceRouter, GShardRouter as GShardRouter
    from .routers import HashRouter as HashRouter, NoisyTopKRouter as NoisyTopKRouter
    from .routers import Router as Router, Scores as Scores, SigmoidBiasRouter as SigmoidBiasRouter
    from .routers import SwitchRouter as SwitchRouter, TopKRouter as TopKRouter
    from .routing import DispatchPlan as DispatchPlan, Routing as Routing
    from .trace import RoutingTrace as RoutingTrace, record as record
    # isort: on


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
