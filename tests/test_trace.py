"""Traces against what the models really did, seen from another side.

transformers' experts are called with (hidden states, indices, weights): what arrives there is
what was routed, whatever the gate said. Our layer's routings are in the model's own output.
"""

import functools
import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

from moe_lite import trace
from moe_lite.config import MixtralConfig
from moe_lite.layer import MoELayer
from moe_lite.losses import load_balancing_loss
from moe_lite.model import Mixtral
from moe_lite.routers import NoisyTopKRouter
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace

SMALL = MixtralConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=2,
    max_position_embeddings=64,
)  # fmt: skip
COMMON = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, num_experts_per_tok=2,
    max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture
def model():
    return opinionated(Mixtral(SMALL))


def opinionated(model: nn.Module) -> nn.Module:
    """Draw weights so large that experts differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
    return model.eval()


def theirs(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = dict(COMMON, experts_implementation="eager")
    if name == "mixtral":
        config = transformers.MixtralConfig(**sizes, num_local_experts=6)
        model = transformers.MixtralForCausalLM(config)
    elif name.startswith("olmoe"):
        config = transformers.OlmoeConfig(**sizes, num_experts=6, norm_topk_prob=False)
        model = transformers.OlmoeForCausalLM(config)
    else:
        config = transformers.Qwen3MoeConfig(
            **sizes, num_experts=6, moe_intermediate_size=12, head_dim=8,
            norm_topk_prob=name == "qwen3 normalised", decoder_sparse_step=1,
            mlp_only_layers=[1],
        )  # fmt: skip
        model = transformers.Qwen3MoeForCausalLM(config)
    return opinionated(model)


THEIRS = ["mixtral", "olmoe", "qwen3 normalised", "qwen3 plain"]


def spy_on_experts(model: nn.Module) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Keep the indices and weights that each layer's experts are handed."""
    seen = {}
    for name, module in model.named_modules():
        if name.endswith(".experts"):

            def spy(module, args, kwargs, name=name):
                call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                pair = call["top_k_index"].clone(), call["top_k_weights"].clone()
                seen.setdefault(name.removesuffix(".experts"), []).append(pair)

            module.register_forward_pre_hook(spy, with_kwargs=True)
    return seen


def count_hooks(model: nn.Module) -> int:
    """Count the recorder's hooks (transformers puts up some of its own)."""
    hooks = [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    return sum(f.__module__ == trace.__name__ for found in hooks for f in found.values())


# --------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_transformers_models_were_routed_as_the_trace_says(name):
    model = theirs(name)
    seen = spy_on_experts(model)
    ids = torch.randint(1, 40, (2, 7))
    with trace.record(model) as rec:
        out = model(ids, output_router_logits=True)
        assert count_hooks(model) == 2 + 2 * len(out.router_logits)
    assert count_hooks(model) == 0

    recorded = rec.trace
    dense = [1] if "qwen3" in name else []
    assert list(recorded.layer_names) == [
        f"model.layers.{i}.mlp" for i in range(3) if i not in dense
    ]
    assert recorded.tokens == [str(i) for i in ids.flatten().tolist()]
    assert recorded.source == f"transformers.{type(model).__name__}"
    for layer, routing, logits in zip(
        recorded.layer_names, recorded.layers, out.router_logits, strict=True
    ):
        [(index_TK, weight_TK)] = seen[layer]
        assert routing.per_token == 2 and routing.keep_N is None
        assert torch.equal(routing.expert_N.view(-1, 2), index_TK)
        assert torch.equal(routing.gate_N.view(-1, 2), weight_TK)
        torch.testing.assert_close(routing.logits_TE, logits)
        torch.testing.assert_close(routing.probs_TE, logits.softmax(-1))
        # What the papers say, computed from the logits alone.
        top_TK, expert_TK = logits.softmax(-1).topk(2)
        if name in ("mixtral", "qwen3 normalised"):
            top_TK = top_TK / top_TK.sum(-1, keepdim=True)
        assert torch.equal(routing.expert_N.view(-1, 2), expert_TK)
        torch.testing.assert_close(routing.gate_N.view(-1, 2), top_TK)
        sums_T = routing.gate_N.view(-1, 2).sum(-1)
        renormalised = name in ("mixtral", "qwen3 normalised")
        assert torch.allclose(sums_T, torch.ones(14), atol=1e-6) == renormalised


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_generation_reads_as_one_text(name, dtype):
    model = theirs(name).to(dtype)
    seen = spy_on_experts(model)
    with trace.record(model) as rec:
        ids = model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None)
    recorded = rec.trace
    assert recorded.tokens == [str(i) for i in ids[0, :-1].tolist()]  # the last is never read
    for layer, routing in zip(recorded.layer_names, recorded.layers, strict=True):
        assert len(seen[layer]) == 5
        index_TK, weight_TK = (torch.cat(part) for part in zip(*seen[layer], strict=True))
        assert torch.equal(routing.expert_N.view(-1, 2), index_TK)
        assert torch.equal(routing.gate_N.view(-1, 2), weight_TK.float())
        assert routing.token_N.tolist() == [t for t in range(12) for _ in range(2)]


