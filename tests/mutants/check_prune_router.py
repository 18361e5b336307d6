"""Answers to check_prune_router: a wrong one's docstring is what its verdict must say."""

import torch


def _keep(score_E, drop):
    return score_E.argsort()[drop:].sort().values


def _numbers(keep, E):
    number_E = torch.full((E,), -1)
    number_E[keep] = torch.arange(len(keep))
    return number_E


def zeros(router_ED, score_E, drop):
    """a row of zeros is no pruned row"""
    out = router_ED.clone()
    out[score_E.argsort()[:drop]] = 0
    return out, _numbers(_keep(score_E, drop), len(score_E))


def the_best(router_ED, score_E, drop):
    """they are to stay"""
    keep = _keep(-score_E, drop)
    return router_ED[keep], _numbers(keep, len(score_E))


def sorted_by_score(router_ED, score_E, drop):
    """each token goes to a stranger"""
    keep = score_E.topk(len(score_E) - drop).indices
    return router_ED[keep], _numbers(keep, len(score_E))


def the_last(router_ED, score_E, drop):
    """whatever their scores"""
    keep = torch.arange(len(score_E) - drop)
    return router_ED[keep], _numbers(keep, len(score_E))


def old_numbers(router_ED, score_E, drop):
    """these are the old numbers"""
    keep = _keep(score_E, drop)
    return router_ED[keep], keep


def gaps(router_ED, score_E, drop):
    """those behind a gap move up"""
    keep = _keep(score_E, drop)
    number_E = torch.full((len(score_E),), -1)
    number_E[keep] = keep
    return router_ED[keep], number_E


def the_dead_have_numbers(router_ED, score_E, drop):
    """an expert that is gone has no number"""
    keep = _keep(score_E, drop)
    stays_E = torch.zeros(len(score_E), dtype=torch.long).index_fill(0, keep, 1)
    return router_ED[keep], stays_E.cumsum(0) - 1


def right_by_loop(router_ED, score_E, drop):
    gone = sorted(range(len(score_E)), key=lambda e: score_E[e])[:drop]
    rows, numbers = [], []
    for e, row in enumerate(router_ED):
        numbers.append(-1 if e in gone else len(rows))
        if e not in gone:
            rows.append(row)
    return torch.stack(rows), torch.tensor(numbers)


def right_by_mask(router_ED, score_E, drop):
    stays_E = torch.ones(len(score_E), dtype=torch.bool)
    stays_E[score_E.topk(drop, largest=False).indices] = False
    return router_ED[stays_E], (stays_E.cumsum(0) - 1).where(stays_E, -1)
