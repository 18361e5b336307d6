"""Static figures of a routing: what a page shows where nothing can be clicked."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..history import History
from ..routing import Routing
from ..trace import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .ledger import Pair, Result

INK, QUIET = "#1b1f24", "#59636e"

# Okabe and Ito's hues in an order that sets neighbours far apart. Their black would vanish on
# a dark page, so grey stands in for it.
HUES = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#E3CF24", "#7F7F7F",
    "#E3C6F5", "#A32418", "#25DCA9", "#1F2FEF", "#8A7AFF", "#35654F", "#7A2678", "#5A2BC0",
)  # fmt: skip
SHADES = (0.0, 0.5, -0.42, 0.25, -0.22, 0.68, -0.6, 0.38)  # towards white (+) or black (-)

CJK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Hiragino Maru Gothic Pro", "Yu Gothic",
    "Meiryo", "MS Gothic", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic",
    "Source Han Sans JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Droid Sans Fallback",
)  # fmt: skip


def expert_colors(num_experts: int) -> list[str]:
    """Return a colour for each expert: sixteen hues, each in as many shades as the number needs.

    A colour never stands alone: every figure prints the expert's number too.

    >>> expert_colors(2)
    ['#0072B2', '#E69F00']

    Source: the first eight after Okabe and Ito 2002, "Color Universal Design"; the others were
            searched for: far from these and from each other, also with red or green cones missing.
    """

    def shade(hue: str, towards: float) -> str:
        rgb = np.array([int(hue[i : i + 2], 16) for i in (1, 3, 5)])
        end = 255 if towards > 0 else 0
        return "#" + bytes((rgb + (end - rgb) * abs(towards)).round().astype("u1")).hex().upper()

    n = len(HUES)
    return [shade(HUES[e % n], SHADES[e // n % len(SHADES)]) for e in range(num_experts)]


def ordered_pairs(routing: Routing) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort the pairs by token, each token's best first: token_N, expert_N, gate_N, keep_N.

    Choices of a token come best first already; where experts choose, the weight decides.
    """
    token, expert = routing.token_N.cpu().numpy(), routing.expert_N.cpu().numpy()
    gate = routing.gate_N.detach().float().cpu().numpy()
    keep = np.ones_like(token, bool) if routing.keep_N is None else routing.keep_N.cpu().numpy()
    order = np.lexsort((np.zeros_like(gate) if routing.per_token else -gate, token))
    return token[order], expert[order], gate[order], keep[order]


def first_experts(routing: Routing) -> np.ndarray:
    """Name the first expert that each token reached: int (T,), -1 where it reached none.

    First means the token's best choice that was not dropped.
    """
    token, expert, _, keep = ordered_pairs(routing)
    first = np.full(routing.num_tokens, -1)
    first[token[keep][::-1]] = expert[keep][::-1]  # of repeated tokens, the last write stays
    return first


