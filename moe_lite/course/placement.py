"""Where experts lie: popular ones more than once, and each rank with as much to do.

Source: DeepSeek-AI's load balancer (github.com/deepseek-ai/EPLB), its global policy.
"""

from __future__ import annotations

from collections.abc import Sequence


def replicas(load_E: Sequence[float], spare: int) -> list[int]:
    """Return how many copies each expert gets if ``spare`` more than one of each fit.

    One after the other goes to the expert with the largest load per copy, the first of equals.

    >>> replicas([9, 4, 1, 2], 2)
    [3, 1, 1, 1]
    >>> replicas([9, 8, 1, 2], 2)
    [2, 2, 1, 1]
    """
    copies_E = [1] * len(load_E)
    for _ in range(spare):
        share_E = [load / n for load, n in zip(load_E, copies_E, strict=True)]
        copies_E[share_E.index(max(share_E))] += 1
    return copies_E


def place(load_E: Sequence[float], copies_E: Sequence[int], ranks: int) -> list[list[int]]:
    """Return the ranks that hold a copy of each expert, as many on each rank.

    Heaviest copy first, each to the rank that has least to do and still has room.

    >>> place([9, 4, 1, 2], [2, 2, 1, 1], 2)
    [[0, 1], [0, 1], [1], [0]]

    Raises: ValueError if the copies cannot lie evenly on the ranks.
    """
    if sum(copies_E) % ranks:
        raise ValueError(f"{sum(copies_E)} copies do not lie evenly on {ranks} ranks")
    room_R, work_R = [sum(copies_E) // ranks] * ranks, [0.0] * ranks
    held: list[list[int]] = [[] for _ in load_E]
    share = {(e, c): load_E[e] / n for e, n in enumerate(copies_E) for c in range(n)}
    for e, _ in sorted(share, key=lambda copy: -share[copy]):  # equals stay in their order
        rank = min((r for r in range(ranks) if room_R[r]), key=lambda r: work_R[r])
        room_R[rank] -= 1
        work_R[rank] += load_E[e] / copies_E[e]
        held[e].append(rank)
    return held
