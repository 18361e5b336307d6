"""Ask what an expert is for: change where tokens go, and see what else changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .layer import MoELayer
from .model import Mixtral
from .routers import (
    Capacity,
    GShardRouter,
    HashRouter,
    NoisyTopKRouter,
    SigmoidBiasRouter,
    SwitchRouter,
    TopKRouter,
    limit,
)
from .routing import Routing

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

    In each layer first what the router chooses is settled (force, ban and top_k, together), then
    pairs are swapped and ablated in the order given. Where a queue is limited, it is made anew
    from the new choice. A token that no intervention names keeps its experts and gates, to the
    bit. Losses and traces see the changed routing.

    With a KV cache the position of a token of a single text is that in the whole text, so that
    :meth:`~moe_lite.model.Mixtral.generate` can be changed from any new token on; of several
    texts, only the tokens of the first call, the prompts, have positions.

    Raises: ValueError for a layer, an expert, a k or (when the model runs) a position that does
            not exist; for force and ban of one expert at once, or fewer experts left than k; for
            a router whose choice is not one top-k of scores, which only takes swap and ablate.
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
        yield model


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
    """Change what one layer's gate answers."""

    def __init__(self, layer: MoELayer, interventions: list[Intervention]):
        self.layer, self.interventions = layer, interventions
        self.start, self.texts, self.cached = 0, 1, False

    def place(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Note, before the layer runs, where in the text its tokens stand."""
        x_BSD, _, _, cache, *_ = args
        self.start, self.cached = (0, False) if cache is None else (cache.length, True)
        self.texts = len(x_BSD)

    def named(self, tokens: tuple[int, ...] | None, T: int, device: torch.device) -> Tensor:
        """Say which of this call's tokens an intervention names: bool (T,)."""
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

    def change(self, gate: nn.Module, args: Any, routing: Routing) -> Routing:
        T, device = routing.num_tokens, routing.logits_TE.device
        hits = [(i, self.named(i.tokens, T, device)) for i in self.interventions]
        choosing = [(i, hit_T) for i, hit_T in hits if i.kind in ("force", "ban", "top_k")]
        touched_T = torch.zeros(T, dtype=torch.bool, device=device)
        for _, hit_T in choosing:
            touched_T |= hit_T
        if touched_T.any():
            routing = _chosen_anew(gate, routing, choosing, touched_T)
        for i, hit_T in hits:
            hit_N = hit_T.index_select(0, routing.token_N)
            if i.kind == "ablate":
                gone_N = hit_N & (routing.expert_N == i.expert)
                routing = replace(routing, gate_N=routing.gate_N.masked_fill(gone_N, 0.0))
            elif i.kind == "swap":
                is_a_N, is_b_N = (hit_N & (routing.expert_N == e) for e in (i.expert, i.other))
                expert_N = routing.expert_N.masked_fill(is_a_N, i.other)
                routing = replace(routing, expert_N=expert_N.masked_fill(is_b_N, i.expert))
        return routing


def _chosen_anew(
    gate: nn.Module,
    routing: Routing,
    choosing: list[tuple[Intervention, Tensor]],
    touched_T: Tensor,
) -> Routing:
    """Choose again for the tokens that were touched, and weigh by the router's own rule."""
    router = gate.router if isinstance(gate, Capacity) else gate
    wish_TE, weight_TE, divide = _rule(router, routing)  # type: ignore[arg-type]
    own_TE, T = wish_TE.detach(), routing.num_tokens
    k_T = torch.bincount(routing.token_N, minlength=T)
    forced_TE = torch.zeros_like(own_TE, dtype=torch.bool)
    banned_TE = torch.zeros_like(forced_TE)
    for i, hit_T in choosing:
        if isinstance(router, HashRouter) and i.kind != "force":
            raise ValueError(f"cannot {i}: a hash router's table knows no next best")
        if i.kind == "top_k":
            k_T = k_T.masked_fill(hit_T, i.k)
        else:
            (forced_TE if i.kind == "force" else banned_TE)[:, i.expert] |= hit_T
    for bad_T, complaint in (
        ((forced_TE & banned_TE).any(1), "one expert is both forced and banned"),
        (forced_TE.sum(1) > k_T, "more experts are forced than it has"),
        ((~banned_TE).sum(1) < k_T, "fewer experts are left than it has"),
    ):
        if (bad_T & touched_T).any():
            raise ValueError(f"token {int((bad_T & touched_T).nonzero()[0])}: {complaint}")
    wish_TE = own_TE.masked_fill(forced_TE, torch.inf).masked_fill(banned_TE, -torch.inf)
    K = int(k_T.max())
    expert_TK = wish_TE.topk(K, dim=-1).indices
    used_TK = torch.arange(K, device=k_T.device) < k_T[:, None]
    gate_TK = weight_TE.gather(1, expert_TK) * used_TK
    if divide:
        gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True).clamp(min=1e-20)
    # A forced expert need not be the best: best first again, those not used last.
    own_TK = own_TE.gather(1, expert_TK).where(used_TK, -torch.inf)
    order_TK = own_TK.argsort(dim=1, descending=True, stable=True)
    expert_TK, gate_TK = expert_TK.gather(1, order_TK), gate_TK.gather(1, order_TK)
    # The pairs of untouched tokens stay, those of the others are replaced, in the tokens' order.
    stay_N = ~touched_T.index_select(0, routing.token_N)
    new_TK = used_TK & touched_T[:, None]
    token_N = torch.cat([routing.token_N[stay_N], new_TK.nonzero()[:, 0]])
    token_N, order_N = token_N.sort(stable=True)
    changed = replace(
        routing,
        token_N=token_N,
        expert_N=torch.cat([routing.expert_N[stay_N], expert_TK[new_TK]])[order_N],
        gate_N=torch.cat([routing.gate_N[stay_N], gate_TK[new_TK]])[order_N],
        keep_N=None,
        per_token=K if bool((k_T == K).all()) else None,
    ).masked(routing.mask_T)
    if isinstance(gate, Capacity):
        return limit(changed, gate.factor, gate.priority, gate.group_size)
    if isinstance(gate, SwitchRouter):
        return limit(changed, gate.capacity_factor, group_size=gate.group_size)
    if isinstance(gate, GShardRouter):
        return limit(changed, gate.capacity_factor / 2, "choice", gate.group_size)
    return changed


