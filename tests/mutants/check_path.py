"""Answers to check_path: a wrong one's docstring is a phrase of its verdict."""


def first_layer(trace, token):
    """this is the first layer alone"""
    return [right_by_mask(trace, token)[0]]


def one_number(trace, token):
    """this is the first layer alone"""
    return right_by_mask(trace, token)[0]


def backwards(trace, token):
    """the layers are in the wrong order"""
    return right_by_mask(trace, token)[::-1]


def pair_for_token(trace, token):
    """expert_N has a row for each pair"""
    return [r.expert_N[token].item() for r in trace.layers]


def second_choice(trace, token):
    """these are the second choices"""
    return [r.expert_N[r.token_N == token][1].item() for r in trace.layers]


def all_choices(trace, token):
    """every choice is listed"""
    return [e for r in trace.layers for e in r.expert_N[r.token_N == token].tolist()]


def never_moves_on(trace, token):
    """the first layer's choice is repeated"""
    return [right_by_mask(trace, token)[0] for _ in trace.layers]


def right_by_mask(trace, token):
    mine = [r.token_N == token for r in trace.layers]
    best = [int(r.gate_N[m].argmax()) for r, m in zip(trace.layers, mine, strict=True)]
    return [int(r.expert_N[m][b]) for r, m, b in zip(trace.layers, mine, best, strict=True)]


def what_stands_first(trace, token):
    """these pairs stand first in the lists"""
    return [r.expert_N[r.token_N == token][0].item() for r in trace.layers]


def right_by_gates(trace, token):
    return tuple(layer.gates_TE()[token].argmax() for layer in trace.layers)


def belief(trace, token):
    """what the router's scores favour"""
    return [r.probs_TE[token].argmax() for r in trace.layers]


def sorted_by_number(trace, token):
    """not the numbers of the experts"""
    return sorted(right_by_mask(trace, token))
