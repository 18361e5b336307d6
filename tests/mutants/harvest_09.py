"""Chapter 09's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch

check_split_experts = [
    ("shared ones on top", lambda N, K, F, m, s: (m * N, m * K, F // m)),
    ("shared off the routed alone", lambda N, K, F, m, s: (m * N - s, m * K, F // m)),
    ("shared off the choices alone", lambda N, K, F, m, s: (m * N, m * K - s, F // m)),
    ("shared before the split", lambda N, K, F, m, s: (m * (N - s), m * (K - s), F // m)),
    ("the width as it was", lambda N, K, F, m, s: (m * N - s, m * K - s, F)),
    ("choices first", lambda N, K, F, m, s: (m * K - s, m * N - s, F // m)),
    ("not split, only shared", lambda N, K, F, m, s: (N - s, K - s, F // m)),
    ("one shared, as shown", lambda N, K, F, m, s: (m * N - 1, m * K - 1, F // m)),
    ("shared added", lambda N, K, F, m, s: (m * N + s, m * K + s, F // m)),
    ("widths in all", lambda N, K, F, m, s: (m * N - s, m * K - s, (m * K - s) * (F // m))),
]


def _disable(z, k, n, fill=-torch.inf):
    top, expert = z.scatter(1, z.topk(n).indices, fill).topk(k)
    return top.softmax(-1), expert


def _n(z, ratio):
    return round(ratio * z.shape[1])


def _busiest(z, k, ratio):
    load = z.topk(k).indices.flatten().bincount(minlength=z.shape[1])
    top, expert = z.index_fill(1, load.topk(_n(z, ratio)).indices, -torch.inf).topk(k)
    return top.softmax(-1), expert


def _renumbered(z, k, ratio):
    rest = z.sort(-1, descending=True).values[:, _n(z, ratio) :]
    top, expert = rest.topk(k)
    return top.softmax(-1), expert


check_disable_top = [
    ("0 in their place", lambda z, k, r: _disable(z, k, _n(z, r), 0.0)),
    ("the batch's busiest", _busiest),
    ("rounded down", lambda z, k, r: _disable(z, k, int(r * z.shape[1]))),
    ("a share of k", lambda z, k, r: _disable(z, k, round(r * k))),
    ("nobody", lambda z, k, r: _disable(z, k, 0)),
    ("counted among those that are left", _renumbered),
    (
        "gates from all experts",
        lambda z, k, r: (
            z.softmax(-1).gather(1, _disable(z, k, _n(z, r))[1]),
            _disable(z, k, _n(z, r))[1],
        ),
    ),
    (
        "a softmax over all that are left",
        lambda z, k, r: (
            z.scatter(1, z.topk(_n(z, r)).indices, -torch.inf).softmax(-1).topk(k).values,
            _disable(z, k, _n(z, r))[1],
        ),
    ),
    ("swapped", lambda z, k, r: _disable(z, k, _n(z, r))[::-1]),
    ("the worst", lambda z, k, r: (z.topk(k).values.softmax(-1), z.topk(k, largest=False).indices)),
    ("one too many", lambda z, k, r: _disable(z, k, _n(z, r) + (r > 0))),
    (
        "fewer choices",
        lambda z, k, r: tuple(a[:, : max(1, k - _n(z, r))] for a in _disable(z, k, _n(z, r))),
    ),
]


def _biased(z, b, k, choose=None, weigh=None, divide=True):
    s = z.sigmoid()
    expert = (s + b if choose is None else choose(s)).topk(k).indices
    gate = (s if weigh is None else weigh(s)).gather(1, expert)
    return gate / gate.sum(-1, keepdim=True) if divide else gate, expert


check_biased_choice = [
    ("the bias in the gates", lambda z, b, k: _biased(z, b, k, weigh=lambda s: s + b)),
    ("no bias", lambda z, b, k: _biased(z, b, k, choose=lambda s: s)),
    ("the bias taken off", lambda z, b, k: _biased(z, b, k, choose=lambda s: s - b)),
    (
        "the bias on the logits",
        lambda z, b, k: _biased(z, b, k, choose=lambda s: (z + b).sigmoid()),
    ),
    ("not divided", lambda z, b, k: _biased(z, b, k, divide=False)),
    (
        "divided by all",
        lambda z, b, k: _biased(z, b, k, weigh=lambda s: s / s.sum(-1, keepdim=True), divide=False),
    ),
    (
        "a softmax over the chosen",
        lambda z, b, k: (z.gather(1, _biased(z, b, k)[1]).softmax(-1), _biased(z, b, k)[1]),
    ),
    (
        "a softmax of the scores",
        lambda z, b, k: (
            z.sigmoid().gather(1, _biased(z, b, k)[1]).softmax(-1),
            _biased(z, b, k)[1],
        ),
    ),
    (
        "softmax for sigmoid",
        lambda z, b, k: _biased(
            z, b, k, choose=lambda s: z.softmax(-1) + b, weigh=lambda s: z.softmax(-1)
        ),
    ),
    ("swapped", lambda z, b, k: _biased(z, b, k)[::-1]),
    ("detached", lambda z, b, k: _biased(z.detach(), b, k)),
    (
        "the best gates for the wrong experts",
        lambda z, b, k: (
            z.sigmoid().topk(k).values / z.sigmoid().topk(k).values.sum(-1, keepdim=True),
            _biased(z, b, k)[1],
        ),
    ),
]


def _turn(z, b, k, u, move=None, bias=None):
    x = (z.detach().sigmoid() + (b if bias is None else bias)).topk(k).indices
    load = x.flatten().bincount(minlength=len(b)).to(b)
    return x, b + u * (torch.sign(load.mean() - load) if move is None else move(load))


def _moves_it(z, b, k, u):
    x, new = _turn(z, b, k, u)
    b.copy_(new)
    return x, b


check_balanced_step = [
    ("the other way", lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(a - a.mean()))),
    ("against a share", lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(k / len(b) - a))),
    ("by how much", lambda z, b, k, u: _turn(z, b, k, u, lambda a: a.mean() - a)),
    (
        "by the share of how much",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: (a.mean() - a) / a.mean()),
    ),
    ("moved before the choice", lambda z, b, k, u: _turn(z, b, k, u, bias=_turn(z, b, k, u)[1])),
    ("chosen without the bias", lambda z, b, k, u: _turn(z, b, k, u, bias=0 * b)),
    (
        "up at the mean too",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.where(a <= a.mean(), 1.0, -1.0)),
    ),
    ("the median", lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(a.median() - a))),
    (
        "the mean of the busy",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(a[a > 0].mean() - a)),
    ),
    ("the move alone", lambda z, b, k, u: (_turn(z, b, k, u)[0], _turn(z, b, k, u)[1] - b)),
    (
        "centred afterwards",
        lambda z, b, k, u: (
            _turn(z, b, k, u)[0],
            _turn(z, b, k, u)[1] - _turn(z, b, k, u)[1].mean(),
        ),
    ),
    ("the given bias changed", _moves_it),
    ("swapped", lambda z, b, k, u: _turn(z, b, k, u)[::-1]),
]


def _vio(load):
    return load.max() / load.mean() - 1


def _each(x):
    return torch.stack([_vio(row) for row in x])


check_violations = [
    ("per batch both times", lambda x: (_each(x).mean(), _each(x).mean())),
    ("global both times", lambda x: (_vio(x.sum(0)), _vio(x.sum(0)))),
    ("swapped", lambda x: (_each(x).mean(), _vio(x.sum(0)))),
    ("one too large", lambda x: (_vio(x.sum(0)) + 1, _each(x).mean() + 1)),
    ("of all cells", lambda x: (_vio(x), _each(x).mean())),
    ("the worst batch", lambda x: (_vio(x.sum(0)), _each(x).max())),
    ("batches for experts", lambda x: (_vio(x.sum(1)), torch.stack([_vio(c) for c in x.T]).mean())),
    (
        "the largest distance either way",
        lambda x: ((x.sum(0) - x.sum(0).mean()).abs().max() / x.sum(0).mean(), _each(x).mean()),
    ),
    (
        "not divided by the mean",
        lambda x: (x.sum(0).max() - x.sum(0).mean(), (x.amax(1) - x.mean(1)).mean()),
    ),
    ("in percent", lambda x: (100 * _vio(x.sum(0)), 100 * _each(x).mean())),
    ("each batch's own", lambda x: (_vio(x.sum(0)), _each(x))),
]
