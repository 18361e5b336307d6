"""A fourth try, made when the third had been answered: (what was done, a phrase, the answer)."""

import math

import torch
import torch.nn.functional as F

check_first_expert = [
    (
        "the busiest of its experts",
        "not the token's first expert",
        lambda r, t: int(
            max(r.expert_N[r.token_N == t].tolist(), key=lambda e: int((r.expert_N == e).sum()))
        ),
    ),
    (
        "of all before it",
        "not the token's first expert",
        lambda r, t: int(r.expert_N[r.token_N <= t][r.gate_N[r.token_N <= t].argmax()]),
    ),
    (
        "a list of all",
        "return one number, not one of shape (2,)",
        lambda r, t: r.expert_N[r.token_N == t].tolist(),
    ),
]

check_path = [
    (
        "layers two by two",
        "return a list of 3, not a list of 2",
        lambda tr, t: [int(r.gates_TE()[t].argmax()) for r in tr.layers[::2]],
    ),
    (
        "only the last",
        "this is the last layer alone",
        lambda tr, t: int(tr.layers[-1].gates_TE()[t].argmax()),
    ),
    (
        "gates for experts",
        "not the token's way through the layers",
        lambda tr, t: [float(r.gates_TE()[t].max()) for r in tr.layers],
    ),
]

check_networks_used = [
    (
        "a mean over the layers",
        "not the number of networks",
        lambda tr, ts: (
            len(
                {
                    (n, e)
                    for n, r in enumerate(tr.layers)
                    for t, e in zip(r.token_N.tolist(), r.expert_N.tolist(), strict=True)
                    if t in list(ts)
                }
            )
            / len(tr.layers)
        ),
    ),
    (
        "those that no token met",
        "not the number of networks",
        lambda tr, ts: (
            sum(r.num_experts for r in tr.layers)
            - len(
                {
                    (n, e)
                    for n, r in enumerate(tr.layers)
                    for t, e in zip(r.token_N.tolist(), r.expert_N.tolist(), strict=True)
                    if t in list(ts)
                }
            )
        ),
    ),
]


def _off(o, d):
    return (d[:, None] - o).square().sum(-1)


check_responsibilities = [
    (
        "the logits with another temperature",
        "these are not the posterior probabilities",
        lambda z, o, d: (2 * z - _off(o, d) / 2).softmax(-1),
    ),
    (
        "the last expert gets what is left, twice",
        "they do not add up to 1 over the last dimension, and the right ones do",
        lambda z, o, d: (
            lambda h: torch.cat([h[:, :-1], 1 - h[:, :-1].sum(1, keepdim=True) / 2], 1)
        )((z - _off(o, d) / 2).softmax(-1)),
    ),
    (
        "answers averaged over the experts first",
        "this is the prior p, what the gate believes before the answer is known",
        lambda z, o, d: (z - _off(o.mean(1, keepdim=True).expand_as(o), d) / 2).softmax(-1),
    ),
]

check_working_experts = [
    (
        "at most this share",
        "that is not how many experts work",
        lambda z, s: (F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1) <= s).sum(-1),
    ),
    (
        "the winner's number",
        "that is not how many experts work",
        lambda z, s: F.one_hot(z.argmax(-1), z.shape[-1]).sum(1).argmax(-1),
    ),
    (
        "a share of the experts",
        "that is not how many experts work",
        lambda z, s: (F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1) >= s).double().mean(-1),
    ),
    (
        "the last run for all",
        "that is not how many experts work",
        lambda z, s: (
            (F.one_hot(z.argmax(-1), z.shape[-1]).double().mean(1) >= s).sum(-1)[-1].expand(len(z))
        ),
    ),
]

check_fit_gate = [
    (
        "a target of 1 where left has more than half",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: (
            lambda p: (
                v
                + torch.linalg.solve(
                    (x.T * (o * p * (1 - p))) @ x + 1e-3 * torch.eye(len(v)).to(x),
                    x.T @ (o * (h > o / 2) - o * p),
                )
            )
        )((x @ v).sigmoid()),
    ),
    (
        "half of the step",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: (
            lambda p: (
                v
                + 0.5
                * torch.linalg.solve(
                    (x.T * (o * p * (1 - p))) @ x + 1e-3 * torch.eye(len(v)).to(x),
                    x.T @ (h - o * p),
                )
            )
        )((x @ v).sigmoid()),
    ),
    (
        "the diagonal of the curvature",
        "this is not one Newton step of the weighted logistic regression",
        lambda v, x, o, h: (
            lambda p: v + (x.T @ (h - o * p)) / ((x.T.square() * (o * p * (1 - p))).sum(1) + 1e-3)
        )((x @ v).sigmoid()),
    ),
]

