"""Published models with experts: their shapes, what was said of them, and who does what.

``python -m moe_lite.course.presets`` writes the table of README and chapter 09. Each total is held
to the published digits, and most shapes to transformers' own model, in tests/test_presets.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cost import Architecture, count_parameters

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "<!-- presets: written by python -m moe_lite.course.presets -->\n"
END = "<!-- /presets -->\n"


@dataclass(frozen=True)
class Published:
    """Hold what was published of a model.

    Args: year; total, active: parameters as printed, active None where they were not said.
          gate, balance, capacity, precision: how tokens choose, what evens the load in training,
          what happens where an expert is full, what the weights were released in; "?" where
          neither paper nor config says.
          source: where shape and practice are published.
    """

    year: int
    total: str
    active: str | None
    gate: str
    balance: str
    capacity: str
    precision: str
    source: str


SOFTMAX, SIGMOID = "softmax, K renormalised", "sigmoid + bias, K renormalised"
DEEPSEEK = "bias, small loss by sequence"
# An indexer of H heads of 128 picks what each token attends to (DeepSeek-V3.2).
_INDEXER_V32 = 61 * (64 * 128 * 1536 + 128 * 7168 + 2 * 128 + 64 * 7168)
_INDEXER_GLM = 78 * (32 * 128 * 2048 + 128 * 6144 + 2 * 128 + 32 * 6144)
# A gated delta network: queries, keys, values and gates in, convolution, decays, norm, out.
_DELTA = 2048 * (12288 + 64) + 8192 * 4 + 2 * 32 + 128 + 4096 * 2048
# A Mamba-2 block, 64 heads of 64 in 8 groups of state 128: in, convolution, per head, norm, out.
_MAMBA = 2688 * 10304 + 6144 * 5 + 3 * 64 + 4096 + 4096 * 2688
# DeepSeek-V4's attention: latent queries, one shared key-value head of 512, grouped output.
_V4_ATTENTION = (
    4096 * 1024 + 1024 + 1024 * 32768 + (4096 + 1) * 512 + 64 + 2 * 8192 * 4096 + 512
)  # fmt: skip
_V4_EXTRA = (
    23 * (128 * 512 + 2 * 512 * 4096)  # heavy compression: one entry for 128 tokens
    + 20 * (4 * 1024 + 2 * 1024 * 4096 + 4 * 256 + 2 * 256 * 4096 + 128 + 8192 * 1024 + 64 * 4096)
    + 2 * 43 * (24 * 16384 + 24 + 3) + 4 * 16384 + 4 + 1  # hyper-connections
)  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> Architecture:
    biases = 4096 + 2 * 512 + 2880 + experts + experts * 3 * 2880
    return Architecture(
        201088, 2880, layers, 64, 8, 64, experts, 4, 2880, windowed=layers // 2, window=128,
        extra=layers * (64 + biases),
    )  # fmt: skip


_DEEPSEEK_V3 = Architecture(
    129280, 7168, 61, 128, 128, 128, 256, 8, 2048, shared=1, dense_width=18432, dense_first=3,
    q_rank=1536, kv_rank=512, rope_dim=64, nodes=4,
)  # fmt: skip

PRESETS = {
    "GShard-600B": Architecture(  # 64,000 source tokens; 32,000 of the target, in and out
        64000, 1024, 36, 16, 16, 128, 2048, 2, 8192, dense_width=8192, every=2, matrices=2,
        cross=18,
    ),
    "Switch-Base": Architecture(
        32128, 768, 24, 12, 12, 64, 128, 1, 2048, dense_width=2048, every=2, tied=True, cross=12,
        extra=2 * 32 * 12,
    ),
    "Switch-C": Architecture(
        32128, 2080, 30, 32, 32, 64, 2048, 1, 6144, matrices=2, tied=True, cross=15,
        extra=2 * 32 * 32,
    ),
    "Mixtral 8x7B": Architecture(32000, 4096, 32, 32, 8, 128, 8, 2, 14336),
    "Mixtral 8x22B": Architecture(32768, 6144, 56, 48, 8, 128, 8, 2, 16384),
    "DeepSeekMoE-16B": Architecture(
        102400, 2048, 28, 16, 16, 128, 64, 6, 1408, shared=2, dense_width=10944, dense_first=1
    ),
    "DBRX": Architecture(100352, 6144, 40, 48, 8, 128, 16, 4, 10752),
    "DeepSeek-V2": Architecture(
        102400, 5120, 60, 128, 128, 128, 160, 6, 1536, shared=2, dense_width=12288, dense_first=1,
        q_rank=1536, kv_rank=512, rope_dim=64, nodes=3,
    ),
    "OLMoE": Architecture(50304, 2048, 16, 16, 16, 128, 64, 8, 1024, extra=16 * 2 * 2048),
    "DeepSeek-V3": _DEEPSEEK_V3,
    "Qwen3-30B-A3B": Architecture(151936, 2048, 48, 32, 4, 128, 128, 8, 768, extra=48 * 2 * 128),
    "Qwen3-235B-A22B": Architecture(
        151936, 4096, 94, 64, 4, 128, 128, 8, 1536, extra=94 * 2 * 128
    ),
    "Llama 4 Scout": Architecture(
        202048, 5120, 48, 40, 8, 128, 16, 1, 8192, shared=1, windowed=36, window=8192
    ),
    "Llama 4 Maverick": Architecture(
        202048, 5120, 48, 40, 8, 128, 128, 1, 8192, shared=1, dense_width=16384, every=2,
        windowed=36, window=8192,
    ),
    "Kimi K2": Architecture(
        163840, 7168, 61, 64, 64, 128, 384, 8, 2048, shared=1, dense_width=18432, dense_first=1,
        q_rank=1536, kv_rank=512, rope_dim=64,
    ),
    "GLM-4.5": Architecture(
        151552, 5120, 92, 96, 8, 128, 160, 8, 1536, shared=1, dense_width=12288, dense_first=3,
        extra=92 * (2 * 128 + (96 + 2 * 8) * 128),
    ),
    "GLM-4.5-Air": Architecture(
        151552, 4096, 46, 96, 8, 128, 128, 8, 1408, shared=1, dense_width=10944, dense_first=1,
        extra=46 * (96 + 2 * 8) * 128,
    ),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "LongCat-Flash": Architecture(  # of 28 blocks of two attentions and two dense FFNs; the
        131072, 6144, 56, 64, 64, 128, 512, 12, 2048, dense_width=2 * 12288, every=2,
        q_rank=1536, kv_rank=512, rope_dim=64, extra=28 * 256 * 6144,  # router knows 256 more
    ),
    "Qwen3-Next-80B-A3B": Architecture(
        151936, 2048, 48, 16, 2, 256, 512, 10, 512, shared=1, other=36, other_size=_DELTA,
        extra=12 * (2048 * 4096 + 2 * 256) + 48 * 2048,
    ),
    "MiniMax-M2": Architecture(
        200064, 3072, 62, 48, 8, 128, 256, 8, 1536, extra=62 * (6144 + 1024)
    ),
    "DeepSeek-V3.2": Architecture(
        129280, 7168, 61, 128, 128, 128, 256, 8, 2048, shared=1, dense_width=18432, dense_first=3,
        q_rank=1536, kv_rank=512, rope_dim=64, nodes=4, sparse=2048, extra=_INDEXER_V32,
    ),
    "Nemotron 3 Nano": Architecture(  # 52 blocks: 23 of Mamba, 6 of attention, 23 of experts
        131072, 2688, 29, 32, 2, 128, 128, 6, 1856, shared=2, dense_first=6, matrices=2,
        other=23, other_size=_MAMBA, extra=-6 * 2688,  # one norm each
    ),
    "GLM-5": Architecture(
        154880, 6144, 78, 64, 64, 192, 256, 8, 2048, shared=1, dense_width=12288, dense_first=3,
        q_rank=2048, kv_rank=512, rope_dim=64, value_dim=256, sparse=2048, extra=_INDEXER_GLM,
    ),
    "Qwen3.5-35B-A3B": Architecture(
        248320, 2048, 40, 16, 2, 256, 256, 8, 512, shared=1, other=30, other_size=_DELTA,
        extra=10 * (2048 * 4096 + 2 * 256) + 40 * 2048,
    ),
    "Gemma 4 26B-A4B": Architecture(  # 5 layers see all, with 2 heads of 512 for keys and values
        262144, 2816, 30, 16, 8, 256, 128, 8, 704, shared=3, tied=True, windowed=25, window=1024,
        other=5, other_size=2816 * (2 * 8192 + 1024), other_cached=2 * 2 * 512,
        other_products=2 * 16 * 512,
        extra=30 * (6 * 2816 + 128) + 25 * 2 * 256 + 5 * 2 * 512,  # norms, scales
    ),
    "DeepSeek-V4-Flash": Architecture(  # keeps about 80 numbers of a token: it compresses
        129280, 4096, 43, 64, 1, 512, 256, 6, 2048, shared=1, other=43, other_size=_V4_ATTENTION,
        other_cached=80, other_products=2 * 64 * 64, extra=_V4_EXTRA,
    ),
}  # fmt: skip
"""Shapes, oldest first. Norms, embeddings and what is not named here are counted as Mixtral's."""

