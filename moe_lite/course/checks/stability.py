"""The checks of chapter 07: why did it blow up?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .verdict import CheckFailed, Mistakes, call, expect, passed, randn


def _tensor(exercise: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise CheckFailed(f"{exercise}: return one tensor of shape {shape}, not {got}")
    return value


# --- bfloat16 ------------------------------------------------------------------------------------


def check_spacing(spacing: Callable[[float], float]) -> None:
    """Check the distance to the next larger bfloat16 number: x -> step, for x of at least 1.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "spacing"
    for x in (128.0, 5.5, 200.0, 1.0, 3.0, 40.0, 127.5, 1500.0, 2.0**20, 2.0**30):
        yours = call(exercise, spacing, x, on=f"x = {x:g}")
        if isinstance(yours, Tensor):
            yours = yours.item()
        if not isinstance(yours, int | float) or isinstance(yours, bool):
            raise CheckFailed(f"{exercise}: return one number, not {yours!r}")
        below = 2.0 ** math.floor(math.log2(x))
        mistakes: Mistakes = [
            ("that is half of it: the largest error of rounding, not the distance to the next",
             below / 256),
            ("those are the ten bits of float16; bfloat16 gave three of them to its exponent",
             below / 1024),
            ("that is float32's distance; bfloat16 keeps its upper 16 bits and so 7 of the 23",
             below / 2**23),
            ("within a power of two the numbers are evenly spaced: it is not x over 128",
             x / 128),
            ("that is twice too much", below / 64 if x == below else math.nan),
            ("the distance grows with x: 7 bits after the leading one, wherever that stands",
             2.0**-7),
            ("that is the next number, not the distance to it", below + below / 128),
            ("round x down to a power of two, not to the nearest one",
             2.0 ** round(math.log2(x)) / 128),
            ("round x down to a power of two, not up", 2.0 ** math.ceil(math.log2(x)) / 128),
        ]  # fmt: skip
        expect(exercise, f"x = {x:g}", float(yours), below / 128,
               [m for m in mistakes if m[1] != below / 128],
               "not the distance from x to the next larger bfloat16")  # fmt: skip
    passed(exercise, "128 steps between a power of two and the next, so 1 at 128 and 8 at 1,024.")


# --- the z-loss ----------------------------------------------------------------------------------

# By hand: the rows' log-sum-exps are 2, 3 and -1 times log 2, so the loss is 14/3 (log 2)^2.
BY_HAND_TE = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0], [0.125] * 4]).log()
BY_HAND = "the logarithms of [[1, 1, 1, 1], [5, 1, 1, 1], [1/8, 1/8, 1/8, 1/8]]"


