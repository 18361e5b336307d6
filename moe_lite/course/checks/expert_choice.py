"""The checks of chapter 08: what if experts chose the tokens?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .verdict import CheckFailed, Mistakes, call, expect, passed, randn

# --- choosing ------------------------------------------------------------------------------------

Choice = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(logits_TE, c) -> (token_EC, gate_EC), an expert's best first."""


TRANSPOSE = "a row for each expert is wanted, and here is one for each place; transpose"


def check_expert_choice(expert_choice: Choice) -> None:
    """Check eqs. 1-2: (logits_TE, c) -> (token_EC, gate_EC), an expert's best token first.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "expert_choice"

    def run(given: str, logits_TE: Tensor, c: float) -> None:
        (T, E), right = logits_TE.shape, _chosen(logits_TE, c)
        yours = call(exercise, expert_choice, logits_TE, c, on=given)
        if not isinstance(yours, tuple) or len(yours) != 2:
            raise CheckFailed(f"{exercise}: return two tensors: token_EC, gate_EC")
        shapes = [tuple(getattr(y, "shape", ())) for y in yours]
        want = tuple(right[0].shape)
        if shapes == [want[::-1]] * 2 and want != want[::-1]:
            raise CheckFailed(f"{exercise}: {TRANSPOSE}\n  given    {given}")
        if shapes != [want] * 2:
            raise CheckFailed(
                f"{exercise}: {_capacity_mistake(shapes[0], T, E, c)}\n  given    {given}\n"
                f"  yours    shapes {shapes[0]} and {shapes[1]}\n  expected {want}, twice"
            )
        mistakes = _choice_mistakes(logits_TE, c)
        expect(exercise, given, yours, right, mistakes, "not each expert's k best tokens")

    # Softmaxed: token 0 (4/5, 1/5), token 1 (6/8, 2/8), token 2 (1/4, 3/4), token 3 (1/2, 1/2).
    by_hand = torch.tensor([[4.0, 1.0], [6.0, 2.0], [1.0, 3.0], [9.0, 9.0]]).log()
    run("the logarithms of [[4, 1], [6, 2], [1, 3], [9, 9]], c = 1", by_hand, 1)
    for c, T, E in ((2, 16, 4), (1, 12, 4), (1, 10, 4), (0.5, 16, 4), (1.5, 15, 3)):
        run(f"{T} random tokens, {E} experts, c = {c}", 2 * randn(T, T, E), c)
    run("three tokens, two experts, c = 2: each expert can take them all", randn(0, 3, 2), 2)
    logits_TE = randn(1, 8, 4).requires_grad_()
    gate_EC = call(exercise, expert_choice, logits_TE, 1, on="logits that need a gradient")[1]
    if not gate_EC.requires_grad:
        raise CheckFailed(f"{exercise}: right choices, but no gradient reaches the logits")
    passed(exercise, "every expert exactly full, with what its tokens gave it of their softmax.")


def _capacity(T: int, E: int, c: float) -> int:
    return min(T, math.ceil(c * T / E))


def _chosen(logits_TE: Tensor, c: float) -> tuple[Tensor, Tensor]:
    T, E = logits_TE.shape
    gate_CE, token_CE = logits_TE.softmax(-1).topk(_capacity(T, E, c), dim=0)
    return token_CE.T, gate_CE.T


def _capacity_mistake(shape: tuple[int, ...], T: int, E: int, c: float) -> str:
    right = "k = c * T / E tokens for each expert, rounded up, and never more than there are"
    if shape == (T, max(1, int(c))) and T != E:
        return "here each token took its best experts; each expert is to take its best tokens"
    if len(shape) == 2 and shape[0] == E:
        if shape[1] == int(c * T // E):
            return f"rounding down leaves tokens without a place; {right}"
        if shape[1] == math.ceil(T / E):
            return f"the capacity factor is missing; {right}"
        if shape[1] == max(1, math.ceil(c)):
            return f"c is the experts of a token, on average, not the tokens of an expert; {right}"
    return right


def _choice_mistakes(logits_TE: Tensor, c: float) -> Mistakes:
    T, E = logits_TE.shape
    k, probs_TE = _capacity(T, E, c), logits_TE.softmax(-1)
    token_EC, gate_EC = _chosen(logits_TE, c)
    raw_EC = logits_TE.topk(k, dim=0).indices.T
    columns_TE = logits_TE.softmax(0)
    column_CE, by_column_CE = columns_TE.topk(k, dim=0)
    low_CE, least_CE = probs_TE.topk(k, dim=0, largest=False)
    raw = "a column of raw scores has another order: tokens compare by their softmax over experts"
    return [
        ("the softmax ran over the tokens (dim 0); each token has one to give over its experts",
         (by_column_CE.T, column_CE.T)),
        ("right tokens, but the gate is the softmax over the experts, not over the tokens",
         (token_EC, columns_TE.T.gather(1, token_EC))),
        (raw, (raw_EC, logits_TE.T.gather(1, raw_EC))),
        (raw, (raw_EC, probs_TE.T.gather(1, raw_EC))),
        ("right tokens, but these are scores; the gate is their softmax",
         (token_EC, logits_TE.T.gather(1, token_EC))),
        ("an expert's gates need not sum to 1: they are what each token gives it",
         (token_EC, gate_EC / gate_EC.sum(1, keepdim=True))),
        ("these are the tokens that want each expert least", (least_CE.T, low_CE.T)),
        (TRANSPOSE, (token_EC.T, gate_EC.T)),
        ("right tokens, in another order: an expert's best first",
         (token_EC.flip(1), gate_EC.flip(1))),
    ]  # fmt: skip


# --- how many experts a token gets ---------------------------------------------------------------


def check_experts_per_token(shares: Callable[[Tensor, int], Tensor]) -> None:
    """Check Figure 3's count: (token_EC, num_tokens) -> shares of 0, 1, 2, 3-4 and more experts.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "experts_per_token"

    def run(given: str, token_EC: Tensor, T: int) -> None:
        yours = call(exercise, shares, token_EC, T, on=given)
        if not isinstance(yours, Tensor) or yours.shape != (5,):
            got = tuple(yours.shape) if isinstance(yours, Tensor) else repr(yours)
            raise CheckFailed(f"{exercise}: return a tensor of five shares, not {got}")
        flat_N, E = token_EC.reshape(-1), len(token_EC)
        count_T = flat_N.bincount(minlength=T)
        seen_T = count_T[count_T > 0]
        right = _bins(count_T) / T
        short_T = flat_N.bincount()
        mistakes = [
            ("tokens that nobody chose are missing, and they are the point of the figure",
             _bins(seen_T) / len(seen_T)),
            ("tokens that nobody chose are missing, and they are the point of the figure",
             _bins(seen_T) / T),
            ("bincount stops at the last token that was chosen; say how many there are",
             _bins(short_T) / T),
            ("bincount stops at the last token that was chosen; say how many there are",
             _bins(short_T) / len(short_T)),
            ("these are numbers of tokens; divide by how many tokens there are", _bins(count_T)),
            ("these are shares of the pairs; each token counts once, however many experts it has",
             _bins(count_T) / token_EC.numel()),
            ("these are shares of the pairs; each token counts once, however many experts it has",
             _bins(count_T, count_T) / token_EC.numel()),
            ("this counts the tokens of each expert, which are all the same; count each token's",
             _bins(torch.full((E,), token_EC.shape[1])) / E),
            ("the fourth share is of three or four experts, the last of more than four",
             torch.stack([*right[:3], (count_T == 3).double().mean(),
                          (count_T > 3).double().mean()])),
        ]  # fmt: skip
        expect(exercise, given, yours.double(), right, mistakes, "not the shares of the tokens")

    # Token 0 has three experts, 1 and 4 have two, 3 has one, 2 and 5 have none.
    by_hand = torch.tensor([[0, 1], [0, 3], [0, 4], [1, 4]])
    run("four experts that took [[0, 1], [0, 3], [0, 4], [1, 4]] of six tokens", by_hand, 6)
    for T, E, C in ((16, 8, 4), (40, 12, 7), (9, 6, 6)):
        token_EC = randn(T, E, T).topk(C).indices
        run(f"{E} experts that took {C} of {T} random tokens each", token_EC, T)
    every = torch.arange(4).expand(6, 4)
    run("six experts that all took all of four tokens", every, 4)
    passed(exercise, "every token counted once, those that nobody chose too.")


