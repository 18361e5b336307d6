"""What a model and a training run are made from: every size and rate, checked when it is set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from .checked import check_fields

Autocast = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class MixtralConfig:
    """Describe a Mixtral, in the field names of the published ``config.json``.

    The defaults are those of Mixtral 8x7B (Jiang et al. 2024, arXiv:2401.04088, Table 1).
    With ``num_local_experts=1`` the model is dense: the same code, one expert, a gate of 1.

    Raises: ValueError naming the field and the value that cannot be.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    max_position_embeddings: int = 32768
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    router_aux_loss_coef: float = 0.001
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "num_local_experts",
            "num_experts_per_tok", "max_position_embeddings", "sliding_window",
        )  # fmt: skip
        rates = dict(rope_theta=0, rms_norm_eps=0, router_aux_loss_coef=0, initializer_range=0)
        check_fields(self, dict.fromkeys(sizes, 1) | rates)
        K, E = self.num_experts_per_tok, self.num_local_experts
        heads, kv = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if self.rope_theta == 0:
            raise ValueError("rope_theta must be above 0, not 0")
        if K > E:
            raise ValueError(
                f"K cannot exceed E: num_experts_per_tok (K) is {K}, num_local_experts (E) {E}"
            )
        if heads % kv:
            raise ValueError(
                f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv})"
            )
        if not self.head_dim or self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        pad, V = self.pad_token_id, self.vocab_size
        if pad is not None and not -V <= pad < V:
            raise ValueError(f"pad_token_id must be None or a token of the {V:,}, not {pad!r}")

    @property
    def num_parameters(self) -> int:
        """Return how many parameters such a model has: those of all experts."""
        D, H, E = self.hidden_size, self.num_attention_heads, self.num_local_experts
        attention = 2 * D * self.head_dim * (H + self.num_key_value_heads)  # type: ignore[operator]
        layer = attention + E * D + 3 * E * D * self.intermediate_size + 2 * D
        matrices = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * layer + D + matrices * self.vocab_size * D

    def dense(self, match: str = "active") -> MixtralConfig:
        """Return the dense twin: one expert as wide as the active ("active") or all ("total") ones.

        >>> MixtralConfig().dense("active").intermediate_size
        28672
        >>> MixtralConfig().dense("total").intermediate_size
        114688
        """
        if match not in ("active", "total"):
            raise ValueError(f'match must be "active" or "total", not {match!r}')
        # width times K has the same arithmetic, width times E the same parameters
        times = self.num_experts_per_tok if match == "active" else self.num_local_experts
        wide = self.intermediate_size * times
        return replace(self, intermediate_size=wide, num_local_experts=1, num_experts_per_tok=1)


@dataclass(frozen=True)
class TrainConfig:
    """Describe a training run.

    Args:
        steps:            optimizer steps. batch_size: windows per step; seq_len: their tokens.
        lr:               peak learning rate, reached after ``warmup`` steps, from which a cosine
                          falls to ``lr * min_lr_ratio`` at the last step.
        weight_decay:     AdamW's, on matrices only; betas: AdamW's.
        grad_clip:        largest norm of the whole gradient.
        aux_coef, z_coef: weights of the load-balancing loss and of the router z-loss, each a
                          mean over the layers.
        seed:             of the batches and of whatever a router draws.
        autocast:         compute in bfloat16: "auto" where that pays, "on" or "off" anywhere.
        eval_every:       steps between evaluations (0: none), on ``eval_windows`` per domain.
        checkpoint_every: steps between checkpoints (0: only at the end), of which the last
                          ``keep`` stay.
    Raises:  ValueError naming the field and the value that cannot be.
    """

    steps: int = 300
    batch_size: int = 16
    seq_len: int = 128
    lr: float = 3e-3
    warmup: int = 20
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    aux_coef: float = 0.01
    z_coef: float = 0.001
    seed: int = 0
    autocast: Autocast = "auto"
    eval_every: int = 0
    eval_windows: int = 8
    checkpoint_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        least = dict(steps=1, batch_size=1, seq_len=1, eval_windows=1, keep=1, warmup=0, seed=0)
        least |= dict(eval_every=0, checkpoint_every=0, lr=0, min_lr_ratio=0, weight_decay=0)
        check_fields(self, least | dict(grad_clip=0, aux_coef=0, z_coef=0))
        object.__setattr__(self, "betas", tuple(self.betas))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, not {self.betas}")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        >>> config = TrainConfig(steps=101, lr=1.0, warmup=1, min_lr_ratio=0.1)
        >>> [round(config.lr_at(step), 3) for step in (0, 50, 100)]
        [1.0, 0.55, 0.1]

        Source: Loshchilov, Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        # the cosine begins at the peak, which the last step of the warmup has reached
        begin = max(self.warmup - 1, 0)
        done = (step - begin) / max(self.steps - 1 - begin, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1)))
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)
