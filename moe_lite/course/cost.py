"""What a model costs before anything is built: parameters, bytes, FLOPs, traffic, time.

Counts of parameters are exact. Times are rooflines (Williams et al. 2009): the longest of what
arithmetic, memory and network would each take alone at the device's full speed. No real step
is faster, most take a small multiple; what a roofline tells is which of the three to mend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ..config import MixtralConfig

Phase = Literal["decode", "prefill", "train"]


@dataclass(frozen=True)
class Architecture:
    """Describe a transformer with experts, as far as its cost goes.

    Args:
        vocab, width, layers:      V, D, L; an encoder's layers are counted with the decoder's.
        heads, kv_heads, head_dim: of the attention.
        experts, top_k:            E, K; expert_width: F of each; shared: how many more of that
                                   width every token uses.
        dense_width:               F of the layers without experts: the first ``dense_first``,
                                   and of the others all but each ``every``-th.
        matrices:                  of an expert: 3 (SwiGLU, GEGLU) or 2 (ReLU).
        tied:                      the output matrix is the embedding.
        cross:                     how many layers also attend to an encoder.
        q_rank, kv_rank, rope_dim: of multi-head latent attention (DeepSeek-AI 2024,
                                   arXiv:2405.04434, section 2.1); then kv_heads means nothing.
        extra:                     parameters without a field here: norms of queries and keys,
                                   position biases.
    Raises: ValueError if there are more experts per token than experts.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    expert_width: int
    shared: int = 0
    dense_width: int = 0
    dense_first: int = 0
    every: int = 1
    matrices: int = 3
    tied: bool = False
    cross: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    extra: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k must be from 1 to {self.experts} experts, not {self.top_k}")

    @classmethod
    def of(cls, config: MixtralConfig | Architecture) -> Architecture:
        """Describe a Mixtral by its config; an Architecture is handed back."""
        if isinstance(config, Architecture):
            return config
        assert config.head_dim is not None
        return cls(
            config.vocab_size, config.hidden_size, config.num_hidden_layers,
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
            config.num_local_experts, config.num_experts_per_tok, config.intermediate_size,
            tied=config.tie_word_embeddings,
        )  # fmt: skip

    @property
    def moe_layers(self) -> int:
        """Count the layers that have experts."""
        return (self.layers - self.dense_first) // self.every

    @property
    def expert(self) -> int:
        """Count the parameters of one expert."""
        return self.matrices * self.width * self.expert_width

    @property
    def attention(self) -> int:
        """Count the parameters of one attention."""
        D, out = self.width, self.heads * self.head_dim
        if not self.kv_rank:
            return 2 * D * (out + self.kv_heads * self.head_dim)
        query = (D + self.heads * (self.head_dim + self.rope_dim)) * self.q_rank
        key_value = D * (self.kv_rank + self.rope_dim) + self.kv_rank * 2 * out
        return query + key_value + out * D

    @property
    def cached(self) -> int:
        """Count the numbers that one layer keeps of one token."""
        return self.kv_rank + self.rope_dim if self.kv_rank else 2 * self.kv_heads * self.head_dim


# From the configs that were published with the weights; Switch and GShard from their papers
# (Table 9; Table 1 and Appendix A.2).
PRESETS = {
    "Mixtral 8x7B": Architecture(32000, 4096, 32, 32, 8, 128, 8, 2, 14336),
    "Mixtral 8x22B": Architecture(32768, 6144, 56, 48, 8, 128, 8, 2, 16384),
    "DBRX": Architecture(100352, 6144, 40, 48, 8, 128, 16, 4, 10752),
    "DeepSeekMoE-16B": Architecture(
        102400, 2048, 28, 16, 16, 128, 64, 6, 1408, shared=2, dense_width=10944, dense_first=1
    ),
    "DeepSeek-V3": Architecture(
        129280, 7168, 61, 128, 128, 128, 256, 8, 2048, shared=1, dense_width=18432, dense_first=3,
        q_rank=1536, kv_rank=512, rope_dim=64,
    ),
    "OLMoE": Architecture(50304, 2048, 16, 16, 16, 128, 64, 8, 1024, extra=16 * 2 * 2048),
    "Qwen3-30B-A3B": Architecture(151936, 2048, 48, 32, 4, 128, 128, 8, 768, extra=48 * 2 * 128),
    "Switch-Base": Architecture(
        32128, 768, 24, 12, 12, 64, 128, 1, 2048, dense_width=2048, every=2, tied=True, cross=12,
        extra=2 * 32 * 12,
    ),
    "Switch-C": Architecture(
        32128, 2080, 30, 32, 32, 64, 2048, 1, 6144, matrices=2, tied=True, cross=15,
        extra=2 * 32 * 32,
    ),
    "GShard-600B": Architecture(  # 64,000 source tokens; 32,000 of the target, in and out
        64000, 1024, 36, 16, 16, 128, 2048, 2, 8192, dense_width=8192, every=2, matrices=2,
        cross=18,
    ),
}  # fmt: skip

