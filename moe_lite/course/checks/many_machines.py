"""The checks of chapter 14: how does it get bigger than a machine?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .verdict import FINITE_FILL, Check, Mistakes, far_below, randn


def check_traffic(traffic: Callable[[Tensor, int], Tensor]) -> None:
    """Check the traffic matrix: (expert_RTK, num_experts) -> pairs_RR, [from, to]."""

    def right(expert_RTK: Tensor, E: int) -> Tensor:
        R = len(expert_RTK)
        return torch.stack([(e * R // E).flatten().bincount(minlength=R) for e in expert_RTK])

    def mistakes(expert_RTK: Tensor, E: int) -> Mistakes:
        (R, T, K), pairs_RR = expert_RTK.shape, right(expert_RTK, E)
        copies_RR = torch.zeros(R, R, dtype=torch.long)
        for r, t in ((r, t) for r in range(R) for t in range(T)):
            copies_RR[r, (expert_RTK[r, t] * R // E).unique()] += 1

        def counts(to_RTK: Tensor, size: int) -> Tensor:
            return torch.stack([to.flatten().bincount(minlength=size)[:size] for to in to_RTK])

        return [
            ("rows and columns are exchanged: [from, to] has the sender first", pairs_RR.T),
            ("these are tokens; two experts of one token on one rank are two pairs", copies_RR),
            ("experts are neighbours; here dealt like cards", counts(expert_RTK % R, R)),
            ("what stays at home is in the matrix too", pairs_RR - pairs_RR.diagonal().diag()),
            ("counts for each expert; several experts live on one rank", counts(expert_RTK, E)),
            ("divide an expert's number by how many experts a rank has, not by the ranks",
             counts(expert_RTK // R, R) if E <= R * R else None),
            ("the experts' numbers were taken for ranks", counts(expert_RTK, R)),
            ("only first choices travel here; all K are pairs", right(expert_RTK[..., :1], E)),
            ("this is what each rank receives from all; keep the senders apart", pairs_RR.sum(0)),
            ("this is what each rank sends to all; keep the receivers apart", pairs_RR.sum(1)),
            ("this says who sends to whom; count how many pairs", pairs_RR.clamp(max=1)),
            ("these are shares of what a rank sends; count pairs", pairs_RR / (T * K))]  # fmt: skip

    check = Check("traffic", traffic, right, mistakes,
                  "not the number of (token, expert) pairs from each rank to each")  # fmt: skip
    # Rank 0: token 0 to experts 0 and 1 (both at home), token 1 to 1 and 3. Rank 1: 0, 2 and 0, 1.
    check.on("2 ranks, experts [[[0, 1], [1, 3]], [[0, 2], [0, 1]]], E = 4",
             torch.tensor([[[0, 1], [1, 3]], [[0, 2], [0, 1]]]), 4)  # fmt: skip
    check.on("2 ranks, experts [[[0], [1]], [[1], [0]]], E = 4: none is on the last rank",
             torch.tensor([[[0], [1]], [[1], [0]]]), 4)  # fmt: skip
    for R, E, K in ((3, 6, 2), (4, 16, 4), (2, 2, 1), (1, 4, 2), (4, 4, 2)):
        scores = randn(R * E, R, 7, E) - torch.arange(E) / E
        check.on(f"ranks: {R}, of 7 tokens, {E} experts, K = {K}", scores.topk(K).indices, E)
    check.passed("a row for each sender, a column for each receiver, a pair for each choice.")


Splits = tuple[list[int], list[int], list[int], list[int]]


def check_round_trip(round_trip: Callable[[Tensor, int], Splits]) -> None:
    """Check the split sizes of both ways: (pairs_RR, rank) -> (send, receive, send, receive)."""

    def right(pairs_RR: Tensor, rank: int) -> Splits:
        row, column = pairs_RR[rank].tolist(), pairs_RR[:, rank].tolist()
        return row, column, column, row

    def mistakes(pairs_RR: Tensor, rank: int) -> Mistakes:
        row, column, _, _ = right(pairs_RR, rank)
        away = [[n if r != rank else 0 for r, n in enumerate(part)] for part in (row, column)]
        first = "a rank sends its row of the matrix and receives its column"
        other = right(pairs_RR, (rank + 1) % len(pairs_RR))
        return [
            ("on the way back the roles are exchanged", (row, column, row, column)),
            (first, (column, row, row, column)),
            (first, (column, row, column, row)),
            ("what stays at home is a part of it too", (away[0], away[1], away[1], away[0])),
            ("nobody receives what it sends itself; ask the others' rows", (row, row, row, row)),
            ("these are the sizes of another rank", other)]  # fmt: skip

    check = Check("round_trip", round_trip, right, mistakes,
                  "not the row out, the column in, and both exchanged for the way back",
                  parts=("sends out", "receives out", "sends back", "receives back"))  # fmt: skip
    small = torch.tensor([[3, 1], [2, 4]])
    for rank in (0, 1):
        check.on(f"pairs [[3, 1], [2, 4]], rank {rank}", small, rank)
    check.on("three ranks of which one sends nothing, rank 2",
             torch.tensor([[0, 0, 0], [2, 0, 5], [1, 3, 0]]), 2)  # fmt: skip
    for R in (4, 5):
        check.on(f"{R} ranks, rank 1", randn(R, R, R).mul(5).abs().long(), 1)
    check.passed("row out and column in, then column out and row in; everybody gets his own.")


def check_rank_weights(rank_weights: Callable[[Tensor], Tensor]) -> None:
    """Check the weights of the ranks' mean losses, where DDP averages: (tokens_R) -> weight_R."""

    def mistakes(tokens_R: Tensor) -> Mistakes:
        R, share_R = len(tokens_R), tokens_R / tokens_R.sum()
        busy = int((tokens_R > 0).sum())
        return [
            ("a mean of means: a token on a rank with few of them counts more", torch.ones(R)),
            ("DDP divides by the ranks too, so the gradient is R times too small", share_R),
            ("each rank has a mean already, not a sum", torch.ones(R) * R / tokens_R.sum()),
            ("a rank with few tokens would count more, not less",
             R / tokens_R / (1 / tokens_R).sum() if tokens_R.all() else None),
            ("DDP divides by the number of ranks; R² is once too often", share_R * R * R),
            ("the tokens themselves are no weights: the gradient would grow", tokens_R.float()),
            ("a rank without a token has nothing to add: its weight is 0",
             (R * share_R).where(tokens_R > 0, 1)),
            ("DDP divides by all ranks, also by those without a token", share_R * busy),
        ]  # fmt: skip

    check = Check("rank_weights", rank_weights, lambda n_R: len(n_R) * n_R / n_R.sum(), mistakes,
                  "so weighed, the ranks' average is not the mean of all tokens")  # fmt: skip
    for tokens in ([30, 10], [7, 0, 3], [5, 5, 5, 5], [4, 1, 2], [9], [0, 0, 6, 2, 1]):
        check.on(f"tokens {tokens}", torch.tensor(tokens))
    check.passed("R times a rank's share of the tokens: the mean over all of them, everywhere.")


