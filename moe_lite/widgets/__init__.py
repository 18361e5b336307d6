"""Widgets: the gestures that a plain slider cannot offer, each beside its plain ES module."""

from .routing_explorer import RoutingExplorer

__all__ = ["RoutingExplorer"]
