"""Capacity: queues of a limited length before each expert, and who is turned away."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .routing import Routing

Priority = Literal["position", "choice", "gate"]


def capacity(num_tokens: int, num_experts: int, factor: float, top_k: int = 1) -> int:
    """Return the places in an expert's queue: factor times its even share of the pairs, rounded up.

    >>> capacity(num_tokens=1024, num_experts=8, factor=1.25)
    160

    Raises: ValueError if the factor is not above 0 and at most 1e9, or a number cannot be.
    Source: Fedus, Zoph, Shazeer 2021 (arXiv:2101.03961), eq. 3, for top_k = 1.
    """
    if not 0 < factor <= 1e9:
        raise ValueError(f"the capacity factor must be above 0 and at most 1e9, not {factor}")
    if num_tokens < 0 or num_experts < 1 or top_k < 1:
        raise ValueError(f"no capacity for {num_tokens=}, {num_experts=}, {top_k=}")
    # Rounding must not open a place: 1.1 * 10 is 11.000000000000002.
    return math.ceil(round(factor * top_k * num_tokens / num_experts, 9))


def count_groups(num_tokens: int, group_size: int | None) -> int:
    """Return the number of groups of so many tokens; None makes one of all."""
    if group_size is None:
        return 1
    if group_size < 1 or num_tokens % group_size:
        raise ValueError(f"groups of {group_size} do not divide {num_tokens} tokens")
    return num_tokens // group_size


def queue_rank(
    routing: Routing, priority: Priority = "position", group_size: int | None = None
) -> Tensor:
    """Return each pair's place in its expert's queue: int64 (N,), 0 is first, -1 is not in it.

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
    # 1. who stands in front of whom
    order_N = torch.arange(N, device=device)
    if priority == "choice":
        if routing.per_token is None:
            raise ValueError("tokens that are chosen by experts have no first and second choice")
        order_N = order_N.view(-1, routing.per_token).T.reshape(-1)
    elif priority == "gate":
        order_N = routing.gate_N.detach().sort(descending=True, stable=True).indices
    # 2. one queue for each expert of each group, and a last one for those that do not stand
    size = routing.num_tokens // groups if groups else 1
    queue_N = routing.token_N // max(size, 1) * routing.num_experts + routing.expert_N
    if routing.keep_N is not None:
        queue_N = queue_N.where(routing.keep_N, groups * routing.num_experts)
    # 3. queue behind queue: a place is the distance from where the own queue begins
    sorted_N, by_queue_N = queue_N.index_select(0, order_N).sort(stable=True)
    begin_N = torch.searchsorted(sorted_N, sorted_N)
    place_N = torch.arange(N, device=device) - begin_N
    rank_N = torch.empty_like(place_N).scatter_(0, order_N.index_select(0, by_queue_N), place_N)
    return rank_N if routing.keep_N is None else rank_N.where(routing.keep_N, -1)


def limit(
    routing: Routing, factor: float, priority: Priority = "position", group_size: int | None = None
) -> Routing:
    """Return a routing without the pairs whose rank in the queue reaches their expert's capacity.

    A dropped token is not lost: this layer adds nothing to it, and the residual carries it on.

    Args:    as in :func:`capacity` (of each group) and :func:`queue_rank`.
    Returns: the routing with fewer pairs kept; nothing else changes, not even the gates.
    Raises:  ValueError as those two do.
    Source:  Lepikhin et al. 2020 (arXiv:2006.16668), section 2.2; Fedus, Zoph, Shazeer 2021
             (arXiv:2101.03961), section 2.2.
    """
    # each group has its own queues, as long as its own share
    groups = count_groups(routing.num_tokens, group_size)
    pairs = len(routing.token_N) // max(groups, 1)
    C = capacity(pairs, routing.num_experts, factor)
    return routing.kept(queue_rank(routing, priority, group_size) < C)
