"""The checks of chapter 16: how do you adapt a sparse model?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .verdict import FINITE_FILL, UNDERFLOW, Check, Mistakes, far_below, fit, number, randn, refuse


def check_quantize(quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check int8 by rows: w_FD -> (q_FD int8, scale_F1), so that q * scale is close to w."""
    check = Check("quantize", quantize, lambda w_FD: True, see=_is_close)
    check.on("[[1, -2, 0.5], [100, 50, -25]]", torch.tensor([[1.0, -2, 0.5], [100, 50, -25]]))
    check.on("random rows of many sizes", randn(0, 6, 40) * torch.logspace(-3, 2, 6)[:, None])
    check.on("six random rows of about 1e-6", 1e-6 * randn(4, 6, 40))
    check.on("a row of zeros", torch.cat([torch.zeros(1, 5), randn(1, 2, 5)]))
    check.on("one column", randn(2, 4, 1))
    check.on("weights that are all below zero", -randn(3, 5, 8).abs())
    check.passed("a byte for each weight, a scale for each row, half a step of error.")


def _is_close(value: Any, w_FD: Tensor) -> bool:
    def wrong(why: str) -> None:
        refuse("quantize", why)

    pair = fit(value, (w_FD, w_FD))
    both = isinstance(pair, tuple) and len(pair) == 2
    q_FD, scale_F1 = map(number, pair) if both else (None, None)
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
    own_F1 = largest / 127
    low_F1 = (scale_F1 > 1.01 * own_F1) & (largest > 0)
    if low_F1.any():
        floor, more = scale_F1[low_F1], (scale_F1 - own_F1)[low_F1]
        rest = own_F1[~low_F1 & (largest > 0)].tolist()
        flat = any(part.max() <= 1.01 * part.min() for part in (floor, more))
        if flat and (floor.max() < 0.99 * min(rest) if rest else F > 2):
            wrong("right for large weights only: the clamp or eps that keeps a row of zeros from "
                  "0 / 0 is not small beside a small row's scale")  # fmt: skip
    if w_FD.any() and (q_FD.to(torch.int16).abs().amax(1)[w_FD.any(1)] < 100).any():
        wrong("not the whole range of int8: the largest of each row is to be 127")
    if worst > 0.51:
        wrong(f"q * scale is up to {worst:.3g} steps away from w; rounding costs half a step, the "
              "step being the row's largest absolute value / 127")  # fmt: skip
    return True


def _means(value_N: Tensor, expert_N: Tensor, E: int, per: Tensor | None = None) -> Tensor:
    """Add up each expert's pairs and divide, by their number unless told by what."""
    sum_E = torch.zeros(E, dtype=value_N.dtype).index_add(0, expert_N, value_N)
    return sum_E / (expert_N.bincount(minlength=E).clamp(min=1) if per is None else per)


