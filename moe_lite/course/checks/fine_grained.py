"""The checks of chapter 09: why many small experts?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .verdict import CheckFailed, Mistakes, call, expect, passed, randn


def _spread(exercise: str, given: str, value: Any, shape: tuple[int, int], E: int) -> Tensor:
    """Spread (gate_TK, expert_TK) over all experts, so that the order of the K is free."""
    pair: Any = value if isinstance(value, tuple) and len(value) == 2 else (None, None)
    gate_TK, expert_TK = pair
    if not all(isinstance(x, Tensor) and x.shape == shape for x in (gate_TK, expert_TK)):
        raise CheckFailed(
            f"{exercise}: return two tensors of shape {shape}, gate_TK and expert_TK; "
            f"each token keeps its k experts\n  given    {given}"
        )
    _experts(exercise, expert_TK, E)
    return gate_TK.new_zeros(shape[0], E).scatter(1, expert_TK, gate_TK)


def _experts(exercise: str, expert_TK: Tensor, E: int) -> Tensor:
    """Mark each token's experts in (T, E), or say that they are not K different ones."""
    if expert_TK.is_floating_point():
        raise CheckFailed(f"{exercise}: experts are whole numbers; these are {expert_TK.dtype}")
    if expert_TK.min() < 0 or expert_TK.max() >= E:
        raise CheckFailed(f"{exercise}: experts are numbered from 0 to {E - 1}")
    marked_TE = torch.zeros(len(expert_TK), E).scatter(1, expert_TK, 1.0)
    if marked_TE.sum() != expert_TK.numel():
        raise CheckFailed(f"{exercise}: a token has the same expert twice")
    return marked_TE


# --- splitting -----------------------------------------------------------------------------------

Split = Callable[[int, int, int, int, int], tuple[int, int, int]]
"""(N, K, F, m, shared) -> routed experts, routed experts per token, width."""


