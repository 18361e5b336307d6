"""The checks of chapter 06: what does a balancing loss really push on?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .verdict import CheckFailed, Mistakes, call, expect, passed, randn


def _number(exercise: str, value: Any) -> Tensor:
    """Take a learner's scalar as a tensor without dimensions."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = torch.tensor(float(value))
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else value
        raise CheckFailed(f"{exercise}: return one number, not {got}")
    return value.reshape(())


def _share(expert_TK: Tensor, E: int, weight_T: Tensor | None = None) -> Tensor:
    """Give f: of all pairs (of the tokens that weigh 1) the share that goes to each expert."""
    pairs_TE = F.one_hot(expert_TK, E).sum(1).float()
    if weight_T is not None:
        pairs_TE = pairs_TE * weight_T[:, None]
    return pairs_TE.sum(0) / pairs_TE.sum()


def _chosen(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    return F.one_hot(expert_TK, logits_TE.shape[1]).sum(1).bool()


# --- the loss ------------------------------------------------------------------------------------


def check_balance_loss(balance_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check E * sum(f * P): (logits_TE, expert_TK) -> scalar, 1 where the counts are equal.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "balance_loss"

    def run(given: str, logits_TE: Tensor, expert_TK: Tensor) -> None:
        yours = _number(exercise, call(exercise, balance_loss, logits_TE, expert_TK, on=given))
        expect(exercise, given, yours, _loss(logits_TE, expert_TK),
               _loss_mistakes(logits_TE, expert_TK), "not E * sum(f * P)")  # fmt: skip

    # P = (7, 11, 6) / 24 and f = (2, 1, 3) / 6: 3 * (14 + 11 + 18) / 144 = 0.8958.
    few_TE = torch.tensor([[4.0, 3, 1], [2, 5, 1], [1, 3, 4]]).log()
    run("the logarithms of [[4, 3, 1], [2, 5, 1], [1, 3, 4]], going (with noise) to experts "
        "[[0, 2], [1, 2], [0, 2]]", few_TE, torch.tensor([[0, 2], [1, 2], [0, 2]]))  # fmt: skip
    for K in (1, 2, 3):
        logits_TE = randn(K, 24, 5) + torch.linspace(1, -1, 5)
        run(f"24 tokens, five experts, each token's best {K}", logits_TE, logits_TE.topk(K).indices)
    # Chosen with noise: the choices are not those that the logits would give.
    noisy_TK = (randn(4, 24, 5) + randn(5, 24, 5)).topk(2).indices
    run("24 tokens, five experts, two each, chosen with noise", randn(4, 24, 5), noisy_TK)
    logits_TE = (randn(6, 24, 5) + torch.linspace(1, -1, 5)).requires_grad_()
    expert_TK = logits_TE.topk(2).indices
    given = "logits that need a gradient"
    loss = _number(exercise, call(exercise, balance_loss, logits_TE, expert_TK, on=given))
    if not loss.requires_grad:
        raise CheckFailed(f"{exercise}: the right value, but no gradient: P is detached somewhere")
    yours, right = (
        torch.autograd.grad(x, logits_TE)[0] for x in (loss, _loss(logits_TE, expert_TK))
    )
    expect(exercise, "the gradient at 24 tokens, two choices each", yours, right, [],
           "the right value, but not its gradient: it should come through P alone")  # fmt: skip
    passed(exercise, "f counts, P believes; the factor E makes it 1 where the counts are equal.")


def _loss(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    E = logits_TE.shape[1]
    return E * (_share(expert_TK, E) * logits_TE.softmax(-1).mean(0)).sum()


def _loss_mistakes(logits_TE: Tensor, expert_TK: Tensor) -> Mistakes:
    (T, E), K = logits_TE.shape, expert_TK.shape[1]
    f, p_TE, right = _share(expert_TK, E), logits_TE.softmax(-1), _loss(logits_TE, expert_TK)
    top_TE = p_TE.where(_chosen(logits_TE, expert_TK), 0.0)
    first, own = _share(expert_TK[:, :1], E), _share(logits_TE.topk(K).indices, E)
    P = p_TE.mean(0)
    return [
        ("f is not divided by K: it adds up to K, and so the value at balance is K", right * K),
        ("the factor N (the number of experts) is missing: at balance this is 1 / N", right / E),
        ("that is the mean over the experts; Switch multiplies the sum by N", right / E**2),
        ("P comes from the chosen probabilities alone, the others set to 0; it is the mean over "
         "all experts, chosen or not", E * (f * top_TE.mean(0)).sum()),
        ("P comes from the renormalised top-k weights; it is the mean of the softmax over all "
         "experts", E * (f * (top_TE / top_TE.sum(-1, keepdim=True)).mean(0)).sum()),
        ("both factors are probabilities; f counts choices", E * (P * P).sum()),
        ("both factors are counts, so nothing has a gradient; P is the mean probability",
         E * (f * f).sum()),
        ("f counts each token's first choice only, as GShard does; here all K count",
         E * (first * P).sum()),
        ("f is counted from the logits; the choices are given, and with noise they differ",
         E * (own * P).sum()),
        ("P is a sum over the tokens; it should be their mean", right * T),
        ("the softmax runs over the tokens (dim 0), not over a token's experts (dim -1)",
         E * (f * logits_TE.softmax(0).mean(0)).sum()),
    ]  # fmt: skip


# --- the gradient --------------------------------------------------------------------------------


def check_push(push: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the gradient by hand: (logits_TE, f_E) -> dL/dlogits, (T, E), with f as it is.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "push"

    def run(given: str, logits_TE: Tensor, f_E: Tensor) -> None:
        yours = call(exercise, push, logits_TE, f_E, on=given)
        if not isinstance(yours, Tensor) or yours.shape != logits_TE.shape:
            got = tuple(yours.shape) if isinstance(yours, Tensor) else repr(yours)
            raise CheckFailed(
                f"{exercise}: return one slope for each logit, a tensor of shape "
                f"{tuple(logits_TE.shape)}, not {got}"
            )
        (T, E), p = logits_TE.shape, logits_TE.softmax(-1)
        own_T1, P = (p * f_E).sum(-1, keepdim=True), p.mean(0)
        right = E / T * p * (f_E - own_T1)
        mistakes: Mistakes = [
            ("that is the way down; the gradient points up", -right),
            ("that is the slope with respect to P; the softmax is still to be passed",
             (E / T * f_E).expand(T, E)),
            ("raising one logit lowers the token's other probabilities: subtract the token's own "
             "average of f", E / T * p * f_E),
            ("each token compares with its own average of f, the sum of p * f; not with 1 / E",
             E / T * p * (f_E - 1 / E)),
            ("each token compares with its own average of f; that is the average over the batch",
             E / T * p * (f_E - (P * f_E).sum())),
            ("the factor p is missing: a probability near 0 hardly moves", E / T * (f_E - own_T1)),
            ("P is a mean over T tokens, so each has a T-th of the slope", right * T),
            ("the factor E in front of the loss is missing", right / E),
            ("each slope is that of the mean token; every token has probabilities of its own",
             (E / T * P * (f_E - (P * f_E).sum())).expand(T, E)),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "not (E / T) * p * (f - sum p f)")

    # One token that believes 1/2, 1/4, 1/4; f = 1, 0, 0. Its own average of f is 1/2.
    run("the logarithms of [[2, 1, 1]], f = (1, 0, 0)",
        torch.tensor([[2.0, 1, 1]]).log(), torch.tensor([1.0, 0, 0]))  # fmt: skip
    run("the logarithms of [[2, 1, 1], [1, 6, 1]], f = (1/2, 1/2, 0)",
        torch.tensor([[2.0, 1, 1], [1, 6, 1]]).log(), torch.tensor([0.5, 0.5, 0]))  # fmt: skip
    for E in (2, 5, 8):
        run(f"seven tokens, {E} experts", 2 * randn(E, 7, E), randn(E + 1, E).softmax(0))
    passed(exercise, "each token compares what is crowded with its own average of it.")


# --- below 1 -------------------------------------------------------------------------------------

LOW = {2: 0.9, 3: 0.8, 8: 0.45}  # a little above the least there is: 7/8, 3/4, 2/5


def check_below_one(below_one: Callable[[int], Tensor]) -> None:
    """Check logits whose loss lies below 1: (E) -> logits_TE, each token to its best expert.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "below_one"
    for E, low in LOW.items():
        logits_TE = call(exercise, below_one, E, on=f"E = {E}")
        if not isinstance(logits_TE, Tensor) or logits_TE.dim() != 2 or logits_TE.shape[1] != E:
            raise CheckFailed(f"{exercise}: return logits of shape (tokens, {E}) for E = {E}")
        if not logits_TE.isfinite().all():
            raise CheckFailed(f"{exercise}: a logit is not finite; large enough is enough")
        z_TE = logits_TE.detach().double()
        top_T2 = z_TE.topk(2).values
        if (top_T2[:, 0] - top_T2[:, 1] < 1e-6).any():
            raise CheckFailed(
                f"{exercise}: with E = {E} a token's best two logits tie, and then chance says "
                "where it goes; let the best be best by a hair"
            )
        f_E, P_E = _share(z_TE.topk(1).indices, E).double(), z_TE.softmax(-1).mean(0)
        value = (E * (f_E * P_E).sum()).item()
        numbers = f"\n  f        {_row(f_E)}\n  P        {_row(P_E)}\n  value    {value:.4f}"
        if (f_E - 1 / E).abs().max() < 1e-9:
            why = "f is uniform, and then the value is 1 whatever P is; make the counts unequal"
        elif (P_E - 1 / E).abs().max() < 1e-4:
            why = "P is uniform, and then the value is 1 whatever f is; P has to lie where f is not"
        elif value >= 1:
            why = "not below 1: P is large where f is large; let the tokens be torn"
        elif value >= low:
            more = "" if E == 2 else "; with more experts, more of them can be left without a token"
            why = f"below 1, but it can be below {low}{more}"
        else:
            continue
        raise CheckFailed(f"{exercise}: with E = {E}, {why}{numbers}")
    passed(exercise, "counts and beliefs can part, and then 1 is not the least.")


def _row(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())


# --- padding -------------------------------------------------------------------------------------


def check_masked_balance(masked: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check the loss over the real tokens: (logits_TE, expert_TK, mask_T) -> scalar.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "masked_balance"

    def run(given: str, logits_TE: Tensor, expert_TK: Tensor, mask_T: Tensor) -> None:
        yours = _number(exercise, call(exercise, masked, logits_TE, expert_TK, mask_T, on=given))
        (T, E), w = logits_TE.shape, mask_T.float()
        p, real = logits_TE.softmax(-1), w.sum()
        f_all, P_all = _share(expert_TK, E), p.mean(0)
        f, P = _share(expert_TK, E, w), w @ p / real
        right = _loss(logits_TE[mask_T], expert_TK[mask_T])
        blank = logits_TE * w[:, None]
        mistakes: Mistakes = [
            ("padding counts in f and in P: the mask is not used", _loss(logits_TE, expert_TK)),
            ("padding still counts in f", E * (f_all * P).sum()),
            ("padding still counts in P", E * (f * P_all).sum()),
            ("the mask is upside down: it is True for real tokens",
             _loss(logits_TE[~mask_T], expert_TK[~mask_T]) if (~mask_T).any() else right),
            ("the sums leave padding out, but both are divided by all tokens",
             right * (real / T) ** 2),
            ("one of the two means is still divided by all tokens", right * real / T),
            ("logits of 0 are not nothing: their softmax is uniform, and counts",
             E * (f * blank.softmax(-1).mean(0)).sum()),
            ("logits of 0 are not nothing: their softmax is uniform, and counts",
             E * (f_all * blank.softmax(-1).mean(0)).sum()),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "not the loss of the real tokens alone")

    # Two real tokens that go apart, two of padding that go together: over the real ones f is even.
    run("the logarithms of [[3, 1], [1, 3], [3, 1], [3, 1]], the last two padding",
        torch.tensor([[3.0, 1], [1, 3], [3, 1], [3, 1]]).log(),
        torch.tensor([[0], [1], [0], [0]]), torch.tensor([True, True, False, False]))  # fmt: skip
    for K in (1, 2):
        logits_TE = randn(K, 30, 5)
        logits_TE[20:] = randn(9, 5) + torch.tensor([2.0, 0, 0, 0, 0])  # all padding is alike
        logits_TE = logits_TE + torch.tensor([0.0, 0.5, 0, 0, 0])
        mask_T = torch.arange(30) < 20
        run(f"30 tokens of which the last ten are padding, five experts, each token's best {K}",
            logits_TE, logits_TE.topk(K).indices, mask_T)  # fmt: skip
    passed(exercise, "padding chooses experts too, but nobody asked it.")


# --- what to average, and when -------------------------------------------------------------------


def check_over_batches(over_batches: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the loss over the global batch: (f_LGE, P_LGE) -> scalar, the mean over the layers.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "over_batches"

    def run(given: str, f_LGE: Tensor, P_LGE: Tensor) -> None:
        yours = _number(exercise, call(exercise, over_batches, f_LGE, P_LGE, on=given))
        (L, G, E), f, P = f_LGE.shape, f_LGE, P_LGE
        right = E * (f.mean(1) * P.mean(1)).sum(-1).mean()
        mistakes: Mistakes = [
            ("multiplied within each micro-batch, then averaged: every single micro-batch has to "
             "be balanced", E * (f * P).sum(-1).mean()),
            ("the layers are averaged before f and P are multiplied: one layer's crowd hides the "
             "other's gap", E * (f.mean((0, 1)) * P.mean((0, 1))).sum()),
            ("the layers are averaged where the micro-batches should be",
             E * (f.mean(0) * P.mean(0)).sum(-1).mean()),
            ("a sum over the layers; with twice the layers the loss would push twice as hard",
             right * L),
            ("the factor E is missing", right / E),
            ("a sum over the micro-batches; average them", right * G),
            ("a sum over the micro-batches; average them", right * G * G),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "not the global loss, averaged over layers")

    # The layers' means are (1/2, 1/2) and (2/3, 1/3), so their losses 1 and 10/9.
    a, b, both = [1.0, 0], [0.0, 1], [0.5, 0.5]
    even = torch.tensor([[a, b, both], [a, a, b]])
    run("f = P: in three micro-batches (1, 0), (0, 1), (1/2, 1/2) in the first layer, and "
        "(1, 0), (1, 0), (0, 1) in the second", even, even)  # fmt: skip
    one_hot = torch.eye(2)
    run("one layer, two micro-batches, the first all to expert 0, the second all to expert 1",
        one_hot[None], one_hot[None])  # fmt: skip
    for L, G, E in ((1, 3, 4), (3, 1, 4), (2, 3, 5)):
        f, P = (2 * randn(L * G, L, G, E)).softmax(-1), (2 * randn(E, L, G, E)).softmax(-1)
        run(f"{L} layers, {G} micro-batches, {E} experts", f, P)
    passed(exercise, "average what belongs together, then multiply, then average what does not.")


# --- which bug is it? ----------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits_LTE, expert_LTK, mask_T) -> scalar: a balancing loss of unknown health."""


def _sound(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    layers = zip(logits_LTE, expert_LTK, strict=True)
    return torch.stack([_loss(z[mask_T], e[mask_T]) for z, e in layers]).mean()


def _undivided(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    return expert_LTK.shape[-1] * _sound(logits_LTE, expert_LTK, mask_T)


def _summed(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    return len(logits_LTE) * _sound(logits_LTE, expert_LTK, mask_T)


def _pooled(logits_LTE: Tensor, expert_LTK: Tensor, mask_T: Tensor) -> Tensor:
    return _loss(logits_LTE[:, mask_T].flatten(0, 1), expert_LTK[:, mask_T].flatten(0, 1))


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

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "diagnose"
    given = {
        name: call(exercise, diagnose, loss, on=f"the loss with the fault {name!r}")
        for name, (loss, _) in PATIENTS.items()
    }
    for said in given.values():
        if said not in PATIENTS:
            raise CheckFailed(f"{exercise}: answer one of {', '.join(PATIENTS)}; not {said!r}")
    wrong = [name for name, said in given.items() if said != name]
    if len(set(given.values())) == 1:
        why = f"it says {given['sound']!r} of all seven, whatever they do"
    elif given["sound"] != "sound":
        why = f"a sound loss is called {given['sound']!r}; {PATIENTS['sound'][1]}"
    elif wrong:
        name = wrong[0]
        why = f"{name!r} is taken for {given[name]!r}: {PATIENTS[name][1]}"
    else:
        passed(exercise, "seven losses, seven right answers, and no look at their code.")
        return
    raise CheckFailed(f"{exercise}: {why}")
