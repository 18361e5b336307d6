"""Published models against the published digits, transformers' own models, and README's table."""

import re

import pytest
import torch

from moe_lite.course import presets
from moe_lite.course.cost import count_parameters, kv_cache_bytes
from moe_lite.course.presets import PRESETS, PUBLISHED


def rounded_as(published: str, value: float) -> str:
    """Write a count with as many digits as were published: 671B, 16.4B, 1T, 46,702,792,704.

    Zeros at the end may be no digits: 230B claims two, 600B one.
    """
    if "B" not in published and "T" not in published:
        return f"{value:,}"
    unit, digits = (1e9, "B") if "B" in published else (1e12, "T"), published[:-1]
    exact = f"{value / unit[0]:.{len(digits.partition('.')[2])}f}"
    if exact == digits or "." in digits:
        return exact + unit[1]
    zeros = len(digits) - len(digits.rstrip("0"))
    return f"{round(value / unit[0], -zeros):.0f}{unit[1]}"


def next_token_layer(name: str) -> int:
    """Count a layer that predicts one token more, without embeddings: a block, norms, 2 D to D."""
    a = PRESETS[name]
    block = a.attention + (a.experts + a.shared) * a.expert + a.experts * a.width
    return block + 2 * a.width**2


# Totals that were published of something else than the text model with its embeddings.
SCOUT_SEES = 34 * (4 * 1408**2 + 2 * 1408 * 5632) + 5632 * 4096 + 4096**2 + 4096 * 5120
EMBEDDINGS = {name: 2 * PRESETS[name].vocab * PRESETS[name].width for name in PRESETS}
BESIDES = {
    "Llama 4 Scout": SCOUT_SEES,  # the encoder of pictures
    # The checkpoint, with the layer for the next token and its own copy of both embeddings.
    "DeepSeek-V3.2": next_token_layer("DeepSeek-V3.2") + EMBEDDINGS["DeepSeek-V3.2"],
    # arXiv:2508.06471, Table 1: with that layer, without embeddings ...
    "GLM-4.5": next_token_layer("GLM-4.5") - EMBEDDINGS["GLM-4.5"],
    "GLM-4.5-Air": -EMBEDDINGS["GLM-4.5-Air"],  # ... where Air's 106 leaves out both
}


def test_there_is_something_published_of_each_and_nothing_else():
    assert PRESETS.keys() == PUBLISHED.keys()
    years = [PUBLISHED[name].year for name in PRESETS]
    assert years == sorted(years) and len(years) >= 25
    assert all(re.fullmatch(r"[\d.]+[BT]|[\d,]+", p.total) and p.source for p in PUBLISHED.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_total_is_the_published_one_to_its_digits(name):
    total = PUBLISHED[name].total
    assert rounded_as(total, count_parameters(PRESETS[name]).total + BESIDES.get(name, 0)) == total


# Who leaves what out of "active": the input embedding, both, or cuts the digits off.
LESS = {
    "DeepSeek-V3": "embedding", "DeepSeek-V3.2": "embedding", "Kimi K2": "embedding",
    "GLM-4.5": "both", "GLM-4.5-Air": "both", "gpt-oss-120b": "biases", "gpt-oss-20b": "embedding",
    "Qwen3-Next-80B-A3B": "both", "MiniMax-M2": "embedding", "Nemotron 3 Nano": "embedding",
    "GLM-5": "both", "DeepSeek-V4-Flash": "embedding", "Qwen3.5-35B-A3B": "digits",
    "Qwen3-30B-A3B": "digits",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, p in PUBLISHED.items() if p.active])
def test_active_parameters_are_the_published_ones_as_they_were_counted(name):
    count, active = count_parameters(PRESETS[name]), PUBLISHED[name].active
    idle = 36 * 124 * 3 * 2880  # the biases of gpt-oss' other experts are in `extra`
    as_counted = {
        None: count.active, "embedding": count.active - count.embedding,
        "both": count.active - count.embedding - count.lm_head,
        "biases": count.active - count.embedding - idle,
        "digits": float(active[:-1]) * 1e9 if "B" in active else 0,
    }  # fmt: skip
    assert rounded_as(active, as_counted[LESS.get(name)]) == active
    if LESS.get(name) == "digits":
        assert 0 < count.active - as_counted["digits"] < 0.5e9
    elif name in LESS:
        said = float(active[:-1]) * 1e9  # and it is nearer than all of them together
        assert abs(as_counted[LESS[name]] - said) < abs(count.active - said)


