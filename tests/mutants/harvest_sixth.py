"""Wrong answers to chapters 09 to 18 by a reader who had not seen the checks.

Each is (what a learner did, a phrase of what the check says, the answer).
"""

import itertools
import math
import runpy
import statistics
from pathlib import Path

import torch

from moe_lite.course import cost

# --- chapter 16 ----------------------------------------------------------------------------------


def _last_pair(expert_N, gate_N, answer_ND, E):
    last_E = torch.zeros(E)
    for e, gate, answer_D in zip(expert_N, gate_N, answer_ND, strict=True):
        last_E[e] = gate * answer_D.norm()  # what s[expert_N] += ... leaves
    return last_E / expert_N.bincount(minlength=E).clamp(min=1)


def _by_gates(expert_N, gate_N, answer_ND, E):
    sums = [
        torch.zeros(E).index_add(0, expert_N, x) for x in (gate_N * answer_ND.norm(dim=1), gate_N)
    ]
    return sums[0] / sums[1].clamp(min=1e-9)


check_reap = [
    ("adds with repeated indices", "keeps one pair of each expert", _last_pair),
    ("weighted by the gates", "not by the sum of their gates", _by_gates),
    ("the norm of all answers", "reap: ",
     lambda e, g, y, E: torch.zeros(E).index_add(0, e, g * y.norm())
     / e.bincount(minlength=E).clamp(min=1)),
    ("experts that nobody came to left out", "of shape (3,)",
     lambda e, g, y, E: torch.stack([(g * y.norm(dim=1))[e == k].mean() for k in e.unique()])),
]  # fmt: skip


def _stay(stays_E, gone, router_ED):
    return router_ED[stays_E], (stays_E.cumsum(0) - 1).where(stays_E, gone)


check_prune_router = [
    ("gone is 0", "an expert that is gone has no number, -1",
     lambda w, s, n: _stay(s.argsort().argsort() >= n, 0, w)),
    ("gone is one past the last", "an expert that is gone has no number, -1",
     lambda w, s, n: _stay(s.argsort().argsort() >= n, len(s) - n, w)),
    ("argsort taken for ranks", "argsort gives the expert at each place",
     lambda w, s, n: _stay(s.argsort() >= n, -1, w)),
    ("all at or below the mean", "prune_router: ", lambda w, s, n: _stay(s > s.mean(), -1, w)),
]  # fmt: skip


def _greedy(like):
    def count(w_EFD):
        return sum(not any(like(x, y) for y in w_EFD[:e]) for e, x in enumerate(w_EFD))

    return count


check_distinct_copies = [
    ("rounded to six digits", "rounding parts two neighbours",
     lambda w: len({tuple((x * 1e6).round().long().flatten().tolist()) for x in w})),
    ("by the length of the difference", "a norm adds up all their differences",
     _greedy(lambda x, y: (x - y).norm() <= 1e-6)),
    ("allclose as it is", "allclose allows 1e-5 of a weight's size", _greedy(torch.allclose)),
    ("no absolute value", "up or down", _greedy(lambda x, y: (x - y).max() <= 1e-6)),
    ("the mean difference", "one weight that differs by more than 1e-6",
     _greedy(lambda x, y: (x - y).abs().mean() <= 1e-6)),
    ("within a thousandth", "one weight that differs by more than 1e-6",
     _greedy(lambda x, y: (x - y).abs().max() <= 1e-3)),
    ("with the one before", "compared with the one before it alone",
     lambda w: 1 + sum(bool((x - y).abs().max() > 1e-6) for x, y in itertools.pairwise(w))),
    ("with itself too", "an expert is always like itself",
     lambda w: sum(not any((x - y).abs().max() <= 1e-6 for y in w) for x in w)),
    ("as many as are independent", "distinct_copies: ",
     lambda w: int(torch.linalg.matrix_rank(w.flatten(1)))),
]  # fmt: skip


# --- chapter 15 ----------------------------------------------------------------------------------


