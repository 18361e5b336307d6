"""The bias controller: set its step size and watch the loads settle, crawl or swing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t

from ..viz import QUIET, expert_colors
from .portable import Question, bounded, panels, scores
from .redrawn import Move, Redrawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

STRIDE = 37  # how far each batch's window moves along the tokens
RULES = ("sign", "proportional")
RATES = sorted(u * 10.0**e for e in range(-4, 0) for u in (1, 2, 5))


@dataclass(frozen=True)
class Control:
    """Hold a controller's run: at each step the biases that chose, and what they led to.

    Shapes: bias_SE; load_SE, pairs of the step's batch; batch_S, MaxVio of the batch; whole_S,
            MaxVio of all tokens under the same biases.
    """

    bias_SE: np.ndarray
    load_SE: np.ndarray
    batch_S: np.ndarray
    whole_S: np.ndarray


def control(scores_TE: np.ndarray, k: int, u: float, rule: str, steps: int, batch: int) -> Control:
    """Run the controller on fixed scores: choose by score + bias, count, move the biases.

    Each step sees a window of the tokens, as training sees batches; of equal sums the lower
    expert wins. "sign" moves every bias by u, towards an equal load; "proportional" by u times
    how far the load is off, in mean loads.

    Source: Wang et al. 2024 (arXiv:2408.15664), algorithm 1, and the variant of Table 3.
    """
    T, E = scores_TE.shape
    bias_E, mean = np.zeros(E), batch * k / E
    kept: list[tuple[np.ndarray, np.ndarray, float, float]] = []
    for step in range(steps):
        chosen_TK = np.argsort(-(scores_TE + bias_E), axis=1, kind="stable")[:, :k]
        window = (STRIDE * step + np.arange(batch)) % T
        load_E, whole_E = (
            np.bincount(chosen.ravel(), minlength=E) for chosen in (chosen_TK[window], chosen_TK)
        )
        kept.append((bias_E, load_E, load_E.max() / mean - 1, whole_E.max() * E / (T * k) - 1))
        short_E = mean - load_E
        bias_E = bias_E + u * (np.sign(short_E) if rule == "sign" else short_E / mean)
    return Control(*(np.array(column) for column in zip(*kept, strict=True)))


class BiasController(Redrawn):
    """Balance a fixed set of token scores by biases, with the update rate u as a slider.

    Shows MaxVio over the steps, of each batch and of all tokens, the biases that bring it
    about, and each expert's load at one step. The numbers are ``run``.

    ::

        widget = BiasController(scores_TE, k=2)
        widget.u = 0.1            # and the page follows
        widget.run.batch_S[-1]    # MaxVio of the last batch

    Args:    scores_TE: gating scores, such as sigmoids; k: experts per token; u: how far a bias
             moves in a step; rule: "sign" or "proportional"; step: the one shown (the last, if
             none is given); steps: how many are run; batch: tokens in each.
    Raises:  ValueError unless there are 8 to 512 tokens and 2 to 16 experts with finite scores,
             and steps, k and batch fit them; traitlets.TraitError for a value that cannot be.
    """

    u = t.Float(0.01).tag(sync=True)
    rule = t.Enum(RULES, "sign").tag(sync=True)
    step = t.Int(0).tag(sync=True)

    def __init__(
        self,
        scores_TE: Tensor,
        *,
        k: int = 2,
        u: float = 0.01,
        rule: str = "sign",
        step: int | None = None,
        steps: int = 300,
        batch: int = 64,
    ):
        self._scores_TE = scores(scores_TE, "bias controller", 8, 512).numpy()
        T, E = self._scores_TE.shape
        for name, value, high in (("k", k, E), ("batch", batch, T), ("steps", steps, 1000)):
            if not 1 <= value <= high:
                raise ValueError(f"{name} must be from 1 to {high}, not {value}")
        self.k, self.steps, self.batch, self.colors = k, steps, batch, expert_colors(E)
        super().__init__(u=u, rule=rule, step=steps - 1 if step is None else step)

    @t.validate("u", "step")
    def _possible(self, proposal: Any) -> float:
        return bounded(proposal, u=(0, 1), step=(0, self.steps - 1))

    def moves(self) -> list[Move]:
        return [
            ("u", "Rate u", RATES, [f"{u:g}" for u in RATES]),
            ("rule", "Rule", RULES, None),
            ("step", "Step", range(self.steps), None),
        ]

    def grid(self) -> dict[str, Sequence[Any]]:
        return {"u": (1e-4, 1e-3, 1e-2, 0.1, 0.5), "rule": RULES}

    @property
    def said(self) -> str:
        late = self.run.whole_S[-100:].mean()
        return f"{self.title}: MaxVio {late:.2f} over the last 100 steps"

    def asks(self) -> Question | None:
        late = self.run.whole_S[-100:].mean()
        most = len(self.colors) / self.k - 1
        ask = (
            f"u = 0.5: which MaxVio over the last 100 steps, from 0 (balanced) to {most:g}? "
            f"({late:.2f} with u = {self.u:g}.)"
        )
        return Question(ask, {"u": 0.5}, lambda: self.run.whole_S[-100:].mean(), most, 0.05)

    @property
    def title(self) -> str:
        return (
            f"Bias controller: {len(self._scores_TE)} tokens, {len(self.colors)} experts, "
            f"k = {self.k}, {self.rule} update, u = {self.u:g}"
        )

    @property
    def run(self) -> Control:
        """Run the controller with what the page now says."""
        return control(self._scores_TE, self.k, self.u, self.rule, self.steps, self.batch)

    def figure(self) -> Figure:
        """Draw MaxVio and the biases over the steps, and the loads at the step shown."""
        run, E = self.run, len(self.colors)
        figure, (violation, biases, loads) = panels(11, 3.4, 3, width_ratios=[3, 3, 2])
        violation.plot(run.batch_S, color="#9aa3ac", lw=0.9, label="this batch")
        violation.plot(
            run.whole_S, color="#0B62B8", lw=2, label=f"all {len(self._scores_TE)} tokens"
        )
        violation.set(xlabel="step", ylabel="MaxVio", ylim=(0, None))
        violation.legend(fontsize=8, frameon=False)
        drift_S1 = run.bias_SE.mean(1, keepdims=True)  # what all share changes no choice
        bias_SE = run.bias_SE - drift_S1
        for e in range(E):
            biases.plot(bias_SE[:, e], color=self.colors[e], lw=1.4)
        # A number at each line's end: none on another, none outside; moved up as far as down.
        ends_E, (low, high) = bias_SE[-50:].mean(0), biases.get_ylim()
        order_E, apart_E = ends_E.argsort(kind="stable"), 0.06 * (high - low) * np.arange(E)
        up_E = np.maximum.accumulate(ends_E[order_E] - apart_E)
        down_E = np.minimum.accumulate((ends_E[order_E] - apart_E)[::-1])[::-1]
        at_E = np.clip((up_E + down_E) / 2 + apart_E, low + apart_E, high - apart_E[::-1])
        for e, at in zip(order_E, at_E, strict=True):
            biases.annotate(str(e), (1.01, at), xycoords=("axes fraction", "data"), fontsize=8,
                            va="center", annotation_clip=False)  # fmt: skip
        drift = f"bias, less their mean\n(it drifts to {drift_S1[-1, 0]:+.3g})"
        biases.set(xlabel="step", ylabel=drift)
        loads.barh([str(e) for e in range(E)], run.load_SE[self.step], color=self.colors)
        loads.axvline(self.batch * self.k / E, color=QUIET, ls="--", lw=1)
        loads.invert_yaxis()
        loads.set(xlabel=f"pairs at step {self.step}", ylabel="expert")
        for axes in (violation, biases):
            axes.axvline(self.step, color=QUIET, lw=1, ls=":")
        figure.suptitle(self.title, fontsize=10)
        return figure
