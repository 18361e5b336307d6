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
from .verdict import CheckFailed, Mistakes, call, expect, passed, randn, show


def _tensor(exercise: str, value: Any, shape: tuple[int, ...], *, whole: bool = False) -> None:
    if not isinstance(value, Tensor) or value.shape != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise CheckFailed(f"{exercise}: return one tensor of shape {shape}, not {got}")
    if whole and (value.is_floating_point() or value.dtype == torch.bool):
        raise CheckFailed(f"{exercise}: a rank is a whole number; these are {value.dtype}")


# --- the places ----------------------------------------------------------------------------------


def check_places(places: Callable[[int, int, float, int], int]) -> None:
    """Check an expert's capacity: (num_tokens, num_experts, factor, top_k) -> places.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "places"
    for T, E, factor, K in (
        (12, 4, 1.0, 1), (12, 4, 2.0, 1), (12, 4, 1.0, 2), (11, 4, 1.0, 1), (9, 4, 1.0, 1),
        (10, 4, 2.5, 1), (100, 8, 1.25, 2), (64, 16, 0.5, 1), (1000, 7, 1.5, 3),
    ):  # fmt: skip
        given = f"{T} tokens, {E} experts, factor {factor}, {K} for each token"
        yours = call(exercise, places, T, E, factor, K, on=given)
        if isinstance(yours, Tensor) and yours.numel() == 1:
            yours = yours.item()
        right, exact = capacity(T, E, factor, K), factor * K * T / E
        if not isinstance(yours, int) or isinstance(yours, bool):
            raise CheckFailed(
                f"{exercise}: places are counted: return a whole number (int), not {yours!r}"
                f"\n  given    {given}"
            )
        mistakes = [
            ("each token asks for K places: count pairs (K·T), not tokens", capacity(T, E, factor)),
            ("an even share, whatever the factor; multiply it by the factor",
             math.ceil(K * T / E)),
            ("the factor shrinks the share here; it should stretch it",
             math.ceil(K * T / E / factor)),
            ("rounded up before the factor came; multiply first, then round up",
             math.ceil(factor * math.ceil(K * T / E))),
            ("rounded to the nearest; round up, or an even load may not fit", round(exact)),
            ("rounded down: with factor 1 and an even load somebody would be left standing",
             int(exact)),
            ("these are the places of all experts together; divide them by E",
             math.ceil(factor * K * T)),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "not factor × K × T / E, rounded up")
    passed(exercise, "the even share of all pairs, times the factor, rounded up.")


# --- the ranks -----------------------------------------------------------------------------------


def check_rank(rank: Callable[[Tensor, int], Tensor]) -> None:
    """Check each token's place in its expert's queue: (expert_T, num_experts) -> rank_T.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "rank"

    def run(given: str, expert_T: Tensor, E: int) -> None:
        yours = call(exercise, rank, expert_T, E, on=given)
        _tensor(exercise, yours, tuple(expert_T.shape), whole=True)
        T, hot_TE = len(expert_T), F.one_hot(expert_T, E)
        right = _rank(expert_T, E)
        total_T = expert_T.bincount(minlength=E)[expert_T]
        one_by_one_T = expert_T.argsort(stable=True).argsort()
        mistakes = [
            ("the first in a queue has rank 0: the running count contains the token itself, "
             "so take 1 away", right + 1),
            ("the count runs over the experts (dim 1); let it run over the tokens (dim 0)",
             torch.zeros_like(expert_T)),
            ("the count runs over the experts (dim 1); let it run over the tokens (dim 0)",
             torch.ones_like(expert_T)),
            ("that is the place in the batch; every expert has a queue of its own",
             torch.arange(T)),
            ("that is the place in the batch; every expert has a queue of its own",
             torch.arange(1, T + 1)),
            ("these stand behind the token; count those before it", total_T - 1 - right),
            ("that is the length of the queue, not the token's place in it", total_T),
            ("sorted by expert, the queues stand one behind the other: take away where the "
             "token's own begins", one_by_one_T),
            ("that is the number of the expert", expert_T),
            ("the running count of the last expert only; take the column of the token's own",
             hot_TE.cumsum(0)[:, -1] - 1),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes,
               "not the number of earlier tokens that chose the same expert")  # fmt: skip

    run("experts [2, 0, 2, 2, 1, 0], E = 3", torch.tensor([2, 0, 2, 2, 1, 0]), 3)
    run("experts [1, 1, 1, 3], E = 5 (some experts idle)", torch.tensor([1, 1, 1, 3]), 5)
    for T, E in ((40, 4), (7, 7), (200, 16)):
        run(f"{T} tokens, {E} experts", randn(T, T, E).argmax(-1), E)
    passed(exercise, "how many came before, for the same expert.")


