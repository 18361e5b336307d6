"""The simplex of balance: where f and P lie, and where the loss pushes each token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import traitlets as t
from torch import Tensor

from ...losses import load_balancing_loss, max_violation
from ...routing import Routing
from ..viz import INK, QUIET, expert_colors
from .portable import HERE, PortableWidget, Question, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEP = 0.5  # what one step takes off a token's logits: this much of T times their gradient
CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(3) / 2))

Logits = list[list[float]]


def _starts() -> dict[str, Logits]:
    """Make the named starts: a name and the logits of its tokens over three experts."""
    normal = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).double()
    lean = normal + torch.tensor([1.6, 0.4, 0.0])
    return {
        "leaning": lean.round(decimals=2).tolist(),
        "all tie": [[0.0, 0.0, 0.0]] * 12,
        "below 1": [[0.03, -3.0 - 0.3 * n, 0.0] for n in range(6)]
        + [[-3.0 - 0.3 * n, 0.03, 0.0] for n in range(6)],
        "sure": [[6 + 0.2 * n, 2 - 0.6 * n, 0.0] for n in range(9)]
        + [[0.0, 5.0, 1.0], [1.0, 6.0, 0.0], [1.0, 0.0, 6.0]],
    }


class BalanceSimplex(PortableWidget):
    """Show tokens, f and P in the triangle of three experts, and the push on each of them.

    A token lies where its probabilities put it, P is the centre of all tokens, and f the centre
    of the corners that they go to. Drag a token, or P and with it all tokens; take a step of
    gradient descent on the loss alone. All of it is computed in the page, so it answers without a
    kernel; here in Python are the same numbers, as ``routing``.

    ::

        widget = BalanceSimplex("below 1")
        widget.value              # 0.77, with nobody at expert 2
        widget.step()             # and the page follows

    Args:    start: the name of a start (``BalanceSimplex.STARTS``) or logits_T3; selected: the
             token that moves, -1 for all together.
    Raises:  ValueError for an unknown start, or unless there are 1 to 60 tokens over 3 experts
             with finite logits; traitlets.TraitError for a value that cannot be.
    """

    STARTS = _starts()

    _esm = HERE / "balance_simplex.js"
    _css = HERE / "balance_simplex.css"

    logits = t.List(t.List(t.Float())).tag(sync=True)
    starts = t.Dict().tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)
    selected = t.Int(-1).tag(sync=True)

    def __init__(self, start: str | Tensor | Sequence[Any] = "leaning", *, selected: int = -1):
        if isinstance(start, str):
            if start not in self.STARTS:
                raise ValueError(f"start must be one of {list(self.STARTS)}, not {start!r}")
            start = self.STARTS[start]
        logits_T3 = torch.as_tensor(start, dtype=torch.float64).detach().cpu()
        if problem := _problem(logits_T3):
            raise ValueError(problem)
        super().__init__(
            logits=logits_T3.tolist(), starts=self.STARTS, colors=expert_colors(3),
            selected=selected,
        )  # fmt: skip

    @t.validate("logits")
    def _possible_logits(self, proposal: Any) -> Logits:
        logits: Logits = proposal["value"]
        ragged = any(len(row) != 3 for row in logits)
        if problem := "each token has 3 logits" if ragged else _problem(torch.tensor(logits)):
            raise t.TraitError(problem)
        return logits

    @t.validate("selected")
    def _possible_token(self, proposal: Any) -> int:
        value: int = proposal["value"]
        if not -1 <= value < len(self.logits):
            raise t.TraitError(
                f"selected must be a token from 0 to {len(self.logits) - 1}, or -1 for all, "
                f"not {value}"
            )
        return value

    @property
    def routing(self) -> Routing:
        """Route each token to its best expert; of equals, to the first."""
        return _route(torch.tensor(self.logits, dtype=torch.float64))

    @property
    def value(self) -> float:
        """Return the loss, N * sum(f * P)."""
        return load_balancing_loss(self.routing).item()

    @property
    def push_T3(self) -> Tensor:
        """Return what one step adds to the logits: STEP * T times the loss's gradient, downhill."""
        logits_T3 = torch.tensor(self.logits, dtype=torch.float64, requires_grad=True)
        (slope_T3,) = torch.autograd.grad(load_balancing_loss(_route(logits_T3)), logits_T3)
        return -STEP * len(logits_T3) * slope_T3

    def step(self, count: int = 1) -> None:
        """Take steps of gradient descent on the balancing loss alone."""
        for _ in range(count):
            moved_T3 = torch.tensor(self.logits, dtype=torch.float64) + self.push_T3
            self.logits = (moved_T3 - moved_T3.mean(-1, keepdim=True)).tolist()

    def asks(self) -> Question | None:
        then = BalanceSimplex(self.logits)
        then.step(20)
        ask = (
            f"MaxVio is {max_violation(self.routing).item():.2f} at first. "
            "After 20 steps down the loss, what is it, from 0 (balanced) to 2 (one has all)?"
        )
        moves = {"logits": then.logits}
        return Question(ask, moves, lambda: max_violation(self.routing).item(), 2, 0.05)

    @property
    def title(self) -> str:
        violation = max_violation(self.routing).item()
        return (
            f"f and P of {len(self.logits)} tokens: value {self.value:.3f}, MaxVio {violation:.2f}"
        )

    def figure(self) -> Figure:
        """Draw the triangle with its arrows, and f beside P for each expert."""
        figure, (triangle, bars) = panels(9, 4.4, 2, width_ratios=(1.25, 1))
        self._draw(triangle)
        routing = self.routing
        f_E = (routing.load_E() / routing.num_tokens).tolist()
        p_E = routing.probs_TE.mean(0).tolist()
        for e, color in enumerate(self.colors):
            bars.barh(e - 0.19, f_E[e], height=0.36, color=color)
            bars.barh(e + 0.19, p_E[e], height=0.36, color=color, alpha=0.45, hatch="//")
            bars.text(f_E[e] + 0.01, e - 0.19, f"f = {f_E[e]:.2f}", va="center", fontsize=9)
            bars.text(p_E[e] + 0.01, e + 0.19, f"P = {p_E[e]:.2f}", va="center", fontsize=9)
        bars.axvline(1 / 3, color=QUIET, ls="--", lw=1)
        bars.set(yticks=range(3), ylim=(2.6, -0.6), xlim=(0, 1.15), xlabel="share",
                 ylabel="expert", title="f (solid) and P (hatched)")  # fmt: skip
        return figure

    def _draw(self, ax: Axes) -> None:
        corners = torch.tensor(CORNERS, dtype=torch.float64)
        routing = self.routing
        moved_TE = (torch.tensor(self.logits, dtype=torch.float64) + 2 * self.push_T3).softmax(-1)
        from_T2, to_T2 = routing.probs_TE @ corners, moved_TE @ corners
        f_E = routing.load_E().double() / routing.num_tokens
        ax.fill(*corners.T.tolist(), fc="none", ec=QUIET, lw=1.2)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            middle, centre = (corners[i] + corners[j]) / 2, corners.mean(0)
            ax.plot(*torch.stack([middle, centre]).T.tolist(), color="#9aa3ac", lw=1)
        for e, (x, y) in enumerate(CORNERS):
            ax.text(x, y + (0.03 if y else -0.07), f"expert {e}", ha="center", color=INK)
        line = set()  # where the value would be 1: straight, since f stands still
        for i, j in ((0, 1), (0, 2), (1, 2)):
            above, below = 3 * f_E[i] - 1, 3 * f_E[j] - 1
            if abs(above - below) > 1e-6 and above * below < 1e-9:
                share = above / (above - below)
                x, y = (corners[i] + share * (corners[j] - corners[i])).tolist()
                line.add((round(x, 4), round(y, 4)))
        if len(line) == 2:
            ax.plot(*zip(*line, strict=True), color=INK, ls="--", lw=1.2, label="value 1")
        for a, b in zip(from_T2.tolist(), to_T2.tolist(), strict=True):
            ax.annotate("", b, a, arrowprops={"arrowstyle": "->", "color": QUIET})
        chosen = [self.colors[e] for e in routing.expert_N.tolist()]
        x_T, y_T = from_T2.T.tolist()
        ax.scatter(x_T, y_T, s=60, color="white", edgecolor=chosen, linewidth=2, zorder=3)
        for name, at, marker in (("f", f_E @ corners, "s"), ("P", from_T2.mean(0), "D")):
            x, y = at.tolist()
            ax.scatter(x, y, s=80, marker=marker, color=INK, zorder=4, label=name)
        ax.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.12, 0.97), title=self.title)
        ax.axis("off")
        ax.legend(frameon=False, loc="upper right")


def _problem(logits_T3: Tensor) -> str:
    T = len(logits_T3) if logits_T3.dim() else 0
    if logits_T3.dim() == 2 and logits_T3.shape[1] == 3 and 1 <= T <= 60:
        return "" if logits_T3.isfinite().all() else "a logit is not finite"
    return f"the simplex shows 1 to 60 tokens over 3 experts, not {tuple(logits_T3.shape)}"


def _route(logits_T3: Tensor) -> Routing:
    probs_T3 = logits_T3.softmax(-1)
    expert_T = torch.from_numpy(logits_T3.detach().numpy().argmax(-1))  # numpy: the first of equals
    expert_T1 = expert_T[:, None]
    return Routing.from_choices(logits_T3, probs_T3, expert_T1, probs_T3.gather(1, expert_T1))
