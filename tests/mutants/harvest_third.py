"""A third try, made when the second had been answered: (what was done, a phrase, the answer)."""

import math

import torch
import torch.nn.functional as F

from moe_lite.course import cost
from moe_lite.course.hierarchy import HME

check_first_expert = [
    (
        "gates added over all that share a number",
        "not the token's first expert",
        lambda r, t: int(r.gates_TE().sum(0).argmax()),
    ),
    ("one too high", "every number is off by +1", lambda r, t: int(r.gates_TE()[t].argmax()) + 1),
    (
        "of the neighbouring token",
        "not the token's first expert",
        lambda r, t: int(r.gates_TE()[t - 1].argmax()),
    ),
]

check_path = [
    (
        "the whole text's favourite in each layer",
        "not the token's way through the layers",
        lambda tr, t: [int(r.gates_TE().sum(0).argmax()) for r in tr.layers],
    ),
    (
        "the second where it is nearly as good",
        "not the token's way through the layers",
        lambda tr, t: [
            int(
                r.gates_TE()[t]
                .topk(2)
                .indices[1 if r.gates_TE()[t].topk(2).values[1] > 0.45 else 0]
            )
            for r in tr.layers
        ],
    ),
]


def _off(o, d):
    return (d[:, None] - o).square().sum(-1)


def _e3(z, o, d):
    return -(z.log_softmax(-1) - _off(o, d) / 2).logsumexp(-1)


check_mixture_error = [
    ("divided by the outputs", "this is not equation", lambda z, o, d: _e3(z, o, d) / o.shape[-1]),
    ("never below 0.1", "this is not equation", lambda z, o, d: _e3(z, o, d).clamp(min=0.1)),
    (
        "the answers detached",
        "right numbers, but no gradient reaches the experts' answers, so what is behind can",
        lambda z, o, d: _e3(z, o.detach(), d),
    ),
    ("in bits", "right up to a factor", lambda z, o, d: _e3(z, o, d) / math.log(2)),
]

check_gradients = [
    (
        "the gate's from the hard winner",
        "by the logits: not the derivative",
        lambda z, o, d: (
            lambda h: (
                z.softmax(-1) - F.one_hot(h.argmax(-1), z.shape[1]),
                h[..., None] * (o - d[:, None]),
            )
        )((z - _off(o, d) / 2).softmax(-1)),
    ),
    (
        "the error squared",
        "by the answers: not the derivative",
        lambda z, o, d: (lambda h: (z.softmax(-1) - h, h[..., None] * (o - d[:, None]).square()))(
            (z - _off(o, d) / 2).softmax(-1)
        ),
    ),
    (
        "added up over the outputs",
        "by the answers: return a tensor of shape (2, 2, 1), not one of shape (2, 2)",
        lambda z, o, d: (lambda h: (z.softmax(-1) - h, (h[..., None] * (o - d[:, None])).sum(-1)))(
            (z - _off(o, d) / 2).softmax(-1)
        ),
    ),
]

check_product = [
    (
        "weighed by the number of experts",
        "not the normalised product",
        lambda a: (a.sum(-1) * a.shape[1]).log_softmax(0),
    ),
    (
        "the most doubtful decides",
        "not the normalised product",
        lambda a: a.amin(-1).log_softmax(0),
    ),
    (
        "the last expert left out",
        "not the normalised product",
        lambda a: a[:, :-1].sum(-1).log_softmax(0),
    ),
]


def _leaves(left):
    level, first = torch.ones_like(left[:, :1]), 0
    while first < left.shape[1]:
        p = left[:, first : 2 * first + 1]
        level = torch.stack([level * p, level * (1 - p)], -1).flatten(1)
        first = 2 * first + 1
    return level


check_leaf_priors = [
    (
        "hard left or right",
        "these are not the products of the gates on the way to each leaf",
        lambda left: _leaves((left > 0.5).to(left)),
    ),
    ("in logarithms", "this is the logarithm of what is asked", lambda left: _leaves(left).log()),
    (
        "the first token's for all",
        "these are not the products of the gates on the way to each leaf",
        lambda left: _leaves(left[:1]).expand(len(left), -1),
    ),
]


