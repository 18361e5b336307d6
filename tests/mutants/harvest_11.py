"""Chapter 11's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

check_stored_bits = [
    ("in nats", lambda n, v, c: v * (math.log(c) - n)),
    ("for one value", lambda n, v, c: (math.log(c) - n) / math.log(2)),
    ("bits less nats", lambda n, v, c: v * (math.log2(c) - n)),
    ("what is missing", lambda n, v, c: v * n / math.log(2)),
    ("the other way", lambda n, v, c: v * (n - math.log(c)) / math.log(2)),
    ("never below 0", lambda n, v, c: max(0.0, v * (math.log(c) - n) / math.log(2))),
    ("all there is", lambda n, v, c: v * math.log2(c)),
    ("times log 2", lambda n, v, c: v * (math.log(c) - n) * math.log(2)),
    ("in whole bits", lambda n, v, c: round(v * (math.log(c) - n) / math.log(2))),
    ("the share known", lambda n, v, c: v * (1 - n / math.log(c))),
]

check_sizes = [
    (
        "two matrices",
        lambda D, F, E, K: (2 * D * F * E + E * D, 2 * D * F * K + E * D, K * F, E * F),
    ),
    (
        "K rows of the router",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K + K * D, K * F, E * F),
    ),
    ("no router", lambda D, F, E, K: (3 * D * F * E, 3 * D * F * K, K * F, E * F)),
    (
        "twins swapped",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K + E * D, E * F, K * F),
    ),
    (
        "active first",
        lambda D, F, E, K: (3 * D * F * K + E * D, 3 * D * F * E + E * D, K * F, E * F),
    ),
    (
        "an expert's width for the twin",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K + E * D, F, E * F),
    ),
    (
        "a router without active part",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K, K * F, E * F),
    ),
    (
        "twins in parameters",
        lambda D, F, E, K: (
            3 * D * F * E + E * D,
            3 * D * F * K + E * D,
            3 * D * K * F,
            3 * D * E * F,
        ),
    ),
    (
        "twins that carry the router",
        lambda D, F, E, K: (
            3 * D * F * E + E * D,
            3 * D * F * K + E * D,
            K * F + E / 3,
            E * F + E / 3,
        ),
    ),
]


def _unfair(s, d, active=None, data=None, order=(0, 1, 2)):
    tests = [
        ("active", (active or (lambda a: a.per_token * a.width))),
        ("data", (data or (lambda a: a.steps * a.batch))),
        ("optimiser", lambda a: a.optimiser),
    ]
    return next((tests[i][0] for i in order if tests[i][1](s) != tests[i][1](d)), "fair")


check_unfair = [
    ("all experts count", lambda s, d: _unfair(s, d, active=lambda a: a.experts * a.width)),
    ("widths alone", lambda s, d: _unfair(s, d, active=lambda a: a.width)),
    ("steps alone", lambda s, d: _unfair(s, d, data=lambda a: a.steps)),
    ("batches alone", lambda s, d: _unfair(s, d, data=lambda a: a.batch)),
    ("from the bottom of the table", lambda s, d: _unfair(s, d, order=(2, 1, 0))),
    ("fair, always", lambda s, d: "fair"),
    ("data before active", lambda s, d: _unfair(s, d, order=(1, 0, 2))),
    ("steps and batch each", lambda s, d: _unfair(s, d, data=lambda a: (a.steps, a.batch))),
    ("optimiser forgotten", lambda s, d: _unfair(s, d, order=(0, 1))),
    (
        "only a smaller one is unfair",
        lambda s, d: (
            "active"
            if s.per_token * s.width > d.per_token * d.width
            else _unfair(s, d, order=(1, 2))
        ),
    ),
    (
        "a list of all",
        lambda s, d: (
            [
                a
                for a in ("active", "data", "optimiser")
                if _unfair(s, d, order=(("active", "data", "optimiser").index(a),)) == a
            ]
            or ["fair"]
        ),
    ),
]

check_experts_needed = [
    ("cut off", lambda b, p, o, d: max(1, int((b / d - o) / p))),
    ("at least one forgotten", lambda b, p, o, d: math.ceil((b / d - o) / p)),
    ("the readout forgotten", lambda b, p, o, d: max(1, math.ceil(b / d / p))),
    ("times the density", lambda b, p, o, d: max(1, math.ceil((b * d - o) / p))),
    ("the readout in bits", lambda b, p, o, d: max(1, math.ceil((b - o) / d / p))),
    ("the readout added", lambda b, p, o, d: max(1, math.ceil((b / d + o) / p))),
    ("always one more", lambda b, p, o, d: max(1, int((b / d - o) / p) + 1)),
    ("rounded", lambda b, p, o, d: max(1, round((b / d - o) / p))),
    ("parameters rounded first", lambda b, p, o, d: max(1, math.ceil((math.ceil(b / d) - o) / p))),
    ("zero allowed", lambda b, p, o, d: max(0, math.ceil((b / d - o) / p))),
    ("not rounded", lambda b, p, o, d: max(1, (b / d - o) / p)),
]

check_holders = [
    ("over the entries", lambda k, w: (k & ~w).sum(1)),
    ("not asked whether it was known", lambda k, w: (~w).sum(0)),
    ("who leaves it right", lambda k, w: (k & w).sum(0)),
    ("whether anybody", lambda k, w: (k & ~w).any(0)),
    ("right only without it", lambda k, w: (~k & w).sum(0)),
    ("any change", lambda k, w: (k ^ w).sum(0)),
    ("which, for each", lambda k, w: k & ~w),
    ("shares of the experts", lambda k, w: (k & ~w).float().mean(0)),
    ("all of them together", lambda k, w: (k & ~w.all(0)).long()),
    ("the known less the kept", lambda k, w: k.long() * len(w) - w.sum(0)),
]

check_bytes_per_token = [
    ("the whole batch's", lambda T, E, K, b: E * (1 - (1 - K / E) ** T) * b),
    ("K each", lambda T, E, K, b: K * b),
    ("all of them", lambda T, E, K, b: E * b / T),
    ("as if none agreed", lambda T, E, K, b: min(E, K * T) * b / T),
    ("those left out", lambda T, E, K, b: E * (1 - K / E) ** T * b / T),
    ("drawn with repetition", lambda T, E, K, b: E * (1 - (1 - 1 / E) ** (K * T)) * b / T),
    ("one expert", lambda T, E, K, b: (1 - (1 - K / E) ** T) * b / T),
    ("experts, not bytes", lambda T, E, K, b: E * (1 - (1 - K / E) ** T) / T),
    ("whole experts", lambda T, E, K, b: math.ceil(E * (1 - (1 - K / E) ** T)) * b / T),
    ("one token fewer", lambda T, E, K, b: E * (1 - (1 - K / E) ** (T - 1)) * b / T),
    ("the choice of one token", lambda T, E, K, b: E * (1 - (1 - K / E)) ** T * b / T),
]
