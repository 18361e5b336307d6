"""Chapter 04's harvest of unusual right answers: (how it is done, the answer)."""

import math

import numpy as np
import torch
from torch.distributions import Normal

from moe_lite.routers import kth_excluding


def _masked(s, k):
    keep = torch.zeros_like(s, dtype=torch.bool).scatter(
        1, s.argsort(dim=-1, descending=True, stable=True)[:, :k], True
    )
    return s.masked_fill(~keep, -torch.inf).softmax(-1)


def _rows(s, k):
    out = []
    for row in s:
        best = sorted(range(len(row)), key=lambda e: -float(row[e].detach()))[:k]
        total = torch.logsumexp(row[best], 0)
        out.append(
            torch.stack(
                [(row[e] - total).exp() if e in best else row[e] * 0 for e in range(len(row))]
            )
        )
    return torch.stack(out)


check_sparse_gates = [
    ("a mask by a stable sort", _masked),
    ("row by row", _rows),
    (
        "float64, one-hot sum",
        lambda s, k: (
            torch.nn.functional.one_hot(s.topk(k).indices, s.shape[1])
            * s.double().topk(k).values.softmax(-1)[..., None]
        ).sum(1),
    ),
]

check_noisy_scores = [
    (
        "einsum and logaddexp",
        lambda x, wg, wn, e, tr: (
            torch.einsum("td,ed->te", x, wg)
            + (
                e * torch.logaddexp(torch.einsum("td,ed->te", x, wn), torch.zeros_like(e))
                if tr
                else 0
            )
        ),
    ),
    (
        "the flag as a number",
        lambda x, wg, wn, e, tr: x @ wg.T + float(tr) * e * torch.nn.functional.softplus(x @ wn.T),
    ),
    (
        "one product for both",
        lambda x, wg, wn, e, tr: (lambda a, b: a + e * torch.nn.Softplus()(b) if tr else a)(
            *(x @ torch.cat([wg, wn]).T).chunk(2, 1)
        ),
    ),
]


def _leave_one_out(c, n, s, k):
    E = c.shape[1]
    if k >= E:
        return c * 0 + 1
    bars = [
        torch.cat([n[:, :i], n[:, i + 1 :]], 1).sort(-1, descending=True)[0][:, k - 1]
        for i in range(E)
    ]
    return Normal(0.0, 1.0).cdf((c - torch.stack(bars, 1)) / s)


check_prob_in_top_k = [
    ("each expert left out in turn", _leave_one_out),
    (
        "erf, float64",
        lambda c, n, s, k: (
            torch.ones_like(c)
            if k == c.shape[1]
            else 0.5 * (1 + torch.erf((c - kth_excluding(n, k)).double() / s / math.sqrt(2)))
        ),
    ),
]

check_top1_gate = [
    ("topk and squeeze", lambda s: [a.squeeze(-1) for a in s.softmax(-1).topk(1)]),
    (
        "max less the logsumexp",
        lambda s: ((s.max(1).values - s.logsumexp(1)).exp(), s.argmax(1).int()),
    ),
    (
        "one over a sum",
        lambda s: (1 / (s - s.amax(1, keepdim=True)).exp().sum(1), s.max(1).indices),
    ),
]

check_load_anywhere = [
    (
        "loops where nothing is random",
        lambda c, n, s, k: (
            [sum(e in row for row in n.topk(k).indices.tolist()) for e in range(c.shape[1])]
            if s is None
            else _leave_one_out(c, n, s, k).sum(0)
        ),
    ),
    (
        "a scatter of ones, float64",
        lambda c, n, s, k: (
            torch.zeros_like(c).scatter(1, n.topk(k).indices, 1.0).double().sum(0)
            if s is None
            else _leave_one_out(c, n, s, k).double().sum(0)
        ),
    ),
    (
        "NumPy's count",
        lambda c, n, s, k: (
            np.bincount(
                np.argsort(-n.detach().numpy(), 1, kind="stable")[:, :k].ravel(),
                minlength=c.shape[1],
            )
            if s is None
            else torch.einsum("te->e", _leave_one_out(c, n, s, k))
        ),
    ),
]
