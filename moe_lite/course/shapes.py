"""The course's visual grammar: the same few shapes for the same few things, in every chapter.

======== ============================= =====================================================
token    small box with its text       a piece of text on its way
router   diamond                       scores every expert and chooses
gate     dial, filled by its weight    how much of an answer counts
expert   block in the expert's colour  a network; hollow and dashed where it is idle
shared   block with a double edge      an expert that every token visits
dropped  token with a cross            it found no place
arrow    line; dashed: not taken       who sends what to whom
======== ============================= =====================================================

::

    sheet = Sheet(6, 2.4, "A token meets one of two experts")
    token, router = sheet.token(0.7, 1.2, "self"), sheet.router(2.4, 1.2)
    zero, one = sheet.expert(4.8, 1.8, 0), sheet.expert(4.8, 0.6, 1, idle=True)
    sheet.arrow(token, router)
    sheet.arrow(router, zero, "70 %")
    sheet.arrow(router, one, taken=False)
    sheet                               # the last line of a cell shows it; sheet.alt says it

Both themes come from one drawing: a cell shows it on white, as the course's plots are;
``sheet.png(dark=True)`` is the same in a dark page's colours. Lengths are in inches, from the
lower left.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .viz import INK, QUIET, _on, expert_colors

if TYPE_CHECKING:
    from matplotlib.patches import Patch

LINE, ALARM = "#6E7781", "#C24E00"
PAPER, PALE = "#FFFFFE", "#EEF1F4"  # grounds; not quite white, so that it is told from white ink
DARK = {PAPER: "#14181C", PALE: "#2A3139", INK: "#E6EAEE", QUIET: "#AAB4BE", LINE: "#8C97A2",
        ALARM: "#FF9A52"}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Hold what was drawn, and what it is called in the alternative text."""

    name: str
    patch: Patch


