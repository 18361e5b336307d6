"""The checks of chapter 14: how does it get bigger than a machine?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...config import MixtralConfig
from .verdict import Check, Mistakes, fit, number, randn, refuse


def _in_use(E: int, K: int, T: int) -> float:
    return E * (1 - (1 - K / E) ** T)


def _parameters(config: MixtralConfig) -> tuple[int, int, int]:
    """Count what every token reads, the experts, and an input embedding that is nothing else.

    Written anew: cost.py lives on this floor, and neighbours do not import each other.
    """
    D, L, E = config.hidden_size, config.num_hidden_layers, config.num_local_experts
    assert config.head_dim is not None
    heads = config.num_attention_heads + config.num_key_value_heads
    layer = 2 * D * heads * config.head_dim + E * D + 2 * D
    table = config.vocab_size * D
    experts = L * E * 3 * D * config.intermediate_size
    return L * layer + D + table, experts, 0 if config.tie_word_embeddings else table


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
            ("the experts' numbers were taken for ranks", counts(expert_RTK, R)),
            ("only first choices travel here; all K are pairs", right(expert_RTK[..., :1], E)),
            ("this is what each rank receives from all; keep the senders apart", pairs_RR.sum(0)),
            ("this is what each rank sends to all; keep the receivers apart", pairs_RR.sum(1)),
            ("this says who sends to whom; count how many pairs", pairs_RR.clamp(max=1)),
            ("these are shares of what a rank sends; count pairs", pairs_RR / (T * K)),
        ]  # fmt: skip

    check = Check("traffic", traffic, right, mistakes,
                  "not the number of (token, expert) pairs from each rank to each")  # fmt: skip
    # Rank 0: token 0 to experts 0 and 1 (both at home), token 1 to 1 and 3. Rank 1: 0, 2 and 0, 1.
    check.on("2 ranks, experts [[[0, 1], [1, 3]], [[0, 2], [0, 1]]], E = 4",
             torch.tensor([[[0, 1], [1, 3]], [[0, 2], [0, 1]]]), 4)  # fmt: skip
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
            ("these are the sizes of another rank", other),
        ]  # fmt: skip

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
            ("DDP divides by all ranks, also by those without a token", share_R * busy),
        ]  # fmt: skip

    check = Check("rank_weights", rank_weights, lambda n_R: len(n_R) * n_R / n_R.sum(), mistakes,
                  "so weighed, the ranks' average is not the mean of all tokens")  # fmt: skip
    for tokens in ([30, 10], [7, 0, 3], [5, 5, 5, 5], [4, 1, 2], [9], [0, 0, 6, 2, 1]):
        check.on(f"tokens {tokens}", torch.tensor(tokens))
    check.passed("R times a rank's share of the tokens: the mean over all of them, everywhere.")


def check_distinct_experts(distinct_experts: Callable[[int, int, int], float]) -> None:
    """Check the expected number of experts in use: (experts, top_k, tokens) -> float."""

    def mistakes(E: int, K: int, T: int) -> Mistakes:
        right = _in_use(E, K, T)
        return [
            ("that is as if no two tokens ever agreed", float(min(E, K * T))),
            ("that is as if no two tokens ever agreed, and E were no limit", float(K * T)),
            ("a token's K experts differ: it leaves one out with probability 1 - K/E, not (1 - "
             "1/E)^K", E * (1 - (1 - 1 / E) ** (K * T))),
            ("that is the chance of one expert to be in use; there are E of them", right / E),
            ("that is how many are left out", E - right),
            ("K/E to the power of T: an expert that every token chooses", E * (K / E) ** T),
            ("an expectation need not be whole: keep its decimals", float(round(right))),
            ("an expectation need not be whole: keep its decimals", float(int(right))),
            ("one token chooses K experts; here it chooses one", E * (1 - (1 - 1 / E) ** T)),
            ("one token less: all of them choose", E * (1 - (1 - K / E) ** (T - 1))),
        ]  # fmt: skip

    check = Check("distinct_experts", distinct_experts, _in_use, mistakes, "not E(1 - (1 - K/E)^T)")
    # (8, 2, 2): left out by both: (3/4)^2 = 9/16, so 8 x 7/16 = 3.5
    for E, K, T in (
        (8, 2, 2),
        (8, 2, 1),
        (8, 2, 32),
        (64, 8, 16),
        (256, 8, 1),
        (4, 4, 3),
        (16, 1, 5),
    ):
        check.on(f"{E} experts, K = {K}, {T} tokens", E, K, T)
    check.passed("each expert is spared with chance (1 - K/E)^T; the others are read.")


def check_decode_bytes(decode_bytes: Callable[[MixtralConfig, int], float]) -> None:
    """Check the weight bytes of one decoding step in bf16: (config, batch) -> bytes."""

    def right(config: MixtralConfig, batch: int) -> float:
        common, experts, _ = _parameters(config)
        E, K = config.num_local_experts, config.num_experts_per_tok
        return 2 * (common + _in_use(E, K, batch) / E * experts)

    def mistakes(config: MixtralConfig, batch: int) -> Mistakes:
        common, experts, table = _parameters(config)
        E, K, value = config.num_local_experts, config.num_experts_per_tok, right(config, batch)
        share, one = _in_use(E, K, batch) / E, 2 * (common + experts * K / E)
        row = 2.0 * config.vocab_size * config.hidden_size
        few = "a batch needs more experts than one token does"
        return [
            (few, one),
            (few, one + 2.0 * table),
            ("a small batch leaves experts unread", 2.0 * (common + experts)),
            ("these are all parameters; a small batch leaves experts unread, and of the input "
             "embedding only a row per token is read", 2.0 * (common + experts + table)),
            ("the weights are read once for the whole batch, not once for each text", batch * one),
            ("of the embedding a row per token is read", value + 2.0 * table if table else None),
            ("the output matrix is read whole", value - row),
            ("two bytes for each bf16 number", value / 2),
            ("that is float32; bf16 has two bytes", value * 2),
            ("texts agree on experts by chance", 2.0 * (common + min(1, K * batch / E) * experts)),
            ("attention, routers, norms and output are read as well", 2.0 * share * experts),
        ]  # fmt: skip

    check = Check("decode_bytes", decode_bytes, right, mistakes,
                  "not 2 bytes for what is common and for the experts expected in use")  # fmt: skip
    small = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=4,
        tie_word_embeddings=True)  # fmt: skip
    for name, config in (("Mixtral 8x7B", MixtralConfig()), ("a small Mixtral, tied", small)):
        for batch in (3, 4, 1, 64):
            check.on(f"{name}, {batch} texts", config, batch)
    check.passed("common weights once, and those experts that somebody in the batch needs.")


def check_quantize(quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check int8 by rows: w_FD -> (q_FD int8, scale_F1), so that q * scale is close to w."""
    check = Check("quantize", quantize, lambda w_FD: True, see=_is_close)
    check.on("[[1, -2, 0.5], [100, 50, -25]]", torch.tensor([[1.0, -2, 0.5], [100, 50, -25]]))
    check.on("random rows of many sizes", randn(0, 6, 40) * torch.logspace(-3, 2, 6)[:, None])
    check.on("a row of zeros", torch.cat([torch.zeros(1, 5), randn(1, 2, 5)]))
    check.on("one column", randn(2, 4, 1))
    check.on("weights that are all below zero", -randn(3, 5, 8).abs())
    check.passed("a byte for each weight, a scale for each row, half a step of error.")


