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


GREEDY = "not, one by one, a copy for whoever has the most load per copy"
check_replicas = [
    ("halves the load for every copy more", GREEDY, _halve),
    ("doubles the busiest, each once", "replicas: ", _once_each),
    ("rounds the load over its mean", GREEDY, _above_the_mean),
    ("gives everybody all spare places", GREEDY, _each_gets_all),
    ("sorts the copies", "the right numbers, but in another order", _sorted),
]
