"""Answers to check_causal_groups: a wrong one's docstring is what its verdict must say.

Also true of shape_without_transposing: diagonals.
Also true of the_whole_batch: each_sequence, diagonals.
Also true of positions_for_tokens: alone.
"""

import torch


def each_sequence(num_sequences, seq_len):
    """two tokens of one sequence in a group"""
    return torch.arange(num_sequences * seq_len).view(num_sequences, seq_len)


def shape_without_transposing(num_sequences, seq_len):
    """two tokens of one sequence in a group"""
    return torch.arange(num_sequences * seq_len).view(seq_len, num_sequences)


def the_whole_batch(num_sequences, seq_len):
    """the whole batch in one group"""
    return torch.arange(num_sequences * seq_len)[None]


def alone(num_sequences, seq_len):
    """a token alone competes with nobody"""
    return torch.arange(num_sequences * seq_len)[:, None]


def diagonals(num_sequences, seq_len):
    """in two layers a later token comes back"""
    b = torch.arange(num_sequences)
    return torch.stack([b * seq_len + (s + b) % seq_len for s in range(seq_len)])


def positions_for_tokens(num_sequences, seq_len):
    """every token belongs to exactly one group"""
    return torch.arange(seq_len)[:, None].expand(seq_len, num_sequences)


def a_flat_list(num_sequences, seq_len):
    """return one tensor with a row of tokens"""
    return right_by_transposing(num_sequences, seq_len).flatten()


def right_by_transposing(num_sequences, seq_len):
    return torch.arange(num_sequences * seq_len).view(num_sequences, seq_len).T


def right_by_counting(num_sequences, seq_len):
    rows = [[b * seq_len + s for b in reversed(range(num_sequences))] for s in range(seq_len)]
    return torch.tensor(rows)
