"""Charts that are alive in the page: what matplotlib drew, as a plotly figure, the picture beside.

One drawing with two faces. JupyterLab, VS Code and the book show plotly's: values under the mouse,
zoom, lines to switch on and off by their names. Where no script runs, on GitHub, the picture
stands. Neither has a ground of its own, and their grey ink is readable on light and on dark.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from .alt import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "application/vnd.plotly.v1+json"
GREY = "#7b7b7b"  # as far from white as from JupyterLab's dark ground: 4.3 : 1
WIDE = 8.2  # inches, as many hundred pixels: JupyterLab does not shrink a picture to its page
TOP, BELOW = 40, 100  # pixels for the title, and for ticks, label and legend
CLEAR = "rgba(0, 0, 0, 0)"
FAINT = "rgba(123, 123, 123, 0.25)"
GROUND, ON_IT = "#dde3e9", "#1b1f24"  # a menu's; plotly has #f4faff for the chosen, in any theme
MARKERS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down",
           "P": "cross", "*": "star", "x": "x", "X": "x", "_": "line-ew-open"}  # fmt: skip


class Chart:
    """Hold a plotly figure and its picture; a notebook stores both.

    Args: live: the plotly figure, which gets the theme; still: what matplotlib drew of it.
    """

    def __init__(self, live: Any, still: Figure):
        self.live, self.words = live, describe(still)
        self.png = picture(still)
        ground = {"paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR, "template": {}}
        live.update_layout(font_color=GREY, font_size=13, **ground)
        live.update_layout(margin={"t": TOP, "b": BELOW, "r": 20})
        live.update_xaxes(gridcolor=FAINT, zeroline=False, automargin=True)
        live.update_yaxes(gridcolor=FAINT, zeroline=False, automargin=True)
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(still)  # or the notebook would show it a second time

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {KIND: rounded(self.live.to_plotly_json()), "text/plain": self.words}
        png = base64.b64encode(as_tall(self.png, self.live.layout.height or 0)).decode()
        return {**data, "image/png": png}, {"image/png": {"alt": self.words}}


def alive(drawn: Figure | Mapping[str, Figure]) -> Chart:
    """Return the chart of a matplotlib figure; of several, with a menu of their names.

    Lines, bands, points, error bars, guides and words are taken over; maps of colours not.
    """
    import plotly.graph_objects as go

    figures = drawn if isinstance(drawn, Mapping) else {"": drawn}
    for figure in figures.values():
        figure.set_figwidth(min(WIDE, figure.get_figwidth()))
    traces: list[dict[str, Any]] = []
    layouts: list[dict[str, Any]] = []
    owner: list[int] = []
    for figure in figures.values():
        mine, layout = convert(figure)
        owner += [len(layouts)] * len(mine)
        traces += mine
        layouts.append(layout)
    for trace, whose in zip(traces, owner, strict=True):
        trace["visible"] = whose == 0
    layout = dict(layouts[0])
    if len(figures) > 1:
        # One height for all: a choice that sets it ends that the chart follows the page's width.
        tall = max(new.pop("height") for new in layouts)
        above, layout["height"] = 1 + short(30 / (tall - TOP - BELOW)), tall + 50
        buttons = [
            {
                "label": name,
                "method": "update",
                "args": [{"visible": [o == n for o in owner]}, dotted(new)],
            }
            for n, (name, new) in enumerate(zip(figures, layouts, strict=True))
        ]
        layout["updatemenus"] = [{"buttons": buttons, "x": 0, "xanchor": "left", "y": above,
                                  "yanchor": "bottom", "bgcolor": GROUND, "bordercolor": GREY,
                                  "font": {"color": ON_IT}}]  # fmt: skip
    live = go.Figure({"data": traces, "layout": {**layout, "template": {}}})
    first, *others = figures.values()
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        for other in others:
            pyplot.close(other)
    chart = Chart(live, first)
    if head := first.get_suptitle():
        live.update_layout(title={"text": "<br>".join(wrap(head, 80)), "font": {"size": 14}})
        live.update_layout(margin_t=TOP + 60)
    if others:
        live.update_layout(margin_t=TOP + 50)
        chart.words = f"A menu of {len(figures)} charts: {'; '.join(figures)}. {chart.words}"
        chart.png = under_menu(chart.png, list(figures), first.axes[0].get_position().x0)
    return chart


def as_tall(png: bytes, height: int) -> bytes:
    """Return a picture with room below it: what comes in its place must not move the page."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as drawn:
        whole = Image.new("RGBA", (drawn.width, max(drawn.height, height)), (0, 0, 0, 0))
        whole.paste(drawn, (0, 0))
    whole.save(made := io.BytesIO(), "PNG")
    return made.getvalue()


