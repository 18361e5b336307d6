"""Unusual right answers to check_needs; a docstring is a phrase of what is said of them."""


def as_a_list(known, without):
    """asked is a tensor, and yours is a list"""
    return [
        sum(bool(k) and not w for w in column)
        for k, column in zip(known, without.T.tolist(), strict=True)
    ]


def as_an_array(known, without):
    """asked is a tensor, and yours is"""
    return (known & ~without).sum(0).numpy()
