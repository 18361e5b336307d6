"""The trained models in the box: what their cards say, and that others read them alike."""

import json
import re

import pytest
import torch

import moe_lite
from experiments import recipe as axes
from moe_lite import hf
from moe_lite.checked import read_json
from moe_lite.course import leads
from moe_lite.course.data import DOMAINS, load_corpus, load_tokenizer
from moe_lite.course.film import Film
from moe_lite.course.recipes import FILM, RECIPES
from moe_lite.evaluation import evaluate
from moe_lite.history import History
from moe_lite.model import Mixtral
from moe_lite.train import train

FOLDER = hf.PRETRAINED / "mixtral-mini"
FINE = hf.PRETRAINED / "mixtral-mini-fine"
TWIN = hf.PRETRAINED / "mixtral-mini-fine-dense"
PROMPTS = (
    "HAMLET:\nTo be, or not to be", "def main(argv):\n    ", "神は言われた、", "And God said,",
    "12 + 7 = ", "import os\n", "ROMEO:\n", "(3 + 4) * 5 = ", "In the beginning", "for i in range(",
)  # fmt: skip


@pytest.fixture(scope="module")
def ours():
    return moe_lite.load_pretrained("mixtral-mini").eval()


@pytest.fixture(scope="module", params=[FOLDER, FINE, TWIN], ids=lambda folder: folder.name)
def both(request):
    """A folder, its model as we load it, and as transformers does, unchanged."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MixtralForCausalLM.from_pretrained(request.param, dtype=torch.float32)
    return request.param, moe_lite.load_pretrained(request.param.name).eval(), theirs.eval()


def test_it_fits_the_box():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(sizes.values()) < 50 * 2**20
    assert max(sizes.values()) < 16 * 2**20
    assert len([name for name in sizes if name.endswith(".safetensors")]) > 2  # shards and a film


def test_it_is_what_the_recipe_makes(ours):
    assert ours.config == RECIPES["mixtral-mini"].model
    assert hf.load(FOLDER).embed_tokens.weight.dtype == torch.bfloat16
    assert hf.load_pretrained.__defaults__[0] == "mixtral-mini"


def test_the_pair_beside_it_fits_too_and_is_what_its_axes_make():
    assert sum(path.stat().st_size for folder in (FINE, TWIN) for path in folder.iterdir()) < 26e6
    assert hf.load_config(FINE) == axes.FINE and hf.load_config(TWIN) == axes.DENSE
    for folder in (FINE, TWIN):
        assert (folder / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
        assert max(path.stat().st_size for path in folder.iterdir()) < 16 * 2**20


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
def test_the_card_says_what_is_measured(ours):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(r"\| mixtral-mini \|(.*)\|", card)
    assert row, "the card has no row of bits per byte"
    said = [float(number) for number in row[1].split("|")[: len(DOMAINS)]]
    corpus = load_corpus()
    config = RECIPES["mixtral-mini"].training
    bits = evaluate(ours, corpus, config=config)  # 8 windows of each domain; the card has 64
    for domain, number in zip(DOMAINS, said, strict=True):
        if domain != "code":  # the text of that domain is the running Python's
            assert bits[domain] == pytest.approx(number, rel=0.12), domain


def test_the_film_ends_with_this_model(ours):
    film = Film.load(FOLDER / FILM)
    steps = RECIPES["mixtral-mini"].training.steps
    assert len(film.steps) == 24 and film.steps[0] == 0 and film.steps[-1] == steps
    assert film.ids_BS.numel() == 2000 and film.domains == DOMAINS
    with torch.no_grad():
        _, routings = ours.hidden(film.ids_BS)
    for filmed, routing in zip(film.trace(steps).layers, routings, strict=True):
        same = (filmed.expert_N.view(-1, 2)[:, 0] == routing.expert_N.view(-1, 2)[:, 0]).float()
        assert same.mean() > 0.95  # the weights were rounded to bfloat16 after the last frame
    start = film.trace(0).layers[0].expert_N.view(-1, 2)
    assert (start != routings[0].expert_N.view(-1, 2)).float().mean() > 0.5


@pytest.mark.slow("the trained model")
@pytest.mark.parametrize(
    ("name", "arm"), [("mixtral-mini", "as shipped"), ("mixtral-mini-dense", "dense")]
)
def test_training_again_begins_as_the_first_time(name, arm):
    """The first steps of the stored loss curves, made again: the rest is more of the same."""
    said = read_json(leads.RESULTS.parent / "cpu_pairs" / "seed0.json")["first"][arm]
    if name == "mixtral-mini":
        stored = History.load(FOLDER / "history.jsonl").rows
        assert stored[-1]["step"] == RECIPES[name].training.steps
        assert [row["loss"] for row in stored[:200]] == pytest.approx(said, rel=0.03)
    recipe = RECIPES[name]
    torch.manual_seed(recipe.training.seed)
    model, losses = Mixtral(recipe.model), []

    class Enough(Exception):
        pass

    def stop_at(row):
        losses.append(row["loss"])
        if len(losses) == 4:
            raise Enough

    with pytest.raises(Enough):
        train(model, load_corpus(), recipe.training, callback=stop_at, progress=False)
    assert losses == pytest.approx(said[:4], rel=0.02)


def test_the_card_tells_how_both_arms_begin():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    first = read_json(leads.RESULTS.parent / "cpu_pairs" / "seed0.json")["first"]
    rows = first | {"card": [row["loss"] for row in History.load(FOLDER / "history.jsonl").rows]}
    for loss in rows.values():
        windows = [loss[:1], *(loss[s - 11 : s + 10] for s in (50, 100, 150)), loss[189:200]]
        assert " | ".join(f"{sum(w) / len(w):.2f}" for w in windows) in card


def test_the_settings_are_those_of_the_card():
    settings = json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == load_tokenizer(FOLDER).token_to_id("<|endoftext|>") == 0
