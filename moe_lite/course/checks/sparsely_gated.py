"""The checks of chapter 04: how do you skip the work without losing the gradient?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...routers import kth_excluding, prob_in_top_k
from .verdict import CheckFailed, Mistakes, call, expect, passed, randn


def _tensor(exercise: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise CheckFailed(f"{exercise}: return one tensor of shape {shape}, not {got}")
    return value


# --- the gates -----------------------------------------------------------------------------------


def check_sparse_gates(sparse_gates: Callable[[Tensor, int], Tensor]) -> None:
    """Check softmax(KeepTopK(scores, k)): (scores_TE, k) -> gates_TE, zero where not chosen.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "sparse_gates"

    def run(given: str, scores_TE: Tensor, k: int) -> None:
        yours = call(exercise, sparse_gates, scores_TE, k, on=given)
        _tensor(exercise, yours, tuple(scores_TE.shape))
        otherwise = "these are not the softmax over each token's k highest scores"
        expect(
            exercise, given, yours, _gates(scores_TE, k), _gate_mistakes(scores_TE, k), otherwise
        )

    # exp of these scores is 4, 1, 3, 2: with k = 2 the gates are 4/7 and 3/7.
    run("the logarithms of [[4, 1, 3, 2]], k = 2", torch.tensor([[4.0, 1.0, 3.0, 2.0]]).log(), 2)
    run("the logarithms of [[4, 1, 3, 2], [1, 1, 2, 6]], k = 2",
        torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 2.0, 6.0]]).log(), 2)  # fmt: skip
    run("scores [[-1, -2, -3]], all below zero, k = 2", torch.tensor([[-1.0, -2.0, -3.0]]), 2)
    for k in (1, 3, 5):
        run(f"six tokens, five experts, k = {k}", randn(k, 6, 5), k)
    scores_TE = randn(0, 4, 5).requires_grad_()
    gates_TE = call(exercise, sparse_gates, scores_TE, 2, on="scores that need a gradient")
    if not gates_TE.requires_grad:
        raise CheckFailed(f"{exercise}: no gradient reaches the scores, so no router could learn")
    weights_TE = randn(1, 4, 5)
    yours, right = (
        torch.autograd.grad((g * weights_TE).sum(), scores_TE)[0]
        for g in (gates_TE, _gates(scores_TE, 2))
    )
    expect(exercise, "the gradient of a weighted sum of the gates", yours, right, [],
           "right gates, but not their gradient")  # fmt: skip
    passed(exercise, "zero for whoever was not chosen, 1 in all, and a slope for the k chosen.")


def _gates(scores_TE: Tensor, k: int) -> Tensor:
    top_TK, expert_TK = scores_TE.topk(k)
    return torch.zeros_like(scores_TE).scatter(1, expert_TK, top_TK.softmax(-1))


def _gate_mistakes(scores_TE: Tensor, k: int) -> Mistakes:
    chosen_TE = _gates(scores_TE, k) > 0
    probs_TE = scores_TE.softmax(-1)
    least_TE = _gates(-scores_TE, k) > 0
    columns_TE = scores_TE.where(chosen_TE, -torch.inf)
    return [
        ("the scores that were not kept became 0, and exp(0) is 1: they take a share; use -inf",
         scores_TE.where(chosen_TE, 0.0).softmax(-1)),
        ("a token's gates must add up to 1; here the softmax ran before the others were dropped",
         probs_TE.where(chosen_TE, 0.0)),
        ("nothing was dropped: this is the dense gate of 1991", probs_TE),
        ("these are the lowest scores; keep the highest",
         scores_TE.where(least_TE, -torch.inf).softmax(-1)),
        ("the softmax runs over the tokens (dim 0), not over a token's experts (dim -1)",
         columns_TE.softmax(0).nan_to_num()),
        ("these are the kept scores; a gate is their softmax", scores_TE.where(chosen_TE, 0.0)),
        ("each chosen expert counts the same; a gate is soft, or there is nothing to learn",
         chosen_TE / k),
    ]  # fmt: skip