def check_split_experts(split: Split) -> None:
    """Check a split at equal parameters and equal work: (N, K, F, m, shared) -> (E, K, F).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "split_experts"
    # 16 experts of width 128, 2 for each token, cut in four with one shared: 63, 7, 32.
    cases = (16, 2, 128, 4, 1), (8, 2, 96, 3, 2), (16, 2, 128, 2, 0), (6, 3, 10, 1, 1)
    for N, K, F, m, s in cases:
        given = f"N = {N}, K = {K}, F = {F}, m = {m}, {s} shared"
        yours = call(exercise, split, N, K, F, m, s, on=given)
        right = m * N - s, m * K - s, F // m
        mistakes: Mistakes = [
            ("the experts are as wide as before: m times the parameters; each is F / m wide",
             (m * N - s, m * K - s, F)),
            ("each token still has K experts, now small ones: 1/m of the work; give it m * K seats",
             (m * N - s, K - s, F // m)),
            ("each token still has K experts, now small ones: 1/m of the work; give it m * K seats",
             (m * N - s, K, F // m)),
            ("the shared experts are extra work: each takes one of the m * K seats",
             (m * N - s, m * K, F // m)),
            ("the shared experts are extra parameters: each is one of the m * N",
             (m * N, m * K - s, F // m)),
            ("the shared experts come on top; each is one of the m * N, in one of the m * K seats",
             (m * N, m * K, F // m)),
            ("a shared expert is as small as the others: it takes one seat, not m",
             (m * N - m * s, m * K - m * s, F // m)),
            ("the number of experts did not change; splitting in m gives m times as many",
             (N - s, m * K - s, F // m)),
            ("nothing was split", (N - s, K - s, F)),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes,
               "total and active width must stay N * F and K * F")  # fmt: skip
    passed(exercise, "as many parameters, as much work, and more ways to combine them.")


# --- the gate and its bias -----------------------------------------------------------------------


def check_biased_choice(choice: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check a bias that selects and never weighs: (logits_TE, bias_E, k) -> (gate_TK, expert_TK).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "biased_choice"

    def gates(scores_TE: Tensor, by_TE: Tensor, k: int, normalise: bool = True) -> Tensor:
        kept_TE = torch.zeros_like(scores_TE).scatter(1, by_TE.topk(k).indices, 1.0) * scores_TE
        return kept_TE / kept_TE.sum(-1, keepdim=True) if normalise else kept_TE

    def right(logits_TE: Tensor, bias_E: Tensor, k: int) -> Tensor:
        return gates(logits_TE.sigmoid(), logits_TE.sigmoid() + bias_E, k)

    def run(given: str, logits_TE: Tensor, bias_E: Tensor, k: int) -> None:
        T, E = logits_TE.shape
        yours = call(exercise, choice, logits_TE, bias_E, k, on=given)
        dense_TE = _spread(exercise, given, yours, (T, k), E)
        s, sums, inside = logits_TE.sigmoid(), logits_TE.sigmoid() + bias_E, logits_TE + bias_E
        mistakes: Mistakes = [
            ("the bias leaks into the gates: it may select, but the weight is the score alone",
             gates(sums, sums, k)),
            ("the bias leaks into the gates: it may select, but the weight is the score alone",
             gates(sums, sums, k, normalise=False)),
            ("a token's gates do not add up to 1; divide them by the sum over the selected",
             gates(s, sums, k, normalise=False)),
            ("divide by the sum over the k selected, not over all experts",
             gates(s / s.sum(-1, keepdim=True), sums, k, normalise=False)),
            ("the bias is not used; the choice is by score + bias", gates(s, s, k)),
            ("the bias works the wrong way round: a larger one makes an expert likelier",
             gates(s, s - bias_E, k)),
            ("the bias is added to the logit; add it after the sigmoid, to the score",
             gates(s, inside, k)),
            ("the bias is added to the logit; add it after the sigmoid, to the score",
             gates(inside.sigmoid(), inside, k)),
            ("these gates are a softmax; here each is its own sigmoid, divided by their sum",
             gates(logits_TE.exp(), sums, k)),
            ("these gates are a softmax; here each is its own sigmoid, divided by their sum",
             gates(s.exp(), sums, k)),
        ]  # fmt: skip
        otherwise = "not the scores of the chosen over their sum (shown: a column for every expert)"
        expect(exercise, given, dense_TE, right(logits_TE, bias_E, k), mistakes, otherwise)

    # Scores and biases add up to .1, .5, 0, .8, .6: experts 3 and 4, whose scores are .6 and .2.
    hand = torch.tensor([[0.5, 0.4, 0.3, 0.6, 0.2], [-0.4, 0.1, -0.3, 0.2, 0.4]])
    run("scores sigmoid(logits) = [[.5, .4, .3, .6, .2]], bias = [-.4, .1, -.3, .2, .4], k = 2",
        hand[:1].logit(), hand[1], 2)  # fmt: skip
    for k in (1, 3, 5):
        run(f"eight tokens, five experts, k = {k}", randn(k, 8, 5), 0.4 * randn(9, 5), k)
    logits_TE, bias_E = randn(0, 8, 5).requires_grad_(), 0.4 * randn(9, 5)
    given = "logits that need a gradient"
    gate_TK, expert_TK = call(exercise, choice, logits_TE, bias_E, 2, on=given)
    if not gate_TK.requires_grad:
        raise CheckFailed(f"{exercise}: no gradient reaches the logits, so no router could learn")
    weights_TE = randn(1, 8, 5)
    yours, wanted = (
        torch.autograd.grad(total, logits_TE)[0]
        for total in (
            (gate_TK * weights_TE.gather(1, expert_TK)).sum(),
            (right(logits_TE, bias_E, 2) * weights_TE).sum(),
        )
    )
    expect(exercise, "the gradient of a weighted sum of the gates", yours, wanted, [],
           "right gates, but not their gradient")  # fmt: skip
    passed(exercise, "chosen by score and bias, weighed by the score alone.")


Step = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]
"""(logits_TE, bias_E, k, u) -> expert_TK, the next bias_E."""


def check_balanced_step(step: Step) -> None:
    """Check one turn of Algorithm 1: (logits_TE, bias_E, k, u) -> (expert_TK, new bias_E).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "balanced_step"

    def pick(by_TE: Tensor, k: int) -> Tensor:
        return torch.zeros_like(by_TE).scatter(1, by_TE.topk(k).indices, 1.0)

    def run(given: str, logits_TE: Tensor, bias_E: Tensor, k: int, u: float) -> None:
        T, E = logits_TE.shape
        yours = call(exercise, step, logits_TE, bias_E, k, u, on=given)
        shapes = [(T, k), (E,)]
        if not isinstance(yours, tuple) or [getattr(y, "shape", None) for y in yours] != shapes:
            raise CheckFailed(
                f"{exercise}: return two tensors, expert_TK of shape {(T, k)} and the new bias of "
                f"shape {(E,)}; an expert that got nothing counts too\n  given    {given}"
            )
        if yours[1].requires_grad:
            raise CheckFailed(
                f"{exercise}: the bias has a gradient; counts alone move it, and no loss sees it"
                f"\n  given    {given}"
            )
        scores_TE = logits_TE.detach().sigmoid()
        chosen_TE = pick(scores_TE + bias_E, k)
        load_E, bare_E = chosen_TE.sum(0), pick(scores_TE, k).sum(0)
        mean = T * k / E
        way_E = torch.sign(mean - load_E)
        ahead_E = bias_E + u * way_E
        bare_way_E = torch.sign(mean - bare_E)
        mistakes: Mistakes = [
            ("the sign is flipped: whoever has too much gets more still; it is mean - load",
             (chosen_TE, bias_E - u * way_E)),
            ("counts are compared with a share, k / E, so whoever got a token is pushed down",
             (chosen_TE, bias_E + u * torch.sign(k / E - load_E))),
            ("this moves by u times the error; Algorithm 1 takes only its sign",
             (chosen_TE, bias_E + u * (mean - load_E))),
            ("this moves by u times the error; Algorithm 1 takes only its sign",
             (chosen_TE, bias_E + u * (mean - load_E) / mean)),
            ("the load is counted as if there were no bias, so it never learns that it worked",
             (chosen_TE, bias_E + u * bare_way_E)),
            ("the bias is moved before the choice: then a token's expert depends on later tokens",
             (pick(scores_TE + ahead_E, k), ahead_E)),
            ("the bias is moved before the choice: then a token's expert depends on later tokens",
             (pick(scores_TE + bias_E + u * bare_way_E, k), bias_E + u * bare_way_E)),
            ("the bias is not used in the choice", (pick(scores_TE, k), bias_E + u * bare_way_E)),
            ("these are sums of scores; load counts the pairs",
             (chosen_TE, bias_E + u * torch.sign(scores_TE.mean() * T - scores_TE.sum(0)))),
            ("the old bias is forgotten; the step is added to it", (chosen_TE, u * way_E)),
            ("the step ignores u", (chosen_TE, bias_E + way_E)),
            ("this bias is also centred: the choices stay the same, but Algorithm 1 leaves it out",
             (chosen_TE, ahead_E - ahead_E.mean())),
            ("this bias is also centred: the choices stay the same, but Algorithm 1 leaves it out",
             (chosen_TE, bias_E + u * (way_E - way_E.mean()))),
        ]  # fmt: skip
        marked_TE = _experts(exercise, yours[0], E)
        expect(exercise, given, (marked_TE, yours[1].float()), (chosen_TE, ahead_E), mistakes,
               "not Algorithm 1 (shown: who was chosen, then the new bias)")  # fmt: skip

    # By score the last two tokens choose expert 1; the bias sends them to 2: loads 1, 1, 2.
    rows = [[0.8, 0.1, 0.5], [0.3, 0.6, 0.2], [0.1, 0.7, 0.6], [0.1, 0.7, 0.6]]
    given = "scores [[.8, .1, .5], [.3, .6, .2], [.1, .7, .6], [.1, .7, .6]], bias = [0, -.2, 0]"
    run(f"{given}, k = 1, u = .1", torch.tensor(rows).logit(), torch.tensor([0, -0.2, 0]), 1, 0.1)
    for seed, k, u in ((1, 2, 0.1), (2, 1, 0.3), (3, 3, 0.01)):
        lean_TE = randn(seed, 40, 6) + torch.linspace(1, -1, 6)
        run(f"forty tokens, six experts, k = {k}, u = {u}", lean_TE, 0.3 * randn(seed + 9, 6), k, u)
    same_TE = torch.tensor([[0.1, 0.2, 0.9, 0.3]]).logit().repeat(5, 1)
    run("tokens that all go to expert 2 of 4, k = 1, u = .1", same_TE, torch.zeros(4), 1, 0.1)
    run("logits that need a gradient", randn(4, 9, 4).requires_grad_(), torch.zeros(4), 2, 0.1)
    passed(exercise, "choose by the old bias, count, move by u towards the mean.")


