"""Answers to check_experts_worth: a wrong one's docstring is what its verdict must say."""

import numpy as np
import torch


def of_the_chapter(gate_TK):
    """gates need not add up to 1"""
    return 1 / gate_TK.square().sum(1)


def the_chosen(gate_TK):
    """so many experts are chosen"""
    return (gate_TK > 0).sum(1).float()


def by_entropy(gate_TK):
    """the entropy makes a number of experts too"""
    share_TK = gate_TK / gate_TK.sum(1, keepdim=True)
    return (-torch.special.xlogy(share_TK, share_TK).sum(1)).exp()


def upside_down(gate_TK):
    """upside down"""
    return gate_TK.square().sum(1) / gate_TK.sum(1).square()


def by_the_largest(gate_TK):
    """than the largest gate"""
    return gate_TK.sum(1) / gate_TK.amax(1)


def the_mean(gate_TK):
    """a number for each token"""
    return (gate_TK.sum(1).square() / gate_TK.square().sum(1)).mean()


def right_by_norms(gate_TK):
    return (gate_TK.norm(p=1, dim=1) / gate_TK.norm(dim=1)).square()


def right_divided_first(gate_TK):
    return 1 / (gate_TK / gate_TK.sum(1, keepdim=True)).square().sum(1)


def right_with_numpy(gate_TK):
    gates = np.asarray(gate_TK, dtype=float)
    return gates.sum(1) ** 2 / (gates**2).sum(1)
