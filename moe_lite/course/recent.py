"""The layer of 2024 to 2026, as diffs: each router changes one step or two, each layer one.

They are here and not in the library because they are a year or two old. All that knows routers
takes them (``tests/conftest.py`` has them in its list), and a name is given when it is wanted::

    sweep(settings, seeds, routers={**ROUTERS, **RECENT})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..experts import Experts
from ..layer import MoELayer
from ..losses import load_balancing_loss, max_violation
from ..routers import HashRouter, Router, Scores, SigmoidBiasRouter, TopKRouter, linear_scores
from ..routing import Routing


def pairs(scores: Scores, chosen_TE: Tensor, gate_TE: Tensor) -> Routing:
    """Return the routing of any set of (token, expert) pairs, token by token."""
    token_N, expert_N = chosen_TE.nonzero(as_tuple=True)
    gate_N = gate_TE[token_N, expert_N]
    return Routing(scores.logits_TE, scores.probs_TE, token_N, expert_N, gate_N)


def real(scores: Scores) -> Tensor:
    """Return what the choice of a batch ranks, without padding: (T, E), detached."""
    mask_T, wish_TE = scores.mask_T, scores.choose_TE.detach()
    return wish_TE if mask_T is None else wish_TE[mask_T.reshape(-1).bool()]


class QuantileRouter(SigmoidBiasRouter):
    """Set the bias at once to what would have balanced the last batch: no rate, no loss.

    A token's bar is the best score, bias included, that it did not choose. An expert that lowers
    its scores by its (q+1)-largest margin over those bars keeps the q = T*K/E tokens that want it
    most. So the bias is a quantile of the margins.

    >>> router = QuantileRouter(4, num_experts=8, top_k=2)
    >>> x_TD = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    >>> for _ in range(40):
    ...     router.update(router(x_TD).load_E())
    >>> (router(x_TD).load_E() - 1000).abs().max() <= 20
    tensor(True)

    Source: Su 2026 (kexue.fm/archives/11619), and the Kimi K3 report, both by notes on them.
    """

    next_E: Tensor | None = None

    @torch.no_grad()
    def choose(self, scores: Scores, k: int | None = None) -> Routing:  # type: ignore[override]
        if self.training and (T := len(plain_TE := real(scores) - self.bias_E)):
            # 1. each token's bar: its best score that is not among the K
            bar_T1 = (plain_TE + self.bias_E).topk(min(self.top_k + 1, plain_TE.shape[1])).values
            margin_TE = plain_TE - bar_T1[:, -1:]
            # 2. each expert's share of the tokens, and the margin that the next one has
            q = T * self.top_k // margin_TE.shape[1]
            self.next_E = -margin_TE.topk(min(q + 1, T), dim=0).values[-1]
        with torch.enable_grad():
            return super().choose(scores, k)

    @torch.no_grad()
    def update(self, load_E: Tensor) -> None:
        """Take the bias that the last batch asked for."""
        if self.next_E is not None:
            self.bias_E.copy_(self.next_E)


class ThresholdRouter(TopKRouter):
    """Let an expert take every token above its own threshold: causal, and balanced on average.

    The threshold follows the score that expert choice would have stopped at: the K/E quantile of
    a batch, averaged over batches. A token is taken or not by itself, so nothing leaks; it may have
    many experts, or none.

    Args:   decay: of the average over batches. Shapes: threshold_E (E,), a float32 buffer.
    Source: Sun et al. 2026 (arXiv:2603.11535), abstract and introduction.
    """

    threshold_E: Tensor
    batches: Tensor
    next_E: Tensor | None = None

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, *,
                 decay: float = 0.99, **options: Any):  # fmt: skip
        super().__init__(hidden_size, num_experts, top_k, **{"renormalize": False} | options)
        self.decay = decay
        self.register_buffer("threshold_E", torch.full((num_experts,), 0.5))
        self.register_buffer("batches", torch.zeros(()))

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        score_TE = (logits_TE := linear_scores(x_TD, self.weight)).sigmoid()
        probs_TE = score_TE / score_TE.sum(-1, keepdim=True).clamp(min=1e-20)
        return Scores(logits_TE, probs_TE, score_TE, score_TE)

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        if self.training and len(wish_TE := real(scores)):
            count = max(1, len(wish_TE) * self.top_k // len(self.weight))
            self.next_E = wish_TE.topk(count, dim=0).values[-1]
        return pairs(scores, scores.choose_TE > self.threshold_E, scores.weigh_TE)

    @torch.no_grad()
    def update(self, load_E: Tensor) -> None:
        """Move the thresholds towards those of the last batch; the first batch sets them."""
        if self.next_E is not None:
            step = max(1 - self.decay, 1 / (1 + float(self.batches)))
            self.threshold_E.lerp_(self.next_E.to(self.threshold_E.dtype), step)
            self.batches += 1


class IdleRouter(TopKRouter):
    """Add experts that compute nothing: a token that chooses one spends less.

    All idle experts share one row of scores. What a token gives to them is lost to the sum, so that
    its gates add up to less than 1; the token itself passes beside the layer, as always.

    Args:   idle: how many of them there are beside the E. Shapes: idle_D (D,), their row.
    Source: Jin et al. 2024, MoE++ (arXiv:2410.07348), abstract; LongCat 2025, by notes on it.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, *, idle: int = 2,
                 **options: Any):  # fmt: skip
        super().__init__(hidden_size, num_experts, top_k, **options)
        self.idle = idle
        self.idle_D = torch.nn.Parameter(torch.randn(hidden_size) * hidden_size**-0.5)

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        logits_TE = linear_scores(x_TD, self.weight)
        idle_TI = linear_scores(x_TD, self.idle_D[None]).expand(-1, self.idle)
        share_TE = torch.cat([logits_TE, idle_TI], 1).softmax(-1)[:, : logits_TE.shape[1]]
        return Scores(logits_TE, logits_TE.softmax(-1), share_TE, share_TE)

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        # 1. an idle expert's share is what the others leave, divided among them
        idle_TI = (1 - scores.weigh_TE.sum(1, keepdim=True)).expand(-1, self.idle) / self.idle
        best_TK = torch.cat([scores.choose_TE, idle_TI], 1).topk(k or self.top_k).indices
        # 2. the chosen are weighed together, and the idle ones are left out
        share_TK = torch.cat([scores.weigh_TE, idle_TI], 1).gather(1, best_TK)
        gate_TK = share_TK / share_TK.sum(1, keepdim=True) if self.renormalize else share_TK
        E = scores.choose_TE.shape[1]
        chosen_TE = torch.zeros_like(scores.choose_TE, dtype=torch.bool)
        rows_T1 = torch.arange(len(best_TK), device=best_TK.device)[:, None].expand_as(best_TK)
        busy_TK = best_TK < E
        at = (rows_T1[busy_TK], best_TK[busy_TK])
        gate_TE = torch.zeros_like(scores.weigh_TE).index_put(at, gate_TK[busy_TK])
        return pairs(scores, chosen_TE.index_put(at, torch.tensor(True)), gate_TE)


