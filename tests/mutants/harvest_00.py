"""Chapter 00's harvest: (what a learner did, a phrase of what the check says, the answer)."""

check_first_expert = [
    (
        "the place among its pairs",
        "the place of the best pair in the list, not its expert",
        lambda r, t: int(r.gate_N[r.token_N == t].argmax()),
    ),
    (
        "the largest gate of all tokens",
        "not the token's first expert",
        lambda r, t: int(r.expert_N[r.gate_N.argmax()]),
    ),
    (
        "the best score, without the gates",
        "that is what the router's scores favour",
        lambda r, t: int(r.logits_TE[t].argmax()),
    ),
    (
        "the pair of that number",
        "expert_N has a row for each pair, not for each token",
        lambda r, t: int(r.expert_N[t]),
    ),
    (
        "its weakest",
        "this is the expert with the least weight",
        lambda r, t: int(r.expert_N[r.token_N == t][r.gate_N[r.token_N == t].argmin()]),
    ),
    (
        "the weight itself",
        "this is the gate; the exercise asks whose it is",
        lambda r, t: float(r.gate_N[r.token_N == t].max()),
    ),
    (
        "the largest number of an expert",
        "this is the largest number of an expert",
        lambda r, t: int(r.expert_N[r.token_N == t].max()),
    ),
]


def _first(r, t):
    return int(r.expert_N[r.token_N == t][r.gate_N[r.token_N == t].argmax()])


check_path = [
    (
        "layer 0 over and over",
        "the first layer's choice is repeated",
        lambda tr, t: [_first(tr.layers[0], t) for _ in tr.layers],
    ),
    (
        "without the last layer",
        "one layer is missing at the end",
        lambda tr, t: [_first(r, t) for r in tr.layers[:-1]],
    ),
    (
        "the last layer first",
        "the layers are in the wrong order",
        lambda tr, t: [_first(r, t) for r in tr.layers[::-1]],
    ),
    (
        "each expert once",
        "not the token's way through the layers",
        lambda tr, t: sorted({_first(r, t) for r in tr.layers}),
    ),
    (
        "numbered pairs",
        "return a list of 3, not a tensor of shape (3, 2)",
        lambda tr, t: [(n, _first(r, t)) for n, r in enumerate(tr.layers)],
    ),
    (
        "the next token",
        "not the token's way through the layers",
        lambda tr, t: [_first(r, (t + 1) % r.num_tokens) for r in tr.layers],
    ),
    (
        "all its experts",
        "every choice is listed",
        lambda tr, t: [r.expert_N[r.token_N == t].tolist() for r in tr.layers],
    ),
]

check_load = [
    (
        "one cell too many",
        "return a tensor of shape (4,), not one of shape (5,)",
        lambda r: r.expert_N.bincount(minlength=r.num_experts + 1),
    ),
    (
        "busiest first",
        "the right numbers, but in another order",
        lambda r: r.expert_N.bincount(minlength=r.num_experts).sort(descending=True)[0],
    ),
    (
        "unique's counts",
        "experts that got nothing are missing",
        lambda r: r.expert_N.unique(return_counts=True)[1],
    ),
    (
        "the best by score",
        "only the scores' favourites are counted",
        lambda r: r.probs_TE.argmax(-1).bincount(minlength=r.num_experts),
    ),
    (
        "a running sum",
        "not the number of pairs of each expert",
        lambda r: r.expert_N.bincount(minlength=r.num_experts).cumsum(0),
    ),
    (
        "idle ones count one",
        "not the number of pairs of each expert",
        lambda r: r.expert_N.bincount(minlength=r.num_experts).clamp(min=1),
    ),
    (
        "half of the pairs",
        "not the number of pairs of each expert",
        lambda r: r.expert_N[::2].bincount(minlength=r.num_experts),
    ),
    (
        "eight experts, as shown",
        "return a tensor of shape (4,), not one of shape (8,)",
        lambda r: r.expert_N.bincount(minlength=8)[:8],
    ),
]


def _met(tr, tokens, layers=slice(None), pick=slice(None)):
    return [
        (n, e)
        for n, r in enumerate(tr.layers[layers])
        for t in tokens
        for e in r.expert_N[r.token_N == t][pick].tolist()
    ]


check_networks_used = [
    (
        "no layers",
        "expert 3 of one layer and expert 3 of the next are two networks",
        lambda tr, ts: len({e for _, e in _met(tr, ts)}),
    ),
    (
        "every meeting",
        "a network that two tokens share is counted twice",
        lambda tr, ts: len(_met(tr, ts)),
    ),
    (
        "first choices",
        "only first choices are counted",
        lambda tr, ts: len(set(_met(tr, ts, pick=slice(1)))),
    ),
    (
        "every token of the text",
        "all tokens are counted",
        lambda tr, ts: len(set(_met(tr, range(tr.layers[0].num_tokens)))),
    ),
    (
        "the first token only",
        "only one of the tokens is counted",
        lambda tr, ts: len(set(_met(tr, list(ts)[:1]))),
    ),
    (
        "from layer 1 on",
        "not the number of networks",
        lambda tr, ts: len(set(_met(tr, ts, layers=slice(1, None)))),
    ),
    (
        "one layer, times the layers",
        "not the number of networks",
        lambda tr, ts: len(tr.layers) * len({e for n, e in _met(tr, ts) if n == 0}),
    ),
    (
        "the set itself",
        "return one number, not one of shape (6, 2)",
        lambda tr, ts: set(_met(tr, ts)),
    ),
]