check_constrain = [
    (
        "half a gate for whoever is ahead",
        "not the open gates over their sum",
        lambda g, t, m: (lambda a: a / a.sum(-1, keepdim=True))(
            g * torch.where(t - t.mean() > m, 0.5, 1.0)
        ),
    ),
    (
        "only where a token's best is ahead",
        "not the open gates over their sum",
        lambda g, t, m: torch.where(
            (g.argmax(-1) == t.argmax())[:, None],
            (lambda a: a / a.sum(-1, keepdim=True))(g * (t - t.mean() <= m)),
            g,
        ),
    ),
    (
        "all but the last place",
        "not the open gates over their sum",
        lambda g, t, m: (lambda a: a / a.sum(-1, keepdim=True))(g * (t == t.min())),
    ),
]

check_sparse_gates = [
    (
        "each token's first k",
        "these are not the softmax over each token's k highest scores",
        lambda s, k: s.masked_fill(torch.arange(s.shape[1]) >= k, -torch.inf).softmax(-1),
    ),
    (
        "the k largest of the whole batch",
        "these are not the softmax over each token's k highest scores",
        lambda s, k: s.masked_fill(s < s.flatten().topk(k * len(s)).values[-1], -1e9).softmax(-1),
    ),
    (
        "scores, not gates",
        "these are the kept scores",
        lambda s, k: torch.zeros_like(s).scatter(-1, s.topk(k).indices, s.topk(k).values),
    ),
]

check_prob_in_top_k = [
    (
        "1 for who is in",
        "not Phi((clean - bar) / std)",
        lambda c, n, s, k: (
            torch.ones_like(c)
            if k == c.shape[1]
            else (
                lambda v: torch.where(
                    n >= v[:, k - 1 : k], 1.0, torch.special.ndtr((c - v[:, k - 1 : k]) / s)
                )
            )(n.topk(k + 1).values)
        ),
    ),
    (
        "k / E for k = E alone, right else",
        "with k = E everyone is always chosen",
        lambda c, n, s, k: (
            (c * 0 + 0.5)
            if k == c.shape[1]
            else (
                lambda v: torch.special.ndtr(
                    (c - torch.where(n > v[:, k:], v[:, k:], v[:, k - 1 : k])) / s
                )
            )(n.topk(k + 1).values)
        ),
    ),
]

