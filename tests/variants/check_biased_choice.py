"""Unusual right answers to check_biased_choice; a docstring is a phrase of what is said of them."""


def as_floats(logits_TE, bias_E, k):
    """asked are whole ones, int64; yours are float32"""
    score_TE = logits_TE.sigmoid()
    expert_TK = (score_TE + bias_E).topk(k).indices
    gate_TK = score_TE.gather(-1, expert_TK)
    return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK.float()
