"""What an intervention changes: a text as it is, beside the same text with other routing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..model import Mixtral
from ..routing import Routing
from .causal import Intervention, intervene


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
