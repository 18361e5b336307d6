"""Chapter 08's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

import torch


def _choose(z, c, k=None, probs=None):
    T, E = z.shape
    p = z.softmax(-1) if probs is None else probs
    gate, token = p.T.topk(min(T, math.ceil(c * T / E)) if k is None else k, -1)
    return token, gate


def _by_number(z, c):
    token, gate = _choose(z, c)
    token, order = token.sort(-1)
    return token, gate.gather(1, order)


check_expert_choice = [
    ("softmax over the tokens", lambda z, c: _choose(z, c, probs=z.softmax(0))),
    (
        "by the scores",
        lambda z, c: (
            _choose(z, c, probs=z)[0],
            z.softmax(-1).T.gather(1, _choose(z, c, probs=z)[0]),
        ),
    ),
    ("tokens choose", lambda z, c: z.softmax(-1).topk(min(z.shape[1], math.ceil(c)), -1)[::-1]),
    ("rounded down", lambda z, c: _choose(z, c, k=int(c * len(z) / z.shape[1]))),
    ("swapped", lambda z, c: _choose(z, c)[::-1]),
    ("a column for each expert", lambda z, c: tuple(a.T for a in _choose(z, c))),
    ("in the order of the text", _by_number),
    ("more than there are", lambda z, c: _choose(z, c, k=math.ceil(c * len(z) / z.shape[1]))),
    (
        "gates divided by their sum",
        lambda z, c: (_choose(z, c)[0], _choose(z, c)[1] / _choose(z, c)[1].sum(-1, keepdim=True)),
    ),
    ("sigmoids", lambda z, c: _choose(z, c, probs=z.sigmoid())),
    ("detached", lambda z, c: _choose(z.detach(), c)),
    ("c tokens each", lambda z, c: _choose(z, c, k=math.ceil(c))),
]


def _bins(token, n, borders=(0, 1, 2, 4)):
    count = token.flatten().bincount(minlength=n)
    return torch.bucketize(count, torch.tensor(borders)).bincount(minlength=5) / n


check_experts_per_token = [
    ("counts, not shares", lambda x, n: _bins(x, n) * n),
    ("shares of the pairs", lambda x, n: _bins(x, n) * n / x.numel()),
    ("nobody's tokens left out", lambda x, n: _bins(x[x >= 0], int(x.max()) + 1)),
    ("three alone, four with the many", lambda x, n: _bins(x, n, (0, 1, 2, 3))),
    ("up to five with three", lambda x, n: _bins(x, n, (0, 1, 2, 5))),
    (
        "six bins",
        lambda x, n: x.flatten().bincount(minlength=n).clamp(max=5).bincount(minlength=6) / n,
    ),
    (
        "more than four forgotten",
        lambda x, n: torch.stack(
            [(x.flatten().bincount(minlength=n) == i).float().mean() for i in range(5)]
        ),
    ),
    ("the experts of each", lambda x, n: x.flatten().bincount(minlength=n)),
    ("six tokens, as shown", lambda x, n: _bins(x, n) * n / 6),
    (
        "only those that somebody took",
        lambda x, n: _bins(x.unique(return_inverse=True)[1], len(x.unique())),
    ),
    ("running shares", lambda x, n: _bins(x, n).cumsum(0)),
]


def _back(out, token, gate, n):
    return out.new_zeros(n, out.shape[-1]).index_add(
        0, token.flatten(), (gate[..., None] * out).flatten(0, 1)
    )


def _last_wins(out, token, gate, n):
    y = out.new_zeros(n, out.shape[-1])
    y[token.flatten()] = (gate[..., None] * out).flatten(0, 1)
    return y


def _plus_equals(out, token, gate, n):
    y = out.new_zeros(n, out.shape[-1])
    y[token.flatten()] += (gate[..., None] * out).flatten(0, 1)
    return y


def _averaged(out, token, gate, n):
    return _back(out, token, gate, n) / token.flatten().bincount(minlength=n).clamp(min=1)[:, None]


check_combine = [
    ("the last one wins", _last_wins),
    ("+= with an index that comes twice", _plus_equals),
    ("the gate forgotten", lambda o, x, g, n: _back(o, x, torch.ones_like(g), n)),
    ("the mean of its experts", _averaged),
    ("gates that add up to 1", lambda o, x, g, n: _back(o, x, g / g.sum(-1, keepdim=True), n)),
    ("as many rows as were met", lambda o, x, g, n: _back(o, x, g, int(x.max()) + 1)),
    ("the gate twice", lambda o, x, g, n: _back(o, x, g * g, n)),
    ("gates detached", lambda o, x, g, n: _back(o, x, g.detach(), n)),
    ("answers detached", lambda o, x, g, n: _back(o.detach(), x, g, n)),
    ("the first expert only", lambda o, x, g, n: _back(o[:1], x[:1], g[:1], n)),
    (
        "token by token laid out",
        lambda o, x, g, n: (
            _back(o.transpose(0, 1), x, g.T, n)
            if len(o) == o.shape[1]
            else _back(o.flip(0), x, g, n)
        ),
    ),
]


def _probe(route, x, cuts=None, tries=5, change=None, scope=None, look=None):
    look = look or (lambda y: y)
    before = look(route(x))
    for t in cuts or range(1, len(x)):
        for _ in range(tries):
            new = x.clone()
            new[t:] = 3 * torch.randn_like(x[t:]) if change is None else change(x[t:])
            part = scope(t) if scope else slice(t)
            if not torch.equal(look(route(new))[part], before[part]):
                return True
    return False


def _shorter(route, x):
    return any(not torch.equal(route(x[:t]), route(x)[:t]) for t in range(1, len(x)))


check_reads_future = [
    ("the last token only", lambda r, x: _probe(r, x, cuts=[len(x) - 1])),
    ("the half, once", lambda r, x: _probe(r, x, cuts=[len(x) // 2], tries=1)),
    ("tiny changes", lambda r, x: _probe(r, x, tries=1, change=lambda a: a + 1e-6)),
    ("everything compared", lambda r, x: _probe(r, x, scope=lambda t: slice(None))),
    ("a shorter text", _shorter),
    ("always", lambda r, x: True),
    ("never", lambda r, x: False),
    ("only the first token's choice", lambda r, x: _probe(r, x, scope=lambda t: slice(1))),
    (
        "only the one before the cut",
        lambda r, x: _probe(r, x, cuts=[len(x) - 1], scope=lambda t: slice(t - 1, t)),
    ),
    ("only how many each token has", lambda r, x: _probe(r, x, look=lambda y: y.sum(1))),
    ("the future turned over", lambda r, x: _probe(r, x, tries=1, change=lambda a: a.flip(0))),
    ("turned round", lambda r, x: not _probe(r, x)),
]

check_causal_groups = [
    ("a sequence each", lambda B, S: torch.arange(B * S).view(B, S)),
    ("all in one", lambda B, S: torch.arange(B * S)[None]),
    ("each alone", lambda B, S: torch.arange(B * S)[:, None]),
    ("neighbours", lambda B, S: torch.arange(B * S).view(-1, B)),
    ("without the last position", lambda B, S: torch.arange(B * S).view(B, S).T[:-1]),
    (
        "on the diagonal",
        lambda B, S: torch.stack(
            [torch.arange(B) * S + (s + torch.arange(B)) % S for s in range(S)]
        ),
    ),
    ("counted from 1", lambda B, S: torch.arange(B * S).view(B, S).T + 1),
    ("position by position numbered", lambda B, S: torch.arange(B * S).view(S, B)),
    ("the first position everywhere", lambda B, S: (torch.arange(B) * S).repeat(S, 1)),
    (
        "two positions together",
        lambda B, S: [
            list(range(s, B * S, S)) + list(range(s + 1, B * S, S))
            if s + 1 < S
            else list(range(s, B * S, S))
            for s in range(0, S, 2)
        ],
    ),
    ("three sequences", lambda B, S: torch.arange(3 * S).view(3, S).T),
]
