"""Widgets: the gestures that a plain slider cannot offer, each beside its plain ES module."""

from .bias_controller import BiasController
from .competition import CompetitionExplorer
from .noisy_gate import NoisyGate
from .routing_explorer import RoutingExplorer
from .tree_explorer import TreeExplorer

__all__ = ["BiasController", "CompetitionExplorer", "NoisyGate", "RoutingExplorer", "TreeExplorer"]
