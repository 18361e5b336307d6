"""From token order into expert tiles: what is padding, what is idle, for three ways to dispatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import traitlets as t

from ..viz import INK, QUIET, expert_colors
from .portable import HERE, PortableWidget, Question, bounded, gumbel, many, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS, K, MOST_EXPERTS, PROCESSORS = 32, 2, 16, 8
PATHS = ("loop", "padded", "grouped")
ROUTINGS = ("balanced", "random", "zipf", "one-hot", "half empty")
EXPERTS, HEIGHTS = (2, 4, 8, 16), (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Layout:
    """Hold where every pair goes, and which tile every processor computes when.

    Attrs: row_N: the row of each pair in expert order. offsets: where each expert's rows begin,
           and the end. tiles: (expert, its first row, rows of it that hold a pair), in the order
           of their launch. waves: the tiles that are computed at the same time, wave by wave.
    """

    row_N: tuple[int, ...]
    offsets: tuple[int, ...]
    tiles: tuple[tuple[int, int, int], ...]
    waves: tuple[tuple[int, ...], ...]
    height: int

    @property
    def computed(self) -> int:
        """Count the rows that are multiplied, padding included."""
        return len(self.tiles) * self.height

    @property
    def idle(self) -> int:
        """Count the places in the waves at which a processor has no tile."""
        return PROCESSORS * len(self.waves) - len(self.tiles)

    @property
    def useful(self) -> float:
        """Return the share of the processors' time that goes into rows that hold a pair."""
        return len(self.row_N) / (PROCESSORS * len(self.waves) * self.height)

    @property
    def percent(self) -> str:
        """Write that share in whole percent, a half upward as a page's script rounds it."""
        return f"{int(100 * self.useful + 0.5)}%"


