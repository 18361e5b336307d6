"""The checks of chapter 05: what if an expert is full?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...capacity import capacity, queue_rank
from ...routing import Routing
from .verdict import Check, Mistakes, nameless, randn, show


def check_places(places: Callable[[int, int, float, int], int]) -> None:
    """Check an expert's capacity: (num_tokens, num_experts, factor, top_k) -> places."""

    def mistakes(T: int, E: int, factor: float, K: int) -> Mistakes:
        exact = factor * K * T / E
        return [
            ("each token asks for K places: count pairs (K·T), not tokens", capacity(T, E, factor)),
            ("rounded up before K came; multiply first", K * math.ceil(factor * T / E)),
            ("an even share, whatever the factor; multiply it by the factor", math.ceil(K * T / E)),
            ("the factor shrinks the share; it should stretch it", math.ceil(K * T / E / factor)),
            ("rounded before the factor came", math.ceil(factor * math.ceil(K * T / E))),
            ("rounded to the nearest; round up, or an even load may not fit", round(exact)),
            ("rounded down: with factor 1 and an even load somebody is left standing", int(exact)),
            *(("factor × K × T was made a whole number before it was divided: round once, up, at "
               "the end", -(-whole(factor * K * T) // E)) for whole in (int, round)),
            ("not rounded: places are counted, so round up", exact),
            ("one place is added; where the share is whole, that is too many", int(exact) + 1),
            ("these are the places of all experts; divide by E", math.ceil(factor * K * T)),
            ("cut at the number of tokens; the formula is not", min(T, math.ceil(exact))),
        ]  # fmt: skip

    check = Check("places", places, capacity, mistakes, "not factor × K × T / E, rounded up")
    for T, E, factor, K in (
        (12, 4, 1.0, 1), (12, 4, 2.0, 1), (12, 4, 1.0, 2), (11, 4, 1.0, 1), (9, 4, 1.0, 1),
        (10, 4, 2.5, 1), (100, 8, 1.25, 2), (64, 16, 0.5, 1), (1000, 7, 1.5, 3), (9, 8, 1.0, 2),
        (13, 6, 1.5, 4), (1, 64, 1.0, 8), (50, 8, 0.25, 1), (10, 2, 2.0, 2),
        (17, 8, 0.5, 1)):  # fmt: skip
        check.on(f"{T} tokens, {E} experts, factor {factor}, {K} for each token", T, E, factor, K)
    check.passed("the even share of all pairs, times the factor, rounded up.")


def check_rank(rank: Callable[[Tensor, int], Tensor]) -> None:
    """Check each token's place in its expert's queue: (expert_T, num_experts) -> rank_T."""

    def mistakes(expert_T: Tensor, E: int) -> Mistakes:
        T, hot_TE, right = len(expert_T), F.one_hot(expert_T, E), _rank(expert_T, E)
        order_T = expert_T.argsort(stable=True)
        load_E = expert_T.bincount(minlength=E)
        over_experts = "the count runs over the experts (dim 1); let it run over the tokens (dim 0)"
        whole = "that is the place in the batch; every expert has a queue of its own"
        return [
            ("the first in a queue has rank 0: the count contains the token itself", right + 1),
            (over_experts, torch.zeros_like(expert_T)),
            (over_experts, torch.ones_like(expert_T)),
            (whole, torch.arange(T)),
            (whole, torch.arange(1, T + 1)),
            ("these stand behind the token; count those before it", load_E[expert_T] - 1 - right),
            ("that is the length of the queue, not the token's place in it", load_E[expert_T]),
            ("that is the length of the queue, not the token's place in it", load_E[expert_T] - 1),
            ("sorted by expert, the queues stand one behind the other: take away where the token's "
             "own begins", order_T.argsort()),
            ("sorted by expert: put them back in the order of the tokens", right[order_T]),
            ("that is the tokens sorted by expert; asked is each one's rank", order_T),
            ("that is the number of the expert", expert_T),
            ("that is the last expert's count; take its own", hot_TE.cumsum(0)[:, -1] - 1),
            ("running counts of all experts; take the token's own column", hot_TE.cumsum(0) - 1),
        ]  # fmt: skip

    check = Check("rank", rank, _rank, mistakes,
                  "not the number of earlier tokens that chose the same expert")  # fmt: skip
    check.on("experts [2, 0, 2, 2, 1, 0], E = 3", torch.tensor([2, 0, 2, 2, 1, 0]), 3)
    check.on("experts [1, 1, 1, 3], E = 5 (some experts idle)", torch.tensor([1, 1, 1, 3]), 5)
    for T, E in ((40, 4), (7, 7), (200, 16), (1, 3), (6, 1)):
        check.on(f"tokens: {T}, experts: {E}", randn(T, T, E).argmax(-1), E)
    check.passed("how many came before, for the same expert.")


def _rank(expert_N: Tensor, num_experts: int) -> Tensor:
    """Walk through the queue as it comes: the slow way, which nobody gets wrong."""
    length, rank = [0] * num_experts, []
    for e in expert_N.tolist():
        rank.append(length[e])
        length[e] += 1
    return torch.tensor(rank, dtype=torch.long)


def check_first_choices(rank: Callable[[Tensor, int], Tensor]) -> None:
    """Check GShard's order, first choices first: (expert_T2, num_experts) -> rank_T2."""

    def right(expert_T2: Tensor, E: int) -> Tensor:
        return _rank(expert_T2.T.flatten(), E).view(2, -1).T

    def mistakes(expert_T2: Tensor, E: int) -> Mistakes:
        T, (first_T, second_T) = len(expert_T2), expert_T2.unbind(1)
        right_T2, load_E = right(expert_T2, E), first_T.bincount(minlength=E)
        alone_T2 = torch.stack([_rank(first_T, E), _rank(second_T, E)], dim=1)
        came_T = F.one_hot(first_T, E).cumsum(0).gather(1, second_T[:, None])[:, 0]
        flat_N = _rank(expert_T2.T.flatten(), E)

        def seconds(offset: Tensor | int) -> Tensor:
            return torch.stack([alone_T2[:, 0], alone_T2[:, 1] + offset], dim=1)

        return [
            ("the second choices begin again at 0: two tokens would sit in one place; they stand "
             "behind all first choices of that expert", alone_T2),
            ("token by token: here a second choice stands before the first choices of later tokens",
             _rank(expert_T2.flatten(), E).view(T, 2)),
            ("the offset counts only the first choices that came earlier; all first choices are "
             "seated before any second one", seconds(came_T)),
            ("the offset is the number of all tokens; it should be the number of first choices of "
             "that one expert", seconds(T)),
            ("the second choices are seated before the first", right(expert_T2.flip(1), E).flip(1)),
            ("ranks begin at 0", right_T2 + 1),
            ("one place is left free between the two choices", seconds(load_E[second_T] + 1)),
            ("one place is used twice, where second choices begin", seconds(load_E[second_T] - 1)),
            ("the offset belongs to the second choice's expert", seconds(load_E[first_T])),
            ("the offset is the longest queue's, not its own", seconds(int(load_E.max()))),
            ("the offset counts second choices; it should count first ones",
             seconds(second_T.bincount(minlength=E)[second_T])),
            ("first choices all, then second ones all: of (2, T) make (T, 2) by a transpose, not "
             "by view", flat_N.view(T, 2)),
            ("(T, 2) was made (2, T) by view, not by a transpose: two tokens' choices are mixed",
             _rank(expert_T2.reshape(2, T).T.flatten(), E).view(T, 2)),
            ("rows are choices here; give a row for each token", right_T2.T)]  # fmt: skip

    check = Check("rank_top2", rank, right, mistakes,
                  "not all first choices by position, then all second ones")  # fmt: skip
    check.on("choices [[0, 1], [1, 0], [1, 2], [0, 1]], E = 3",
             torch.tensor([[0, 1], [1, 0], [1, 2], [0, 1]]), 3)  # fmt: skip
    for T, E in ((30, 4), (9, 6), (120, 8), (1, 2), (2, 3)):
        check.on(f"tokens: {T}, experts: {E}", randn(T, T, E).topk(2).indices, E)
    check.passed("nobody's second choice takes the place of a first one.")


def check_dropped_token(block: Callable[..., Tensor]) -> None:
    """Check what leaves a Switch block: (h_TD, x_TD, expert_TD, gate_T, keep_T) -> out_TD."""

    def right(h: Tensor, x: Tensor, expert: Tensor, gate: Tensor, keep: Tensor) -> Tensor:
        return h + torch.where(keep[:, None], gate[:, None] * expert, 0.0)

    def mistakes(h: Tensor, x: Tensor, expert: Tensor, gate: Tensor, keep: Tensor) -> Mistakes:
        g, k = gate[:, None], keep[:, None]
        return [
            ("a dropped token leaves as h + p·LN(h): its own input was put where the expert's "
             "answer would be, and then everything was multiplied by p",
             h + g * torch.where(k, expert, x)),
            ("a dropped token gets its normalised input added", h + torch.where(k, g * expert, x)),
            ("a dropped token gets h added once more", h + torch.where(k, g * expert, h)),
            ("a dropped token gets p·h added once more", h + g * torch.where(k, expert, h)),
            ("nobody was dropped: experts answer where there was no place", h + g * expert),
            ("a dropped token is wiped out, residual and all", torch.where(k, h + g * expert, 0.0)),
            ("a dropped token is weighed by p", torch.where(k, h + g * expert, g * h)),
            ("a dropped token leaves as LN(h), not as it came", torch.where(k, h + g * expert, x)),
            ("kept and dropped are mixed up", right(h, x, expert, gate, ~keep)),
            ("the gate is missing: an answer counts p times", h + torch.where(k, expert, 0.0)),
            ("p weighs the residual too; it should not", torch.where(k, g * (h + expert), h)),
            ("the residual is missing where the token was kept", torch.where(k, g * expert, h)),
            ("the residual is missing: this is what is added", torch.where(k, g * expert, 0.0)),
            ("the residual is LN(h); it is h, unnormed", x + torch.where(k, g * expert, 0.0)),
        ]  # fmt: skip

    check = Check("block", block, right, mistakes, "not h + p × expert, or h where dropped")
    h_TD, x_TD = torch.tensor([[2.0, 4.0], [3.0, 5.0]]), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    check.on(
        "h [[2, 4], [3, 5]], LN(h) [[-1, 1], [-1, 1]], experts' answers [[10, 20], [30, 40]], "
        "gates [0.5, 0.8], keep [True, False]",
        h_TD, x_TD, torch.tensor([[10.0, 20.0], [30.0, 40.0]]), torch.tensor([0.5, 0.8]),
        torch.tensor([True, False]))  # fmt: skip
    for seed, (T, D) in enumerate(((7, 5), (4, 4), (1, 3))):
        h_TD, expert_TD, gate_T = randn(seed, T, D), randn(seed + 9, T, D), randn(2, T).sigmoid()
        x_TD = F.layer_norm(h_TD, (D,))
        for keep_T, how in (
            (torch.arange(T) % 3 != 1, "some dropped"), (torch.ones(T).bool(), "all kept"),
            (torch.zeros(T).bool(), "all dropped")):  # fmt: skip
            check.on(f"tokens: {T}, {how}", h_TD, x_TD, expert_TD, gate_T, keep_T)
    h_TD, expert_TD, gate_T = randn(0, 7, 5), randn(1, 7, 5), randn(2, 7).sigmoid()
    keep_T = torch.tensor([1, 0, 0, 1, 1, 0, 1]).bool()
    check.slopes("seven tokens, three of them dropped", h_TD, F.layer_norm(h_TD, (5,)), expert_TD,
                 gate_T, keep_T, of={"h": 0, "the expert": 2, "the gate": 3})  # fmt: skip
    check.passed("kept: h + p × the expert's answer; dropped: h, as it came.")


def check_counted_before(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check the loss of first choices: (probs_TE, expert_T2, keep_T2) -> scalar, 1 at balance."""

    def right(probs: Tensor, expert: Tensor, keep: Tensor) -> Tensor:
        T, E = probs.shape
        return E * (expert[:, 0].bincount(minlength=E) / T * probs.mean(0)).sum()

    def mistakes(probs: Tensor, expert: Tensor, keep: Tensor) -> Mistakes:
        (T, E), mean_E, value = probs.shape, probs.mean(0), right(probs, expert, keep)

        def with_counts(expert_N: Tensor, of: float) -> Tensor:
            return E * (expert_N.bincount(minlength=E) / of * mean_E).sum()

        chosen = torch.zeros_like(probs).scatter(1, expert, probs.gather(1, expert))
        first, seated, both = expert[:, 0], keep[:, 0], keep.flatten()
        after = (
            "f was counted after the drop: a full expert can count no more than its places, so "
            "the loss no longer sees how many wanted it"
        )
        twice = "both choices are counted; GShard's loss counts first choices"
        share_E = first.bincount(minlength=E) / T
        return [
            (after, with_counts(first[seated], T)),
            (after, with_counts(first[seated], max(int(seated.sum()), 1))),
            (after, with_counts(expert.flatten()[both], 2 * T)),
            (after, with_counts(expert.flatten()[both], max(int(both.sum()), 1))),
            (twice, with_counts(expert.flatten(), 2 * T)),
            (twice, with_counts(expert.flatten(), T)),
            ("those are second choices", with_counts(expert[:, 1], T)),
            ("f is counted from the probabilities; the choices are given",
             with_counts(probs.argmax(-1), T)),
            ("at balance this is 1/E; multiply by the number of experts", value / E),
            ("at balance this is 1/E², as in the paper's own line; multiply by E²", value / E**2),
            ("P is made of the chosen gates only; take the mean of all the probabilities",
             E * (share_E * chosen.mean(0)).sum()),
            ("P is the mean over the seated tokens; all have probabilities",
             E * (share_E * probs[seated].mean(0)).sum() if seated.any() else None),
            ("f times f has no gradient: one of the two has to be P", E * share_E.square().sum()),
            ("P times P does not see who was chosen", E * mean_E.square().sum()),
            ("f and P are multiplied token by token, then averaged: average first",
             E * probs.gather(1, first[:, None]).mean() / T),
            ("f and P are multiplied token by token, then averaged: average first",
             E * probs.gather(1, first[:, None]).mean()),
            ("a sum over the tokens where a mean should be", value * T),
            ("f · P for each expert; add them up", E * share_E * mean_E),
            ("that is how far f is from P; multiply them", E * (share_E - mean_E).square().sum()),
        ]  # fmt: skip

    check = Check("first_choice_loss", loss, right, mistakes,
                  "not E × the sum of (share of first choices) × (mean probability)")  # fmt: skip
    probs_TE = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5]])
    keep_T2 = torch.tensor([[True, True], [True, True], [False, False], [True, False]])
    given = f"probabilities {show(probs_TE)}, two choices each; expert 0 has two places"
    check.on(given, probs_TE, probs_TE.topk(2).indices, keep_T2)
    for T, E in ((20, 4), (64, 8), (5, 5), (1, 3)):
        probs_TE = (2 * randn(T, T, E) + torch.linspace(1, -1, E)).softmax(-1)
        expert_T2, places = probs_TE.topk(2).indices, capacity(T, E, 1.0)
        routing = Routing.from_choices(probs_TE, probs_TE, expert_T2, probs_TE.gather(1, expert_T2))
        keep_T2 = (queue_rank(routing, "choice") < places).view(T, 2)
        check.on(f"tokens: {T}, experts: {E}, places: {places}", probs_TE, expert_T2, keep_T2)
    probs_TE, noisy_T2 = randn(1, 12, 4).softmax(-1), randn(2, 12, 4).topk(2).indices
    check.on("choices that noise made, not the probabilities", probs_TE, noisy_T2, noisy_T2 > 0)
    probs_TE = randn(1, 9, 4).softmax(-1)
    check.slopes("nine tokens, four experts", probs_TE, probs_TE.topk(2).indices,
                 torch.arange(18).view(9, 2) % 3 > 0, of={"the probabilities": 0})  # fmt: skip
    check.passed("what the tokens wanted, before anyone was turned away.")


Seat = Callable[[Tensor, Tensor], Tensor]
"""(expert_TK, gate_TK) -> keep_TK: who finds a place."""

EXPERTS, PLACES = 4, 6


def _by(priority: Any) -> Seat:
    def seat(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
        zeros_TE = torch.zeros(len(expert_TK), max(EXPERTS, int(expert_TK.max()) + 1))
        routing = Routing.from_choices(zeros_TE, zeros_TE, expert_TK, gate_TK)
        return (queue_rank(routing, priority) < PLACES).view(expert_TK.shape)

    return seat


def _backwards(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
    return _by("position")(expert_TK.flip(0), gate_TK.flip(0)).flip(0)


def _everybody(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
    return torch.ones_like(expert_TK, dtype=torch.bool)


def _largest_gates(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
    """Give the places to the largest gates, whatever their experts."""
    return gate_TK.flatten().argsort(descending=True).argsort().view(gate_TK.shape) < PLACES


def _told(early: int, late: int, of: str) -> Seat:
    """Seat by position, but one token is told what a single later one chose, or its gate."""

    def seat(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
        keep_TK = _by("position")(expert_TK, gate_TK).clone()
        if early < len(expert_TK):
            keep_TK[early] = False
        if late < len(expert_TK):
            gate = gate_TK[late, 0 if of == "gate" else -1] > 0.5
            high = expert_TK[late, 0] % 2 == 0 if of == "choice" else gate
            keep_TK[early, int(high)] = True
        return keep_TK

    return seat


def _seats(T: int) -> list[tuple[str, Seat, bool, str]]:
    one = "misses that a single token, {}, is told {} of a single later one, {}"
    told = [
        (f"token {a} is told the {of} of token {b}", _told(a, b, of), True,
         one.format(a, f"the {of}", b))
        for a, b, of in ((0, 1, "choice"), (1, 4, "gate"), (2, T - 3, "choice"),
                         (T - 4, T - 2, "gate"), (T - 2, T - 1, "choice"), (0, T - 1, "gate"),
                         (1, T - 2, "second gate"))
    ]  # fmt: skip
    return [
        ("places by position", _by("position"), False,
         "says that seating by position looks ahead, which it does not: compare only the tokens "
         "before the change; what comes behind it may well change"),
        ("places by choice", _by("choice"), True,
         "misses that all first choices come before any second one: other choices of later "
         "tokens move an earlier token's second choice"),
        ("places by gate", _by("gate"), True,
         "misses that the largest gate comes first: a later token with a larger gate takes an "
         "earlier one's place"),
        ("places from the end", _backwards, True,
         "misses seats given from the end of the batch, the plainest foresight there is"),
        ("a place for everybody", _everybody, False, "sees foresight where nobody is ever dropped"),
        ("places to the largest gates, whatever their experts", _largest_gates, True,
         "misses that only gates count here: larger gates of later tokens take the places"),
        *told,
    ]  # fmt: skip


def _crowd(seed: int, T: int) -> tuple[Tensor, Tensor]:
    scores_TE = randn(seed, T, EXPERTS) + torch.tensor([1.0, 0.3, 0.0, -0.6])
    top_TK, expert_TK = scores_TE.topk(2)
    return top_TK, expert_TK


def _cutting_shows(top_TK: Tensor, expert_TK: Tensor) -> bool:
    """Ask whether foresight shows by cutting off the end too, the least that an answer may try."""

    def shows(seat: Seat) -> bool:
        gate_TK = top_TK.softmax(-1)
        keep_TK = seat(expert_TK, gate_TK)
        cut = [seat(expert_TK[:t], gate_TK[:t]) for t in range(1, len(expert_TK))]
        return any(not torch.equal(part, keep_TK[: len(part)]) for part in cut)

    return shows(_by("choice")) and shows(_by("gate"))


def check_looks_ahead(looks_ahead: Callable[[Seat, Tensor, Tensor], bool]) -> None:
    """Check a detector of foresight: (seat, expert_TK, gate_TK) -> bool."""
    check = Check("looks_ahead", looks_ahead)
    for seed, T in enumerate((16, 16, 11)):
        draws = (_crowd(seed + step, T) for step in range(0, 3000, 3))
        top_TK, expert_TK = next(draw for draw in draws if _cutting_shows(*draw))
        for name, seat, right, verdict in _seats(T):
            given = f"{T} tokens, {EXPERTS} experts, {PLACES} places each: {name}"
            check.on(given, nameless(seat), expert_TK, top_TK.softmax(-1), right=right,
                     otherwise=verdict)  # fmt: skip
    check.passed("change the future, and see whether the past moves.")