def test_the_rounding_is_held():
    assert rounded_as("600B", 649e9) == "600B" != rounded_as("600B", 651e9)
    assert rounded_as("230B", 224e9) == "220B" and rounded_as("230B", 228.7e9) == "230B"
    assert rounded_as("16.4B", 16.46e9) == "16.5B" and rounded_as("1T", 1.6e12) == "2T"


# --- transformers' own models --------------------------------------------------------------------

NEMOTRON = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
CONFIGS = {
    "Mixtral 8x22B": lambda t: t.MixtralConfig(
        vocab_size=32768, hidden_size=6144, intermediate_size=16384, num_hidden_layers=56,
        num_attention_heads=48,
    ),
    "DBRX": lambda t: t.DbrxConfig(
        d_model=6144, n_heads=48, n_layers=40, vocab_size=100352,
        attn_config={"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 5e5},
        ffn_config={"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4,
                    "hidden_size": 6144},
    ),
    "DeepSeek-V2": lambda t: t.DeepseekV2Config(
        hidden_size=5120, num_hidden_layers=60, num_attention_heads=128, num_key_value_heads=128,
        n_routed_experts=160, num_experts_per_tok=6, moe_intermediate_size=1536,
        intermediate_size=12288, first_k_dense_replace=1,
    ),
    "OLMoE": lambda t: t.OlmoeConfig(intermediate_size=1024),
    "DeepSeek-V3": lambda t: t.DeepseekV3Config(),
    "Qwen3-30B-A3B": lambda t: t.Qwen3MoeConfig(num_hidden_layers=48, head_dim=128),
    "Qwen3-235B-A22B": lambda t: t.Qwen3MoeConfig(
        hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, head_dim=128,
        moe_intermediate_size=1536,
    ),
    "Llama 4 Scout": lambda t: t.Llama4TextConfig(),
    "Llama 4 Maverick": lambda t: t.Llama4TextConfig(
        num_local_experts=128, interleave_moe_layer_step=2
    ),
    "Kimi K2": lambda t: t.DeepseekV3Config(
        vocab_size=163840, num_attention_heads=64, num_key_value_heads=64, n_routed_experts=384,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    ),
    "GLM-4.5": lambda t: t.Glm4MoeConfig(
        hidden_size=5120, num_hidden_layers=92, head_dim=128, n_routed_experts=160,
        moe_intermediate_size=1536, intermediate_size=12288, first_k_dense_replace=3,
        use_qk_norm=True, attention_bias=True,
    ),
    "GLM-4.5-Air": lambda t: t.Glm4MoeConfig(head_dim=128, attention_bias=True),
    "gpt-oss-120b": lambda t: t.GptOssConfig(),
    "gpt-oss-20b": lambda t: t.GptOssConfig(num_hidden_layers=24, num_local_experts=32),
    "Qwen3-Next-80B-A3B": lambda t: t.Qwen3NextConfig(),
    "MiniMax-M2": lambda t: t.MiniMaxM2Config(),
    "DeepSeek-V3.2": lambda t: t.DeepseekV32Config(),
    "Nemotron 3 Nano": lambda t: t.NemotronHConfig(
        hidden_size=2688, num_attention_heads=32, num_key_value_heads=2, head_dim=128,
        layers_block_type=[{"M": "mamba", "E": "moe", "*": "attention"}[c] for c in NEMOTRON],
        mamba_num_heads=64, mamba_head_dim=64, n_groups=8, ssm_state_size=128,
        n_routed_experts=128, num_experts_per_tok=6, moe_intermediate_size=1856,
        moe_shared_expert_intermediate_size=3712,
    ),
    "GLM-5": lambda t: t.GlmMoeDsaConfig(),
    "Qwen3.5-35B-A3B": lambda t: t.Qwen3_5MoeConfig().text_config,
    "Gemma 4 26B-A4B": lambda t: t.Gemma4TextConfig(
        hidden_size=2816, intermediate_size=2112, num_attention_heads=16, num_key_value_heads=8,
        enable_moe_block=True, num_experts=128, top_k_experts=8, moe_intermediate_size=704,
        sliding_window=1024, attention_k_eq_v=True, hidden_size_per_layer_input=0,
        global_head_dim=512, num_global_key_value_heads=2,
    ),
    "DeepSeek-V4-Flash": lambda t: t.DeepseekV4Config(),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_preset_counts_as_transformers_own_model(name):
    t = pytest.importorskip("transformers")
    try:
        config = CONFIGS[name](t)
    except AttributeError:
        pytest.skip("this transformers does not know it yet")
    with torch.device("meta"):
        model = t.AutoModelForCausalLM.from_config(config)
    assert count_parameters(PRESETS[name]).total == sum(p.numel() for p in model.parameters())


def test_beside_each_stands_what_was_read_of_it():
    assert presets.READ.keys() == PRESETS.keys()
    counted = {name for name, read in presets.READ.items() if "transformers'" in read}
    assert counted == {*CONFIGS, "Mixtral 8x7B", "Switch-Base"}  # those are counted below, above
    printed = re.compile(r"(?:README|abstract): ([\d.]+[BT])(?:, ([\d.]+B))?")
    for name, read in presets.READ.items():
        if found := printed.match(read):  # what was read is what is claimed, to the digits printed
            said = PUBLISHED[name].total, PUBLISHED[name].active
            for here, there in zip(found.groups(), said, strict=True):
                if here and there:
                    digits = len(here.partition(".")[2]) - 1 if "." in here else 0
                    assert round(float(there[:-1]), digits) == float(here[:-1]), (name, here, there)


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


# --- caches --------------------------------------------------------------------------------------


def test_a_latent_cache_is_small():
    v3, mixtral = (kv_cache_bytes(PRESETS[n], 1) for n in ("DeepSeek-V3", "Mixtral 8x7B"))
    assert v3 == 61 * (512 + 64) * 2 and mixtral == 32 * 2 * 8 * 128 * 2


def test_a_window_keeps_no_more_than_it_sees():
    """gpt-oss: every second layer keeps 128 tokens, so half of what it looks like."""
    kept = kv_cache_bytes(PRESETS["gpt-oss-120b"], 131072)
    assert kept == 2 * 2 * 8 * 64 * (18 * 131072 + 18 * 128)
    assert kept * 2 == pytest.approx(36 * 131072 * 2 * 2 * 8 * 64, rel=2e-3)
    assert kv_cache_bytes(PRESETS["gpt-oss-120b"], 100) == 36 * 100 * 2 * 2 * 8 * 64
    # A state of fixed size keeps nothing of a token: 12 of 48 layers.
    assert kv_cache_bytes(PRESETS["Qwen3-Next-80B-A3B"], 1000) == 12 * 1000 * 2 * 2 * 2 * 256


# --- the table -----------------------------------------------------------------------------------


def test_readme_has_the_table():
    readme = (presets.ROOT / "README.md").read_text(encoding="utf-8")
    assert presets.fill(readme) == readme, "write it with python -m moe_lite.course.presets"


def test_the_table_says_who_does_what():
    rows = {row.split(" | ")[0]: row for row in presets.table().splitlines()[2:]}
    assert len(rows) == len(PRESETS)
    assert "| 2024 | 671B | 37.6B | 256 | 8 | 1 | 14 | sigmoid + bias" in rows["| DeepSeek-V3"]
    assert len({row.count("|") for row in presets.table().splitlines()}) == 1
    assert "Mixtral" not in presets.table(since=2025) and "GLM-5" in presets.table(since=2025)


def test_a_table_of_some_columns_is_these_columns_of_the_whole():
    def cells(table):
        return [row.strip("|").split("|") for row in table.splitlines()]

    whole = {column[0].strip(): column for column in zip(*cells(presets.table(2024)), strict=True)}
    for columns in (("model", "gate", "year"), tuple(whole)):
        some = list(zip(*cells(presets.table(2024, columns)), strict=True))
        assert some == [whole[name] for name in whole if name in columns]
    with pytest.raises(ValueError, match="no column 'modle': there are model, year"):
        presets.table(2024, ("modle",))
