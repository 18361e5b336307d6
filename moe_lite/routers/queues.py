"""Queues of a limited length before each expert, and the two routers that brought them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..routing import Routing
from .top_k import TopKRouter

Priority = Literal["position", "choice", "gate"]


def capacity(num_tokens: int, num_experts: int, factor: float, top_k: int = 1) -> int:
    """Give the places in an expert's queue: factor times its even share of the pairs, rounded up.

    >>> capacity(num_tokens=1024, num_experts=8, factor=1.25)
    160

    Raises: ValueError if the factor is not above 0.
    Source: Fedus, Zoph, Shazeer 2021 (arXiv:2101.03961), eq. 3, for top_k = 1.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"the capacity factor must be above 0 and finite, not {factor}")
    # Rounding must not open a place: 1.1 * 10 is 11.000000000000002.
    return math.ceil(round(factor * top_k * num_tokens / num_experts, 9))


def queue_rank(
    routing: Routing, priority: Priority = "position", group_size: int | None = None
) -> Tensor:
    """Give each pair's place in its expert's queue: int64 (N,), 0 is first, -1 is not in it.

    A pair that was dropped before (padding, say) does not stand in a queue.

    >>> r = Routing.from_choices(
    ...     torch.zeros(3, 2), torch.full((3, 2), 0.5),
    ...     torch.tensor([[0, 1], [1, 0], [1, 0]]), torch.full((3, 2), 0.5))
    >>> queue_rank(r).tolist()  # expert 0 sees tokens 0, 1, 2; expert 1 the same
    [0, 0, 1, 1, 2, 2]
    >>> queue_rank(r, "choice").tolist()  # expert 1's first choices are tokens 1 and 2
    [0, 2, 0, 1, 1, 2]

    Args:   priority: who stands in front. "position": earlier tokens; "choice": every token's
            first choice before any second one, then by position; "gate": the larger gate.
            group_size: tokens per group; each group has queues of its own. None: one group.
    Raises: ValueError for another priority, a group size below 1 or one that does not divide
            the tokens, or "choice" where experts choose.
    Source: "choice": Lepikhin et al. 2020 (arXiv:2006.16668), algorithm 1; "gate": Riquelme et
            al. 2021 (arXiv:2106.05974), section 4.1, batch prioritized routing.
    """
    if priority not in get_args(Priority):
        raise ValueError(f"priority must be one of {get_args(Priority)}, not {priority!r}")
    groups = count_groups(routing.num_tokens, group_size)
    N, device = len(routing.token_N), routing.token_N.device
    order_N = torch.arange(N, device=device)
    if priority == "choice":
        if routing.per_token is None:
            raise ValueError("tokens that are chosen by experts have no first and second choice")
        order_N = order_N.view(-1, routing.per_token).T.reshape(-1)
    elif priority == "gate":
        order_N = routing.gate_N.detach().sort(descending=True, stable=True).indices
    # One queue for each expert of each group, and a last one for those that do not stand.
    size = routing.num_tokens // groups if groups else 1
    queue_N = routing.token_N // max(size, 1) * routing.num_experts + routing.expert_N
    if routing.keep_N is not None:
        queue_N = queue_N.where(routing.keep_N, groups * routing.num_experts)
    sorted_N, by_queue_N = queue_N.index_select(0, order_N).sort(stable=True)
    begin_N = torch.searchsorted(sorted_N, sorted_N)  # where its queue begins
    place_N = torch.arange(N, device=device) - begin_N
    rank_N = torch.empty_like(place_N).scatter_(0, order_N.index_select(0, by_queue_N), place_N)
    return rank_N if routing.keep_N is None else rank_N.where(routing.keep_N, -1)


def count_groups(num_tokens: int, group_size: int | None) -> int:
    """Count the groups of this many tokens."""
    if group_size is None:
        return 1
    if group_size < 1 or num_tokens % group_size:
        raise ValueError(f"groups of {group_size} do not divide {num_tokens} tokens")
    return num_tokens // group_size


def limit(
    routing: Routing,
    factor: float,
    priority: Priority = "position",
    group_size: int | None = None,
) -> Routing:
    """Drop the pairs that find their expert full: those whose rank reaches its capacity.

    A dropped token is not lost: this layer adds nothing to it, and the residual carries it on.

    Args:    as in :func:`capacity` (of each group) and :func:`queue_rank`.
    Returns: the routing with fewer pairs kept; nothing else changes, not even the gates.
    Raises:  ValueError as those two do.
    Source:  Lepikhin et al. 2020 (arXiv:2006.16668), section 2.2; Fedus, Zoph, Shazeer 2021
             (arXiv:2101.03961), section 2.2.
    """
    groups = count_groups(routing.num_tokens, group_size)
    pairs = len(routing.token_N) // max(groups, 1)
    C = capacity(pairs, routing.num_experts, factor)
    return routing.kept(queue_rank(routing, priority, group_size) < C)


