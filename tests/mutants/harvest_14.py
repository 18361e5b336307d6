"""Chapter 14's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch

from moe_lite.course import cost


def _traffic(x, E, to=None):
    R = len(x)
    to = (lambda a: a // (E // R)) if to is None else to
    return torch.stack([to(a).flatten().bincount(minlength=R) for a in x])


check_traffic = [
    ("dealt round", lambda x, E: _traffic(x, E, lambda a: a % len(x))),
    ("from and to swapped", lambda x, E: _traffic(x, E).T),
    ("those at home left out", lambda x, E: _traffic(x, E).fill_diagonal_(0)),
    ("first choices", lambda x, E: _traffic(x[..., :1], E)),
    ("to each expert", lambda x, E: torch.stack([a.flatten().bincount(minlength=E) for a in x])),
    (
        "tokens, not pairs",
        lambda x, E: torch.stack(
            [
                torch.stack([((a // (E // len(x))) == r).any(-1).sum() for r in range(len(x))])
                for a in x
            ]
        ),
    ),
    ("shares", lambda x, E: _traffic(x, E) / x[0].numel()),
    (
        "divided by the ranks",
        lambda x, E: _traffic(x, E, lambda a: (a // len(x)).clamp(max=len(x) - 1)),
    ),
    ("both ways added", lambda x, E: _traffic(x, E) + _traffic(x, E).T),
    ("what each receives", lambda x, E: _traffic(x, E).sum(0)),
    (
        "two experts a rank, as shown",
        lambda x, E: _traffic(x, E, lambda a: (a // 2).clamp(max=len(x) - 1)),
    ),
]


def _lists(p, r):
    return p[r].tolist(), p[:, r].tolist()


check_round_trip = [
    ("out and back the same", lambda p, r: (*_lists(p, r), *_lists(p, r))),
    ("rows for columns", lambda p, r: (*_lists(p, r)[::-1], *_lists(p, r))),
    ("always sends", lambda p, r: (_lists(p, r)[0],) * 4),
    ("rank 0's", lambda p, r: (p[0].tolist(), p[:, 0].tolist(), p[:, 0].tolist(), p[0].tolist())),
    (
        "without its own",
        lambda p, r: tuple(
            [n if i != r else 0 for i, n in enumerate(a)]
            for a in (*_lists(p, r), *_lists(p, r)[::-1])
        ),
    ),
    ("only the way out", lambda p, r: _lists(p, r)),
    (
        "sums",
        lambda p, r: (
            sum(_lists(p, r)[0]),
            sum(_lists(p, r)[1]),
            sum(_lists(p, r)[1]),
            sum(_lists(p, r)[0]),
        ),
    ),
    (
        "back the other way round",
        lambda p, r: (*_lists(p, r), _lists(p, r)[1][::-1], _lists(p, r)[0][::-1]),
    ),
    (
        "sends and receives, each out and back",
        lambda p, r: (
            _lists(p, r)[0],
            _lists(p, r)[1],
            _lists(p, r)[0][::-1],
            _lists(p, r)[1][::-1],
        ),
    ),
    (
        "grouped by kind",
        lambda p, r: (p[r].tolist(), p[r].tolist(), p[:, r].tolist(), p[:, r].tolist()),
    ),
]

check_rank_weights = [
    ("shares", lambda n: n / n.sum()),
    ("all the same", lambda n: torch.ones(len(n))),
    ("turned over", lambda n: n.sum() / (len(n) * n.clamp(min=1))),
    ("ranks that have none left out", lambda n: (n > 0).sum() * n / n.sum()),
    ("of the largest", lambda n: n / n.max()),
    ("the counts", lambda n: n.float()),
    ("whole numbers", lambda n: len(n) * n // n.sum()),
    ("at least something", lambda n: len(n) * n.clamp(min=1) / n.clamp(min=1).sum()),
    ("two ranks, as shown", lambda n: 2 * n / n.sum()),
    ("a softmax", lambda n: len(n) * n.float().softmax(0)),
    ("squared", lambda n: len(n) * n**2 / (n**2).sum()),
]

check_distinct_experts = [
    ("as if none agreed", lambda E, K, T: min(E, K * T)),
    ("drawn with repetition", lambda E, K, T: E * (1 - (1 - 1 / E) ** (K * T))),
    ("the idle ones", lambda E, K, T: E * (1 - K / E) ** T),
    ("a share", lambda E, K, T: 1 - (1 - K / E) ** T),
    ("whole experts", lambda E, K, T: round(E * (1 - (1 - K / E) ** T))),
    ("one token fewer", lambda E, K, T: E * (1 - (1 - K / E) ** (T - 1))),
    ("all together", lambda E, K, T: E * (K / E) ** T),
    ("K times", lambda E, K, T: K * (1 - (1 - K / E) ** T)),
    ("two tokens, as shown", lambda E, K, T: E * (1 - (1 - K / E) ** 2)),
    ("overlaps taken off once", lambda E, K, T: K * T - (K * T) ** 2 / (2 * E) if K * T < E else E),
]


def _bytes(c, batch, size=2, embed=None, share=None):
    n, E = cost.count_parameters(c), c.num_local_experts
    common = n.total - n.experts
    if not c.tie_word_embeddings if embed is None else embed:
        common -= n.embedding
    p = (1 - (1 - c.num_experts_per_tok / E) ** batch) if share is None else share(c, batch)
    return size * (common + p * n.experts)


check_decode_bytes = [
    ("parameters", lambda c, b: _bytes(c, b, size=1)),
    ("float32", lambda c, b: _bytes(c, b, size=4)),
    ("the embedding too", lambda c, b: _bytes(c, b, embed=False)),
    ("a tied embedding left out", lambda c, b: _bytes(c, b, embed=True)),
    (
        "one token's experts",
        lambda c, b: _bytes(c, b, share=lambda c, b: c.num_experts_per_tok / c.num_local_experts),
    ),
    ("all experts", lambda c, b: _bytes(c, b, share=lambda c, b: 1.0)),
    (
        "as if none agreed",
        lambda c, b: _bytes(
            c, b, share=lambda c, b: min(1, b * c.num_experts_per_tok / c.num_local_experts)
        ),
    ),
    ("each text its own", lambda c, b: b * _bytes(c, 1)),
    (
        "the idle experts",
        lambda c, b: _bytes(
            c, b, share=lambda c, b: (1 - c.num_experts_per_tok / c.num_local_experts) ** b
        ),
    ),
    (
        "the number of experts for the share",
        lambda c, b: _bytes(
            c,
            b,
            share=lambda c, b: (
                c.num_local_experts * (1 - (1 - c.num_experts_per_tok / c.num_local_experts) ** b)
            ),
        ),
    ),
    ("experts alone", lambda c, b: _bytes(c, b) - _bytes(c, b, share=lambda c, b: 0.0)),
    ("for each text", lambda c, b: _bytes(c, b) / b),
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
    ("cut off", lambda w: ((w / _row(w)).to(torch.int8), _row(w))),
    ("rounded down", lambda w: ((w / _row(w)).floor().clamp(-127, 127).to(torch.int8), _row(w))),
    (
        "one scale for all",
        lambda w: _int8(w, (w.abs().max() / 127).clamp(min=1e-12).expand(len(w), 1)),
    ),
    (
        "a scale for each column",
        lambda w: _int8(w, (w.abs().amax(0, keepdim=True) / 127).clamp(min=1e-12)),
    ),
    ("128 steps", lambda w: _int8(w, _row(w) * 127 / 128)),
    ("zeros divided by zero", lambda w: _int8(w, w.abs().amax(1, keepdim=True) / 127)),
    ("a flat scale", lambda w: (_int8(w, _row(w))[0], _row(w)[:, 0])),
    ("the inverse scale", lambda w: (_int8(w, _row(w))[0], 1 / _row(w))),
    (
        "the largest, not the largest size",
        lambda w: _int8(w, (w.amax(1, keepdim=True) / 127).clamp(min=1e-12)),
    ),
    ("a zero point that nobody is told", _zero_point),
    ("floats", lambda w: (w / _row(w), _row(w))),
    ("half of the range", lambda w: _int8(w, 2 * _row(w))),
    ("swapped", lambda w: _int8(w, _row(w))[::-1]),
    (
        "zeros with a scale of 0.001",
        lambda w: _int8(w, (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-3)),
    ),
    ("multiplied back", lambda w: (_int8(w, _row(w))[0] * _row(w), _row(w))),
]
