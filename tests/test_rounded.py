"""Products of bfloat16 by float32's: the same numbers, and none of the slow ones."""

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from experiments import alone, recipe
from experiments.stacked import Run
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course import recipes, rounded, sweep
from moe_lite.course.data import load_corpus
from moe_lite.course.rounded import bfloat16_products
from moe_lite.model import Mixtral
from moe_lite.train import train

SMALL = MixtralConfig(
    vocab_size=4096, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
    max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
TRAINING = TrainConfig(steps=4, batch_size=4, seq_len=16, warmup=2, autocast="on")


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(rounded, "multiplies_slowly", lambda device="cpu": str(device) == "cpu")


class Products(TorchDispatchMode):
    """Note in which types anything is multiplied that takes long."""

    def __init__(self):
        super().__init__()
        self.types = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        if any(word in name for word in ("mm", "attention", "linear", "conv", "mv", "dot")):
            self.types.setdefault(name, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def of(self, dtype):
        return {name for name, types in self.types.items() if dtype in types}


def draw(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).bfloat16()


def attend(q, k, v):
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out.sum().backward()
    return [out, q.grad, k.grad, v.grad]


CALLS = {
    "mm": lambda: draw(5, 7) @ draw(7, 3),
    "mm, out": lambda: torch.mm(draw(5, 7), draw(7, 3), out=torch.empty(5, 3).bfloat16()),
    "bmm": lambda: draw(2, 5, 7) @ draw(2, 7, 3),
    "addmm": lambda: torch.addmm(draw(5, 3), draw(5, 7), draw(7, 3), beta=2, alpha=0.5),
    "baddbmm": lambda: torch.baddbmm(draw(2, 5, 3), draw(2, 5, 7), draw(2, 7, 3)),
    "linear": lambda: F.linear(draw(2, 5, 7), draw(3, 7), draw(3)),
    "grouped": lambda: F.grouped_mm(
        draw(8, 16), draw(2, 16, 8), offs=torch.tensor([3, 8], dtype=torch.int32)
    ),
    "attention": lambda: attend(draw(2, 2, 9, 8), draw(2, 2, 9, 8), draw(2, 2, 9, 8)),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_product_is_the_plain_one_but_for_the_last_bit(slow, call):
    plain = CALLS[call]()
    with Products() as seen, bfloat16_products("on", "cpu"):
        found = CALLS[call]()
    assert set().union(*seen.types.values()) == {torch.float32}, seen.types
    pairs = zip(found, plain, strict=True) if isinstance(found, list) else [(found, plain)]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype == torch.bfloat16
        # attention rounds its weights too where units do it: half of a bit, summed
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("tokens", [16, 128])  # few rows in an expert, and many
def test_training_is_bfloat16s_and_takes_none_of_its_products(slow, experts, tokens):
    config = replace(TRAINING, seq_len=tokens // 4)
    corpus, model = load_corpus(max_bytes=60_000), SMALL if experts > 1 else SMALL.dense()

    def losses(how):
        torch.manual_seed(0)
        return train(Mixtral(model), corpus, replace(config, autocast=how), progress=False)

    plain, full = losses("on").column("loss"), losses("off").column("loss")
    with Products() as seen, bfloat16_products("on", "cpu"):
        found = losses("on").column("loss")
    assert not seen.of(torch.bfloat16)
    assert found != full
    assert found == pytest.approx(plain, abs=2e-3)


def test_who_does_not_ask_gets_nothing(slow, monkeypatch):
    for asked in (("auto", "cpu"), ("off", "cpu"), ("on", "cuda"), ("on", "meta")):
        with Products() as seen, bfloat16_products(*asked):
            CALLS["mm"]()
        assert seen.types == {"aten.mm": {torch.bfloat16}}
    monkeypatch.setattr(rounded, "multiplies_slowly", lambda device: False)
    with Products() as seen, bfloat16_products("on", "cpu"):
        CALLS["mm"]()
    assert seen.types == {"aten.mm": {torch.bfloat16}}


def test_slow_is_a_cpu_without_units_and_without_a_library(monkeypatch):
    for units in (False, True):
        monkeypatch.setattr(rounded, "multiplies_bfloat16", lambda units=units: units)
        for library in (False, True):
            ask = SimpleNamespace(_is_mkldnn_bf16_supported=lambda library=library: library)
            monkeypatch.setattr(torch.ops, "mkldnn", ask)
            assert rounded.multiplies_slowly() == (not units and not library)
            assert not rounded.multiplies_slowly("meta")
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # PyTorch without oneDNN
        assert rounded.multiplies_slowly() == (not units)


def test_float32_stays_as_it_is_and_what_is_mixed_is_refused_as_ever(slow):
    """A router computes in float32 under autocast, and its logits keep every bit."""
    x_TD, w_ED = draw(5, 7).float() / 3, draw(4, 7).float() / 7
    with bfloat16_products("on", "cpu"):
        assert torch.equal(x_TD @ w_ED.t(), plain := F.linear(x_TD, w_ED))
        with pytest.raises(RuntimeError, match="dtype"):
            F.linear(x_TD.bfloat16(), w_ED)
        with pytest.raises(RuntimeError):
            torch.mm(draw(5, 7), draw(7, 3), out=torch.empty(5, 3))
        grown = torch.mm(draw(5, 7), draw(7, 3), out=torch.empty(0).bfloat16())
        torch.manual_seed(0)
        routings = Mixtral(SMALL).hidden(torch.arange(12)[None])[1]
    assert plain.dtype == torch.float32 and not torch.equal(plain, plain.bfloat16().float())
    torch.testing.assert_close(grown, draw(5, 7) @ draw(7, 3))
    torch.manual_seed(0)
    outside = Mixtral(SMALL).hidden(torch.arange(12)[None])[1]
    for mine, theirs in zip(routings, outside, strict=True):
        assert torch.equal(mine.logits_TE, theirs.logits_TE)


def test_attention_with_a_mask_in_float32_and_its_log_sum_exp(slow):
    q, k, v = (draw(2, 2, 9, 8).requires_grad_() for _ in range(3))
    mask = torch.zeros(9, 9, dtype=torch.bfloat16).masked_fill(torch.ones(9, 9).triu(1) > 0, -9e9)

    def attended():
        out, sums = rounded.ATTENTION(q, k, v, attn_mask=mask)
        return out, sums, *torch.autograd.grad(out.float().square().sum(), (q, k, v))

    plain = attended()
    with Products() as seen, bfloat16_products("on", "cpu"):
        found = attended()
    assert found[1].dtype == torch.float32
    assert not torch.equal(found[1], found[1].bfloat16().float())
    assert not seen.of(torch.bfloat16)
    for mine, theirs in zip(found, plain, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=2**-6, atol=2**-5)


def test_the_program_of_one_core_then_computes_in_float32(monkeypatch):
    corpus = load_corpus(max_bytes=60_000)
    for is_slow, dtype in ((True, None), (False, torch.bfloat16)):
        monkeypatch.setattr(alone, "multiplies_slowly", lambda is_slow=is_slow: is_slow)
        assert alone.Alone(SMALL, TRAINING, [Run("one")], [corpus]).dtype == dtype
    axis = recipe.Axis(SMALL, replace(TRAINING, steps=1), {"one": {}}, seeds=1)
    monkeypatch.setitem(recipe.AXES, "balance", axis)
    asked, nothing = [], nullcontext()
    monkeypatch.setattr(recipe, "bfloat16_products", lambda *how: asked.append(how) or nothing)
    recipe.measure("balance", "cpu", corpus=corpus)
    assert asked == [("on", "cpu")] * 2


def test_the_command_and_the_sweeps_train_so(slow, tmp_path, monkeypatch):
    asked = []
    real = rounded.bfloat16_products
    for module in (recipes, sweep):
        monkeypatch.setattr(module, "bfloat16_products",
                            lambda *how: asked.append(how) or real(*how))  # fmt: skip
    config = {"model": {"hidden_size": 16, "intermediate_size": 24}, "domains": ["prose"],
              "max_bytes": 40000, "training": {"steps": 2, "batch_size": 2, "seq_len": 16,
              "warmup": 1, "autocast": "on"}}  # fmt: skip
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with Products() as seen:
        assert recipes.main(["--config", str(path), "--out", str(tmp_path / "run")]) == 0
        training = {"steps": 2, "batch_size": 2, "seq_len": 16, "autocast": "on"}
        sweep.run(sweep.Setting(training=training), load_corpus(max_bytes=60_000))
    assert [how for how, _ in asked] == ["on"] * 3  # to train, to evaluate, and in the sweep
    assert not seen.of(torch.bfloat16)
