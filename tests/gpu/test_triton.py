"""The fused backend against the float64 loop: on a GPU, or in Triton's interpreter on a CPU.

Where there is no GPU, tests/test_triton.py runs this file with TRITON_INTERPRET=1.
"""

import os

import pytest
import torch
from torch import Tensor

from moe_lite.dispatch import plan
from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS
from moe_lite.layer import MoELayer
from moe_lite.routers import ExpertChoiceRouter, TopKRouter
from moe_lite.routing import Routing
from tests.fuzz_dispatch import LIMIT, judge, prepare

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")
DEVICE = "cpu" if INTERPRETED else "cuda"
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")

# Triton's interpreter cuts bfloat16 off where a GPU rounds it, hence twice the tolerance.
TOLERANCE = {
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 4e-2 if INTERPRETED else 2e-2,
}
NAMES = ("out", "x", "w1", "w3", "w2", "gate")


def route(kind: str, T: int, E: int, K: int, D: int) -> Routing:
    """Route T random tokens as the name says."""
    torch.manual_seed(1)
    x_TD = torch.randn(T, D)
    if kind == "experts choose":
        return ExpertChoiceRouter(D, E)(x_TD)
    router = TopKRouter(D, E, K)
    if kind == "one expert has all":
        logits_TE = torch.zeros(T, E)
        expert_TK = torch.full((T, 1), E // 2)
        return Routing.from_choices(
            logits_TE, logits_TE.softmax(-1), expert_TK, torch.rand(T, 1) + 0.5
        )
    if kind == "full experts":
        router.capacity_factor = 0.6
        return router(x_TD)
    if kind == "nobody is kept":
        return router(x_TD).masked(torch.zeros(T))
    assert kind == "tokens choose"
    return router(x_TD)


def run(backend: str, routing: Routing, D: int, F: int, dtype: torch.dtype) -> list[Tensor]:
    """Give output and gradients of x, w1, w3, w2 and the gates; inputs are rounded alike."""
    rounded, exact = dtype, torch.float64 if backend == "loop" else dtype
    torch.manual_seed(0)
    experts = Experts(routing.num_experts, D, F).to(rounded).to(exact).to(DEVICE)
    x_TD = torch.randn(routing.num_tokens, D).to(rounded).to(exact).to(DEVICE).requires_grad_()
    grad_TD = torch.randn(routing.num_tokens, D).to(rounded).to(exact).to(DEVICE)
    gate_N = routing.gate_N.detach().to(exact if backend == "loop" else torch.float32).to(DEVICE)
    moved = {k: v.to(DEVICE) for k, v in vars(routing.detach()).items() if isinstance(v, Tensor)}
    routing = Routing(**{**vars(routing), **moved, "gate_N": gate_N.requires_grad_()})
    out_TD = BACKENDS[backend](x_TD, experts, routing)
    wanted = [x_TD, experts.w1, experts.w3, experts.w2, gate_N]
    return [out_TD, *torch.autograd.grad(out_TD, wanted, grad_TD)]


SHAPES = [  # kind, T, E, K, D, F: multiples of the tile, of nothing, of eight alone
    ("tokens choose", 20, 4, 2, 32, 48),
    ("tokens choose", 7, 5, 3, 13, 9),
    ("tokens choose", 17, 3, 2, 24, 40),
    ("tokens choose", 1, 3, 1, 8, 8),
    ("tokens choose", 0, 3, 2, 16, 16),
    ("tokens choose", 9, 1, 1, 16, 24),
    ("one expert has all", 19, 4, 1, 16, 24),
    ("experts choose", 18, 4, 2, 20, 33),
    ("full experts", 18, 4, 2, 32, 16),
    ("nobody is kept", 6, 3, 2, 16, 16),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_the_loops(shape, dtype):
    kind, T, E, K, D, F = shape
    routing = route(kind, T, E, K, D)
    got, expected = run("triton", routing, D, F, dtype), run("loop", routing, D, F, dtype)
    for name, a, b in zip(NAMES, got, expected, strict=True):
        assert a.isfinite().all(), name
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm() + 1e-12, name
    assert got[0].dtype == dtype


@pytest.mark.parametrize("kind", ["tokens choose", "full experts", "experts choose"])
def test_every_element_is_written_and_two_runs_give_the_same_bits(kind, monkeypatch):
    poison(monkeypatch)
    routing = route(kind, 13, 4, 2, 16)
    first, second = (run("triton", routing, 16, 24, torch.float32) for _ in range(2))
    for name, a, b in zip(NAMES, first, second, strict=True):
        assert a.isfinite().all() and torch.equal(a, b), name


def poison(monkeypatch) -> None:
    """Fill what is allocated empty with NaN: whatever is not written then shows."""

    def filled(make):
        def filling(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return filling

    monkeypatch.setattr(Tensor, "new_empty", filled(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))


def layer_and_input(dtype=torch.float32) -> tuple[MoELayer, Tensor]:
    torch.manual_seed(0)
    layer = MoELayer(TopKRouter(16, 4, 2), Experts(4, 16, 24), "triton").to(DEVICE)
    return layer, torch.randn(3, 5, 16, device=DEVICE, dtype=dtype)


def test_views_and_strides_do_not_matter():
    layer, _ = layer_and_input()
    wide = torch.randn(16, 3, 10, device=DEVICE, requires_grad=True)
    x_BSD = wide.permute(1, 2, 0)[:, ::2]  # nothing about it is contiguous
    out, _ = layer(x_BSD)
    layer.backend = "loop"
    expected, _ = layer(x_BSD)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for grad, wanted in zip(
        torch.autograd.grad(out.sum(), [wide, layer.experts.w2]),  # sum: a gradient of stride 0
        torch.autograd.grad(expected.sum(), [wide, layer.experts.w2]), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)


def test_under_autocast_a_type_comes_out_as_it_went_in():
    layer, x_BSD = layer_and_input()
    with torch.autocast(DEVICE, torch.bfloat16):
        out, _ = layer(x_BSD)
    layer.backend = "loop"
    expected, _ = layer(x_BSD)
    assert out.dtype == torch.float32 and not torch.equal(out, expected)
    assert (out - expected).norm() < TOLERANCE[torch.bfloat16] * expected.norm()


def test_it_compiles_as_one_graph():
    layer, x_BSD = layer_and_input()
    backend = "aot_eager" if INTERPRETED else "inductor"
    compiled = torch.compile(lambda x: layer(x)[0], fullgraph=True, backend=backend)
    x1, x2 = (x_BSD.clone().requires_grad_() for _ in range(2))
    (out := compiled(x1)).square().sum().backward()
    (expected := layer(x2)[0]).square().sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x1.grad, x2.grad)


def test_the_operator_keeps_to_torchs_rules():
    from moe_lite.fast.triton import fused  # registers it

    assert fused
    routing = route("tokens choose", 6, 3, 2, 16)
    p, experts = plan(routing), Experts(3, 16, 8)
    first_T1 = torch.arange(7) * 2
    inputs = [torch.randn(6, 16), experts.w1, experts.w3, experts.w2, p.gate_R]
    floats = [t.detach().to(DEVICE).requires_grad_() for t in inputs]
    indices = [t.to(DEVICE) for t in (p.token_R, p.offsets_E1, p.row_N, first_T1)]
    torch.library.opcheck(
        torch.ops.moe_lite.experts.default, (*floats, *indices),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


def test_float64_is_refused_in_a_sentence():
    layer, x_BSD = layer_and_input()
    with pytest.raises(ValueError, match='does not compute in torch.float64; backend="loop" does'):
        layer.double()(x_BSD.double())


@on_a_gpu
def test_nothing_waits_for_the_device():
    layer, x_BSD = layer_and_input()
    layer(x_BSD)[0].sum().backward()  # compiled by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x_BSD)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
def test_it_runs_in_a_cuda_graph():
    layer, x_BSD = layer_and_input()
    x_BSD.requires_grad_()

    def step():
        out_BSD = layer(x_BSD)[0]
        return out_BSD, *torch.autograd.grad(out_BSD.square().sum(), [x_BSD, layer.experts.w2])

    side = torch.cuda.Stream()  # what is compiled, is compiled before the recording
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        played = step()
    for seed in range(2):  # other tokens, other routings: the same launches
        with torch.no_grad():
            x_BSD.copy_(torch.randn_like(x_BSD) + seed)
        graph.replay()
        for got, wanted in zip(played, step(), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nothing_leaks_between_rows(dtype):
    """Poison all that must not matter: see tests/fuzz_dispatch.py."""
    for seed in range(int(os.environ.get("FUZZ_TRITON_CASES", "12"))):
        trial = prepare(seed, dtype, largest=5, device=DEVICE)
        assert list(judge(BACKENDS["triton"], trial, limit=2 * LIMIT))  # it may cut off: see above
