"""A small Mixtral: a decoder whose every feed-forward network is a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MixtralConfig
from .experts import Experts
from .fast import Linear
from .generate import Generator, KVCache, check_shapes
from .layer import MoELayer
from .routers import TopKRouter
from .routing import ModelOutput, Routing, check_ids


def rotary(position_S: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Tabulate cos and sin of every position's angles, float32 (S, A), for :func:`rotate`.

    Source: Su et al. 2021 (arXiv:2104.09864), eq. 34; pairs are (a, a + A/2), as published.
    """
    exponent = torch.arange(0, head_dim, 2, device=position_S.device).float() / head_dim
    angle = position_S[:, None].float() / theta**exponent
    # the first sines negated, so that what turns (a, b) into (-b, a) is a roll
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x_BHSA: Tensor, cos_SA: Tensor, sin_SA: Tensor) -> Tensor:
    """Turn each pair of coordinates by its position's angle."""
    other_BHSA = x_BHSA.roll(x_BHSA.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BHSA * cos_SA, other_BHSA, sin_SA)


class Attention(nn.Module):
    """Attend with H query heads that share H_kv key and value heads.

    Source: Ainslie et al. 2023 (arXiv:2305.13245); window: Jiang et al. 2023 (arXiv:2310.06825).
    """

    def __init__(self, config: MixtralConfig, linear: type[nn.Linear] = Linear):
        super().__init__()
        D, A = config.hidden_size, config.head_dim
        assert A is not None
        self.head_dim, H, H_kv = A, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = linear(D, H * A, bias=False)
        self.k_proj = linear(D, H_kv * A, bias=False)
        self.v_proj = linear(D, H_kv * A, bias=False)
        self.o_proj = linear(H * A, D, bias=False)

    def forward(
        self, x_BSD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None,
        cache: KVCache | None, layer: int,
    ) -> Tensor:  # fmt: skip
        # 1. queries, keys and values, turned by position
        B, S, _ = x_BSD.shape
        q, k, v = (
            proj(x_BSD).view(B, S, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos_SA, sin_SA = (table.to(q.dtype) for table in rope)
        q, k = rotate(q, cos_SA, sin_SA), rotate(k, cos_SA, sin_SA)
        # 2. the keys and values of before come along
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        causal = mask is None and S > 1
        out_BHSA = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True
        )
        return self.o_proj(out_BHSA.transpose(1, 2).reshape(B, S, -1))


class Block(nn.Module):
    """One layer: x + attention(norm x), then x + experts(norm x)."""

    def __init__(
        self, config: MixtralConfig, layer: int, router: nn.Module, linear: type[nn.Linear] = Linear
    ):
        super().__init__()
        D, E = config.hidden_size, config.num_local_experts
        self.layer = layer
        self.input_layernorm = nn.RMSNorm(D, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, linear)
        self.post_attention_layernorm = nn.RMSNorm(D, eps=config.rms_norm_eps)
        self.block_sparse_moe = MoELayer(router, Experts(E, D, config.intermediate_size))
        self.block_sparse_moe.name = f"layers.{layer}.block_sparse_moe"

    def forward(
        self, x_BSD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None,
        cache: KVCache | None, real_BS: Tensor | None, ids_BS: Tensor,
    ) -> tuple[Tensor, Routing]:  # fmt: skip
        # 1. tokens look at each other
        normed = self.input_layernorm(x_BSD)
        x_BSD = x_BSD + self.self_attn(normed, rope, mask, cache, self.layer)
        # 2. each goes to its experts; what is dropped there still has its x
        out_BSD, routing = self.block_sparse_moe(
            self.post_attention_layernorm(x_BSD), real_BS, ids_BS
        )
        return x_BSD + out_BSD, routing


class Mixtral(Generator):
    """Predict the next token with a sparse decoder, and say where every token went.

    >>> config = MixtralConfig(vocab_size=64, hidden_size=32, intermediate_size=48,
    ...     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    >>> out = Mixtral(config)(torch.arange(10).view(1, 10))
    >>> out.logits_BSV.shape, len(out.routings), out.routings[0].num_experts
    (torch.Size([1, 10, 64]), 2, 8)

    From the same weights (``moe_lite.hf``) the same numbers as transformers' Mixtral.

    Args:   router: makes each layer's router, which keeps the weights that it comes with; None:
            a :class:`TopKRouter` of the config's sizes, its weights drawn like all others.
            linear: the class of all projections; called as ``nn.Linear`` is, which also does.
    Source: Jiang et al. 2024 (arXiv:2401.04088), sections 2 and 2.1.
    """

    def __init__(
        self,
        config: MixtralConfig,
        router: Callable[[MixtralConfig], nn.Module] | None = None,
        linear: type[nn.Linear] = Linear,
    ):
        super().__init__()
        D, E, K = config.hidden_size, config.num_local_experts, config.num_experts_per_tok
        self.config = config
        # As in transformers: the padding token's row gets no gradient from where it is read.
        self.embed_tokens = nn.Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(
            Block(config, i, TopKRouter(D, E, K) if router is None else router(config), linear)
            for i in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(D, eps=config.rms_norm_eps)
        self.lm_head = linear(D, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        # a router that was given keeps its own first weights
        gates = () if router is None else (layer.gate for layer in self.moe_layers)
        as_made = {parameter for gate in gates for parameter in gate.parameters()}
        for parameter in self.parameters():
            if parameter.dim() > 1 and parameter not in as_made:
                nn.init.normal_(parameter, std=config.initializer_range)

    @property
    def moe_layers(self) -> list[MoELayer]:
        return [block.block_sparse_moe for block in self.layers]  # type: ignore[misc]

    def forward(
        self, ids_BS: Tensor, mask_BS: Tensor | None = None, cache: KVCache | None = None
    ) -> ModelOutput:
        """Score every next token; takes and raises what :meth:`hidden` does."""
        hidden_BSD, routings = self.hidden(ids_BS, mask_BS, cache)
        return ModelOutput(self.lm_head(hidden_BSD), routings)

    def hidden(
        self, ids_BS: Tensor, mask_BS: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Return what the output matrix is multiplied with, (B, S, D), and the routings.

        Args:   ids_BS: int64 token ids. mask_BS: True (or 1) for real tokens, over all so far
                (cached ones included); it reaches attention, routers and, by the routings,
                losses. cache: filled in place; ids_BS then continue where it ends.
        Raises: ValueError if ids are no ids or out of range (looked at on the CPU), the mask's
                shape or the cache's differs, or the text outgrows the cache or the context.
        """
        # 1. where these tokens stand, and what each may look at
        start = cache.length if cache is not None else 0
        self._check(ids_BS, mask_BS, start)
        end = start + ids_BS.shape[1]
        assert self.config.head_dim is not None
        position_S = torch.arange(start, end, device=ids_BS.device)
        rope = rotary(position_S, self.config.head_dim, self.config.rope_theta)
        mask = self._attention_mask(start, end, mask_BS)
        real_BS = None if mask_BS is None else mask_BS[:, start:]
        # 2. block by block, keeping what each router said
        x_BSD = self.embed_tokens(ids_BS)
        routings = []
        for block in self.layers:
            x_BSD, routing = block(x_BSD, rope, mask, cache, real_BS, ids_BS)
            routings.append(routing)
        if cache is not None:
            cache.length = end
        return self.norm(x_BSD), tuple(routings)

    def _check(self, ids_BS: Tensor, mask_BS: Tensor | None, start: int) -> None:
        end, context = check_shapes(ids_BS, mask_BS, start), self.config.max_position_embeddings
        if end > context:
            raise ValueError(f"{end} tokens are more than the model's context of {context}")
        check_ids(ids_BS, self.config.vocab_size)

    def _attention_mask(self, start: int, end: int, mask_BS: Tensor | None) -> Tensor | None:
        """Return which keys each new query sees, bool (B or 1, 1, S, all); None: plainly causal."""
        window = self.config.sliding_window or end  # no window is one as long as the text
        if mask_BS is None and window >= end and (start == 0 or end - start == 1):
            return None
        key = torch.arange(end, device=self.embed_tokens.weight.device)
        query_S1 = key[start:, None]
        see = (key <= query_S1) & (key > query_S1 - window)
        if mask_BS is None:
            return see[None, None]
        # A padding query sees itself: softmax over no keys at all would be NaN.
        return see & mask_BS.bool()[:, None, None, :] | (key == query_S1)
