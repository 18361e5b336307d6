"""Unusual right answers to chapters 09 to 18 by a reader who had not seen the checks."""

import heapq
import math

import numpy as np
import torch

# --- chapter 16 ----------------------------------------------------------------------------------


def _quantize_halves_up(w_FD):
    scale_F1 = w_FD.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return {"q_FD": (w_FD / scale_F1 + 0.5).floor().to(torch.int8), "scale_F1": scale_F1}


def _quantize_in_double(w_FD):
    scale_F1 = w_FD.double().norm(p=math.inf, dim=1, keepdim=True) / 127
    return [torch.nan_to_num(w_FD / scale_F1).round().to(torch.int8), scale_F1]


check_quantize = [("halves up, in a dict", _quantize_halves_up), ("double", _quantize_in_double)]


def _reap_one_by_one(expert_N, gate_N, answer_ND, E):
    for e in range(E):
        mine_N = expert_N == e
        yield float((gate_N * answer_ND.norm(dim=1))[mine_N].mean()) if mine_N.any() else 0


check_reap = [
    ("a generator of numbers", _reap_one_by_one),
    ("a dict", lambda e, g, y, E: dict(enumerate(_reap_one_by_one(e, g, y, E)))),
]


def _prune_heap(router_ED, score_E, drop):
    gone = set(heapq.nsmallest(drop, range(len(score_E)), key=score_E.tolist().__getitem__))
    left = iter(range(len(score_E)))
    number = {e: -1 if e in gone else next(left) for e in range(len(score_E))}
    return np.delete(router_ED.numpy(), list(gone), axis=0), number


check_prune_router = [("a heap, an array and a dict", _prune_heap)]


def _copies_by_union(w_EFD):
    root = list(range(len(w_EFD)))
    for i, x in enumerate(w_EFD):
        for j, y in enumerate(w_EFD[:i]):
            if (x - y).abs().max() <= 1e-6:
                root = [root[j] if r == root[i] else r for r in root]
    return torch.tensor(float(len(set(root))))


check_distinct_copies = [
    ("groups united", _copies_by_union),
    ("unlike all that come after", lambda w: sum(
        not any((x - y).abs().max() <= 1e-6 for y in w[e + 1 :]) for e, x in enumerate(w))),
]  # fmt: skip
