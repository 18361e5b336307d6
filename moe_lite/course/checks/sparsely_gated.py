"""The checks of chapter 04: how do you skip the work without losing the gradient?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .verdict import FINITE_FILL, Check, Mistakes, far_below, number, randn


def check_sparse_gates(sparse_gates: Callable[[Tensor, int], Tensor]) -> None:
    """Check softmax(KeepTopK(scores, k)): (scores_TE, k) -> gates_TE, zero where not chosen."""

    def mistakes(scores_TE: Tensor, k: int) -> Mistakes:
        right_TE, probs_TE = _gates(scores_TE, k), scores_TE.softmax(-1)
        chosen_TE, least_TE = _chosen(scores_TE, k), _chosen(-scores_TE, k)
        kept_TE = scores_TE.where(chosen_TE, -torch.inf)
        column_TE = _gates(scores_TE.mT, min(k, len(scores_TE))).mT
        more_TE, fewer_TE = (_gates(scores_TE, min(max(n, 1), scores_TE.shape[1]))
                             for n in (k + 1, k - 1))  # fmt: skip
        positive_TE = (scores_TE * chosen_TE).clamp(min=0)
        by_expert = "each expert keeps its k best tokens (dim 0); each token keeps its k experts"
        twice = "the kept gates went through a second softmax, in which 0 counts too"
        return [
            ("the scores that were not kept became 0, and exp(0) is 1: they take a share; use -inf",
             scores_TE.where(chosen_TE, 0.0).softmax(-1)),
            ("the scores that were not kept became a small number, and still take a share; use "
             "-inf", scores_TE.where(chosen_TE, -10.0).softmax(-1)),
            ("a token's gates must add up to 1; here the softmax ran before the others were "
             "dropped", probs_TE.where(chosen_TE, 0.0)),
            ("nothing was dropped: this is the dense gate of 1991", probs_TE),
            ("these are the lowest scores", scores_TE.where(least_TE, -torch.inf).softmax(-1)),
            ("the softmax runs over the tokens (dim 0), not the experts",
             kept_TE.softmax(0).nan_to_num()),
            (by_expert, column_TE),
            (by_expert, scores_TE.where(column_TE > 0, -torch.inf).softmax(-1).nan_to_num()),
            ("these are the kept scores; a gate is their softmax", scores_TE.where(chosen_TE, 0.0)),
            ("the kept scores are divided by their sum; their exponentials should be",
             positive_TE / positive_TE.sum(-1, keepdim=True)),
            ("each chosen expert counts the same; a gate is soft", chosen_TE / k),
            ("these are the gates of the chosen alone; give zeros for the others, in their places",
             scores_TE.topk(k).values.softmax(-1)),
            ("one expert too many is kept", more_TE),
            ("one expert too few is kept", fewer_TE),
            (twice, right_TE.softmax(-1))]  # fmt: skip

    check = Check("sparse_gates", sparse_gates, _gates, mistakes,
                  "these are not the softmax over each token's k highest scores")  # fmt: skip
    # exp of these scores is 4, 1, 3, 2: with k = 2 the gates are 4/7 and 3/7.
    check.on("the logarithms of [[4, 1, 3, 2], [1, 1, 2, 6]], k = 2",
             torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 2.0, 6.0]]).log(), 2)  # fmt: skip
    check.on("scores [[-1, -2, -3]], all below zero, k = 2", torch.tensor([[-1.0, -2.0, -3.0]]), 2)
    for T, E, k in ((6, 5, 1), (6, 5, 3), (5, 5, 2), (6, 5, 5), (1, 8, 2)):
        check.on(f"tokens: {T}, experts: {E}, k = {k}", randn(k, T, E), k)
    check.on("scores [[60, 59, -60]], k = 2", torch.tensor([[60.0, 59.0, -60.0]]), 2)
    check.slopes("four tokens, five experts, k = 2", randn(0, 4, 5), 2, of={"the scores": 0})
    check.judge()
    # Scores around 0 and lower, but not so low that exp by hand is 0 for all.
    zeros = Check("sparse_gates", sparse_gates, lambda *args: ~_chosen(*args),
                  see=lambda gates_TE, *args: number(gates_TE) == 0, otherwise="a gate that was "
                  "not chosen has to be exactly 0: a finite number is a score like others, so mask "
                  "with -inf")  # fmt: skip
    for low in (0, 60):
        given = f"four tokens whose scores lie around {-low}, five experts, k = 2; where is it 0?"
        zeros.on(given, randn(6, 4, 5) - low, 2)
    zeros.judge()
    # Which of those that tie are chosen is free: the gates are compared in order of size.
    ties = Check("sparse_gates", sparse_gates, lambda *args: _in_order(_gates(*args)),
                 lambda scores_TE, k: [
                     ("k experts are kept, also where scores tie: >= the k-th keeps all that tie",
                      _in_order(_at_least_kth(scores_TE, k))),
                     ("k experts are kept, also where scores tie: > the k-th keeps none that tie",
                      _in_order(scores_TE.where(scores_TE > scores_TE.topk(k).values[:, -1:],
                                                -torch.inf).softmax(-1)))],
                 "not k gates that add up to 1", see=_in_order)  # fmt: skip
    ties.on("scores [[0, 0, 0, 0]], which all tie, k = 2", torch.zeros(1, 4), 2)
    ties.on("scores [[1, 2, 1, 1], [3, 3, 3, 0]], k = 2",
            torch.tensor([[1.0, 2.0, 1.0, 1.0], [3.0, 3.0, 3.0, 0.0]]), 2)  # fmt: skip
    ties.passed("zero for whoever was not chosen, 1 in all, and a slope for the k chosen.")


def _gates(scores_TE: Tensor, k: int) -> Tensor:
    top_TK, expert_TK = scores_TE.topk(k)
    return torch.zeros_like(scores_TE).scatter(1, expert_TK, top_TK.softmax(-1))


def _chosen(scores_TE: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores_TE).scatter(1, scores_TE.topk(k).indices, 1.0).bool()


def _at_least_kth(scores_TE: Tensor, k: int) -> Tensor:
    return scores_TE.where(scores_TE >= scores_TE.topk(k).values[:, -1:], -torch.inf).softmax(-1)


def _in_order(gates_TE: Any, *args: Any) -> Any:
    found = number(gates_TE)
    return gates_TE if found is None else found.sort(-1, descending=True).values


Scores = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]
"""(x_TD, w_gate_ED, w_noise_ED, normal_TE, training) -> scores_TE."""


def check_noisy_scores(noisy_scores: Scores) -> None:
    """Check eq. 4: (x_TD, w_gate_ED, w_noise_ED, normal_TE, training) -> scores_TE."""

    def right(x: Tensor, g: Tensor, n: Tensor, eps: Tensor, training: bool) -> Tensor:
        return x @ g.T + eps * F.softplus(x @ n.T) if training else x @ g.T

    def mistakes(x: Tensor, g: Tensor, n: Tensor, eps: Tensor, training: bool) -> Mistakes:
        clean, raw = x @ g.T, x @ n.T
        soft = F.softplus(raw)

        def noise(what: Tensor) -> Tensor:
            return clean + what if training else clean

        return [
            ("there is noise in evaluation; there should be none", clean + eps * soft),
            ("there is no noise at all; in training there should be", clean),
            ("training and evaluation: the two are exchanged", right(x, g, n, eps, not training)),
            ("the noise is scaled by the gate's own weights; its size has weights of its own",
             noise(eps * F.softplus(clean))),
            ("the noise is scaled by the gate's own weights, in evaluation too: two mistakes",
             clean + eps * F.softplus(clean)),
            ("w_gate and w_noise are swapped", right(x, n, g, eps, training)),
            ("without the softplus a deviation can be negative, and starts at 0", noise(eps * raw)),
            ("that is exp, not softplus: ln(1 + e^a)", noise(eps * raw.exp())),
            ("a ReLU gives no noise below 0, and no gradient to grow it", noise(eps * raw.relu())),
            ("that is a sigmoid; softplus is ln(1 + e^a)", noise(eps * raw.sigmoid())),
            ("softplus is the deviation itself; no square root of it", noise(eps * soft.sqrt())),
            ("softplus is the deviation itself; no square of it", noise(eps * soft.square())),
            ("noise is added, not multiplied", clean * (1 + eps * soft) if training else clean),
            ("the noise has the same size everywhere; it should depend on the token", noise(eps)),
            ("the size without the random numbers: that is a shift, not noise", noise(soft)),
            ("the softplus is of noise times size: multiply after", noise(F.softplus(eps * raw))),
            ("the softplus is of the random numbers, not the size", noise(F.softplus(eps) * raw)),
            ("0.01 is added to the deviation, as published code does; equation 4 has nothing",
             noise(eps * (soft + 0.01))),
            ("the noise is taken away; it is added", noise(-eps * soft)),
            ("the softmax of the scores", right(x, g, n, eps, training).softmax(-1))]  # fmt: skip

    check = Check("noisy_scores", noisy_scores, right, mistakes, "not clean + normal × softplus")
    # softplus of 0, ln 3, -ln 3 is ln 2, ln 4, ln 4/3: scores 1 + 0.6931, 2 - 1.3863, 3 + 0.2877.
    check.on(
        "x = [[1]], w_gate = [[1], [2], [3]], w_noise = [[0], [ln 3], [-ln 3]], "
        "normal = [[1, -1, 1]], training",
        torch.ones(1, 1), torch.tensor([[1.0], [2.0], [3.0]]),
        torch.tensor([[1.0], [3.0], [1 / 3]]).log(), torch.tensor([[1.0, -1.0, 1.0]]), True,
    )  # fmt: skip
    for T, E, D in ((5, 4, 3), (4, 4, 4), (1, 6, 2)):
        for training in (True, False):
            check.on(f"tokens: {T}, experts: {E}, training={training}", randn(0, T, D),
                     randn(1, E, D), randn(2, E, D), randn(3, T, E), training)  # fmt: skip
    check.slopes("weights that need a gradient", randn(0, 5, 3), randn(1, 4, 3), randn(2, 4, 3),
                 randn(3, 5, 4), True, of={"w_gate": 1, "w_noise": 2})  # fmt: skip
    check.passed("noise in training, of its own learned size, and none in evaluation.")


Probability = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(clean_TE, noisy_TE, std_TE, k) -> p_TE."""


