"""Answers to check_block_counts: a wrong one's docstring is what its verdict must say."""

import torch
import torch.nn.functional as F


def one_for_all(expert_N, E, block):
    """one histogram of all pairs: many programs would write into it at once"""
    return expert_N.bincount(minlength=E)


def whole_blocks_only(expert_N, E, block):
    """the last block is shorter, and counts too"""
    whole = expert_N[: len(expert_N) // block * block].view(-1, block)
    return F.one_hot(whole, E).sum(1)


def padded_with_expert_zero(expert_N, E, block):
    """zero is an expert: those are no pairs"""
    padded = F.pad(expert_N, (0, -len(expert_N) % block)).view(-1, block)
    return F.one_hot(padded, E).sum(1)


def running(expert_N, E, block):
    """the running sum comes later"""
    return right_by_split(expert_N, E, block).cumsum(0)


def transposed(expert_N, E, block):
    """yours is the transpose"""
    return right_by_split(expert_N, E, block).T


def dealt(expert_N, E, block):
    """these were dealt in turn"""
    blocks = -(-len(expert_N) // block)
    return torch.stack([expert_N[b::blocks].bincount(minlength=E) for b in range(blocks)])


def without_the_empty(expert_N, E, block):
    """an expert that nobody chose has a column too"""
    return right_by_split(expert_N, int(expert_N.max()) + 1, block)


def right_by_split(expert_N, E, block):
    return torch.stack([part.bincount(minlength=E) for part in expert_N.split(block)])


def right_by_one_hot(expert_N, num_experts, block):
    short = -len(expert_N) % block
    padded = F.pad(expert_N, (0, short), value=num_experts).view(-1, block)
    return F.one_hot(padded, num_experts + 1).sum(1)[:, :num_experts]


def right_by_loops(expert_N, E, block):
    counts = [[0] * E for _ in range(0, len(expert_N), block)]
    for n, e in enumerate(expert_N.tolist()):
        counts[n // block][e] += 1
    return counts


def chunk_for_split(expert_N, E, block):
    """chunk(n) makes n pieces"""
    return torch.stack([part.bincount(minlength=E) for part in expert_N.chunk(block)])


def lost_updates(expert_N, E, block):
    """at most one is counted"""
    out_BE = torch.zeros(-(-len(expert_N) // block), E, dtype=torch.long)
    out_BE[torch.arange(len(expert_N)) // block, expert_N] += 1
    return out_BE