# --- the noise -----------------------------------------------------------------------------------

Scores = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]
"""(x_TD, w_gate_ED, w_noise_ED, normal_TE, training) -> scores_TE."""


def check_noisy_scores(noisy_scores: Scores) -> None:
    """Check eq. 4: (x_TD, w_gate_ED, w_noise_ED, normal_TE, training) -> scores_TE.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "noisy_scores"

    def run(given: str, x: Tensor, g: Tensor, n: Tensor, eps: Tensor, training: bool) -> None:
        yours = call(exercise, noisy_scores, x, g, n, eps, training, on=given)
        _tensor(exercise, yours, tuple(eps.shape))
        clean, raw = x @ g.T, x @ n.T
        right = clean + eps * F.softplus(raw) if training else clean
        mistakes = [
            ("there is noise in evaluation; the router should be the same each time",
             clean + eps * F.softplus(raw)),
            ("there is no noise at all; in training there should be", clean),
            ("the noise is scaled by the gate's own weights; its size has weights of its own",
             clean + eps * F.softplus(clean)),
            ("without the softplus a deviation can be negative, and starts at 0",
             clean + eps * raw),
            ("that is exp, not softplus: ln(1 + e^a)", clean + eps * raw.exp()),
            ("a ReLU gives no noise where it is negative, and no gradient to grow it",
             clean + eps * raw.relu()),
            ("softplus gives the standard deviation itself; no square root of it",
             clean + eps * F.softplus(raw).sqrt()),
            ("the noise is added to the score, not multiplied with it",
             clean * (1 + eps * F.softplus(raw))),
            ("the noise has the same size everywhere; it should depend on the token",
             clean + eps),
            ("the size was added without the random numbers: that is a shift, not noise",
             clean + F.softplus(raw)),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "not clean + normal × softplus")

    # softplus of 0, ln 3, -ln 3 is ln 2, ln 4, ln 4/3: scores 1 + 0.6931, 2 - 1.3863, 3 + 0.2877.
    run(
        "x = [[1]], w_gate = [[1], [2], [3]], w_noise = [[0], [ln 3], [-ln 3]], "
        "normal = [[1, -1, 1]], training",
        torch.ones(1, 1), torch.tensor([[1.0], [2.0], [3.0]]),
        torch.tensor([[1.0], [3.0], [1 / 3]]).log(), torch.tensor([[1.0, -1.0, 1.0]]), True,
    )  # fmt: skip
    for training in (True, False):
        run(f"five tokens, four experts, training={training}",
            randn(0, 5, 3), randn(1, 4, 3), randn(2, 4, 3), randn(3, 5, 4), training)  # fmt: skip
    weights = randn(1, 4, 3).requires_grad_(), randn(2, 4, 3).requires_grad_()
    scores_TE = call(exercise, noisy_scores, randn(0, 5, 3), *weights, randn(3, 5, 4), True,
                     on="weights that need a gradient")  # fmt: skip
    slopes = (
        torch.autograd.grad(scores_TE.square().sum(), weights, allow_unused=True)
        if scores_TE.requires_grad
        else (None, None)
    )
    for name, slope in zip(("w_gate", "w_noise"), slopes, strict=True):
        if slope is None:
            raise CheckFailed(f"{exercise}: right scores, but no gradient reaches {name}")
    passed(exercise, "noise in training, of its own learned size, and none in evaluation.")


# --- the probability -----------------------------------------------------------------------------

Probability = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(clean_TE, noisy_TE, std_TE, k) -> p_TE."""