def _in_use(E, K, T):
    return E * (1 - (1 - K / E) ** T)


def _step(config, batch, share=None, tied=True):
    count, E, K = (
        cost.count_parameters(config),
        config.num_local_experts,
        config.num_experts_per_tok,
    )
    share = _in_use(E, K, batch) / E if share is None else share(E, K, batch)
    common = count.total - count.experts
    common -= 0 if tied and config.tie_word_embeddings else count.embedding
    return 2 * common, 2 * share * count.experts


check_decode_bytes = [
    ("the common part for each text", "what every token uses is read once",
     lambda c, b: b * _step(c, b)[0] + _step(c, b)[1]),
]  # fmt: skip


def _one_by_one(share, last=False):
    def replicas(load_E, spare):
        copies_E, experts = [1] * len(load_E), range(len(load_E))
        for _ in range(spare):
            most = max(reversed(experts) if last else experts,
                       key=lambda e: share(load_E[e], copies_E[e]))  # fmt: skip
            copies_E[most] += 1
        return copies_E

    return replicas


def _halves_in_place(load_E, spare):
    copies_E = [1] * len(load_E)
    for _ in range(spare):
        most = load_E.index(max(load_E))
        load_E[most] /= 2
        copies_E[most] += 1
    return copies_E


check_replicas = [
    ("the last of equals", "of equals the first", _one_by_one(lambda load, n: load / n, last=True)),
    ("whole loads", "divide without rounding", _one_by_one(lambda load, n: load // n)),
    ("halves written into the loads", "changes its input in place", _halves_in_place),
    ("loads sorted first", "changes its input in place",
     lambda loads, spare: (loads.sort(), _one_by_one(lambda load, n: load / n)(loads, spare))[1]),
]  # fmt: skip


def _kept(g, p):
    return sum(p**i for i in range(g + 1))


check_reads_per_token = [
    ("chosen with repeats", "a token's K experts differ",
     lambda E, K, g, p: E * (1 - (1 - 1 / E) ** (K * (g + 1))) / _kept(g, p)),
    ("the chance of a wrong guess", "a guess is right, not wrong",
     lambda E, K, g, p: _in_use(E, K, g + 1) / _kept(g, 1 - p)),
    ("guesses without end", "the powers of p end at g",
     lambda E, K, g, p: _in_use(E, K, g + 1) * (1 - p)),
    ("what is kept", "that is how many tokens a check gives", lambda E, K, g, p: _kept(g, p)),
    ("the mean of quotients", "divide the two expectations",
     lambda E, K, g, p: _in_use(E, K, g + 1)
     * (sum(p**i * (1 - p) / (i + 1) for i in range(g)) + p**g / (g + 1))),
]  # fmt: skip


# --- chapter 14 ----------------------------------------------------------------------------------


def _rows(to_RTK, R):
    return torch.stack([to_TK.flatten().bincount(minlength=R) for to_TK in to_RTK])


check_traffic = [
    ("no minlength", "of shape (2, 1)", lambda e, E: _rows(e // (E // len(e)), 0)),
]  # fmt: skip

check_rank_weights = [
    ("one for a rank without a token", "its weight is 0",
     lambda t: torch.where(t > 0, len(t) * t / t.sum(), 1.0)),
]  # fmt: skip


def _leaving(take=None, lost=-torch.inf, change=lambda s: s, home=0.0, count=None):
    def copies_leaving(score_TE, home_T, nodes, top_k, limit):
        score_TE = change(score_TE)
        (T, E), node_TNE = score_TE.shape, score_TE.view(len(score_TE), nodes, -1)
        best = min(take(top_k, limit) if take else top_k // limit, E // nodes)
        worth_TN = node_TNE.topk(best).values.sum(-1)
        worth_TN = worth_TN + home * torch.nn.functional.one_hot(home_T, nodes)
        kept_TN = torch.zeros(T, nodes).scatter(1, worth_TN.topk(limit).indices, 1) > 0
        chosen_TK = node_TNE.masked_fill(~kept_TN[..., None], lost).flatten(1).topk(top_k).indices
        there_TN = torch.zeros(T, nodes).scatter(1, chosen_TK // (E // nodes), 1)
        return count(there_TN) if count else there_TN.scatter(1, home_T[:, None], 0).sum(1)

    return copies_leaving


check_copies_leaving = [
    ("nodes by their best two", "not by two", _leaving(lambda k, limit: 2)),
    ("nodes by their best k", "not by k", _leaving(lambda k, limit: k)),
    ("nodes by their best limit", "not by limit of them", _leaving(lambda k, limit: limit)),
    ("divided and rounded up", "not by k / limit rounded up",
     _leaving(lambda k, limit: -(-k // limit))),
    ("masked with zeros", "0 keeps no expert out", _leaving(lost=0.0)),
    ("absolute values", "makes the worst the best", _leaving(change=torch.abs)),
    ("softmax first", "makes other sums", _leaving(change=lambda s: s.softmax(1))),
    ("the own node always kept", "not kept whatever it is worth", _leaving(home=1e3)),
    ("all nodes minus one", "only where the own node is among them",
     _leaving(count=lambda there_TN: there_TN.sum(1) - 1)),
]  # fmt: skip


# --- chapter 18 ----------------------------------------------------------------------------------

check_say_it_three_ways = [
    ("differences without a sign", "both percents are below zero",
     lambda slow, fast: (slow / fast, abs(100 * (slow / fast - 1)), abs(100 * (1 - fast / slow)))),
    ("whole numbers", "rounded to whole numbers",
     lambda slow, fast: (round(slow / fast), round(100 * (slow / fast - 1)),
                         round(100 * (1 - fast / slow)))),
    ("one of the three", "not one number", lambda slow, fast: slow / fast),
]  # fmt: skip


def _in(value, least, most):
    return least <= value <= most


check_judge = [
    ("an interval that ends at the border", "the ends of the range belong to it",
     lambda low, high, least, most: "does not hold" if high <= least or low >= most
     else "holds" if least <= low and high <= most else "undecided"),
    ("zero decides nothing", "'holds' is taken for 'undecided'",
     lambda low, high, least, most: "undecided" if low <= 0 <= high else "holds"
     if least <= low and high <= most else "does not hold" if high < least or low > most
     else "undecided"),
]  # fmt: skip

check_passed_by_chance = [
    ("without the upper end", "the ends of the range belong to it",
     lambda null, least, most: sum(least <= x < most for x in null) / len(null)),
    ("a set of draws", "drawn twice counts twice",
     lambda null, least, most: len({x for x in null if _in(x, least, most)}) / len(set(null))),
    ("absolute values", "a draw below zero",
     lambda null, least, most: sum(_in(abs(x), least, most) for x in null) / len(null)),
    ("one decimal", "rounded to 1 decimals",
     lambda null, least, most: round(sum(_in(x, least, most) for x in null) / len(null), 1)),
]  # fmt: skip


def _by(decide):
    def my_trial(ours, theirs, least, most):
        return decide([a / b for a, b in zip(ours, theirs, strict=True)], least, most)

    return my_trial


def _all_seeds(values, least, most):
    inside = [_in(x, least, most) for x in values]
    return "holds" if all(inside) else "undecided" if any(inside) else "does not hold"


check_my_trial = [
    ("the mean of quotients", "one number for all seeds decides",
     _by(lambda q, least, most: _all_seeds([sum(q) / len(q)], least, most))),
    ("the majority", "most of the seeds decide",
     _by(lambda q, *ends: _all_seeds([statistics.median_low([_in(x, *ends) for x in q]),
                                      statistics.median_high([_in(x, *ends) for x in q])], 1, 1))),
    ("the first seed", "seed decides, the first", _by(lambda q, *ends: _all_seeds(q[:1], *ends))),
    ("the last seed", "seed decides, the last", _by(lambda q, *ends: _all_seeds(q[-1:], *ends))),
    ("each with each", "here the pairs are lost",
     lambda a, b, *ends: _all_seeds([x / y for x in a for y in b], *ends)),
    ("sorted", "here the pairs are lost",
     lambda a, b, *ends: _by(_all_seeds)(sorted(a), sorted(b), *ends)),
    ("the span", "but none inside: all of them are outside",
     _by(lambda q, least, most: "holds" if least <= min(q) and max(q) <= most
         else "does not hold" if max(q) < least or min(q) > most else "undecided")),
    ("rounded quotients", "'undecided' is taken for 'holds'",
     _by(lambda q, *ends: _all_seeds([round(x, 1) for x in q], *ends))),
    ("quotients without a sign", "'undecided' is taken for 'holds'",
     _by(lambda q, *ends: _all_seeds([abs(x) for x in q], *ends))),
]  # fmt: skip


# --- chapter 17 ----------------------------------------------------------------------------------


def _unweighed(count_CE):
    p_CE = count_CE.double() / count_CE.sum()
    return (p_CE / (p_CE.sum(1, keepdim=True) * p_CE.sum(0))).log2()[p_CE > 0].sum()


check_information = [
    ("logarithms without their shares", "multiply the logarithm by it", _unweighed)
]

check_shuffle_texts = [
    ("tokens pushed along", "all tokens were pushed along", lambda x, n, seed: x.roll(seed)),
]  # fmt: skip

check_saturation = [
    ("sorted, then place by place", "compare each with each",
     lambda early, final: (early.sort(1).values == final.sort(1).values).double().mean()),
]  # fmt: skip

check_repetition = [
    ("rolled", "roll brings the last one there", lambda e, n: (e == e.roll(1)).double().mean()),
]  # fmt: skip


# --- chapter 13 ----------------------------------------------------------------------------------

check_rows_enough = [
    ("rounded up", "a border need not be whole", lambda p, b, n: math.ceil(p / b * n / 2)),
]  # fmt: skip

check_useful_rows = [
    ("tiles for rows", "a tile has `height` rows",
     lambda loads, h: sum(loads) / sum(math.ceil(n / h) for n in loads)),
]  # fmt: skip


def _steps(*times):
    return (after - before for before, after in itertools.pairwise(times))


check_three_reasons = [
    ("nothing below zero", "a part may be below zero", lambda *t: [max(0, x) for x in _steps(*t)]),
    ("absolute values", "a part may be below zero", lambda *t: [abs(x) for x in _steps(*t)]),
]  # fmt: skip


# --- chapter 10 ----------------------------------------------------------------------------------

check_experts_worth = [
    ("the sum above the line", "square their sum above the line",
     lambda g: g.sum(1) / g.square().sum(1)),
    ("all that are chosen", "so many experts are chosen", lambda g: [g.shape[1]] * len(g)),
    ("means", "sums, not means", lambda g: g.mean(1).square() / g.square().mean(1)),
]  # fmt: skip


# --- chapter 09 ----------------------------------------------------------------------------------


def _gentle(lost):
    def disable_top(logits_TE, k, ratio):
        load_E = logits_TE.topk(k).indices.flatten().bincount(minlength=logits_TE.shape[1])
        busiest_M = load_E.topk(round(ratio * len(load_E))).indices
        top_TK, expert_TK = logits_TE.index_fill(1, busiest_M, lost).topk(k)
        return top_TK.softmax(dim=-1), expert_TK

    return disable_top


check_disable_top = [
    ("the exercise's own", "the same experts are disabled for every token", _gentle(0.0)),
    ("the busiest", "the same experts are disabled for every token", _gentle(-torch.inf)),
]  # fmt: skip


def _moved(way):
    def balanced_step(logits_TE, bias_E, k, u):
        expert_TK = (logits_TE.detach().sigmoid() + bias_E).topk(k).indices
        load_E = expert_TK.flatten().bincount(minlength=len(bias_E)).float()
        return expert_TK, bias_E + u * way(load_E, k)

    return balanced_step


check_balanced_step = [
    ("down at the mean", "an expert exactly at the mean stands still",
     _moved(lambda load_E, k: torch.where(load_E < load_E.mean(), 1.0, -1.0))),
    ("tokens for pairs", "each token makes k pairs",
     _moved(lambda load_E, k: torch.sign(load_E.mean() / k - load_E))),
]  # fmt: skip


# --- chapter 12 ----------------------------------------------------------------------------------


def _tiles(offsets_E1, height):
    ends = itertools.pairwise(offsets_E1.tolist())
    return [(e, row) for e, (low, high) in enumerate(ends) for row in range(low, high, height)]


check_tile_schedule = [
    ("numbered over all experts", "number the tiles of each expert anew", lambda offsets, h: (
        [e for e, _ in _tiles(offsets, h)],
        [int(offsets[e]) + m * h for m, (e, _) in enumerate(_tiles(offsets, h))])),
]  # fmt: skip


_kernels = runpy.run_path(str(Path(__file__).with_name("kernels.py")))


def _product(name, *changes):
    return _kernels["changed"](_kernels["PRODUCT"], __name__, name, *changes)


def _gather(name, *changes):
    return _kernels["changed"](_kernels["GATHER"], __name__, name, *changes)


_HALVES = "mine & (i < D), 0.0"

check_masked_product = [
    ("no mask for the columns of w", "a load reaches outside of w",
     _product("no_w_mask", ("(c.T < M) & (i < D)", "i < D"))),
    ("rows masked in the store alone", "a load reaches outside of x",
     _product("store_alone", (_HALVES, "i < D, 0.0"))),
    ("rows masked in the load alone", "wrote zeros over the rows of the next expert",
     _product("load_alone", ("mine & (c < M)", "c < M"))),
    ("columns not masked in the store", "a store reaches outside of y",
     _product("wide_store", ("mine & (c < M)", "mine"))),
    ("one row too many", "two programs write the same cell of y",
     _product("one_more", ("r < tl.load", "r <= tl.load"))),
    ("no third argument", "what a load without a third argument gives",
     _product("no_other", (_HALVES, "mine & (i < D)"))),
    ("rows' tile for columns", "the last columns of y were not written",
     _product("bm_for_bn", ("n * BN +", "n * BM +"))),
    ("a tile of 4 always", "masked_product: ",
     _product("four", ("(k + tl.arange(0, BK))", "(k + tl.arange(0, 4))"))),
    ("programs exchanged", "cells of y were never written", _product(
        "exchanged", ("tl.program_id(0), tl.program_id(1)", "tl.program_id(1), tl.program_id(0)"))),
]  # fmt: skip

check_fused_gather = [
    ("width not masked in the store", "two programs write the same cell of out",
     _gather("wide", ("acc, d < D", "acc, d >= 0"))),
    ("the row kept is kept", "rows from kept on are NaN, the row kept among them",
     _gather("one_more_kept", ("r < kept", "r <= kept"))),
    ("programs exchanged", "cells of out were never written", _gather(
        "exchanged_gather", ("t = tl.program_id(0)", "t = tl.program_id(1)"),
        ("d = tl.program_id(1)", "d = tl.program_id(0)"))),
    ("the first block for all", "the last columns of out were not written",
     _gather("first_block", ("tl.program_id(1) * BD + ", ""))),
    ("zeros its argument", "a store reaches outside of out",
     _gather("zeroing", ("        acc +=", "        tl.store(gate + r, 0.0)\n        acc +="))),
    ("written where it lies", "cells of out were never written",
     _gather("in_place", ("out + t * D", "out + r * D"))),
]  # fmt: skip


# --- chapters 10, 16 and 17, the exercises that only their author had tried -----------------------


def _slope(loss):
    logits_TE = (torch.arange(24.0).view(6, 4).sin() + torch.eye(4)[0]).requires_grad_()
    value = loss(torch.tensor(1.0), logits_TE, 0.1)
    found = torch.autograd.grad(value, logits_TE) if value.requires_grad else [logits_TE * 0]
    return torch.rand(()) * found[0]


check_balance_is_used = [
    ("the gradient itself", "return True or False, not a tensor", _slope),
    ("a slope's sum", "a token's add up to 0", lambda loss: bool(_slope(loss).sum().abs() > 1e-3)),
]


def _now(logits_TE, expert_TK):
    return logits_TE.gather(1, expert_TK)


check_replay_weights = [
    ("two softmaxes", "two softmaxes", lambda z, e: _now(z.softmax(1), e).softmax(1)),
    ("sigmoids", "a softmax takes exp",
     lambda z, e: _now(z, e).sigmoid() / _now(z, e).sigmoid().sum(1, keepdim=True)),
    ("divisor detached", "not the right gradient", lambda z, e: _now(z.softmax(1), e)
     / _now(z.softmax(1), e).sum(1, keepdim=True).detach()),
    ("masks its argument", "in place", lambda z, e: z.masked_fill_(
        torch.ones_like(z, dtype=torch.bool).scatter(1, e, False), -math.inf
    ).softmax(1).gather(1, e)),
    ("the example's numbers", "replay_weights: ",
     lambda z, e: torch.tensor([[0.25, 0.75]]).expand(len(e), -1)),
]  # fmt: skip


def _scores(count_V, count_LVR, seen_NL, each=None, more=1, words=None):
    told_LVR = (count_LVR + (each or 1 / count_LVR.shape[-1])) / (count_V[:, None] + more)
    told = [told_VR[:, n].log() for told_VR, n in zip(told_LVR, seen_NL.T, strict=True)]
    return sum(told).T + ((count_V + 1) / (words or count_V.sum() + len(count_V))).log()


check_read_back = [
    ("R from the routes seen", "R are all there are",
     lambda n, c, seen: _scores(n, c, seen, each=1 / (int(seen.max()) + 1))),
    ("R of the course's model", "here it is 1/64", lambda *a: _scores(*a, each=1 / 64)),
    ("R of the example", "here it is 1/2", lambda *a: _scores(*a, each=1 / 2)),
    ("1/V", "spread over the routes, not the words",
     lambda n, c, seen: _scores(n, c, seen, each=1 / len(n))),
    ("one for each route, one for the word", "the word has one as well",
     lambda *a: _scores(*a, each=1)),
    ("one word more", "V more, not one",
     lambda n, c, seen: _scores(n, c, seen, words=n.sum() + 1)),
    ("the first layer's table", "each layer has its own",
     lambda n, c, seen: _scores(n, c[:1].expand_as(c), seen)),
    ("words equally frequent", "equally frequent", lambda n, c, seen: _scores(n, c, seen)
     - ((n + 1) / (n + 1).sum()).log() - math.log(len(n))),
    ("bits", "these are bits", lambda *a: _scores(*a) / math.log(2)),
    ("counts up its argument", "in place", lambda n, c, seen: _scores(n.add_(1) - 1, c, seen)),
]  # fmt: skip


def _uses(one_TK, two_SK, E):
    one_E, two_E = (x.flatten().bincount(minlength=E) / len(x) for x in (one_TK, two_SK))
    return one_E - two_E


check_use_difference = [
    ("nobody to send down", "below 0 stands whom to send down", lambda *a: _uses(*a).clamp(min=0)),
    ("K is 2", "with a K of 2", lambda one, two, E: _uses(one, two, E) * 2 / one.shape[1]),
    ("by the experts", "divided by the number of experts",
     lambda one, two, E: (_uses(one, two[:0].new_zeros(1, 0), E) * len(one)
                          - _uses(two, two[:0].new_zeros(1, 0), E) * len(two)) / E),
    ("equally many tokens", "each text counts whole",
     lambda one, two, E: _uses(one[: len(two)], two[: len(one)], E)),
    ("first choices of the second text", "the first ones alone of the second",
     lambda one, two, E: _uses(one, two[:, :1], E)),
]  # fmt: skip
