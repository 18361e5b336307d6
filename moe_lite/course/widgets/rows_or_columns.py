"""Rows or columns: one score matrix, chosen from by its tokens or by its experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import traitlets as t
from torch import Tensor

from ...routing import Routing
from ..viz import expert_colors
from .portable import HERE, PortableWidget, Question, bounded, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TOKENS, MOST_EXPERTS, FAR = 24, 8, 20.0


class RowsOrColumns(PortableWidget):
    """Choose the best of each row, or of each column, of one matrix of scores.

    By row a token takes its c best experts; by column an expert takes its ceil(c * T / E) best
    tokens, so each token has c on average and some may have none. A click raises a score, and
    ``seen`` cuts the text off: what is then chosen otherwise than with the whole text was decided
    by the future. All of it is computed in the page, so it answers without a kernel; here in
    Python are the same choices, as ``routing``.

    ::

        widget = RowsOrColumns(logits_TE, ["To", " be", ",", " or"], by="column")
        widget.seen = 2             # and the page follows
        widget.changed              # [(token, expert, chosen now), ...]

    Args:    logits_TE: scores; tokens: T strings to name the rows by; by: "row" or "column";
             c: experts per token, on average; seen: how many tokens there are yet (None: all).
    Raises:  ValueError unless there are 2 to 24 tokens and 2 to 8 experts, all scores within ±20,
             and a name for each token; traitlets.TraitError for a value that cannot be.
    Source:  by column: Zhou et al. 2022 (arXiv:2202.09368), eqs. 1-2.
    """

    _esm = HERE / "rows_or_columns.js"
    _css = HERE / "rows_or_columns.css"

    scores = t.List(t.List(t.Float())).tag(sync=True)
    tokens = t.List(t.Unicode()).tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)
    by = t.Enum(("row", "column"), "column").tag(sync=True)
    c = t.Int(2).tag(sync=True)
    seen = t.Int(2).tag(sync=True)

    def __init__(
        self, logits_TE: Tensor, tokens: Sequence[str] | None = None, *,
        by: str = "column", c: int = 2, seen: int | None = None,
    ):  # fmt: skip
        logits_TE = logits_TE.detach().cpu().double()
        T, E = self._shape = tuple(logits_TE.shape)
        named = [f"token {n}" for n in range(T)] if tokens is None else list(tokens)
        inside = bool((logits_TE.abs() <= FAR).all())
        if not (2 <= T <= MOST_TOKENS and 2 <= E <= MOST_EXPERTS and inside):
            raise ValueError(
                f"rows or columns shows 2 to {MOST_TOKENS} tokens and 2 to {MOST_EXPERTS} experts "
                f"with scores within ±{FAR:g}, not scores of shape {self._shape}"
                + ("" if inside else " with some outside")
            )
        if len(named) != T:
            raise ValueError(f"{T} rows of scores, but {len(named)} tokens to name them by")
        super().__init__(
            # Rounded once, here, so that page and Python choose from the same numbers.
            scores=logits_TE.round(decimals=2).tolist(),
            tokens=named, colors=expert_colors(E), by=by, c=c, seen=T if seen is None else seen,
        )  # fmt: skip

    @t.validate("c", "seen")
    def _possible(self, proposal: Any) -> int:
        T, E = self._shape
        return bounded(proposal, c=(1, E), seen=(1, T))

    @t.validate("scores")
    def _same_shape(self, proposal: Any) -> list[list[float]]:
        rows: list[list[float]] = proposal["value"]
        T, E = self._shape
        if len(rows) != T or any(len(row) != E for row in rows):
            raise t.TraitError(f"scores must have {T} rows of {E} numbers")
        if not all(abs(score) <= FAR for row in rows for score in row):
            raise t.TraitError(f"a score must be within ±{FAR:g}")
        return rows

    def asks(self) -> Question | None:
        T, by = self._shape[0], "column" if self.by == "row" else "row"
        seen = T // 2
        ask = (
            f"{'Experts' if by == 'column' else 'Tokens'} choose, and only the first {seen} tokens "
            "are there: how many choices among them will be otherwise once the rest is there?"
        )
        return Question(
            ask, {"by": by, "seen": seen, "c": self.c}, lambda: len(self.changed), 2 * seen
        )

    @property
    def title(self) -> str:
        return "Rows or columns: {} tokens, {} experts".format(*self._shape)

    @property
    def routing(self) -> Routing:
        """Route the tokens seen with what the page now says; token order, then expert order."""
        return self._route(self.seen)

    @property
    def changed(self) -> list[tuple[int, int, bool]]:
        """List what the tokens not yet seen will change: (token, expert, chosen now)."""
        now_TE = _chosen(self._route(self.seen))
        whole_TE = _chosen(self._route(self._shape[0]))[: self.seen]
        return [(n, e, bool(now_TE[n, e])) for n, e in (now_TE != whole_TE).nonzero().tolist()]

    def _route(self, seen: int) -> Routing:
        logits_TE = torch.tensor(self.scores, dtype=torch.float64)[:seen]
        probs_TE = logits_TE.softmax(-1)
        rank_TE = probs_TE.round(decimals=9)  # two machines may differ in the last digit
        axis, k = (1, self.c) if self.by == "row" else (0, capacity(seen, self._shape[1], self.c))
        best = rank_TE.sort(dim=axis, descending=True, stable=True).indices.narrow(axis, 0, k)
        chosen_TE = torch.zeros_like(probs_TE, dtype=torch.bool).scatter(axis, best, True)
        token_N, expert_N = chosen_TE.nonzero().unbind(1)
        return Routing(logits_TE, probs_TE, token_N, expert_N, probs_TE[token_N, expert_N])

    def figure(self) -> Figure:
        """Draw the matrix with what is chosen, and the counts of its rows and columns."""
        (T, E), routing, seen = self._shape, self.routing, self.seen
        chosen_TE = _chosen(routing)
        changed = {(n, e): now for n, e, now in self.changed}
        figure, axes = panels(2.2 + 0.78 * E, 1.6 + 0.31 * T)
        axes.imshow(routing.probs_TE.numpy(), cmap="Blues", vmin=0, vmax=1.8, aspect="auto",
                    extent=(-0.5, E - 0.5, seen - 0.5, -0.5))  # fmt: skip
        for n in range(seen):
            for e in range(E):
                mark = " ●" if chosen_TE[n, e] else ""
                if (n, e) in changed:
                    mark = " + ●" if changed[n, e] else " −"
                axes.text(e, n, f"{routing.probs_TE[n, e]:.2f}{mark}", ha="center", va="center",
                          fontsize=8, weight="bold" if chosen_TE[n, e] else None)  # fmt: skip
            count = int(chosen_TE[n].sum())
            axes.text(E - 0.35, n, str(count) if count else "nobody", va="center", fontsize=8)
        axes.set_xticks(range(E), [f"{e}\n({int(x)})" for e, x in enumerate(chosen_TE.sum(0))])
        for n in range(seen, T):
            axes.text(
                (E - 1) / 2, n, "hidden", ha="center", va="center", fontsize=8, style="italic"
            )
        axes.set_yticks(range(T), [token.replace("\n", "↵") for token in self.tokens])
        axes.set(xlim=(-0.5, E + 0.6), ylim=(T - 0.5, -0.5),
                 xlabel="expert (tokens it has); right: experts of each token")  # fmt: skip
        who = "tokens choose, by row" if self.by == "row" else "experts choose, by column"
        axes.set_title(f"{self.title}\n{who}, c = {self.c}", fontsize=9, loc="left")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return figure


def capacity(num_tokens: int, num_experts: int, c: float) -> int:
    """Count the tokens each expert takes: c * T / E, rounded up, and no more than there are."""
    return min(num_tokens, math.ceil(c * num_tokens / num_experts))


def _chosen(routing: Routing) -> Tensor:
    chosen_TE = torch.zeros_like(routing.logits_TE, dtype=torch.bool)
    chosen_TE[routing.token_N, routing.expert_N] = True
    return chosen_TE
