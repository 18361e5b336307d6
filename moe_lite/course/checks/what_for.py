"""The checks of chapter 11: what are experts for?"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..asking import Evidence, share
from ..facts import Arm
from .verdict import Check, Mistakes, generator


def check_stored_bits(stored_bits: Callable[[float, int, int], float]) -> None:
    """Check bits from a loss: (nats, values, choices) -> bits stored of all values."""

    def right(nats: float, values: int, choices: int) -> float:
        return values * (math.log(choices) - nats) / math.log(2)

    def mistakes(nats: float, values: int, choices: int) -> Mistakes:
        value, bit = right(nats, values, choices), math.log(2)
        return [
            ("these are nats; a bit is log 2 of them, so divide", value * bit),
            ("multiplied by log 2; a nat is more than a bit, so divide", value * bit**2),
            ("that is what is missing, the loss; what is stored is the rest", values * nats / bit),
            ("log2 of the choices is in bits, and the loss is in nats: bring them to one unit",
             values * (math.log2(choices) - nats)),
            ("the loss is counted in bits already; it is in nats",
             values * (math.log(choices) / bit - nats / bit**2)),
            ("that is for one value; the loss is a mean over all of them", value / values),
            ("that is what there is to know; a loss above 0 says that not all of it is stored",
             values * math.log2(choices)),
            ("log2 of the values, where it should be of the choices: how many values there are "
             "does not make one of them harder to guess", values * (math.log(values) - nats) / bit),
            ("a base of 10; bits have the base 2", value * bit / math.log(10)),
            ("a loss above chance gives less than 0: it is sure of wrong things", max(0.0, value)),
            ("the sign is turned round: the smaller the loss, the more is stored", -value),
        ]  # fmt: skip

    check = Check("stored_bits", stored_bits, right, mistakes, "not values (log C - nats) / log 2")
    half = math.log(8) / 3
    check.on("10 values, each one of 8, at a loss of log 8 / 3 (so two bits of three are known)",
             half, 10, 8)  # fmt: skip
    check.on("12,000 values of 100, at a loss of 0.25 nats", 0.25, 12_000, 100)
    check.on("7,000 values of 128, at a loss of 4.3 nats", 4.3, 7000, 128)
    check.on("50 values of 4, at a loss of 1.6 nats, worse than chance", 1.6, 50, 4)
    check.on("one value of 2, at a loss of 0", 0.0, 1, 2)
    check.passed("what the loss has fallen below chance, in bits, for every value.")


def check_sizes(sizes: Callable[[int, int, int, int], tuple[int, int, int, int]]) -> None:
    """Check four sizes of a layer: (D, F, E, K) -> total, active, and the widths of both twins."""

    def right(D: int, F: int, E: int, K: int) -> tuple[int, int, int, int]:
        return E * (3 * D * F + D), K * 3 * D * F + E * D, K * F, E * F

    def mistakes(D: int, F: int, E: int, K: int) -> Mistakes:
        total, active, one, all_ = right(D, F, E, K)
        return [
            ("an expert has three matrices, w1, w3 and w2; these are two",
             (E * (2 * D * F + D), K * 2 * D * F + E * D, ..., ...)),
            ("the router's D * E parameters are missing in both counts",
             (total - E * D, active - E * D, ..., ...)),
            ("a token asks the router about all E experts, not only the K it takes",
             (..., active - (E - K) * D, ..., ...)),
            ("the router is counted as active, but not in all", (total - E * D, active, ..., ...)),
            ("the router is counted in all, but not as active", (total, active - E * D, ..., ...)),
            ("a token uses K experts, not one", (..., 3 * D * F + E * D, ..., ...)),
            ("all experts are counted as active", (..., total, ..., ...)),
            ("only the chosen experts are counted in all: the others take memory too",
             (active, active, ..., ...)),
            ("the twin of equal active size is as wide as one expert; a token uses K of them",
             (..., ..., F, all_)),
            ("the twin of equal total size is E * F wide: it has all experts side by side",
             (..., ..., one, E * K * F))]  # fmt: skip

    parts = ("total", "active", "width of the equal-active twin", "width of the equal-total twin")
    check = Check("sizes", sizes, right, mistakes, "not E (3 D F + D), 3 K D F + E D, K F, E F",
                  parts=parts)  # fmt: skip
    for D, F, E, K in ((2, 5, 4, 2), (32, 48, 16, 2), (32, 16, 32, 1), (64, 128, 8, 3)):
        check.on(f"D = {D}, F = {F}, E = {E}, K = {K}", D, F, E, K)
    check.passed("memory pays for E experts, arithmetic for K.")


VERDICTS = {
    "active": "a token's arithmetic differs: compare experts per token times width",
    "data": "they have not seen as many examples: compare steps times batch",
    "optimiser": "they were trained by different optimisers",
    "fair": "active size, examples and optimiser are equal; the total size may differ, that is "
    "what is tested",
}


def check_unfair(unfair: Callable[[Arm, Arm], str]) -> None:
    """Check the diagnosis of a comparison: (sparse, dense) -> "active", "data", "optimiser" or
    "fair".
    """

    def rule(
        sparse: Arm, dense: Arm, order: Sequence[str] = (), **looks: Callable[[Arm], object]
    ) -> str:
        looks = {
            "active": lambda arm: arm.per_token * arm.width,
            "data": lambda arm: arm.steps * arm.batch,
            "optimiser": lambda arm: arm.optimiser,
        } | looks
        differ = [word for word in order or looks if looks[word](sparse) != looks[word](dense)]
        return [*differ, "fair"][0]

    def right(sparse: Arm, dense: Arm) -> str:
        return rule(sparse, dense)

    def mistakes(sparse: Arm, dense: Arm) -> Mistakes:
        both = sparse, dense
        examples = ("500 steps of 512 are as many examples as 250 of 1,024: compare steps times "
                    "batch, not each by itself")  # fmt: skip
        work = ("two experts of 48 units do the work of one of 96: compare experts per token times "
                "width, not each by itself")  # fmt: skip
        return [
            ("compares the width of one expert; a token uses several",
             rule(*both, active=lambda arm: arm.width)),
            ("compares total sizes; the twin of equal arithmetic is smaller in all",
             rule(*both, active=lambda arm: arm.experts * arm.width)),
            (examples, rule(*both, data=lambda arm: (arm.steps, arm.batch))),
            (work, rule(*both, active=lambda arm: (arm.per_token, arm.width))),
            (work, rule(*both, active=lambda arm: (arm.per_token, arm.width),
                        data=lambda arm: (arm.steps, arm.batch))),
            ("compares the steps; a step with twice the batch is twice the data",
             rule(*both, data=lambda arm: arm.steps)),
            ("compares the batches; with half the steps twice the batch is as much data",
             rule(*both, data=lambda arm: arm.batch)),
            *(("if several are broken, name the first in the order of the table",
               rule(*both, order=list(order)))
              for order in list(itertools.permutations(list(VERDICTS)[:3]))[1:]),
            ("does not look at the optimiser", rule(*both, optimiser=lambda arm: 0)),
            ("does not look at the data", rule(*both, data=lambda arm: 0)),
            ("does not look at the arithmetic of a token", rule(*both, active=lambda arm: 0)),
        ]  # fmt: skip

    check = Check("unfair", unfair, right, mistakes, words=list(VERDICTS))
    sparse, eighth = Arm(16, 2, 48, 500, 512, "AdamW"), Arm(1, 1, 16, 600, 4000, "Adam")
    cases = {
        "the chapter's phone book": (sparse, Arm(1, 1, 96, 500, 512, "AdamW")),
        "a dense arm as wide as one expert": (sparse, Arm(1, 1, 48, 500, 512, "AdamW")),
        "a dense arm as wide as all experts": (sparse, Arm(1, 1, 768, 500, 512, "AdamW")),
        "half the steps, twice the batch": (sparse, Arm(1, 1, 96, 250, 1024, "AdamW")),
        "twice the batch in as many steps": (sparse, Arm(1, 1, 96, 500, 1024, "AdamW")),
        "half the batch": (sparse, Arm(1, 1, 96, 500, 256, "AdamW")),
        "twice the steps": (sparse, Arm(1, 1, 96, 1000, 512, "AdamW")),
        "another optimiser": (Arm(8, 1, 16, 600, 4000, "normalised"), eighth),
        "nothing is equal": (sparse, Arm(1, 1, 48, 250, 512, "Adam")),
        "twice the data, another optimiser": (sparse, Arm(1, 1, 96, 1000, 512, "Adam")),
        "one expert of eight against one": (Arm(8, 1, 16, 600, 4000, "Adam"), eighth),
    }  # fmt: skip
    for given, arms in cases.items():
        verdict = right(*arms)
        check.on(f"{given}: {arms[0]}, {arms[1]}", *arms, otherwise=VERDICTS[verdict])
    check.passed("equal arithmetic, equal data, equal training: then what differs is the memory.")


def check_experts_needed(needed: Callable[[float, int, int, float], int]) -> None:
    """Check a prediction: (bits, per_expert, others, bits_per_parameter) -> the least E."""

    def right(bits: float, per_expert: int, others: int, density: float) -> int:
        return max(1, math.ceil((bits / density - others) / per_expert))

    def mistakes(bits: float, per_expert: int, others: int, density: float) -> Mistakes:
        value, room = right(bits, per_expert, others, density), bits / density - others
        return [
            ("rounded down: with that many experts the book does not fit yet",
             max(1, math.floor(room / per_expert))),
            ("rounded to the nearest, which may be too few", max(1, round(room / per_expert))),
            *(("a part of a parameter takes a whole one: round up, and only at the end",
               max(1, math.ceil((whole(bits / density) - others) / per_expert)))
              for whole in (int, round)),
            ("one more than is needed", max(1, math.floor(room / per_expert) + 1)),
            ("the other parameters store bits too", max(1, math.ceil(bits / density / per_expert))),
            ("a parameter does not hold one bit", max(1, math.ceil((bits - others) / per_expert))),
            ("bits times bits per parameter; divide, to get parameters",
             max(1, math.ceil((bits * density - others) / per_expert))),
            ("the others are counted once for each expert",
             max(1, math.ceil(bits / density / (per_expert + others)))),
            ("the others add to what is to be stored; they take a part of it",
             max(1, math.ceil((bits / density + others) / per_expert))),
            *(("there is at least one expert", value if room > 0 else few)
              for few in (math.ceil(room / per_expert), 0)),
        ]  # fmt: skip

    check = Check("experts_needed", needed, right, mistakes, "not ceil((bits / b − others) / each)")
    check.on("120 bits, experts of 20 parameters, 15 others, 1.5 bits in each", 120, 20, 15, 1.5)
    for bits, each, others, density in (
        (49_000, 1568, 4224, 1.2), (100, 10, 20, 0.8), (1000, 90, 40, 1.25), (96, 8, 16, 2.0),
        (30, 10, 50, 2.0), (5000, 300, 100, 3.0), (117, 10, 14, 1.5), (64, 10, 5, 1.0),
        (121, 20, 20, 1.5), (122, 20, 21, 1.5),
    ):  # fmt: skip
        check.on(f"{bits:,} bits, experts of {each:,} parameters, {others:,} others, {density} "
                 "bits in each", bits, each, others, density)  # fmt: skip
    check.passed("bits to parameters, less what is there anyway, over the size of an expert.")


def check_needs(needs: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check what an entry needs: (known_N, without_EN) -> how many experts, each entry."""

    def right(known_N: Tensor, without_EN: Tensor) -> Tensor:
        return (known_N & ~without_EN).sum(0)

    def mistakes(known_N: Tensor, without_EN: Tensor) -> Mistakes:
        lost_EN = known_N & ~without_EN
        return [
            ("an entry that was not known before is not forgotten", (~without_EN).sum(0)),
            ("counts the experts that it can do without", (known_N & without_EN).sum(0)),
            ("counts every change; an entry that is right only without the expert is no loss",
             (known_N ^ without_EN).sum(0)),
            ("this is for each expert, how many entries need it; asked is for each entry, how "
             "many experts", lost_EN.sum(1)),
            ("says whether any expert is needed; asked is how many", lost_EN.any(0).long()),
            ("a share of the experts; asked is their number", lost_EN.float().mean(0)),
            ("counts what is right with the expert gone, known before or not", without_EN.sum(0)),
        ]  # fmt: skip

    check = Check("needs", needs, right, mistakes, "not the number of experts it needs")
    known = torch.tensor([True, True, True, False])
    without = torch.tensor([[True, False, True, False], [True, False, False, True]])
    check.on("entries known: yes, yes, yes, no; without expert 0: yes, no, yes, no; without "
             "expert 1: yes, no, no, yes", known, without)  # fmt: skip
    for E, N in ((4, 4), (16, 50), (3, 7), (1, 5)):
        draw = generator(E)
        known = torch.rand(N, generator=draw) < 0.7
        check.on(f"{N} entries, {E} experts", known, torch.rand(E, N, generator=draw) < 0.6)
    check.passed("what goes with an expert needed it. (Stored there? That is another question.)")


