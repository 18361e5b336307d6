"""Chapter 13's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch
import torch.nn.functional as F

check_least_time = [
    ("adds them", "at the same time", lambda a, b, p, w: a / p + b / w),
    ("multiplies", "least_time: ", lambda a, b, p, w: (a / p) * (b / w)),
    ("means them", "least_time: ", lambda a, b, p, w: (a / p + b / w) / 2),
    ("bytes over the peak", "the limits are exchanged", lambda a, b, p, w: max(a / w, b / p)),
    ("the square root of squares", "least_time: ",
     lambda a, b, p, w: ((a / p) ** 2 + (b / w) ** 2) ** 0.5),
]  # fmt: skip

check_rows_enough = [
    ("bits for bytes", "yours is 8 times", lambda p, w, b: p / w * 8 * b / 2),
    ("twice", "divide by two", lambda p, w, b: 2 * p / w * b),
    ("rounds", "rows_enough: ", lambda p, w, b: round(p / w * b / 2)),
    ("upside down", "peak over bandwidth", lambda p, w, b: w / p * b / 2),
    ("float32 always", "rows_enough: ", lambda p, w, b: p / w * 4 / 2),
]

check_useful_rows = [
    ("the mean of shares", "a busy expert counts more",
     lambda n, h: sum(a / (h * -(-a // h)) for a in n if a) / sum(a > 0 for a in n)),
    ("rounds down", "a last tile that is not full",
     lambda n, h: sum(n) / (h * sum(a // h for a in n)) if sum(a // h for a in n) else 0.0),
    ("one more tile each", "every expert has a further tile",
     lambda n, h: sum(n) / (h * sum(a // h + 1 for a in n))),
    ("upside down", "computed for one that is wanted",
     lambda n, h: h * sum(-(-a // h) for a in n) / sum(n)),
    ("in percent", "yours is 100 times",
     lambda n, h: 100 * sum(n) / (h * sum(-(-a // h) for a in n))),
    ("tiles, not rows", "useful_rows: ", lambda n, h: sum(n) / sum(-(-a // h) for a in n)),
]  # fmt: skip

check_three_reasons = [
    ("ratios", "these are ratios", lambda d, r, p, m: (r / d, p / r, m / p)),
    ("the first whole", "*beyond* the dense network", lambda d, r, p, m: (r, p - r, m - p)),
    ("turned round", "the sign is turned round", lambda d, r, p, m: (d - r, r - p, p - m)),
    ("two parts", "three_reasons: ", lambda d, r, p, m: (p - d, m - p)),
    ("the sum alone", "three_reasons: ", lambda d, r, p, m: m - d),
]


def _run(x, w1, w3, w2, o, cut=None, act=F.silu):
    out = [
        F.linear(act(F.linear(a, b)) * F.linear(a, c), d)
        for a, b, c, d in zip(
            (cut or x.split)(o.diff().tolist()), w1.unbind(), w3.unbind(), w2.unbind(), strict=True
        )
    ]
    return torch.cat(out)


def _sliced(x, w1, w3, w2, o):
    return torch.cat(
        [
            F.linear(F.silu(F.linear(a, w1[e])) * F.linear(a, w3[e]), w2[e])
            for e, a in enumerate(x.split(o.diff().tolist()))
        ]
    )


def _row_by_row(x, w1, w3, w2, o):
    e = torch.searchsorted(o[1:].contiguous(), torch.arange(len(x)), right=True)
    up = F.silu(torch.einsum("rd,rfd->rf", x, w1[e])) * torch.einsum("rd,rfd->rf", x, w3[e])
    return torch.einsum("rf,rdf->rd", up, w2[e])


check_expert_blocks = [
    ("one slice after another", "right, but the backward pass writes", _sliced),
    ("a copy of the weights for each row", "right, but the backward pass writes", _row_by_row),
    (
        "w1 and w3 swapped",
        "silu belongs to w1's projection",
        lambda x, a, b, c, o: _run(x, b, a, c, o),
    ),
    ("relu", "that is a ReLU, not silu", lambda x, a, b, c, o: _run(x, a, b, c, o, act=torch.relu)),
    (
        "even blocks",
        "not each block of rows through its own expert",
        lambda x, a, b, c, o: torch.cat(
            [
                F.linear(F.silu(F.linear(p, q)) * F.linear(p, r), s)
                for p, q, r, s in zip(
                    x.tensor_split(len(a)), a.unbind(), b.unbind(), c.unbind(), strict=True
                )
            ]
        ),
    ),
    (
        "weights detached",
        "right numbers, but no gradient reaches w1, so what is behind can never learn",
        lambda x, a, b, c, o: _run(x, a.detach(), b.detach(), c.detach(), o),
    ),
    (
        "rows detached",
        "right numbers, but no gradient reaches x_RD, so what is behind can never learn",
        lambda x, a, b, c, o: _run(x.detach(), a, b, c, o),
    ),
    (
        "expert 0 for all",
        "expert 0's weights were used for every block",
        lambda x, a, b, c, o: F.linear(F.silu(F.linear(x, a[0])) * F.linear(x, b[0]), c[0]),
    ),
    (
        "experts from the back",
        "not each block of rows through its own expert",
        lambda x, a, b, c, o: _run(x, a.flip(0), b.flip(0), c.flip(0), o),
    ),
    (
        "silu of the product",
        "not each block of rows through its own expert",
        lambda x, a, b, c, o: torch.cat(
            [
                F.linear(F.silu(F.linear(p, q) * F.linear(p, r)), s)
                for p, q, r, s in zip(
                    x.split(o.diff().tolist()), a.unbind(), b.unbind(), c.unbind(), strict=True
                )
            ]
        ),
    ),
]
