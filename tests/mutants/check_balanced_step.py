"""Answers to check_balanced_step: a wrong one's docstring is a phrase of its verdict."""

import torch


def _choose(logits_TE, bias_E, k):
    return (logits_TE.detach().sigmoid() + bias_E).topk(k).indices


def _load(expert_TK, E):
    return expert_TK.flatten().bincount(minlength=E).float()


def sign_flipped(logits_TE, bias_E, k, u):
    """the sign is flipped"""
    expert_TK = _choose(logits_TE, bias_E, k)
    load_E = _load(expert_TK, len(bias_E))
    return expert_TK, bias_E + u * (load_E - load_E.mean()).sign()


def counts_against_a_share(logits_TE, bias_E, k, u):
    """counts are compared with a share"""
    expert_TK = _choose(logits_TE, bias_E, k)
    return expert_TK, bias_E + u * (k / len(bias_E) - _load(expert_TK, len(bias_E))).sign()


def proportional(logits_TE, bias_E, k, u):
    """takes only its sign"""
    expert_TK = _choose(logits_TE, bias_E, k)
    load_E = _load(expert_TK, len(bias_E))
    return expert_TK, bias_E + u * (load_E.mean() - load_E)


def proportional_in_mean_loads(logits_TE, bias_E, k, u):
    """takes only its sign"""
    expert_TK = _choose(logits_TE, bias_E, k)
    load_E = _load(expert_TK, len(bias_E))
    return expert_TK, bias_E + u * (1 - load_E / load_E.mean())


def blind_to_its_own_bias(logits_TE, bias_E, k, u):
    """never learns that it worked"""
    load_E = _load(_choose(logits_TE, 0 * bias_E, k), len(bias_E))
    return _choose(logits_TE, bias_E, k), bias_E + u * (load_E.mean() - load_E).sign()


def before_the_choice(logits_TE, bias_E, k, u):
    """depends on later tokens"""
    _, bias_E = right_by_sign(logits_TE, bias_E, k, u)
    return _choose(logits_TE, bias_E, k), bias_E


def without_bias(logits_TE, bias_E, k, u):
    """the bias is not used in the choice"""
    expert_TK = _choose(logits_TE, 0 * bias_E, k)
    load_E = _load(expert_TK, len(bias_E))
    return expert_TK, bias_E + u * (load_E.mean() - load_E).sign()


def soft_load(logits_TE, bias_E, k, u):
    """these are sums of scores"""
    load_E = logits_TE.detach().sigmoid().sum(0)
    return _choose(logits_TE, bias_E, k), bias_E + u * (load_E.mean() - load_E).sign()


def with_a_gradient(logits_TE, bias_E, k, u):
    """the bias has a gradient"""
    expert_TK, new_E = right_by_sign(logits_TE, bias_E, k, u)
    return expert_TK, new_E + 0 * logits_TE.sum()


def forgets(logits_TE, bias_E, k, u):
    """the old bias is forgotten"""
    expert_TK, new_E = right_by_sign(logits_TE, bias_E, k, u)
    return expert_TK, new_E - bias_E


def ignores_u(logits_TE, bias_E, k, u):
    """the step ignores u"""
    return right_by_sign(logits_TE, bias_E, k, 1.0)


def centred(logits_TE, bias_E, k, u):
    """Algorithm 1 leaves it out"""
    expert_TK, new_E = right_by_sign(logits_TE, bias_E, k, u)
    delta_E = new_E - bias_E
    return expert_TK, bias_E + delta_E - delta_E.mean()


def in_place(logits_TE, bias_E, k, u):
    """changes its input in place"""
    expert_TK, new_E = right_by_sign(logits_TE, bias_E, k, u)
    return expert_TK, bias_E.copy_(new_E)


def idle_experts_missing(logits_TE, bias_E, k, u):
    """an expert that got nothing counts too"""
    expert_TK = _choose(logits_TE, bias_E, k)
    load_E = expert_TK.flatten().bincount().float()
    return expert_TK, bias_E[: len(load_E)] + u * (load_E.mean() - load_E).sign()


def right_by_sign(logits_TE, bias_E, k, u):
    expert_TK = _choose(logits_TE, bias_E, k)
    load_E = _load(expert_TK, len(bias_E))
    return expert_TK, bias_E + u * (load_E.mean() - load_E).sign()


def right_by_comparing(logits_TE, bias_E, k, u):
    with torch.no_grad():
        order_TE = (torch.sigmoid(logits_TE) + bias_E).argsort(dim=1, descending=True)
    expert_TK, new_E = order_TE[:, :k], bias_E.clone()
    mean = logits_TE.shape[0] * k / logits_TE.shape[1]
    for e in range(len(new_E)):
        load = int((expert_TK == e).sum())
        new_E[e] += u * ((load < mean) - (load > mean))
    return expert_TK, new_E
