"""The competition explorer: scrub through a mixture's training, and drag its experts' lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t

from ..viz import expert_colors, plane
from .portable import HERE, PortableWidget, Question, bounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


class CompetitionExplorer(PortableWidget):
    """Show who answers for what on a plane, at every kept moment of a mixture's training.

    ::

        descent = descend(model, x_T2, target_T1, step=20, keep=range(0, 700, 20))
        widget = CompetitionExplorer(x_T2, labels, target_T1, descent.kept)
        widget                      # scrub, drag a line
        widget.lines                # the experts' weights after dragging; empty: as trained

    Args:    x_T2: cases; labels: the sign of each; target_T1: 0 or 1; kept: epoch -> parameters,
             as ``Descent.kept`` has them; run: which of the Q runs.
    Raises:  ValueError if nothing was kept, lengths differ, or the experts have other than two
             inputs and one output; traitlets.TraitError for a moment, an expert or a case that
             does not exist, or lines that are not three numbers for each expert.
    """

    _esm = HERE / "competition.js"
    _css = HERE / "competition.css"

    labels = t.List(t.Unicode()).tag(sync=True)
    target = t.List(t.Int()).tag(sync=True)
    epochs = t.List(t.Int()).tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)
    points = t.Bytes().tag(sync=True)
    weights = t.Bytes().tag(sync=True)

    moment = t.Int(0).tag(sync=True)
    expert = t.Int(0).tag(sync=True)
    selected = t.Int(-1).tag(sync=True)
    lines = t.List(t.Float()).tag(sync=True)

    def __init__(
        self,
        x_T2: Tensor,
        labels: Sequence[str],
        target_T1: Tensor,
        kept: Mapping[int, Mapping[str, Tensor]],
        *,
        run: int = 0,
    ):
        if not kept:
            raise ValueError("there is nothing to scrub through: no moment was kept")
        if not len(x_T2) == len(labels) == target_T1.numel():
            raise ValueError(
                f"there are {len(x_T2)} cases, {len(labels)} labels and {target_T1.numel()} targets"
            )
        epochs = sorted(kept)
        experts_NEOD = np.stack([kept[n]["experts"][run].cpu().numpy() for n in epochs])
        gate_NED = np.stack([kept[n]["gate"][run].cpu().numpy() for n in epochs])
        _, E, outputs, inputs = experts_NEOD.shape
        if (outputs, inputs) != (1, 3):
            raise ValueError(
                f"an expert has to be one line on a plane: 2 inputs and 1 output, "
                f"not {inputs - 1} and {outputs}"
            )
        # Before the traits, whose validators ask it.
        self._weights = np.concatenate([experts_NEOD[:, :, 0], gate_NED], -1).astype("<f4")
        self._points = x_T2.cpu().numpy().astype("<f4")
        super().__init__(
            labels=list(labels),
            target=[round(value) for value in target_T1.flatten().tolist()],
            epochs=epochs,
            colors=expert_colors(E),
            points=self._points.tobytes(),
            weights=self._weights.tobytes(),
        )

    @t.validate("moment", "expert", "selected")
    def _exists(self, proposal: Any) -> int:
        N, E, _ = self._weights.shape
        last = len(self._points) - 1
        return bounded(proposal, moment=(0, N - 1), expert=(0, E - 1), selected=(-1, last))

    @t.validate("lines")
    def _three_each(self, proposal: Any) -> list[float]:
        value, E = proposal["value"], self._weights.shape[1]
        if len(value) not in (0, 3 * E) or not np.isfinite(value).all():
            raise t.TraitError(f"lines must be 3 finite numbers for each of {E} experts, or none")
        return value

    def asks(self) -> Question | None:
        last, E = len(self.epochs) - 1, len(self.colors)
        ask = f"At epoch {self.epochs[last]}, the last: how many of the {E} experts have a vowel?"
        moves = {"moment": last, "lines": [], "selected": -1}
        return Question(ask, moves, lambda: len(set(self.winners.tolist())), E, least=1)

    @property
    def winners(self) -> np.ndarray:
        """Return which expert answers for each case now: the one with the largest h."""
        expert_E3, gate_E3 = np.split(self._weights[self.moment].astype("f8"), 2, axis=-1)
        if self.lines:
            expert_E3 = np.reshape(self.lines, (-1, 3))
        x_T3 = np.pad(self._points, ((0, 0), (0, 1)), constant_values=1)
        out_TE = 1 / (1 + np.exp(-x_T3 @ expert_E3.T))
        error_TE = (np.array(self.target)[:, None] - out_TE) ** 2 / 2
        return (x_T3 @ gate_E3.T - error_TE).argmax(-1)  # type: ignore[no-any-return]

    @property
    def title(self) -> str:
        return f"{self._weights.shape[1]} experts compete for {len(self._points)} vowels"

    def figure(self) -> Figure:
        """Draw the plane at the moment now shown, with the lines as they now are."""
        experts_E3, gate_E3 = np.split(self._weights[self.moment], 2, axis=-1)
        if self.lines:
            experts_E3 = np.reshape(self.lines, (-1, 3))
        title = f"{self.title}: epoch {self.epochs[self.moment]}"
        return plane(
            self._points, self.labels, experts_E3, gate_E3, target=self.target, title=title
        )