def routing_map(trace: RoutingTrace, *, ax: Axes | None = None) -> Figure:
    """Draw the layer x token map: each cell is the first expert that the token reached.

    Cells carry the expert's number where they are wide enough; else a map that stands alone has a
    key to the colours. An expert's number means something within its row only: expert 5 of two
    layers are two networks.

    Raises: ValueError if the trace is empty.
    """
    _check(trace)
    T, L, alone = len(trace.tokens), len(trace.layers), ax is None
    ax = ax or _axes(min(12.0, max(5.0, 1.2 + T * 0.16)), 1.1 + 0.26 * L)
    cells = np.stack([first_experts(r) for r in trace.layers])
    colors = expert_colors(max(r.num_experts for r in trace.layers))
    rgb = np.array([_rgb(c) for c in (*colors, "#FFFFFF")])  # index -1 is the last: white
    ax.imshow(rgb[cells], aspect="auto", interpolation="nearest")
    sheet = ax.get_figure()
    assert sheet is not None
    wide = 0.85 * ax.get_position().width * 72 * sheet.bbox.width / sheet.dpi / T  # a cell's, in pt
    size = min(7.0, 1.3 * wide / len(str(len(colors) - 1)))
    if size >= 4.5:
        for (layer, token), e in np.ndenumerate(cells):
            text = "·" if e < 0 else str(e)
            ax.text(token, layer, text, ha="center", va="center", fontsize=size,
                    color=INK if e < 0 else _on(colors[e]))  # fmt: skip
    elif alone and len(colors) <= 16:
        for e, color in enumerate(colors):
            ax.plot([], [], "s", color=color, label=f"{e}")
        ax.legend(title="expert", ncols=1 + len(colors) // 9, frameon=False, loc="center left",
                  bbox_to_anchor=(1, 0.5), fontsize=8, labelspacing=0.2)  # fmt: skip
    ax.set_yticks(range(0, L, 1 + L // 25))
    return _finish(ax, "First expert of each token, layer by layer", "token", "layer")


def token_routing(
    trace: RoutingTrace, layer: int = 0, *, columns: int = 92, max_rows: int = 24,
    ax: Axes | None = None,
) -> Figure:  # fmt: skip
    """Set the text as a picture, each token tinted by its first expert, the number below it.

    Args:    columns: width of a line in half-width characters; max_rows: lines before the
             picture stops and says how many tokens follow.
    Raises:  ValueError if the trace is empty or has no such layer.
    """
    _check(trace, layer)
    routing = trace.layers[layer]
    first, colors = first_experts(routing), expert_colors(routing.num_experts)
    placed = list(_set_text(trace.tokens, columns))
    shown = [box for box in placed if box[1] < max_rows]
    rows = 1 + max(row for _, row, *_ in shown)
    left_out = len(trace.tokens) - len({token for token, *_ in shown})
    ax = ax or _axes(11.0, 0.75 + 0.42 * rows)
    sheet = ax.get_figure()  # the layout engine gives a picture without axes nearly all of it
    assert sheet is not None
    width = 0.97 * 72 * sheet.bbox.width / sheet.dpi
    font: dict[str, Any] = {
        "family": [_MONO, *_cjk_fonts()],
        "fontsize": min(14.0, width / columns / 0.602),
    }
    for token, row, column, cells, text, opens in shown:
        e = first[token]
        color = colors[e] if e >= 0 else "#FFFFFF"
        ax.fill_between([column + 0.06, column + cells - 0.06], row + 0.28, row - 0.36,
                        color=color, alpha=0.3, lw=0)  # fmt: skip
        ax.plot([column + 0.06, column + cells - 0.06], [row + 0.31] * 2, color=color if e >= 0
                else QUIET, lw=2, ls="-" if e >= 0 else ":", solid_capstyle="butt")  # fmt: skip
        ax.text(column, row, _printable(text), color=INK, va="center", **font)
        if opens:
            ax.text(column + cells / 2, row + 0.36, "–" if e < 0 else str(e), color=QUIET,
                    fontsize=6.5, ha="center", va="top")  # fmt: skip
    ax.set(xlim=(0, columns), ylim=(rows - 0.3, -0.6))
    ax.set_axis_off()
    more = f"; {left_out} more tokens not shown" if left_out else ""
    return _finish(ax, f"Tint and number: each token's first expert in layer {layer}{more}")


def load_bars(routing: Routing | RoutingTrace, layer: int = 0, *, ax: Axes | None = None) -> Figure:
    """Draw each expert's share of the kept pairs, and by a mark its share of their gates.

    The line is where all would be equal. A mark far below its bar is an expert that is often
    second choice: balanced, and hardly used.

    Raises: ValueError if a trace is empty or has no such layer.
    """
    from matplotlib.patheffects import withStroke

    where = " of the experts"
    if isinstance(routing, RoutingTrace):
        _check(routing, layer)
        where = f" of layer {layer}"
        routing = routing.layers[layer]
    E = routing.num_experts
    load = routing.load_E().numpy()
    share = load / max(load.sum(), 1)
    mass = routing.gates_TE().double().sum(0).numpy()
    mass = mass / max(mass.sum(), 1e-12)
    ax = ax or _axes(min(12.0, max(4.5, 1 + 0.42 * E)), 2.6)
    ax.bar(range(E), 100 * share, color=expert_colors(E), width=0.8)
    ax.axhline(100 / E, color=INK, lw=1.2, ls="--")
    ax.plot(range(E), 100 * mass, ls="", marker="_", ms=min(16, 240 / E), mew=2.5, color=INK)
    top = 1.25 * max(share.max(), mass.max(), 1 / E)
    for e, (s, m) in enumerate(zip(share, mass, strict=True)):
        stands = m if -0.02 < (m - s) / top < 0.12 else s  # where the mark does not strike it
        number = ax.annotate(f"{100 * s:.1f}", (e, 100 * stands), xytext=(0, 3),
                             textcoords="offset points", ha="center", va="bottom",
                             fontsize=8 if E <= 16 else 5.5, rotation=0 if E <= 32 else 90,
                             )  # fmt: skip
        number.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    ax.set_xticks(range(E), [str(e) for e in range(E)], fontsize=9 if E <= 32 else 5.5)
    ax.set_xlim(-0.6, E - 0.4)
    ax.set_ylim(0, 100 * top)
    title = f"Load{where} (dashed: equal share, {100 / E:.1f}%)"
    return _finish(ax, title, "expert", "% of pairs (mark: of gates)")


def overview(trace: RoutingTrace, layer: int = 0) -> Figure:
    """Draw the text, the map and the load in one picture: a still of the explorer.

    Raises: ValueError if the trace is empty or has no such layer.
    """
    _check(trace, layer)
    columns, max_rows = 92, 14
    lines = 1 + max(row for _, row, *_ in _set_text(trace.tokens, columns))
    heights = [0.75 + 0.42 * min(lines, max_rows), max(2.6, 1.1 + 0.2 * len(trace.layers))]
    wide = trace.layers[layer].num_experts > 16  # then the load has a row of its own
    heights += [2.4] * wide
    fig = _picture(11, sum(heights))
    upper, *lower = fig.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat
    token_routing(trace, layer, columns=columns, max_rows=max_rows, ax=upper.subplots())
    if wide:
        left, right = (part.subplots() for part in lower)
    else:
        left, right = lower[0].subplots(1, 2, width_ratios=[3, 2])
    routing_map(trace, ax=left)
    left.axhspan(layer - 0.5, layer + 0.5, fill=False, ec=INK, lw=1.8, clip_on=False)
    load_bars(trace, layer, ax=right)
    return fig


def curves(
    runs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Draw one line for each named run, told apart by colour and by dash.

    Args:    runs: name -> (x, y), drawn in their order.
    Raises:  ValueError if there is no run, or a run's x and y differ in length.
    """
    if not runs:
        raise ValueError("there is no run to draw")
    for name, (x, y) in runs.items():
        if len(x) != len(y):
            raise ValueError(f"run {name!r} has {len(x)} x values but {len(y)} y values")
    ax = ax or _axes(6.4, 3.6)
    dashes = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F")
    for i, (name, (x, y)) in enumerate(runs.items()):
        ax.plot(x, y, label=name, color=colors[i % len(colors)], ls=dashes[i % len(dashes)], lw=1.8)
    ax.grid(color="#D8DEE4", lw=0.6)
    ax.legend(frameon=False)
    return _finish(ax, title, xlabel, ylabel)


def effects(
    result: Result,
    pairs: Mapping[str, Pair],
    paper: float | None,
    ylabel: str,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw differences between settings over training: means over seeds, 95% bands, and the paper.

    Args:    result: holds "loss: step N at NAME"; pairs: label -> the two NAMEs of a difference,
             taken seed by seed. paper: its number, drawn as a line.
    Raises:  ValueError if the result has no such curve.
    """
    marks = [key[11:].split(" at ") for key in result.measures if key.startswith("loss: step ")]
    ax = ax or _axes(6.4, 3.6)
    for (label, pair), color in zip(pairs.items(), HUES, strict=False):
        steps = [int(step) for step, name in marks if name == pair.a]
        if not steps:
            raise ValueError(f"{result.name} holds no curve of {pair.a!r}")
        whole = [(f"loss: step {step} at {pair.a}", f"loss: step {step} at {pair.b}")
                 for step in steps]  # fmt: skip
        over = [result[type(pair)(a, b, pair.by)] for a, b in whole]
        low, high = [e.low for e in over], [e.high for e in over]
        ax.plot(steps, [e.mean for e in over], color=color, marker=".", label=label)
        ax.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
    ax.axhline(0, color=INK, lw=0.8)
    if paper is not None:
        ax.axhline(paper, color=INK, ls=":", label="the paper, at its end")
    ax.set_xscale("log")
    ax.grid(color="#D8DEE4", lw=0.6)
    # Below: the two lines go from edge to edge, so inside there is no place that they leave free.
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.17), ncols=2)
    return _finish(ax, f"{len(result.seeds)} seeds, paired", "training step", ylabel)


def strips(
    rows: Mapping[str, tuple[Sequence[object], Sequence[int] | None]], cuts: Sequence[float] = ()
) -> Figure:
    """Draw lists as rows of labelled boxes, one below the other: before a step and after it.

    Args:   rows: name -> (what to write into each box, the expert that tints it; None: no tint;
            -1: hatched, a place that holds nothing).
            cuts: where upright lines stand, in boxes from the left.
    Raises: ValueError if a row has not one expert for each box, or there are no rows.
    """
    if not rows:
        raise ValueError("there are no rows to draw")
    from matplotlib.patches import Rectangle

    width = max(len(labels) for labels, _ in rows.values())
    colors = expert_colors(1 + max((e for _, own in rows.values() for e in own or ()), default=0))
    ax = _axes(min(11.0, 2.2 + 0.42 * width), 0.25 + 0.5 * len(rows))
    for y, (name, (labels, own)) in enumerate(rows.items()):
        if own is not None and len(own) != len(labels):
            raise ValueError(f"{name!r} has {len(labels)} boxes but {len(own)} experts")
        for x, label in enumerate(labels):
            e = None if own is None else own[x]
            hatch = "////" if e == -1 else ""
            face = "none" if e is None or e < 0 else colors[e]
            ax.add_patch(Rectangle((x + 0.05, y + 0.1), 0.9, 0.8, fc=face, ec="none", alpha=0.4))
            ax.add_patch(Rectangle((x + 0.05, y + 0.1), 0.9, 0.8, fc="none", ec=QUIET, lw=0.8,
                                   hatch=hatch))  # fmt: skip
            ax.text(x + 0.5, y + 0.52, str(label), ha="center", va="center", fontsize=9, color=INK)
    for cut in cuts:
        ax.plot([cut, cut], [0, len(rows)], color=INK, lw=2)
    ax.set(xlim=(-0.1, width + 0.1), ylim=(len(rows), 0), xticks=[])
    ax.set_yticks([y + 0.5 for y in range(len(rows))], list(rows))
    ax.tick_params(length=0)
    figure = _finish(ax)
    ax.spines[:].set_visible(False)
    said = {name: " ".join(map(str, labels)) for name, (labels, _) in rows.items()}
    figure.set_label("Rows of boxes. " + "; ".join(f"{name}: {row}" for name, row in said.items()))
    return figure


def plane(
    x_T2: Any, labels: Sequence[str], experts_E3: Any, gate_E3: Any,
    *, target: Any = None, title: str = "", ax: Axes | None = None,
) -> Figure:  # fmt: skip
    """Draw two formants' plane: whose region it is by the gate, and each expert's decision line.

    A region is tinted by its expert, the fainter the less sure the gate is; a line's arrow points
    to the side where its expert says 1. Experts that win nowhere in the picture are named below
    it, and their lines left out.

    Args:    x_T2: cases in kHz; labels: the vowel of each, as it is to be shown; experts_E3,
             gate_E3: weights of F1, F2 and 1 for each expert's score and for the gate's; target:
             the right answer of each case: where it is 0 the mark is hollow.
    """
    x, experts, gate = (np.asarray(a, float) for a in (x_T2, experts_E3, gate_E3))
    ax = ax or _axes(6.2, 4.6)
    low, high = x.min(0) - 0.05, x.max(0) + 0.1
    f1, f2 = np.meshgrid(np.linspace(low[0], high[0], 140), np.linspace(low[1], high[1], 140))
    grid = np.stack([f1, f2, np.ones_like(f1)], -1)
    logits = grid @ gate.T
    prob = np.exp(logits - logits.max(-1, keepdims=True))
    prob /= prob.sum(-1, keepdims=True)
    winner, colors = prob.argmax(-1), expert_colors(len(gate))
    tint = np.array([_rgb(color) for color in colors])[winner]
    alpha = 0.12 + 0.3 * np.clip(prob.max(-1) * 2 - 1, 0, 1)
    ax.imshow(np.dstack([tint, alpha]), origin="lower", aspect="auto", interpolation="nearest",
              extent=(low[0], high[0], low[1], high[1]))  # fmt: skip
    for marker, label in zip("o^sD*vXP<>", dict.fromkeys(labels), strict=False):
        mine = [i for i, other in enumerate(labels) if other == label]
        hollow = target is not None and not any(float(target[i]) for i in mine)
        ax.scatter(x[mine, 0], x[mine, 1], s=13, marker=marker, fc="none" if hollow else INK,
                   ec=INK, alpha=0.65, lw=0.7, label=f"[{label}]")  # fmt: skip
    rim = (np.abs((grid[..., :2] - low) / (high - low) - 0.5) > 0.36).any(-1)
    for e, color in enumerate(colors):
        if not (mine := winner == e).any():
            continue
        score = grid @ experts[e]
        if score.min() < 0 < score.max():
            ax.contour(f1, f2, score, levels=[0], colors=[color], linewidths=2.6)
            off = np.abs(score / np.linalg.norm(experts[e][:2]))
            at = off + 99 * (off > 0.02) + 9 * ~mine + 4 * rim  # on its line, at home, inside
            u, v = float(f1.flat[at.argmin()]), float(f2.flat[at.argmin()])
            uphill = experts[e][:2] * (high - low)  # upright to the line as it is drawn
            tip = (u, v) + 0.13 * uphill / np.linalg.norm(uphill) * (high - low)
            ax.annotate("", tip, (u, v), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2})
        else:
            u, v = float(f1[mine].mean()), float(f2[mine].mean())
        box = {"boxstyle": "round", "fc": color, "ec": INK}
        ax.text(u, v, str(e), color=_on(color), ha="center", va="center", fontsize=9, bbox=box)
    idle = [str(e) for e in range(len(gate)) if not (winner == e).any()]
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    below = f"    (idle: expert {', '.join(idle)})" if idle else ""
    ax.legend(frameon=False, loc="upper right", handletextpad=0.1)
    return _finish(ax, title, f"F1, kHz{below}", "F2, kHz")


