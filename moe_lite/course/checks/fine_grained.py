"""The checks of chapter 09: why many small experts?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ledger import of_interval
from .verdict import FINITE_FILL, UNDERFLOW, Check, Mistakes, far_below, fit, randn, refuse

PAIR = torch.empty(0), torch.empty(0, dtype=torch.int64)  # gates, experts


def _spread(exercise: str, value: Any, logits_TE: Tensor, k: int) -> Tensor:
    """Spread (gate_TK, expert_TK) over all experts, so that the order of the K is free."""
    (T, E), zeros_TK = logits_TE.shape, torch.zeros(len(logits_TE), k)
    pair = fit(value, (zeros_TK, zeros_TK))
    whole = isinstance(pair, tuple) and [getattr(part, "shape", 0) for part in pair]
    if whole != [(T, k), (T, k)]:
        refuse(exercise, f"return two tensors of shape {(T, k)}, gate_TK and expert_TK; each token "
                         "keeps its k experts")  # fmt: skip
    gate_TK, expert_TK = pair
    marked_TE = _marked(exercise, expert_TK, E)
    zeros_TE = gate_TK.new_zeros(marked_TE.shape)
    return zeros_TE.scatter(1, expert_TK.long(), gate_TK)


def _marked(exercise: str, expert_TK: Tensor, E: int) -> Tensor:
    """Mark each token's experts in (T, E), or say that they are not K different ones."""
    if not torch.equal(expert_TK, expert_TK.round()):
        refuse(exercise, "experts are whole numbers, and these are not: are the two swapped?")
    if expert_TK.min() < 0 or expert_TK.max() >= E:
        refuse(exercise, f"experts are numbered from 0 to {E - 1}")
    marked_TE = torch.zeros(len(expert_TK), E).scatter(1, expert_TK.long(), 1.0)
    if marked_TE.sum() != expert_TK.numel():
        refuse(exercise, "a token has the same expert twice")
    return marked_TE


def _top(by_TE: Tensor, k: int) -> Tensor:
    return torch.zeros_like(by_TE).scatter(1, by_TE.topk(min(k, by_TE.shape[1])).indices, 1.0)


Split = Callable[[int, int, int, int, int], tuple[int, int, int]]
"""(N, K, F, m, shared) -> routed experts, routed experts per token, width."""


