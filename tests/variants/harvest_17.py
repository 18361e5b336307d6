"""Chapter 17's harvest of unusual right answers: (how it is done, the answer)."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import torch


def _h(p):
    p = np.asarray(p, dtype=float)
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _three_entropies(c):
    p = np.asarray(c, dtype=float) / np.asarray(c).sum()
    return _h(p.sum(1)) + _h(p.sum(0)) - _h(p.ravel())


def _loops(c):
    n, c = int(c.sum()), c.tolist()
    rows, cols = [sum(r) for r in c], [sum(r) for r in zip(*c, strict=True)]
    return sum(
        a / n * np.log2(a * n / (rows[i] * cols[j]))
        for i, r in enumerate(c)
        for j, a in enumerate(r)
        if a
    )


check_information = [
    ("three entropies, NumPy", _three_entropies),
    ("loops", _loops),
    ("0-d", lambda c: torch.tensor(_three_entropies(c))),
]


def _shuffled(n, seed):
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


check_shuffle_texts = [
    (
        "Python's shuffle, a list",
        lambda x, n, s: [
            a for t in _shuffled(len(x) // n, s) for a in x[t * n : t * n + n].tolist()
        ],
    ),
    (
        "NumPy's generator",
        lambda x, n, s: (
            x.numpy().reshape(-1, n)[np.random.default_rng(s).permutation(len(x) // n)].ravel()
        ),
    ),
    (
        "by random keys",
        lambda x, n, s: torch.cat(
            [
                x.split(n)[t]
                for t in torch.rand(len(x) // n, generator=torch.Generator().manual_seed(s))
                .argsort()
                .tolist()
            ]
        ),
    ),
]


def _pools(x, ids, seed):
    pools, rng = defaultdict(list), random.Random(seed)
    for a, w in zip(x.tolist(), ids.tolist(), strict=True):
        pools[w].append(a)
    for pool in pools.values():
        rng.shuffle(pool)
    return [pools[w].pop() for w in ids.tolist()]


def _two_sorts(x, ids, seed):
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    out = torch.empty_like(x)
    out[ids.argsort(stable=True)] = x[mixed][ids[mixed].argsort(stable=True)]
    return out


check_shuffle_within_words = [("pools, a list", _pools), ("two sorts", _two_sorts)]

check_saturation = [
    (
        "sets",
        lambda a, b: (
            sum(len(set(p) & set(q)) for p, q in zip(a.tolist(), b.tolist(), strict=True))
            / a.numel()
        ),
    ),
    (
        "NumPy",
        lambda a, b: np.mean(
            [np.isin(q, p).mean() for p, q in zip(a.numpy(), b.numpy(), strict=True)]
        ),
    ),
    (
        "one-hot products, 0-d",
        lambda a, b: (
            lambda E: (
                (
                    torch.nn.functional.one_hot(a, E).sum(1)
                    * torch.nn.functional.one_hot(b, E).sum(1)
                ).sum()
                / a.numel()
            )
        )(int(torch.maximum(a, b).max()) + 1),
    ),
]

check_repetition = [
    (
        "loops",
        lambda x, n: (
            lambda x: sum(x[i] == x[i - 1] for i in range(len(x)) if i % n) / (len(x) - len(x) // n)
        )(x.tolist()),
    ),
    (
        "differences of 0, NumPy",
        lambda x, n: (np.diff(x.numpy().reshape(-1, n), axis=1) == 0).mean(),
    ),
    (
        "the ends cut out, 0-d",
        lambda x, n: (x[1:] == x[:-1])[(torch.arange(1, len(x)) % n) > 0].float().mean(),
    ),
]


def _tell(e, label):
    met, n = Counter(zip(label.tolist(), e.tolist(), strict=True)), len(e)
    a, b = Counter(label.tolist()), Counter(e.tolist())
    return sum(c / n * np.log2(c * n / (a[i] * b[j])) for (i, j), c in met.items())


def _explain(e, t, i, n):
    seen, rng = _tell(e, t) - 1e-9, np.random.default_rng(0)
    texts = t.view(-1, n)
    if any(_tell(e, texts[rng.permutation(len(texts))].flatten()) >= seen for _ in range(25)):
        return "nothing"
    return "words" if any(_tell(e, _two_sorts(t, i, s)) >= seen for s in range(25)) else "topic"


check_what_explains = [
    ("Counter and NumPy's generator", _explain),
    ("NumPy's string", lambda e, t, i, n: np.str_(_explain(e, t, i, n))),
]


def _neighbours(x, i, d, n):
    """The sentence of Table 5, on first choices, in random order within each text."""

    def share(e):
        return np.mean(np.diff(e.numpy().reshape(-1, n), axis=1) == 0)

    rows, rng = x[:, 0].view(-1, n), np.random.default_rng(0)
    seen = share(x[:, 0])
    null = np.array(
        [share(torch.stack([r[rng.permutation(n)] for r in rows]).flatten()) for _ in range(30)]
    )
    holds = np.bool_(seen > null.max())
    return {
        "claim": "Two consecutive tokens have the same first choice more often than by chance.",
        "source": "Jiang et al. 2024, section 5, Table 5",
        "falsified_if": "the share is no larger than in texts whose tokens stand in random order",
        "measure": "the share of neighbours within a text with the same first choice",
        "null_is": "the places within each text shuffled; what each text uses is left alone",
        "observed": seen,
        "null": null,
        "holds": holds,
        "verdict": f"It {'holds' if holds else 'does not hold'}: {seen:.1%} of the neighbours.",
    }


def _by_the_word(x, i, d, n):
    """Does the word decide? Experts' bits about the word, words shuffled."""
    seen = _tell(x[:, 0], i)
    null = [
        _tell(x[:, 0], i[torch.randperm(len(i), generator=torch.Generator().manual_seed(s))])
        for s in range(40)
    ]
    holds = seen > max(null)
    return {
        "claim": "A word tends to go to the same expert.",
        "source": "Xue et al. 2024, OpenMoE: experts specialise by token",
        "falsified_if": "experts tell no more about the word than with words shuffled",
        "measure": "mutual information of first choice and word, in bits",
        "null_is": "all words shuffled among all places; how often each occurs is left alone",
        "observed": torch.tensor(seen),
        "null": torch.tensor(null),
        "holds": bool(holds),
        "verdict": ("It holds" if holds else "It does not hold")
        + f": {seen:.2f} bits, {max(null):.2f} by chance.",
    }