def _rank(expert_N: Tensor, num_experts: int) -> Tensor:
    """Walk through the queue as it comes: the slow way, which nobody gets wrong."""
    length, rank = [0] * num_experts, []
    for e in expert_N.tolist():
        rank.append(length[e])
        length[e] += 1
    return torch.tensor(rank, dtype=torch.long)


def check_first_choices(rank: Callable[[Tensor, int], Tensor]) -> None:
    """Check GShard's order, first choices first: (expert_T2, num_experts) -> rank_T2.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "rank_top2"

    def run(given: str, expert_T2: Tensor, E: int) -> None:
        yours = call(exercise, rank, expert_T2, E, on=given)
        _tensor(exercise, yours, tuple(expert_T2.shape), whole=True)
        T, (first_T, second_T) = len(expert_T2), expert_T2.unbind(1)
        right = _rank_top2(expert_T2, E)
        alone_T2 = torch.stack([_rank(first_T, E), _rank(second_T, E)], dim=1)
        came_T = F.one_hot(first_T, E).cumsum(0).gather(1, second_T[:, None])[:, 0]
        seconds_first = _rank_top2(expert_T2.flip(1), E).flip(1)

        def seconds(offset: Tensor | int) -> Tensor:
            return torch.stack([alone_T2[:, 0], alone_T2[:, 1] + offset], dim=1)

        mistakes = [
            ("the second choices begin again at 0: two tokens would sit in one place; they "
             "stand behind all first choices of that expert", alone_T2),
            ("token by token: here a second choice stands before the first choices of later "
             "tokens", _rank(expert_T2.flatten(), E).view(T, 2)),
            ("the offset counts only the first choices that came earlier; all first choices "
             "are seated before any second one", seconds(came_T)),
            ("the offset is the number of all tokens; it should be the number of first choices "
             "of that one expert", seconds(T)),
            ("the second choices are seated before the first", seconds_first),
            ("ranks begin at 0", right + 1),
            ("one place is left free between first and second choices",
             seconds(first_T.bincount(minlength=E)[second_T] + 1)),
            ("the offset belongs to the expert of the second choice, not of the first",
             seconds(first_T.bincount(minlength=E)[first_T])),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes,
               "not all first choices by position, then all second ones by position")  # fmt: skip

    run("choices [[0, 1], [1, 0], [1, 2], [0, 1]], E = 3",
        torch.tensor([[0, 1], [1, 0], [1, 2], [0, 1]]), 3)  # fmt: skip
    for T, E in ((30, 4), (9, 6), (120, 8)):
        run(f"{T} tokens, {E} experts", randn(T, T, E).topk(2).indices, E)
    passed(exercise, "nobody's second choice takes the place of a first one.")


def _rank_top2(expert_T2: Tensor, num_experts: int) -> Tensor:
    return _rank(expert_T2.T.flatten(), num_experts).view(2, -1).T


# --- the dropped token ---------------------------------------------------------------------------


def check_dropped_token(block: Callable[..., Tensor]) -> None:
    """Check what leaves a Switch block: (h_TD, x_TD, expert_TD, gate_T, keep_T) -> out_TD.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "block"

    def run(given: str, h: Tensor, x: Tensor, expert: Tensor, gate: Tensor, keep: Tensor) -> None:
        yours = call(exercise, block, h, x, expert, gate, keep, on=given)
        _tensor(exercise, yours, tuple(h.shape))
        g, k = gate[:, None], keep[:, None]
        right = _block(h, x, expert, gate, keep)
        mistakes: Mistakes = [
            ("a dropped token leaves as h + p·LN(h): its own input was put where the expert's "
             "answer would be, and then everything was multiplied by p",
             h + g * torch.where(k, expert, x)),
            ("a dropped token gets its normalised input added; it should get nothing",
             h + torch.where(k, g * expert, x)),
            ("a dropped token gets h added once more; the residual has it already",
             h + torch.where(k, g * expert, h)),
            ("nobody was dropped: the expert's answer is used where there was no place",
             h + g * expert),
            ("a dropped token is wiped out; the residual should carry it on",
             torch.where(k, h + g * expert, 0.0)),
            ("a dropped token is weighed by p; no expert saw it, so p has no say",
             torch.where(k, h + g * expert, g * h)),
            ("a dropped token leaves as LN(h); it should leave as it came, as h",
             torch.where(k, h + g * expert, x)),
            ("kept and dropped are mixed up", _block(h, x, expert, gate, ~keep)),
            ("the gate is missing: the expert's answer counts p times", h + k * expert),
            ("p weighs the residual too; it belongs to the expert's answer alone",
             torch.where(k, g * (h + expert), h)),
            ("the residual is missing where the token was kept",
             torch.where(k, g * expert, h)),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "not h + p × expert, or h where dropped")

    h_TD, x_TD = torch.tensor([[2.0, 4.0], [3.0, 5.0]]), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    run(
        "h [[2, 4], [3, 5]], LN(h) [[-1, 1], [-1, 1]], experts' answers [[10, 20], [30, 40]], "
        "gates [0.5, 0.8], keep [True, False]",
        h_TD, x_TD, torch.tensor([[10.0, 20.0], [30.0, 40.0]]), torch.tensor([0.5, 0.8]),
        torch.tensor([True, False]),
    )  # fmt: skip
    h_TD, expert_TD = randn(0, 7, 5), randn(1, 7, 5)
    x_TD = F.layer_norm(h_TD, (5,))
    gate_T, keep_T = randn(2, 7).sigmoid(), torch.tensor([1, 0, 0, 1, 1, 0, 1]).bool()
    run("seven tokens, three of them dropped", h_TD, x_TD, expert_TD, gate_T, keep_T)
    run("seven tokens, all kept", h_TD, x_TD, expert_TD, gate_T, torch.ones(7).bool())
    inputs = [x.clone().requires_grad_() for x in (h_TD, expert_TD, gate_T)]

    def slopes(answer: Callable[..., Tensor]) -> tuple[Tensor | None, ...]:
        out = call(exercise, answer, inputs[0], x_TD, *inputs[1:], keep_T,
                   on="numbers that need a gradient")  # fmt: skip
        if not out.requires_grad:
            return (None, None, None)
        return torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)

    for name, yours, right in zip(
        ("h", "the expert", "the gate"), slopes(block), slopes(_block), strict=True
    ):
        if yours is None:
            raise CheckFailed(f"{exercise}: right values, but no gradient reaches {name}")
        expect(exercise, f"the gradient of {name}", yours, right, [],
               f"right values, but not the right gradient for {name}")  # fmt: skip
    passed(exercise, "kept: h + p × the expert's answer; dropped: h, as it came.")


