"""Widgets: the gestures that a plain slider cannot offer, each beside its plain ES module."""

from .routing_explorer import RoutingExplorer
from .tree_explorer import TreeExplorer

__all__ = ["RoutingExplorer", "TreeExplorer"]