def _nodes(leaf):
    levels = [leaf]
    while levels[0].shape[1] > 1:
        levels.insert(0, levels[0][:, 0::2] + levels[0][:, 1::2])
    return torch.cat(levels, -1)


check_posteriors = [
    (
        "the larger child's for the manager",
        "these are not the nodes' posteriors",
        lambda p, d: (
            lambda h: torch.cat(
                [
                    *(
                        h.unflatten(1, (2**k, -1)).amax(-1)
                        for k in range(h.shape[1].bit_length() - 1)
                    ),
                    h,
                ],
                1,
            )
        )(p * d / (p * d).sum(-1, keepdim=True)),
    ),
    (
        "every level from right to left",
        "the right numbers, but in another order",
        lambda p, d: torch.cat(
            [
                a.flip(1)
                for a in (
                    lambda h: [
                        h.unflatten(1, (2**k, -1)).sum(-1) for k in range(h.shape[1].bit_length())
                    ]
                )(p * d / (p * d).sum(-1, keepdim=True))
            ],
            1,
        ),
    ),
    (
        "the prior squared",
        "these are not the nodes' posteriors",
        lambda p, d: _nodes(p * p * d / (p * p * d).sum(-1, keepdim=True)),
    ),
]


def _fit(x, y, w):
    return torch.linalg.solve((x.T * w) @ x, (x.T * w) @ y)


check_fit_expert = [
    (
        "weights of at least 0.1",
        "this does not minimise the weighted squared error",
        lambda x, y, w: _fit(x, y, w.clamp(min=0.1)),
    ),
    (
        "the first output for all",
        "this does not minimise the weighted squared error",
        lambda x, y, w: _fit(x, y[:, :1].expand_as(y), w),
    ),
    (
        "centred inputs",
        "this does not minimise the weighted squared error",
        lambda x, y, w: torch.linalg.lstsq(
            (x - x.mean(0)) * w.sqrt()[:, None] + 1e-6, (y - y.mean(0)) * w.sqrt()[:, None]
        )[0],
    ),
]


def _tree(tree, x, y, h, floor=0.0, gate=1.0):
    G, E = tree.gate_QGD.shape[1], tree.var_QE.shape[1]
    gates, experts, var = [], [], []
    for n in range(G):
        v, own, left = tree.gate_QGD[0, n], h[:, n], h[:, 2 * n + 1]
        p = (x @ v).sigmoid()
        curve = (x.T * (own * p * (1 - p))) @ x + 1e-3 * torch.eye(len(v)).to(x)
        gates.append(v + gate * torch.linalg.solve(curve, x.T @ (left - own * p)))
    for e in range(E):
        w = h[:, G + e]
        experts.append(_fit(x, y, w))
        var.append(((w * (y - x @ experts[-1]).square().mean(-1)).sum() / w.sum()).clamp(min=floor))
    return HME(torch.stack(gates)[None], torch.stack(experts)[None], torch.stack(var)[None])


check_m_step = [
    (
        "variances of at least 1",
        "the variances are left as they were",
        lambda tr, x, y, h: _tree(tr, x, y, h, floor=1.0),
    ),
    (
        "a hundredth of a gate's step",
        "the gates: a gate fits its posteriors worse than a Newton step would: is its target",
        lambda tr, x, y, h: _tree(tr, x, y, h, gate=0.01),
    ),
]

check_noisy_scores = [
    (
        "the same noise for all experts",
        "not clean + normal × softplus",
        lambda x, wg, wn, e, tr: x @ wg.T + e[:, :1] * F.softplus(x @ wn.T) if tr else x @ wg.T,
    ),
    (
        "the root of softplus",
        "softplus is the deviation itself",
        lambda x, wg, wn, e, tr: x @ wg.T + e * F.softplus(x @ wn.T).sqrt() if tr else x @ wg.T,
    ),
    (
        "noise taken off",
        "the noise is taken away",
        lambda x, wg, wn, e, tr: x @ wg.T - e * F.softplus(x @ wn.T) if tr else x @ wg.T,
    ),
]

