"""Wrong answers that passed, or were told something else, in a search for what checks let through.

Each is (what a learner did, a phrase of what the check says, the answer).
"""

import torch

# --- numbers that are none -----------------------------------------------------------------------


def _times_inf(scores_TE, expert_TK):
    mask_TE = torch.zeros_like(scores_TE).scatter(1, expert_TK, 1.0)
    return scores_TE * mask_TE + (1 - mask_TE) * -torch.inf  # 0 * -inf is NaN


def _gates_times_inf(logits_TE, k):
    expert_TK = logits_TE.topk(k).indices
    return _times_inf(logits_TE, expert_TK).softmax(-1).gather(1, expert_TK), expert_TK


def _biased_times_inf(logits_TE, bias_E, k):
    scores_TE = logits_TE.sigmoid()
    expert_TK = (scores_TE + bias_E).topk(k).indices
    kept_TE = _times_inf(scores_TE, expert_TK)
    return (kept_TE / kept_TE.sum(-1, keepdim=True)).gather(1, expert_TK), expert_TK


check_below_one = [("no token at all", "there is no token", lambda E: torch.empty(0, E))]
check_causal_groups = [
    (
        "each token alone, and an empty group",
        "a group without tokens is none",
        lambda B, S: [*torch.arange(B * S)[:, None], torch.arange(0)],
    )
]
check_biased_choice = [("a mask times inf", "0 * inf are NaN", _biased_times_inf)]

# --- borders that were never asked ---------------------------------------------------------------


def _prune(router_ED, score_E, keep):
    number_E = torch.full((len(score_E),), -1)
    number_E[keep] = torch.arange(len(keep))
    return router_ED[keep], number_E