_DOCS = "transformers 5.23, defaults of its config"
PUBLISHED = {
    "GShard-600B": Published(
        2020, "600B", None, "softmax, second at random", "loss", "2.0 x mean", "bf16",
        "arXiv:2006.16668, Table 1, Algorithm 1, appendix A.2",
    ),
    "Switch-Base": Published(
        2021, "7B", None, "softmax", "loss", "1.25 x mean", "bf16, router float32",
        "arXiv:2101.03961, Table 9, section 2.2",
    ),
    "Switch-C": Published(
        2021, "1571B", None, "softmax", "loss", "1.25 x mean", "bf16, router float32",
        "arXiv:2101.03961, Table 9, section 2.2",
    ),
    "Mixtral 8x7B": Published(
        2023, "46,702,792,704", "12,879,925,248", SOFTMAX, "?", "?", "bf16",
        "its checkpoint; arXiv:2401.04088, Table 1 (which prints 47B, 13B)",
    ),
    "Mixtral 8x22B": Published(
        2024, "141B", "39B", SOFTMAX, "?", "?", "bf16", "its announcement and config"
    ),
    "DeepSeekMoE-16B": Published(
        2024, "16.4B", "2.8B", "softmax", "loss by expert", "?", "bf16",
        "arXiv:2401.06066, section 4.1, and its config",
    ),
    "DBRX": Published(2024, "132B", "36B", SOFTMAX, "loss", "dropless", "bf16", "README, config"),
    "DeepSeek-V2": Published(
        2024, "236B", "21B", "softmax x 16", "losses by expert, device, traffic",
        "full devices drop", "bf16", "arXiv:2405.04434, section 2.2, and its config",
    ),
    "OLMoE": Published(
        2024, "6.9B", "1.3B", "softmax", "loss, z-loss", "dropless", "bf16",
        "arXiv:2409.02060, section 2 and its config",
    ),
    "DeepSeek-V3": Published(
        2024, "671B", "37B", SIGMOID + " x 2.5", DEEPSEEK, "dropless", "fp8",
        "arXiv:2412.19437, sections 2.1.2 and 4.2; " + _DOCS,
    ),
    "Qwen3-30B-A3B": Published(
        2025, "30.5B", "3.3B", SOFTMAX, "loss over the global batch", "?", "bf16",
        "arXiv:2505.09388, section 2; its config",
    ),
    "Qwen3-235B-A22B": Published(
        2025, "235B", "22B", SOFTMAX, "loss over the global batch", "?", "bf16",
        "arXiv:2505.09388, section 2; its config",
    ),
    "Llama 4 Scout": Published(
        2025, "109B", "17B", "sigmoid, on the input", "?", "?", "bf16", _DOCS
    ),
    "Llama 4 Maverick": Published(
        2025, "400B", "17B", "sigmoid, on the input", "?", "?", "bf16, fp8",
        _DOCS + "; 128 experts in every second layer",
    ),
    "Kimi K2": Published(
        2025, "1T", "32B", SIGMOID + " x 2.83", "bias", "?", "fp8",
        "its config (DeepSeek-V3's model)",
    ),
    "GLM-4.5": Published(
        2025, "355B", "32B", SIGMOID + " x 2.5", DEEPSEEK, "?", "bf16, fp8",
        "arXiv:2508.06471, Table 1 and section 2; its config",
    ),
    "GLM-4.5-Air": Published(
        2025, "106B", "12B", SIGMOID, DEEPSEEK, "?", "bf16, fp8",
        "arXiv:2508.06471, Table 1 and section 2; its config",
    ),
    "gpt-oss-120b": Published(
        2025, "116.83B", "5.13B", SOFTMAX, "?", "?", "experts MXFP4",
        "arXiv:2508.10925, Table 1; " + _DOCS,
    ),
    "gpt-oss-20b": Published(
        2025, "20.91B", "3.61B", SOFTMAX, "?", "?", "experts MXFP4",
        "arXiv:2508.10925, Table 1; its config",
    ),
    "LongCat-Flash": Published(
        2025, "560B", None, "softmax + bias x 6; 256 experts do nothing", "bias, device loss", "?",
        "bf16, fp8", "arXiv:2509.01322, section 2; " + _DOCS,
    ),
    "Qwen3-Next-80B-A3B": Published(
        2025, "80B", "3B", SOFTMAX, "loss over the global batch", "?", "bf16",
        "its announcement; " + _DOCS,
    ),
    "MiniMax-M2": Published(2025, "230B", "10B", SIGMOID, "bias", "?", "fp8", _DOCS),
    "DeepSeek-V3.2": Published(
        2025, "685B", "37B", SIGMOID + " x 2.5", DEEPSEEK, "dropless", "fp8",
        _DOCS + "; the rest as V3, which it goes on from",
    ),
    "Nemotron 3 Nano": Published(
        2025, "31.6B", "3.2B", SIGMOID + " x 2.5", DEEPSEEK, "?", "bf16, fp8",
        "its config and Megatron settings",
    ),
    "GLM-5": Published(2026, "744B", "40B", SIGMOID + " x 2.5", "bias", "?", "bf16, fp8", _DOCS),
    "Qwen3.5-35B-A3B": Published(2026, "35B", "3B", SOFTMAX, "?", "?", "bf16", _DOCS),
    "Gemma 4 26B-A4B": Published(
        2026, "25.2B", "3.8B", SOFTMAX, "?", "?", "bf16",
        "its model card and config; a dense FFN, three experts wide, beside them",
    ),
    "DeepSeek-V4-Flash": Published(
        2026, "284B", "13B", "root of softplus + bias, K renormalised x 1.5; 3 layers by token",
        DEEPSEEK, "?", "experts fp4, fp8", "arXiv:2606.19348, section 2.1; " + _DOCS,
    ),
}  # fmt: skip
"""What was published of each; how a total that looks different was counted, the tests say."""

