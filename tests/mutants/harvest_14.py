"""Chapter 14's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch

from moe_lite.course import cost


def _traffic(x, E, to=None):
    R = len(x)
    to = (lambda a: a // (E // R)) if to is None else to
    return torch.stack([to(a).flatten().bincount(minlength=R) for a in x])


check_traffic = [
    ("dealt round", "experts are neighbours", lambda x, E: _traffic(x, E, lambda a: a % len(x))),
    ("from and to swapped", "rows and columns are exchanged", lambda x, E: _traffic(x, E).T),
    (
        "those at home left out",
        "what stays at home is in the matrix too",
        lambda x, E: _traffic(x, E).fill_diagonal_(0),
    ),
    ("first choices", "only first choices travel here", lambda x, E: _traffic(x[..., :1], E)),
    (
        "to each expert",
        "counts for each expert",
        lambda x, E: torch.stack([a.flatten().bincount(minlength=E) for a in x]),
    ),
    (
        "tokens, not pairs",
        "these are tokens; two experts of one token on one rank are two pairs",
        lambda x, E: torch.stack(
            [
                torch.stack([((a // (E // len(x))) == r).any(-1).sum() for r in range(len(x))])
                for a in x
            ]
        ),
    ),
    ("shares", "these are shares of what a rank sends", lambda x, E: _traffic(x, E) / x[0].numel()),
    (
        "divided by the ranks",
        "divide an expert's number by how many experts a rank has",
        lambda x, E: _traffic(x, E, lambda a: (a // len(x)).clamp(max=len(x) - 1)),
    ),
    (
        "both ways added",
        "not the number of (token, expert) pairs from each rank to each",
        lambda x, E: _traffic(x, E) + _traffic(x, E).T,
    ),
    (
        "what each receives",
        "this is what each rank receives from all",
        lambda x, E: _traffic(x, E).sum(0),
    ),
    (
        "two experts a rank, as shown",
        "not the number of (token, expert) pairs from each rank to each",
        lambda x, E: _traffic(x, E, lambda a: (a // 2).clamp(max=len(x) - 1)),
    ),
]


def _lists(p, r):
    return p[r].tolist(), p[:, r].tolist()


check_round_trip = [
    (
        "out and back the same",
        "on the way back the roles are exchanged",
        lambda p, r: (*_lists(p, r), *_lists(p, r)),
    ),
    (
        "rows for columns",
        "a rank sends its row of the matrix and receives its column",
        lambda p, r: (*_lists(p, r)[::-1], *_lists(p, r)),
    ),
    ("always sends", "nobody receives what it sends itself", lambda p, r: (_lists(p, r)[0],) * 4),
    (
        "rank 0's",
        "not the row out, the column in, and both exchanged for the way back",
        lambda p, r: (p[0].tolist(), p[:, 0].tolist(), p[:, 0].tolist(), p[0].tolist()),
    ),
    (
        "without its own",
        "what stays at home is a part of it too",
        lambda p, r: tuple(
            [n if i != r else 0 for i, n in enumerate(a)]
            for a in (*_lists(p, r), *_lists(p, r)[::-1])
        ),
    ),
    ("only the way out", "return four lists", lambda p, r: _lists(p, r)),
    (
        "sums",
        "return a tensor of shape (2,), not one of shape ()",
        lambda p, r: (
            sum(_lists(p, r)[0]),
            sum(_lists(p, r)[1]),
            sum(_lists(p, r)[1]),
            sum(_lists(p, r)[0]),
        ),
    ),
    (
        "back the other way round",
        "sends back: the right numbers, but in another order",
        lambda p, r: (*_lists(p, r), _lists(p, r)[1][::-1], _lists(p, r)[0][::-1]),
    ),
    (
        "sends and receives, each out and back",
        "sends back: not the row out, the column in, and both exchanged for the way back",
        lambda p, r: (
            _lists(p, r)[0],
            _lists(p, r)[1],
            _lists(p, r)[0][::-1],
            _lists(p, r)[1][::-1],
        ),
    ),
    (
        "grouped by kind",
        "right, but in another order",
        lambda p, r: (p[r].tolist(), p[r].tolist(), p[:, r].tolist(), p[:, r].tolist()),
    ),
]

check_rank_weights = [
    (
        "shares",
        "DDP divides by the ranks too, so the gradient is R times too small",
        lambda n: n / n.sum(),
    ),
    (
        "all the same",
        "a mean of means: a token on a rank with few of them counts more",
        lambda n: torch.ones(len(n)),
    ),
    (
        "turned over",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: n.sum() / (len(n) * n.clamp(min=1)),
    ),
    (
        "ranks that have none left out",
        "DDP divides by all ranks, also by those without a token",
        lambda n: (n > 0).sum() * n / n.sum(),
    ),
    (
        "of the largest",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: n / n.max(),
    ),
    ("the counts", "the tokens themselves are no weights", lambda n: n.float()),
    (
        "whole numbers",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: len(n) * n // n.sum(),
    ),
    (
        "at least something",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: len(n) * n.clamp(min=1) / n.clamp(min=1).sum(),
    ),
    (
        "two ranks, as shown",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: 2 * n / n.sum(),
    ),
    (
        "a softmax",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: len(n) * n.float().softmax(0),
    ),
    (
        "squared",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: len(n) * n**2 / (n**2).sum(),
    ),
]

check_distinct_experts = [
    ("as if none agreed", "that is as if no two tokens ever agreed", lambda E, K, T: min(E, K * T)),
    (
        "drawn with repetition",
        "a token's K experts differ",
        lambda E, K, T: E * (1 - (1 - 1 / E) ** (K * T)),
    ),
    ("the idle ones", "that is how many are left out", lambda E, K, T: E * (1 - K / E) ** T),
    (
        "a share",
        "that is the chance of one expert to be in use",
        lambda E, K, T: 1 - (1 - K / E) ** T,
    ),
    (
        "whole experts",
        "an expectation need not be whole",
        lambda E, K, T: round(E * (1 - (1 - K / E) ** T)),
    ),
    (
        "one token fewer",
        "one token less: all of them choose",
        lambda E, K, T: E * (1 - (1 - K / E) ** (T - 1)),
    ),
    ("all together", "K/E to the power of T", lambda E, K, T: E * (K / E) ** T),
    ("K times", "not E(1 - (1 - K/E)^T)", lambda E, K, T: K * (1 - (1 - K / E) ** T)),
    ("two tokens, as shown", "not E(1 - (1 - K/E)^T)", lambda E, K, T: E * (1 - (1 - K / E) ** 2)),
    (
        "overlaps taken off once",
        "not E(1 - (1 - K/E)^T)",
        lambda E, K, T: K * T - (K * T) ** 2 / (2 * E) if K * T < E else E,
    ),
]


def _bytes(c, batch, size=2, embed=None, share=None):
    n, E = cost.count_parameters(c), c.num_local_experts
    common = n.total - n.experts
    if not c.tie_word_embeddings if embed is None else embed:
        common -= n.embedding
    p = (1 - (1 - c.num_experts_per_tok / E) ** batch) if share is None else share(c, batch)
    return size * (common + p * n.experts)


check_decode_bytes = [
    ("parameters", "two bytes for each bf16 number", lambda c, b: _bytes(c, b, size=1)),
    ("float32", "that is float32; bf16 has two bytes", lambda c, b: _bytes(c, b, size=4)),
    (
        "the embedding too",
        "of the embedding a row per token is read",
        lambda c, b: _bytes(c, b, embed=False),
    ),
    (
        "a tied embedding left out",
        "the output matrix is read whole, a tied one too",
        lambda c, b: _bytes(c, b, embed=True),
    ),
    (
        "one token's experts",
        "a batch needs more experts than one token does",
        lambda c, b: _bytes(c, b, share=lambda c, b: c.num_experts_per_tok / c.num_local_experts),
    ),
    (
        "all experts",
        "a small batch leaves experts unread",
        lambda c, b: _bytes(c, b, share=lambda c, b: 1.0),
    ),
    (
        "as if none agreed",
        "texts agree on experts by chance",
        lambda c, b: _bytes(
            c, b, share=lambda c, b: min(1, b * c.num_experts_per_tok / c.num_local_experts)
        ),
    ),
    (
        "each text its own",
        "the weights are read once for the whole batch, not once for each text",
        lambda c, b: b * _bytes(c, 1),
    ),
    (
        "the idle experts",
        "not 2 bytes for what is common and for the experts expected in use",
        lambda c, b: _bytes(
            c, b, share=lambda c, b: (1 - c.num_experts_per_tok / c.num_local_experts) ** b
        ),
    ),
    (
        "the number of experts for the share",
        "multiply it by a share, not by how many are in use",
        lambda c, b: _bytes(
            c,
            b,
            share=lambda c, b: (
                c.num_local_experts * (1 - (1 - c.num_experts_per_tok / c.num_local_experts) ** b)
            ),
        ),
    ),
    (
        "experts alone",
        "attention, routers, norms and output are read as well",
        lambda c, b: _bytes(c, b) - _bytes(c, b, share=lambda c, b: 0.0),
    ),
    (
        "for each text",
        "these are the bytes of a step for each text",
        lambda c, b: _bytes(c, b) / b,
    ),
]


def _int8(w, scale):
    return (w / scale).round().to(torch.int8), scale


def _row(w):
    return (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)


def _zero_point(w):
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale = ((high - low) / 254).clamp(min=1e-12)
    return ((w - low) / scale - 127).round().to(torch.int8), scale


check_quantize = [
    (
        "cut off",
        "cut off towards zero instead of rounded",
        lambda w: ((w / _row(w)).to(torch.int8), _row(w)),
    ),
    (
        "rounded down",
        "rounded down instead of rounded",
        lambda w: ((w / _row(w)).floor().clamp(-127, 127).to(torch.int8), _row(w)),
    ),
    (
        "one scale for all",
        "not the whole range of int8",
        lambda w: _int8(w, (w.abs().max() / 127).clamp(min=1e-12).expand(len(w), 1)),
    ),
    (
        "a scale for each column",
        "return a tensor of shape (2, 1) for the scale",
        lambda w: _int8(w, (w.abs().amax(0, keepdim=True) / 127).clamp(min=1e-12)),
    ),
    (
        "128 steps",
        "int8 ends at 127, and the largest weight became 128, which wraps around to -128",
        lambda w: _int8(w, _row(w) * 127 / 128),
    ),
    (
        "a flat scale",
        "return a tensor of shape (2, 1) for the scale",
        lambda w: (_int8(w, _row(w))[0], _row(w)[:, 0]),
    ),
    (
        "the inverse scale",
        "the scale is one over what it should be",
        lambda w: (_int8(w, _row(w))[0], 1 / _row(w)),
    ),
    (
        "the largest, not the largest size",
        "q * scale is up to 128 steps away from w",
        lambda w: _int8(w, (w.amax(1, keepdim=True) / 127).clamp(min=1e-12)),
    ),
    ("a zero point that nobody is told", "q * scale is up to", _zero_point),
    ("floats", "q has to be int8, or nothing is saved", lambda w: (w / _row(w), _row(w))),
    ("half of the range", "not the whole range of int8", lambda w: _int8(w, 2 * _row(w))),
    ("swapped", "the two are swapped", lambda w: _int8(w, _row(w))[::-1]),
    (
        "zeros with a scale of 0.001",
        "not small beside a small row's scale",
        lambda w: _int8(w, (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-3)),
    ),
    (
        "multiplied back",
        "q has to be int8, or nothing is saved",
        lambda w: (_int8(w, _row(w))[0] * _row(w), _row(w)),
    ),
]


def _copies(load, spare, weight=lambda load, n: load / n):
    copies = [1] * len(load)
    for _ in range(spare):
        e = max(range(len(load)), key=lambda e: weight(load[e], copies[e]))
        copies[e] += 1
    return copies


check_replicas = [
    (
        "by the load after one more",
        "what a copy has to do now, not after one more",
        lambda load, spare: _copies(load, spare, lambda a, n: a / (n + 1)),
    ),
    (
        "by the load less the copies",
        "not, one by one, a copy for the expert with the most load per copy",
        lambda load, spare: _copies(load, spare, lambda a, n: a - n),
    ),
    (
        "a copy for each of the busiest",
        "one after the other in the order of their loads",
        lambda load, spare: [
            1 + (e in sorted(range(len(load)), key=lambda e: -load[e])[:spare])
            for e in range(len(load))
        ],
    ),
    (
        "one spare place left free",
        "not, one by one, a copy for the expert with the most load per copy",
        lambda load, spare: _copies(load, max(0, spare - 1)),
    ),
    (
        "idle experts are not held",
        "not, one by one, a copy for the expert with the most load per copy",
        lambda load, spare: [n * (a > 0) for n, a in zip(_copies(load, spare), load, strict=True)],
    ),
    (
        "in proportion, rounded down, and one",
        "not, one by one, a copy for the expert with the most load per copy",
        lambda load, spare: [1 + int(spare * a / max(1, sum(load))) for a in load],
    ),
    (
        "busiest first",
        "the right numbers, but in another order",
        lambda load, spare: sorted(_copies(load, spare), reverse=True),
    ),
]


def _nodes(s, nodes, k, limit, best=None):
    s_TNM = s.view(len(s), nodes, -1)
    worth = s_TNM.topk(best or k // limit, dim=-1).values.sum(-1)
    kept = torch.zeros(len(s), nodes).scatter(1, worth.topk(limit).indices, 1)
    picked = s_TNM.masked_fill(kept[..., None] == 0, -torch.inf).flatten(1).topk(k).indices
    return kept, picked // s_TNM.shape[-1]


def _others(node_TK, home_T):
    return torch.tensor([len(set(n) - {h}) for n, h in
                         zip(node_TK.tolist(), home_T.tolist(), strict=True)])  # fmt: skip


check_copies_leaving = [
    ("the limit itself", "copies_leaving: ", lambda s, h, n, k, m: torch.full_like(h, m)),
    ("the limit less one for home", "copies_leaving: ",
     lambda s, h, n, k, m: torch.full_like(h, m - 1)),
    ("all nodes that are allowed", "a node that is allowed but not chosen",
     lambda s, h, n, k, m: _nodes(s, n, k, m)[0].scatter(1, h[:, None], 0).sum(1)),
    ("whether any leaves", "how many nodes, not whether",
     lambda s, h, n, k, m: (_nodes(s, n, k, m)[1] != h[:, None]).any(1)),
    ("what stays", "copies_leaving: ",
     lambda s, h, n, k, m: (_nodes(s, n, k, m)[1] == h[:, None]).sum(1)),
    ("the worst nodes", "copies_leaving: ",
     lambda s, h, n, k, m: _others(_nodes(-s, n, k, m)[1], h)),
    ("only the first choice travels", "copies_leaving: ",
     lambda s, h, n, k, m: (_nodes(s, n, k, m)[1][:, 0] != h).long()),
    ("home node taken for an expert", "copies_leaving: ",
     lambda s, h, n, k, m: _others(_nodes(s, n, k, m)[1], h // (s.shape[1] // n))),
]  # fmt: skip
