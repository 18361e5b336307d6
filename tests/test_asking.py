"""The explorer with a model behind it: what it answers, what it brings along, what it refuses."""

import json
import re

import numpy as np
import pytest
import torch
from traitlets import TraitError

from moe_lite.config import MixtralConfig
from moe_lite.course.causal import ablate, ban, force, intervene, swap, top_k
from moe_lite.course.data import load_tokenizer, pieces
from moe_lite.course.effects import effect
from moe_lite.course.film import Film
from moe_lite.course.widgets import RoutingExplorer, routing_explorer
from moe_lite.course.widgets.routing_explorer import NO_LOSS, TOP, pack
from moe_lite.model import Mixtral
from moe_lite.routers import NoisyTopKRouter, SigmoidBiasRouter, TopKRouter
from moe_lite.trace import RoutingTrace

TEXT = "To be, or not to be: that is the question."


@pytest.fixture(scope="module")
def model():
    return make_model()


def make_model(**sizes):
    torch.manual_seed(0)
    base = dict(
        vocab_size=4096, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return Mixtral(MixtralConfig(**{**base, **sizes}))


def decode(answer, T):
    """Read an answer as the page does."""
    u2, n = np.frombuffer(answer["data"], "<u2"), T - answer["first"]
    best, before, after, loss = u2[n * TOP :].reshape(4, n)
    words = np.array(answer["words"], dtype=object)
    return u2[: n * TOP].reshape(n, TOP) / 65535, words[best], before / 65535, after / 65535, loss


@pytest.mark.parametrize(
    "made", [[ablate(1, 2)], [ban(0, 1, 3), force(1, 0, 4)], [swap(0, 0, 3)], [top_k(1)]]
)
def test_an_answer_says_what_the_model_says(model, made):
    widget = RoutingExplorer(TEXT, model=model)
    T, tokenizer = len(widget.tokens), load_tokenizer()
    found = widget.ask(*made)
    again = effect(model, torch.tensor([tokenizer.encode(TEXT).ids]), *made)
    assert torch.equal(found.changed.logits_BSV, again.changed.logits_BSV)
    top, best, before, after, loss = decode(widget.answer, T)
    first = widget.answer["first"]
    untouched = widget.answers["[]"]
    u2 = np.frombuffer(untouched["data"], "<u2")
    index, share = u2[: 2 * T * TOP].reshape(2, T, TOP)
    base_TV, changed_TV = (r.log_probs_BSV[0].exp() for r in (again.base, again.changed))
    for t in range(T):
        value, ids = base_TV[t].topk(TOP)
        assert [untouched["words"][i] for i in index[t]] == [
            pieces(tokenizer, [i])[0] for i in ids.tolist()
        ]
        np.testing.assert_allclose(share[t] / 65535, value, atol=1e-5)
        if t < first:  # before the first change nothing travels
            np.testing.assert_allclose(base_TV[t], changed_TV[t], atol=1e-5)
            continue
        np.testing.assert_allclose(top[t - first], changed_TV[t, ids], atol=1e-5)
        likeliest = int(changed_TV[t].argmax())
        assert best[t - first] == pieces(tokenizer, [likeliest])[0]
        assert after[t - first] == pytest.approx(float(changed_TV[t, likeliest]), abs=1e-5)
        assert before[t - first] == pytest.approx(float(base_TV[t, likeliest]), abs=1e-5)
    assert first or loss[0] == NO_LOSS
    seen = slice(max(first, 1), None)
    np.testing.assert_allclose(
        loss[seen.start - first :] / 1000, again.changed.loss_T[seen], atol=6e-4
    )
    moved = 0
    for a, b in zip(again.base.routings, again.changed.routings, strict=True):
        for t in range(T):  # a token's pairs come best first
            moved += int(a.expert_N[a.token_N == t][0] != b.expert_N[b.token_N == t][0])
    assert widget.answer["moved"] == moved


def test_it_goes_on_after_the_selected_token(model):
    widget = RoutingExplorer(TEXT, model=model, selected=4)
    tokenizer = load_tokenizer()
    ids_BS = torch.tensor([tokenizer.encode(TEXT).ids])

    def going_on(t, *made):
        with intervene(model, *made):
            new = model.eval().generate(ids_BS[:, : t + 1], routing_explorer.NEW, temperature=0)
        return "".join(pieces(tokenizer, new[0, t + 1 :].tolist()))

    widget.ask(top_k(1))
    assert widget.answer["next"] == [4, going_on(4), going_on(4, top_k(1))]
    widget.set_state({"selected": 7})  # as a click does
    assert widget.answer["next"] == [7, going_on(7), going_on(7, top_k(1))]
    widget.ask(ablate(0, 1, tokens=[2, 9]))  # token 9 of the old text is not that of the new one
    assert widget.answer["next"][2] == going_on(7, ablate(0, 1, tokens=[2]))


def test_a_page_may_ask_what_python_may(model):
    widget = RoutingExplorer(TEXT, model=model)
    widget.ask(swap(1, 0, 2, tokens=3))
    asked, answer = widget.question, widget.answer
    assert asked == [["swap", 1, 0, 2, 0, [3]]]
    assert json.loads(answer["key"]) == asked
    widget.set_state({"question": []})
    widget.set_state({"question": asked})
    assert widget.answer == answer
    assert widget.effect.interventions == (swap(1, 0, 2, tokens=3),)


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ([["ablate", 9, 0, -1, 0, None]], "layer must be from 0 to 1, not 9"),
        ([["ban", 0, 7, -1, 0, None]], "expert must be from 0 to 3, not 7"),
        ([["force", 0, 1, -1, 0, [99]]], "token 99 is not among"),
        ([["force", 0, 1, -1, 0, [2]], ["ban", 0, 1, -1, 0, None]], "both forced and banned"),
        ([["explode", 0, 1, -1, 0, None]], "one of .*not 'explode'"),
        ([["ablate", 0, 1, -1, 0, [-2]]], "token -2 cannot be"),
    ],
)
def test_a_question_that_cannot_be_is_answered_with_a_sentence(model, question, complaint):
    widget = RoutingExplorer(TEXT, model=model)
    widget.set_state({"question": question})
    assert re.search(complaint, widget.answer["error"])
    widget.ask(ablate(0, 0))  # and the next one is answered
    assert "error" not in widget.answer


