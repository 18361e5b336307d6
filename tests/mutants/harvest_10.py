"""Chapter 10's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch
import torch.nn.functional as F
from torch import nn


def _divided(gate, expert):
    return gate / gate.sum(-1, keepdim=True), expert


def _by_number(z, k):
    gate, expert = _divided(*z.softmax(-1).topk(k))
    expert, order = expert.sort(-1)
    return gate.gather(1, order), expert


check_top_k = [
    (
        "not divided",
        "the gates of a token do not add up to 1",
        lambda z, k: tuple(z.softmax(-1).topk(k)),
    ),
    (
        "softmax over the tokens",
        "the softmax runs over the tokens (dim 0), not over a token's experts (dim -1)",
        lambda z, k: _divided(*z.softmax(0).topk(k)),
    ),
    ("swapped", "the two are swapped", lambda z, k: _divided(*z.softmax(-1).topk(k))[::-1]),
    (
        "two softmaxes",
        "two softmaxes, one after the other",
        lambda z, k: (z.softmax(-1).topk(k).values.softmax(-1), z.topk(k).indices),
    ),
    ("by the expert's number", "the right experts, but in order of their numbers", _by_number),
    (
        "detached",
        "right numbers, but no gradient reaches the logits, so what is behind can never learn",
        lambda z, k: _divided(*z.detach().softmax(-1).topk(k)),
    ),
    (
        "the worst",
        "these are the least likely experts",
        lambda z, k: _divided(*z.softmax(-1).topk(k, largest=False)),
    ),
    (
        "two, as shown",
        "right for k = 2, wrong for k = 1",
        lambda z, k: _divided(*z.softmax(-1).topk(2)),
    ),
    (
        "divided over the tokens",
        "divided by the sum over the tokens (dim 0)",
        lambda z, k: (lambda g, e: (g / g.sum(0), e))(*z.softmax(-1).topk(k)),
    ),
    ("scores divided", "logits divided by their sum", lambda z, k: _divided(*z.topk(k))),
    (
        "sigmoids divided",
        "sigmoids; in a softmax the experts compete",
        lambda z, k: _divided(*z.sigmoid().topk(k)),
    ),
    (
        "even weights",
        "gate_TK: the gates are not the right ones",
        lambda z, k: (torch.full_like(z.topk(k).values, 1 / k), z.topk(k).indices),
    ),
    (
        "rounded",
        "gate_TK: rounded to 3 decimals: return every digit, and round for the eye alone",
        lambda z, k: (lambda g, e: (g.round(decimals=3), e))(*_divided(*z.softmax(-1).topk(k))),
    ),
]


def _zeros(z, k):
    top, expert = z.topk(k)
    return torch.zeros_like(z).scatter(1, expert, top).softmax(-1).gather(1, expert), expert


def _wide(z, k):
    top, expert = z.topk(k)
    return torch.full_like(z, -torch.inf).scatter(1, expert, top).softmax(-1), expert


check_softmax_order = [
    (
        "softmax before, not divided",
        "the gates of a token do not add up to 1",
        lambda z, k: tuple(z.softmax(-1).topk(k)),
    ),
    ("0 in the place of the others", "the other logits were set to 0, and exp(0) is 1", _zeros),
    (
        "a column for every expert",
        "gate_TK: return a tensor of shape (3, 2), not one of shape (3, 4)",
        _wide,
    ),
    (
        "over the tokens",
        "the softmax runs over the tokens (dim 0), not over a token's experts (dim -1)",
        lambda z, k: (z.topk(k).values.softmax(0), z.topk(k).indices),
    ),
    (
        "before and after",
        "two softmaxes, one after the other",
        lambda z, k: (z.softmax(-1).topk(k).values.softmax(-1), z.topk(k).indices),
    ),
    (
        "logarithms",
        "gate_TK: this is the logarithm of what is asked",
        lambda z, k: (z.topk(k).values.log_softmax(-1), z.topk(k).indices),
    ),
    (
        "swapped",
        "the two are swapped",
        lambda z, k: (z.topk(k).indices, z.topk(k).values.softmax(-1)),
    ),
    (
        "detached",
        "right numbers, but no gradient reaches the logits, so what is behind can never learn",
        lambda z, k: (z.topk(k).values.detach().softmax(-1), z.topk(k).indices),
    ),
    (
        "tokens for experts",
        "return a tensor of shape (3, 2), not one of shape (2, 4)",
        lambda z, k: (
            z.topk(min(k, len(z)), 0).values.softmax(0),
            z.topk(min(k, len(z)), 0).indices,
        ),
    ),
    (
        "weakest first",
        "the right experts, but worst first",
        lambda z, k: (z.topk(k).values.flip(1).softmax(-1), z.topk(k).indices.flip(1)),
    ),
    (
        "one expert",
        "return a tensor of shape (3, 2), not one of shape (3, 1)",
        lambda z, k: (z.topk(1).values.softmax(-1), z.topk(1).indices),
    ),
]

check_orders_agree = [
    ("always", "it says True of all", lambda r, k, E: True),
    (
        "if divided",
        "with k = E nothing is left out, so the gates add up to 1 by themselves",
        lambda r, k, E: r,
    ),
    (
        "if all are chosen",
        "dividing by the sum cancels the softmax's denominator",
        lambda r, k, E: k == E,
    ),
    (
        "if one is chosen",
        "with k = E nothing is left out, so the gates add up to 1 by themselves",
        lambda r, k, E: r or k == 1,
    ),
    (
        "both at once",
        "with k = E nothing is left out, so the gates add up to 1 by themselves",
        lambda r, k, E: r and k == E,
    ),
    (
        "if not divided",
        "dividing by the sum cancels the softmax's denominator",
        lambda r, k, E: not r,
    ),
    (
        "nearly all",
        "without renormalising, softmax → top-k gives gates that add up to less than 1",
        lambda r, k, E: r or k >= E - 1,
    ),
    (
        "half of them",
        "without renormalising, softmax → top-k gives gates that add up to less than 1",
        lambda r, k, E: r or 2 * k >= E,
    ),
    ("never", "it says False of all", lambda r, k, E: False),
    (
        "eight of eight",
        "with k = E nothing is left out, so the gates add up to 1 by themselves",
        lambda r, k, E: r or k == 8,
    ),
]


def _layer(x, g, c, w1, w3, w2, act=F.silu, write=None, pick=None):
    out = torch.zeros_like(x)
    for e in range(len(w1)):
        t, n = torch.where(c == e)
        y = (act(x[t] @ w1[e].T) * (x[t] @ w3[e].T)) @ w2[e].T
        y = (g[t, n, None] if pick is None else pick(t, n)) * y
        out = out.index_add(0, t, y) if write is None else write(out, t, y)
    return out


def _overwrites(out, t, y):
    out = out.clone()
    out[t] = y
    return out


def _choice_number_as_expert(x, g, c, w1, w3, w2):
    return _layer(x, g, torch.arange(c.shape[1]).expand_as(c), w1, w3, w2)


check_moe_layer = [
    (
        "the last one wins",
        "one of a token's experts overwrites another",
        lambda x, g, c, a, b, d: _layer(x, g, c, a, b, d, write=_overwrites),
    ),
    (
        "no gates",
        "the gates are forgotten",
        lambda x, g, c, a, b, d: _layer(x, torch.ones_like(g), c, a, b, d),
    ),
    (
        "w1 and w3 swapped",
        "w1 and w3 are swapped",
        lambda x, g, c, a, b, d: _layer(x, g, c, b, a, d),
    ),
    (
        "relu",
        "that is a ReLU; SwiGLU has silu",
        lambda x, g, c, a, b, d: _layer(x, g, c, a, b, d, act=torch.relu),
    ),
    (
        "gelu",
        "that is a GELU, not silu",
        lambda x, g, c, a, b, d: _layer(x, g, c, a, b, d, act=F.gelu),
    ),
    (
        "sigmoid",
        "that is a sigmoid, not silu",
        lambda x, g, c, a, b, d: _layer(x, g, c, a, b, d, act=torch.sigmoid),
    ),
    (
        "the first choice's gate for all",
        "all are weighed by the gate of the first choice",
        lambda x, g, c, a, b, d: _layer(x, g[:, :1].expand_as(g), c, a, b, d),
    ),
    (
        "only the first choice",
        "only the first choice is used",
        lambda x, g, c, a, b, d: _layer(x, g[:, :1], c[:, :1], a, b, d),
    ),
    (
        "gates made to add up to 1 again",
        "not the sum, over a token's experts, of gate × SwiGLU(x)",
        lambda x, g, c, a, b, d: _layer(x, g.softmax(-1), c, a, b, d),
    ),
    (
        "the number of the choice for the expert's",
        "a choice's position is taken for its expert's number",
        _choice_number_as_expert,
    ),
    (
        "the input added",
        "x is added; the residual connection belongs to the block around",
        lambda x, g, c, a, b, d: x + _layer(x, g, c, a, b, d),
    ),
    (
        "the mean of the choices",
        "the weighed outputs are averaged",
        lambda x, g, c, a, b, d: _layer(x, g, c, a, b, d) / c.shape[1],
    ),
    (
        "gates detached",
        "right numbers, but no gradient reaches gate_TK, so what is behind can never learn",
        lambda x, g, c, a, b, d: _layer(x, g.detach(), c, a, b, d),
    ),
    (
        "w3 forgotten",
        "not the sum, over a token's experts, of gate × SwiGLU(x)",
        lambda x, g, c, a, b, d: torch.zeros_like(x).index_add(
            0,
            torch.arange(len(x)).repeat_interleave(c.shape[1]),
            torch.cat(
                [
                    (g[t, n] * (F.silu(x[t] @ a[e].T) @ d[e].T))[None]
                    for t in range(len(x))
                    for n, e in enumerate(c[t].tolist())
                ]
            ),
        ),
    ),
]

_left_in_the_notebook = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class _Hasty(nn.Module):
    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.top_k = top_k


class Leftover(_Hasty):
    def forward(self, x):
        top, expert = self.gate(_left_in_the_notebook).topk(self.top_k)
        return top.softmax(-1), expert


class ThreeRows(_Hasty):
    def forward(self, x):
        top, expert = self.gate(x[:3]).topk(self.top_k)
        return top.softmax(-1), expert


class Remembers(_Hasty):
    def forward(self, x):
        if not hasattr(self, "kept"):
            top, expert = self.gate(x).topk(self.top_k)
            self.kept = top.softmax(-1), expert
        return self.kept


class NewGate(_Hasty):
    def forward(self, x):
        top, expert = nn.Linear(x.shape[1], self.gate.out_features, bias=False)(x).topk(self.top_k)
        return top.softmax(-1), expert


class Undivided(_Hasty):
    def forward(self, x):
        return tuple(self.gate(x).softmax(-1).topk(self.top_k))


class TwoAlways(_Hasty):
    def forward(self, x):
        top, expert = self.gate(x).topk(2)
        return top.softmax(-1), expert


class Detached(_Hasty):
    def forward(self, x):
        top, expert = self.gate(x).detach().topk(self.top_k)
        return top.softmax(-1), expert


class Swapped(_Hasty):
    def forward(self, x):
        top, expert = self.gate(x).topk(self.top_k)
        return expert, top.softmax(-1)


check_global_bug = [
    (
        "the old batch under another name",
        "forward reads the global `_left_in_the_notebook` instead of its argument",
        Leftover,
    ),
    ("three rows of it", "not softmax → top-k → renormalise of gate(x)", ThreeRows),
    ("the first batch remembered", "right on the first batch, then the same again", Remembers),
    ("a new gate each time", "the same input gives another answer the second time", NewGate),
    ("not divided", "not softmax → top-k → renormalise of gate(x)", Undivided),
    ("two experts always", "right for top_k = 2, wrong for 3", TwoAlways),
    (
        "detached",
        "right numbers, but no gradient reaches x_TD, so what is behind can never learn",
        Detached,
    ),
    ("swapped", "not softmax → top-k → renormalise of gate(x)", Swapped),
]


def _count(
    c,
    router=None,
    norms=2,
    last=1,
    matrices=3,
    kv=None,
    size=None,
    tie=None,
    active_router=None,
    embed=True,
):
    D, V, L, E, K = (
        c.hidden_size,
        c.vocab_size,
        c.num_hidden_layers,
        c.num_local_experts,
        c.num_experts_per_tok,
    )
    heads = c.num_attention_heads + (c.num_key_value_heads if kv is None else kv(c))
    base = 2 * D * (c.head_dim if size is None else size(c)) * heads + norms * D
    expert = matrices * D * c.intermediate_size
    outer = V * D * ((1 if c.tie_word_embeddings else 2) if tie is None else tie) + last * D
    one = E * D if router is None else router
    total = outer + L * (base + one + E * expert)
    active = outer + L * (base + (one if active_router is None else active_router(c)) + K * expert)
    return total, active - (0 if embed else V * D)


check_parameter_count = [
    ("no routers", "the routers are missing", lambda c: _count(c, router=0)),
    (
        "one norm in a layer",
        "each layer has two norms, and one of them is missing",
        lambda c: _count(c, norms=1),
    ),
    ("no norm at the end", "the last norm is missing", lambda c: _count(c, last=0)),
    (
        "two matrices in an expert",
        "each expert has three matrices, w1, w2 and w3",
        lambda c: _count(c, matrices=2),
    ),
    (
        "as many keys as queries",
        "keys and values are counted for every query head",
        lambda c: _count(c, kv=lambda c: c.num_attention_heads),
    ),
    (
        "heads of D / H",
        "the heads' size is taken to be D / heads",
        lambda c: _count(c, size=lambda c: c.hidden_size // c.num_attention_heads),
    ),
    (
        "two matrices of embedding always",
        "tied embeddings are one matrix",
        lambda c: _count(c, tie=2),
    ),
    ("one matrix of embedding always", "the output head is missing", lambda c: _count(c, tie=1)),
    (
        "K rows of the router active",
        "only K rows of each router are counted",
        lambda c: _count(c, active_router=lambda c: c.num_experts_per_tok * c.hidden_size),
    ),
    (
        "active without the embedding",
        "the input embedding is missing from the active ones",
        lambda c: _count(c, embed=False),
    ),
    ("swapped", "the two are swapped", lambda c: _count(c)[::-1]),
    (
        "the total twice",
        "every expert is counted as active",
        lambda c: (_count(c)[0], _count(c)[0]),
    ),
    (
        "a bias in the router",
        "that is not the number of all",
        lambda c: _count(c, router=c.num_local_experts * (c.hidden_size + 1)),
    ),
    (
        "in billions",
        "that is not the number of all",
        lambda c: tuple(round(n / 1e9, 1) for n in _count(c)),
    ),
]


def _leaning(scale=1.0):
    return (scale * torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])).requires_grad_()


def _slope(loss, z, lm, coef=1.0):
    value = loss(lm, z, coef)
    if not value.requires_grad:
        return False
    slope = torch.autograd.grad(value, z, allow_unused=True)[0]
    return slope is not None and bool(slope.abs().max() > 0)


def _at_even_logits(loss):
    z = (5 * torch.eye(4)).requires_grad_()
    value = loss(torch.tensor(2.5), z, 1.0)
    if not value.requires_grad:
        return False
    slope = torch.autograd.grad(value, z, allow_unused=True)[0]
    return slope is not None and bool(slope.abs().max() > 1e-6)


def _both(loss):
    z = _leaning()
    return _slope(loss, z, z.square().sum())


def _moves(loss):
    z, lm = _leaning().detach(), torch.tensor(2.5)
    return bool(loss(lm, z, 1.0) != loss(lm, 2 * z, 1.0))


def _backward_alone(loss):
    z = _leaning()
    loss(torch.tensor(2.5), z, 1.0).backward()
    return bool(z.grad.abs().max() > 0)


check_balance_is_used = [
    (
        "requires_grad alone",
        "a gradient that is there but 0 teaches nothing",
        lambda loss: bool(loss(torch.tensor(2.5), _leaning(), 1.0).requires_grad),
    ),
    ("an lm_loss of the same logits", "it says True of all", _both),
    ("whether the value moves", "the balance is added as a plain number", _moves),
    ("at even logits", "it says False of all", _at_even_logits),
    (
        "with a coefficient of 0",
        "it says False of all",
        lambda loss: _slope(loss, _leaning(), torch.tensor(2.5), 0.0),
    ),
    ("backward, come what may", "raised RuntimeError", _backward_alone),
    ("always", "it says True of all", lambda loss: True),
    ("never", "it says False of all", lambda loss: False),
    (
        "turned round",
        "a sound loss is called broken",
        lambda loss: not _slope(loss, _leaning(), torch.tensor(2.5)),
    ),
    (
        "whether the value is above the lm_loss",
        "the balance is added as a plain number",
        lambda loss: bool(loss(torch.tensor(2.5), _leaning().detach(), 1.0) > 2.5),
    ),
]


WORTH = "not the square of the gates' sum over the sum of their squares"
check_experts_worth = [
    ("the sum of squares", "this is the sum of squares", lambda g: (g * g).sum(1)),
    ("a root too much", "two equal gates are 2, not 1.41", lambda g: g.sum(1) / g.norm(dim=1)),
    ("the mean squared", "sums, not means", lambda g: g.mean(1) ** 2 / (g * g).sum(1)),
    ("cubes", WORTH, lambda g: g.sum(1) ** 3 / (g**3).sum(1)),
    ("over the tokens", "experts_worth: ", lambda g: g.sum(0) ** 2 / (g * g).sum(0)),
    ("of the two largest", "experts_worth: ",
     lambda g: g.topk(2).values.sum(1) ** 2 / g.topk(2).values.square().sum(1)),
    ("K for all", "experts_worth: ", lambda g: torch.full((len(g),), float(g.shape[1]))),
]  # fmt: skip
