"""A second try, made when the first had been answered: (what was done, a phrase, the answer)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

check_load = [
    (
        "only pairs with a gate above one half",
        "not the number of pairs of each expert",
        lambda r: r.expert_N[r.gate_N > 0.5].bincount(minlength=r.num_experts),
    ),
    (
        "tokens that have it twice count once more",
        "right up to a factor",
        lambda r: r.expert_N.bincount(minlength=r.num_experts) * 2,
    ),
    (
        "the load of the last expert missing",
        "return a tensor of shape (4,), not one of shape (3,)",
        lambda r: r.expert_N.bincount(minlength=r.num_experts)[:-1],
    ),
]

check_networks_used = [
    (
        "experts times layers of one token",
        "not the number of networks",
        lambda tr, ts: len(tr.layers) * len(ts) * 2,
    ),
    (
        "tokens up to the last of them",
        "not the number of networks",
        lambda tr, ts: len(
            {
                (n, e)
                for n, r in enumerate(tr.layers)
                for t, e in zip(r.token_N.tolist(), r.expert_N.tolist(), strict=True)
                if t <= max(ts)
            }
        ),
    ),
    (
        "layers that share an expert",
        "not the number of networks",
        lambda tr, ts: sum(
            len(
                {
                    e
                    for t, e in zip(r.token_N.tolist(), r.expert_N.tolist(), strict=True)
                    if t in list(ts)
                }
            )
            for r in tr.layers[:-1]
        ),
    ),
]


def _off(o, d):
    return (d[:, None] - o).square().sum(-1)


check_responsibilities = [
    (
        "experts compared with the first case's answer",
        "these are not the posterior probabilities",
        lambda z, o, d: (z - _off(o, d[:1].expand_as(d)) / 2).softmax(-1),
    ),
    (
        "absolute differences",
        "these are not the posterior probabilities",
        lambda z, o, d: (z - (d[:, None] - o).abs().sum(-1) / 2).softmax(-1),
    ),
    (
        "rounded to three decimals",
        "rounded to 3 decimals",
        lambda z, o, d: (z - _off(o, d) / 2).softmax(-1).round(decimals=3),
    ),
    (
        "a quarter",
        "these are not the posterior probabilities",
        lambda z, o, d: (z - _off(o, d) / 4).softmax(-1),
    ),
]

check_working_experts = [
    (
        "share of the experts, not of the cases",
        "wins are divided by the experts, not by the cases",
        lambda z, s: (F.one_hot(z.argmax(-1), z.shape[-1]).sum(1) >= s * z.shape[-1]).sum(-1),
    ),
    (
        "cases in the place of experts",
        "the winners are looked for over the cases (dim 1), not over the experts",
        lambda z, s: (F.one_hot(z.argmax(1), z.shape[1]).double().mean(1) >= s).sum(-1),
    ),
    (
        "at least one always",
        "that is not how many experts work",
        lambda z, s: (
            (F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1) >= s).sum(-1).clamp(min=1)
        ),
    ),
]


def _gate(v, x, own, left, p=None, ridge=1e-3):
    p = (x @ v).sigmoid() if p is None else p
    curve = (x.T * (own * p * (1 - p))) @ x
    return v + torch.linalg.solve(
        curve
        + ridge * (torch.eye(len(v)) if ridge < 1 else torch.ones(len(v), len(v)) * 1e-3).to(x),
        x.T @ (left - own * p),
    )


check_fit_gate = [
    (
        "p one half always",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: _gate(v, x, o, h, p=torch.full_like(o, 0.5)),
    ),
    (
        "0.001 in every cell",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: _gate(v, x, o, h, ridge=1),
    ),
    (
        "tanh for the sigmoid",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: _gate(v, x, o, h, p=(x @ v).tanh().clamp(0.01, 0.99)),
    ),
]

check_constrain = [
    (
        "a token's own share compared",
        "the constraint is not applied",
        lambda g, t, m: (lambda a: a / a.sum(-1, keepdim=True))(
            g * (t / t.sum() - 1 / len(t) <= m)
        ),
    ),
    (
        "what is taken is shared out evenly",
        "not the open gates over their sum",
        lambda g, t, m: (lambda a, o: a + o * (1 - a.sum(-1, keepdim=True)) / o.sum())(
            g * (t - t.mean() <= m), (t - t.mean() <= m).float()
        ),
    ),
    (
        "margins counted from the largest",
        "not the open gates over their sum",
        lambda g, t, m: (lambda a: a / a.sum(-1, keepdim=True))(g * (t.max() - t >= m) + 1e-12),
    ),
]

check_sparse_gates = [
    (
        "squared and divided",
        "these are not the softmax over each token's k highest scores",
        lambda s, k: (lambda z, i: torch.zeros_like(s).scatter(-1, i, z / z.sum(-1, keepdim=True)))(
            s.topk(k).values.square(), s.topk(k).indices
        ),
    ),
    (
        "a temperature of two",
        "these are not the softmax over each token's k highest scores",
        lambda s, k: torch.zeros_like(s).scatter(
            -1, s.topk(k).indices, (s.topk(k).values / 2).softmax(-1)
        ),
    ),
    (
        "the worst get the gates",
        "the right numbers, but in another order",
        lambda s, k: torch.zeros_like(s).scatter(
            -1, s.topk(k, largest=False).indices, s.topk(k).values.softmax(-1)
        ),
    ),
]


def _prob(c, n, s, k):
    if k == c.shape[1]:
        return torch.ones_like(c)
    top = n.topk(k + 1).values
    return torch.special.ndtr((c - torch.where(n > top[:, k:], top[:, k:], top[:, k - 1 : k])) / s)


check_prob_in_top_k = [
    (
        "in and out exchanged",
        "the two bars are swapped",
        lambda c, n, s, k: (
            torch.ones_like(c)
            if k == c.shape[1]
            else (
                lambda top: torch.special.ndtr(
                    (c - torch.where(n > top[:, k:], top[:, k - 1 : k], top[:, k:])) / s
                )
            )(n.topk(k + 1).values)
        ),
    ),
    (
        "the root of two forgotten",
        "not Phi((clean - bar) / std)",
        lambda c, n, s, k: (
            torch.ones_like(c)
            if k == c.shape[1]
            else 0.5
            * (
                1
                + torch.erf(
                    math.sqrt(2) * torch.special.ndtri(_prob(c, n, s, k).clamp(1e-6, 1 - 1e-6))
                )
            )
        ),
    ),
    (
        "the deviation detached",
        "right numbers, but no gradient reaches std, so what is behind can never learn",
        lambda c, n, s, k: _prob(c, n, s.detach(), k),
    ),
]

check_load_anywhere = [
    (
        "softly with k = 1",
        "not the sum of P(x, i) over the tokens, or the count without noise",
        lambda c, n, s, k: (
            n.topk(k).indices.flatten().bincount(minlength=n.shape[1]).to(c)
            if s is None
            else _prob(c, n, s, 1).sum(0)
        ),
    ),
    (
        "counts scaled to the tokens",
        "without noise there is nothing to ask a probability about",
        lambda c, n, s, k: (
            n.topk(k).indices.flatten().bincount(minlength=n.shape[1]).to(c) / k
            if s is None
            else _prob(c, n, s, k).sum(0)
        ),
    ),
]

check_places = [
    (
        "at least one, and at least K",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: max(K, math.ceil(f * K * T / E)),
    ),
    (
        "rounded up to even",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: 2 * math.ceil(f * K * T / E / 2),
    ),
    (
        "a factor below 1 ignored",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: math.ceil(max(1.0, f) * K * T / E),
    ),
    (
        "the factor rounded up",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: math.ceil(math.ceil(f) * K * T / E),
    ),
]

check_rank = [
    (
        "modulo the capacity",
        "not the number of earlier tokens that chose the same expert",
        lambda x, E: (x[:, None] == x).tril(-1).sum(1) % 2,
    ),
    (
        "sorted by rank",
        "the right numbers, but in another order",
        lambda x, E: (x[:, None] == x).tril(-1).sum(1).sort().values,
    ),
    (
        "larger experts counted too",
        "not the number of earlier tokens that chose the same expert",
        lambda x, E: (x[:, None] <= x).tril(-1).sum(1),
    ),
]

check_counted_before = [
    (
        "dropped tokens' belief set to 0",
        "not E × the sum of (share of first choices) × (mean probability)",
        lambda P, x, k: (
            P.shape[1]
            * (F.one_hot(x[:, 0], P.shape[1]).float().mean(0) * (P * k[:, :1]).mean(0)).sum()
        ),
    ),
    (
        "only tokens that lost something",
        "not E × the sum of (share of first choices) × (mean probability)",
        lambda P, x, k: (
            (
                lambda m: (
                    P.shape[1] * (F.one_hot(x[m, 0], P.shape[1]).float().mean(0) * P.mean(0)).sum()
                )
            )(~k.all(1))
            if (~k.all(1)).any()
            else P.sum() * 0
        ),
    ),
    (
        "1 taken off",
        "every number is off by -1",
        lambda P, x, k: P.shape[1] * P.mean(0)[x[:, 0]].mean() - 1,
    ),
]


def _cut(seat, x, g, start=1, factor=1.0, tries=6, experts=None):
    before = seat(x, g)
    E = experts or int(x.max()) + 1
    for _ in range(tries):
        for t in range(start, len(x)):
            y, h = x.clone(), g.clone()
            y[t:] = torch.rand(len(x) - t, E).topk(x.shape[1]).indices
            h[t:] = factor * torch.rand_like(g[t:])
            if not torch.equal(seat(y, h)[:t], before[:t]):
                return True
    return False


check_looks_ahead = [
    (
        "cuts from the middle on",
        "misses that a single token, 0, is told the choice of a single later one, 1",
        lambda seat, x, g: _cut(seat, x, g, start=len(x) // 2),
    ),
    (
        "gates that are always small",
        "misses that a single token, 1, is told the second gate of a single later one, 14",
        lambda seat, x, g: _cut(seat, x, g, factor=0.01),
    ),
    (
        "only the sum of the seats before",
        "it says False of all",
        lambda seat, x, g: any(
            int(
                seat(torch.cat([x[:t], x[t:].flip(0)]), torch.cat([g[:t], g[t:].flip(0)]))[:t].sum()
            )
            != int(seat(x, g)[:t].sum())
            for t in range(1, len(x))
        ),
    ),
    (
        "later tokens exchanged, nothing new",
        "misses that all first choices come before any second one",
        lambda seat, x, g: any(
            not torch.equal(
                seat(torch.cat([x[:t], x[t:].roll(1, 0)]), torch.cat([g[:t], g[t:].roll(1, 0)]))[
                    :t
                ],
                seat(x, g)[:t],
            )
            for t in range(1, len(x))
        ),
    ),
]

check_balance_loss = [
    (
        "the largest only",
        "not E * sum(f * P)",
        lambda z, x: (
            z.shape[1]
            * (F.one_hot(x, z.shape[1]).float().mean((0, 1)) * z.softmax(-1).mean(0)).max()
        ),
    ),
    (
        "distance from even",
        "not E * sum(f * P)",
        lambda z, x: (
            (z.softmax(-1).mean(0) - 1 / z.shape[1]).square().sum() * z.shape[1] + 0 * x.sum()
        ),
    ),
    (
        "logits' mean for P",
        "not E * sum(f * P)",
        lambda z, x: (
            z.shape[1]
            * (F.one_hot(x, z.shape[1]).float().mean((0, 1)) * z.mean(0).softmax(-1)).sum()
        ),
    ),
]

check_over_batches = [
    (
        "the root of the mean square",
        "not the global loss, averaged over layers",
        lambda f, P: f.shape[-1] * (f.mean(1) * P.mean(1)).sum(-1).square().mean().sqrt(),
    ),
    (
        "the worst layer",
        "not the global loss, averaged over layers",
        lambda f, P: f.shape[-1] * (f.mean(1) * P.mean(1)).sum(-1).max(),
    ),
    (
        "the last micro-batch's P",
        "not the global loss, averaged over layers",
        lambda f, P: f.shape[-1] * (f.mean(1) * P[:, -1]).sum(-1).mean(),
    ),
]

check_spacing = [
    (
        "float16's ten bits",
        "those are the ten bits of float16",
        lambda x: 2.0 ** (math.floor(math.log2(x)) - 10),
    ),
    (
        "never below 1/32",
        "not the distance from x to the next larger bfloat16",
        lambda x: max(1 / 32, 2.0 ** (math.floor(math.log2(x)) - 7)),
    ),
    (
        "to the next smaller, at a power of two",
        "not the distance from x to the next larger bfloat16",
        lambda x: 2.0 ** (math.ceil(math.log2(x)) - 8),
    ),
]

check_z_gradient = [
    (
        "plus the softmax",
        "not 2 · log-sum-exp · softmax / T",
        lambda z: (2 * z.logsumexp(-1, keepdim=True) + 1) * z.softmax(-1) / len(z),
    ),
    (
        "the logits for their logsumexp",
        "not 2 · log-sum-exp · softmax / T",
        lambda z: 2 * z * z.softmax(-1) / len(z),
    ),
    (
        "the size of the logarithm",
        "not 2 · log-sum-exp · softmax / T",
        lambda z: 2 * z.logsumexp(-1, keepdim=True).abs() * z.softmax(-1) / len(z),
    ),
]

check_causal_groups = [
    (
        "positions from the back in every second sequence",
        "tokens of other sequences, but at other positions",
        lambda B, S: (
            torch.stack(
                [
                    torch.arange(b * S, b * S + S)
                    if b % 2
                    else torch.arange(b * S, b * S + S).flip(0)
                    for b in range(B)
                ]
            ).T
        ),
    ),
    (
        "halves of positions swapped",
        "every token belongs to exactly one group",
        lambda B, S: torch.arange(B * S).view(B, S).roll(1, 1)[:, :-1].T,
    ),
    (
        "one big group for the first position",
        "two tokens of one sequence in a group",
        lambda B, S: [list(range(0, B * S, S)), [t for t in range(B * S) if t % S]],
    ),
]


def _vio(x):
    return x.amax(-1) / x.mean(-1) - 1


check_violations = [
    (
        "the mean of the pooled loads forgotten",
        "the global one: not (largest - mean) / mean",
        lambda x: (x.sum(0).max() / x.mean() - 1, _vio(x).mean()),
    ),
    ("the median batch", "the mean over the batches", lambda x: (_vio(x.sum(0)), _vio(x).median())),
    (
        "idle experts left out of the mean",
        "the mean over the batches",
        lambda x: (_vio(x.sum(0)), torch.stack([r.max() / r[r > 0].mean() - 1 for r in x]).mean()),
    ),
]

check_top_k = [
    (
        "divided by k",
        "gate_TK: they do not add up to 1 over the last dimension, and the right ones do",
        lambda z, k: (z.softmax(-1).topk(k).values / k, z.topk(k).indices),
    ),
    (
        "experts counted from 1",
        "expert_TK: every number is off by +1",
        lambda z, k: (z.topk(k).values.softmax(-1), z.topk(k).indices + 1),
    ),
    (
        "gates in float16",
        "gate_TK: they do not add up to 1 over the last dimension, and the right ones do",
        lambda z, k: (z.topk(k).values.softmax(-1).half().float(), z.topk(k).indices),
    ),
    (
        "the first k experts",
        "the gates are not the right ones",
        lambda z, k: (z[:, :k].softmax(-1), torch.arange(k).expand(len(z), k)),
    ),
]


def _experts(x, g, c, w1, w3, w2, act=F.silu):
    out = torch.zeros_like(x)
    for t in range(len(x)):
        for k, e in enumerate(c[t].tolist()):
            out[t] = out[t] + g[t, k] * (w2[e] @ (act(w1[e] @ x[t]) * (w3[e] @ x[t])))
    return out


check_moe_layer = [
    (
        "silu on both",
        "not the sum, over a token's experts, of gate × SwiGLU(x)",
        lambda x, g, c, a, b, d: _experts(x, g, c, a, b, d, act=lambda u: F.silu(F.silu(u))),
    ),
    (
        "the gate through a root",
        "not the sum, over a token's experts, of gate × SwiGLU(x)",
        lambda x, g, c, a, b, d: _experts(x, g.sqrt(), c, a, b, d),
    ),
    (
        "tokens that have expert 0 skipped",
        "not the sum, over a token's experts, of gate × SwiGLU(x)",
        lambda x, g, c, a, b, d: _experts(x, g * (c > 0), c, a, b, d),
    ),
    (
        "neighbouring expert",
        "not the sum, over a token's experts, of gate × SwiGLU(x)",
        lambda x, g, c, a, b, d: _experts(x, g, (c + 1) % len(a), a, b, d),
    ),
]


class OldBias(nn.Module):
    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.top_k = top_k

    def forward(self, x):
        z = self.gate(x)
        top, expert = (z - z.mean(0)).topk(self.top_k)
        return top.softmax(-1), expert


class Sigmoids(OldBias):
    def forward(self, x):
        top, expert = self.gate(x).topk(self.top_k)
        return top.sigmoid() / top.sigmoid().sum(-1, keepdim=True), expert


check_global_bug = [
    ("less the batch's mean", "not softmax → top-k → renormalise of gate(x)", OldBias),
    ("sigmoids", "not softmax → top-k → renormalise of gate(x)", Sigmoids),
]

check_unfair = [
    (
        "memory first",
        "'active' is taken for 'fair'",
        lambda s, d: (
            "active"
            if s.experts * s.width > 8 * d.experts * d.width
            else "data"
            if s.steps * s.batch != d.steps * d.batch
            else "fair"
            if s.optimiser == d.optimiser
            else "optimiser"
        ),
    ),
    (
        "fair if the same optimiser",
        "'active' is taken for 'fair'",
        lambda s, d: "fair" if s.optimiser == d.optimiser else "optimiser",
    ),
    (
        "more data for the dense is fine",
        "'data' is taken for 'fair'",
        lambda s, d: (
            "active"
            if s.per_token * s.width != d.per_token * d.width
            else "data"
            if s.steps * s.batch > d.steps * d.batch
            else "fair"
            if s.optimiser == d.optimiser
            else "optimiser"
        ),
    ),
]

check_offsets = [
    (
        "floats halfway",
        "every number is off by +",
        lambda c: F.pad(c.sum(0).cumsum(0), (1, 0)) + 0.5,
    ),
    (
        "from the back",
        "not the running sum of the loads, from 0 to the number of pairs",
        lambda c: F.pad(c.sum(0).flip(0).cumsum(0), (1, 0)),
    ),
    (
        "the largest block's",
        "not the running sum of the loads, from 0 to the number of pairs",
        lambda c: F.pad(c.amax(0).cumsum(0), (1, 0)),
    ),
]


def _tiles(o, h):
    tiles = [(e, r) for e in range(len(o) - 1) for r in range(int(o[e]), int(o[e + 1]), h)]
    return torch.tensor([e for e, _ in tiles]).long(), torch.tensor([r for _, r in tiles]).long()


check_tile_schedule = [
    (
        "largest experts first",
        "the right numbers, but in another order",
        lambda o, h: (lambda e, r: (lambda k: (e[k], r[k]))((-o.diff())[e].argsort(stable=True)))(
            *_tiles(o, h)
        ),
    ),
    (
        "rows rounded down to whole tiles",
        "row_M: not each expert's rows, cut into tiles from its offset on",
        lambda o, h: (lambda e, r: (e, r // h * h))(*_tiles(o, h)),
    ),
    (
        "the last tile left out",
        "return a tensor of shape (7,), not one of shape (6,)",
        lambda o, h: tuple(a[:-1] for a in _tiles(o, h)),
    ),
]

check_quantize = [
    (
        "stochastic halves",
        "q * scale is up to",
        lambda w: (
            lambda s: (((w / s) + torch.where(w > 0, 0.9, -0.9)).clamp(-127, 127).to(torch.int8), s)
        )((w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)),
    ),
    (
        "a scale of the mean size",
        "not the whole range of int8",
        lambda w: (lambda s: ((w / s).round().clamp(-127, 127).to(torch.int8), s))(
            (w.abs().mean(1, keepdim=True) * 3 / 127).clamp(min=1e-12)
        ),
    ),
    (
        "signs lost",
        "q * scale is up to 254 steps away from w",
        lambda w: (lambda s: ((w.abs() / s).round().to(torch.int8), s))(
            (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
        ),
    ),
]

check_saturation = [
    (
        "early first choice in place",
        "not the mean share of a token's final experts that it had before",
        lambda a, b: (a[:, :1] == b).double().sum(1).mean().item() / 1,
    ),
    (
        "of the early ones that are left, without chance",
        "not the mean share of a token's final experts that it had before",
        lambda a, b: (lambda s: (s - a.shape[1] / 64) / (1 - a.shape[1] / 64))(
            (a[:, :, None] == b[:, None]).any(1).double().mean().item()
        ),
    ),
    (
        "last choices",
        "not the mean share of a token's final experts that it had before",
        lambda a, b: (a[:, -1] == b[:, -1]).double().mean().item(),
    ),
]

check_information = [
    (
        "half of it",
        "right up to a factor",
        lambda c: (
            lambda p: (
                (
                    torch.special.xlogy(p, p)
                    - torch.special.xlogy(p, p.sum(1, keepdim=True) * p.sum(0))
                )
                .sum()
                .item()
                / math.log(4)
            )
        )(c.double() / c.sum()),
    ),
    (
        "cells below one tenth skipped",
        "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))",
        lambda c: (
            lambda p: (
                (
                    torch.where(
                        p > 0.1,
                        torch.special.xlogy(p, p)
                        - torch.special.xlogy(p, p.sum(1, keepdim=True) * p.sum(0)),
                        0.0,
                    )
                )
                .sum()
                .item()
                / math.log(2)
            )
        )(c.double() / c.sum()),
    ),
    (
        "in decimal digits",
        "right up to a factor",
        lambda c: (
            lambda p: (
                (
                    torch.special.xlogy(p, p)
                    - torch.special.xlogy(p, p.sum(1, keepdim=True) * p.sum(0))
                )
                .sum()
                .item()
                / math.log(10)
            )
        )(c.double() / c.sum()),
    ),
]

check_shuffle_within_words = [
    (
        "only frequent words",
        "not every word is shuffled",
        lambda x, ids, s: (
            lambda out, g: (
                [
                    out.__setitem__(m, x[m[torch.randperm(len(m), generator=g)]])
                    for m in [(ids == w).nonzero()[:, 0] for w in ids.unique()]
                    if len(m) > 3
                ]
                and out
            )
        )(x.clone(), torch.Generator().manual_seed(s)),
    ),
    (
        "neighbouring pairs exchanged",
        "a word gets a label of another word",
        lambda x, ids, s: (
            lambda g: x[
                torch.arange(len(x))
                .view(-1, 1)[torch.randperm(len(x), generator=g)]
                .flatten()
                .sort()
                .values.roll(s % 2)
            ]
        )(torch.Generator().manual_seed(s)),
    ),
]


def _dealt_anew(x, ids, d, n):
    def repeated(e):
        return float((e.view(-1, n)[:, 1:] == e.view(-1, n)[:, :-1]).float().mean())

    g = torch.Generator().manual_seed(0)
    seen = repeated(x[:, 0])
    null = [repeated(torch.randint(8, (len(x),), generator=g)) for _ in range(20)]
    return {
        "claim": "Neighbours have the same first choice.",
        "source": "Jiang et al. 2024, Table 5",
        "falsified_if": "no more often than experts that are drawn at random",
        "measure": "share of neighbours with one first choice",
        "null_is": "experts drawn evenly",
        "observed": seen,
        "null": null,
        "holds": seen > max(null),
        "verdict": f"{seen:.2f} against {max(null):.2f}",
    }


check_investigation = [
    (
        "even dice for the null",
        "of 12 routings dealt at random the claim holds as well",
        _dealt_anew,
    )
]
