"""Chapter 11's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

from moe_lite.course.asking import share

check_stored_bits = [
    (
        "in nats",
        "these are nats; a bit is log 2 of them, so divide",
        lambda n, v, c: v * (math.log(c) - n),
    ),
    ("for one value", "that is for one value", lambda n, v, c: (math.log(c) - n) / math.log(2)),
    (
        "bits less nats",
        "log2 of the choices is in bits, and the loss is in nats",
        lambda n, v, c: v * (math.log2(c) - n),
    ),
    (
        "what is missing",
        "that is what is missing, the loss",
        lambda n, v, c: v * n / math.log(2),
    ),
    (
        "the other way",
        "the sign is turned round",
        lambda n, v, c: v * (n - math.log(c)) / math.log(2),
    ),
    (
        "never below 0",
        "a loss above chance gives less than 0",
        lambda n, v, c: max(0.0, v * (math.log(c) - n) / math.log(2)),
    ),
    ("all there is", "that is what there is to know", lambda n, v, c: v * math.log2(c)),
    ("times log 2", "multiplied by log 2", lambda n, v, c: v * (math.log(c) - n) * math.log(2)),
    (
        "in whole bits",
        "not values (log C - nats) / log 2",
        lambda n, v, c: round(v * (math.log(c) - n) / math.log(2)),
    ),
    (
        "the share known",
        "not values (log C - nats) / log 2",
        lambda n, v, c: v * (1 - n / math.log(c)),
    ),
]

check_sizes = [
    (
        "two matrices",
        "an expert has three matrices, w1, w3 and w2",
        lambda D, F, E, K: (2 * D * F * E + E * D, 2 * D * F * K + E * D, K * F, E * F),
    ),
    (
        "K rows of the router",
        "a token asks the router about all E experts, not only the K it takes",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K + K * D, K * F, E * F),
    ),
    (
        "no router",
        "the router's D * E parameters are missing in both counts",
        lambda D, F, E, K: (3 * D * F * E, 3 * D * F * K, K * F, E * F),
    ),
    (
        "twins swapped",
        "right, but in another order",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K + E * D, E * F, K * F),
    ),
    (
        "active first",
        "right, but in another order",
        lambda D, F, E, K: (3 * D * F * K + E * D, 3 * D * F * E + E * D, K * F, E * F),
    ),
    (
        "an expert's width for the twin",
        "the twin of equal active size is as wide as one expert",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K + E * D, F, E * F),
    ),
    (
        "a router without active part",
        "the router is counted in all, but not as active",
        lambda D, F, E, K: (3 * D * F * E + E * D, 3 * D * F * K, K * F, E * F),
    ),
    (
        "twins in parameters",
        "width of the equal-active twin",
        lambda D, F, E, K: (
            3 * D * F * E + E * D,
            3 * D * F * K + E * D,
            3 * D * K * F,
            3 * D * E * F,
        ),
    ),
    (
        "twins that carry the router",
        "width of the equal-active twin",
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
    (
        "all experts count",
        "compares total sizes",
        lambda s, d: _unfair(s, d, active=lambda a: a.experts * a.width),
    ),
    (
        "widths alone",
        "compares the width of one expert",
        lambda s, d: _unfair(s, d, active=lambda a: a.width),
    ),
    ("steps alone", "compares the steps", lambda s, d: _unfair(s, d, data=lambda a: a.steps)),
    ("batches alone", "compares the batches", lambda s, d: _unfair(s, d, data=lambda a: a.batch)),
    (
        "from the bottom of the table",
        "if several are broken, name the first in the order of the table",
        lambda s, d: _unfair(s, d, order=(2, 1, 0)),
    ),
    ("fair, always", "it says 'fair' of all", lambda s, d: "fair"),
    (
        "data before active",
        "name the first in the order of the table",
        lambda s, d: _unfair(s, d, order=(1, 0, 2)),
    ),
    (
        "steps and batch each",
        "500 steps of 512 are as many examples as 250 of 1,024",
        lambda s, d: _unfair(s, d, data=lambda a: (a.steps, a.batch)),
    ),
    (
        "optimiser forgotten",
        "does not look at the optimiser",
        lambda s, d: _unfair(s, d, order=(0, 1)),
    ),
    (
        "only a smaller one is unfair",
        "'active' is taken for 'fair'",
        lambda s, d: (
            "active"
            if s.per_token * s.width > d.per_token * d.width
            else _unfair(s, d, order=(1, 2))
        ),
    ),
    (
        "a list of all",
        "answer one of active, data, optimiser, fair",
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
    (
        "cut off",
        "rounded down: with that many experts the book does not fit yet",
        lambda b, p, o, d: max(1, int((b / d - o) / p)),
    ),
    (
        "at least one forgotten",
        "there is at least one expert",
        lambda b, p, o, d: math.ceil((b / d - o) / p),
    ),
    (
        "the readout forgotten",
        "the other parameters store bits too",
        lambda b, p, o, d: max(1, math.ceil(b / d / p)),
    ),
    (
        "times the density",
        "bits times bits per parameter",
        lambda b, p, o, d: max(1, math.ceil((b * d - o) / p)),
    ),
    (
        "the readout in bits",
        "not ceil((bits / b − others) / each)",
        lambda b, p, o, d: max(1, math.ceil((b - o) / d / p)),
    ),
    (
        "the readout added",
        "the others add to what is to be stored",
        lambda b, p, o, d: max(1, math.ceil((b / d + o) / p)),
    ),
    (
        "always one more",
        "one more than is needed",
        lambda b, p, o, d: max(1, int((b / d - o) / p) + 1),
    ),
    (
        "rounded",
        "rounded to the nearest, which may be too few",
        lambda b, p, o, d: max(1, round((b / d - o) / p)),
    ),
    (
        "zero allowed",
        "there is at least one expert",
        lambda b, p, o, d: max(0, math.ceil((b / d - o) / p)),
    ),
    (
        "not rounded",
        "not ceil((bits / b − others) / each)",
        lambda b, p, o, d: max(1, (b / d - o) / p),
    ),
]

check_needs = [
    (
        "over the entries",
        "this is for each expert, how many entries need it",
        lambda k, w: (k & ~w).sum(1),
    ),
    (
        "not asked whether it was known",
        "an entry that was not known before is not forgotten",
        lambda k, w: (~w).sum(0),
    ),
    (
        "who leaves it right",
        "counts the experts that it can do without",
        lambda k, w: (k & w).sum(0),
    ),
    ("whether anybody", "says whether any expert is needed", lambda k, w: (k & ~w).any(0)),
    ("right only without it", "not the number of experts it needs", lambda k, w: (~k & w).sum(0)),
    ("any change", "counts every change", lambda k, w: (k ^ w).sum(0)),
    (
        "which, for each",
        "return a tensor of shape (4,), not one of shape (2, 4)",
        lambda k, w: k & ~w,
    ),
    ("shares of the experts", "a share of the experts", lambda k, w: (k & ~w).float().mean(0)),
    (
        "all of them together",
        "says whether any expert is needed",
        lambda k, w: (k & ~w.all(0)).long(),
    ),
    (
        "the known less the kept",
        "not the number of experts it needs",
        lambda k, w: k.long() * len(w) - w.sum(0),
    ),
]

check_bytes_per_token = [
    (
        "the whole batch's",
        "that is the whole batch's",
        lambda T, E, K, b: E * (1 - (1 - K / E) ** T) * b,
    ),
    ("K each", "each token reads its K experts by itself", lambda T, E, K, b: K * b),
    ("all of them", "all experts are read whatever the batch", lambda T, E, K, b: E * b / T),
    (
        "as if none agreed",
        "that many pairs, but two tokens may choose the same expert",
        lambda T, E, K, b: min(E, K * T) * b / T,
    ),
    (
        "those left out",
        "that is the share that nobody reads",
        lambda T, E, K, b: E * (1 - K / E) ** T * b / T,
    ),
    (
        "drawn with repetition",
        "the K choices of a token are all different",
        lambda T, E, K, b: E * (1 - (1 - 1 / E) ** (K * T)) * b / T,
    ),
    (
        "one expert",
        "not E (1 − (1 − K/E)^T) experts for T tokens",
        lambda T, E, K, b: (1 - (1 - K / E) ** T) * b / T,
    ),
    (
        "experts, not bytes",
        "that is a number of experts",
        lambda T, E, K, b: E * (1 - (1 - K / E) ** T) / T,
    ),
    (
        "whole experts",
        "not E (1 − (1 − K/E)^T) experts for T tokens",
        lambda T, E, K, b: math.ceil(E * (1 - (1 - K / E) ** T)) * b / T,
    ),
    (
        "one token fewer",
        "not E (1 − (1 − K/E)^T) experts for T tokens",
        lambda T, E, K, b: E * (1 - (1 - K / E) ** (T - 1)) * b / T,
    ),
    (
        "the choice of one token",
        "not E (1 − (1 − K/E)^T) experts for T tokens",
        lambda T, E, K, b: E * (1 - (1 - K / E)) ** T * b / T,
    ),
]


def _sure(x_N):
    mean, half = share(x_N.double())
    return mean > half


def _near(s, e):
    return min(
        (i for i in range(len(s.load_E)) if i != e), key=lambda i: abs(s.load_E[i] - s.load_E[e])
    )


def _trial(s, e, chance=None, busy=None, other=None):
    lost = (s.knows_N & ~s.without_EN)[:, s.knows_N].double()
    if not (_sure(s.knows_N.double() - s.twin_N.double()) if chance is None else chance):
        return "chance"
    if not (_sure(lost[e] - lost[_near(s, e)]) if busy is None else busy):
        return "busy"
    return "book" if (sum(share(s.rise_EX[e])) < 0.05 if other is None else other) else "other text"


check_whose_expert = [
    (
        "the book, always",
        "it says 'book' of all",
        lambda s, e: "book",
    ),
    (
        "true or false",
        "answer one of chance, busy, other text, book",
        lambda s, e: _trial(s, e) == "book",
    ),
    (
        "a number of the table",
        "answer one of chance, busy, other text, book",
        lambda s, e: ["chance", "busy", "other text", "book"].index(_trial(s, e)),
    ),
    (
        "half of the names lost",
        "the expert that is nearest in load takes as many",
        lambda s, e: _trial(s, e, busy=(~s.without_EN[e])[s.knows_N].float().mean() >= 0.5),
    ),
    (
        "the twin's share below one half",
        "'book' is taken for 'chance'",
        lambda s, e: _trial(s, e, chance=s.twin_N.float().mean() < s.knows_N.float().mean() / 2),
    ),
    (
        "lost by all that is wrong, no control",
        "has no control",
        lambda s, e: _trial(s, e, busy=_sure(~s.without_EN[e] & s.knows_N)),
    ),
    (
        "the first of the others",
        "'busy' is taken for 'book'",
        lambda s, e: _trial(
            s, e, busy=_sure(s.without_EN[0 if e else 1].double() - s.without_EN[e].double())
        ),
    ),
    (
        "any text that rises",
        "a rise that is surely below 0.05 nats is small enough here",
        lambda s, e: _trial(s, e, other=bool((s.rise_EX[e] <= 0).all())),
    ),
    (
        "the mean of all experts' texts",
        "the interval of the mean rise on other text reaches 0.05",
        lambda s, e: _trial(s, e, other=sum(share(s.rise_EX.flatten())) < 0.05),
    ),
    (
        "the texts of the control",
        "'other text' is taken for 'book'",
        lambda s, e: _trial(s, e, other=sum(share(s.rise_EX[_near(s, e)])) < 0.05),
    ),
    (
        "half a nat is allowed",
        "'other text' is taken for 'book'",
        lambda s, e: _trial(s, e, other=sum(share(s.rise_EX[e])) < 0.5),
    ),
    (
        "the doubts from the end",
        "name the first in the order of the table",
        lambda s, e: (
            "other text"
            if sum(share(s.rise_EX[e])) >= 0.05
            else "busy"
            if _trial(s, e, chance=True) == "busy"
            else _trial(s, e)
        ),
    ),
    (
        "what only the mixture knows",
        "'book' is taken for 'busy'",
        lambda s, e: _trial(s, e, busy=bool((s.knows_N & ~s.twin_N & ~s.without_EN[e]).sum() > 30)),
    ),
    (
        "more than the twin knows is left",
        "'book' is taken for 'busy'",
        lambda s, e: _trial(s, e, busy=bool(s.without_EN[e].sum() < s.twin_N.sum())),
    ),
    (
        "an interval of the lost alone",
        "asks whether two intervals overlap",
        lambda s, e: _apart(s, e),
    ),
    (
        "an input that is changed",
        "changes its input in place",
        lambda s, e: (s.load_E.sub_(s.load_E[e].item()), _trial(s, e))[1],
    ),
]


def _apart(s, e):
    lost = (s.knows_N & ~s.without_EN)[:, s.knows_N].double()
    (a, da), (b, db) = share(s.knows_N), share(s.twin_N)
    (c, dc), (d, dd) = share(lost[e]), share(lost[_near(s, e)])
    return _trial(s, e, chance=a - da > b + db, busy=c - dc > d + dd)