PUBLISHED: dict[str, tuple[str, str | None]] = {
    "Mixtral 8x7B": ("46,702,792,704", "12,879,925,248"),  # of its checkpoint; paper: 47B, 13B
    "Mixtral 8x22B": ("141B", "39B"),
    "DBRX": ("132B", "36B"),
    "DeepSeekMoE-16B": ("16.4B", "2.8B"),
    "DeepSeek-V3": ("671B", "37B"),
    "OLMoE": ("6.9B", "1.3B"),
    "Qwen3-30B-A3B": ("30.5B", "3.3B"),
    "Switch-Base": ("7B", None),
    "Switch-C": ("1571B", None),
    "GShard-600B": ("600B", None),
}
"""Total and active parameters as they were published, None where they were not."""


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
    dense: int = 0
    shared: int = 0

    @property
    def total(self) -> int:
        """All of them: what must be held in memory."""
        return (
            self.embedding + self.attention + self.routers + self.experts + self.norms
            + self.lm_head + self.dense + self.shared
        )  # fmt: skip

    @property
    def active(self) -> int:
        """Those one token's way leads through: all but the experts it was not sent to.

        The whole input embedding is counted, as in Mixtral's published 13B, though a token
        reads one row of it.
        """
        return self.total - self.unused_experts


def count_parameters(config: MixtralConfig | Architecture) -> ParameterCount:
    """Count the parameters of a model from its config alone.

    >>> count = count_parameters(MixtralConfig())
    >>> f"{count.total:,} {count.active:,}"
    '46,702,792,704 12,879,925,248'
    >>> f"{count.total * torch.bfloat16.itemsize / 1e9:.1f} GB in bf16"
    '93.4 GB in bf16'
    >>> f"{count_parameters(PRESETS['DeepSeek-V3']).total / 1e9:.0f} billion"
    '671 billion'

    Source: Jiang et al. 2024 (arXiv:2401.04088), Table 1.
    """
    a = Architecture.of(config)
    D, L, M = a.width, a.layers, a.moe_layers
    return ParameterCount(
        embedding=a.vocab * D,
        attention=(L + a.cross) * a.attention,
        routers=M * a.experts * D,
        experts=M * a.experts * a.expert,
        unused_experts=M * (a.experts - a.top_k) * a.expert,
        # Before each part, and after each stack; a latent attention has two of its own.
        norms=(2 * L + a.cross + 1 + bool(a.cross)) * D + L * (a.q_rank + a.kv_rank) + a.extra,
        lm_head=0 if a.tied else a.vocab * D,
        dense=(L - M) * a.matrices * D * a.dense_width,
        shared=M * a.shared * a.expert,
    )


