"""Answers to check_posteriors: each wrong one says in its docstring what its verdict must say."""

import torch


def _up(leaf_TE):
    levels = [leaf_TE]
    while levels[0].shape[1] > 1:
        levels.insert(0, levels[0][:, 0::2] + levels[0][:, 1::2])
    return torch.cat(levels, 1)


def not_normalised(prior_TE, density_TE):
    """not yet a probability"""
    return _up(prior_TE * density_TE)


def over_tokens(prior_TE, density_TE):
    """sum over the tokens"""
    joint_TE = prior_TE * density_TE
    return _up(joint_TE / joint_TE.sum(0))


def prior_only(prior_TE, density_TE):
    """that is the prior"""
    return _up(prior_TE)


def density_only(prior_TE, density_TE):
    """the prior is not used"""
    return _up(density_TE / density_TE.sum(1, keepdim=True))


def leaves_only(prior_TE, density_TE):
    """the leaves alone"""
    joint_TE = prior_TE * density_TE
    return joint_TE / joint_TE.sum(1, keepdim=True)


def given_the_parent(prior_TE, density_TE):
    """divided by its parent"""
    node_TN = right(prior_TE, density_TE)
    parent = [max(0, (n - 1) // 2) for n in range(node_TN.shape[1])]
    return node_TN / node_TN[:, parent]


def leaves_first(prior_TE, density_TE):
    """from the root"""
    return right(prior_TE, density_TE).flip(-1)


def softmaxed(prior_TE, density_TE):
    """was a probability already"""
    return _up((prior_TE * density_TE).softmax(-1))


def right(prior_TE, density_TE):
    joint_TE = prior_TE * density_TE
    return _up(joint_TE / joint_TE.sum(1, keepdim=True))


def right_in_logarithms(prior_TE, density_TE):
    return _up((prior_TE.log() + density_TE.log()).softmax(-1))


def right_sums_first(prior_TE, density_TE):
    node_TN = _up(prior_TE * density_TE)
    return node_TN / node_TN[:, :1]


def managers_from_priors(prior_TE, density_TE):
    """the managers' are sums of priors"""
    E, right_TN = prior_TE.shape[1], right(prior_TE, density_TE)
    managers_TN = right(prior_TE, torch.ones_like(density_TE))[:, : E - 1]
    return torch.cat([managers_TN, right_TN[:, E - 1 :]], -1)


def the_likeliest_takes_all(prior_TE, density_TE):
    """the likeliest expert takes all: EM shares"""
    joint_TE = prior_TE * density_TE
    return _up(torch.nn.functional.one_hot(joint_TE.argmax(-1), joint_TE.shape[1]).to(joint_TE))
