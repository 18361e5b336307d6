"""Routers: from a token's vector to its experts and their weights, in four steps.

A router scores every expert, chooses some, weighs the chosen and, where an expert can be full,
limits how many it takes: ``score -> choose -> weigh -> limit``. Each era of the course changes
one of the four or two, and is a short class below.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .capacity import Priority, capacity, count_groups, limit
from .config import MixtralConfig
from .routing import Routing, check_ids, flat_mask

ROUTERS: dict[str, Callable[..., Router]] = {}
"""Each router that has a name, made for a model: ``ROUTERS[name](config, **options)``."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What a router thinks of every expert, before it chooses.

    To change a choice, change ``choose_TE`` and let the router choose: +inf is always chosen, and
    -inf is no expert for this token.

    Shapes:
        logits_TE, probs_TE: what losses read, as in :class:`~moe_lite.routing.Routing`.
        choose_TE: what the choice ranks. weigh_TE: what the weights are made of.
        mask_T: False for padding, for a choice in which tokens compete.
        more: what else the Routing is to hold: noise_TE, bias_E, smooth_load_TE.
    """

    logits_TE: Tensor
    probs_TE: Tensor
    choose_TE: Tensor
    weigh_TE: Tensor
    mask_T: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def softmax(cls, logits_TE: Tensor) -> Scores:
        """Return scores whose softmax is chosen by and weighed by: the usual case."""
        probs_TE = logits_TE.softmax(dim=-1)
        return cls(logits_TE, probs_TE, probs_TE, probs_TE)

    @classmethod
    def fixed(cls, expert_T: Tensor, num_experts: int, dtype: torch.dtype) -> Scores:
        """Return scores that leave each token one expert, with a weight of 1; no logits."""
        zero_TE = torch.zeros(len(expert_T), num_experts, dtype=dtype, device=expert_T.device)
        probs_TE = zero_TE.scatter(1, expert_T[:, None], 1.0)
        return cls(zero_TE, probs_TE, probs_TE.log(), torch.ones_like(zero_TE))

    def routing(self, expert_TK: Tensor, gate_TK: Tensor) -> Routing:
        """Return the routing that these choices and weights make."""
        return Routing.from_choices(self.logits_TE, self.probs_TE, expert_TK, gate_TK, **self.more)


class Router(nn.Module):
    """Send each token to the K experts that score best: what all routers share.

    Your own needs :meth:`score`, and another of the four steps where it differs::

        class Cosine(Router, name="cosine"):
            def __init__(self, hidden_size, num_experts, top_k=2, **options):
                super().__init__(top_k, **options)
                self.weight = nn.Parameter(torch.randn(num_experts, hidden_size))

            def score(self, x_TD, ids_T=None):
                return Scores.softmax(F.normalize(x_TD) @ F.normalize(self.weight).T)

    All that knows routers then takes it. Its ``name`` puts it into :data:`ROUTERS`, its ``era``
    into chapter 00's table. A plain ``nn.Module`` with ``forward(x_TD, *, mask_T=None,
    ids_T=None) -> Routing`` runs in a layer too, but force, ban and top_k refuse it.

    Args:    top_k: K. renormalize: divide a token's weights by their sum. gate_scale: a factor on
             them after that (DeepSeek's routed scaling factor). capacity_factor, priority,
             group_size: as in :func:`~moe_lite.capacity.limit`; a factor of None drops nothing.
    Raises:  ValueError for a K below 1 or a capacity factor that is not above 0.
    """

    name: ClassVar[str] = ""
    era: ClassVar[str] = ""

    def __init_subclass__(cls, name: str = "", era: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.name, cls.era = name, era
        if name:
            ROUTERS[name] = cls.from_config

    def __init__(
        self, top_k: int = 1, *, renormalize: bool = True, gate_scale: float = 1.0,
        capacity_factor: float | None = None, priority: Priority = "position",
        group_size: int | None = None,
    ):  # fmt: skip
        super().__init__()
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        if capacity_factor is not None:
            capacity(1, 1, capacity_factor)  # complains about a factor that cannot be
        self.top_k, self.renormalize, self.gate_scale = top_k, renormalize, gate_scale
        self.capacity_factor, self.priority, self.group_size = capacity_factor, priority, group_size

    @classmethod
    def from_config(cls, config: MixtralConfig, **options: Any) -> Self:
        """Return a router for such a model, whose sizes go to the arguments of their names."""
        sizes = {
            "hidden_size": config.hidden_size, "num_experts": config.num_local_experts,
            "top_k": config.num_experts_per_tok, "vocab_size": config.vocab_size,
        }  # fmt: skip
        wanted = inspect.signature(cls).parameters
        return cls(**{n: size for n, size in sizes.items() if n in wanted} | options)

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        """Return what the router thinks of every expert, for tokens of these vectors and ids."""
        raise NotImplementedError(f"{type(self).__name__} has no score(x_TD, ids_T)")

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        """Return each token's K best experts (or k), best first, with their weights."""
        # only the indices: the weights come from other numbers, and carry the gradient
        expert_TK = scores.choose_TE.topk(k or self.top_k, dim=-1).indices
        return scores.routing(expert_TK, self.weigh(scores, expert_TK))

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        """Return the weights of the chosen experts, (T, K)."""
        gate_TK = scores.weigh_TE.gather(-1, expert_TK)
        if self.renormalize:
            if scores.choose_TE is not scores.weigh_TE is scores.probs_TE:  # all K may weigh 0
                gate_TK = gate_TK.where(gate_TK.sum(dim=-1, keepdim=True) != 0, 1.0)
            gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
        return gate_TK if self.gate_scale == 1 else gate_TK * self.gate_scale

    def limit(self, routing: Routing) -> Routing:
        """Return the routing without the pairs that find their expert full."""
        C = self.capacity_factor
        return routing if C is None else limit(routing, C, self.priority, self.group_size)

    def forward(
        self, x_TD: Tensor, *, mask_T: Tensor | None = None, ids_T: Tensor | None = None
    ) -> Routing:
        """Return the routing of T tokens.

        Args:   mask_T: False for padding, which takes no one's place. ids_T: the tokens' ids.
        Raises: ValueError if the mask covers another number of tokens.
        """
        # 1. what each expert is worth to each token
        scores = self.score(x_TD, ids_T)
        if mask_T is not None:
            scores = replace(scores, mask_T=flat_mask(mask_T, len(x_TD)))
        # 2. who is chosen, with what weight; without padding, who still finds a place
        return self.limit(self.choose(scores).masked(mask_T))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert and move the weights; a buffer only moves: small steps are lost in bfloat16."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, moved in self.named_buffers(recurse=False):
            if moved.dtype != before[name].dtype:
                self._buffers[name] = before[name].to(moved.device)
        return self

    @property
    def fits_mixtral(self) -> bool:
        """Return whether Mixtral's layout says all of this router: its weight, K, and a factor."""
        return False

    def extra_repr(self) -> str:
        kinds = (bool, int, float, str)
        shown = {n: v for n, v in vars(self).items() if n != "training" and isinstance(v, kinds)}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def linear_scores(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Return every token's product with every row of a weight: (T, E), in float32 at least.

    Whatever x is, even under autocast: bfloat16's rounding changes which expert wins.

    Raises: ValueError if the widths differ.
    Source: Fedus, Zoph, Shazeer 2021 (arXiv:2101.03961), section 2.4.
    """
    if x_TD.shape[-1] != weight_ED.shape[1]:
        raise ValueError(
            f"the router scores vectors of width {weight_ED.shape[1]}, not {x_TD.shape[-1]}"
        )
    # float32 at least, and outside autocast, so that rounding does not choose
    dtype, kind = torch.promote_types(x_TD.dtype, torch.float32), x_TD.device.type
    if x_TD.is_meta or not torch.is_autocast_enabled(kind):
        return F.linear(x_TD.to(dtype), weight_ED.to(dtype))
    with torch.autocast(kind, enabled=False):
        return F.linear(x_TD.to(dtype), weight_ED.to(dtype))


class TopKRouter(Router, name="top-k", era="Mixtral 2024, OLMoE 2024"):
    """Score by a matrix, take the K best, and weigh them by a softmax.

    The softmax is over all E experts and, with ``renormalize``, divided by the sum of the K that
    are kept (as in transformers; OLMoE leaves them undivided). That equals the Mixtral paper's
    softmax over the K kept logits up to rounding: exp(l_i)/sum_all cancels its denominator.

    >>> router = TopKRouter(4, num_experts=8, top_k=2)
    >>> routing = router(torch.randn(3, 4))
    >>> routing.expert_N.shape, routing.gate_N.view(3, 2).sum(-1).allclose(torch.ones(3))
    (torch.Size([6]), True)

    Args:    options: those of :class:`Router`.
    Shapes:  weight (E, D); N = T*K.
    Raises:  ValueError if K is not in 1..E, or the width differs.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eqs. 3 and 5 without noise; Jiang et al.
             2024 (arXiv:2401.04088), section 2.1.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, **options: Any):
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be between 1 and {num_experts} experts, not {top_k}")
        super().__init__(top_k, **options)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        return Scores.softmax(linear_scores(x_TD, self.weight))

    @property
    def fits_mixtral(self) -> bool:
        steps = ("score", "choose", "weigh", "limit", "forward")  # a subclass may have its own
        same = all(getattr(type(self), step) is getattr(TopKRouter, step) for step in steps)
        return same and self.renormalize and self.capacity_factor is None


class NoisyTopKRouter(TopKRouter, name="noisy top-k", era="Shazeer et al. 2017"):
    """Add noise of a learned size to each score, then take the K best.

    While training, the choice is random: no expert is shut out for good, and the probability of
    being chosen has a gradient (:func:`prob_in_top_k`), carried as ``smooth_load_TE``. Both
    weights start at zero: all tie, and the noise, of size log 2, spreads the tokens evenly.

    >>> router = NoisyTopKRouter(4, num_experts=8, top_k=2)
    >>> router(torch.randn(3, 4)).smooth_load_TE.shape
    torch.Size([3, 8])
    >>> router.eval()(torch.randn(3, 4)).smooth_load_TE is None
    True

    Shapes:  weight (W_g transposed) and w_noise, both (E, D); N = T*K. logits_TE are the scores
             that were followed: with the noise, if there was any.
    Raises:  ValueError if K is not in 1..E, or the width differs.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eqs. 3-5 and appendix A.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 4, **options: Any):
        super().__init__(hidden_size, num_experts, top_k, **options)
        self.w_noise = nn.Parameter(torch.zeros(num_experts, hidden_size))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        # 1. clean scores
        logits_TE = clean_TE = linear_scores(x_TD, self.weight)
        more = {}
        # 2. noise of a learned size, and the chance to be chosen if it were drawn again
        if self.training:
            std_TE = F.softplus(linear_scores(x_TD, self.w_noise))
            noise_TE = torch.randn_like(clean_TE) * std_TE
            logits_TE = clean_TE + noise_TE
            load_TE = prob_in_top_k(clean_TE, logits_TE, std_TE, self.top_k)
            more = {"noise_TE": noise_TE, "smooth_load_TE": load_TE}
        # 3. choice and weights follow the noisy logits
        probs_TE = logits_TE.softmax(dim=-1)
        return Scores(logits_TE, probs_TE, logits_TE, logits_TE, more=more)

    def weigh(self, scores: Scores, expert_TK: Tensor) -> Tensor:
        return self.gate_scale * scores.weigh_TE.gather(-1, expert_TK).softmax(dim=-1)


def kth_excluding(scores_TE: Tensor, k: int) -> Tensor:
    """Return for each expert the k-th highest score among the *other* experts: (T, E).

    It is the bar that the expert has to clear to be among the k best.

    >>> kth_excluding(torch.tensor([[5.0, 1.0, 3.0, 2.0]]), 2)
    tensor([[2., 3., 2., 3.]])

    Raises: ValueError unless k is in 1..E-1: with k = E there is no bar.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), appendix A, below eq. 8.
    """
    if not 1 <= k < scores_TE.shape[-1]:
        raise ValueError(f"k must be between 1 and {scores_TE.shape[-1] - 1}, not {k}")
    # without one of the k best, the others' k-th is the k+1-th of all
    top_TK = scores_TE.topk(k + 1, dim=-1).values
    kth_T1, next_T1 = top_TK[:, k - 1 : k], top_TK[:, k:]
    return torch.where(scores_TE > next_T1, next_T1, kth_T1)


def prob_in_top_k(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """Return the probability that each expert is chosen if its own noise is drawn again: (T, E).

    The others keep their noise, so the bar stands still, and a normal variable of mean clean and
    deviation std clears it with probability Phi((clean - bar) / std), which has a gradient.

    >>> clean_TE, std_TE = torch.tensor([[0.0, 1.0, -1.0]]), torch.ones(1, 3)
    >>> prob_in_top_k(clean_TE, clean_TE, std_TE, 1)  # bars 1, 0, 1: Phi(-1), Phi(1), Phi(-2)
    tensor([[0.1587, 0.8413, 0.0228]])

    Source: Shazeer et al. 2017 (arXiv:1701.06538), eqs. 8-9.
    """
    if k == clean_TE.shape[-1]:
        return torch.ones_like(clean_TE)  # everyone is always chosen
    # The floor is for a softplus that has underflowed: with no noise left, Phi is a step.
    z_TE = (clean_TE - kth_excluding(noisy_TE, k)) / std_TE.clamp(min=1e-6)
    return torch.special.ndtr(z_TE)


class GShardRouter(TopKRouter, name="gshard", era="GShard 2020"):
    """Send each token to its best expert and, by chance, to its second; both need a place.

    While training, the second is asked with a probability of twice its gate, at most 1: what
    would hardly count takes nobody's place. In evaluation every second is asked. All first
    choices are seated before any second one.

    >>> routing = GShardRouter(4, num_experts=8)(torch.randn(16, 4))
    >>> routing.per_token, routing.keep_N.shape
    (2, torch.Size([32]))

    Args:    capacity_factor: an expert's places over the even share of *tokens*, T / E, so that
             2 is just enough for all pairs at balance. group_size: as in :func:`limit`.
    Shapes:  weight (E, D); N = 2T.
    Raises:  ValueError if the factor is not above 0, there is but one expert, or the width
             differs.
    Source:  Lepikhin et al. 2020 (arXiv:2006.16668), algorithm 1; a second choice that is not
             asked does not stand in the queue, as in the authors' code. Its loss is
             :func:`moe_lite.losses.load_balancing_loss` with choices=1.
    """

    def __init__(
        self, hidden_size: int, num_experts: int, *, capacity_factor: float = 2.0, **options: Any
    ):
        options = {"priority": "choice", "capacity_factor": capacity_factor} | options
        super().__init__(hidden_size, num_experts, 2, **options)

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        routing = super().choose(scores, k)
        if not self.training:
            return routing
        # a second choice with half the weight or more is always asked
        gate_TK = routing.gate_N.detach().view(-1, k or self.top_k)
        asked_TK = torch.rand_like(gate_TK) < 2 * gate_TK
        asked_TK[:, 0] = True
        return routing.kept(asked_TK.view(-1))

    def limit(self, routing: Routing) -> Routing:
        if self.capacity_factor is None:
            return routing
        return limit(routing, self.capacity_factor / 2, self.priority, self.group_size)


class SwitchRouter(TopKRouter, name="switch", era="Switch 2021"):
    """Send each token to its one best expert, if that has a place left.

    The gate is the expert's probability; divided by itself, it would teach the router nothing.

    >>> router = SwitchRouter(4, num_experts=8, capacity_factor=1.0)
    >>> router(torch.randn(16, 4)).load_E().max() <= 2
    tensor(True)

    Args:    capacity_factor, group_size: as in :func:`limit`.
    Shapes:  weight (E, D); N = T.
    Raises:  ValueError if the factor is not above 0, or the width differs.
    Source:  Fedus, Zoph, Shazeer 2021 (arXiv:2101.03961), section 2 and eq. 3.
    """

    def __init__(
        self, hidden_size: int, num_experts: int, *, capacity_factor: float = 1.25, **options: Any
    ):
        options = {"renormalize": False, "capacity_factor": capacity_factor} | options
        super().__init__(hidden_size, num_experts, 1, **options)


class SigmoidBiasRouter(TopKRouter, name="sigmoid + bias", era="DeepSeek-V3 2024"):
    """Choose by a sigmoid score plus a bias, weigh by the score alone.

    The bias is no parameter: after each batch :meth:`update` raises it by ``update_rate`` for the
    experts with less than the mean load and lowers it for the others. No loss is needed.

    >>> router = SigmoidBiasRouter(4, num_experts=8, top_k=2, update_rate=0.1)
    >>> routing = router(torch.randn(16, 4))
    >>> router.update(routing.load_E())
    >>> set(router.bias_E.abs().tolist()) <= {0.0, 0.10000000149011612}
    True

    Args:    update_rate: u, in units of the score, which lies between 0 and 1. options: of
             :class:`Router`; DeepSeek-V3 renormalizes, with a gate_scale of 2.5.
    Shapes:  weight (E, D); bias_E (E,), a float32 buffer; N = T*K. logits_TE are the scores
             before sigmoid and bias.
    Raises:  ValueError if K is not in 1..E, the rate is below 0, or the width differs.
    Source:  Wang et al. 2024 (arXiv:2408.15664), eq. 3 and algorithm 1; DeepSeek-AI 2024
             (arXiv:2412.19437), eqs. 13-16.
    """

    bias_E: Tensor

    def __init__(
        self, hidden_size: int, num_experts: int, top_k: int = 2, *,
        update_rate: float = 1e-3, **options: Any,
    ):  # fmt: skip
        super().__init__(hidden_size, num_experts, top_k, **options)
        if not 0 <= update_rate < math.inf:
            raise ValueError(f"update_rate must be at least 0 and finite, not {update_rate}")
        self.update_rate = update_rate
        self.register_buffer("bias_E", torch.zeros(num_experts))

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        logits_TE = linear_scores(x_TD, self.weight)
        # 1. each expert for itself; a sum of zeros could not be divided by
        score_TE = logits_TE.sigmoid().clamp(min=1e-20)
        probs_TE = score_TE / score_TE.sum(dim=-1, keepdim=True)
        # 2. the bias takes part in the choice alone; a copy, because update() moves it in place
        wish_TE = score_TE.detach() + (bias_E := self.bias_E.clone())
        return Scores(logits_TE, probs_TE, wish_TE, score_TE, more={"bias_E": bias_E})

    @torch.no_grad()
    def update(self, load_E: Tensor) -> None:
        """Move the bias by one step, by how many pairs of a batch each expert got.

        Raises: ValueError if the loads are not E.
        """
        if load_E.shape != self.bias_E.shape:
            raise ValueError(f"{load_E.numel()} loads for {len(self.bias_E)} experts")
        self.bias_E += self.update_rate * (load_E.float().mean() - load_E).sign()


class HashRouter(Router, name="hash", era="Hash layers 2021"):
    """Send each token to the expert that its id was dealt: a table, nothing learned.

    The table is balanced over the vocabulary or, given how often each id occurs, over the text:
    from the most frequent down, each id goes to the expert that has the least so far.

    >>> router = HashRouter(vocab_size=100, num_experts=4)
    >>> torch.bincount(router.expert_V).tolist()
    [25, 25, 25, 25]

    Args:    counts_V: how often each id occurs. seed: of the deal.
    Shapes:  expert_V (V,), a buffer; N = T, every gate 1. probs_TE is 1 at the expert; there are
             no scores, so logits_TE is zero.
    Raises:  ValueError if a size is below 1, the counts are of another number, negative or not
             finite, or the layer was not given the ids, or one that is not in the table.
    Source:  Roller et al. 2021 (arXiv:2106.04426): random and balanced hashes.
    """

    expert_V: Tensor

    def __init__(self, vocab_size: int, num_experts: int,
                 counts_V: Tensor | Sequence[int] | None = None, seed: int = 0):  # fmt: skip
        super().__init__()
        if vocab_size < 1 or num_experts < 1:
            raise ValueError(f"cannot deal {vocab_size} ids to {num_experts} experts")
        # 1. dealt like cards
        deal_V = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
        expert_V = torch.empty_like(deal_V)
        expert_V[deal_V] = torch.arange(vocab_size) % num_experts
        # 2. or, with counts, the most frequent first to whoever has least
        if counts_V is not None:
            counts_V = torch.as_tensor(counts_V)
            if counts_V.shape != (vocab_size,):
                raise ValueError(f"{counts_V.numel()} counts for a vocabulary of {vocab_size}")
            if bad := [count for count in counts_V.tolist() if not 0 <= count < math.inf]:
                raise ValueError(f"a count must be at least 0 and finite, not {bad[0]}")
            load = [0.0] * num_experts
            for v in deal_V[counts_V[deal_V].argsort(descending=True, stable=True)].tolist():
                expert_V[v] = least = min(range(num_experts), key=load.__getitem__)
                load[least] += float(counts_V[v])
        self.num_experts = num_experts
        self.register_buffer("expert_V", expert_V)

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        if ids_T is None or ids_T.numel() != len(x_TD):
            given = "none" if ids_T is None else f"{ids_T.numel()} for {len(x_TD)} tokens"
            raise ValueError(f"a hash router needs every token's id, but was given {given}")
        check_ids(ids_T, len(self.expert_V))
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        return Scores.fixed(self.expert_V.index_select(0, ids_T), self.num_experts, dtype)


class ExpertChoiceRouter(TopKRouter, name="expert choice", era="Expert choice 2022"):
    """Let each expert take the tokens that want it most: top-k over the other axis.

    Every expert is exactly full, so nothing is balanced or dropped; a token may have many experts,
    or none. But whether it is taken depends on later tokens too: the model sees the future.

    >>> routing = ExpertChoiceRouter(4, num_experts=8, capacity_factor=2.0)(torch.randn(16, 4))
    >>> routing.load_E().tolist()
    [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]

    Args:    capacity_factor: c, the experts that a token has on average; each expert takes
             k = c * T / E tokens, rounded up, at most all. group_size: tokens per group; each
             expert then takes k of every group. None: one group.
    Shapes:  weight (E, D); N = E * k (of each group, group by group).
    Raises:  ValueError if the factor is not above 0, the groups do not divide the tokens, or
             the width differs.
    Source:  Zhou et al. 2022 (arXiv:2202.09368), section 3.2, eq. 1.
    """

    capacity_factor: float

    def __init__(
        self, hidden_size: int, num_experts: int, *,
        capacity_factor: float = 2.0, group_size: int | None = None,
    ):  # fmt: skip
        super().__init__(
            hidden_size, num_experts, 1, renormalize=False, capacity_factor=capacity_factor,
            priority="gate", group_size=group_size,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: MixtralConfig, **options: Any) -> Self:
        K = config.num_experts_per_tok
        return super().from_config(config, **{"capacity_factor": K} | options)

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        wish_TE, mask_T = scores.choose_TE.detach(), scores.mask_T
        (T, E), G = wish_TE.shape, count_groups(len(wish_TE), self.group_size)
        S = T // G if G else 0
        C = min(S, capacity(S, E, k or self.capacity_factor))
        if mask_T is not None:  # padding is taken last, and then dropped
            wish_TE = wish_TE.masked_fill(~mask_T[:, None], -1.0)
        # 1. each expert of each group takes its C tokens
        token_GCE = wish_TE.view(G, S, E).topk(C, dim=1).indices
        # 2. as a flat list: group by group, in each expert by expert
        token_GCE = token_GCE + S * torch.arange(G, device=wish_TE.device)[:, None, None]
        token_N = token_GCE.transpose(1, 2).reshape(-1)
        expert_N = torch.arange(E, device=wish_TE.device).repeat_interleave(C).repeat(G)
        # 3. and weighs each by its probability
        gate_N = scores.weigh_TE.flatten().index_select(0, token_N * E + expert_N)
        return Routing(scores.logits_TE, scores.probs_TE, token_N, expert_N, gate_N)

    def limit(self, routing: Routing) -> Routing:
        return routing  # nobody takes more than it may