def _bins(count_T: Tensor, weight_T: Tensor | None = None) -> Tensor:
    weight_T = torch.ones_like(count_T) if weight_T is None else weight_T
    edges = [(0, 0), (1, 1), (2, 2), (3, 4), (5, count_T.numel() + 10**6)]
    return torch.stack(
        [(weight_T * ((count_T >= a) & (count_T <= b))).sum().double() for a, b in edges]
    )


# --- back to the tokens --------------------------------------------------------------------------

Combine = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(out_ECD, token_EC, gate_EC, num_tokens) -> y_TD."""


def check_combine(combine: Combine) -> None:
    """Check eq. 4: (out_ECD, token_EC, gate_EC, num_tokens) -> y_TD.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "combine"

    def run(given: str, out_ECD: Tensor, token_EC: Tensor, gate_EC: Tensor, T: int) -> None:
        yours = call(exercise, combine, out_ECD, token_EC, gate_EC, T, on=given)
        D = out_ECD.shape[-1]
        if not isinstance(yours, Tensor) or yours.shape != (T, D):
            got = tuple(yours.shape) if isinstance(yours, Tensor) else repr(yours)
            raise CheckFailed(f"{exercise}: return a row for each of the {T} tokens, not {got}")
        token_N, rows_ND = token_EC.reshape(-1), (out_ECD * gate_EC[..., None]).reshape(-1, D)
        zeros_TD = out_ECD.new_zeros(T, D)
        right = zeros_TD.index_add(0, token_N, rows_ND)
        last, first = zeros_TD.clone(), zeros_TD.clone()
        for n, row in zip(token_N.tolist(), rows_ND, strict=True):
            last[n] = row
        for n, row in zip(token_N.flip(0).tolist(), rows_ND.flip(0), strict=True):
            first[n] = row
        count_T1 = token_N.bincount(minlength=T)[:, None].clamp(min=1)
        gates_T1 = out_ECD.new_zeros(T).index_add(0, token_N, gate_EC.reshape(-1))[:, None]
        overwritten = "an assignment keeps one expert of a token and forgets the others; add them"
        mistakes = [
            (overwritten, last), (overwritten, first),
            ("the gates are missing: each expert's answer counts as much as its token gave it",
             zeros_TD.index_add(0, token_N, out_ECD.reshape(-1, D))),
            ("this is a mean over a token's experts; their weighted answers are added up",
             right / count_T1),
            ("the gates of a token need not sum to 1, and are not made to",
             right / gates_T1.clamp(min=1e-9)),
        ]  # fmt: skip
        if len(rows_ND) >= T:
            # Reading the rows at the tokens' numbers, where writing to them is wanted.
            gathered = zeros_TD.clone()
            for place, n in enumerate(token_N.tolist()[:T]):
                gathered[place] = rows_ND[n]
            mistakes.append(
                ("row r belongs to token token_N[r]; this takes row token_N[r] for token r: "
                 "a gather where a scatter is wanted", gathered)
            )  # fmt: skip
        mistakes.append(("nothing was added to the tokens", zeros_TD))
        expect(exercise, given, yours, right, mistakes, "not the sum of gate times answer")

    run(
        "answers [[[1], [2]], [[10], [20]]] for the tokens [[1, 0], [1, 2]] with gates "
        "[[0.5, 1], [0.5, 0.25]], four tokens",
        torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]]), torch.tensor([[1, 0], [1, 2]]),
        torch.tensor([[0.5, 1.0], [0.5, 0.25]]), 4,
    )  # fmt: skip
    for T, E, C, D in ((6, 4, 3, 5), (9, 3, 2, 4)):
        token_EC = randn(T, E, T).topk(C).indices
        run(f"{E} experts with {C} of {T} random tokens each", randn(1, E, C, D), token_EC,
            randn(2, E, C).sigmoid(), T)  # fmt: skip
    gate_EC = randn(2, 4, 3).requires_grad_()
    token_EC = randn(3, 4, 6).topk(3).indices
    y_TD = call(exercise, combine, randn(1, 4, 3, 5), token_EC, gate_EC, 6, on="gates with slope")
    if not y_TD.requires_grad or not torch.autograd.grad(y_TD.sum(), gate_EC)[0].all():
        raise CheckFailed(f"{exercise}: right values, but not every gate gets a gradient")
    passed(exercise, "each answer where its token is, added to the others, and nobody's row is 0.")


