"""Our Mixtral against transformers' ``MixtralForCausalLM``: the same numbers from the same weights.

The weights travel through the names in memory (``their_view``), except where a test says it
goes through the disk. They are drawn far larger than a model is born with, so that the router
is opinionated and a wrong position, window or expert shows in the logits.
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite import hf
from moe_lite.config import MixtralConfig
from moe_lite.generate import KVCache
from moe_lite.losses import mixtral_aux_loss
from moe_lite.model import Mixtral

transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()
SEEDS = range(24)


def random_config(seed: int) -> MixtralConfig:
    r = random.Random(seed)
    kv = r.choice([1, 2, 3])
    E = r.choice([1, 2, 3, 5, 8])
    return MixtralConfig(
        vocab_size=r.choice([17, 50]),
        hidden_size=r.choice([12, 16, 20]),
        intermediate_size=r.choice([5, 24]),
        num_hidden_layers=r.choice([1, 2, 3]),
        num_attention_heads=kv * r.choice([1, 2, 4]),
        num_key_value_heads=kv,
        head_dim=r.choice([2, 6, 8]),
        num_local_experts=E,
        num_experts_per_tok=r.randint(1, E),
        max_position_embeddings=64,
        rope_theta=r.choice([10.0, 1e4, 1e6]),
        rms_norm_eps=r.choice([1e-6, 1e-5, 1e-2]),
        sliding_window=r.choice([None, 1, 3, 7, 64]),
        tie_word_embeddings=r.random() < 0.4,
    )


def theirs_of(config: MixtralConfig) -> torch.nn.Module:
    fields = vars(config).copy()
    theta = fields.pop("rope_theta")
    rope = {"rope_type": "default", "rope_theta": theta}
    # Its default way through the experts asks for sizes in multiples of 16 bytes.
    config = transformers.MixtralConfig(
        **fields, rope_parameters=rope, experts_implementation="eager"
    )
    return transformers.MixtralForCausalLM(config).eval()


def twins(config: MixtralConfig, seed: int) -> tuple[Mixtral, torch.nn.Module]:
    """Draw one set of weights and give it to both models."""
    torch.manual_seed(seed)
    ours, theirs = Mixtral(config), theirs_of(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                gain = 3 if name.endswith("gate.weight") else 1
                parameter.normal_(std=gain * parameter.shape[-1] ** -0.5)
        mine = dict(ours.named_parameters())
        for name, parameter in theirs.named_parameters():
            parameter.copy_(their_view(name, mine))
    return ours, theirs


def their_view(name: str, mine: dict[str, torch.Tensor]) -> torch.Tensor:
    """Look up one of transformers' tensors among ours (or our gradients)."""
    name = name.removeprefix("model.").replace(".mlp.", ".block_sparse_moe.")
    if name.endswith("gate_up_proj"):
        stem = name.removesuffix("gate_up_proj")
        return torch.cat([mine[stem + "w1"], mine[stem + "w3"]], dim=1)
    return mine[name.replace("down_proj", "w2")]


