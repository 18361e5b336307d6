"""The checks of chapter 01: why would experts divide the work?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mixtures import blend, mixture_error, responsibilities, squared_errors
from .verdict import Check, Mistakes, randn

Case = tuple[Tensor, Tensor, Tensor]
"""logits_TE, out_TEO, target_TO."""


def _cases() -> list[tuple[str, Case]]:
    """Return two cases to do by hand, the gate without and with an opinion, and some at random."""
    logits_TE = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    out_TEO = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]]])
    hand = "two cases, p = [[0.5, 0.5], [0.75, 0.25]], o = [[1, 0], [0, 2]], d = [1, 1]"
    cases: list[tuple[str, Case]] = [(hand, (logits_TE, out_TEO, torch.ones(2, 1)))]
    for seed, (T, E, outputs) in enumerate(((5, 3, 2), (1, 4, 3), (3, 3, 3), (6, 1, 2))):
        given = f"random numbers: {T} cases, {E} experts, {outputs} outputs"
        cases.append((given, (randn(seed, T, E), randn(seed + 9, T, E, outputs),
                              randn(seed + 18, T, outputs))))  # fmt: skip
    near = randn(1, 4, 3), 0.1 * randn(2, 4, 3, 2), torch.zeros(4, 2)
    return [*cases, ("four cases in which every expert is nearly right", near)]


def check_responsibilities(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check the posterior: (logits_TE, out_TEO, target_TO) -> h_TE."""
    check = Check("responsibilities", answer, responsibilities, _posterior_mistakes,
                  "these are not the posterior probabilities",
                  nan="exp of a large negative number is 0, and 0 / 0 is not a number; "
                      "add the logarithms and let one softmax take care of that")  # fmt: skip
    for given, case in _cases():
        check.on(given, *case)
    far = torch.zeros(1, 2), torch.tensor([[[60.0], [61.0]]]), torch.zeros(1, 1)
    clamped = "right near by, wrong far off: what was clamped or added for safety is all there is"
    check.on("experts that are off by 60 and by 61", *far, otherwise=clamped)
    check.passed("prior times likelihood, divided by the sum, and safe for far-off experts.")


