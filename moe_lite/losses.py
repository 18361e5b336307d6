"""Losses and measures of balance: pure functions of a :class:`~moe_lite.routing.Routing`.

Each takes one layer's routing, or several (none: ValueError) and gives their mean. Padding does
not count: a routing made with a mask brings it along (``routing.mask_T``); for others, give
``mask_T``. All are made of sums over tokens. Where the tokens are one rank's share of a batch,
``all_reduce`` adds up those sums over the ranks and lets gradients through; the loss is then the
whole batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from .routing import Routing

AllReduce = Callable[[Tensor], Tensor]
P = ParamSpec("P")


def here(amount: Tensor) -> Tensor:
    """Return a sum over the tokens of one process, which has them all, as it is."""
    return amount


def of_layers(
    loss: Callable[Concatenate[Routing, P], Tensor],
) -> Callable[Concatenate[Routing | Sequence[Routing], P], Tensor]:
    """Make a loss of one layer's routing take several, and return their mean."""

    @wraps(loss)
    def mean(routing: Routing | Sequence[Routing], *args: P.args, **options: P.kwargs) -> Tensor:
        if isinstance(routing, Routing):
            return loss(routing, *args, **options)
        if not (layers := [loss(layer, *args, **options) for layer in routing]):
            raise ValueError("there are no routings to measure")
        return torch.stack(layers).mean()

    return mean


def token_weights(routing: Routing, mask_T: Tensor | None) -> Tensor:
    """Return each token's weight, 1, or 0 where the mask says padding: (T,), the probs' type."""
    mask_T = routing.masked(mask_T).mask_T
    if mask_T is None:
        return routing.probs_TE.new_ones(routing.num_tokens)
    return mask_T.to(routing.probs_TE.dtype)


def scored(routing: Routing) -> Routing:
    """Return it, or raise ValueError if a trace has no scores (a gradient means there are)."""
    x_TE, compiled = routing.logits_TE, torch.compiler.is_compiling()
    look = x_TE.is_cpu and not (x_TE.requires_grad or compiled)  # a GPU would have to wait
    if look and len(x_TE) and x_TE.isnan().all():
        raise ValueError("the router's scores are unknown, all NaN, and this takes the scores")
    return routing