class ReLURouter(TopKRouter):
    """Choose and weigh by ReLU: the experts above 0, smooth everywhere but at 0.

    How many that are is held by a penalty whose weight follows the share that is active, up by a
    factor if it is above K / E and down if it is below. ``penalty`` has to be added to the loss.

    Args:   factor: of one step. Shapes: weight_of_penalty (), a float32 buffer.
    Source: Wang et al. 2024, ReMoE (arXiv:2412.14711), abstract; the penalty's rule by notes on it,
            without its part that balances.
    """

    weight_of_penalty: Tensor

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, *,
                 factor: float = 1.2, **options: Any):  # fmt: skip
        super().__init__(hidden_size, num_experts, top_k, **{"renormalize": False} | options)
        self.factor, self.active = factor, 0.0
        self.register_buffer("weight_of_penalty", torch.tensor(1e-8))

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        logits_TE = linear_scores(x_TD, self.weight)
        return Scores(logits_TE, logits_TE.softmax(-1), logits_TE.detach(), logits_TE.relu())

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        chosen_TE = scores.choose_TE > 0
        if self.training and (T := len(real(scores))):
            self.active = float((real(scores) > 0).sum()) / (T * chosen_TE.shape[1])
        return pairs(scores, chosen_TE, scores.weigh_TE)

    @torch.no_grad()
    def update(self, load_E: Tensor) -> None:
        """Make the penalty heavier if too many experts are active, else lighter."""
        up = self.active > self.top_k / len(load_E)
        self.weight_of_penalty *= self.factor if up else 1 / self.factor

    def penalty(self, routing: Routing) -> Tensor:
        """Return the gates' sum for each token, in the weight of now: to be added to the loss."""
        return self.weight_of_penalty * routing.gate_N.sum() / max(1, routing.num_tokens)


