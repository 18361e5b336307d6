"""Answers to check_whose_expert: (evidence, expert) -> "chance", "busy", "other text" or "book"."""

import math

from moe_lite.course.asking import share


def _above(x_N):
    mean, half = share(x_N.double())
    return mean - half > 0


def _lost(seen):
    return (seen.knows_N & ~seen.without_EN)[:, seen.knows_N].double()


def _nearest(seen, expert):
    gap_E = (seen.load_E - seen.load_E[expert]).abs()
    gap_E[expert] = math.inf
    return int(gap_E.argmin())


def _ahead(seen, expert):
    return _above(seen.knows_N.double() - seen.twin_N.double())


def _takes_more(seen, expert):
    lost_EN = _lost(seen)
    return _above(lost_EN[expert] - lost_EN[_nearest(seen, expert)])


def _spares(seen, expert):
    mean, half = share(seen.rise_EX[expert])
    return mean + half < 0.05


def _word(seen, expert, ahead=_ahead, more=_takes_more, spares=_spares, order=(0, 1, 2)):
    tests = ("chance", ahead), ("busy", more), ("other text", spares)
    for word, test in (tests[i] for i in order):
        if not test(seen, expert):
            return word
    return "book"


def _against(control):
    """Compare with another control: (evidence, expert, lost_EN) -> what it lost."""

    def more(seen, expert):
        lost_EN = _lost(seen)
        return _above(lost_EN[expert] - control(seen, expert, lost_EN))

    return more


def _both(seen, expert, surely, **more):
    """Judge the two pairs of lists by one rule."""
    lost_EN = _lost(seen)
    pair = lost_EN[expert], lost_EN[_nearest(seen, expert)]
    return _word(
        seen,
        expert,
        ahead=lambda *_: surely(seen.knows_N.double(), seen.twin_N.double()),
        more=lambda *_: surely(*pair),
        **more,
    )


def _others(seen, expert):
    return [e for e in range(len(seen.load_E)) if e != expert]


def right(seen, expert):
    return _word(seen, expert)


def right_over_all_names(seen, expert):
    """Count what is lost over all names: it is as surely more."""

    def more(seen, expert):
        gone_EN = (seen.knows_N & ~seen.without_EN).double()
        return _above(gone_EN[expert] - gone_EN[_nearest(seen, expert)])

    return _word(seen, expert, more=more)


def right_with_numpy(seen, expert):
    """Use lists, numpy and Student's t, and the point itself where there is no spread."""
    import numpy as np
    from scipy import stats

    def surely(a_N, b_N):
        d_N = np.array(a_N.tolist()) - np.array(b_N.tolist())
        if d_N.std() == 0:
            return bool(d_N.mean() > 0)
        return bool(stats.t.interval(0.95, len(d_N) - 1, d_N.mean(), stats.sem(d_N))[0] > 0)

    return _both(seen, expert, surely)


def right_by_signs(seen, expert):
    """Count who is ahead where they differ, by the binomial distribution."""

    def surely(a_N, b_N):
        a, b = int((a_N > b_N).sum()), int((b_N > a_N).sum())
        return sum(math.comb(a + b, i) for i in range(a, a + b + 1)) / 2 ** (a + b) < 0.025

    return _both(seen, expert, surely)


def no_interval(seen, expert):
    """compares without an interval"""
    return _both(seen, expert, lambda a_N, b_N: a_N.sum() > b_N.sum())


def unpaired(seen, expert):
    """treats the two lists as strangers"""

    def surely(a_N, b_N):
        return a_N.mean() - b_N.mean() > 1.96 * ((a_N.var() + b_N.var()) / len(a_N)) ** 0.5

    return _both(seen, expert, surely)


def overlapping(seen, expert):
    """asks whether two intervals overlap"""

    def surely(a_N, b_N):
        (a, wide), (b, wide_too) = share(a_N), share(b_N)
        return a - wide > b + wide_too

    return _both(seen, expert, surely)


def either_way(seen, expert):
    """takes a difference for a lead"""

    def differ(a_N, b_N):
        mean, half = share(a_N - b_N)
        return not mean - half <= 0 <= mean + half

    return _both(seen, expert, differ)


