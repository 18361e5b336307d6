"""The noisy gate: turn up the noise, change k, and watch the load answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from torch import Tensor

from ...routers import kth_excluding, prob_in_top_k
from ...routing import Routing
from ..viz import INK, QUIET, expert_colors
from .portable import Question, bounded, panels, scores
from .redrawn import Move, Redrawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NOISE = 3.0
STRIDE = 131  # how far a new draw moves along the list of normal numbers


class NoisyGate(Redrawn):
    """Route a batch by noisy top-k with the noise and k as sliders.

    Shows for each expert the tokens that came and the smooth load (what eq. 10 expects), and
    for one token the contest itself: clean scores, noisy scores, the bar each has to clear, and
    the bar to clear. The numbers are ``routing``.

    ::

        widget = NoisyGate(logits_TE, k=2)
        widget.noise = 0.5        # and the page follows
        widget.routing.load_E()

    Args:    logits_TE: clean scores; k: experts per token; noise: the standard deviation, one
             for all; token: the one shown; draw: which draw of the noise.
    Raises:  ValueError unless there are 1 to 1,000 tokens and 2 to 16 experts, all finite;
             traitlets.TraitError for a value that cannot be.
    """

    k = t.Int(2).tag(sync=True)
    noise = t.Float(1.0).tag(sync=True)
    token = t.Int(0).tag(sync=True)
    draw = t.Int(0).tag(sync=True)

    def __init__(
        self, logits_TE: Tensor, *, k: int = 2, noise: float = 1.0, token: int = 0, draw: int = 0
    ):
        logits_TE = scores(logits_TE, "noisy gate", 1, 1000)
        T, E = logits_TE.shape
        generator = torch.Generator().manual_seed(0)
        normal_N = torch.randn(T * E, generator=generator, dtype=torch.float64)
        self._clean_TE, self._normal_N, self.colors = logits_TE, normal_N, expert_colors(E)
        super().__init__(k=k, noise=noise, token=token, draw=draw)

    @t.validate("k", "noise", "token", "draw")
    def _possible(self, proposal: Any) -> float:
        T, E = self._clean_TE.shape
        return bounded(proposal, k=(1, E), noise=(0, MOST_NOISE), token=(0, T - 1), draw=(0, 10**6))

    def moves(self) -> list[Move]:
        T, E = self._clean_TE.shape
        noises = [n / 20 for n in range(int(20 * MOST_NOISE) + 1)]
        return [
            ("noise", "Noise", noises, [f"{noise:.2f}" for noise in noises]),
            ("k", "Experts per token, k", range(1, E + 1), None),
            ("draw", "Draw again", range(1000), "button"),
            ("token", "Token", range(T), None),
        ]

    def grid(self) -> dict[str, Sequence[Any]]:
        E = self._clean_TE.shape[1]
        return {"noise": (0.0, 0.35, 1.5, 3.0), "k": (E,), "draw": range(2)}

    def asks(self) -> Question | None:
        T, E = self._clean_TE.shape
        noise, least = 0.0 if self.noise == MOST_NOISE else MOST_NOISE, -(-T * self.k // E)
        ask = (
            f"Noise {noise:g} instead of {self.noise:g}: how many of {T} tokens does the busiest "
            f"expert get? (It has {int(self.routing.load_E().max())} at first; {T * self.k / E:g} "
            "would be equal.)"
        )
        moves = {"noise": noise}
        return Question(ask, moves, lambda: int(self.routing.load_E().max()), T, least=least)

    @property
    def title(self) -> str:
        T, E = self._clean_TE.shape
        return f"Noisy top-k: {T} tokens, {E} experts, k = {self.k}, noise {self.noise:.2f}"

    @property
    def said(self) -> str:
        load_E = self.routing.load_E().double()
        spread = load_E.std(correction=0) / load_E.mean()
        return f"{self.title}: CV of the load {spread:.2f}"

    @property
    def routing(self) -> Routing:
        """Route the batch with what the sliders now say."""
        clean_TE = self._clean_TE
        normal_TE = self._normal_N.roll(-STRIDE * self.draw).view_as(clean_TE)
        logits_TE = clean_TE + self.noise * normal_TE
        top_TK, expert_TK = logits_TE.topk(self.k)
        smooth_TE = None
        if self.noise > 0:
            std_TE = torch.full_like(clean_TE, self.noise)
            smooth_TE = prob_in_top_k(clean_TE, logits_TE, std_TE, self.k)
        return Routing.from_choices(
            logits_TE, logits_TE.softmax(-1), expert_TK, top_TK.softmax(-1),
            smooth_load_TE=smooth_TE,
        )  # fmt: skip

    def figure(self) -> Figure:
        """Draw the load of each expert, and the contest for one token."""
        routing, (T, E) = self.routing, self._clean_TE.shape
        came = smooth = routing.load_E().tolist()
        if routing.smooth_load_TE is not None:
            smooth = routing.smooth_load_TE.sum(0).tolist()
        figure, (loads, contest) = panels(10, 3.6, 2)
        names = [str(e) for e in range(E)]
        loads.barh(names, came, color=self.colors, label="tokens that came")
        loads.plot(smooth, names, "D", color=INK, ms=5, label="smooth load")
        loads.axvline(T * self.k / E, color=QUIET, ls="--", lw=1, label="equal share")
        loads.set(xlabel="tokens", ylabel="expert", title=self.title)
        clean, noisy = (x_TE[self.token].tolist() for x_TE in (self._clean_TE, routing.logits_TE))
        chosen = set(routing.expert_N.view(T, self.k)[self.token].tolist())
        for e in range(E):
            contest.plot([clean[e], noisy[e]], [e, e], color="#9aa3ac", lw=1.5, zorder=1)
            contest.scatter(
                noisy[e], e, s=70, color=self.colors[e], marker="*" if e in chosen else "o"
            )
            contest.scatter(clean[e], e, s=22, color="none", edgecolor=INK)
        if self.k < E:
            bars = kth_excluding(routing.logits_TE, self.k)[self.token].tolist()
            for e, bar in enumerate(bars if self.noise else []):  # where its noisy score may fall
                x = clean[e] + self.noise * np.linspace(-2.5, 2.5, 31)
                bell = e - 0.45 * np.exp(-(((x - clean[e]) / self.noise) ** 2) / 2)
                contest.plot(x, bell, color=self.colors[e], lw=0.8)
                contest.fill_between(x, e, bell, where=x > bar, color=self.colors[e], alpha=0.35)
            contest.plot(bars, range(E), "|", color=INK, ms=15, mew=2)
        contest.set(
            yticks=range(E), xlabel="score (○ clean, ★ chosen, | the bar to clear)",
            title=f"Token {self.token}; shaded: P, that its noisy score clears the bar",
        )  # fmt: skip
        for axes in (loads, contest):
            axes.invert_yaxis()
            axes.title.set_fontsize(10)
        loads.legend(fontsize=8, frameon=False, loc="lower right")
        return figure