check_investigation = [("neighbours, NumPy", _neighbours), ("words, tensors", _by_the_word)]


def _by_one_hot(count_V, count_LVR, seen_NL):
    R = count_LVR.shape[-1]
    hot_NLR = torch.nn.functional.one_hot(seen_NL, R).double()
    told_LVR = ((count_LVR.double() + 1 / R) / (count_V.double()[:, None] + 1)).log()
    word_V = (count_V.double() + 1).log() - (count_V.double() + 1).sum().log()
    return word_V + torch.einsum("nlr,lvr->nv", hot_NLR, told_LVR)


def _token_by_token(count_V, count_LVR, seen_NL):
    R, total = count_LVR.shape[-1], int(count_V.sum()) + len(count_V)
    return [[math.log((n + 1) / total)
             + sum(math.log((int(count_LVR[layer, v, r]) + 1 / R) / (n + 1))
                   for layer, r in enumerate(seen))
             for v, n in enumerate(count_V.tolist())] for seen in seen_NL.tolist()]  # fmt: skip


check_read_back = [("one-hot and einsum", _by_one_hot), ("word by word", _token_by_token)]


def _by_sets(one, two, E):
    def share(rows, e):
        return sum(e in set(row) for row in rows) / len(rows)

    return [share(one.tolist(), e) - share(two.tolist(), e) for e in range(E)]


check_use_difference = [
    ("by sets", _by_sets),
    ("scatter",
     lambda a, b, E: torch.zeros(len(a), E).scatter(1, a, 1.0).mean(0)
     - torch.zeros(len(b), E).scatter(1, b, 1.0).mean(0)),
]  # fmt: skip