# --- the leak ------------------------------------------------------------------------------------

Route = Callable[[Tensor], Tensor]
"""x_TD -> chosen_TE, True where the token has the expert."""
W_DE = randn(5, 6, 4)


def _best(scores: Tensor, k: int, dim: int) -> Tensor:
    index = scores.topk(k, dim=dim).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(dim, index, True)


def _token_choice(x_TD: Tensor) -> Tensor:
    return _best(x_TD @ W_DE, 2, 1)


def _reads_the_past(x_TD: Tensor) -> Tensor:
    past_TD = x_TD.cumsum(0) / torch.arange(1, len(x_TD) + 1)[:, None]
    return _best(past_TD @ W_DE, 2, 1)


def _queued(x_TD: Tensor) -> Tensor:
    """Top-1 with a capacity of a third more than T / E, first come, first served."""
    asked_TE = _best(x_TD @ W_DE, 1, 1)
    return asked_TE & (asked_TE.cumsum(0) <= math.ceil(1.34 * len(x_TD) / 4))


def _by_importance(x_TD: Tensor) -> Tensor:
    """The same, but who has the larger score goes first."""
    scores_TE = x_TD @ W_DE
    asked_TE = _best(scores_TE, 1, 1)
    wish_TE = scores_TE.masked_fill(~asked_TE, -torch.inf)
    return asked_TE & _best(wish_TE, math.ceil(len(x_TD) / 4), 0)