def check_split_experts(split: Split) -> None:
    """Check a split at equal parameters and equal work: (N, K, F, m, shared) -> (E, K, F)."""

    def mistakes(N: int, K: int, F: int, m: int, s: int) -> Mistakes:
        few_seats = "each token has K experts, now small ones: 1/m of the work; it has m * K seats"
        return [
            ("as wide as before, so m times the parameters: F / m", (m * N - s, m * K - s, F)),
            (few_seats, (m * N - s, K - s, F // m)),
            (few_seats, (m * N - s, K, F // m)),
            ("the shared experts are extra work: each takes a seat", (m * N - s, m * K, F // m)),
            ("the shared experts are extra parameters: count them in", (m * N, m * K - s, F // m)),
            ("the shared experts come on top; each is a piece, in a seat", (m * N, m * K, F // m)),
            ("a shared expert takes one seat, not m", (m * N - m * s, m * K - m * s, F // m)),
            ("splitting in m gives m times as many experts", (N - s, m * K - s, F // m)),
            ("nothing was split", (N - s, K - s, F)),
            ("shared experts are added; they are taken out", (m * N + s, m * K + s, F // m)),
            ("width divided by all pieces; it is F / m", (m * N - s, m * K - s, F // (m * N))),
            ("the shared experts are left out before the split, whole; they are pieces like others",
             (m * (N - s), m * K - s, F // m))]  # fmt: skip

    def right(N: int, K: int, F: int, m: int, s: int) -> tuple[int, int, int]:
        return m * N - s, m * K - s, F // m

    check = Check("split_experts", split, right, mistakes, "total and active width must stay "
                  "N * F and K * F", parts=("routed", "per token", "width"))  # fmt: skip
    # 16 experts of width 128, 2 for each token, cut in four with one shared: 63, 7, 32.
    for N, K, F, m, s in ((16, 2, 128, 4, 1), (8, 2, 96, 3, 2), (16, 2, 128, 2, 0), (6, 3, 9, 1, 1),
                          (5, 1, 60, 5, 3), (4, 4, 64, 8, 1)):  # fmt: skip
        check.on(f"N = {N}, K = {K}, F = {F}, m = {m}, {s} shared", N, K, F, m, s)
    check.passed("as many parameters, as much work, and more ways to combine them.")


def check_biased_choice(choice: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check a bias that selects and never weighs: (logits_TE, bias_E, k) -> (gate_TK, expert_TK).

    Compared with a column for every expert: the order of the k is free.
    """

    def gates(scores_TE: Tensor, by_TE: Tensor, k: int, normalise: bool = True) -> Tensor:
        kept_TE = _top(by_TE, k) * scores_TE
        return kept_TE / kept_TE.sum(-1, keepdim=True) if normalise else kept_TE

    def right(logits_TE: Tensor, bias_E: Tensor, k: int) -> Tensor:
        return gates(logits_TE.sigmoid(), logits_TE.sigmoid() + bias_E, k)

    def mistakes(logits_TE: Tensor, bias_E: Tensor, k: int) -> Mistakes:
        s, inside = logits_TE.sigmoid(), logits_TE + bias_E
        sums, kept_TE = s + bias_E, _top(s + bias_E, k) * s
        leak = "the bias leaks into the gates: it may select, but the weight is the score alone"
        in_logit = "the bias is added to the logit; add it after the sigmoid, to the score"
        soft = "these gates are a softmax; here each is its own sigmoid, divided by their sum"
        probs = logits_TE.softmax(-1)
        return [
            (leak, gates(sums, sums, k)),
            (leak, gates(sums, sums, k, normalise=False)),
            ("not divided by the sum of the selected", gates(s, sums, k, normalise=False)),
            ("divide by the sum over the k selected, not over all experts",
             gates(s / s.sum(-1, keepdim=True), sums, k, normalise=False)),
            ("the bias is not used; the choice is by score + bias", gates(s, s, k)),
            ("the bias works the wrong way round; it should help", gates(s, s - bias_E, k)),
            (in_logit, gates(s, inside, k)),
            (in_logit, gates(inside.sigmoid(), inside, k)),
            (soft, gates(logits_TE.exp(), sums, k)),
            (soft, gates(s.exp(), sums, k)),
            (soft, gates(logits_TE.exp(), probs + bias_E, k)),
            ("all selected count the same, not by their score", gates(torch.ones_like(s), sums, k)),
            ("these are the k least; choose the largest", gates(s, -sums, k)),
            ("the bias multiplies the score; add it", gates(s, s * bias_E, k)),
            ("the gates of an expert add up to 1 over its tokens; those of a token should",
             kept_TE / kept_TE.sum(0, keepdim=True).clamp(min=1e-20)),
            ("the sum that is divided by is detached; it depends on the logits as well",
             kept_TE / kept_TE.sum(-1, keepdim=True).detach())]  # fmt: skip

    check = Check("biased_choice", choice, right, mistakes,
                  "not the scores of the chosen over their sum (shown: a column for every expert)",
                  asked=PAIR, see=lambda value, logits_TE, bias_E, k: _spread(
                      "biased_choice", value, logits_TE, k))  # fmt: skip
    # Scores and biases add up to .1, .5, 0, .8, .6: experts 3 and 4, whose scores are .6 and .2.
    hand = torch.tensor([[0.5, 0.4, 0.3, 0.6, 0.2], [-0.4, 0.1, -0.3, 0.2, 0.4]])
    check.on("sigmoid(logits) = [[.5, .4, .3, .6, .2]], bias = [-.4, .1, -.3, .2, .4], k = 2",
             hand[:1].logit(), hand[1], 2)  # fmt: skip
    for T, E, k in ((8, 5, 1), (8, 5, 3), (8, 5, 5), (6, 6, 2), (1, 9, 4)):
        given = f"tokens: {T}, experts: {E}, k = {k}"
        check.on(given, randn(k, T, E), 0.4 * randn(9, E), k)
    check.slopes("eight tokens, five experts, k = 2", randn(0, 8, 5), 0.4 * randn(9, 5), 2,
                 of={"the logits": 0})  # fmt: skip
    check.passed("chosen by score and bias, weighed by the score alone.")


Step = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]
"""(logits_TE, bias_E, k, u) -> expert_TK, the next bias_E."""


def check_balanced_step(step: Step) -> None:
    """Check one turn of Algorithm 1: (logits_TE, bias_E, k, u) -> (expert_TK, new bias_E).

    Compared are a mark for every token and expert, and the bias.
    """
    exercise = "balanced_step"

    def right(logits_TE: Tensor, bias_E: Tensor, k: int, u: float) -> tuple[Tensor, Tensor]:
        chosen_TE = _top(logits_TE.sigmoid() + bias_E, k)
        load_E = chosen_TE.sum(0)
        return chosen_TE, bias_E + u * torch.sign(load_E.mean() - load_E)

    def mistakes(logits_TE: Tensor, bias_E: Tensor, k: int, u: float) -> Mistakes:
        scores_TE = logits_TE.detach().sigmoid()
        chosen_TE, ahead_E = right(logits_TE, bias_E, k, u)
        load_E, bare_E = chosen_TE.sum(0), _top(scores_TE, k).sum(0)
        T, mean, way_E = len(logits_TE), load_E.mean(), torch.sign(load_E.mean() - load_E)
        bare_way_E = torch.sign(mean - bare_E)
        proportional = "this moves by u times the error; Algorithm 1 takes only its sign"
        before = "the bias is moved before the choice: a token's expert depends on later tokens"
        centred = "this bias is also centred: choices stay the same; Algorithm 1 leaves it out"
        moved_E = bias_E + u * bare_way_E
        return [
            ("the sign is flipped: it is mean - load", (chosen_TE, bias_E - u * way_E)),
            ("counts are compared with a share, k / E, so whoever got a token is pushed down",
             (chosen_TE, bias_E + u * torch.sign(k / len(bias_E) - load_E))),
            (proportional, (chosen_TE, bias_E + u * (mean - load_E))),
            (proportional, (chosen_TE, bias_E + u * (mean - load_E) / mean)),
            (proportional, (chosen_TE, bias_E + u * (mean - load_E) / load_E.sum())),
            ("counted as if without bias, so it never learns that it worked", (chosen_TE, moved_E)),
            (before, (_top(scores_TE + ahead_E, k), ahead_E)),
            (before, (_top(scores_TE + moved_E, k), moved_E)),
            *((before, (late_TE, old_E + u * torch.sign(mean - late_TE.sum(0))))
              for late_TE in [_top(scores_TE + ahead_E, k)] for old_E in (bias_E, ahead_E)),
            ("the bias is not used in the choice", (_top(scores_TE, k), moved_E)),
            ("these are sums of scores; load counts the pairs",
             (chosen_TE, bias_E + u * torch.sign(scores_TE.mean() * T - scores_TE.sum(0)))),
            ("only first choices are counted; all k are load",
             (chosen_TE, bias_E + u * torch.sign(
                 T / len(bias_E) - _top(scores_TE + bias_E, 1).sum(0)))),
            ("the load is compared with the median; Algorithm 1 takes the mean",
             (chosen_TE, bias_E + u * torch.sign(load_E.median() - load_E))),
            ("the old bias is forgotten; the step is added to it", (chosen_TE, u * way_E)),
            ("the step ignores u", (chosen_TE, bias_E + way_E)),
            ("the bias has not moved", (chosen_TE, bias_E)),
            ("an expert exactly at the mean stands still: its sign is 0",
             (chosen_TE, bias_E + u * torch.where(load_E > mean, -1.0, 1.0))),
            ("an expert exactly at the mean stands still: its sign is 0",
             (chosen_TE, bias_E + u * torch.where(load_E < mean, 1.0, -1.0))),
            ("each token makes k pairs, and the loads are pairs: their mean is T k / E",
             (chosen_TE, bias_E + u * torch.sign(mean / k - load_E))),
            (centred, (chosen_TE, ahead_E - ahead_E.mean())),
            (centred, (chosen_TE, bias_E + u * (way_E - way_E.mean())))]  # fmt: skip

    def marked(value: Any, logits_TE: Tensor, bias_E: Tensor, k: int, u: float) -> Any:
        (T, E), empty = logits_TE.shape, torch.empty(0)
        pair = fit(value, (empty, empty))
        shapes = [getattr(part, "shape", None) for part in pair] if isinstance(pair, tuple) else []
        if shapes != [(T, k), (E,)]:
            refuse(exercise, f"return two tensors, expert_TK of shape {(T, k)} and the new bias of "
                             f"shape {(E,)}; an expert that got nothing counts too")  # fmt: skip
        if pair[1].requires_grad:
            refuse(exercise, "the bias has a gradient; counts alone move it, and no loss sees it")
        return _marked(exercise, pair[0], E), pair[1]

    check = Check(exercise, step, right, mistakes, ("not the k best of score + bias",
                  "not the old bias moved by u towards the mean load"), see=marked,
                  asked=PAIR[::-1], parts=("who was chosen", "the new bias"))  # fmt: skip
    # By score the last two tokens choose expert 1; the bias sends them to 2: loads 1, 1, 2.
    rows = [[0.8, 0.1, 0.5], [0.3, 0.6, 0.2], [0.1, 0.7, 0.6], [0.1, 0.7, 0.6]]
    given = "scores [[.8, .1, .5], [.3, .6, .2], [.1, .7, .6], [.1, .7, .6]], bias = [0, -.2, 0]"
    hand = torch.tensor(rows).logit(), torch.tensor([0, -0.2, 0])
    check.on(f"{given}, k = 1, u = .1", *hand, 1, 0.1)
    for seed, (T, E, k, u) in enumerate(((40, 6, 2, 0.1), (40, 6, 1, 0.3), (40, 6, 3, 0.01),
                                         (6, 6, 2, 0.05), (12, 4, 1, 0.2))):  # fmt: skip
        lean_TE = randn(seed, T, E) + torch.linspace(1, -1, E)
        given = f"tokens: {T}, experts: {E}, k = {k}, u = {u}"
        check.on(given, lean_TE, 0.3 * randn(seed + 9, E), k, u)
    same_TE = torch.tensor([[0.1, 0.2, 0.9, 0.3]]).logit().repeat(5, 1)
    check.on("tokens that all go to expert 2 of 4, k = 1, u = .1", same_TE, torch.zeros(4), 1, 0.1)
    each_TE = torch.eye(4).mul(4)
    check.on("four tokens, each to its own expert, k = 1, u = .1", each_TE, torch.zeros(4), 1, 0.1)
    check.on("logits that need a gradient", randn(4, 9, 4).requires_grad_(), torch.zeros(4), 2, 0.1)
    check.passed("choose by the old bias, count, move by u towards the mean.")


def check_violations(violations: Callable[[Tensor], tuple[float, float]]) -> None:
    """Check both kinds of MaxVio: loads_SE of S batches -> (global, mean over the batches)."""

    def vio(load: Tensor) -> Tensor:
        return load.amax(-1) / load.mean(-1) - 1

    def mistakes(loads_SE: Tensor) -> Mistakes:
        each_S, pooled_E = vio(loads_SE), loads_SE.sum(0)
        whole, mean = vio(pooled_E), each_S.mean()
        shares_E = (loads_SE / loads_SE.sum(1, keepdim=True)).sum(0)
        short = [1 - load.min() / load.mean() for load in (pooled_E, *loads_SE)]
        std_S = loads_SE.std(1) / loads_SE.mean(1)
        return [
            ("the global one is the mean of the batches' ones; pool the loads first", (mean, mean)),
            ("the global one is the worst batch; pool the loads first", (each_S.max(), ...)),
            ("the second is the worst; it should be the mean of the batches", (..., each_S.max())),
            ("the second is the best; it should be the mean over the batches", (..., each_S.min())),
            ("the second has one number for each batch; take their mean", (..., each_S)),
            ("that is max / mean; the violation is how far it is above 1", (whole + 1, mean + 1)),
            ("divide by the mean load, not by the largest",
             (1 - pooled_E.mean() / pooled_E.max(),
              (1 - loads_SE.mean(1) / loads_SE.amax(1)).mean())),
            ("that is how far the idlest falls short; MaxVio looks at the busiest",
             (short[0], torch.stack(short[1:]).mean())),
            ("a larger batch counts more: pool the counts, not the shares", (vio(shares_E), ...)),
            ("that is a difference in pairs; divide it by the mean load",
             (pooled_E.max() - pooled_E.mean(), (loads_SE.amax(1) - loads_SE.mean(1)).mean())),
            ("the violation is looked for over the batches of an expert (dim 0); it is over the "
             "experts of a batch", (..., vio(loads_SE.T).mean())),
            ("that is the spread, deviation over mean; MaxVio looks at the busiest alone",
             (pooled_E.std() / pooled_E.mean(), std_S.mean())),
            ("that is the distance of largest and least; MaxVio compares with the mean",
             ((pooled_E.max() - pooled_E.min()) / pooled_E.mean(),
              ((loads_SE.amax(1) - loads_SE.amin(1)) / loads_SE.mean(1)).mean())),
            ("the batches' own are weighed by their tokens; each counts once",
             (..., (each_S * loads_SE.sum(1)).sum() / loads_SE.sum())),
            ("that is the largest distance either way; MaxVio looks at the busiest",
             ((pooled_E / pooled_E.mean() - 1).abs().max(), ...)),
            ("the largest load of all batches is compared; a batch's own counts there",
             (loads_SE.max() / loads_SE.mean() - 1, ...))]  # fmt: skip

    def right(loads_SE: Tensor) -> tuple[Tensor, Tensor]:
        return vio(loads_SE.sum(0)), vio(loads_SE).mean()

    # Two batches, lopsided in different ways: 1 and 0.5, and together only 0.25.
    check = Check("violations", violations, right, mistakes, "not (largest - mean) / mean",
                  parts=("the global one", "the mean over the batches"))  # fmt: skip
    hand = [[4.0, 1, 1], [1.0, 3, 2]], [[30.0, 10], [1.0, 3]], [[5.0, 0, 1]], [[4.0, 4, 3, 0]]
    for loads in hand:
        check.on(f"loads {loads}", torch.tensor(loads))
    for S, E in ((6, 5), (4, 4), (3, 16)):
        loads_SE = randn(S, S, E).abs().mul(20).round() + 1
        check.on(f"batches: {S}, experts: {E}", loads_SE)
    check.passed("pooled first for the global one, batch by batch for the other.")


def check_disable_top(disable: Callable[[Tensor, int, float], tuple[Tensor, Tensor]]) -> None:
    """Check Figure 4's masking: (logits_TE, k, ratio) -> (gate_TK, expert_TK).

    Compared with a column for every expert: the order of the k is free.
    """

    def gates(logits_TE: Tensor, chosen_TE: Tensor) -> Tensor:
        return logits_TE.where(chosen_TE, -torch.inf).softmax(-1).nan_to_num()

    def ranks(logits_TE: Tensor) -> Tensor:
        return (-logits_TE).argsort(-1).argsort(-1)

    def without(logits_TE: Tensor, k: int, off: int) -> Tensor:
        rank_TE = ranks(logits_TE)
        return gates(logits_TE, (rank_TE >= off) & (rank_TE < off + k))

    def mistakes(logits_TE: Tensor, k: int, ratio: float) -> Mistakes:
        E = logits_TE.shape[1]
        off, rank_TE = round(ratio * E), ranks(logits_TE)
        right = without(logits_TE, k, off)
        busy_E = ranks((rank_TE < k).float().sum(0)[None] - 1e-3 * torch.arange(E))[0] < off
        zeroed_TE = logits_TE.where(rank_TE >= off, 0.0)
        load_E = (rank_TE < k).sum(0)  # of equals topk takes whom it likes: as an answer's does
        ours = [
            busy_E,
            *(
                torch.isin(torch.arange(E), worth_E.topk(off).indices)
                for worth_E in (load_E, load_E.float(), logits_TE.mean(0))
            ),
        ]
        others = [logits_TE.masked_fill(off_E, lost) for off_E in ours for lost in (-torch.inf, 0)]
        kept_TE = (rank_TE >= off) & (rank_TE < max(k, off))
        return [
            ("nothing is disabled: these are the k best", without(logits_TE, k, 0)),
            ("the disabled scores became 0, which is a score like others; use -inf",
             gates(zeroed_TE, _top(zeroed_TE, k).bool())),
            *(("the same experts are disabled for every token; it is each token's own best",
               gates(other_TE, _top(other_TE, k).bool())) for other_TE in others),
            ("the ratio is of all E experts, not of k", without(logits_TE, k, round(ratio * k))),
            ("ratio × E was cut to a whole number", without(logits_TE, k, int(ratio * E))),
            ("ratio × E was rounded up, not nearest", without(logits_TE, k, math.ceil(ratio * E))),
            ("one expert more was disabled than round(ratio × E)", without(logits_TE, k, off + 1)),
            ("the ratio is of the experts that are left out, not of those that are left in",
             without(logits_TE, k, E - off) if E - off + k <= E else None),
            ("these are the k least likely; choose the k best of those left",
             gates(logits_TE, rank_TE >= E - k)),
            ("the disabled ones are not replaced: choose k others", gates(logits_TE, kept_TE)),
            ("the gates must add up to 1 over those that are now chosen",
             logits_TE.softmax(-1) * (right > 0)),
            ("the softmax runs over all that are left, then the k best; over the k alone",
             gates(logits_TE, rank_TE >= off) * (right > 0)),
            ("experts are numbered among those that are left; each keeps its number",
             right.sort(1, descending=True).values)]  # fmt: skip

    check = Check("disable_top", disable,
                  lambda z, k, ratio: without(z, k, round(ratio * len(z[0]))), mistakes,
                  "not the softmax of the k best of those left (shown: a column for every expert)",
                  nan=UNDERFLOW, asked=PAIR, see=lambda value, logits_TE, k, ratio: _spread(
                      "disable_top", value, logits_TE, k))  # fmt: skip
    # Without the two best the three best are .08, .04 and .02: 4/7, 2/7, 1/7.
    check.on("the logarithms of [[.32, .16, .08, .04, .02, .01]], k = 3, ratio 1/3",
             torch.tensor([[0.32, 0.16, 0.08, 0.04, 0.02, 0.01]]).log(), 3, 1 / 3)  # fmt: skip
    for E, k, ratio in ((8, 2, 0.0), (8, 2, 1 / 8), (8, 3, 1 / 4), (8, 2, 1 / 2), (63, 7, 1 / 16),
                        (8, 3, 0.3), (10, 1, 0.28), (5, 2, 0.6)):  # fmt: skip
        check.on(f"12 tokens, {E} experts, k = {k}, ratio {ratio:.4g}", randn(k, 12, E), k, ratio)
    check.on("12 tokens whose logits lie around -200, 8 experts, k = 2, ratio 0.25",
             far_below(4, 12, 8), 2, 1 / 4, otherwise=FINITE_FILL)  # fmt: skip
    check.passed("each token without its own best, and still with k experts.")


def check_paired_difference(
    paired_difference: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
) -> None:
    """Check an interval of pairs: (a_S, b_S, t) -> (the mean of a - b, half its interval)."""

    def half(d_S: Tensor, t: float) -> Tensor:
        return t * d_S.std() / math.sqrt(len(d_S))

    def right(a_S: Tensor, b_S: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return (a_S - b_S).mean(), half(a_S - b_S, t)

    def mistakes(a_S: Tensor, b_S: Tensor, t: float) -> Mistakes:
        d_S, n = a_S - b_S, len(a_S)
        mean, wide = right(a_S, b_S, t)
        ordered_S = a_S.sort().values - b_S.sort().values
        return [
            ("the two settings are treated as strangers; the seeds' common noise leaves with a - b",
             (..., t * ((a_S.var() + b_S.var()) / n).sqrt())),
            ("the two intervals are added; take the difference first, seed by seed",
             (..., half(a_S, t) + half(b_S, t))),
            ("a and b are sorted, so that seed no longer meets seed",
             (mean, half(ordered_S, t))),
            ("1.96 is for many seeds; few ask for Student's t, which is given",
             (..., 1.96 * d_S.std() / math.sqrt(n))),
            ("one standard error; the interval is t of them to each side",
             (..., d_S.std() / math.sqrt(n))),
            ("that is how far single seeds lie apart; their mean is known better, by sqrt(n)",
             (..., t * d_S.std())),
            ("divided by n; it is by its root", (..., t * d_S.std() / n)),
            ("the spread is that of all there are; of a few drawn, divide by n - 1",
             (..., t * d_S.std(correction=0) / math.sqrt(n))),
            ("that is the variance; take its root", (..., t * d_S.var() / math.sqrt(n))),
            ("that is the whole width; half of it is asked", (..., 2 * wide)),
            ("a - b is asked, not b - a", (-mean, ...)),
            ("the median of the differences; Student's interval is round their mean",
             (d_S.median(), ...)),
            ("the largest less the least of the differences, halved; that grows with the seeds",
             (..., (d_S.max() - d_S.min()) / 2)),
            ("these are the ends of the interval; its middle and half of its width are asked",
             (mean - wide, mean + wide))]  # fmt: skip

    check = Check("paired_difference", paired_difference, right, mistakes,
                  ("not the mean of a - b", "not t * s / sqrt(n) of the differences"),
                  parts=("the mean", "half the interval"))  # fmt: skip
    # Differences -1, -2, -3: their mean is -2, their s is 1, and t / sqrt(3) is 2.484.
    check.on("a = [5, 7, 6], b = [6, 9, 9], t = 4.303",
             torch.tensor([5.0, 7, 6]), torch.tensor([6.0, 9, 9]), 4.303)  # fmt: skip
    for n, t in ((2, 12.706), (4, 3.182), (5, 2.776), (12, 2.201)):
        shared_S = 5 + randn(n, n)
        a_S, b_S = shared_S + 0.2 * randn(n + 20, n), shared_S + 0.3 * randn(n + 40, n) - 0.5
        check.on(f"{n} seeds whose noise is mostly shared, t = {t}", a_S, b_S, t)
    check.on("3 seeds that differ by 0.5 each", torch.tensor([1.0, 2, 4]),
             torch.tensor([0.5, 1.5, 3.5]), 4.303)  # fmt: skip
    check.passed("difference first, then the mean, and t of its standard errors to each side.")


WHAT_IT_SAYS = "reproduced", "other size", "null", "contradicted", "inconclusive"


def check_what_it_says(what_it_says: Callable[[float, float, float], str]) -> None:
    """Check a verdict on an effect: (low, high, paper) -> one of the five words."""

    def right(low: float, high: float, paper: float) -> str:
        return of_interval(*sorted((low / paper, high / paper)))

    def mistakes(low: float, high: float, paper: float) -> Mistakes:
        word, middle = right(low, high, paper), (low + high) / 2 / paper
        near, far = sorted((low / paper, high / paper))
        mean = of_interval(middle, middle)
        small = "null" if abs(middle) < 0.5 else mean
        within = near <= 1 <= far
        return [
            ("judged by the middle; ask where the whole interval lies", mean),
            ("judged by the middle; ask where the whole interval lies", small),
            ("judged by the middle; ask where the whole interval lies",
             "contradicted" if middle < 0 else small),
            ("an interval that holds 0 is called null; it may hold the paper's effect as well",
             "null" if near <= 0 <= far else word),
            ("an interval that holds 0 is never null; below half of the effect it excludes it",
             "inconclusive" if near <= 0 <= far else word),
            ("clear of 0 on the paper's side is not yet the paper's size",
             "reproduced" if near > 0 else word),
            ("an interval that holds the paper's number is called reproduced; it may be so wide "
             "that it holds 0 or thrice the number too", "reproduced" if within else word),
            ("both: that holds the paper's number, and is clear of 0; it has to lie between half "
             "and twice the number", "reproduced" if within and near > 0 else word),
            ("the paper's effect may be below 0; look at what lies on its side of 0",
             right(low, high, abs(paper))),
            ("with an effect below 0 the ends change places: divide by it, then sort",
             of_interval(low / paper, high / paper)),
            ("another size is no contradiction: it is on the paper's side",
             "contradicted" if word == "other size" else word),
            ("an interval that leaves the paper's number out contradicts only on the other side "
             "of 0", "contradicted" if not within and word != "null" else word),
            ("on the other side of 0 is contradicted, not null",
             "null" if word == "contradicted" else word),
            ("what cannot be told is called null", "null" if word == "inconclusive" else word),
            ("what cannot be told is called contradicted",
             "contradicted" if word == "inconclusive" else word),
            ("from half to twice the paper's number is its size; beyond twice is another one",
             "reproduced" if near > 0.5 else word),
            ("twice the paper's number and less is its size, from half on; below half is another",
             "reproduced" if near > 0 and far < 2 else word),
            ("null asks that the interval stay below half of the paper's effect, not below all",
             "null" if near <= 0 and far < 1 else word),
        ]  # fmt: skip

    check = Check("what_it_says", what_it_says, right, mistakes, words=WHAT_IT_SAYS)
    cases = {
        "reproduced": ((0.05, 0.08, 0.06), (-0.008, -0.004, -0.007), (0.9, 1.9, 1.0)),
        "other size": ((0.01, 0.02, 0.06), (0.1, 0.3, 0.06), (-0.03, -0.01, -0.06),
                       (0.07, 0.2, 0.06), (0.02, 0.05, 0.06), (-0.4, -0.2, -0.06)),
        "null": ((-0.01, 0.02, 0.06), (-0.02, 0.01, -0.06), (-0.2, 0.02, 0.06), (-0.01, 0.5, -0.1),
                 (-0.2, 0.01, 0.06)),
        "contradicted": ((-0.09, -0.01, 0.06), (0.02, 0.05, -0.06), (-0.3, -0.2, 0.06)),
        "inconclusive": ((-0.06, 0.18, 0.06), (-0.18, 0.06, -0.06), (-0.01, 0.05, 0.06),
                         (0.01, 0.3, 0.06), (-0.09, 0.031, 0.06), (0.01, 0.07, 0.06),
                         (0.04, 0.13, 0.06), (-0.31, 0.3, 0.06)),
    }  # fmt: skip
    why = {
        "reproduced": "all of it lies between half and twice the paper's effect",
        "other size": "it lies on the paper's side of 0 and leaves the paper's number out",
        "null": "it holds 0, and no more than half of the paper's effect",
        "contradicted": "all of it lies on the other side of 0",
        "inconclusive": "it leaves open more than one of the other four",
    }
    for word, given in cases.items():
        for low, high, paper in given:
            check.on(f"[{low}, {high}] where the paper has {paper}", low, high, paper,
                     right=word, otherwise=why[word])  # fmt: skip
    check.passed("where the whole interval lies decides, and not its middle.")
