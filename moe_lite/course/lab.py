"""JupyterLab as the course opens it: its settings, and notebooks saved so that they last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .build import WIDGET, metadata

HIDDEN = ("__pycache__", "*~", "[0-9][0-9]_*.py")  # a chapter's source is its notebook's twin
SETTINGS = Path(__file__).parent / "assets" / "lab"


def arguments(root: Path) -> list[str]:
    """Return what JupyterLab is started with: no news, no twin of each notebook, the hook."""
    return [
        f"--ServerApp.root_dir={root}",
        f"--LabApp.app_settings_dir={SETTINGS}",
        f"--ContentsManager.pre_save_hook={__name__}.before_saving",
        *(f"--ContentsManager.hide_globs={glob}" for glob in HIDDEN),
        # Nothing here needs the network, nor should a question stand before the first page.
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "--LabApp.news_url=None",
    ]  # fmt: skip


def before_saving(model: dict[str, Any], path: str = "", **_: Any) -> None:
    """Keep in a saved notebook what lasts: a widget's picture, and the metadata as it was built.

    JupyterLab prefers a widget without its kernel ("model not found") to the picture beside it,
    and writes this machine's Python into each notebook that is opened.
    """
    if model.get("type") != "notebook" or not isinstance(notebook := model.get("content"), dict):
        return
    for cell in notebook.get("cells", ()):
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"].pop(WIDGET, None)
    head = notebook.get("metadata", {})
    if {"source", "sha256"} <= set(built := head.get("moe_lite") or {}):
        notebook["metadata"] = metadata(built["source"], built["sha256"])
