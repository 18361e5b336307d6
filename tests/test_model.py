"""The layer and the model by their own promises (parity with transformers: test_parity.py)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_lite.config import MixtralConfig
from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS
from moe_lite.generate import KVCache, sample
from moe_lite.layer import MoELayer
from moe_lite.model import Mixtral
from moe_lite.routers import HashRouter, TopKRouter
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace

CONFIG = MixtralConfig(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip
IDS_BS = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(0))


def mixtral(**changes) -> Mixtral:
    torch.manual_seed(1)
    return Mixtral(replace(CONFIG, **changes))


@pytest.mark.parametrize("T", [0, 1, 9])
def test_backends_agree_through_the_layer_router_included(T: int) -> None:
    torch.manual_seed(0)
    layer = MoELayer(TopKRouter(16, 6, 2), Experts(6, 16, 24)).double()
    x_TD = torch.randn(T, 16, dtype=torch.float64, requires_grad=True)
    results = {}
    for layer.backend in BACKENDS.keys() - {"triton"}:
        out_TD, _ = layer(x_TD)
        grad_TD = torch.linspace(-1, 1, T * 16, dtype=torch.float64).view(T, 16)
        results[layer.backend] = [
            out_TD, *torch.autograd.grad(out_TD, [x_TD, *layer.parameters()], grad_TD)
        ]  # fmt: skip
    for name in BACKENDS.keys() - {"triton"}:
        for a, b in zip(results["loop"], results[name], strict=True):
            torch.testing.assert_close(a, b)


def test_the_layer_accepts_any_leading_shape() -> None:
    layer = MoELayer(TopKRouter(16, 4, 2), Experts(4, 16, 24))
    x_BSD = torch.randn(3, 5, 16)
    out_BSD, routing = layer(x_BSD)
    flat, _ = layer(x_BSD.view(15, 16))
    assert out_BSD.shape == x_BSD.shape and routing.num_tokens == 15
    assert torch.equal(out_BSD.view(15, 16), flat)


@settings(deadline=None, max_examples=25)
@given(split=st.integers(1, 19), window=st.sampled_from([None, 1, 3, 7, 20, 64]))
def test_the_cache_changes_nothing(split: int, window: int | None) -> None:
    model = mixtral(sliding_window=window)
    cache = KVCache(CONFIG, 2, 20)
    parts = [model(IDS_BS[:, :split], cache=cache), model(IDS_BS[:, split:], cache=cache)]
    logits = torch.cat([p.logits_BSV for p in parts], dim=1)
    torch.testing.assert_close(logits, model(IDS_BS).logits_BSV, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 4])
def test_no_token_sees_the_future_nor_past_the_window(window: int | None) -> None:
    model = mixtral(sliding_window=window, num_hidden_layers=1)
    changed = IDS_BS.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 50
    differs_S = (model(IDS_BS).logits_BSV != model(changed).logits_BSV).any(-1).any(0)
    assert not differs_S[:10].any() and differs_S[10]
    if window is not None:
        assert not differs_S[10 + window :].any()


def test_padding_leaves_the_real_tokens_alone() -> None:
    model = mixtral()
    mask_BS = torch.ones_like(IDS_BS)
    mask_BS[:, 15:] = 0
    changed = IDS_BS.clone()
    changed[:, 15:] = 0
    torch.testing.assert_close(
        model(IDS_BS, mask_BS).logits_BSV[:, :15], model(changed, mask_BS).logits_BSV[:, :15]
    )
    left = torch.cat([torch.zeros(2, 5), torch.ones(2, 15)], dim=1)
    out = model(IDS_BS, left).logits_BSV
    changed = IDS_BS.clone()
    changed[:, :5] = 0
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, 5:], model(changed, left).logits_BSV[:, 5:])


def test_one_expert_is_a_plain_swiglu_block() -> None:
    twin = CONFIG.dense("active")
    assert (twin.intermediate_size, twin.num_local_experts) == (48, 1)
    assert CONFIG.dense("total").intermediate_size == 96
    layer = Mixtral(twin).moe_layers[0]
    x_TD = torch.randn(7, 16)
    w1, w3, w2 = (w[0] for w in (layer.experts.w1, layer.experts.w3, layer.experts.w2))
    expected = (torch.nn.functional.silu(x_TD @ w1.T) * (x_TD @ w3.T)) @ w2.T
    torch.testing.assert_close(layer(x_TD)[0], expected)


def test_generation_repeats_with_its_seed_and_greedy_needs_none() -> None:
    model = mixtral()
    first, second, other = (
        model.generate(IDS_BS[:, :5], 12, seed=s, top_p=0.9, top_k=20) for s in (7, 7, 8)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.shape == (2, 17) and torch.equal(first[:, :5], IDS_BS[:, :5])
    greedy = model.generate(IDS_BS[:, :5], 6, temperature=0)
    for end in range(5, 11):
        assert torch.equal(model(greedy[:, :end]).logits_BSV[:, -1].argmax(-1), greedy[:, end])


def test_a_finished_row_stays_finished() -> None:
    model = mixtral()
    free = model.generate(IDS_BS[:, :3], 30, seed=0)
    eos = int(free[0, 6])
    stopped = model.generate(IDS_BS[:, :3], 30, seed=0, eos_token_id=eos)
    row = stopped[0, 3:].tolist()
    assert set(row[row.index(eos) :]) == {eos}


def test_sampling_keeps_what_it_promises() -> None:
    logits_BV = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, 4)
    generator = torch.Generator().manual_seed(0)

    def drawn(**settings) -> set[int]:
        settings = {"temperature": 1.0, "top_k": None, "top_p": None, **settings}
        return set(sample(logits_BV, generator=generator, **settings).tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.8) == {0, 1} and drawn(top_p=0.81) == {0, 1, 2}
    assert drawn(top_p=1e-6) == {0} == drawn(temperature=0)
    counts = sample(logits_BV, 1.0, None, None, generator).bincount(minlength=4) / 4000
    torch.testing.assert_close(counts, logits_BV[0].exp(), atol=0.04, rtol=0)


def test_a_reader_brings_a_router_and_a_linear_layer() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    def scaled(config: MixtralConfig) -> TopKRouter:
        router = TopKRouter(config.hidden_size, config.num_local_experts, 1)
        torch.nn.init.constant_(router.weight, 7.0)
        return router

    model = Mixtral(CONFIG, router=scaled, linear=Doubled)
    assert model.state_dict().keys() == Mixtral(CONFIG).state_dict().keys()
    for layer in model.moe_layers:  # each its own, with the weights that it came with
        assert layer.gate.top_k == 1 and layer.gate.weight.eq(7).all()
    assert len({id(layer.gate) for layer in model.moe_layers}) == len(model.moe_layers)
    assert isinstance(model.lm_head, Doubled)
    attention = model.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert isinstance(getattr(attention, name), Doubled)
    assert model(torch.arange(6).view(1, 6)).routings[0].per_token == 1


def test_every_parameter_gets_a_gradient() -> None:
    model = mixtral(tie_word_embeddings=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    out = model(IDS_BS)
    torch.nn.functional.cross_entropy(
        out.logits_BSV[:, :-1].flatten(0, 1), IDS_BS[:, 1:].flatten()
    ).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_broken_router_is_named_with_its_layer() -> None:
    model = mixtral()
    with torch.no_grad():
        model.moe_layers[1].gate.weight[2] = torch.nan
    with pytest.raises(
        ValueError, match=r"layers\.1\.block_sparse_moe: the router's logits .* 0 of 40"
    ):
        model(IDS_BS)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m(IDS_BS + 45), "token id \\d+ is not in the vocabulary of 50"),
        (lambda m: m(IDS_BS - 50), "token id -\\d+ is not in"),
        (lambda m: m(IDS_BS[0]), "must be \\(batch, sequence\\)"),
        (lambda m: m(IDS_BS[:, :0]), "at least one token"),
        (lambda m: m(IDS_BS.repeat(1, 4)), "80 tokens are more than the model's context of 64"),
        (lambda m: m(IDS_BS, torch.ones(2, 19)), "mask has shape \\(2, 19\\), not \\(2, 20\\)"),
        (lambda m: m.generate(IDS_BS, 60), "80 tokens, more than the model's context"),
        (lambda m: m.generate(IDS_BS[:, :0], 5), "at least one token"),
        (lambda m: m.generate(IDS_BS, 5, top_p=0.0), "top_p must be above 0"),
        (lambda m: m.generate(IDS_BS, 5, temperature=-1.0), "temperature must be 0 or .*not -1.0"),
        (lambda m: m.generate(IDS_BS, 5, temperature=float("nan")), "temperature must .*not nan"),
        (lambda m: m.generate(IDS_BS, 5, temperature=1e-42), "from 1e-20 up, not 1e-42"),
        (lambda m: m.generate(IDS_BS, 5, top_k=0), "top_k must be at least 1, not 0"),
        (lambda m: m.generate(IDS_BS[0], 5), "must be \\(batch, sequence\\).*not \\(20,\\)"),
        (lambda m: m.generate(IDS_BS, 5, mask_BS=torch.ones(20)), "mask has shape \\(20,\\), not"),
        (lambda m: m(IDS_BS.float()), "token ids must be int64 or int32, not torch.float32"),
        (lambda m: m.moe_layers[0](torch.zeros(16)), "input is \\(T, D\\) or more, not \\(16,\\)"),
        (lambda m: m.moe_layers[0](torch.zeros(())), "or more, not \\(\\)"),
        (lambda m: m.moe_layers[0](torch.zeros(2, 3, 9)), "width 9, the experts 16"),
        (lambda m: MoELayer(TopKRouter(16, 3), Experts(4, 16, 8))(torch.zeros(1, 16)),
         "routes to 3 experts, but there are 4"),
        (lambda m: MoELayer(TopKRouter(16, 4), Experts(4, 16, 8), "fast")(torch.zeros(1, 16)),
         "not 'fast'"),
        (lambda m: replace(CONFIG, num_experts_per_tok=5), "K cannot exceed E"),
        (lambda m: replace(CONFIG, hidden_size=0), "hidden_size must be a whole number"),
        (lambda m: replace(CONFIG, num_key_value_heads=3), "multiple of"),
        (lambda m: replace(CONFIG, head_dim=5), "head_dim must be even"),
        (lambda m: replace(CONFIG, head_dim=None, num_attention_heads=32), "head_dim must be .*0"),
        (lambda m: MixtralConfig(num_attention_heads=0), "heads must be a whole number .*not 0"),
        (lambda m: MixtralConfig(num_attention_heads=None), "heads must be .*not None"),
        (lambda m: MixtralConfig(hidden_size="64"), "hidden_size must be a whole number .*'64'"),
        (lambda m: CONFIG.dense("most"), "not 'most'"),
        (lambda m: Experts(0, 4, 4), "num_experts must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(mixtral())


@torch.no_grad()
def test_a_full_cache_says_so_and_stays_as_it_was() -> None:
    model = mixtral().eval()
    cache = KVCache(CONFIG, 2, 19)
    for token in range(19):
        model(IDS_BS[:, token : token + 1], cache=cache)
    with pytest.raises(ValueError, match="the cache has room for 19 tokens, not 20"):
        model(IDS_BS[:, 19:], cache=cache)
    with pytest.raises(ValueError, match="the cache has room for 5 tokens, not 20"):
        model(IDS_BS, cache=KVCache(CONFIG, 2, 5))
    assert cache.length == 19
    cache.length = 18  # the last token is read again
    expected_BV = model(IDS_BS[:, :19]).logits_BSV[:, -1]
    again_BV = model(IDS_BS[:, 18:19], cache=cache).logits_BSV[:, -1]
    torch.testing.assert_close(again_BV, expected_BV)


@pytest.mark.parametrize(
    ("cache", "mine"),
    [
        (KVCache(CONFIG, 3, 20), "\\(3, 2, 4,"),
        (KVCache(CONFIG, 1, 20), "\\(1, 2, 4,"),
        (KVCache(replace(CONFIG, num_key_value_heads=1), 2, 20), "\\(2, 1, 4,"),
        (KVCache(CONFIG, 2, 20, dtype=torch.bfloat16), "torch.bfloat16"),
        (KVCache(CONFIG, 2, 20, device="meta"), "'meta'"),
    ],
)
def test_a_cache_of_other_tokens_is_refused(cache: KVCache, mine: str) -> None:
    with pytest.raises(ValueError, match=f"the cache is for .*{mine}.*, not \\(2, 2, 4, torch.fl"):
        mixtral()(IDS_BS, cache=cache)
    one = KVCache(CONFIG, 2, 20)
    with pytest.raises(ValueError, match="the cache is for"):  # one row would fill both
        mixtral()(IDS_BS[:1], cache=one)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_a_cache_may_be_of_either_type(dtype: torch.dtype) -> None:
    model = mixtral().eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected_BSV = model(IDS_BS).logits_BSV
        cached_BSV = model(IDS_BS, cache=KVCache(CONFIG, 2, 20, dtype=dtype)).logits_BSV
    torch.testing.assert_close(cached_BSV, expected_BSV, rtol=0.05, atol=0.05)


class Fixed(torch.nn.Module):
    """A gate of one's own, that says for each token the same experts."""

    def __init__(self, *experts: int):
        super().__init__()
        self.experts = experts

    def forward(self, x_TD: Tensor, *, mask_T=None, ids_T=None) -> Routing:
        zero_TE, K = torch.zeros(len(x_TD), 4), len(self.experts)
        expert_TK = torch.tensor([self.experts]).expand(len(x_TD), K)
        return Routing.from_choices(
            zero_TE, zero_TE.softmax(-1), expert_TK, torch.ones(len(x_TD), K)
        )


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("T", [1, 3, 100])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_an_expert_that_is_not_there_is_named(backend: str, T: int, gradients: bool) -> None:
    experts = Experts(4, 16, 24)
    for bad in (4, -1):
        layer = MoELayer(Fixed(0, bad), experts, backend)
        with (
            torch.set_grad_enabled(gradients),
            pytest.raises(ValueError, match=f"MoELayer: the gate chose expert {bad} of 4"),
        ):
            layer(torch.randn(T, 16))
    assert MoELayer(Fixed(0, 3), experts, backend)(torch.randn(T, 16))[1].num_tokens == T
    assert MoELayer(Fixed(0, 4), experts, backend)(torch.randn(0, 16))[0].shape == (0, 16)


