"""The checks of chapter 03: what was tried between 1995 and 2016?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..hierarchy import constrain
from .verdict import Check, Mistakes, randn


def check_constrain(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Check Eigen's constraint: (gate_TE, total_E, margin) -> gate_TE."""

    def mistakes(gate_TE: Tensor, total_E: Tensor, margin: float) -> Mistakes:
        ahead_E = total_E - total_E.mean()
        shut_E = ahead_E > margin
        open_TE = gate_TE * ~shut_E

        def closed(shut_E: Tensor) -> Tensor:
            open_TE = gate_TE * ~shut_E
            return open_TE / open_TE.sum(-1, keepdim=True)

        lag = "the experts that lag behind are closed; those ahead should be"
        soft = "the open gates went through a softmax; divide them by their sum"
        late_E = total_E + gate_TE.detach().sum(0)
        leader_E = shut_E & (total_E == total_E.max())
        return [
            ("the gates of a token no longer add up to 1: renormalise after closing", open_TE),
            (lag, closed(ahead_E < -margin)),
            (lag, closed(~shut_E)),
            ("every expert above the mean is closed, whatever the margin", closed(ahead_E > 0)),
            ("totals are compared with the margin, not mean plus it", closed(total_E > margin)),
            ("totals are compared with their median", closed(total_E - total_E.median() > margin)),
            ("totals are compared with the mean of the others; the mean of all is asked",
             closed(total_E - (total_E.sum() - total_E) / (len(total_E) - 1) > margin)),
            ("totals are compared with the smallest", closed(total_E - total_E.min() > margin)),
            ("this batch's gates are in the totals already; total_E has what was before",
             closed(late_E - late_E.mean() > margin)),
            ("only the leader is closed; everyone too far ahead should be", closed(leader_E)),
            ("exactly the margin ahead is still open: more than that", closed(ahead_E >= margin)),
            ("whoever is far behind is closed as well", closed(ahead_E.abs() > margin)),
            ("the weight is shared out over the tokens; it belongs to the token it was taken from: "
             "sum over the experts", open_TE / open_TE.sum(0, keepdim=True)),
            ("the constraint is not applied: these are the gates as they came", gate_TE),
            (soft, gate_TE.masked_fill(shut_E, -torch.inf).softmax(-1)),
            (soft, open_TE.softmax(-1))]  # fmt: skip

    nan = "a sum over the tokens is 0 for a closed expert; sum over the experts"
    otherwise = "not the open gates over their sum"
    check = Check("constrain", answer, constrain, mistakes, otherwise, nan=nan)
    gate_TE, total_E = torch.tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]]), torch.tensor([9.0, 5, 1])
    for margin in (3.0, 6.0, 4.0):
        given = f"gates [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], totals [9, 5, 1], margin {margin:g}"
        check.on(given, gate_TE, total_E, margin)
    check.on("the same gates, totals [8.5, 5, 1.5], margin 4", gate_TE,
             torch.tensor([8.5, 5, 1.5]), 4.0)  # fmt: skip
    for seed, (T, E) in enumerate(((5, 6), (1, 4), (6, 6), (4, 8)), 1):
        gate_TE, total_E = randn(seed, T, E).softmax(-1), 10 * randn(seed + 9, E).abs()
        given = f"random gates of {T} tokens, {E} experts, margin {seed}"
        check.on(given, gate_TE, total_E, float(seed))
    check.slopes("random gates, margin 3", randn(1, 5, 6).softmax(-1), 10 * randn(10, 6).abs(), 3.0,
                 of={"the gates": 0})  # fmt: skip
    check.passed("whoever is too far ahead waits, and each token's gates still add up to 1.")


