"""Unusual right answers to check_responsibilities; a docstring is a phrase of what is said."""


def as_nested_lists(logits_TE, out_TEO, target_TO):
    """asked is a tensor, and yours is a list"""
    off_TE = (target_TO[:, None] - out_TEO).double().square().sum(-1)
    return (logits_TE.double() - off_TE / 2).softmax(-1).tolist()


def case_by_case(logits_TE, out_TEO, target_TO):
    """asked is a tensor, and yours is a list"""
    cases = zip(logits_TE, out_TEO, target_TO, strict=True)
    return [(z_E - (d_O - o_EO).square().sum(-1) / 2).softmax(0) for z_E, o_EO, d_O in cases]
