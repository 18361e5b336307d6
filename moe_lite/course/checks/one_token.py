"""The checks of chapter 00: what happens to one token?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...routing import Routing
from ...trace import RoutingTrace
from .verdict import Check, Mistakes, randn

_PAIRS = "expert_N has a row for each pair, not for each token: find the token's pairs first"
_BELIEF = "that is what the router's scores favour; the routing says what was done: its pairs"


def _mine(routing: Routing, token: int) -> tuple[list[int], list[float]]:
    mine_N = routing.token_N == token
    return routing.expert_N[mine_N].tolist(), routing.gate_N[mine_N].tolist()


def _first(routing: Routing, token: int) -> int:
    experts, gates = _mine(routing, token)
    return experts[gates.index(max(gates))]


def check_first_expert(first_expert: Callable[[Routing, int], int]) -> None:
    """Check (routing, token) -> the expert that got most of the token's weight."""

    def mistakes(routing: Routing, token: int) -> Mistakes:
        experts, gates = _mine(routing, token)
        return [
            (_PAIRS, routing.expert_N[token]),
            (_BELIEF, routing.logits_TE[token].argmax()),
            ("the pair that stands first was chosen first, here by a score with a bias; whose gate "
             "is the largest?", experts[0]),
            ("this is the pair that stands last; ask for the largest gate", experts[-1]),
            ("the place of the best pair in the list, not its expert", gates.index(max(gates))),
            ("this is the gate; the exercise asks whose it is", max(gates)),
            ("this is the expert with the least weight", experts[gates.index(min(gates))]),
            ("this is the largest number of an expert; ask for the largest gate", max(experts)),
            ("the busiest expert of all tokens; ask this one's pairs", routing.load_E().argmax()),
        ]  # fmt: skip

    check = Check("first_expert", first_expert, _first, mistakes, "not the token's first expert")
    for trace, what in _traces():
        for token in range(len(trace.tokens)):
            check.on(f"{what}, token {token}", trace.layers[0], token)
    check.passed("you can read a routing.")


def check_path(path: Callable[[RoutingTrace, int], list[int]]) -> None:
    """Check (trace, token) -> the token's first expert in every layer, in order."""

    def mistakes(trace: RoutingTrace, token: int) -> Mistakes:
        right = _path(trace, token)
        rows = [_mine(routing, token)[0] for routing in trace.layers]
        return [
            ("this is the first layer alone; a token is routed anew in every layer", right[:1]),
            ("this is the first layer alone; a token is routed anew in every layer", right[0]),
            ("this is the last layer alone; a token is routed anew in every layer", right[-1]),
            ("the layers are in the wrong order: the token enters at the first", right[::-1]),
            ("these pairs stand first in the lists; ask for the largest gate",
             [row[0] for row in rows]),
            (_PAIRS, [int(r.expert_N[token]) for r in trace.layers]),
            (_BELIEF, [int(r.logits_TE[token].argmax()) for r in trace.layers]),
            ("these are the second choices", [row[1] for row in rows]),
            ("these are the last choices; the path takes the first", [row[-1] for row in rows]),
            ("every choice is listed; take the first of each", [e for row in rows for e in row]),
            ("every choice is listed; take the first of each", rows),
            ("the first layer's choice is repeated; ask every layer", right[:1] * len(right)),
            ("the path follows the layers, not the numbers of the experts", sorted(right)),
            ("one layer is missing at the end", right[:-1]),
            ("one layer is missing at the beginning", right[1:])]  # fmt: skip

    check = Check("path", path, _path, mistakes, "not the token's way through the layers")
    for trace, what in _traces():
        for token in range(len(trace.tokens)):
            check.on(f"{what}, token {token}", trace, token)
    check.passed("one expert for each layer, in order.")


def check_load(load: Callable[[Routing], Tensor]) -> None:
    """Check routing -> how many pairs each expert got, (E,), experts without any included."""

    def mistakes(routing: Routing) -> Mistakes:
        E, K, right = routing.num_experts, routing.per_token or 1, routing.load_E()
        first_E, last_E = (routing.expert_N[k::K].bincount(minlength=E) for k in (0, K - 1))
        missing = "experts that got nothing are missing: there are E experts, used or not"
        tokens = "this counts the pairs of each token, not of each expert"
        return [
            ("only first choices are counted; each token has K of them", first_E),
            ("only last choices are counted; each token has K of them", last_E),
            ("only the scores' favourites are counted; count the pairs that were made",
             routing.logits_TE.argmax(-1).bincount(minlength=E)),
            ("these are shares; the load is a number of pairs", right / right.sum()),
            ("this is a load for each token: do not divide", right / routing.num_tokens),
            (missing, routing.expert_N.bincount()),
            (missing, right[right > 0]),
            ("these are sums of gates; the load counts pairs", routing.gates_TE().sum(0)),
            ("these are sums of probabilities: belief, not what was done", routing.probs_TE.sum(0)),
            (tokens, routing.token_N.bincount()),
            (tokens, routing.token_N.bincount(minlength=E)),
            ("this says which experts were used; the load says how often", (right > 0).long()),
        ]  # fmt: skip

    check = Check("load", load, lambda routing: routing.load_E().long(), mistakes,
                  "not the number of pairs of each expert")  # fmt: skip
    for trace, what in _traces():
        for layer, routing in enumerate(trace.layers):
            check.on(f"{what}, layer {layer}", routing)
    check.passed("every pair counted once, idle experts included.")