# --- measuring -----------------------------------------------------------------------------------


def check_violations(violations: Callable[[Tensor], tuple[float, float]]) -> None:
    """Check both kinds of MaxVio: loads_SE of S batches -> (global, mean over the batches).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "violations"

    def vio(load: Tensor) -> Tensor:
        return load.amax(-1) / load.mean(-1) - 1

    # Two batches, lopsided in different ways: 1 and 0.5, and together only 0.25.
    cases: Sequence[tuple[str, Tensor]] = (
        ("loads [[4, 1, 1], [1, 3, 2]]", torch.tensor([[4.0, 1.0, 1.0], [1.0, 3.0, 2.0]])),
        ("loads [[30, 10], [1, 3]]", torch.tensor([[30.0, 10.0], [1.0, 3.0]])),
        ("six batches, five experts", randn(0, 6, 5).abs().mul(20).round() + 1),
    )
    for given, loads_SE in cases:
        yours = call(exercise, violations, loads_SE, on=given)
        if not isinstance(yours, tuple) or len(yours) != 2:
            raise CheckFailed(f"{exercise}: return two numbers, global and mean per batch")
        yours = tuple(torch.as_tensor(float(y)) for y in yours)
        each_S, pooled_E = vio(loads_SE), loads_SE.sum(0)
        whole, mean = vio(pooled_E), each_S.mean()
        shares_E = (loads_SE / loads_SE.sum(1, keepdim=True)).sum(0)
        short = [1 - load.min() / load.mean() for load in (pooled_E, *loads_SE)]
        mistakes: Mistakes = [
            ("the two are swapped", (mean, whole)),
            ("the global one is the mean of the batches' ones; pool the loads first, then compare",
             (mean, mean)),
            ("the global one is the worst batch; pool the loads first, then compare",
             (each_S.max(), mean)),
            ("the second is the worst batch; it should be the mean over the batches",
             (whole, each_S.max())),
            ("that is max / mean; the violation is how far it is above 1", (whole + 1, mean + 1)),
            ("divide by the mean load, not by the largest",
             (1 - pooled_E.mean() / pooled_E.max(),
              (1 - loads_SE.mean(1) / loads_SE.amax(1)).mean())),
            ("that is how far the idlest falls short; MaxVio looks at the busiest",
             (short[0], torch.stack(short[1:]).mean())),
            ("a batch of more tokens counts more: pool the counts, not the shares",
             (vio(shares_E), mean)),
            ("that is a difference in pairs; divide it by the mean load",
             (pooled_E.max() - pooled_E.mean(), (loads_SE.amax(1) - loads_SE.mean(1)).mean())),
        ]  # fmt: skip
        expect(exercise, given, yours, (whole, mean), mistakes, "not (largest - mean) / mean")
    passed(exercise, "pooled first for the global one, batch by batch for the other.")


def check_disable_top(disable: Callable[[Tensor, int, float], tuple[Tensor, Tensor]]) -> None:
    """Check Figure 4's masking: (logits_TE, k, ratio) -> (gate_TK, expert_TK).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "disable_top"

    def gates(logits_TE: Tensor, chosen_TE: Tensor) -> Tensor:
        return logits_TE.where(chosen_TE, -torch.inf).softmax(-1)

    def ranks(logits_TE: Tensor) -> Tensor:
        return (-logits_TE).argsort(-1).argsort(-1)

    def run(given: str, logits_TE: Tensor, k: int, ratio: float) -> None:
        T, E = logits_TE.shape
        off, rank_TE = round(ratio * E), ranks(logits_TE)
        yours = call(exercise, disable, logits_TE, k, ratio, on=given)
        dense_TE = _spread(exercise, given, yours, (T, k), E)
        right = gates(logits_TE, (rank_TE >= off) & (rank_TE < off + k))
        busy_E = ranks((rank_TE < k).float().sum(0)[None] - 1e-3 * torch.arange(E))[0] < off
        other_TE = logits_TE.masked_fill(busy_E, -torch.inf)
        zeroed_TE = logits_TE.where(rank_TE >= off, 0.0)
        of_k = round(ratio * k)
        kept_TE = (rank_TE >= off) & (rank_TE < max(k, off))
        thin_TE = gates(logits_TE, kept_TE).nan_to_num()
        mistakes: Mistakes = [
            ("nothing is disabled: these are the k best", gates(logits_TE, rank_TE < k)),
            ("the disabled scores became 0, which is a score like others; use -inf",
             gates(zeroed_TE, ranks(zeroed_TE) < k)),
            ("the same experts are disabled for every token; it is each token's own best",
             gates(other_TE, ranks(other_TE) < k)),
            ("the ratio is of all E experts, not of the k chosen",
             gates(logits_TE, (rank_TE >= of_k) & (rank_TE < of_k + k))),
            ("the least likely are disabled; it is the most likely",
             gates(logits_TE, rank_TE >= E - k)),
            ("the disabled ones are not replaced: choose k of those that are left", thin_TE),
            ("the gates must add up to 1 over those that are now chosen",
             logits_TE.softmax(-1) * (right > 0)),
        ]  # fmt: skip
        otherwise = "not the softmax of the k best of those left (shown: a column for every expert)"
        expect(exercise, given, dense_TE, right, mistakes, otherwise)

    # Without the two best the three best are .08, .04 and .02: 4/7, 2/7, 1/7.
    run("the logarithms of [[.32, .16, .08, .04, .02, .01]], k = 3, ratio 1/3",
        torch.tensor([[0.32, 0.16, 0.08, 0.04, 0.02, 0.01]]).log(), 3, 1 / 3)  # fmt: skip
    for k, ratio in ((2, 0.0), (2, 1 / 8), (3, 1 / 4), (2, 1 / 2)):
        run(f"twelve tokens, eight experts, k = {k}, ratio {ratio}", randn(k, 12, 8), k, ratio)
    passed(exercise, "each token without its own best, and still with k experts.")
