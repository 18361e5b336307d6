"""Chapter 00's harvest of unusual right answers: (how it is done, the answer)."""

from collections import Counter

import numpy as np
import torch


def _first(r, t):
    return max(
        zip(r.gate_N.tolist(), r.expert_N.tolist(), r.token_N.tolist(), strict=True),
        key=lambda p: (p[2] == t, p[0]),
    )[1]


def _walk(layers, t):
    return [] if not layers else [_first(layers[0], t), *_walk(layers[1:], t)]


check_first_expert = [
    ("a sort", lambda r, t: int(r.expert_N[(r.token_N == t).double().mul(r.gate_N).argsort()[-1]])),
    ("a plain loop", _first),
    ("the spread matrix, 0-d", lambda r, t: r.gates_TE()[t].argmax()),
    (
        "NumPy's integer",
        lambda r, t: np.int64(
            r.expert_N.numpy()[np.where(r.token_N == t, r.gate_N.detach(), -1).argmax()]
        ),
    ),
]

check_path = [
    ("recursion", lambda tr, t: _walk(list(tr.layers), t)),
    (
        "a tensor of int32",
        lambda tr, t: torch.tensor([_first(r, t) for r in tr.layers], dtype=torch.int32),
    ),
    ("a tuple of 0-d", lambda tr, t: tuple(r.gates_TE()[t].argmax() for r in tr.layers)),
]

check_load = [
    ("Counter", lambda r: [Counter(r.expert_N.tolist())[e] for e in range(r.num_experts)]),
    ("NumPy", lambda r: np.bincount(r.expert_N.numpy(), minlength=r.num_experts)),
    ("floats of histc", lambda r: r.expert_N.float().histc(r.num_experts, 0, r.num_experts)),
]

check_networks_used = [
    (
        "numbers in a row",
        lambda tr, ts: torch.tensor(
            len(
                {
                    n * 1000 + e
                    for n, r in enumerate(tr.layers)
                    for t, e in zip(r.token_N.tolist(), r.expert_N.tolist(), strict=True)
                    if t in ts
                }
            )
        ),
    ),
    (
        "layer by layer",
        lambda tr, ts: sum(
            r.expert_N[torch.isin(r.token_N, torch.tensor(list(ts)))].unique().numel()
            for r in tr.layers
        ),
    ),
]