def _cut_then_divided(logits_TE, c):
    T, E = logits_TE.shape
    best = logits_TE.softmax(-1).topk(min(T, -(-int(c * T) // E)), dim=0)
    return best.indices.T, best.values.T


check_prune_router = [
    (
        "a slice from the end",
        "with drop = 0 all stay",
        lambda w, s, drop: _prune(w, s, s.argsort(descending=True)[:-drop].sort().values),
    ),
    (
        "above the last that goes",
        "with drop = 0 all stay",
        lambda w, s, drop: _prune(w, s, (s > s.sort().values[drop - 1]).nonzero()[:, 0]),
    ),
]
check_places = [
    ("cut, then divided", "round once, up, at the end", lambda T, E, f, K: -(-int(f * K * T) // E)),
    (
        "rounded, then divided",
        "round once, up, at the end",
        lambda T, E, f, K: -(-round(f * K * T) // E),
    ),
]
check_expert_choice = [("cut, then divided", "round once, up, at the end", _cut_then_divided)]

# --- a finite number for minus infinity ----------------------------------------------------------


def _filled(scores_TE, expert_TK, low):
    kept_TE = torch.zeros_like(scores_TE).scatter(1, expert_TK, 1.0).bool()
    return scores_TE.masked_fill(~kept_TE, low).softmax(-1)


def _gates(low):
    def gates(logits_TE, k):
        expert_TK = logits_TE.topk(k).indices
        return _filled(logits_TE, expert_TK, low).gather(1, expert_TK), expert_TK

    return gates


def _disable(low):
    def disable(logits_TE, k, ratio):
        best_TM = logits_TE.topk(round(ratio * logits_TE.shape[1])).indices
        top_TK, expert_TK = logits_TE.scatter(1, best_TM, low).topk(k)
        return top_TK.softmax(-1), expert_TK

    return disable


def _prob(low):
    def prob(clean_TE, noisy_TE, std_TE, k):
        T, E = noisy_TE.shape
        others_TEE = noisy_TE[:, None].expand(T, E, E).masked_fill(torch.eye(E).bool(), low)
        return torch.special.ndtr((clean_TE - others_TEE.topk(k).values[..., -1]) / std_TE)

    return prob


def _load(clean_TE, noisy_TE, std_TE, k):
    if std_TE is None:
        return torch.zeros_like(noisy_TE).scatter(1, noisy_TE.topk(k).indices, 1.0).sum(0)
    return _prob(-100.0)(clean_TE, noisy_TE, std_TE, k).sum(0)


def _leaving(score_TE, home_T, nodes, k, limit):
    node_TNE = score_TE.unflatten(1, (nodes, -1))
    kept_TM = node_TNE.topk(k // limit).values.sum(-1).topk(limit).indices
    lost_TN = torch.ones(len(score_TE), nodes).bool().scatter(1, kept_TM, False)
    left_TE = node_TNE.masked_fill(lost_TN[..., None], -100.0).flatten(1)
    there_TN = torch.zeros(len(score_TE), nodes).scatter(
        1, left_TE.topk(k).indices // node_TNE.shape[2], 1.0
    )
    return there_TN.scatter(1, home_T[:, None], 0.0).sum(1).long()


_FINITE = "a finite number is a score like others"
check_sparse_gates = [
    (f"{low} for -inf", _FINITE, lambda s, k, low=low: _filled(s, s.topk(k).indices, low))
    for low in (-15.0, -20.0, -100.0)
]
check_top_k = [
    ("a mask times inf", "0 * inf is not one either (use where)", _gates_times_inf),
    *((f"{low} for -inf", _FINITE, _gates(low)) for low in (-15.0, -20.0, -100.0)),
    *(
        (
            f"gates in {kind}",
            f"nearly right, but {kind} rounds too much to tell",
            lambda z, k, kind=kind: (
                z.topk(k)[0].softmax(-1).to(getattr(torch, kind)),
                z.topk(k)[1],
            ),
        )
        for kind in ("float16", "bfloat16")
    ),
    (
        "a method that is not called",
        "the function `softmax` itself: call it",
        lambda z, k: (z.topk(k).values.softmax, z.topk(k).indices),
    ),
    (
        "lists of unequal length",
        "gate_TK: return a tensor of shape (3, 2), not [[1.0, 2.0], [3.0]]",
        lambda z, k: ([[1.0, 2.0], [3.0]], z.topk(k).indices),
    ),
    (
        "complex gates",
        "not complex numbers",
        lambda z, k: (z.topk(k)[0].softmax(-1) + 0j, z.topk(k)[1]),
    ),
    (
        "tensors without numbers",
        "not a meta tensor, which holds no numbers",
        lambda z, k: (z.topk(k)[0].to("meta"), z.topk(k)[1]),
    ),
]
check_softmax_order = [
    ("a mask times inf", "0 * inf is not one either (use where)", _gates_times_inf),
    ("-20 for -inf", _FINITE, _gates(-20.0)),
]
check_disable_top = [(f"{low} for -inf", _FINITE, _disable(low)) for low in (-10.0, -100.0)]
check_prob_in_top_k = [("-100 for -inf", _FINITE, _prob(-100.0))]
check_load_anywhere = [("-100 for -inf", _FINITE, _load)]
check_copies_leaving = [("-100 for -inf", _FINITE, _leaving)]
check_replay_weights = [
    (
        "-20 for -inf",
        _FINITE,
        lambda logits_TE, expert_TK: _filled(logits_TE, expert_TK, -20.0).gather(1, expert_TK),
    )
]

# --- right in the numbers that were looked at ----------------------------------------------------


def _quantize(least, more):
    def quantize(w_FD):
        scale_F1 = (w_FD.abs().amax(1, keepdim=True) / 127).clamp(min=least) + more
        return (w_FD / scale_F1).round().to(torch.int8), scale_F1

    return quantize


def _alike(label_T, ids_T, seed):
    out_T = label_T.clone()
    for word in ids_T.unique():
        mine = (ids_T == word).nonzero()[:, 0]
        again = torch.Generator().manual_seed(seed)
        out_T[mine] = label_T[mine[torch.randperm(len(mine), generator=again)]]
    return out_T


check_quantize = [
    ("a scale of at least 1e-5", "not small beside a small row's scale", _quantize(1e-5, 0.0)),
    ("a scale of at least 1e-7", "not small beside a small row's scale", _quantize(1e-7, 0.0)),
    ("1e-6 more", "not small beside a small row's scale", _quantize(0.0, 1e-6)),
]
check_first_weights = [
    (
        "the tails are folded back by fmod",
        "not a bell that was cut",
        lambda rows, n, s: (s / n) ** 0.5 * torch.randn(rows, n).fmod(2),
    )
]
check_shuffle_within_words = [("a generator for each word", "always shuffled alike", _alike)]

# --- by the name alone ---------------------------------------------------------------------------

_NAMES = {"_sound": "sound", "_undivided": "K", "_summed": "sum", "_pooled": "pooled",
          "_padded": "padding", "_top_k_only": "top-k", "_detached": "detached"}  # fmt: skip
check_diagnose = [
    ("by its name", "it says 'sound' of all 7", lambda loss: _NAMES.get(loss.__name__, "sound"))
]
check_reads_future = [
    (
        "by its name",
        "it says False of all",
        lambda route, x_TD: route.__name__ in ("_experts_choose", "_by_importance", "route"),
    )
]
check_looks_ahead = [
    (
        "by its name",
        "it says True of all",
        lambda seat, e, g: (
            seat.__name__ != "_everybody"
            and "position" not in [cell.cell_contents for cell in seat.__closure__ or ()]
        ),
    )
]
