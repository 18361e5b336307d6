"""Unusual right answers to check_causal_groups; a docstring is a phrase of what is said."""


def pairs_at_one_position(num_sequences, seq_len):
    groups = []
    for s in range(seq_len):
        column = [b * seq_len + s for b in range(num_sequences)]
        half = num_sequences // 2 if num_sequences > 3 else num_sequences
        groups += [column[:half], column[half:]] if half < num_sequences else [column]
    return groups
