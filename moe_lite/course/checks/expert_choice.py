"""The checks of chapter 08: what if experts chose the tokens?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .verdict import Check, Mistakes, nameless, number, randn, refuse

Choice = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(logits_TE, c) -> (token_EC, gate_EC), an expert's best first."""


def check_expert_choice(expert_choice: Choice) -> None:
    """Check eqs. 1-2: (logits_TE, c) -> (token_EC, gate_EC), an expert's best token first."""
    check = Check("expert_choice", expert_choice, _choose, _choice_mistakes,
                  ("not each expert's k best tokens: k = c * T / E, rounded up, at most as many as "
                   "there are", "not what these tokens gave the expert of their softmax"),
                  parts=("token_EC", "gate_EC"))  # fmt: skip
    # Softmaxed: token 0 (4/5, 1/5), token 1 (6/8, 2/8), token 2 (1/4, 3/4), token 3 (1/2, 1/2).
    by_hand = torch.tensor([[4.0, 1.0], [6.0, 2.0], [1.0, 3.0], [9.0, 9.0]]).log()
    check.on("the logarithms of [[4, 1], [6, 2], [1, 3], [9, 9]], c = 1", by_hand, 1)
    for c, T, E in ((2, 16, 4), (1, 12, 4), (1, 10, 4), (0.5, 16, 4), (1.5, 15, 3), (2, 9, 9),
                    (1.25, 7, 5), (3, 8, 4), (0.5, 17, 8)):  # fmt: skip
        check.on(f"{T} random tokens, {E} experts, c = {c}", 2 * randn(T, T, E), c)
    check.on("three tokens, two experts, c = 2: each expert can take them all", randn(0, 3, 2), 2)
    check.on("six tokens, three experts, c = 4: nobody can take more than all", randn(1, 6, 3), 4)
    check.slopes("eight tokens, four experts, c = 1", randn(1, 8, 4), 1, of={"the logits": 0})
    check.best_first(1, "right tokens, but in order: an expert's best first")
    check.passed("every expert exactly full, with what its tokens gave it of their softmax.")


def _choose(logits_TE: Tensor, c: float, k: int | None = None) -> tuple[Tensor, Tensor]:
    T, E = logits_TE.shape
    k = math.ceil(c * T / E) if k is None else k
    gate_CE, token_CE = logits_TE.softmax(-1).topk(max(0, min(k, T)), dim=0)
    return token_CE.T, gate_CE.T


