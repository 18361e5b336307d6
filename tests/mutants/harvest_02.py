"""Chapter 02's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch

from moe_lite.course.hierarchy import HME


def _leaves(left, turned=False, blocks=False, both=False):
    level, first = torch.ones_like(left[:, :1]), 0
    while first < left.shape[1]:
        p = left[:, first : 2 * first + 1]
        pair = (
            [level * (1 - p), level * p] if turned else [level * p, level * (p if both else 1 - p)]
        )
        level = torch.cat(pair, 1) if blocks else torch.stack(pair, -1).flatten(1)
        first = 2 * first + 1
    return level


def _three_gates(left):
    a, b, c = left[:, :3].T
    return torch.stack([a * b, a * (1 - b), (1 - a) * c, (1 - a) * (1 - c)], 1)


def _own_gates_only(left):
    bottom = left[:, left.shape[1] // 2 :]
    return torch.stack([bottom, 1 - bottom], -1).flatten(1)


check_leaf_priors = [
    (
        "left and right swapped",
        "left and right are swapped",
        lambda left: _leaves(left, turned=True),
    ),
    (
        "all lefts, then all rights",
        "all left children stand before all right ones",
        lambda left: _leaves(left, blocks=True),
    ),
    ("left both times", "every step is taken to the left", lambda left: _leaves(left, both=True)),
    ("three gates, as shown", "raised ValueError", _three_gates),
    ("the last gate alone", "only the lowest gate counts", _own_gates_only),
    (
        "one level short",
        "return a tensor of shape (2, 4), not one of shape (2, 2)",
        lambda left: _leaves(left[:, : left.shape[1] // 2]),
    ),
    (
        "leaves from right to left",
        "the leaves stand from right to left",
        lambda left: _leaves(left).flip(1),
    ),
    ("a softmax on top", "one softmax too many", lambda left: _leaves(left).softmax(-1)),
    ("rounded", "rounded to 2 decimals", lambda left: _leaves(left).round(decimals=2)),
]


def _up(leaf, halves=False, mean=False, leaves_first=False):
    levels = [leaf]
    while levels[0].shape[1] > 1:
        top = levels[0]
        half = top.shape[1] // 2
        pair = (top[:, :half], top[:, half:]) if halves else (top[:, 0::2], top[:, 1::2])
        levels.insert(0, (pair[0] + pair[1]) / (2 if mean else 1))
    return torch.cat(levels[::-1] if leaves_first else levels, -1)


def _h(prior, density):
    return prior * density / (prior * density).sum(-1, keepdim=True)


check_posteriors = [
    (
        "divided over the tokens",
        "these sum over the tokens",
        lambda p, d: _up(p * d / (p * d).sum(0)),
    ),
    ("not divided", "prior times density is not yet a probability", lambda p, d: _up(p * d)),
    (
        "the leaves alone",
        "the leaves alone; a manager's posterior is the sum of its two children's",
        lambda p, d: _h(p, d),
    ),
    (
        "leaves first",
        "the right numbers, but in another order",
        lambda p, d: _up(_h(p, d), leaves_first=True),
    ),
    (
        "managers have the mean",
        "a manager's posterior is the sum of its children's, not their mean",
        lambda p, d: _up(_h(p, d), mean=True),
    ),
    (
        "children far apart",
        "a node's two children are neighbours",
        lambda p, d: _up(_h(p, d), halves=True),
    ),
    ("priors forgotten", "the prior is not used", lambda p, d: _up(d / d.sum(-1, keepdim=True))),
    (
        "densities forgotten",
        "that is the prior: what the experts said of y is not used",
        lambda p, d: _up(p),
    ),
    ("without the root", "the root is left out", lambda p, d: _up(_h(p, d))[:, 1:]),
    (
        "softmax of the products",
        "a softmax of what was a probability already",
        lambda p, d: _up((p * d).softmax(-1)),
    ),
]


def _fit(x, y, w):
    return torch.linalg.solve((x.T * w) @ x, (x.T * w) @ y)


def _ridge(x, y, w):
    return torch.linalg.solve((x.T * w) @ x + 0.01 * torch.eye(x.shape[1]).to(x), (x.T * w) @ y)


check_fit_expert = [
    (
        "all count the same",
        "all tokens count alike",
        lambda x, y, w: _fit(x, y, torch.ones_like(w)),
    ),
    (
        "lstsq without the root",
        "the weights count twice",
        lambda x, y, w: torch.linalg.lstsq(x * w[:, None], y * w[:, None])[0],
    ),
    (
        "the root twice",
        "the weights are there as square roots",
        lambda x, y, w: _fit(x, y, w.sqrt()),
    ),
    (
        "only one side weighed",
        "only y is weighted",
        lambda x, y, w: torch.linalg.solve(x.T @ x, (x.T * w) @ y),
    ),
    (
        "the other side weighed",
        "only x is weighted",
        lambda x, y, w: torch.linalg.solve((x.T * w) @ x, x.T @ y),
    ),
    (
        "whoever has more than half",
        "tokens below one half are left out",
        lambda x, y, w: _fit(x, y, (w > 0.5).to(w) + 1e-6),
    ),
    ("a little ridge", "something was added to the diagonal", _ridge),
    ("turned", "transposed: rows and columns are exchanged", lambda x, y, w: _fit(x, y, w).T),
    ("no inverse", "x'Wy alone is not yet solved", lambda x, y, w: (x.T * w) @ y),
]


def _newton(v, x, own, left, ridge=1e-3, slope=None, curve=None, add=True, sign=1):
    p = (x @ v).sigmoid()
    s = x.T @ (left - own * p if slope is None else slope(p))
    w = own * p * (1 - p) if curve is None else curve(p)
    step = torch.linalg.solve((x.T * w) @ x + ridge * torch.eye(len(v)).to(x), s)
    return (v if add else 0) + sign * step


check_fit_gate = [
    (
        "the step alone",
        "that is the step; add it to v",
        lambda v, x, o, h: _newton(v, x, o, h, add=False),
    ),
    ("downhill", "the step goes downhill", lambda v, x, o, h: _newton(v, x, o, h, sign=-1)),
    (
        "a ridge of 0.01",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: _newton(v, x, o, h, ridge=1e-2),
    ),
    ("no ridge", "diagonal is missing", lambda v, x, o, h: _newton(v, x, o, h, ridge=0)),
    (
        "own forgotten in the curvature",
        "own is missing from the curvature",
        lambda v, x, o, h: _newton(v, x, o, h, curve=lambda p: p * (1 - p)),
    ),
    (
        "own forgotten in the slope",
        "the gate expects p of every token",
        lambda v, x, o, h: _newton(v, x, o, h, slope=lambda p: h - p),
    ),
    (
        "own twice in the slope",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: _newton(v, x, o, h, slope=lambda p: o * (h - p)),
    ),
    (
        "two steps",
        "a second step was taken",
        lambda v, x, o, h: _newton(_newton(v, x, o, h), x, o, h),
    ),
    (
        "a gradient step",
        "that is the gradient alone",
        lambda v, x, o, h: v + x.T @ (h - o * (x @ v).sigmoid()),
    ),
    (
        "the curvature p",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: _newton(v, x, o, h, curve=lambda p: o * p),
    ),
]


def _step(tree, x, y, h, gate=None, weight=None, variance=None):
    G, E = tree.gate_QGD.shape[1], tree.var_QE.shape[1]
    gate = gate or (lambda n: _newton(tree.gate_QGD[0, n], x, h[:, n], h[:, 2 * n + 1]))
    weight = weight or (lambda e: h[:, G + e])
    experts = [_fit(x, y, weight(e)) for e in range(E)]
    variance = variance or (lambda e, w, err: (w * err).sum() / w.sum())
    var = [variance(e, h[:, G + e], (y - x @ experts[e]).square().mean(-1)) for e in range(E)]
    return HME(
        torch.stack([gate(n) for n in range(G)])[None],
        torch.stack(experts)[None],
        torch.stack(var)[None],
    )


check_m_step = [
    (
        "the right child's share",
        "left and right are swapped",
        lambda tr, x, y, h: _step(
            tr, x, y, h, gate=lambda n: _newton(tr.gate_QGD[0, n], x, h[:, n], h[:, 2 * n + 2])
        ),
    ),
    (
        "each gate sees every token",
        "the gates: a gate fits its posteriors worse than a Newton step would: is its target",
        lambda tr, x, y, h: _step(
            tr, x, y, h, gate=lambda n: _newton(tr.gate_QGD[0, n], x, h[:, 0], h[:, 2 * n + 1])
        ),
    ),
    (
        "the gates as they were",
        "the gates are left as they were",
        lambda tr, x, y, h: HME(
            tr.gate_QGD, _step(tr, x, y, h).expert_QEDO, _step(tr, x, y, h).var_QE
        ),
    ),
    (
        "deviations for variances",
        "not a mean squared error but the root of it, the deviation",
        lambda tr, x, y, h: _step(
            tr, x, y, h, variance=lambda e, w, err: ((w * err).sum() / w.sum()).sqrt()
        ),
    ),
    (
        "divided by all tokens",
        "the variance is each expert's mean squared error, weighted by its posteriors",
        lambda tr, x, y, h: _step(tr, x, y, h, variance=lambda e, w, err: (w * err).mean()),
    ),
    (
        "unweighted errors",
        "the variance is each expert's mean squared error, weighted by its posteriors",
        lambda tr, x, y, h: _step(tr, x, y, h, variance=lambda e, w, err: err.mean()),
    ),
    ("the tree itself", "the gates are left as they were", lambda tr, x, y, h: tr),
    (
        "gates fitted from zero",
        "the gates: a gate fits its posteriors worse than a Newton step would: is its target",
        lambda tr, x, y, h: _step(
            tr,
            x,
            y,
            h,
            gate=lambda n: _newton(
                torch.zeros_like(tr.gate_QGD[0, n]), x, h[:, n], h[:, 2 * n + 1]
            ),
        ),
    ),
]