check_places = [
    (
        "cut to a multiple of eight",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: -(-math.ceil(f * K * T / E) // 8) * 8,
    ),
    (
        "tokens less one",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: math.ceil(f * K * (T - 1) / E),
    ),
    (
        "as text",
        "return one number, not '3 places'",
        lambda T, E, f, K: f"{math.ceil(f * K * T / E)} places",
    ),
]

check_rank = [
    (
        "earlier and later",
        "that is the length of the queue, not the token's place in it",
        lambda x, E: (x[:, None] == x).sum(1) - 1,
    ),
    (
        "divided by the number of experts",
        "not the number of earlier tokens that chose the same expert",
        lambda x, E: torch.arange(len(x)) // E,
    ),
    (
        "backwards from the end of its queue, from 1",
        "not the number of earlier tokens that chose the same expert",
        lambda x, E: (x[:, None] == x).triu().sum(1),
    ),
]

check_first_choices = [
    (
        "all first choices of all experts before",
        "the offset is the number of all tokens",
        lambda x, E: torch.stack(
            [
                (x[:, 0][:, None] == x[:, 0]).tril(-1).sum(1),
                len(x) + (x[:, 1][:, None] == x[:, 1]).tril(-1).sum(1),
            ],
            1,
        ),
    ),
    (
        "second choices behind their token's first",
        "not all first choices by position, then all second ones",
        lambda x, E: (lambda r: torch.stack([r, r + 1], 1))(
            (x[:, 0][:, None] == x[:, 0]).tril(-1).sum(1)
        ),
    ),
]

check_counted_before = [
    (
        "the largest belief for P",
        "not E × the sum of (share of first choices) × (mean probability)",
        lambda P, x, k: (
            P.shape[1] * (F.one_hot(x[:, 0], P.shape[1]).float().mean(0) * P.amax(0)).sum()
        ),
    ),
    (
        "the dropped counted twice",
        "not E × the sum of (share of first choices) × (mean probability)",
        lambda P, x, k: (
            P.shape[1]
            * (F.one_hot(x[:, 0], P.shape[1]).float() * (2 - k[:, :1].float())).mean(0)
            @ P.mean(0)
        ),
    ),
    (
        "the entropy of the shares",
        "not E × the sum of (share of first choices) × (mean probability)",
        lambda P, x, k: -(P.mean(0) * P.mean(0).log()).sum(),
    ),
]

check_balance_loss = [
    (
        "the product of the means, not the sum",
        "not E * sum(f * P)",
        lambda z, x: (
            z.shape[1]
            * (F.one_hot(x, z.shape[1]).float().mean((0, 1)) + z.softmax(-1).mean(0)).sum()
            / 2
        ),
    ),
    (
        "one expert too many in N",
        "not E * sum(f * P)",
        lambda z, x: (z.shape[1] + 1) * z.softmax(-1).mean(0)[x].mean(),
    ),
    (
        "K choices, P of the best K",
        "P comes from the chosen probabilities alone, the others set to 0",
        lambda z, x: (
            z.shape[1]
            * (
                F.one_hot(x, z.shape[1]).float().mean((0, 1))
                * torch.zeros_like(z).scatter(1, x, z.softmax(-1).gather(1, x)).mean(0)
            ).sum()
        ),
    ),
]

check_push = [
    (
        "from the counts of this token",
        "not (E / T) * p * (f - sum p f)",
        lambda z, f: (
            z.shape[1] / len(z) * z.softmax(-1) * (f - z.softmax(-1).square().sum(-1, keepdim=True))
        ),
    ),
    (
        "twice",
        "right up to a factor",
        lambda z, f: (lambda p: 2 * z.shape[1] / len(z) * p * (f - (p * f).sum(-1, keepdim=True)))(
            z.softmax(-1)
        ),
    ),
    (
        "T for E",
        "right up to a factor",
        lambda z, f: (lambda p: len(z) / z.shape[1] * p * (f - (p * f).sum(-1, keepdim=True)))(
            z.softmax(-1)
        ),
    ),
]

check_spacing = [
    ("32 up to 8192", "not the distance from x to the next larger bfloat16", lambda x: 32.0),
    (
        "from one below",
        "not the distance from x to the next larger bfloat16",
        lambda x: 2.0 ** (math.floor(math.log2(x - 0.5)) - 7) if x > 1 else 2.0**-7,
    ),
    (
        "float32's bits",
        "that is float32's distance",
        lambda x: 2.0 ** (math.floor(math.log2(x)) - 23),
    ),
]

check_z_gradient = [
    (
        "two for each expert",
        "right up to a factor",
        lambda z: 2 * z.shape[1] * z.logsumexp(-1, keepdim=True) * z.softmax(-1) / len(z),
    ),
    (
        "half a mean",
        "both the 2 and the 1/T forgotten",
        lambda z: z.logsumexp(-1, keepdim=True) * z.softmax(-1),
    ),
    (
        "the largest alone is pushed",
        "not 2 · log-sum-exp · softmax / T",
        lambda z: 2 * z.logsumexp(-1, keepdim=True) * F.one_hot(z.argmax(-1), z.shape[1]) / len(z),
    ),
]

check_expert_choice = [
    (
        "c twice",
        "return a tensor of shape (4, 8), not one of shape (4, 16)",
        lambda z, c: (lambda v, i: (i, v))(
            *z.softmax(-1).T.topk(min(len(z), math.ceil(c * c * len(z) / z.shape[1])))
        ),
    ),
    (
        "one half of them",
        "return a tensor of shape (2, 2), not one of shape (2, 1)",
        lambda z, c: (lambda v, i: (i, v))(
            *z.softmax(-1).T.topk(max(1, math.ceil(c * len(z) / z.shape[1]) // 2))
        ),
    ),
    (
        "worst of the best first",
        "right tokens, but in order",
        lambda z, c: (lambda v, i: (i.flip(1), v.flip(1)))(
            *z.softmax(-1).T.topk(min(len(z), math.ceil(c * len(z) / z.shape[1])))
        ),
    ),
]

check_violations = [
    (
        "pooled over a mean of the largest",
        "the global one: not (largest - mean) / mean",
        lambda x: (x.sum(0).max() / x.amax(1).mean() - 1, (x.amax(1) / x.mean(1) - 1).mean()),
    ),
    (
        "squared",
        "this is the square of what is asked",
        lambda x: (
            (x.sum(0).max() / x.sum(0).mean() - 1) ** 2,
            ((x.amax(1) / x.mean(1) - 1) ** 2).mean(),
        ),
    ),
    (
        "the first batch",
        "the mean over the batches",
        lambda x: (x.sum(0).max() / x.sum(0).mean() - 1, x[0].max() / x[0].mean() - 1),
    ),
]

check_disable_top = [
    (
        "two always, as shown",
        "not the softmax of the k best of those left (shown",
        lambda z, k, r: (
            lambda n: (lambda v, i: (v[:, n : n + k].softmax(-1), i[:, n : n + k]))(
                *z.sort(-1, descending=True)
            )
        )(min(2, z.shape[1] - k)),
    ),
    (
        "a share of those that are chosen or left",
        "not the softmax of the k best of those left (shown",
        lambda z, k, r: (
            lambda n: (lambda v, i: (v[:, n : n + k].softmax(-1), i[:, n : n + k]))(
                *z.sort(-1, descending=True)
            )
        )(min(z.shape[1] - k, int(r * z.shape[1]) + 1)),
    ),
]

check_top_k = [
    (
        "one gate for the batch",
        "gate_TK: the gates are not the right ones",
        lambda z, k: (z.topk(k).values.softmax(-1).mean(0).expand(len(z), k), z.topk(k).indices),
    ),
    (
        "half precision logits",
        "gate_TK: the gates are not the right ones",
        lambda z, k: (z.bfloat16().float().topk(k).values.softmax(-1), z.topk(k).indices),
    ),
]

check_offsets = [
    (
        "the middle of each",
        "not the running sum of the loads, from 0 to the number of pairs",
        lambda c: F.pad(c.sum(0).cumsum(0), (1, 0)) + F.pad(c.sum(0), (0, 1)) // 2,
    ),
    (
        "even shares",
        "not the running sum of the loads, from 0 to the number of pairs",
        lambda c: torch.arange(c.shape[1] + 1) * c.sum() // c.shape[1],
    ),
]

check_sum_by_token = [
    (
        "only the best gate",
        "not the sum of each token's rows, each times its gate",
        lambda y, g, n, K, kept: (
            lambda w: (
                y.masked_fill((torch.arange(len(y)) >= kept)[:, None], 0.0)[
                    n.view(-1, K).gather(1, w)[:, 0]
                ]
                * g[n].view(-1, K).amax(1, keepdim=True)
            )
        )(g[n].view(-1, K).argmax(1, keepdim=True)),
    ),
    (
        "gates made to add up to 1",
        "not the sum of each token's rows, each times its gate",
        lambda y, g, n, K, kept: (
            lambda w: (
                y.masked_fill((torch.arange(len(y)) >= kept)[:, None], 0.0)[n].view(
                    -1, K, y.shape[1]
                )
                * (w / w.sum(1, keepdim=True).clamp(min=1e-9))[..., None]
            ).sum(1)
        )(g[n].view(-1, K)),
    ),
]

check_quantize = [
    (
        "seven bits",
        "not the whole range of int8",
        lambda w: (lambda s: ((w / s).round().to(torch.int8), s))(
            (w.abs().amax(1, keepdim=True) / 63).clamp(min=1e-12)
        ),
    ),
    (
        "one row's scale for the next",
        "q * scale is up to",
        lambda w: (lambda s: ((w / s).round().clamp(-127, 127).to(torch.int8), s.roll(1, 0)))(
            (w.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
        ),
    ),
]

check_information = [
    (
        "the sum of both entropies",
        "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))",
        lambda c: (
            -sum(
                float(torch.special.xlogy(p, p).sum())
                for p in (c.double().sum(1) / c.sum(), c.double().sum(0) / c.sum())
            )
            / math.log(2)
        ),
    ),
    (
        "the root of the mean square",
        "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))",
        lambda c: float((c.double() / c.sum()).square().sum().sqrt()),
    ),
]

check_saturation = [
    (
        "early ones that are twice there",
        "it is divided by k as well",
        lambda a, b: (a[:, :, None] == b[:, None]).double().sum((1, 2)).mean().item(),
    ),
    (
        "of different tokens",
        "not the mean share of a token's final experts that it had before",
        lambda a, b: (a[:, :, None] == b.roll(1, 0)[:, None]).any(1).double().mean().item(),
    ),
]

check_repetition = [
    (
        "texts of one less",
        "not the share of neighbours in a text with the same first choice",
        lambda x, n: (x.view(-1, n)[:, 1:-1] == x.view(-1, n)[:, :-2]).double().mean().item(),
    ),
    (
        "runs, not neighbours",
        "not the share of neighbours in a text with the same first choice",
        lambda x, n: float((x.view(-1, n).diff(dim=1) != 0).sum() + len(x) // n) / len(x),
    ),
]