OWNERS = {
    "chance": "the mixture is not ahead of its twin by more than chance: take the difference name "
    "by name, over all the names, and look whether its interval lies above 0",
    "busy": "the expert that is nearest in load takes as many of the known numbers, as far as "
    "these names can tell: take the difference of the two, name by name",
    "other text": "the interval of the mean rise on other text reaches 0.05 nats or more, so it is "
    "not shown that other text can do without this expert",
    "book": "ahead of the twin, takes more than the expert nearest in load, and the interval on "
    "other text ends below 0.05 nats",
}
SPARED = 0.05  # nats a token

Test = Callable[[Evidence, int], bool]


def _above(x_N: Tensor) -> bool:
    mean, half = share(x_N)
    return mean > half


def _at_least(x_N: Tensor) -> bool:
    mean, half = share(x_N)
    return mean >= half


def _lost(seen: Evidence) -> Tensor:
    return (seen.knows_N & ~seen.without_EN)[:, seen.knows_N].double()


def _nearest(seen: Evidence, expert: int) -> int:
    gap_E = (seen.load_E - seen.load_E[expert]).abs()
    gap_E[expert] = math.inf
    return int(gap_E.argmin())


def _whose(seen: Evidence, expert: int, order: Sequence[str] = (), **instead: Test) -> str:
    """Give the first of three doubts that the evidence leaves, or "book"."""

    def takes_more(seen: Evidence, expert: int) -> bool:
        lost_EN = _lost(seen)
        return _above(lost_EN[expert] - lost_EN[_nearest(seen, expert)])

    def spares(seen: Evidence, expert: int) -> bool:
        return sum(share(seen.rise_EX[expert])) < SPARED

    tests: dict[str, Test] = {
        "chance": lambda seen, _: _above(seen.knows_N.double() - seen.twin_N.double()),
        "busy": takes_more,
        "other text": spares,
    } | {name.replace("_", " "): test for name, test in instead.items()}
    return next((word for word in order or tests if not tests[word](seen, expert)), "book")


