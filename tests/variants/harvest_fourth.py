"""A fourth try at unusual right answers, made when the third had been answered."""

import math

import numpy as np
import torch
import torch.nn.functional as F

check_first_expert = [
    (
        "the best of a dict",
        lambda r, t: (lambda d: max(d, key=d.get))(
            {
                int(e): float(g)
                for n, e, g in zip(r.token_N, r.expert_N, r.gate_N, strict=True)
                if n == t
            }
        ),
    )
]
check_networks_used = [
    (
        "one matrix of gates for each layer",
        lambda tr, ts: int(sum((r.gates_TE()[list(ts)] > 0).any(0).sum() for r in tr.layers)),
    )
]
check_responsibilities = [
    (
        "odds",
        lambda z, o, d: (lambda a: 1 / (a[:, None, :] - a[:, :, None]).exp().sum(-1))(
            z.double() - (o - d[:, None]).double().pow(2).sum(-1) / 2
        ),
    )
]
check_working_experts = [
    (
        "a histogram of each run, int32",
        lambda z, s: torch.stack(
            [
                (
                    torch.histc(q.argmax(-1).double(), z.shape[-1], 0, z.shape[-1] - 1e-9) / len(q)
                    >= s
                )
                .sum()
                .int()
                for q in z
            ]
        ),
    )
]
check_fit_gate = [
    (
        "least squares in the place of solve",
        lambda v, x, o, h: (
            lambda p: (
                v
                + torch.linalg.lstsq(
                    x.T @ ((o * p * (1 - p))[:, None] * x) + 0.001 * torch.eye(x.shape[1]).to(x),
                    (x.T @ (h - o * p))[:, None],
                )[0][:, 0]
            )
        )(1 / (1 + (-x @ v).exp())),
    )
]
check_constrain = [
    ("normalize", lambda g, t, m: F.normalize(g.masked_fill(t > t.mean() + m, 0), p=1, dim=1))
]
check_sparse_gates = [
    (
        "differences to the best",
        lambda s, k: (lambda e: e / e.sum(1, keepdim=True))(
            (s - s.amax(1, keepdim=True)).exp()
            * torch.zeros_like(s).scatter(1, s.topk(k).indices, 1)
        ),
    )
]
check_rank = [
    (
        "a running dictionary of lists",
        lambda x, E: torch.as_tensor(
            [sum(1 for u in range(t) if x[u] == x[t]) for t in range(len(x))], dtype=torch.float64
        ),
    )
]
check_first_choices = [
    (
        "comparisons",
        lambda x, E: (
            lambda f, s: torch.stack(
                [
                    (f[:, None] == f).tril(-1).sum(1),
                    (s[:, None] == f).sum(1) + (s[:, None] == s).tril(-1).sum(1),
                ],
                1,
            )
        )(*x.T),
    )
]
check_counted_before = [
    (
        "take and mean, float64",
        lambda P, x, k: P.shape[1] * torch.take(P.double().mean(0), x[:, 0]).sum() / len(x),
    )
]
check_balance_loss = [
    (
        "a trace",
        lambda z, x: (
            z.shape[1]
            * torch.trace(
                F.one_hot(x, z.shape[1]).float().mean(1).mean(0)[:, None]
                @ z.softmax(1).mean(0)[None]
            )
        ),
    )
]
check_push = [
    (
        "a softmax's own backward",
        lambda z, f: torch.ops.aten._softmax_backward_data(
            (z.shape[1] / len(z) * f).expand_as(z).contiguous(), z.softmax(-1), -1, z.dtype
        ),
    )
]
check_spacing = [
    ("a table of powers", lambda x: next(2.0 ** (n - 7) for n in range(64) if x < 2 ** (n + 1)))
]
check_expert_choice = [
    (
        "stable sorts",
        lambda z, c: (
            lambda p, k: {
                "token": p.argsort(dim=1, descending=True, stable=True)[:, :k],
                "gate": p.sort(dim=1, descending=True, stable=True).values[:, :k],
            }
        )(F.softmax(z, 1).t(), min(len(z), math.ceil(len(z) * c / z.shape[1]))),
    )
]
check_violations = [
    (
        "shares of the loads",
        lambda x: [
            float(x.sum(0).max() / x.sum()) * x.shape[1] - 1,
            float((x.max(1).values / x.sum(1)).mean()) * x.shape[1] - 1,
        ],
    )
]
check_disable_top = [
    (
        "kthvalue",
        lambda z, k, r: (
            lambda n: (lambda m: (m.topk(k).values.softmax(1), m.topk(k).indices))(
                z
                if n == 0
                else z.masked_fill(
                    z >= z.kthvalue(z.shape[1] - n + 1, 1, keepdim=True).values, -torch.inf
                )
            )
        )(round(r * z.shape[1])),
    )
]
check_offsets = [
    ("cumulative, NumPy insert", lambda c: np.insert(c.sum(0).cumsum(0).numpy(), 0, 0))
]
check_sum_by_token = [
    (
        "bmm",
        lambda y, g, n, K, kept: torch.bmm(
            g[n].view(-1, 1, K),
            torch.cat([y[:kept], torch.zeros_like(y[kept:])])[n].view(-1, K, y.shape[1]),
        )[:, 0],
    )
]
check_quantize = [
    (
        "frexp-free: divide by the largest, times 127",
        lambda w: (lambda m: ((w / m * 127).round().to(torch.int8), m / 127))(
            w.abs().max(1, keepdim=True).values.clamp(min=1e-20)
        ),
    )
]
check_information = [
    (
        "entropy less the mean entropy of the rows",
        lambda c: (
            lambda p, h: (
                h(p.sum(0)) - sum(float(r.sum()) * h(r / r.sum()) for r in p if r.sum() > 0)
            )
        )(c.double() / c.sum(), lambda q: float(torch.special.entr(q).sum()) / math.log(2)),
    )
]
check_repetition = [
    (
        "means of texts, which are as long",
        lambda x, n: np.mean([np.mean(t[1:] == t[:-1]) for t in x.numpy().reshape(-1, n)]),
    )
]
