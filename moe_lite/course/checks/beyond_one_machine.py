"""The checks of chapter 14: how does it get bigger than a machine?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...config import MixtralConfig
from .verdict import CheckFailed, Mistakes, call, expect, passed, randn


def _tensor(exercise: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise CheckFailed(f"{exercise}: return one tensor of shape {shape}, not {got}")
    return value


def _number(exercise: str, value: Any) -> Tensor:
    """Bring an int, a float or a tensor of one element to one kind, for comparing by rounding."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float):
        raise CheckFailed(f"{exercise}: return one number, not {value!r}")
    return torch.tensor(float(value), dtype=torch.float64)


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


# --- who sends what to whom ----------------------------------------------------------------------


def check_traffic(traffic: Callable[[Tensor, int], Tensor]) -> None:
    """Check the traffic matrix: (expert_RTK, num_experts) -> pairs_RR, [from, to].

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "traffic"

    def run(given: str, expert_RTK: Tensor, E: int) -> None:
        R = len(expert_RTK)
        yours = call(exercise, traffic, expert_RTK, E, on=given)
        if isinstance(yours, Tensor) and yours.shape == (R, E) and E != R:
            raise CheckFailed(
                f"{exercise}: these are counts for each expert; several experts live on one rank, "
                f"so the matrix is ({R}, {R})"
            )
        _tensor(exercise, yours, (R, R))
        right, copies, dealt = (torch.zeros(R, R, dtype=torch.long) for _ in range(3))
        for r, tokens in enumerate(expert_RTK.tolist()):
            for chosen in tokens:
                for e in chosen:
                    right[r, e * R // E] += 1
                    dealt[r, e % R] += 1
                for rank in {e * R // E for e in chosen}:
                    copies[r, rank] += 1
        mistakes: Mistakes = [
            ("rows and columns are exchanged: [from, to] has the sender first", right.T),
            ("these are tokens; two experts of one token on one rank are two pairs", copies),
            ("experts lie in order, E/R neighbours on each rank; here they are dealt like cards",
             dealt),
            ("what stays at home is in the matrix too, on its diagonal",
             right - right.diagonal().diag()),
            ("the experts' numbers were taken for ranks", _clamped(expert_RTK, R)),
        ]  # fmt: skip
        otherwise = "not the number of (token, expert) pairs from each rank to each"
        expect(exercise, given, yours.long(), right, mistakes, otherwise)

    # Rank 0: token 0 to experts 0 and 1 (both at home), token 1 to 1 and 3. Rank 1: 0, 2 and 0, 1.
    run("2 ranks, experts [[[0, 1], [1, 3]], [[0, 2], [0, 1]]], E = 4",
        torch.tensor([[[0, 1], [1, 3]], [[0, 2], [0, 1]]]), 4)  # fmt: skip
    for R, E, K in ((3, 6, 2), (4, 16, 4), (2, 2, 1)):
        scores = randn(R * E, R, 7, E) - torch.arange(E) / E
        run(f"{R} ranks of 7 tokens, {E} experts, K = {K}", scores.topk(K).indices, E)
    passed(exercise, "a row for each sender, a column for each receiver, a pair for each choice.")


def _clamped(expert_RTK: Tensor, R: int) -> Tensor:
    return torch.stack([torch.bincount(e.flatten(), minlength=R)[:R] for e in expert_RTK])


Splits = tuple[list[int], list[int], list[int], list[int]]


def check_round_trip(round_trip: Callable[[Tensor, int], Splits]) -> None:
    """Check the split sizes of both ways: (pairs_RR, rank) -> (send, receive, send, receive).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "round_trip"

    def run(given: str, pairs_RR: Tensor, rank: int) -> None:
        yours = call(exercise, round_trip, pairs_RR, rank, on=given)
        if not isinstance(yours, tuple) or len(yours) != 4:
            raise CheckFailed(f"{exercise}: return four lists, not {yours!r}")
        yours = tuple(
            torch.as_tensor(part, dtype=torch.long) if isinstance(part, list | tuple) else part
            for part in yours
        )
        row, column = pairs_RR[rank], pairs_RR[:, rank]
        away = [part.where(torch.arange(len(part)) != rank, 0) for part in (row, column)]
        mistakes: Mistakes = [
            ("on the way back the roles are exchanged: what came is sent, what was sent comes",
             (row, column, row, column)),
            *(("a rank sends its row of the matrix and receives its column", (column, row, *back))
              for back in ((row, column), (column, row))),
            ("what stays at home is a part of the exchange too, sent to oneself",
             (away[0], away[1], away[1], away[0])),
            ("nobody receives what it sends itself: the sizes come from the others' rows",
             (row, row, row, row)),
        ]  # fmt: skip
        otherwise = "not the row out, the column in, and both exchanged for the way back"
        expect(exercise, given, yours, (row, column, column, row), mistakes, otherwise)

    small = torch.tensor([[3, 1], [2, 4]])
    run("pairs [[3, 1], [2, 4]], rank 0", small, 0)
    run("pairs [[3, 1], [2, 4]], rank 1", small, 1)
    run("three ranks of which one sends nothing, rank 2",
        torch.tensor([[0, 0, 0], [2, 0, 5], [1, 3, 0]]), 2)  # fmt: skip
    passed(exercise, "row out and column in, then column out and row in; everybody gets his own.")


