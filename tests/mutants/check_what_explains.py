"""Answers to check_what_explains: a wrong one's docstring is what its verdict must say."""

import torch


def _bits(expert_T, label_T):
    count = torch.zeros(int(label_T.max()) + 1, 8).double()
    count.index_put_((label_T, expert_T), torch.ones(len(label_T)).double(), accumulate=True)
    p = count / count.sum()
    q = p.sum(0) * p.sum(1, keepdim=True)
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum().item()


def _tokens(label_T, rng):
    return label_T[torch.randperm(len(label_T), generator=rng)]


def _texts(label_T, length, rng):
    texts = label_T.view(-1, length)
    return texts[torch.randperm(len(texts), generator=rng)].flatten()


def _words(label_T, ids_T, rng):
    order = torch.randperm(len(ids_T), generator=rng)
    out = torch.empty_like(label_T)
    out[ids_T.argsort(stable=True)] = label_T[order[ids_T[order].argsort(stable=True)]]
    return out


def _above(expert_T, topic_T, shuffle, times=19):
    rng, value = torch.Generator().manual_seed(0), _bits(expert_T, topic_T)
    return all(value > _bits(expert_T, shuffle(rng)) for _ in range(times))


def against_zero(expert_T, topic_T, ids_T, length):
    """compare with shuffled labels and not with 0"""
    return "topic" if _bits(expert_T, topic_T) > 0 else "nothing"


def tokens_as_if_independent(expert_T, topic_T, ids_T, length):
    """so shuffle whole texts"""
    if not _above(expert_T, topic_T, lambda rng: _tokens(topic_T, rng)):
        return "nothing"
    return (
        "topic" if _above(expert_T, topic_T, lambda rng: _words(topic_T, ids_T, rng)) else "words"
    )


def no_words(expert_T, topic_T, ids_T, length):
    """topics differ in their words"""
    return "topic" if _above(expert_T, topic_T, lambda rng: _texts(topic_T, length, rng)) else (
        "nothing"
    )  # fmt: skip


def words_whenever_they_tell(expert_T, topic_T, ids_T, length):
    """words do not explain it"""
    if not _above(expert_T, topic_T, lambda rng: _texts(topic_T, length, rng)):
        return "nothing"
    tell = _above(expert_T, ids_T, lambda rng: _tokens(ids_T, rng))
    return "words" if tell or _bits(expert_T, ids_T) > 0 else "topic"


def words_first(expert_T, topic_T, ids_T, length):
    """before words are asked"""
    if _above(expert_T, topic_T, lambda rng: _texts(topic_T, length, rng)):
        return right(expert_T, topic_T, ids_T, length)
    return "words" if _above(expert_T, topic_T, lambda rng: _tokens(topic_T, rng)) else "nothing"


def never(expert_T, topic_T, ids_T, length):
    """by way of the words"""
    within = _above(expert_T, topic_T, lambda rng: _words(topic_T, ids_T, rng))
    texts = _above(expert_T, topic_T, lambda rng: _texts(topic_T, length, rng))
    return "topic" if within and texts else "nothing"


def another_word(expert_T, topic_T, ids_T, length):
    """answer with one of"""
    return "chance"


def right(expert_T, topic_T, ids_T, length):
    if not _above(expert_T, topic_T, lambda rng: _texts(topic_T, length, rng)):
        return "nothing"
    return (
        "topic" if _above(expert_T, topic_T, lambda rng: _words(topic_T, ids_T, rng)) else "words"
    )


def right_by_deviations(expert_T, topic_T, ids_T, length):
    """Compares with mean and deviation of the null, and not with its largest."""
    rng, value = torch.Generator().manual_seed(5), _bits(expert_T, topic_T)

    def score(shuffle):
        null = torch.tensor([_bits(expert_T, shuffle()) for _ in range(30)], dtype=torch.float64)
        return (value - null.mean().item()) / max(null.std().item(), 1e-9)

    texts = score(lambda: _texts(topic_T, length, rng))
    words = score(lambda: _words(topic_T, ids_T, rng))
    return "nothing" if texts < 3 else "words" if words < 3 else "topic"


def fixed_thresholds(expert_T, topic_T, ids_T, length):
    """shuffle whole texts"""
    observed = _bits(expert_T, topic_T)
    within = _bits(expert_T, _words(topic_T, ids_T, torch.Generator().manual_seed(0)))
    if observed < 0.05:
        return "nothing"
    return "topic" if observed > 1.5 * within else "words"