def _block(h_TD: Tensor, x_TD: Tensor, expert_TD: Tensor, gate_T: Tensor, keep_T: Tensor) -> Tensor:
    return h_TD + (gate_T * keep_T)[:, None] * expert_TD


# --- the loss ------------------------------------------------------------------------------------


def check_counted_before(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check the loss of first choices: (probs_TE, expert_T2, keep_T2) -> scalar, 1 at balance.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "first_choice_loss"

    def run(given: str, probs: Tensor, expert: Tensor, keep: Tensor) -> None:
        yours = call(exercise, loss, probs, expert, keep, on=given)
        _tensor(exercise, yours, ())
        T, E = probs.shape
        mean_E, right = probs.mean(0), _loss(probs, expert, keep)

        def with_counts(expert_N: Tensor, of: float) -> Tensor:
            return E * (expert_N.bincount(minlength=E) / of * mean_E).sum()

        chosen = torch.zeros_like(probs).scatter(1, expert, probs.gather(1, expert))
        first, seated, both = expert[:, 0], keep[:, 0], keep.flatten()
        after = (
            "f was counted after the drop: a full expert can count no more than its places, so "
            "the loss no longer sees how many wanted it"
        )
        mistakes = [
            (after, with_counts(first[seated], T)),
            (after, with_counts(first[seated], max(int(seated.sum()), 1))),
            (after, with_counts(expert.flatten()[both], 2 * T)),
            (after, with_counts(expert.flatten()[both], max(int(both.sum()), 1))),
            ("both choices are counted; GShard's loss counts first choices",
             with_counts(expert.flatten(), 2 * T)),
            ("both choices are counted; GShard's loss counts first choices",
             with_counts(expert.flatten(), T)),
            ("those are second choices", with_counts(expert[:, 1], T)),
            ("at balance this is 1/E; multiply by the number of experts", right / E),
            ("at balance this is 1/E², the scale of the paper's own line; multiply by E²",
             right / E**2),
            ("P is made of the chosen gates only; take the mean of all the probabilities",
             E * (first.bincount(minlength=E) / T * chosen.mean(0)).sum()),
            ("f times f has no gradient: one of the two has to be P",
             E * (first.bincount(minlength=E) / T).square().sum()),
            ("P times P: that is smooth, but it does not see who was chosen",
             E * mean_E.square().sum()),
            ("a sum over the tokens where a mean should be", right * T),
        ]  # fmt: skip
        otherwise = "not E × the sum of (share of first choices) × (mean probability)"
        expect(exercise, given, yours, right, mistakes, otherwise)

    probs_TE = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5]])
    expert_T2 = probs_TE.topk(2).indices
    keep_T2 = torch.tensor([[True, True], [True, True], [False, False], [True, False]])
    given = (
        f"probabilities {show(probs_TE)}, two choices each, expert 0 has two places, so the third "
        f"token finds none"
    )
    run(given, probs_TE, expert_T2, keep_T2)
    for T, E in ((20, 4), (64, 8)):
        probs_TE = (2 * randn(T, T, E) + torch.linspace(1, -1, E)).softmax(-1)
        expert_T2, places = probs_TE.topk(2).indices, capacity(T, E, 1.0)
        routing = Routing.from_choices(probs_TE, probs_TE, expert_T2, probs_TE.gather(1, expert_T2))
        keep_T2 = (queue_rank(routing, "choice") < places).view(T, 2)
        run(f"{T} tokens, {E} experts, {places} places each", probs_TE, expert_T2, keep_T2)
    leaf = probs_TE.clone().requires_grad_()
    value = call(exercise, loss, leaf, expert_T2, keep_T2, on="probabilities that need a gradient")
    if not value.requires_grad:
        raise CheckFailed(f"{exercise}: right values, but no gradient reaches the probabilities")
    yours = torch.autograd.grad(value, leaf)[0]
    right = torch.autograd.grad(_loss(leaf, expert_T2, keep_T2), leaf)[0]
    expect(exercise, "the gradient", yours, right, [], "right values, but not their gradient")
    passed(exercise, "what the tokens wanted, before anyone was turned away.")


