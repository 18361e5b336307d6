"""Products of bfloat16 by float32 units: the same numbers, and no product that has none."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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
def without_units(monkeypatch):
    monkeypatch.setattr(rounded, "multiplies_bfloat16", lambda: False)


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
def test_a_product_is_the_plain_one_but_for_the_last_bit(without_units, call):
    plain = CALLS[call]()
    with Products() as seen, bfloat16_products("on"):
        found = CALLS[call]()
    assert set().union(*seen.types.values()) == {torch.float32}, seen.types
    pairs = zip(found, plain, strict=True) if isinstance(found, list) else [(found, plain)]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype == torch.bfloat16
        # attention rounds its weights too where units do it: half of a bit, summed
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("tokens", [16, 128])  # few rows in an expert, and many
def test_training_is_bfloat16s_and_takes_none_of_its_products(without_units, experts, tokens):
    config = replace(TRAINING, seq_len=tokens // 4)
    corpus, model = load_corpus(max_bytes=60_000), SMALL if experts > 1 else SMALL.dense()

    def losses(how):
        torch.manual_seed(0)
        return train(Mixtral(model), corpus, replace(config, autocast=how), progress=False)

    plain, full = losses("on").column("loss"), losses("off").column("loss")
    with Products() as seen, bfloat16_products("on"):
        found = losses("on").column("loss")
    slow = {name for name, types in seen.types.items() if torch.bfloat16 in types}
    assert not slow, slow
    assert found != full
    assert found == pytest.approx(plain, abs=2e-3)


def test_who_does_not_ask_gets_nothing(without_units, monkeypatch):
    for asked in ("auto", "off"):
        with Products() as seen, bfloat16_products(asked):
            CALLS["mm"]()
        assert seen.types == {"aten.mm": {torch.bfloat16}}
    monkeypatch.setattr(rounded, "multiplies_bfloat16", lambda: True)
    with Products() as seen, bfloat16_products("on"):
        CALLS["mm"]()
    assert seen.types == {"aten.mm": {torch.bfloat16}}
    with bfloat16_products("on"):
        assert (draw(5, 7).float() @ draw(7, 3).float()).dtype == torch.float32


def test_the_command_and_the_sweeps_train_so(without_units, tmp_path, monkeypatch):
    asked = []
    real = rounded.bfloat16_products
    for module in (recipes, sweep):
        monkeypatch.setattr(module, "bfloat16_products", lambda how: asked.append(how) or real(how))
    config = {"model": {"hidden_size": 16, "intermediate_size": 24}, "domains": ["prose"],
              "max_bytes": 40000, "training": {"steps": 2, "batch_size": 2, "seq_len": 16,
              "warmup": 1, "autocast": "on"}}  # fmt: skip
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with Products() as seen:
        assert recipes.main(["--config", str(path), "--out", str(tmp_path / "run")]) == 0
        training = {"steps": 2, "batch_size": 2, "seq_len": 16, "autocast": "on"}
        sweep.run(sweep.Setting(training=training), load_corpus(max_bytes=60_000))
    assert asked == ["on", "on", "on"]  # to train, to evaluate, and in the sweep
    slow = {name for name, types in seen.types.items() if torch.bfloat16 in types}
    assert not slow, slow
