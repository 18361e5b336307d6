"""Chapter 17's harvest: (what a learner did, a phrase of what the check says, the answer)."""

import torch


def _bits(count, log=torch.log2, product=None):
    p = count.double() / count.sum()
    chance = p.sum(1, keepdim=True) * p.sum(0) if product is None else product(p)
    return (
        (torch.where(p > 0, p * log(torch.where(p > 0, p / chance, torch.ones_like(p))), 0.0))
        .sum()
        .item()
    )


def _entropy(p):
    return -torch.special.xlogy(p, p).sum().item() / torch.tensor(2.0).log().item()


def _p(c):
    return c.double() / c.sum()


check_information = [
    ("nats", "these are nats; a bit is ln 2 nats, so use log2", lambda c: _bits(c, torch.log)),
    (
        "NaN where no token is",
        "NaN; a cell without tokens adds nothing, because p log p goes to 0 with p, but 0",
        lambda c: (
            (_p(c) * (_p(c) / (_p(c).sum(1, keepdim=True) * _p(c).sum(0))).log2()).sum().item()
        ),
    ),
    (
        "counts for probabilities",
        "the counts are weighed as they are",
        lambda c: _bits(c) * float(c.sum()),
    ),
    (
        "against an even chance",
        "labels and experts are not equally frequent",
        lambda c: _bits(c, product=lambda p: torch.full_like(p, 1 / p.numel())),
    ),
    ("the labels' entropy", "that is the label's entropy", lambda c: _entropy(_p(c).sum(1))),
    (
        "what remains unknown",
        "what a label leaves open once the expert is known",
        lambda c: _entropy(_p(c)) - _entropy(_p(c).sum(0)),
    ),
    (
        "the table's entropy",
        "that is the entropy of label and expert together",
        lambda c: _entropy(_p(c)),
    ),
    ("the other way", "the sign: information is never negative", lambda c: -_bits(c)),
    (
        "a small number added to each cell",
        "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))",
        lambda c: _bits(c + 0.5),
    ),
    (
        "a share of the labels' entropy",
        "divided by the label's entropy",
        lambda c: _bits(c) / max(_entropy(_p(c).sum(1)), 1e-9),
    ),
    (
        "labels' chance alone",
        "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))",
        lambda c: _bits(c, product=lambda p: p.sum(1, keepdim=True) / p.shape[1]),
    ),
    (
        "the mean over the cells",
        "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))",
        lambda c: _bits(c) / c.numel(),
    ),
    (
        "sizes added",
        "not the sum of p(c, e) log2 of p(c, e) / (p(c) p(e))",
        lambda c: (
            lambda p: (
                torch.where(
                    p > 0,
                    (
                        p
                        * (
                            p.clamp(min=1e-30)
                            / (p.sum(1, keepdim=True) * p.sum(0)).clamp(min=1e-30)
                        ).log2()
                    ).abs(),
                    0.0,
                )
                .sum()
                .item()
            )
        )(_p(c)),
    ),
]