check_top1_gate = [
    (
        "margin to the second",
        "gate_T: not the best probability and whose it is",
        lambda s: ((lambda p: p[:, 0] - p[:, 1])(s.softmax(-1).topk(2).values), s.argmax(-1)),
    ),
    (
        "an expert for each by the tokens' order",
        "expert_T: not the best probability and whose it is",
        lambda s: (s.softmax(-1).amax(-1), torch.arange(len(s)) % s.shape[1]),
    ),
    (
        "straight through: 1 with a slope",
        "the gate is 1 whatever the score, as of a softmax of one",
        lambda s: (lambda p: (p - p.detach() + 1, s.argmax(-1)))(s.softmax(-1).amax(-1)),
    ),
]


def _rank(x):
    return (x[:, None] == x).tril(-1).sum(1)


check_first_choices = [
    (
        "second choices counted from the end of the batch",
        "the right numbers, but in another order",
        lambda x, E: torch.stack(
            [
                _rank(x[:, 0]),
                x[:, 0].bincount(minlength=E)[x[:, 1]] + _rank(x[:, 1].flip(0)).flip(0),
            ],
            1,
        ),
    ),
    (
        "only the first choices right",
        "not all first choices by position, then all second ones",
        lambda x, E: torch.stack([_rank(x[:, 0]), torch.zeros_like(x[:, 1])], 1),
    ),
]

check_dropped_token = [
    (
        "p for the residual of the dropped",
        "not h + p × expert, or h where dropped",
        lambda h, x, y, p, k: torch.where(k[:, None], h + p[:, None] * y, h * (1 - p[:, None])),
    ),
    (
        "the mean of all answers for the dropped",
        "not h + p × expert, or h where dropped",
        lambda h, x, y, p, k: h + p[:, None] * torch.where(k[:, None], y, y.mean(0)),
    ),
    (
        "one gate for all",
        "not h + p × expert, or h where dropped",
        lambda h, x, y, p, k: h + torch.where(k[:, None], p.mean() * y, 0.0),
    ),
]


def _push(z, f):
    p = z.softmax(-1)
    return z.shape[1] / len(z) * p * (f - (p * f).sum(-1, keepdim=True))


check_push = [
    (
        "only of the best expert",
        "not (E / T) * p * (f - sum p f)",
        lambda z, f: _push(z, f) * F.one_hot(z.argmax(-1), z.shape[1]),
    ),
    ("rounded", "rounded to 2 decimals", lambda z, f: _push(z, f).round(decimals=2)),
    (
        "crowd against an even share of the token",
        "not (E / T) * p * (f - sum p f)",
        lambda z, f: (
            z.shape[1] / len(z) * (z.softmax(-1) * f - (z.softmax(-1) * f).mean(-1, keepdim=True))
        ),
    ),
]

check_below_one = [
    (
        "half of the tokens nowhere",
        "a logit is not finite",
        lambda E: torch.full((4, E), float("nan")),
    ),
    (
        "right for two and three",
        "with E = 3, below 1, but it can be below",
        lambda E: (
            torch.tensor([[0.01, 0.0]] * 3 + [[0.0, 9.0]])
            if E == 2
            else torch.tensor([[0.01, 0.0, 0.0]] * 2 + [[-9.0, 0.01, 0.0]])[:, :3]
            if E == 3
            else torch.eye(E)
        ),
    ),
]


def _loss(z, x):
    return z.shape[1] * z.softmax(-1).mean(0)[x].mean()


