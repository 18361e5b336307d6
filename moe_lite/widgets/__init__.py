"""Widgets: the gestures that a plain slider cannot offer, each beside its plain ES module."""

from .noisy_gate import NoisyGate
from .routing_explorer import RoutingExplorer

__all__ = ["NoisyGate", "RoutingExplorer"]