def test_a_mask_or_ids_of_another_shape_are_refused() -> None:
    x_BSD, mask_BS = torch.randn(2, 3, 16), torch.tensor([[1, 1, 0], [1, 1, 1]])
    layer = MoELayer(TopKRouter(16, 4), Experts(4, 16, 24))
    hashed = MoELayer(HashRouter(9, 4), Experts(4, 16, 24))
    for wrong_BS in (mask_BS.T, mask_BS[None], mask_BS[:1], mask_BS.flatten()[:5]):
        says = f"mask or ids are \\({', '.join(map(str, wrong_BS.shape))},?\\), the tokens \\(2, 3"
        with pytest.raises(ValueError, match=says):
            layer(x_BSD, wrong_BS)
        with pytest.raises(ValueError, match=says):
            hashed(x_BSD, ids_BS=wrong_BS)
    flat = layer(x_BSD, mask_BS.flatten())[1]
    assert torch.equal(layer(x_BSD, mask_BS)[1].mask_T, flat.mask_T)


@pytest.mark.parametrize(
    ("shared", "says"),
    [
        (Experts(1, 8, 24), "input has width 16, the shared experts 8"),
        (Experts(1, 16, 24).double(), "torch.float32 and the shared experts torch.float64"),
    ],
)
def test_shared_experts_must_fit_the_tokens(shared: Experts, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MoELayer(TopKRouter(16, 4), Experts(4, 16, 24), shared=shared)(torch.zeros(3, 16))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_on_the_meta_device_runs_for_its_shapes(gradients: bool) -> None:
    with torch.device("meta"):
        model = Mixtral(CONFIG)
    with torch.set_grad_enabled(gradients):
        out = model(IDS_BS.to("meta"))
    assert out.logits_BSV.shape == (2, 20, 50) and out.logits_BSV.is_meta
    assert out.routings[1].expert_N.shape == (80,)
    bf16 = {"device": "meta", "dtype": torch.bfloat16}
    with pytest.raises(ValueError, match="convert one of them"):
        model.layers[0].block_sparse_moe(torch.empty(4, CONFIG.hidden_size, **bf16))
    with pytest.raises(ValueError, match="the cache is for"):
        model(IDS_BS.to("meta"), cache=KVCache(CONFIG, 2, 20, **bf16))


def test_a_trace_must_fit_together() -> None:
    routing: Routing = mixtral()(IDS_BS).routings[0].detach()
    RoutingTrace(["x"] * 40, (routing,), ("layers.0",), "here")
    with pytest.raises(ValueError, match="routed 40 tokens, but the trace has 39"):
        RoutingTrace(["x"] * 39, (routing,), ("layers.0",), "here")
    with pytest.raises(ValueError, match="1 layers but 0 layer names"):
        RoutingTrace(["x"] * 40, (routing,), (), "here")
