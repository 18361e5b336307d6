"""Checkpoints on disk: what is written is read again, and nothing broken gets in."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moe_lite import checked, hf
from moe_lite.config import MixtralConfig
from moe_lite.model import Mixtral
from moe_lite.routers import TopKRouter

SMALL = MixtralConfig(
    vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
    max_position_embeddings=32,
)  # fmt: skip

# The config.json that Mistral published for Mixtral 8x7B, in the spelling of its time.
PUBLISHED = {
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
    "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mixtral(SMALL)


@pytest.fixture
def sharded(model, tmp_path):
    """A checkpoint in several shards."""
    folder = tmp_path / "sharded"
    hf.save(model, folder, max_shard_bytes=4000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) >= 3
    return folder


@pytest.fixture
def single(model, tmp_path):
    """A checkpoint in one file."""
    hf.save(model, tmp_path / "single")
    return tmp_path / "single"


def same(a: Mixtral, b: Mixtral) -> bool:
    theirs = dict(b.named_parameters())
    mine = dict(a.named_parameters())
    return mine.keys() == theirs.keys() and all(
        p.dtype == theirs[n].dtype and torch.equal(p, theirs[n]) for n, p in mine.items()
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def rewrite(file: Path, **fields) -> None:
    """Set fields of a JSON file; ... removes one."""
    value = json.loads(file.read_text(encoding="utf-8")) | fields
    value = {k: v for k, v in value.items() if v is not ...}
    file.write_text(json.dumps(value), encoding="utf-8")


# --------------------------------------------------------------------------- both ways


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    experts=st.integers(1, 4),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    window=st.none() | st.integers(1, 9),
    theta=st.floats(1, 1e7),
    ids=st.tuples(st.none() | st.integers(0, 19), st.none() | st.integers(0, 19)),
    max_shard_bytes=st.integers(1, 20_000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_what_is_saved_is_loaded(
    tmp_path_factory, experts, layers, tied, window, theta, ids, max_shard_bytes, dtype
):
    config = replace(
        SMALL, num_local_experts=experts, num_experts_per_tok=1, num_hidden_layers=layers,
        tie_word_embeddings=tied, sliding_window=window, rope_theta=theta,
        bos_token_id=ids[0], eos_token_id=ids[1],
    )  # fmt: skip
    model = Mixtral(config).to(dtype)
    folder = tmp_path_factory.mktemp("checkpoint")
    hf.save(model, folder, max_shard_bytes=max_shard_bytes)
    assert hf.load_config(folder) == config
    loaded = hf.load(folder)
    assert same(model, loaded)
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == tied
    names = {name for file in folder.glob("*.safetensors") for name in load_file(file)}
    assert ("lm_head.weight" in names) == (not tied)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file).values()
        size = sum(t.numel() * t.element_size() for t in tensors)
        assert size <= max_shard_bytes or len(tensors) == 1
    loaded(torch.tensor([[1, 2, 3]]))  # runs: nothing stayed on the meta device


def test_the_published_names(single):
    tensors = load_file(single / "model.safetensors")
    D, F, E = SMALL.hidden_size, SMALL.intermediate_size, SMALL.num_local_experts
    moe = "model.layers.1.block_sparse_moe"
    assert tensors[f"{moe}.gate.weight"].shape == (E, D)
    assert tensors[f"{moe}.experts.2.w1.weight"].shape == (F, D)
    assert tensors[f"{moe}.experts.2.w2.weight"].shape == (D, F)
    assert tensors[f"{moe}.experts.2.w3.weight"].shape == (F, D)
    for name in (
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
    ):  # fmt: skip
        assert name in tensors
    assert len(tensors) == 3 + SMALL.num_hidden_layers * (4 + 2 + 1 + 3 * E)


def test_the_written_config_speaks_to_old_and_new_readers(single):
    written = json.loads((single / "config.json").read_text())
    assert written["rope_theta"] == SMALL.rope_theta
    assert written["rope_parameters"] == {"rope_theta": SMALL.rope_theta, "rope_type": "default"}
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert written["architectures"] == ["MixtralForCausalLM"]


def test_dtype_on_the_way_in_and_out(model, tmp_path):
    hf.save(model, tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert hf.load(tmp_path).lm_head.weight.dtype == torch.bfloat16
    wide = hf.load(tmp_path, dtype=torch.float32)
    assert wide.lm_head.weight.dtype == torch.float32
    assert torch.equal(wide.lm_head.weight, model.lm_head.weight.bfloat16().float())
    with pytest.raises(ValueError, match=r"dtype must be .* not torch.int8"):
        hf.load(tmp_path, dtype=torch.int8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loading_to_a_gpu(single, model):
    loaded = hf.load(single, device="cuda")
    assert {p.device.type for p in loaded.parameters()} == {"cuda"}
    assert same(model, loaded.cpu())


def test_mixed_types_are_kept_and_need_a_choice(model, tmp_path):
    model.bfloat16().layers[0].block_sparse_moe.gate.float()
    hf.save(model, tmp_path)
    stored = {str(tensor.dtype) for tensor in load_file(tmp_path / "model.safetensors").values()}
    assert stored == {"torch.bfloat16", "torch.float32"}
    with pytest.raises(ValueError, match=r"several types \(torch.bfloat16, torch.float32\)"):
        hf.load(tmp_path)
    assert same(hf.load(tmp_path, dtype=torch.float32), model.float())


# --------------------------------------------------------------------------- config


def config_folder(folder: Path, **fields) -> Path:
    (folder / "config.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    rewrite(folder / "config.json", **fields)
    return folder


def test_the_published_config_is_the_default(tmp_path):
    config = hf.load_config(config_folder(tmp_path))
    assert config == replace(
        MixtralConfig(), router_aux_loss_coef=0.02, bos_token_id=1, eos_token_id=2
    )
    assert config.head_dim == 128


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e4},
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}},
        {"rope_theta": 5e4, "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}},
        {"rope_theta": 5e4, "rope_parameters": None, "rope_scaling": None},
        {"rope_theta": 50000, "rope_scaling": {"type": "default"}},
    ],
)
def test_rope_theta_is_read_in_both_spellings(tmp_path, fields):
    assert hf.load_config(config_folder(tmp_path, **fields)).rope_theta == 5e4


def test_optional_fields(tmp_path):
    config = hf.load_config(
        config_folder(
            tmp_path,
            head_dim=64,
            sliding_window=4096,
            num_key_value_heads=None,
            rope_theta=...,
            tie_word_embeddings=...,
            hidden_act=...,
            pad_token_id=0,
        )
    )
    assert (config.head_dim, config.sliding_window, config.rope_theta) == (64, 4096, 1e6)
    assert config.num_key_value_heads == 32 and config.tie_word_embeddings is False


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', not 'mixtral'"),
        ({"model_type": ...}, "model_type is None, not 'mixtral'"),
        ({"architectures": ["MixtralForTokenClassification"]}, "architectures is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which would change the forward pass"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"router_jitter_noise": 0.01}, "router_jitter_noise is 0.01"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is {'type': 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters is"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "rope_parameters is"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "only the default rotary"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta is 1000000.0, but rope_parameters"),
        ({"rope_parameters": "default"}, "the field 'rope_parameters' ('default') is unknown"),
        ({"shared_expert_size": 7}, "'shared_expert_size' (7) is unknown"),
        ({"shared_expert_size": 7}, "ignore=('shared_expert_size',) reads past it"),
        ({"hidden_size": ..., "vocab_size": ...}, "vocab_size, hidden_size missing"),
        ({"hidden_size": "4096"}, "hidden_size must be a whole number, not '4096'"),
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, not 0"),
        ({"num_attention_heads": 0, "head_dim": None}, "attention_heads must be a whole number of"),
        ({"num_attention_heads": 0, "head_dim": ...}, "attention_heads must be a whole number of"),
        ({"num_experts_per_tok": 9}, "K cannot exceed E"),
        ({"vocab_size": True}, "vocab_size must be a whole number, not True"),
        ({"sliding_window": 2.5}, "sliding_window must be a whole number or null, not 2.5"),
        (
            {"eos_token_id": [2, 3.0]},
            "eos_token_id must be a whole number or a list or null, not [2",
        ),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number, not nan"),
        ({"rope_theta": -1}, "rope_theta must be a number of at least 0, not -1"),
        ({"pad_token_id": 32000}, "pad_token_id must be None or a token of the 32,000, not 32000"),
        ({"hidden_size": 2**63}, "hidden_size must be below 2**63"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2, which would change the forward pass"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not 1"),
    ],
)
def test_a_config_that_means_something_else_is_refused(tmp_path, fields, sentence):
    with pytest.raises(ValueError) as error:
        hf.load_config(config_folder(tmp_path, **fields))
    assert sentence in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_ignored_fields_are_read_past(tmp_path):
    config_folder(tmp_path, novelty=1, attention_dropout=0.1, eos_token_id="x")
    config = hf.load_config(tmp_path, ignore=("novelty", "attention_dropout", "eos_token_id"))
    assert config.eos_token_id is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": \udc80}', "[" * 100_000])
def test_a_broken_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|not UTF-8|holds \[1\])"):
        hf.load_config(tmp_path)


# --------------------------------------------------------------------------- broken checkpoints


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change(file: Path, **tensors) -> None:
    """Set tensors of a safetensors file; None removes one."""
    merged = load_file(file) | {name.replace("__", "."): t for name, t in tensors.items()}
    save_file({name: t for name, t in merged.items() if t is not None}, file)


def shard(folder: Path, i: int) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[i]


def point(folder: Path, file: str) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    rewrite(index, weight_map=weight_map | {"model.norm.weight": file})


def forget_last_shard(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    last = shard(folder, -1).name
    rewrite(index, weight_map={k: v for k, v in weight_map.items() if v != last})


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


BREAK = {
    "missing shard": (
        lambda f: shard(f, 1).unlink(),
        r"model-00002-of-\d+\.safetensors: the shard is missing",
    ),
    "truncated shard": (
        lambda f: cut(shard(f, 1)),
        r"model-00002-of-.*: not a readable safetensors file: truncated, damaged",
    ),
    "empty shard": (lambda f: shard(f, 1).write_bytes(b""), "model-00002-of.*truncated"),
    "forgotten shard": (forget_last_shard, r"shard is there, but .* does not name it"),
    "tensor gone from its shard": (
        lambda f: change(shard(f, -1), model__norm__weight=None),
        r"disagree about model\.norm\.weight",
    ),
    "tensor not in the index": (
        lambda f: change(shard(f, 0), extra=torch.zeros(1)),
        r"model-00001-of.* disagree about extra",
    ),
    "wrong shape": (
        lambda f: change(shard(f, -1), model__norm__weight=torch.zeros(9)),
        r"model\.norm\.weight has shape \(9,\), but the config asks for \(8,\)",
    ),
    "transposed": (
        lambda f: change(shard(f, -1), lm_head__weight=torch.zeros(8, 20)),
        r"lm_head\.weight has shape \(8, 20\), but the config asks for \(20, 8\)",
    ),
    "integers": (
        lambda f: change(shard(f, -1), model__norm__weight=torch.zeros(8, dtype=torch.int8)),
        r"model\.norm\.weight is stored as I8",
    ),
    "up and out": (lambda f: point(f, "../x.safetensors"), "'../x.safetensors', outside"),
    "absolute": (lambda f: point(f, "/x.safetensors"), "'/x.safetensors', outside"),
    "windows path": (lambda f: point(f, "a\\x.safetensors"), "outside the folder"),
    "windows drive": (lambda f: point(f, "c:x.safetensors"), "outside the folder"),
    "not a name": (lambda f: point(f, 7), "is said to lie in 7, outside"),
    "pickled shard": (lambda f: point(f, "pytorch_model-1.bin"), "a pickle is refused"),
    "no weight map": (
        lambda f: rewrite(f / "model.safetensors.index.json", weight_map=...),
        "has no weight_map",
    ),
    "broken index": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        r"index\.json: not valid JSON",
    ),
    "pickle in disguise": (
        lambda f: shard(f, 0).write_bytes(pickle.dumps(Bomb(), protocol=4)),
        r"model-00001-of.*: it is a pickle, which is refused; convert it to safetensors",
    ),
    "torch.save in disguise": (
        lambda f: shard(f, 0).write_bytes(b"PK\x03\x04" + bytes(200)),
        r"it is a pickle, which is refused",
    ),
    "Git LFS pointer": (
        lambda f: shard(f, 0).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer",
    ),
    "another config": (
        lambda f: rewrite(f / "config.json", intermediate_size=13),
        r"w1\.weight has shape \(12, 8\), but the config asks for \(13, 8\)",
    ),
    "too few layers": (
        lambda f: rewrite(f / "config.json", num_hidden_layers=3),
        r"lacks model\.layers\.2\..* and \d+ more",
    ),
    "too many experts": (
        lambda f: rewrite(f / "config.json", num_local_experts=2),
        r"holds the unexpected tensor model\.layers\.0\.block_sparse_moe\.experts\.2\.w",
    ),
    "a thousand layers": (
        lambda f: rewrite(f / "config.json", num_hidden_layers=1000),
        r"config.json: num_hidden_layers 1,000 and num_local_experts 3 ask for more than",
    ),
    "layers without end": (
        lambda f: rewrite(f / "config.json", num_hidden_layers=10**9),
        r"config.json: num_hidden_layers 1,000,000,000 and num_local_experts 3 ask for more than",
    ),
    "experts without end": (
        lambda f: rewrite(f / "config.json", num_local_experts=2**62),
        r"ask for more than the \d+ tensors that are stored",
    ),
    "widths without end": (
        lambda f: rewrite(f / "config.json", hidden_size=2**62, head_dim=2),
        r"config.json: the model takes .* GB of memory, and there are",
    ),
    "a vocabulary without end": (
        lambda f: rewrite(f / "config.json", vocab_size=2**62),
        r"config.json: the model takes .* GB of memory",
    ),
    "both kinds of weights": (
        lambda f: shard(f, 0).rename(f / "model.safetensors"),
        "holds both model.safetensors and",
    ),
}


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_checkpoint_is_refused_before_anything_is_allocated(how, sharded, monkeypatch):
    breaks, sentence = BREAK[how]
    breaks(sharded)
    monkeypatch.setattr(hf, "_allocate", lambda *a: pytest.fail("weights were allocated"))
    with pytest.raises(ValueError, match=sentence) as error:
        hf.load(sharded)
    assert "\n" not in str(error.value)
    assert str(sharded) in str(error.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "weights.pt"])
def test_a_pickled_checkpoint_is_refused_unread(name, single):
    (single / "model.safetensors").unlink()
    (single / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=f"{name}: a pickle can run any code .* convert it"):
        hf.load(single)


def test_paths_that_are_no_checkpoint(single, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        hf.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config.json is a file; give the folder"):
        hf.load(single / "config.json")
    (single / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor"):
        hf.load(single)
    (single / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config.json in"):
        hf.load(single)


# --------------------------------------------------------------------------- memory


def test_one_shard_is_open_at_a_time(sharded, model, monkeypatch):
    opened, most = [], 0
    really = checked.safe_open

    class Counted:
        def __init__(self, file, **kwargs):
            self.shard = really(file, **kwargs)

        def __enter__(self):
            nonlocal most
            opened.append(self)
            most = max(most, len(opened))
            return self.shard.__enter__()

        def __exit__(self, *error):
            opened.remove(self)
            return self.shard.__exit__(*error)

    monkeypatch.setattr(checked, "safe_open", Counted)
    assert same(model, hf.load(sharded))
    assert most == 1 and not opened


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_takes_little_memory_beyond_the_model(tmp_path):
    config = replace(
        SMALL, hidden_size=256, intermediate_size=1024, num_local_experts=16, num_hidden_layers=2
    )
    model = Mixtral(config)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    shard_size = 4_000_000
    hf.save(model, tmp_path, max_shard_bytes=shard_size)
    assert size > 20 * shard_size
    script = """
        import re, sys, torch
        from moe_lite import hf
        torch.set_num_threads(1)
        status = lambda: open("/proc/self/status").read()
        peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status())[1])
        before = peak()
        model = hf.load(sys.argv[1])
        print(peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, check=True, env=os.environ,
        cwd=Path(hf.__file__).parents[1],
    )  # fmt: skip
    # A load that keeps the stored tensors while it fills the model would need twice the size.
    assert 0.9 * size < int(run.stdout) < size + 2 * shard_size + 16_000_000 < 1.5 * size


