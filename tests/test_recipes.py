"""The train command: recipes that hold together, a folder transformers reads, one-line refusals."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_lite import hf
from moe_lite.checkpoint import checkpoints
from moe_lite.course import recipes
from moe_lite.course.cost import count_parameters
from moe_lite.course.data import load_tokenizer
from moe_lite.course.recipes import RECIPES, main, read_recipe
from moe_lite.history import History
from moe_lite.model import Mixtral

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "model": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    "training": {"steps": 4, "batch_size": 2, "seq_len": 16, "checkpoint_every": 2,
                 "eval_every": 0, "eval_windows": 1, "warmup": 1},
    "domains": ["prose", "drama"],
    "max_bytes": 40000,
}  # fmt: skip


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    return str(path)


def test_the_named_recipes_fit_the_tokenizer_and_their_size():
    size = load_tokenizer().get_vocab_size()
    for recipe in RECIPES.values():
        assert recipe.model.vocab_size == size and recipe.model.eos_token_id == 0
        assert recipe.training.seq_len <= recipe.model.max_position_embeddings
    mini = count_parameters(RECIPES["mixtral-mini"].model)
    assert 8e6 < mini.total < 9e6 and mini.active < mini.total / 2
    assert count_parameters(RECIPES["tiny"].model).total < 0.5e6


def test_a_file_changes_what_it_names(config):
    recipe, base = read_recipe(config), RECIPES["tiny"]
    assert recipe.model == replace(base.model, hidden_size=16, intermediate_size=24, head_dim=None)
    assert recipe.model.head_dim == 4
    assert recipe.training.steps == 4 and recipe.training.lr == base.training.lr
    assert recipe.domains == ("prose", "drama") and recipe.max_bytes == 40000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", r"holds \[1\], not a JSON object"),
        ('{"modle": {}}', "small.json has no field 'modle'; it has model, training, domains"),
        ('{"model": {"experts": 3}}', "model has no field 'experts'"),
        ('{"training": {"step": 3}}', "training has no field 'step'"),
        ('{"model": {"num_experts_per_tok": 9}}', "K cannot exceed E"),
        ('{"training": {"steps": -1}}', "steps must be a whole number"),
        ('{"training": {"betas": 1}}', "small.json: training: betas must be a list of 2, not 1"),
        ('{"max_bytes": 0}', "max_bytes must be null or at least 1, not 0"),
        ('{"domains": "prose"}', "domains must be a list, not 'prose'"),
        ('{"domains": ["prose", 1]}', r"domains\[1\] must be text, not 1"),
        ('{"frames": 1}', "frames must be 0 or from 2 to 1,000, not 1"),
        ('{"gate_scale": 0}', "gate_scale must be above 0 and finite, not 0"),
        ('{"gate_scale": NaN}', "gate_scale must be .*finite"),
        (
            '{"model": {"hidden_size": "big"}}',
            "model: hidden_size must be a whole number, not 'big'",
        ),
        ('{"model": {"sliding_window": 1.5}}', "sliding_window must be a whole number or null"),
        ('{"model": {"sliding_window": true}}', "sliding_window must be a whole number or null"),
        ('{"model": {"tie_word_embeddings": "big"}}', "tie_word_embeddings must be true or false"),
        ('{"model": {"eos_token_id": "big"}}', "eos_token_id must be a whole number or a list or"),
        ('{"model": {"rope_theta": "big"}}', "rope_theta must be a finite number, not 'big'"),
        ('{"model": {"rope_theta": 0}}', "rope_theta must be above 0, not 0"),
        ('{"model": {"rms_norm_eps": NaN}}', "rms_norm_eps must be a finite number, not nan"),
        ('{"model": {"hidden_size": 9223372036854775808}}', "hidden_size must be below 2"),
        ('{"training": {"seed": 99999999999999999999}}', "seed must be below 2"),
        ('{"training": {"steps": true}}', "steps must be a whole number, not True"),
        ('{"training": {"autocast": "maybe"}}', "autocast must be one of 'auto', 'on', 'off'"),
        (
            '{"training": {"seq_len": 1000}}',
            "seq_len 1000 is more than max_position_embeddings 256",
        ),
        ('{"max_bytes": 1, "max_bytes": 2}', "the field 'max_bytes' stands there twice"),
        ("[" * 100_000, "nested deeper than 32"),
    ],
)
def test_a_file_that_cannot_be_is_refused(config, content, message):
    Path(config).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_recipe(config)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(
        ValueError,
        match="no recipe 'huge': name one of tiny, mixtral-mini, mixtral-mini-dense, or",
    ):
        read_recipe("huge")


def test_train_command_from_start_to_a_folder_transformers_reads(config, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    assert main(["--config", config, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    bits = dict(
        part.split() for part in said.split("bits per byte: ")[1].split("\n")[0].split(", ")
    )
    assert list(bits) == ["prose", "drama"] and all(0 < float(v) < 12 for v in bits.values())
    assert [path.name for path in checkpoints(out)] == ["step-00000002", "step-00000004"]
    assert len(History.load(out / "history.jsonl")) == 4
    assert (out / "history.png").read_bytes().startswith(b"\x89PNG")

    ours = hf.load(out / "model")
    theirs = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    text = "In the beginning 神 27 + 3"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == load_tokenizer().encode(text).ids
    assert tokenizer.eos_token_id == theirs.generation_config.eos_token_id == 0
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits_BSV, theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert not list((out / "model").glob("*.part"))

    with pytest.raises(ValueError, match="already holds a run"):
        main(["--config", config, "--out", str(out)])
    assert main(["--config", config, "--out", str(out), "--resume",
                 "--export", str(tmp_path / "elsewhere")]) == 0  # fmt: skip
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "elsewhere" / name).read_bytes() == (out / "model" / name).read_bytes()

    assert main(["--config", config, "--out", str(out), "--resume", "--bf16"]) == 0
    assert hf.load(out / "model").embed_tokens.weight.dtype == torch.bfloat16


def test_steps_and_seed_come_from_the_command_line(config, tmp_path):
    for seed in "12":
        main(["--config", config, "--out", str(tmp_path / seed), "--steps", "1", "--seed", seed])
    one, two = (History.load(tmp_path / seed / "history.jsonl") for seed in "12")
    assert len(one) == len(two) == 1 and one.rows[0]["loss"] != two.rows[0]["loss"]


def test_ctrl_c_says_how_to_go_on(config, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt("stopped after step 3 of 4")

    monkeypatch.setattr(recipes, "train", interrupted)
    assert main(["--config", config, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "stopped after step 3 of 4; go on with --resume\n"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"model": {"vocab_size": 100}}, [], "the tokenizer has 4096 tokens, but vocab_size is"),
        ({"domains": ["latin"]}, [], "there is no domain 'latin'"),
        ({}, ["--steps", "0"], "steps must be a whole number of at least 1, not 0"),
        ({}, ["--seed", "99999999999999999999"], "seed must be below 2"),
        ({"model": {"hidden_size": 2**62, "head_dim": 2}}, [], "training takes .* GB of memory"),
        ({"model": {"num_hidden_layers": 2**62}}, [], "small.json: the training takes .* GB"),
        ({"training": {"batch_size": 2**62}}, [], "small.json: the training takes .* GB"),
        ({}, ["--device", "abacus"], "there is no device 'abacus' here"),
        ({}, ["--device", "cuda:99"], "there is no device 'cuda:99' here"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(config, tmp_path, change, arguments, message):
    Path(config).write_text(json.dumps(TINY | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        main(["--config", config, "--out", str(tmp_path / "run"), *arguments])
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("option", ["--out", "--export"])
def test_an_unwritable_folder_is_one_line_and_exit_code_1(config, tmp_path, option):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    paths = {"--out": str(tmp_path / "run"), option: str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-m", "moe_lite", "train", "--config", config,
         *(word for pair in paths.items() for word in pair)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("moe_lite train: cannot write to ") and "Traceback" not in line
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_export_replaces_its_own_files_only(tmp_path):
    model = Mixtral(replace(RECIPES["tiny"].model, num_hidden_layers=1))
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    for _ in range(2):
        with torch.no_grad():
            model.norm.weight.mul_(1.5)
        recipes.export(model, load_tokenizer(), tmp_path)
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "mine"
    loaded = hf.load(tmp_path)
    assert torch.equal(loaded.norm.weight, model.norm.weight)
    assert loaded.norm.weight[0].item() == 2.25


def test_frames_in_a_file_are_filmed(config):
    Path(config).write_text(json.dumps(TINY | {"frames": 3}), encoding="utf-8")
    assert read_recipe(config).frames == 3