def _is_close(value: Any, w_FD: Tensor) -> bool:
    def wrong(why: str) -> None:
        refuse("quantize", why)

    pair = fit(value, (w_FD, w_FD))
    q_FD, scale_F1 = (
        map(number, pair) if isinstance(pair, tuple) and len(pair) == 2 else (None,) * 2
    )
    if q_FD is None or scale_F1 is None:
        wrong("return two tensors, q_FD and scale_F1")
        raise AssertionError
    if scale_F1.dtype == torch.int8 != q_FD.dtype:
        wrong("the two are swapped: return q_FD, then scale_F1")
    if q_FD.dtype != torch.int8:
        wrong("q has to be int8, or nothing is saved")
    if q_FD.shape != w_FD.shape:
        wrong(f"q has to have the shape of w, {tuple(w_FD.shape)}, not {tuple(q_FD.shape)}")
    F, largest = len(w_FD), w_FD.abs().amax(1, keepdim=True)
    if scale_F1.numel() == 1 != F:
        wrong("one scale for the whole matrix: a row of small weights is lost beside one of large "
              "ones; give each row its own")  # fmt: skip
    if scale_F1.shape != (F, 1):
        wrong(f"return a tensor of shape {(F, 1)} for the scale: one for each row of w, not "
              f"{tuple(scale_F1.shape)}")  # fmt: skip
    step, back = (largest / 127).clamp(min=1e-12), q_FD * scale_F1.to(w_FD)
    if not back.isfinite().all():
        wrong("a row of zeros was divided by its largest value, zero")
    worst, ratio = ((back - w_FD).abs() / step).max().item(), w_FD / step
    wrapped = (w_FD / (largest / 128).clamp(min=1e-12)).round().to(torch.int16)
    if torch.equal(q_FD, wrapped.to(torch.int8)) and (wrapped > 127).any():
        wrong("int8 ends at 127, and the largest weight became 128, which wraps around to -128: "
              "divide by 127")  # fmt: skip
    for cut, how in ((ratio.trunc(), "cut off towards zero"), (ratio.floor(), "rounded down")):
        if torch.equal(q_FD, cut.to(torch.int8)) and worst > 0.6:
            wrong(f"{how} instead of rounded: twice the error, and all to one side")
    if torch.allclose(q_FD / scale_F1.to(w_FD), w_FD, atol=step.max().item()) and worst > 1:
        wrong("the scale is one over what it should be: w is q times scale")
    if w_FD.any() and (q_FD.to(torch.int16).abs().amax(1)[w_FD.any(1)] < 100).any():
        wrong("not the whole range of int8: the largest of each row is to be 127")
    if worst > 0.51:
        wrong(f"q * scale is up to {worst:.3g} steps away from w; rounding costs half a step, the "
              "step being the row's largest absolute value / 127")  # fmt: skip
    return True
