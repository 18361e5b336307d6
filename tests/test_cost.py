"""Counts from the config alone, against the models themselves."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.config import MixtralConfig
from moe_lite.course.cost import (
    BYTES,
    DEVICES,
    REACHED,
    Architecture,
    Device,
    all_to_all_bytes,
    copies,
    count_parameters,
    distinct_experts,
    kv_cache_bytes,
    step,
)
from moe_lite.course.presets import PRESETS
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
    assert cost.flops == pytest.approx(batch * context * 2 * weights)
    assert cost.score_flops == pytest.approx(batch * context * scores)
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
    half = step(config, device, "decode", 1, 1024, weights="fp8")
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
    alone = step(config, DEVICES["H100 SXM"], "prefill", 4, 10, ranks=4, by_node=False)
    assert alone.link_bytes == all_to_all_bytes(config, 10, 4) == alone.inside_bytes


# --- two levels of network -----------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_copies_are_those_of_tokens_that_choose_at_random(nodes, node, top_k, by_node, seed):
    ranks = nodes * node
    config = MixtralConfig(num_local_experts=8 * ranks, num_experts_per_tok=top_k)
    score_TE = torch.rand(4000, 8 * ranks, generator=torch.Generator().manual_seed(seed))
    rank_TK = score_TE.topk(top_k).indices // 8
    inside = between = 0
    for chosen in rank_TK.tolist():  # from rank 0, of node 0
        if not by_node:
            inside += sum(0 < r < node for r in chosen)
            between += sum(r >= node for r in chosen)
            continue
        # A node's copy arrives at the rank of the sender's own place; from there to the others.
        between += len({r // node for r in chosen if r >= node})
        inside += len({r for r in chosen if r % node})
    found = copies(config, ranks, node, by_node)
    assert (found.inside, found.between) == pytest.approx((inside / 4000, between / 4000), abs=0.1)


def test_more_places_than_experts_are_no_more_than_one_for_each():
    """What is chosen cannot stand on more ranks than it is; DeepSeek-V3's limit leaves few."""
    for name in ("Mixtral 8x7B", "DBRX", "OLMoE", "DeepSeek-V3"):
        a = PRESETS[name]
        for ranks in (2**at for at in range(1, 14)):
            found = copies(a, ranks)
            assert 0 <= found.inside <= a.top_k and 0 <= found.between <= a.top_k, (name, ranks)
            assert found.between <= copies(a, ranks, by_node=False).between + 1e-9
    assert copies(PRESETS["DeepSeek-V3"], 512).inside == pytest.approx(8 * 7 / 8)


def test_a_limit_on_nodes_limits_what_travels_between_them():
    v3 = PRESETS["DeepSeek-V3"]
    anywhere = Architecture(**{**v3.__dict__, "nodes": 0})
    limited, free = (copies(a, 256).between for a in (v3, anywhere))
    assert limited < 4 < 6 < free  # at most four nodes; eight experts on 32 nodes
    assert copies(v3, 256, by_node=False).between > limited