def _whose_mistakes(seen: Evidence, expert: int) -> Mistakes:
    lost_EN, knows_N, twin_N = _lost(seen), seen.knows_N.double(), seen.twin_N.double()
    whose = functools.partial(_whose, seen, expert)
    rise_X, near, load = seen.rise_EX[expert], _nearest(seen, expert), seen.load_E[expert]
    (mean, half), others = share(rise_X), [e for e in range(len(lost_EN)) if e != expert]

    def apart(surely: Callable[[Tensor, Tensor], bool]) -> str:
        """Judge the two pairs of lists by another rule."""
        return whose(
            chance=lambda *_: surely(knows_N, twin_N),
            busy=lambda *_: surely(lost_EN[expert], lost_EN[near]),
        )

    def against(x_N: Tensor) -> str:
        return whose(busy=lambda *_: _above(lost_EN[expert] - x_N))

    def next_to(busier: bool) -> Tensor:
        """What the next busier expert loses, or the next less busy one; where none is, nothing."""
        gap_E = (seen.load_E - seen.load_E[expert]) * (1 if busier else -1)
        gap_E[gap_E <= 0] = math.inf
        return lost_EN[gap_E.argmin()] if gap_E.isfinite().any() else 0 * lost_EN[0]

    def strangers(a_N: Tensor, b_N: Tensor) -> bool:
        return bool(a_N.mean() - b_N.mean() > 1.96 * ((a_N.var() + b_N.var()) / len(a_N)).sqrt())

    def no_overlap(a_N: Tensor, b_N: Tensor) -> bool:
        return share(a_N)[0] - share(a_N)[1] > sum(share(b_N))

    def other_text(spares: bool) -> str:
        return whose(other_text=lambda *_: spares)

    return [
        ("compares without an interval: a few names more may be chance",
         apart(lambda a, b: bool(a.mean() > b.mean()))),
        ("treats the two lists as strangers; they are about the same names, so take the difference "
         "name by name, then its interval", apart(strangers)),
        ("asks whether two intervals overlap; they are about the same names, so take the "
         "difference name by name, then its interval", apart(no_overlap)),
        ("a difference may be below 0: `^`, or uint8 less uint8, says that two differ, not which "
         "is ahead", apart(lambda a, b: _above((a != b).double()))),
        *(("an interval of differences that are all alike is a point; a point at 0 is not above 0 "
           "(nor is NaN)", word) for word in (
               apart(lambda a, b: bool((a - b).std() == 0) or _above(a - b)),
               whose(chance=lambda *_: _at_least(knows_N - twin_N)),
               whose(busy=lambda *_: _at_least(lost_EN[expert] - lost_EN[near])))),
        ("takes the other list's mean as if it were exact; take the difference name by name, then "
         "its interval", apart(lambda a, b: share(a)[0] - share(a)[1] > float(b.mean()))),
        ("takes a difference for a lead; it may be below 0",
         apart(lambda a, b: abs(share(a - b)[0]) > share(a - b)[1])),
        ("that is how far single names or texts lie apart; a mean is known better, by sqrt(n)",
         whose(chance=lambda *_: bool((knows_N - twin_N).mean() > 1.96 * (knows_N - twin_N).std()),
               busy=lambda *_: bool((d := lost_EN[expert] - lost_EN[near]).mean() > 1.96 * d.std()),
               other_text=lambda *_: bool(mean + 1.96 * rise_X.std() < SPARED))),
        ("asks the twin for the names that the mixture knows; so chosen, the twin can only be "
         "behind: ask both for all", whose(chance=lambda *_: _above((1 - twin_N)[seen.knows_N]))),
        ("does not look at the twin", whose(chance=lambda *_: True)),
        ("has no control: an expert that works for most tokens takes much along, whatever it does",
         against(torch.zeros_like(lost_EN[0]))),
        ("the control is all other experts; most of them have little to do here: take the one "
         "nearest in load", against(lost_EN[others].mean(0))),
        ("the control is the next less busy one; the nearest in load may be busier",
         against(next_to(False))),
        ("the control is the next busier one; the nearest in load may be less busy",
         against(next_to(True))),
        ("a number that it does not know is not lost; look at the known ones alone",
         whose(busy=lambda *_: _above((~seen.without_EN).double()[expert]
                                      - (~seen.without_EN).double()[near]))),
        ("nearest in load is the least difference, not the ratio nearest to 1",
         against(lost_EN[min(others, key=lambda e: abs(math.log(seen.load_E[e] / load)))])),
        ("the control is the busiest of the others; take the one nearest in load",
         against(lost_EN[max(others, key=lambda e: seen.load_E[e])])),
        ("the control is the idlest of the others; take the one nearest in load",
         against(lost_EN[min(others, key=lambda e: seen.load_E[e])])),
        ("the control is the one that takes most of the others; that it was chosen for: take the "
         "one nearest in load", against(lost_EN[max(others, key=lambda e: lost_EN[e].sum())])),
        ("nearest in load is the expert itself; look among the others",
         against(lost_EN[expert])),
        ("without_EN says what is still known, not what is lost",
         whose(busy=lambda *_: _above(lost_EN[near] - lost_EN[expert]))),
        ("does not look at other text", other_text(True)),
        ("an interval round 0 may reach far: it says that nothing is decided, not that other text "
         "is spared. Its upper end counts", other_text(mean - half <= 0)),
        ("the lower end is below 0.05; the upper end has to be", other_text(mean - half < SPARED)),
        ("ten texts are few: half an interval is 2.26 deviations of their mean (Student's), not "
         "1.96; asking.share knows", other_text(bool(
             mean + 1.96 * rise_X.double().std() / len(rise_X) ** 0.5 < SPARED))),
        ("the mean rise is below 0.05, but its interval is not", other_text(mean < SPARED)),
        ("a loss that *falls* without the expert is no harm",
         other_text(abs(mean) + half < SPARED)),
        ("the middle text is not their mean; one text that suffers much counts",
         other_text(bool(rise_X.median() < SPARED))),
        ("asks for no rise at all; a rise that is surely below 0.05 nats is small enough here",
         other_text(mean <= 0)),
        ("asks each text by itself; the question is about their mean",
         other_text(bool(rise_X.max() < SPARED))),
        ("takes the control's rise off: other text is spared if *this* expert's loss spares it",
         other_text(sum(share(rise_X - seen.rise_EX[near])) < SPARED)),
        *(("if several doubts are left, name the first in the order of the table",
           whose(order=order)) for order in list(itertools.permutations(list(OWNERS)[:3]))[1:]),
    ]  # fmt: skip