@torch.no_grad()
def test_softmaxed_logits_are_made_again():
    """Some versions return the softmax in the place of the logits."""
    model = theirs("mixtral")
    with trace.record(model) as rec:
        model(IDS)
    for module in model.modules():
        if type(module).__name__ == "MixtralTopKRouter":
            really = module.forward

            def softmaxed(x, really=really):
                logits, scores, indices = really(x)
                return logits.softmax(-1), scores, indices

            module.forward = softmaxed
    with trace.record(model) as again:
        model(IDS)
    for a, b in zip(rec.trace.layers, again.trace.layers, strict=True):
        assert (a.logits_TE < 0).any()
        torch.testing.assert_close(a.logits_TE.softmax(-1), b.logits_TE.softmax(-1))
        torch.testing.assert_close(a.probs_TE, b.probs_TE)


# --------------------------------------------------------------------------- any such module tree


class Gate(nn.Module):
    """A gate in the manner of transformers, which names the best expert last."""

    def __init__(self, activation, factor: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.activation, self.factor = activation, factor

    def forward(self, x):
        logits = nn.functional.linear(x, self.weight)
        scores, indices = self.activation(logits).topk(3)
        return logits, self.factor * scores.flip(-1), indices.flip(-1), "more"


class Handed(nn.Module):
    """Experts that only take what they are handed."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


class Tree(nn.Module):
    def __init__(self, gate: nn.Module, name: str = "gate"):
        super().__init__()
        self.embed, self.block = nn.Embedding(10, 4), nn.Module()
        self.block.experts = Handed()
        setattr(self.block, name, gate)
        self.gate_name = name

    def forward(self, ids):
        x = self.embed(ids).flatten(0, 1)
        answer = getattr(self.block, self.gate_name)(x)
        chosen = answer if isinstance(answer, tuple) else (answer, *answer.topk(2))
        self.block.experts(x, chosen[2], chosen[1])
        return answer


@pytest.mark.parametrize("name", ["gate", "router"])
@pytest.mark.parametrize("activation", [torch.sigmoid, functools.partial(torch.softmax, dim=-1)])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_probabilities_follow_the_gate(name, activation, factor):
    model = Tree(Gate(activation, factor), name)
    with trace.record(model) as rec:
        logits, scores, indices, _ = model(torch.tensor([[1, 2, 3]]))
    [routing] = rec.trace.layers
    assert rec.trace.layer_names == ("block",)
    scores_TE = activation(logits)
    torch.testing.assert_close(routing.probs_TE, scores_TE / scores_TE.sum(-1, keepdim=True))
    best_first = routing.gate_N.view(-1, 3)
    assert torch.equal(best_first, scores.flip(-1))
    assert torch.equal(routing.expert_N.view(-1, 3), indices.flip(-1))


@pytest.mark.parametrize("gate", [Gate(torch.rand_like), nn.Linear(4, 5)], ids=["random", "plain"])
def test_scores_from_elsewhere_are_unknown(gate):
    model = Tree(gate)
    with trace.record(model) as rec:
        model(torch.tensor([[1, 2, 3]]))
    [routing], [rule] = rec.trace.layers, rec.trace.rules
    assert rule.startswith("scores unknown: the weights follow from none")
    assert routing.probs_TE.isnan().all() and routing.gate_N.isfinite().all()


def test_a_model_without_experts_is_refused():
    with (
        pytest.raises(
            ValueError, match="Linear has nothing to record at: no module that is handed"
        ),
        trace.record(nn.Linear(2, 2)),
    ):
        pass


# --------------------------------------------------------------------------- ours


def same(a: Routing, b: Routing) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_our_model_s_trace_is_its_output(model):
    ids = torch.randint(40, (3, 5))
    with trace.record(model) as rec:
        out = model(ids)
    recorded = rec.trace
    assert isinstance(recorded, RoutingTrace)
    assert recorded.source == "moe_lite.Mixtral"
    assert recorded.layer_names == tuple(f"layers.{i}.block_sparse_moe" for i in range(3))
    assert recorded.tokens == [str(i) for i in ids.flatten().tolist()]
    for kept, routing in zip(recorded.layers, out.routings, strict=True):
        assert routing.gate_N.requires_grad and not kept.gate_N.requires_grad
        assert same(kept, routing.detach())


@pytest.mark.parametrize("batch", [1, 3])
def test_cached_calls_join_to_the_uncached_trace(model, batch):
    ids = torch.randint(40, (batch, 5))
    with trace.record(model) as rec:
        ids = model.generate(ids, 6, temperature=0)
    with trace.record(model) as whole:
        model(ids[:, :-1])
    a, b = rec.trace, whole.trace
    assert a.tokens == b.tokens and len(a.tokens) == 10 * batch
    for x, y in zip(a.layers, b.layers, strict=True):
        assert torch.equal(x.token_N, y.token_N) and torch.equal(x.expert_N, y.expert_N)
        torch.testing.assert_close(x.gate_N, y.gate_N)
        torch.testing.assert_close(x.logits_TE, y.logits_TE, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(x.probs_TE, y.probs_TE)


class ExpertsChoose(nn.Module):
    """Every expert takes the two tokens that score highest, and drops the second."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, width))

    def forward(self, x_TD, **_):
        logits = x_TD @ self.weight.T
        gate, token = logits.softmax(-1).topk(2, dim=0)
        expert = torch.arange(logits.shape[1]).expand(2, -1)
        keep = torch.tensor([[True], [False]]).expand(2, logits.shape[1])
        return Routing(
            logits, logits.softmax(-1), token.reshape(-1), expert.reshape(-1),
            gate.reshape(-1), keep.reshape(-1),
        )  # fmt: skip


def test_calls_join_whoever_chooses(model):
    for layer in model.layers:
        layer.block_sparse_moe.gate = ExpertsChoose(16, 6)
    calls = [torch.randint(40, (2, length)) for length in (4, 3)]
    with trace.record(model) as rec:
        parts = [model(ids).routings for ids in calls]
    assert rec.trace.text_T.tolist() == [0] * 4 + [1] * 4 + [2] * 3 + [3] * 3
    assert rec.trace.position_T.tolist() == [0, 1, 2, 3] * 2 + [0, 1, 2] * 2
    for i, joined in enumerate(rec.trace.layers):
        assert joined.per_token is None and joined.keep_N is not None
        expected = torch.cat([p[i].gates_TE() for p in parts])
        torch.testing.assert_close(joined.gates_TE(), expected.detach())
        assert joined.token_N.tolist() == sorted(joined.token_N.tolist())


def test_a_noisy_gate_is_recorded_with_its_smooth_load(model):
    for layer in model.layers:
        layer.block_sparse_moe.gate = NoisyTopKRouter(16, 6, 2)
    calls = [torch.randint(40, (2, length)) for length in (4, 3)]
    with trace.record(model) as rec:
        parts = [model(ids).routings[0] for ids in calls]
    (joined, *_) = rec.trace.layers
    assert not joined.smooth_load_TE.requires_grad
    expected = torch.cat([p.smooth_load_TE for p in parts])
    torch.testing.assert_close(joined.smooth_load_TE, expected.detach())
    quiet = replace(parts[1], smooth_load_TE=None)
    places = torch.arange(8), torch.arange(8, 14)
    assert trace._join([*zip((parts[0], quiet), places, strict=True)], 14).smooth_load_TE is None


def test_dropped_and_dropless_calls_join(model):
    a = Routing.from_choices(*(torch.rand(2, 3),) * 2, torch.tensor([[0], [1]]), torch.rand(2, 1))
    b = Routing.from_choices(
        *(torch.rand(1, 3),) * 2,
        torch.tensor([[2]]),
        torch.rand(1, 1),
        keep_N=torch.tensor([False]),
    )
    joined = trace._join([(a, torch.tensor([0, 1])), (b, torch.tensor([2]))], 3)
    assert joined.keep_N.tolist() == [True, True, False] and joined.per_token == 1
    assert joined.expert_N.tolist() == [0, 1, 2]


def test_batches_of_differing_sizes_are_texts_of_their_own(model):
    with trace.record(model) as rec:
        model(IDS)
        model(IDS.repeat(2, 1))
    assert rec.trace.text_T.tolist() == [0] * 8 + [1] * 8 + [2] * 8


# --------------------------------------------------------------------------- strings


def test_tokens_as_text(model):
    class Tokenizer:
        def decode(self, ids):
            [i] = ids
            return "abcdefghij"[i]

        def __call__(self, text):
            raise AssertionError("a tokenizer is not asked to encode")

    for tokenizer in (Tokenizer(), lambda ids: ["abcdefghij"[i] for i in ids]):
        with trace.record(model, tokenizer) as rec:
            model(IDS)
        assert "".join(rec.trace.tokens) == "dbebfjcg"
    with (
        pytest.raises(ValueError, match="must have decode or be a function, not 7"),
        trace.record(model, 7),
    ):
        pass


def test_a_real_tokenizer(model):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(["to", "be", "or", "not"])}, "to")
    )
    with trace.record(model, tokenizer) as rec:
        model(torch.tensor([[0, 1, 2, 3, 0, 1]]))
    assert rec.trace.tokens == ["to", "be", "or", "not", "to", "be"]