def check_reap(reap: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """Check REAP's score: (expert_N, gate_N, answer_ND, num_experts) -> score_E."""

    def right(expert_N: Tensor, gate_N: Tensor, answer_ND: Tensor, E: int) -> Tensor:
        return _means(gate_N * answer_ND.norm(dim=-1), expert_N, E)

    def mistakes(expert_N: Tensor, gate_N: Tensor, answer_ND: Tensor, E: int) -> Mistakes:
        length_N, many = answer_ND.norm(dim=-1), torch.tensor(float(len(expert_N)))
        one = torch.tensor(1.0)
        middle_ED = torch.stack([_means(gate_N * x_N, expert_N, E) for x_N in answer_ND.T], 1)
        last_E = torch.zeros(E)
        for e, value in zip(expert_N, gate_N * length_N, strict=True):
            last_E[e] = value
        return [
            ("that is a sum; the mean does not ask how often an expert is used",
             _means(gate_N * length_N, expert_N, E, one)),
            ("divide by the expert's own pairs, not by all: else a busy one is ahead again",
             _means(gate_N * length_N, expert_N, E, many)),
            ("this is use, the share of pairs; REAP looks at what an expert does",
             expert_N.bincount(minlength=E) / many),
            ("the gates are left out: an answer counts as much as it is weighed",
             _means(length_N, expert_N, E)),
            ("these are the gates alone; how long is the answer?", _means(gate_N, expert_N, E)),
            ("the length is the root of the sum of squares; this is its square",
             _means(gate_N * length_N**2, expert_N, E)),
            ("the length is the root of the sum of squares, not the sum of absolute values",
             _means(gate_N * answer_ND.abs().sum(-1), expert_N, E)),
            ("the length first, then the mean: answers that point apart cancel in a sum of vectors",
             middle_ED.norm(dim=-1)),
            ("divide by how many pairs an expert has, not by the sum of their gates",
             _means(gate_N * length_N, expert_N, E)
             / _means(gate_N, expert_N, E).where(expert_N.bincount(minlength=E) > 0, one)),
            ("sum_E[expert_N] += ... keeps one pair of each expert; index_add adds them all up",
             last_E / expert_N.bincount(minlength=E).clamp(min=1)),
            ("a mean of products is not the product of two means",
             _means(gate_N, expert_N, E) * _means(length_N, expert_N, E))]  # fmt: skip

    wrong = "not the mean over an expert's pairs of gate times length of the answer"
    check = Check("reap", reap, right, mistakes, wrong)
    # Expert 0: 0.5 x 5 and 0.25 x 2, mean 1.5; expert 1: 0.75 x 2; expert 2: nobody came.
    check.on("experts [0, 1, 0], gates [0.5, 0.75, 0.25], answers [[3, 4], [0, -2], [0, 2]], E = 3",
             torch.tensor([0, 1, 0]), torch.tensor([0.5, 0.75, 0.25]),
             torch.tensor([[3.0, 4], [0, -2], [0, 2]]), 3)  # fmt: skip
    for seed, (N, E, D) in enumerate(((40, 4, 3), (60, 8, 5), (12, 2, 7))):
        expert_N = randn(seed, N, E).argmax(1)
        gate_N = randn(seed + 9, N).sigmoid()
        check.on(f"{N} pairs, {E} experts", expert_N, gate_N, randn(seed + 5, N, D), E)
    check.passed("what an expert says, weighed as it is weighed, however often it is asked.")


def check_prune_router(prune: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check pruning the router: (router_ED, score_E, drop) -> (its rows that stay, number_E)."""

    def right(router_ED: Tensor, score_E: Tensor, drop: int) -> tuple[Tensor, Tensor]:
        keep = score_E.argsort(descending=True)[: len(score_E) - drop].sort().values
        number_E = torch.full((len(score_E),), -1)
        number_E[keep] = torch.arange(len(keep))
        return router_ED[keep], number_E

    def mistakes(router_ED: Tensor, score_E: Tensor, drop: int) -> Mistakes:
        (E, D), (rows, number_E) = router_ED.shape, right(router_ED, score_E, drop)
        stays_E = number_E >= 0
        best = score_E.argsort(descending=True)[: E - drop]
        by_score_E = torch.full((E,), -1)
        by_score_E[best] = torch.arange(E - drop)
        same_E = torch.arange(E)
        none = router_ED[:0], torch.full((E,), -1)
        return [
            ("with drop = 0 all stay: a slice [:-0] is empty, and [drop - 1] the last",
             (rows, number_E) if drop else none),
            ("a row of zeros is no pruned row: its logit is 0, and 0 may well win; take it out",
             (router_ED * stays_E[:, None], ...)),
            ("these are the ones with the highest scores; they are to stay",
             right(router_ED, -score_E, drop)),
            ("the last ones are gone, whatever their scores",
             (router_ED[: E - drop], same_E.where(same_E < E - drop, -1))),
            ("the experts lie in their old order, so the rows must; sorted by score, each token "
             "goes to a stranger", (router_ED[best], by_score_E)),
            ("an expert is a row; these are columns",
             (router_ED[:, : E][:, stays_E], ...) if D >= E else None),
            ("these are the old numbers of those that stay; asked is each old expert's new number",
             (rows, stays_E.nonzero()[:, 0])),
            ("those behind a gap move up: new numbers are 0, 1, 2 ... without one",
             (rows, same_E.where(stays_E, -1))),
            *(("an expert that is gone has no number, -1", (rows, gone)) for gone in (
                stays_E.cumsum(0) - 1, number_E.where(stays_E, 0), number_E.where(stays_E, E - drop)
            )),
            ("argsort gives the expert at each place, not each expert's place: compare the scores, "
             "or sort twice", right(router_ED, score_E.argsort().double(), drop)),
            ("numbers begin at 0", (rows, (stays_E.cumsum(0)).where(stays_E, -1))),
            ("these say whether an expert stays, not its new number", (rows, stays_E))]  # fmt: skip

    check = Check("prune_router", prune, right, mistakes,
                  "not the rows of the experts that stay, in their order, and their new numbers",
                  parts=("rows", "numbers"))  # fmt: skip
    check.on("four rows, scores [0.3, 0.1, 0.4, 0.2], drop 1",
             torch.arange(12.0).view(4, 3), torch.tensor([0.3, 0.1, 0.4, 0.2]), 1)  # fmt: skip
    for seed, (E, D, drop) in enumerate(((6, 8, 2), (8, 8, 3), (5, 2, 1), (5, 3, 0))):
        check.on(f"{E} experts, drop {drop}", randn(seed, E, D), randn(seed + 1, E), drop)
    check.passed("rows out, the others in their old order, and numbers without a gap.")


def check_distinct_copies(distinct_copies: Callable[[Tensor], int]) -> None:
    """Check how many different experts there are: w_EFD -> a whole number, equal within 1e-6."""

    def right(w_EFD: Tensor) -> int:
        near_EE = (w_EFD[:, None] - w_EFD).flatten(2).abs().amax(-1) <= 1e-6
        return int((near_EE.long().argmax(1) == torch.arange(len(w_EFD))).sum())

    def mistakes(w_EFD: Tensor) -> Mistakes:
        E, count = len(w_EFD), right(w_EFD)
        near_EE = (w_EFD[:, None] - w_EFD).flatten(2).abs().amax(-1) <= 1e-6
        rounded = w_EFD.double().mul(1e5).round()
        apart_EE = (w_EFD[:, None] - w_EFD).flatten(2).norm(dim=-1)
        like = torch.allclose
        return [
            ("copies that differ by rounding alone are one and the same: allow 1e-6",
             len(w_EFD.flatten(1).unique(dim=0))),
            *(("one weight that differs by more than 1e-6, up or down, is enough to be another "
               "expert (allclose allows 1e-5 of a weight's size unless rtol=0)",
               sum(not any(like(x, y, *slack) for y in w_EFD[:e]) for e, x in enumerate(w_EFD)))
              for slack in ((), (0, 1e-4))),  # rtol, atol
            ("the border of 1e-6 is for each weight: a norm adds up all their differences, and "
             "rounding parts two neighbours on either side of a border",
             int(((apart_EE <= 1e-6).tril(-1).sum(1) == 0).sum())),
            ("each was compared with the one before it alone",
             1 + int((~near_EE.diagonal(1)).sum())),
            ("an expert is always like itself: compare it with those before it", 0),
            ("all experts were counted, equal or not", E),
            ("these differ from expert 0; among themselves they may be equal, and expert 0 is one "
             "too", int((~near_EE[0]).sum())),
            ("these differ from expert 0, and expert 0; among themselves they may be equal",
             int((~near_EE[0]).sum()) + 1),
            ("these are pairs that differ", int((~near_EE).sum()) // 2),
            ("these have no twin; a group of twins is one expert more",
             int((near_EE.sum(1) == 1).sum())),
            ("these are the numbers that occur in the weights, not the experts",
             len(rounded.unique())),
            ("equal sums do not make equal experts", len(rounded.sum((1, 2)).unique())),
            ("the first row alone does not make equal experts", len(rounded[:, 0].unique(dim=0))),
            ("that is how many are superfluous", E - count)]  # fmt: skip

    wrong = "not the number of experts that differ by more than 1e-6 in some weight"
    check = Check("distinct_copies", distinct_copies, right, mistakes, wrong)
    a, b, c = randn(0, 4, 3), randn(1, 4, 3), randn(2, 4, 3)
    a = a.mul(1e3).round() / 1e3  # no seed puts it where 1e-6 rounds to another fifth digit
    rounded = torch.nextafter(a, torch.tensor(torch.inf))  # the next number there is
    check.on("four copies of one", torch.stack([a, a, a, a]))
    check.on("a, b, a, b", torch.stack([a, b, a, b]))
    check.on("a, a but for rounding, b, c", torch.stack([a, rounded, b, c]))
    check.on("a, a with 8e-7 more in every weight, b", torch.stack([a, a + 8e-7, b]))
    almost = a.where(a.abs() < a.abs().max(), a - 3e-6)
    check.on("a, a with 3e-6 less in its largest weight, b", torch.stack([a, almost, b]))
    check.on("a, b, their sum, and twice a", torch.stack([a, b, a + b, 2 * a]))
    check.on("a, its rows turned round, and b", torch.stack([a, a.flip(0), b]))
    late = b.clone()
    late[1:] = c[1:]
    check.on("b, and two that share its first row", torch.stack([b, late, late, b]))
    check.on("a, b, c, all different", torch.stack([a, b, c]))
    check.on("one expert", a[None])
    check.passed("one for each that is unlike all before it.")


def check_replay_weights(replay_weights: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the weights of replayed experts: (logits_TE, expert_TK) -> gate_TK."""

    def right(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return logits_TE.gather(1, expert_TK).softmax(dim=1)

    def mistakes(logits_TE: Tensor, expert_TK: Tensor) -> Mistakes:
        (T, E), K = logits_TE.shape, expert_TK.shape[1]
        own_TK, gate_TK = logits_TE.gather(1, expert_TK), right(logits_TE, expert_TK)
        mask_TE = torch.zeros(T, E).scatter(1, expert_TK, 1.0)
        return [
            ("these are the weights of the experts that the router would choose now; weigh those "
             "of expert_TK", logits_TE.topk(K).values.softmax(1)),
            ("the softmax is over all experts, so the weights do not sum to 1; only the recorded "
             "ones count", logits_TE.softmax(1).gather(1, expert_TK)),
            ("a logit of 0 is not nothing, exp(0) is 1: mask with -inf, or gather first",
             (logits_TE * mask_TE).softmax(1).gather(1, expert_TK)),
            ("weight k belongs to expert k of the token; sorted, weights go to the wrong experts",
             gate_TK.sort(1, descending=True).values),
            ("weight k belongs to expert k of the token; these stand in the experts' order of "
             "number", gate_TK.gather(1, expert_TK.argsort(1))),
            ("all weigh the same: the router says how much each counts, and learns from it",
             torch.full_like(gate_TK, 1 / K)),
            ("these are logits; a softmax makes weights of them", own_TK),
            ("logits divided by their sum are no weights: a logit may be below 0, take exp first",
             own_TK / own_TK.sum(1, keepdim=True)),
            ("the softmax goes over a token's experts, not over the tokens", own_TK.softmax(0)),
            ("two softmaxes, one of the other's probabilities: divide those by their sum, or take "
             "one of the logits", logits_TE.softmax(1).gather(1, expert_TK).softmax(1)),
            ("sigmoids divided by their sum; a softmax takes exp",
             own_TK.sigmoid() / own_TK.sigmoid().sum(1, keepdim=True)),
            ("exp of the logits, but nothing was divided: a token's weights sum to 1",
             own_TK.exp())]  # fmt: skip

    check = Check("replay_weights", replay_weights, right, mistakes,
                  "not the softmax over each token's recorded experts", nan=UNDERFLOW)  # fmt: skip
    check.on("logits [[0, ln 3, 5]], experts [[0, 1]]",
             torch.tensor([[0, math.log(3), 5]]), torch.tensor([[0, 1]]))  # fmt: skip
    for seed, (T, E, K) in enumerate(((6, 8, 2), (9, 5, 3), (4, 6, 1))):
        expert_TK = randn(seed + 7, T, E).argsort(1)[:, :K]
        check.on(f"{T} tokens, {K} of {E} experts recorded", randn(seed, T, E), expert_TK)
    check.on("logits around -200", far_below(5, 5, 4), randn(6, 5, 4).argsort(1)[:, :2],
             otherwise=FINITE_FILL)  # fmt: skip
    check.slopes("seven tokens, 2 of 6 experts recorded", randn(3, 7, 6),
                 randn(4, 7, 6).argsort(1)[:, :2], of={"the logits": 0})  # fmt: skip
    check.passed("the experts of then, the weights of now, and a gradient for the router.")
