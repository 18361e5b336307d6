"""Answers to check_first_expert: a wrong one's docstring is a phrase of its verdict.

Also true of all: always_zero.
Also true of the_last: the_least.
Also true of the_least: the_last.
Also true of by_place: pair_for_token.
"""


def pair_for_token(routing, token):
    """expert_N has a row for each pair"""
    return routing.expert_N[token].item()


def place_in_the_list(routing, token):
    """the place of the best pair"""
    return routing.gate_N[routing.token_N == token].argmax().item()


def the_gate(routing, token):
    """this is the gate"""
    return routing.gate_N[routing.token_N == token].max().item()


def the_last(routing, token):
    """the pair that stands last"""
    return routing.expert_N[routing.token_N == token][-1].item()


def the_least(routing, token):
    """the expert with the least weight"""
    mine = routing.token_N == token
    return routing.expert_N[mine][routing.gate_N[mine].argmin()].item()


def always_zero(routing, token):
    """not the token's first expert"""
    return -1


def right_by_mask(routing, token):
    mine = routing.token_N == token
    return routing.expert_N[mine][routing.gate_N[mine].argmax()].item()


def right_by_matrix(routing, token):
    return routing.gates_TE()[token].argmax()


def right_by_loop(routing, token):
    pairs = zip(routing.token_N, routing.expert_N, routing.gate_N, strict=True)
    return max((gate, expert) for t, expert, gate in pairs if t == token)[1]


def by_place(routing, token):
    """the pair that stands first was chosen first"""
    return int(routing.expert_N[token * routing.per_token])


def belief(routing, token):
    """what the router's scores favour"""
    return routing.logits_TE[token].argmax()


def largest_number(routing, token):
    """the largest number of an expert"""
    return routing.expert_N[routing.token_N == token].max()
