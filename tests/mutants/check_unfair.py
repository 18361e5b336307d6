"""Answers to check_unfair: (sparse, dense) -> a word."""


def right_as_a_chain(sparse, dense):
    if sparse.per_token * sparse.width != dense.per_token * dense.width:
        return "active"
    if sparse.steps * sparse.batch != dense.steps * dense.batch:
        return "data"
    return "optimiser" if sparse.optimiser != dense.optimiser else "fair"


def right_as_a_table(sparse, dense):
    a, b = ((x.per_token * x.width, x.steps * x.batch, x.optimiser) for x in (sparse, dense))
    words = ("active", "data", "optimiser")
    return next((w for w, x, y in zip(words, a, b, strict=True) if x != y), "fair")


def _ask(sparse, dense, active=None, data=None, optimiser=None):
    active = active or (lambda x: x.per_token * x.width)
    data = data or (lambda x: x.steps * x.batch)
    optimiser = optimiser or (lambda x: x.optimiser)
    if active(sparse) != active(dense):
        return "active"
    if data(sparse) != data(dense):
        return "data"
    return "fair" if optimiser(sparse) == optimiser(dense) else "optimiser"


def width_of_one(sparse, dense):
    """a token uses several"""
    return _ask(sparse, dense, active=lambda x: x.width)


def totals(sparse, dense):
    """compares total sizes"""
    return _ask(sparse, dense, active=lambda x: x.experts * x.width)


def steps_alone(sparse, dense):
    """a step with twice the batch is twice the data"""
    return _ask(sparse, dense, data=lambda x: x.steps)


def batches_alone(sparse, dense):
    """compares the batches"""
    return _ask(sparse, dense, data=lambda x: x.batch)


def any_optimiser(sparse, dense):
    """does not look at the optimiser"""
    return _ask(sparse, dense, optimiser=lambda x: 0)


def any_data(sparse, dense):
    """does not look at the data"""
    return _ask(sparse, dense, data=lambda x: 0)


def any_arithmetic(sparse, dense):
    """does not look at the arithmetic of a token"""
    return _ask(sparse, dense, active=lambda x: 0)


def all_is_fair(sparse, dense):
    """it says 'fair' of all 11"""
    return "fair"


def another_word(sparse, dense):
    """answer one of active, data, optimiser, fair"""
    return "rigged"


def steps_and_batches(sparse, dense):
    """500 steps of 512 are as many examples as 250 of 1,024"""
    return _ask(sparse, dense, data=lambda x: (x.steps, x.batch))


def choices_and_widths(sparse, dense):
    """two experts of 48 units do the work of one of 96"""
    return _ask(sparse, dense, active=lambda x: (x.per_token, x.width))


def each_by_itself(sparse, dense):
    """two experts of 48 units do the work of one of 96"""
    return _ask(sparse, dense, lambda x: (x.per_token, x.width), lambda x: (x.steps, x.batch))
