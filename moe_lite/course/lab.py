"""JupyterLab as the course opens it: its settings, and notebooks saved so that they last."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .build import WIDGET, metadata, number

HIDDEN = ("__pycache__", "*~", "[0-9][0-9]*_*.py")  # a chapter's source is its notebook's twin
SETTINGS = Path(__file__).parent / "assets" / "lab"


def arguments(root: Path | None) -> list[str]:
    """Return what JupyterLab is started with: no news, no twin of each notebook, the hook."""
    return [
        *([f"--ServerApp.root_dir={root}"] if root else []),
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


def landing(root: Path) -> str:
    """Return the page that JupyterLab opens with: each chapter, and how far its reader has come.

    Progress is read off the exercises as they were last saved: a check that passed printed ✓.
    """
    rows = []
    for path in sorted((root / "notebooks").glob("[0-9][0-9]*_*.ipynb")):  # 10, and 10a beside it
        title = re.search(r"^# (.+)", "".join(map(_text, _cells(path)[:1])), flags=re.M)
        here, name = number(path.stem), title[1] if title else path.stem
        row = f"| {here} | [{name}](notebooks/{path.name}) |"
        links = [
            f"[{folder}]({folder}/{here}_{folder}.ipynb)"
            for folder in ("exercises", "solutions")
            if (root / folder / f"{here}_{folder}.ipynb").is_file()
        ]
        right, of = progress(root / "exercises" / f"{here}_exercises.ipynb") if links else (0, 0)
        rows.append(f"{row} {' · '.join(links)} | {f'{right} of {of} right' if of else ''} |")
    table = "\n".join(["| | chapter | to do | so far |", "|---|---|---|---|", *rows])
    return f"""# MoE Lite

{table}

[Ledger of what was measured](LEDGER.md) · [README](README.md) ·
the library: [moe_lite](moe_lite/__init__.py). What you did is counted when JupyterLab starts.
"""


def progress(exercises: Path) -> tuple[int, int]:
    """Count the exercises of a notebook whose check last passed, and all that have a check."""
    checks = [cell for cell in _cells(exercises) if "checks.check_" in _text(cell)]
    said = ["".join(o.get("text", "")) for cell in checks for o in cell.get("outputs", ())]
    return sum(text.startswith("✓") for text in said), len(checks)


def _cells(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):  # not one, or half: its reader's to put right
        return []


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])
