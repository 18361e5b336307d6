"""Every sparse family of the installed transformers, built tiny, with biases that matter."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"

V = 64
TINY: dict[str, Any] = dict(
    vocab_size=V, hidden_size=32, intermediate_size=32, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts_per_tok=2,
    num_local_experts=6, num_experts=6, n_routed_experts=6, moe_intermediate_size=16,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, num_expert_group=1,
    q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    qk_head_dim=8, shared_expert_intermediate_size=16, shared_intermediate_size=16,
    ffn_hidden_size=16, expert_ffn_hidden_size=16, moe_num_experts=6, moe_k=2, moe_topk=2,
    num_shared_experts=1, moe_num_shared_experts=1, sliding_window=8, decoder_sparse_step=1,
    mlp_only_layers=[], d_model=32, d_ff=32, num_heads=4, d_kv=8, n_heads=4, n_layers=3,
    max_seq_len=128, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8, linear_head_dim=8, linear_num_heads=4,
    mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_expand=2,
    mamba_d_conv=4, mamba_chunk_size=8, mamba_num_heads=4, mamba_head_dim=16, mamba_dt_rank=4,
    num_dense_layers=1, moe_layer_start_index=1, expert_num=6, zero_expert_num=2,
    index_n_heads=2, index_head_dim=8, index_topk=8, encoder_layers=2, decoder_layers=2,
    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32,
    num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, encoder_sparse_step=1,
    expert_capacity=64, num_decoder_layers=2, num_layers=2, use_mamba_kernels=False,
    attention_dropout=0.0, hidden_size_per_layer_input=8, vocab_size_per_layer_input=V,
    enable_moe_block=True, top_k_experts=2, moe_latent_size=None, is_moe=True, kv_channels=8,
)  # fmt: skip
LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
SPARSE = {"mlp_layer_types": ["sparse"] * 3}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
           "indexer_budget": 8, "indexer_compress_ratio": 2}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0],
                            "partial_rotary_factor": 0.5}}  # fmt: skip
HEADS = {"num_key_value_heads": 4}
EXTRA: dict[str, dict[str, Any]] = {
    "qwen3_next": LINEAR, "qwen3_5_moe": LINEAR, "qwen4_exp": LINEAR | INDEXER,
    "bailing_hybrid": LINEAR, "kimi_linear": LINEAR, "granitemoehybrid": LINEAR,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "axk2": HEADS, "deepseek_v32": HEADS, "glm_moe_dsa": HEADS, "mistral_large4": HEADS,
    "dots3_note": HEADS,
    "glm5_next": LINEAR | SPARSE | HEADS | {"index_topk": 16, "qk_rope_head_dim": 0},
    "glm4v_moe": ROPE, "hy_v4_vl": ROPE, "longcat_flash": {"head_dim": 4},
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [16, 16],
        "rope_parameters": ROPE["rope_parameters"] | {"mrope_section": [1, 1, 2]},
    }, "deepseek_ocr2": SPARSE,
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe", "moe"]}, "beam": SPARSE,
    "step3p7": SPARSE,
    "zaya": {"num_experts_per_tok": 1}, "nemotron_h": {"mamba_num_heads": 4, "n_groups": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 6, "moe_top_k": 2},
    },
}  # fmt: skip
# No language model by itself, or one whose code only speaks of experts.
LEFT_OUT = ("cosmos3_omni", "evolla", "nemotron3_5_transcribe", "pi0", "decision_transformer",
            "vitpose", "vitpose_backbone", "bamba")  # fmt: skip
# Further settings, of every family that has them: experts in groups, and a single expert.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "groups": {"n_group": 3, "topk_group": 2, "num_expert_group": 3, "topk_method":
               "group_limited_greedy"},
    "one expert": {"num_experts_per_tok": 1, "top_k_experts": 1, "moe_k": 1, "moe_topk": 1},
    "one expert, its own score": {"num_experts_per_tok": 1, "top_k_experts": 1, "moe_k": 1,
                                  "moe_topk": 1, "norm_topk_prob": False},
}  # fmt: skip
SUFFIXES = ("TextForCausalLM", "ForCausalLM", "ThinkerTextModel", "ForConditionalGeneration",
            "ForTokenClassification", "TextModel", "Model")  # fmt: skip


def names() -> list[str]:
    """List the families whose code speaks of experts."""
    import transformers

    root = Path(transformers.__file__).parent / "models"
    files = sorted(root.glob("*/modeling_*.py"))
    spoken = [f.parent.name for f in files if "xpert" in f.read_text(encoding="utf-8")]
    return [name for name in dict.fromkeys(spoken) if name not in LEFT_OUT]


def build(name: str, variant: str = "as it is") -> nn.Module | None:
    """Build a family's language model, opinionated; None if it does not have the variant.

    Raises whatever its config or class does.
    """
    import transformers

    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    classes = {
        n: c
        for n, c in vars(module).items()
        if inspect.isclass(c)
        and issubclass(c, transformers.PreTrainedModel)
        and c.__module__ == module.__name__
    }
    plain = [
        n
        for n, c in classes.items()
        if "text_config" not in (getattr(c.config_class, "sub_configs", None) or {})
    ]
    found = [
        sorted((n for n in pool if n.endswith(suffix)), key=len)
        for pool in (plain, list(classes))
        for suffix in SUFFIXES
    ]
    made = classes[next(f[0] for f in found if f)]
    kind = made.config_class
    aliases = getattr(kind, "attribute_map", None) or {}
    known = set(kind().to_dict()) | set(aliases)
    sizes = {key: value for key, value in TINY.items() if key in known}
    if "qk_rope_head_dim" in known:
        sizes.pop("head_dim", None)
    for key in [k for k in sizes if k in aliases and aliases[k] in sizes and aliases[k] != k]:
        del sizes[key]
    more = {key: value for key, value in VARIANTS[variant].items() if key in known}
    if VARIANTS[variant] and more.items() <= {**sizes, **EXTRA.get(name, {})}.items():
        return None
    if "its own" in variant and "norm_topk_prob" not in known:
        return None
    torch.manual_seed(0)
    return opinionated(made(kind(**sizes | EXTRA.get(name, {}) | more)))


@torch.no_grad()
def opinionated(model: nn.Module) -> nn.Module:
    """Draw weights so large that experts differ, and selection biases that change choices."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
        elif not torch.isfinite(parameter).all():
            parameter.fill_(1.0)
    for name, tensor in (*model.named_buffers(), *model.named_parameters()):
        if "per_expert_scale" in name:
            tensor.uniform_(0.5, 2.0)
        elif "bias" in name and tensor.is_floating_point() and not name.endswith(".bias"):
            tensor.normal_(std=0.3)
        elif name.endswith("tid2eid"):  # experts by token, all different
            tensor.copy_(torch.rand(len(tensor), 6).argsort(-1)[:, : tensor.shape[1]])
    return model.eval()
