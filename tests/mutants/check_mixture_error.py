"""Answers to check_mixture_error: each wrong one says in its docstring what it must be told."""

import math

import torch


def _off(out_TEO, target_TO):
    return (target_TO[:, None] - out_TEO).square().sum(-1)


def cooperative(logits_TE, out_TEO, target_TO):
    """this is E1"""
    blend_TO = (logits_TE.softmax(-1)[..., None] * out_TEO).sum(1)
    return (target_TO - blend_TO).square().sum(-1)


def blended_errors(logits_TE, out_TEO, target_TO):
    """this is E2"""
    return (logits_TE.softmax(-1) * _off(out_TEO, target_TO)).sum(-1)


def logarithm_inside(logits_TE, out_TEO, target_TO):
    """the logarithm was taken inside the sum"""
    return (logits_TE.softmax(-1) * _off(out_TEO, target_TO) / 2).sum(-1)


def sign(logits_TE, out_TEO, target_TO):
    """minus the logarithm"""
    return -right_short(logits_TE, out_TEO, target_TO)


def without_the_half(logits_TE, out_TEO, target_TO):
    """factor ½ in the exponent is missing"""
    return -(logits_TE.log_softmax(-1) - _off(out_TEO, target_TO)).logsumexp(-1)


def logits_as_they_are(logits_TE, out_TEO, target_TO):
    """logits are not log-probabilities"""
    return -(logits_TE - 1.0 - _off(out_TEO, target_TO) / 2).logsumexp(-1) - 1.0


def without_the_gate(logits_TE, out_TEO, target_TO):
    """the gate's proportions are missing"""
    return -(-_off(out_TEO, target_TO) / 2).logsumexp(-1)


def naive(logits_TE, out_TEO, target_TO):
    """stay in logarithms"""
    return -(logits_TE.softmax(-1) * (-_off(out_TEO, target_TO) / 2).exp()).sum(-1).log()


def clamped(logits_TE, out_TEO, target_TO):
    """that hides the overflow"""
    weight_TE = logits_TE.softmax(-1) * (-_off(out_TEO, target_TO) / 2).exp()
    return -weight_TE.sum(-1).clamp(min=1e-30).log()


def mean(logits_TE, out_TEO, target_TO):
    """one number for all cases"""
    return right_short(logits_TE, out_TEO, target_TO).mean()


def no_gradient(logits_TE, out_TEO, target_TO):
    """no gradient reaches the experts' answers"""
    return right_short(logits_TE, out_TEO.detach(), target_TO)


def right_short(logits_TE, out_TEO, target_TO):
    return -(logits_TE.log_softmax(-1) - _off(out_TEO, target_TO) / 2).logsumexp(-1)


def right_by_shifting(logits_TE, out_TEO, target_TO):
    joint_TE = logits_TE - logits_TE.logsumexp(-1, keepdim=True) - _off(out_TEO, target_TO) / 2
    top_T1 = joint_TE.max(-1, keepdim=True).values.detach()
    return -(top_T1.squeeze(-1) + (joint_TE - top_T1).exp().sum(-1).log())


def right_by_distribution(logits_TE, out_TEO, target_TO):
    normal = torch.distributions.Independent(torch.distributions.Normal(out_TEO, 1.0), 1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits_TE), normal
    )
    constant = target_TO.shape[-1] / 2 * torch.log(torch.tensor(2 * torch.pi))
    return -mixture.log_prob(target_TO) - constant


def log_of_softmax(logits_TE, out_TEO, target_TO):
    """log_softmax does both at once"""
    off_TE = (target_TO[:, None] - out_TEO).square().sum(-1)
    return -(logits_TE.softmax(-1).log() - off_TE / 2).logsumexp(-1)


def constant_kept(logits_TE, out_TEO, target_TO):
    """the normal density's constant"""
    constant = out_TEO.shape[-1] / 2 * math.log(2 * math.pi)
    return right_short(logits_TE, out_TEO, target_TO) + constant


def hard_competition(logits_TE, out_TEO, target_TO):
    """that is hard competition"""
    off_TE = (target_TO[:, None] - out_TEO).square().sum(-1)
    return -(logits_TE.log_softmax(-1) - off_TE / 2).max(-1).values


def mean_over_outputs(logits_TE, out_TEO, target_TO):
    """outputs are averaged"""
    off_TE = (target_TO[:, None] - out_TEO).square().mean(-1)
    return -(logits_TE.log_softmax(-1) - off_TE / 2).logsumexp(-1)