# --------------------------------------------------------------------------- saving


def test_a_folder_in_use_is_not_overwritten_unasked(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty; choose another or pass overwrite"):
        hf.save(model, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(FileExistsError, match="is a file"):
        hf.save(model, tmp_path / "notes.txt")


def test_overwriting_replaces_the_checkpoint_and_keeps_the_rest(sharded, tmp_path):
    (sharded / "tokenizer.json").write_text("{}")
    (sharded / "runs").mkdir()
    (sharded / "runs" / "config.json").write_text("theirs")
    (sharded / "runs" / "model.safetensors").write_text("theirs")
    other = Mixtral(replace(SMALL, num_hidden_layers=1))
    hf.save(other, sharded, overwrite=True)
    assert same(hf.load(sharded), other)
    assert set(contents(sharded)) == {
        "config.json", "model.safetensors", "tokenizer.json",
        str(Path("runs/config.json")), str(Path("runs/model.safetensors")),
    }  # fmt: skip
    assert (sharded / "runs" / "config.json").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["sharded"]


@pytest.mark.parametrize("moment", ["first shard", "second shard", "first rename", "second rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_checkpoint(sharded, tmp_path, monkeypatch, moment, error):
    (sharded / "tokenizer.json").write_text("{}")
    before = contents(sharded)
    which, place = moment.split()
    countdown = {"first": 1, "second": 2}[which]

    def failing(really):
        def call(*args, **kwargs):
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise error
            return really(*args, **kwargs)

        return call

    if place == "shard":
        monkeypatch.setattr(hf, "save_file", failing(hf.save_file))
    else:
        monkeypatch.setattr(Path, "rename", failing(Path.rename))
    other = Mixtral(replace(SMALL, num_hidden_layers=1))
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError
    with pytest.raises(expected) as raised:
        hf.save(other, sharded, overwrite=True, max_shard_bytes=4000)
    assert countdown <= 0
    assert contents(sharded) == before
    assert [p.name for p in tmp_path.iterdir()] == ["sharded"]
    if expected is OSError:
        assert str(raised.value) == (f"cannot write {sharded.resolve()}: No space left on device")


def test_a_first_save_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(OSError, match="cannot write .*: No space left"):
        hf.save(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_impossible_place_is_named(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file.checkpoint: "):
        hf.save(model, tmp_path / "file" / "checkpoint")


def test_a_save_killed_between_its_renames_is_taken_up(sharded, tmp_path):
    """What `kill -9` at the worst moment leaves: the old one aside, the new one not yet there."""
    before = contents(sharded)
    sharded.rename(tmp_path / ".sharded.replaced")
    (tmp_path / ".sharded.unfinished").mkdir()
    with pytest.raises(FileNotFoundError, match=r"interrupted save left it at .*sharded.replaced"):
        hf.load(sharded)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        hf.save(Mixtral(SMALL), sharded)
    assert contents(sharded) == before
    other = Mixtral(replace(SMALL, num_hidden_layers=1))
    hf.save(other, sharded, overwrite=True)
    assert same(hf.load(sharded), other)
    assert [p.name for p in tmp_path.iterdir()] == ["sharded"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_and_permissions(model, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    hf.save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and same(hf.load(tmp_path / "real"), model)
    (tmp_path / "plain").touch()
    modes = {p.stat().st_mode for p in (tmp_path / "real").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}, "others may read it, as any new file"


def test_a_model_the_layout_cannot_hold_is_refused(model, tmp_path):
    D, E = SMALL.hidden_size, SMALL.num_local_experts
    layer = model.layers[1].block_sparse_moe
    for gate, sentence in (
        (TopKRouter(D, E, 1), "router of layers.1.block_sparse_moe"),
        (TopKRouter(D, E, 2, renormalize=False), "router of layers.1.block_sparse_moe"),
        (torch.nn.Linear(D, E), r"gate.bias is \(3,\) where its config makes it None"),
    ):
        layer.gate = gate
        with pytest.raises(ValueError, match=sentence):
            hf.save(model, tmp_path / "new")
    layer.gate = TopKRouter(D, E, 2)
    hf.save(model, tmp_path / "new")
    with pytest.raises(ValueError, match="max_shard_bytes must be at least 1, not 0"):
        hf.save(model, tmp_path / "newer", max_shard_bytes=0)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_factor_on_the_gates_goes_into_w2(model, tmp_path):
    D, E, ids_BS = SMALL.hidden_size, SMALL.num_local_experts, torch.arange(12).view(2, 6)
    gate = TopKRouter(D, E, 2, gate_scale=2.5)
    model.layers[1].block_sparse_moe.gate = gate
    hf.save(model, tmp_path / "new")
    back = hf.load(tmp_path / "new")
    assert back.moe_layers[1].gate.gate_scale == 1
    torch.testing.assert_close(back(ids_BS).logits_BSV, model(ids_BS).logits_BSV)
    gate.gate_scale = 1.0
    assert (back(ids_BS).logits_BSV - model(ids_BS).logits_BSV).abs().max() > 1e-4


def test_a_model_that_does_not_come_with_the_course_is_refused():
    with pytest.raises(
        ValueError, match=r"mixtral-huge' in .*only mixtral-mini, mixtral-mini-dense$"
    ):
        hf.load_pretrained("mixtral-huge")


# --- upcycling -----------------------------------------------------------------------------------

DENSE = replace(SMALL, num_local_experts=1, num_experts_per_tok=1)


@settings(deadline=None, max_examples=30)
@given(
    experts=st.integers(1, 9), top_k=st.integers(1, 9), tied=st.booleans(), seed=st.integers(0, 99)
)
def test_an_upcycled_model_is_the_dense_one_up_to_rounding(experts, top_k, tied, seed):
    torch.manual_seed(seed)
    dense = Mixtral(replace(DENSE, tie_word_embeddings=tied, initializer_range=0.3)).double()
    model = hf.upcycle(dense, experts, min(top_k, experts), seed=seed)
    assert model.config.num_local_experts == experts
    ids = torch.randint(20, (2, 9))
    ours, theirs = model(ids).logits_BSV, dense(ids).logits_BSV
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied


def test_an_upcycled_model_keeps_the_factor_on_its_gates():
    torch.manual_seed(0)
    dense, ids = Mixtral(replace(DENSE, initializer_range=0.3)).double(), torch.arange(9).view(1, 9)
    for layer in dense.moe_layers:
        layer.gate.gate_scale = 2.5
    torch.testing.assert_close(hf.upcycle(dense, 4)(ids).logits_BSV, dense(ids).logits_BSV)


def test_the_routers_are_new_and_the_experts_part_with_the_first_step():
    torch.manual_seed(0)
    dense = Mixtral(replace(DENSE, initializer_range=0.3))
    before = {name: p.clone() for name, p in dense.named_parameters()}
    model = hf.upcycle(dense, 4, seed=3)
    gates = [layer.gate.weight for layer in model.moe_layers]
    assert not torch.equal(*gates) and all(gate.std() > 0 for gate in gates)
    assert torch.equal(hf.upcycle(dense, 4, seed=3).moe_layers[0].gate.weight, gates[0])
    assert not torch.equal(hf.upcycle(dense, 4, seed=4).moe_layers[0].gate.weight, gates[0])
    ids = torch.randint(20, (4, 16))
    model(ids).logits_BSV.square().mean().backward()
    w1 = model.moe_layers[0].experts.w1
    assert not torch.equal(w1.grad[0], w1.grad[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], p) for name, p in dense.named_parameters())


def test_an_upcycled_model_is_a_checkpoint_like_any(tmp_path):
    torch.manual_seed(0)
    model = hf.upcycle(Mixtral(DENSE).bfloat16().eval(), 4)
    assert model.embed_tokens.weight.dtype == torch.bfloat16 and not model.training
    hf.save(model, tmp_path / "m")
    assert same(hf.load(tmp_path / "m"), model)


def test_only_a_dense_model_can_be_upcycled(model):
    with pytest.raises(ValueError, match="only a dense model can be upcycled; this one has 3"):
        hf.upcycle(model, 4)
    with pytest.raises(ValueError, match="K cannot exceed E"):
        hf.upcycle(Mixtral(DENSE), 2, 3)
    other = Mixtral(DENSE)
    other.moe_layers[0].gate = TopKRouter(8, 2, 1)
    with pytest.raises(ValueError, match="the Mixtral layout cannot hold this model"):
        hf.upcycle(other, 2)


# --------------------------------------------------------------------------- as transformers does


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    model = Mixtral(replace(SMALL, tie_word_embeddings=True))
    hf.save(model, tmp_path)
    stored = tmp_path / "model.safetensors"
    change(stored, lm_head__weight=model.embed_tokens.weight.detach().clone())
    loaded = hf.load(tmp_path)
    assert same(loaded, model) and loaded.lm_head.weight is loaded.embed_tokens.weight
    change(stored, lm_head__weight=model.embed_tokens.weight.detach() + 1)
    with pytest.raises(
        ValueError, match="lm_head.weight is not the embedding, but the config ties"
    ):
        hf.load(tmp_path)
    change(stored, lm_head__weight=torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"lm_head.weight has shape \(3, 8\)"):
        hf.load(tmp_path)


def test_fields_that_change_nothing_are_read(tmp_path):
    config = hf.load_config(
        config_folder(
            tmp_path, eos_token_id=[2, 3], pretraining_tp=1, unsloth_version="2024.9",
            tokenizer_class="LlamaTokenizer",
        )
    )  # fmt: skip
    assert config.eos_token_id == (2, 3)
    assert json.loads(hf._config_json(config, torch.float32))["eos_token_id"] == [2, 3]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pad", [None, 0, 3, -1])
def test_the_padding_token_gets_the_gradient_that_transformers_gives_it(tmp_path, tied, pad):
    from transformers import MixtralForCausalLM

    hf.save(Mixtral(replace(SMALL, tie_word_embeddings=tied, pad_token_id=pad)), tmp_path)
    ours, theirs = hf.load(tmp_path), MixtralForCausalLM.from_pretrained(tmp_path)
    assert ours.config.pad_token_id == pad
    ids = torch.tensor([[3, 0, 19, 5, 3, 0, 19, 1]])
    ours(ids).logits_BSV.logsumexp(-1).sum().backward()
    theirs(ids).logits.logsumexp(-1).sum().backward()
    mine, other = ours.embed_tokens.weight.grad, theirs.model.embed_tokens.weight.grad
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
    if pad is not None:
        assert (mine[pad] == 0).all() != tied
