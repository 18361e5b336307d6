"""What an intervention changes: a text as it is, beside the same text with other routing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..model import Mixtral
from ..routing import Routing
from .causal import Intervention, ablate, intervene


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
        """Return the log-probability of every next token, float32."""
        return self.logits_BSV.float().log_softmax(dim=-1)

    @cached_property
    def loss_T(self) -> Tensor:
        """Return what each token of the flattened batch cost, given those before it, in nats.

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
        """Return by how much each token's loss rose, in nats; NaN where it has none."""
        return self.changed.loss_T - self.base.loss_T


def effect(model: Mixtral, ids_BS: Tensor, *interventions: Intervention) -> Effect:
    """Run a text as it is and with interventions.

    >>> from moe_lite import MixtralConfig
    >>> from moe_lite.course.causal import ablate, ban
    >>> model = Mixtral(MixtralConfig(vocab_size=64, hidden_size=32, intermediate_size=48,
    ...     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    >>> found = effect(model, torch.arange(10).view(1, 10), ablate(1, 3), ban(0, 2, tokens=4))
    >>> found.rise_T[:5].nan_to_num().abs().max() < 1, found.rise_T.shape
    (tensor(True), torch.Size([10]))

    Raises: ValueError as :func:`intervene` and the model do.
    """
    changed = Run.of(model, ids_BS, *interventions)
    return Effect(Run.of(model, ids_BS), changed, interventions)


def rises(model: Mixtral, base: Run, group_T: Tensor, *interventions: Intervention) -> Tensor:
    """Return by how much each group's mean loss rises under interventions, in nats per token.

    Shapes: group_T: a number from 0 for every token of the flattened text; result (groups,).
    Raises: ValueError as :func:`intervene` does, or if there is not one group for each token.
    """
    if group_T.shape != base.loss_T.shape:
        raise ValueError(f"{len(group_T)} groups do not fit {len(base.loss_T)} tokens")
    rise_T = Run.of(model, base.ids_BS, *interventions).loss_T - base.loss_T
    return torch.stack([rise_T[group_T == g].nanmean() for g in range(int(group_T.max()) + 1)])


def without_each(model: Mixtral, base: Run, group_T: Tensor) -> Tensor:
    """Take every expert away in turn, and return each group's rise as :func:`rises` does.

    Shapes: (layers, experts, groups).
    """
    rise_LEG = [
        [rises(model, base, group_T, ablate(layer, e)) for e in range(moe.experts.num_experts)]
        for layer, moe in enumerate(model.moe_layers)
    ]
    return torch.stack([torch.stack(rise_EG) for rise_EG in rise_LEG])


def replaced(
    model: Mixtral,
    ids_BS: Tensor,
    layer: int,
    expert: int,
    how: Literal["zero", "mean", "resampled"] = "mean",
    seed: int = 0,
) -> Effect:
    """Run a text as it is and with other answers in the place of one expert's.

    "zero" is an ablation. "mean" answers each of the expert's tokens with its mean over all of
    them: what it tells every token alike stays. "resampled" answers each with what it would tell
    another of them, drawn by the seed. The gates stay as they were.

    Raises: ValueError if the model has no such layer or expert, or no such replacement.
    """
    layers = model.moe_layers
    if not (0 <= layer < len(layers) and 0 <= expert < layers[layer].experts.num_experts):
        raise ValueError(f"the model has no expert {expert} in layer {layer}")
    if how not in ("zero", "mean", "resampled"):
        raise ValueError(f'how must be "zero", "mean" or "resampled", not {how!r}')

    def instead(moe: nn.Module, args: Any, out: Any) -> Any:
        out_BSD, routing = out
        # 1. what the expert says to each of its tokens
        who_N = (routing.expert_N == expert).nonzero()[:, 0]
        token_N = routing.token_N[who_N]
        own_ND = layers[layer].experts.each()[expert](args[0].flatten(0, -2)[token_N])
        # 2. what it is to say
        order_N = torch.randperm(len(own_ND), generator=torch.Generator().manual_seed(seed))
        new_ND = {"zero": 0 * own_ND, "mean": own_ND.mean(0).expand_as(own_ND),
                  "resampled": own_ND[order_N.to(own_ND.device)]}[how]  # fmt: skip
        # 3. the difference, weighed by the gates, added to what came out
        change_ND = (routing.gate_N[who_N, None] * (new_ND - own_ND)).to(out_BSD.dtype)
        flat_TD = out_BSD.flatten(0, -2).index_add(0, token_N, change_ND)
        return flat_TD.view_as(out_BSD), routing

    hook = layers[layer].register_forward_hook(instead)
    try:
        changed = Run.of(model, ids_BS)
    finally:
        hook.remove()
    return Effect(Run.of(model, ids_BS), changed, ())
