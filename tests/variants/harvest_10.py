"""Chapter 10's harvest of unusual right answers: (how it is done, the answer)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from moe_lite import Mixtral


def _rows(z, k):
    gates, experts = [], []
    for row in z:
        best = sorted(range(len(row)), key=lambda e: -float(row[e].detach()))[:k]
        w = torch.stack([(row[e] - row[best[0]]).exp() for e in best])
        gates.append(w / sum(w.unbind()))
        experts.append(best)
    return torch.stack(gates), experts


check_top_k = [
    ("row by row, lists of experts", _rows),
    ("topk, then a softmax", lambda z, k: (z.topk(k)[0].softmax(1), z.topk(k)[1])),
    (
        "a mask, float64, int32",
        lambda z, k: (
            lambda i: (F.normalize(z.double().softmax(1).gather(1, i), p=1, dim=1), i.int())
        )(z.argsort(1, descending=True)[:, :k]),
    ),
]

check_softmax_order = [
    ("row by row, lists of experts", _rows),
    (
        "softmax before, divided",
        lambda z, k: (lambda t: [t.values / t.values.sum(1, keepdim=True), t.indices])(
            z.softmax(1).topk(k)
        ),
    ),
    (
        "-inf for the others, then gathered",
        lambda z, k: (
            lambda i: (
                torch.full_like(z, -torch.inf)
                .scatter(1, i, z.gather(1, i))
                .softmax(1)
                .gather(1, i),
                i,
            )
        )(z.topk(k).indices),
    ),
]

check_orders_agree = [
    ("NumPy's bool", lambda r, k, E: np.bool_(r) | np.bool_(k >= E)),
    ("0-d", lambda r, k, E: torch.tensor(not (not r and k < E))),
    (
        "tried out",
        lambda r, k, E: (
            lambda z: bool(
                (
                    (lambda g: g / g.sum(1, keepdim=True) if r else g)(z.softmax(1).topk(k)[0])
                    - z.topk(k)[0].softmax(1)
                )
                .abs()
                .max()
                < 1e-5
            )
        )(torch.randn(20, E)),
    ),
]


def _gathered(x, g, c, w1, w3, w2):
    up = torch.einsum("td,tkfd->tkf", x, w1[c])
    up = up * up.sigmoid() * torch.einsum("td,tkfd->tkf", x, w3[c])
    return torch.einsum("tkf,tkdf,tk->td", up, w2[c], g)


def _everyone(x, g, c, w1, w3, w2):
    all_ETD = torch.stack(
        [
            F.linear(F.silu(F.linear(x, a)) * F.linear(x, b), d)
            for a, b, d in zip(w1, w3, w2, strict=True)
        ]
    )
    gate_TE = x.new_zeros(len(x), len(w1)).scatter_add(1, c, g)
    return (gate_TE.T[..., None] * all_ETD).sum(0)


def _token_by_token(x, g, c, w1, w3, w2):
    return torch.stack(
        [
            sum(
                g[t, k] * (w2[e] @ (F.silu(w1[e] @ x[t]) * (w3[e] @ x[t])))
                for k, e in enumerate(c[t].tolist())
            )
            for t in range(len(x))
        ]
    )


check_moe_layer = [
    ("weights gathered, einsum", _gathered),
    ("everybody works, gates of 0", _everyone),
    ("token by token", _token_by_token),
]


class Functional(nn.Module):
    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.top_k = top_k

    def forward(self, x):
        p, expert = F.linear(x, self.gate.weight).softmax(1).topk(self.top_k, 1)
        return p / p.sum(1, keepdim=True), expert


class AsAList(Functional):
    def forward(self, x):
        z = torch.einsum("td,ed->te", x, self.gate.weight)
        expert = z.argsort(1, descending=True)[:, : self.top_k]
        return [z.double().gather(1, expert).softmax(1), expert]


check_global_bug = [("softmax, topk, divided", Functional), ("a list, float64", AsAList)]


def _built(c):
    with torch.device("meta"):
        model = Mixtral(c)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if "experts" in n)
    return np.int64(total), np.int64(
        total - experts // c.num_local_experts * (c.num_local_experts - c.num_experts_per_tok)
    )


def _layer_by_layer(c):
    D, total = c.hidden_size, c.hidden_size * (c.vocab_size + 1)
    total += 0 if c.tie_word_embeddings else D * c.vocab_size
    active = total
    for _ in range(c.num_hidden_layers):
        both = 2 * D + D * c.num_local_experts
        both += (
            2 * D * c.head_dim * c.num_attention_heads + 2 * D * c.head_dim * c.num_key_value_heads
        )
        total += both + sum(3 * D * c.intermediate_size for _ in range(c.num_local_experts))
        active += both + c.num_experts_per_tok * 3 * D * c.intermediate_size
    return torch.tensor([total, active])


check_parameter_count = [
    ("a model built and counted", _built),
    ("layer by layer, int64", _layer_by_layer),
]


def _backward(loss):
    z = torch.randn(32, 4)
    z[:, 0] += 2
    z.requires_grad_()
    try:
        loss(torch.zeros(()), z, 0.5).backward()
    except RuntimeError:
        return np.bool_(False)
    return np.bool_(z.grad is not None and z.grad.norm() > 1e-8)


def _jacobian(loss):
    z = torch.tensor([[3.0, 1.0, 0.0, 0.0]] * 5 + [[0.0, 0.5, 0.0, 0.0]])
    return (
        torch.autograd.functional.jacobian(lambda a: loss(torch.ones(()), a, 1.0), z).abs().sum()
        > 0
    )


check_balance_is_used = [("backward, tried", _backward), ("autograd's jacobian, 0-d", _jacobian)]


check_experts_worth = [
    ("token by token", lambda g: [sum(row) ** 2 / sum(x * x for x in row) for row in g.tolist()]),
    ("by the spread", lambda g: g.shape[1] / (1 + g.var(1, correction=0) / g.mean(1) ** 2)),
]
