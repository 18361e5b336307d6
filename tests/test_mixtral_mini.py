"""The trained models in the box: what their cards say, and that others read them alike."""

import json
import re
import statistics
from dataclasses import replace

import pytest
import torch

import moe_lite
from experiments import recipe as axes
from moe_lite import hf
from moe_lite.checked import read_json
from moe_lite.course import leads
from moe_lite.course.data import BOOK, DOMAINS, load_corpus, load_tokenizer
from moe_lite.course.film import Film, log_steps
from moe_lite.course.recipes import FILM, RECIPES
from moe_lite.course.rounded import bfloat16_products
from moe_lite.evaluation import evaluate
from moe_lite.train import Trainer

FOLDER = hf.PRETRAINED / "mixtral-mini"
TWIN = hf.PRETRAINED / "mixtral-mini-dense"
FIRST = leads.ON_A_CPU / "edition2_first.json"
PAIR = (  # the box's model and its twin: the axis and the runs that they are the first seed of
    ("mixtral-mini", "whole finer", "4 of 16, scale 4"),
    ("mixtral-mini-dense", "whole dense", "dense"),
)
PROMPTS = (
    "HAMLET:\nTo be, or not to be", "def main(argv):\n    ", "神は言われた、", "And God said,",
    "12 + 7 = ", "import os\n", "ROMEO:\n", "(3 + 4) * 5 = ", "In the beginning", "for i in range(",
)  # fmt: skip


@pytest.fixture(scope="module")
def ours():
    return moe_lite.load_pretrained("mixtral-mini").eval()