def test_a_tokenizer_of_mixtrals_kind_keeps_spaces_and_bytes(model):
    """Decoded one by one, its tokens would lose the space before them and show no byte."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["<unk>", "<0xC3>", "<0xA9>", "\u2581To", "\u2581be", ",", "\u2581or"]
    bpe = tokenizers.models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True)
    own = tokenizers.Tokenizer(bpe)
    own.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.ByteFallback(),
         tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    for tokenizer in (own, transformers.PreTrainedTokenizerFast(tokenizer_object=own)):
        with trace.record(model, tokenizer) as rec:
            model(torch.tensor([[3, 4, 5, 6, 4, 1, 2]]))
        assert rec.trace.tokens == [" To", " be", ",", " or", " be", "⟨C3⟩", "⟨A9⟩"]


def test_the_attention_mask_of_a_call_becomes_the_mask_of_the_trace():
    model = theirs("mixtral").eval()
    ids, mask = torch.randint(1, 40, (2, 6)), torch.ones(2, 6, dtype=int)
    mask[1, 3:] = 0
    with trace.record(model) as rec, torch.no_grad():
        model(ids, attention_mask=mask)
    with trace.record(model) as alone, torch.no_grad():
        model(ids[:1])
        model(ids[1:, :3])
    for padded, bare in zip(rec.trace.layers, alone.trace.layers, strict=True):
        assert padded.mask_T.tolist() == mask.bool().flatten().tolist()
        torch.testing.assert_close(padded.load_E(), bare.load_E())
        torch.testing.assert_close(load_balancing_loss(padded), load_balancing_loss(bare))


def test_a_text_whose_beginning_was_not_recorded_is_refused():
    model = theirs("mixtral").eval()
    with torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3]])).past_key_values
    with (
        pytest.raises(ValueError, match="the 3 tokens in this call's cache were read before rec"),
        trace.record(model),
    ):
        model(torch.tensor([[4]]), past_key_values=cache)


def test_a_decoder_beside_an_encoder_is_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.SwitchTransformersConfig(
        vocab_size=40, d_model=16, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2,
        d_kv=8, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    with trace.record(model) as rec, torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), decoder_input_ids=torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match="it reads another text, as an encoder does"):
        _ = rec.trace


# --------------------------------------------------------------------------- manners


def test_hooks_are_gone_even_after_an_exception(model):
    with pytest.raises(RuntimeError, match="mine"), trace.record(model):
        assert count_hooks(model) == 5
        raise RuntimeError("mine")
    assert count_hooks(model) == 0


def test_nothing_recorded(model):
    with trace.record(model) as rec:
        with pytest.raises(ValueError, match="nothing was recorded: call the model inside"):
            _ = rec.trace
        model(IDS)
        assert len(rec.trace.tokens) == 8
        model(IDS)
        assert len(rec.trace.tokens) == 16
    model(IDS)
    assert len(rec.trace.tokens) == 16


def test_nested_recordings_see_what_they_enclose(model):
    with trace.record(model) as outer:
        model(IDS)
        with trace.record(model) as inner:
            model(IDS[:, :3])
    assert len(outer.trace.tokens) == 11 and len(inner.trace.tokens) == 3


def test_a_part_of_a_model_can_be_recorded():
    transformers = pytest.importorskip("transformers")
    model = theirs("mixtral")
    assert isinstance(model.model, transformers.MixtralModel)
    with trace.record(model.model) as rec:
        model(IDS)
    assert rec.trace.layer_names[0] == "layers.0.mlp"


def test_calls_that_cannot_be_traced(model):
    layer = model.layers[0].block_sparse_moe
    assert isinstance(layer, MoELayer)
    with (
        trace.record(layer),
        pytest.raises(ValueError, match="a trace needs the token ids"),
    ):
        layer(torch.rand(1, 2, 16))
    with (
        trace.record(model),
        pytest.raises(ValueError, match=r"layers.0.block_sparse_moe ran outside the recorded"),
    ):
        layer(torch.rand(1, 2, 16))
    with trace.record(model) as rec, pytest.raises(RuntimeError):
        handle = model.layers[1].register_forward_pre_hook(lambda *a: 1 / 0)
        try:
            model(IDS)
        except ZeroDivisionError as error:
            raise RuntimeError from error
        finally:
            handle.remove()
    with pytest.raises(ValueError, match=r"did not reach layers.1.block_sparse_moe"):
        _ = rec.trace


@pytest.mark.parametrize("name", ["ours", "mixtral"])
def test_nan_is_named_with_its_layer(model, name):
    if name == "mixtral":
        model = theirs("mixtral")
    [weight] = [p for n, p in model.named_parameters() if "layers.1." in n and "gate.weight" in n]
    with torch.no_grad():
        weight[3, 0] = torch.nan
    with (
        trace.record(model),
        pytest.raises(ValueError, match=r"layers\.1\..*: the router's logits"),
    ):
        model(IDS)
    assert count_hooks(model) == 0


def test_nan_is_named_where_the_layer_does_not_look(model, monkeypatch):
    """As on a GPU, where looking would mean waiting."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    model.layers[2].block_sparse_moe.gate.weight.data[3, 0] = torch.nan
    model(IDS)
    with (
        trace.record(model),
        pytest.raises(ValueError, match=r"layers\.2\.block_sparse_moe: the router's logits"),
    ):
        model(IDS)


def test_recording_leaves_gradients_alone(model):
    model(IDS).logits_BSV.sum().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    with trace.record(model):
        model(IDS).logits_BSV.sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, plain[name])


def test_gradient_checkpointing_is_recorded_once():
    model = theirs("mixtral").train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with trace.record(model) as rec:
        losses = [model(ids, labels=ids).loss for ids in (IDS, IDS[:, :3])]
        torch.stack(losses).sum().backward()  # runs every layer once more
    assert [layer.num_tokens for layer in rec.trace.layers] == [11, 11, 11]


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        outline = Mixtral(SMALL)
    told = pytest.raises(ValueError, match="Mixtral is on the meta device: it has shapes, no w")
    with told, trace.record(outline):
        pass