def kv_cache_bytes(
    config: MixtralConfig | Architecture,
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
    a = Architecture.of(config)
    return a.layers * batch_size * num_tokens * a.cached * dtype.itemsize


def distinct_experts(experts: int, top_k: int, tokens: float) -> float:
    """Expect how many experts at least one of these tokens goes to, if each chooses at random.

    An expert is left out by one token with probability 1 - K/E, by all with that to the power
    of their number.

    >>> [round(distinct_experts(8, 2, tokens), 2) for tokens in (1, 4, 16)]
    [2.0, 5.47, 7.92]
    """
    return experts * (1 - (1 - top_k / experts) ** tokens)


def all_to_all_bytes(
    config: MixtralConfig | Architecture, tokens: float, ranks: int, bytes_per_number: float = 2.0
) -> float:
    """Count what one rank sends to others in a forward pass, out and back, all layers together.

    Args: tokens: of this rank. The experts lie evenly on the ranks and are chosen evenly, so
          that the share (ranks - 1) / ranks of the pairs leaves; each pair travels by itself.
    """
    a = Architecture.of(config)
    pairs = a.moe_layers * tokens * a.top_k
    return 2 * pairs * a.width * bytes_per_number * (ranks - 1) / ranks


# --- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """State what a device can do: FLOP/s, bytes/s of its memory, bytes, bytes/s to another."""

    flops: float
    bandwidth: float
    memory: float
    link: float


# Dense bf16 and one direction of the link, from the makers' data sheets; the CPU is a round guess.
DEVICES = {
    "H100 SXM": Device(989e12, 3.35e12, 80e9, 450e9),
    "H200 SXM": Device(989e12, 4.8e12, 141e9, 450e9),
    "A100 SXM 80GB": Device(312e12, 2.039e12, 80e9, 300e9),
    "RTX 4090": Device(165e12, 1.008e12, 24e9, 32e9),
    "a laptop's CPU": Device(1e12, 60e9, 16e9, 1e9),
}
OPTIMIZER_BYTES = 16  # per parameter: bf16 weight and gradient; float32 weight and two moments
OPTIMIZER_TRAFFIC = 28  # reads gradient (2), reads and writes those three (24), writes weight (2)


@dataclass(frozen=True)
class Cost:
    """Hold what one step asks of each device, and the seconds that each part takes alone.

    FLOPs; bytes read of weights and cache; bytes sent; bytes that have to fit.
    """

    flops: float
    weight_bytes: float
    cache_bytes: float
    link_bytes: float
    held_bytes: float
    device: Device

    @property
    def parts(self) -> dict[str, float]:
        """Return the seconds of arithmetic, memory and network."""
        return {
            "compute": self.flops / self.device.flops,
            "memory": (self.weight_bytes + self.cache_bytes) / self.device.bandwidth,
            "network": self.link_bytes / self.device.link,
        }

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def bound(self) -> str:
        """Name the part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def fits(self) -> bool:
        return self.held_bytes <= self.device.memory


def step(
    config: MixtralConfig | Architecture,
    device: Device,
    phase: Phase,
    batch: int,
    context: int,
    *,
    ranks: int = 1,
    bytes_per_weight: float = 2.0,
) -> Cost:
    """Estimate one step: a new token for each text, all of its tokens at once, or training on it.

    What is assumed: every part at its full speed, perfectly overlapped; experts chosen evenly
    and independently, spread over the ranks, all else on each; weights that are used read
    once; activations stay in cache. A multiply-add is 2 FLOPs, and training costs three
    forward passes. So the result is a bound from below.

    Args:    batch: texts, over all ranks together; context: tokens that each has. ranks: devices
             that share the batch and the experts. bytes_per_weight: 2 for bf16, 1 for int8.
    Returns: what each device does.
    Raises:  ValueError for a phase that there is not, or a count below 1.
    """
    if phase not in get_args(Phase):
        raise ValueError(f"phase must be one of {get_args(Phase)}, not {phase!r}")
    if min(batch, context, ranks) < 1:
        raise ValueError(f"batch, context and ranks start at 1, not {batch}, {context}, {ranks}")
    a, count = Architecture.of(config), count_parameters(config)
    tokens = batch if phase == "decode" else batch * context
    seen = context if phase == "decode" else context / 2  # of the text, on average
    common = count.total - count.experts - count.embedding + a.tied * count.embedding
    experts = count.experts / ranks
    touched = experts * distinct_experts(a.experts, a.top_k, tokens) / a.experts
    used = common + count.experts - count.unused_experts
    scores = 2 * seen * a.heads * (2 * a.head_dim + a.rope_dim) * (a.layers + a.cross)
    flops = (2 * used + scores) * tokens / ranks
    cache = kv_cache_bytes(a, context, batch) / ranks
    sent = all_to_all_bytes(a, tokens / ranks, ranks)
    held = (count.total - count.experts + experts) * bytes_per_weight
    if phase != "train":
        return Cost(flops, (common + touched) * bytes_per_weight, cache, sent, held + cache, device)
    own = count.total - count.experts + experts
    read = 3 * (common + touched) * bytes_per_weight + OPTIMIZER_TRAFFIC * own
    averaged = 2 * (count.total - count.experts) * 2 * (ranks - 1) / ranks  # a ring's all-reduce
    return Cost(3 * flops, read, 0.0, 2 * sent + averaged, OPTIMIZER_BYTES * own, device)
