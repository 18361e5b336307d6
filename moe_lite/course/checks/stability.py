"""The checks of chapter 07: why did it blow up?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .verdict import Check, Mistakes, number, randn, refuse


def check_spacing(spacing: Callable[[float], float]) -> None:
    """Check the distance to the next larger bfloat16 number: x -> step, for x of at least 1."""

    def right(x: float) -> float:
        return 2.0 ** math.floor(math.log2(x)) / 128

    def mistakes(x: float) -> Mistakes:
        below, step = 2.0 ** math.floor(math.log2(x)), right(x)
        grows = "the distance grows with x: 7 bits after the leading one, wherever that stands"
        return [
            ("half of it: the largest error of rounding, not the distance", step / 2),
            ("those are the ten bits of float16; bfloat16 has seven", below / 1024),
            ("that is float32's distance; bfloat16 has 7 of its 23 bits", below / 2**23),
            ("within a power of two the numbers are evenly spaced: it is not x over 128", x / 128),
            ("that is twice too much: 7 bits after the leading one, not 6", 2 * step),
            (grows, 2.0**-7),
            ("that is the next number, not the distance to it", below + step),
            ("that is the next number, not the distance to it", x + step),
            ("the power of two below x, not the nearest one", 2.0 ** round(math.log2(x)) / 128),
            ("round x down to a power of two, not up", 2.0 ** math.ceil(math.log2(x)) / 128),
            ("that is the power of two below x; it has 128 steps to the next", below),
            ("that is the number of steps in one; asked is the size of one", 1 / step),
            ("this cuts x to a whole number, not to a power of two", math.floor(x) / 128),
        ]  # fmt: skip

    check = Check("spacing", spacing, right, mistakes,
                  "not the distance from x to the next larger bfloat16")  # fmt: skip
    for x in (128.0, 5.5, 200.0, 1.0, 3.0, 40.0, 127.5, 1500.0, 2.0**20, 2.0**30, 1.99, 65504.0):
        check.on(f"x = {x:g}", x)
    check.passed("128 steps between a power of two and the next, so 1 at 128 and 8 at 1,024.")


# By hand: the rows' log-sum-exps are 2, 3 and -1 times log 2, so the loss is 14/3 (log 2)^2.
BY_HAND_TE = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0], [0.125] * 4]).log()
BY_HAND = "the logarithms of [[1, 1, 1, 1], [5, 1, 1, 1], [1/8, 1/8, 1/8, 1/8]]"


def _logits() -> list[tuple[str, Tensor]]:
    drawn = [(f"tokens: {T}, experts: {E}", randn(T, T, E)) for T, E in ((6, 5), (4, 4), (1, 7))]
    return [(BY_HAND, BY_HAND_TE), *drawn, ("six tokens, all lower by 9", randn(0, 6, 5) - 9)]


def check_z_loss(z_loss: Callable[[Tensor], Tensor]) -> None:
    """Check eq. 5 of ST-MoE: logits_TE -> scalar."""

    def mistakes(logits_TE: Tensor) -> Mistakes:
        (T, E), lse_T, probs_TE = logits_TE.shape, logits_TE.logsumexp(-1), logits_TE.softmax(-1)
        return [
            ("the square is missing: this pushes every logit to minus infinity", lse_T.mean()),
            ("the absolute value is not the square: its push never fades", lse_T.abs().mean()),
            ("the square goes on each token's log-sum-exp, before the mean", lse_T.mean().square()),
            ("this is the z-loss of the probabilities: take the logits, before the softmax",
             probs_TE.logsumexp(-1).square().mean()),
            ("of log-probabilities the log-sum-exp is always 0: take logits", torch.zeros(())),
            ("a mean over tokens, not a sum", lse_T.square().sum()),
            ("the mean runs over the T tokens; here it is divided by the number of experts too",
             lse_T.square().sum() / (T * E)),
            ("by the number of experts instead of the number of tokens", lse_T.square().sum() / E),
            ("the log-sum-exp runs over the experts, not over the tokens",
             logits_TE.logsumexp(0).square().mean()),
            ("these are the squared logits, not their log-sum-exp", logits_TE.square().mean()),
            ("the mean of the exponentials, not their sum", (lse_T - math.log(E)).square().mean()),
            ("that is half of it", lse_T.square().mean() / 2),
            ("the largest logit was taken out of the exponentials and never added back",
             (lse_T - logits_TE.amax(-1)).square().mean()),
            ("the largest logit stands for the log-sum-exp", logits_TE.amax(-1).square().mean()),
            ("one log-sum-exp of all logits", logits_TE.flatten().logsumexp(0).square()),
            ("the logarithm is missing", logits_TE.exp().sum(-1).mean()),
            ("one loss for each token: take their mean", lse_T.square())]  # fmt: skip

    check = Check("z_loss", z_loss, lambda logits_TE: logits_TE.logsumexp(-1).square().mean(),
                  mistakes, "not the mean of (log sum exp)^2",
                  nan="exp overflows; logsumexp takes the largest logit out first")  # fmt: skip
    for given, logits_TE in _logits():
        check.on(given, logits_TE)
    check.on("logits of about 300", randn(0, 6, 5) + 300, otherwise="right for small logits alone")
    check.slopes("six tokens, five experts", randn(0, 6, 5), of={"the logits": 0})
    check.passed("least where the exponentials sum to 1, and it grows on both sides.")


def check_z_gradient(z_gradient: Callable[[Tensor], Tensor]) -> None:
    """Check the gradient of the z-loss by hand: logits_TE -> d loss / d logits_TE."""

    def right(logits_TE: Tensor) -> Tensor:
        return 2 * logits_TE.logsumexp(-1, keepdim=True) * logits_TE.softmax(-1) / len(logits_TE)

    def mistakes(logits_TE: Tensor) -> Mistakes:
        lse_T1, probs_TE = logits_TE.logsumexp(-1, keepdim=True), logits_TE.softmax(-1)
        (T, E), right_TE = logits_TE.shape, right(logits_TE)
        return [
            ("the 2 of the square is missing", right_TE / 2),
            ("the mean's 1/T is missing", right_TE * T),
            ("this is the gradient without the square: lse is a factor", probs_TE / T),
            ("the factor is the log-sum-exp, not its square", 2 * lse_T1.square() * probs_TE / T),
            ("the inner derivative is missing: the softmax", (2 * lse_T1 / T).expand(T, E)),
            ("the inner derivative is the softmax, not the logits", 2 * lse_T1 * logits_TE / T),
            ("that is a cross entropy's gradient, with a 1 taken from the best expert",
             2 * lse_T1 * (probs_TE - F.one_hot(logits_TE.argmax(-1), E)) / T),
            ("divided by the number of experts too", right_TE / E),
            ("this points downhill; the gradient points uphill", -right_TE),
            ("both the 2 and the 1/T forgotten", lse_T1 * probs_TE),
            ("the softmax runs over the tokens (dim 0), not over a token's experts",
             2 * lse_T1 * logits_TE.softmax(0) / T),
            ("the mean log-sum-exp for all; each has its own", 2 * lse_T1.mean() * probs_TE / T),
            ("one slope for each token: each of its logits has its own", 2 * lse_T1 / T),
        ]  # fmt: skip

    check = Check("z_gradient", z_gradient, right, mistakes, "not 2 · log-sum-exp · softmax / T")
    for given, logits_TE in _logits():
        check.on(given, logits_TE)
    check.passed("2 · log-sum-exp · softmax / T: over a token's experts it sums to 2 lse / T.")


def check_selective_logits(selective_logits: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check a router's logits in float32 whatever comes in: (x_TD, weight_ED) -> logits_TE.

    Called under autocast to bfloat16 too, as a training loop would.
    """
    exercise = "selective_logits"

    def answer(x: Tensor, w: Tensor, autocast: bool) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return selective_logits(x, w)

    def in_float32(value: Any, x: Tensor, w: Tensor, autocast: bool) -> Any:
        if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
            dtype = str(value.dtype).removeprefix("torch.")
            refuse(exercise, f"the logits are {dtype}, and the softmax would be too",
                   "under autocast to bfloat16" if autocast else "without autocast")  # fmt: skip
        return value

    def mistakes(x: Tensor, w: Tensor, autocast: bool) -> Mistakes:
        exact = F.linear(x.float(), w.float())
        rounded = F.linear(x.bfloat16(), w.bfloat16()).float()
        return [
            ("under autocast a product runs in bfloat16 even if you cast its inputs: switch "
             "autocast off around it", rounded if autocast else exact),
            ("too late: the product was rounded to bfloat16, and a cast brings nothing back; cast "
             "its inputs instead", rounded),
            ("float32 inputs must not be rounded on the way in",
             F.linear(x.bfloat16().float(), w.bfloat16().float())),
            ("the weights: use them as they are", F.linear(x.float(), w.bfloat16().float())),
            ("the input is float32: use it as it is", F.linear(x.bfloat16().float(), w.float())),
            ("these are probabilities; the losses want the logits", exact.softmax(-1)),
            ("that is rounded once more at the end", exact.bfloat16().float())]  # fmt: skip

    check = Check(exercise, answer, lambda x, w, autocast: F.linear(x.float(), w.float()), mistakes,
                  "not x Wᵀ in float32", slack=1e-4, see=in_float32)  # fmt: skip
    x_TD, weight_ED = 4 * randn(0, 40, 32), randn(1, 8, 32)
    inputs = {
        "float32 input": (x_TD, weight_ED),
        "bfloat16 input, float32 weights": (x_TD.bfloat16(), weight_ED),
        "bfloat16 input and weights": (x_TD.bfloat16(), weight_ED.bfloat16()),
    }
    for name, (x, w) in inputs.items():
        for autocast, how in ((False, "without autocast"), (True, "under autocast to bfloat16")):
            check.on(f"{name}, {how}", x, w, autocast)
    check.slopes("float32, under autocast", x_TD, weight_ED, True,
                 of={"the weights": 1, "the input": 0})  # fmt: skip
    check.passed("the router counts in float32, whatever the layers around it do.")


