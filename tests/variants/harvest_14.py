"""Chapter 14's harvest of unusual right answers: (how it is done, the answer)."""

from fractions import Fraction

import numpy as np
import torch


def _counted(x, E):
    R = len(x)
    pairs = [[0] * R for _ in range(R)]
    for r in range(R):
        for e in x[r].flatten().tolist():
            pairs[r][e * R // E] += 1
    return pairs


check_traffic = [
    ("loops, lists", _counted),
    (
        "one-hot, floats",
        lambda x, E: (
            torch.nn.functional.one_hot(x.reshape(len(x), -1), E)
            .sum(1)
            .view(len(x), len(x), -1)
            .sum(-1)
            .float()
        ),
    ),
    (
        "NumPy",
        lambda x, E: np.stack([np.histogram(a.numpy(), bins=len(x), range=(0, E))[0] for a in x]),
    ),
]

check_round_trip = [
    ("tensors", lambda p, r: (p[r], p[:, r], p.T[r], p.T[:, r])),
    ("NumPy", lambda p, r: np.stack([p.numpy()[r], p.numpy().T[r]])[[0, 1, 1, 0]]),
    (
        "element by element",
        lambda p, r: (
            [[int(p[r, s]) for s in range(len(p))], [int(p[s, r]) for s in range(len(p))]]
            + [[int(p[s, r]) for s in range(len(p))], [int(p[r, s]) for s in range(len(p))]]
        ),
    ),
]

check_rank_weights = [
    ("by the mean", lambda n: n / n.double().mean()),
    ("fractions, floats", lambda n: [float(Fraction(len(n) * int(a), int(n.sum()))) for a in n]),
    ("NumPy", lambda n: n.numpy() * (n.numel() / n.numpy().sum())),
]


check_distinct_experts = [
    ("token by token", lambda E, K, T: _fold(E, K, T)),
    ("fractions", lambda E, K, T: float(E - Fraction(E - K, E) ** T * E)),
    ("0-d, float64", lambda E, K, T: E - E * torch.tensor(1 - K / E, dtype=torch.float64) ** T),
]


def _fold(E, K, T):
    used = 0.0
    for _ in range(T):
        used += K * (E - used) / E
    return np.float64(used)


def _from_the_config(c, batch):
    D, L, E, K = c.hidden_size, c.num_hidden_layers, c.num_local_experts, c.num_experts_per_tok
    layer = 2 * D * c.head_dim * (c.num_attention_heads + c.num_key_value_heads) + E * D + 2 * D
    return 2 * (
        c.vocab_size * D + D + L * (layer + _fold(E, K, batch) * 3 * D * c.intermediate_size)
    )


check_decode_bytes = [
    ("counted from the config", _from_the_config),
    ("0-d", lambda c, b: torch.tensor(_from_the_config(c, b), dtype=torch.float64)),
]


def _numpy(w):
    a = w.detach().numpy()
    top = np.abs(a).max(1, keepdims=True)
    s = np.where(top == 0, 1.0, top / 127)
    return np.rint(a / s).astype(np.int8), s


def _rows(w):
    q, s = [], []
    for row in w.tolist():
        scale = max(map(abs, row)) / 127 or 1.0
        q.append([round(a / scale) for a in row])
        s.append([scale])
    return torch.tensor(q, dtype=torch.int8), torch.tensor(s)


check_quantize = [
    ("NumPy", _numpy),
    ("row by row", _rows),
    (
        "float64, infinity norm",
        lambda w: (lambda s: ((w.double() / s).round().char(), s))(
            (torch.linalg.vector_norm(w.double(), torch.inf, 1, keepdim=True) / 127).clamp(
                min=1e-30
            )
        ),
    ),
]


def _one_more(load, spare, copies=None):
    copies = copies or [1] * len(load)
    if not spare:
        return copies
    heavy = max(a / n for a, n in zip(load, copies, strict=True))
    e = next(e for e, (a, n) in enumerate(zip(load, copies, strict=True)) if a / n == heavy)
    return _one_more(load, spare - 1, [n + (i == e) for i, n in enumerate(copies)])


check_replicas = [
    ("recursion", _one_more),
    ("fractions, a tuple", lambda load, spare: tuple(_by_quotients(load, spare))),
]


def _by_quotients(load, spare):
    """Give the places to the largest quotients, load / 1, load / 2, ..., as parliaments do."""
    quotients = [(-Fraction(a, n), n, e) for e, a in enumerate(load) for n in range(1, spare + 1)]
    seats = sorted(quotients, key=lambda q: (q[0], q[2]))[:spare]
    return np.array([1 + sum(e == i for _, _, e in seats) for i in range(len(load))])


def _by_rank(score_TE, home_T, nodes, top_k, limit):
    out, size = [], score_TE.shape[1] // nodes
    for row, home in zip(score_TE, home_T, strict=True):
        best = [row[n * size : (n + 1) * size].sort(descending=True).values for n in range(nodes)]
        worth = torch.stack([b[: top_k // limit].sum() for b in best])
        allowed = set(worth.argsort(descending=True)[:limit].tolist())
        order = [e for e in row.argsort(descending=True).tolist() if e // size in allowed]
        out.append(sum(1 for node in {e // size for e in order[:top_k]} if node != int(home)))
    return torch.tensor(out)


def _one_hot(score_TE, home_T, nodes, top_k, limit):
    s_TNM = score_TE.unflatten(1, (nodes, -1))
    worth_TN = s_TNM.sort(-1, descending=True).values[..., : top_k // limit].sum(-1)
    kept_TN = torch.nn.functional.one_hot(worth_TN.topk(limit).indices, nodes).sum(1)
    masked = torch.where(kept_TN[..., None] > 0, s_TNM, -1e9).flatten(1)
    used = torch.nn.functional.one_hot(masked.topk(top_k).indices, score_TE.shape[1]).sum(1)
    there = used.unflatten(1, (nodes, -1)).sum(-1) > 0
    return (there & (torch.arange(nodes) != home_T[:, None])).sum(1).tolist()


check_copies_leaving = [("row by row", _by_rank), ("by one-hot", _one_hot)]
