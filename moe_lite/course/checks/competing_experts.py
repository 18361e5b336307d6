"""The checks of chapter 01: why would experts divide the work?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...mixtures import blend, mixture_error, responsibilities, squared_errors
from .verdict import CheckFailed, Mistakes, call, expect, passed, randn

Case = tuple[Tensor, Tensor, Tensor]
"""logits_TE, out_TEO, target_TO."""


def _by_hand() -> Case:
    """Give two cases whose figures can be found by hand, the gate without and with an opinion."""
    logits_TE = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    out_TEO = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]]])
    return logits_TE, out_TEO, torch.tensor([[1.0], [1.0]])


HAND = "two cases, p = [[0.5, 0.5], [0.75, 0.25]], o = [[1, 0], [0, 2]], d = [1, 1]"
RANDOM = "five random cases, three experts, two outputs"


def _random(seed: int = 0) -> Case:
    return randn(seed, 5, 3), randn(seed + 1, 5, 3, 2), randn(seed + 2, 5, 2)


# --- responsibilities ----------------------------------------------------------------------------


def check_responsibilities(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check the posterior: (logits_TE, out_TEO, target_TO) -> h_TE.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "responsibilities"
    for given, case in ((HAND, _by_hand()), (RANDOM, _random())):
        yours = call(exercise, answer, *case, on=given)
        _check_shape(exercise, yours, case[0])
        expect(exercise, given, yours, responsibilities(*case), _posterior_mistakes(*case),
               "these are not the posterior probabilities")  # fmt: skip
    given = "experts that are off by 30 and by 31"
    far = torch.zeros(1, 2), torch.tensor([[[30.0], [31.0]]]), torch.zeros(1, 1)
    yours = call(exercise, answer, *far, on=given)
    expect(exercise, given, yours, responsibilities(*far), [],
           "exp of a large negative number is 0, and 0 / 0 is not a number; "
           "add the logarithms and let one softmax take care of that")  # fmt: skip
    passed(exercise, "prior times likelihood, divided by the sum, and safe for far-off experts.")


def _posterior_mistakes(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Mistakes:
    off_TE, p_TE = squared_errors(out_TEO, target_TO), logits_TE.softmax(-1)
    weight_TE = p_TE * (-off_TE / 2).exp()
    each_TE = (target_TO[:, None] - out_TEO).square()
    return [
        ("this is the prior p, what the gate believes before the answer is known", p_TE),
        ("these do not add up to 1: divide by the sum over the experts", weight_TE),
        ("these add up to 1 over the cases (dim 0); each case is shared among its experts (dim -1)",
         (logits_TE.log_softmax(-1) - off_TE / 2).softmax(0)),
        ("these add up to 1 over the cases (dim 0); each case is shared among its experts (dim -1)",
         (logits_TE - off_TE / 2).softmax(0)),
        ("the factor ½ in the exponent is missing", (logits_TE - off_TE).softmax(-1)),
        ("the gate's prior is missing: this is the likelihood alone", (-off_TE / 2).softmax(-1)),
        ("the worst expert gets the most: the sign in the exponent is turned round",
         (logits_TE + off_TE / 2).softmax(-1)),
        ("the exponent holds the distance; a normal density has its square",
         (logits_TE - off_TE.sqrt() / 2).softmax(-1)),
        ("the logits were multiplied in as they are; the prior is their softmax",
         logits_TE * (-off_TE / 2).exp()),
        ("the outputs are averaged; ||d - o||² is their sum",
         (logits_TE - each_TE.mean(-1) / 2).softmax(-1)),
    ]  # fmt: skip


def _check_shape(exercise: str, yours: Any, like: Tensor) -> None:
    if not isinstance(yours, Tensor) or yours.shape != like.shape:
        got = tuple(yours.shape) if isinstance(yours, Tensor) else repr(yours)
        raise CheckFailed(f"{exercise}: return a tensor of shape {tuple(like.shape)}, not {got}")


# --- the third error -----------------------------------------------------------------------------


def check_mixture_error(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check equation 1.3, also where experts are far off: (logits, out, target) -> error_T.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "mixture_error"
    for given, case in ((HAND, _by_hand()), (RANDOM, _random())):
        yours = call(exercise, answer, *case, on=given)
        right = mixture_error(*case)
        if isinstance(yours, Tensor) and yours.dim() == 0:
            raise CheckFailed(
                f"{exercise}: one number for all cases; return one for each, of shape "
                f"{tuple(right.shape)}: who averages has thrown away which case was hard"
            )
        _check_shape(exercise, yours, right)
        expect(exercise, given, yours, right, _error_mistakes(*case), "this is not equation 1.3")
    given = "one case, both experts off by 40"
    far = torch.zeros(1, 2), torch.full((1, 2, 1), 40.0), torch.zeros(1, 1)
    overflow = (
        "far-off experts: exp(-800) is 0 in floating point, and log 0 is not finite; "
        "stay in logarithms, with log_softmax and logsumexp"
    )
    clamped = "the exponentials were clamped: that hides the overflow, but the value is wrong"
    yours = call(exercise, answer, *far, on=given)
    finite = isinstance(yours, Tensor) and bool(yours.isfinite().all())
    expect(exercise, given, yours, mixture_error(*far), [], clamped if finite else overflow)
    logits_TE, out_TEO, target_TO = far
    for name in ("the experts' answers", "the gate's logits"):
        leaf = (out_TEO if name.startswith("the experts") else logits_TE).clone().requires_grad_()
        case = (logits_TE, leaf, target_TO) if leaf.dim() == 3 else (leaf, out_TEO, target_TO)
        error = call(exercise, answer, *case, on=f"{given}, for the gradient of {name}")
        if not error.requires_grad:
            raise CheckFailed(f"{exercise}: no gradient reaches {name}; look for detach or no_grad")
        (gradient,) = torch.autograd.grad(error.sum(), leaf)
        (right,) = torch.autograd.grad(mixture_error(*case).sum(), leaf)
        expect(exercise, f"the gradient of {name}", gradient, right, [], overflow)
    passed(exercise, "right by hand, at random, and finite with experts that are off by 40.")


def _error_mistakes(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Mistakes:
    off_TE, log_p_TE = squared_errors(out_TEO, target_TO), logits_TE.log_softmax(-1)
    p_TE = log_p_TE.exp()
    return [
        ("this is E1: the blend is compared, so the experts cooperate",
         (target_TO - blend(logits_TE, out_TEO)).square().sum(-1)),
        ("this is E2: the errors are blended; E3 blends the likelihoods, then takes the logarithm",
         (p_TE * off_TE).sum(-1)),
        ("the logarithm was taken inside the sum: this blends log-likelihoods, half of E2",
         (p_TE * off_TE / 2).sum(-1)),
        ("the sign: a good fit must give a small error, so minus the logarithm",
         (log_p_TE - off_TE / 2).logsumexp(-1)),
        ("the factor ½ in the exponent is missing", -(log_p_TE - off_TE).logsumexp(-1)),
        ("logits are not log-probabilities: take log_softmax, or the gate can lower the error by "
         "raising all its logits", -(logits_TE - off_TE / 2).logsumexp(-1)),
        ("the gate's proportions are missing: every expert counts alike",
         -(-off_TE / 2).logsumexp(-1)),
    ]  # fmt: skip


# --- gradients -----------------------------------------------------------------------------------


def check_gradients(answer: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Check the derivatives of E3: (logits, out, target) -> (by logits_TE, by out_TEO).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "gradients"
    for given, case in ((HAND, _by_hand()), (RANDOM, _random())):
        yours = call(exercise, answer, *case, on=given)
        if not isinstance(yours, tuple | list) or len(yours) != 2:
            raise CheckFailed(f"{exercise}: return two tensors, by the logits and by the answers")
        for part, mine, like in zip(("by the logits", "by the answers"), yours, case, strict=False):
            _check_shape(f"{exercise}, {part}", mine, like)
        logits_TE, out_TEO, target_TO = case
        p_TE, h_TE = logits_TE.softmax(-1), responsibilities(*case)
        rest_TEO = target_TO[:, None] - out_TEO
        expect(
            f"{exercise}, by the logits", given, yours[0], p_TE - h_TE,
            [
                ("this is h - p, the way the gate should move; the gradient points uphill, and "
                 "descending subtracts it", h_TE - p_TE),
                ("only the responsibilities: the gate moves until p equals h, so p - h", -h_TE),
                ("only the responsibilities: the gate moves until p equals h, so p - h", h_TE),
                ("the likelihood without the prior: h needs p as a factor",
                 p_TE - (-squared_errors(out_TEO, target_TO) / 2).softmax(-1)),
                ("this is the derivative by p, not by the logits: the softmax in between is "
                 "missing", -h_TE / p_TE),
                ("that is E2's derivative, p (e - Σ p e): errors compared, not responsibilities",
                 p_TE * (squared_errors(out_TEO, target_TO)
                         - (p_TE * squared_errors(out_TEO, target_TO)).sum(-1, keepdim=True))),
            ],
            "not the derivative by the logits",
        )  # fmt: skip
        h_TE1, p_TE1 = h_TE[..., None], p_TE[..., None]
        expect(
            f"{exercise}, by the answers", given, yours[1], -h_TE1 * rest_TEO,
            [
                ("the sign: the error falls when an answer moves towards d, so the derivative is "
                 "negative where d is larger", h_TE1 * rest_TEO),
                ("p where h belongs: this moves the experts by belief, and half of E2's derivative",
                 -p_TE1 * rest_TEO),
                ("that is E2's derivative: the worse expert is moved more", -2 * p_TE1 * rest_TEO),
                ("that is E1's derivative: everyone is told the error of the blend",
                 -2 * p_TE1 * (target_TO - blend(logits_TE, out_TEO))[:, None]),
                ("every expert is moved by its whole error, whoever is responsible", -rest_TEO),
                ("a factor of 2 too much: the ½ in the exponent cancels the square's 2",
                 -2 * h_TE1 * rest_TEO),
            ],
            "not the derivative by the answers",
        )  # fmt: skip
    passed(exercise, "p - h for the gate, -h (d - o) for the experts, as autograd has them.")


# --- the trap ------------------------------------------------------------------------------------


def check_working_experts(answer: Callable[[Tensor, float], Tensor]) -> None:
    """Check the instrument: (logits_QTE, share) -> how many experts work in each run, int64 (Q,).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "working_experts"

    def won(*runs: list[int]) -> Tensor:
        return 10 * torch.nn.functional.one_hot(torch.tensor(runs), 3).double()

    narrowly = torch.tensor([[[1.0, 0.9, 0.0]] * 4])
    surely = torch.tensor([[[9.0, 8, -9], [8, 0, -9], [2, 9, -9], [1, 8, -8]]])
    half = torch.tensor([[[9.0, 0, 0], [9, 0, 0], [1, 1.1, -9], [1, 1.1, -9]]])
    runs = [
        ("a run of 4 cases, won by experts 0 0 1 1; share 0.02", surely, 0.02),
        ("a run of 4 cases, won by experts 0 0 1 1; share 0.5: half is just enough",
         half, 0.5),
        ("two runs of 5 cases, won by experts 0 0 0 0 1 and 2 2 2 2 2; share 0.5",
         won([0, 0, 0, 0, 1], [2, 2, 2, 2, 2]), 0.5),
        ("a run of 4 cases, each won narrowly by expert 0; share 0.3", narrowly, 0.3),
        ("three random runs, share 0.25", randn(0, 3, 40, 4), 0.25),
    ]  # fmt: skip
    for given, logits_QTE, share in runs:
        yours = call(exercise, answer, logits_QTE, share, on=given)
        won_QE = torch.nn.functional.one_hot(logits_QTE.argmax(-1), logits_QTE.shape[-1])
        share_QE, p_QTE = won_QE.double().mean(1), logits_QTE.softmax(-1)
        right_Q = (share_QE >= share).sum(-1)
        _check_shape(exercise, yours, right_Q)
        mistakes = [
            ("an expert with just that share works too: at least, not more than",
             (share_QE > share).sum(-1)),
            ("this counts every expert that wins a single case, whatever the share",
             (won_QE.sum(1) > 0).sum(-1)),
            ("the winners are looked for over the cases (dim 1), not over the experts (dim -1)",
             torch.tensor([len(run.unique()) for run in logits_QTE.argmax(1)])),
            ("this counts experts by their mean proportion: a gate that is never sure looks like "
             "a division of labour; count the cases each one wins",
             (p_QTE.mean(1) >= share).sum(-1)),
            ("this asks each case how many experts the gate gives at least that share; ask each "
             "expert how many cases it wins", (p_QTE >= share).sum(-1).double().mean(1)),
            ("this counts the experts that do not work", (share_QE < share).sum(-1)),
        ]  # fmt: skip
        expect(exercise, given, yours, right_Q, mistakes, "that is not how many experts work")
    passed(exercise, "a run in which one expert takes everything now shows as a 1.")


