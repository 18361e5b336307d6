"""Answers to check_reads_future: a wrong one's docstring is what its verdict must say."""

import torch


def _noise(x, seed=0):
    return 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def compares_the_changed_token_too(route, x_TD):
    """compare the choices of the tokens before"""
    for t in range(1, len(x_TD)):
        changed = torch.cat([x_TD[:t], _noise(x_TD[t:])])
        if not torch.equal(route(changed), route(x_TD)):
            return True
    return False


def changes_the_first(route, x_TD):
    """reading the past is allowed"""
    changed = torch.cat([_noise(x_TD[:1]), x_TD[1:]])
    return not torch.equal(route(changed)[1:], route(x_TD)[1:])


def cuts_the_text_off(route, x_TD):
    """keep their number and change what they are"""
    return any(
        not torch.equal(route(x_TD[:t]), route(x_TD)[:t]) for t in range(4, len(x_TD))
    )  # fmt: skip


def compares_the_loads(route, x_TD):
    """not the loads and not the whole table"""
    for t in range(1, len(x_TD)):
        changed = torch.cat([x_TD[:t], _noise(x_TD[t:])])
        if not torch.equal(route(changed).sum(0), route(x_TD).sum(0)):
            return True
    return False


def a_touch(route, x_TD):
    """put quite other tokens behind each cut"""
    for t in range(1, len(x_TD)):
        changed = torch.cat([x_TD[:t], x_TD[t:] * (1 + 1e-6)])
        if not torch.equal(route(changed)[:t], route(x_TD)[:t]):
            return True
    return False


def only_the_last(route, x_TD):
    """one token told of one other is a leak"""
    for seed in range(60):
        changed = torch.cat([x_TD[:-1], _noise(x_TD[-1:], seed)])
        if not torch.equal(route(changed)[:-1], route(x_TD)[:-1]):
            return True
    return False


def only_the_token_before(route, x_TD):
    """one token told of one other is a leak"""
    for t in range(1, len(x_TD)):
        for seed in range(30):
            changed = torch.cat([x_TD[:t], _noise(x_TD[t : t + 1], seed), x_TD[t + 1 :]])
            if not torch.equal(route(changed)[t - 1], route(x_TD)[t - 1]):
                return True
    return False


def trusting(route, x_TD):
    """it says False of all"""
    return False


def a_count(route, x_TD):
    """it says False of all"""
    return 0


def right_by_trying(route, x_TD):
    before = route(x_TD)
    for t in range(1, len(x_TD)):
        for seed in range(5):
            changed = torch.cat([x_TD[:t], _noise(x_TD[t:], seed)])
            if not torch.equal(route(changed)[:t], before[:t]):
                return True
    return False


def right_one_token_at_a_time(route, x_TD):
    before, T = route(x_TD), len(x_TD)
    found = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        for seed in range(8):
            changed = x_TD.clone()
            changed[t] = _noise(x_TD, seed)[t]
            found[t] |= (route(changed) != before).any(1)
    return found.tril(-1).any()


def one_cut_in_the_middle(route, x_TD):
    """one token told of one other is a leak"""
    before, half = route(x_TD), len(x_TD) // 2
    for seed in range(3):
        changed = torch.cat([x_TD[:half], _noise(x_TD[half:], seed)])
        if not torch.equal(route(changed)[:half], before[:half]):
            return True
    return False