Expert = tuple[float, tuple[int, ...], tuple[float, ...]]
"""Load; the known names that are lost without it, from and to, and how many of the others are known
without it alone; mean and spread of the rise, or all ten."""


def _evidence(seed: int, names: Sequence[int], experts: Sequence[Expert]) -> tuple[Evidence, int]:
    """Make evidence about the first of some experts, in a drawn order.

    Args: names: how many both know, the mixture alone, the twin alone, neither.
    """
    rng, both = generator(seed), names[0] + names[1]
    name_N, text_X = torch.arange(sum(names)), torch.randperm(10, generator=rng)
    mix_N = torch.randperm(len(name_N), generator=rng)
    mix_E = torch.randperm(len(experts), generator=rng)
    knows_N = name_N < both
    twin_N = (name_N < names[0]) | ((name_N >= both) & (name_N < both + names[2]))
    even_X = torch.linspace(-1, 1, 10)[text_X]
    without_EN = torch.stack(
        [(knows_N & ~((name_N >= first) & (name_N < end))) | (name_N >= len(name_N) - sum(new))
         for _, (first, end, *new), _ in experts]
    )  # fmt: skip
    rise_EX = torch.stack(
        [rise[0] + rise[1] * even_X / even_X.std() if len(rise) == 2 else torch.tensor(rise)[text_X]
         for *_, rise in experts]
    )  # fmt: skip
    load_E = torch.tensor([load for load, *_ in experts])
    seen = Evidence(
        knows_N[mix_N], twin_N[mix_N], without_EN[:, mix_N][mix_E], load_E[mix_E], rise_EX[mix_E]
    )
    return seen, mix_E.tolist().index(0)


