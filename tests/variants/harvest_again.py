"""A second try at unusual right answers, made when the first had been answered."""

import math
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

check_load = [
    (
        "a comparison with all numbers",
        lambda r: (r.expert_N[:, None] == torch.arange(r.num_experts)).sum(0).int(),
    )
]

check_networks_used = [
    (
        "a mark for each, NumPy",
        lambda tr, ts: np.stack(
            [
                np.isin(
                    np.arange(r.num_experts),
                    r.expert_N[np.isin(r.token_N.numpy(), list(ts))].numpy(),
                )
                for r in tr.layers
            ]
        ).sum(),
    )
]

check_responsibilities = [
    (
        "products taken apart: |d|² - 2 d·o + |o|²",
        lambda z, o, d: (
            z.double()
            + torch.einsum("to,teo->te", d.double(), o.double())
            - o.double().square().sum(-1) / 2
        ).softmax(-1),
    )
]

check_working_experts = [
    (
        "unique's counts, run by run",
        lambda z, s: [
            int((q.argmax(-1).unique(return_counts=True)[1].double() / len(q) >= s).sum())
            for q in z
        ],
    )
]

check_fit_gate = [
    (
        "Cholesky",
        lambda v, x, o, h: (
            lambda p: (
                v
                + torch.cholesky_solve(
                    (x.T @ (h - o * p))[:, None],
                    torch.linalg.cholesky(
                        x.T @ torch.diag(o * p * (1 - p)) @ x
                        + 0.001 * torch.diag(torch.ones_like(v))
                    ),
                )[:, 0]
            )
        )(torch.sigmoid(x @ v)),
    )
]

check_constrain = [
    (
        "by weights of 0 and 1, einsum",
        lambda g, t, m: (lambda w: torch.einsum("te,e,t->te", g, w, 1 / (g @ w)))(
            (t <= t.mean() + m).to(g)
        ),
    )
]

check_sparse_gates = [
    (
        "sorted, cut and put back",
        lambda s, k: (
            lambda v, i: torch.cat([v[:, :k].softmax(1), 0 * v[:, k:]], 1).gather(1, i.argsort(1))
        )(*s.sort(1, descending=True)),
    )
]

check_prob_in_top_k = [
    (
        "erfc",
        lambda c, n, s, k: (
            torch.ones_like(c)
            if k == c.shape[1]
            else (
                lambda v: (
                    0.5
                    * torch.erfc(
                        (torch.where(n >= v[:, k - 1 : k], v[:, k : k + 1], v[:, k - 1 : k]) - c)
                        / (s * math.sqrt(2))
                    )
                )
            )(n.sort(1, descending=True).values)
        ),
    )
]

check_places = [
    (
        "divmod on whole thousandths",
        lambda T, E, f, K: (lambda q, r: q + (r > 0))(*divmod(round(f * 1000) * K * T, 1000 * E)),
    )
]

check_rank = [
    ("a list that grows", lambda x, E: [x[:t].tolist().count(e) for t, e in enumerate(x.tolist())])
]

check_counted_before = [
    (
        "a quadratic form",
        lambda P, x, k: (
            P.shape[1]
            * torch.ones(len(P))
            @ P
            @ F.one_hot(x[:, 0], P.shape[1]).float().T
            @ torch.ones(len(P))
            / len(P) ** 2
        ),
    )
]

check_balance_loss = [
    (
        "a scalar product with histc",
        lambda z, x: (
            z.shape[1]
            / x.numel()
            * torch.dot(torch.histc(x.float(), z.shape[1], 0, z.shape[1]), z.softmax(1).mean(0))
        ),
    )
]

check_over_batches = [
    (
        "a matrix product for each layer",
        lambda f, P: np.mean(
            [
                f.shape[2] * np.dot(a.mean(0), b.mean(0))
                for a, b in zip(f.numpy(), P.numpy(), strict=True)
            ]
        ),
    )
]

