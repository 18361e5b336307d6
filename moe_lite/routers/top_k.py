"""Each token takes its K best experts, by a linear score with or without noise."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..routing import Routing

SoftmaxOrder = Literal["softmax_topk", "topk_softmax"]


def check_top_k(top_k: int, num_experts: int) -> None:
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be between 1 and {num_experts} experts, not {top_k}")


def scores(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Score every token by every row of a weight: (T, E), in float32 at least."""
    if x_TD.shape[-1] != weight_ED.shape[1]:
        raise ValueError(
            f"the router scores vectors of width {weight_ED.shape[1]}, not {x_TD.shape[-1]}"
        )
    dtype, kind = torch.promote_types(x_TD.dtype, torch.float32), x_TD.device.type
    exact = (
        torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    )
    with exact:
        return F.linear(x_TD.to(dtype), weight_ED.to(dtype))


class TopKRouter(nn.Module):
    """Send each token to its K best experts by a linear score.

    Two orders are in use. ``softmax_topk`` takes the softmax over all E experts, keeps the K
    largest and, with ``renormalize``, divides them by their sum (Hugging Face's Mixtral code;
    OLMoE leaves them undivided). ``topk_softmax`` keeps the K largest logits and takes the
    softmax over those (the Mixtral paper). With renormalising the two are equal up to
    rounding, because exp(l_i)/sum_all cancels its denominator; without it they are not.

    >>> router = TopKRouter(4, num_experts=8, top_k=2)
    >>> routing = router(torch.randn(3, 4))
    >>> routing.expert_N.shape, routing.gate_N.view(3, 2).sum(-1).allclose(torch.ones(3))
    (torch.Size([6]), True)

    Args:    order: which of the two; renormalize: only for ``softmax_topk``.
    Shapes:  weight (E, D); forward takes x_TD and gives a :class:`Routing` with N = T*K.
             Scores are computed in float32 (float64 for float64 input) whatever x is, even
             under autocast: bf16 rounding changes which expert wins.
    Raises:  ValueError if K is not in 1..E, or the order is unknown, or the width differs.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eqs. 3 and 5 without noise; Jiang et al.
             2024 (arXiv:2401.04088), section 2.1; float32: Fedus et al. 2021 (arXiv:2101.03961),
             section 2.4.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int = 2,
        *,
        order: SoftmaxOrder = "softmax_topk",
        renormalize: bool = True,
    ):
        super().__init__()
        check_top_k(top_k, num_experts)
        if order not in get_args(SoftmaxOrder):
            raise ValueError(f"order must be one of {get_args(SoftmaxOrder)}, not {order!r}")
        self.top_k, self.order, self.renormalize = top_k, order, renormalize
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.normal_(self.weight, std=hidden_size**-0.5)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Score every expert for every token: (T, E), in float32 at least."""
        return scores(x_TD, self.weight)

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        if self.order == "softmax_topk":
            gate_TK, expert_TK = probs_TE.topk(self.top_k, dim=-1)
            if self.renormalize:
                gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
        else:
            top_TK, expert_TK = logits_TE.topk(self.top_k, dim=-1)
            gate_TK = top_TK.softmax(dim=-1)
        return Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK)

    def extra_repr(self) -> str:
        E, D = self.weight.shape
        return f"D={D}, E={E}, K={self.top_k}, {self.order}, renormalize={self.renormalize}"


class NoisyTopKRouter(nn.Module):
    """Add noise of a learned size to each score, then send each token to its K best experts.

    The noise makes the choice random while training, so that no expert is shut out for good and
    the probability of being chosen has a gradient (:func:`prob_in_top_k`), which the routing
    carries as ``smooth_load_TE``. In evaluation there is no noise and no such probability.

    Both weights start at zero: all experts then tie, and the noise alone, of size log 2,
    spreads the tokens evenly.

    >>> router = NoisyTopKRouter(4, num_experts=8, top_k=2)
    >>> routing = router(torch.randn(3, 4))
    >>> routing.smooth_load_TE.shape
    torch.Size([3, 8])
    >>> router.eval()(torch.randn(3, 4)).smooth_load_TE is None
    True

    Shapes:  weight (W_g transposed) and w_noise, both (E, D); forward takes x_TD and gives a
             :class:`Routing` with N = T*K. logits_TE are the scores that were followed: with
             the noise, if there was any. Float32 at least, as in :class:`TopKRouter`.
    Raises:  ValueError if K is not in 1..E, or the width differs.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eqs. 3-5 and appendix A.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 4):
        super().__init__()
        check_top_k(top_k, num_experts)
        self.top_k = top_k
        self.weight = nn.Parameter(torch.zeros(num_experts, hidden_size))
        self.w_noise = nn.Parameter(torch.zeros(num_experts, hidden_size))

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = clean_TE = scores(x_TD, self.weight)
        smooth_load_TE = noise_TE = None
        if self.training:
            std_TE = F.softplus(scores(x_TD, self.w_noise))
            noise_TE = torch.randn_like(clean_TE) * std_TE
            logits_TE = clean_TE + noise_TE
            smooth_load_TE = prob_in_top_k(clean_TE, logits_TE, std_TE, self.top_k)
        top_TK, expert_TK = logits_TE.topk(self.top_k, dim=-1)
        gate_TK, probs_TE = top_TK.softmax(dim=-1), logits_TE.softmax(dim=-1)
        routing = Routing.from_choices(
            logits_TE, probs_TE, expert_TK, gate_TK, smooth_load_TE=smooth_load_TE
        )
        return replace(routing, noise_TE=noise_TE)

    def extra_repr(self) -> str:
        E, D = self.weight.shape
        return f"D={D}, E={E}, K={self.top_k}"


def kth_excluding(scores_TE: Tensor, k: int) -> Tensor:
    """Give for each expert the k-th highest score among the *other* experts: (T, E).

    It is the bar that the expert has to clear to be among the k best. For one that is among
    them, the others' k-th is the k+1-th of all; for one that is not, the k-th of all.

    >>> kth_excluding(torch.tensor([[5.0, 1.0, 3.0, 2.0]]), 2)
    tensor([[2., 3., 2., 3.]])

    Raises: ValueError unless k is in 1..E-1: with k = E there is no bar.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), appendix A, below eq. 8.
    """
    if not 1 <= k < scores_TE.shape[-1]:
        raise ValueError(f"k must be between 1 and {scores_TE.shape[-1] - 1}, not {k}")
    top_TK = scores_TE.topk(k + 1, dim=-1).values
    kth_T1, next_T1 = top_TK[:, k - 1 : k], top_TK[:, k:]
    return torch.where(scores_TE > next_T1, next_T1, kth_T1)


def prob_in_top_k(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """Give the probability that each expert is chosen if its own noise is drawn again: (T, E).

    The other experts keep the noise they have, so the bar stands still, and a normal variable
    of mean clean and deviation std clears it with probability Phi((clean - bar) / std). Unlike
    the count of the tokens that came, this has a gradient.

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
