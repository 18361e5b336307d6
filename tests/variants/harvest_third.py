"""A third try at unusual right answers, made when the second had been answered."""

from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F

check_path = [
    (
        "NumPy, stacked",
        lambda tr, t: np.stack([r.gates_TE()[t].numpy().argmax() for r in tr.layers]),
    )
]

check_mixture_error = [
    (
        "a scaled logaddexp, float64",
        lambda z, o, d: (
            -torch.stack(
                [
                    (z.double().log_softmax(1)[:, e] - (o[:, e] - d).double().pow(2).sum(1) / 2)
                    for e in range(z.shape[1])
                ]
            ).logsumexp(0)
        ),
    )
]

check_product = [
    ("cumulative sums", lambda a: (lambda s: s - s.logsumexp(0))(a.double().cumsum(1)[:, -1]))
]

check_leaf_priors = [
    (
        "logarithms, float64",
        lambda left: (
            lambda lp: torch.stack(
                [
                    sum((lp[b][:, n] for n, b in way), torch.zeros(len(left)).double())
                    for way in _ways(left.shape[1])
                ],
                1,
            ).exp()
        )([left.double().log(), (1 - left.double()).log()]),
    )
]


def _ways(G, node=0, way=()):
    if node >= G:
        return [way]
    return _ways(G, 2 * node + 1, (*way, (node, 0))) + _ways(G, 2 * node + 2, (*way, (node, 1)))


check_fit_expert = [
    (
        "QR",
        lambda x, y, w: (
            lambda q, r: torch.linalg.solve_triangular(r, q.T @ (y * w.sqrt()[:, None]), upper=True)
        )(*torch.linalg.qr(x * w.sqrt()[:, None])),
    )
]

check_noisy_scores = [
    (
        "addcmul",
        lambda x, wg, wn, e, tr: torch.addcmul(
            F.linear(x, wg), e, F.softplus(F.linear(x, wn)), value=1.0 if tr else 0.0
        ),
    )
]

check_push = [
    (
        "a vector product for each token",
        lambda z, f: torch.stack(
            [len(f) / len(z) * (torch.diag(p) - torch.outer(p, p)) @ f for p in z.softmax(1)]
        ),
    )
]

check_masked_balance = [
    (
        "a masked mean",
        lambda z, x, m: (
            z.shape[1]
            * (
                np.average(
                    F.one_hot(x, z.shape[1]).double().mean(1).numpy(), axis=0, weights=m.numpy()
                )
                * np.average(z.detach().double().softmax(1).numpy(), axis=0, weights=m.numpy())
            ).sum()
            if not z.requires_grad
            else z.shape[1] * z.softmax(1)[m].mean(0)[x[m]].mean()
        ),
    )
]

check_z_loss = [
    (
        "minus the log-probability of the last, and its logit",
        lambda z: (z[:, -1] - z.log_softmax(1)[:, -1]).double().square().mean(),
    )
]

check_experts_per_token = [
    (
        "a dict",
        lambda x, n: (
            lambda c: {
                "0": (c == 0).mean(),
                "1": (c == 1).mean(),
                "2": (c == 2).mean(),
                "3-4": ((c == 3) | (c == 4)).mean(),
                ">4": (c > 4).mean(),
            }
        )(np.bincount(x.numpy().ravel(), minlength=n)),
    )
]

check_combine = [
    (
        "scatter_add by columns",
        lambda o, x, g, n: (
            torch.zeros(n, o.shape[-1])
            .to(o)
            .scatter_add(
                0,
                x.reshape(-1, 1).repeat(1, o.shape[-1]),
                (o * g.unsqueeze(-1)).reshape(-1, o.shape[-1]),
            )
        ),
    )
]

check_split_experts = [
    ("fractions", lambda N, K, F, m, s: [Fraction(N * m - s), Fraction(K * m - s), Fraction(F, m)])
]

check_disable_top = [
    (
        "ranks",
        lambda z, k, r: (lambda n, i: (z.gather(1, i[:, n : n + k]).softmax(1), i[:, n : n + k]))(
            round(r * z.shape[1]), (-z).argsort(1)
        ),
    )
]

check_balanced_step = [
    (
        "where, in float64",
        lambda z, b, k, u: (
            lambda i: (
                i,
                (lambda n: b.double() + u * (1.0 * (n < n.mean()) - 1.0 * (n > n.mean())))(
                    F.one_hot(i, len(b)).double().sum((0, 1))
                ),
            )
        )((z.detach().sigmoid() + b).argsort(1, descending=True)[:, :k]),
    )
]

check_orders_agree = [
    (
        "a table",
        lambda r, k, E: {
            (True, True): True,
            (True, False): True,
            (False, True): True,
            (False, False): False,
        }[bool(r), k == E],
    )
]

check_needs = [("less what stays", lambda k, w: k.int() * w.shape[0] - (w & k).int().sum(0))]

check_block_counts = [
    (
        "a two-way histogram",
        lambda x, E, b: torch.stack([F.one_hot(p, E).sum(0) for p in x.split(b)]).double(),
    )
]

check_stable_rows = [
    ("a key of both", lambda x, o: (x * len(x) + torch.arange(len(x))).argsort().argsort().int())
]

check_traffic = [
    (
        "scatter",
        lambda x, E: torch.zeros(len(x), len(x)).scatter_add(
            1, (x * len(x) // E).flatten(1), torch.ones(len(x), x[0].numel())
        ),
    )
]

check_distinct_experts = [
    (
        "expm1 and log1p",
        lambda E, K, T: float(E) if K == E else float(-E * np.expm1(T * np.log1p(-K / E))),
    )
]

check_repetition = [
    (
        "differences, text by text",
        lambda x, n: (
            sum(int((t.diff() == 0).sum()) for t in x.split(n))
            / sum(len(t) - 1 for t in x.split(n))
        ),
    )
]

check_shuffle_texts = [
    (
        "a gather of places",
        lambda x, n, s: x[
            (
                torch.randperm(len(x) // n, generator=torch.Generator().manual_seed(s))[:, None] * n
                + torch.arange(n)
            ).reshape(-1)
        ],
    )
]
