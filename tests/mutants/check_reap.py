"""Answers to check_reap: a wrong one's docstring is what its verdict must say."""

import numpy as np
import torch


def _mean(value_N, expert_N, E):
    total = torch.zeros(E).index_add(0, expert_N, value_N)
    return total / expert_N.bincount(minlength=E).clamp(min=1)


def sums(expert_N, gate_N, answer_ND, E):
    """that is a sum"""
    return torch.zeros(E).index_add(0, expert_N, gate_N * answer_ND.norm(dim=-1))


def over_all_pairs(expert_N, gate_N, answer_ND, E):
    """divide by the expert's own pairs"""
    return sums(expert_N, gate_N, answer_ND, E) / len(expert_N)


def use(expert_N, gate_N, answer_ND, E):
    """this is use"""
    return expert_N.bincount(minlength=E) / len(expert_N)


def no_gates(expert_N, gate_N, answer_ND, E):
    """the gates are left out"""
    return _mean(answer_ND.norm(dim=-1), expert_N, E)


def squared(expert_N, gate_N, answer_ND, E):
    """this is its square"""
    return _mean(gate_N * answer_ND.square().sum(-1), expert_N, E)


def vectors_first(expert_N, gate_N, answer_ND, E):
    """answers that point apart cancel"""
    rows = [(gate_N[expert_N == e, None] * answer_ND[expert_N == e]) for e in range(E)]
    return torch.stack([r.mean(0).norm() if len(r) else torch.tensor(0.0) for r in rows])


def product_of_means(expert_N, gate_N, answer_ND, E):
    """a mean of products is not the product of two means"""
    return _mean(gate_N, expert_N, E) * _mean(answer_ND.norm(dim=-1), expert_N, E)


def nan_for_nobody(expert_N, gate_N, answer_ND, E):
    """a NaN or an infinity"""
    value_N = gate_N * answer_ND.norm(dim=-1)
    return torch.stack([value_N[expert_N == e].mean() for e in range(E)])


def right_by_scatter(expert_N, gate_N, answer_ND, E):
    return _mean(gate_N * answer_ND.norm(dim=-1), expert_N, E)


def right_by_one_hot(expert_N, gate_N, answer_ND, E):
    mine_NE = torch.nn.functional.one_hot(expert_N, E).float()
    return (gate_N * answer_ND.norm(dim=-1)) @ mine_NE / mine_NE.sum(0).clamp(min=1)


def right_with_numpy(expert_N, gate_N, answer_ND, E):
    value = gate_N.numpy() * np.linalg.norm(answer_ND.numpy(), axis=1)
    mine = [value[expert_N.numpy() == e] for e in range(E)]
    return [float(v.mean()) if len(v) else 0.0 for v in mine]
