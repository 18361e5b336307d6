"""The film of a training run: what was routed at each step, kept and given back."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course import recipes
from moe_lite.course.data import load_corpus
from moe_lite.course.film import Film, filmed, log_steps
from moe_lite.model import Mixtral
from moe_lite.routers import SwitchRouter
from moe_lite.train import train

CONFIG = MixtralConfig(
    vocab_size=4096, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=5, num_experts_per_tok=2,
    max_position_embeddings=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(("prose", "arithmetic"), max_bytes=60_000)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mixtral(CONFIG)


@pytest.mark.parametrize("last", [1, 2, 23, 24, 100, 4000, 10**6])
def test_steps_are_whole_rising_and_as_many_as_fit(last):
    steps = log_steps(last, 24)
    assert steps[0] == 0 and steps[-1] == last
    assert all(a < b for a, b in pairwise(steps))
    assert min(24, last + 1) <= len(steps) <= 25
    if last > 1000:
        ratios = [b / a for a, b in pairwise(steps[-6:])]
        assert max(ratios) / min(ratios) < 1.05


@pytest.mark.parametrize("wrong", [(0, 24), (10, 1)])
def test_a_film_without_steps_is_refused(wrong):
    with pytest.raises(ValueError, match="a film needs a step and two frames"):
        log_steps(*wrong)


def test_a_factor_on_the_gates_is_kept_and_goes_with_an_export(corpus, model, tmp_path):
    plain, film = (Film.of(corpus, [0], length=20) for _ in range(2))
    plain.take(model, 0)
    for layer in model.moe_layers:
        layer.gate.gate_scale = 2.5
    film.take(model, 0)
    assert film.logits and not film.routings  # as small as Mixtral's own
    want = plain.trace(0).layers[0].gate_N
    film.save(tmp_path / "run.safetensors")
    recipes.export(model, corpus.tokenizer, tmp_path / "model", film=film)
    for path, factor in (("run.safetensors", 2.5), (f"model/{recipes.FILM}", 1.0)):
        got = Film.load(tmp_path / path).trace(0).layers[0]
        torch.testing.assert_close(got.gate_N, factor * want, atol=3e-3, rtol=3e-3)
    torch.testing.assert_close(film.trace(0).layers[0].gate_N, 2.5 * want, atol=3e-3, rtol=3e-3)


def test_a_frame_is_what_the_model_did(corpus, model):
    film = Film.of(corpus, [3], length=20)
    assert film.ids_BS.shape == (4, 20) and film.domain_BS[:, 0].tolist() == [0, 0, 1, 1]
    assert not film.take(model, 2) and film.steps == []
    model.train()
    assert film.take(model, 3) and model.training and film.steps == [3]
    _, routings = model.eval().hidden(film.ids_BS)
    trace = film.trace(3)
    assert trace.tokens == film.tokens and len(trace.layers) == 2
    for filmed_layer, routing in zip(trace.layers, routings, strict=True):
        assert (filmed_layer.expert_N == routing.expert_N).float().mean() > 0.99
        torch.testing.assert_close(filmed_layer.gates_TE(), routing.gates_TE(), atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match=r"no frame at step 4, only at \[3\]"):
        film.trace(4)


def test_a_film_comes_back_whole_or_up_to_a_step(corpus, model, tmp_path):
    film = Film.of(corpus, [0, 1, 2], length=20)
    history = train(
        model, corpus, TrainConfig(steps=2, batch_size=2, seq_len=16), progress=False,
        callback=filmed(film, model, tmp_path / "film.safetensors"),
    )  # fmt: skip
    assert len(history) == 2
    back = Film.load(tmp_path / "film.safetensors")
    assert back.steps == [1, 2] and back.wanted == [0, 1, 2] and back.top_k == 2
    assert back.tokens == film.tokens and back.domains == ("prose", "arithmetic")
    assert back.ids_BS.equal(film.ids_BS) and back.domain_BS.equal(film.domain_BS)
    assert all(back.logits[step].equal(film.logits[step]) for step in (1, 2))
    assert not back.logits[1].equal(back.logits[2])
    assert Film.load(tmp_path / "film.safetensors", until=1).steps == [1]


def test_what_is_no_film_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no film.safetensors in"):
        Film.load(tmp_path / "film.safetensors")
    (tmp_path / "film.safetensors").write_bytes(b"not a film")
    with pytest.raises(ValueError, match="not a readable safetensors file: ") as error:
        Film.load(tmp_path / "film.safetensors")
    assert "\n" not in str(error.value)


def test_a_dense_model_leaves_no_frame(corpus):
    assert not Film.of(corpus, [0], length=20).take(Mixtral(CONFIG.dense()), 0)


def test_a_recipe_with_frames_leaves_its_film(tmp_path, monkeypatch):
    recipe = recipes.Recipe(
        CONFIG, TrainConfig(steps=3, batch_size=2, seq_len=16, checkpoint_every=1),
        domains=("prose",), max_bytes=60_000, frames=3,
    )  # fmt: skip
    monkeypatch.setitem(recipes.RECIPES, "filmed", recipe)
    command = [
        "--config",
        "filmed",
        "--out",
        str(tmp_path / "run"),
        "--export",
        str(tmp_path / "x"),
    ]
    assert recipes.main(command) == 0
    first = Film.load(tmp_path / "run" / recipes.FILM)
    assert first.steps == [0, 1, 3]
    again = Film.load(tmp_path / "x" / recipes.FILM)
    assert all(first.logits[step].equal(again.logits[step]) for step in first.steps)


def spoilt(path, words=None, **tensors):
    """Write a film with other words or tensors; None takes one away, "__" stands for a dot."""
    film = Film(torch.zeros(1, 4).long(), torch.zeros(1, 4).long(), ("a",), list("abcd"), [0], 2)
    film.logits = {0: torch.zeros(1, 4, 3).half(), 1: torch.zeros(1, 4, 3).half()}
    film.save(path)
    with safe_open(path, "pt") as file:
        about = file.metadata() | {n: json.dumps(v) for n, v in (words or {}).items()}
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({n: t for n, t in parts.items() if t is not None}, path, about)


@pytest.mark.parametrize(
    ("words", "tensors", "told"),
    [
        ({}, {"logits__0": None, "logits__1": None}, "there is no frame"),
        ({"top_k": 4}, {}, "top_k is 4, of 3 experts"),
        ({"top_k": "2"}, {}, "top_k must be a whole number, not '2'"),
        ({"tokens": ["a"]}, {}, "tokens are 1, but ids_BS has 4"),
        ({"domains": []}, {}, "domain_BS names a domain that is none of 0"),
        ({}, {"logits__1": torch.zeros(2, 4, 3).half()}, r"frames have \(L, T, E\)"),
        ({}, {"logits__1": torch.full((1, 4, 3), torch.nan).half()}, "logits.1 are not finite"),
        ({}, {"logits__x": torch.zeros(1)}, "is not a film: it has 'logits.x'"),
        ({}, {"ids_BS": None}, "is not a film: it lacks ids_BS"),
        (
            {},
            {"routing__2__0__gate_N": torch.zeros(1).half()},
            "a routing lacks logits_TE, probs_TE",
        ),
    ],
)
def test_a_film_whose_parts_do_not_fit_is_refused(tmp_path, words, tensors, told):
    spoilt(tmp_path / "film.safetensors")
    assert Film.load(tmp_path / "film.safetensors").steps == [0, 1]
    spoilt(tmp_path / "film.safetensors", words, **tensors)
    with pytest.raises(ValueError, match=f"film.safetensors.*{told}"):
        Film.load(tmp_path / "film.safetensors")


@pytest.mark.parametrize("router", [None, SwitchRouter])
def test_scores_too_large_for_half_precision_come_back(corpus, model, tmp_path, router):
    film = Film.of(corpus, [0], length=20)
    with torch.no_grad():
        for layer in model.moe_layers:
            if router is not None:
                layer.gate = router(CONFIG.hidden_size, CONFIG.num_local_experts)
            layer.gate.weight.mul_(1e9)
    assert film.take(model, 0)
    film.save(tmp_path / "film.safetensors")
    trace = Film.load(tmp_path / "film.safetensors").trace(0)
    assert all(routing.logits_TE.isfinite().all() for routing in trace.layers)
