"""Answers to check_copies_leaving: a wrong one's docstring is what its verdict must say."""

import torch


def _choose(score_TE, nodes, k, limit, best):
    node_TNE = score_TE.view(len(score_TE), nodes, -1)
    kept = node_TNE.topk(best, dim=-1).values.sum(-1).topk(limit).indices
    allowed = torch.zeros(len(score_TE), nodes).scatter(1, kept, 1)
    return node_TNE.masked_fill(allowed[..., None] == 0, -torch.inf).flatten(1).topk(k).indices


def _away(node_TK, home_T):
    pairs = zip(node_TK.tolist(), home_T.tolist(), strict=True)
    return torch.tensor([len(set(to) - {home}) for to, home in pairs])


def no_limit(score_TE, home_T, nodes, k, limit):
    """all nodes were allowed"""
    return _away(score_TE.topk(k).indices // (score_TE.shape[1] // nodes), home_T)


def a_copy_for_each_expert(score_TE, home_T, nodes, k, limit):
    """a node gets one copy"""
    node_TK = _choose(score_TE, nodes, k, limit, k // limit) // (score_TE.shape[1] // nodes)
    return (node_TK != home_T[:, None]).sum(1)


def with_home(score_TE, home_T, nodes, k, limit):
    """does not leave it"""
    node_TK = _choose(score_TE, nodes, k, limit, k // limit) // (score_TE.shape[1] // nodes)
    return _away(node_TK, torch.full_like(home_T, -1))


def by_the_best_one(score_TE, home_T, nodes, k, limit):
    """not by one"""
    node_TK = _choose(score_TE, nodes, k, limit, 1) // (score_TE.shape[1] // nodes)
    return _away(node_TK, home_T)


def by_all(score_TE, home_T, nodes, k, limit):
    """not by all that it has"""
    size = score_TE.shape[1] // nodes
    return _away(_choose(score_TE, nodes, k, limit, size) // size, home_T)


def as_cards(score_TE, home_T, nodes, k, limit):
    """dealt out like cards"""
    return _away(_choose(score_TE, nodes, k, limit, k // limit) % nodes, home_T)


def in_all(score_TE, home_T, nodes, k, limit):
    """keep the tokens apart"""
    return right_with_sets(score_TE, home_T, nodes, k, limit).sum()


def right_with_sets(score_TE, home_T, nodes, k, limit):
    node_TK = _choose(score_TE, nodes, k, limit, k // limit) // (score_TE.shape[1] // nodes)
    return _away(node_TK, home_T)


def right_by_loop(score_TE, home_T, nodes, k, limit):
    size, out = score_TE.shape[1] // nodes, []
    for scores, home in zip(score_TE.tolist(), home_T.tolist(), strict=True):
        parts = [scores[n * size : (n + 1) * size] for n in range(nodes)]
        worth = [sum(sorted(part)[-(k // limit) :]) for part in parts]
        kept = sorted(range(nodes), key=lambda n: -worth[n])[:limit]
        able = sorted((-scores[e], e) for e in range(len(scores)) if e // size in kept)
        out.append(len({e // size for _, e in able[:k]} - {home}))
    return out