def some_ids(config: MixtralConfig, seed: int, batch: int = 2, length: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def cacheable(config: MixtralConfig) -> bool:
    """Tell whether transformers' cache works: with a window of 1 it keeps all, not none."""
    return config.sliding_window != 1


def padding(side: str, batch: int, length: int) -> torch.Tensor:
    """Mask 0, 3, ... tokens of each row on one side."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        pad = slice(0, 3 * row) if side == "left" else slice(length - 3 * row, length)
        mask[row, pad] = 0
    return mask


# Fixed examples: a tie between experts, once in some thousand runs, would fail either model.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_logits_of_random_configs(seed):
    config = random_config(seed)
    ours, theirs = twins(config, seed % 2**31)
    ids = some_ids(config, seed % 2**31)
    with torch.no_grad():
        expected = theirs(ids).logits
        actual = ours(ids).logits_BSV
    assert expected.std() > 0.1, "the weights are too small to tell models apart"
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_weights_use_more_than_one_expert():
    """The random routing is not degenerate: most experts see tokens, and gates are uneven."""
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    ours, _ = twins(config, 0)
    for routing in ours(some_ids(config, 0, batch=4)).routings:
        assert (routing.load_E() > 0).sum() >= 6
        assert routing.gate_N.max() > 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_of_every_parameter(seed):
    config = random_config(seed)
    ours, theirs = twins(config, seed)
    ids = some_ids(config, seed)
    out = ours(ids)
    targets = ids[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(out.logits_BSV[:, :-1].flatten(0, 1), targets)
    loss = loss + 0.02 * mixtral_aux_loss(out.routings)
    loss.backward()

    theirs.router_aux_loss_coef = 0.02
    expected = theirs(ids, labels=ids, output_router_logits=True).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    mine = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        # An expert without tokens has no gradient, or a gradient of zero.
        expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(
            their_view(name, mine),
            expected,
            atol=1e-5,
            rtol=1e-4,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("seed", range(8))
def test_padding_and_the_published_auxiliary_loss(seed, side):
    config = random_config(100 + seed)
    ours, theirs = twins(config, seed)
    ids = some_ids(config, seed, batch=3)
    mask = None if side == "none" else padding(side, *ids.shape)
    with torch.no_grad():
        actual = ours(ids, mask)
        expected = theirs(ids, attention_mask=mask, output_router_logits=True)
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(actual.logits_BSV[real], expected.logits[real], atol=1e-5, rtol=1e-5)
    loss = mixtral_aux_loss(actual.routings, None if mask is None else mask.reshape(-1))
    torch.testing.assert_close(loss, expected.aux_loss, atol=1e-5, rtol=1e-5)
    if mask is not None:  # the mask matters to the loss; else this test would show nothing
        assert mixtral_aux_loss(actual.routings) == loss  # the routings bring it along
        unmasked = mixtral_aux_loss(actual.routings, torch.ones(mask.numel()))
        assert config.num_local_experts == config.num_experts_per_tok or unmasked != loss


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_generation_token_for_token(seed):
    config = random_config(200 + seed)
    ours, theirs = twins(config, seed)
    ids = some_ids(config, seed, length=5)
    with torch.no_grad():
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False,
            pad_token_id=0, eos_token_id=None, use_cache=cacheable(config),
        )  # fmt: skip
    actual = ours.generate(ids, 20, temperature=0, eos_token_id=())
    assert actual.tolist() == expected.tolist()


def test_generation_outgrows_its_window():
    """Some of the configs above generate past their window, so that the cache must forget."""
    windows = [random_config(200 + seed).sliding_window for seed in SEEDS]
    assert sum(w is not None and w < 25 for w in windows) >= 5


@pytest.mark.parametrize("seed", range(12))
def test_a_cache_changes_nothing(seed):
    config = random_config(300 + seed)
    ours, theirs = twins(config, seed)
    ids = some_ids(config, seed, length=12)
    with torch.no_grad():
        whole = ours(ids).logits_BSV
        cache = KVCache(config, batch_size=2, max_len=12)
        parts = [ours(part, cache=cache).logits_BSV for part in ids.split([4, 1, 5, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    if cacheable(config):
        past = theirs(ids[:, :7], use_cache=True).past_key_values
        later = theirs(ids[:, 7:], past_key_values=past).logits
        torch.testing.assert_close(later, whole[:, 7:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shards", ["one file", "sharded"])
@pytest.mark.parametrize("seed", range(4))
def test_from_ours_to_transformers_through_the_disk(seed, shards, tmp_path):
    config = random_config(400 + seed)
    ours, _ = twins(config, seed)
    hf.save(ours, tmp_path, max_shard_bytes=3000 if shards == "sharded" else 10**9)
    assert (tmp_path / "model.safetensors").exists() == (shards == "one file")
    theirs, info = transformers.MixtralForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, experts_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = some_ids(config, seed)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits_BSV, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spelling", ["published", "sharded", "stacked"])
@pytest.mark.parametrize("seed", range(4))
def test_from_transformers_to_ours_through_the_disk(seed, spelling, tmp_path):
    config = random_config(500 + seed)
    expected, theirs = twins(config, seed)
    how = {"sharded": {"max_shard_size": 3000}, "stacked": {"save_original_format": False}}
    theirs.save_pretrained(tmp_path, **how.get(spelling, {}))
    ours = hf.load(tmp_path)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter, atol=0, rtol=0)
    ids = some_ids(config, seed)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits_BSV, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_dense_twin_is_a_mixtral_of_one_expert():
    config = random_config(1).dense("active")
    ours, theirs = twins(config, 0)
    ids = some_ids(config, 0)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits_BSV, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_close():
    """Half precision rounds differently in places; the models stay within its noise."""
    config = random_config(3)
    ours, theirs = (model.to(torch.bfloat16) for model in twins(config, 3))
    ids = some_ids(config, 3)
    with torch.no_grad():
        actual, expected = ours(ids).logits_BSV.float(), theirs(ids).logits.float()
    assert (actual - expected).abs().mean() < 0.05 * expected.std()
