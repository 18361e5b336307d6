"""The fact grid: move the number of experts and watch the book fill; take one out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t
from torch import Tensor

from ..viz import expert_colors
from .portable import HERE, PortableWidget, Question, bounded, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_STATES, MOST_FACTS, MOST_EXPERTS = 8, 10_000, 64
FIRST = 48  # "0": an expert is written as the letter so many places on, as in fact_grid.js
UNKNOWN, HANGS, STAYS = "0", "1", "2"  # not known; known by its expert; known without it too
BLANK, LOST = (236, 236, 236), (0, 0, 0)


class FactGrid(PortableWidget):
    """Show which facts are known with few experts and with many: a square for each fact.

    The states are measured beforehand, one for each number of experts; the page only shows them.
    A click on a square, or a slider, takes its expert out, and what hangs on it is forgotten.

    ::

        grid = FactGrid({E: facts.remembered(block) for E, block in blocks.items()})
        grid.shown = 3        # the fourth number of experts; and the page follows
        grid.out = 5          # take expert 5 out
        grid.known            # how many facts are left

    Args:    states: number of experts -> which expert answers each fact (N,), whether it is right
             (N,), and whether it would be with that expert silent (N,). shown: which of them, by
             its place; out: an expert, -1 for none (one that is not there changes nothing).
    Raises:  ValueError unless there are 1 to 8 states of the same 1 to 10,000 facts, with at most
             64 experts; traitlets.TraitError for a value that cannot be.
    """

    _esm = HERE / "fact_grid.js"
    _css = HERE / "fact_grid.css"

    sizes = t.List(t.Int()).tag(sync=True)
    experts = t.List(t.Unicode()).tag(sync=True)
    fates = t.List(t.Unicode()).tag(sync=True)
    columns = t.Int().tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)

    shown = t.Int(0).tag(sync=True)
    out = t.Int(-1).tag(sync=True)

    def __init__(self, states: Mapping[int, tuple[Tensor, Tensor, Tensor]], **values: Any):
        counts = {len(part) for state in states.values() for part in state}
        facts, most = max(counts, default=0), max(states, default=0)
        if not (
            len(counts) == 1 and 1 <= facts <= MOST_FACTS and len(states) <= MOST_STATES
            and min(states) >= 1 and most <= MOST_EXPERTS
        ):  # fmt: skip
            raise ValueError(
                f"the fact grid shows 1 to {MOST_STATES} states of the same 1 to {MOST_FACTS:,} "
                f"facts, with 1 to {MOST_EXPERTS} experts, not {len(states)} states of "
                f"{sorted(counts)} facts with {sorted(states)} experts"
            )
        for E, (expert_N, *_) in states.items():
            if not 0 <= int(expert_N.min()) <= int(expert_N.max()) < E:
                raise ValueError(f"with {E} experts none is number {int(expert_N.max())}")
        self._most = most
        super().__init__(
            sizes=list(states),
            experts=[
                "".join(chr(FIRST + e) for e in expert_N.tolist())
                for expert_N, _, _ in states.values()
            ],
            fates=[
                "".join(UNKNOWN if not k else STAYS if left else HANGS for k, left in pairs)
                for _, known_N, without_N in states.values()
                for pairs in [zip(known_N.tolist(), without_N.tolist(), strict=True)]
            ],
            columns=max(1, round((facts / 0.7) ** 0.5)),
            colors=expert_colors(most),
            **values,
        )

    @t.validate("shown", "out")
    def _possible(self, proposal: Any) -> int:
        return bounded(proposal, shown=(0, len(self.sizes) - 1), out=(-1, self._most - 1))

    def _lost(self, state: int) -> list[bool]:
        gone = chr(FIRST + self.out) if self.out >= 0 else ""
        pairs = zip(self.experts[state], self.fates[state], strict=True)
        return [expert == gone and fate == HANGS for expert, fate in pairs]

    @property
    def known(self) -> int:
        """Count the facts that are known in the state shown, with the expert out."""
        fates = self.fates[self.shown]
        return len(fates) - fates.count(UNKNOWN) - sum(self._lost(self.shown))

    def said(self) -> str:
        """Return in a sentence what is known; the page says the same."""
        E, lost = self.sizes[self.shown], sum(self._lost(self.shown))
        facts, before = len(self.fates[self.shown]), self.known + lost
        percent = f"{int(1000 * before / facts + 0.5) / 10:.1f}"
        said = (
            f"{E} expert{'' if E == 1 else 's'}: {before:,} of {facts:,} facts known, {percent}%."
        )
        if 0 <= self.out < E:
            said += f" Without expert {self.out}: {lost:,} forgotten, {self.known:,} left."
        return said

    def asks(self) -> Question | None:
        E, all_ = self.sizes[self.shown], len(self.fates[0])
        ask = f"Expert 0 of the {E} is taken out: how many of the {all_:,} facts are forgotten?"
        moves = {"out": 0, "shown": self.shown}
        return Question(ask, moves, lambda: sum(self._lost(self.shown)), all_) if E > 1 else None

    @property
    def title(self) -> str:
        return f"{len(self.fates[0]):,} facts, {self.sizes[0]} to {self.sizes[-1]} experts"

    def figure(self) -> Figure:
        """Draw every state: known facts in their expert's colour, forgotten ones black."""
        figure, axes = panels(2 * len(self.sizes), 2.1, len(self.sizes))
        hues = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in self.colors]
        for n, (ax, E) in enumerate(zip(np.ravel(axes), self.sizes, strict=True)):
            fates, lost = self.fates[n], self._lost(n)
            rows = -(-len(fates) // self.columns)
            picture = np.full((rows * self.columns, 3), 255, dtype="u1")
            picture[: len(fates)] = [
                LOST if gone else BLANK if fate == UNKNOWN else hues[ord(expert) - FIRST]
                for expert, fate, gone in zip(self.experts[n], fates, lost, strict=True)
            ]
            left = len(fates) - fates.count(UNKNOWN) - sum(lost)
            ax.imshow(picture.reshape(rows, self.columns, 3), interpolation="nearest")
            ax.set_title(f"E = {E}: {left / len(fates):.1%}", fontsize=10)
            ax.axis("off")
        return figure