Leaving = Callable[[Tensor, Tensor, int, int, int], Tensor]


def check_copies_leaving(copies_leaving: Leaving) -> None:
    """Check copies that leave a node: (score_TE, home_T, nodes, top_k, limit) -> copies_T."""

    def chosen(
        score_TE: Tensor,
        nodes: int,
        k: int,
        limit: int,
        take: int = 0,
        lost: float = -torch.inf,
        extra_TN: Tensor | float = 0.0,
    ) -> Tensor:
        """Choose experts, a node judged by its `take` best; others' scores become `lost`."""
        node_TNE = score_TE.view(len(score_TE), nodes, -1)
        size = node_TNE.shape[-1]
        take = min(take or k // limit, size)
        kept_TM = (node_TNE.topk(take).values.sum(-1) + extra_TN).topk(limit).indices
        lost_TN = torch.ones(len(score_TE), nodes, dtype=torch.bool).scatter(1, kept_TM, False)
        allowed_TE = score_TE.masked_fill(lost_TN.repeat_interleave(size, 1), lost)
        return allowed_TE.topk(k).indices

    def others(node_TK: Tensor, home_T: Tensor, nodes: int) -> Tensor:
        """Count the nodes that hold one of a token's experts, without its own."""
        there_TN = torch.zeros(len(node_TK), nodes, dtype=torch.bool).scatter(1, node_TK, True)
        return there_TN.scatter(1, home_T[:, None], False).sum(1)

    def right(score_TE: Tensor, home_T: Tensor, nodes: int, k: int, limit: int) -> Tensor:
        size = score_TE.shape[1] // nodes
        return others(chosen(score_TE, nodes, k, limit) // size, home_T, nodes)

    def mistakes(score_TE: Tensor, home_T: Tensor, nodes: int, k: int, limit: int) -> Mistakes:
        size = score_TE.shape[1] // nodes
        node_TK = chosen(score_TE, nodes, k, limit) // size
        away_TK = node_TK != home_T[:, None]
        spread_TK = chosen(score_TE, nodes, k, limit) % nodes
        every_T = away_TK.any(1)

        def by(take: int, lost: float = -torch.inf, of: Tensor = score_TE) -> Tensor:
            return others(chosen(of, nodes, k, limit, take, lost) // size, home_T, nodes)

        best = "a node is judged by its best k // limit experts"
        home_TN = 1e3 * torch.nn.functional.one_hot(home_T, nodes)
        node_TNE = score_TE.view(len(score_TE), nodes, -1)
        kept_TM = node_TNE.topk(min(k // limit, size)).values.sum(-1).topk(limit).indices
        return [
            ("all nodes were allowed: keep the best few, then choose among their experts",
             others(score_TE.topk(k).indices // size, home_T, nodes)),
            ("a node gets one copy, however many of its experts a token wants", away_TK.sum(1)),
            ("what stays in the token's own node does not leave it",
             others(node_TK, torch.full_like(home_T, nodes), nodes + 1)),
            ("a node that is allowed but not chosen gets no copy", others(kept_TM, home_T, nodes)),
            (f"{best} together, not by one", by(1)),
            (f"{best}, not by all that it has", by(size)),
            *((f"{best}, not by {n}", by(m)) for n, m in (
                ("two, whatever k and limit are", 2), ("k", k), ("limit of them", limit),
                ("k / limit rounded up", -(-k // limit)))),
            ("a score may be below zero: 0 keeps no expert out, minus infinity does", by(0, 0.0)),
            ("the scores are added as they are: an absolute value makes the worst the best",
             by(0, of=score_TE.abs())),
            ("the scores are added as they are: a softmax before makes other sums",
             by(0, of=score_TE.softmax(1))),
            ("a token's own node is judged like the others, not kept whatever it is worth",
             others(chosen(score_TE, nodes, k, limit, extra_TN=home_TN) // size, home_T, nodes)),
            ("subtract one only where the own node is among them",
             others(node_TK, torch.full_like(home_T, nodes), nodes + 1) - 1),
            ("experts are neighbours; here they are dealt out like cards",
             others(spread_TK, home_T, nodes)),
            ("a token may need two copies and more: how many nodes, not whether one", every_T),
            ("keep the tokens apart: this is their sum",
             right(score_TE, home_T, nodes, k, limit).sum()),
        ]  # fmt: skip

    check = Check("copies_leaving", copies_leaving, right, mistakes,
                  "not one copy for each other node that holds a chosen expert")  # fmt: skip
    # The nodes' best two: 8 + 3, 9 + 1, 7 + 6. So node 2, experts 4 and 5, and one copy.
    check.on("scores [[8, 3, 9, 1, 7, 6]], home node 0, 3 nodes, K = 2, limit 1",
             torch.tensor([[8.0, 3, 9, 1, 7, 6]]), torch.tensor([0]), 3, 2, 1)  # fmt: skip
    check.on("scores [[9, 8, 7, 1, 2, 3]], home node 2, 3 nodes, K = 2, limit 2",
             torch.tensor([[9.0, 8, 7, 1, 2, 3]]), torch.tensor([2]), 3, 2, 2)  # fmt: skip
    sizes = ((6, 16, 4, 4, 2), (9, 24, 6, 6, 3), (20, 32, 8, 8, 4), (8, 12, 3, 2, 1),
             (20, 32, 4, 6, 2), (20, 24, 4, 5, 2), (20, 32, 4, 4, 3))  # fmt: skip
    for seed, (T, E, nodes, k, limit) in enumerate(sizes):
        home_T = randn(seed + 7, T, nodes).argmax(1)
        check.on(f"{T} tokens, {E} experts on {nodes} nodes, K = {k}, limit {limit}",
                 randn(seed, T, E), home_T, nodes, k, limit)  # fmt: skip
    check.on("9 tokens whose scores lie around -200, 16 experts on 4 nodes, K = 4, limit 2",
             far_below(8, 9, 16), randn(9, 9, 4).argmax(1), 4, 4, 2,
             otherwise=FINITE_FILL)  # fmt: skip
    check.passed("the best few nodes, the best experts there, and a copy for each other node.")