class NodeLimitedRouter(SigmoidBiasRouter):
    """Let a token choose among the experts of at most M machines: what it sends, it sends so often.

    Experts lie on ``nodes`` machines, equally many on each, in order. A machine counts as much as
    its K / M best experts for this token together, bias included; those on the others are not in
    the choice.

    >>> router = NodeLimitedRouter(4, num_experts=16, top_k=4, nodes=4, most=2)
    >>> expert_TK = router(torch.randn(9, 4)).expert_N.view(9, 4)
    >>> max(len(set(row)) for row in (expert_TK // 4).tolist())
    2

    Args:   most: M, of the nodes.
    Raises: ValueError if the nodes do not divide the experts, or M of them hold fewer than K.
    Source: DeepSeek-AI 2024 (arXiv:2412.19437), section 2.1.2; the steps as in transformers' code.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, *,
                 nodes: int = 2, most: int = 1, **options: Any):  # fmt: skip
        super().__init__(hidden_size, num_experts, top_k, **options)
        if num_experts % nodes or not 1 <= most <= nodes or most * num_experts < top_k * nodes:
            raise ValueError(
                f"{most} of {nodes} nodes cannot give {top_k} of {num_experts} experts"
            )
        self.nodes, self.most = nodes, most

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        # 1. each node's best few, together; what is forced or banned is large, not infinite
        wish_TNe = scores.choose_TE.clamp(-1e4, 1e4).unflatten(1, (self.nodes, -1))
        best = min(-(-self.top_k // self.most), wish_TNe.shape[2])
        node_TM = wish_TNe.topk(best).values.sum(2).topk(self.most).indices
        # 2. nobody else is in the choice
        out_TN = torch.ones_like(wish_TNe[..., 0], dtype=torch.bool).scatter(1, node_TM, False)
        out_TE = out_TN.repeat_interleave(wish_TNe.shape[2], 1)
        open_TE = scores.choose_TE.masked_fill(out_TE, -torch.inf)
        return super().choose(replace(scores, choose_TE=open_TE), k)


class TableRouter(TopKRouter):
    """Look a token's K experts up by its id, and learn their weights alone.

    A hash layer for K experts, as DeepSeek-V4 has them in its first layers: there a token's vector
    has little in it but its id. The first expert is dealt like a card; the other K - 1 follow it
    at a fixed distance (of 8 experts with K = 2, e and e + 4 always come together).

    Args:   seed: of the deal. Shapes: expert_VK (V, K), a buffer.
    Raises: ValueError if the layer was not given the ids.
    Source: DeepSeek-AI 2026, DeepSeek-V4, section 4.2.1 (the first 3 layers); who weighs, from
            transformers' ``DeepseekV4HashRouter``; Roller et al. 2021 (arXiv:2106.04426).
    """

    expert_VK: Tensor

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, *, vocab_size: int,
                 seed: int = 0, **options: Any):  # fmt: skip
        super().__init__(hidden_size, num_experts, top_k, **options)
        dealt_V = HashRouter(vocab_size, num_experts, seed=seed).expert_V
        step_K = torch.arange(top_k) * (num_experts // top_k)
        self.register_buffer("expert_VK", (dealt_V[:, None] + step_K) % num_experts)

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        scores = super().score(x_TD)
        if ids_T is None or ids_T.numel() != len(x_TD):
            raise ValueError("a table router needs every token's id")
        listed_TE = torch.full_like(scores.probs_TE, -torch.inf)
        listed_TE = listed_TE.scatter(1, self.expert_VK[ids_T], scores.probs_TE.detach())
        return replace(scores, choose_TE=listed_TE)


class PoolRouter(TopKRouter):
    """While training, keep a document's tokens to a small pool of experts of its own.

    The pool are the experts that the document's tokens believe in most, on average; its size is
    drawn for each document, from K to E. In evaluation there is none, so that nothing leaks, until
    somebody keeps some of the experts only: ``kept_E``.

    Args:   document: tokens of a document, S of a batch (B, S); None: the batch is one.
    Source: Wang, Bhagia, Min 2026, EMO (arXiv:2605.06663), section 3.2, and 3.3 on the pool's size.
    """

    kept_E: Tensor | None = None

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, *,
                 document: int | None = None, **options: Any):  # fmt: skip
        super().__init__(hidden_size, num_experts, top_k, **options)
        self.document = document

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        wish_TE, out_TE = scores.choose_TE, torch.zeros_like(scores.choose_TE, dtype=torch.bool)
        if self.training and len(wish_TE):
            # 1. what each document believes in, best first, and how many of them it has
            real_TE = wish_TE.detach().nan_to_num(posinf=1e4, neginf=-1e4)
            if scores.mask_T is not None:
                real_TE = real_TE * scores.mask_T.reshape(-1, 1)
            S = self.document or len(wish_TE)
            rank_GE = real_TE.view(-1, S, wish_TE.shape[1]).sum(1).argsort(1, True).argsort(1)
            pool_G1 = torch.randint(self.top_k, wish_TE.shape[1] + 1, (len(rank_GE), 1))
            # 2. the others are not in the choice
            out_TE = (rank_GE >= pool_G1.to(rank_GE.device)).repeat_interleave(S, 0)
        if self.kept_E is not None:
            out_TE = out_TE | ~self.kept_E
        return super().choose(replace(scores, choose_TE=wish_TE.masked_fill(out_TE, -torch.inf)), k)


class LatentLayer(MoELayer):
    """Run the experts in a narrower space: one matrix before they are reached, one after.

    What travels to an expert and back is L numbers wide instead of D, and so are its weights. The
    router still reads all of D.

    Args:   as of :class:`~moe_lite.layer.MoELayer`, the experts being L wide; shared ones stay D.
    Shapes: down (L, D), up (D, L): linear maps without biases, shared by all experts.
    Source: Elango et al. 2026 (arXiv:2601.18089), abstract, and the authors' page on it, Figure 1;
            the steps as in transformers' ``NemotronHMoE``.
    """

    def __init__(self, hidden_size: int, gate: nn.Module, experts: Experts, backend: str = "auto",
                 shared: Experts | None = None):  # fmt: skip
        super().__init__(gate, experts, backend, shared)
        L = experts.w1.shape[-1]
        self.down, self.up = (nn.Linear(a, b, bias=False)
                              for a, b in ((hidden_size, L), (L, hidden_size)))  # fmt: skip

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Tensor:
        out_TD: Tensor = self.up(super().dispatch(self.down(x_TD), routing))
        return out_TD

    def _check_input(self, x_BSD: Tensor) -> None:
        if x_BSD.shape[-1] != (D := self.down.in_features):
            raise ValueError(f"{self.name}: input has width {x_BSD.shape[-1]}, the layer {D}")
        if x_BSD.dtype != self.experts.w1.dtype:
            super()._check_input(x_BSD[..., : self.down.out_features])


def by_sequence(routing: Routing, length: int) -> list[Routing]:
    """Return the routings of a batch's sequences, one after another.

    Raises: ValueError if the length does not divide the tokens.
    """
    if routing.num_tokens % length:
        raise ValueError(f"{routing.num_tokens} tokens are not sequences of {length}")
    token_N, parts = routing.token_N, []
    for first in range(0, routing.num_tokens, length):
        own, rows = (token_N >= first) & (token_N < first + length), slice(first, first + length)
        parts.append(Routing(
            routing.logits_TE[rows], routing.probs_TE[rows], token_N[own] - first,
            routing.expert_N[own], routing.gate_N[own],
            mask_T=None if routing.mask_T is None else routing.mask_T[rows],
        ))  # fmt: skip
    return parts


def sequence_loss(routings: Sequence[Routing], length: int) -> Tensor:
    """Return the load-balancing loss of each sequence by itself, the mean over all of them.

    Source: DeepSeek-AI 2024 (arXiv:2412.19437), eqs. 17 to 20, without alpha; ours counts the
            choices as made, theirs (eq. 18) as they would be without the bias.
    """
    return load_balancing_loss([part for r in routings for part in by_sequence(r, length)])


def sequence_violation(routings: Sequence[Routing], length: int) -> float:
    """Return MaxVio within a sequence, the mean over all of them."""
    return float(max_violation([part for r in routings for part in by_sequence(r, length)]))


RECENT: dict[str, Callable[..., Router]] = {
    "quantile": QuantileRouter.from_config, "threshold": ThresholdRouter.from_config,
    "idle experts": IdleRouter.from_config, "relu": ReLURouter.from_config,
    "node-limited": NodeLimitedRouter.from_config, "table": TableRouter.from_config,
    "pools": PoolRouter.from_config,
}  # fmt: skip
"""Each by a name, made for a model, as :data:`~moe_lite.routers.ROUTERS` are."""
