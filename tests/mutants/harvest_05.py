"""Chapter 05's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import math

import torch
import torch.nn.functional as F

check_places = [
    (
        "cut off",
        "rounded down: with factor 1 and an even load somebody is left standing",
        lambda T, E, f, K: int(f * K * T / E),
    ),
    ("rounded", "rounded to the nearest", lambda T, E, f, K: round(f * K * T / E)),
    ("always one more", "one place is added", lambda T, E, f, K: int(f * K * T / E) + 1),
    (
        "without the choices",
        "each token asks for K places",
        lambda T, E, f, K: math.ceil(f * T / E),
    ),
    (
        "rounded up before the factor",
        "rounded before the factor came",
        lambda T, E, f, K: math.ceil(f * math.ceil(K * T / E)),
    ),
    (
        "not rounded",
        "not rounded: places are counted, so round up",
        lambda T, E, f, K: f * K * T / E,
    ),
    (
        "no more than the tokens",
        "cut at the number of tokens",
        lambda T, E, f, K: min(T, math.ceil(f * K * T / E)),
    ),
    (
        "of all experts together",
        "these are the places of all experts",
        lambda T, E, f, K: math.ceil(f * K * T),
    ),
    (
        "whole numbers too early",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: math.ceil(f * (K * T // E)),
    ),
    (
        "the choices shared out",
        "not factor × K × T / E, rounded up",
        lambda T, E, f, K: math.ceil(f * T / (K * E)),
    ),
]


def _rank(expert, E):
    return (F.one_hot(expert, E).cumsum(0) - 1).gather(1, expert[:, None])[:, 0]


def _run_length(expert, E):
    out = torch.zeros_like(expert)
    for t in range(1, len(expert)):
        out[t] = out[t - 1] + 1 if expert[t] == expert[t - 1] else 0
    return out


check_rank = [
    ("itself counted", "the first in a queue has rank 0", lambda x, E: _rank(x, E) + 1),
    (
        "along the experts",
        "the count runs over the experts (dim 1)",
        lambda x, E: F.one_hot(x, E).cumsum(1).gather(1, x[:, None])[:, 0] - 1,
    ),
    (
        "later ones counted",
        "these stand behind the token",
        lambda x, E: _rank(x.flip(0), E).flip(0),
    ),
    ("neighbours only", "not the number of earlier tokens that chose the same expert", _run_length),
    (
        "the place in the sorted list",
        "sorted by expert, the queues stand one behind the other",
        lambda x, E: x.argsort(stable=True).argsort(),
    ),
    (
        "all that chose it",
        "that is the length of the queue, not the token's place in it",
        lambda x, E: x.bincount(minlength=E)[x] - 1,
    ),
    (
        "earlier ones that chose another",
        "not the number of earlier tokens that chose the same expert",
        lambda x, E: torch.arange(len(x)) - _rank(x, E),
    ),
    (
        "the whole matrix",
        "running counts of all experts",
        lambda x, E: F.one_hot(x, E).cumsum(0) - 1,
    ),
    (
        "summed over the row",
        "not the number of earlier tokens that chose the same expert",
        lambda x, E: (F.one_hot(x, E).cumsum(0) - 1).sum(1),
    ),
    (
        "three experts, as shown",
        "not the number of earlier tokens that chose the same expert",
        lambda x, E: _rank(x.clamp(max=2), 3),
    ),
]


def _top2(x, E, start):
    first, second = F.one_hot(x, E).unbind(1)
    late = second.cumsum(0) - 1 + start(first, second)
    return torch.stack([first.cumsum(0) - 1, late], 1).gather(2, x[..., None])[..., 0]


check_first_choices = [
    (
        "second choices from 0",
        "the second choices begin again at 0",
        lambda x, E: _top2(x, E, lambda a, b: 0),
    ),
    (
        "behind the first choices so far",
        "the offset counts only the first choices that came earlier",
        lambda x, E: _top2(x, E, lambda a, b: a.cumsum(0)),
    ),
    (
        "one place left empty",
        "one place is left free between the two choices",
        lambda x, E: _top2(x, E, lambda a, b: a.sum(0) + 1),
    ),
    (
        "behind all tokens",
        "the offset is the number of all tokens",
        lambda x, E: _top2(x, E, lambda a, b: len(a)),
    ),
    (
        "token by token",
        "token by token: here a second choice stands before the first choices of later tokens",
        lambda x, E: _rank(x.flatten(), E).view(-1, 2),
    ),
    (
        "second choices first",
        "the second choices are seated before the first",
        lambda x, E: _top2(x.flip(1), E, lambda a, b: a.sum(0)).flip(1),
    ),
    (
        "in line, but laid out wrongly",
        "first choices all, then second ones all",
        lambda x, E: _rank(x.T.flatten(), E).view(-1, 2),
    ),
    (
        "a row for first, a row for second",
        "rows are choices here",
        lambda x, E: _rank(x.T.flatten(), E).view(2, -1),
    ),
    ("itself counted", "ranks begin at 0", lambda x, E: _top2(x, E, lambda a, b: a.sum(0)) + 1),
]


def _in_place(h, x, y, p, keep):
    h += torch.where(keep[:, None], p[:, None] * y, 0.0)
    return h


check_dropped_token = [
    (
        "its input for a dropped one",
        "a dropped token leaves as h + p·LN(h)",
        lambda h, x, y, p, keep: h + p[:, None] * torch.where(keep[:, None], y, x),
    ),
    (
        "nothing but zeros where dropped",
        "a dropped token is wiped out, residual and all",
        lambda h, x, y, p, keep: torch.where(keep[:, None], h + p[:, None] * y, 0.0),
    ),
    (
        "no residual for the kept",
        "the residual is missing where the token was kept",
        lambda h, x, y, p, keep: torch.where(keep[:, None], p[:, None] * y, h),
    ),
    (
        "the gate forgotten",
        "the gate is missing",
        lambda h, x, y, p, keep: h + torch.where(keep[:, None], y, 0.0),
    ),
    ("nobody dropped", "nobody was dropped", lambda h, x, y, p, keep: h + p[:, None] * y),
    (
        "the residual twice",
        "a dropped token gets h added once more",
        lambda h, x, y, p, keep: h + torch.where(keep[:, None], p[:, None] * y, h),
    ),
    (
        "on top of the normed input",
        "the residual is LN(h)",
        lambda h, x, y, p, keep: x + torch.where(keep[:, None], p[:, None] * y, 0.0),
    ),
    (
        "the kept dropped",
        "kept and dropped are mixed up",
        lambda h, x, y, p, keep: h + torch.where(keep[:, None], 0.0, p[:, None] * y),
    ),
    ("changes what came in", "changes its input in place", _in_place),
    (
        "blended with the rest",
        "not h + p × expert, or h where dropped",
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
        "f was counted after the drop",
        lambda P, x, k: (
            P.shape[1]
            * ((F.one_hot(x[:, 0], P.shape[1]) * k[:, :1]).float().mean(0) * P.mean(0)).sum()
        ),
    ),
    (
        "shares of the seated",
        "f was counted after the drop",
        lambda P, x, k: P.shape[1] * (_f(x[:, 0][k[:, 0]], P.shape[1]) * P.mean(0)).sum(),
    ),
    (
        "both choices",
        "both choices are counted",
        lambda P, x, k: P.shape[1] * (_f(x, P.shape[1]) * P.mean(0)).sum(),
    ),
    (
        "GShard's own scale",
        "at balance this is 1/E², as in the paper's own line",
        lambda P, x, k: (_f(x[:, 0], P.shape[1]) * P.mean(0)).sum() / P.shape[1],
    ),
    (
        "no number of experts",
        "at balance this is 1/E",
        lambda P, x, k: (_f(x[:, 0], P.shape[1]) * P.mean(0)).sum(),
    ),
    (
        "belief of the seated",
        "P is the mean over the seated tokens",
        lambda P, x, k: P.shape[1] * (_f(x[:, 0], P.shape[1]) * P[k[:, 0]].mean(0)).sum(),
    ),
    (
        "what they believe most",
        "f is counted from the probabilities",
        lambda P, x, k: P.shape[1] * (_f(P.argmax(-1), P.shape[1]) * P.mean(0)).sum(),
    ),
    (
        "second choices",
        "those are second choices",
        lambda P, x, k: P.shape[1] * (_f(x[:, 1], P.shape[1]) * P.mean(0)).sum(),
    ),
    (
        "detached",
        "right numbers, but no gradient reaches the probabilities, so what is behind can",
        lambda P, x, k: P.shape[1] * (_f(x[:, 0], P.shape[1]) * P.detach().mean(0)).sum(),
    ),
    (
        "belief squared",
        "P times P does not see who was chosen",
        lambda P, x, k: P.shape[1] * P.mean(0).square().sum(),
    ),
    (
        "counts, not shares",
        "a sum over the tokens where a mean should be",
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
    (
        "only the last token",
        "misses that a single token, 0, is told the choice of a single later one, 1",
        lambda seat, x, g: _probe(seat, x, g, cuts=[len(x) - 1]),
    ),
    (
        "only choices",
        "misses that only gates count here",
        lambda seat, x, g: _probe(seat, x, g, gates=False),
    ),
    (
        "only gates",
        "misses that all first choices come before any second one",
        lambda seat, x, g: _probe(seat, x, g, choices=False),
    ),
    (
        "everything compared",
        "says that seating by position looks ahead, which it does not",
        lambda seat, x, g: _probe(seat, x, g, scope=lambda t: slice(None)),
    ),
    (
        "what follows compared",
        "says that seating by position looks ahead, which it does not",
        lambda seat, x, g: _probe(seat, x, g, scope=lambda t: slice(t, None)),
    ),
    ("always", "it says True of all", lambda seat, x, g: True),
    ("never", "it says False of all", lambda seat, x, g: False),
    (
        "by its name",
        "it says True of all",
        lambda seat, x, g: "position" not in getattr(seat, "__name__", ""),
    ),
    (
        "the half, once",
        "asked twice about the same, it says two things",
        lambda seat, x, g: _probe(seat, x, g, cuts=[len(x) // 2], tries=1),
    ),
    (
        "the first token's fate",
        "misses that only gates count here",
        lambda seat, x, g: _probe(seat, x, g, scope=lambda t: slice(1)),
    ),
    ("changes what it was given", "changes its input in place", _in_its_input),
    (
        "turned round",
        "says that seating by position looks ahead, which it does not",
        lambda seat, x, g: not _probe(seat, x, g),
    ),
]