def check_score_gradient(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Check the score function with a baseline: (loss_S, b_S, p, baseline) -> each sample's."""

    def right(loss_S: Tensor, b_S: Tensor, p: Tensor, baseline: float) -> Tensor:
        return (loss_S - baseline) * (b_S - p)

    def mistakes(loss_S: Tensor, b_S: Tensor, p: Tensor, baseline: float) -> Mistakes:
        good, ahead = right(loss_S, b_S, p, baseline), loss_S - baseline
        return [
            ("the baseline is not used", loss_S * (b_S - p)),
            ("the baseline is the mean of the losses; use the one that is given",
             (loss_S - loss_S.mean()) * (b_S - p)),
            ("the share of open gates stands there; p is the probability they were drawn with",
             ahead * (b_S - b_S.mean())),
            ("shut gates get the slope of open ones", ahead * (1 - p)),
            ("only open gates get an estimate: a shut one has the slope -p", ahead * b_S * (1 - p)),
            ("the baseline is added; take it off", (loss_S + baseline) * (b_S - p)),
            ("the baseline is taken off the product; it belongs to the loss, or the mean moves",
             loss_S * (b_S - p) - baseline),
            ("that is uphill: the slope of log P(b) is b - p", -good),
            ("the gate's value stands there; the slope of log P(b) is b - p", ahead * b_S),
            ("this is the slope for the probability; a is the logit: times p (1 - p)",
             good / (p * (1 - p))),
            ("p (1 - p) is there already: b - p is the slope for the logit",
             good * p * (1 - p)),
            ("that is the mean; give each sample's own", good.mean().expand(len(good))),
            ("log P(b) itself, not its slope", ahead * (b_S * p.log() + (1 - b_S) * (1 - p).log())),
            ("a weight of p or 1 - p for each sample: they were drawn, they are weighted already",
             good * (b_S * p + (1 - b_S) * (1 - p)))]  # fmt: skip

    check = Check("score_gradient", answer, right, mistakes,
                  "these are not (loss - baseline) times the slope of log P(b)")  # fmt: skip
    b_S = torch.tensor([1.0, 0.0, 0.0])
    check.on("losses [0.3, 0.2, 0.2], b = [1, 0, 0], p = 0.2, baseline 0.25",
             torch.tensor([0.3, 0.2, 0.2]), b_S, torch.tensor(0.2), 0.25)  # fmt: skip
    check.on("the same with baseline 0", torch.tensor([0.3, 0.2, 0.2]), b_S, torch.tensor(0.2), 0.0)
    for seed, S in enumerate((6, 9, 4), 1):
        check.on(f"{S} random samples, baseline {seed}", randn(seed, S).abs(),
                 (randn(seed + 5, S) > 0).float(), randn(seed + 9, 1)[0].sigmoid(), float(seed),
                 )  # fmt: skip
    check.passed("right on average whatever the baseline; only the spread depends on it.")


def check_straight_through(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the straight-through gate: (p_T, b_T) -> b in value, p in slope."""

    def right(p_T: Tensor, b_T: Tensor) -> Tensor:
        return p_T + (b_T - p_T).detach()

    def mistakes(p_T: Tensor, b_T: Tensor) -> Mistakes:
        return [
            ("the value is p: go forward with b", p_T * 1),
            ("no slope reaches p: go backward as if b had been p", b_T * 1 + 0 * p_T),
            ("the value is b times p: that is a soft weight, not a gate", b_T * p_T),
            ("b is taken off: p + (b - p), with the bracket detached", p_T - (b_T - p_T).detach()),
            ("only open gates get a slope; all should", b_T + b_T * (p_T - p_T.detach())),
            ("p is rounded at one half; b was drawn", (p_T > 0.5).to(p_T) + p_T - p_T.detach()),
            ("1 - b", 1 - b_T + p_T - p_T.detach()),
            ("the slope points downhill: p has the slope 1, not -1", b_T - p_T + p_T.detach()),
            ("p and b are added: take p off again", p_T + b_T.detach()),
            ("the slope is p (1 - p), as for the logit; asked is 1, for p itself",
             b_T + (p_T - p_T.detach()) * (p_T * (1 - p_T)).detach())]  # fmt: skip

    check = Check("straight_through", answer, right, mistakes,
                  "this is not b in value and p in slope")  # fmt: skip
    p_T, b_T = torch.tensor([0.2, 0.9, 0.6]), torch.tensor([1.0, 1.0, 0.0])
    check.on("p = [0.2, 0.9, 0.6], b = [1, 1, 0]", p_T, b_T)
    for seed in (1, 2):
        check.on("six at random", randn(seed, 6).sigmoid(), (randn(seed + 3, 6) > 0).float())
    check.slopes("p = [0.2, 0.9, 0.6], b = [1, 1, 0]", p_T, b_T, of={"p": 0})
    check.slopes("six at random", randn(5, 6).sigmoid(), (randn(7, 6) > 0).float(), of={"p": 0})
    check.passed("forward the gate that was drawn, backward its probability.")


def check_samples_for_sign(answer: Callable[[float, float], int]) -> None:
    """Check how many samples a sign takes: (slope, deviation) -> samples."""

    def right(slope: float, deviation: float) -> int:
        return max(1, math.ceil((2 * deviation / abs(slope)) ** 2))

    def mistakes(slope: float, deviation: float) -> Mistakes:
        times = deviation / abs(slope)
        exact = (2 * times) ** 2
        numbers = [
            ("one standard error is not enough; two are asked", math.ceil(times**2)),
            ("the mean of n samples is off by deviation / sqrt(n): square", math.ceil(2 * times)),
            ("twice, then square, not square, then twice", math.ceil(2 * times**2)),
            ("the slope stands above, the deviation below", math.ceil(1 / exact)),
            ("the slope stands above, the deviation below", math.ceil((2 / times) ** 2)),
            ("rounded down: one more is needed", math.floor(exact)),
            ("rounded to the nearest: too few, where that is down", round(exact)),
            ("two standard errors are asked, not 1.96", math.ceil((1.96 * times) ** 2)),
            ("exactly two standard errors are enough", math.floor(exact) + 1),
            ("samples come whole: round up", exact),
            ("a negative slope has a sign, too: take its size", math.ceil(2 * deviation / slope)),
            ("a negative slope has a sign, too: take its size", math.ceil(-exact)),
            ("the deviation is not squared", math.ceil(4 * deviation / abs(slope))),
            ("the deviation is not squared", math.ceil(4 * deviation / slope**2))]  # fmt: skip
        return [(text, least) for text, n in numbers for least in (n, max(1, n))]

    check = Check("samples_for_sign", answer, right, mistakes,
                  "this is not the least n with |slope| >= 2 deviation / sqrt(n)")  # fmt: skip
    # The third and fourth are exact in binary, so that no way to write it rounds past the border.
    for slope, deviation in ((0.1, 0.23), (0.016, 0.11), (-0.25, 1.25), (0.5, 0.5), (0.5, 0.4),
                             (-1.0, 0.1)):  # fmt: skip
        check.on(f"slope {slope}, deviation {deviation}", slope, deviation)
    check.passed("an average of n is sqrt(n) times as steady, so a sign takes a square.")