def _loss(probs_TE: Tensor, expert_T2: Tensor, keep_T2: Tensor) -> Tensor:
    T, E = probs_TE.shape
    return E * (expert_T2[:, 0].bincount(minlength=E) / T * probs_TE.mean(0)).sum()


# --- the future ----------------------------------------------------------------------------------

Seat = Callable[[Tensor, Tensor], Tensor]
"""(expert_TK, gate_TK) -> keep_TK: who finds a place."""


def check_looks_ahead(looks_ahead: Callable[[Seat, Tensor, Tensor], bool]) -> None:
    """Check a detector of foresight: (seat, expert_TK, gate_TK) -> bool.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "looks_ahead"
    E, T, K, places = 4, 16, 2, 6

    def by(priority: Any) -> Seat:
        def seat(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
            E_ = max(E, int(expert_TK.max()) + 1)
            zeros_TE = torch.zeros(len(expert_TK), E_)
            routing = Routing.from_choices(zeros_TE, zeros_TE, expert_TK, gate_TK)
            return (queue_rank(routing, priority) < places).view(expert_TK.shape)

        return seat

    def backwards(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
        return by("position")(expert_TK.flip(0), gate_TK.flip(0)).flip(0)

    def everybody(expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
        return torch.ones_like(expert_TK, dtype=torch.bool)

    cases: list[tuple[str, Seat, bool, str]] = [
        ("places by position", by("position"), False,
         "says that seating by position looks ahead, which it does not: compare only the tokens "
         "before the change; what comes behind it may well change"),
        ("places by choice", by("choice"), True,
         "misses that all first choices come before any second one: other choices of later "
         "tokens move an earlier token's second choice"),
        ("places by gate", by("gate"), True,
         "misses that the largest gate comes first: a later token with a larger gate takes an "
         "earlier one's place"),
        ("places from the end", backwards, True,
         "misses seats given from the end of the batch, the plainest foresight there is"),
        ("a place for everybody", everybody, False, "sees foresight where nobody is ever dropped"),
    ]  # fmt: skip
    for seed in range(3):
        scores_TE = randn(seed, T, E) + torch.tensor([1.0, 0.3, 0.0, -0.6])
        top_TK, expert_TK = scores_TE.topk(K)
        gate_TK = top_TK.softmax(-1)
        for name, seat, right, verdict in cases:
            given = f"{T} tokens, {E} experts, {places} places each: {name}"
            yours = call(exercise, looks_ahead, seat, expert_TK, gate_TK, on=given)
            if isinstance(yours, Tensor) and yours.numel() == 1:
                yours = bool(yours)
            if not isinstance(yours, bool):
                raise CheckFailed(f"{exercise}: return True or False, not {yours!r}")
            expect(exercise, given, yours, right, [], verdict)
    passed(exercise, "change the future, and see whether the past moves.")