def test_the_best_four_nodes_hold_a_little_more_than_any_four():
    """DeepSeek's choice of nodes, by their two best experts; chapter 14 says what it comes to."""
    draw, found = torch.Generator().manual_seed(0), {}
    for nodes in (8, 32):
        score_TNE = torch.rand(20_000, nodes, 256 // nodes, generator=draw)
        best_T4 = score_TNE.topk(2).values.sum(-1).topk(4).indices
        open_TN1 = torch.zeros(20_000, nodes, 1, dtype=torch.bool).scatter_(
            1, best_T4[..., None], True
        )
        expert_TK = score_TNE.masked_fill(~open_TN1, -1).flatten(1).topk(8).indices
        visits_TN = torch.nn.functional.one_hot(expert_TK // (256 // nodes), nodes).amax(1)
        found[nodes] = visits_TN.sum(1).float().mean().item() * (nodes - 1) / nodes
    assert copies(PRESETS["DeepSeek-V3"], 64).between < found[8] == pytest.approx(3.46, abs=0.02)
    assert copies(PRESETS["DeepSeek-V3"], 256).between < found[32] == pytest.approx(3.87, abs=0.02)
    chapter = Path(__file__).parents[1] / "notebooks" / "14_many_machines.py"
    assert "choice of the four, exercise 4, 3.87)" in chapter.read_text("utf-8").replace(
        "\n# ", " "
    )


def test_the_slower_of_the_two_levels_is_the_network_s_time():
    device = Device(1e12, 0, 0, 1e12, 1e9, link=2.0, node=2, between=1.0, startup=0.5)
    cost = step(MixtralConfig(num_hidden_layers=3), device, "decode", 8, 1, ranks=4)
    assert cost.parts["network"] == cost.between_bytes + 6 * 0.5
    alone = step(MixtralConfig(num_hidden_layers=3), device, "decode", 8, 1, ranks=2)
    assert alone.between_bytes == 0 and alone.parts["network"] == alone.inside_bytes / 2 + 6 * 0.5


def exchange_seconds(ranks, tokens, number, by_node):
    """Estimate one exchange of one layer of DeepSeek-V3 on H800s, as `Cost.exchange` does."""
    h800, away = DEVICES["H800 SXM"], copies(PRESETS["DeepSeek-V3"], ranks, 8, by_node)
    size = tokens * 7168 * number / REACHED["network"]
    return h800.startup + max(away.inside * size / h800.link, away.between * size / h800.between)


OUT, BACK = 1 + 4 / 128, 2  # bytes of a number: fp8 with scales, bf16


@pytest.mark.parametrize(
    ("ranks", "out", "back"),
    [(8, 77, 114), (16, 118, 195), (32, 155, 273), (64, 173, 314), (128, 192, 369),
     (256, 194, 360)],
)  # fmt: skip
def test_low_latency_exchanges_take_what_deepep_published(ranks, out, back):
    """128 tokens of 7168, top-8, in microseconds: github.com/deepseek-ai/DeepEP, docs/legacy.md."""
    for number, published in ((OUT, out), (BACK, back)):
        ours = exchange_seconds(ranks, 128, number, by_node=False)
        assert ours * 1e6 == pytest.approx(published, rel=0.1)


@pytest.mark.parametrize(
    ("ranks", "out", "back"), [(8, 153, 158), (16, 43, 43), (32, 58, 57), (64, 51, 50)]
)
def test_normal_exchanges_take_what_deepep_published(ranks, out, back):
    """4096 tokens, top-4 nodes; GB/s of the copies for all ranks (one node) or nodes, own included.

    Source: the same page; what is counted, its tests/test_internode.py.
    """
    places = 8 if ranks == 8 else min(4, ranks // 8)
    counted = places * (1 - (1 - 1 / places) ** 8) * 4096 * 7168
    for number, published in ((OUT, out), (BACK, back)):
        took = counted * number / (published * 1e9)
        ours = exchange_seconds(ranks, 4096, number, by_node=True)
        assert ours == pytest.approx(took, rel=0.15)


# --- deployments of DeepSeek-V3 ------------------------------------------------------------------


def deployed(phase, per_gpu, context, ranks, device="H800 SXM"):
    v3 = PRESETS["DeepSeek-V3"]
    return step(v3, DEVICES[device], phase, per_gpu * ranks, context, ranks=ranks, weights="fp8")


@pytest.mark.parametrize(
    ("phase", "per_gpu", "context", "ranks", "seconds"),
    [
        # DeepSeek's profile: 62,713 tokens/s of a node, 16,384 tokens of each GPU at once
        ("prefill", 4, 4096, 32, 16384 * 8 / 62713),
        # SGLang, experts in perfect balance: 59,337 (its default placement: 50,302)
        ("prefill", 4, 4096, 32, 16384 * 8 / 59337),
        # RTP-LLM: two requests of 4k on each GPU in 1.5 s
        ("prefill", 2, 4096, 32, 1.5),
        # DeepSeek's profile: 18,598 tokens/s of a node at 128 texts for each GPU
        ("decode", 128, 4096, 128, 128 * 8 / 18598),
        # Its service: 14,800 tokens/s of a node, 20 to 22 of a user, so 88 texts for each GPU
        ("decode", 88, 4989, 144, 1 / 21),
        # RTP-LLM: 13,200 users on 144 GPUs at 20 tokens/s
        ("decode", 92, 5000, 144, 1 / 20),
    ],
)
def test_a_step_takes_what_was_published(phase, per_gpu, context, ranks, seconds):
    """Sources: lmsys.org/blog/2025-05-05-large-scale-ep (its tables name DeepSeek's profile);
    github.com/deepseek-ai/open-infra-index, day 6; RTP-LLM's report on reproducing it."""
    cost = deployed(phase, per_gpu, context, ranks)
    assert cost.in_turn == pytest.approx(seconds, rel=0.25)
    assert cost.seconds < seconds and cost.fits  # what no step can beat


def test_prefill_communicates_as_long_as_it_computes():
    """A ratio of about 1:1, over eight nodes (arXiv:2412.19437, section 3.2.1)."""
    assert deployed("prefill", 1, 4096, 64).work == pytest.approx(
        deployed("prefill", 1, 4096, 64).exchange, rel=0.25
    )
    both = deployed("prefill", 4, 4096, 32)
    assert both.bound == "network" and both.parts["memory"] < 0.02 * both.seconds
    # Were the network as fast between nodes as NVLink inside one, it would hide: the old mistake.
    one_level = Device(989e12, 1979e12, 0, 3.35e12, 80e9, 450e9, 32, 450e9)
    hidden = step(PRESETS["DeepSeek-V3"], one_level, "prefill", 128, 4096, ranks=32, weights="fp8")
    assert hidden.bound == "compute"


def test_decode_waits_for_the_network_and_beside_it_for_memory():
    """Memory access, not computation (arXiv:2412.19437, section 3.4.2); above both, the network.

    arXiv:2505.09343, section 2.3.2: 32 tokens of each of two micro-batches, nine experts, 50 GB/s:
    at least 14.76 ms for a token; with GB200 NVL72's 900 GB/s, 0.82.
    """
    parts = deployed("decode", 88, 4989, 144).parts
    assert parts["network"] > parts["memory"] > parts["compute"]
    assert deployed("decode", 64, 4096, 256).parts["network"] == pytest.approx(14.76e-3, rel=0.25)
    wide = deployed("decode", 64, 4096, 72, "GB200 NVL72")
    started = wide.exchanges * wide.device.startup  # which their bound leaves out
    assert wide.parts["network"] - started == pytest.approx(0.82e-3, rel=0.25)
    assert wide.bound == "memory"


def test_a_latent_cache_is_not_unpacked_for_one_token():
    """Each head scores 576 numbers and adds 512, of each kept token, instead of 192 and 128."""
    v3, context = PRESETS["DeepSeek-V3"], 4096
    one = step(v3, DEVICES["H800 SXM"], "decode", 1, context)
    assert one.score_flops == 2 * 61 * context * 128 * (576 + 512)
    assert one.cache_bytes == 61 * context * 576 * 2
    many = step(v3, DEVICES["H800 SXM"], "prefill", 1, context)
    assert many.score_flops == 2 * 61 * context * 128 * (192 + 128) * context / 2


def test_sparse_attention_keeps_all_and_reads_some():
    v32, h = PRESETS["DeepSeek-V3.2"], DEVICES["H200 SXM"]
    short, long = (step(v32, h, "decode", 1, n, weights="fp8") for n in (2048, 65536))
    assert short.cache_bytes == long.cache_bytes and short.score_flops == long.score_flops
    assert long.held_bytes - short.held_bytes == 61 * 576 * 2 * (65536 - 2048)


def test_a_device_without_a_unit_unpacks_the_weights():
    h100, b200, a100 = (DEVICES[n] for n in ("H100 SXM", "B200 SXM", "A100 SXM 80GB"))
    assert b200.flops("fp4") == 2 * b200.flops("fp8") == 4 * b200.flops("bf16")
    assert h100.flops("fp4") == h100.flops("fp8") > h100.flops("bf16") > h100.flops("float32")
    assert a100.flops("fp8") == a100.flops("bf16")
    assert BYTES["fp4"] * 32 == 17  # MXFP4: 32 halves of a byte and a scale


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda d: step(MixtralConfig(), d, "sleep", 1, 1), "phase must be one of"),
        (lambda d: step(MixtralConfig(), d, "decode", 1, 1, weights="int8"), "not 'int8'"),
        (lambda d: step(MixtralConfig(), d, "decode", 0, 1), "start at 1, not 0, 1, 1"),
        (lambda d: Architecture(9, 8, 1, 1, 1, 8, 4, 5, 8), "from 1 to 4 experts, not 5"),
    ],
)
def test_what_cannot_be_is_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(DEVICES["RTX 4090"])