check_masked_balance = [
    (
        "padding taken for the mean token",
        "not the loss of real tokens alone",
        lambda z, x, m: _loss(torch.where(m[:, None], z, z[m].mean(0)), x),
    ),
    (
        "up to the last real one",
        "not the loss of real tokens alone",
        lambda z, x, m: _loss(z[: int(m.nonzero().max()) + 1], x[: int(m.nonzero().max()) + 1]),
    ),
    (
        "first choices of the real ones",
        "not the loss of real tokens alone",
        lambda z, x, m: _loss(z[m], x[m][:, :1]),
    ),
]


def _only_sizes(loss):
    z = torch.zeros(2, 4, 4)
    x = (torch.arange(4)[:, None] + torch.arange(2)) % 4
    value = float(loss(z, x.expand(2, 4, 2), torch.ones(4).bool()))
    return {1: "sound", 2: "K", 4: "sum"}.get(round(value), "detached")


check_diagnose = [
    ("one question for K and for the sum", "'sum' is taken for 'K'", _only_sizes),
    ("detached, always", "it says 'detached' of all 7", lambda loss: "detached"),
    (
        "dice",
        "'sound' is taken for 'padding'",
        lambda loss: ["sound", "K", "sum", "pooled", "padding", "top-k", "detached"][
            int(torch.randint(7, ()))
        ],
    ),
]

check_z_loss = [
    (
        "cut off at 100",
        "right for small logits alone",
        lambda z: z.logsumexp(-1).square().clamp(max=100).mean(),
    ),
    (
        "the square inside the exponent",
        "not the mean of (log sum exp)^2",
        lambda z: z.square().logsumexp(-1).mean(),
    ),
    ("cubed", "not the mean of (log sum exp)^2", lambda z: z.logsumexp(-1).abs().pow(3).mean()),
]


def _island(f):
    def logits(x, w):
        with torch.autocast("cpu", enabled=False):
            return f(x, w)

    return logits


check_selective_logits = [
    (
        "inputs rounded first",
        "the input is float32",
        _island(lambda x, w: F.linear(x.bfloat16().float(), w.float())),
    ),
    (
        "one in a thousand off",
        "right up to a factor",
        _island(lambda x, w: 1.001 * F.linear(x.float(), w.float())),
    ),
    (
        "a bias of 1",
        "every number is off by +1",
        _island(lambda x, w: F.linear(x.float(), w.float()) + 1),
    ),
]

check_first_weights = [
    (
        "the cut at two of the standard normal",
        "sigma is the root of s / n",
        lambda r, n, s: torch.nn.init.trunc_normal_(torch.empty(r, n), std=1.0, a=-2, b=2) * s / n,
    ),
    ("zeros", "all weights are equal", lambda r, n, s: torch.zeros(r, n)),
    (
        "only positive",
        "the mean must be 0",
        lambda r, n, s: torch.nn.init.trunc_normal_(
            torch.empty(r, n), std=math.sqrt(s / n), a=-2 * math.sqrt(s / n), b=2 * math.sqrt(s / n)
        ).abs(),
    ),
]


def _five(x, n):
    count = x.flatten().bincount(minlength=n)
    return torch.bucketize(count, torch.tensor([0, 1, 2, 4])).bincount(minlength=5) / n


check_experts_per_token = [
    (
        "the last two added",
        "not the shares of the tokens",
        lambda x, n: torch.cat([_five(x, n)[:3], _five(x, n)[3:].sum()[None], torch.zeros(1)]),
    ),
    (
        "from many to none",
        "the right numbers, but in another order",
        lambda x, n: _five(x, n).flip(0),
    ),
    ("in percent", "right up to a factor", lambda x, n: 100 * _five(x, n)),
]