def check_z_loss(z_loss: Callable[[Tensor], Tensor]) -> None:
    """Check eq. 5 of ST-MoE: logits_TE -> scalar.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "z_loss"

    def run(given: str, logits_TE: Tensor) -> None:
        yours = _tensor(exercise, call(exercise, z_loss, logits_TE, on=given), ())
        if not yours.isfinite():
            raise CheckFailed(
                f"{exercise}: exp overflows; torch.logsumexp takes the largest logit out first\n"
                f"  given    {given}"
            )
        lse_T, probs_TE = logits_TE.logsumexp(-1), logits_TE.softmax(-1)
        T, E = logits_TE.shape
        mistakes: Mistakes = [
            ("the square is missing: this is least at minus infinity, and pushes every logit there",
             lse_T.mean()),
            ("the absolute value is not the square: its push does not fade near zero",
             lse_T.abs().mean()),
            ("the square goes on each token's log-sum-exp, before the mean",
             lse_T.mean().square()),
            ("this is the z-loss of the probabilities: take the logits, before the softmax",
             probs_TE.logsumexp(-1).square().mean()),
            ("of the softmax's logarithm the log-sum-exp is always 0: take the logits themselves",
             torch.zeros(())),
            ("a mean over tokens, not a sum", lse_T.square().sum()),
            ("the mean runs over the T tokens; here it is divided by the number of experts too",
             lse_T.square().sum() / (T * E)),
            ("it is divided by the number of experts instead of the number of tokens",
             lse_T.square().sum() / E),
            ("the log-sum-exp runs over a token's experts, not over the tokens",
             logits_TE.logsumexp(0).square().mean()),
            ("these are the squared logits; what is held is their log-sum-exp",
             logits_TE.square().mean()),
            ("this takes the mean of the exponentials, not their sum",
             (lse_T - math.log(E)).square().mean()),
            ("that is half of it", lse_T.square().mean() / 2),
        ]  # fmt: skip
        right = lse_T.square().mean()
        expect(exercise, given, yours, right, mistakes, "not the mean of (log sum exp)^2")

    run(BY_HAND, BY_HAND_TE)
    run("six tokens, five experts", randn(0, 6, 5))
    run("the same logits, all lower by 9", randn(0, 6, 5) - 9)
    run("logits of about 300", randn(0, 6, 5) + 300)
    leaf = randn(0, 6, 5).requires_grad_()
    yours = call(exercise, z_loss, leaf, on="logits that need a gradient")
    if not yours.requires_grad:
        raise CheckFailed(f"{exercise}: right value, but no gradient reaches the logits")
    (slope_TE,) = torch.autograd.grad(yours, leaf)
    expect(exercise, "the gradient for six tokens, five experts", slope_TE, _z_gradient(leaf), [],
           "right value, but not its gradient")  # fmt: skip
    passed(exercise, "least where the exponentials sum to 1, and it grows on both sides.")


def _z_gradient(logits_TE: Tensor) -> Tensor:
    logits_TE = logits_TE.detach()
    lse_T1 = logits_TE.logsumexp(-1, keepdim=True)
    return 2 * lse_T1 * logits_TE.softmax(-1) / len(logits_TE)


def check_z_gradient(z_gradient: Callable[[Tensor], Tensor]) -> None:
    """Check the gradient of the z-loss by hand: logits_TE -> d loss / d logits_TE.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "z_gradient"

    def run(given: str, logits_TE: Tensor) -> None:
        yours = call(exercise, z_gradient, logits_TE, on=given)
        _tensor(exercise, yours, tuple(logits_TE.shape))
        lse_T1, probs_TE = logits_TE.logsumexp(-1, keepdim=True), logits_TE.softmax(-1)
        T, E = logits_TE.shape
        right_TE = _z_gradient(logits_TE)
        mistakes: Mistakes = [
            ("the 2 of the square is missing", right_TE / 2),
            ("the mean's 1/T is missing", right_TE * T),
            ("this is the gradient without the square: the log-sum-exp itself is a factor",
             probs_TE / T),
            ("the factor is the log-sum-exp, not its square",
             2 * lse_T1.square() * probs_TE / T),
            ("the inner derivative is missing: that of log-sum-exp is the softmax",
             (2 * lse_T1 / T).expand(T, E)),
            ("the inner derivative is the softmax, not the logits", 2 * lse_T1 * logits_TE / T),
            ("that is a cross entropy's gradient, with a 1 taken from the best expert",
             2 * lse_T1 * (probs_TE - F.one_hot(logits_TE.argmax(-1), E)) / T),
            ("divided by the number of experts too", right_TE / E),
            ("this points downhill; the gradient points uphill", -right_TE),
            ("with both the 2 and the 1/T forgotten, this is twice-and-T-times off",
             lse_T1 * probs_TE),
        ]  # fmt: skip
        expect(exercise, given, yours, right_TE, mistakes, "not 2 · log-sum-exp · softmax / T")

    run(BY_HAND, BY_HAND_TE)
    run("six tokens, five experts", randn(0, 6, 5))
    run("the same logits, all lower by 9", randn(0, 6, 5) - 9)
    passed(exercise, "2 · log-sum-exp · softmax / T: over a token's experts it sums to 2 lse / T.")


# --- precision -----------------------------------------------------------------------------------


