"""Right answers to chapter 16's exercises, in other ways."""

import math

import torch


def _reap_by_loop(expert_N, gate_N, answer_ND, E):
    out = [[] for _ in range(E)]
    for e, g, y in zip(expert_N.tolist(), gate_N.tolist(), answer_ND.tolist(), strict=True):
        out[e].append(g * math.hypot(*y))
    return [sum(one) / len(one) if one else 0.0 for one in out]


check_reap = [
    ("pair by pair", _reap_by_loop),
    ("weighs first, then the length",
     lambda e, g, y, E: torch.stack([(g[e == n, None] * y[e == n]).norm(dim=1).sum()
                                     / max(1, int((e == n).sum())) for n in range(E)])),
    ("scatter_reduce",
     lambda e, g, y, E: torch.zeros(E).scatter_reduce(0, e, g * y.norm(dim=-1), "mean",
                                                     include_self=False)),
]  # fmt: skip


def _prune_lists(w, s, n):
    least = set(sorted(range(len(s)), key=s.tolist().__getitem__)[:n])
    stay = [e for e in range(len(s)) if e not in least]
    return [w[e].tolist() for e in stay], [
        stay.index(e) if e in stay else -1 for e in range(len(s))
    ]


check_prune_router = [
    ("with lists", _prune_lists),
    ("by a threshold",
     lambda w, s, n: (w[s >= s.sort().values[n]],
                      torch.where(s >= s.sort().values[n],
                                  (s >= s.sort().values[n]).long().cumsum(0) - 1, -1))),
]  # fmt: skip
check_distinct_copies = [
    ("by torch.cdist", lambda w: int(
        ((torch.cdist(w.flatten(1).double(), w.flatten(1).double(), p=float("inf")) <= 1e-6)
         .tril(-1).sum(1) == 0).sum())),
]  # fmt: skip


def _by_exp(z_TE, expert_TK):
    own_TK = torch.gather(z_TE, 1, expert_TK)
    weight_TK = (own_TK - own_TK.detach().amax(1, keepdim=True)).exp()
    return weight_TK / weight_TK.sum(1, keepdim=True)


def _over_all_then_divided(z_TE, expert_TK):
    weight_TK = (z_TE.double().softmax(1)).gather(1, expert_TK)
    return (weight_TK / weight_TK.sum(1, keepdim=True)).to(z_TE.dtype)


check_replay_weights = [
    ("exp of what lies below the largest", _by_exp),
    ("over all in double, then divided", _over_all_then_divided),
    ("indexed by rows",
     lambda z, e: z[torch.arange(len(z))[:, None], e].softmax(dim=-1)),
]  # fmt: skip