def check_whose_expert(whose_expert: Callable[[Evidence, int], str]) -> None:
    """Check a diagnosis: (evidence, expert) -> "chance", "busy", "other text" or "book"."""
    check = Check("whose_expert", whose_expert, _whose, _whose_mistakes, words=list(OWNERS))
    ahead, still = (60, 60, 10, 70), (0.001, 0.01)  # 120 names known against 70; other text spared
    near, harmful = (0.48, (0, 40), still), (0.2, (0, 110), still)
    busiest, idlest = (0.9, (0, 20), still), (0.1, (110, 120), still)
    rest = [near, busiest, idlest, harmful]

    def suspect(lost: int, rise: tuple[float, ...] = still) -> Expert:
        return 0.5, (0, lost), rise

    def others(near: int, busiest: int, idlest: int, *more: int) -> list[Expert]:
        lost = zip((0.48, 0.9, 0.1, 0.2, 0.8), (near, busiest, idlest, *more), strict=False)
        return [(load, (0, names), still) for load, names in lost]

    nothing = [(load, (0, 0), still) for load in (0.9, 0.1, 0.2)]
    even, bad = (64, 40, 34, 62), (0.3, 0.1)  # 6 names ahead, 74 known to one of the two alone
    cases: dict[str, tuple[Sequence[int], list[Expert]]] = {
        "ahead, takes 90 of 120": (ahead, [suspect(90), *rest]),
        "14 names ahead, none the other way": ((92, 14, 0, 94), [suspect(90), *rest]),
        "24 names ahead, 6 of 36 the other way": ((90, 30, 6, 74), [suspect(90), *rest]),
        "75 names ahead, 5 of 85 the other way": ((40, 80, 5, 75), [suspect(90), *rest]),
        "6 names ahead, 34 of 74 the other way": (even, [suspect(90), *rest]),
        "the twin knows more": ((40, 40, 55, 65), [suspect(70), *rest]),
        "the twin knows far more": ((60, 20, 70, 50), [suspect(70), *rest]),
        "the twin knows all that it knows": ((100, 0, 20, 80), [suspect(70), *rest]),
        "190 names against none": (
            (0, 190, 0, 10), [suspect(185), (0.48, (0, 0), still), *rest[1:]]),
        "takes 60, the nearest the other 60": (
            ahead, [suspect(60), (0.48, (60, 120), still), *nothing]),
        "takes 60, the nearest 58, other ones": (
            ahead, [suspect(60), (0.48, (60, 118), still), *nothing]),
        "takes 30, the nearest 20 of them": (ahead, [suspect(30), *others(20, 0, 0)]),
        "takes 44, the nearest 28 of them": (ahead, [suspect(44), *others(28, 0, 0)]),
        "takes 30, the nearest 80": (ahead, [suspect(30), *others(80, 0, 0)]),
        "takes 40, the nearest 5, all others 80": (ahead, [suspect(40), *others(5, 80, 80, 80)]),
        "takes 60, the nearest 10, the busiest 100": (ahead, [suspect(60), *others(10, 100, 0, 0)]),
        "takes 60, the nearest 10, the idlest 100": (ahead, [suspect(60), *others(10, 0, 100, 0)]),
        "takes 60, the nearest 42 other ones": (
            ahead, [suspect(60), (0.48, (60, 102), still), *nothing]),
        "18 names ahead, 42 of 102 the other way": ((10, 60, 42, 88), [suspect(60), *rest]),
        "takes 60, the nearest is busier and takes 58": (
            ahead, [suspect(60), (0.53, (0, 58), still), (0.4, (0, 5), still), *nothing]),
        "takes 60, the nearest is busier and takes 5": (
            ahead, [suspect(60), (0.53, (0, 5), still), (0.4, (0, 60), still), *nothing]),
        "takes 60, the nearest is less busy and takes 5": (
            ahead, [suspect(60), (0.48, (0, 5), still), (0.6, (0, 60), still), *nothing]),
        "takes 30 and the nearest 12; 20 others are known without it alone": (
            ahead, [(0.5, (0, 30, 20), still), (0.48, (0, 12), still), *nothing]),
        "takes 30 as the nearest; 20 others are known without that one alone": (
            ahead, [suspect(30), (0.48, (0, 30, 20), still), *nothing]),
        "takes none, as the nearest": (ahead, [suspect(0), *others(0, 50, 50, 50)]),
        "other text: 0.23 ± 0.35 nats": (ahead, [suspect(90, (0.23, 0.49)), *rest]),
        "other text: 0.020 ± 0.018 nats": (ahead, [suspect(90, (0.02, 0.025)), *rest]),
        "other text: 0.030 ± 0.043 nats": (ahead, [suspect(90, (0.03, 0.06)), *rest]),
        "other text: 0.010 ± 0.036 nats": (ahead, [suspect(90, (0.01, 0.05)), *rest]),
        "other text: -0.30 ± 0.01 nats": (ahead, [suspect(90, (-0.3, 0.01)), *rest]),
        "other text: eight of ten spared, two lose 0.4 nats": (
            ahead, [suspect(90, (0.4, *(0.0,) * 8, 0.4)), *rest]),
        "other text: 0.12 ± 0.04 nats": (ahead, [suspect(90, (0.12, 0.05)), *rest]),
        "other text: 0.30 ± 0.07 nats": (ahead, [suspect(90, bad), *rest]),
        "other text: 0.30 ± 0.07 nats, as without the nearest": (
            ahead, [suspect(90, bad), (0.48, (0, 40), bad), *rest[1:]]),
        "not ahead, and other text suffers": (even, [suspect(90, bad), *rest]),
        "not ahead, and the nearest takes as many": (even, [suspect(60), *others(60, 0, 0)]),
        "the nearest takes as many, other text suffers": (
            ahead, [suspect(60, bad), *others(60, 0, 0)]),
        "the mixture and its twin know the same": ((120, 0, 0, 80), [suspect(90), *rest]),
        "other text: 0.021 ± 0.032 nats, eight of ten spared, two lose 0.106": (
            ahead, [suspect(90, (0.106, *(0.0,) * 8, 0.106)), *rest]),
        "takes 60, the nearest 5, one that is 0.2 busier 58": (
            ahead, [suspect(60), (0.34, (0, 5), still), (0.7, (0, 58), still), *nothing]),
        "nothing holds": (even, [suspect(60, bad), *others(60, 0, 0)]),
    }  # fmt: skip
    for seed, (given, (names, experts)) in enumerate(cases.items()):
        seen, expert = _evidence(seed, names, experts)
        check.on(f"{given}; {sum(names)} names, {len(experts)} experts", seen, expert,
                 otherwise=OWNERS[_whose(seen, expert)])  # fmt: skip
    check.passed("against its twin, against an expert as busy, and against other text.")


