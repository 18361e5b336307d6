"""The experts' queues: drag the capacity, change who comes first, and watch who is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
import traitlets as t
from torch import Tensor

from ...capacity import Priority, queue_rank
from ...routing import Routing
from ..viz import INK, QUIET, expert_colors
from .portable import HERE, PortableWidget, Question, bounded, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRIORITIES = get_args(Priority)
SHUFFLES = 7  # orders of the batch besides the one given


class ExpertQueues(PortableWidget):
    """Fill the experts' queues choice by choice, and drop whoever finds no place.

    The capacity is a slider in places, who comes first is a menu, and the batch can be shuffled:
    the same tokens with the same choices then meet another fate. All of it is computed in the
    page, so it answers without a kernel; here in Python is the same, as ``routing``.

    ::

        widget = ExpertQueues(routing, tokens, capacity=4)
        widget.priority = "choice"     # and the page follows
        widget.routing.keep_N          # who found a place

    Args:    routing: of a router in which tokens choose; its dropped pairs count as never sent.
             tokens: as they should be shown. capacity: places of each expert (default: an equal
             share of the pairs). priority: see :func:`moe_lite.routers.queue_rank`. shuffle: which
             order of the batch, 0 being the given one. arrived: how many choices have come
             (default: all). token: the one shown, -1 for none.
    Raises:  ValueError unless there are 1 to 200 tokens, as many texts, 2 to 16 experts and 1 to
             4 choices of each token; traitlets.TraitError for a value that cannot be.
    """

    _esm = HERE / "expert_queues.js"
    _css = HERE / "expert_queues.css"

    tokens = t.List(t.Unicode()).tag(sync=True)
    experts = t.List(t.List(t.Int())).tag(sync=True)
    gates = t.List(t.List(t.Float())).tag(sync=True)
    sent = t.List(t.List(t.Bool())).tag(sync=True)
    orders = t.List(t.List(t.Int())).tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)
    most = t.Int().tag(sync=True)

    capacity = t.Int(1).tag(sync=True)
    priority = t.Enum(PRIORITIES, "position").tag(sync=True)
    shuffle = t.Int(0).tag(sync=True)
    arrived = t.Int(0).tag(sync=True)
    token = t.Int(-1).tag(sync=True)

    def __init__(
        self,
        routing: Routing,
        tokens: Sequence[str],
        *,
        capacity: int | None = None,
        priority: str = "position",
        shuffle: int = 0,
        arrived: int | None = None,
        token: int = -1,
    ):
        T, E, K = routing.num_tokens, routing.num_experts, routing.per_token
        if K is None or not (1 <= T <= 200 and 2 <= E <= 16 and 1 <= K <= 4):
            raise ValueError(
                f"the queues show 1 to 200 tokens that each choose 1 to 4 of 2 to 16 experts, not "
                f"{T} tokens that choose {K or 'a varying number'} of {E}"
            )
        if len(tokens) != T:
            raise ValueError(f"{T} tokens were routed, but there are {len(tokens)} texts")
        routing = routing.detach()
        # Rounded once, here, so that page and Python compare the same gates.
        self._routing = replace(routing, gate_N=routing.gate_N.double().round(decimals=4))
        keep_N = routing.keep_N
        sent_N = torch.ones(T * K, dtype=torch.bool) if keep_N is None else keep_N
        generator = torch.Generator().manual_seed(0)
        shuffled = [torch.randperm(T, generator=generator) for _ in range(SHUFFLES)]
        self._orders = [torch.arange(T), *shuffled]
        demand = int(routing.expert_N[sent_N].bincount(minlength=E).max())
        share = -(-T * K // E)
        super().__init__(
            tokens=list(tokens),
            experts=routing.expert_N.view(T, K).tolist(),
            gates=self._routing.gate_N.view(T, K).tolist(),
            sent=sent_N.view(T, K).tolist(),
            orders=[order_T.tolist() for order_T in self._orders],
            colors=expert_colors(E),
            most=max(demand, 2 * share),
            capacity=share if capacity is None else capacity,
            priority=priority,
            shuffle=shuffle,
            arrived=int(sent_N.sum()) if arrived is None else arrived,
            token=token,
        )

    @t.validate("capacity", "shuffle", "arrived", "token")
    def _possible(self, proposal: Any) -> int:
        sent, T = sum(map(sum, self.sent)), len(self.tokens)
        return bounded(
            proposal, capacity=(1, self.most), shuffle=(0, SHUFFLES), arrived=(0, sent),
            token=(-1, T - 1),
        )  # fmt: skip

    def asks(self) -> Question | None:
        T, sent = len(self.tokens), sum(map(sum, self.sent))
        order = "choice" if self.priority != "choice" else "position"
        ask = (
            f"Filled by {order} instead of by {self.priority}, with {self.capacity} places each: "
            "how many tokens are left without any expert?"
        )

        def alone() -> int:
            keep_TK = self.routing.keep_N.view(T, -1)  # type: ignore[union-attr]
            return int((~keep_TK.any(1)).sum())

        given = {"capacity": self.capacity, "shuffle": self.shuffle}
        return Question(ask, {**given, "priority": order, "arrived": sent}, alone, T)

    @property
    def title(self) -> str:
        T, E, K = len(self.tokens), len(self.colors), len(self.experts[0])
        return f"Queues: {T} tokens, {K} of {E} experts each, {self.capacity} places"

    @property
    def rank_N(self) -> Tensor:
        """Rank every choice in its expert's queue, in the order now chosen; -1: never sent."""
        order_T, routing = self._orders[self.shuffle], self._routing
        T, K = len(order_T), len(self.experts[0])

        def moved(x_N: Tensor) -> Tensor:
            return x_N.view(T, K)[order_T]

        there = Routing.from_choices(
            routing.logits_TE[order_T], routing.probs_TE[order_T], moved(routing.expert_N),
            moved(routing.gate_N),
        ).kept(moved(torch.tensor(self.sent)).view(-1))  # fmt: skip
        rank_TK = queue_rank(there, cast(Priority, self.priority)).view(T, K)
        return torch.empty_like(rank_TK).index_copy(0, order_T, rank_TK).view(-1)

    @property
    def routing(self) -> Routing:
        """Return the routing once all have come: tokens as given, the late ones dropped."""
        rank_N = self.rank_N
        return replace(self._routing, keep_N=(rank_N >= 0) & (rank_N < self.capacity))

    def figure(self) -> Figure:
        """Draw the queues, all choices come, with the line behind the last place."""
        from matplotlib.patches import FancyBboxPatch

        E, K, rank_N = len(self.colors), len(self.experts[0]), self.rank_N.tolist()
        box: dict[str, Any] = {
            "fc": "none", "ec": QUIET, "ls": ":", "boxstyle": "round,pad=0,rounding_size=0.08"
        }  # fmt: skip
        longest = max(self.capacity, *(rank + 1 for rank in rank_N))
        figure, ax = panels(10, 0.9 + 0.42 * E)
        for e in range(E):
            for place in range(self.capacity):
                ax.add_patch(FancyBboxPatch((place + 0.1, e - 0.33), 0.8, 0.66, lw=0.8, **box))
        for n, rank in enumerate(rank_N):
            if rank < 0:
                continue
            e, kept = self.experts[n // K][n % K], rank < self.capacity
            text = self.tokens[n // K].replace("\n", "↵").replace("$", r"\$").strip() or "␣"
            ax.fill_between([rank + 0.1, rank + 0.9], e - 0.33, e + 0.33, color=self.colors[e],
                            alpha=0.35 if kept else 0.0, lw=0)  # fmt: skip
            ax.text(rank + 0.5, e, text[:9] if kept else f"✗ {text[:7]}", ha="center", va="center",
                    color=INK if kept else QUIET, fontsize=min(9, 130 / longest))  # fmt: skip
        ax.axvline(self.capacity, color=INK, lw=2)
        ax.set(xlim=(0, longest), ylim=(E - 0.4, -0.6), yticks=range(E), ylabel="expert",
               xlabel="place in the queue (right of the line, ✗: dropped)")  # fmt: skip
        ax.set_xticks(range(0, longest + 1, 1 + longest // 20))
        ax.set_title(f"{self.title}, by {self.priority}", fontsize=10, loc="left")
        return figure
