"""Say in words what a figure shows, for who does not see it: every picture's alternative text.

The words are read off the figure itself (titles, axes, each line with its ends, each bar), so they
cannot say anything else than what was drawn. In a notebook every matplotlib figure gets them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

MOST = 8  # lines, bars or words that are named; the rest are counted


def describe(figure: Figure) -> str:
    """Return a figure in words, panel by panel; its label, where it was given one."""
    if label := figure.get_label():
        return str(label)
    panels = [said for ax in figure.axes if (said := panel(ax))]
    head = figure.get_suptitle()
    many = f"{len(panels)} panels. " if len(panels) > 1 else ""
    return " ".join(f"{head + '. ' if head else ''}{many}{' '.join(panels)}".split())


def panel(ax: Axes) -> str:
    """Return one pair of axes in words; nothing where nothing is drawn."""
    title = next((t for at in ("left", "center", "right") if (t := ax.get_title(at))), "")
    x, y = ax.get_xlabel(), ax.get_ylabel()
    axes = f"{y} against {x}" if x and y else y or x
    drawn = [*lines(ax), *bars(ax), *points(ax), *pictures(ax), *words(ax)]
    if not drawn and not title:
        return ""
    return ". ".join(part for part in (title, axes, "; ".join(drawn)) if part) + "."


def few(found: Iterable[str], what: str) -> list[str]:
    """Keep the first of many, and count the rest."""
    all_ = list(found)
    return [*all_[:MOST], *([f"and {len(all_) - MOST} more {what}"] if len(all_) > MOST else [])]


def lines(ax: Axes) -> list[str]:
    """Return each line that has a name, or any that is more than a guide, with its two ends."""
    import numpy as np

    found = []
    for line in ax.get_lines():
        x, y = (np.asarray(v, float).ravel() for v in (line.get_xdata(), line.get_ydata()))
        good = np.isfinite(x) & np.isfinite(y) if len(x) == len(y) else np.zeros(0, bool)
        if not good.any():
            continue
        x, y = x[good], y[good]
        name = str(line.get_label())
        name = "a line" if name.startswith("_") else name
        if line.get_transform() == ax.get_yaxis_transform(which="grid"):  # from edge to edge
            if name != "a line":
                found.append(f"{name}: a level line at {y[0]:.3g}")
        elif len(x) == 1:
            found.append(f"{name} at {x[0]:.3g}, {y[0]:.3g}")
        elif len(x) > 2 or name != "a line":
            found.append(f"{name}: {y[0]:.3g} at {x[0]:.3g}, {y[-1]:.3g} at {x[-1]:.3g}")
    return few(found, "lines")


def bars(ax: Axes) -> list[str]:
    """Return the lengths of bars, upright or level; a nameless group joins the one of its colour.

    A level bar is named by the tick beside it.
    """
    groups: list[tuple[str, list[str]]] = []
    of_color: dict[Any, list[str]] = {}
    for group in ax.containers:
        if not (drawn := getattr(group, "patches", ())):
            continue
        level = getattr(group, "orientation", "") == "horizontal"
        said = [level_bar(bar, ax) if level else f"{bar.get_height():.3g}" for bar in drawn]
        name, color = str(group.get_label()), drawn[0].get_facecolor()
        if not name.startswith("_"):
            of_color[color] = said
        elif color in of_color:
            of_color[color] += said
            continue
        groups.append(("bars" if name.startswith("_") else name, said))
    return [f"{name}: {', '.join(few(said, 'bars'))}" for name, said in groups]


def level_bar(bar: Rectangle, ax: Axes) -> str:
    """Return the length of a level bar, and the name of the tick that it touches."""
    thick, ticks = bar.get_height(), [float(y) for y in ax.get_yticks()]
    names = ax.yaxis.get_major_formatter().format_ticks(ticks)  # hidden ones of a shared axis too
    middle = bar.get_y() + thick / 2
    distances = (abs(y - middle) for y in ticks)
    away, name = min(zip(distances, names, strict=True), default=(1.0, ""))
    near = name and away < 0.55 * abs(thick)  # two bars of a pair touch their tick
    return f"{bar.get_width():.3g}{f' at {name}' if near else ''}"


def points(ax: Axes) -> list[str]:
    """Return how many points there are of each name, and the bands by name."""
    import numpy as np

    found = []
    for group in ax.collections:
        name = str(group.get_label())
        count = (
            len(np.asarray(group.get_offsets())) if type(group).__name__ == "PathCollection" else 0
        )
        if count and not name.startswith("_"):
            found.append(f"{count} points {name}")
        elif count > 2:
            found.append(f"{count} points")
    return few(found, "groups")


def pictures(ax: Axes) -> list[str]:
    """Return the size of each map of colours, and its numbers where they are few."""
    import numpy as np

    found = []
    for image in ax.get_images():
        values: Any = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
        rows, columns = values.shape[:2]
        said = f"{rows} rows of {columns} cells"
        if values.ndim == 2 and np.isfinite(values).any():
            said += f", from {np.nanmin(values):.3g} to {np.nanmax(values):.3g}"
        found.append(said)
    return few(found, "maps")


def words(ax: Axes) -> list[str]:
    """Return what is written inside the axes, in its order, without bare numbers of cells."""
    said = [" ".join(text.get_text().split()) for text in ax.texts]
    said = [text for text in said if any(char.isalpha() for char in text)]
    return few(dict.fromkeys(said), "words")


def in_notebooks() -> None:
    """Let IPython, where it runs, store these words with every figure that it shows."""
    if "IPython" not in sys.modules or not (shell := sys.modules["IPython"].get_ipython()):
        return

    def bundle(figure: Figure) -> tuple[dict[str, Any], dict[str, Any]]:
        png = getattr(figure, "_repr_png_", None)  # a figure that draws itself, or pyplot's
        return {"image/png": png()} if png else {}, {"image/png": {"alt": describe(figure)}}

    formatter = shell.display_formatter.mimebundle_formatter
    formatter.for_type_by_name("matplotlib.figure", "Figure", bundle)
