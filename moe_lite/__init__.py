"""Mixture of Experts from 1991 to today: one small layer, and a model around it."""

__version__ = "0.1.0.dev0"
