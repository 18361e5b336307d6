"""Chapter 08's harvest of unusual right answers: (how it is done, the answer)."""

from collections import Counter

import numpy as np
import torch


def _places(z, c):
    return min(len(z), -int(-c * len(z) // z.shape[1]))


check_expert_choice = [
    (
        "a sort down the columns",
        lambda z, c: (
            lambda p: (
                p.argsort(0, descending=True)[: _places(z, c)].T,
                p.sort(0, descending=True).values[: _places(z, c)].T,
            )
        )(z.softmax(1)),
    ),
    (
        "expert by expert",
        lambda z, c: [
            torch.stack(a)
            for a in zip(
                *[z.softmax(1)[:, e].topk(_places(z, c))[::-1] for e in range(z.shape[1])],
                strict=True,
            )
        ],
    ),
    (
        "float64, exp and a division",
        lambda z, c: (lambda p: tuple(a.T for a in p.topk(_places(z, c), 0))[::-1])(
            (z.double() - z.double().logsumexp(1, keepdim=True)).exp()
        ),
    ),
]


def _five(x, n):
    met = Counter(torch.as_tensor(x).flatten().tolist())
    bins = [0] * 5
    for t in range(n):
        bins[
            0 if not met[t] else 1 if met[t] == 1 else 2 if met[t] == 2 else 3 if met[t] < 5 else 4
        ] += 1
    return [b / n for b in bins]


check_experts_per_token = [
    ("Counter, a list", _five),
    (
        "NumPy's histogram",
        lambda x, n: (
            np.histogram(np.bincount(x.numpy().ravel(), minlength=n), bins=[0, 1, 2, 3, 5, 10**9])[
                0
            ]
            / n
        ),
    ),
    (
        "means of comparisons",
        lambda x, n: (
            lambda c: (
                torch.stack([(c == 0), (c == 1), (c == 2), (c == 3) | (c == 4), (c > 4)])
                .double()
                .mean(1)
            )
        )((x[..., None] == torch.arange(n)).sum((0, 1))),
    ),
]


def _loop(out, token, gate, n):
    rows = [torch.zeros_like(out[0, 0]) for _ in range(n)]
    for e in range(len(token)):
        for c, t in enumerate(token[e].tolist()):
            rows[t] = rows[t] + gate[e, c] * out[e, c]
    return torch.stack(rows)


check_combine = [
    (
        "one-hot einsum",
        lambda o, x, g, n: torch.einsum(
            "ect,ec,ecd->td", torch.nn.functional.one_hot(x, n).to(o), g, o
        ),
    ),
    ("loops", _loop),
    (
        "index_put, accumulate",
        lambda o, x, g, n: o.new_zeros(n, o.shape[-1]).index_put(
            (x,), g[..., None] * o, accumulate=True
        ),
    ),
    (
        "a sparse matrix",
        lambda o, x, g, n: (
            torch.zeros(n, x.numel()).scatter(0, x.reshape(1, -1), g.reshape(1, -1))
            @ o.flatten(0, 1)
        ),
    ),
]


def _any_part(route, x):
    said = np.asarray(route(x))
    for n in range(20):
        for t in range(1, len(x)):
            tail = (
                x[t:][torch.randperm(len(x) - t)]
                if n % 4 == 3
                else torch.randn_like(x[t:]) * (1 + n % 3 * 2)
            )
            if (np.asarray(route(torch.cat((x[:t], tail))))[:t] != said[:t]).any():
                return np.bool_(True)
    return np.bool_(False)


def _future(route, x, t=None, left=12):
    """Recursion over the cuts, from the back; from a text of our own too."""
    t = len(x) - 1 if t is None else t
    if t == 0:
        return False
    for n in range(left):
        text = x if n % 2 else torch.randn_like(x)
        other = torch.cat([text[:t], 4 * torch.randn_like(text[t:])])
        if (route(text)[:t] != route(other)[:t]).sum() > 0:
            return torch.tensor(True)
    return _future(route, x, t - 1, left)


check_reads_future = [("NumPy's bool, four sorts of tails", _any_part), ("recursion, 0-d", _future)]

check_causal_groups = [
    ("lists", lambda B, S: [[b * S + s for b in range(B)] for s in reversed(range(S))]),
    ("NumPy", lambda B, S: np.arange(B * S).reshape(B, S).T[:, ::-1].copy()),
    (
        "two groups at each position where there are enough",
        lambda B, S: [
            torch.arange(s, B * S, S)[part]
            for s in range(S)
            for part in ([slice(2), slice(2, None)] if B >= 4 else [slice(None)])
        ],
    ),
]