check_spacing = [
    (
        "the next float32 of its top bits",
        lambda x: (lambda b: float((b + 65536).view(torch.float32) - b.view(torch.float32)))(
            torch.tensor(x, dtype=torch.float32).view(torch.int32) & ~0xFFFF
        ),
    )
]

check_z_gradient = [
    (
        "a jacobian",
        lambda z: torch.autograd.functional.jacobian(
            lambda a: a.logsumexp(1).pow(2).mean(), z.detach()
        ),
    )
]

check_causal_groups = [
    ("a generator of tuples", lambda B, S: (tuple(b * S + s for b in range(B)) for s in range(S)))
]

check_violations = [
    (
        "torch's aminmax, 0-d float64",
        lambda x: tuple(
            t.double()
            for t in (
                (x.sum(0) / x.sum(0).mean()).aminmax().max - 1,
                (x / x.mean(1, keepdim=True)).aminmax(dim=1).max.mean() - 1,
            )
        ),
    )
]

check_top_k = [
    (
        "log-probabilities",
        lambda z, k: (lambda v, i: (v.log_softmax(1).exp(), i))(*z.log_softmax(1).topk(k)),
    )
]


def _by_expert_lists(x, g, c, w1, w3, w2):
    out = [torch.zeros_like(x[0]) for _ in x]
    for e, (a, b, d) in enumerate(zip(w1, w3, w2, strict=True)):
        for t, k in (c == e).nonzero().tolist():
            u = a @ x[t]
            out[t] = out[t] + g[t, k] * d @ (u / (1 + torch.exp(-u)) * (b @ x[t]))
    return torch.stack(out)


check_moe_layer = [("lists, silu by hand", _by_expert_lists)]


class Looped(nn.Module):
    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.gate, self.top_k = nn.Linear(hidden_size, num_experts, bias=False), top_k

    def forward(self, x):
        pairs = [self.gate(row).topk(self.top_k) for row in x]
        return torch.stack([p.values.softmax(0) for p in pairs]), torch.stack(
            [p.indices for p in pairs]
        )


check_global_bug = [("row by row", Looped)]

check_offsets = [("accumulate, a tuple", lambda c: (0, *accumulate(int(n) for n in c.sum(0))))]

check_tile_schedule = [
    (
        "a mask over all rows",
        lambda o, h: (lambda e, r: (e[(r - o[e]) % h == 0], r[(r - o[e]) % h == 0]))(
            torch.arange(len(o) - 1).repeat_interleave(o.diff()), torch.arange(int(o[-1]))
        ),
    )
]

check_quantize = [
    (
        "a dict of NumPy arrays",
        lambda w: (
            lambda s: {"q": np.round(w.numpy() / s).astype("int8"), "scale": s.astype("float32")}
        )(np.maximum(np.abs(w.numpy()).max(1, keepdims=True), 1e-20) / 127),
    )
]

check_saturation = [
    (
        "concatenate and count repeats",
        lambda a, b: float(
            np.mean(
                [
                    a.shape[1] + b.shape[1] - len(np.unique(np.r_[p, q]))
                    for p, q in zip(a.numpy(), b.numpy(), strict=True)
                ]
            )
            / a.shape[1]
        ),
    )
]

check_information = [
    (
        "a divergence, KL",
        lambda c: float(
            F.kl_div(
                (c.double().sum(1, keepdim=True) * c.double().sum(0)).log()
                - 2 * torch.log(c.double().sum()),
                c.double() / c.sum(),
                reduction="sum",
            )
            / math.log(2)
        ),
    )
]


def _swaps(x, ids, seed):
    rng, out = np.random.RandomState(seed), x.numpy().copy()
    for w in set(ids.tolist()):
        at = np.flatnonzero(ids.numpy() == w)
        out[at] = rng.permutation(out[at])
    return out


check_shuffle_within_words = [("NumPy's RandomState", _swaps)]