# --- one loss over uneven shares -----------------------------------------------------------------


def check_rank_weights(rank_weights: Callable[[Tensor], Tensor]) -> None:
    """Check the weights of the ranks' mean losses, where DDP averages: (tokens_R) -> weight_R.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "rank_weights"

    def run(given: str, tokens_R: Tensor) -> None:
        yours = call(exercise, rank_weights, tokens_R, on=given)
        R, share_R = len(tokens_R), tokens_R / tokens_R.sum()
        _tensor(exercise, yours, (R,))
        mistakes: Mistakes = [
            ("a mean of means: a token on a rank with few of them counts more", torch.ones(R)),
            ("DDP divides by the number of ranks as well, so the gradient is R times too small",
             share_R),
            ("these would be right for sums of losses; each rank has a mean already",
             torch.ones(R) * R / tokens_R.sum()),
            ("a rank with few tokens would count more, not less",
             (R * (1 / tokens_R) / (1 / tokens_R).sum()).nan_to_num()),
            ("DDP divides by the number of ranks; R² is once too often", share_R * R * R),
            ("the tokens themselves are no weights: the gradient would grow with the batch",
             tokens_R.float()),
        ]  # fmt: skip
        otherwise = "with these weights the average over the ranks is not the mean over all tokens"
        expect(exercise, given, yours.float(), R * share_R, mistakes, otherwise)

    run("tokens [30, 10]", torch.tensor([30, 10]))
    run("tokens [7, 0, 3], one rank with nothing to do", torch.tensor([7, 0, 3]))
    run("tokens [5, 5, 5, 5]", torch.tensor([5, 5, 5, 5]))
    tokens_R = torch.tensor([4, 1, 2])
    weight_R = call(exercise, rank_weights, tokens_R, on="tokens [4, 1, 2]")
    w, x = randn(0, 3).requires_grad_(), randn(1, 7, 3)
    losses = (x @ w).square()
    whole = torch.autograd.grad(losses.mean(), w, retain_graph=True)[0]
    parts = [torch.autograd.grad(part.mean(), w, retain_graph=True)[0] for part in
             losses.split(tokens_R.tolist())]  # fmt: skip
    shared = torch.stack([a * g for a, g in zip(weight_R, parts, strict=True)]).mean(0)
    expect(exercise, "a gradient by three ranks of 4, 1 and 2 tokens", shared.detach(), whole, [],
           "not the gradient of one process with all seven tokens")  # fmt: skip
    passed(exercise, "R times a rank's share of the tokens: the mean over all of them, everywhere.")


# --- what decoding reads -------------------------------------------------------------------------


def check_distinct_experts(distinct_experts: Callable[[int, int, int], float]) -> None:
    """Check the expected number of experts in use: (experts, top_k, tokens) -> float.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "distinct_experts"

    def run(E: int, K: int, T: int) -> None:
        given = f"{E} experts, K = {K}, {T} tokens"
        yours = _number(exercise, call(exercise, distinct_experts, E, K, T, on=given))
        values: list[tuple[str, float]] = [
            ("that is as if no two tokens ever agreed", float(min(E, K * T))),
            ("a token's K experts differ: it leaves one out with probability 1 - K/E, not "
             "(1 - 1/E)^K", E * (1 - (1 - 1 / E) ** (K * T))),
            ("that is the chance of one expert to be in use; there are E of them",
             1 - (1 - K / E) ** T),
            ("that is how many are left out", E * (1 - K / E) ** T),
            ("K/E to the power of T: an expert that every token chooses, not that any does",
             E * (K / E) ** T),
            ("it takes one token to need an expert: the chance is not multiplied by T",
             min(E, E * T * K / E)),
        ]  # fmt: skip
        right = _in_use(E, K, T)
        mistakes = [(text, torch.tensor(value, dtype=torch.float64)) for text, value in values]
        expect(exercise, given, yours, torch.tensor(right, dtype=torch.float64), mistakes,
               "not E (1 - (1 - K/E)^T)")  # fmt: skip

    run(8, 2, 2)  # left out by both: (3/4)^2 = 9/16, so 8 x 7/16 = 3.5
    for E, K, T in ((8, 2, 1), (8, 2, 32), (64, 8, 16), (256, 8, 1), (4, 4, 3)):
        run(E, K, T)
    passed(exercise, "each expert is spared with chance (1 - K/E)^T; the others are read.")


