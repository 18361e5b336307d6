"""A fourth try, made when the third had been answered: (what was done, a phrase, the answer)."""

import math

import torch
import torch.nn.functional as F

check_first_expert = [
    (
        "the busiest of its experts",
        lambda r, t: int(
            max(r.expert_N[r.token_N == t].tolist(), key=lambda e: int((r.expert_N == e).sum()))
        ),
    ),
    (
        "of all before it",
        lambda r, t: int(r.expert_N[r.token_N <= t][r.gate_N[r.token_N <= t].argmax()]),
    ),
    ("a list of all", lambda r, t: r.expert_N[r.token_N == t].tolist()),
]

check_path = [
    ("layers two by two", lambda tr, t: [int(r.gates_TE()[t].argmax()) for r in tr.layers[::2]]),
    ("only the last", lambda tr, t: int(tr.layers[-1].gates_TE()[t].argmax())),
    ("gates for experts", lambda tr, t: [float(r.gates_TE()[t].max()) for r in tr.layers]),
]

check_networks_used = [
    (
        "a mean over the layers",
        lambda tr, ts: (
            len(
                {
                    (n, e)
                    for n, r in enumerate(tr.layers)
                    for t, e in zip(r.token_N.tolist(), r.expert_N.tolist(), strict=True)
                    if t in list(ts)
                }
            )
            / len(tr.layers)
        ),
    ),
    (
        "those that no token met",
        lambda tr, ts: (
            sum(r.num_experts for r in tr.layers)
            - len(
                {
                    (n, e)
                    for n, r in enumerate(tr.layers)
                    for t, e in zip(r.token_N.tolist(), r.expert_N.tolist(), strict=True)
                    if t in list(ts)
                }
            )
        ),
    ),
]


def _off(o, d):
    return (d[:, None] - o).square().sum(-1)


check_responsibilities = [
    ("the logits with another temperature", lambda z, o, d: (2 * z - _off(o, d) / 2).softmax(-1)),
    (
        "the last expert gets what is left, twice",
        lambda z, o, d: (
            lambda h: torch.cat([h[:, :-1], 1 - h[:, :-1].sum(1, keepdim=True) / 2], 1)
        )((z - _off(o, d) / 2).softmax(-1)),
    ),
    (
        "answers averaged over the experts first",
        lambda z, o, d: (z - _off(o.mean(1, keepdim=True).expand_as(o), d) / 2).softmax(-1),
    ),
]

check_working_experts = [
    (
        "at most this share",
        lambda z, s: (F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1) <= s).sum(-1),
    ),
    ("the winner's number", lambda z, s: F.one_hot(z.argmax(-1), z.shape[-1]).sum(1).argmax(-1)),
    (
        "a share of the experts",
        lambda z, s: (F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1) >= s).double().mean(-1),
    ),
    (
        "the last run for all",
        lambda z, s: (
            (F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1) >= s).sum(-1)[-1].expand(len(z))
        ),
    ),
]

check_fit_gate = [
    (
        "a target of 1 where left has more than half",
        lambda v, x, o, h: (
            lambda p: (
                v
                + torch.linalg.solve(
                    (x.T * (o * p * (1 - p))) @ x + 1e-3 * torch.eye(len(v)).to(x),
                    x.T @ (o * (h > o / 2) - o * p),
                )
            )
        )((x @ v).sigmoid()),
    ),
    (
        "half of the step",
        lambda v, x, o, h: (
            lambda p: (
                v
                + 0.5
                * torch.linalg.solve(
                    (x.T * (o * p * (1 - p))) @ x + 1e-3 * torch.eye(len(v)).to(x),
                    x.T @ (h - o * p),
                )
            )
        )((x @ v).sigmoid()),
    ),
    (
        "the diagonal of the curvature",
        lambda v, x, o, h: (
            lambda p: v + (x.T @ (h - o * p)) / ((x.T.square() * (o * p * (1 - p))).sum(1) + 1e-3)
        )((x @ v).sigmoid()),
    ),
]

check_constrain = [
    (
        "half a gate for whoever is ahead",
        lambda g, t, m: (lambda a: a / a.sum(-1, keepdim=True))(
            g * torch.where(t - t.mean() > m, 0.5, 1.0)
        ),
    ),
    (
        "only where a token's best is ahead",
        lambda g, t, m: torch.where(
            (g.argmax(-1) == t.argmax())[:, None],
            (lambda a: a / a.sum(-1, keepdim=True))(g * (t - t.mean() <= m)),
            g,
        ),
    ),
    (
        "all but the last place",
        lambda g, t, m: (lambda a: a / a.sum(-1, keepdim=True))(g * (t == t.min())),
    ),
]

check_sparse_gates = [
    (
        "each token's first k",
        lambda s, k: s.masked_fill(torch.arange(s.shape[1]) >= k, -torch.inf).softmax(-1),
    ),
    (
        "the k largest of the whole batch",
        lambda s, k: s.masked_fill(s < s.flatten().topk(k * len(s)).values[-1], -1e9).softmax(-1),
    ),
    (
        "scores, not gates",
        lambda s, k: torch.zeros_like(s).scatter(-1, s.topk(k).indices, s.topk(k).values),
    ),
]

