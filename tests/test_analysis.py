"""The measures against what they must give: where the answer is known, and where it is nothing."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from moe_lite.course import analysis
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace, record


def trace_of(experts, E: int, tokens=None) -> RoutingTrace:
    """Make a trace from (L, T, K) experts, best first."""
    experts_LTK = torch.as_tensor(experts)
    T = experts_LTK.shape[1]
    layers = []
    for expert_TK in experts_LTK:
        logits_TE = torch.zeros(T, E)
        gate_TK = torch.full(expert_TK.shape, 1 / expert_TK.shape[1])
        layers.append(Routing.from_choices(logits_TE, logits_TE + 1 / E, expert_TK, gate_TK))
    names = tuple(f"layer {i}" for i in range(len(layers)))
    return RoutingTrace(tokens or [str(t) for t in range(T)], tuple(layers), names, "a test")


def uniform(L: int, T: int, E: int, K: int, seed: int = 0) -> RoutingTrace:
    """Route each token to K experts drawn without replacement."""
    random = torch.Generator().manual_seed(seed)
    return trace_of(torch.rand(L, T, E, generator=random).argsort(-1)[..., :K], E)


@st.composite
def cases(draw):
    """Draw a trace of some layers, labels for its tokens, and another naming of the experts."""
    E = draw(st.integers(2, 6))
    K, L, texts = draw(st.integers(1, E)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 10**6))
    trace = uniform(L, 6 * texts, E, K, seed)
    random = torch.Generator().manual_seed(seed)
    label_T = torch.randint(0, draw(st.integers(1, 4)), (6 * texts,), generator=random)
    name_LE = torch.rand(L, E, generator=random).argsort(-1)
    return trace, label_T, name_LE


def renamed(trace: RoutingTrace, name_LE) -> RoutingTrace:
    layers = [
        replace(layer, expert_N=name_E[layer.expert_N])
        for layer, name_E in zip(trace.layers, name_LE, strict=True)
    ]
    return replace(trace, layers=tuple(layers))


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(a, b):
    torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-9, atol=1e-9)


# --- what holds for every trace ------------------------------------------------------------------


@given(cases())
@settings(max_examples=60, deadline=None)
def test_the_names_of_experts_change_nothing(case):
    trace, label_T, name_LE = case
    other = renamed(trace, name_LE)
    for measure in (
        lambda t: analysis.mutual_information(t, label_T),
        lambda t: analysis.mutual_information(t, label_T, choice="first"),
        lambda t: analysis.mutual_information(t, label_T, given_T=label_T // 2),
        lambda t: analysis.permuted_information(t, label_T, range(2), block=6),
        lambda t: analysis.permuted_information(t, label_T, range(2), within_T=label_T // 2),
        lambda t: analysis.repetition(t, 6),
        lambda t: analysis.repetition(t, 3, "any"),
        lambda t: analysis.saturation(analysis.shuffled(t, 1), t),
        lambda t: analysis.specialization(t, label_T).sort(-1).values,
        lambda t: analysis.coactivation(t).flatten(1).sort(-1).values,
    ):
        same(measure(trace), measure(other))
    for layer, name_E in enumerate(name_LE):  # and where experts are shown, they move with them
        for measure in (
            lambda t: analysis.specialization(t, label_T, per="token"),
            lambda t: analysis.vocabulary_specialization(t, torch.zeros_like(label_T), 1)[:, None],
        ):
            same(measure(trace)[layer], measure(other)[layer][:, name_E])
        both = analysis.coactivation(other)[layer][name_E][:, name_E]
        same(analysis.coactivation(trace)[layer], both)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_bounds(case):
    trace, label_T, _ = case
    E, K = trace.layers[0].num_experts, trace.layers[0].per_token
    entropy = analysis._entropy(label_T.bincount().double())
    for choice in ("all", "first"):
        bits_L = analysis.mutual_information(trace, label_T, choice=choice)
        assert (bits_L >= 0).all() and (bits_L <= entropy + 1e-9).all()
        assert (bits_L <= math.log2(E) + 1e-9).all()
    rows = analysis.specialization(trace, label_T)
    used = label_T.bincount() > 0
    same(rows[:, used].sum(-1), torch.ones(len(rows), int(used.sum())).double())
    assert rows[:, ~used].isnan().all()
    same(analysis.specialization(trace, label_T, per="token"), K * rows)
    same(analysis.saturation(trace, trace), torch.ones(len(rows)).double())
    both = analysis.coactivation(trace)
    used_LE = both.diagonal(dim1=1, dim2=2) == 1
    assert used_LE.sum() >= K * len(rows)
    same(both.nansum(-1), K * used_LE.double())  # each token of an expert has K - 1 others


# --- chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("E", "K"), [(8, 2), (8, 1), (16, 4)])
def test_a_random_router_scores_chance(E, K):
    T = 20_000
    trace, label_T = uniform(2, T, E, K), torch.arange(T) % 5
    rows = analysis.specialization(trace, label_T)
    assert (rows - 1 / E).abs().max() < 0.02
    both = analysis.coactivation(trace)[0]
    off = both[~torch.eye(E, dtype=torch.bool)]
    assert (off - (K - 1) / (E - 1)).abs().max() < 0.05
    first = analysis.repetition(trace, 100)
    assert (first - 1 / E).abs().max() < 0.01
    any_ = analysis.repetition(trace, 100, "any")
    assert (any_ - analysis.repetition_chance(E, K)).abs().max() < 0.015
    later = uniform(2, T, E, K, seed=1)
    assert (analysis.saturation(later, trace) - K / E).abs().max() < 0.01
    assert (analysis.saturation(later, trace, k=1) - 1 / E).abs().max() < 0.01
    bias = 4 * (E - 1) / (2 * T * K * math.log(2))
    assert analysis.mutual_information(trace, label_T).max() < 3 * bias


def test_chance_as_the_paper_prints_it():
    assert analysis.repetition_chance(8, 2) == pytest.approx(1 - 6 / 8 * 5 / 7)
    assert analysis.repetition_chance(8) == 1 / 8
    assert analysis.repetition_chance(3, 2) == 1


def test_the_permutation_null_is_centred():
    """Where labels mean nothing, their information lies among that of permuted labels."""
    ranks = []
    for seed in range(40):
        trace = uniform(1, 300, 4, 2, seed)
        label_T = torch.arange(300) % 3
        null = analysis.permuted_information(trace, label_T, range(19), choice="first")
        ranks.append(int((null[:, 0] < analysis.mutual_information(
            trace, label_T, choice="first")[0]).sum()))  # fmt: skip
    mean = sum(ranks) / len(ranks)  # uniform on 0..19: 9.5, standard error 0.9
    assert 6.5 < mean < 12.5
    assert min(ranks) < 4 and max(ranks) > 15


def test_texts_are_shuffled_whole():
    """A router that follows the text looks informed of a text's label; blocks show it is not."""
    random = torch.Generator().manual_seed(0)
    expert_T = torch.randint(0, 4, (12,), generator=random).repeat_interleave(50)
    label_T = torch.arange(12).repeat_interleave(50) % 3
    trace = trace_of(expert_T[None, :, None], 4)
    bits = analysis.mutual_information(trace, label_T)[0]
    tokens = analysis.permuted_information(trace, label_T, range(30))
    texts = analysis.permuted_information(trace, label_T, range(30), block=50)
    assert tokens.max() < bits / 5  # as if 600 tokens spoke for themselves
    assert texts.min() < bits < texts.max()  # but it is 12 texts


