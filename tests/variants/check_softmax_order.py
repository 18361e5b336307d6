"""Unusual right answers to check_softmax_order; a docstring is a phrase of what is said of them."""


def _right(logits_TE, k):
    gate_TK, expert_TK = logits_TE.topk(k)
    gate_TK = gate_TK.softmax(-1)
    return gate_TK, expert_TK


def as_floats(logits_TE, k):
    """asked are whole ones, int64; yours are float32"""
    gate_TK, expert_TK = _right(logits_TE, k)
    return gate_TK, expert_TK.float()


def as_bytes(logits_TE, k):
    """asked are whole ones, int64; yours are uint8"""
    gate_TK, expert_TK = _right(logits_TE, k)
    return gate_TK, expert_TK.byte()


def as_an_array(logits_TE, k):
    """asked is a tensor, and yours is a numpy ndarray"""
    gate_TK, expert_TK = _right(logits_TE, k)
    return gate_TK, expert_TK.numpy()


def as_doubles(logits_TE, k):
    gate_TK, expert_TK = _right(logits_TE.double(), k)
    return gate_TK, expert_TK
