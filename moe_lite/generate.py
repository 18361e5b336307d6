"""Generate text token by token: what is kept of the tokens so far, and how the next is drawn."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MixtralConfig


class KVCache:
    """Keep the keys and values of the tokens seen so far, so that each is computed once.

    Shapes: k, v (L, B, H_kv, max_len, A); ``length`` tokens of them are filled.
    Raises: ValueError for more tokens than there is room for, or of another shape, type or device.
    """

    def __init__(
        self, config: MixtralConfig, batch_size: int, max_len: int,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        L, H = config.num_hidden_layers, config.num_key_value_heads
        shape = (L, batch_size, H, max_len, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)  # type: ignore[arg-type]
        self.v = torch.zeros_like(self.k)
        self.length = 0

    def extend(self, layer: int, k_BHSA: Tensor, v_BHSA: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens of one layer and give back all of that layer's so far."""
        k, v, end = self.k[layer], self.v[layer], self.length + k_BHSA.shape[2]
        if end > k.shape[2]:
            raise ValueError(f"the cache has room for {k.shape[2]} tokens, not {end}")
        # autocast converts what it multiplies, whatever the cache holds
        free = k.dtype != k_BHSA.dtype and not k.is_meta
        free = free and torch.is_autocast_enabled(k.device.type)
        mine, given = (
            (x.shape[0], x.shape[1], x.shape[3], free or x.dtype, x.device) for x in (k, k_BHSA)
        )
        if mine != given:
            raise ValueError(f"the cache is for (B, H, A, type, device) {mine}, not {given}")
        k[:, :, self.length : end], v[:, :, self.length : end] = k_BHSA, v_BHSA
        return k[:, :, :end], v[:, :, :end]


def check_shapes(ids_BS: Tensor, mask_BS: Tensor | None, start: int = 0) -> int:
    """Return where ids end that go on from start; ValueError if they or the mask cannot be."""
    if ids_BS.dim() != 2 or not ids_BS.numel():
        raise ValueError(
            f"ids must be (batch, sequence) with at least one token, not {tuple(ids_BS.shape)}"
        )
    B, end = len(ids_BS), start + ids_BS.shape[1]
    if mask_BS is not None and mask_BS.shape != (B, end):
        raise ValueError(f"the mask has shape {tuple(mask_BS.shape)}, not {(B, end)}")
    return end


class Generator(nn.Module):
    """Let a model that scores the next token (``config``, ``embed_tokens``, a cache) write on."""

    config: MixtralConfig
    embed_tokens: nn.Embedding

    @torch.no_grad()
    def generate(
        self, ids_BS: Tensor, max_new_tokens: int, *, temperature: float = 1.0,
        top_k: int | None = None, top_p: float | None = None, seed: int | None = None,
        eos_token_id: int | Collection[int] | None = None, mask_BS: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Continue each row of ids, token by token, and return prompt and continuation.

        Args:    temperature: 0 takes the likeliest token (greedy). top_k: sample among the k
                 likeliest. top_p: among the fewest tokens whose probability reaches p.
                 seed: the same seed gives the same text. eos_token_id: a row that has
                 produced one of these is filled with the first; when all have, generation
                 stops. None: the config's; (): none. mask_BS: True (or 1) for real tokens, of
                 prompts of unequal length, which are padded on the left.
        Raises:  ValueError for an empty prompt, a setting out of range, padding at the end, or
                 a text that would outgrow the model's context.
        """
        if temperature != 0 and not temperature >= 1e-20:
            raise ValueError(f"temperature must be 0 or from 1e-20 up, not {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
        total = check_shapes(ids_BS, mask_BS) + max_new_tokens
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"prompt and continuation make {total} tokens, more than the model's context "
                f"of {self.config.max_position_embeddings}"
            )
        if mask_BS is not None and not mask_BS[:, -1:].all():
            raise ValueError("a prompt ends with padding: pad on the left, so that it goes on")
        eos = self.config.eos_token_id if eos_token_id is None else eos_token_id
        ends = [eos] if isinstance(eos, int) else list(eos or ())
        ends_N = torch.tensor(ends, dtype=torch.int64, device=ids_BS.device)
        weight = self.embed_tokens.weight
        cache = KVCache(self.config, len(ids_BS), total, weight.device, weight.dtype)
        generator = torch.Generator(ids_BS.device)
        generator.manual_seed(seed) if seed is not None else generator.seed()
        done_B = torch.zeros(len(ids_BS), dtype=torch.bool, device=ids_BS.device)
        new_BS = ids_BS
        for _ in range(max_new_tokens):
            logits_BV = self(new_BS, mask_BS, cache=cache).logits_BSV[:, -1]
            next_B = sample(logits_BV, temperature, top_k, top_p, generator)
            if ends:
                next_B = next_B.masked_fill(done_B, ends[0])
                done_B |= torch.isin(next_B, ends_N)
            new_BS = next_B[:, None]
            ids_BS = torch.cat([ids_BS, new_BS], dim=1)
            if mask_BS is not None:
                mask_BS = F.pad(mask_BS, (0, 1), value=1)
            if ends and done_B.all():
                break
        return ids_BS


def sample(
    logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Draw one token per row: int64 (B,). Temperature 0 takes the likeliest.

    Source: top-p: Holtzman et al. 2019 (arXiv:1904.09751), section 3.1.
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.float() / temperature
    if top_k is not None and top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    probs_BV = logits_BV.softmax(dim=-1)
    if top_p is not None:
        sorted_BV, index_BV = probs_BV.sort(dim=-1, descending=True)
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV  # the likeliest always stays
        probs_BV = torch.zeros_like(probs_BV).scatter(
            -1, index_BV, sorted_BV.masked_fill(before_BV >= top_p, 0.0)
        )
    return torch.multinomial(probs_BV, 1, generator=generator)[:, 0]
