"""A router of routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..routers import Router, Scores
from ..routing import Routing


@dataclass(frozen=True, eq=False)
class TreeScores(Scores):
    """The scores of all leaves, and what the routers inside answered: the primary one first."""

    answers: tuple[Routing, ...] = ()


class HierarchicalRouter(Router, era="Shazeer et al. 2017, appendix B"):
    """Let one router choose groups and each group's own router choose experts within it.

    The gate of expert j of group i is the product of the two gates, so a token's gates still sum
    to 1. What comes out is a flat :class:`Routing` over all a*b experts, group by group: no
    loss, backend or picture needs to know that there was a tree.

    Every group scores every token, also those that go elsewhere. That costs what a flat router
    costs, and keeps all shapes known: nothing waits for the device.

    >>> from moe_lite.routers import TopKRouter
    >>> router = HierarchicalRouter(
    ...     TopKRouter(4, 3, 2), [TopKRouter(4, 5, 2) for _ in range(3)])
    >>> routing = router(torch.randn(6, 4))
    >>> routing.num_experts, routing.per_token
    (15, 4)

    Args:    primary: over the a groups; secondary: one router for each, all over b experts and
             with one K. options: of :class:`Router`, for a capacity.
    Shapes:  N = T * K_primary * K_secondary; probs_TE are the products of both softmaxes,
             logits_TE their logarithms.
    Raises:  ValueError if a routing does not fit: other than one secondary router for each
             group, unequal sizes, or a router in which experts choose.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), appendix B, eqs. 12-14.
    """

    def __init__(self, primary: nn.Module, secondary: Sequence[nn.Module], **options: Any):
        super().__init__(**options)
        self.primary, self.secondary = primary, nn.ModuleList(secondary)

    def score(self, x_TD: Tensor, ids_T: Tensor | None = None) -> Scores:
        first: Routing = self.primary(x_TD, ids_T=ids_T)
        groups: list[Routing] = [router(x_TD, ids_T=ids_T) for router in self.secondary]
        sizes = {(r.num_experts, r.per_token) for r in groups}
        fits = len(groups) == first.num_experts and len(sizes) == 1
        if not fits or None in {first.per_token, *next(iter(sizes))}:
            raise ValueError(
                f"a primary router over {first.num_experts} groups needs as many secondary routers "
                f"with one number of experts and of choices; these have (E, K) = "
                f"{[(r.num_experts, r.per_token) for r in groups]}"
            )
        inner_Tab = torch.stack([r.logits_TE.log_softmax(-1) for r in groups], dim=1)
        logits_TE = (first.logits_TE.log_softmax(-1)[..., None] + inner_Tab).flatten(1)
        probs_TE, load_TE = logits_TE.exp(), self._smooth_load(first, groups)
        more = {} if load_TE is None else {"smooth_load_TE": load_TE}
        answers = (first, *groups)
        return TreeScores(logits_TE, probs_TE, logits_TE, probs_TE, more=more, answers=answers)

    def choose(self, scores: Scores, k: int | None = None) -> Routing:
        assert isinstance(scores, TreeScores)
        first, *groups = scores.answers
        b, K, T, J = groups[0].num_experts, groups[0].per_token, first.num_tokens, first.per_token
        assert K is not None and J is not None
        group_TJ1, gate_TJ1 = first.expert_N.view(T, J, 1), first.gate_N.view(T, J, 1)

        def chosen(rows: list[Tensor]) -> Tensor:
            """Of every group's choices, keep those of the groups that the token went to."""
            all_TaK = torch.stack([row_N.view(T, K) for row_N in rows], dim=1)
            return all_TaK.gather(1, group_TJ1.expand(T, J, K))

        gate_TJK = gate_TJ1 * chosen([r.gate_N for r in groups])
        expert_TJK = group_TJ1 * b + chosen([r.expert_N for r in groups])
        # Best first, as a Routing promises.
        gate_TK, order_TK = gate_TJK.flatten(1).sort(dim=-1, descending=True, stable=True)
        return scores.routing(expert_TJK.flatten(1).gather(1, order_TK), gate_TK)

    @staticmethod
    def _smooth_load(first: Routing, groups: list[Routing]) -> Tensor | None:
        """Share eq. 14 out among the tokens: group i's load times the mean over its tokens."""
        inner = [r.smooth_load_TE for r in groups if r.smooth_load_TE is not None]
        if first.smooth_load_TE is None or len(inner) != len(groups):
            return None
        came_Ta = first.gates_TE().detach() > 0
        mean_Ta = came_Ta / came_Ta.sum(0).clamp(min=1)
        weight_Ta = first.smooth_load_TE.sum(0) * mean_Ta
        return (weight_Ta[..., None] * torch.stack(inner, dim=1)).flatten(1)