def check_prob_in_top_k(prob: Probability) -> None:
    """Check eqs. 8-9: (clean_TE, noisy_TE, std_TE, k) -> p_TE.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "prob_in_top_k"

    def run(given: str, clean: Tensor, noisy: Tensor, std: Tensor, k: int) -> None:
        yours = call(exercise, prob, clean, noisy, std, k, on=given)
        _tensor(exercise, yours, tuple(clean.shape))
        E = clean.shape[1]
        right = prob_in_top_k(clean, noisy, std, k)
        if k == E:
            otherwise = "with k = E everyone is always chosen: there is no bar, and P is 1"
            expect(exercise, given, yours, right, [], otherwise)
            return
        phi, top = torch.special.ndtr, noisy.topk(k + 1).values
        bar, kth, behind = kth_excluding(noisy, k), top[:, k - 1 : k], top[:, k:]
        mistakes = [
            ("the bar is the k-th of all: an expert that is in would have to beat itself",
             phi((clean - kth) / std)),
            ("the bar is the k+1-th of all: right for those that are in, too low for the others",
             phi((clean - behind) / std)),
            ("the two bars are swapped: who is in has to beat the one behind",
             phi((clean - torch.where(noisy > behind, kth, behind)) / std)),
            ("the noise is drawn again, so the bell is centred on the clean score",
             phi((noisy - bar) / std)),
            ("the bar is made of the others' noisy scores: their noise stays as it is",
             phi((clean - kth_excluding(clean, k)) / std)),
            ("the distance has to be measured in standard deviations: divide by std",
             phi(clean - bar)),
            ("std is a standard deviation, not a variance", phi((clean - bar) / std.sqrt())),
            ("that is the probability to stay below the bar", phi((bar - clean) / std)),
            ("a step has no slope: this says whether, not how probably",
             (noisy > behind).to(clean.dtype)),
            ("that is the normal density; Phi is the area below it",
             torch.exp(-(((clean - bar) / std) ** 2) / 2) / (2 * torch.pi) ** 0.5),
            ("that is a logistic curve; the noise is normal, so it is Phi",
             torch.sigmoid((clean - bar) / std)),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "not Phi((clean - bar) / std)")

    clean = torch.tensor([[5.0, 1.0, 3.0, 2.0]])
    # The bars are 2, 3, 2, 3, and with a deviation of 2: Phi(1.5), Phi(-1), Phi(0.5), Phi(-0.5).
    given = "clean = noisy = [[5, 1, 3, 2]], std = 2, k = 2"
    run(given, clean, clean, torch.full((1, 4), 2.0), 2)
    noisy, std = randn(1, 6, 5), 0.3 + randn(2, 6, 5).abs()
    for k in (2, 1, 4):
        run(f"six tokens, five experts, k = {k}", randn(0, 6, 5), noisy, std, k)
    run("six tokens, five experts, k = 5", randn(0, 6, 5), noisy, std, 5)
    leaf = randn(0, 6, 5).requires_grad_()
    p_TE = call(exercise, prob, leaf, noisy, std, 2, on="clean scores that need a gradient")
    if not p_TE.requires_grad or not torch.autograd.grad(p_TE.sum(), leaf)[0].any():
        raise CheckFailed(f"{exercise}: right values, but no gradient reaches the clean scores")
    passed(exercise, "what an expert's bell has beyond the k-th best of the others.")


# --- three real bugs -----------------------------------------------------------------------------


def check_top1_gate(top1_gate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check a top-1 gate from which a router can learn: scores_TE -> (gate_T, expert_T).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "top1_gate"

    def run(given: str, scores_TE: Tensor) -> None:
        yours = call(exercise, top1_gate, scores_TE, on=given)
        T = len(scores_TE)
        if not isinstance(yours, tuple) or [getattr(y, "shape", None) for y in yours] != [(T,)] * 2:
            raise CheckFailed(f"{exercise}: return two tensors of shape ({T},): gate_T, expert_T")
        best_T, expert_T = scores_TE.softmax(-1).max(-1)
        mistakes = [
            ("the gate is 1 whatever the score: the softmax has only one score left to look at",
             (torch.ones(T), expert_T)),
            ("that is the score itself; the gate is its share in the softmax over all",
             (scores_TE.amax(-1), expert_T)),
            ("that is each score's own sigmoid; in a softmax the experts compete",
             (scores_TE.amax(-1).sigmoid(), expert_T)),
            ("that is the logarithm of the gate", (best_T.log(), expert_T)),
        ]  # fmt: skip
        expect(exercise, given, yours, (best_T, expert_T), mistakes, "not the best probability")

    run("the logarithms of [[1, 7, 2]]", torch.tensor([[1.0, 7.0, 2.0]]).log())  # 7/10
    run("six tokens, five experts", randn(0, 6, 5))
    scores_TE = randn(0, 6, 5).requires_grad_()
    gate_T = call(exercise, top1_gate, scores_TE, on="scores that need a gradient")[0]
    right = torch.autograd.grad(scores_TE.softmax(-1).amax(-1).sum(), scores_TE)[0]
    if not gate_T.requires_grad:
        raise CheckFailed(f"{exercise}: right gates, but no gradient reaches the scores")
    yours = torch.autograd.grad(gate_T.sum(), scores_TE)[0]
    given = "the gradient of the sum of the gates"
    expect(exercise, given, yours, right, [], "right gates, but not their gradient")
    passed(exercise, "one expert each, and a gate that knows the others were there.")


Load = Callable[[Tensor, Tensor, "Tensor | None", int], Tensor]
"""(clean_TE, noisy_TE, std_TE or None, k) -> load_E."""


def check_load_anywhere(load: Load) -> None:
    """Check a load that works in training and evaluation: (clean, noisy, std or None, k) -> load_E.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "load_anywhere"
    count = "without noise there is nothing to ask a probability about: count who was chosen"

    def run(given: str, clean: Tensor, noisy: Tensor, std: Tensor | None, k: int) -> None:
        yours = call(exercise, load, clean, noisy, std, k, on=given)
        _tensor(exercise, yours, (clean.shape[1],))
        counts_E = (_gates(noisy, k) > 0).sum(0).float()
        if yours.isnan().any():
            raise CheckFailed(
                f"{exercise}: 0 / 0 is not a number, and one NaN makes the whole load one; {count}"
                f"\n  given    {given}"
            )
        if std is None:
            soft_E = prob_in_top_k(clean, noisy, torch.ones_like(clean), k).sum(0)
            mistakes: Mistakes = [
                (f"this takes a noise of size 1 where there is none; {count}", soft_E),
                ("no load at all in evaluation; it is wanted there to watch the balance",
                 torch.zeros_like(counts_E)),
                ("these are sums of gates, the importance; load counts tokens",
                 _gates(noisy, k).sum(0)),
            ]  # fmt: skip
            right, otherwise = counts_E, count
        else:
            right = prob_in_top_k(clean, noisy, std, k).sum(0)
            mistakes = [
                ("in training a count has no gradient: sum the probabilities", counts_E),
                ("the load is a sum over the batch, not a mean", right / len(clean)),
            ]
            otherwise = "not the sum of P(x, i) over the tokens"
        expect(exercise, given, yours.float(), right, mistakes, otherwise)

    clean, noisy, std = randn(0, 9, 5), randn(1, 9, 5), 0.3 + randn(2, 9, 5).abs()
    run("nine tokens, five experts, k = 2, with noise", clean, noisy, std, 2)
    run("nine tokens, five experts, k = 2, std = None", clean, clean, None, 2)
    run("four tokens whose scores all tie, k = 2, std = None",
        torch.zeros(4, 3), torch.zeros(4, 3), None, 2)  # fmt: skip
    leaf = randn(0, 9, 5).requires_grad_()
    soft_E = call(exercise, load, leaf, noisy, std, 2, on="clean scores that need a gradient")
    if not soft_E.requires_grad:
        raise CheckFailed(f"{exercise}: right loads, but no gradient reaches the clean scores")
    passed(exercise, "smooth where there is noise, a count where there is none, never 0 / 0.")
