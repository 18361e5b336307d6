"""Counts from the config alone, against the models themselves."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.config import MixtralConfig
from moe_lite.course.cost import (
    DEVICES,
    PRESETS,
    PUBLISHED,
    Architecture,
    all_to_all_bytes,
    count_parameters,
    distinct_experts,
    kv_cache_bytes,
    step,
)
from moe_lite.generate import KVCache
from moe_lite.hf import _outline


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


# --- what others published -----------------------------------------------------------------------


def rounded_as(published: str, value: int) -> str:
    """Write a count with as many digits as were published: 671B, 16.4B, 46,702,792,704."""
    if "B" not in published:
        return f"{value:,}"
    digits = published.removesuffix("B")
    if digits.endswith("00"):  # 600B claims one digit
        return f"{round(value / 1e9, 1 - len(digits)):.0f}B"
    return f"{value / 1e9:.{len(digits.partition('.')[2])}f}B"


@pytest.mark.parametrize("name", PRESETS)
def test_a_total_is_the_published_one_to_its_digits(name):
    total, _ = PUBLISHED[name]
    assert rounded_as(total, count_parameters(PRESETS[name]).total) == total


def test_active_parameters_are_the_published_ones_where_the_counting_agrees():
    """Two papers count otherwise: leaving out the input embedding, or cutting the digits off."""
    differ = {"DeepSeek-V3": 37_552_282_624, "Qwen3-30B-A3B": 3_353_032_704}
    for name, (_, active) in PUBLISHED.items():
        if active is not None:
            ours = count_parameters(PRESETS[name]).active
            assert (rounded_as(active, ours) != active) == (name in differ), name
            assert differ.get(name, ours) == ours
    v3 = count_parameters(PRESETS["DeepSeek-V3"])
    assert rounded_as("37B", v3.active - v3.embedding) == "37B"
    qwen = count_parameters(PRESETS["Qwen3-30B-A3B"])
    assert rounded_as("29.9B", qwen.total - qwen.embedding - qwen.lm_head) == "29.9B"


def test_the_rounding_is_held():
    assert rounded_as("600B", 649_000_000_000) == "600B" != rounded_as("600B", 651_000_000_000)
    assert rounded_as("16.4B", 16_460_000_000) == "16.5B"
    assert all(re.fullmatch(r"[\d.]+B|[\d,]+", total) for total, _ in PUBLISHED.values())


def elsewhere(name):
    """Build the published model as transformers does, without memory; None where it does not."""
    t = pytest.importorskip("transformers")
    if name.startswith("Mixtral"):
        a = PRESETS[name]
        config = t.MixtralConfig(
            vocab_size=a.vocab, hidden_size=a.width, intermediate_size=a.expert_width,
            num_hidden_layers=a.layers, num_attention_heads=a.heads,
        )  # fmt: skip
    elif name == "DBRX":
        config = t.DbrxConfig(
            d_model=6144, n_heads=48, n_layers=40, vocab_size=100352,
            attn_config={"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 5e5},
            ffn_config={"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4,
                        "hidden_size": 6144},
        )  # fmt: skip
    elif name == "DeepSeek-V3":
        config = t.DeepseekV3Config()
    elif name == "OLMoE":
        config = t.OlmoeConfig(intermediate_size=1024)
    elif name == "Qwen3-30B-A3B":
        config = t.Qwen3MoeConfig(num_hidden_layers=48, head_dim=128)
    else:
        return None
    with torch.device("meta"):
        return t.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", ["Mixtral 8x22B", "DBRX", "DeepSeek-V3", "OLMoE", "Qwen3-30B-A3B"])
def test_a_preset_counts_as_transformers_own_model(name):
    model = elsewhere(name)
    assert count_parameters(PRESETS[name]).total == sum(p.numel() for p in model.parameters())


def test_switch_base_counts_as_transformers_own_model():
    t = pytest.importorskip("transformers")
    config = t.SwitchTransformersConfig(
        num_experts=128, d_ff=3072, num_sparse_encoder_layers=6, num_sparse_decoder_layers=6
    )  # its experts are ReLU networks half as wide again: as many parameters as GEGLU ones of 2048
    with torch.device("meta"):
        model = t.SwitchTransformersForConditionalGeneration(config)
    assert count_parameters(PRESETS["Switch-Base"]).total == sum(
        p.numel() for p in model.parameters()
    )


# --- bytes and time ------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_distinct_experts_is_the_mean_over_all_ways_to_choose(experts, top_k, tokens):
    top_k = min(top_k, experts)
    torch.manual_seed(experts * 100 + top_k * 10 + tokens)
    scores = torch.rand(4000, tokens, experts)
    chosen = scores >= scores.topk(top_k, dim=-1).values[..., -1:]
    counted = chosen.any(1).sum(1).double().mean().item()
    assert distinct_experts(experts, top_k, tokens) == pytest.approx(counted, abs=0.15)
    assert distinct_experts(experts, top_k, 1) == pytest.approx(top_k)


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 40), st.integers(1, 64))
def test_a_step_s_arithmetic_is_two_flops_for_each_weight_it_uses(config, batch, context):
    a, count = Architecture.of(config), count_parameters(config)
    cost = step(config, DEVICES["H100 SXM"], "prefill", batch, context)
    weights = count.active - count.embedding * (not config.tie_word_embeddings)
    scores = 2 * a.layers * a.heads * a.head_dim * context  # half of the text, scores and values
    assert cost.flops == pytest.approx(batch * context * (2 * weights + scores))
    assert step(config, cost.device, "train", batch, context).flops == 3 * cost.flops
    assert cost.link_bytes == 0  # alone


def test_decode_reads_the_weights_and_prefill_computes():
    config, device = MixtralConfig(), DEVICES["H200 SXM"]
    count = count_parameters(config)
    one = step(config, device, "decode", 1, 1024)
    assert one.bound == "memory"
    assert one.weight_bytes == 2 * (count.active - count.embedding)
    many = step(config, device, "decode", 512, 1024)
    assert many.weight_bytes == pytest.approx(2 * (count.total - count.embedding), rel=1e-6)
    assert one.weight_bytes < many.weight_bytes < 512 * one.weight_bytes
    assert step(config, device, "prefill", 8, 2048).bound == "compute"
    assert one.fits and not step(config, DEVICES["H100 SXM"], "decode", 1, 1024).fits
    assert step(config, DEVICES["H100 SXM"], "decode", 1, 1024, ranks=2).fits
    half = step(config, device, "decode", 1, 1024, bytes_per_weight=1)
    assert half.weight_bytes == one.weight_bytes / 2


def test_training_holds_sixteen_bytes_for_each_parameter():
    total = count_parameters(MixtralConfig()).total
    cost = step(MixtralConfig(), DEVICES["H100 SXM"], "train", 1, 64)
    assert cost.held_bytes == 16 * total and not cost.fits


def test_the_all_to_all_is_counted_pair_by_pair():
    config = MixtralConfig(hidden_size=64, num_hidden_layers=3)
    # 3 layers x 10 tokens x 2 experts x 64 numbers x 2 bytes, out and back, 3 of 4 elsewhere.
    assert all_to_all_bytes(config, 10, 4) == 3 * 10 * 2 * 64 * 2 * 2 * 3 / 4
    assert all_to_all_bytes(config, 10, 1) == 0
    assert step(config, DEVICES["H100 SXM"], "prefill", 4, 10, ranks=4).link_bytes == (
        all_to_all_bytes(config, 10, 4)
    )


def test_a_latent_cache_is_small():
    v3, mixtral = (kv_cache_bytes(PRESETS[n], 1) for n in ("DeepSeek-V3", "Mixtral 8x7B"))
    assert v3 == 61 * (512 + 64) * 2 and mixtral == 32 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda d: step(MixtralConfig(), d, "sleep", 1, 1), "phase must be one of"),
        (lambda d: step(MixtralConfig(), d, "decode", 0, 1), "start at 1, not 0, 1, 1"),
        (lambda d: Architecture(9, 8, 1, 1, 1, 8, 4, 5, 8), "from 1 to 4 experts, not 5"),
    ],
)
def test_what_cannot_be_is_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(DEVICES["RTX 4090"])
