"""Widgets: the gestures that a plain slider cannot offer, each beside its plain ES module."""

from .competition import CompetitionExplorer
from .cost_calculator import CostCalculator
from .noisy_gate import NoisyGate
from .routing_explorer import RoutingExplorer
from .traffic_matrix import TrafficMatrix
from .tree_explorer import TreeExplorer

__all__ = [
    "CompetitionExplorer",
    "CostCalculator",
    "NoisyGate",
    "RoutingExplorer",
    "TrafficMatrix",
    "TreeExplorer",
]
