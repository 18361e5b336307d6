"""Chapter 00's harvest: (what a learner did, a phrase of what the check says, the answer)."""

check_first_expert = [
    ("the token's first pair, whatever its gate", lambda r, t: int(r.expert_N[r.token_N == t][0])),
    ("the place among its pairs", lambda r, t: int(r.gate_N[r.token_N == t].argmax())),
    ("the largest gate of all tokens", lambda r, t: int(r.expert_N[r.gate_N.argmax()])),
    ("the best score, without the gates", lambda r, t: int(r.logits_TE[t].argmax())),
    ("the pair of that number", lambda r, t: int(r.expert_N[t])),
    (
        "its weakest",
        lambda r, t: int(r.expert_N[r.token_N == t][r.gate_N[r.token_N == t].argmin()]),
    ),
    ("the weight itself", lambda r, t: float(r.gate_N[r.token_N == t].max())),
    ("the largest number of an expert", lambda r, t: int(r.expert_N[r.token_N == t].max())),
]


def _first(r, t):
    return int(r.expert_N[r.token_N == t][r.gate_N[r.token_N == t].argmax()])


check_path = [
    ("layer 0 over and over", lambda tr, t: [_first(tr.layers[0], t) for _ in tr.layers]),
    ("without the last layer", lambda tr, t: [_first(r, t) for r in tr.layers[:-1]]),
    ("the last layer first", lambda tr, t: [_first(r, t) for r in tr.layers[::-1]]),
    ("each expert once", lambda tr, t: sorted({_first(r, t) for r in tr.layers})),
    ("numbered pairs", lambda tr, t: [(n, _first(r, t)) for n, r in enumerate(tr.layers)]),
    ("the next token", lambda tr, t: [_first(r, (t + 1) % r.num_tokens) for r in tr.layers]),
    ("all its experts", lambda tr, t: [r.expert_N[r.token_N == t].tolist() for r in tr.layers]),
]

check_load = [
    ("one cell too many", lambda r: r.expert_N.bincount(minlength=r.num_experts + 1)),
    (
        "busiest first",
        lambda r: r.expert_N.bincount(minlength=r.num_experts).sort(descending=True)[0],
    ),
    ("unique's counts", lambda r: r.expert_N.unique(return_counts=True)[1]),
    ("the best by score", lambda r: r.probs_TE.argmax(-1).bincount(minlength=r.num_experts)),
    ("a running sum", lambda r: r.expert_N.bincount(minlength=r.num_experts).cumsum(0)),
    ("idle ones count one", lambda r: r.expert_N.bincount(minlength=r.num_experts).clamp(min=1)),
    ("half of the pairs", lambda r: r.expert_N[::2].bincount(minlength=r.num_experts)),
    ("eight experts, as shown", lambda r: r.expert_N.bincount(minlength=8)[:8]),
]


def _met(tr, tokens, layers=slice(None), pick=slice(None)):
    return [
        (n, e)
        for n, r in enumerate(tr.layers[layers])
        for t in tokens
        for e in r.expert_N[r.token_N == t][pick].tolist()
    ]


check_networks_used = [
    ("no layers", lambda tr, ts: len({e for _, e in _met(tr, ts)})),
    ("every meeting", lambda tr, ts: len(_met(tr, ts))),
    ("first choices", lambda tr, ts: len(set(_met(tr, ts, pick=slice(1))))),
    ("every token of the text", lambda tr, ts: len(set(_met(tr, range(tr.layers[0].num_tokens))))),
    ("the first token only", lambda tr, ts: len(set(_met(tr, list(ts)[:1])))),
    ("from layer 1 on", lambda tr, ts: len(set(_met(tr, ts, layers=slice(1, None))))),
    (
        "one layer, times the layers",
        lambda tr, ts: len(tr.layers) * len({e for n, e in _met(tr, ts) if n == 0}),
    ),
    ("the set itself", lambda tr, ts: set(_met(tr, ts))),
]
