"""The checks of chapter 06: what does a balancing loss really push on?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .verdict import Check, Mistakes, nameless, number, randn, refuse, show


def _share(expert_TK: Tensor, E: int, weight_T: Tensor | None = None) -> Tensor:
    """Return f: of all pairs (of the tokens that weigh 1) the share that goes to each expert."""
    pairs_TE = F.one_hot(expert_TK, E).sum(1).float()
    if weight_T is not None:
        pairs_TE = pairs_TE * weight_T[:, None]
    return pairs_TE.sum(0) / pairs_TE.sum()


def check_balance_loss(balance_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check E * sum(f * P): (logits_TE, expert_TK) -> scalar, 1 where the counts are equal."""
    check = Check("balance_loss", balance_loss, _balance, _loss_mistakes, "not E * sum(f * P)")
    # P = (7, 11, 6) / 24 and f = (2, 1, 3) / 6: 3 * (14 + 11 + 18) / 144 = 0.8958.
    few_TE = torch.tensor([[4.0, 3, 1], [2, 5, 1], [1, 3, 4]]).log()
    check.on("the logarithms of [[4, 3, 1], [2, 5, 1], [1, 3, 4]], to experts, with noise, "
             "[[0, 2], [1, 2], [0, 2]]", few_TE, torch.tensor([[0, 2], [1, 2], [0, 2]]))  # fmt:skip
    for T, E, K in ((24, 5, 1), (24, 5, 2), (24, 5, 3), (1, 4, 2), (6, 6, 6), (7, 9, 2)):
        logits_TE = randn(K, T, E) + torch.linspace(1, -1, E)
        given = f"tokens: {T}, experts: {E}, each token's best {K}"
        check.on(given, logits_TE, logits_TE.topk(K).indices)
    # Chosen with noise: the choices are not those that the logits would give.
    noisy_TK = (randn(4, 24, 5) + randn(5, 24, 5)).topk(2).indices
    check.on("24 tokens, five experts, two each, chosen with noise", randn(4, 24, 5), noisy_TK)
    logits_TE = randn(6, 24, 5) + torch.linspace(1, -1, 5)
    check.slopes("24 tokens, two choices each", logits_TE, logits_TE.topk(2).indices,
                 of={"the logits": 0})  # fmt: skip
    check.passed("f counts, P believes; the factor E makes it 1 where the counts are equal.")


