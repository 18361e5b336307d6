"""Mixture of Experts from 1991 to today: one small layer, and a model around it."""

from typing import Any

__version__ = "0.1.0.dev0"
__all__ = ["load_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "load_pretrained":  # imported when asked for: hf needs torch, a version does not
        from .hf import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