def _bar(noisy: Tensor, k: int) -> Tensor:
    """Return the k-th highest score of the others, -inf where there are fewer, the slow way."""
    T, E = noisy.shape
    others = noisy[:, None].expand(T, E, E).masked_fill(torch.eye(E).bool(), -torch.inf)
    return others.topk(k).values[..., -1] if k <= E else torch.full_like(noisy, -torch.inf)


def _prob(clean: Tensor, noisy: Tensor, std: Tensor, k: int) -> Tensor:
    bar = _bar(noisy, k)
    z = ((clean - bar.where(bar.isfinite(), 0.0)) / std).where(bar.isfinite(), torch.inf)
    return torch.special.ndtr(z)


def check_prob_in_top_k(prob: Probability) -> None:
    """Check eqs. 8-9: (clean_TE, noisy_TE, std_TE, k) -> p_TE."""

    def mistakes(clean: Tensor, noisy: Tensor, std: Tensor, k: int) -> Mistakes:
        phi, E, bar = torch.special.ndtr, noisy.shape[1], _bar(noisy, k)
        top = F.pad(noisy, (0, 1), value=-torch.inf).topk(k + 1).values
        kth, behind = top[:, k - 1 : k], top[:, k:]
        z = (clean - bar) / std

        def cut(value: Tensor) -> Tensor:  # the case k = E is right in these
            return torch.ones_like(value) if k == E else value

        return [
            ("an expert that is in would have to beat itself", cut(phi((clean - kth) / std))),
            ("the bar is the k+1-th of all: right for those that are in, too low for the others",
             cut(phi((clean - behind) / std))),
            ("the two bars are swapped: who is in has to beat the one behind",
             cut(phi((clean - torch.where(noisy > behind, kth, behind)) / std))),
            ("the bar is the others' k+1-th, one too low", phi((clean - _bar(noisy, k + 1)) / std)),
            ("the bar is the k-1-th of the others, which is one too high",
             phi((clean - _bar(noisy, k - 1)) / std) if k > 1 else None),
            ("the bell is centred on the clean score", cut(phi((noisy - bar) / std))),
            ("the bar is made of the others' noisy scores: their noise stays as it is",
             phi((clean - _bar(clean, k)) / std)),
            ("the distance is measured in standard deviations: divide by std", phi(clean - bar)),
            ("std is a standard deviation, not a variance", phi((clean - bar) / std.sqrt())),
            ("std is a standard deviation, not a variance: no square", phi((clean - bar) / std**2)),
            ("the distance is multiplied by std: divide", cut(phi((clean - bar) * std))),
            ("in Phi(z) = (1 + erf(z / √2)) / 2 the √2 is missing", (1 + torch.erf(z)) / 2),
            ("erf is not Phi: Phi(z) is (1 + erf(z / √2)) / 2", torch.erf(z / math.sqrt(2))),
            ("that is the probability to stay below the bar", cut(phi(-z))),
            ("a step has no slope: how probably?", cut((noisy > behind).to(clean.dtype))),
            ("that is the normal density; Phi is the area below it",
             cut(torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5)),
            ("that is a logistic curve; the noise is normal, so it is Phi", torch.sigmoid(z)),
            ("that is the distance in deviations; Phi makes a probability of it", cut(z)),
            ("that is the logarithm of the probability", torch.special.log_ndtr(z))]  # fmt: skip

    full = "with k = E everyone is always chosen: there is no bar, and P is 1"
    check = Check("prob_in_top_k", prob, _prob, mistakes, "not Phi((clean - bar) / std)")
    # The bars are 2, 3, 2, 3, and with a deviation of 2: Phi(1.5), Phi(-1), Phi(0.5), Phi(-0.5).
    clean = torch.tensor([[5.0, 1.0, 3.0, 2.0]])
    check.on("clean = noisy = [[5, 1, 3, 2]], std = 2, k = 2", clean, clean,
             torch.full((1, 4), 2.0), 2)  # fmt: skip
    for seed, (T, E, k) in enumerate(((6, 5, 2), (6, 5, 1), (6, 5, 4), (1, 8, 3), (9, 3, 2))):
        check.on(f"tokens: {T}, experts: {E}, k = {k}", randn(seed, T, E), randn(seed + 9, T, E),
                 0.3 + randn(seed + 18, T, E).abs(), k)  # fmt: skip
    check.on("scores that are far apart", 40 * randn(4, 3, 4), 40 * randn(5, 3, 4),
             0.1 + randn(6, 3, 4).abs(), 2)  # fmt: skip
    random = randn(0, 6, 5), randn(1, 6, 5), 0.3 + randn(2, 6, 5).abs()
    check.on("six tokens, five experts, k = 5", *random, 5, otherwise=full)
    for k in (2, 5):
        check.on(f"scores around -200, k = {k}", far_below(0, 6, 5), far_below(1, 6, 5),
                 1 - (randn(2, 6, 5) > 0) / 2, k, otherwise=FINITE_FILL)  # fmt: skip
    check.slopes("six tokens, k = 2", *random, 2, of={"the clean scores": 0, "std": 2})
    check.passed("what an expert's bell has beyond the k-th best of the others.")