def _rule(router: nn.Module, routing: Routing) -> tuple[Tensor, Tensor, bool]:
    """Tell how a router decides: by what it chooses, by what it weighs, whether it divides."""
    probs_TE = routing.probs_TE
    if isinstance(router, TopKRouter):
        return routing.logits_TE, probs_TE, router.renormalize or router.order == "topk_softmax"
    if isinstance(router, NoisyTopKRouter):
        return routing.logits_TE, probs_TE, True
    if isinstance(router, SigmoidBiasRouter):
        score_TE = routing.logits_TE.sigmoid()
        return score_TE + router.bias_E, score_TE, router.renormalize
    if isinstance(router, HashRouter):
        return probs_TE, torch.ones_like(probs_TE), True
    raise ValueError(
        f"{type(router).__name__} does not choose by one top-k of scores: "
        "only swap and ablate can be done to it"
    )


@dataclass(frozen=True, eq=False)
class Run:
    """Keep what a model made of a text.

    Shapes: ids_BS; logits_BSV; one routing per layer.
    """

    ids_BS: Tensor
    logits_BSV: Tensor
    routings: tuple[Routing, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Mixtral, ids_BS: Tensor, *interventions: Intervention) -> Run:
        """Run a text, in evaluation; the model is left in the mode it was in.

        Raises: ValueError as :func:`intervene` and the model do.
        """
        training = model.training
        try:
            with intervene(model.eval(), *interventions):
                out = model(ids_BS)
        finally:
            model.train(training)
        return cls(ids_BS, out.logits_BSV, out.routings)

    @cached_property
    def log_probs_BSV(self) -> Tensor:
        """Give the log-probability of every next token, float32."""
        return self.logits_BSV.float().log_softmax(dim=-1)

    @cached_property
    def loss_T(self) -> Tensor:
        """Give what each token of the flattened batch cost, given those before it, in nats.

        The first of each text is NaN: nothing predicted it. What an intervention at token t can
        change is the loss of the tokens after t.
        """
        told_BS1 = self.log_probs_BSV[:, :-1].gather(-1, self.ids_BS[:, 1:, None])
        first_B1 = torch.full_like(self.log_probs_BSV[:, :1, 0], torch.nan)
        return torch.cat([first_B1, -told_BS1[..., 0]], dim=1).flatten()


@dataclass(frozen=True, eq=False)
class Effect:
    """Hold a run as it was beside the same run with interventions."""

    base: Run
    changed: Run
    interventions: tuple[Intervention, ...]

    @property
    def rise_T(self) -> Tensor:
        """Give by how much each token's loss rose, in nats; NaN where it has none."""
        return self.changed.loss_T - self.base.loss_T


def effect(model: Mixtral, ids_BS: Tensor, *interventions: Intervention) -> Effect:
    """Run a text as it is and with interventions.

    >>> from moe_lite import MixtralConfig
    >>> model = Mixtral(MixtralConfig(vocab_size=64, hidden_size=32, intermediate_size=48,
    ...     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    >>> found = effect(model, torch.arange(10).view(1, 10), ablate(1, 3), ban(0, 2, tokens=4))
    >>> found.rise_T[:5].nan_to_num().abs().max() < 1, found.rise_T.shape
    (tensor(True), torch.Size([10]))

    Raises: ValueError as :func:`intervene` and the model do.
    """
    changed = Run.of(model, ids_BS, *interventions)
    return Effect(Run.of(model, ids_BS), changed, interventions)
