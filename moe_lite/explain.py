"""Explain a recorded choice: which scores, bias and groups it follows from, if from any."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .routing import Routing

SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_TE: logits_TE.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrt softplus": lambda logits_TE: F.softplus(logits_TE).sqrt(),
}
GROUPS, KEPT = ("n_group", "num_group", "num_expert_group"), ("topk_group", "num_limited_groups")


@dataclass(frozen=True, eq=False)
class Facts:
    """Hold what a block says of its routing besides the scores.

    Args: biases, scales: (E,) for the choice, and for the weights. groups: of experts, and how
          many of them a token may use. named: SCORES that its code names. scored: whether
          logits were found. eps: the rounding of the model's type.
    """

    biases: list[Tensor]
    scales: list[Tensor]
    groups: tuple[int, int]
    named: list[str]
    scored: bool
    eps: float

    @classmethod
    def of(cls, block: nn.Module, E: int, scored: bool) -> Facts:
        """Read them from a block, as they stand now."""
        vectors = {
            name: tensor.detach().float().cpu().flatten().clone()
            for name, tensor in (*block.named_parameters(), *block.named_buffers())
            if tensor.numel() == E
        }
        sites = [m for n, m in block.named_modules() if "expert" not in n]
        sites += [m.config for m in sites if hasattr(m, "config")]
        sizes = [
            next((s for m in sites for n in names if isinstance(s := getattr(m, n, None), int)), 1)
            for names in (GROUPS, KEPT)
        ]
        modules = [m for n, m in block.named_modules() if "gate" in n or "router" in n]
        *gates, own = (cast(Hashable, type(module)) for module in (*modules, block))
        weights = [p for p in block.parameters() if p.is_floating_point()]
        return cls(
            [v for n, v in vectors.items() if "bias" in n and not n.endswith(".bias")],
            [v for n, v in vectors.items() if "per_expert_scale" in n],
            (sizes[0], sizes[1]),
            [name for kind in gates for name in _named(kind)] or _named(own),
            scored,
            max([1e-5, *(2 * torch.finfo(p.dtype).eps for p in weights)]),
        )


def explain(routing: Routing, facts: Facts) -> tuple[Routing, str]:
    """Return a routing with the probabilities and the bias that it follows from, and the rule.

    The weights must be a score of the logits, as it is, times one factor for all, or divided by
    the chosen ones' sum. The choice must be the K best of score plus bias, of the best groups.

    Returns: the routing, and the rule in words: with "unknown" in it if the choice follows from
             nothing that was found, and NaN for logits and probabilities if the weights do not.
    """
    logits_TE, chosen_TE = routing.logits_TE, torch.zeros_like(routing.logits_TE).bool()
    chosen_TE[routing.token_N, routing.expert_N] = True
    nan_TE = torch.full_like(logits_TE, torch.nan)
    unknown = replace(routing, logits_TE=nan_TE, probs_TE=nan_TE)
    if not facts.scored:
        return unknown, "scores unknown: no gate says them"
    if bool((logits_TE >= 0).all()) and float((logits_TE.sum(-1) - 1).abs().max()) < 1e-2:
        logits_TE = logits_TE.clamp_min(1e-30).log()  # it says the softmax in the logits' place
    # 1. which scores the weights are made of
    fits = []
    for name, score in SCORES.items():
        for scale_E in (*facts.scales, torch.ones(routing.num_experts)):
            off, spread = _misfit(routing, score(logits_TE) * scale_E)
            if off <= facts.eps:
                fits.append((spread > facts.eps, name not in facts.named, name))
    if not fits:
        return unknown, "scores unknown: the weights follow from none that the gate says"
    best, name = min(fits)[:2], min(fits)[2]
    if len({fit[2] for fit in fits if fit[:2] == best}) > 1:  # as with a single weight of 1
        return unknown, "scores unknown: the weights would follow from several"
    score_TE = SCORES[name](logits_TE)
    known = replace(
        routing, logits_TE=logits_TE, probs_TE=score_TE / score_TE.sum(dim=-1, keepdim=True)
    )
    # 2. what the choice ranks: first with all that the block has, then with less
    some_T = chosen_TE.any(-1) & (routing.gates_TE().ne(0).sum(-1) == chosen_TE.sum(-1))
    groups, kept = facts.groups
    for bias_E in (*facts.biases, None):
        for limited in ("top 2", "top 1", "") if 1 < groups > kept else ("",):
            for base, rank_TE in (("", score_TE), (" of the logits", logits_TE)):
                if bias_E is not None:
                    rank_TE = rank_TE + bias_E
                rank_TE = _limit(rank_TE, groups, kept, limited)
                if _best(rank_TE[some_T], chosen_TE[some_T], facts.eps):
                    rule = name + (f" + bias{base}" if bias_E is not None else "")
                    rule += f", {kept} of {groups} groups by {limited}" if limited else ""
                    return replace(known, bias_E=bias_E), rule
    return known, f"{name}; choice unknown: it is not the best of these scores"


@cache
def _named(kind: type) -> list[str]:
    try:
        code = inspect.getsource(kind).lower().replace("_", "")
    except (OSError, TypeError):  # typed in, not read from a file
        code = ""
    return [name for name in SCORES if name.replace(" ", "") in code]


def _misfit(routing: Routing, score_TE: Tensor) -> tuple[float, float]:
    """Measure how far the weights are from proportional to scores: in a token, and over all."""
    gate_N, score_N = routing.gate_N, score_TE[routing.token_N, routing.expert_N]
    zero_T = score_N.new_zeros(routing.num_tokens)
    score_N = score_N * gate_N.ne(0)  # what has no weight was left out
    gate_T, score_T = (zero_T.index_add(0, routing.token_N, x) for x in (gate_N, score_N))
    gate_T, score_T = gate_T.clamp_min(1e-30), score_T.clamp_min(1e-30)
    off_N = gate_N / gate_T[routing.token_N] - score_N / score_T[routing.token_N]
    off = off_N.abs().max() if len(gate_N) else zero_T.sum()
    factor_T = (gate_T / score_T)[gate_T > 1e-30]
    spread = (factor_T.max() - factor_T.min()) / factor_T.max() if len(factor_T) else 0.0
    return float(off), float(spread)


def _limit(rank_TE: Tensor, groups: int, kept: int, by: str) -> Tensor:
    """Leave each token its best groups of experts, by their best or their best two together."""
    T, E = rank_TE.shape
    if not by or E % groups:
        return rank_TE
    rank_TGM = rank_TE.view(T, groups, -1)
    best_TG = rank_TGM.topk(min(int(by[-1]), rank_TGM.shape[-1]), dim=-1).values.sum(-1)
    out_TG = torch.ones_like(best_TG).bool().scatter(1, best_TG.topk(kept, dim=-1).indices, False)
    return rank_TGM.masked_fill(out_TG[..., None], -torch.inf).view(T, E)


def _best(rank_TE: Tensor, chosen_TE: Tensor, eps: float) -> bool:
    """Return whether no expert that was passed over ranks above one that was chosen."""
    worst_T = rank_TE.masked_fill(~chosen_TE, torch.inf).min(-1).values
    passed_T = rank_TE.masked_fill(chosen_TE, -torch.inf).max(-1).values
    slack_T = eps * (1 + worst_T.abs().nan_to_num(0, 0, 0))
    return bool((worst_T >= passed_T - slack_T).all())
