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
    (
        "softmax over the tokens",
        "the softmax ran over the tokens (dim 0)",
        lambda z, c: _choose(z, c, probs=z.softmax(0)),
    ),
    (
        "by the scores",
        "a column of raw scores has another order",
        lambda z, c: (
            _choose(z, c, probs=z)[0],
            z.softmax(-1).T.gather(1, _choose(z, c, probs=z)[0]),
        ),
    ),
    (
        "tokens choose",
        "return a tensor of shape (2, 2), not one of shape (4, 1)",
        lambda z, c: z.softmax(-1).topk(min(z.shape[1], math.ceil(c)), -1)[::-1],
    ),
    (
        "rounded down",
        "rounding down leaves tokens without a place",
        lambda z, c: _choose(z, c, k=int(c * len(z) / z.shape[1])),
    ),
    ("swapped", "the two are swapped", lambda z, c: _choose(z, c)[::-1]),
    (
        "a column for each expert",
        "a row for each expert is wanted, and here is one for each place",
        lambda z, c: tuple(a.T for a in _choose(z, c)),
    ),
    ("in the order of the text", "right tokens, but in order", _by_number),
    (
        "more than there are",
        "raised RuntimeError",
        lambda z, c: _choose(z, c, k=math.ceil(c * len(z) / z.shape[1])),
    ),
    (
        "gates divided by their sum",
        "an expert's gates need not sum to 1",
        lambda z, c: (_choose(z, c)[0], _choose(z, c)[1] / _choose(z, c)[1].sum(-1, keepdim=True)),
    ),
    ("sigmoids", "not each expert's k best tokens", lambda z, c: _choose(z, c, probs=z.sigmoid())),
    (
        "detached",
        "right numbers, but no gradient reaches the logits, so what is behind can never learn",
        lambda z, c: _choose(z.detach(), c),
    ),
    (
        "c tokens each",
        "c is a token's experts, not an expert's",
        lambda z, c: _choose(z, c, k=math.ceil(c)),
    ),
]


def _bins(token, n, borders=(0, 1, 2, 4)):
    count = token.flatten().bincount(minlength=n)
    return torch.bucketize(count, torch.tensor(borders)).bincount(minlength=5) / n


