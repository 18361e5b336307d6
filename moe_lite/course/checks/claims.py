"""The checks of chapter 18: claims on trial."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from .verdict import Check, Mistakes

Ends = tuple[float, float, float, float]
WHY = {
    "holds": "all of it lies in the range", "does not hold": "all of it lies outside the range",
    "undecided": "some of it lies in the range and some outside",
}  # fmt: skip


def check_say_it_three_ways(
    say_it_three_ways: Callable[[float, float], tuple[float, float, float]],
) -> None:
    """Check percent and times: (slow, fast) -> times as fast, percent faster, percent saved."""

    def right(slow: float, fast: float) -> tuple[float, float, float]:
        return slow / fast, 100 * (slow / fast - 1), 100 * (1 - fast / slow)

    def mistakes(slow: float, fast: float) -> Mistakes:
        times, faster, saved = right(slow, fast)
        return [
            ("times as fast is not times faster: one times as fast is 0% faster",
             (..., 100 * times, ...)),
            ("what is saved is a share of the slow model's time", (..., ..., faster)),
            ("that is the share of the time that is left, not saved", (..., ..., 100 - saved)),
            ("percent, not shares: times 100", (..., faster / 100, saved / 100)),
            ("fast / slow: the quotient of times is turned round", (1 / times, ..., ...)),
            ("percent faster compares speeds; that compares times", (..., saved, ...)),
            ("rounded to whole numbers: return every digit", (round(times), round(faster),
                                                              round(saved))),
            ("rounded to whole numbers: return every digit", (round(times), ..., ...)),
            *(("if the second model is the slower one, both percents are below zero", value) for
              value in ((times, abs(faster), abs(saved)), (times, max(0, faster), max(0, saved)))),
        ]  # fmt: skip

    check = Check("say_it_three_ways", say_it_three_ways, right, mistakes,
                  "not times as fast, percent faster, percent saved",
                  parts=("times as fast", "percent faster", "percent saved"))  # fmt: skip
    check.on("8 hours and 2", 8.0, 2.0)
    for slow, fast in ((131.1, 68.7), (10.0, 9.0), (7.0, 1.0), (3.0, 4.0)):
        check.on(f"{slow:g} hours and {fast:g}", slow, fast)
    check.passed("four times as fast is 300% faster, and saves 75%.")


def _judge(low: float, high: float, least: float, most: float) -> str:
    if least <= low and high <= most:
        return "holds"
    return "does not hold" if high < least or low > most else "undecided"


def check_judge(judge: Callable[[float, float, float, float], str]) -> None:
    """Check a verdict: (low, high, least, most) -> holds, does not hold or undecided."""

    def mistakes(low: float, high: float, least: float, most: float) -> Mistakes:
        middle, verdict = (low + high) / 2, _judge(low, high, least, most)
        inside = least <= middle <= most
        touches = high >= least and low <= most
        strict, ends = least < low and high < most, "the ends of the range belong to it"
        return [
            ("the middle decides; it is the whole interval that has to",
             "holds" if inside else "does not hold"),
            ("an interval that only reaches into the range does not hold yet",
             "holds" if touches else "does not hold"),
            ("not all inside is not the same as all outside",
             "holds" if verdict == "holds" else "does not hold"),
            ("looks at the lower end of the range alone; it has an upper one",
             _judge(low, high, least, math.inf)),
            ("looks at the upper end of the range alone; it has a lower one",
             _judge(low, high, -math.inf, most)),
            (ends, "holds" if strict else "does not hold" if not touches else "undecided"),
            *((ends, "does not hold" if high <= least or low >= most else
               "holds" if all_in else "undecided") for all_in in (strict, verdict == "holds")),
        ]  # fmt: skip

    check = Check("judge", judge, _judge, mistakes, words=list(WHY))
    cases: Sequence[Ends] = (
        (1.6, 2.0, 1.5, math.inf), (0.9, 1.1, 1.5, math.inf), (1.0, 2.2, 1.5, math.inf),
        (1.5, 1.7, 1.5, 2.0), (3.0, 4.0, 1.0, 2.0), (0.5, 2.5, 1.0, 2.0), (1.4, 1.9, 1.5, 2.0),
        (-3.0, -2.0, -1.0, 1.0), (-0.5, 0.5, -1.0, 1.0), (0.9, 1.5, 1.5, 3.0), (3.0, 4.0, 1.5, 3.0),
        (1.5, 2.0, 1.5, 2.0), (1.9, 2.8, 1.0, 2.0), (1.9, 2.05, 1.0, 2.0),
    )  # fmt: skip
    for low, high, least, most in cases:
        given = f"{low:g} to {high:g}, a rule of {least:g} to {most:g}"
        why = WHY[_judge(low, high, least, most)]
        check.on(given, low, high, least, most, otherwise=why)
    check.passed("all inside holds, all outside does not, and the rest is undecided.")


def check_passed_by_chance(
    passed_by_chance: Callable[[Sequence[float], float, float], float],
) -> None:
    """Check a rule against chance: (null, least, most) -> the share of draws that pass it."""

    def right(null: Sequence[float], least: float, most: float) -> float:
        return sum(least <= value <= most for value in null) / len(null)

    def mistakes(null: Sequence[float], least: float, most: float) -> Mistakes:
        n = len(null)
        return [
            ("that is the share that the rule refuses", 1 - right(null, least, most)),
            ("that is a number of draws, not a share of them", right(null, least, most) * n),
            ("only the lower end of the range is asked for", sum(x >= least for x in null) / n),
            ("only the upper end of the range is asked for", sum(x <= most for x in null) / n),
            *(("the ends of the range belong to it", sum(inside) / n) for inside in (
                [least < x < most for x in null], [least <= x < most for x in null],
                [least < x <= most for x in null])),
            *(("a number that is drawn twice counts twice", len(once) / many)
              for once in [{x for x in null if least <= x <= most}]
              for many in (n, len(set(null)))),
            ("a draw below zero is not in a range above it",
             right([abs(x) for x in null], least, most)),
            *(("the middle of the draws is asked, not each of them", float(least <= x <= most))
              for x in (sum(null) / n, statistics.median(null))),
        ]  # fmt: skip

    check = Check("passed_by_chance", passed_by_chance, right, mistakes, "not the share in range")
    check.on("1.1, 1.3, 1.6, 1.5 and a rule of 1.5 to 3", [1.1, 1.3, 1.6, 1.5], 1.5, 3.0)
    check.on("five draws, one above the range", [0.0, 1.0, 2.0, 5.0, 0.5], 1.0, 4.0)
    check.on("six draws, two of them the range's upper end, 3", [3.0, -2.0, 3.0, 7.0, 8.0, 2.5],
             1.5, 3.0)  # fmt: skip
    check.on("seven draws of three numbers", [1.0, 2.0, 1.0, 1.0, 9.0, 9.0, 2.0], 1.0, 4.0)
    check.on("a rule that chance never passes", [1.0, 1.1, 1.2], 2.0, 3.0)
    check.on("a rule that chance always passes", [1.0, 1.1, 1.2, 1.15], 0.5, 3.0)
    check.passed("a rule that chance passes is no rule.")


def check_my_trial(
    my_trial: Callable[[Sequence[float], Sequence[float], float, float], str],
) -> None:
    """Check a trial by seeds: (ours, theirs, least, most) -> a verdict on ours / theirs."""

    def right(ours: Sequence[float], theirs: Sequence[float], least: float, most: float) -> str:
        return of([a / b for a, b in zip(ours, theirs, strict=True)], least, most)

    def of(values: Sequence[float], least: float, most: float) -> str:
        inside = [least <= value <= most for value in values]
        return "holds" if all(inside) else "undecided" if any(inside) else "does not hold"

    def mistakes(
        ours: Sequence[float], theirs: Sequence[float], least: float, most: float
    ) -> Mistakes:
        pairs = list(zip(ours, theirs, strict=True))
        values = [a / b for a, b in pairs]
        count = sum(least <= v <= most for v in values)
        lost = "ours is divided by theirs of the same seed; here the pairs are lost"
        return [
            ("means are divided, and the pairs are lost",
             of([sum(ours) / sum(theirs)], least, most)),
            ("one number for all seeds decides, the middle of their quotients",
             of([sum(values) / len(values)], least, most)),
            (lost, of([a / b for a in ours for b in theirs], least, most)),
            (lost, right(sorted(ours), sorted(theirs), least, most)),
            *((lost, of([best(ours) / best(theirs)], least, most)) for best in
              (max, statistics.median)),
            ("most of the seeds decide; the rule asks for all",
             "holds" if 2 * count > len(values) else "does not hold"),
            ("most of the seeds decide; the rule asks for all",
             "holds" if 2 * count > len(values) else "does not hold" if 2 * count < len(values)
             else "undecided"),
            ("the ends of the range belong to it", "holds" if all(least < v < most for v in values)
             else "undecided" if any(least < v < most for v in values) else "does not hold"),
            ("the seeds lie on both sides, but none inside: all of them are outside",
             "holds" if count == len(values) else "does not hold" if max(values) < least
             or min(values) > most else "undecided"),
            ("one seed decides, the first", of(values[:1], least, most)),
            ("one seed decides, the last", of(values[-1:], least, most)),
            ("theirs / ours: the quotient is turned round",
             of([b / a for a, b in pairs], least, most)),
            ("a difference, where the rule is about a quotient",
             of([a - b for a, b in pairs], least, most)),
            ("one seed inside is not all of them",
             "holds" if any(least <= v <= most for v in values) else "does not hold"),
            ("one seed outside is not all of them",
             "holds" if all(least <= v <= most for v in values) else "does not hold"),
            ("the best seed decides", of([max(values)], least, most)),
        ]  # fmt: skip

    check = Check("my_trial", my_trial, right, mistakes, words=list(WHY))
    cases: Sequence[tuple[str, list[float], list[float], float, float]] = (
        ("4, 6 over 2, 2; at least 2", [4.0, 6.0], [2.0, 2.0], 2.0, math.inf),
        ("4, 6 over 2, 2; at least 2.5", [4.0, 6.0], [2.0, 2.0], 2.5, math.inf),
        ("three seeds; at most 1", [3.0, 2.0, 9.0], [2.0, 1.0, 4.0], 0.0, 1.0),
        ("seeds that swap; 0.9 to 1.1", [1.0, 10.0], [10.0, 1.0], 0.9, 1.1),
        ("three seeds; 1.5 to 2.2", [3.0, 2.0, 8.0], [2.0, 1.0, 4.0], 1.5, 2.2),
        ("two seeds; at least 2", [1.0, 9.0], [1.0, 1.0], 2.0, math.inf),
        ("two seeds; 0.5 to 2", [1.0, 9.0], [1.0, 1.0], 0.5, 2.0),
        (
            "three seeds; at least 2, and one has 1.96",
            [4.0, 1.96, 6.0],
            [2.0, 1.0, 1.0],
            2.0,
            math.inf,
        ),
        ("three seeds; at most 1", [0.5, 0.6, 9.0], [1.0, 1.0, 3.0], 0.0, 1.0),
        ("three seeds, one below zero; 1 to 4", [-2.0, 4.0, 3.0], [1.0, 2.0, 1.0], 1.0, 4.0),
        ("three seeds; at least 2, the last too low", [4.0, 5.0, 1.9], [1.0] * 3, 2.0, math.inf),
        ("three seeds; 2 to 3", [1.0, 1.0, 2.5], [1.0, 1.0, 1.0], 2.0, 3.0),
        ("three seeds; 1.5 to 5", [2.0, 2.0, 90.0], [1.0, 1.0, 30.0], 1.5, 5.0),
    )
    for given, a, b, least, most in cases:
        check.on(given, a, b, least, most, otherwise=WHY[right(a, b, least, most)])
    check.passed("pair by pair, and every seed has a vote.")