class Capacity(nn.Module):
    """Give the experts of any router a capacity.

    >>> gate = Capacity(TopKRouter(4, num_experts=2, top_k=1), factor=1.0)
    >>> gate(torch.ones(6, 4)).keep_N.tolist()  # all six want the same one, which takes three
    [True, True, True, False, False, False]

    Args, raises, source: as in :func:`limit`.
    """

    def __init__(
        self,
        router: nn.Module,
        factor: float,
        priority: Priority = "position",
        group_size: int | None = None,
    ):
        super().__init__()
        capacity(1, 1, factor)  # complains about a factor that cannot be
        self.router, self.factor = router, factor
        self.priority, self.group_size = priority, group_size
        self.reads = tuple({"mask_T", *getattr(router, "reads", ())})

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None, **read: Tensor) -> Routing:
        if "mask_T" in getattr(self.router, "reads", ()):
            read["mask_T"] = mask_T  # type: ignore[assignment]
        routing = self.router(x_TD, **read).masked(mask_T)
        return limit(routing, self.factor, self.priority, self.group_size)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, priority={self.priority!r}, group_size={self.group_size}"


class SwitchRouter(TopKRouter):
    """Send each token to its one best expert, if that has a place left.

    The gate is the expert's probability, not divided by itself: it would be a constant 1, and
    the router would learn nothing from the language model's loss.

    >>> router = SwitchRouter(4, num_experts=8, capacity_factor=1.0)
    >>> router(torch.randn(16, 4)).load_E().max() <= 2
    tensor(True)

    Args:    capacity_factor, group_size: as in :func:`limit`.
    Shapes:  weight (E, D); N = T.
    Raises:  ValueError if the factor is not above 0, or the width differs.
    Source:  Fedus, Zoph, Shazeer 2021 (arXiv:2101.03961), section 2 and eq. 3.
    """

    reads = ("mask_T",)

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        capacity_factor: float = 1.25,
        group_size: int | None = None,
    ):
        super().__init__(hidden_size, num_experts, 1, renormalize=False)
        capacity(1, 1, capacity_factor)
        self.capacity_factor, self.group_size = capacity_factor, group_size

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        routing = super().forward(x_TD).masked(mask_T)
        return limit(routing, self.capacity_factor, group_size=self.group_size)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, capacity_factor={self.capacity_factor}"


class GShardRouter(TopKRouter):
    """Send each token to its best expert and, by chance, to its second; both need a place.

    While training, the second is asked with a probability of twice its gate (of the two that
    sum to 1), at most 1: what would hardly count takes nobody's place. All first choices are
    seated before any second one. In evaluation nothing is left to chance, every second is asked.

    >>> routing = GShardRouter(4, num_experts=8)(torch.randn(16, 4))
    >>> routing.per_token, routing.keep_N.shape
    (2, torch.Size([32]))

    Args:    capacity_factor: an expert's places over the even share of *tokens*, T / E, so that
             2 is just enough for all pairs at balance. group_size: as in :func:`limit`.
    Shapes:  weight (E, D); N = 2T.
    Raises:  ValueError if the factor is not above 0, there is but one expert, or the width
             differs.
    Source:  Lepikhin et al. 2020 (arXiv:2006.16668), algorithm 1; a second choice that is not
             asked does not stand in the queue, as in the authors' code. Its loss is
             :func:`moe_lite.losses.load_balancing_loss` with choices=1.
    """

    reads = ("mask_T",)

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        capacity_factor: float = 2.0,
        group_size: int | None = None,
    ):
        super().__init__(hidden_size, num_experts, 2)
        capacity(1, 1, capacity_factor)
        self.capacity_factor, self.group_size = capacity_factor, group_size

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        routing = super().forward(x_TD).masked(mask_T)
        if self.training:
            gate_T2 = routing.gate_N.detach().view(-1, 2)
            asked_T2 = torch.rand_like(gate_T2) < 2 * gate_T2
            asked_T2[:, 0] = True
            routing = routing.kept(asked_T2.view(-1))
        return limit(routing, self.capacity_factor / 2, "choice", self.group_size)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, capacity_factor={self.capacity_factor}"
