"""Answers to check_responsibilities: each wrong one says in its docstring what it must be told."""

import torch


def _off(out_TEO, target_TO):
    return (target_TO[:, None] - out_TEO).square().sum(-1)


def prior(logits_TE, out_TEO, target_TO):
    """this is the prior p"""
    return logits_TE.softmax(-1)


def likelihood_alone(logits_TE, out_TEO, target_TO):
    """the gate's prior is missing"""
    return (-_off(out_TEO, target_TO) / 2).softmax(-1)


def not_normalised(logits_TE, out_TEO, target_TO):
    """divide by the sum over the experts"""
    return logits_TE.softmax(-1) * (-_off(out_TEO, target_TO) / 2).exp()


def over_the_cases(logits_TE, out_TEO, target_TO):
    """add up to 1 over the cases"""
    weight_TE = logits_TE.softmax(-1) * (-_off(out_TEO, target_TO) / 2).exp()
    return weight_TE / weight_TE.sum(0)


def without_the_half(logits_TE, out_TEO, target_TO):
    """factor ½ in the exponent is missing"""
    return (logits_TE - _off(out_TEO, target_TO)).softmax(-1)


def worst_first(logits_TE, out_TEO, target_TO):
    """the worst expert gets the most"""
    return (logits_TE + _off(out_TEO, target_TO) / 2).softmax(-1)


def distance(logits_TE, out_TEO, target_TO):
    """the exponent holds the distance"""
    far_TE = torch.linalg.vector_norm(target_TO[:, None] - out_TEO, dim=-1)
    return (logits_TE - far_TE / 2).softmax(-1)


def averaged(logits_TE, out_TEO, target_TO):
    """outputs are averaged"""
    return (logits_TE - (target_TO[:, None] - out_TEO).square().mean(-1) / 2).softmax(-1)


def underflows(logits_TE, out_TEO, target_TO):
    """0 / 0 is not a number"""
    weight_TE = not_normalised(logits_TE, out_TEO, target_TO)
    return weight_TE / weight_TE.sum(-1, keepdim=True)


def transposed(logits_TE, out_TEO, target_TO):
    """return a tensor of shape"""
    return right_short(logits_TE, out_TEO, target_TO).T.contiguous()[:1]


def right_short(logits_TE, out_TEO, target_TO):
    return (logits_TE - _off(out_TEO, target_TO) / 2).softmax(-1)


def right_by_bayes(logits_TE, out_TEO, target_TO):
    joint_TE = logits_TE.log_softmax(-1) - _off(out_TEO, target_TO) / 2
    return torch.exp(joint_TE - torch.logsumexp(joint_TE, dim=1, keepdim=True))


def right_by_autograd(logits_TE, out_TEO, target_TO):
    prior_TE = logits_TE.detach().clone().requires_grad_()
    joint_TE = prior_TE - _off(out_TEO, target_TO) / 2
    return torch.autograd.grad(joint_TE.logsumexp(-1).sum(), prior_TE)[0]


def hard(logits_TE, out_TEO, target_TO):
    """the best expert takes all"""
    off_TE = (target_TO[:, None] - out_TEO).square().sum(-1)
    best_T = (logits_TE - off_TE / 2).argmax(-1)
    return torch.nn.functional.one_hot(best_T, logits_TE.shape[1]).float()


def twice_soft(logits_TE, out_TEO, target_TO):
    """one softmax too many"""
    off_TE = (target_TO[:, None] - out_TEO).square().sum(-1)
    return (logits_TE - off_TE / 2).softmax(-1).softmax(-1)
