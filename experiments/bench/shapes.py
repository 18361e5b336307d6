"""What is measured: layers of named sizes, and routings with a load that is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """Name a layer's sizes (letters as in :mod:`moe_lite.routing`) and what to try on it."""

    T: int
    D: int
    F: int
    E: int
    K: int
    dtypes: tuple[str, ...] = ("bfloat16",)
    routings: tuple[str, ...] = ("random",)
    decode: bool = False  # few tokens, no gradients; on a GPU in a CUDA graph

    @property
    def rows(self) -> int:
        return self.T * self.K

    def flop(self, what: str) -> int:
        """Count the products' FLOP: three for a row, and twice as many backward."""
        return (6 if what == "forward" else 18) * self.rows * self.D * self.F

    def least_bytes(self, what: str, size: int, used: int) -> int:
        """Count the bytes that cannot stay away: ``used`` experts' weights, tokens, and h.

        Forward reads weights and x and writes the output. With the backward pass the weights are
        read twice and their gradients written, x read twice, dO read and dx written, and both
        projections (h) written and read.
        """
        weights, tokens = 3 * used * self.D * self.F, self.T * self.D
        if what == "forward":
            return (weights + 2 * tokens) * size
        return (3 * weights + 5 * tokens + 4 * self.rows * self.F) * size

    def smallest_activations(self, size: int) -> int:
        """Count the bytes that must be kept for the backward pass: x, h, gates, indices, offsets.

        The index and the gate of a pair take four bytes each.
        """
        kept = self.T * self.D + 2 * self.rows * self.F
        return kept * size + 8 * self.rows + 4 * (self.E + 1)


ALL = ("balanced", "random", "zipf", "one-hot", "half empty")
BOTH = ("float32", "bfloat16")
SMALL = "small"  # a layer with its batch, and the whole model of six such, held to targets
GPU_SHAPES = {
    "mixtral": Shape(16384, 4096, 14336, 8, 2, routings=ALL),
    "olmoe": Shape(16384, 2048, 1024, 64, 8, routings=ALL),
    "qwen3-30b": Shape(32768, 2048, 768, 128, 8),
    "sonicmoe": Shape(32768, 4096, 1024, 64, 4),
    "gpt-oss": Shape(16384, 2880, 2880, 128, 4),
    **{f"mixtral-decode-{T}": Shape(T, 4096, 14336, 8, 2, decode=True) for T in (1, 4, 16, 64)},
    **{f"olmoe-decode-{T}": Shape(T, 2048, 1024, 64, 8, decode=True) for T in (1, 4, 16, 64)},
}
CPU_SHAPES = {
    "course-e8": Shape(4096, 256, 512, 8, 2, BOTH, ALL),
    "course-e32": Shape(4096, 256, 512, 32, 2, BOTH),
    "course-e64": Shape(4096, 256, 512, 64, 2, BOTH),
    SMALL: Shape(4096, 192, 256, 8, 2, BOTH),
    **{f"{SMALL}-decode-{T}": Shape(T, 192, 256, 8, 2, ("float32",), decode=True)
       for T in (1, 4, 16, 64)},
    "mini": Shape(4096, 192, 128, 16, 4, BOTH),  # a layer of mixtral-mini and its batch
    **{f"mini-decode-{T}": Shape(T, 192, 128, 16, 4, ("float32",), decode=True)
       for T in (1, 4, 16, 64)},
}  # fmt: skip
SHAPES = GPU_SHAPES | CPU_SHAPES


def choices(routing: str, T: int, E: int, K: int, seed: int) -> Tensor:
    """Choose K different experts for each of T tokens: int64 (T, K), best first.

    ========== ===================================================================== ===========
    routing    each token's experts                                                  max / mean
    ========== ===================================================================== ===========
    balanced   K neighbours, from a start that takes all E in turn                   1
    random     the K largest of E random logits                                      near 1
    zipf       K draws without replacement, expert of rank r in proportion to 1 / r  uneven
    one-hot    first choice expert 0; the others take turns among the rest           E / K
    half empty as random, among every other expert (or K of them, if that is more)   near 2
    ========== ===================================================================== ===========

    Raises: ValueError for another routing, or if K is not in 1..E.
    """
    if not 1 <= K <= E:
        raise ValueError(f"K must be between 1 and {E} experts, not {K}")
    generator = torch.Generator().manual_seed(seed)
    if routing in ("balanced", "one-hot"):
        start_T1 = torch.randperm(T, generator=generator)[:, None]
        if routing == "balanced":
            return (start_T1 * K + torch.arange(K)) % E
        rest_TK = 1 + (start_T1 * (K - 1) + torch.arange(K - 1)) % max(E - 1, 1)
        return torch.cat([torch.zeros(T, 1, dtype=torch.int64), rest_TK], 1)
    score_TE = torch.rand(T, E, generator=generator).log().neg().log().neg()  # Gumbel noise
    if routing == "zipf":
        rank_E = 1 + torch.randperm(E, generator=generator)
        score_TE -= rank_E.log()
    elif routing == "half empty":
        kept = max(K, (E + 1) // 2)
        order_E = torch.cat([torch.arange(0, E, 2), torch.arange(1, E, 2)])
        score_TE[:, order_E[kept:]] = -torch.inf
    elif routing != "random":
        raise ValueError(f"routing must be one of {', '.join(ALL)}, not {routing!r}")
    return score_TE.topk(K).indices


def logits(expert_TK: Tensor, E: int, seed: int) -> Tensor:
    """Give router logits (T, E) whose K largest are these choices, exact in every dtype.

    Multiples of 1/64 below 4 are bfloat16 numbers, so no rounding can change a choice.
    """
    T, K = expert_TK.shape
    generator = torch.Generator().manual_seed(seed)
    other_TE = -torch.randint(64, 128, (T, E), generator=generator) / 64
    best_TK = torch.randint(0, 8, (T, K), generator=generator) / 64
    best_TK += 1 + torch.arange(K).flip(0) / max(4, K / 2)
    return other_TE.scatter(1, expert_TK, best_TK)