check_combine = [
    (
        "the largest answer",
        "not the sum of gate times answer",
        lambda o, x, g, n: o.new_zeros(n, o.shape[-1]).scatter_reduce(
            0,
            x.reshape(-1, 1).expand(-1, o.shape[-1]),
            (g[..., None] * o).flatten(0, 1),
            "amax",
            include_self=False,
        ),
    ),
    (
        "tokens shifted by one",
        "the right numbers, but in another order",
        lambda o, x, g, n: o.new_zeros(n, o.shape[-1]).index_add(
            0, (x.flatten() + 1) % n, (g[..., None] * o).flatten(0, 1)
        ),
    ),
    (
        "gates of the other expert",
        "not the sum of gate times answer",
        lambda o, x, g, n: o.new_zeros(n, o.shape[-1]).index_add(
            0, x.flatten(), (g.flip(0)[..., None] * o).flatten(0, 1)
        ),
    ),
]


def _only_two_apart(route, x):
    before = route(x)
    for t in range(1, len(x) - 1):
        new = x.clone()
        new[t + 1] = 5 * torch.randn_like(x[0])
        if not torch.equal(route(new)[t], before[t]):
            return True
    return False


check_reads_future = [
    (
        "each token with the next alone",
        "asked twice about the same, it says two things",
        _only_two_apart,
    ),
    (
        "one word to the end, at the beginning",
        "asked twice about the same, it says two things",
        lambda r, x: not torch.equal(r(torch.cat([x[:1], torch.randn_like(x[1:])]))[:1], r(x)[:1]),
    ),
]

