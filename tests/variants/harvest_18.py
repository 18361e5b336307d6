"""Right answers to chapter 18 by another hand than its checks': (how it is done, answer)."""

from fractions import Fraction

import numpy as np
import torch

check_say_it_three_ways = [
    ("a list, of fractions", lambda slow, fast: [
        Fraction(slow) / Fraction(fast), 100 * (Fraction(slow) / Fraction(fast) - 1),
        100 * (1 - Fraction(fast) / Fraction(slow))]),
    ("an array, by speeds", lambda slow, fast: np.array(
        [(1 / fast) / (1 / slow), 100 * (1 / fast - 1 / slow) / (1 / slow),
         100 * (slow - fast) / slow])),
]  # fmt: skip

check_judge = [
    ("by clipping", lambda lo, hi, a, b: (
        "holds" if (max(lo, a), min(hi, b)) == (lo, hi)
        else "does not hold" if max(lo, a) > min(hi, b) else "undecided")),
    ("by a table", lambda lo, hi, a, b: {
        (True, False): "holds", (False, True): "does not hold", (False, False): "undecided"
    }[a <= lo and hi <= b, hi < a or lo > b]),
]  # fmt: skip

check_passed_by_chance = [
    ("by numpy", lambda null, a, b: np.mean([(a <= x) & (x <= b) for x in null])),
    ("by a tensor", lambda null, a, b: (
        (torch.tensor(null).double() >= a) & (torch.tensor(null).double() <= b)
    ).double().mean()),
]  # fmt: skip

check_my_trial = [
    ("by counting", lambda o, t, a, b: {len(o): "holds", 0: "does not hold"}.get(
        sum(a <= x / y <= b for x, y in zip(o, t, strict=True)), "undecided")),
    ("by the ends", lambda o, t, a, b: (
        lambda q: "holds" if a <= min(q) and max(q) <= b
        else "undecided" if any(a <= v <= b for v in q) else "does not hold"
    )([x / y for x, y in zip(o, t, strict=True)])),
]  # fmt: skip
