"""Counts from the config alone, against the models themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.contracts import MixtralConfig
from moe_lite.cost import count_parameters, kv_cache_bytes
from moe_lite.hf import _outline
from moe_lite.model import KVCache


@st.composite
def configs(draw):
    kv, experts = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    return MixtralConfig(
        vocab_size=draw(st.integers(1, 99)),
        hidden_size=draw(st.integers(1, 40)),
        intermediate_size=draw(st.integers(1, 50)),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=kv * draw(st.integers(1, 3)),
        num_key_value_heads=kv,
        head_dim=2 * draw(st.integers(1, 8)),
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=80, deadline=None)
@given(configs())
def test_the_count_is_the_model_s(config):
    model, count = _outline(config), count_parameters(config)
    parameters = dict(model.named_parameters())
    assert count.total == sum(p.numel() for p in parameters.values())
    for part, mark in (
        ("embedding", "embed_tokens"), ("attention", "_proj."), ("routers", ".gate."),
        ("experts", ".experts."), ("norms", "norm."), ("lm_head", "lm_head"),
    ):  # fmt: skip
        held = sum(p.numel() for name, p in parameters.items() if mark in name)
        assert getattr(count, part) == held, part
    # Active: every parameter, but of each layer's expert stacks only K slices.
    K = config.num_experts_per_tok
    active = sum((p[:K] if ".experts." in n else p).numel() for n, p in parameters.items())
    assert count.active == active


@settings(max_examples=40, deadline=None)
@given(configs())
def test_dense_twins_match_in_experts(config):
    count = count_parameters(config)
    active, total = (count_parameters(config.dense(match)) for match in ("active", "total"))
    router_rows = config.num_local_experts - 1  # a dense twin keeps one row of each router
    rows = router_rows * config.num_hidden_layers * config.hidden_size
    assert active.active == active.total == count.active - rows
    assert total.active == total.total == count.total - rows


def test_mixtral_8x7b():
    count = count_parameters(MixtralConfig())
    assert (count.total, count.active) == (46_702_792_704, 12_879_925_248)
    assert count.experts / count.total == pytest.approx(0.966, abs=5e-4)
    assert count.routers == 32 * 32_768
    assert count.active - count.embedding == pytest.approx(12.75e9, rel=1e-3)


def test_one_mistral_7b():
    """Eight times Mistral 7B would be 57.9 billion: the experts share all but themselves."""
    mistral = MixtralConfig(num_local_experts=1, num_experts_per_tok=1)
    count = count_parameters(mistral)
    assert count.total - count.routers == 7_241_732_096


@settings(max_examples=40, deadline=None)
@given(
    configs(), st.integers(1, 9), st.integers(1, 3), st.sampled_from([torch.float32, torch.half])
)
def test_the_cache_is_as_large_as_counted(config, tokens, batch, dtype):
    cache = KVCache(config, batch, tokens, dtype=dtype)
    held = cache.k.nbytes + cache.v.nbytes
    assert kv_cache_bytes(config, tokens, batch, dtype) == held


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="cannot cache -1 tokens of 1 texts"):
        kv_cache_bytes(MixtralConfig(), -1)