def live(draw: Callable[[Any], Figure], control: Any) -> Any:
    """Return an ipywidgets control with the picture that ``draw`` makes of its value below it.

    ``interact`` would do as much, but its output area does not pass the build.
    """
    from ipywidgets import Image, VBox

    picture = Image()

    def redraw(change: object = None) -> None:
        png = io.BytesIO()
        draw(control.value).savefig(png, format="png", dpi=90)
        picture.value = png.getvalue()

    control.observe(redraw, "value")
    redraw()
    return VBox([control, picture])


# ---------------------------------------------------------------------------------- helpers

_MONO = "DejaVu Sans Mono"  # comes with matplotlib, so the widths below hold everywhere


def _check(trace: RoutingTrace, layer: int = 0) -> None:
    if not trace.tokens or not trace.layers:
        raise ValueError(
            f"there is nothing to draw: the trace has {len(trace.tokens)} tokens "
            f"and {len(trace.layers)} layers"
        )
    if not 0 <= layer < len(trace.layers):
        raise ValueError(f"layer must be between 0 and {len(trace.layers) - 1}, not {layer}")


def _axes(width: float, height: float) -> Axes:
    return _picture(width, height).subplots()


def _picture(width: float, height: float) -> Figure:
    """Make a figure that shows itself as the last line of a cell, pyplot or no pyplot.

    Without pyplot there is no global state: nothing is shown twice or kept alive.
    """
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            png = io.BytesIO()
            self.savefig(png, format="png", dpi=100)
            return png.getvalue()

    return Picture(figsize=(width, height), layout="constrained", facecolor="white")


