"""Answers to check_over_batches.

Also true of pooled_like_the_published_mixtral: layers_for_batches.
Also true of layers_for_batches: micro, pooled_like_the_published_mixtral.
"""


def right_means_then_product(f, P):
    return f.shape[-1] * (f.mean(1) * P.mean(1)).sum(-1).mean()


def right_with_the_counts_alone_shared(f, P):
    """Only f is made known to all; then every micro-batch multiplies it with its own P."""
    return f.shape[-1] * (f.mean(1, keepdim=True) * P).sum(-1).mean()


def right_as_a_loop(f, P):
    L, G, E = f.shape
    return sum(E * (f[n].sum(0) @ P[n].sum(0)) / G**2 for n in range(L)) / L


def micro(f, P):
    """every single micro-batch has to be balanced"""
    return f.shape[-1] * (f * P).sum(-1).mean()


def pooled_like_the_published_mixtral(f, P):
    """one layer's crowd hides the other's gap"""
    return f.shape[-1] * (f.mean((0, 1)) * P.mean((0, 1))).sum()


def layers_for_batches(f, P):
    """layers averaged, not micro-batches"""
    return f.shape[-1] * (f.mean(0) * P.mean(0)).sum(-1).mean()


def sum_of_layers(f, P):
    """a sum over the layers: with twice as many it would push twice as hard"""
    return f.shape[-1] * (f.mean(1) * P.mean(1)).sum()


def no_factor(f, P):
    """the factor E is missing"""
    return (f.mean(1) * P.mean(1)).sum(-1).mean()


def sum_of_batches(f, P):
    """a sum over the micro-batches"""
    return f.shape[-1] * (f.mean(1) * P.sum(1)).sum(-1).mean()


def one_for_each_layer(f, P):
    """return one number"""
    return f.shape[-1] * (f.mean(1) * P.mean(1)).sum(-1).repeat(2)