def test_a_router_by_word_is_explained_by_word():
    """Where experts follow words and words follow domains, the matched null takes it all."""
    random = torch.Generator().manual_seed(0)
    domain_T = torch.arange(6000) % 2
    word_T = torch.where(
        torch.rand(6000, generator=random) < 0.8, domain_T, 1 - domain_T
    ) * 3 + torch.randint(0, 3, (6000,), generator=random)
    by_word = trace_of(word_T[None, :, None], 6)
    bits = analysis.mutual_information(by_word, domain_T)[0]
    free = analysis.permuted_information(by_word, domain_T, range(9))
    within = analysis.permuted_information(by_word, domain_T, range(9), within_T=word_T)
    assert bits > 0.2 and free.max() < 0.01
    same(within, bits.expand_as(within))  # a shuffle among equal words changes no count
    assert analysis.mutual_information(by_word, domain_T, given_T=word_T)[0] < 1e-9
    by_domain = trace_of((2 * word_T + domain_T)[None, :, None], 12)
    left = analysis.mutual_information(by_domain, domain_T, given_T=word_T)[0]
    matched = analysis.permuted_information(by_domain, domain_T, range(9), within_T=word_T)
    assert left > 0.5 and matched.max() < 0.35  # the words alone
    assert analysis.mutual_information(by_domain, domain_T)[0] == pytest.approx(1)


