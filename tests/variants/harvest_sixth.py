"""Unusual right answers to chapters 09 to 18 by a reader who had not seen the checks."""

import bisect
import heapq
import math
import runpy
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from moe_lite.course import cost

# --- chapter 16 ----------------------------------------------------------------------------------


def _quantize_halves_up(w_FD):
    scale_F1 = w_FD.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return {"q_FD": (w_FD / scale_F1 + 0.5).floor().to(torch.int8), "scale_F1": scale_F1}


def _quantize_in_double(w_FD):
    scale_F1 = w_FD.double().norm(p=math.inf, dim=1, keepdim=True) / 127
    return [torch.nan_to_num(w_FD / scale_F1).round().to(torch.int8), scale_F1]


check_quantize = [("halves up, in a dict", _quantize_halves_up), ("double", _quantize_in_double)]


def _reap_one_by_one(expert_N, gate_N, answer_ND, E):
    for e in range(E):
        mine_N = expert_N == e
        yield float((gate_N * answer_ND.norm(dim=1))[mine_N].mean()) if mine_N.any() else 0


check_reap = [
    ("a generator of numbers", _reap_one_by_one),
    ("a dict", lambda e, g, y, E: dict(enumerate(_reap_one_by_one(e, g, y, E)))),
]


def _prune_heap(router_ED, score_E, drop):
    gone = set(heapq.nsmallest(drop, range(len(score_E)), key=score_E.tolist().__getitem__))
    left = iter(range(len(score_E)))
    number = {e: -1 if e in gone else next(left) for e in range(len(score_E))}
    return np.delete(router_ED.numpy(), list(gone), axis=0), number


check_prune_router = [("a heap, an array and a dict", _prune_heap)]


def _copies_by_union(w_EFD):
    root = list(range(len(w_EFD)))
    for i, x in enumerate(w_EFD):
        for j, y in enumerate(w_EFD[:i]):
            if (x - y).abs().max() <= 1e-6:
                root = [root[j] if r == root[i] else r for r in root]
    return torch.tensor(float(len(set(root))))


check_distinct_copies = [
    ("groups united", _copies_by_union),
    ("unlike all that come after", lambda w: sum(
        not any((x - y).abs().max() <= 1e-6 for y in w[e + 1 :]) for e, x in enumerate(w))),
]  # fmt: skip


# --- chapter 15 ----------------------------------------------------------------------------------


def _in_use(E, K, T):
    return E - E * Fraction(E - K, E) ** T


def _in_use_token_by_token(E, K, T):
    used = 0.0
    for _ in range(T):
        used += K * (1 - used / E)
    return used


check_distinct_experts = [("a fraction", _in_use), ("token by token", _in_use_token_by_token)]

check_decode_bytes = [
    ("in bits, whole bytes at the end",
     lambda c, b: int(16 * (cost.count_parameters(c).total
                            - (0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size)
                            - cost.count_parameters(c).experts
                            * (1 - c.num_experts_per_tok / c.num_local_experts) ** b) / 8)),
]  # fmt: skip


def _replicas_by_heap(load_E, spare):
    heap = sorted((-Fraction(load), e, 1) for e, load in enumerate(load_E))
    for _ in range(spare):
        _, e, copies = heapq.heappop(heap)
        heapq.heappush(heap, (-Fraction(load_E[e], copies + 1), e, copies + 1))
    return {e: copies for _, e, copies in sorted(heap, key=lambda entry: entry[1])}


def _replicas_by_quotients(load_E, spare):
    quotients = sorted((-load / n, e) for e, load in enumerate(load_E) for n in range(1, spare + 1))
    return (1 + sum(e == mine for _, e in quotients[:spare]) for mine in range(len(load_E)))


check_replicas = [
    ("a heap of fractions, a dict", _replicas_by_heap),
    ("all quotients sorted, a generator", _replicas_by_quotients),
]  # fmt: skip

check_reads_per_token = [
    ("fractions", lambda E, K, g, p: (
        _in_use(E, K, g + 1) / sum(Fraction(p) ** i for i in range(g + 1)))),
    ("by how many are kept", lambda E, K, g, p: _in_use_token_by_token(E, K, g + 1) / (
        sum((i + 1) * p**i * (1 - p) for i in range(g)) + (g + 1) * p**g)),
]  # fmt: skip


