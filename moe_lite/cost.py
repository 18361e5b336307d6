"""What a config costs before anything is built: parameters and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .contracts import MixtralConfig


@dataclass(frozen=True)
class ParameterCount:
    """Count a model's parameters by part; ``unused_experts`` are those a token leaves idle."""

    embedding: int
    attention: int
    routers: int
    experts: int
    unused_experts: int
    norms: int
    lm_head: int

    @property
    def total(self) -> int:
        """All of them: what must be held in memory."""
        return (
            self.embedding + self.attention + self.routers + self.experts + self.norms
            + self.lm_head
        )  # fmt: skip

    @property
    def active(self) -> int:
        """Those one token's way leads through: all but the experts it was not sent to.

        The whole input embedding is counted, as in Mixtral's published 13B, though a token
        reads one row of it.
        """
        return self.total - self.unused_experts


def count_parameters(config: MixtralConfig) -> ParameterCount:
    """Count the parameters of a Mixtral from its config alone.

    >>> count = count_parameters(MixtralConfig())
    >>> f"{count.total:,} {count.active:,}"
    '46,702,792,704 12,879,925,248'
    >>> f"{count.total * torch.bfloat16.itemsize / 1e9:.1f} GB in bf16"
    '93.4 GB in bf16'

    Source: Jiang et al. 2024 (arXiv:2401.04088), Table 1.
    """
    D, L, E = config.hidden_size, config.num_hidden_layers, config.num_local_experts
    assert config.head_dim is not None
    query = D * config.num_attention_heads * config.head_dim
    key = D * config.num_key_value_heads * config.head_dim
    expert = 3 * D * config.intermediate_size  # w1, w2, w3
    return ParameterCount(
        embedding=config.vocab_size * D,
        attention=L * 2 * (query + key),  # the output has the query's size, the value the key's
        routers=L * E * D,
        experts=L * E * expert,
        unused_experts=L * (E - config.num_experts_per_tok) * expert,
        norms=(2 * L + 1) * D,
        lm_head=0 if config.tie_word_embeddings else config.vocab_size * D,
    )


def kv_cache_bytes(
    config: MixtralConfig,
    num_tokens: int,
    batch_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Count the bytes of keys and values kept for a batch of texts of num_tokens each.

    >>> kv_cache_bytes(MixtralConfig(), 32768) / 2**30  # GiB
    4.0

    Raises: ValueError if a count is negative.
    """
    if num_tokens < 0 or batch_size < 0:
        raise ValueError(f"cannot cache {num_tokens} tokens of {batch_size} texts")
    assert config.head_dim is not None
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * batch_size * num_tokens * width * dtype.itemsize
