"""Who sends what to whom: the traffic of one expert-parallel layer, rank by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from torch import Tensor

from ..placement import place, replicas
from ..viz import INK
from .portable import Question, bounded, gumbel, panels
from .redrawn import Move, Redrawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TOKENS = 64  # of one rank
MOST_SPARE = 4  # copies of experts that one rank has room for


@dataclass(frozen=True)
class Traffic:
    """Hold what travels: pairs_RR[from, to], and copies_RR if a token is sent once to a rank.

    ``dropped`` pairs were refused by an expert that was full; they do not travel.
    """

    pairs_RR: Tensor
    copies_RR: Tensor
    dropped: int

    @property
    def busiest(self) -> float:
        """Return the work of the busiest rank over the mean: how long the others wait."""
        work_R = self.pairs_RR.sum(0)
        return (work_R.max() / work_R.mean()).item()

    @staticmethod
    def away(count_RR: Tensor) -> int:
        """Count what leaves its rank."""
        return int(count_RR.sum() - count_RR.diagonal().sum())


class TrafficMatrix(Redrawn):
    """Show the pairs that each rank sends to each, with batch, skew, limit and capacity as sliders.

    Expert e is chosen in proportion to 1/(e+1)^skew; experts lie in order on the ranks, so the
    popular ones are neighbours. ``visit`` lets a token choose among the experts of so many ranks
    only, the best ones by the sum of their best K/visit probabilities (as DeepSeek-V3 limits
    nodes, arXiv:2412.19437, section 2.1.2). With a ``capacity`` factor above 0 an expert takes at
    most that many times its mean load (and at least one pair), first come, first served. With
    ``spare`` room on each rank, popular experts are held more than once, by the load that this very
    batch puts on them (:mod:`moe_lite.course.placement`), and their pairs take turns.

    ::

        widget = TrafficMatrix(ranks=8, experts=64, k=8)
        widget.skew = 1.0          # and the page follows
        widget.traffic.pairs_RR

    Raises: ValueError unless 2 to 12 ranks share at most 64 experts evenly and k is possible;
            traitlets.TraitError for a value that cannot be.
    """

    tokens = t.Int(32).tag(sync=True)
    skew = t.Float(0.0).tag(sync=True)
    visit = t.Int().tag(sync=True)
    capacity = t.Float(0.0).tag(sync=True)
    spare = t.Int(0).tag(sync=True)

    def __init__(
        self, ranks: int = 4, experts: int = 16, k: int = 4, *, tokens: int = 32, skew: float = 0.0,
        visit: int | None = None, capacity: float = 0.0, spare: int = 0,
    ):  # fmt: skip
        if not (2 <= ranks <= 12 and ranks <= experts <= 64 and experts % ranks == 0):
            raise ValueError(f"2 to 12 ranks share at most 64 experts: not {experts} on {ranks}")
        if not 1 <= k <= experts:
            raise ValueError(f"k must be from 1 to {experts}, not {k}")
        gumbel_N = gumbel(ranks * MOST_TOKENS * experts)
        self._gumbel_TE = gumbel_N.view(-1, experts)
        self._fewest = -(-k * ranks // experts)  # ranks that have k experts
        self.ranks, self.experts, self.k = ranks, experts, k
        super().__init__(
            tokens=tokens, skew=skew, visit=ranks if visit is None else visit,
            capacity=capacity, spare=spare,
        )  # fmt: skip

    @t.validate("tokens", "skew", "visit", "capacity", "spare")
    def _possible(self, proposal: Any) -> float:
        return bounded(
            proposal, tokens=(1, MOST_TOKENS), skew=(0, 2), visit=(self._fewest, self.ranks),
            capacity=(0, 4), spare=(0, MOST_SPARE),
        )  # fmt: skip

    def moves(self) -> list[Move]:
        skews, factors = ([n / of for n in range(last + 1)] for of, last in ((10, 20), (4, 16)))
        return [
            ("tokens", "Tokens per rank", range(1, MOST_TOKENS + 1), None),
            ("skew", "Skew", skews, [f"{skew:.1f}" for skew in skews]),
            ("visit", "Ranks a token may visit", range(self._fewest, self.ranks + 1), None),
            ("capacity", "Capacity factor", factors, ["none", *(f"{f:.2f}" for f in factors[1:])]),
            ("spare", "Spare experts per rank", range(MOST_SPARE + 1), None),
        ]

    def grid(self) -> dict[str, Sequence[Any]]:
        few = sorted({max(2, self._fewest), self.ranks})
        return {"skew": (0.0, 0.5, 1.0), "visit": few, "capacity": (0.0, 1.25), "spare": (0, 1)}

    @property
    def said(self) -> str:
        traffic = self.traffic
        return (
            f"{self.title}, skew {self.skew:g}: busiest rank / mean {traffic.busiest:.2f}; pairs "
            f"that leave their rank: {traffic.away(traffic.pairs_RR):,}; "
            f"copies of tokens for them: {traffic.away(traffic.copies_RR):,}; "
            f"dropped: {traffic.dropped:,}"
        )

    def asks(self) -> Question | None:
        moves: dict[str, Any] = {"spare": int(not self.spare)}
        what = "No spare experts" if self.spare else "One spare expert on each rank"
        if self.skew < 1 and not self.spare:  # else it is even as it is, and spares change nothing
            moves, what = {"skew": 1.0}, f"Skew 1 instead of {self.skew:g}"
        ask = (
            f"{what}: how many times the mean is the work of the busiest rank, from 1 (all have "
            f"the same) to {self.ranks} (one has all)? It is {self.traffic.busiest:.2f} at first."
        )
        return Question(ask, moves, lambda: self.traffic.busiest, self.ranks, 0.05, 1)

    @property
    def title(self) -> str:
        return f"Traffic: {self.ranks} ranks, {self.experts} experts, k = {self.k}"

    @property
    def traffic(self) -> Traffic:
        """Route every token with what the sliders now say, and count what travels."""
        R, E, K, M = self.ranks, self.experts, self.k, self.visit
        T, local = R * self.tokens, E // R
        place_E = torch.arange(1, E + 1, dtype=torch.float64)
        score_TE = (self._gumbel_TE[:T] - self.skew * place_E.log()).exp()
        best_TRK = score_TE.view(T, R, local).sort(-1, descending=True).values
        worth_TR = best_TRK[..., : min(local, -(-K // M))].sum(-1)
        allowed_TM = worth_TR.sort(dim=-1, descending=True, stable=True).indices[:, :M]
        allowed_TR = torch.zeros(T, R, dtype=torch.bool).scatter(1, allowed_TM, True)
        score_TE = score_TE.where(allowed_TR.repeat_interleave(local, 1), -1.0)
        expert_TK = score_TE.sort(dim=-1, descending=True, stable=True).indices[:, :K]
        chosen_TE = torch.zeros(T, E, dtype=torch.long).scatter(1, expert_TK, 1)
        if self.capacity > 0:
            room = max(1, int(self.capacity * T * K / E))
            kept_TE = chosen_TE * (chosen_TE.cumsum(0) <= room)
        else:
            kept_TE = chosen_TE
        to_TR = kept_TE.view(T, R, local).sum(-1)
        if self.spare:
            to_TR = self._in_turns(kept_TE)
        pairs_RR = to_TR.view(R, self.tokens, R).sum(1).double()
        copies_RR = (to_TR > 0).view(R, self.tokens, R).sum(1).double()
        return Traffic(pairs_RR, copies_RR, int((chosen_TE - kept_TE).sum()))

    def _in_turns(self, kept_TE: Tensor) -> Tensor:
        """Count the pairs of each token on each rank if popular experts lie on several."""
        load_E = kept_TE.sum(0).tolist()
        held = place(load_E, replicas(load_E, self.spare * self.ranks), self.ranks)
        to_TR = torch.zeros(len(kept_TE), self.ranks, dtype=torch.long)
        for e, ranks in enumerate(held):
            for turn, token in enumerate(kept_TE[:, e].nonzero()[:, 0].tolist()):
                to_TR[token, ranks[turn % len(ranks)]] += 1
        return to_TR

    def _draw_links(self, ax: Axes, sent_RR: np.ndarray) -> None:
        """Draw the ranks in a circle, each pair's link as wide as what travels on it, both ways."""
        angle_R = 2 * np.pi * np.arange(self.ranks) / self.ranks
        x_R, y_R = np.sin(angle_R), np.cos(angle_R)
        both_RR = sent_RR + sent_RR.T
        most = max(1, both_RR[~np.eye(self.ranks, dtype=bool)].max())
        from_N, to_N = np.tril_indices(self.ranks, -1)
        width_N = np.ceil(7 * both_RR[from_N, to_N] / most)
        for width in set(width_N[width_N > 0].tolist()):  # a line for each width, with gaps
            ends_N2 = np.stack([from_N, to_N], 1)[width_N == width]
            gaps_N1 = np.full((len(ends_N2), 1), np.nan)
            x, y = (np.append(at_R[ends_N2], gaps_N1, 1).ravel() for at_R in (x_R, y_R))
            ax.plot(x, y, color="#E69F00", lw=width, alpha=0.6)
        for a in range(self.ranks):
            ax.text(1.17 * x_R[a], 1.17 * y_R[a], str(a), ha="center", va="center", fontsize=9)
        ax.set(aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
        ax.set_title(f"links, as wide as the\ncopies on them (at most {most:.0f})")
        ax.axis("off")

    def figure(self) -> Figure:
        """Draw the matrix and the work of each rank."""
        traffic, R = self.traffic, self.ranks
        work_R = traffic.pairs_RR.sum(0).numpy()
        figure, (matrix, links, work) = panels(10, 4, 3, width_ratios=(4, 3, 3))
        self._draw_links(links, traffic.copies_RR.numpy())
        matrix.spines[:].set_visible(True)
        edges = np.arange(R + 1) - 0.5
        matrix.pcolormesh(edges, edges, traffic.pairs_RR.numpy(), cmap="cividis", vmin=0)
        matrix.invert_yaxis()
        matrix.set_aspect("equal")
        for to, from_ in np.ndindex(R, R):
            n = int(traffic.pairs_RR[from_, to])
            ink = "white" if 2 * n < traffic.pairs_RR.max() else "#111111"  # in any theme
            matrix.text(to, from_, str(n), ha="center", va="center", fontsize=8, color=ink)
        matrix.set(
            xlabel="to rank, and the work there", ylabel="from rank", yticks=range(R),
            xticks=range(R), xticklabels=[f"{r}\n{int(n)}" for r, n in enumerate(work_R)],
            title=f"{self.title}, skew {self.skew:g}",
        )  # fmt: skip
        matrix.tick_params("x", labelsize=10 if R < 9 else 7)
        work.bar(range(R), work_R, color="#0072B2")
        work.axhline(work_R.mean(), color=INK, ls="--", label="mean")
        work.set(
            xlabel="rank", ylabel="pairs to compute", xticks=range(R),
            title=f"busiest / mean {traffic.busiest:.2f}, dropped {traffic.dropped}",
        )  # fmt: skip
        work.set_ylim(top=1.2 * work.get_ylim()[1])  # the legend stands above the bars
        work.legend(frameon=False, fontsize=8, loc="upper right")
        for axes in (matrix, links, work):
            axes.title.set_fontsize(10)
        return figure