def check_top1_gate(top1_gate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check a top-1 gate from which a router can learn: scores_TE -> (gate_T, expert_T)."""

    def mistakes(scores_TE: Tensor) -> Mistakes:
        top_T, expert_T, T = scores_TE.amax(-1), scores_TE.argmax(-1), len(scores_TE)
        probs_TE = scores_TE.softmax(-1)
        two_T2 = scores_TE.topk(2).values
        return [
            ("the gate is 1 whatever the score, as of a softmax of one", (torch.ones(T), ...)),
            ("that is the score itself; the gate is its share in the softmax", (top_T, ...)),
            ("each score's own sigmoid; in a softmax the experts compete", (top_T.sigmoid(), ...)),
            ("that is the logarithm of the gate", (probs_TE.amax(-1).log(), ...)),
            ("the softmax runs over the tokens (dim 0), not the experts",
             (scores_TE.softmax(0).gather(1, expert_T[:, None])[:, 0], ...)),
            ("the softmax runs over the tokens' best scores", (top_T.softmax(0), ...)),
            ("the softmax is over the two best; it is over all", (two_T2.softmax(-1)[:, 0], ...)),
            ("these are all the probabilities; the gate is that of the chosen", (probs_TE, ...)),
            ("a second softmax was taken", (probs_TE.softmax(-1).amax(-1), ...)),
            ("these are the worst experts; choose the best", (..., scores_TE.argmin(-1))),
            ("experts chose tokens (dim 0); tokens choose", (..., scores_TE.argmax(0))),
        ]  # fmt: skip

    check = Check("top1_gate", top1_gate, lambda scores_TE: tuple(scores_TE.softmax(-1).max(-1)),
                  mistakes, "not the best probability and whose it is",
                  parts=("gate_T", "expert_T"))  # fmt: skip
    check.on("the logarithms of [[1, 7, 2]]", torch.tensor([[1.0, 7.0, 2.0]]).log())  # 7/10
    for T, E in ((6, 5), (5, 5), (3, 2)):
        check.on(f"tokens: {T}, experts: {E}", randn(T, T, E))
    check.on("scores [[200, 100, 0]]", torch.tensor([[200.0, 100.0, 0.0]]))
    check.slopes("six tokens, five experts", randn(0, 6, 5), of={"the scores": 0})
    check.passed("one expert each, and a gate that knows the others were there.")


def _total(load_E: Any, *args: Any) -> Any:
    found = number(load_E)
    return load_E if found is None else found.sum()


Load = Callable[[Tensor, Tensor, "Tensor | None", int], Tensor]
"""(clean_TE, noisy_TE, std_TE or None, k) -> load_E."""


def check_load_anywhere(load: Load) -> None:
    """Check a load that works in training and evaluation: (clean, noisy, std or None, k) -> load_E.

    With noise it is the sum of probabilities, without it the number of tokens that chose.
    """
    count = "without noise there is nothing to ask a probability about: count who was chosen"

    def right(clean: Tensor, noisy: Tensor, std: Tensor | None, k: int) -> Tensor:
        if std is None:
            return _chosen(noisy, k).sum(0).to(clean)
        return _prob(clean, noisy, std, k).sum(0)

    def mistakes(clean: Tensor, noisy: Tensor, std: Tensor | None, k: int) -> Mistakes:
        T, right_E, gates_TE = len(clean), right(clean, noisy, std, k), _gates(noisy, k)
        counts_E, bare = _chosen(noisy, k).sum(0).to(clean), std is None
        soft_E = _prob(clean, noisy, torch.ones_like(clean), k).sum(0)
        return [
            (f"this takes a noise of size 1 where there is none; {count}",
             soft_E if bare else right_E),
            ("no load at all in evaluation; it is wanted there to watch the balance",
             torch.zeros_like(counts_E) if bare else right_E),
            ("these are sums of gates; load counts tokens", gates_TE.sum(0) if bare else right_E),
            ("these are sums of gates, the importance, with noise and without", gates_TE.sum(0)),
            ("in training a count has no gradient: sum the probabilities", counts_E),
            ("the load is a sum over the batch, not a mean", right_E / T),
            ("the load is a sum over the batch, not a mean", counts_E / T if bare else right_E),
            ("only first choices are counted; each token counts for k experts",
             _chosen(noisy, 1).sum(0).to(clean) if bare else right_E),
            ("the size of the noise is not used", counts_E if bare else soft_E),
            ("an expert that nobody chose has a load too, 0: give bincount a minlength",
             noisy.topk(k).indices.flatten().bincount() if bare else right_E),
            ("counts made shares of the pairs; load counts tokens", right_E / right_E.sum()),
            ("this is the load of each token; sum over the tokens, not over the experts",
             _chosen(noisy, k).sum(1) if std is None else _prob(clean, noisy, std, k).sum(1)),
        ]  # fmt: skip

    nan = f"0 / 0 is not a number, and one NaN makes the whole load one; {count}"
    otherwise = "not the sum of P(x, i) over the tokens, or the count without noise"
    check = Check("load_anywhere", load, right, mistakes, otherwise, nan=nan)
    for seed, (T, E, k) in enumerate(((9, 5, 2), (6, 4, 1), (7, 3, 2))):
        clean, noisy = randn(seed, T, E), randn(seed + 9, T, E)
        std = 0.3 + randn(seed + 18, T, E).abs()
        check.on(f"tokens: {T}, experts: {E}, k = {k}, with noise", clean, noisy, std, k)
        check.on(f"tokens: {T}, experts: {E}, k = {k}, std = None", clean, clean, None, k,
                 otherwise=count)  # fmt: skip
    idle = randn(1, 6, 4) - torch.tensor([0.0, 0, 0, 9])
    check.on("six tokens of which none chooses the last expert, std = None", idle, idle, None, 2,
             otherwise=count)  # fmt: skip
    clean, noisy, std = randn(0, 9, 5), randn(9, 9, 5), 0.3 + randn(18, 9, 5).abs()
    for size, how in ((1 - (std > 1) / 2, "with noise"), (None, "std = None")):
        check.on(f"scores around -200, k = 2, {how}", far_below(0, 9, 5),
                 far_below(0 if size is None else 9, 9, 5), size, 2,
                 otherwise=FINITE_FILL)  # fmt: skip
    check.slopes("nine tokens, k = 2", clean, noisy, std, 2, of={"the clean scores": 0, "std": 2})
    check.judge()
    # Which of those that tie are counted is free: the sum over the experts is compared.
    ties = Check("load_anywhere", load, lambda clean, noisy, std, k: float(len(clean) * k),
                 lambda clean, noisy, std, k: [
                     ("each token counts for exactly k experts: >= the k-th counts all that tie",
                      (_at_least_kth(noisy, k) > 0).sum()),
                     ("a noise however small settles all but a tie, and there every expert counts "
                      f"half; {count}", _prob(clean, noisy, torch.full_like(clean, 1e-6), k).sum()),
                     ("each token counts for exactly k experts: > the k-th counts none that tie",
                      (noisy > noisy.topk(k).values[:, -1:]).sum())],
                 "each token counts for exactly k experts", nan=nan, see=_total)  # fmt: skip
    ties.on("four tokens whose three scores all tie, k = 2, std = None; the sum of the loads",
            torch.zeros(4, 3), torch.zeros(4, 3), None, 2)  # fmt: skip
    ties.on("scores [[1, 2, 1, 1, 0], [3, 3, 3, 0, 1]], k = 2, std = None; the sum of the loads",
            *[torch.tensor([[1.0, 2, 1, 1, 0], [3.0, 3, 3, 0, 1]])] * 2, None, 2)  # fmt: skip
    ties.passed("smooth where there is noise, a count where there is none, never 0 / 0.")
