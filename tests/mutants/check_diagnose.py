"""Answers to check_diagnose."""

import torch


def _value(loss, logits, expert, mask=None):
    mask = torch.ones(logits.shape[1], dtype=torch.bool) if mask is None else mask
    return float(loss(logits, expert, mask))


def _even(L, K):
    """Make four tokens over four experts, all beliefs equal and all counts equal."""
    expert = torch.stack([(torch.arange(4) + k) % 4 for k in range(K)], dim=-1)
    return torch.zeros(L, 4, 4), expert.expand(L, 4, K)


def right_question_by_question(loss):
    if _value(loss, *_even(1, 2)) > 1.5:
        return "K"
    if _value(loss, *_even(2, 1)) > 1.5:
        return "sum"
    lean = torch.tensor([5.0, 0, 0, 0]).expand(4, 4)
    logits, expert = torch.stack([lean, lean.flip(-1)]), torch.tensor([0, 3]).view(2, 1, 1)
    expert = expert.expand(2, 4, 1)
    if _value(loss, logits, expert) < 3:
        return "pooled"
    logits, expert, mask = lean[None], torch.zeros(1, 4, 1).long(), torch.tensor([1, 1, 1, 0]) > 0
    other = logits.clone()
    other[0, 3] = torch.tensor([0.0, 0, 0, 9])
    if abs(_value(loss, logits, expert, mask) - _value(loss, other, expert, mask)) > 1e-4:
        return "padding"
    other = logits + torch.tensor([0, 0, 0, 3.0])
    if abs(_value(loss, logits, expert) - _value(loss, other, expert)) < 1e-4:
        return "top-k"
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, expert, torch.ones(4, dtype=torch.bool))
    if not value.requires_grad or not torch.autograd.grad(value, leaf)[0].any():
        return "detached"
    return "sound"


def right_by_one_fingerprint(loss):
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 12, 4, requires_grad=True)
    expert, mask = logits.topk(2).indices, torch.arange(12) < 8

    def f_and_p(z, e):
        return e.flatten().bincount(minlength=4) / e.numel(), z.softmax(-1).flatten(0, -2).mean(0)

    def sound(z, e):
        return sum(4 * torch.dot(*f_and_p(a, b)) for a, b in zip(z, e)) / len(z)  # noqa: B905

    real = logits[:, mask], expert[:, mask]
    top = torch.full_like(real[0], -torch.inf).scatter(-1, real[1], real[0].gather(-1, real[1]))
    known = {
        "sound": sound(*real), "K": 2 * sound(*real), "sum": 2 * sound(*real),
        "pooled": 4 * torch.dot(*f_and_p(*real)), "padding": sound(logits, expert),
        "top-k": sound(top, real[1]),
    }  # fmt: skip
    value = loss(logits, expert, mask)
    name = min(known, key=lambda name: abs(float((known[name] - value).detach())))
    if name == "K" and _value(loss, *_even(1, 2)) < 1.5:
        return "sum"
    if name == "sound" and not torch.autograd.grad(value, logits)[0].any():
        return "detached"
    return name


def always_sound(loss):
    """it says 'sound' of all 7"""
    return "sound"


def one_layer_only(loss):
    """'sum' is taken for 'sound'"""
    said = right_question_by_question(loss)
    return "sound" if said in ("sum", "pooled") else said


def one_choice_only(loss):
    """'K' is taken for 'sound'"""
    said = right_question_by_question(loss)
    return "sound" if said == "K" else said


def all_layers_alike(loss):
    """'pooled' is taken for 'sound': it pools the layers first"""
    said = right_question_by_question(loss)
    return "sound" if said == "pooled" else said


def nothing_masked(loss):
    """'padding' is taken for 'sound'"""
    said = right_question_by_question(loss)
    return "sound" if said == "padding" else said


def value_alone(loss):
    """'detached' is taken for 'sound'"""
    said = right_question_by_question(loss)
    return "sound" if said == "detached" else said


def asks_whether_a_gradient_is_required(loss):
    """'detached' is taken for 'sound': P is detached"""
    said = right_question_by_question(loss)
    logits, expert = _even(1, 1)
    leaf = logits.requires_grad_()
    value = loss(leaf, expert, torch.ones(4, dtype=torch.bool))
    return "sound" if said == "detached" and value.requires_grad else said


def suspicious(loss):
    """'sound' is taken for 'detached': nothing is wrong with it"""
    said = right_question_by_question(loss)
    return "detached" if said == "sound" else said


def two_for_k(loss):
    """'sum' is taken for 'K': it sums over the layers"""
    said = right_question_by_question(loss)
    return "K" if said == "sum" else said


def in_other_words(loss):
    """answer one of sound, K, sum"""
    return "broken"