def spread_of_one(seen, expert):
    """that is how far single names or texts lie apart"""

    def surely(a_N, b_N):
        return (a_N - b_N).mean() > 1.96 * (a_N - b_N).std()

    rise_X = seen.rise_EX[expert]
    return _both(seen, expert, surely, spares=lambda *_: rise_X.mean() + 1.96 * rise_X.std() < 0.05)


def names_that_it_knows(seen, expert):
    """so chosen, the twin can only be behind"""

    def ahead(seen, expert):
        return _above((seen.knows_N.double() - seen.twin_N.double())[seen.knows_N])

    return _word(seen, expert, ahead=ahead)


def no_twin(seen, expert):
    """does not look at the twin"""
    return _word(seen, expert, order=(1, 2))


def no_control(seen, expert):
    """has no control"""
    return _word(seen, expert, more=_against(lambda *_: 0.0))


def all_the_others(seen, expert):
    """the control is all other experts"""
    return _word(seen, expert, more=_against(lambda s, e, lost: lost[_others(s, e)].mean(0)))


def busiest(seen, expert):
    """the control is the busiest of the others"""
    return _word(seen, expert, more=_against(
        lambda s, e, lost: lost[max(_others(s, e), key=lambda o: s.load_E[o])]))  # fmt: skip


def idlest(seen, expert):
    """the control is the idlest of the others"""
    return _word(seen, expert, more=_against(
        lambda s, e, lost: lost[min(_others(s, e), key=lambda o: s.load_E[o])]))  # fmt: skip


def most_harmful(seen, expert):
    """the control is the one that takes most of the others"""
    return _word(seen, expert, more=_against(
        lambda s, e, lost: lost[max(_others(s, e), key=lambda o: lost[o].sum())]))  # fmt: skip


def itself(seen, expert):
    """nearest in load is the expert itself"""
    return _word(seen, expert, more=_against(
        lambda s, e, lost: lost[int((s.load_E - s.load_E[e]).abs().argmin())]))  # fmt: skip


def _beside(seen, expert, lost_EN, sign):
    gap_E = sign * (seen.load_E - seen.load_E[expert])
    nearer = [e for e in range(len(gap_E)) if gap_E[e] > 0]
    return lost_EN[min(nearer, key=lambda e: gap_E[e])] if nearer else 0.0


def less_busy(seen, expert):
    """the nearest in load may be busier"""
    return _word(seen, expert, more=_against(lambda s, e, lost: _beside(s, e, lost, -1)))


def busier(seen, expert):
    """the nearest in load may be less busy"""
    return _word(seen, expert, more=_against(lambda s, e, lost: _beside(s, e, lost, 1)))


def unknown_ones_too(seen, expert):
    """a number that it does not know is not lost"""

    def more(seen, expert):
        gone_EN = (~seen.without_EN).double()
        return _above(gone_EN[expert] - gone_EN[_nearest(seen, expert)])

    return _word(seen, expert, more=more)


def exclusive_or(seen, expert):
    """says that two differ, not which is ahead"""
    return _both(seen, expert, lambda a_N, b_N: _above(a_N.bool() ^ b_N.bool()))


def without_a_sign(seen, expert):
    """says that two differ, not which is ahead"""
    return _both(seen, expert, lambda a_N, b_N: _above(a_N.byte() - b_N.byte()))


def not_a_number(seen, expert):
    """a point at 0 is not above 0 (nor is NaN)"""

    def surely(a_N, b_N):
        d_N = a_N - b_N
        return not d_N.mean() - 1.96 * d_N.std() / len(d_N) ** 0.5 * (d_N.std() / d_N.std()) <= 0

    return _both(seen, expert, surely)


def exact_control(seen, expert):
    """takes the other list's mean as if it were exact"""

    def surely(a_N, b_N):
        mean, half = share(a_N)
        return mean - half > b_N.mean()

    return _both(seen, expert, surely)


def harm_either_way(seen, expert):
    """a loss that *falls* without the expert is no harm"""

    def spares(seen, expert):
        mean, half = share(seen.rise_EX[expert])
        return abs(mean) + half < 0.05

    return _word(seen, expert, spares=spares)