def _finish(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> Figure:
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _rgb(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _on(color: str) -> str:
    """Choose black or white ink for a coloured ground: one of them always has contrast 4.5."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(color)]
    return "#000000" if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) > 0.179 else "#FFFFFF"


def _cells(char: str) -> int:
    """Count the half-width cells that a character takes in a monospaced line."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _set_text(
    tokens: Sequence[str], columns: int
) -> Iterator[tuple[int, int, int, int, str, bool]]:
    """Break tokens into lines: yields (token, row, column, cells, text, opens the token)."""
    row = column = 0
    for token, text in enumerate(tokens):
        opens, start, run = True, column, ""
        for char in text.expandtabs(4) or "∅":
            cells = _cells(char)
            if char == "\n" or column + cells > columns:
                if char == "\n" and column < columns:
                    run, column = run + "↵", column + 1
                if run:
                    yield token, row, start, column - start, run, opens
                    opens = False
                row, start, column, run = row + 1, 0, 0, ""
            if char != "\n":
                run, column = run + char, column + cells
        if run:
            column = max(column, start + 1)  # a token of no width still takes a cell
            yield token, row, start, column - start, run, opens


@cache
def _cjk_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    # The list is matplotlib's cache, and a font may have gone since.
    installed = {font.name for font in fontManager.ttflist if Path(font.fname).exists()}
    return tuple(name for name in CJK_FONTS if name in installed)


@cache
def _has_glyph(char: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    return any(
        ord(char) in get_font(findfont(name)).get_charmap() for name in (_MONO, *_cjk_fonts())
    )


def _printable(text: str) -> str:
    """Put a box for each character that no installed font can draw, and disarm mathtext."""
    boxed = (c if c.isspace() or _has_glyph(c) else "□" * min(_cells(c), 1) for c in text)
    return "".join(boxed).replace("$", r"\$")


def smooth(values: Sequence[float], width: int = 9) -> list[float]:
    """Average each value with those around it: ``width``, fewer at the ends.

    Centred, because an average over the past alone lags behind a loss that falls.
    """
    half = width // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def training(history: History, x: str = "step") -> Figure:
    """Draw loss, load and, where evaluated, bits per byte against step, tokens or seconds.

    Raises: ValueError for another x.
    """
    if x not in ("step", "tokens", "seconds"):
        raise ValueError(f"x must be step, tokens or seconds, not {x!r}")
    evaluated = [row for row in history.rows if "bits" in row]
    count = 3 if evaluated else 2
    figure = _picture(4.5 * count, 3)
    panels = figure.subplots(1, count)
    for panel, name in zip(panels, ("loss", "load"), strict=False):
        panel.plot(history.column(x), history.column(name), color="#BBBBBB", lw=0.8)
        panel.plot(history.column(x), smooth(history.column(name)), color="black")
    panels[0].set(xlabel=x, ylabel="training loss, nats per token")
    panels[1].set(xlabel=x, ylabel="busiest expert's load / mean load")
    panels[1].axhline(1, color="black", lw=0.8, ls=":")
    if evaluated:
        xs = [row[x] for row in evaluated]
        for i, domain in enumerate(evaluated[-1]["bits"]):
            ys = [row["bits"][domain] for row in evaluated]
            panels[2].plot(xs, ys, color=HUES[i % 8], marker="osD^v"[i % 5], ms=4, label=domain)
        panels[2].set(xlabel=x, ylabel="held-out bits per byte")
        panels[2].legend(fontsize="small")
    return figure
