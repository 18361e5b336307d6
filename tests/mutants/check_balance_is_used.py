"""Answers to check_balance_is_used: each wrong one says in its docstring what it must be told."""

import torch


def _uneven():
    return torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.5, 0.0]], requires_grad=True)


def _gradient(loss, logits_TE, coef=1.0):
    value = loss(torch.zeros(()), logits_TE, coef)
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value, logits_TE, allow_unused=True)[0]


def always(loss):
    """it says True of all 8"""
    return True


def never(loss):
    """a sound loss is called broken"""
    return False


def by_value(loss):
    """the value moves, but there is no gradient"""
    lm_loss, logits_TE = torch.zeros(()), _uneven()
    return bool((loss(lm_loss, logits_TE, 1.0) - loss(lm_loss, logits_TE, 0.0)).abs() > 1e-6)


def by_value_above_zero(loss):
    """a constant moves the value, never the gradient"""
    logits_TE = torch.tensor([[0.0, 0.1], [0.1, 0.0]], requires_grad=True)
    value = loss(torch.zeros(()), logits_TE, 1.0)
    return bool(value > 0.5 and value.requires_grad)


def by_requiring_grad(loss):
    """a gradient that is there but 0 teaches nothing"""
    return loss(torch.zeros(()), _uneven(), 1.0).requires_grad


def with_a_learning_lm_loss(loss):
    """it says True of all 8"""
    lm_loss = torch.zeros((), requires_grad=True)
    return loss(lm_loss, _uneven(), 1.0).requires_grad


def no_gradient_is_fine(loss):
    """the balance is never added"""
    grad = _gradient(loss, _uneven())
    return grad is None or bool((grad != 0).any())


def with_an_even_load(loss):
    """where the load is even the balance has no slope"""
    grad = _gradient(loss, torch.eye(3, requires_grad=True))
    return grad is not None and bool(grad.abs().sum() > 1e-6)


def with_a_coefficient_of_zero(loss):
    """and a coef above 0"""
    grad = _gradient(loss, _uneven(), coef=0.0)
    return grad is not None and bool((grad != 0).any())


def backward_without_looking(loss):
    """balance_is_used raised RuntimeError"""
    logits_TE = _uneven()
    loss(torch.zeros(()), logits_TE, 1.0).backward()
    return logits_TE.grad is not None and bool(logits_TE.grad.any())


def gives_the_gradient(loss):
    """return True or False"""
    return _gradient(loss, _uneven())


def right_by_gradient(loss):
    grad = _gradient(loss, _uneven())
    return grad is not None and bool((grad != 0).any())


def right_by_a_step(loss):
    """See whether a step downhill on the balance alone moves the logits."""
    logits_TE = torch.nn.Parameter(_uneven().detach())
    lm_loss = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([logits_TE], lr=1.0)
    before = logits_TE.detach().clone()
    loss(lm_loss, logits_TE, 1.0).backward()
    optimizer.step()
    return not torch.equal(before, logits_TE)


def by_the_sum_of_slopes(loss):
    """for a token's add up to 0"""
    for seed in range(20):  # by chance not one of the sums may be off by rounding
        logits_TE = torch.randn(64, 5, generator=torch.Generator().manual_seed(seed)).exp()
        grad = _gradient(loss, logits_TE.requires_grad_())
        if grad is not None and grad.sum() != 0:
            return True
    return False


def by_the_sums_of_a_token(loss):
    """for a token's add up to 0"""
    grad = _gradient(loss, torch.randn(30, 7, dtype=torch.float64).requires_grad_())
    return grad is not None and bool(grad.sum(dim=1).any())


def right_by_functional_jacobian(loss):
    def value(logits_TE):
        return loss(torch.zeros(()), logits_TE, 1.0)

    return bool(torch.autograd.functional.jacobian(value, _uneven().detach()).any())


def right_by_func(loss):
    def value(logits_TE):
        return loss(torch.zeros(()), logits_TE, 1.0)

    return bool(torch.func.jacrev(value)(_uneven().detach()).any())