# --- the product ---------------------------------------------------------------------------------


def check_product(answer: Callable[[Tensor], Tensor]) -> None:
    """Check the product of experts on a grid: log_XE, each expert's log density -> log_X.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "product"
    hand = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.0, 0.5]]).log()
    far = torch.tensor([[-400.0, -500.0], [-400.0, -501.0]])
    for given, log_XE in (
        ("three points, experts [0.5, 0.5, 0] and [0.25, 0.25, 0.5], in logarithms", hand),
        ("seven random points, three experts", randn(0, 7, 3).log_softmax(0)),
        ("two points with log densities [-400, -500] and [-400, -501]", far),
    ):
        yours = call(exercise, answer, log_XE, on=given)
        right = log_XE.sum(-1).log_softmax(0)
        _check_shape(exercise, yours, right)
        E = log_XE.shape[-1]
        mistakes = [
            ("that is a mixture: probabilities were added; a product adds their logarithms",
             log_XE.logsumexp(-1) - torch.tensor(float(E)).log()),
            ("that is a mixture: probabilities were added; a product adds their logarithms",
             log_XE.logsumexp(-1)),
            ("the product is not normalised: its probabilities do not add up to 1", log_XE.sum(-1)),
            ("a mean of logarithms is the E-th root of the product: every veto gets weaker",
             log_XE.mean(-1).log_softmax(0)),
            ("this is the probability; return its logarithm", right.exp()),
        ]  # fmt: skip
        otherwise = "not the normalised product"
        if isinstance(yours, Tensor) and yours.isnan().any():
            otherwise = "exp underflows, and 0 / 0 is not a number; normalise by log_softmax"
        expect(exercise, given, yours, right, mistakes, otherwise)
    passed(exercise, "each expert can veto, and what is left adds up to 1.")