class Sheet:
    """Draw on a sheet of ``width`` x ``height`` inches; show it as the last line of a cell.

    Every shape is placed by its centre and returned, for arrows to find. What is drawn is also
    said: ``alt`` puts the title, the arrows and what is idle or dropped into sentences.
    """

    def __init__(self, width: float, height: float, title: str):
        from matplotlib.figure import Figure

        self.title, self.figure = title, Figure(figsize=(width, height), facecolor=PAPER)
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, width), ylim=(0, height))
        self.ax.set_axis_off()
        self._said: list[str] = []
        self._idle: list[str] = []

    # --- the shapes ------------------------------------------------------------------------------

    def token(self, x: float, y: float, text: str, *, expert: int | None = None) -> Shape:
        """Draw a token, with a stripe in the colour of the expert it belongs to, if any."""
        shape = self._box(x, y, self._width(text), 0.4, f"token {text.strip()!r}", PALE, LINE)
        self._words(x, y, text)
        if expert is not None:
            left, wide = x - self._width(text) / 2, self._width(text)
            self.ax.plot([left + 0.06, left + wide - 0.06], [y - 0.2] * 2, lw=3.5,
                         color=_color(expert), solid_capstyle="butt", zorder=4)  # fmt: skip
        return shape

    def dropped(self, x: float, y: float, text: str) -> Shape:
        """Draw a token that found no place: dashed, with a cross."""
        name, half = f"token {text.strip()!r}", self._width(text) / 2
        shape = self._box(x, y, 2 * half, 0.4, name, PAPER, LINE, dashed=True)
        self._words(x, y, text, color=QUIET)
        for way in (-1, 1):
            self.ax.plot([x - half, x + half], [y - 0.2 * way, y + 0.2 * way], color=ALARM,
                         lw=1.6, zorder=4)  # fmt: skip
        self._say(f"{name} is dropped")
        return shape

    def router(self, x: float, y: float, text: str = "router") -> Shape:
        """Draw a router: what scores every expert and chooses."""
        from matplotlib.patches import Polygon

        w, h = 0.62, 0.42
        corners = [(x - w, y), (x, y + h), (x + w, y), (x, y - h)]
        shape = self._add(Polygon(corners, closed=True), text, INK, INK)
        self._words(x, y, text, color=PAPER)
        return shape

    def gate(self, x: float, y: float, weight: float, name: str = "gate") -> Shape:
        """Draw a gate: a dial that is filled by its weight, from 0 to 1, the number below it.

        Raises: ValueError if the weight is not from 0 to 1.
        """
        from matplotlib.patches import Circle, Wedge

        if not 0 <= weight <= 1:
            raise ValueError(f"a gate's weight is from 0 to 1, not {weight:g}")
        shape = self._add(Circle((x, y), 0.17), f"{name} {weight:.2f}", PAPER, LINE)
        wedge = Wedge((x, y), 0.17, 90 - 360 * weight, 90, fc=INK, ec=LINE, lw=1, zorder=4)
        self.ax.add_patch(wedge)
        self._words(x, y - 0.3, f"{weight:.2f}", size=9, ground=True)
        return shape

    def expert(self, x: float, y: float, number: int, text: str = "", *, idle: bool = False,
               width: float = 1.25) -> Shape:  # fmt: skip
        """Draw an expert in its colour, its number in words; idle: hollow and dashed."""
        color, name = _color(number), f"expert {number}"
        face, edge = (PAPER, LINE) if idle else (color, LINE)
        shape = self._box(x, y, width, 0.5, name, face, edge, dashed=idle)
        self._words(x, y, text or name, color=QUIET if idle else _on(color), bold=not idle)
        if idle:
            self._idle.append(name)
        return shape

    def shared(self, x: float, y: float, text: str = "shared expert") -> Shape:
        """Draw a shared expert, which every token visits: grey, with a double edge."""
        shape = self._box(x, y, 1.45, 0.5, text, PALE, LINE)
        self._box(x, y, 1.35, 0.4, text, PALE, LINE)
        self._words(x, y, text, bold=True)
        return shape

    def block(self, x: float, y: float, text: str, *, width: float | None = None) -> Shape:
        """Draw anything else: a sum, a loss, attention."""
        tall = 0.42 + 0.22 * text.count("\n")
        name = text.replace("\n", " ")
        shape = self._box(x, y, width or self._width(text), tall, name, PAPER, LINE)
        self._words(x, y, text)
        return shape

    def arrow(self, start: Shape, end: Shape, text: str = "", *, taken: bool = True,
              bend: float = 0.0, width: float = 1.6, color: str = LINE,
              upright: bool = False) -> None:  # fmt: skip
        """Draw an arrow between two shapes; taken=False: dashed and thin, not gone.

        upright: from above or below, also where the shapes do not stand above each other.
        """
        from matplotlib.patches import FancyArrowPatch

        a, b = _ends(start.patch, end.patch, upright)
        arrow = FancyArrowPatch(a, b, arrowstyle="-|>", connectionstyle=f"arc3,rad={bend}",
                                shrinkA=1, shrinkB=2, mutation_scale=11, color=color,
                                lw=width if taken else 0.9, zorder=2,
                                ls="-" if taken else (0, (4, 3)))  # fmt: skip
        self.ax.add_patch(arrow)
        if text:
            dx, dy = b[0] - a[0], b[1] - a[1]
            self._words((a[0] + b[0]) / 2 + bend * dy / 2, (a[1] + b[1]) / 2 - bend * dx / 2, text,
                        size=9, ground=True)  # fmt: skip
        if taken:
            self._say(f"{start.name} to {end.name}" + (f": {text}" if text else ""))

    def note(self, x: float, y: float, text: str, *, size: float = 9.5) -> None:
        """Write a remark beside the shapes; it is said as well."""
        self._words(x, y, text, size=size, color=QUIET, ground=True)
        self._say(text.replace("\n", " "))

    # --- what is shown, and what is said ---------------------------------------------------------

    @property
    def alt(self) -> str:
        """Return the drawing in words: for who cannot see it, and where no picture is shown."""
        idle = [f"Idle: {', '.join(self._idle)}"] if self._idle else []
        return ". ".join([self.title, *self._said, *idle]) + "."

    def png(self, dpi: float = 200, *, dark: bool = False) -> bytes:
        """Draw the sheet as a PNG for a light page or a dark one, its alternative text inside."""
        there = DARK if dark else {}
        out = io.BytesIO()
        self._recolor(there)
        try:
            self.figure.savefig(out, format="png", dpi=dpi, metadata={"Description": self.alt})
        finally:
            self._recolor({new: old for old, new in there.items()})
        return out.getvalue()

    def _recolor(self, there: dict[str, str]) -> None:
        """Exchange colours, each by the role it has: ground, word, line."""
        from matplotlib.colors import to_hex, to_rgba

        there = {old.lower(): new for old, new in there.items()}
        things = [self.figure.patch, *self.ax.patches, *self.ax.lines, *self.ax.texts]
        things += [box for text in self.ax.texts if (box := text.get_bbox_patch())]
        for thing in things:
            for kind in ("color",) if hasattr(thing, "get_color") else ("facecolor", "edgecolor"):
                was = getattr(thing, f"get_{kind}")()
                if (now := to_hex(was, keep_alpha=True)[:7]) in there and to_rgba(was)[3]:
                    thing.set(**{kind: there[now]})

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt, "width": round(100 * self._size[0])}}

    @property
    def _size(self) -> tuple[float, float]:
        width, height = self.figure.get_size_inches()
        return float(width), float(height)

    def _width(self, text: str) -> float:
        return max(0.45, 0.2 + 0.095 * max(map(len, text.split("\n"))))

    def _say(self, sentence: str) -> None:
        self._said.append(sentence[:1].upper() + sentence[1:])

    def _add(self, patch: Patch, name: str, face: str, edge: str, dashed: bool = False) -> Shape:
        patch.set(facecolor=face, edgecolor=edge, linewidth=1.3, zorder=3,
                  linestyle=(0, (3, 2)) if dashed else "-")  # fmt: skip
        self.ax.add_patch(patch)
        return Shape(name, patch)

    def _box(self, x: float, y: float, width: float, height: float, name: str, face: str,
             edge: str, dashed: bool = False) -> Shape:  # fmt: skip
        from matplotlib.patches import FancyBboxPatch

        corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.08"
        box = FancyBboxPatch(corner, width, height, boxstyle=style)
        return self._add(box, name, face, edge, dashed)

    def _words(self, x: float, y: float, text: str, *, size: float = 10.5, color: str = INK,
               bold: bool = False, ground: bool = False) -> None:  # fmt: skip
        box = {"boxstyle": "round,pad=0.15", "fc": PAPER, "ec": "none"} if ground else None
        self.ax.text(x, y, text.replace("$", r"\$"), color=color, fontsize=size, ha="center",
                     va="center", weight="bold" if bold else "normal", bbox=box,
                     zorder=5, linespacing=1.25)  # fmt: skip


def _ends(
    start: Patch, end: Patch, upright: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Choose where an arrow leaves and arrives: the middles of the two sides that face."""
    a, b = (p.get_path().get_extents(p.get_patch_transform()) for p in (start, end))
    ax, ay, bx, by = (a.x0 + a.x1) / 2, (a.y0 + a.y1) / 2, (b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2
    if b.x0 >= a.x1 and not upright:
        return (a.x1, ay), (b.x0, by)
    if b.x1 <= a.x0 and not upright:
        return (a.x0, ay), (b.x1, by)
    return ((ax, a.y1), (bx, b.y0)) if by > ay else ((ax, a.y0), (bx, b.y1))


def _color(expert: int) -> str:
    return expert_colors(expert + 1)[expert]