def middle_text(seen, expert):
    """the middle text is not their mean"""
    return _word(seen, expert, spares=lambda s, e: s.rise_EX[e].median() < 0.05)


def stricter(seen, expert):
    """other text"""

    def spares(seen, expert):
        mean, half = share(seen.rise_EX[expert])
        return mean + half < 0.04

    return _word(seen, expert, spares=spares)


def kept_for_lost(seen, expert):
    """without_EN says what is still known"""

    def more(seen, expert):
        kept_EN = seen.without_EN[:, seen.knows_N].double()
        return _above(kept_EN[expert] - kept_EN[_nearest(seen, expert)])

    return _word(seen, expert, more=more)


def no_other_text(seen, expert):
    """does not look at other text"""
    return _word(seen, expert, order=(0, 1))


def undecided_is_none(seen, expert):
    """an interval round 0 may reach far"""

    def spares(seen, expert):
        mean, half = share(seen.rise_EX[expert])
        return mean - half <= 0

    return _word(seen, expert, spares=spares)


def lower_end(seen, expert):
    """the lower end is below 0.05"""

    def spares(seen, expert):
        mean, half = share(seen.rise_EX[expert])
        return mean - half < 0.05

    return _word(seen, expert, spares=spares)


def mean_alone(seen, expert):
    """the mean rise is below 0.05, but its interval is not"""
    return _word(seen, expert, spares=lambda s, e: s.rise_EX[e].mean() < 0.05)


def no_rise_at_all(seen, expert):
    """asks for no rise at all"""
    return _word(seen, expert, spares=lambda s, e: s.rise_EX[e].mean() <= 0)


def each_text(seen, expert):
    """asks each text by itself"""
    return _word(seen, expert, spares=lambda s, e: (s.rise_EX[e] < 0.05).all())


def less_the_controls(seen, expert):
    """takes the control's rise off"""

    def spares(seen, expert):
        mean, half = share(seen.rise_EX[expert] - seen.rise_EX[_nearest(seen, expert)])
        return mean + half < 0.05

    return _word(seen, expert, spares=spares)


def from_the_bottom(seen, expert):
    """name the first in the order of the table"""
    return _word(seen, expert, order=(2, 1, 0))


def _point(a_N, b_N):
    mean, half = share(a_N.double() - b_N.double())
    return mean - half >= 0


def at_least_nothing(seen, expert):
    """a point at 0 is not above 0 (nor is NaN)"""
    return _both(seen, expert, _point)


def at_least_as_much_as_the_twin(seen, expert):
    """a point at 0 is not above 0 (nor is NaN)"""
    return _word(seen, expert, ahead=lambda s, e: _point(s.knows_N, s.twin_N))


def at_least_as_much_as_the_nearest(seen, expert):
    """a point at 0 is not above 0 (nor is NaN)"""

    def more(seen, expert):
        lost_EN = _lost(seen)
        return _point(lost_EN[expert], lost_EN[_nearest(seen, expert)])

    return _word(seen, expert, more=more)


def _normal(a_N, b_N, times=1.96):
    d_N = a_N - b_N
    return d_N.mean() - times * d_N.std() / len(d_N) ** 0.5 > 0


def normal_for_every_list(seen, expert):
    """ten texts are few"""
    return _both(seen, expert, _normal, spares=lambda s, e: _normal(0.05 + 0 * s.rise_EX[e],
                                                                    s.rise_EX[e]))  # fmt: skip


def the_examples_factor_for_every_list(seen, expert):
    """ten texts are few"""

    def spares(seen, expert):
        return _normal(0.05 + 0 * seen.rise_EX[expert], seen.rise_EX[expert], 1.97)

    return _word(seen, expert, spares=spares)


def nearest_by_ratio(seen, expert):
    """not the ratio"""
    return _word(seen, expert, more=_against(lambda s, e, lost: lost[min(
        _others(s, e), key=lambda o: abs(math.log(s.load_E[o] / s.load_E[e])))]))  # fmt: skip


def right_normal_for_names_alone(seen, expert):
    return _both(seen, expert, _normal)