CUT = 0.87962566  # the deviation of a standard normal that is cut at two


def check_first_weights(first_weights: Callable[[int, int, float], Tensor]) -> None:
    """Check Switch's first weights: (rows, fan_in, scale) -> weight (rows, fan_in).

    A truncated normal of deviation sqrt(scale / fan_in), cut at two deviations; whether the
    deviation is meant before the cut (as the paper says) or after it, both are taken.
    """

    def right(rows: int, n: int, s: float) -> float:
        return math.sqrt(s / n)

    def mistakes(rows: int, n: int, s: float) -> Mistakes:
        return [
            ("the scale is on the variance: sigma is sqrt(s / n), not s / sqrt(n)", s / n**0.5),
            ("sigma is the root of s / n; that was the variance", s / n),
            ("the root is over s and n together: this is sqrt(s) / n", s**0.5 / n),
            ("n is the fan-in, the inputs of a row, not the number of rows", (s / rows) ** 0.5),
            ("this is the mean of fan-in and rows, as Glorot has it", (2 * s / (n + rows)) ** 0.5),
            ("the scale is left out", n**-0.5),
            ("the fan-in is left out", s**0.5),
            ("that is He's factor 2", (2 * s / n) ** 0.5),
            ("a standard normal was cut, and never scaled", 1.0),
            ("the scale divides: sigma is sqrt(s / n), not 1 / sqrt(s n)", (s * n) ** -0.5),
            ("that is PyTorch's own default for a linear layer, 1 / sqrt(3 n)", (3 * n) ** -0.5),
        ]  # fmt: skip

    def drawn(*args: Any) -> Any:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return first_weights(*args)

    def off(std: float, sigma: float) -> float:
        return min(abs(std / (sigma * by) - 1) for by in (1.0, CUT))

    def deviation(value: Any, rows: int, n: int, s: float) -> float:
        """Return the deviation that is meant; where it is right, look at the shape of the bell."""
        exercise, given = "first_weights", f"{rows} rows, fan-in {n}, scale {s:g}"
        weight, sigma = number(value), right(rows, n, s)
        if weight is None or weight.shape != (rows, n):
            refuse(exercise, f"return a tensor of shape {(rows, n)}", given)
            raise AssertionError
        weight = weight.detach().double()
        if not weight.isfinite().all():
            refuse(exercise, "not all of them are finite; torch.empty holds anything", given)
        std, reach = weight.std().item(), weight.abs().max().item()
        if abs(weight.mean().item()) > 0.05 * std:
            refuse(exercise, "the mean must be 0", given)
        if not std:
            refuse(exercise, "all weights are equal; draw them", given)
        if (weight.abs() >= reach * (1 - 1e-6)).double().mean() > 0.001:
            refuse(exercise, "clamping piles the tails up at the edge; they are drawn again", given)
        if off(std, sigma) > 0.025:
            found = min((v for _, v in mistakes(rows, n, s)), key=lambda v: off(std, v))
            return found if off(std, found) < 0.025 else std
        if reach < 1.8 * sigma:
            refuse(exercise, "that is a uniform distribution, not a normal one", given)
        if reach > 2.28 * sigma:
            why = "right deviation, but values beyond two deviations must be drawn again"
            refuse(exercise, why, given)
        # Kolmogorov's distance from the cut bell: no right answer in 10 million comes so far.
        size_N = (weight.abs().flatten() * CUT / std).sort().values
        below_N = torch.special.erf(size_N / math.sqrt(2)) / math.erf(math.sqrt(2))
        place_N = (torch.arange(len(size_N)) + 0.5) / len(size_N)
        if (below_N - place_N).abs().max() * math.sqrt(len(size_N)) > 3:
            why = "right deviation and right edge, but not a bell that was cut: what falls beyond "
            refuse(exercise, why + "two deviations is to be drawn again, not moved", given)
        return sigma

    check = Check("first_weights", drawn, right, mistakes, see=deviation,
                  otherwise="not of sigma sqrt(s / n), cut at two of it")  # fmt: skip
    for rows, n, s in ((800, 100, 0.08), (700, 200, 0.3), (256, 800, 0.1)):
        check.on(f"{rows} rows, fan-in {n}, scale {s:g}; the deviation", rows, n, s)
    check.passed("variance s / n, cut at two deviations: logits of variance s at the start.")