# --- chapter 14 ----------------------------------------------------------------------------------

check_traffic = [
    ("bins of a histogram", lambda e, E: [torch.histc(x.float(), len(e), 0, E) for x in e]),
    ("a dict of rows", lambda e, E: {r: [int((x * len(e) // E == q).sum()) for q in range(len(e))]
                                     for r, x in enumerate(e)}),
]  # fmt: skip

check_round_trip = [
    ("one tensor", lambda pairs, rank: torch.stack([pairs, pairs.T, pairs.T, pairs])[:, rank]),
    ("a generator", lambda pairs, rank: (m[rank] for m in (pairs, pairs.T, pairs.T, pairs))),
]  # fmt: skip

check_rank_weights = [
    ("fractions", lambda t: [Fraction(len(t) * n, int(t.sum())) for n in t.tolist()]),
    ("over the mean", lambda t: t / t.double().mean()),
]  # fmt: skip


def _leaving_by_lists(score_TE, home_T, nodes, top_k, limit):
    size = score_TE.shape[1] // nodes
    for score_E, home in zip(score_TE.tolist(), home_T.tolist(), strict=True):
        worth = {n: sum(sorted(score_E[n * size : (n + 1) * size])[-(top_k // limit) :])
                 for n in range(nodes)}  # fmt: skip
        kept = heapq.nlargest(limit, worth, key=worth.get)
        theirs = [e for e in range(len(score_E)) if e // size in kept]
        best = heapq.nlargest(top_k, theirs, key=score_E.__getitem__)
        yield float(len({e // size for e in best} - {home}))


check_copies_leaving = [("a generator of floats", _leaving_by_lists)]


# --- chapter 18 ----------------------------------------------------------------------------------

check_say_it_three_ways = [
    ("fractions", lambda slow, fast: (Fraction(slow) / Fraction(fast),
                                      100 * (Fraction(slow) / Fraction(fast) - 1),
                                      100 * (1 - Fraction(fast) / Fraction(slow)))),
    ("logarithms", lambda slow, fast: np.array([math.exp(math.log(slow / fast)),
                                               100 * math.expm1(math.log(slow / fast)),
                                               -100 * math.expm1(math.log(fast / slow))])),
]  # fmt: skip

check_judge = [
    ("what both have", lambda low, high, least, most: (
        "does not hold" if max(low, least) > min(high, most) else
        "HOLDS" if (max(low, least), min(high, most)) == (low, high) else np.str_("undecided"))),
]  # fmt: skip

check_passed_by_chance = [
    ("by bisection", lambda null, least, most: Fraction(
        bisect.bisect_right(sorted(null), most) - bisect.bisect_left(sorted(null), least),
        len(null))),
]  # fmt: skip

check_my_trial = [
    ("by how many are inside", lambda a, b, least, most: {0: "does not hold", len(a): "holds"}.get(
        int(((np.array(a) / b >= least) & (np.array(a) / b <= most)).sum()), "undecided")),
]  # fmt: skip


# --- chapter 17 ----------------------------------------------------------------------------------


def _knowing(count_CE):
    p_CE = count_CE.double() / count_CE.sum()
    left = sum(p_C.sum() * torch.special.entr(p_C / p_C.sum()).sum() for p_C in p_CE.T if p_C.any())
    return [(torch.special.entr(p_CE.sum(1)).sum() - left) / math.log(2)]


check_information = [("entropy before and after, in a list", _knowing)]

check_shuffle_texts = [
    ("places of texts", lambda labels, n, seed: labels.numpy()[np.add.outer(
        np.random.default_rng(seed).permutation(len(labels) // n) * n, np.arange(n)).ravel()]),
]  # fmt: skip


def _by_two_sorts(label_T, ids_T, seed):
    mixed = torch.randperm(len(label_T), generator=torch.Generator().manual_seed(seed))
    out_T = torch.empty_like(label_T)
    out_T[ids_T.argsort(stable=True)] = label_T[mixed[ids_T[mixed].argsort(stable=True)]]
    return out_T


check_shuffle_within_words = [("two sorts", _by_two_sorts)]

check_saturation = [
    ("sizes of unions", lambda early, final: 2 - sum(
        len(set(a) | set(b)) for a, b in zip(early.tolist(), final.tolist(), strict=True)
    ) / final.numel()),
]  # fmt: skip

check_repetition = [
    ("no step between them", lambda e, n: (np.diff(e.numpy().reshape(-1, n)) == 0).mean()),
]  # fmt: skip


def _claim_about_words(expert_TK, ids_T, domain_T, length):
    def bits(ids_T):
        count = torch.bincount(ids_T * 8 + expert_TK[:, 0], minlength=8 * (int(ids_T.max()) + 1))
        return float(_knowing(count.view(-1, 8))[0])

    random = torch.Generator().manual_seed(0)
    null = torch.tensor([
        bits(ids_T[torch.randperm(len(ids_T), generator=random)]) for _ in range(39)
    ])  # fmt: skip
    return {
        "claim": "experts follow the word", "source": "heard often",
        "falsified_if": "no more bits than with words shuffled",
        "measure": "bits of word and first choice", "null_is": "words shuffled, experts kept",
        "observed": np.float64(bits(ids_T)), "null": null, "holds": bits(ids_T) > null.max(),
        "verdict": f"{bits(ids_T):.2f} bits, by chance at most {null.max():.2f}",
    }  # fmt: skip


check_investigation = [("experts follow the word", _claim_about_words)]


# --- chapter 13 ----------------------------------------------------------------------------------

check_least_time = [
    ("fractions", lambda o, s, p, b: max(Fraction(o) / Fraction(p), Fraction(s) / Fraction(b))),
    ("by an absolute value", lambda o, s, p, b: (o / p + s / b + abs(o / p - s / b)) / 2),
]  # fmt: skip

check_rows_enough = [("fractions", lambda p, b, n: Fraction(p) / Fraction(b) * Fraction(n) / 2)]

check_useful_rows = [
    ("by what is missing", lambda loads, h: 1 - sum(-n % h for n in loads)
     / sum(n + -n % h for n in loads)),
]  # fmt: skip

check_three_reasons = [("differences", lambda *times: np.diff(times))]


def _padded_blocks(x_RD, w1, w3, w2, offsets_E1):
    size_E = offsets_E1.diff()
    expert_R = torch.arange(len(size_E)).repeat_interleave(size_E)
    row_R = torch.arange(len(x_RD)) - offsets_E1[:-1][expert_R]
    shape = len(size_E), max(1, int(size_E.max())), x_RD.shape[1]
    x_EMD = x_RD.new_zeros(shape).index_put((expert_R, row_R), x_RD)
    hidden_EMF = torch.nn.functional.silu(x_EMD @ w1.mT) * (x_EMD @ w3.mT)
    return (hidden_EMF @ w2.mT)[expert_R, row_R]


check_expert_blocks = [("padded and batched", _padded_blocks)]


# --- chapter 10 ----------------------------------------------------------------------------------

check_experts_worth = [
    ("by two norms", lambda g: (g.norm(p=1, dim=1) / g.norm(dim=1)) ** 2),
    ("by the spread", lambda g: g.shape[1] / (1 + g.var(1, unbiased=False) / g.mean(1) ** 2)),
]  # fmt: skip


# --- chapter 09 ----------------------------------------------------------------------------------


def _after_the_best(logits_TE, k, ratio):
    off = round(ratio * logits_TE.shape[1])
    expert_TK = logits_TE.argsort(1, descending=True)[:, off : off + k]
    return [logits_TE.gather(1, expert_TK).softmax(1), expert_TK]


check_disable_top = [("a slice of the order", _after_the_best)]


def _step_in_whole_numbers(logits_TE, bias_E, k, u):
    expert_TK = (logits_TE.detach().sigmoid() + bias_E).topk(k).indices
    load_E = expert_TK.flatten().bincount(minlength=len(bias_E))
    return expert_TK, bias_E.numpy() + u * np.sign(expert_TK.numel() - len(bias_E) * load_E.numpy())


check_balanced_step = [("whole numbers, an array", _step_in_whole_numbers)]


# --- chapter 12 ----------------------------------------------------------------------------------

check_offsets = [
    ("a triangle of ones",
     lambda c: torch.ones(c.shape[1] + 1, c.shape[1]).tril(-1) @ c.sum(0).float()),
]  # fmt: skip

check_stable_rows = [
    ("earlier equals", lambda e, offsets: offsets[e] + ((e[:, None] == e).tril(-1)).sum(1)),
]  # fmt: skip

check_sum_by_token = [
    ("a row of zeros behind those kept", lambda y, gate, row, K, kept: torch.nn.functional.pad(
        y[:kept] * gate[:kept, None], (0, 0, 0, 1)
    )[row.clamp(max=kept)].unflatten(0, (-1, K)).sum(1)),
]  # fmt: skip

_kernels = runpy.run_path(str(Path(__file__).parents[1] / "mutants" / "kernels.py"))

_ROW_BY_ROW = """
def kernel(x, w, y, offsets, tile_expert, tile_row, D, M,
           BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    t = tl.program_id(0)
    e, low = tl.load(tile_expert + t), tl.load(tile_row + t)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    for r in range(low, tl.minimum(low + BM, tl.load(offsets + e + 1))):
        acc = tl.zeros((BN,), tl.float32)
        for i in range(D):
            acc += tl.load(x + r * D + i) * tl.load(w + (e * M + c) * D + i, c < M, 0.0)
        tl.store(y + r * M + c, acc, c < M)
"""
_CELL_BY_CELL = """
def kernel(y, gate, row, out, D, kept, K: tl.constexpr, BD: tl.constexpr):
    t, low = tl.program_id(0), tl.program_id(1) * BD
    for d in range(low, tl.minimum(low + BD, D)):
        total = 0.0
        for n in range(t * K, t * K + K):
            r = tl.load(row + n)
            total += tl.load(gate + r, r < kept, 0.0) * tl.load(y + r * D + d, r < kept, 0.0)
        tl.store(out + t * D + d, total)
"""

check_masked_product = [
    ("row by row", _kernels["changed"](_ROW_BY_ROW, __name__, "row_by_row")),
    ("masked again", _kernels["changed"](_kernels["PRODUCT"], __name__, "again", (
        "tl.load(x + r * D + i, mine & (i < D), 0.0)",
        "tl.where(mine & (i < D), tl.load(x + r * D + i, mine & (i < D)), 0.0)"))),
]  # fmt: skip

check_fused_gather = [
    ("cell by cell", _kernels["changed"](_CELL_BY_CELL, __name__, "cell_by_cell"))
]


# --- chapters 10, 16 and 17 ----------------------------------------------------------------------


class _Ascending(torch.nn.Module):
    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.gate, self.k = torch.nn.Linear(hidden_size, num_experts, bias=False), top_k

    def forward(self, x_TD):
        expert_TK = self.gate(x_TD).argsort(1)[:, -self.k :]
        return self.gate(x_TD).gather(1, expert_TK).softmax(1), expert_TK


check_global_bug = [("the best last", _Ascending)]

check_replay_weights = [
    ("each against each", lambda z, e: 1 / (
        z.gather(1, e)[:, None] - z.gather(1, e)[:, :, None]).exp().sum(-1)),
]  # fmt: skip


def _products(count_V, count_LVR, seen_NL):
    (_, V, R), words = count_LVR.shape, count_V.sum() + len(count_V)

    def score(v, routes):
        told = [(count_LVR[at, v, r] + 1 / R) / (count_V[v] + 1) for at, r in enumerate(routes)]
        return math.log((count_V[v] + 1) / words * math.prod(told))

    return [[score(v, routes) for v in range(V)] for routes in seen_NL]


check_read_back = [("lists of products", _products)]

check_use_difference = [
    ("fractions", lambda one, two, E: [
        Fraction(sum(e in row for row in one.tolist()), len(one))
        - Fraction(sum(e in row for row in two.tolist()), len(two)) for e in range(E)]),
]  # fmt: skip