def test_text_can_be_typed(model):
    widget = RoutingExplorer(TEXT, model=model, selected=5)
    widget.ask(ablate(0, 1))
    widget.set_state({"text": "x = 3 + 4"})
    assert "".join(widget.tokens) == "x = 3 + 4" == "".join(widget.trace.tokens)
    assert (widget.selected, widget.question, widget.problem) == (-1, [], "")
    assert list(widget.answers) == ["[]"]
    for bad, complaint in (("", "no text"), ("word " * 99, "more than the model's context of 64")):
        widget.set_state({"text": bad})
        assert complaint in widget.problem and "".join(widget.tokens) == "x = 3 + 4"
    widget.set_state({"text": "y"})
    assert widget.problem == "" and widget.tokens == ["y"]


def test_answers_come_along(model):
    widget = RoutingExplorer(TEXT, model=model, selected=3)
    state = json.loads(json.dumps(widget.state(), default=lambda b: len(b)))
    assert state["live"] is False and widget.live is True
    keys = set(state["answers"])
    for n, layer in enumerate(widget.trace.layers):
        for e in range(4):
            assert f'[["ablate",{n},{e},-1,0,null]]' in keys
            used = e in layer.expert_N[layer.token_N == 3]
            assert (f'[["ablate",{n},{e},-1,0,[3]]]' in keys) == used
    assert '[["top_k",null,-1,-1,1,null]]' in keys and len(keys) == 1 + 8 + 4 + 1
    few = RoutingExplorer(TEXT, model=model).precompute(limit=2)
    busiest = max((int(r.load_E().max()), n) for n, r in enumerate(few.trace.layers))[1]
    every = [k for k in few.answers if k.endswith("null]]") and "ablate" in k]
    assert len(every) == 2 and any(k.startswith(f'[["ablate",{busiest},') for k in every)


def test_a_page_with_answers_is_small(monkeypatch, tmp_path):
    """512 tokens, 8 layers of 8 experts, 64 ablations and more: under 1.5 MB."""
    model = make_model(num_hidden_layers=8, num_local_experts=8, max_position_embeddings=600)
    # A continuation is a dozen words; making 81 of them would take longer than all else here.
    monkeypatch.setattr(RoutingExplorer, "_continued", lambda *args: "twelve words " * 5)
    tokenizer, words = (
        load_tokenizer(),
        "It is 3 + 4 = 7 and `def f(x)`, not 名前; said Mr Holmes.\n",
    )
    text = tokenizer.decode(tokenizer.encode(words * 40).ids[:512])
    widget = RoutingExplorer(text, model=model).precompute()
    assert len(widget.tokens) >= 512 and len(widget.answers) >= 64 + 16
    size = widget.to_html(tmp_path / "page.html").stat().st_size
    print(
        f"\n{len(widget.tokens)} tokens x 8 layers, {len(widget.answers)} answers: {size:,} bytes"
    )
    assert size < 1_500_000


def test_a_trace_can_be_asked_about_if_the_text_is_known(model):
    first = RoutingExplorer(TEXT, model=model)
    second = RoutingExplorer(first.trace, model=model)
    assert second.trace is first.trace and second.answers.keys() == first.answers.keys()
    cut = RoutingTrace(
        [*"To be, or not to be: that is the question."],
        tuple(TopKRouter(4, 4)(torch.randn(42, 4)).detach() for _ in range(2)), ("0", "1"), "a",
    )  # fmt: skip
    with pytest.raises(ValueError, match="not what the tokenizer makes of its text"):
        RoutingExplorer(cut, model=model)


