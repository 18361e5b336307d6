"""Wrong answers to chapter 18 by another hand than its checks', which had read them.

Each is (what a learner did, a phrase of what the check says, the answer).
"""

import statistics

check_say_it_three_ways = [
    (
        "hours saved, not percent",
        "not times as fast, percent faster, percent saved",
        lambda slow, fast: (slow / fast, 100 * (slow / fast - 1), slow - fast),
    ),
    (
        "a share of the fast one's time",
        "a share of the slow model's time",
        lambda slow, fast: (slow / fast, 100 * (slow / fast - 1), 100 * (slow - fast) / fast),
    ),
    (
        "all three as shares",
        "percent, not shares",
        lambda slow, fast: (slow / fast, slow / fast - 1, 1 - fast / slow),
    ),
    (
        "rounded to whole times",
        "rounded to whole numbers",
        lambda slow, fast: (round(slow / fast), 100 * (slow / fast - 1), 100 * (1 - fast / slow)),
    ),
    (
        "only two of them",
        "return three numbers: times as fast",
        lambda slow, fast: (slow / fast, 100 * (slow / fast - 1)),
    ),
    (
        "in another order",
        "return times as fast, percent faster, percent saved",
        lambda slow, fast: (100 * (slow / fast - 1), slow / fast, 100 * (1 - fast / slow)),
    ),
]

check_judge = [
    (
        "asks the ends of the range",
        "'holds' is taken for 'does not hold': all of it lies in the range",
        lambda lo, hi, a, b: "holds" if lo <= a and b <= hi else "does not hold",
    ),
    (
        "says True",
        "answer one of holds, does not hold, undecided; not True",
        lambda lo, hi, a, b: a <= lo and hi <= b,
    ),
    (
        "both ends must be out",
        "'does not hold' is taken for 'undecided'",
        lambda lo, hi, a, b: (
            "holds"
            if a <= lo and hi <= b
            else "does not hold"
            if lo < a and hi > b
            else "undecided"
        ),
    ),
    (
        "undecided unless inside",
        "all of it lies outside the range",
        lambda lo, hi, a, b: "holds" if a <= lo and hi <= b else "undecided",
    ),
    (
        "the better end decides",
        "some of it lies in the range and some outside",
        lambda lo, hi, a, b: "holds" if a <= hi <= b else "does not hold",
    ),
    (
        "the worse end decides",
        "'undecided' is taken for 'does not hold'",
        lambda lo, hi, a, b: "holds" if a <= lo <= b else "does not hold",
    ),
]

check_passed_by_chance = [
    (
        "in percent",
        "yours is 100 times what is asked",
        lambda null, a, b: 100 * sum(a <= x <= b for x in null) / len(null),
    ),
    (
        "the median is asked",
        "not each of them",
        lambda null, a, b: float(a <= statistics.median(null) <= b),
    ),
    (
        "without doubles",
        "passed_by_chance: ",
        lambda null, a, b: len({x for x in null if a < x <= b}) / len(null),
    ),
    (
        "whether any passes",
        "not the share in range",
        lambda null, a, b: float(any(a <= x <= b for x in null)),
    ),
    (
        "divides by one less",
        "not the share in range",
        lambda null, a, b: sum(a <= x <= b for x in null) / (len(null) - 1),
    ),
    (
        "those below the range too",
        "only the upper end of the range",
        lambda null, a, b: sum(x <= b for x in null) / len(null),
    ),
]

check_my_trial = [
    (
        "every pair of seeds",
        "here the pairs are lost",
        lambda o, t, a, b: (
            "holds"
            if all(a <= x / y <= b for x in o for y in t)
            else "undecided"
            if any(a <= x / y <= b for x in o for y in t)
            else "does not hold"
        ),
    ),
    (
        "the worst seed decides",
        "'undecided' is taken for 'does not hold'",
        lambda o, t, a, b: (
            "holds" if a <= min(x / y for x, y in zip(o, t, strict=True)) <= b else "does not hold"
        ),
    ),
    (
        "the majority decides",
        "most of the seeds decide",
        lambda o, t, a, b: (
            "holds"
            if 2 * sum(a <= x / y <= b for x, y in zip(o, t, strict=True)) > len(o)
            else "does not hold"
        ),
    ),
    (
        "undecided where it does not hold",
        "all of it lies outside the range",
        lambda o, t, a, b: (
            "holds" if all(a <= x / y <= b for x, y in zip(o, t, strict=True)) else "undecided"
        ),
    ),
    (
        "the first seed alone",
        "one seed decides, the first",
        lambda o, t, a, b: "holds" if a <= o[0] / t[0] <= b else "does not hold",
    ),
    (
        "quotient of the best",
        "the pairs are lost",
        lambda o, t, a, b: "holds" if a <= max(o) / max(t) <= b else "does not hold",
    ),
]
