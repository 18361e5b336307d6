"""Wrong answers to chapter 16's exercises, with a phrase of what has to be said of each."""

import torch


def _reap(value_N, expert_N, E):
    total = torch.zeros(E).index_add(0, expert_N, value_N)
    return total / expert_N.bincount(minlength=E).clamp(min=1)


MEAN = "not the mean over an expert's pairs of gate times length of the answer"
check_reap = [
    ("lengths by absolute values", "not the sum of absolute values",
     lambda e, g, y, E: _reap(g * y.abs().sum(-1), e, E)),
    ("the longest coordinate", MEAN, lambda e, g, y, E: _reap(g * y.abs().amax(-1), e, E)),
    ("gates alone", "how long is the answer", lambda e, g, y, E: _reap(g, e, E)),
    ("gates squared", MEAN, lambda e, g, y, E: _reap(g.square() * y.norm(dim=-1), e, E)),
    ("the largest in place of the mean", MEAN,
     lambda e, g, y, E: torch.stack([(g * y.norm(dim=-1))[e == n].amax() if (e == n).any()
                                     else torch.tensor(0.0) for n in range(E)])),
    ("shares of all", "reap: ", lambda e, g, y, E: _reap(g * y.norm(dim=-1), e, E).softmax(0)),
    ("the order of the experts", "reap: ",
     lambda e, g, y, E: _reap(g * y.norm(dim=-1), e, E).argsort()),
    ("ranked by itself", "reap: ",
     lambda e, g, y, E: _reap(g * y.norm(dim=-1), e, E).sort().values),
]  # fmt: skip


def _pruned(w, s, n, keep):
    number = torch.full((len(s),), -1)
    number[keep] = torch.arange(len(keep))
    return w[keep], number


ROWS = "not the rows of the experts that stay"
check_prune_router = [
    ("masks with minus infinity", "prune_router: ",
     lambda w, s, n: (w.index_fill(0, s.argsort()[:n], -torch.inf),
                      _pruned(w, s, n, s.argsort()[n:].sort().values)[1])),
    ("keeps as many as it should drop", "prune_router: ",
     lambda w, s, n: _pruned(w, s, n, s.argsort()[-n:].sort().values)),
    ("one more than asked", "prune_router: ",
     lambda w, s, n: _pruned(w, s, n, s.argsort()[n + 1 :].sort().values)),
    ("in the order of rising scores", "prune_router: ",
     lambda w, s, n: _pruned(w, s, n, s.argsort()[n:])),
    ("numbers from one", "numbers begin at 0",
     lambda w, s, n: (_pruned(w, s, n, s.argsort()[n:].sort().values)[0],
                      (lambda m: torch.where(m >= 0, m + 1, -1))(
                          _pruned(w, s, n, s.argsort()[n:].sort().values)[1]))),
    ("a mask in place of numbers", "not its new number",
     lambda w, s, n: (_pruned(w, s, n, s.argsort()[n:].sort().values)[0],
                      _pruned(w, s, n, s.argsort()[n:].sort().values)[1] >= 0)),
    ("by the length of the rows", "prune_router: ",
     lambda w, s, n: _pruned(w, w.norm(dim=1), n, w.norm(dim=1).argsort()[n:].sort().values)),
    ("the two exchanged", "prune_router: ",
     lambda w, s, n: _pruned(w, s, n, s.argsort()[n:].sort().values)[::-1]),
]  # fmt: skip


def _near(w):
    return (w[:, None] - w).flatten(2).abs().amax(-1) <= 1e-6


check_distinct_copies = [
    ("all of them", "all experts were counted", lambda w: len(w)),
    ("those that are not the first", "these differ from expert 0; among themselves",
     lambda w: int((~_near(w)[0]).sum())),
    ("numbers in the weights", "not the experts", lambda w: len(w.mul(1e5).round().unique())),
    ("the rank of the stack", "distinct_copies: ",
     lambda w: int(torch.linalg.matrix_rank(w.flatten(1) - w.flatten(1)[:1]))),
    ("neighbours that differ", "distinct_copies: ",
     lambda w: 1 + int((~_near(w).diagonal(1)).sum())),
    ("a yes or no", "distinct_copies: ", lambda w: bool(_near(w).all())),
    ("groups of twins only", "distinct_copies: ",
     lambda w: len({tuple(row) for row in _near(w).tolist() if sum(row) > 1})),
]  # fmt: skip

WEIGHTS = "not the softmax over each token's recorded experts"
check_replay_weights = [  # by the author of the check; harvest_sixth is by another hand
    ("a sigmoid", "they do not add up to 1", lambda z, e: z.gather(1, e).sigmoid()),
    ("a sigmoid, divided", "a softmax takes exp",
     lambda z, e: z.gather(1, e).sigmoid() / z.gather(1, e).sigmoid().sum(1, keepdim=True)),
    ("the least weighs most", WEIGHTS, lambda z, e: (-z.gather(1, e)).softmax(1)),
    ("a logarithm too much", "replay_weights: ", lambda z, e: z.gather(1, e).log_softmax(1)),
    ("all on the best", WEIGHTS,
     lambda z, e: (z.gather(1, e) == z.gather(1, e).amax(1, keepdim=True)).float()),
    ("the other way round", "replay_weights: ", lambda z, e: z.gather(1, e).softmax(1).flip(1)),
    ("twice a softmax", "one softmax too many", lambda z, e: z.gather(1, e).softmax(1).softmax(1)),
    ("divided by the largest", "replay_weights: ",
     lambda z, e: z.gather(1, e).softmax(1) / z.gather(1, e).softmax(1).amax(1, keepdim=True)),
    ("sharper", WEIGHTS, lambda z, e: (z.gather(1, e) * e.shape[1]).softmax(1)),
]  # fmt: skip