def test_what_cannot_be_asked_is_said(model):
    trace = RoutingExplorer(TEXT, model=model).trace
    with pytest.raises(ValueError, match="there is no model to ask"):
        RoutingExplorer(trace).ask(ablate(0, 0))
    with pytest.raises(ValueError, match="a text needs a model"):
        RoutingExplorer(TEXT)
    with pytest.raises(ValueError, match="give a trace, or a text"):
        RoutingExplorer()
    with pytest.raises(ValueError, match="there is no text to run"):
        RoutingExplorer("", model=model)
    with pytest.raises(ValueError, match="tokenizer has 4096 tokens, the model 50"):
        RoutingExplorer(TEXT, model=make_model(vocab_size=50))
    widget = RoutingExplorer(TEXT, model=model)
    with pytest.raises(ValueError, match="layer must be from 0 to 1, not 5"):
        widget.ask(ablate(5, 0))
    assert widget.question == [] and widget.answer == {}


def make_film(T=30, L=3, E=5, steps=(0, 1, 10)):
    ids_BS = torch.arange(T).view(2, -1)
    film = Film(
        ids_BS,
        torch.arange(2)[:, None].expand_as(ids_BS),
        ("drama", "code"),
        [f"t{t} " for t in range(T)],
        list(steps),
    )
    for step in steps:
        film.logits[step] = torch.randn(L, T, E).half()
    return film


def test_a_film_has_a_slider():
    film = make_film()
    widget = RoutingExplorer(film=film)
    assert (widget.frame, widget.film["steps"]) == (2, [0, 1, 10])
    assert widget.film["parts"] == [["drama", 0, 14], ["code", 15, 29]]
    assert "a model in training, steps 0 to 10: 30 tokens" in widget.title
    widget.set_state({"frame": 0})
    assert torch.equal(widget.trace.layers[1].expert_N, film.trace(0).layers[1].expert_N)
    with pytest.raises(TraitError, match="frame must be a frame from 0 to 2, not 3"):
        widget.frame = 3
    with pytest.raises(ValueError, match="or a film"):
        RoutingExplorer(film.trace(0), film=film)
    widget.trace = film.trace(1)
    assert (widget.film, widget.frame) == ({}, 0)


def test_scores_noise_and_bias_travel():
    torch.manual_seed(1)
    noisy, steady, plain = NoisyTopKRouter(4, 3, 1), SigmoidBiasRouter(4, 3), TopKRouter(4, 3)
    steady.bias_E.copy_(torch.tensor([0.25, 0.0, -0.5]))
    with torch.no_grad():
        layers = tuple(r(torch.randn(6, 4)).detach() for r in (noisy, steady, plain))
    state = pack(RoutingTrace([*"abcdef"], layers, ("0", "1", "2"), "a test"))
    read = {
        name: np.frombuffer(state["data"], f"<{kind}", size, offset)
        for name, (kind, offset, size) in state["arrays"].items()
    }
    logits = torch.cat([r.logits_TE.flatten() for r in layers])
    np.testing.assert_allclose(read["logit"] / 100, logits, atol=0.0051)
    np.testing.assert_allclose(read["noise"][:18] / 100, layers[0].noise_TE.flatten(), atol=0.0051)
    assert not read["noise"][18:].any() and np.abs(read["noise"][:18]).max() > 0
    assert read["bias"].tolist() == [0, 0, 0, 0.25, 0, -0.5, 0, 0, 0]
    steady.update(layers[1].load_E())
    assert layers[1].bias_E.tolist() == [0.25, 0.0, -0.5], "a trace keeps the bias as it stood"


def test_beside_another(model):
    one, two = (RoutingExplorer(text, model=model) for text in (TEXT, "x = 1"))
    both = RoutingExplorer(one.trace, beside=two.trace)
    assert both.beside["tokens"] == two.tokens and both.tokens == one.tokens
    assert both.title.startswith("Routing of moe_lite.Mixtral beside moe_lite.Mixtral: ")


def test_a_very_deep_model_gets_fewer_answers_not_minutes(monkeypatch):
    runs = []
    whole = RoutingExplorer(TEXT, model=make_model(num_hidden_layers=40))
    monkeypatch.setattr(whole, "_reply", lambda q: runs.append(q) or {"key": json.dumps(q)})
    whole.precompute()
    usual = len(runs)
    monkeypatch.setattr(routing_explorer, "LAYER_RUNS", 400)
    whole.precompute()
    assert usual > 64 and len(runs) - usual == 400 // 40 + 1  # and one expert per token everywhere
