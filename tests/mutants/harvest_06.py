"""Chapter 06's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch
import torch.nn.functional as F


def _f(x, E):
    return F.one_hot(x, E).float().flatten(0, -2).mean(0)


def _loss(z, x):
    return z.shape[1] * (_f(x, z.shape[1]) * z.softmax(-1).mean(0)).sum()


def _of_the_chosen(z, x):
    p = torch.zeros_like(z).scatter(1, x, z.gather(1, x).softmax(-1))
    return z.shape[1] * (_f(x, z.shape[1]) * p.mean(0)).sum()


check_balance_loss = [
    ("K forgotten", "f is not divided by K", lambda z, x: _loss(z, x) * x.shape[1]),
    (
        "no N",
        "the factor N (the number of experts) is missing",
        lambda z, x: _loss(z, x) / z.shape[1],
    ),
    ("belief in the chosen", "P comes from the renormalised top-k weights", _of_the_chosen),
    (
        "choices made again",
        "f is counted from the logits",
        lambda z, x: _loss(z, z.topk(x.shape[1]).indices),
    ),
    ("first choices", "f counts each token's first choice only", lambda z, x: _loss(z, x[:, :1])),
    ("belief summed", "P is a sum over the tokens", lambda z, x: _loss(z, x) * len(z)),
    (
        "detached",
        "right numbers, but no gradient reaches the logits, so what is behind can never learn",
        lambda z, x: _loss(z.detach(), x),
    ),
    (
        "softmax over the tokens",
        "the softmax runs over the tokens (dim 0), not over a token's experts (dim -1)",
        lambda z, x: z.shape[1] * (_f(x, z.shape[1]) * z.softmax(0).mean(0)).sum(),
    ),
    (
        "belief twice",
        "both factors are probabilities",
        lambda z, x: z.shape[1] * z.softmax(-1).mean(0).square().sum(),
    ),
    (
        "counts twice",
        "both factors are counts, without gradient",
        lambda z, x: z.shape[1] * _f(x, z.shape[1]).square().sum() + 0 * z.sum(),
    ),
    (
        "sigmoids",
        "not E * sum(f * P)",
        lambda z, x: z.shape[1] * (_f(x, z.shape[1]) * z.sigmoid().mean(0)).sum(),
    ),
    (
        "within each token",
        "f and P are multiplied token by token, then averaged",
        lambda z, x: (
            z.shape[1] * (F.one_hot(x, z.shape[1]).float().mean(1) * z.softmax(-1)).sum(-1).mean()
        ),
    ),
]


def _own(z, f):
    return (z.softmax(-1) * f).sum(-1, keepdim=True)


check_push = [
    (
        "no N",
        "the factor E in front of the loss is missing",
        lambda z, f: z.softmax(-1) * (f - _own(z, f)) / len(z),
    ),
    (
        "not divided by the tokens",
        "P is a mean over T tokens, so each has a T-th of the slope",
        lambda z, f: z.shape[1] * z.softmax(-1) * (f - _own(z, f)),
    ),
    (
        "p times f",
        "raising one logit lowers the token's other probabilities",
        lambda z, f: z.shape[1] / len(z) * z.softmax(-1) * f,
    ),
    (
        "less the mean of f",
        "a token compares with its average of f, not 1 / E",
        lambda z, f: z.shape[1] / len(z) * z.softmax(-1) * (f - f.mean()),
    ),
    (
        "all tokens' average",
        "each token compares with its own average of f",
        lambda z, f: z.shape[1] / len(z) * z.softmax(-1) * (f - _own(z, f).mean()),
    ),
    (
        "the way down",
        "that is the way down",
        lambda z, f: z.shape[1] / len(z) * z.softmax(-1) * (_own(z, f) - f),
    ),
    (
        "the diagonal alone",
        "that is the diagonal of the softmax's derivative alone, p (1 - p)",
        lambda z, f: z.shape[1] / len(z) * z.softmax(-1) * (1 - z.softmax(-1)) * f,
    ),
    (
        "by the probability",
        "that is the slope by P",
        lambda z, f: (z.shape[1] / len(z) * f).expand_as(z),
    ),
    ("p forgotten", "the factor p is missing", lambda z, f: z.shape[1] / len(z) * (f - _own(z, f))),
    (
        "divided by the experts",
        "right up to a factor",
        lambda z, f: z.softmax(-1) * (f - _own(z, f)) / z.shape[1],
    ),
]


def _half_empty(E, hair=0.01):
    busy = (E + 1) // 2
    z = torch.full((busy, E), 0.0)
    z[:, :busy] = -9.0
    return z + (9 + hair) * torch.eye(busy, E)


check_below_one = [
    (
        "all the same",
        "with E = 2 a token's best two logits tie, and then chance says where it goes",
        lambda E: torch.zeros(4, E),
    ),
    (
        "each sure of its own",
        "with E = 2, f is uniform, and then the value is 1 whatever P is",
        lambda E: 9 * torch.eye(E),
    ),
    (
        "all sure of one",
        "with E = 2, not below 1",
        lambda E: torch.tensor([9.0] + [0.0] * (E - 1)).repeat(4, 1),
    ),
    (
        "two experts only",
        "with E = 3, f is uniform, and then the value is 1 whatever P is",
        lambda E: torch.tensor([[0.01, 0.0]] * 3 + [[0.0, 9.0]]) if E == 2 else torch.eye(E),
    ),
    (
        "torn without a hair",
        "with E = 2 a token's best two logits tie, and then chance says where it goes",
        lambda E: torch.tensor([[0.0, 0.0]] * 3 + [[0.0, 9.0]]) if E == 2 else _half_empty(E, 0),
    ),
    ("minus infinity", "a logit is not finite", lambda E: torch.full((E, E), -torch.inf)),
    (
        "turned",
        "return logits of shape (tokens, 2) for E = 2",
        lambda E: torch.tensor([[0.01, 0.0]] * 3 + [[0.0, 9.0]]).T if E == 2 else _half_empty(E).T,
    ),
    (
        "probabilities of the loss, not logits",
        "return logits of shape (tokens, 2) for E = 2",
        lambda E: torch.tensor(0.4),
    ),
    ("dice", "with E = 2, not below 1", lambda E: torch.randn(50, E)),
]


def _weighed(z, x, m, count=True, belief=True, divide=True):
    w = m.float()
    c, b = (w if count else torch.ones_like(w)), (w if belief else torch.ones_like(w))
    f = (F.one_hot(x, z.shape[1]).float().mean(1) * c[:, None]).sum(0)
    P = (z.softmax(-1) * b[:, None]).sum(0)
    over = [a.sum() if divide else len(z) for a in (c, b)]
    return z.shape[1] * (f / over[0] * P / over[1]).sum()


check_masked_balance = [
    ("padding counted", "padding counts in f and in P", lambda z, x, m: _loss(z, x)),
    ("logits set to 0", "logits of 0 are not nothing", lambda z, x, m: _loss(z * m[:, None], x)),
    (
        "counts masked, belief not",
        "padding still counts in P",
        lambda z, x, m: _weighed(z, x, m, belief=False),
    ),
    (
        "belief masked, counts not",
        "padding still counts in f",
        lambda z, x, m: _weighed(z, x, m, count=False),
    ),
    (
        "divided by all tokens",
        "padding is left out, but both are divided by all tokens",
        lambda z, x, m: _weighed(z, x, m, divide=False),
    ),
    (
        "the padding alone",
        "the mask is upside down",
        lambda z, x, m: _loss(z[~m], x[~m]) if (~m).any() else _loss(z, x),
    ),
    (
        "the whole times the share",
        "not the loss of real tokens alone",
        lambda z, x, m: _loss(z, x) * m.float().mean(),
    ),
    (
        "logits and choices zeroed",
        "not the loss of real tokens alone",
        lambda z, x, m: _loss(z * m[:, None], x * m[:, None]),
    ),
    (
        "the first real ones",
        "not the loss of real tokens alone",
        lambda z, x, m: _loss(z[: int(m.sum())], x[: int(m.sum())]),
    ),
    ("K forgotten", "f is not divided by K", lambda z, x, m: x.shape[1] * _loss(z[m], x[m])),
]

check_over_batches = [
    (
        "each by itself",
        "multiplied within each micro-batch, then averaged",
        lambda f, P: f.shape[-1] * (f * P).sum(-1).mean(),
    ),
    (
        "layers pooled too",
        "the layers are averaged before f and P are multiplied",
        lambda f, P: f.shape[-1] * (f.mean((0, 1)) * P.mean((0, 1))).sum(),
    ),
    (
        "layers for micro-batches",
        "layers averaged, not micro-batches",
        lambda f, P: f.shape[-1] * (f.mean(0) * P.mean(0)).sum(-1).mean(),
    ),
    (
        "layers added",
        "a sum over the layers",
        lambda f, P: f.shape[-1] * (f.mean(1) * P.mean(1)).sum(),
    ),
    (
        "no number of experts",
        "the factor E is missing",
        lambda f, P: (f.mean(1) * P.mean(1)).sum(-1).mean(),
    ),
    (
        "the number of layers",
        "not the global loss, averaged over layers",
        lambda f, P: len(f) * (f.mean(1) * P.mean(1)).sum(-1).mean(),
    ),
    (
        "micro-batches added",
        "a sum over the micro-batches",
        lambda f, P: f.shape[-1] * (f.sum(1) * P.sum(1)).sum(-1).mean(),
    ),
    (
        "a mean over the experts",
        "the mean over the experts where their sum belongs",
        lambda f, P: (f.mean(1) * P.mean(1)).mean(),
    ),
    (
        "the first micro-batch",
        "not the global loss, averaged over layers",
        lambda f, P: f.shape[-1] * (f[:, 0] * P[:, 0]).sum(-1).mean(),
    ),
    (
        "one for each layer",
        "one number for each layer",
        lambda f, P: f.shape[-1] * (f.mean(1) * P.mean(1)).sum(-1),
    ),
]


def _even(L, K):
    x = (torch.arange(4)[:, None] + torch.arange(K)) % 4
    return torch.zeros(L, 4, 4), x.expand(L, 4, K), torch.ones(4, dtype=torch.bool)


def _two_questions(loss):
    return "K" if loss(*_even(1, 2)) > 1.5 else "sum" if loss(*_even(2, 1)) > 1.5 else "sound"


def _by_requires_grad(loss):
    z, x, m = _even(1, 1)
    return "sound" if loss(z.requires_grad_(), x, m).requires_grad else "detached"


def _at_even_counts(loss):
    z, x, m = _even(1, 1)
    z = z.clone().requires_grad_()
    value = loss(z, x, m)
    value = torch.autograd.grad(value, z)[0].any() if value.requires_grad else False
    return "sound" if value else "detached"


def _by_closeness(loss):
    z, x, m = torch.randn(3, 16, 4), torch.randint(4, (3, 16, 2)), torch.arange(16) < 12
    value = float(loss(z, x, m))
    return "K" if value > 5 else "sum" if value > 2.5 else "pooled" if value < 0.95 else "sound"


check_diagnose = [
    ("sound, always", "it says 'sound' of all", lambda loss: "sound"),
    ("two of the six", "'pooled' is taken for 'sound'", _two_questions),
    ("asks only whether a gradient is required", "it says 'sound' of all", _by_requires_grad),
    ("asks for a gradient where counts are even", "it says 'detached' of all", _at_even_counts),
    ("guesses by size", "'K' is taken for 'sound'", _by_closeness),
    (
        "says it in its own words",
        "answer one of sound, K, sum, pooled, padding, top-k, detached",
        lambda loss: {"K": "forgets K", "sum": "sums the layers", "sound": "ok"}[
            _two_questions(loss)
        ],
    ),
    (
        "True for sound",
        "answer one of sound, K, sum, pooled, padding, top-k, detached",
        lambda loss: _two_questions(loss) == "sound",
    ),
]