def _experts_choose(x_TD: Tensor) -> Tensor:
    return _best((x_TD @ W_DE).softmax(-1), len(x_TD) // 2, 0)


def _one_word(x_TD: Tensor) -> Tensor:
    """Tell one token alone, the fourth, what one other, the seventh, is."""
    scores_TE = x_TD @ W_DE
    later_TE = torch.zeros_like(scores_TE)
    later_TE[3] = 4 * (x_TD[6] @ W_DE)
    return _best(scores_TE + later_TE, 2, 1)


ROUTES: list[tuple[str, Route, bool, str]] = [
    ("each token takes its two best experts", _token_choice, False,
     "a token that is changed may well choose otherwise; compare the choices of the tokens before "
     "it, not the loads and not the whole table"),
    ("a token reads the mean of those up to it", _reads_the_past, False,
     "reading the past is allowed; change later tokens and compare earlier ones"),
    ("top-1, first come, first served", _queued, False,
     "how many tokens there are is known beforehand, and sets the capacity; keep their number "
     "and change what they are"),
    ("each expert takes its best tokens", _experts_choose, True,
     "experts that choose have equal loads whatever comes; compare each token's own choices"),
    ("top-1, the larger score goes first", _by_importance, True,
     "a later token with a larger score takes an earlier one's place: that is a leak too"),
    ("the fourth token is told what the seventh is", _one_word, True,
     "one token told of one other is a leak; try every place and compare every token before it"),
]  # fmt: skip


def check_reads_future(reads_future: Callable[[Route, Tensor], bool]) -> None:
    """Check a detector: (route, x_TD) -> does any token's choice depend on a later token?

    Raises: CheckFailed with the router that was misjudged; NotImplementedError if not yet written.
    """
    exercise = "reads_future"
    for seed in range(3):
        x_TD = randn(seed, 12, 6)
        for name, route, right, why in ROUTES:
            given = f"a router in which {name}; x_TD of shape (12, 6)"
            yours: Any = call(exercise, reads_future, route, x_TD, on=given)
            if isinstance(yours, Tensor) and yours.numel() == 1:
                yours = bool(yours)
            if not isinstance(yours, bool):
                raise CheckFailed(f"{exercise}: return True or False, not {yours!r}")
            expect(exercise, given, yours, right, [], why)
    passed(exercise, "three routers cleared, three caught, one of which tells only one token.")


# --- groups that do not leak ---------------------------------------------------------------------


def check_causal_groups(causal_groups: Callable[[int, int], Tensor]) -> None:
    """Check (num_sequences, seq_len) -> token_GS: groups in which experts may choose safely.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "causal_groups"
    for B, S in ((3, 4), (2, 6), (4, 4), (5, 2)):
        given = f"{B} sequences of {S} tokens; token b * {S} + s is the s-th of the b-th"
        groups = call(exercise, causal_groups, B, S, on=given)
        if not isinstance(groups, Tensor) or groups.dim() != 2:
            raise CheckFailed(f"{exercise}: return one tensor with a row of tokens for each group")
        got = f"\n  given    {given}\n  yours    {groups.tolist()}"
        if sorted(groups.reshape(-1).tolist()) != list(range(B * S)):
            raise CheckFailed(f"{exercise}: every token belongs to exactly one group{got}")
        if groups.shape == (1, B * S):
            raise CheckFailed(f"{exercise}: the whole batch in one group holds every future{got}")
        if groups.shape[1] == 1:
            raise CheckFailed(
                f"{exercise}: a token alone competes with nobody, and every expert takes it{got}"
            )
        if any(len(set((row // S).tolist())) < len(row) for row in groups):
            raise CheckFailed(
                f"{exercise}: two tokens of one sequence in a group: the later one decides about "
                f"the earlier{got}"
            )
        if any(len(set((row % S).tolist())) > 1 for row in groups):
            raise CheckFailed(
                f"{exercise}: tokens of other sequences, but at other positions: in two layers a "
                f"later token comes back by way of its neighbour{got}"
            )
        if groups.shape != (S, B):
            raise CheckFailed(f"{exercise}: all tokens at one position make one group{got}")
    passed(exercise, "one position, all sequences: the experts choose, and nobody looks ahead.")
