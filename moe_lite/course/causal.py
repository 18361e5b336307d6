"""Ask what an expert is for: change where tokens go, and see what else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..layer import MoELayer
from ..model import Mixtral
from ..routers import Scores
from ..routing import Routing

Kind = Literal["force", "ablate", "ban", "swap", "top_k"]
Tokens = int | Iterable[int] | Tensor | None


@dataclass(frozen=True)
class Intervention:
    """Name one change of the routing; made by :func:`force`, :func:`ablate` and the others.

    Args: layer: which, counted from 0; None: every layer. expert, other: the experts meant.
          k: experts per token; each where it means something. tokens: positions in the
          flattened batch; None: all tokens.
    """

    kind: Kind
    layer: int | None
    expert: int = -1
    other: int = -1
    k: int = 0
    tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"an intervention is one of {get_args(Kind)}, not {self.kind!r}")
        object.__setattr__(self, "tokens", _positions(self.tokens))

    def __str__(self) -> str:
        what = {
            "swap": f"swap experts {self.expert} and {self.other}",
            "top_k": f"{self.k} expert{'' if self.k == 1 else 's'} per token",
        }.get(self.kind, f"{self.kind} expert {self.expert}")
        where = "every layer" if self.layer is None else f"layer {self.layer}"
        if self.tokens is None:
            return f"{what} in {where}, for all tokens"
        named = ", ".join(map(str, self.tokens[:5])) + (", …" if len(self.tokens) > 5 else "")
        return f"{what} in {where}, for token{'' if len(self.tokens) == 1 else 's'} {named}"


def _positions(tokens: Tokens) -> tuple[int, ...] | None:
    if tokens is None:
        return None
    listed: Any = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    try:
        found = list(listed) if isinstance(listed, Iterable) else [listed]
        if any(isinstance(t, bool) for t in found):
            raise TypeError
        positions = tuple(sorted({index(t) for t in found}))
    except TypeError as error:
        raise ValueError(f"tokens must be positions (whole numbers), not {tokens!r}") from error
    if positions and positions[0] < 0:
        raise ValueError(f"token {positions[0]} cannot be: positions count from 0")
    return positions


def force(layer: int, expert: int, tokens: Tokens = None) -> Intervention:
    """Put an expert among a token's K, in place of its last choice; the gates follow the rule.

    Its gate is what the router's rule makes of its own score, however small. Together with
    ``top_k(1)`` it is the token's only expert.
    """
    return Intervention("force", layer, expert, tokens=tokens)  # type: ignore[arg-type]


def ablate(layer: int, expert: int, tokens: Tokens = None) -> Intervention:
    """Let an expert's pairs contribute nothing; the token's other gates stay as they are.

    The pairs stay, with a gate of 0, so that every other sum in the layer keeps its bits.
    """
    return Intervention("ablate", layer, expert, tokens=tokens)  # type: ignore[arg-type]


def ban(layer: int, expert: int, tokens: Tokens = None) -> Intervention:
    """Let the router choose as if an expert did not exist: it takes its next best."""
    return Intervention("ban", layer, expert, tokens=tokens)  # type: ignore[arg-type]


def swap(layer: int, a: int, b: int, tokens: Tokens = None) -> Intervention:
    """Send the pairs of expert a to b and those of b to a, each with the gate it had."""
    return Intervention("swap", layer, a, b, tokens=tokens)  # type: ignore[arg-type]


def top_k(k: int, layer: int | None = None, tokens: Tokens = None) -> Intervention:
    """Let tokens have their k best experts instead of K; None: in every layer."""
    return Intervention("top_k", layer, k=k, tokens=tokens)  # type: ignore[arg-type]


@contextmanager
def intervene(model: Mixtral, *interventions: Intervention) -> Iterator[Mixtral]:
    """Change the routing of a model while the block runs; afterwards nothing is left of it.

    ::

        with intervene(model, ablate(3, 5), force(0, 2, tokens=[7])):
            changed = model(ids_BS).logits_BSV

    In each layer first the router chooses, from scores in which force and ban are written, and
    as many as top_k says; it weighs and limits as it always does. Then pairs are swapped and
    ablated, in the order given. A token that no intervention names keeps its experts and gates,
    to the bit; where experts have a capacity, it may find or lose a place. Losses and traces see
    the changed routing.

    With a KV cache the position of a token of a single text is that in the whole text, so that
    :meth:`~moe_lite.model.Mixtral.generate` can be changed from any new token on; of several
    texts, only the tokens of the first call, the prompts, have positions.

    Raises: ValueError for a layer, an expert, a k or (when the model runs) a position that does
            not exist; for force and ban of one expert at once, or fewer experts left than k; for
            a router that does not choose as its scores ask, which only takes swap and ablate.
    """
    if not isinstance(model, Mixtral):
        raise ValueError(f"interventions need moe_lite's Mixtral, not a {type(model).__name__}")
    plans = [[i for i in interventions if i.layer in (None, n)] for n in range(len(model.layers))]
    for i in interventions:
        _check(model, i)
    with ExitStack() as hooks:
        for block, mine in zip(model.layers, plans, strict=True):
            if mine:
                layer: MoELayer = block.block_sparse_moe  # type: ignore[assignment]
                changer = _Changer(layer, mine)
                hooks.callback(block.register_forward_pre_hook(changer.place).remove)
                hooks.callback(layer.gate.register_forward_hook(changer.change).remove)
                hooks.enter_context(changer.in_place())
        yield model


@contextmanager
def replay(model: Mixtral, routings: Sequence[Routing]) -> Iterator[Mixtral]:
    """Let each layer take the experts of a recorded run, weighed by its scores of now.

    ::

        with replay(model, recorded.routings):
            replayed = model(ids_BS).logits_BSV

    What the router would choose now does not matter; its scores still do, and carry a gradient.

    Raises: ValueError if the routings are not one for each layer, of K experts for each token;
            when the model runs, if they are not those of as many tokens.
    Source: Ma et al. 2025, "Stabilizing MoE Reinforcement Learning by Aligning Training and
            Inference Routers", arXiv:2510.11370.
    """
    gates: list[Any] = [layer.gate for layer in model.moe_layers]
    if len(routings) != len(gates):
        raise ValueError(f"{len(routings)} routings cannot be replayed in {len(gates)} layers")
    if any(routing.per_token is None for routing in routings):
        raise ValueError("only routings of one number of experts per token can be replayed")

    def recorded(gate: Any, routing: Routing) -> Callable[..., Routing]:
        own, expert_TK = gate.choose, routing.expert_N.view(routing.num_tokens, -1)
        T, K = expert_TK.shape

        def choose(scores: Scores, k: int | None = None) -> Routing:
            if len(scores.choose_TE) != T:
                raise ValueError(f"{T} tokens were recorded, {len(scores.choose_TE)} are read now")
            # 1. rank the recorded experts as they stood, and no other
            rank_TK = torch.arange(K, 0, -1, device=expert_TK.device).expand(T, K)
            wish_TE = torch.full_like(scores.choose_TE, -torch.inf)
            wish_TE = wish_TE.scatter(1, expert_TK, rank_TK.to(wish_TE.dtype))
            # 2. let the router choose and weigh them
            routing: Routing = own(replace(scores, choose_TE=wish_TE), K)
            if not torch.equal(routing.expert_N, expert_TK.flatten()):
                raise ValueError(f"{type(gate).__name__} does not choose by one top-k of scores: "
                                 "its choices cannot be replayed")  # fmt: skip
            return routing

        return choose

    before = [vars(gate).get("choose") for gate in gates]  # where another block does the same
    try:
        for gate, routing in zip(gates, routings, strict=True):
            vars(gate)["choose"] = recorded(gate, routing)
        yield model
    finally:
        for gate, own in zip(gates, before, strict=True):
            vars(gate).pop("choose", None)
            if own is not None:
                vars(gate)["choose"] = own


@contextmanager
def steer(
    model: Mixtral,
    up: Iterable[tuple[int, int]] = (),
    down: Iterable[tuple[int, int]] = (),
    margin: float = 0.1,
) -> Iterator[Mixtral]:
    """Score some experts, each a (layer, expert), above all others, and some below all others.

    A token's log-probabilities of its experts are changed: of those in up to the largest plus the
    margin, of those in down to the least minus it. The router then chooses and weighs by a softmax
    of the new ones, so an expert in up is chosen and has the largest weight.

    Raises: ValueError for an expert that does not exist, or is to go up and down; in the
            run, for a router whose scores are no softmax of its logits.
    Source: Fayyaz et al. 2025, "Steering MoE LLMs via Expert (De)Activation", arXiv:2509.09660,
            as told in a review of it.
    """
    up, down = list(up), list(down)
    gates: list[Any] = [layer.gate for layer in model.moe_layers]
    for at, expert in up + down:
        if not (0 <= at < len(gates) and 0 <= expert < model.config.num_local_experts):
            raise ValueError(f"the model has no expert {expert} in layer {at}")
        if (at, expert) in up and (at, expert) in down:
            raise ValueError(f"expert {expert} of layer {at} is to go up and down")

    def steered(gate: Any, above: list[int], below: list[int]) -> Callable[..., Scores]:
        own: Callable[..., Scores] = gate.score

        def score(x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
            scores = own(x_TD, ids_T)
            log_TE = scores.logits_TE.log_softmax(dim=-1)
            if not (torch.allclose(log_TE.exp(), scores.choose_TE, atol=1e-6)
                    and torch.equal(scores.choose_TE, scores.weigh_TE)):  # fmt: skip
                name = type(gate).__name__
                raise ValueError(f"{name} has other scores than a softmax of its logits")
            new_TE = log_TE.clone()
            new_TE[:, above] = log_TE.amax(1, keepdim=True) + margin
            new_TE[:, below] = log_TE.amin(1, keepdim=True) - margin
            return Scores.softmax(new_TE)

        return score

    try:
        for at, gate in enumerate(gates):
            above, below = ([e for layer, e in who if layer == at] for who in (up, down))
            if above or below:
                vars(gate)["score"] = steered(gate, above, below)
        yield model
    finally:
        for gate in gates:
            vars(gate).pop("score", None)


def _check(model: Mixtral, i: Intervention) -> None:
    L = len(model.layers)
    if i.layer is not None and not (type(i.layer) is int and 0 <= i.layer < L):
        raise ValueError(f"layer must be from 0 to {L - 1}, not {i.layer!r}")
    if i.layer is None and i.kind != "top_k":
        raise ValueError(f"{i.kind} needs a layer: expert {i.expert} of another is another network")
    E = model.config.num_local_experts
    if i.kind == "top_k":
        if not (type(i.k) is int and 1 <= i.k <= E):
            raise ValueError(f"k must be from 1 to {E}, not {i.k!r}")
        return
    for expert in (i.expert, i.other) if i.kind == "swap" else (i.expert,):
        if not (type(expert) is int and 0 <= expert < E):
            raise ValueError(f"expert must be from 0 to {E - 1}, not {expert!r}")
    if i.expert == i.other:
        raise ValueError(f"swap needs two experts, not {i.expert} twice")


class _Changer:
    """Stand in for one layer's router where it chooses, and change what it then answers."""

    def __init__(self, layer: MoELayer, interventions: list[Intervention]):
        self.gate = layer.gate
        self.choosing = [i for i in interventions if i.kind in ("force", "ban", "top_k")]
        self.moving = [i for i in interventions if i.kind in ("swap", "ablate")]
        self.own: Callable[..., Routing] | None = getattr(layer.gate, "choose", None)
        self.start, self.texts, self.cached, self.asked = 0, 1, False, False

    def place(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Note, before the layer runs, where in the text its tokens stand."""
        x_BSD, _, _, cache, *_ = args
        self.start, self.cached = (0, False) if cache is None else (cache.length, True)
        self.texts, self.asked = len(x_BSD), False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Choose for the router while the block runs."""
        before = vars(self.gate).get("choose")  # where another block does the same
        if self.own is not None:
            vars(self.gate)["choose"] = self.choose
        try:
            yield
        finally:
            vars(self.gate).pop("choose", None)
            if before is not None:
                vars(self.gate)["choose"] = before

    def named(self, tokens: tuple[int, ...] | None, like_TE: Tensor) -> Tensor:
        """Return which of this call's tokens an intervention names: bool (T,)."""
        T, device = len(like_TE), like_TE.device
        if tokens is None:
            return torch.ones(T, dtype=torch.bool, device=device)
        hit_T = torch.zeros(T, dtype=torch.bool, device=device)
        if self.texts > 1 and self.start:
            return hit_T
        growing = self.cached and self.texts == 1  # a later token may yet come
        if tokens and tokens[-1] >= T and not growing:
            raise ValueError(f"token {tokens[-1]} is not among the {T} of the batch")
        hit_T[[t - self.start for t in tokens if self.start <= t < self.start + T]] = True
        return hit_T

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        """Let the router choose as it is, and again as it is asked to for the tokens named."""
        assert self.own is not None
        self.asked, before = True, self.own(scores, k)
        hits = [(i, self.named(i.tokens, scores.choose_TE)) for i in self.choosing]
        if not any(hit_T.any() for _, hit_T in hits):
            return before
        wish = _Wish(scores, before, hits)
        if before.per_token is None:
            raise self._refusal()
        # Each number of experts is a choice of its own, of which its tokens keep their rows.
        parts = [_only(before, ~wish.touched_T)]
        for few in wish.k_T[wish.touched_T].unique().tolist():
            again = self.own(wish.scores, few)
            parts.append(_only(again, wish.touched_T & (wish.k_T == few)))
        routing = _joined(before, parts, scores.choose_TE, wish)
        if not wish.granted(routing):
            raise self._refusal()
        return routing

    def change(self, gate: nn.Module, args: Any, routing: Routing) -> Routing:
        """Swap and ablate in the router's answer."""
        if not self.asked and any(
            self.named(i.tokens, routing.logits_TE).any() for i in self.choosing
        ):
            raise self._refusal()
        for i in self.moving:
            hit_N = self.named(i.tokens, routing.logits_TE).index_select(0, routing.token_N)
            if i.kind == "ablate":
                gone_N = hit_N & (routing.expert_N == i.expert)
                routing = replace(routing, gate_N=routing.gate_N.masked_fill(gone_N, 0.0))
            else:
                is_a_N, is_b_N = (hit_N & (routing.expert_N == e) for e in (i.expert, i.other))
                expert_N = routing.expert_N.masked_fill(is_a_N, i.other)
                routing = replace(routing, expert_N=expert_N.masked_fill(is_b_N, i.expert))
        return routing

    def _refusal(self) -> ValueError:
        return ValueError(
            f"{type(self.gate).__name__} does not choose by one top-k of scores: "
            "only swap and ablate can be done to it"
        )


class _Wish:
    """Write what is asked of a choice into the scores.

    Shapes: touched_T, the tokens named; k_T, each token's number of experts; scores, in which
            a forced expert has +inf and a banned one -inf.
    """

    def __init__(self, scores: Scores, before: Routing, hits: list[tuple[Intervention, Tensor]]):
        T = before.num_tokens
        self.touched_T = torch.stack([hit_T for _, hit_T in hits]).any(0)
        self.k_T = torch.bincount(before.token_N, minlength=T)
        self.forced_TE = torch.zeros_like(scores.choose_TE, dtype=torch.bool)
        self.banned_TE = torch.zeros_like(self.forced_TE)
        for i, hit_T in hits:
            if i.kind == "top_k":
                self.k_T = self.k_T.masked_fill(hit_T, i.k)
            else:
                (self.forced_TE if i.kind == "force" else self.banned_TE)[:, i.expert] |= hit_T
        wish_TE = scores.choose_TE.detach()
        wish_TE = wish_TE.masked_fill(self.forced_TE, torch.inf)
        wish_TE = wish_TE.masked_fill(self.banned_TE, -torch.inf)
        for bad_T, complaint in (
            ((self.forced_TE & self.banned_TE).any(1), "one expert is both forced and banned"),
            (self.forced_TE.sum(1) > self.k_T, "more experts are forced than it has"),
            (
                (wish_TE > -torch.inf).sum(1) < self.k_T,
                "fewer experts are left to choose from than it has",
            ),
        ):
            if (bad_T & self.touched_T).any():
                raise ValueError(f"token {int((bad_T & self.touched_T).nonzero()[0])}: {complaint}")
        self.scores = replace(scores, choose_TE=wish_TE)

    def granted(self, routing: Routing) -> bool:
        """Return whether a router did what it was asked to; one that looks elsewhere does not."""
        got_TE = torch.zeros_like(self.forced_TE)
        got_TE[routing.token_N, routing.expert_N] = True
        bad_TE = (self.forced_TE & ~got_TE) | (self.banned_TE & got_TE)
        k_T = torch.bincount(routing.token_N, minlength=len(self.k_T))
        return not bool(bad_TE.any() or (k_T != self.k_T).any())


def _only(routing: Routing, who_T: Tensor) -> Routing:
    """Return the pairs of some tokens."""
    mine_N = who_T.index_select(0, routing.token_N)
    return replace(
        routing,
        token_N=routing.token_N[mine_N],
        expert_N=routing.expert_N[mine_N],
        gate_N=routing.gate_N[mine_N],
        keep_N=None if routing.keep_N is None else routing.keep_N[mine_N],
    )


def _joined(before: Routing, parts: list[Routing], own_TE: Tensor, wish: _Wish) -> Routing:
    """Return one routing of several tokens' pairs, in the tokens' order and each best first."""
    token_N, expert_N, gate_N = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("token_N", "expert_N", "gate_N")
    )
    keep_N = None
    if any(part.keep_N is not None for part in parts):
        every = [torch.ones_like(p.token_N).bool() if p.keep_N is None else p.keep_N for p in parts]
        keep_N = torch.cat(every)
    # A forced expert need not be the best. The pairs of untouched tokens keep their order.
    own_N = own_TE.detach()[token_N, expert_N].where(wish.touched_T[token_N], 0.0)
    order_N = own_N.argsort(descending=True, stable=True)
    order_N = order_N[token_N[order_N].argsort(stable=True)]
    k_T = wish.k_T
    return replace(
        before,
        token_N=token_N[order_N],
        expert_N=expert_N[order_N],
        gate_N=gate_N[order_N],
        keep_N=keep_N if keep_N is None else keep_N[order_N],
        per_token=int(k_T.max()) if bool((k_T == k_T.max()).all()) else None,
    )
