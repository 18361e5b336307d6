"""Answers to check_leaf_priors: each wrong one says in its docstring what its verdict must say."""

import torch


def _walk(left_TG, left_first=True):
    level = torch.ones_like(left_TG[:, :1])
    first = 0
    while first < left_TG.shape[1]:
        gate = left_TG[:, first : 2 * first + 1]
        pair = (gate, 1 - gate) if left_first else (1 - gate, gate)
        level = (level[..., None] * torch.stack(pair, -1)).flatten(1)
        first = 2 * first + 1
    return level


def swapped(left_TG):
    """left and right are swapped"""
    return _walk(left_TG, left_first=False)


def without_the_root(left_TG):
    """the root is missing"""
    from_left = torch.cat([torch.ones_like(left_TG[:, :1]), left_TG[:, 1:]], 1)
    from_right = torch.cat([torch.zeros_like(left_TG[:, :1]), left_TG[:, 1:]], 1)
    return _walk(from_left) + _walk(from_right)


def averaged(left_TG):
    """multiply"""
    G = left_TG.shape[1]
    out = []
    for leaf in range(G, 2 * G + 1):
        way = []
        while leaf:
            up = (leaf - 1) // 2
            way.append(left_TG[:, up] if leaf % 2 else 1 - left_TG[:, up])
            leaf = up
        out.append(sum(way) / len(way))
    return torch.stack(out, -1)


def depth_first(left_TG):
    """level by level"""

    def below(node, size):  # the gates of a subtree stand together
        if size == 0:
            return torch.ones_like(left_TG[:, :1])
        left = left_TG[:, node : node + 1]
        half = (size - 1) // 2
        return torch.cat(
            [left * below(node + 1, half), (1 - left) * below(node + 1 + half, half)], 1
        )

    return below(0, left_TG.shape[1])


def one_for_each_gate(left_TG):
    """these are the gates"""
    return left_TG


def always_left(left_TG):
    """do not add up to 1"""
    return torch.cat([left_TG, left_TG[:, :1]], 1) ** 2


def right_by_levels(left_TG):
    return _walk(left_TG)


def right_from_the_leaves(left_TG):
    G = left_TG.shape[1]
    out_TE = torch.ones(len(left_TG), G + 1, dtype=left_TG.dtype)
    for leaf in range(G + 1):
        node = leaf + G
        while node > 0:
            parent, is_left = (node - 1) // 2, node % 2 == 1
            out_TE[:, leaf] *= left_TG[:, parent] if is_left else 1 - left_TG[:, parent]
            node = parent
    return out_TE


def right_recursively(left_TG):
    def below(node):
        if node >= left_TG.shape[1]:
            return torch.ones_like(left_TG[:, :1])
        left = left_TG[:, node, None]
        return torch.cat([left * below(2 * node + 1), (1 - left) * below(2 * node + 2)], dim=1)

    return below(0)