def check_bytes_per_token(bytes_per_token: Callable[[int, int, int, int], float]) -> None:
    """Check the bill of reading: (tokens, E, K, expert_bytes) -> bytes read for one token."""

    def met(tokens: int, E: int, K: int) -> float:
        return E * (1 - (1 - K / E) ** tokens)

    def right(tokens: int, E: int, K: int, size: int) -> float:
        return float(met(tokens, E, K) * size / tokens)

    def mistakes(tokens: int, E: int, K: int, size: int) -> Mistakes:
        return [
            ("that is the whole batch's; its tokens share what is read", met(tokens, E, K) * size),
            ("each token reads its K experts by itself; tokens that meet at an expert share it",
             float(K * size)),
            ("all experts are read whatever the batch; a token alone reads K", E * size / tokens),
            ("that many pairs, but two tokens may choose the same expert",
             min(E, K * tokens) * size / tokens),
            ("K counts: an expert is left out by one token with 1 − K/E, not 1 − 1/E",
             met(tokens, E, 1) * size / tokens),
            ("that is the share that nobody reads", (E - met(tokens, E, K)) * size / tokens),
            ("that is a number of experts; each has its bytes", met(tokens, E, K) / tokens),
            ("the K choices of a token are all different: (1 − K/E), not (1 − 1/E) K times",
             E * (1 - (1 - 1 / E) ** (K * tokens)) * size / tokens)]  # fmt: skip

    check = Check("bytes_per_token", bytes_per_token, right, mistakes,
                  "not E (1 − (1 − K/E)^T) experts for T tokens")  # fmt: skip
    check.on("2 tokens, 4 experts of 100 bytes, 2 for each token: three experts are read for two",
             2, 4, 2, 100)  # fmt: skip
    bills = (1, 8, 2, 4000), (16, 16, 2, 18_432), (1000, 64, 8, 10), (5, 6, 3, 2)
    for tokens, E, K, size in bills:
        check.on(f"{tokens} tokens, {E} experts of {size:,} bytes, {K} each", tokens, E, K, size)
    check.passed("alone a token pays for K experts; in a crowd it shares all E.")
