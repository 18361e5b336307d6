"""Every backend gives the same output and the same gradients, for any routing."""

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_lite.course import losses2017
from moe_lite.course.tree import HierarchicalRouter
from moe_lite.dispatch import grouped, plan
from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS, choose, cpu
from moe_lite.layer import MoELayer
from moe_lite.routers import NoisyTopKRouter, TopKRouter
from moe_lite.routing import Routing
from tests.fuzz_dispatch import DTYPES, definition, judge, prepare
from tests.fuzz_dispatch import run as run_fuzz

D, F = 8, 12
EVERYWHERE = [name for name in BACKENDS if name != "triton"]  # that one has tests/gpu


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """Draw any router's answer: by tokens, experts, noise or a tree; dropped, uneven, empty."""
    T, E = draw(st.integers(0, 20)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits_TE = torch.randn(T, E, generator=generator, dtype=torch.float64)
    favourites = draw(st.sampled_from([E, max(1, E // 2), 1]))  # the other experts stay empty
    kind = draw(st.sampled_from(["tokens choose", "experts choose", "noise decides", "a tree"]))
    if kind == "noise decides":
        routing = drawn(NoisyTopKRouter(D, E, draw(st.integers(1, E))), T, generator)
    elif kind == "a tree":
        groups, K = draw(st.integers(1, 3)), draw(st.integers(1, E))
        router = HierarchicalRouter(
            NoisyTopKRouter(D, groups, draw(st.integers(1, groups))),
            [NoisyTopKRouter(D, E, K) for _ in range(groups)],
        )
        routing = drawn(router, T, generator)
    elif kind == "tokens choose":
        K = draw(st.integers(1, favourites))
        gate_TK, expert_TK = logits_TE[:, :favourites].softmax(-1).topk(K, dim=-1)
        routing = Routing.from_choices(logits_TE, logits_TE.softmax(-1), expert_TK, gate_TK)
    else:
        C = draw(st.integers(0, T))
        gate_EC, token_EC = logits_TE.softmax(-1).T.topk(C, dim=-1)
        expert_EC = torch.arange(E)[:, None].expand(E, C)
        routing = Routing(
            logits_TE, logits_TE.softmax(-1),
            token_EC.reshape(-1), expert_EC.reshape(-1), gate_EC.reshape(-1),
        )  # fmt: skip
    if draw(st.booleans()):
        keep_N = torch.rand(len(routing.token_N), generator=generator) < draw(st.floats(0, 1))
        routing = Routing(**{**vars(routing), "keep_N": keep_N})
    return routing


def drawn(router: torch.nn.Module, T: int, generator: torch.Generator) -> Routing:
    """Route random tokens with random weights, in float64."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(generator.initial_seed())
        for weight in router.double().parameters():
            weight.normal_()
        return router(torch.randn(T, D, dtype=torch.float64))


def naive(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """One pair at a time, straight from the definition: out_t = sum of gate * expert(x_t)."""
    out = [torch.zeros_like(x_TD[0]) + 0 * x_TD[t] for t in range(len(x_TD))]
    for n in range(len(routing.token_N)):
        if routing.keep_N is None or routing.keep_N[n]:
            t, e = int(routing.token_N[n]), int(routing.expert_N[n])
            up = torch.nn.functional.silu(experts.w1[e] @ x_TD[t]) * (experts.w3[e] @ x_TD[t])
            out[t] = out[t] + routing.gate_N[n] * (experts.w2[e] @ up)
    return torch.stack(out) if out else x_TD * 1


def run(forward, routing: Routing, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Give output and gradients of x, w1, w3, w2 and the gates."""
    torch.manual_seed(0)
    experts = Experts(routing.num_experts, D, F).to(dtype)
    x_TD = torch.randn(routing.num_tokens, D, dtype=dtype, requires_grad=True)
    grad_TD = torch.randn(routing.num_tokens, D, dtype=dtype)
    gate_N = routing.gate_N.to(dtype).clone().requires_grad_()
    out_TD = forward(x_TD, experts, Routing(**{**vars(routing), "gate_N": gate_N}))
    wanted = [x_TD, experts.w1, experts.w3, experts.w2, gate_N]
    grads = torch.autograd.grad(out_TD, wanted, grad_TD, allow_unused=True)
    return [
        out_TD,
        *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)),
    ]


@pytest.mark.parametrize("backend", EVERYWHERE)
@settings(deadline=None, max_examples=60)
@given(routing=routings())
def test_every_backend_is_the_definition(backend: str, routing: Routing) -> None:
    expected, got = run(naive, routing), run(BACKENDS[backend], routing)
    for name, a, b in zip(("out", "x", "w1", "w3", "w2", "gate"), expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_a_layer_gives_its_gate_the_same_gradient(
    any_router: Callable[..., torch.nn.Module], backend: str, padding: bool
) -> None:
    def gradients(backend: str) -> list[Tensor]:
        torch.manual_seed(1)
        shared = Experts(2, D, F) if padding else None
        layer = MoELayer(any_router(D, 6, 9), Experts(6, D, F), backend, shared).double()
        for weight in layer.gate.parameters():
            torch.nn.init.normal_(weight)
        x_TD, ids_T = torch.randn(30, D, dtype=torch.float64), torch.arange(30) % 9
        mask_T = torch.arange(30) % 10 < 7 if padding else None
        out_TD, routing = layer(x_TD, mask_T, ids_T)
        loss = (
            out_TD.square().sum()
            + losses2017.importance_loss(routing)
            + losses2017.load_loss(routing)
        )
        return [out_TD, *torch.autograd.grad(loss, list(layer.parameters()))]

    for a, b in zip(gradients("loop"), gradients(backend), strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.slow("the fuzz of leaking rows")
@pytest.mark.parametrize("part", range(4))
def test_nothing_leaks_between_rows(part: int) -> None:
    """Poison all that must not matter, on every path; FUZZ_CASES=10000 is the whole of it."""
    cases = int(os.environ.get("FUZZ_CASES", "600"))
    assert len(run_fuzz(range(part, cases, 4))) == 6 * 6 + 2  # one type in each part


def leaked_row(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Leave the dropped pairs in, with a gate of zero: harmless until a row is NaN."""
    gate_N = routing.gate_N
    if routing.keep_N is not None:
        gate_N = gate_N.masked_fill(~routing.keep_N, 0.0)
    return definition(x_TD, experts, replace(routing, gate_N=gate_N, keep_N=None))


def missing_gate(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    return definition(x_TD, experts, replace(routing, gate_N=torch.ones_like(routing.gate_N)))


def wrong_expert(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Send the last kept pair to the next expert."""
    expert_N, keep_N = routing.expert_N.clone(), routing.keep_N
    kept = torch.arange(len(expert_N)) if keep_N is None else keep_N.nonzero()[:, 0]
    expert_N[kept[-1:]] = (expert_N[kept[-1:]] + 1) % experts.num_experts
    return definition(x_TD, experts, replace(routing, expert_N=expert_N))


def lacking_term(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
    """Leave the first of the D products out of every gate's gradient; all else is right."""
    out_TD = definition(x_TD, experts, routing)
    constant = replace(routing, gate_N=routing.gate_N.detach())
    return torch.cat([definition(x_TD, experts, constant)[:, :1], out_TD[:, 1:]], dim=1)


@pytest.mark.slow("the fuzz of leaking rows")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bug", [leaked_row, missing_gate, wrong_expert, lacking_term])
def test_the_fuzz_finds_what_is_planted(bug, dtype: torch.dtype) -> None:
    found = dict.fromkeys(("one unit", "more"), 0)
    for seed in range(80):
        trial = prepare(seed, dtype, largest=8)
        list(judge(definition, trial))  # the same cases are right without the bug
        try:
            list(judge(bug, trial))
        except AssertionError:
            found["one unit" if trial.clean.weights[0].shape[1] == 1 else "more"] += 1
    print(bug.__name__, dtype, found)
    assert min(found.values()) > 0


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    logits_TE = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(2, dim=-1)
    routing = Routing.from_choices(logits_TE, logits_TE.softmax(-1), expert_TK, gate_TK)

    def in_double(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
        return BACKENDS["loop"](x_TD.double(), experts.double(), routing)

    torch.manual_seed(0)
    experts = Experts(5, D, F).to(dtype)
    x_TD = torch.randn(40, D).to(dtype)
    got = BACKENDS[backend](x_TD, experts, routing)
    assert got.dtype == dtype
    expected = in_double(x_TD, experts, routing)
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("backend", ["grouped", "auto"])
def test_autocast_computes_in_bf16_and_keeps_the_type_outside(backend: str) -> None:
    logits_TE = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(2, dim=-1)
    routing = Routing.from_choices(logits_TE, logits_TE.softmax(-1), expert_TK, gate_TK)
    exact = run(BACKENDS[backend], routing, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(BACKENDS[backend], routing, torch.float32)
    for a, b in zip(exact, rounded, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert not torch.equal(a, b) and (a - b).norm() <= 3e-2 * a.norm()


@settings(deadline=None)
@given(routing=routings())
def test_the_plan_is_a_stable_sort_and_its_inverse(routing: Routing) -> None:
    p = plan(routing)
    offsets = p.offsets_E1.tolist()
    assert offsets[0] == 0 and offsets == sorted(offsets) and p.offsets_E1.dtype == torch.int32
    keep_N = torch.ones_like(routing.token_N, dtype=torch.bool)
    if routing.keep_N is not None:
        keep_N = routing.keep_N
    assert offsets[-1] == int(keep_N.sum())
    for e, (start, end) in enumerate(itertools.pairwise(offsets)):
        pairs = p.order_R[start:end]
        assert (routing.expert_N[pairs] == e).all() and keep_N[pairs].all()
        assert pairs.tolist() == sorted(pairs.tolist())
    assert torch.equal(p.order_R[p.row_N], torch.arange(len(p.row_N)))
    assert torch.equal(p.token_R, routing.token_N[p.order_R])
    assert not p.gate_R[offsets[-1] :].any()


def test_loop_passes_gradcheck() -> None:
    torch.manual_seed(0)
    logits_TE = torch.randn(5, 3, dtype=torch.float64)
    expert_TK = logits_TE.topk(2, dim=-1).indices
    experts = Experts(3, 4, 5).double()

    def layer(x_TD, logits_TE, *weights):  # type: ignore[no-untyped-def]
        gate_TK = logits_TE.softmax(-1).gather(1, expert_TK)
        routing = Routing.from_choices(logits_TE, logits_TE.softmax(-1), expert_TK, gate_TK)
        for name, weight in zip(("w1", "w3", "w2"), weights, strict=True):
            delattr(experts, name) if hasattr(experts, name) else None
            setattr(experts, name, weight)
        return BACKENDS["loop"](x_TD, experts, routing)

    weights = [w.detach().clone().requires_grad_() for w in (experts.w1, experts.w3, experts.w2)]
    x_TD = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x_TD, logits_TE.requires_grad_(), *weights))


@pytest.mark.parametrize("backend", ["grouped", "auto"])
def test_grouped_gives_the_same_bits_twice(backend: str) -> None:
    logits_TE = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    gate_TK, expert_TK = logits_TE.softmax(-1).topk(2, dim=-1)
    routing = Routing.from_choices(logits_TE, logits_TE.softmax(-1), expert_TK, gate_TK)
    first, second = (run(BACKENDS[backend], routing, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_shared_experts_see_every_token_with_a_weight_of_one() -> None:
    torch.manual_seed(0)
    layer = MoELayer(TopKRouter(D, 4, 2), Experts(4, D, F), shared=Experts(2, D, F))
    x_BSD = torch.randn(2, 5, D)
    with_shared, _ = layer(x_BSD)
    first, second = layer.shared.each()
    layer.shared = None
    torch.testing.assert_close(with_shared, layer(x_BSD)[0] + first(x_BSD) + second(x_BSD))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_what_padding_holds_reaches_no_answer_and_no_gradient(
    any_router: Callable[..., torch.nn.Module], bad: float
) -> None:
    def step(padding: float) -> list[Tensor]:
        torch.manual_seed(3)
        layer = MoELayer(any_router(D, 6, 9), Experts(6, D, F), shared=Experts(1, D, F))
        x_TD, ids_T, mask_T = torch.randn(30, D), torch.arange(30) % 9, torch.arange(30) % 5 > 0
        x_TD[~mask_T] = padding
        out_TD, routing = layer(x_TD.requires_grad_(), mask_T, ids_T)
        loss = out_TD[mask_T].square().sum() + losses2017.importance_loss(routing)
        wanted = [x_TD, *layer.parameters()]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        return [
            out_TD,
            *(w.detach() * 0 if g is None else g for w, g in zip(wanted, grads, strict=True)),
        ]

    for a, b in zip(step(0.0), step(bad), strict=True):
        assert a.equal(b) and a.isfinite().all()


def test_padding_takes_no_place_and_changes_nothing_for_the_others(
    any_router: Callable[..., torch.nn.Module],
) -> None:
    """Left out or masked, the real tokens get the same answer: nobody stands in their queue."""
    torch.manual_seed(2)
    layer = MoELayer(any_router(D, 6, 9), Experts(6, D, F)).eval()
    x_TD, ids_T = torch.randn(30, D), torch.arange(30) % 9
    mask_T = torch.ones(30, dtype=torch.bool)
    mask_T[[3, 4, 17, 21]] = False
    (first, _), (second, _) = (
        layer(x_TD + noise, mask_T, ids_T) for noise in (0, 9.0 * ~mask_T[:, None])
    )
    assert not first[~mask_T].any() and first[mask_T].abs().sum() > 0
    torch.testing.assert_close(first[mask_T], second[mask_T])


@settings(deadline=None, max_examples=60)
@given(routing=routings())
def test_without_gradients_it_is_the_same(routing: Routing) -> None:
    """Whether torch's grouped product takes the type (float32) or not, or one token is alone."""
    torch.manual_seed(0)
    experts = Experts(routing.num_experts, 8, 12).double()
    x_TD = torch.randn(routing.num_tokens, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = naive(x_TD, experts, routing)
        exact = BACKENDS["auto"](x_TD, experts, routing)
        torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-9)
        got = BACKENDS["auto"](x_TD.float(), experts.float(), routing)
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "gradients", "autocast", "E", "dtype", "path"),
    [
        (1, False, False, 4, torch.float32, "single"),
        (1, False, True, 4, torch.float32, "blocks"),
        (1, True, False, 4, torch.float32, "grouped"),
        (9999, True, False, 4, torch.bfloat16, "blocks"),
        (2, False, False, 4, torch.float32, "few_calls"),
        (9999, False, False, 4, torch.float32, "blocks"),
        (9999, False, False, 4, torch.bfloat16, "few_calls"),
        (2, True, False, 1, torch.float32, "dense"),
        (2, True, False, 4, torch.float64, "blocks"),
    ],
)
def test_auto_takes_what_was_measured_and_says_so(
    tokens: int, gradients: bool, autocast: bool, E: int, dtype: torch.dtype, path: str
) -> None:
    layer = MoELayer(TopKRouter(16, E, 1), Experts(E, 16, 64)).to(dtype)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        taken, _ = choose(layer.experts, tokens, tokens)
        assert taken is getattr(cpu, path)
        assert f"by '{path}', " in layer.explain(tokens)


@pytest.mark.parametrize(
    ("pairs", "dtype", "capability", "path"),
    [
        (8000, torch.bfloat16, (9, 0), "triton"),
        (7999, torch.bfloat16, (9, 0), "grouped"),
        (8000, torch.float32, (9, 0), "grouped"),
        (8000, torch.bfloat16, (8, 6), "grouped"),
    ],
)
def test_on_a_gpu_auto_takes_the_fused_path_where_it_was_measured(
    pairs: int, dtype: torch.dtype, capability: tuple[int, int], path: str, monkeypatch: Any
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    w1 = MagicMock(device=torch.device("cuda"), dtype=dtype)
    w1.__len__.return_value = 4
    _, why = choose(SimpleNamespace(w1=w1), 1, pairs)  # type: ignore[arg-type]
    assert why.startswith(f"'{path}'")


def test_a_readable_path_is_taken_as_asked() -> None:
    layer = MoELayer(TopKRouter(D, 4, 2), Experts(4, D, F), "grouped")
    assert layer.explain() == "MoELayer: 'grouped' on the cpu, as asked"
    assert BACKENDS["grouped"] is grouped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drops", [False, True])
def test_large_blocks_are_the_loop(dtype: torch.dtype, drops: bool) -> None:
    """So large that blocks are lengthened and oneDNN, where it is preferred, is used."""
    T, D, F_, E = 1500, 64, 96, 5
    torch.manual_seed(0)
    routing = TopKRouter(D, E, 2)(torch.randn(T, D)).detach()
    if drops:
        routing = routing.kept(torch.rand(2 * T) < 0.7)
    x_TD, grad_TD = torch.randn(2, T, D).to(dtype)
    source = Experts(E, D, F_).to(dtype)

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        experts = Experts(E, D, F_).to(dtype)
        experts.load_state_dict(source.state_dict())
        x, gate_N = x_TD.to(dtype).requires_grad_(), routing.gate_N.to(dtype).requires_grad_()
        out = BACKENDS[backend](x, experts, Routing(**{**vars(routing), "gate_N": gate_N}))
        wanted = [x, experts.w1, experts.w3, experts.w2, gate_N]
        return [out, *torch.autograd.grad(out, wanted, grad_TD.to(dtype))]

    limit = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    names = ("out", "x", "w1", "w3", "w2", "gate")
    expected, got = run("loop", torch.float64), run("auto", dtype)
    for name, a, b in zip(names, expected, got, strict=True):
        assert (b.double() - a).norm() <= limit * a.norm(), name


def test_a_block_grows_to_one_of_few_sizes() -> None:
    sizes = set()
    for rows in range(1, 4000):
        routing = Routing.from_choices(
            torch.zeros(rows, 1), torch.ones(rows, 1),
            torch.zeros(rows, 1, dtype=torch.long), torch.ones(rows, 1),
        )  # fmt: skip
        [(_, start, stop, end)], token_R = cpu._blocks(plan(routing))
        assert (start, stop) == (0, rows) and rows <= end <= max(rows + 15, rows * 17 / 16)
        assert len(token_R) == end
        sizes.add(end)
    assert len(sizes) < 110


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_views_strides_and_expanded_gradients_do_not_matter(backend: str) -> None:
    torch.manual_seed(0)
    layer = MoELayer(TopKRouter(D, 4), Experts(4, D, F), backend).double()
    wide = torch.randn(D, 14, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for x_BSD in (wide.permute(2, 1, 0)[:, ::2], wide.permute(2, 1, 0)[:, ::2].contiguous()):
        out_BSD, _ = layer(x_BSD)
        (grad,) = torch.autograd.grad(out_BSD.sum(), wide)  # of stride 0 where it arrives
        found += [(out_BSD, grad)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert found[0][1][:, 1::2].eq(0).all() and found[0][1][:, ::2].ne(0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_types_that_differ_are_refused_in_a_sentence(backend: str, tokens: int) -> None:
    layer = MoELayer(TopKRouter(D, 4), Experts(4, D, F).bfloat16(), backend)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"float32 and the experts torch\.bfloat16"),
    ):
        layer(torch.randn(tokens, D))
