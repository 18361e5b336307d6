"""Widgets: the gestures that a plain slider cannot offer, each beside its plain ES module."""

from .competition import CompetitionExplorer
from .expert_queues import ExpertQueues
from .noisy_gate import NoisyGate
from .routing_explorer import RoutingExplorer
from .tree_explorer import TreeExplorer

__all__ = ["CompetitionExplorer", "ExpertQueues", "NoisyGate", "RoutingExplorer", "TreeExplorer"]