def check_decode_bytes(decode_bytes: Callable[[MixtralConfig, int], float]) -> None:
    """Check the weight bytes of one decoding step in bf16: (config, batch) -> bytes.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "decode_bytes"

    def run(name: str, config: MixtralConfig, batch: int) -> None:
        given = f"{name}, {batch} texts"
        yours = _number(exercise, call(exercise, decode_bytes, config, batch, on=given))
        common, experts, _ = _parameters(config)
        E, K = config.num_local_experts, config.num_experts_per_tok
        share = _in_use(E, K, batch) / E
        one, right = 2 * (common + experts * K / E), 2 * (common + share * experts)
        values: list[tuple[str, float]] = [
            ("a batch needs more experts than one token does", one),
            ("a small batch leaves experts unread", 2.0 * (common + experts)),
            ("the weights are read once for the whole batch, not once for each text",
             batch * one),
            ("of the input embedding only a row per token is read",
             right + 2.0 * config.vocab_size * config.hidden_size),
            ("two bytes for each bf16 number", right / 2),
            ("that is float32; bf16 has two bytes", right * 2),
            ("texts agree on experts by chance: not K for each of them",
             2.0 * (common + min(1, K * batch / E) * experts)),
            ("attention, routers, norms and the output matrix are read as well",
             2.0 * share * experts),
        ]  # fmt: skip
        mistakes = [(text, torch.tensor(value, dtype=torch.float64)) for text, value in values]
        expect(exercise, given, yours, torch.tensor(right, dtype=torch.float64), mistakes,
               "not 2 bytes for what is common and for the experts expected in use")  # fmt: skip

    mixtral = MixtralConfig()
    for batch in (4, 1, 64):
        run("Mixtral 8x7B", mixtral, batch)
    small = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    run("a small Mixtral with a tied embedding", small, 3)
    passed(exercise, "common weights once, and those experts that somebody in the batch needs.")


# --- quantised experts ---------------------------------------------------------------------------


def check_quantize(quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check int8 by rows: w_FD -> (q_FD int8, scale_F1), so that q * scale is close to w.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "quantize"

    def run(given: str, w_FD: Tensor) -> None:
        yours = call(exercise, quantize, w_FD, on=given)
        if not isinstance(yours, tuple) or len(yours) != 2:
            raise CheckFailed(f"{exercise}: return two tensors, q_FD and scale_F1")
        q_FD, scale_F1 = yours
        if not isinstance(q_FD, Tensor) or q_FD.dtype != torch.int8:
            raise CheckFailed(f"{exercise}: q has to be int8, or nothing is saved")
        _tensor(exercise, q_FD, tuple(w_FD.shape))
        F, largest = len(w_FD), w_FD.abs().amax(1, keepdim=True)
        if isinstance(scale_F1, Tensor) and scale_F1.numel() == 1 != F:
            raise CheckFailed(
                f"{exercise}: one scale for the whole matrix: a row of small weights is lost "
                "beside a row with one large one; give each row its own"
            )
        _tensor(exercise, scale_F1, (F, 1))
        back = q_FD.float() * scale_F1
        if not back.isfinite().all():
            raise CheckFailed(f"{exercise}: a row of zeros was divided by its largest value, zero")
        step = (largest / 127).clamp(min=1e-12)
        worst = ((back - w_FD).abs() / step).max().item()
        ratio = w_FD / step
        wrapped = (w_FD / (largest / 128).clamp(min=1e-12)).round().to(torch.int16)
        if torch.equal(q_FD, wrapped.to(torch.int8)) and (wrapped > 127).any():
            raise CheckFailed(
                f"{exercise}: int8 ends at 127, and the largest weight became 128, which wraps "
                "around to -128: divide by 127"
            )
        if torch.equal(q_FD, ratio.trunc().to(torch.int8)) and worst > 0.6:
            raise CheckFailed(
                f"{exercise}: cut off towards zero instead of rounded: twice the error, and every "
                "weight a little too small"
            )
        if w_FD.any() and (q_FD.to(torch.int16).abs().amax(1)[w_FD.any(1)] < 100).any():
            raise CheckFailed(f"{exercise}: the range of int8 is hardly used; its largest is 127")
        if worst > 0.51:
            raise CheckFailed(
                f"{exercise}: q * scale is up to {worst:.3g} steps away from w; rounding costs "
                f"half a step, the step being the row's largest absolute value / 127"
                f"\n  given    {given}"
            )

    run("[[1, -2, 0.5], [100, 50, -25]]", torch.tensor([[1.0, -2.0, 0.5], [100.0, 50.0, -25.0]]))
    run("random rows of very different size", randn(0, 6, 40) * torch.logspace(-3, 2, 6)[:, None])
    run("a row of zeros", torch.cat([torch.zeros(1, 5), randn(1, 2, 5)]))
    passed(exercise, "a byte for each weight, a scale for each row, half a step of error.")