check_prob_in_top_k = [
    (
        "1 for who is in",
        lambda c, n, s, k: (
            torch.ones_like(c)
            if k == c.shape[1]
            else (
                lambda v: torch.where(
                    n >= v[:, k - 1 : k], 1.0, torch.special.ndtr((c - v[:, k - 1 : k]) / s)
                )
            )(n.topk(k + 1).values)
        ),
    ),
    (
        "k / E for k = E alone, right else",
        lambda c, n, s, k: (
            (c * 0 + 0.5)
            if k == c.shape[1]
            else (
                lambda v: torch.special.ndtr(
                    (c - torch.where(n > v[:, k:], v[:, k:], v[:, k - 1 : k])) / s
                )
            )(n.topk(k + 1).values)
        ),
    ),
]

check_places = [
    ("cut to a multiple of eight", lambda T, E, f, K: -(-math.ceil(f * K * T / E) // 8) * 8),
    ("tokens less one", lambda T, E, f, K: math.ceil(f * K * (T - 1) / E)),
    ("as text", lambda T, E, f, K: f"{math.ceil(f * K * T / E)} places"),
]

check_rank = [
    ("earlier and later", lambda x, E: (x[:, None] == x).sum(1) - 1),
    ("divided by the number of experts", lambda x, E: torch.arange(len(x)) // E),
    ("backwards from the end of its queue, from 1", lambda x, E: (x[:, None] == x).triu().sum(1)),
]

check_first_choices = [
    (
        "all first choices of all experts before",
        lambda x, E: torch.stack(
            [
                (x[:, 0][:, None] == x[:, 0]).tril(-1).sum(1),
                len(x) + (x[:, 1][:, None] == x[:, 1]).tril(-1).sum(1),
            ],
            1,
        ),
    ),
    (
        "second choices behind their token's first",
        lambda x, E: (lambda r: torch.stack([r, r + 1], 1))(
            (x[:, 0][:, None] == x[:, 0]).tril(-1).sum(1)
        ),
    ),
]

check_counted_before = [
    (
        "the largest belief for P",
        lambda P, x, k: (
            P.shape[1] * (F.one_hot(x[:, 0], P.shape[1]).float().mean(0) * P.amax(0)).sum()
        ),
    ),
    (
        "the dropped counted twice",
        lambda P, x, k: (
            P.shape[1]
            * (F.one_hot(x[:, 0], P.shape[1]).float() * (2 - k[:, :1].float())).mean(0)
            @ P.mean(0)
        ),
    ),
    ("the entropy of the shares", lambda P, x, k: -(P.mean(0) * P.mean(0).log()).sum()),
]

check_balance_loss = [
    (
        "the product of the means, not the sum",
        lambda z, x: (
            z.shape[1]
            * (F.one_hot(x, z.shape[1]).float().mean((0, 1)) + z.softmax(-1).mean(0)).sum()
            / 2
        ),
    ),
    ("one expert too many in N", lambda z, x: (z.shape[1] + 1) * z.softmax(-1).mean(0)[x].mean()),
    (
        "K choices, P of the best K",
        lambda z, x: (
            z.shape[1]
            * (
                F.one_hot(x, z.shape[1]).float().mean((0, 1))
                * torch.zeros_like(z).scatter(1, x, z.softmax(-1).gather(1, x)).mean(0)
            ).sum()
        ),
    ),
]

check_push = [
    (
        "from the counts of this token",
        lambda z, f: (
            z.shape[1] / len(z) * z.softmax(-1) * (f - z.softmax(-1).square().sum(-1, keepdim=True))
        ),
    ),
    (
        "twice",
        lambda z, f: (lambda p: 2 * z.shape[1] / len(z) * p * (f - (p * f).sum(-1, keepdim=True)))(
            z.softmax(-1)
        ),
    ),
    (
        "T for E",
        lambda z, f: (lambda p: len(z) / z.shape[1] * p * (f - (p * f).sum(-1, keepdim=True)))(
            z.softmax(-1)
        ),
    ),
]

check_spacing = [
    ("32 up to 8192", lambda x: 32.0),
    ("from one below", lambda x: 2.0 ** (math.floor(math.log2(x - 0.5)) - 7) if x > 1 else 2.0**-7),
    ("float32's bits", lambda x: 2.0 ** (math.floor(math.log2(x)) - 23)),
]

check_z_gradient = [
    (
        "two for each expert",
        lambda z: 2 * z.shape[1] * z.logsumexp(-1, keepdim=True) * z.softmax(-1) / len(z),
    ),
    ("half a mean", lambda z: z.logsumexp(-1, keepdim=True) * z.softmax(-1)),
    (
        "the largest alone is pushed",
        lambda z: 2 * z.logsumexp(-1, keepdim=True) * F.one_hot(z.argmax(-1), z.shape[1]) / len(z),
    ),
]

check_expert_choice = [
    (
        "c twice",
        lambda z, c: (lambda v, i: (i, v))(
            *z.softmax(-1).T.topk(min(len(z), math.ceil(c * c * len(z) / z.shape[1])))
        ),
    ),
    (
        "one half of them",
        lambda z, c: (lambda v, i: (i, v))(
            *z.softmax(-1).T.topk(max(1, math.ceil(c * len(z) / z.shape[1]) // 2))
        ),
    ),
    (
        "worst of the best first",
        lambda z, c: (lambda v, i: (i.flip(1), v.flip(1)))(
            *z.softmax(-1).T.topk(min(len(z), math.ceil(c * len(z) / z.shape[1])))
        ),
    ),
]

check_violations = [
    (
        "pooled over a mean of the largest",
        lambda x: (x.sum(0).max() / x.amax(1).mean() - 1, (x.amax(1) / x.mean(1) - 1).mean()),
    ),
    (
        "squared",
        lambda x: (
            (x.sum(0).max() / x.sum(0).mean() - 1) ** 2,
            ((x.amax(1) / x.mean(1) - 1) ** 2).mean(),
        ),
    ),
    (
        "the first batch",
        lambda x: (x.sum(0).max() / x.sum(0).mean() - 1, x[0].max() / x[0].mean() - 1),
    ),
]

check_disable_top = [
    (
        "two always, as shown",
        lambda z, k, r: (
            lambda n: (lambda v, i: (v[:, n : n + k].softmax(-1), i[:, n : n + k]))(
                *z.sort(-1, descending=True)
            )
        )(min(2, z.shape[1] - k)),
    ),
    (
        "a share of those that are chosen or left",
        lambda z, k, r: (
            lambda n: (lambda v, i: (v[:, n : n + k].softmax(-1), i[:, n : n + k]))(
                *z.sort(-1, descending=True)
            )
        )(min(z.shape[1] - k, int(r * z.shape[1]) + 1)),
    ),
]

check_top_k = [
    (
        "one gate for the batch",
        lambda z, k: (z.topk(k).values.softmax(-1).mean(0).expand(len(z), k), z.topk(k).indices),
    ),
    (
        "half precision logits",
        lambda z, k: (z.bfloat16().float().topk(k).values.softmax(-1), z.topk(k).indices),
    ),
]

check_offsets = [
    (
        "the middle of each",
        lambda c: F.pad(c.sum(0).cumsum(0), (1, 0)) + F.pad(c.sum(0), (0, 1)) // 2,
    ),
    ("even shares", lambda c: torch.arange(c.shape[1] + 1) * c.sum() // c.shape[1]),
]

check_sum_by_token = [
    (
        "only the best gate",
        lambda y, g, n, K, kept: (
            lambda w: (
                y.masked_fill((torch.arange(len(y)) >= kept)[:, None], 0.0)[
                    n.view(-1, K).gather(1, w)[:, 0]
                ]
                * g[n].view(-1, K).amax(1, keepdim=True)
            )
        )(g[n].view(-1, K).argmax(1, keepdim=True)),
    ),
    (
        "gates made to add up to 1",
        lambda y, g, n, K, kept: (
            lambda w: (
                y.masked_fill((torch.arange(len(y)) >= kept)[:, None], 0.0)[n].view(
                    -1, K, y.shape[1]
                )
                * (w / w.sum(1, keepdim=True).clamp(min=1e-9))[..., None]
            ).sum(1)
        )(g[n].view(-1, K)),
    ),
]

check_quantize = [
    (
        "seven bits",
        lambda w: (lambda s: ((w / s).round().to(torch.int8), s))(
            (w.abs().amax(1, keepdim=True) / 63).clamp(min=1e-12)
        ),
    ),
    (
        "one row's scale for the next",
        lambda w: (lambda s: ((w / s).round().clamp(-127, 127).to(torch.int8), s.roll(1, 0)))(
            (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
        ),
    ),
]

check_information = [
    (
        "the sum of both entropies",
        lambda c: (
            -sum(
                float(torch.special.xlogy(p, p).sum())
                for p in (c.double().sum(1) / c.sum(), c.double().sum(0) / c.sum())
            )
            / math.log(2)
        ),
    ),
    ("the root of the mean square", lambda c: float((c.double() / c.sum()).square().sum().sqrt())),
]

check_saturation = [
    (
        "early ones that are twice there",
        lambda a, b: (a[:, :, None] == b[:, None]).double().sum((1, 2)).mean().item(),
    ),
    (
        "of different tokens",
        lambda a, b: (a[:, :, None] == b.roll(1, 0)[:, None]).any(1).double().mean().item(),
    ),
]

check_repetition = [
    (
        "texts of one less",
        lambda x, n: (x.view(-1, n)[:, 1:-1] == x.view(-1, n)[:, :-2]).double().mean().item(),
    ),
    (
        "runs, not neighbours",
        lambda x, n: float((x.view(-1, n).diff(dim=1) != 0).sum() + len(x) // n) / len(x),
    ),
]