def check_selective_logits(selective_logits: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check a router's logits in float32 whatever comes in: (x_TD, weight_ED) -> logits_TE.

    Called under autocast to bfloat16 too, as a training loop would.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "selective_logits"
    x_TD, weight_ED = 4 * randn(0, 40, 32), randn(1, 8, 32)
    inputs = {
        "float32 input": (x_TD, weight_ED),
        "bfloat16 input, float32 weights": (x_TD.bfloat16(), weight_ED),
        "bfloat16 input and weights": (x_TD.bfloat16(), weight_ED.bfloat16()),
    }
    for name, (x, w) in inputs.items():
        for on in (False, True):
            given = f"{name}, {'under autocast to bfloat16' if on else 'without autocast'}"
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                yours = call(exercise, selective_logits, x, w, on=given)
            _tensor(exercise, yours, (40, 8))
            if yours.dtype != torch.float32:
                raise CheckFailed(
                    f"{exercise}: the logits are {str(yours.dtype).removeprefix('torch.')}, and "
                    f"the softmax would be too\n  given    {given}"
                )
            exact = F.linear(x.float(), w.float())
            late = F.linear(x.bfloat16(), w.bfloat16()).float()
            mistakes: Mistakes = [
                ("under autocast a product runs in bfloat16 even if you cast its inputs: switch "
                 "autocast off around it" if on and name == "float32 input" else
                 "too late: the product was rounded to bfloat16, and a cast brings nothing back; "
                 "cast its inputs instead", late),
                ("float32 inputs must not be rounded on the way in",
                 F.linear(x.bfloat16().float(), w.bfloat16().float())),
                ("the weights are float32: use them as they are",
                 F.linear(x.float(), w.bfloat16().float())),
                ("the input is float32: use it as it is",
                 F.linear(x.bfloat16().float(), w.float())),
                ("these are probabilities; the losses want the logits", exact.softmax(-1)),
                ("that is rounded once more at the end", exact.bfloat16().float()),
            ]  # fmt: skip
            expect(exercise, given, yours, exact, mistakes, "not x Wᵀ in float32")
    x, w = inputs["float32 input"]
    leaf = w.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        yours = call(exercise, selective_logits, x, leaf, on="weights that need a gradient")
    if not yours.requires_grad:
        raise CheckFailed(f"{exercise}: right logits, but no gradient reaches the weights")
    passed(exercise, "the router counts in float32, whatever the layers around it do.")


# --- first weights -------------------------------------------------------------------------------


def check_first_weights(first_weights: Callable[[int, int, float], Tensor]) -> None:
    """Check Switch's first weights: (rows, fan_in, scale) -> weight (rows, fan_in).

    A truncated normal of deviation sqrt(scale / fan_in), cut at two deviations; whether the
    deviation is meant before the cut (as the paper says) or after it, both are taken.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "first_weights"
    for rows, n, s in ((400, 256, 0.1), (256, 800, 0.1), (300, 300, 1.0)):
        given = f"{rows} rows, fan-in {n}, scale {s:g}"
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            yours = _tensor(
                exercise, call(exercise, first_weights, rows, n, s, on=given), (rows, n)
            )
        yours = _tensor(exercise, yours, (rows, n)).detach().double()
        sigma, std, reach = math.sqrt(s / n), yours.std().item(), yours.abs().max().item()

        def is_about(value: float, std: float = std) -> bool:
            return abs(std / value - 1) < 0.025

        cut = 0.8796  # the deviation of a standard normal that is cut at two
        wrong = {
            "the scale is on the variance: sigma is sqrt(s / n), not s / sqrt(n)": s / n**0.5,
            "sigma is the root of s / n; that was the variance": s / n,
            "the root is over s and n together: this is sqrt(s) / n": s**0.5 / n,
            "n is the fan-in, the inputs of a row, not the number of rows": (s / rows) ** 0.5,
            "this is the mean of fan-in and rows, as Glorot has it": (2 * s / (n + rows)) ** 0.5,
            "the scale is left out": n**-0.5,
            "the fan-in is left out": s**0.5,
            "that is He's factor 2": (2 * s / n) ** 0.5,
        }
        if abs(yours.mean().item()) > 0.05 * sigma:
            raise CheckFailed(f"{exercise}: the mean must be 0\n  given    {given}")
        if not (is_about(sigma) or is_about(cut * sigma)):
            found = [m for m, v in wrong.items() if is_about(v) or is_about(cut * v)]
            verdict = found[0] if found else "not of deviation sqrt(s / n)"
            raise CheckFailed(
                f"{exercise}: {verdict}\n  given    {given}\n"
                f"  yours    deviation {std:.4g}\n  expected {cut * sigma:.4g} after the cut"
            )
        if reach < 1.8 * sigma:
            raise CheckFailed(
                f"{exercise}: that is a uniform distribution, not a normal one\n  given    {given}"
            )
        if reach > 2.28 * sigma:
            raise CheckFailed(
                f"{exercise}: right deviation, but values beyond two deviations must be drawn "
                f"again\n  given    {given}"
            )
        if (yours.abs() >= reach * (1 - 1e-6)).double().mean() > 0.001:
            raise CheckFailed(
                f"{exercise}: clamping piles the tails up at the edge; they are drawn again"
                f"\n  given    {given}"
            )
    passed(exercise, "variance s / n, cut at two deviations: logits of variance s at the start.")
