"""Measures of what experts do: pure functions of a :class:`~moe_lite.routing.RoutingTrace`.

Every measure counts the kept choices of the trace; which expert has which number changes none of
them. A large value alone says nothing: :func:`permuted` labels and a :func:`shuffled` trace show
what the same routing scores where there is nothing to find. Experts' weights and a token's
probabilities are not looked at, so it does not matter whether a model's gates sum to 1.

OLMoE is Muennighoff et al. 2024 (arXiv:2409.02060), Mixtral is Jiang et al. 2024
(arXiv:2401.04088). Shapes: layers L, tokens T, experts E, choices K, labels C; all results are
float64 unless said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..routing import Routing
from ..trace import RoutingTrace

Choice = Literal["all", "first"]
Labels = Tensor | Sequence[int]


def choices_LTK(trace: RoutingTrace) -> Tensor:
    """Return each token's experts, best first: int64 (L, T, K), -1 for a choice that was dropped.

    Raises: ValueError if experts chose their tokens, or layers differ in their experts or K.
    """
    _num_experts(trace)
    sizes = {routing.per_token for routing in trace.layers}
    if len(sizes) > 1 or None in sizes:
        raise ValueError("tokens have no list of K choices here: experts chose, or K differs")
    K = sizes.pop()
    assert K is not None
    return torch.stack([_marked(routing).view(-1, K) for routing in trace.layers])


def specialization(
    trace: RoutingTrace,
    label_T: Labels,
    num_labels: int | None = None,
    *,
    choice: Choice = "all",
    per: Literal["pair", "token"] = "pair",
) -> Tensor:
    """Measure where a label's tokens go: (L, C, E), NaN for a label without tokens.

    Per pair it is the share of a label's choices that fall on an expert: a row sums to 1, chance
    is 1/E, as in Mixtral's Figure 7. Per token it is the share of its tokens that have the expert
    among their choices: a row sums to K, chance is K/E, as in OLMoE. Only the first choice counts
    with choice="first". A negative label leaves its token out.

    Raises: ValueError if the labels do not fit the trace or num_labels.
    Source: OLMoE eq. 7 (domains, per token) and eq. 8 (token ids, per pair).
    """
    if per not in ("pair", "token"):
        raise ValueError(f'per must be "pair" or "token", not {per!r}')
    label_T = _labels(trace, label_T)
    count_LCE = _count(trace, label_T, num_labels, choice)
    if per == "pair":
        return count_LCE / count_LCE.sum(dim=-1, keepdim=True)
    tokens_C = torch.bincount(label_T[label_T >= 0], minlength=count_LCE.shape[1])
    return count_LCE / tokens_C[:, None]


def gate_mass(trace: RoutingTrace) -> Tensor:
    """Measure which share of all gates an expert carries: (L, E), a row sums to 1.

    A load counts pairs; this weighs them. An expert that is everybody's second choice, with a small
    gate, has a full load and little mass: balanced, and hardly used. Dropped pairs carry none.
    """
    E, rows = _num_experts(trace), []
    for routing in trace.layers:
        gate_N = routing.gate_N.where(_marked(routing) >= 0, 0).double()
        rows.append(torch.zeros(E, dtype=gate_N.dtype).index_add(0, routing.expert_N, gate_N))
    mass_LE = torch.stack(rows)
    return mass_LE / mass_LE.sum(1, keepdim=True)


def vocabulary_specialization(
    trace: RoutingTrace, ids_T: Labels, min_count: int = 10, *, choice: Choice = "first"
) -> Tensor:
    """Average, over the token ids that favour an expert, the share of their tokens it gets: (L, E).

    NaN for an expert that no id favours; ``.nanmean(-1)`` is a layer's. An id that occurs once has
    a share of 1 whatever the router does, so rare ids are left out, and even then a random router
    scores above chance: compare with a :func:`shuffled` trace. An id with two favourites counts
    half for each.

    Args:   ids_T: the token read, or the one predicted, or the one that follows; negative: none.
    Raises: ValueError as :func:`specialization` does, or if no id occurs min_count times.
    Source: OLMoE eq. 8 and Figure 23 (first choice).
    """
    id_C, label_T = _labels(trace, ids_T).unique(return_inverse=True)
    common_C = (label_T.bincount() >= min_count) & (id_C >= 0)
    if not common_C.any():
        raise ValueError(f"no token id occurs {min_count} times in {len(label_T)} tokens")
    share_LCE = specialization(trace, label_T, choice=choice, per="token")[:, common_C]
    share_LC1 = share_LCE.amax(dim=-1, keepdim=True)
    favours_LCE = (share_LCE == share_LC1).double()
    favours_LCE /= favours_LCE.sum(dim=-1, keepdim=True)
    return (favours_LCE * share_LC1).sum(dim=1) / favours_LCE.sum(dim=1)


def mutual_information(
    trace: RoutingTrace, label_T: Labels, *, choice: Choice = "all", given_T: Labels | None = None
) -> Tensor:
    """Measure how much a token's expert tells about its label: (L,), in bits.

    At most the smaller entropy of the two. The plug-in estimate lies above the truth by about
    (C-1)(E-1) / (2 T ln 2) bits: compare with :func:`permuted_information`. Given other labels,
    it is what the expert tells to one who knows those already.

    Raises: ValueError if the labels do not fit the trace.
    Source: Shannon 1948, I(X; Y) = sum p(x, y) log2 p(x, y) / (p(x) p(y)); the chain rule
            I(X; Y | Z) = I(X; (Y, Z)) - I(X; Z).
    """
    label_T = _labels(trace, label_T)
    if given_T is None:
        return _information(_count(trace, label_T, None, choice))
    given_T = _labels(trace, given_T)
    known_T = (label_T >= 0) & (given_T >= 0)
    both_T = torch.stack([label_T, given_T]).unique(dim=1, return_inverse=True)[1]
    both_T, given_T = (x_T.where(known_T, x_T.new_tensor(-1)) for x_T in (both_T, given_T))
    joint, alone = (_count(trace, x_T, None, choice) for x_T in (both_T, given_T))
    return _information(joint) - _information(alone)


def permuted(
    label_T: Labels, seed: int, *, block: int = 1, within_T: Labels | None = None
) -> Tensor:
    """Shuffle labels, so that they mean nothing and yet are as frequent as before: int64 (T,).

    Tokens of one text are not independent: with block=S whole texts of S tokens change places.
    With within_T, labels move only among tokens that are alike in it; with token ids there, each
    label keeps its words, and what is left is what token frequency alone would give.

    Raises: ValueError if the blocks do not divide the tokens, or both ways are asked for.
    """
    label_T = torch.as_tensor(label_T).flatten()
    random = torch.Generator().manual_seed(seed)
    if within_T is not None:
        if block != 1:
            raise ValueError("labels are shuffled in blocks or within a kind of token, not both")
        within_T = torch.as_tensor(within_T).flatten()
        order_T = torch.randperm(len(label_T), generator=random)
        taken_T = order_T[within_T[order_T].sort(stable=True).indices]
        return torch.empty_like(label_T).scatter_(
            0, within_T.sort(stable=True).indices, label_T[taken_T]
        )
    blocks = _texts(label_T, block)
    return blocks[torch.randperm(len(blocks), generator=random)].flatten()


def permuted_information(
    trace: RoutingTrace,
    label_T: Labels,
    seeds: Iterable[int],
    *,
    choice: Choice = "all",
    block: int = 1,
    within_T: Labels | None = None,
) -> Tensor:
    """Measure the information of labels that were :func:`permuted`, once a seed: (seeds, L), bits.

    Raises: ValueError as :func:`permuted` and :func:`mutual_information` do.
    """
    shuffles = (permuted(label_T, seed, block=block, within_T=within_T) for seed in seeds)
    return torch.stack([mutual_information(trace, x_T, choice=choice) for x_T in shuffles])


def routes_TL(trace: RoutingTrace, *, ordered: bool = True, gate_bins: int = 1) -> Tensor:
    """Return one number for a token's experts at each layer: int64 (T, L).

    Equal numbers are equal experts, in one order, or in any with ordered=False; and with gate_bins
    above 1 their first gates lie in the same of so many equal parts of 0 to 1. Numbers are below
    E^K times gate_bins.

    Raises: ValueError if a choice was dropped, or as :func:`choices_LTK`.
    """
    choices = choices_LTK(trace)
    if (choices < 0).any():
        raise ValueError("a choice was dropped: this token has no route")
    E, K = _num_experts(trace), choices.shape[-1]
    choices = choices if ordered else choices.sort(-1).values
    route_LT = (choices * E ** torch.arange(K, device=choices.device)).sum(-1) * gate_bins
    if gate_bins > 1:
        gate_LT = torch.stack([routing.gate_N.view(-1, K)[:, 0] for routing in trace.layers])
        route_LT = route_LT + (gate_LT * gate_bins).long().clamp(0, gate_bins - 1)
    return route_LT.T


def read_back(
    route_TL: Tensor, word_T: Tensor, seen_NL: Tensor, num_words: int, num_routes: int
) -> Tensor:
    """Score every word for tokens of which only the routes are seen: (N, words), log-probability.

    The routes of T tokens whose words are known are counted, layer by layer. With Bayes' rule, and
    as if layers did not know of each other, the log-probability of a word and its L routes is that
    of the word plus L of "this word takes this route". A word begins with one sight, and its
    routes with one more, spread evenly.

    Raises: ValueError for a word or a route that is not among as many.
    Source: the question is that of Nuriyev and Kulp 2026, arXiv:2602.04105; their decoders are
            networks, this one counts.
    """
    for what, value, size in (("word", word_T, num_words), ("route", route_TL, num_routes),
                              ("route", seen_NL, num_routes)):  # fmt: skip
        if value.numel() and (value.min() < 0 or value.max() >= size):
            raise ValueError(f"a {what} must be from 0 to {size - 1}: {value.min()}, {value.max()}")
    # 1. how often each word came
    seen_V = word_T.bincount(minlength=num_words).float()
    score_NV = ((seen_V + 1) / (len(word_T) + num_words)).log().expand(len(seen_NL), -1).clone()
    for route_T, seen_N in zip(route_TL.T, seen_NL.T, strict=True):
        # 2. how often it took each route of this layer
        both_V = word_T * num_routes + route_T
        count_VR = both_V.bincount(minlength=num_words * num_routes).view(-1, num_routes)
        told_VR = (count_VR + 1 / num_routes) / (seen_V[:, None] + 1)
        # 3. what the route that was seen says for it
        score_NV += told_VR.log().T[seen_N]
    return score_NV


def coactivation(trace: RoutingTrace) -> Tensor:
    """Measure which share of the tokens of expert i also go to expert j: (L, E, E), [l, i, j].

    The diagonal is 1; the row of an expert without tokens is NaN. Chance is (K-1) / (E-1).
    Source: OLMoE eq. 6. The script published with it counts only neighbours in rank together.
    """
    _num_experts(trace)
    used_LTE = torch.stack([_used(routing) for routing in trace.layers]).double()
    both_LEE = used_LTE.mT @ used_LTE
    return both_LEE / both_LEE.diagonal(dim1=1, dim2=2)[..., None]


def saturation(trace_t: RoutingTrace, trace_T: RoutingTrace, k: int | None = None) -> Tensor:
    """Measure which share of the final experts of a token were its experts earlier: (L,).

    Only the first k choices of both count (default: all). Chance is k/E.
    Args:   trace_t: the earlier routing; trace_T: the final one, of the same tokens.
    Raises: ValueError if the traces differ in tokens, layers or K, or k is not among 1..K.
    Source: OLMoE eq. 5.
    """
    early, final = choices_LTK(trace_t), choices_LTK(trace_T)
    if early.shape != final.shape or trace_t.tokens != trace_T.tokens:
        raise ValueError("saturation compares two routings of the same tokens by the same layers")
    k = final.shape[-1] if k is None else k
    if not 1 <= k <= final.shape[-1]:
        raise ValueError(f"k must be between 1 and the {final.shape[-1]} choices, not {k}")
    final = final[..., :k]
    again_LTk = (final[..., None] == early[..., None, :k]).any(dim=-1) & (final >= 0)
    return again_LTk.sum(dim=(1, 2)).double() / (final >= 0).sum(dim=(1, 2))


def repetition(
    trace: RoutingTrace, length: int, choice: Literal["first", "any"] = "first"
) -> Tensor:
    """Measure how often a token and the next of its text share an expert: (L,), a share of pairs.

    Args:   length: tokens of a text, by which the trace is cut; choice: "first" asks for the same
            first choice, "any" for at least one expert that is among the choices of both.
    Raises: ValueError if the texts do not divide the tokens, or have fewer than two.
    Source: Mixtral Table 5; for chance :func:`repetition_chance`, for the chance of experts that
            are unequally used :func:`shuffled`.
    """
    if choice not in ("first", "any"):
        raise ValueError(f'choice must be "first" or "any", not {choice!r}')
    if length < 2:
        raise ValueError(f"a text needs two tokens for one to follow, not {length}")
    K = 1 if choice == "first" else None
    texts = _texts(choices_LTK(trace).transpose(0, 1)[..., :K], length)  # text, token, layer, K
    this, following = texts[:, :-1, ..., None], texts[:, 1:, ..., None, :]
    return ((this == following) & (this >= 0)).flatten(3).any(dim=-1).double().mean(dim=(0, 1))


def repetition_chance(E: int, K: int = 1) -> float:
    """Return the chance that two random sets of K of E experts meet.

    >>> repetition_chance(8), round(repetition_chance(8, 2), 3)
    (0.125, 0.464)

    Source: Mixtral Table 5's caption.
    """
    return 1 - math.comb(E - K, K) / math.comb(E, K)


def shuffled(trace: RoutingTrace, seed: int, length: int | None = None) -> RoutingTrace:
    """Return a trace in which each token has the routing of another one, at all layers alike.

    How often each expert is used stays, in all and, with length, in each text of so many tokens;
    what a token has to do with its experts, or with its neighbour's, is gone.
    Raises: ValueError as :func:`choices_LTK` does, or if the texts do not divide the tokens.
    """
    choices_LTK(trace)
    random = torch.Generator().manual_seed(seed)
    texts = _texts(torch.arange(len(trace.tokens)), length or len(trace.tokens))
    order_T = torch.cat([text[torch.randperm(len(text), generator=random)] for text in texts])
    return replace(trace, layers=tuple(at_tokens(routing, order_T) for routing in trace.layers))


def at_tokens(routing: Routing, token_T: Tensor) -> Routing:
    """Return the routing of some of the tokens, in the order in which they are asked for.

    Raises: ValueError if tokens have no list of K choices because experts chose.
    """
    K = routing.per_token
    if K is None:
        raise ValueError("where experts choose, a token's routing cannot be taken out")
    pair_N = (token_T[:, None] * K + torch.arange(K)).flatten()

    def taken(x: Tensor | None, index: Tensor) -> Tensor | None:
        return None if x is None else x[index]

    return replace(
        routing,
        logits_TE=routing.logits_TE[token_T],
        probs_TE=routing.probs_TE[token_T],
        token_N=torch.arange(len(token_T)).repeat_interleave(K),
        expert_N=routing.expert_N[pair_N],
        gate_N=routing.gate_N[pair_N],
        keep_N=taken(routing.keep_N, pair_N),
        smooth_load_TE=taken(routing.smooth_load_TE, token_T),
        mask_T=taken(routing.mask_T, token_T),
        noise_TE=taken(routing.noise_TE, token_T),
    )


def _num_experts(trace: RoutingTrace) -> int:
    sizes = {routing.num_experts for routing in trace.layers}
    if len(sizes) != 1:
        raise ValueError(f"the layers must have one number of experts, not {sorted(sizes)}")
    return sizes.pop()


def _marked(routing: Routing) -> Tensor:
    """Return the expert of each pair, -1 where it was dropped."""
    if routing.keep_N is None:
        return routing.expert_N
    return routing.expert_N.where(routing.keep_N, routing.expert_N.new_tensor(-1))


def _used(routing: Routing) -> Tensor:
    """Return which experts each token went to: bool (T, E)."""
    kept_N = _marked(routing) >= 0
    used_TE = torch.zeros(routing.num_tokens, routing.num_experts, dtype=torch.bool)
    used_TE[routing.token_N[kept_N], routing.expert_N[kept_N]] = True
    return used_TE


def _texts(x_T: Tensor, length: int) -> Tensor:
    if length < 1 or len(x_T) % length:
        raise ValueError(f"{len(x_T)} tokens are no whole number of texts of {length}")
    return x_T.unflatten(0, (-1, length))


def _labels(trace: RoutingTrace, label_T: Labels) -> Tensor:
    label_T = torch.as_tensor(label_T).flatten().long()
    if len(label_T) != len(trace.tokens):
        raise ValueError(f"{len(label_T)} labels do not fit {len(trace.tokens)} tokens")
    return label_T


def _count(trace: RoutingTrace, label_T: Tensor, num_labels: int | None, choice: Choice) -> Tensor:
    """Count the kept pairs of each label and expert: (L, C, E)."""
    if choice not in ("all", "first"):
        raise ValueError(f'choice must be "all" or "first", not {choice!r}')
    E, C, counts = _num_experts(trace), int(label_T.max()) + 1, []
    if not 0 < C <= (num_labels or C):
        raise ValueError(f"label {C - 1} is not among {num_labels or C} labels from 0")
    C = num_labels or C
    for routing in trace.layers:
        expert_N, token_N = _marked(routing), routing.token_N
        if choice == "first":
            if routing.per_token is None:
                raise ValueError("where experts choose their tokens, there is no first choice")
            expert_N, token_N = expert_N[:: routing.per_token], token_N[:: routing.per_token]
        label_N = label_T[token_N]
        good_N = (expert_N >= 0) & (label_N >= 0)
        index_N = (label_N * E + expert_N)[good_N]
        counts.append(torch.bincount(index_N, minlength=C * E).view(C, E))
    return torch.stack(counts).double()


def _entropy(count: Tensor) -> Tensor:
    """Return the entropy of counts along the last dimension, in bits."""
    share = count / count.sum(dim=-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(dim=-1) / math.log(2)


def _information(count_CE: Tensor) -> Tensor:
    """Return the mutual information of the last two dimensions of counts, in bits."""
    marginals = _entropy(count_CE.sum(dim=-1)) + _entropy(count_CE.sum(dim=-2))
    return (marginals - _entropy(count_CE.flatten(-2))).clamp(min=0)