def under_menu(png: bytes, names: list[str], left: float) -> bytes:
    """Return a picture with its menu above it, closed: JupyterLab shows it until the mouse comes.

    Args: left: where the menu begins, as a share of the width.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    with Image.open(io.BytesIO(png)) as below:
        strip = Figure((below.width / 100, 0.5))
        box = {"facecolor": GROUND, "edgecolor": GREY, "boxstyle": "round,pad=0.45"}
        name = f"{names[0]}  ▼"
        strip.text(left + 0.01, 0.4, name, color=ON_IT, va="center", bbox=box, parse_math=False)
        said = f"1 of {len(names)}: a menu in JupyterLab"
        strip.text(0.99, 0.4, said, color=GREY, va="center", ha="right", fontsize=9)
        strip.savefig(top := io.BytesIO(), format="png", dpi=100, transparent=True)
        with Image.open(top) as above:
            whole = Image.new("RGBA", (below.width, below.height + above.height), (0, 0, 0, 0))
            whole.paste(above, (0, 0))
            whole.paste(below, (0, above.height))
    whole.save(made := io.BytesIO(), "PNG")
    return made.getvalue()


def dotted(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layout as plotly changes one: "xaxis.range", so that what is not named stays."""
    made: dict[str, Any] = {}
    for key, value in layout.items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        made |= {f"{key}.{part}" if part else key: inner for part, inner in parts}
    return made


