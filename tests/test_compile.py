"""Under torch.compile the layer and the model are one graph, and give what they give without."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo import reset

from moe_lite.config import MixtralConfig
from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS
from moe_lite.layer import MoELayer
from moe_lite.losses import load_balancing_loss
from moe_lite.model import Mixtral
from moe_lite.routers import TopKRouter
from tests.fuzz_dispatch import judge, prepare

CONFIG = MixtralConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
ROUNDING = {"float32": 1e-5, "bfloat16": 3e-2, "autocast": 3e-2}
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile for a CPU needs a C++ compiler (g++ or clang++), and there is none",
)


@pytest.fixture(autouse=True)
def fresh():
    reset()
    yield
    reset()


def layer_outputs(precision: str):
    layer = MoELayer(TopKRouter(32, 4, 2), Experts(4, 32, 48))
    x_BSD = torch.randn(2, 20, 32)
    if precision == "bfloat16":
        layer, x_BSD = layer.bfloat16(), x_BSD.bfloat16()

    def forward() -> Tensor:
        out_BSD, routing = layer(x_BSD)
        return out_BSD.float().square().mean() + 0.01 * load_balancing_loss([routing])

    return layer, forward


def model_outputs(precision: str, layers: int = 2):
    config = replace(CONFIG, num_hidden_layers=layers)
    model, ids_BS = Mixtral(config), torch.arange(24).view(2, 12) * 7 % 64
    if precision == "bfloat16":
        model = model.bfloat16()

    def forward() -> Tensor:
        out = model(ids_BS, torch.arange(12).expand(2, 12) < 9)
        loss = torch.nn.functional.cross_entropy(
            out.logits_BSV[:, :-1].float().flatten(0, 1), ids_BS[:, 1:].flatten()
        )
        return loss + 0.01 * load_balancing_loss(out.routings)

    return model, forward


def compare(make, precision: str, training: bool, compiler: str) -> None:
    """Compile as one graph (any break is an error) and hold the result to what eager gives."""
    module, forward = make(precision)
    autocast = precision == "autocast"
    found = []
    for run in (forward, torch.compile(forward, fullgraph=True, backend=compiler)):
        with torch.set_grad_enabled(training), torch.autocast(
            "cpu", torch.bfloat16, enabled=autocast
        ):  # fmt: skip
            loss = run()
        grads = torch.autograd.grad(loss, list(module.parameters())) if training else ()
        found.append([loss.detach(), *grads])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= ROUNDING[precision] * a.norm() + 1e-7
    assert len(found[0]) == (1 + len(list(module.parameters())) if training else 1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("make", [layer_outputs, model_outputs])
def test_it_is_one_graph(make, precision, training):
    compare(make, precision, training, "aot_eager")


@needs_compiler
@pytest.mark.parametrize(("precision", "training"), [("float32", True), ("bfloat16", False)])
def test_the_compiled_layer_gives_the_same(precision, training):
    compare(layer_outputs, precision, training, "inductor")


@needs_compiler
def test_the_compiled_model_trains_under_autocast():
    compare(partial(model_outputs, layers=1), "autocast", True, "inductor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_readable_path_breaks_only_where_the_compiler_knows_no_grouped_product(dtype):
    layer = MoELayer(TopKRouter(32, 4, 2), Experts(4, 32, 48), "grouped").to(dtype)
    x_TD, counts = torch.randn(9, 32).to(dtype), torch._dynamo.utils.counters
    counts.clear()
    out_TD = torch.compile(lambda x: layer(x)[0], backend="aot_eager")(x_TD)
    torch.testing.assert_close(out_TD, layer(x_TD)[0], rtol=1e-2, atol=1e-2)
    assert bool(counts["graph_break"]) == (dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_leaks_between_rows_of_what_was_compiled(dtype):
    """Poison all that must not matter: see tests/fuzz_dispatch.py."""
    compiled = torch.compile(BACKENDS["auto"], fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=100):
        for seed in range(6):
            assert list(judge(compiled, prepare(seed, dtype, largest=8)))


def test_the_operators_keep_to_torchs_rules():
    inputs = torch.randn(9, 8), torch.randn(3, 5, 8)
    inputs = (*(t.requires_grad_() for t in inputs), torch.tensor([0, 4, 4, 7]).int())
    for name in ("grouped_product", "grouped_outer"):
        given = inputs if name == "grouped_product" else (torch.randn(9, 5), *inputs[::2])
        torch.library.opcheck(
            getattr(torch.ops.moe_lite, name).default, given,
            test_utils=("test_schema", "test_faketensor"),
        )  # fmt: skip