class ExpertTiles(PortableWidget):
    """Move 32 tokens' pairs from token order into the experts' tiles, and set 8 processors to work.

    A tile is ``height`` rows of one expert, and a processor computes a whole one, however many of
    its rows hold a pair. ``loop`` launches one expert after another; ``padded`` gives every expert
    as many rows as the busiest one; ``grouped`` lists the tiles there are, and launches them once.

    ::

        widget = ExpertTiles(experts=8, routing="zipf")
        widget.path = "padded"          # and the page follows
        widget.layout.useful            # share of the processors' time

    Raises: traitlets.TraitError for a value that cannot be.
    """

    _esm = HERE / "expert_tiles.js"
    _css = HERE / "expert_tiles.css"

    choices = t.Dict().tag(sync=True)  # for each routing and number of experts: each pair's
    colors = t.List(t.Unicode()).tag(sync=True)

    path = t.Enum(PATHS, "grouped").tag(sync=True)
    routing = t.Enum(ROUTINGS, "random").tag(sync=True)
    experts = t.Enum(EXPERTS, 8).tag(sync=True)
    height = t.Enum(HEIGHTS, 4).tag(sync=True)
    moved = t.Int(TOKENS * K).tag(sync=True)

    def __init__(self, **values: Any):
        self._gumbel_TE = gumbel(TOKENS * MOST_EXPERTS).view(TOKENS, MOST_EXPERTS)
        choices = {f"{r} {E}": self._choose(r, E) for r in ROUTINGS for E in EXPERTS}
        super().__init__(choices=choices, colors=expert_colors(MOST_EXPERTS), **values)

    @t.validate("moved")
    def _possible(self, proposal: Any) -> int:
        return bounded(proposal, moved=(0, TOKENS * K))

    def asks(self) -> Question | None:
        routing = "one-hot" if self.routing != "one-hot" else "balanced"
        ask = (
            f"{routing.capitalize()} routing instead of {self.routing}, {self.path}, tiles of "
            f"{self.height}: what share of the processors' time is useful, in percent?"
        )
        given = {name: getattr(self, name) for name in ("path", "experts", "height")}
        moves = {**given, "routing": routing}
        return Question(ask, moves, lambda: 100 * self.layout.useful, 100)

    @property
    def title(self) -> str:
        return "From token order into expert tiles"

    @property
    def expert_N(self) -> list[int]:
        """Return the expert of each pair, in token order, two for each token."""
        chosen: list[int] = self.choices[f"{self.routing} {self.experts}"]
        return chosen

    def _choose(self, routing: str, E: int) -> list[int]:
        score_TE = self._gumbel_TE[:, :E].clone()
        if routing == "balanced":  # dealt out in a random order of the tokens
            place_T = self._gumbel_TE[:, 0].argsort(stable=True).argsort()
            return [int(p * K + k) % E for p in place_T for k in range(K)]
        if routing == "zipf":
            score_TE -= 1.5 * torch.arange(1, E + 1, dtype=torch.float64).log()
        elif routing == "one-hot":
            score_TE = -torch.arange(E, dtype=torch.float64).expand(TOKENS, E)
        elif routing == "half empty":
            score_TE[:, max(K, E // 2) :] = -1e9
        return score_TE.sort(dim=-1, descending=True, stable=True).indices[:, :K].flatten().tolist()

    @property
    def layout(self) -> Layout:
        """Sort the pairs, cut the tiles and deal them to the processors."""
        E, BM, expert_N = self.experts, self.height, self.expert_N
        order = sorted(range(len(expert_N)), key=lambda n: expert_N[n])  # stable
        row_N = [0] * len(order)
        for row, n in enumerate(order):
            row_N[n] = row
        load = [expert_N.count(e) for e in range(E)]
        offsets = [sum(load[:e]) for e in range(E + 1)]
        cut = [-(-(max(load) if self.path == "padded" else n) // BM) for n in load]
        by_expert = [
            [(e, offsets[e] + i * BM, max(0, min(BM, load[e] - i * BM))) for i in range(cut[e])]
            for e in range(E)
        ]
        tiles = [tile for own in by_expert for tile in own]
        launches = [len(own) for own in by_expert] if self.path == "loop" else [len(tiles)]
        waves, start = [], 0
        for size in launches:
            waves += [
                tuple(range(start + i, start + min(i + PROCESSORS, size)))
                for i in range(0, size, PROCESSORS)
            ]
            start += size
        return Layout(tuple(row_N), tuple(offsets), tuple(tiles), tuple(waves), BM)

    def said(self) -> str:
        """Return in a sentence what the layout costs; the page says the same."""
        found = self.layout
        return (
            f"{len(found.row_N)} of {found.computed} computed rows hold a pair; "
            f"{many(len(found.tiles), 'tile')} in {many(len(found.waves), 'wave')}, "
            f"{many(found.idle, 'turn')} of a processor idle. Useful: {found.percent} of the "
            "processors' time."
        )

    def figure(self) -> Figure:
        """Draw token order, expert tiles and processors, all pairs moved."""
        found, E, BM, expert_N = self.layout, self.experts, self.height, self.expert_N
        height, widths = 1.6 + 0.27 * max(8, E), (1.1, 3, 2.2)
        figure, (before, after, work) = panels(11, height, 3, width_ratios=widths)
        for n, e in enumerate(expert_N):
            self._cell(before, n % 8, n // 8, e, 1.0, str(n // K))
        before.set(xlim=(0, 8), ylim=(8, 0), title="token order", ylabel="each cell: its token")
        token_R = [0] * len(expert_N)
        for n, row in enumerate(found.row_N):
            token_R[row] = n // K
        used = [0] * E
        for e, first, filled in found.tiles:
            for i in range(BM):
                text = str(token_R[first + i]) if i < filled else ""
                self._cell(after, used[e] + i, e, e, float(i < filled), text)
            left, right, top, bottom = used[e], used[e] + BM, e + 0.04, e + 0.94
            corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
            after.plot(*corners, color=INK, lw=1.2)
            used[e] += BM
        after.set(xlim=(0, max(*used, 16)), ylim=(E, 0), xlabel="hatched: padding",
                  title=f"expert order, tiles of {BM}", ylabel="expert")  # fmt: skip
        for w, wave in enumerate(found.waves):
            for p in range(PROCESSORS):
                if p < len(wave):
                    e, _, filled = found.tiles[wave[p]]
                    self._cell(work, w, p, e, filled / BM, str(e))
                else:
                    work.text(w + 0.5, p + 0.5, "–", ha="center", va="center", color=QUIET)
        work.set(xlim=(0, max(len(found.waves), 4)), ylim=(PROCESSORS, 0), xlabel="time, in waves",
                 title=f"{found.percent} of their time useful", ylabel="processor")  # fmt: skip
        for ax in (before, after, work):
            ax.title.set_fontsize(10)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        after.set_yticks([e + 0.5 for e in range(E)], [str(e) for e in range(E)])
        figure.suptitle(f"{self.path}, {self.routing} routing, {E} experts", fontsize=11)
        return figure

    def _cell(self, ax: Axes, x: float, y: float, e: int, share: float, text: str) -> None:
        from matplotlib.patches import Rectangle

        ax.add_patch(Rectangle((x + 0.06, y + 0.1), 0.88, 0.78, fc="none", ec=QUIET, lw=0.5,
                               hatch="" if share == 1 else "////", alpha=0.6))  # fmt: skip
        if share:
            ax.add_patch(Rectangle((x + 0.06, y + 0.1), 0.88 * share, 0.78, fc="white", lw=0))
            ax.add_patch(Rectangle((x + 0.06, y + 0.1), 0.88 * share, 0.78, fc=self.colors[e],
                                   alpha=0.4, lw=0))  # fmt: skip
        narrow = (ax.get_xlim()[1] if x > 40 else 0) > 40
        if text and not narrow:
            ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=6.5, color=INK)