check_experts_per_token = [
    ("counts, not shares", "these are numbers of tokens", lambda x, n: _bins(x, n) * n),
    (
        "shares of the pairs",
        "these are shares of the pairs",
        lambda x, n: _bins(x, n) * n / x.numel(),
    ),
    (
        "nobody's tokens left out",
        "bincount stops at the last token that was chosen",
        lambda x, n: _bins(x[x >= 0], int(x.max()) + 1),
    ),
    (
        "three alone, four with the many",
        "the fourth share is of three or four experts, the last of more than four",
        lambda x, n: _bins(x, n, (0, 1, 2, 3)),
    ),
    (
        "up to five with three",
        "the fourth share is of three or four experts, the last of more than four",
        lambda x, n: _bins(x, n, (0, 1, 2, 5)),
    ),
    (
        "six bins",
        "return a tensor of shape (5,), not one of shape (6,)",
        lambda x, n: x.flatten().bincount(minlength=n).clamp(max=5).bincount(minlength=6) / n,
    ),
    (
        "more than four forgotten",
        "they do not add up to 1 over the last dimension, and the right ones do",
        lambda x, n: torch.stack(
            [(x.flatten().bincount(minlength=n) == i).float().mean() for i in range(5)]
        ),
    ),
    (
        "the experts of each",
        "return a tensor of shape (5,), not one of shape (6,)",
        lambda x, n: x.flatten().bincount(minlength=n),
    ),
    ("six tokens, as shown", "right up to a factor", lambda x, n: _bins(x, n) * n / 6),
    (
        "only those that somebody took",
        "tokens that nobody chose are missing, and they are the point of the figure",
        lambda x, n: _bins(x.unique(return_inverse=True)[1], len(x.unique())),
    ),
    ("running shares", "these are running sums", lambda x, n: _bins(x, n).cumsum(0)),
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
    (
        "the last one wins",
        "an assignment keeps one expert of a token and forgets the others, and so does +=",
        _last_wins,
    ),
    (
        "+= with an index that comes twice",
        "an assignment keeps one expert of a token and forgets the others, and so does +=",
        _plus_equals,
    ),
    (
        "the gate forgotten",
        "the gates are missing",
        lambda o, x, g, n: _back(o, x, torch.ones_like(g), n),
    ),
    ("the mean of its experts", "this is a mean over a token's experts", _averaged),
    (
        "gates that add up to 1",
        "not the sum of gate times answer",
        lambda o, x, g, n: _back(o, x, g / g.sum(-1, keepdim=True), n),
    ),
    (
        "as many rows as were met",
        "return a tensor of shape (4, 1), not one of shape (3, 1)",
        lambda o, x, g, n: _back(o, x, g, int(x.max()) + 1),
    ),
    ("the gate twice", "the gates are squared", lambda o, x, g, n: _back(o, x, g * g, n)),
    (
        "gates detached",
        "right numbers, but no gradient reaches the gates, so what is behind can never learn",
        lambda o, x, g, n: _back(o, x, g.detach(), n),
    ),
    (
        "answers detached",
        "right numbers, but no gradient reaches the answers, so what is behind can never",
        lambda o, x, g, n: _back(o.detach(), x, g, n),
    ),
    (
        "the first expert only",
        "not the sum of gate times answer",
        lambda o, x, g, n: _back(o[:1], x[:1], g[:1], n),
    ),
    (
        "token by token laid out",
        "not the sum of gate times answer",
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
    (
        "the last token only",
        "one token told of one other is a leak",
        lambda r, x: _probe(r, x, cuts=[len(x) - 1]),
    ),
    (
        "the half, once",
        "one token told of one other is a leak",
        lambda r, x: _probe(r, x, cuts=[len(x) // 2], tries=1),
    ),
    (
        "tiny changes",
        "it says False of all",
        lambda r, x: _probe(r, x, tries=1, change=lambda a: a + 1e-6),
    ),
    (
        "everything compared",
        "it says True of all",
        lambda r, x: _probe(r, x, scope=lambda t: slice(None)),
    ),
    (
        "a shorter text",
        "how many tokens there are is known beforehand, and sets the capacity",
        _shorter,
    ),
    ("always", "it says True of all", lambda r, x: True),
    ("never", "it says False of all", lambda r, x: False),
    (
        "only the first token's choice",
        "one token told of one other is a leak",
        lambda r, x: _probe(r, x, scope=lambda t: slice(1)),
    ),
    (
        "only the one before the cut",
        "a later token takes an earlier one's place here",
        lambda r, x: _probe(r, x, cuts=[len(x) - 1], scope=lambda t: slice(t - 1, t)),
    ),
    (
        "only how many each token has",
        "one token told of one other is a leak",
        lambda r, x: _probe(r, x, look=lambda y: y.sum(1)),
    ),
    (
        "the future turned over",
        "a later token takes an earlier one's place here",
        lambda r, x: _probe(r, x, tries=1, change=lambda a: a.flip(0)),
    ),
    (
        "turned round",
        "a token that is changed may well choose otherwise",
        lambda r, x: not _probe(r, x),
    ),
]

check_causal_groups = [
    (
        "a sequence each",
        "two tokens of one sequence in a group",
        lambda B, S: torch.arange(B * S).view(B, S),
    ),
    (
        "all in one",
        "the whole batch in one group holds every future",
        lambda B, S: torch.arange(B * S)[None],
    ),
    (
        "each alone",
        "a token alone competes with nobody, and every expert takes it",
        lambda B, S: torch.arange(B * S)[:, None],
    ),
    (
        "neighbours",
        "two tokens of one sequence in a group",
        lambda B, S: torch.arange(B * S).view(-1, B),
    ),
    (
        "without the last position",
        "every token belongs to exactly one group",
        lambda B, S: torch.arange(B * S).view(B, S).T[:-1],
    ),
    (
        "on the diagonal",
        "tokens of other sequences, but at other positions",
        lambda B, S: torch.stack(
            [torch.arange(B) * S + (s + torch.arange(B)) % S for s in range(S)]
        ),
    ),
    (
        "counted from 1",
        "every token belongs to exactly one group",
        lambda B, S: torch.arange(B * S).view(B, S).T + 1,
    ),
    (
        "position by position numbered",
        "two tokens of one sequence in a group",
        lambda B, S: torch.arange(B * S).view(S, B),
    ),
    (
        "the first position everywhere",
        "every token belongs to exactly one group",
        lambda B, S: (torch.arange(B) * S).repeat(S, 1),
    ),
    (
        "two positions together",
        "two tokens of one sequence in a group",
        lambda B, S: [
            list(range(s, B * S, S)) + list(range(s + 1, B * S, S))
            if s + 1 < S
            else list(range(s, B * S, S))
            for s in range(0, S, 2)
        ],
    ),
    (
        "three sequences",
        "every token belongs to exactly one group",
        lambda B, S: torch.arange(3 * S).view(3, S).T,
    ),
]