def _balance(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    E = logits_TE.shape[1]
    return E * (_share(expert_TK, E) * logits_TE.softmax(-1).mean(0)).sum()


def _loss_mistakes(logits_TE: Tensor, expert_TK: Tensor) -> Mistakes:
    (T, E), K = logits_TE.shape, expert_TK.shape[1]
    f, p_TE, right = _share(expert_TK, E), logits_TE.softmax(-1), _balance(logits_TE, expert_TK)
    hot_TE = F.one_hot(expert_TK, E).sum(1)
    top_TE = p_TE.where(hot_TE.bool(), 0.0)
    first, own = _share(expert_TK[:, :1], E), _share(logits_TE.topk(K).indices, E)
    P = p_TE.mean(0)
    by_token = "f and P are multiplied token by token, then averaged: average first, then multiply"
    over_tokens = "the softmax runs over the tokens (dim 0), not over a token's experts (dim -1)"
    return [
        ("f is not divided by K: it adds up to K, and so the value at balance is K", right * K),
        ("the factor N (the number of experts) is missing: at balance this is 1 / N", right / E),
        ("that is the mean over the experts; Switch multiplies the sum by N", right / E**2),
        ("P comes from the chosen probabilities alone, the others set to 0; it is the mean over "
         "all experts, chosen or not", E * (f * top_TE.mean(0)).sum()),
        ("P comes from the renormalised top-k weights; it is the mean of the softmax over all "
         "experts", E * (f * (top_TE / top_TE.sum(-1, keepdim=True)).mean(0)).sum()),
        ("both factors are probabilities; f counts choices", E * (P * P).sum()),
        ("both factors are counts, without gradient; P is a probability", E * (f * f).sum()),
        ("f counts each token's first choice only; here all K count", E * (first * P).sum()),
        ("f is counted from the logits; the choices are given", E * (own * P).sum()),
        ("P is a sum over the tokens; it should be their mean", right * T),
        (over_tokens, E * (f * logits_TE.softmax(0).mean(0)).sum()),
        (by_token, E * (hot_TE / K * p_TE).sum(1).mean()),
        (by_token, E * (hot_TE * p_TE).sum(1).mean()),
        (by_token, (hot_TE / K * p_TE).sum(1).mean()),
        ("f times P for each expert: add them up", E * f * P)]  # fmt: skip


def check_push(push: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the gradient by hand: (logits_TE, f_E) -> dL/dlogits, (T, E), with f as it is."""

    def right(logits_TE: Tensor, f_E: Tensor) -> Tensor:
        (T, E), p = logits_TE.shape, logits_TE.softmax(-1)
        return E / T * p * (f_E - (p * f_E).sum(-1, keepdim=True))

    def mistakes(logits_TE: Tensor, f_E: Tensor) -> Mistakes:
        (T, E), p, value = logits_TE.shape, logits_TE.softmax(-1), right(logits_TE, f_E)
        own_T1, P = (p * f_E).sum(-1, keepdim=True), p.mean(0)
        return [
            ("that is the way down; the gradient points up", -value),
            ("that is the slope by P; the softmax is to be passed", (E / T * f_E).expand(T, E)),
            ("raising one logit lowers the token's other probabilities: subtract the token's own "
             "average of f", E / T * p * f_E),
            ("that is the diagonal of the softmax's derivative alone, p (1 - p): a logit moves the "
             "token's other probabilities too", E / T * p * (1 - p) * f_E),
            ("a token compares with its average of f, not 1 / E", E / T * p * (f_E - 1 / E)),
            ("each token compares with its own average of f; that is the average over the batch",
             E / T * p * (f_E - (P * f_E).sum())),
            ("the factor p is missing: a probability near 0 hardly moves", E / T * (f_E - own_T1)),
            ("P is a mean over T tokens, so each has a T-th of the slope", value * T),
            ("the factor E in front of the loss is missing", value / E),
            ("each slope is that of the mean token; every token has probabilities of its own",
             (E / T * P * (f_E - (P * f_E).sum())).expand(T, E))]  # fmt: skip

    check = Check("push", push, right, mistakes, "not (E / T) * p * (f - sum p f)")
    # One token that believes 1/2, 1/4, 1/4; f = 1, 0, 0. Its own average of f is 1/2.
    check.on("the logarithms of [[2, 1, 1]], f = (1, 0, 0)", torch.tensor([[2.0, 1, 1]]).log(),
             torch.tensor([1.0, 0, 0]))  # fmt: skip
    check.on("the logarithms of [[2, 1, 1], [1, 6, 1]], f = (1/2, 1/2, 0)",
             torch.tensor([[2.0, 1, 1], [1, 6, 1]]).log(), torch.tensor([0.5, 0.5, 0]))  # fmt: skip
    for T, E in ((7, 2), (7, 5), (7, 8), (5, 5), (1, 6)):
        check.on(f"tokens: {T}, experts: {E}", 2 * randn(E, T, E), randn(E + 1, E).softmax(0))
    check.passed("each token compares what is crowded with its own average of it.")


LOW = {2: 0.9, 3: 0.8, 8: 0.45}  # a little above the least there is: 7/8, 3/4, 2/5


def check_below_one(below_one: Callable[[int], Tensor]) -> None:
    """Check logits whose loss lies below 1: (E) -> logits_TE, each token to its best expert."""
    check = Check("below_one", below_one, lambda E: True, see=_lies_low)
    for E in LOW:
        check.on(f"E = {E}", E)
    check.passed("counts and beliefs can part, and then 1 is not the least.")


def _lies_low(logits_TE: Any, E: int) -> bool:
    exercise, z_TE = "below_one", number(logits_TE)
    if z_TE is None or z_TE.dim() != 2 or z_TE.shape[1] != E:
        refuse(exercise, f"return logits of shape (tokens, {E}) for E = {E}")
        raise AssertionError
    if not len(z_TE):
        refuse(exercise, f"with E = {E} there is no token, and then neither f nor P is a number")
    z_TE = z_TE.detach().double()
    if not z_TE.isfinite().all():
        refuse(exercise, "a logit is not finite; large enough is enough")
    top_T2 = z_TE.topk(2).values
    if (top_T2[:, 0] == top_T2[:, 1]).any():
        refuse(exercise, f"with E = {E} a token's best two logits tie, and then chance says where "
                         "it goes; let the best be best by a hair")  # fmt: skip
    f_E, P_E = _share(z_TE.topk(1).indices, E).double(), z_TE.softmax(-1).mean(0)
    value = (E * (f_E * P_E).sum()).item()
    if (f_E - 1 / E).abs().max() < 1e-6:
        why = "f is uniform, and then the value is 1 whatever P is; make the counts unequal"
    elif (P_E - 1 / E).abs().max() < 1e-4:
        why = "P is uniform, and then the value is 1 whatever f is; P has to lie where f is not"
    elif not value < 1:
        why = "not below 1: P is large where f is large; let the tokens be torn"
    elif not value < LOW[E]:
        more = "" if E == 2 else "; with more experts, more of them can be left without a token"
        why = f"below 1, but it can be below {LOW[E]}{more}"
    else:
        return True
    numbers = f"\n  f        {show(f_E)}\n  P        {show(P_E)}\n  value    {value:.4f}"
    refuse(exercise, f"with E = {E}, {why}{numbers}")
    return False


def check_masked_balance(masked: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check the loss over the real tokens: (logits_TE, expert_TK, mask_T) -> scalar."""

    def right(logits_TE: Tensor, expert_TK: Tensor, mask_T: Tensor) -> Tensor:
        return _balance(logits_TE[mask_T], expert_TK[mask_T])

    def mistakes(logits_TE: Tensor, expert_TK: Tensor, mask_T: Tensor) -> Mistakes:
        (T, E), K, w = logits_TE.shape, expert_TK.shape[1], mask_T.float()
        p, real, value = logits_TE.softmax(-1), w.sum(), right(logits_TE, expert_TK, mask_T)
        f_all, P_all = _share(expert_TK, E), p.mean(0)
        f, P = _share(expert_TK, E, w), w @ p / real
        blank = (logits_TE * w[:, None]).softmax(-1)
        zeros = "logits of 0 are not nothing: their softmax is uniform, and counts"
        to_zero = "the padding's experts were set to 0, and 0 is an expert: it gets their pairs"
        f_zero = _share(expert_TK * mask_T[:, None], E)
        return [
            ("padding counts in f and in P: the mask is not used", _balance(logits_TE, expert_TK)),
            ("padding still counts in f", E * (f_all * P).sum()),
            ("padding still counts in P", E * (f * P_all).sum()),
            ("the mask is upside down: it is True for real tokens",
             right(logits_TE, expert_TK, ~mask_T) if not mask_T.all() else None),
            ("padding is left out, but both are divided by all tokens", value * (real / T) ** 2),
            ("one of the two means is still divided by all tokens", value * real / T),
            (zeros, E * (f * blank.mean(0)).sum()),
            (zeros, E * (f_all * blank.mean(0)).sum()),
            (zeros, E * (f * (w @ blank + (1 - w) @ blank) / T).sum()),
            (to_zero, E * (f_zero * P).sum()),
            (to_zero, E * (f_zero * P_all).sum()),
            ("f is not divided by K", value * K),
            ("the factor E is missing", value / E)]  # fmt: skip

    check = Check("masked_balance", masked, right, mistakes, "not the loss of real tokens alone")
    # Two real tokens that go apart, two of padding that go together: over the real ones f is even.
    check.on("the logarithms of [[3, 1], [1, 3], [3, 1], [3, 1]], the last two padding",
             torch.tensor([[3.0, 1], [1, 3], [3, 1], [3, 1]]).log(),
             torch.tensor([[0], [1], [0], [0]]), torch.arange(4) < 2)  # fmt: skip
    for K, T, pads in ((1, 30, 10), (2, 30, 10), (2, 12, 11), (2, 9, 0), (3, 20, 7)):
        logits_TE = randn(K, T, 5) + torch.tensor([0.0, 0.5, 0, 0, 0])
        mask_T = torch.arange(T) < T - pads
        if K == 3:  # padding in front, as for a batch of prompts
            mask_T = mask_T.flip(0)
        logits_TE[~mask_T] = randn(9, 5) + torch.tensor([2.0, 0, 0, 0, 0])  # all padding is alike
        given = f"{T} tokens of which {pads} are padding, five experts, each token's best {K}"
        check.on(given, logits_TE, logits_TE.topk(K).indices, mask_T)
    logits_TE = randn(3, 12, 4)
    check.slopes("12 tokens, four of them padding", logits_TE, logits_TE.topk(2).indices,
                 torch.arange(12) < 8, of={"the logits": 0})  # fmt: skip
    check.passed("padding chooses experts too, but nobody asked it.")


def check_over_batches(over_batches: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the loss over the global batch: (f_LGE, P_LGE) -> scalar, the mean over the layers."""

    def right(f: Tensor, P: Tensor) -> Tensor:
        return f.shape[-1] * (f.mean(1) * P.mean(1)).sum(-1).mean()

    def mistakes(f: Tensor, P: Tensor) -> Mistakes:
        (L, G, E), value = f.shape, right(f, P)
        return [
            ("multiplied within each micro-batch, then averaged: every single micro-batch has to "
             "be balanced", E * (f * P).sum(-1).mean()),
            ("the layers are averaged before f and P are multiplied: one layer's crowd hides the "
             "other's gap", E * (f.mean((0, 1)) * P.mean((0, 1))).sum()),
            ("layers averaged, not micro-batches", E * (f.mean(0) * P.mean(0)).sum(-1).mean()),
            ("a sum over the layers: with twice as many it would push twice as hard", value * L),
            ("the factor E is missing", value / E),
            ("a sum over the micro-batches; average them", value * G),
            ("a sum over the micro-batches; average them", value * G * G),
            ("a sum over layers and micro-batches; average both", value * L * G * G),
            ("one number for each layer: average them", E * (f.mean(1) * P.mean(1)).sum(-1)),
            ("the mean over the experts where their sum belongs", value / E**2),
            ("f times f: one of the two is P", right(f, f)),
            ("P times P: one of the two is f", right(P, P))]  # fmt: skip

    check = Check("over_batches", over_batches, right, mistakes,
                  "not the global loss, averaged over layers")  # fmt: skip
    # The layers' means are (1/2, 1/2) and (2/3, 1/3), so their losses 1 and 10/9.
    a, b, both = [1.0, 0], [0.0, 1], [0.5, 0.5]
    even = torch.tensor([[a, b, both], [a, a, b]])
    check.on("f = P: in three micro-batches (1, 0), (0, 1), (1/2, 1/2) in the first layer, and "
             "(1, 0), (1, 0), (0, 1) in the second", even, even)  # fmt: skip
    one_hot = torch.eye(2)[None]
    check.on("one layer, two micro-batches, the first all to expert 0, the second all to expert 1",
             one_hot, one_hot)  # fmt: skip
    for L, G, E in ((1, 3, 4), (3, 1, 4), (2, 3, 5), (3, 3, 3)):
        f, P = (2 * randn(L * G, L, G, E)).softmax(-1), (2 * randn(E, L, G, E)).softmax(-1)
        check.on(f"layers: {L}, micro-batches: {G}, experts: {E}", f, P)
    check.passed("average what belongs together, then multiply, then average what does not.")


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits_LTE, expert_LTK, mask_T) -> scalar: a balancing loss of unknown health."""


def _sound(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    layers = zip(logits_LTE, expert_LTK, strict=True)
    return torch.stack([_balance(z[mask_T], e[mask_T]) for z, e in layers]).mean()


def _undivided(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    return expert_LTK.shape[-1] * _sound(logits_LTE, expert_LTK, mask_T)


def _summed(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    return len(logits_LTE) * _sound(logits_LTE, expert_LTK, mask_T)


def _pooled(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    return _balance(logits_LTE[:, mask_T].flatten(0, 1), expert_LTK[:, mask_T].flatten(0, 1))


def _padded(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    return _sound(logits_LTE, expert_LTK, torch.ones_like(mask_T))


def _top_k_only(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    hidden_LTE = torch.full_like(logits_LTE, -torch.inf)
    kept_LTE = hidden_LTE.scatter(-1, expert_LTK, logits_LTE.gather(-1, expert_LTK))
    return _sound(kept_LTE, expert_LTK, mask_T)


def _detached(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    zero = 0 * logits_LTE.sum()  # a gradient there is, of nothing but zeros
    return _sound(logits_LTE.detach(), expert_LTK, mask_T) + zero


PATIENTS: dict[str, tuple[Loss, str]] = {
    "sound": (_sound, "nothing is wrong with it: it is E * sum(f * P), the mean over the layers"),
    "K": (_undivided, "f is not divided by K; where all is balanced, compare K = 2 with K = 1"),
    "sum": (_summed, "it sums over the layers; where all is balanced, compare two layers with one"),
    "pooled": (_pooled, "it pools the layers first; give it two layers that lean opposite ways"),
    "padding": (_padded, "it counts padding; change nothing but a masked token"),
    "top-k": (_top_k_only, "its P knows only the chosen; change a logit that was not chosen"),
    "detached": (_detached, "P is detached; the value is right, so ask for the gradient"),
}


def check_diagnose(diagnose: Callable[[Loss], str]) -> None:
    """Check the learner's diagnosis: (loss) -> "sound", "K", "sum", "pooled", "padding", "top-k"
    or "detached".
    """
    check = Check("diagnose", diagnose, words=list(PATIENTS))
    for name, (loss, why) in PATIENTS.items():
        given = f"the loss with the fault {name!r}"
        check.on(given, nameless(loss), right=name, otherwise=why)
    check.passed("seven losses, seven right answers, and no look at their code.")
