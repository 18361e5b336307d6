"""Chapter 05's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

import torch
import torch.nn.functional as F

check_places = [
    ("cut off", lambda T, E, f, K: int(f * K * T / E)),
    ("rounded", lambda T, E, f, K: round(f * K * T / E)),
    ("always one more", lambda T, E, f, K: int(f * K * T / E) + 1),
    ("without the choices", lambda T, E, f, K: math.ceil(f * T / E)),
    ("rounded up before the factor", lambda T, E, f, K: math.ceil(f * math.ceil(K * T / E))),
    ("not rounded", lambda T, E, f, K: f * K * T / E),
    ("no more than the tokens", lambda T, E, f, K: min(T, math.ceil(f * K * T / E))),
    ("of all experts together", lambda T, E, f, K: math.ceil(f * K * T)),
    ("whole numbers too early", lambda T, E, f, K: math.ceil(f * (K * T // E))),
    ("the choices shared out", lambda T, E, f, K: math.ceil(f * T / (K * E))),
]


def _rank(expert, E):
    return (F.one_hot(expert, E).cumsum(0) - 1).gather(1, expert[:, None])[:, 0]


def _run_length(expert, E):
    out = torch.zeros_like(expert)
    for t in range(1, len(expert)):
        out[t] = out[t - 1] + 1 if expert[t] == expert[t - 1] else 0
    return out


check_rank = [
    ("itself counted", lambda x, E: _rank(x, E) + 1),
    ("along the experts", lambda x, E: F.one_hot(x, E).cumsum(1).gather(1, x[:, None])[:, 0] - 1),
    ("later ones counted", lambda x, E: _rank(x.flip(0), E).flip(0)),
    ("neighbours only", _run_length),
    ("the place in the sorted list", lambda x, E: x.argsort(stable=True).argsort()),
    ("all that chose it", lambda x, E: x.bincount(minlength=E)[x] - 1),
    ("earlier ones that chose another", lambda x, E: torch.arange(len(x)) - _rank(x, E)),
    ("the whole matrix", lambda x, E: F.one_hot(x, E).cumsum(0) - 1),
    ("summed over the row", lambda x, E: (F.one_hot(x, E).cumsum(0) - 1).sum(1)),
    ("three experts, as shown", lambda x, E: _rank(x.clamp(max=2), 3)),
]


def _top2(x, E, start):
    first, second = F.one_hot(x, E).unbind(1)
    late = second.cumsum(0) - 1 + start(first, second)
    return torch.stack([first.cumsum(0) - 1, late], 1).gather(2, x[..., None])[..., 0]


check_first_choices = [
    ("second choices from 0", lambda x, E: _top2(x, E, lambda a, b: 0)),
    ("behind the first choices so far", lambda x, E: _top2(x, E, lambda a, b: a.cumsum(0))),
    ("one place left empty", lambda x, E: _top2(x, E, lambda a, b: a.sum(0) + 1)),
    ("behind all tokens", lambda x, E: _top2(x, E, lambda a, b: len(a))),
    ("token by token", lambda x, E: _rank(x.flatten(), E).view(-1, 2)),
    ("second choices first", lambda x, E: _top2(x.flip(1), E, lambda a, b: a.sum(0)).flip(1)),
    ("in line, but laid out wrongly", lambda x, E: _rank(x.T.flatten(), E).view(-1, 2)),
    ("a row for first, a row for second", lambda x, E: _rank(x.T.flatten(), E).view(2, -1)),
    ("itself counted", lambda x, E: _top2(x, E, lambda a, b: a.sum(0)) + 1),
]


def _in_place(h, x, y, p, keep):
    h += torch.where(keep[:, None], p[:, None] * y, 0.0)
    return h


check_dropped_token = [
    (
        "its input for a dropped one",
        lambda h, x, y, p, keep: h + p[:, None] * torch.where(keep[:, None], y, x),
    ),
    (
        "nothing but zeros where dropped",
        lambda h, x, y, p, keep: torch.where(keep[:, None], h + p[:, None] * y, 0.0),
    ),
    (
        "no residual for the kept",
        lambda h, x, y, p, keep: torch.where(keep[:, None], p[:, None] * y, h),
    ),
    ("the gate forgotten", lambda h, x, y, p, keep: h + torch.where(keep[:, None], y, 0.0)),
    ("nobody dropped", lambda h, x, y, p, keep: h + p[:, None] * y),
    ("times 0", lambda h, x, y, p, keep: h + keep[:, None] * p[:, None] * y),
    (
        "the residual twice",
        lambda h, x, y, p, keep: h + torch.where(keep[:, None], p[:, None] * y, h),
    ),
    (
        "on top of the normed input",
        lambda h, x, y, p, keep: x + torch.where(keep[:, None], p[:, None] * y, 0.0),
    ),
    (
        "the kept dropped",
        lambda h, x, y, p, keep: h + torch.where(keep[:, None], 0.0, p[:, None] * y),
    ),
    ("changes what came in", _in_place),
    (
        "blended with the rest",
        lambda h, x, y, p, keep: torch.where(
            keep[:, None], (1 - p[:, None]) * h + p[:, None] * y, h
        ),
    ),
]


def _f(x, E):
    return F.one_hot(x, E).float().flatten(0, -2).mean(0)


check_counted_before = [
    (
        "the seated",
        lambda P, x, k: (
            P.shape[1]
            * ((F.one_hot(x[:, 0], P.shape[1]) * k[:, :1]).float().mean(0) * P.mean(0)).sum()
        ),
    ),
    (
        "shares of the seated",
        lambda P, x, k: P.shape[1] * (_f(x[:, 0][k[:, 0]], P.shape[1]) * P.mean(0)).sum(),
    ),
    ("both choices", lambda P, x, k: P.shape[1] * (_f(x, P.shape[1]) * P.mean(0)).sum()),
    (
        "GShard's own scale",
        lambda P, x, k: (_f(x[:, 0], P.shape[1]) * P.mean(0)).sum() / P.shape[1],
    ),
    ("no number of experts", lambda P, x, k: (_f(x[:, 0], P.shape[1]) * P.mean(0)).sum()),
    (
        "belief of the seated",
        lambda P, x, k: P.shape[1] * (_f(x[:, 0], P.shape[1]) * P[k[:, 0]].mean(0)).sum(),
    ),
    (
        "what they believe most",
        lambda P, x, k: P.shape[1] * (_f(P.argmax(-1), P.shape[1]) * P.mean(0)).sum(),
    ),
    ("second choices", lambda P, x, k: P.shape[1] * (_f(x[:, 1], P.shape[1]) * P.mean(0)).sum()),
    ("detached", lambda P, x, k: P.shape[1] * (_f(x[:, 0], P.shape[1]) * P.detach().mean(0)).sum()),
    ("belief squared", lambda P, x, k: P.shape[1] * P.mean(0).square().sum()),
    (
        "counts, not shares",
        lambda P, x, k: P.shape[1] * (_f(x[:, 0], P.shape[1]) * len(P) * P.mean(0)).sum(),
    ),
]


def _probe(seat, x, g, cuts=None, choices=True, gates=True, scope=None, tries=5):
    before, E = seat(x, g), int(x.max()) + 1
    for _ in range(tries):
        for t in cuts or range(1, len(x)):
            y, h = x.clone(), g.clone()
            if choices:
                y[t:] = torch.rand(len(x) - t, E).topk(x.shape[1]).indices
            if gates:
                h[t:] = torch.rand_like(g[t:])
            part = scope(t) if scope else slice(t)
            if not torch.equal(seat(y, h)[part], before[part]):
                return True
    return False


def _in_its_input(seat, x, g):
    before = seat(x, g)
    x[-1], g[-1] = x[0], 1.0
    return not torch.equal(seat(x, g)[:-1], before[:-1])


check_looks_ahead = [
    ("only the last token", lambda seat, x, g: _probe(seat, x, g, cuts=[len(x) - 1])),
    ("only choices", lambda seat, x, g: _probe(seat, x, g, gates=False)),
    ("only gates", lambda seat, x, g: _probe(seat, x, g, choices=False)),
    ("everything compared", lambda seat, x, g: _probe(seat, x, g, scope=lambda t: slice(None))),
    (
        "what follows compared",
        lambda seat, x, g: _probe(seat, x, g, scope=lambda t: slice(t, None)),
    ),
    ("always", lambda seat, x, g: True),
    ("never", lambda seat, x, g: False),
    ("by its name", lambda seat, x, g: "position" not in getattr(seat, "__name__", "")),
    ("the half, once", lambda seat, x, g: _probe(seat, x, g, cuts=[len(x) // 2], tries=1)),
    ("the first token's fate", lambda seat, x, g: _probe(seat, x, g, scope=lambda t: slice(1))),
    ("changes what it was given", _in_its_input),
    ("turned round", lambda seat, x, g: not _probe(seat, x, g)),
]