def check_networks_used(networks_used: Callable[[RoutingTrace, Sequence[int]], int]) -> None:
    """Check (trace, tokens) -> how many different expert networks those tokens met."""

    def met(trace: RoutingTrace, tokens: Sequence[int]) -> list[tuple[int, int]]:
        return [
            (layer, expert)
            for layer, routing in enumerate(trace.layers)
            for token in tokens
            for expert in _mine(routing, token)[0]
        ]

    def mistakes(trace: RoutingTrace, tokens: Sequence[int]) -> Mistakes:
        pairs, L = met(trace, tokens), len(trace.layers)
        first = {step for token in tokens for step in enumerate(_path(trace, token))}
        listed = {(layer, _mine(routing, token)[0][0])
                  for layer, routing in enumerate(trace.layers) for token in tokens}  # fmt: skip
        paths = {tuple(_path(trace, token)) for token in tokens}
        return [
            ("a network that two tokens share is counted twice; count different ones", len(pairs)),
            ("a network that two tokens share is counted twice; count different ones",
             sum(len(set(met(trace, [token]))) for token in tokens)),
            ("expert 3 of one layer and expert 3 of the next are two networks: count (layer, "
             "expert)", len({expert for _, expert in pairs})),
            ("every expert of every layer is counted; a token meets only those it was sent to",
             sum(r.num_experts for r in trace.layers)),
            ("this is the last layer alone", len({e for layer, e in pairs if layer == L - 1})),
            ("this is the first layer alone", len({e for layer, e in pairs if layer == 0})),
            ("only first choices are counted; the second choice did work too", len(first)),
            ("only first choices are counted; the second choice did work too", len(listed)),
            ("these are different ways through the layers; count the networks on them", len(paths)),
            ("all tokens are counted", len(set(met(trace, range(len(trace.tokens)))))),
            ("only one of the tokens is counted", len(set(met(trace, tokens[:1]))))]  # fmt: skip

    check = Check("networks_used", networks_used, lambda *args: len(set(met(*args))), mistakes,
                  "not the number of networks")  # fmt: skip
    for trace, what in _traces():
        T = len(trace.tokens)
        for tokens in ([0], [0, 1], [T - 1, 1], [2, 0, 1], list(range(T))):
            check.on(f"{what}, tokens {tokens}", trace, tokens)
    check.passed("shared networks once, the same number in two layers twice.")


def _path(trace: RoutingTrace, token: int) -> list[int]:
    return [_first(routing, token) for routing in trace.layers]


def _traces() -> list[tuple[RoutingTrace, str]]:
    """Make a trace to do by hand, and some to leave to the function."""
    by_hand = [[[0.1, 0.1, 0.6, 0.2], [0.5, 0.1, 0.1, 0.3], [0.15, 0.05, 0.7, 0.1]],
               [[0.3, 0.6, 0.05, 0.05], [0.1, 0.5, 0.3, 0.1], [0.2, 0.05, 0.65, 0.1]],
               [[0.3, 0.1, 0.1, 0.5], [0.2, 0.3, 0.1, 0.4], [0.25, 0.1, 0.05, 0.6]]]  # fmt: skip
    logits = torch.tensor(by_hand).log()
    few_LTE, bias_E = randn(3, 3, 8, 5), 2 * randn(4, 5)
    bias_E[few_LTE[0, 0].argmax()] -= 4  # whatever was drawn, the first token shows it
    biased = "chosen with a bias, so that the best score is not always the first choice"
    return [
        (_trace(logits, 2), "three tokens, three layers, four experts"),
        (_trace(randn(1, 3, 9, 6) - torch.arange(6) * 0.8, 2), "nine tokens, three layers"),
        (_trace(randn(2, 4, 7, 8), 3), "seven tokens with three choices, four layers"),
        (_trace(few_LTE, 2, bias_E), f"eight tokens, three layers, {biased}"),
    ]


def _trace(logits_LTE: Tensor, k: int, bias_E: Tensor | None = None) -> RoutingTrace:
    layers = []
    for logits_TE in logits_LTE:
        probs_TE = logits_TE.softmax(dim=-1)
        by_TE = logits_TE if bias_E is None else logits_TE + bias_E
        expert_TK = by_TE.topk(k).indices  # as routers list them: the order of the choice
        gate_TK = probs_TE.gather(1, expert_TK)
        gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
        layers.append(Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK))
    names = tuple(f"layers.{i}" for i in range(len(layers)))
    tokens = [f"token {t}" for t in range(logits_LTE.shape[1])]
    return RoutingTrace(tokens, tuple(layers), names, "made by hand")