DEFAULTS, MODEL = "transformers' defaults", "transformers' model of these sizes"
READ = {
    "GShard-600B": "nothing",
    "Switch-Base": MODEL,
    "Switch-C": "nothing",
    "Mixtral 8x7B": DEFAULTS,
    "Mixtral 8x22B": MODEL,
    "DeepSeekMoE-16B": "README: 16.4B",
    "DBRX": "README: 132B, 36B, 4 of 16 experts; " + MODEL,
    "DeepSeek-V2": "README: 236B, 21B; " + MODEL,
    "OLMoE": "README: 6.9B, 1.3B; " + MODEL,
    "DeepSeek-V3": DEFAULTS,
    "Qwen3-30B-A3B": "card: loss over the global batch; " + MODEL,
    "Qwen3-235B-A22B": "card of its sibling: loss over the global batch; " + MODEL,
    "Llama 4 Scout": DEFAULTS,
    "Llama 4 Maverick": MODEL,
    "Kimi K2": "README: 1T, 32B, 61 layers, 8 of 384 experts and a shared one, 2048 wide; " + MODEL,
    "GLM-4.5": "README: 355B, 32B; " + MODEL,
    "GLM-4.5-Air": "README: 106B, 12B; " + MODEL,
    "gpt-oss-120b": "README: 117B, 5.1B, experts in MXFP4; " + DEFAULTS,
    "gpt-oss-20b": "README: 21B, 3.6B, experts in MXFP4; " + MODEL,
    "LongCat-Flash": "abstract: 560B, 27B on average, experts that compute nothing",
    "Qwen3-Next-80B-A3B": DEFAULTS,
    "MiniMax-M2": "README: 230B, 10B; " + DEFAULTS,
    "DeepSeek-V3.2": DEFAULTS,
    "Nemotron 3 Nano": MODEL,
    "GLM-5": DEFAULTS,
    "Qwen3.5-35B-A3B": DEFAULTS,
    "Gemma 4 26B-A4B": MODEL,
    "DeepSeek-V4-Flash": "report, section 2.1: bias and loss; " + DEFAULTS,
}
"""What of a model's sources was opened for this table, and what stands there.

"defaults" are the sizes that transformers' own config has when nothing is passed; "of these sizes"
is its model, given sizes that were known and not read. All else in a row, how tokens choose and
what evens the load among it, was known beforehand and not looked up: `Published.source` says where
it can be.
"""


