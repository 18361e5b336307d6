"""What a model costs before anything is built: parameters, bytes, FLOPs, traffic, time.

Counts of parameters are exact. Times are rooflines (Williams et al. 2009): the longest of what
arithmetic, memory and network would each take alone at the device's full speed. No real step
is faster, most take a small multiple; what a roofline tells is which of the three to look at.
``Cost.in_turn`` says what a good real step takes; it is held against published deployments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ..config import MixtralConfig

Phase = Literal["decode", "prefill", "train"]
Precision = Literal["float32", "bf16", "fp8", "fp4"]
BYTES: dict[Precision, float] = {"float32": 4.0, "bf16": 2.0, "fp8": 1.0, "fp4": 4.25 / 8}
"""Of one weight; MXFP4 has a byte of scale for each 32 (OCP Microscaling v1.0, section 5)."""


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
        q_rank, kv_rank, rope_dim, value_dim: of multi-head latent attention (DeepSeek-AI 2024,
                                   arXiv:2405.04434, section 2.1); then kv_heads means nothing.
                                   A value_dim of 0 is head_dim.
        windowed, window:          so many layers see the last ``window`` tokens only.
        sparse:                    an attention reads at most so many of the tokens it has kept
                                   (DeepSeek-V3.2's indexer picks them); 0 for all.
        other, other_size:         so many layers attend in another way, with that many parameters
                                   each: linear attention, Mamba, compressed keys.
        other_cached, other_products: what such a layer keeps of a token, and its multiply-adds
                                   with each kept token; 0 where a state of fixed size is kept.
        nodes:                     a token's experts lie on at most so many nodes; 0 for any.
        extra:                     parameters without a field here: norms of queries and keys,
                                   biases, gates.
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
    value_dim: int = 0
    windowed: int = 0
    window: int = 0
    sparse: int = 0
    other: int = 0
    other_size: int = 0
    other_cached: int = 0
    other_products: int = 0
    nodes: int = 0
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
        values, query_dim = (
            self.heads * (self.value_dim or self.head_dim),
            out + self.heads * self.rope_dim,
        )
        query = (D + query_dim) * self.q_rank if self.q_rank else D * query_dim
        key_value = D * (self.kv_rank + self.rope_dim) + self.kv_rank * (out + values)
        return query + key_value + values * D

    @property
    def cached(self) -> int:
        """Count the numbers that one layer keeps of one token."""
        return self.kv_rank + self.rope_dim if self.kv_rank else 2 * self.kv_heads * self.head_dim

    def products(self, one_by_one: bool = False) -> int:
        """Count the multiply-adds of one new token with one that a layer has kept.

        A score is a product over the head, a weighted value another. A latent cache of one token
        at a time is not unpacked: each head works on the whole of it, scores over kv_rank +
        rope_dim numbers, values over kv_rank (arXiv:2405.04434, section 2.1.2).
        """
        if self.kv_rank and one_by_one:
            return self.heads * (2 * self.kv_rank + self.rope_dim)
        return self.heads * (self.head_dim + self.rope_dim + (self.value_dim or self.head_dim))

    def over_layers(
        self, tokens: float, each: float, of_other: float, reads: bool = False
    ) -> float:
        """Add up over the layers what each of so many kept tokens costs.

        Args: each: of a token in a layer; of_other: in one of the ``other`` layers; reads: count
              what an attention reads, not what is kept (they differ where it is ``sparse``).
        """
        seen = min(tokens, self.sparse) if reads and self.sparse else tokens
        full = self.layers + self.cross - self.windowed - self.other
        near = self.windowed * min(tokens, self.window)
        return (full * seen + near) * each + self.other * tokens * of_other


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

    Source: Jiang et al. 2024 (arXiv:2401.04088), Table 1.
    """
    a = Architecture.of(config)
    D, L, M = a.width, a.layers, a.moe_layers
    usual = L - a.other
    return ParameterCount(
        embedding=a.vocab * D,
        attention=(usual + a.cross) * a.attention + a.other * a.other_size,
        routers=M * a.experts * D,
        experts=M * a.experts * a.expert,
        unused_experts=M * (a.experts - a.top_k) * a.expert,
        # Before each part, and after each stack; a latent attention has two of its own.
        norms=(2 * L + a.cross + 1 + bool(a.cross)) * D + usual * (a.q_rank + a.kv_rank) + a.extra,
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

    A layer with a window keeps no more than that; a state of fixed size is left out.

    >>> kv_cache_bytes(MixtralConfig(), 32768) / 2**30  # GiB
    4.0

    Raises: ValueError if a count is negative.
    """
    if num_tokens < 0 or batch_size < 0:
        raise ValueError(f"cannot cache {num_tokens} tokens of {batch_size} texts")
    a = Architecture.of(config)
    return int(batch_size * a.over_layers(num_tokens, a.cached, a.other_cached)) * dtype.itemsize


def distinct_experts(experts: int, top_k: int, tokens: float) -> float:
    """Expect how many experts at least one of these tokens goes to, if each chooses at random.

    An expert is left out by one token with probability 1 - K/E, by all with that to the power
    of their number.

    >>> [round(distinct_experts(8, 2, tokens), 2) for tokens in (1, 4, 16)]
    [2.0, 5.47, 7.92]
    """
    return experts * (1 - (1 - top_k / experts) ** tokens)


# --- the network ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """Count how often a token's vector travels in one exchange: inside its node, between nodes."""

    inside: float
    between: float


def copies(
    config: MixtralConfig | Architecture, ranks: int, node: int = 8, by_node: bool = True
) -> Copies:
    """Expect the copies of one token in one exchange of one layer.

    Args: ranks: devices that share the experts evenly, ``node`` of them in a node; experts are
          chosen evenly. by_node: a token is sent once to each node that it visits, and there once
          to each rank (DeepEP's normal kernels; DeepSeek-AI 2024, arXiv:2412.19437, section
          3.2.2); else once for each of its K experts, straight there (its low-latency kernels).

    >>> copies(MixtralConfig(), 8)  # 2 of 8 experts, one each: 2 ranks, 7/8 of them others'
    Copies(inside=1.75, between=0.0)
    >>> copies(MixtralConfig(), 8, node=4, by_node=False)
    Copies(inside=0.75, between=1.0)
    """
    a = Architecture.of(config)
    node = min(node, ranks)
    if not by_node:
        return Copies(a.top_k * (node - 1) / ranks, a.top_k * (ranks - node) / ranks)
    nodes = max(ranks / node, 1.0)
    reach = min(a.nodes or nodes, nodes)  # nodes that a token may visit
    within = a.experts * reach / nodes  # experts that it chooses among
    visited, met = (_met(places, within, a.top_k) for places in (reach, reach * node))
    return Copies(met * (node - 1) / node, visited * (nodes - 1) / nodes)


def _met(places: float, experts: float, chosen: int) -> float:
    """Expect how many of these places, with as many experts each, the chosen stand on."""
    places, chosen = min(places, experts), min(chosen, int(experts))  # a place has one at least
    each = experts / places
    missed = math.prod(max(0.0, 1 - each / (experts - other)) for other in range(chosen))
    return places * (1 - missed)


def all_to_all_bytes(
    config: MixtralConfig | Architecture, tokens: float, ranks: int, bytes_per_number: float = 2.0
) -> float:
    """Count what one rank sends to others in a forward pass, out and back, all layers together.

    Args: tokens: of this rank. The experts lie evenly on the ranks and are chosen evenly, so
          that the share (ranks - 1) / ranks of the pairs leaves; each pair travels by itself.
    """
    a = Architecture.of(config)
    away = copies(a, ranks, node=1, by_node=False).between
    return 2 * a.moe_layers * tokens * away * a.width * bytes_per_number


# --- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """State what a device can do at best.

    Args: bf16, fp8, fp4: dense FLOP/s; 0 where there is no unit for it: then weights in it are
                          unpacked and multiplied in bf16.
          bandwidth, memory: bytes/s of its memory, and bytes.
          link, node:     bytes/s, one way, to the others of its node; how many devices a node has.
          between:        bytes/s, one way, to other nodes.
          startup:        seconds that an exchange takes beside its bytes.
    """

    bf16: float
    fp8: float
    fp4: float
    bandwidth: float
    memory: float
    link: float
    node: int
    between: float
    startup: float = 25e-6

    def flops(self, precision: Precision) -> float:
        """Return FLOP/s on weights of that precision; float32 runs as TF32, at half of bf16."""
        own = {"float32": self.bf16 / 2, "bf16": self.bf16, "fp8": self.fp8, "fp4": self.fp4}
        return own[precision] or (self.fp8 if precision == "fp4" and self.fp8 else self.bf16)


# Dense peaks, memory and NVLink (half of the two-way figure) from the makers' data sheets, 400
# (A100: 200) Gb/s InfiniBand for each device between nodes. H800: NVLink and InfiniBand as DeepEP
# states them (docs/legacy.md), else an H100. The start-up is what DeepEP's low-latency rows leave
# over their bytes. The laptop: product and copy as in experiments/results/bench/cpu.json, doubled.
DEVICES = {
    "H100 SXM": Device(989e12, 1979e12, 0, 3.35e12, 80e9, 450e9, 8, 50e9),
    "H800 SXM": Device(989e12, 1979e12, 0, 3.35e12, 80e9, 160e9, 8, 50e9),
    "H200 SXM": Device(989e12, 1979e12, 0, 4.8e12, 141e9, 450e9, 8, 50e9),
    "A100 SXM 80GB": Device(312e12, 0, 0, 2.039e12, 80e9, 300e9, 8, 25e9),
    "B200 SXM": Device(2250e12, 4500e12, 9000e12, 8e12, 180e9, 900e9, 8, 50e9),
    "GB200 NVL72": Device(2500e12, 5000e12, 10000e12, 8e12, 186e9, 900e9, 72, 50e9),
    "MI300X": Device(1307e12, 2615e12, 0, 5.3e12, 192e9, 448e9, 8, 50e9),
    "RTX 4090": Device(165e12, 330e12, 0, 1.008e12, 24e9, 32e9, 2, 1.25e9),
    "Apple M3 Ultra": Device(28e12, 0, 0, 819e9, 512e9, 10e9, 1, 10e9),
    "two cores of a laptop": Device(0.95e12, 0, 0, 68e9, 16e9, 1e9, 1, 0.125e9, 200e-6),
}
OPTIMIZER_BYTES = 16  # per parameter: bf16 weight and gradient; float32 weight and two moments
OPTIMIZER_TRAFFIC = 28  # reads gradient (2), reads and writes those three (24), writes weight (2)
SCALE_BYTES = 4 / 128  # of an fp8 number on its way: a float32 for each 128 (arXiv:2412.19437)
REACHED = {"compute": 0.6, "memory": 0.9, "network": 0.88}
"""The share of full speed that good kernels were published to reach: FlashMLA 580 of 989 TFLOP/s
and 3.0 of 3.35 TB/s, DeepGEMM 1,350 of 1,979 at its best, DeepEP 141 of 160 and 44 of 50 GB/s."""


@dataclass(frozen=True)
class Cost:
    """Hold what one step asks of each device, and the seconds that each part takes alone.

    FLOPs with weights, and of attention with what it has kept (always bf16); bytes read of
    weights and cache; bytes sent inside the node and between nodes; exchanges, each with its
    start-up; bytes that have to fit.
    """

    flops: float
    score_flops: float
    weight_bytes: float
    cache_bytes: float
    inside_bytes: float
    between_bytes: float
    exchanges: int
    held_bytes: float
    weights: Precision
    device: Device

    @property
    def link_bytes(self) -> float:
        """Return what is sent, on both levels together."""
        return self.inside_bytes + self.between_bytes

    @property
    def parts(self) -> dict[str, float]:
        """Return the seconds of arithmetic, memory and network."""
        d = self.device
        return {
            "compute": self.flops / d.flops(self.weights) + self.score_flops / d.bf16,
            "memory": (self.weight_bytes + self.cache_bytes) / d.bandwidth,
            "network": self._bytes_seconds + self._startup_seconds,
        }

    @property
    def _bytes_seconds(self) -> float:
        """Return the slower of the two levels: they work at the same time."""
        return max(self.inside_bytes / self.device.link, self.between_bytes / self.device.between)

    @property
    def _startup_seconds(self) -> float:
        return self.exchanges * self.device.startup if self.link_bytes else 0.0

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def bound(self) -> str:
        """Name the part that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def work(self) -> float:
        """Estimate the seconds of a device's own work, at the speeds that good kernels reach.

        Attention and products follow each other, and each waits for its arithmetic or its bytes.
        """
        compute, memory, d = (
            REACHED["compute"],
            REACHED["memory"] * self.device.bandwidth,
            self.device,
        )
        attention = max(self.score_flops / d.bf16 / compute, self.cache_bytes / memory)
        return attention + max(
            self.flops / d.flops(self.weights) / compute, self.weight_bytes / memory
        )

    @property
    def exchange(self) -> float:
        """Estimate the seconds of all exchanges, at the speed that good kernels reach."""
        return self._bytes_seconds / REACHED["network"] + self._startup_seconds

    @property
    def in_turn(self) -> float:
        """Estimate a step in which work and exchanges take turns; hiding one behind the other
        can save the shorter of the two at most."""
        return self.work + self.exchange

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
    weights: Precision = "bf16",
    by_node: bool | None = None,
) -> Cost:
    """Estimate one step: a new token for each text, all of its tokens at once, or training on it.

    What is assumed: experts chosen evenly and independently, spread over the ranks, all else on
    each; weights that are used read once; activations stay in cache. Vectors go out in fp8 where
    the weights are in fp8 or fp4, and come back in bf16. A multiply-add is 2 FLOPs, and training
    costs three forward passes.

    Args:    batch: texts, over all ranks together; context: tokens that each has. ranks: devices
             that share the batch and the experts. by_node: as in :func:`copies`; None is the
             phase's own way, straight to the experts in decode.
    Returns: what each device does.
    Raises:  ValueError for a phase or precision that there is not, or a count below 1.
    """
    if phase not in get_args(Phase):
        raise ValueError(f"phase must be one of {get_args(Phase)}, not {phase!r}")
    if weights not in BYTES:
        raise ValueError(f"weights must be one of {tuple(BYTES)}, not {weights!r}")
    if min(batch, context, ranks) < 1:
        raise ValueError(f"batch, context and ranks start at 1, not {batch}, {context}, {ranks}")
    a, count, size = Architecture.of(config), count_parameters(config), BYTES[weights]
    decode = phase == "decode"

    # 1. arithmetic: the weights of a token's way, and attention over what it sees
    tokens = batch if decode else batch * context
    seen = context if decode else context / 2  # of the text, on average
    common = count.total - count.experts - count.embedding + a.tied * count.embedding
    used = common + count.experts - count.unused_experts
    flops = 2 * used * tokens / ranks
    scores = a.over_layers(seen, a.products(decode), a.other_products, reads=True)
    score_flops = 2 * scores * tokens / ranks

    # 2. memory: weights that somebody needs, and in decode the cache that attention reads
    own = count.experts / ranks
    touched = own * distinct_experts(a.experts, a.top_k, tokens) / a.experts
    held = count.total - count.experts + own
    cache = kv_cache_bytes(a, context, batch) / ranks
    read = a.over_layers(context, a.cached, a.other_cached, reads=True) * 2 * batch / ranks

    # 3. network: out and back in each layer
    away = copies(a, ranks, device.node, not decode if by_node is None else by_node)
    number = (1 + SCALE_BYTES if weights in ("fp8", "fp4") else 2) + 2  # out, and back
    sent = a.moe_layers * tokens / ranks * a.width * number
    inside, between, exchanges = away.inside * sent, away.between * sent, 2 * a.moe_layers
    if phase != "train":
        return Cost(
            flops, score_flops, (common + touched) * size, read if decode else cache, inside,
            between, exchanges, held * size + cache, weights, device,
        )  # fmt: skip
    node = min(device.node, ranks)
    # The average of the other gradients: a ring inside the node, then 1/node of it between nodes.
    ring = 2 * (count.total - count.experts) * 2
    inside = 2 * inside + ring * (node - 1) / node
    between = 2 * between + ring / node * (ranks - node) / ranks
    passes = 3 * (common + touched) * size + OPTIMIZER_TRAFFIC * held
    return Cost(
        3 * flops, 3 * score_flops, passes, 0.0, inside, between, 2 * exchanges + 1,
        OPTIMIZER_BYTES * held, weights, device,
    )  # fmt: skip
