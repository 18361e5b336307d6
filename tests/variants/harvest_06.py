"""Chapter 06's harvest of unusual right answers: (how it is done, the answer)."""

import numpy as np
import torch
import torch.nn.functional as F

check_balance_loss = [
    ("belief looked up by choice", lambda z, x: z.shape[1] * z.softmax(-1).mean(0)[x].mean()),
    (
        "bincount, float64",
        lambda z, x: (
            z.shape[1]
            * (x.flatten().bincount(minlength=z.shape[1]).double() / x.numel())
            @ z.double().softmax(-1).mean(0)
        ),
    ),
    (
        "each token with each choice",
        lambda z, x: (
            z.shape[1]
            / len(z)
            / x.numel()
            * sum(z.softmax(-1)[:, e].sum() for e in x.flatten().tolist())
        ),
    ),
]


def _by_autograd(z, f):
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        return torch.autograd.grad(z.shape[1] * (f * z.softmax(-1).mean(0)).sum(), z)[0]


def _numpy_push(z, f):
    p, f = z.double().softmax(-1).numpy(), f.double().numpy()
    J = np.einsum("tj,ij->tij", p, np.eye(p.shape[1])) - np.einsum("ti,tj->tij", p, p)
    return p.shape[1] / len(p) * np.einsum("i,tij->tj", f, J)


check_push = [
    ("autograd after all", _by_autograd),
    ("the softmax's whole matrix, NumPy", _numpy_push),
]


def _many_tokens(E):
    """A hair ahead, 60 tokens; the last tokens sure of one that has no other."""
    if E == 2:
        return np.array([[1e-3, 0.0]] * 30 + [[0.0, 12.0]] * 10)
    busy = E // 2 + E % 2
    return [
        [0.02 if e == t % busy else (-20.0 if e < busy else 0.0) for e in range(E)]
        for t in range(60 - 60 % busy)
    ]


def _searched(E):
    best, low = None, 9.0
    for busy in range(1, E + 1):
        for torn in range(1, 9):
            z = torch.full((12, E), -8.0)
            z[:, busy % E :] = 0.0  # beliefs go where nobody is, or to expert 0 where all are busy
            t = torch.arange(12)
            z[t, t % busy] = 0.01
            if busy == E:
                z = torch.zeros(12, E)
                z[:torn, 0] = 0.01
                z[torn:, 1] = 9.0
            f = F.one_hot(z.argmax(-1), E).float().mean(0)
            loss = float(E * (f * z.softmax(-1).mean(0)).sum())
            if loss < low:
                best, low = z, loss
    return best.double()


check_below_one = [("lists and arrays", _many_tokens), ("searched, float64", _searched)]

check_masked_balance = [
    (
        "weights of 1 and 0",
        lambda z, x, m: (
            z.shape[1]
            * (
                (F.one_hot(x, z.shape[1]).sum(1) * m[:, None]).sum(0)
                / (m.sum() * x.shape[1])
                * (z.softmax(-1) * m[:, None]).sum(0)
                / m.sum()
            ).sum()
        ),
    ),
    (
        "float64, belief looked up",
        lambda z, x, m: z.shape[1] * z.double().softmax(-1)[m].mean(0)[x[m].reshape(-1)].mean(),
    ),
]

check_over_batches = [
    (
        "f pooled, then the mean of products",
        lambda f, P: f.shape[-1] * (f.mean(1, keepdim=True) * P).sum(-1).mean(),
    ),
    (
        "einsum, float64",
        lambda f, P: (
            f.shape[-1]
            * torch.einsum("lge,lhe->", f.double(), P.double())
            / len(f)
            / f.shape[1] ** 2
        ),
    ),
    (
        "layer by layer",
        lambda f, P: (
            sum(f.shape[-1] * float(a.mean(0) @ b.mean(0)) for a, b in zip(f, P, strict=True))
            / len(f)
        ),
    ),
]


def _all_seven(z, x, m):
    """What each box would say; detached is sound's number."""
    E, K = z.shape[-1], x.shape[-1]

    def of(z, x, m):
        f = F.one_hot(x, E).float().mean(-2)[:, m].mean(1)
        return f, z.softmax(-1)[:, m].mean(1)

    f, P = of(z, x, m)
    each = E * (f * P).sum(-1)
    pad_f, pad_P = of(z, x, torch.ones_like(m))
    top = torch.zeros_like(z).scatter(-1, x, z.gather(-1, x).softmax(-1))[:, m].mean(1)
    return {
        "sound": each.mean(),
        "K": K * each.mean(),
        "sum": each.sum(),
        "pooled": E * (f.mean(0) * P.mean(0)).sum(),
        "padding": E * (pad_f * pad_P).sum(-1).mean(),
        "top-k": E * (f * top).sum(-1).mean(),
    }


def _nearest(loss):
    g = torch.Generator().manual_seed(5)
    z = 3 * torch.randn(3, 12, 4, generator=g)
    x, m = z.topk(2).indices, torch.arange(12) < 9
    z.requires_grad_()
    value = loss(z, x, m)
    said = min((abs(float(value) - float(v)), k) for k, v in _all_seven(z.detach(), x, m).items())[
        1
    ]
    if said == "sound":
        slope = torch.autograd.grad(value, z, allow_unused=True)[0] if value.requires_grad else None
        said = "detached" if slope is None or not slope.abs().sum() > 1e-9 else "sound"
    return said


def _nearest_of_many(loss):
    votes = [_nearest(loss) for _ in range(2)]
    return np.str_(max(votes, key=votes.count))


check_diagnose = [
    ("all seven computed, the nearest", _nearest),
    ("NumPy's string", _nearest_of_many),
]
