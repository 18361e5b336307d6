"""Three other ways to choose: by the experts, by a table, under a controller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..routing import Routing
from .queues import capacity, count_groups
from .top_k import check_top_k, scores


class ExpertChoiceRouter(nn.Module):
    """Let each expert take the tokens that want it most: top-k over the other axis.

    Every expert is exactly full, so there is nothing to balance and nothing to drop; a token may
    have many experts, or none. But whether a token is taken depends on the others, the later
    ones included: a language model that trains like this looks into the future.

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

    reads = ("mask_T",)

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        capacity_factor: float = 2.0,
        group_size: int | None = None,
    ):
        super().__init__()
        capacity(1, 1, capacity_factor)
        self.capacity_factor, self.group_size = capacity_factor, group_size
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.normal_(self.weight, std=hidden_size**-0.5)

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        logits_TE = scores(x_TD, self.weight)
        probs_TE = logits_TE.softmax(dim=-1)
        (T, E), G = probs_TE.shape, count_groups(len(x_TD), self.group_size)
        S = T // G if G else 0
        C = min(S, capacity(S, E, self.capacity_factor))
        wish_TE = probs_TE
        if mask_T is not None:  # padding is taken last, and then dropped
            wish_TE = probs_TE.masked_fill(~mask_T.reshape(-1, 1).bool(), -1.0)
        token_GCE = wish_TE.detach().view(G, S, E).topk(C, dim=1).indices
        token_GCE = token_GCE + S * torch.arange(G, device=x_TD.device)[:, None, None]
        token_N = token_GCE.transpose(1, 2).reshape(-1)
        expert_N = torch.arange(E, device=x_TD.device).repeat_interleave(C).repeat(G)
        gate_N = probs_TE.flatten().index_select(0, token_N * E + expert_N)
        return Routing(logits_TE, probs_TE, token_N, expert_N, gate_N).masked(mask_T)

    def extra_repr(self) -> str:
        E, D = self.weight.shape
        return f"D={D}, E={E}, capacity_factor={self.capacity_factor}"


class HashRouter(nn.Module):
    """Send each token to the expert that its id was dealt: a table, nothing learned.

    The table is balanced over the vocabulary or, given how often each id occurs, over the text:
    from the most frequent down, each id goes to the expert that has the least so far.

    >>> router = HashRouter(vocab_size=100, num_experts=4)
    >>> torch.bincount(router.expert_V).tolist()
    [25, 25, 25, 25]

    Args:    counts_V: how often each id occurs. seed: of the deal.
    Shapes:  expert_V (V,), a buffer; N = T, every gate 1. probs_TE is 1 at the expert; there are
             no scores, so logits_TE is zero.
    Raises:  ValueError if a size is below 1, the counts are of another number, or the layer was
             not given the ids.
    Source:  Roller et al. 2021 (arXiv:2106.04426): random and balanced hashes.
    """

    reads = ("ids_T",)
    expert_V: Tensor

    def __init__(
        self,
        vocab_size: int,
        num_experts: int,
        counts_V: Tensor | Sequence[int] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if vocab_size < 1 or num_experts < 1:
            raise ValueError(f"cannot deal {vocab_size} ids to {num_experts} experts")
        deal_V = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
        expert_V = torch.empty_like(deal_V)
        expert_V[deal_V] = torch.arange(vocab_size) % num_experts
        if counts_V is not None:
            counts_V = torch.as_tensor(counts_V)
            if counts_V.shape != (vocab_size,):
                raise ValueError(f"{counts_V.numel()} counts for a vocabulary of {vocab_size}")
            load = [0.0] * num_experts
            for v in deal_V[counts_V[deal_V].argsort(descending=True, stable=True)].tolist():
                expert_V[v] = least = min(range(num_experts), key=load.__getitem__)
                load[least] += float(counts_V[v])
        self.num_experts = num_experts
        self.register_buffer("expert_V", expert_V)

    def forward(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Routing:
        if ids_T is None or ids_T.numel() != len(x_TD):
            given = "none" if ids_T is None else f"{ids_T.numel()} for {len(x_TD)} tokens"
            raise ValueError(f"a hash router needs every token's id, but was given {given}")
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        expert_T1 = self.expert_V.index_select(0, ids_T.reshape(-1))[:, None]
        logits_TE = x_TD.new_zeros(len(x_TD), self.num_experts, dtype=dtype)
        gate_T1 = torch.ones_like(logits_TE[:, :1])
        probs_TE = logits_TE.scatter(1, expert_T1, gate_T1)
        return Routing.from_choices(logits_TE, probs_TE, expert_T1, gate_T1)

    def extra_repr(self) -> str:
        return f"V={len(self.expert_V)}, E={self.num_experts}"


class SigmoidBiasRouter(nn.Module):
    """Choose by a sigmoid score plus a bias, weigh by the score alone.

    The bias is no parameter: after each batch :meth:`update` raises it by ``update_rate`` for the
    experts with less than the mean load and lowers it for the others. It balances without a
    loss, so nothing pulls at the gradient of what is learned.

    >>> router = SigmoidBiasRouter(4, num_experts=8, top_k=2, update_rate=0.1)
    >>> routing = router(torch.randn(16, 4))
    >>> router.update(routing.load_E())
    >>> set(router.bias_E.abs().tolist()) <= {0.0, 0.10000000149011612}
    True

    Args:    update_rate: u, in units of the score, which lies between 0 and 1. renormalize: make
             a token's gates sum to 1, as DeepSeek-V3 does.
    Shapes:  weight (E, D); bias_E (E,), a float32 buffer; N = T*K. logits_TE are the scores
             before sigmoid and bias.
    Raises:  ValueError if K is not in 1..E, the rate is below 0, or the width differs.
    Source:  Wang et al. 2024 (arXiv:2408.15664), eq. 3 and algorithm 1; DeepSeek-AI 2024
             (arXiv:2412.19437), eqs. 13-16.
    """

    bias_E: Tensor

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int = 2,
        *,
        update_rate: float = 1e-3,
        renormalize: bool = True,
    ):
        super().__init__()
        check_top_k(top_k, num_experts)
        if not 0 <= update_rate < math.inf:
            raise ValueError(f"update_rate must be at least 0 and finite, not {update_rate}")
        self.top_k, self.update_rate, self.renormalize = top_k, update_rate, renormalize
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.normal_(self.weight, std=hidden_size**-0.5)
        self.register_buffer("bias_E", torch.zeros(num_experts))

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = scores(x_TD, self.weight)
        score_TE = logits_TE.sigmoid()
        expert_TK = (score_TE.detach() + self.bias_E).topk(self.top_k, dim=-1).indices
        gate_TK = score_TE.gather(-1, expert_TK)
        if self.renormalize:
            gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True).clamp(min=1e-20)
        probs_TE = score_TE / score_TE.sum(dim=-1, keepdim=True).clamp(min=1e-20)
        routing = Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK)
        return replace(routing, bias_E=self.bias_E.clone())  # which update() moves in place

    @torch.no_grad()
    def update(self, load_E: Tensor) -> None:
        """Move the bias by one step, by how many pairs of a batch each expert got."""
        self.bias_E += self.update_rate * (load_E.mean() - load_E).sign()

    def extra_repr(self) -> str:
        E, D = self.weight.shape
        return f"D={D}, E={E}, K={self.top_k}, update_rate={self.update_rate}"