def sums(
    routing: Routing, mask_T: Tensor | None, all_reduce: AllReduce, choices: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of the real tokens, each expert's pairs (E,) and probabilities (E,), and count ()."""
    # 1. whose pairs count
    weight_T = token_weights(routing, mask_T)
    token_N, expert_N = routing.token_N, routing.expert_N
    # 2. of these, each token's best few: pairs n*K .. are the best first
    if choices is not None:
        K = routing.per_token
        if K is None or not 1 <= choices <= K:
            raise ValueError(f"choices must be between 1 and the {K} of a token, not {choices}")
        token_N, expert_N = (x.view(-1, K)[:, :choices].reshape(-1) for x in (token_N, expert_N))
    # 3. sums over tokens, which ranks can add up
    weight_N = weight_T.index_select(0, token_N)
    pairs_E = weight_T.new_zeros(routing.num_experts).index_add(0, expert_N, weight_N)
    probs_E = weight_T @ routing.probs_TE
    return all_reduce(pairs_E), all_reduce(probs_E), all_reduce(weight_T.sum())


@of_layers
def load_balancing_loss(
    routing: Routing, mask_T: Tensor | None = None, *, choices: int | None = None,
    all_reduce: AllReduce = here,
) -> Tensor:  # fmt: skip
    """Return the load-balancing loss without its weight: E * sum(f * P).

    f_e is the share of all pairs, before any are dropped, that go to expert e; P_e is its mean
    probability. With K = 1 this is the Switch loss; at balance it is 1 for any K.

    >>> uniform = Routing.from_choices(
    ...     torch.zeros(8, 4), torch.full((8, 4), 0.25),
    ...     torch.arange(8).view(8, 1) % 4, torch.ones(8, 1))
    >>> load_balancing_loss(uniform).item()
    1.0

    Args:    mask_T: True (or 1) for real tokens; padding then counts neither in f nor in P.
             choices: count in f only each token's first few; GShard's loss counts one.
    Returns: scalar, dimensionless; carries the router's gradient through P only.
    Raises:  ValueError if the mask's length differs from the number of tokens, a token does not
             have so many choices, or there are no scores.
    Source:  Fedus, Zoph, Shazeer 2021 (arXiv:2101.03961), eqs. 4-6, without the factor alpha;
             choices=1: Lepikhin et al. 2020 (arXiv:2006.16668), algorithm 1, times E squared.
    """
    # counts have no gradient; the router hears of them through its probabilities
    pairs_E, probs_E, tokens = sums(scored(routing), mask_T, all_reduce, choices)
    f_E = pairs_E / pairs_E.sum().clamp(min=1)
    return routing.num_experts * (f_E * probs_E / tokens.clamp(min=1)).sum()


def mixtral_aux_loss(
    routings: Sequence[Routing], mask_T: Tensor | None = None, *, all_reduce: AllReduce = here
) -> Tensor:
    """Return the load-balancing loss as the published Mixtral code computes it.

    The layers' tokens are pooled *before* f and P are multiplied, so one layer's imbalance can
    hide another's; and f is not divided by K, so its value at balance is K.

    Returns: scalar, dimensionless, without ``router_aux_loss_coef``.
    Raises:  ValueError if there is no layer, no scores, or the mask's length differs.
    Source:  ``load_balancing_loss_func`` in Hugging Face transformers' Mixtral.
    """
    if not routings:
        raise ValueError("there are no routings to balance")
    # first over all layers, then the product
    layers = zip(*(sums(scored(r), mask_T, all_reduce) for r in routings), strict=True)
    pairs_E, probs_E, tokens = (torch.stack(part).sum(0) for part in layers)
    tokens = tokens.clamp(min=1)
    return routings[0].num_experts * (pairs_E / tokens * probs_E / tokens).sum()


@of_layers
def router_z_loss(
    routing: Routing, mask_T: Tensor | None = None, *, all_reduce: AllReduce = here
) -> Tensor:
    """Return the router z-loss, which keeps logits small: the mean of (log sum_e exp logits)^2.

    >>> r = Routing.from_choices(
    ...     torch.zeros(3, 4), torch.full((3, 4), 0.25),
    ...     torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1))
    >>> round(router_z_loss(r).item(), 4)  # log(4)^2
    1.9218

    Returns: scalar, dimensionless.
    Raises:  ValueError if the mask's length differs from the number of tokens, or no scores.
    Source:  Zoph et al. 2022 (arXiv:2202.08906), eq. 5; the square is theirs.
    """
    weight_T = token_weights(routing, mask_T)
    z_T = scored(routing).logits_TE.logsumexp(dim=-1).square()
    return all_reduce((weight_T * z_T).sum()) / all_reduce(weight_T.sum()).clamp(min=1)


@of_layers
def max_violation(routing: Routing, *, all_reduce: AllReduce = here) -> Tensor:
    """Return the imbalance, (largest load - mean load) / mean load: 0 is perfect balance.

    Pairs are counted before any are dropped: it is what the router asks for.

    Returns: scalar, dimensionless, without gradient.
    Source:  Wang et al. 2024 (arXiv:2408.15664), eq. 4 (MaxVio of one batch).
    """
    pairs_E = sums(routing, None, all_reduce)[0].detach()
    return pairs_E.max() / pairs_E.mean().clamp(min=1e-9) - 1


@of_layers
def drop_rate(routing: Routing, *, all_reduce: AllReduce = here) -> Tensor:
    """Return the share of the pairs that was dropped at capacity; padding's pairs do not count.

    Returns: scalar from 0 to 1, without gradient.
    """
    # a pair counts if its token does
    weight_N = token_weights(routing, None).index_select(0, routing.token_N)
    dropped_N = weight_N * (0.0 if routing.keep_N is None else ~routing.keep_N)
    return all_reduce(dropped_N.sum()) / all_reduce(weight_N.sum()).clamp(min=1)
