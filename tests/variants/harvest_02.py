"""Chapter 02's harvest of unusual right answers: (how it is done, the answer)."""

import numpy as np
import torch

from moe_lite.course.hierarchy import HME


def _down(left, n=0):
    if n >= left.shape[1]:
        return [torch.ones_like(left[:, 0])]
    p = left[:, n]
    return [p * a for a in _down(left, 2 * n + 1)] + [(1 - p) * a for a in _down(left, 2 * n + 2)]


def _from_the_leaf(left):
    G, columns = left.shape[1], []
    for leaf in range(G + 1):
        node, p = G + leaf, 1.0
        while node:
            up = (node - 1) // 2
            p, node = p * (left[:, up] if node == 2 * up + 1 else 1 - left[:, up]), up
        columns.append(p.tolist())
    return list(map(list, zip(*columns, strict=True)))


check_leaf_priors = [
    ("recursion", lambda left: torch.stack(_down(left), 1)),
    ("from each leaf up, in lists", _from_the_leaf),
]


def _numpy_tree(p, d):
    w = (p * d).double().numpy()
    levels = [w / w.sum(1, keepdims=True)]
    while levels[-1].shape[1] > 1:
        levels.append(levels[-1].reshape(len(w), -1, 2).sum(2))
    return np.concatenate(levels[::-1], 1)


check_posteriors = [
    ("NumPy, float64", _numpy_tree),
    (
        "every node a slice of leaves",
        lambda p, d: (
            torch.cat(
                [(p * d).view(len(p), 2**k, -1).sum(2) for k in range(p.shape[1].bit_length())], 1
            )
            / (p * d).sum(1, keepdim=True)
        ),
    ),
    (
        "in logarithms",
        lambda p, d: torch.cat(
            [
                (p.log() + d.log()).softmax(-1).unflatten(1, (2**k, -1)).sum(-1)
                for k in range(p.shape[1].bit_length())
            ],
            1,
        ),
    ),
]

check_fit_expert = [
    (
        "lstsq with the root",
        lambda x, y, w: torch.linalg.lstsq(x * w.sqrt()[:, None], y * w.sqrt()[:, None])[0],
    ),
    (
        "weights made to add up to 1",
        lambda x, y, w: (
            torch.linalg.inv(x.T @ torch.diag(w / w.sum()) @ x) @ x.T @ torch.diag(w / w.sum()) @ y
        ),
    ),
    (
        "einsum, float64",
        lambda x, y, w: torch.linalg.solve(
            torch.einsum("ti,t,tj->ij", x.double(), w.double(), x.double()),
            torch.einsum("ti,t,to->io", x.double(), w.double(), y.double()),
        ),
    ),
]


def _by_autograd(v, x, own, left):
    def likelihood(u):
        z = x @ u
        return (
            left * torch.nn.functional.logsigmoid(z)
            + (own - left) * torch.nn.functional.logsigmoid(-z)
        ).sum()

    slope = torch.autograd.functional.jacobian(likelihood, v)
    curve = -torch.autograd.functional.hessian(likelihood, v)
    return v + torch.linalg.solve(curve + 1e-3 * torch.eye(len(v)).to(v), slope)


def _gate_loop(v, x, own, left):
    v, x = v.double(), x.double()
    slope, curve = torch.zeros_like(v), 1e-3 * torch.eye(len(v)).double()
    for t in range(len(x)):
        p = float((x[t] @ v).sigmoid())
        slope = slope + x[t] * (float(left[t]) - float(own[t]) * p)
        curve = curve + float(own[t]) * p * (1 - p) * torch.outer(x[t], x[t])
    return (v + torch.linalg.inv(curve) @ slope).numpy()


check_fit_gate = [("autograd's hessian", _by_autograd), ("token by token, NumPy", _gate_loop)]


def _whole(tree, x, y, h):
    G, E = tree.gate_QGD.shape[1], tree.var_QE.shape[1]
    p = (x @ tree.gate_QGD[0].T).sigmoid()
    own, left = h[:, :G], h[:, 1 : 2 * G : 2]
    curve = torch.einsum("ti,tg,tj->gij", x, own * p * (1 - p), x) + 1e-3 * torch.eye(
        x.shape[1]
    ).to(x)
    gates = tree.gate_QGD[0] + torch.linalg.solve(
        curve, torch.einsum("ti,tg->gi", x, left - own * p)
    )
    w = h[:, -E:]
    experts = torch.linalg.solve(
        torch.einsum("ti,te,tj->eij", x, w, x), torch.einsum("ti,te,to->eio", x, w, y)
    )
    errors = (y[:, None] - torch.einsum("ti,eio->teo", x, experts)).square().mean(-1)
    return HME(gates[None], experts[None], ((w * errors).sum(0) / w.sum(0))[None])


def _averages(tree, x, y, h):
    out = _whole(tree, x, y, h)
    var = [
        np.average((y - x @ u).square().mean(-1).numpy(), weights=w.numpy())
        for u, w in zip(out.expert_QEDO[0], h[:, -tree.var_QE.shape[1] :].T, strict=True)
    ]
    return HME(out.gate_QGD, out.expert_QEDO, torch.tensor(np.array(var))[None].to(x))


check_m_step = [("all at once, einsum", _whole), ("NumPy's weighted average", _averages)]
