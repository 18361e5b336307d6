"""Wrong answers to chapter 15's new check, with a phrase of what has to be said of each."""


def _halve(load_E, spare):
    load_E, copies_E = list(load_E), [1] * len(load_E)
    for _ in range(spare):
        e = load_E.index(max(load_E))
        load_E[e] /= 2
        copies_E[e] += 1
    return copies_E


def _once_each(load_E, spare):
    ranked = sorted(range(len(load_E)), key=lambda e: -load_E[e])
    return [1 + (e in ranked[:spare]) for e in range(len(load_E))]


def _above_the_mean(load_E, spare):
    mean = sum(load_E) / len(load_E)
    return [max(1, round(load / mean)) for load in load_E]


def _each_gets_all(load_E, spare):
    return [1 + spare for _ in load_E]


def _sorted(load_E, spare):
    copies_E = [1] * len(load_E)
    for _ in range(spare):
        share_E = [load / n for load, n in zip(load_E, copies_E, strict=True)]
        copies_E[share_E.index(max(share_E))] += 1
    return sorted(copies_E, reverse=True)


GREEDY = "not, one by one, a copy for the expert with the most load per copy"
check_replicas = [
    ("halves the load for every copy more", "a third of the load for each", _halve),
    ("doubles the busiest, each once", "replicas: ", _once_each),
    ("rounds the load over its mean", GREEDY, _above_the_mean),
    ("gives everybody all spare places", GREEDY, _each_gets_all),
    ("sorts the copies", "the right numbers, but in another order", _sorted),
]


def _reads(E, K, T):
    return E * (1 - (1 - K / E) ** T)


EXPERTS = "not the experts of g + 1 tokens over the tokens that a check keeps"
check_reads_per_token = [
    ("the token of the check left out", "the check itself gives a token",
     lambda E, K, g, p: _reads(E, K, g + 1) / max(1e-9, sum(p**i for i in range(1, g + 1)))),
    ("all or nothing", "keeps the first two",
     lambda E, K, g, p: _reads(E, K, g + 1) / (1 + g * p**g)),
    ("one power too few", "the powers of p go up to g",
     lambda E, K, g, p: _reads(E, K, g + 1) / max(1e-9, sum(p**i for i in range(g)))),
    ("one power too many", "the powers of p end at g",
     lambda E, K, g, p: _reads(E, K, g + 1) / sum(p**i for i in range(g + 2))),
    ("the endless sum", "reads_per_token",
     lambda E, K, g, p: _reads(E, K, g + 1) * (1 - p)),
    ("how much worse than one token", "how many times what a token reads alone",
     lambda E, K, g, p: _reads(E, K, g + 1) / sum(p**i for i in range(g + 1)) / K),
    ("reads only for the right ones", "wrong guesses are run too",
     lambda E, K, g, p: _reads(E, K, sum(p**i for i in range(g + 1)))
     / sum(p**i for i in range(g + 1))),
    ("whole experts", "reads_per_token",
     lambda E, K, g, p: round(_reads(E, K, g + 1) / sum(p**i for i in range(g + 1)))),
]  # fmt: skip