def _posterior_mistakes(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Mistakes:
    off_TE, p_TE = squared_errors(out_TEO, target_TO), logits_TE.softmax(-1)
    log_TE = logits_TE.log_softmax(-1) - off_TE / 2
    each_TE = (target_TO[:, None] - out_TEO).square()
    over_cases = "these add up to 1 over the cases (dim 0); each is shared among its experts"
    return [
        ("this is the prior p, what the gate believes before the answer is known", p_TE),
        ("these do not add up to 1: divide by the sum over the experts", log_TE.exp()),
        ("these are logarithms that were not normalised: their softmax is asked", log_TE),
        (over_cases, log_TE.softmax(0)),
        (over_cases, (logits_TE - off_TE / 2).softmax(0)),
        ("the factor ½ in the exponent is missing", (logits_TE - off_TE).softmax(-1)),
        ("the gate's prior is missing: this is the likelihood alone", (-off_TE / 2).softmax(-1)),
        ("the worst expert gets the most: the sign", (logits_TE + off_TE / 2).softmax(-1)),
        ("the exponent holds the distance; a normal density has its square",
         (logits_TE - off_TE.sqrt() / 2).softmax(-1)),
        ("the logits are not the prior; their softmax is", logits_TE * (-off_TE / 2).exp()),
        ("prior times likelihood went through a softmax", log_TE.exp().softmax(-1)),
        ("the prior was added in the exponent, not its logarithm", (p_TE - off_TE / 2).softmax(-1)),
        ("outputs are averaged; ||d - o||² is their sum",
         (logits_TE - each_TE.mean(-1) / 2).softmax(-1)),
        ("the best expert takes all: that is a hard choice, and a posterior shares",
         F.one_hot(log_TE.argmax(-1), logits_TE.shape[1]).float())]  # fmt: skip


def check_mixture_error(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check equation 1.3, also where experts are far off: (logits, out, target) -> error_T."""
    overflow = (
        "far-off experts: exp(-800) is 0 in floating point, and log 0 is not finite; "
        "stay in logarithms, with log_softmax and logsumexp"
    )
    check = Check("mixture_error", answer, mixture_error, _error_mistakes,
                  "this is not equation 1.3", nan=overflow, slack=1e-4)  # fmt: skip
    for given, case in _cases():
        check.on(given, *case)
    given = "one case, both experts off by 40"
    far = torch.zeros(1, 2), torch.full((1, 2, 1), 40.0), torch.zeros(1, 1)
    clamped = "the exponentials were clamped: that hides the overflow, but the value is wrong"
    check.on(given, *far, otherwise=clamped)
    of = {"the experts' answers": 1, "the gate's logits": 0}
    check.slopes(given, *far, of=of)
    check.slopes(_cases()[1][0], *_cases()[1][1], of=of)
    given = "one case, logits [0, -120]: the gate is sure of an expert that is off by 40"
    sure = torch.tensor([[0.0, -120.0]]), torch.tensor([[[40.0], [0.0]]]), torch.zeros(1, 1)
    floor = "the proportions were clamped: a gate that is sure and wrong then costs too little"
    check.on(given, *sure, otherwise=floor)
    check.slopes(given, *sure, of=of)
    check.passed("right by hand, at random, and finite with experts that are off by 40.")


def _error_mistakes(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Mistakes:
    off_TE, log_p_TE = squared_errors(out_TEO, target_TO), logits_TE.log_softmax(-1)
    p_TE, right_T = log_p_TE.exp(), mixture_error(logits_TE, out_TEO, target_TO)
    all_cases = "one number for all cases; return one for each: a mean hides which was hard"
    each_TE = (target_TO[:, None] - out_TEO).square().mean(-1)
    return [
        (all_cases, right_T.mean()),
        (all_cases, right_T.sum()),
        ("far-off experts: exp(-800) is 0 in floating point, and log 0 is not finite; stay in "
         "logarithms, with log_softmax and logsumexp",
         -(logits_TE.softmax(-1) * (-off_TE / 2).exp()).sum(-1).log()),
        ("softmax, then log: where a proportion underflows, its logarithm is -inf and the gradient "
         "is not a number; log_softmax does both at once",
         -(logits_TE.softmax(-1).log() - off_TE / 2).logsumexp(-1)),
        ("this is E1: cooperation", (target_TO - blend(logits_TE, out_TEO)).square().sum(-1)),
        ("this is E2: the errors are blended; E3 blends the likelihoods", (p_TE * off_TE).sum(-1)),
        ("the logarithm was taken inside the sum: that is half of E2", (p_TE * off_TE / 2).sum(-1)),
        ("the sign: a good fit must give a small error, so minus the logarithm", -right_T),
        ("the factor ½ in the exponent is missing", -(log_p_TE - off_TE).logsumexp(-1)),
        ("logits are not log-probabilities: take log_softmax, or the gate can lower the error by "
         "raising all its logits", -(logits_TE - off_TE / 2).logsumexp(-1)),
        ("the gate's proportions are missing: experts count alike", -(-off_TE / 2).logsumexp(-1)),
        ("proportions in the exponent, not their logarithms", -(p_TE - off_TE / 2).logsumexp(-1)),
        ("only the best expert counts, a max for the logsumexp: that is hard competition, in which "
         "the others learn nothing", -(log_p_TE - off_TE / 2).amax(-1)),
        ("the normal density's constant, log 2π for two outputs, is kept; eq. 1.3 is without it",
         right_T + out_TEO.shape[-1] / 2 * math.log(2 * math.pi)),
        ("the exponent holds the distance; a normal density has its square",
         -(log_p_TE - off_TE.sqrt() / 2).logsumexp(-1)),
        ("outputs are averaged; ||d - o||² is their sum", -(log_p_TE - each_TE / 2).logsumexp(-1)),
        ("the softmax runs over the cases (dim 0), not over a case's experts (dim -1)",
         -(logits_TE.log_softmax(0) - off_TE / 2).logsumexp(-1)),
        ("likelihoods are blended over the cases (dim 0)", -(log_p_TE - off_TE / 2).logsumexp(0)),
        ("this is the likelihood; its negative logarithm is asked", (-right_T).exp())]  # fmt: skip


def check_gradients(answer: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check the derivatives of E3: (logits, out, target) -> (by logits_TE, by out_TEO)."""

    def by_logits(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Mistakes:
        p_TE, h_TE = logits_TE.softmax(-1), responsibilities(logits_TE, out_TEO, target_TO)
        off_TE = squared_errors(out_TEO, target_TO)
        moves = (
            "this is h - p, the way the gate should move; the gradient points uphill, and "
            "descending subtracts it"
        )
        alone = "only the responsibilities: the gate moves until p equals h, so p - h"
        return [
            (moves, h_TE - p_TE),
            (alone, -h_TE),
            (alone, h_TE),
            ("that is the prior alone: the gate moves until p equals h, so p - h", p_TE),
            ("the likelihood without the prior: h has p in it", p_TE - (-off_TE / 2).softmax(-1)),
            ("this is the derivative by p: the softmax in between is missing", -h_TE / p_TE),
            ("that is E2's derivative, p (e - Σ p e): errors compared, not responsibilities",
             p_TE * (off_TE - (p_TE * off_TE).sum(-1, keepdim=True))),
            ("p and h are probabilities: no further factor p", p_TE * (p_TE - h_TE)),
            ("each case has its own error: no mean over the cases", (p_TE - h_TE) / len(p_TE)),
        ]  # fmt: skip

    def by_answers(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Mistakes:
        h_TE1 = responsibilities(logits_TE, out_TEO, target_TO)[..., None]
        p_TE1, rest_TEO = logits_TE.softmax(-1)[..., None], target_TO[:, None] - out_TEO
        blended = (target_TO - blend(logits_TE, out_TEO))[:, None]
        return [
            ("the sign: the error falls when an answer moves towards d, so the derivative is "
             "negative where d is larger", h_TE1 * rest_TEO),
            ("p where h belongs: this is half of E2's derivative", -p_TE1 * rest_TEO),
            ("that is E2's derivative: each expert is weighted by p, not by h",
             -2 * p_TE1 * rest_TEO),
            ("that is E1's derivative: all are told the blend's error", -2 * p_TE1 * blended),
            ("every expert is told the error of the blend, not its own", -h_TE1 * blended),
            ("every expert is moved by its whole error, whoever is responsible", -rest_TEO),
            ("a factor of 2 too much: the ½ cancels the square's 2", -2 * h_TE1 * rest_TEO),
            ("each case has its own error: no mean over the cases", -h_TE1 * rest_TEO / len(h_TE1)),
        ]  # fmt: skip

    def right(*case: Tensor) -> tuple[Tensor, Tensor]:
        logits_TE, out_TEO, target_TO = case
        h_TE = responsibilities(*case)
        return logits_TE.softmax(-1) - h_TE, -h_TE[..., None] * (target_TO[:, None] - out_TEO)

    kept: list[tuple[str, Case]] = _cases()
    far = torch.zeros(1, 2), torch.tensor([[[60.0], [61.0]]]), torch.zeros(1, 1)
    kept.append(("experts that are off by 60 and by 61", far))

    def mistakes(*case: Tensor) -> Mistakes:
        return [
            *((text, (value, ...)) for text, value in by_logits(*case)),
            *((text, (..., value)) for text, value in by_answers(*case)),
        ]

    check = Check("gradients", answer, right, mistakes, parts=("by the logits", "by the answers"),
                  otherwise="not the derivative",
                  nan="exp of a large negative number is 0, and 0 / 0 is not a number")  # fmt: skip
    for given, case in kept:
        check.on(given, *case)
    check.passed("p - h for the gate, -h (d - o) for the experts, as autograd has them.")


def check_working_experts(answer: Callable[[Tensor, float], Tensor]) -> None:
    """Check the instrument: (logits_QTE, share) -> how many experts work in each run, (Q,)."""

    def right(logits_QTE: Tensor, share: float) -> Tensor:
        won_QE = F.one_hot(logits_QTE.argmax(-1), logits_QTE.shape[-1]).sum(1)
        return (won_QE / logits_QTE.shape[1] >= share).sum(-1)

    def mistakes(logits_QTE: Tensor, share: float) -> Mistakes:
        T, E = logits_QTE.shape[1:]
        winner_QT, p_QTE = logits_QTE.argmax(-1), logits_QTE.softmax(-1)
        won_QE = F.one_hot(winner_QT, E).sum(1)
        right_Q, least_QE = (
            (won_QE / T >= share).sum(-1),
            F.one_hot(logits_QTE.argmin(-1), E).sum(1),
        )
        over_cases = "the winners are looked for over the cases (dim 1), not over the experts"
        return [
            ("at least that share, not more than that", (won_QE / T > share).sum(-1)),
            ("the share of the cases was rounded down before it was compared: an expert that wins "
             "fewer now works too", (won_QE >= int(share * T)).sum(-1)),
            ("the share was rounded to a number of cases", (won_QE >= round(share * T)).sum(-1)),
            ("this counts every expert that wins a single case, whatever the share; divide the "
             "wins by the number of cases, then compare", (won_QE > 0).sum(-1)),
            ("wins are divided by the experts, not by the cases", (won_QE / E >= share).sum(-1)),
            (over_cases, torch.stack([torch.tensor(len(run.unique()))
                                      for run in logits_QTE.argmax(1)])),
            (over_cases, (F.one_hot(logits_QTE.argmax(1), T).double().mean(1) >= share).sum(-1)),
            ("this counts experts by their mean proportion: a gate that is never sure looks like a "
             "division of labour; count the cases each one wins", (p_QTE.mean(1) >= share).sum(-1)),
            ("this asks each case how many experts the gate gives at least that share; ask each "
             "expert how many cases it wins", (p_QTE >= share).sum(-1).double().mean(1)),
            ("this counts the experts that do not work", E - right_Q),
            ("argmin where argmax belongs: these lose", (least_QE / T >= share).sum(-1)),
            ("all runs are thrown together", right_Q.sum()),
            ("all runs are thrown together", (won_QE.sum(0) / won_QE.sum() >= share).sum()),
            ("this is the mean over the runs; count in each run", right_Q.double().mean()),
        ]  # fmt: skip

    def won(*runs: list[int]) -> Tensor:
        return 10 * F.one_hot(torch.tensor(runs), 3).double()

    surely = torch.tensor([[[9.0, 8, -9], [8, 0, -9], [2, 9, -9], [1, 8, -8]]])
    check = Check("working_experts", answer, right, mistakes, "that is not how many experts work")
    check.on("a run of 4 cases, won by experts 0 0 1 1; share 0.02", surely, 0.02)
    check.on("a run of 4 cases, won by experts 0 0 1 1; share 0.5: half is enough", surely, 0.5)
    check.on("two runs of 5 cases, won by experts 0 0 0 0 1 and 2 2 2 2 2; share 0.5",
             won([0, 0, 0, 0, 1], [2, 2, 2, 2, 2]), 0.5)  # fmt: skip
    check.on("two runs of 5 cases, won by experts 0 0 0 1 1 and 0 0 0 0 1; share 0.3: a case and "
             "a half", won([0, 0, 0, 1, 1], [0, 0, 0, 0, 1]), 0.3)  # fmt: skip
    check.on("a run of 4 cases, each won narrowly by expert 0; share 0.3",
             torch.tensor([[[1.0, 0.9, 0.0]] * 4]), 0.3)  # fmt: skip
    runs = (3, 40, 4, 0.25), (5, 7, 3, 0.36), (2, 12, 8, 0.1), (4, 9, 5, 1.0), (6, 10, 4, 0.26)
    for seed, (Q, T, E, share) in enumerate(runs):
        check.on(f"{Q} random runs of {T} cases, {E} experts, share {share}",
                 randn(seed, Q, T, E) + randn(seed + 9, Q, 1, E), share)  # fmt: skip
    check.passed("a run in which one expert takes everything now shows as a 1.")


def check_product(answer: Callable[[Tensor], Tensor]) -> None:
    """Check the product of experts on a grid: log_XE, each expert's log density -> log_X."""

    def right(log_XE: Tensor) -> Tensor:
        return log_XE.sum(-1).log_softmax(0)

    def mistakes(log_XE: Tensor) -> Mistakes:
        mixture = "that is a mixture: probabilities were added; a product adds their logarithms"
        E, right_X = log_XE.shape[-1], right(log_XE)
        return [
            (mixture, log_XE.logsumexp(-1) - math.log(E)),
            (mixture, log_XE.logsumexp(-1)),
            (mixture, log_XE.logsumexp(-1).log_softmax(0)),
            ("exp underflows, and 0 / 0 is not a number; normalise by log_softmax",
             (log_XE.exp().prod(-1) / log_XE.exp().prod(-1).sum()).log()),
            ("the product is not normalised: its probabilities do not add up to 1", log_XE.sum(-1)),
            ("a mean of logarithms is the product's E-th root", log_XE.mean(-1).log_softmax(0)),
            ("this is the probability; return its logarithm", right_X.exp()),
            ("logarithms are multiplied here; they add", log_XE.prod(-1).log_softmax(0)),
            ("this multiplies the points, not the experts", log_XE.sum(0).log_softmax(0)),
        ]  # fmt: skip

    underflow = "exp underflows, and 0 / 0 is not a number; normalise by log_softmax"
    check = Check("product", answer, right, mistakes, "not the normalised product", nan=underflow)
    hand = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.0, 0.5]]).log()
    check.on("three points, experts [0.5, 0.5, 0] and [0.25, 0.25, 0.5], in logarithms", hand)
    for seed, (X, E) in enumerate(((7, 3), (4, 1), (5, 5))):
        check.on(f"{X} random points, {E} experts", randn(seed, X, E).log_softmax(0))
    check.on("four points, three experts whose densities are not normalised", 2 * randn(5, 4, 3))
    check.on("two points with log densities [-400, -500] and [-400, -501]",
             torch.tensor([[-400.0, -500.0], [-400.0, -501.0]]))  # fmt: skip
    check.passed("each expert can veto, and what is left adds up to 1.")
