"""Chapter 13's harvest: (what a learner did, a phrase of what the check says, the answer)."""

check_least_time = [
    ("adds them", "at the same time", lambda a, b, p, w: a / p + b / w),
    ("multiplies", "least_time: ", lambda a, b, p, w: (a / p) * (b / w)),
    ("means them", "least_time: ", lambda a, b, p, w: (a / p + b / w) / 2),
    ("bytes over the peak", "the limits are exchanged", lambda a, b, p, w: max(a / w, b / p)),
    ("the square root of squares", "least_time: ",
     lambda a, b, p, w: ((a / p) ** 2 + (b / w) ** 2) ** 0.5),
]  # fmt: skip

check_rows_enough = [
    ("bits for bytes", "yours is 8 times", lambda p, w, b: p / w * 8 * b / 2),
    ("twice", "divide by two", lambda p, w, b: 2 * p / w * b),
    ("rounds", "rows_enough: ", lambda p, w, b: round(p / w * b / 2)),
    ("upside down", "peak over bandwidth", lambda p, w, b: w / p * b / 2),
    ("float32 always", "rows_enough: ", lambda p, w, b: p / w * 4 / 2),
]

check_useful_rows = [
    ("the mean of shares", "a busy expert counts more",
     lambda n, h: sum(a / (h * -(-a // h)) for a in n if a) / sum(a > 0 for a in n)),
    ("rounds down", "a last tile that is not full",
     lambda n, h: sum(n) / (h * sum(a // h for a in n)) if sum(a // h for a in n) else 0.0),
    ("one more tile each", "every expert has a further tile",
     lambda n, h: sum(n) / (h * sum(a // h + 1 for a in n))),
    ("upside down", "computed for one that is wanted",
     lambda n, h: h * sum(-(-a // h) for a in n) / sum(n)),
    ("in percent", "yours is 100 times",
     lambda n, h: 100 * sum(n) / (h * sum(-(-a // h) for a in n))),
    ("tiles, not rows", "useful_rows: ", lambda n, h: sum(n) / sum(-(-a // h) for a in n)),
]  # fmt: skip

check_three_reasons = [
    ("ratios", "these are ratios", lambda d, r, p, m: (r / d, p / r, m / p)),
    ("the first whole", "*beyond* the dense network", lambda d, r, p, m: (r, p - r, m - p)),
    ("turned round", "the sign is turned round", lambda d, r, p, m: (d - r, r - p, p - m)),
    ("two parts", "three_reasons: ", lambda d, r, p, m: (p - d, m - p)),
    ("the sum alone", "three_reasons: ", lambda d, r, p, m: m - d),
]