# --- the maximum ---------------------------------------------------------------------------------


def test_a_router_that_follows_the_label_scores_the_maximum():
    label_T = torch.arange(80) % 4
    trace = trace_of(torch.stack([3 - label_T, 3 + label_T], -1)[None], 8)
    assert analysis.mutual_information(trace, label_T, choice="first")[0] == pytest.approx(2)
    rows = analysis.specialization(trace, label_T, choice="first")
    same(rows[0, :, :4], torch.eye(4).flip(0).double())
    spec = analysis.vocabulary_specialization(trace, label_T)
    same(spec[0, :4], torch.ones(4).double())
    assert spec[0, 4:].isnan().all()


# --- by hand -------------------------------------------------------------------------------------

HAND = trace_of([[[0, 1], [0, 2], [1, 0], [2, 1]]], 3)


def test_by_hand():
    same(analysis.repetition(HAND, 4), f64([1 / 3]))
    same(analysis.repetition(HAND, 4, "any"), f64([1.0]))
    same(analysis.repetition(HAND, 2), f64([0.5]))  # no pair across texts
    rows = analysis.specialization(HAND, [0, 0, 1, 1])
    same(rows[0], f64([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
    both = analysis.coactivation(HAND)[0]
    thirds = f64([[1, 2 / 3, 1 / 3], [2 / 3, 1, 1 / 3], [0.5, 0.5, 1]])
    same(both, thirds)
    early = trace_of([[[1, 0], [1, 2], [2, 0], [0, 1]]], 3)
    same(analysis.saturation(early, HAND), f64([5 / 8]))
    same(analysis.saturation(early, HAND, k=1), f64([0.0]))
    spec = analysis.vocabulary_specialization(HAND, [7, 7, 9, 9], min_count=2)
    same(spec[0, 0], f64(1.0))
    assert analysis.choices_LTK(HAND).tolist()[0] == [[0, 1], [0, 2], [1, 0], [2, 1]]


def test_a_balanced_expert_may_carry_little():
    """Two tokens' second choice: half of the pairs, 15% of the gates; and none where it is full."""
    expert_TK, gate_TK = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    logits_TE = torch.zeros(2, 3)
    routing = Routing.from_choices(logits_TE, logits_TE + 1 / 3, expert_TK, gate_TK)
    trace = RoutingTrace(["a", "b"], (routing,), ("layer 0",), "a test")
    torch.testing.assert_close(analysis.gate_mass(trace), f64([[0.45, 0.4, 0.15]]))
    full = replace(routing, keep_N=routing.expert_N != 2)
    kept = analysis.gate_mass(replace(trace, layers=(full,)))
    torch.testing.assert_close(kept, f64([[0.9 / 1.7, 0.8 / 1.7, 0]]))


def test_dropped_and_unlabelled_tokens_do_not_count():
    keep_N = torch.tensor([True, False, True, True, True, True, False, False])
    dropped = replace(HAND, layers=(HAND.layers[0].kept(keep_N),))
    assert analysis.choices_LTK(dropped)[0].tolist() == [[0, -1], [0, 2], [1, 0], [-1, -1]]
    rows = analysis.specialization(dropped, [0, 0, 1, 1])
    same(rows[0], f64([[2 / 3, 0, 1 / 3], [0.5, 0.5, 0]]))
    same(analysis.repetition(dropped, 4), f64([1 / 3]))
    same(analysis.saturation(HAND, dropped), f64([1.0]))
    same(analysis.saturation(dropped, HAND), f64([5 / 8]))
    same(
        analysis.vocabulary_specialization(HAND, [-1, -1, 4, 4], 2)[0],
        f64([math.nan, 0.5, 0.5]),  # a tie: half for each
    )
    same(
        analysis.specialization(HAND, [0, -1, -1, 1]),
        analysis.specialization(trace_of([[[0, 1], [2, 1]]], 3), [0, 1]),
    )


def test_a_shuffled_trace_keeps_each_texts_experts():
    trace = uniform(2, 60, 5, 2)
    mixed = analysis.shuffled(trace, 0, length=20)
    for layer, other in zip(trace.layers, mixed.layers, strict=True):
        assert not torch.equal(layer.expert_N, other.expert_N)
        for text in range(3):
            part = slice(40 * text, 40 * text + 40)
            assert torch.equal(
                layer.expert_N[part].bincount(minlength=5),
                other.expert_N[part].bincount(minlength=5),
            )
    runs = trace_of(torch.arange(4).repeat_interleave(50)[None, :, None] % 2, 2)
    assert analysis.repetition(runs, 200)[0] > 0.98
    assert abs(analysis.repetition(analysis.shuffled(runs, 0), 200)[0] - 0.5) < 0.1


# --- models of others ----------------------------------------------------------------------------

SIZES = dict(
    vocab_size=30, hidden_size=16, intermediate_size=12, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip


def theirs(name: str):
    """Make an untrained model of a published family, in small: OLMoE's top 8, Qwen3-MoE's."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "Mixtral":
        config = transformers.MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2)
    elif name == "Olmoe":
        config = transformers.OlmoeConfig(
            **SIZES, num_experts=16, num_experts_per_tok=8, norm_topk_prob=False
        )
    else:
        config = transformers.Qwen3MoeConfig(
            **SIZES, num_experts=12, num_experts_per_tok=4, norm_topk_prob=True, head_dim=8,
            moe_intermediate_size=12, decoder_sparse_step=1, mlp_only_layers=[0],
        )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("name", "L", "E", "K"), [("Mixtral", 3, 8, 2), ("Olmoe", 3, 16, 8), ("Qwen3Moe", 2, 12, 4)]
)
@torch.no_grad()
def test_every_measure_reads_the_models_of_others(name, L, E, K):
    model, ids_BS = theirs(name), torch.arange(60).view(3, 20) % 7 + 1
    with record(model) as rec:
        logits_TE = model(ids_BS, output_router_logits=True).router_logits[-1]
    trace, ids_T = rec.trace, ids_BS.flatten()
    sums_T = trace.layers[-1].gate_N.view(-1, K).sum(-1)
    assert torch.allclose(sums_T, torch.ones(60)) == (name != "Olmoe")  # its gates sum to less
    order_TE = logits_TE.argsort(-1, descending=True)
    choices = analysis.choices_LTK(trace)
    assert choices.shape == (L, 60, K) and torch.equal(choices[-1], order_TE[:, :K])

    rows = analysis.specialization(trace, ids_T, per="token")  # by hand, from the logits
    used_TE = torch.zeros(60, E).scatter_(1, order_TE[:, :K], 1.0).double()
    for token in range(1, 8):
        same(rows[-1, token], used_TE[ids_T == token].mean(0))
    both = used_TE.T @ used_TE
    same(analysis.coactivation(trace)[-1], both / both.diagonal()[:, None])
    met_BS = (used_TE.view(3, 20, E)[:, 1:] * used_TE.view(3, 20, E)[:, :-1]).sum(-1) > 0
    same(analysis.repetition(trace, 20, "any")[-1], met_BS.double().mean())
    first_BS = order_TE[:, 0].view(3, 20)
    again = (first_BS[:, 1:] == first_BS[:, :-1]).double().mean()
    same(analysis.repetition(trace, 20)[-1], again)

    same(analysis.saturation(trace, trace, k=1), torch.ones(L).double())
    assert analysis.vocabulary_specialization(trace, ids_T, 5).shape == (L, E)
    bits = analysis.mutual_information(trace, ids_T, choice="first")
    null = analysis.permuted_information(trace, ids_T, range(5), choice="first")
    assert null.shape == (5, L) and bits[0] > null[:, 0].max()  # untrained, and yet by the word


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.specialization(HAND, [0, 1]), "2 labels do not fit 4 tokens"),
        (lambda: analysis.specialization(HAND, [0, 0, 0, 5], 3), "label 5 is not among 3"),
        (lambda: analysis.specialization(HAND, [-1] * 4), "label -1 is not among"),
        (lambda: analysis.repetition(HAND, 3), "4 tokens are no whole number of texts of 3"),
        (lambda: analysis.repetition(HAND, 1), "a text needs two tokens"),
        (lambda: analysis.saturation(HAND, HAND, k=3), "k must be between 1 and the 2"),
        (lambda: analysis.saturation(uniform(1, 5, 3, 2), HAND), "the same tokens"),
        (lambda: analysis.vocabulary_specialization(HAND, [0, 1, 2, 3], 2), "no token id occurs"),
        (lambda: analysis.permuted([0, 1], 0, block=2, within_T=[0, 0]), "not both"),
        (lambda: analysis.permuted([0, 1, 2], 0, block=2), "whole number of texts"),
        (lambda: analysis.mutual_information(HAND, [0] * 4, choice="best"), "choice must be"),
        (lambda: analysis.specialization(HAND, [0] * 4, per="text"), "per must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_experts_that_choose_have_no_first_choice():
    chosen = replace(HAND, layers=(replace(HAND.layers[0], per_token=None),))
    with pytest.raises(ValueError, match="tokens have no list"):
        analysis.choices_LTK(chosen)
    with pytest.raises(ValueError, match="there is no first choice"):
        analysis.mutual_information(chosen, [0] * 4, choice="first")
    same(analysis.coactivation(chosen), analysis.coactivation(HAND))
    same(analysis.specialization(chosen, [0] * 4), analysis.specialization(HAND, [0] * 4))


# --- a text read back from its routes ------------------------------------------------------------


def test_a_route_is_the_experts_their_order_and_the_part_of_the_gate():
    trace = trace_of([[[0, 1], [1, 0], [0, 1]], [[2, 1], [2, 1], [1, 2]]], 3)
    ordered, anyhow = analysis.routes_TL(trace), analysis.routes_TL(trace, ordered=False)
    assert [len(route.unique()) for route in (*ordered.T, *anyhow.T)] == [2, 2, 1, 1]
    assert ordered.max() < 9 and ordered.shape == (3, 2)
    gates = replace(trace.layers[0], gate_N=torch.tensor([0.9, 0.1, 0.9, 0.1, 0.6, 0.4]))
    trace = replace(trace, layers=(gates, trace.layers[1]))
    told = analysis.routes_TL(trace, gate_bins=4)
    assert len(told[:, 0].unique()) == 3 and len(told[:, 1].unique()) == 2 and told.max() < 36


def test_reading_back_is_bayes_rule_by_hand():
    """Word 0 came twice, by routes 1 and 1; word 1 once, by 0; word 2 never."""
    score_NV = analysis.read_back(
        torch.tensor([[1], [0], [1]]), torch.tensor([0, 1, 0]), torch.tensor([[1], [0]]), 3, 2
    )
    wanted = torch.tensor([[3 / 6 * 2.5 / 3, 2 / 6 * 0.5 / 2, 1 / 6 * 0.5],
                           [3 / 6 * 0.5 / 3, 2 / 6 * 1.5 / 2, 1 / 6 * 0.5]])  # fmt: skip
    torch.testing.assert_close(score_NV.exp(), wanted)


def test_what_is_read_back_is_there_and_nothing_else():
    """Each word has its own route, or routes are dealt out: every word, or the most frequent."""
    rng = torch.Generator().manual_seed(0)
    word_T = torch.randint(9, (400,), generator=rng) % 7  # words 0 and 1 come twice as often
    own_TL = torch.stack([word_T % 3, word_T % 4], 1)  # only both layers together tell
    dealt_TL = own_TL[torch.randperm(400, generator=rng)]

    def right(route_TL, layers):
        score_NV = analysis.read_back(route_TL[:300, layers], word_T[:300], route_TL[300:, layers],
                                      7, 4)  # fmt: skip
        return (score_NV.argmax(1) == word_T[300:]).float().mean()

    assert right(own_TL, [0, 1]) == 1 and right(own_TL, [0]) < 0.6
    assert right(dealt_TL, [0, 1]) < 0.35  # the most frequent word has 2 in 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: analysis.read_back(x, torch.tensor([0, 3]), x, 3, 5), "a word must be .* 0, 3"),
        (lambda x: analysis.read_back(x, torch.tensor([0, 1]), x + 9, 3, 5), "a route must be"),
        (lambda x: analysis.routes_TL(replace(HAND, layers=tuple(
            replace(one, keep_N=torch.zeros_like(one.expert_N).bool()) for one in HAND.layers))),
         "a choice was dropped"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_back_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([[0], [1]]))