def _order(n, seed):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _texts(x, length, seed):
    return x.view(-1, length)[_order(len(x) // length, seed)].flatten()


def _text_in_place(x, length, seed):
    x.copy_(_texts(x, length, seed))
    return x


check_shuffle_texts = [
    ("tokens", "this tears texts apart", lambda x, n, s: x[_order(len(x), s)]),
    (
        "within texts",
        "the tokens moved within their own text",
        lambda x, n, s: x.view(-1, n)[:, _order(n, s)].flatten(),
    ),
    (
        "the seed forgotten",
        "every seed gives the same order, so there is one shuffle and not a null",
        lambda x, n, s: _texts(x, n, 0),
    ),
    (
        "new each time",
        "the same seed gives another order the second time",
        lambda x, n, s: x.view(-1, n)[torch.randperm(len(x) // n)].flatten(),
    ),
    (
        "drawn with repetition",
        "some labels are lost and others doubled",
        lambda x, n, s: x.view(-1, n)[
            torch.randint(len(x) // n, (len(x) // n,), generator=torch.Generator().manual_seed(s))
        ].flatten(),
    ),
    (
        "turned over",
        "every seed gives the same order, so there is one shuffle and not a null",
        lambda x, n, s: x.view(-1, n).flip(0).flatten(),
    ),
    ("changes its labels", "changes its input in place", _text_in_place),
    (
        "as texts, not flat",
        "return a tensor of shape (24,)",
        lambda x, n, s: x.view(-1, n)[_order(len(x) // n, s)],
    ),
    (
        "as many texts as the length",
        "a text's tokens lie side by side, not one in each row",
        lambda x, n, s: x.view(n, -1)[_order(n, s)].flatten(),
    ),
    ("nothing", "nothing was shuffled", lambda x, n, s: x.clone()),
    (
        "columns for rows",
        "this tears texts apart",
        lambda x, n, s: x.view(n, -1).T[_order(len(x) // n, s)].flatten(),
    ),
    ("sorted", "nothing was shuffled", lambda x, n, s: x.sort().values),
]


def _words(x, ids, seed, draw=None):
    g, out = torch.Generator().manual_seed(seed), x.clone()
    for word in ids.unique():
        mine = (ids == word).nonzero()[:, 0]
        out[mine] = x[
            mine[torch.randperm(len(mine), generator=g) if draw is None else draw(len(mine), g)]
        ]
    return out


def _words_in_place(x, ids, seed):
    x.copy_(_words(x, ids, seed))
    return x


check_shuffle_within_words = [
    ("all labels", "a word gets a label of another word", lambda x, i, s: x[_order(len(x), s)]),
    (
        "with repetition",
        "some labels are lost and others doubled",
        lambda x, i, s: _words(x, i, s, lambda n, g: torch.randint(n, (n,), generator=g)),
    ),
    (
        "the seed forgotten",
        "every seed gives the same order, so there is one shuffle and not a null",
        lambda x, i, s: _words(x, i, 0),
    ),
    (
        "new each time",
        "the same seed gives another order the second time",
        lambda x, i, s: _words(x, i, s, lambda n, g: torch.randperm(n)),
    ),
    (
        "turned over",
        "every seed gives the same order, so there is one shuffle and not a null",
        lambda x, i, s: _words(x, i, s, lambda n, g: torch.arange(n).flip(0)),
    ),
    ("changes its labels", "changes its input in place", _words_in_place),
    (
        "words among equal labels",
        "some labels are lost and others doubled",
        lambda x, i, s: _words(i, x, s),
    ),
    ("nothing", "nothing was shuffled", lambda x, i, s: x.clone()),
    (
        "by one place",
        "every seed gives the same order, so there is one shuffle and not a null",
        lambda x, i, s: _words(x, i, s, lambda n, g: torch.arange(n).roll(1)),
    ),
    (
        "the words come out",
        "some labels are lost and others doubled",
        lambda x, i, s: _words(i, i, s),
    ),
    (
        "even and odd words",
        "a word gets a label of another word",
        lambda x, i, s: _words(x, i % 2, s),
    ),
    (
        "a word's majority",
        "some labels are lost and others doubled",
        lambda x, i, s: torch.stack([x[i == w].mode().values for w in i]),
    ),
]


def _had(early, final):
    return early[:, :, None] == final[:, None, :]


check_saturation = [
    ("place by place", "order does not matter", lambda a, b: (a == b).double().mean().item()),
    (
        "any of them",
        "a token counts if any one of its experts is the same",
        lambda a, b: _had(a, b).any(1).any(1).double().mean().item(),
    ),
    (
        "all of them",
        "a token counts only if all its experts are the same",
        lambda a, b: _had(a, b).any(1).all(1).double().mean().item(),
    ),
    (
        "first choices",
        "only first choices are compared",
        lambda a, b: (a[:, 0] == b[:, 0]).double().mean().item(),
    ),
    (
        "of both together",
        "eq. 5 divides by k, not by the size of the union",
        lambda a, b: (lambda n: (n / (2 * a.shape[1] - n)).mean().item())(
            _had(a, b).any(1).double().sum(1)
        ),
    ),
    (
        "how many",
        "it is divided by k as well",
        lambda a, b: _had(a, b).any(1).double().sum(1).mean().item(),
    ),
    (
        "the mean over all comparisons",
        "that is divided by k twice",
        lambda a, b: _had(a, b).double().mean().item(),
    ),
    (
        "what is new",
        "that is what changed",
        lambda a, b: 1 - _had(a, b).any(1).double().mean().item(),
    ),
    (
        "per token",
        "return one number, not one of shape (4,)",
        lambda a, b: _had(a, b).any(1).double().mean(1),
    ),
    (
        "in percent",
        "right up to a factor",
        lambda a, b: 100 * _had(a, b).any(1).double().mean().item(),
    ),
    (
        "anywhere in the text",
        "that asks for each final choice whether any token had it",
        lambda a, b: torch.isin(b, a).double().mean().item(),
    ),
    (
        "the first among the final",
        "not the mean share of a token's final experts that it had before",
        lambda a, b: (a[:, :1] == b).any(1).double().mean().item(),
    ),
]


def _same(x, n):
    t = x.view(-1, n)
    return (t[:, 1:] == t[:, :-1]).double()


check_repetition = [
    (
        "over the ends of texts",
        "the last token of a text and the first of the next are no neighbours",
        lambda x, n: (x[1:] == x[:-1]).double().mean().item(),
    ),
    (
        "divided by all tokens",
        "a text of S tokens has S - 1 pairs of neighbours, not S",
        lambda x, n: _same(x, n).sum().item() / len(x),
    ),
    (
        "how often it changes",
        "that is how often the expert changes",
        lambda x, n: 1 - _same(x, n).mean().item(),
    ),
    (
        "a number, not a share",
        "that is a count; give the share of all pairs",
        lambda x, n: _same(x, n).sum().item(),
    ),
    (
        "the same place of the next text",
        "that compares tokens at the same place of neighbouring texts",
        lambda x, n: (x.view(-1, n)[1:] == x.view(-1, n)[:-1]).double().mean().item(),
    ),
    (
        "next but one",
        "that is how often a token and the one after the next share an expert",
        lambda x, n: (x.view(-1, n)[:, 2:] == x.view(-1, n)[:, :-2]).double().mean().item(),
    ),
    (
        "the length for the number of texts",
        "text by text: view the experts as (texts, length)",
        lambda x, n: _same(x, len(x) // n).mean().item(),
    ),
    (
        "the first text",
        "not the share of neighbours in a text with the same first choice",
        lambda x, n: _same(x, n)[0].mean().item(),
    ),
    (
        "round the end",
        "roll brings the last one there",
        lambda x, n: (x.view(-1, n) == x.view(-1, n).roll(1, 1)).double().mean().item(),
    ),
    ("less chance", "every number is off by -", lambda x, n: _same(x, n).mean().item() - 1 / 8),
    (
        "divided by one pair too few",
        "B texts have B pairs fewer than tokens, not one",
        lambda x, n: _same(x, n).sum().item() / (len(x) - 1),
    ),
    ("each text's", "return one number, not one of shape (2,)", lambda x, n: _same(x, n).mean(1)),
]


def _tell(e, label):
    C, E = int(label.max()) + 1, int(e.max()) + 1
    return _bits(torch.bincount(label * E + e, minlength=C * E).view(C, E))


def _texts_null(e, t, n, seeds=20):
    return [_tell(e, _texts(t, n, s)) for s in range(seeds)]


def _words_null(e, t, i, seeds=20):
    return [_tell(e, _words(t, i, s)) for s in range(seeds)]


def _no_texts(e, t, i, n):
    seen = _tell(e, t)
    return "topic" if seen > max(_words_null(e, t, i, 10)) else "words"


def _tokens_shuffled(e, t, i, n):
    seen = _tell(e, t)
    if seen <= max(_texts_null(e, t, 1)):
        return "nothing"
    return _no_texts(e, t, i, n)


def _no_words(e, t, i, n):
    return "topic" if _tell(e, t) > max(_texts_null(e, t, n)) else "nothing"


def _above_the_mean(e, t, i, n):
    seen, null = _tell(e, t), _texts_null(e, t, n)
    if seen <= sum(null) / len(null):
        return "nothing"
    return _no_texts(e, t, i, n)


def _at_least(e, t, i, n):
    seen = _tell(e, t)
    if seen < max(_texts_null(e, t, n)):
        return "nothing"
    return "topic" if seen >= max(_words_null(e, t, i, 10)) else "words"


check_what_explains = [
    ("texts not asked", "experts were dealt at random here", _no_texts),
    (
        "tokens shuffled",
        "each text has its favourite expert here, whatever its topic",
        _tokens_shuffled,
    ),
    ("words not asked", "the words explain this", _no_words),
    (
        "above the mean of the null",
        "each text has its favourite expert here, whatever its topic",
        _above_the_mean,
    ),
    (
        "as large as the null is enough",
        "where the word alone decides, shuffles among equal words give the observed number",
        _at_least,
    ),
    ("topic, always", "experts were dealt at random here", lambda e, t, i, n: "topic"),
    (
        "by the size",
        "each text has its favourite expert here, whatever its topic or words",
        lambda e, t, i, n: (
            "topic" if _tell(e, t) > 0.3 else "words" if _tell(e, t) > 0.1 else "nothing"
        ),
    ),
    (
        "True",
        "answer with one of ('nothing', 'words', 'topic'), not False",
        lambda e, t, i, n: _tell(e, t) > 0.1,
    ),
]


def _page(observed, null, holds, **more):
    return {
        "claim": "Experts tell the domain of a text.",
        "source": "the opposite of Jiang et al. 2024, section 5",
        "falsified_if": "shuffled texts tell as much",
        "measure": "mutual information of first choice and domain, in bits",
        "null_is": "whole texts shuffled",
        "observed": observed,
        "null": null,
        "holds": holds,
        "verdict": f"{'holds' if holds else 'does not hold'}: {float(observed):.2f} bits",
        **more,
    }


def _honest(x, i, d, n):
    return _tell(x[:, 0], d), _texts_null(x[:, 0], d, n, 19)


def _dice(x, i, d, n):
    null = torch.rand(20).tolist()
    return _page(1.0, null, True)


def _null_of_zeros(x, i, d, n):
    seen = _honest(x, i, d, n)[0]
    return _page(seen, [0.0] * 19, seen > 0)


def _always(x, i, d, n):
    return _page(*_honest(x, i, d, n), True)


def _below(x, i, d, n):
    seen, null = _honest(x, i, d, n)
    return _page(seen, null, seen < min(null))


def _few(x, i, d, n):
    seen, null = _honest(x, i, d, n)
    return _page(seen, null[:5], seen > max(null[:5]))


def _tokens(x, i, d, n):
    seen, null = _tell(x[:, 0], d), _texts_null(x[:, 0], d, 1, 19)
    return _page(seen, null, seen > max(null), null_is="tokens shuffled")


def _left_out(x, i, d, n):
    seen, null = _honest(x, i, d, n)
    return _page(seen, null, seen > max(null), falsified_if=...)


def _said_otherwise(x, i, d, n):
    seen, null = _honest(x, i, d, n)
    return _page(seen, null, seen > max(null), verdict="Experts like domains very much.")


def _of_other_experts(x, i, d, n):
    g = torch.Generator().manual_seed(0)
    null = [_tell(torch.randint(8, d.shape, generator=g), d) for _ in range(19)]
    seen = _tell(x[:, 0], d)
    return _page(seen, null, seen > max(null))


check_investigation = [
    ("random numbers", "of 12 routings dealt at random the claim holds as well", _dice),
    ("a null of zeros", "the null is 0 each time", _null_of_zeros),
    ("holds whatever is seen", "the verdict does not follow from the numbers", _always),
    ("holds where it is below", "the claim never holds, whatever is planted", _below),
    (
        "five of them",
        "'null' must list at least 19 numbers, one for each time that chance was played",
        _few,
    ),
    (
        "tokens shuffled, so a text's favourite counts",
        "the claim is about domains, and it holds where each text likes one expert, whatever",
        _tokens,
    ),
    ("nothing that would sink it", "the field 'falsified_if' is not filled in", _left_out),
    ("a verdict that is none", "the verdict names no number", _said_otherwise),
    (
        "experts dealt anew for the null",
        "the claim is about domains, and it holds where each text likes one expert, whatever",
        _of_other_experts,
    ),
]


BAYES = "not log p(v) plus the sum over layers of log p(r | v)"


def _scores(n, c, s, own=None, told=None):
    R = c.shape[-1]
    own = ((n + 1) / (n + 1).sum()).log() if own is None else own
    told = ((c + 1 / R) / (n[:, None] + 1)).log() if told is None else told
    return own + sum(told[layer][:, s[:, layer]].T for layer in range(len(c)))


check_read_back = [  # by the author of the check; harvest_sixth is by another hand
    ("in base 2", "read_back: ", lambda n, c, s: _scores(n, c, s) / torch.tensor(2.0).log()),
    ("the sign", "read_back: ", lambda n, c, s: -_scores(n, c, s)),
    ("words by tokens", "read_back: ", lambda n, c, s: _scores(n, c, s).T),
    ("all words alike", "equally frequent",
     lambda n, c, s: _scores(n, c, s, own=torch.full((len(n),), 1 / len(n)).log())),
    ("layers from the last to the first", BAYES, lambda n, c, s: _scores(n, c.flip(0), s)),
    ("a tiny sight instead of one", BAYES,
     lambda n, c, s: _scores(n, c, s, told=((c + 1e-6) / (n[:, None] + 1e-6 * c.shape[-1])).log())),
    ("ranks", "read_back: ", lambda n, c, s: _scores(n, c, s).argsort(1)),
]  # fmt: skip


SHARES = "not the share of the first text's tokens less that of the second's"


def _share(x, E):
    return x.flatten().bincount(minlength=E) / len(x)


check_use_difference = [  # by the author of the check; harvest_sixth is by another hand
    ("the sum", SHARES, lambda a, b, E: _share(a, E) + _share(b, E)),
    ("logarithms", "use_difference: ",
     lambda a, b, E: (_share(a, E) + 1e-3).log() - (_share(b, E) + 1e-3).log()),
    ("the order of the experts", "use_difference: ",
     lambda a, b, E: (_share(a, E) - _share(b, E)).argsort()),
    ("in percent", "use_difference: ", lambda a, b, E: 100 * (_share(a, E) - _share(b, E))),
    ("squared", "this is the square", lambda a, b, E: (_share(a, E) - _share(b, E)).square()),
    ("last choices", SHARES,
     lambda a, b, E: _share(a[:, -1:], E) - 0.5 * _share(b[:, -1:], E)),
    ("the largest alone", "use_difference: ",
     lambda a, b, E: (_share(a, E) - _share(b, E)).max()),
]  # fmt: skip