def _choice_mistakes(logits_TE: Tensor, c: float) -> Mistakes:
    (T, E), probs_TE = logits_TE.shape, logits_TE.softmax(-1)
    token_EC, gate_EC = _choose(logits_TE, c)
    k, columns_TE = token_EC.shape[1], logits_TE.softmax(0)
    raw_EC = logits_TE.topk(k, dim=0).indices.T
    column_CE, by_column_CE = columns_TE.topk(k, dim=0)
    low_CE, least_CE = probs_TE.topk(k, dim=0, largest=False)
    by_tokens = [probs_TE.topk(min(E, n), dim=1) for n in (max(1, int(c)), k)]
    of_chosen_EC = logits_TE.T.gather(1, token_EC)
    raw = "a column of raw scores has another order: tokens compare by their softmax over experts"
    transpose = "a row for each expert is wanted, and here is one for each place; transpose"
    token_choice = "here each token took its best experts; each expert is to take its best tokens"
    return [
        ("the softmax ran over the tokens (dim 0); each token has one to give over its experts",
         (by_column_CE.T, column_CE.T)),
        ("right tokens, but the gate is the softmax over the experts, not over the tokens",
         (token_EC, columns_TE.T.gather(1, token_EC))),
        (raw, (raw_EC, logits_TE.T.gather(1, raw_EC))),
        (raw, (raw_EC, probs_TE.T.gather(1, raw_EC))),
        ("right tokens, but these are scores; the gate is their softmax", (token_EC, of_chosen_EC)),
        ("right tokens, but each gate is a sigmoid of one score; experts share a token's softmax",
         (token_EC, of_chosen_EC.sigmoid())),
        ("an expert's gates need not sum to 1: they are what each token gives it",
         (token_EC, gate_EC / gate_EC.sum(1, keepdim=True))),
        ("these are the tokens that want each expert least", (least_CE.T, low_CE.T)),
        (transpose, (token_EC.T, gate_EC.T)),
        ("right tokens, but in order: an expert's best first", (token_EC.flip(1), gate_EC.flip(1))),
        ("right tokens, but in order: an expert's best first",
         (token_EC.sort(1).values, gate_EC.gather(1, token_EC.argsort(1)))),
        ("tokens by their numbers, gates in another order", (token_EC.sort(1).values, gate_EC)),
        *((token_choice, (best.indices, best.values)) for best in by_tokens),
        *((token_choice, (best.indices.T, best.values.T)) for best in by_tokens),
        ("rounding down leaves tokens without a place", _choose(logits_TE, c, int(c * T // E))),
        ("rounding to the nearest leaves some out", _choose(logits_TE, c, round(c * T / E))),
        *(("c * T was made a whole number before it was divided: round once, up, at the end",
           _choose(logits_TE, c, -(-whole(c * T) // E))) for whole in (int, round)),
        ("the capacity factor is missing", _choose(logits_TE, c, math.ceil(T / E))),
        ("c is a token's experts, not an expert's", _choose(logits_TE, c, max(1, math.ceil(c)))),
        ("k is one too large where c * T / E is whole", _choose(logits_TE, c, int(c * T // E) + 1)),
        ("c divides; it multiplies T / E", _choose(logits_TE, c, math.ceil(T / E / c))),
    ]  # fmt: skip


def check_experts_per_token(shares: Callable[[Tensor, int], Tensor]) -> None:
    """Check Figure 3's count: (token_EC, num_tokens) -> shares of 0, 1, 2, 3-4 and more experts."""

    def right(token_EC: Tensor, T: int) -> Tensor:
        return _bins(token_EC.flatten().bincount(minlength=T)) / T

    def mistakes(token_EC: Tensor, T: int) -> Mistakes:
        flat_N, (E, C) = token_EC.reshape(-1), token_EC.shape
        count_T, right_5, pairs = flat_N.bincount(minlength=T), right(token_EC, T), E * C
        seen_T, short_T = count_T[count_T > 0], flat_N.bincount()
        unseen = "tokens that nobody chose are missing, and they are the point of the figure"
        short = "bincount stops at the last token that was chosen; say how many there are"
        of_pairs = "these are shares of the pairs; each token counts once, whatever its experts"
        more = (count_T > 3).double().mean()
        return [
            (unseen, _bins(seen_T) / len(seen_T)),
            (unseen, _bins(seen_T) / T),
            (short, _bins(short_T) / T),
            (short, _bins(short_T) / len(short_T)),
            ("these are numbers of tokens; divide by how many tokens there are", _bins(count_T)),
            (of_pairs, _bins(count_T) / pairs),
            (of_pairs, _bins(count_T, count_T) / pairs),
            ("each token counts once, however many experts it has", _bins(count_T, count_T) / T),
            ("this counts each expert's tokens, not each token's", _bins(torch.full((E,), C)) / E),
            ("the fourth share is of three or four experts, the last of more than four",
             torch.stack([*right_5[:3], (count_T == 3).double().mean(), more])),
            ("the fourth share is of three or four experts, the last of more than four",
             torch.stack([*right_5[:3], right_5[3] + (count_T == 5).double().mean(),
                          (count_T > 5).double().mean()])),
            ("the last share is of more than four experts", torch.stack([*right_5[:4], more])),
            ("these are running sums: each share is of its own tokens alone", right_5.cumsum(0)),
            ("divided by the number of experts; it is shares of the tokens", _bins(count_T) / E),
        ]  # fmt: skip

    check = Check("experts_per_token", shares, right, mistakes, "not the shares of the tokens")
    # Token 0 has three experts, 1 and 4 have two, 3 has one, 2 and 5 have none.
    by_hand = torch.tensor([[0, 1], [0, 3], [0, 4], [1, 4]])
    check.on("four experts that took [[0, 1], [0, 3], [0, 4], [1, 4]] of six tokens", by_hand, 6)
    for T, E, C in ((16, 8, 4), (40, 12, 7), (9, 6, 6), (30, 16, 5), (12, 2, 1)):
        token_EC = randn(T, E, T).topk(C).indices
        check.on(f"{E} experts that took {C} of {T} random tokens each", token_EC, T)
    check.on("six experts that all took all of four tokens", torch.arange(4).expand(6, 4), 4)
    check.passed("every token counted once, those that nobody chose too.")


def _bins(count_T: Tensor, weight_T: Tensor | None = None) -> Tensor:
    weight_T = torch.ones_like(count_T) if weight_T is None else weight_T
    edges = [(0, 0), (1, 1), (2, 2), (3, 4), (5, count_T.numel() + 10**6)]
    return torch.stack(
        [(weight_T * ((count_T >= a) & (count_T <= b))).sum().double() for a, b in edges]
    )


Combine = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(out_ECD, token_EC, gate_EC, num_tokens) -> y_TD."""


def check_combine(combine: Combine) -> None:
    """Check eq. 4: (out_ECD, token_EC, gate_EC, num_tokens) -> y_TD."""

    def right(out_ECD: Tensor, token_EC: Tensor, gate_EC: Tensor, T: int) -> Tensor:
        rows_ND = (out_ECD * gate_EC[..., None]).flatten(0, 1)
        return out_ECD.new_zeros(T, out_ECD.shape[-1]).index_add(0, token_EC.flatten(), rows_ND)

    def mistakes(out_ECD: Tensor, token_EC: Tensor, gate_EC: Tensor, T: int) -> Mistakes:
        (E, C, D), ones_EC = out_ECD.shape, torch.ones_like(gate_EC)
        value_TD, zeros_TD = right(out_ECD, token_EC, gate_EC, T), out_ECD.new_zeros(T, D)
        token_N, rows_ND = token_EC.flatten(), (out_ECD * gate_EC[..., None]).flatten(0, 1)
        last, first, best = (dict(zip(token_N[order_N].tolist(), order_N.tolist(), strict=True))
                             for order_N in (torch.arange(E * C), torch.arange(E * C).flip(0),
                                             gate_EC.flatten().argsort()))  # fmt: skip
        count_T1 = token_N.bincount(minlength=T)[:, None].clamp(min=1)
        gates_T1 = out_ECD.new_zeros(T).index_add(0, token_N, gate_EC.flatten())[:, None]

        def kept(row: dict[int, int]) -> Tensor:
            return torch.stack([rows_ND[row[t]] if t in row else zeros_TD[t] for t in range(T)])

        overwritten = (
            "an assignment keeps one expert of a token and forgets the others, and so does += "
            "where an index comes twice; add them"
        )
        gather = (
            "row r belongs to token token_N[r]; this takes row token_N[r] for token r: "
            "a gather where a scatter is wanted"
        )
        return [
            (overwritten, kept(last)),
            (overwritten, kept(first)),
            ("only the expert with the largest gate counts; add them all", kept(best)),
            ("the gates are missing: each expert's answer counts as much as its token gave it",
             right(out_ECD, token_EC, ones_EC, T)),
            ("this is a mean over a token's experts; add weighted answers", value_TD / count_T1),
            ("the gates of a token need not sum to 1", value_TD / gates_T1.clamp(min=1e-9)),
            ("the gates are squared: weigh once", right(out_ECD, token_EC, gate_EC.square(), T)),
            (gather, rows_ND[token_N[:T]] if E * C >= T else None),
            ("a row for each token is wanted, chosen or not", value_TD[token_N.unique()]),
            ("nothing was added to the tokens", zeros_TD)]  # fmt: skip

    check = Check("combine", combine, right, mistakes, "not the sum of gate times answer")
    check.on(
        "answers [[[1], [2]], [[10], [20]]] for the tokens [[1, 0], [1, 2]] with gates "
        "[[0.5, 1], [0.5, 0.25]], four tokens",
        torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]]), torch.tensor([[1, 0], [1, 2]]),
        torch.tensor([[0.5, 1.0], [0.5, 0.25]]), 4)  # fmt: skip
    for T, E, C, D in ((6, 4, 3, 5), (9, 3, 2, 4), (4, 4, 4, 4), (20, 2, 1, 3)):
        given = f"{E} experts with {C} of {T} random tokens each"
        check.on(given, randn(1, E, C, D), randn(E, E, T).topk(C).indices,
                 randn(2, E, C).sigmoid(), T)  # fmt: skip
    check.slopes("four experts with three of six tokens each", randn(1, 4, 3, 5),
                 randn(3, 4, 6).topk(3).indices, randn(2, 4, 3).sigmoid(), 6,
                 of={"the gates": 2, "the answers": 0})  # fmt: skip
    check.passed("each answer where its token is, added to the others, and nobody's row is 0.")


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


def _one_word(early: int, late: int) -> Route:
    """Tell one token alone what one other, a later one, is."""

    def route(x_TD: Tensor) -> Tensor:
        scores_TE = x_TD @ W_DE
        later_TE = torch.zeros_like(scores_TE)
        if late < len(x_TD):
            later_TE[early] = 4 * (x_TD[late] @ W_DE)
        return _best(scores_TE + later_TE, 2, 1)

    return route


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
     "a later token takes an earlier one's place here: put quite other tokens behind each cut, and "
     "compare all choices before it; the loads are equal whatever comes"),
    ("top-1, the larger score goes first", _by_importance, True,
     "a later token with a larger score takes an earlier one's place: that is a leak too"),
    *((f"token {early} is told what token {late} is", _one_word(early, late), True,
       "one token told of one other is a leak; try every place and compare every token before it")
      for early, late in ((3, 6), (0, 1), (7, 10), (9, 10), (0, 10)))]  # fmt: skip


def check_reads_future(reads_future: Callable[[Route, Tensor], bool]) -> None:
    """Check a detector: (route, x_TD) -> does any token's choice depend on a later token?"""
    check = Check("reads_future", reads_future)
    for seed, T in enumerate((12, 12, 11)):
        for name, route, right, why in ROUTES:
            given = f"a router in which {name}; x_TD of shape ({T}, 6)"
            check.on(given, nameless(route), randn(seed, T, 6), right=right, otherwise=why)
    check.passed("three routers cleared, and all caught that leak, if only to one token.")


def check_causal_groups(causal_groups: Callable[[int, int], Tensor]) -> None:
    """Check (num_sequences, seq_len) -> token_GS: groups in which experts may choose safely.

    Any division counts by which no token, in however many layers, hears of its own future.
    """
    check = Check("causal_groups", causal_groups, lambda B, S: True, see=_safe)
    for B, S in ((3, 4), (2, 6), (4, 4), (5, 2)):
        given = f"{B} sequences of {S} tokens; token b * {S} + s is the s-th of the b-th"
        check.on(given, B, S)
    check.passed("in no layer does a token hear of what comes after it.")


def _safe(groups: Any, B: int, S: int) -> bool:
    single = not isinstance(groups, Iterable) or getattr(groups, "ndim", 1) == 0
    rows = [] if single else [number(row) for row in groups]
    given = f"{B} sequences of {S} tokens; token b * {S} + s is the s-th of the b-th"
    tokens = [row.long().tolist() for row in rows if row is not None and row.dim() == 1]

    def wrong(why: str) -> Any:
        return refuse("causal_groups", why, given, str(tokens))

    if not tokens or len(tokens) < len(rows):
        wrong("return one tensor with a row of tokens for each group")
    if sorted(t for row in tokens for t in row) != list(range(B * S)):
        wrong("every token belongs to exactly one group")
    if len(tokens) == 1:
        wrong("the whole batch in one group holds every future")
    if not all(tokens):
        wrong("a group without tokens is none")
    if min(map(len, tokens)) == 1:
        wrong("a token alone competes with nobody, and every expert takes it")
    if any(len({t // S for t in row}) < len(row) for row in tokens):
        wrong("two tokens of one sequence in a group: the later one decides about the earlier")
    # Who hears of whom in one layer: a group all of each other, a token all before it.
    place_T = torch.arange(B * S)
    before_TT = (place_T[:, None] // S == place_T // S) & (place_T[:, None] >= place_T)
    group_TT = torch.zeros(B * S, B * S, dtype=torch.bool)
    for row in tokens:
        group_TT[torch.tensor(row)[:, None], torch.tensor(row)] = True
    hears_TT = (before_TT | group_TT).double()
    for _ in range(B * S):
        hears_TT = (hears_TT @ hears_TT > 0).double()
    if (
        (hears_TT > 0) & (place_T[:, None] // S == place_T // S) & (place_T[:, None] < place_T)
    ).any():
        wrong("tokens of other sequences, but at other positions: in two layers a later token "
              "comes back by way of its neighbour")  # fmt: skip
    return True
