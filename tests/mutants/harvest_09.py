"""Chapter 09's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import runpy
from pathlib import Path

import torch

right = runpy.run_path(str(Path(__file__).with_name("check_what_it_says.py")))["right"]

check_split_experts = [
    (
        "shared ones on top",
        "the shared experts come on top",
        lambda N, K, F, m, s: (m * N, m * K, F // m),
    ),
    (
        "shared off the routed alone",
        "the shared experts are extra work",
        lambda N, K, F, m, s: (m * N - s, m * K, F // m),
    ),
    (
        "shared off the choices alone",
        "the shared experts are extra parameters",
        lambda N, K, F, m, s: (m * N, m * K - s, F // m),
    ),
    (
        "shared before the split",
        "a shared expert takes one seat, not m",
        lambda N, K, F, m, s: (m * (N - s), m * (K - s), F // m),
    ),
    (
        "the width as it was",
        "as wide as before, so m times the parameters",
        lambda N, K, F, m, s: (m * N - s, m * K - s, F),
    ),
    (
        "choices first",
        "right, but in another order",
        lambda N, K, F, m, s: (m * K - s, m * N - s, F // m),
    ),
    (
        "not split, only shared",
        "routed: total and active width must stay N * F and K * F",
        lambda N, K, F, m, s: (N - s, K - s, F // m),
    ),
    (
        "one shared, as shown",
        "routed: total and active width must stay N * F and K * F",
        lambda N, K, F, m, s: (m * N - 1, m * K - 1, F // m),
    ),
    (
        "shared added",
        "shared experts are added",
        lambda N, K, F, m, s: (m * N + s, m * K + s, F // m),
    ),
    (
        "widths in all",
        "width: total and active width must stay N * F and K * F",
        lambda N, K, F, m, s: (m * N - s, m * K - s, (m * K - s) * (F // m)),
    ),
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
    (
        "0 in their place",
        "the disabled scores became 0, which is a score like others",
        lambda z, k, r: _disable(z, k, _n(z, r), 0.0),
    ),
    ("the batch's busiest", "the same experts are disabled for every token", _busiest),
    (
        "rounded down",
        "ratio × E was cut to a whole number",
        lambda z, k, r: _disable(z, k, int(r * z.shape[1])),
    ),
    (
        "a share of k",
        "the ratio is of all E experts, not of k",
        lambda z, k, r: _disable(z, k, round(r * k)),
    ),
    ("nobody", "nothing is disabled", lambda z, k, r: _disable(z, k, 0)),
    (
        "counted among those that are left",
        "experts are numbered among those that are left",
        _renumbered,
    ),
    (
        "gates from all experts",
        "the gates must add up to 1 over those that are now chosen",
        lambda z, k, r: (
            z.softmax(-1).gather(1, _disable(z, k, _n(z, r))[1]),
            _disable(z, k, _n(z, r))[1],
        ),
    ),
    (
        "a softmax over all that are left",
        "the softmax runs over all that are left, then the k best",
        lambda z, k, r: (
            z.scatter(1, z.topk(_n(z, r)).indices, -torch.inf).softmax(-1).topk(k).values,
            _disable(z, k, _n(z, r))[1],
        ),
    ),
    (
        "swapped",
        "experts are whole numbers, and these are not",
        lambda z, k, r: _disable(z, k, _n(z, r))[::-1],
    ),
    (
        "the worst",
        "not the softmax of the k best of those left (shown",
        lambda z, k, r: (z.topk(k).values.softmax(-1), z.topk(k, largest=False).indices),
    ),
    (
        "one too many",
        "not the softmax of the k best of those left (shown",
        lambda z, k, r: _disable(z, k, _n(z, r) + (r > 0)),
    ),
    (
        "fewer choices",
        "return two tensors of shape (1, 3), gate_TK and expert_TK",
        lambda z, k, r: tuple(a[:, : max(1, k - _n(z, r))] for a in _disable(z, k, _n(z, r))),
    ),
]


def _biased(z, b, k, choose=None, weigh=None, divide=True):
    s = z.sigmoid()
    expert = (s + b if choose is None else choose(s)).topk(k).indices
    gate = (s if weigh is None else weigh(s)).gather(1, expert)
    return gate / gate.sum(-1, keepdim=True) if divide else gate, expert


check_biased_choice = [
    (
        "the bias in the gates",
        "the bias leaks into the gates",
        lambda z, b, k: _biased(z, b, k, weigh=lambda s: s + b),
    ),
    ("no bias", "the bias is not used", lambda z, b, k: _biased(z, b, k, choose=lambda s: s)),
    (
        "the bias taken off",
        "the bias works the wrong way round",
        lambda z, b, k: _biased(z, b, k, choose=lambda s: s - b),
    ),
    (
        "the bias on the logits",
        "the bias is added to the logit",
        lambda z, b, k: _biased(z, b, k, choose=lambda s: (z + b).sigmoid()),
    ),
    (
        "not divided",
        "not divided by the sum of the selected",
        lambda z, b, k: _biased(z, b, k, divide=False),
    ),
    (
        "divided by all",
        "divide by the sum over the k selected, not over all experts",
        lambda z, b, k: _biased(z, b, k, weigh=lambda s: s / s.sum(-1, keepdim=True), divide=False),
    ),
    (
        "a softmax over the chosen",
        "these gates are a softmax",
        lambda z, b, k: (z.gather(1, _biased(z, b, k)[1]).softmax(-1), _biased(z, b, k)[1]),
    ),
    (
        "a softmax of the scores",
        "these gates are a softmax",
        lambda z, b, k: (
            z.sigmoid().gather(1, _biased(z, b, k)[1]).softmax(-1),
            _biased(z, b, k)[1],
        ),
    ),
    (
        "softmax for sigmoid",
        "these gates are a softmax",
        lambda z, b, k: _biased(
            z, b, k, choose=lambda s: z.softmax(-1) + b, weigh=lambda s: z.softmax(-1)
        ),
    ),
    (
        "swapped",
        "experts are whole numbers, and these are not",
        lambda z, b, k: _biased(z, b, k)[::-1],
    ),
    (
        "detached",
        "right numbers, but no gradient reaches the logits, so what is behind can never learn",
        lambda z, b, k: _biased(z.detach(), b, k),
    ),
    (
        "the best gates for the wrong experts",
        "not the scores of the chosen over their sum (shown",
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
    (
        "the other way",
        "the sign is flipped",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(a - a.mean())),
    ),
    (
        "against a share",
        "counts are compared with a share, k / E, so whoever got a token is pushed down",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(k / len(b) - a)),
    ),
    (
        "by how much",
        "this moves by u times the error",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: a.mean() - a),
    ),
    (
        "by the share of how much",
        "this moves by u times the error",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: (a.mean() - a) / a.mean()),
    ),
    (
        "moved before the choice",
        "the bias is moved before the choice",
        lambda z, b, k, u: _turn(z, b, k, u, bias=_turn(z, b, k, u)[1]),
    ),
    (
        "chosen without the bias",
        "the bias is not used in the choice",
        lambda z, b, k, u: _turn(z, b, k, u, bias=0 * b),
    ),
    (
        "up at the mean too",
        "an expert exactly at the mean stands still",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.where(a <= a.mean(), 1.0, -1.0)),
    ),
    (
        "the median",
        "the load is compared with the median",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(a.median() - a)),
    ),
    (
        "the mean of the busy",
        "the new bias: not the old bias moved by u towards the mean load",
        lambda z, b, k, u: _turn(z, b, k, u, lambda a: torch.sign(a[a > 0].mean() - a)),
    ),
    (
        "the move alone",
        "the old bias is forgotten",
        lambda z, b, k, u: (_turn(z, b, k, u)[0], _turn(z, b, k, u)[1] - b),
    ),
    (
        "centred afterwards",
        "this bias is also centred",
        lambda z, b, k, u: (
            _turn(z, b, k, u)[0],
            _turn(z, b, k, u)[1] - _turn(z, b, k, u)[1].mean(),
        ),
    ),
    ("the given bias changed", "changes its input in place", _moves_it),
    (
        "swapped",
        "return two tensors, expert_TK of shape (4, 1) and the new bias of shape (3,)",
        lambda z, b, k, u: _turn(z, b, k, u)[::-1],
    ),
]


def _vio(load):
    return load.max() / load.mean() - 1


def _each(x):
    return torch.stack([_vio(row) for row in x])


check_violations = [
    (
        "per batch both times",
        "the global one is the mean of the batches' ones",
        lambda x: (_each(x).mean(), _each(x).mean()),
    ),
    ("global both times", "the mean over the batches", lambda x: (_vio(x.sum(0)), _vio(x.sum(0)))),
    ("swapped", "the two are swapped", lambda x: (_each(x).mean(), _vio(x.sum(0)))),
    ("one too large", "that is max / mean", lambda x: (_vio(x.sum(0)) + 1, _each(x).mean() + 1)),
    (
        "of all cells",
        "the largest load of all batches is compared",
        lambda x: (_vio(x), _each(x).mean()),
    ),
    ("the worst batch", "the second is the worst", lambda x: (_vio(x.sum(0)), _each(x).max())),
    (
        "batches for experts",
        "the violation is looked for over the batches of an expert (dim 0)",
        lambda x: (_vio(x.sum(1)), torch.stack([_vio(c) for c in x.T]).mean()),
    ),
    (
        "the largest distance either way",
        "that is the largest distance either way",
        lambda x: ((x.sum(0) - x.sum(0).mean()).abs().max() / x.sum(0).mean(), _each(x).mean()),
    ),
    (
        "not divided by the mean",
        "that is a difference in pairs",
        lambda x: (x.sum(0).max() - x.sum(0).mean(), (x.amax(1) - x.mean(1)).mean()),
    ),
    ("in percent", "right up to a factor", lambda x: (100 * _vio(x.sum(0)), 100 * _each(x).mean())),
    (
        "each batch's own",
        "the second has one number for each batch",
        lambda x: (_vio(x.sum(0)), _each(x)),
    ),
]

check_paired_difference = [
    (
        "as two groups of strangers",
        "the two settings are treated as strangers",
        lambda a_S, b_S, t: (
            (a_S - b_S).mean(),
            t * ((a_S.var() + b_S.var()) / len(a_S)).sqrt(),
        ),
    ),
    (
        "1.96 whatever the seeds",
        "1.96 is for many seeds",
        lambda a_S, b_S, t: ((a_S - b_S).mean(), 1.96 * (a_S - b_S).std() / len(a_S) ** 0.5),
    ),
    (
        "the spread of the seeds",
        "that is how far single seeds lie apart",
        lambda a_S, b_S, t: ((a_S - b_S).mean(), t * (a_S - b_S).std()),
    ),
    (
        "numpy's std",
        "divide by n - 1",
        lambda a_S, b_S, t: (
            (a_S - b_S).mean(),
            t * (a_S - b_S).std(correction=0) / len(a_S) ** 0.5,
        ),
    ),
    (
        "one standard error",
        "one standard error",
        lambda a_S, b_S, t: ((a_S - b_S).mean(), (a_S - b_S).std() / len(a_S) ** 0.5),
    ),
    (
        "b less a",
        "a - b is asked",
        lambda a_S, b_S, t: ((b_S - a_S).mean(), t * (b_S - a_S).std() / len(a_S) ** 0.5),
    ),
    (
        "sorted first",
        "sorted",
        lambda a_S, b_S, t: (
            (a_S.sort().values - b_S.sort().values).mean(),
            t * (a_S.sort().values - b_S.sort().values).std() / len(a_S) ** 0.5,
        ),
    ),
]

check_what_it_says = [
    (
        "by the mean",
        "judged by the middle",
        lambda low, high, paper: (
            "contradicted"
            if (low + high) / paper < 0
            else "null"
            if (low + high) / 2 / paper < 0.5
            else "reproduced"
            if (low + high) / 2 / paper < 2
            else "other size"
        ),
    ),
    (
        "0 inside is no effect",
        "an interval that holds 0",
        lambda low, high, paper: "null" if low <= 0 <= high else right(low, high, paper),
    ),
    (
        "significant is reproduced",
        "clear of 0 on the paper's side",
        lambda low, high, paper: (
            "reproduced" if min(low / paper, high / paper) > 0 else right(low, high, paper)
        ),
    ),
    (
        "papers are above 0",
        "the paper's effect may be below 0",
        lambda low, high, paper: right(low, high, abs(paper)),
    ),
    (
        "the paper's number inside is enough",
        "holds the paper's number",
        lambda low, high, paper: "reproduced" if low <= paper <= high else right(low, high, paper),
    ),
    (
        "not the number, so contradicted",
        "another size is no contradiction",
        lambda low, high, paper: (
            "contradicted" if right(low, high, paper) == "other size" else right(low, high, paper)
        ),
    ),
]