@pytest.fixture(scope="module", params=[FOLDER, TWIN], ids=lambda folder: folder.name)
def both(request):
    """A folder, its model as we load it, and as transformers does, unchanged."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MixtralForCausalLM.from_pretrained(request.param, dtype=torch.float32)
    return request.param, moe_lite.load_pretrained(request.param.name).eval(), theirs.eval()


def test_they_fit_the_box():
    for folder, most, parts in ((FOLDER, 22e6, 3), (TWIN, 8e6, 1)):  # shards, and a film
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert sum(sizes.values()) < most and max(sizes.values()) < 16 * 2**20
        assert len([name for name in sizes if name.endswith(".safetensors")]) == parts


@pytest.mark.parametrize("folder", [FOLDER, TWIN], ids=lambda folder: folder.name)
def test_they_are_what_the_recipes_make(folder):
    recipe = RECIPES[folder.name]
    assert hf.load_config(folder) == recipe.model
    assert recipe.domains == (*DOMAINS, BOOK)
    assert hf.load(folder).embed_tokens.weight.dtype == torch.bfloat16
    assert (folder / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()


def test_the_recipes_are_the_stored_axes():
    for name, axis, run in PAIR:
        a, recipe = axes.AXES[axis], RECIPES[name]
        assert a.book and a.model == recipe.model and run in a.keep
        assert a.runs[run].get("gate_scale", 1.0) == recipe.gate_scale
        assert set(a.runs[run]) <= {"gate_scale"}
        assert replace(a.training, eval_windows=recipe.training.eval_windows) == recipe.training
    assert hf.load_pretrained.__defaults__[0] == "mixtral-mini"


@pytest.mark.parametrize("prompt", [*PROMPTS, "Quinoton Neloton: 06130\nCoruva Abovek: "])
def test_transformers_reads_it_and_agrees(prompt, both):
    transformers = pytest.importorskip("transformers")
    folder, ours, theirs = both
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids_BS = torch.tensor([tokenizer(prompt)["input_ids"]])
    assert ids_BS[0].tolist() == load_tokenizer(folder).encode(prompt).ids
    with torch.no_grad():
        logits_BSV = ours(ids_BS).logits_BSV
        torch.testing.assert_close(logits_BSV, theirs(ids_BS).logits, atol=1e-3, rtol=1e-3)
    greedy = theirs.generate(
        ids_BS, attention_mask=torch.ones_like(ids_BS), max_new_tokens=64, min_new_tokens=64,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert ours.generate(ids_BS, 64, temperature=0, eos_token_id=()).equal(greedy)


def test_in_the_stored_bfloat16_both_agree_within_its_rounding(both):
    transformers = pytest.importorskip("transformers")
    folder, _, theirs = both
    ids_BS = torch.tensor([load_tokenizer(folder).encode("".join(PROMPTS)).ids])
    theirs_bf16 = transformers.MixtralForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        exact = theirs(ids_BS).logits
        a, b = hf.load(folder)(ids_BS).logits_BSV.float(), theirs_bf16(ids_BS).logits.float()
    # Token by token, for rounding can turn one token's choice of experts, and then it differs.
    rounding_S, ours_S, apart_S = (
        (x - y).norm(dim=-1)[0] for x, y in ((b, exact), (a, exact), (a, b))
    )
    assert ours_S.median() < 1.3 * rounding_S.median()
    assert apart_S.median() < 2 * rounding_S.median()


@pytest.mark.slow("the trained model")
@pytest.mark.parametrize("folder", [FOLDER, TWIN], ids=lambda folder: folder.name)
def test_the_card_says_what_is_measured(folder):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"\| {folder.name} \|(.*)\|", card)
    assert row, "the card has no row of bits per byte"
    *said, _, book = (float(number) for number in row[1].split("|"))
    model, config = hf.load_pretrained(folder.name).eval(), RECIPES[folder.name].training
    bits = evaluate(model, load_corpus((*DOMAINS, BOOK)), config=config)  # 8 windows, not 64
    for domain, number in zip((*DOMAINS, BOOK), (*said, book), strict=True):
        if domain != "code":  # the text of that domain is the running Python's
            assert bits[domain] == pytest.approx(number, rel=0.12), domain


def test_the_film_ends_with_this_model(ours):
    film, config = Film.load(FOLDER / FILM), ours.config
    steps = RECIPES["mixtral-mini"].training.steps
    assert len(film.steps) == 8 and film.steps[0] == 0 and film.steps[-1] == steps
    assert set(film.steps) <= set(log_steps(steps, RECIPES["mixtral-mini"].frames))
    assert film.ids_BS.shape == (12, 200) and film.domains == (*DOMAINS, BOOK)
    assert film.top_k == config.num_experts_per_tok
    with torch.no_grad():
        _, routings = ours.hidden(film.ids_BS)
    for filmed, routing in zip(film.trace(steps).layers, routings, strict=True):
        first, now = (r.expert_N.view(-1, film.top_k)[:, 0] for r in (filmed, routing))
        # the weights were rounded to bfloat16 after the last frame
        assert (first == now).float().mean() > 0.95
    start = film.trace(0).layers[0].expert_N.view(-1, film.top_k)[:, 0]
    assert (start != routings[0].expert_N.view(-1, film.top_k)[:, 0]).float().mean() > 0.5


@pytest.mark.slow("the trained model")
@pytest.mark.parametrize("name", ["mixtral-mini", "mixtral-mini-dense"])
def test_training_again_begins_as_the_first_time(name):
    """The first steps of the stored loss curves, made again: the rest is more of the same."""
    said, recipe = read_json(FIRST)["first"][name], RECIPES[name]
    torch.manual_seed(recipe.training.seed)
    trainer, corpus = Trainer(recipe.make(), recipe.training), load_corpus(recipe.domains)
    with bfloat16_products("on", "cpu"):
        losses = [trainer.step(step, corpus)[0]["loss"] for step in range(4)]
    assert losses == pytest.approx(said[:4], rel=0.02)


def test_the_card_tells_how_both_arms_begin():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    found, axes = read_json(FIRST), {r["axis"]: r["runs"] for r in leads.stored()}
    for name, axis, run in PAIR:
        loss, mean = found["first"][name], found["mean_250"][name]
        assert len(loss) == 200
        windows = [loss[:1], *(loss[s - 11 : s + 10] for s in (50, 100, 150)), loss[189:200]]
        row = " | ".join(f"{statistics.mean(w):.2f}" for w in windows)
        assert f"| {name} | {row} | {mean:.3f} |" in card
        (kept,) = (r["train"]["250"] for r in axes[axis] if (r["name"], r["seed"]) == (run, 0))
        assert f"| the run that is kept | | | | | | {kept:.3f} |" in card
        assert mean == pytest.approx(kept, rel=0.01)


def test_the_settings_are_those_of_the_card():
    settings = json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == load_tokenizer(FOLDER).token_to_id("<|endoftext|>") == 0