def convert(figure: Figure) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return plotly's traces and layout of a matplotlib figure."""
    figure.draw_without_rendering()  # the layout engine places the axes now
    panels = [ax for ax in figure.axes if ax.axison]
    places = [ax.get_position() for ax in panels]
    x0, x1 = min(p.x0 for p in places), max(p.x1 for p in places)
    y0, y1 = min(p.y0 for p in places), max(p.y1 for p in places)
    inches = figure.get_figheight()  # from 5.3 up the picture would be the taller one
    tall = max(round(85 * inches - 60), round(100 * inches) - TOP - BELOW)  # pixels of the panels
    layout: dict[str, Any] = {"height": tall + TOP + BELOW, "shapes": [], "annotations": [],
                              "hovermode": "closest"}  # fmt: skip
    traces: list[dict[str, Any]] = []
    for n, (ax, place) in enumerate(zip(panels, places, strict=True)):
        key = str(n + 1) if n else ""
        wide = [(place.x0 - x0) / (x1 - x0), (place.x1 - x0) / (x1 - x0)]
        if wide[0] > 0:
            wide[0] += 0.04  # a page is narrower than the drawing, its numbers are not
        high = [(place.y0 - y0) / (y1 - y0), (place.y1 - y0) / (y1 - y0)]
        layout[f"xaxis{key}"] = {**axis(ax.xaxis, ax.get_xlim()), "domain": short(wide),
                                 "anchor": f"y{key}"}  # fmt: skip
        layout[f"yaxis{key}"] = {**axis(ax.yaxis, ax.get_ylim()), "domain": short(high),
                                 "anchor": f"x{key}"}  # fmt: skip
        layout[f"legend{key}"] = {"orientation": "h" if len(panels) == 1 else "v",
                                  "x": short(wide)[0], "y": short(-62 / tall), "yanchor": "top",
                                  "bgcolor": CLEAR}  # fmt: skip
        if title := ax.get_title(loc="left") or ax.get_title():
            layout["annotations"].append({
                "text": "<br>".join(wrap(title, 70 // len(panels))), "showarrow": False,
                "xref": "paper", "yref": "paper", "x": short(wide)[0], "y": short(high)[1],
                "xanchor": "left", "yanchor": "bottom", "align": "left",
            })  # fmt: skip
        mine = [*bands(ax), *lines(ax), *points(ax)]
        owners = {color: trace["name"] for trace in mine if "name" in trace
                  for color in [tint(trace)]}  # fmt: skip
        for trace in mine:  # what has no name goes with what has its colour
            if (owner := owners.get(tint(trace))) and "name" not in trace:
                trace |= {"name": owner, "legendgroup": owner}
            trace.setdefault("name", "")  # or plotly calls it "trace 5"
            traces.append({**trace, "xaxis": f"x{key}", "yaxis": f"y{key}",
                           "legend": f"legend{key}"})  # fmt: skip
        layout["shapes"] += guides(ax, key)
        layout["annotations"] += words(ax, key)
    return traces, layout


def axis(axis: Any, limits: tuple[float, float]) -> dict[str, Any]:
    """Return an axis: its scale, its ends, and the ticks that were set by hand."""
    from matplotlib.ticker import FixedLocator

    log = axis.get_scale() == "log"
    ends = np.log10(limits) if log else np.asarray(limits)
    made: dict[str, Any] = {
        "type": "log" if log else "linear", "range": short(ends), "tickmode": "auto",
        "title": {"text": axis.get_label().get_text(), "font": {"size": 13}, "standoff": 8},
    }  # fmt: skip
    if labels := axis.get_ticklabels():
        made["tickfont"] = {"size": min(13, short(1.4 * labels[0].get_fontsize()))}
    if isinstance(axis.get_major_locator(), FixedLocator):
        made |= {"tickmode": "array", "tickvals": short(axis.get_majorticklocs())}
        made["ticktext"] = [
            label.get_text().replace("\n", "<br>") for label in axis.get_ticklabels()
        ]
    elif log:
        # A line for each power of ten, or every digit gets its label.
        made |= {"tickmode": "linear", "dtick": 1}
    return made


def named(artist: Any) -> dict[str, Any]:
    """Return a trace's name, where it has one, and whether the legend shows it."""
    name = str(artist.get_label())
    if not name or name.startswith("_"):
        return {"showlegend": False}
    return {"name": name, "legendgroup": name, "showlegend": True}


def tint(trace: Mapping[str, Any]) -> str:
    """Return the colour by which a trace belongs to another."""
    if "fillcolor" in trace:
        return str(trace["meta"])
    return str(trace.get("line", trace.get("marker", {})).get("color"))


def lines(ax: Any) -> Iterator[dict[str, Any]]:
    """Yield the lines of data, those of error bars with their bars."""
    errors = {id(group.lines[0]): group for group in ax.containers if hasattr(group, "has_yerr")}
    caps = {id(cap) for group in errors.values() for cap in group.lines[1]}
    for line in ax.get_lines():
        if id(line) in caps or line.get_transform() != ax.transData or not line.get_visible():
            continue
        marker, drawn = line.get_marker(), line.get_linestyle() not in ("None", "", " ")
        marked = marker not in (None, "None", "", " ")
        x, y = (np.asarray(v, float).ravel() for v in (line.get_xdata(), line.get_ydata()))
        trace = {"type": "scatter", "x": short(x), "y": short(y),
                 **named(errors.get(id(line), line)),
                 "mode": "+".join(["lines"] * drawn + ["markers"] * marked)}  # fmt: skip
        if drawn:
            trace["line"] = {"color": ink(line.get_color()), "width": line.get_linewidth(),
                             "dash": dash(line)}  # fmt: skip
        if marked:
            trace["marker"] = {"color": ink(line.get_color()), "size": line.get_markersize(),
                               "symbol": MARKERS.get(marker, "circle")}  # fmt: skip
            trace["marker"]["line"] = {"width": 1, "color": ink(line.get_color())}
        if id(line) in errors:
            trace |= bounds(errors[id(line)], x, y)
        yield trace


def bounds(group: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return the error bars of a group as plotly has them: up and down from each point."""
    kinds = [kind for kind, there in (("x", group.has_xerr), ("y", group.has_yerr)) if there]
    made = {}
    for kind, bar in zip(kinds, group.lines[2], strict=True):
        at, middle = ("xy".index(kind), x if kind == "x" else y)
        ends = np.array([[part[0, at], part[-1, at]] for part in bar.get_segments()])
        made[f"error_{kind}"] = {"type": "data", "symmetric": False, "thickness": 1.5,
                                 "array": short(ends[:, 1] - middle),
                                 "arrayminus": short(middle - ends[:, 0])}  # fmt: skip
    return made


def bands(ax: Any) -> Iterator[dict[str, Any]]:
    """Yield what was filled."""
    for group in ax.collections:
        if not type(group).__name__.endswith("PolyCollection"):
            continue
        face = group.get_facecolor()[0]
        fill = f"rgba({', '.join(f'{255 * c:.0f}' for c in face[:3])}, {face[3]:.2g})"
        for path in group.get_paths():
            x, y = path.vertices.T
            yield {"type": "scatter", "x": short(x), "y": short(y), "fill": "toself",
                   "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", **named(group),
                   "meta": ink(face[:3]),
                   "fillcolor": fill}  # fmt: skip


def points(ax: Any) -> Iterator[dict[str, Any]]:
    """Yield groups of points."""
    from matplotlib.colors import to_hex

    for group in ax.collections:
        if type(group).__name__ == "PathCollection":
            x, y = np.asarray(group.get_offsets(), float).T
            face = group.get_facecolor()
            color = ink(face[0]) if len(face) else to_hex(group.get_edgecolor()[0])
            dot = {"color": color, "size": short(1.3 * group.get_sizes()[0] ** 0.5)}
            yield {"type": "scatter", "mode": "markers", "x": short(x), "y": short(y),
                   "marker": dot, **named(group)}  # fmt: skip


def guides(ax: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield lines from edge to edge."""
    for line in ax.get_lines():
        level = bool(line.get_transform() == ax.get_yaxis_transform(which="grid"))
        upright = bool(line.get_transform() == ax.get_xaxis_transform(which="grid"))
        if level or upright:
            x, y = (short(np.asarray(v, float)) for v in (line.get_xdata(), line.get_ydata()))
            yield {"type": "line", "x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1],
                   "xref": f"x{key}" + " domain" * level, "yref": f"y{key}" + " domain" * upright,
                   "line": {"color": ink(line.get_color()), "width": line.get_linewidth(),
                            "dash": dash(line)},
                   "legend": f"legend{key}", **named(line)}  # fmt: skip


def words(ax: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield what is written into the axes."""
    for text in ax.texts:
        if text.get_text() and text.get_transform() == ax.transData:
            x, y = text.get_position()
            x = np.log10(x) if ax.get_xscale() == "log" else x
            y = np.log10(y) if ax.get_yscale() == "log" else y
            yield {"text": text.get_text().replace("\n", "<br>"), "x": short(x), "y": short(y),
                   "xref": f"x{key}", "yref": f"y{key}", "showarrow": False,
                   "xanchor": text.get_ha(), "yanchor": "middle"}  # fmt: skip


def picture(figure: Figure) -> bytes:
    """Return the figure as PNG, without a ground and with the grey ink."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_color(ink(text.get_color()))
    for ax in figure.axes:
        ax.tick_params(colors=GREY, which="both")
        ax.spines[:].set_color(GREY)
        for line in [*ax.get_xgridlines(), *ax.get_ygridlines()]:
            line.set(color=GREY, alpha=0.3)
        for line in ax.get_lines():
            line.set_color(ink(line.get_color()))
        for group in ax.collections:
            if type(group).__name__ == "PathCollection":
                group.set_color([ink(c) for c in group.get_facecolor()])
        if legend := ax.get_legend():
            legend.get_frame().set_visible(False)
            for line in legend.get_lines():
                line.set_color(ink(line.get_color()))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100, transparent=True)
    return png.getvalue()


def ink(color: Any) -> str:
    """Return a colour for both themes: black and the dark greys become the grey ink."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(color)
    dark = max(red, green, blue) < 0.45 and max(red, green, blue) - min(red, green, blue) < 0.1
    return GREY if dark else to_hex(color)


def dash(line: Any) -> str:
    """Return the pattern of a line: "solid", or lengths in pixels."""
    _, pattern = getattr(line, "_unscaled_dash_pattern", (0, None))
    return ",".join(f"{1.4 * p:.3g}px" for p in pattern) if pattern else "solid"


def rounded(value: Any) -> Any:
    """Round every number of a plotly figure that was made elsewhere, its frames too."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return short(value) if isinstance(value, float) else value


def short(values: Any) -> Any:
    """Round to five figures, and write what is no number as a gap: the notebook stores this.

    >>> short([1, 0.123456789, float("nan")])
    [1.0, 0.12346, None]
    """
    if np.ndim(values):
        return [short(value) for value in values]
    return float(f"{values:.5g}") if np.isfinite(values) else None