check_split_experts = [
    (
        "shared ones m at a time",
        "a shared expert takes one seat, not m",
        lambda N, K, F, m, s: (m * N - m * s, m * K - m * s, F // m),
    ),
    (
        "a wider piece for what is shared",
        "width: total and active width must stay N * F and K * F",
        lambda N, K, F, m, s: (m * N - s, m * K - s, F // m + s),
    ),
]


def _out(z, k, n):
    top, expert = z.scatter(1, z.topk(n).indices, -torch.inf).topk(k)
    return top.softmax(-1), expert


check_disable_top = [
    (
        "a best one where the ratio is 0",
        "not the softmax of the k best of those left (shown",
        lambda z, k, r: _out(z, k, max(1, round(r * z.shape[1]))),
    ),
    (
        "gates of the disabled ones",
        "not the softmax of the k best of those left (shown",
        lambda z, k, r: (z.topk(k).values.softmax(-1), _out(z, k, round(r * z.shape[1]))[1]),
    ),
    (
        "of the other experts",
        "not the softmax of the k best of those left (shown",
        lambda z, k, r: _out(z, k, round(r * (z.shape[1] - k))),
    ),
]

check_biased_choice = [
    (
        "a bias for the best alone",
        "not the scores of the chosen over their sum (shown",
        lambda z, b, k: (
            lambda s: (lambda i: (s.gather(1, i) / s.gather(1, i).sum(1, keepdim=True), i))(
                (s + b * (b == b.max())).topk(k).indices
            )
        )(z.sigmoid()),
    ),
    (
        "gates of half the logits",
        "not the scores of the chosen over their sum (shown",
        lambda z, b, k: (
            lambda i: (lambda g: (g / g.sum(1, keepdim=True), i))((z / 2).sigmoid().gather(1, i))
        )((z.sigmoid() + b).topk(k).indices),
    ),
    (
        "the sum detached",
        "the sum that is divided by is detached",
        lambda z, b, k: (
            lambda s: (
                lambda i: (s.gather(1, i) / s.gather(1, i).sum(1, keepdim=True).detach(), i)
            )((s + b).topk(k).indices)
        )(z.sigmoid()),
    ),
]


def _turn(z, b, k, u, move):
    x = (z.detach().sigmoid() + b).topk(k).indices
    return x, b + u * move(x.flatten().bincount(minlength=len(b)).to(b))


check_balanced_step = [
    (
        "only the busiest down",
        "the new bias: not the old bias moved by u towards the mean load",
        lambda z, b, k, u: _turn(z, b, k, u, lambda n: -(n == n.max()).float()),
    ),
    (
        "only up",
        "the new bias: not the old bias moved by u towards the mean load",
        lambda z, b, k, u: _turn(z, b, k, u, lambda n: (n < n.mean()).float()),
    ),
    (
        "tanh for the sign",
        "the new bias: not the old bias moved by u towards the mean load",
        lambda z, b, k, u: _turn(z, b, k, u, lambda n: torch.tanh(n.mean() - n)),
    ),
    (
        "half a step",
        "the new bias: not the old bias moved by u towards the mean load",
        lambda z, b, k, u: _turn(z, b, k, u, lambda n: torch.sign(n.mean() - n) / 2),
    ),
]

check_softmax_order = [
    (
        "softmax over k + 1",
        "gate_TK: they do not add up to 1 over the last dimension, and the right ones do",
        lambda z, k: (z.topk(min(k + 1, z.shape[1])).values.softmax(-1)[:, :k], z.topk(k).indices),
    ),
    (
        "less the mean, in float16",
        "gate_TK: they do not add up to 1 over the last dimension, and the right ones do",
        lambda z, k: (
            (z.topk(k).values - z.topk(k).values.mean()).half().softmax(-1).float(),
            z.topk(k).indices,
        ),
    ),
]

check_orders_agree = [
    (
        "for even k",
        "without renormalising, softmax → top-k gives gates that add up to less than 1",
        lambda r, k, E: r or k % 2 == 0,
    ),
    (
        "more than half",
        "without renormalising, softmax → top-k gives gates that add up to less than 1",
        lambda r, k, E: r or k > E / 2,
    ),
]


def _parameters(c, **change):
    D, V, L, E, K = (
        c.hidden_size,
        c.vocab_size,
        c.num_hidden_layers,
        c.num_local_experts,
        c.num_experts_per_tok,
    )
    layer = 2 * D * c.head_dim * (c.num_attention_heads + c.num_key_value_heads) + E * D + 2 * D
    outer = V * D * (1 if c.tie_word_embeddings else 2) + D
    expert = 3 * D * c.intermediate_size
    return outer + L * (layer + E * expert), outer + L * (layer + K * expert)


check_parameter_count = [
    (
        "one layer",
        "that is not the number of all",
        lambda c: tuple(n // c.num_hidden_layers for n in _parameters(c)),
    ),
    (
        "active less one expert",
        "active: that is not what one token uses",
        lambda c: (_parameters(c)[0], _parameters(c)[1] - 3 * c.hidden_size * c.intermediate_size),
    ),
    (
        "only experts in all",
        "total: that is not the number of all",
        lambda c: (
            c.num_hidden_layers * c.num_local_experts * 3 * c.hidden_size * c.intermediate_size,
            _parameters(c)[1],
        ),
    ),
]

check_stored_bits = [
    (
        "half of a loss counts",
        "not values (log C - nats) / log 2",
        lambda n, v, c: v * (math.log(c) - n / 2) / math.log(2),
    ),
    (
        "choices rounded up to a power of two",
        "not values (log C - nats) / log 2",
        lambda n, v, c: v * (math.ceil(math.log2(c)) - n / math.log(2)),
    ),
]

check_sizes = [
    (
        "the router with a bias",
        "total: not E (3 D F + D), 3 K D F + E D, K F, E F",
        lambda D, F, E, K: (3 * D * F * E + E * D + E, 3 * D * F * K + E * D + E, K * F, E * F),
    ),
    (
        "one and a half times as wide",
        "width of the equal-active twin",
        lambda D, F, E, K: (
            3 * D * F * E + E * D,
            3 * D * F * K + E * D,
            3 * K * F // 2,
            3 * E * F // 2,
        ),
    ),
]

check_needs = [
    ("at most one", "says whether any expert is needed", lambda k, w: (k & ~w).sum(0).clamp(max=1)),
    (
        "all experts for what was not known",
        "not the number of experts it needs",
        lambda k, w: torch.where(k, (~w).sum(0), len(w)),
    ),
]

check_bytes_per_token = [
    (
        "half as often",
        "not E (1 − (1 − K/E)^T) experts for T tokens",
        lambda T, E, K, b: E * (1 - (1 - K / E) ** (T / 2)) * b / T,
    ),
    (
        "for each pair",
        "not E (1 − (1 − K/E)^T) experts for T tokens",
        lambda T, E, K, b: E * (1 - (1 - K / E) ** T) * b / T / K,
    ),
]

check_stable_rows = [
    (
        "evens, then odds, within an expert",
        "in its expert's block each, but some changed their order",
        lambda x, o: (2 * x + torch.arange(len(x)) % 2).argsort(stable=True).argsort(),
    ),
    (
        "rows from 1",
        "one too many: the first pair of an expert lands at its offset",
        lambda x, o: x.argsort(stable=True).argsort() + 1,
    ),
]

check_traffic = [
    (
        "the last rank has what is left",
        "not the number of (token, expert) pairs from each rank to each",
        lambda x, E: torch.stack(
            [(a // (E // len(x) + 1)).flatten().bincount(minlength=len(x)) for a in x]
        ),
    ),
    (
        "only what goes up",
        "not the number of (token, expert) pairs from each rank to each",
        lambda x, E: torch.stack(
            [(a // (E // len(x))).flatten().bincount(minlength=len(x)) for a in x]
        ).triu(),
    ),
]

check_rank_weights = [
    (
        "the largest for all",
        "so weighed, the ranks' average is not the mean of all tokens",
        lambda n: (len(n) * n / n.sum()).max().expand(len(n)),
    ),
    (
        "the root",
        "this is the square root of what is asked",
        lambda n: (len(n) * n / n.sum()).sqrt(),
    ),
]


def _bytes(c, batch):
    n, E = cost.count_parameters(c), c.num_local_experts
    common = n.total - n.experts - (0 if c.tie_word_embeddings else n.embedding)
    return 2 * (common + (1 - (1 - c.num_experts_per_tok / E) ** batch) * n.experts)


check_decode_bytes = [
    (
        "a row of the embedding each",
        "not 2 bytes for what is common and for the experts expected in use",
        lambda c, b: _bytes(c, b) + 2 * c.hidden_size * b * 100,
    ),
    (
        "experts of one layer",
        "not 2 bytes for what is common and for the experts expected in use",
        lambda c, b: _bytes(c, b) / c.num_hidden_layers,
    ),
    ("in gigabytes", "right up to a factor", lambda c, b: _bytes(c, b) / 1e9),
]

check_repetition = [
    (
        "either of two neighbours",
        "not the share of neighbours in a text with the same first choice",
        lambda x, n: (
            lambda t: ((t[:, 1:-1] == t[:, :-2]) | (t[:, 1:-1] == t[:, 2:])).double().mean().item()
        )(x.view(-1, n)),
    ),
    (
        "of those that use expert 0",
        "not the share of neighbours in a text with the same first choice",
        lambda x, n: (lambda t: ((t[:, 1:] == t[:, :-1]) & (t[:, 1:] == 0)).double().mean().item())(
            x.view(-1, n)
        ),
    ),
]

check_shuffle_texts = [
    (
        "texts two by two",
        "40 seeds give only 6 orders",
        lambda x, n, s: (
            lambda t, g: torch.cat(
                [
                    t[: len(t) // 2 * 2]
                    .view(-1, 2, n)[torch.randperm(len(t) // 2, generator=g)]
                    .flatten(),
                    t[len(t) // 2 * 2 :].flatten(),
                ]
            )
        )(x.view(-1, n), torch.Generator().manual_seed(s)),
    ),
    (
        "all but the first text",
        "a text never changes its place, whatever the seed",
        lambda x, n, s: (
            lambda t: torch.cat(
                [
                    t[:1],
                    t[1:][torch.randperm(len(t) - 1, generator=torch.Generator().manual_seed(s))],
                ]
            ).flatten()
        )(x.view(-1, n)),
    ),
]