def granularity(a: Architecture) -> float:
    """Return into how many parts an FFN of width 4 D is cut: 4 D / F of an expert.

    Source: Krajewski et al. 2024 (arXiv:2402.07871), section 3.

    >>> granularity(PRESETS["DeepSeek-V3"])
    14.0
    """
    return 4 * a.width / a.expert_width


COLUMNS = {"model": "", "year": "", "total": "--:", "active": "--:", "E": "--:", "K": "--:",
           "shared": "--:", "granularity": "--:", "gate": "", "balance": "", "full expert": "",
           "weights": "", "read": ""}  # fmt: skip


def table(since: int = 0, columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """Return who does what in Markdown, oldest first: shape, gate, balance, capacity, precision,
    and what was read of its sources.

    Raises: ValueError for a column that there is not.
    """
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"no column {unknown[0]!r}: there are {', '.join(COLUMNS)}")
    rows = []
    for name, a in PRESETS.items():
        p = PUBLISHED[name]
        if p.year < since:
            continue
        total = f"{int(p.total.replace(',', '')) / 1e9:.1f}B" if "," in p.total else p.total
        active = count_parameters(a).active / 1e9
        cells = (
            name, str(p.year), total, f"{active:.1f}B", str(a.experts), str(a.top_k),
            str(a.shared) if a.shared else "", f"{granularity(a):.3g}", p.gate, p.balance,
            p.capacity, p.precision, READ[name],
        )  # fmt: skip
        rows.append([cell for cell, name in zip(cells, COLUMNS, strict=True) if name in columns])
    kept = [name for name in COLUMNS if name in columns]
    lines = ["| " + " | ".join(row) + " |" for row in (kept, *rows)]
    lines.insert(1, "|" + "|".join(COLUMNS[name] or "---" for name in kept) + "|")
    return "\n".join(lines) + "\n"


def fill(page: str) -> str:
    """Return a page with the table written between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
