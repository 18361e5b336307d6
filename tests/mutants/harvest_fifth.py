"""Wrong answers to chapters 00 to 03 by a reader who had not seen the checks.

Each is (what a learner did, a phrase of what the check says, the answer).
"""

import math

import torch


def _closed(gate_TE, open_E):
    open_TE = gate_TE * open_E
    return open_TE / open_TE.sum(-1, keepdim=True)


def _off(out_TEO, target_TO):
    return (target_TO[:, None] - out_TEO).square().sum(-1)


def _mine(routing, token):
    return routing.expert_N[routing.token_N == token].tolist()


check_path = [
    ("two layers only", "return a list of 3, not a list of 2",
     lambda tr, t: [_mine(r, t)[0] for r in tr.layers[:2]]),
    ("one word for it all", "return a list of 3, not", lambda tr, t: str(_mine(tr.layers[0], t))),
]  # fmt: skip

check_load = [
    ("the tokens' pairs, E of them", "the pairs of each token, not of each expert",
     lambda r: r.token_N.bincount(minlength=r.num_experts)),
]  # fmt: skip

check_responsibilities = [
    ("float64 for safety", "0 / 0 is not a number",
     lambda x, o, d: (lambda w: w / w.sum(-1, keepdim=True))(
         x.double().softmax(-1) * (-_off(o, d).double() / 2).exp())),
]  # fmt: skip

check_mixture_error = [
    ("a clamped proportion", "the proportions were clamped",
     lambda x, o, d: -(x.softmax(-1).clamp(min=1e-30).log() - _off(o, d) / 2).logsumexp(-1)),
    ("a small number added", "the proportions were clamped",
     lambda x, o, d: -((x.softmax(-1) + 1e-9).log() - _off(o, d) / 2).logsumexp(-1)),
]  # fmt: skip


def _printed(logits_TE, out_TEO, target_TO):
    p_TE = logits_TE.softmax(-1)
    h_TE = p_TE * (-_off(out_TEO, target_TO) / 2).exp()
    h_TE = h_TE / h_TE.sum(-1, keepdim=True)
    return p_TE - h_TE, h_TE[..., None] * (out_TEO - target_TO[:, None])


check_gradients = [("h as printed", "0 / 0 is not a number", _printed)]

check_leaf_priors = [
    ("one more sigmoid", "no sigmoid", lambda left_TG: _leaves(left_TG.sigmoid())),
]


def _leaves(left_TG):
    level_TW, first = torch.ones_like(left_TG[:, :1]), 0
    while first < left_TG.shape[1]:
        left_TW = left_TG[:, first : 2 * first + 1]
        level_TW = torch.stack([level_TW * left_TW, level_TW * (1 - left_TW)], -1).flatten(1)
        first = 2 * first + 1
    return level_TW


check_constrain = [
    ("this batch counted at once", "this batch's gates are in the totals already",
     lambda g, t, m: _closed(g, (t + g.detach().sum(0)) - (t + g.detach().sum(0)).mean() <= m)),
    ("ahead of the others' mean", "the mean of the others",
     lambda g, t, m: _closed(g, t - (t.sum() - t) / (len(t) - 1) <= m)),
    ("ahead of the second", "not the open gates over their sum",
     lambda g, t, m: _closed(g, t - t.topk(2).values[1] <= m)),
    ("a margin in means", "not the open gates over their sum",
     lambda g, t, m: _closed(g, t <= m * t.mean())),
    ("the freed weight in equal parts", "not the open gates over their sum",
     lambda g, t, m: (lambda o: g * o + ((g * ~o).sum(-1, keepdim=True) / o.sum()) * o)(
         t - t.mean() <= m)),
    ("without a slope", "no gradient reaches the gates",
     lambda g, t, m: _closed(g.data, t - t.mean() <= m)),
    ("the divisor detached", "not the right gradient for the gates",
     lambda g, t, m: (lambda o: o / o.sum(-1, keepdim=True).detach())(g * (t - t.mean() <= m))),
    ("one sum for all tokens", "they do not add up to 1 over the last dimension",
     lambda g, t, m: (lambda o: o / o.sum())(g * (t - t.mean() <= m))),
]  # fmt: skip

check_score_gradient = [
    ("the share of open gates for p", "the share of open gates stands there",
     lambda loss, b, p, c: (loss - c) * (b - b.mean())),
    ("1 - p for everybody", "shut gates get the slope of open ones",
     lambda loss, b, p, c: (loss - c) * (1 - p)),
    ("open gates alone", "only open gates get an estimate",
     lambda loss, b, p, c: (loss - c) * b * (1 - p)),
    ("plus or minus one", "these are not (loss - baseline) times the slope of log P(b)",
     lambda loss, b, p, c: (loss - c) * (2 * b - 1)),
    ("straight-through's", "these are not (loss - baseline) times the slope of log P(b)",
     lambda loss, b, p, c: 2 * (b - 0.45) * p * (1 - p)),
    ("divided by their number", "right up to a factor",
     lambda loss, b, p, c: (loss - c) * (b - p) / len(b)),
    ("a baseline for the slope", "these are not (loss - baseline) times the slope of log P(b)",
     lambda loss, b, p, c: loss - c * (b - p)),
]  # fmt: skip


def _cut(p_T, b_T):
    return p_T.detach_() + (b_T - p_T)


check_straight_through = [
    ("p cut off where it stands", "changes its input in place", _cut),
    ("the sum of both", "p and b are added", lambda p, b: p + b.detach()),
    ("the slope turned", "the slope points downhill", lambda p, b: b - p + p.detach()),
    ("the logit's slope", "the slope is p (1 - p)",
     lambda p, b: b + (lambda q: q - q.detach())(p**2 / 2 - p**3 / 3)),
    ("drawn again", "nothing may be drawn here",
     lambda p, b: p + (torch.bernoulli(p) - p).detach()),
    ("the probability of what was drawn", "this is not b in value and p in slope",
     lambda p, b: torch.where(b > 0, p, 1 - p)),
    ("over itself", "not the right gradient for p", lambda p, b: b * p / p.detach()),
]  # fmt: skip


def _times(slope, deviation):
    return (2 * deviation / abs(slope)) ** 2


check_samples_for_sign = [
    ("floor, at least one", "rounded down", lambda s, d: max(1, math.floor(_times(s, d)))),
    ("round, at least one", "rounded to the nearest", lambda s, d: max(1, round(_times(s, d)))),
    ("one more than the floor", "exactly two", lambda s, d: int(_times(s, d)) + 1),
    ("1.96", "not 1.96", lambda s, d: max(1, math.ceil((1.96 * d / s) ** 2))),
    ("not whole", "samples come whole", _times),
    ("the variance alone", "the deviation is not squared",
     lambda s, d: max(1, math.ceil(4 * d / s**2))),
    ("upside down, at least one", "the slope stands above",
     lambda s, d: max(1, math.ceil((s / (2 * d)) ** 2))),
    ("with its sign", "a negative slope has a sign, too",
     lambda s, d: max(1, math.ceil(2 * d / s))),
    ("a root, which a negative slope has not", "this is not the least n",
     lambda s, d: math.ceil((2 * d / math.sqrt(s)) ** 2)),
]  # fmt: skip
