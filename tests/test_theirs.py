"""Explore others' models: tiny folders as transformers saves them, seen in the page."""

import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moe_lite.course import cli, theirs, traces
from moe_lite.trace import record
from tests import families

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parent.parent
TEXT = "to be or not to be that is the question"
FAMILIES = {  # name: whether its page must say "unknown"
    "mixtral": False, "olmoe": False, "qwen3_moe": False, "gpt_oss": False, "deepseek_v3": False,
    "glm4_moe": False, "gemma4": False, "ernie4_5_moe": False, "phimoe": True, "jamba": False,
    "lfm2_moe": False, "granitemoe": False,
}  # fmt: skip


def tokenizer():
    words = Tokenizer(models.BPE({c: i for i, c in enumerate("Ġabcdefghijklmnopqrstuvwxyz")}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return words


def saved(name, folder, dtype=torch.float32):
    model = families.build(name).to(dtype)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model


def state_of(page):
    """Take a page's data apart, as its script does."""
    said = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)[1]
    state = json.loads(said)
    data, arrays = zlib.decompress(base64.b64decode(state["data"]["deflated"])), {}
    for key, (kind, offset, length) in state["arrays"].items():
        arrays[key] = np.frombuffer(data, "<" + kind, length, offset)
    return state, arrays


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_a_family_becomes_a_page(name, tmp_path, capsys):
    model = saved(name, tmp_path / name)
    out = tmp_path / "a.html"
    assert cli.main(["explore", TEXT, "--model", str(tmp_path / name), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    count = sum(p.numel() for p in set(model.parameters()))
    if name != "mixtral":
        told = int(
            re.search(r"([\d,]+) parameters, [\d.]+ GB of memory\n", said)[1].replace(",", "")
        )
        assert 0.9 * count <= told <= 1.1 * count + 1000  # a tied head may be stored, a buffer too
    state, arrays = state_of(out.read_text(encoding="utf-8"))
    assert "".join(state["tokens"]) == TEXT
    ids = torch.tensor([tokenizer().encode(TEXT).ids])
    with record(model) as rec, torch.no_grad():
        model(ids)
    at = pair = 0
    for layer, rule in zip(rec.trace.layers, rec.trace.rules, strict=True):
        T, E = layer.num_tokens, layer.num_experts
        shares = arrays["probs"][at : at + T * E].reshape(T, E).astype(int)
        at += T * E
        if "scores unknown" in rule:
            assert (shares == 0xFFFF).all()
        else:
            assert (abs(shares.sum(1) - 1000) <= E / 2 + 1).all(), "a token's sum to 1"
        expert = arrays["expert"][pair : pair + len(layer.expert_N)]
        assert expert.tolist() == layer.expert_N.tolist()
        pair += len(expert)
    unknown = any("unknown" in rule for rule in state["rules"])
    assert unknown == FAMILIES[name]
    assert name == "mixtral" or state["rules"] == list(rec.trace.rules)


def test_a_text_file_and_a_type(tmp_path, capsys):
    saved("olmoe", tmp_path / "it", torch.bfloat16)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    out = tmp_path / "a.html"
    command = ["explore", "--file", str(tmp_path / "a.txt"), "--model", str(tmp_path / "it")]
    sizes = []
    for dtype in ((), ("--dtype", "float32")):
        assert cli.main([*command, *dtype, "--out", str(out)]) == 0
        sizes.append(capsys.readouterr().out)
        assert "".join(state_of(out.read_text(encoding="utf-8"))[0]["tokens"]) == TEXT
    assert "parameters" in sizes[0]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfa")
    assert cli.main(["explore", "--file", str(tmp_path / "b.txt")]) == 1
    assert "b.txt: not UTF-8 text (at byte 0)" in capsys.readouterr().err


def test_a_trace_from_a_file_becomes_a_page(tmp_path, capsys):
    model = saved("qwen3_moe", tmp_path / "it")
    with record(model, tokenizer()) as rec, torch.no_grad():
        model(torch.tensor([tokenizer().encode(TEXT).ids]))
    traces.save(rec.trace, tmp_path / "t.safetensors")
    rows = [
        f"{t},{n},{e},{g}"
        for n, layer in enumerate(rec.trace.layers)
        for t, e, g in zip(layer.token_N.tolist(), layer.expert_N.tolist(), layer.gate_N.tolist(),
                           strict=True)
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["token,layer,expert,weight", *rows]))
    pages = []
    for name in ("t.safetensors", "t.csv"):
        out = tmp_path / "a.html"
        assert cli.main(["explore", "--trace", str(tmp_path / name), "--out", str(out)]) == 0
        pages.append(state_of(out.read_text(encoding="utf-8")))
    (known, a), (_, b) = pages
    assert a["expert"].tolist() == b["expert"].tolist()
    assert np.allclose(a["gate"], b["gate"])
    assert known["rules"] == ["softmax"] * 3 and (b["probs"] == 0xFFFF).all()
    assert cli.main(["explore", "x", "--trace", str(tmp_path / "t.csv")]) == 1
    assert "a trace has its own text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "nothing_known"}, "cannot load this model of type 'nothing_known'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "brings code of its own, which is not run"),
        ({"num_hidden_layers": 4}, "the weights lack"),
        ({"num_experts": "many"}, "cannot load this model of type 'olmoe'"),
        ({"hidden_size": 48}, "cannot load this model of type 'olmoe'"),
    ],
    ids=str,
)
def test_a_folder_that_cannot_be_loaded_is_a_sentence(change, complaint, tmp_path, capsys):
    saved("olmoe", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    out = ["--out", str(tmp_path / "a.html")]
    assert cli.main(["explore", TEXT, "--model", str(tmp_path), *out]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert complaint in said and str(tmp_path) in said and not (tmp_path / "a.html").exists()


def test_no_memory_is_told_before_it_is_taken(tmp_path, capsys, monkeypatch):
    from moe_lite import checked

    saved("olmoe", tmp_path)
    monkeypatch.setattr(checked.os, "sysconf", lambda name: 100)
    assert cli.main(["explore", TEXT, "--model", str(tmp_path)]) == 1
    assert "GB of memory, and there are 0.0" in capsys.readouterr().err


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, capsys):
    saved("olmoe", tmp_path)
    (tmp_path / "tokenizer.json").unlink()  # then it would be the course's own
    assert cli.main(["explore", TEXT, "--model", str(tmp_path)]) == 1
    assert "the model has 64 tokens and the tokenizer 4096" in capsys.readouterr().err


def test_the_page_on_tracing_does_what_it_says(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
    saved("olmoe", tmp_path / "FOLDER")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    fast.save_pretrained(tmp_path / "FOLDER")
    (tmp_path / "choices.csv").write_text(re.search(r"```\n(token,.*?)```", page, re.S)[1])
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block.replace("To be, or not to be", TEXT), names)
    assert names["trace"].tokens == ["To", " be"] and len(names["recorded"].trace.layers) == 3
    for line in re.findall(r"^python -m moe_lite (explore --trace .*)$", page, re.M):
        assert cli.main(line.split()) == 0


@pytest.mark.parametrize("name", [*FAMILIES, "switch_transformers"])
@torch.no_grad()
def test_an_ablated_expert_is_handed_no_weight(name):
    model, ids = families.build(name), torch.arange(3, 21).view(2, 9)
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with record(model) as rec:
        before = model(ids)[0]
    n, routing = len(rec.trace.layers) - 1, rec.trace.layers[-1]
    layer, expert = rec.trace.layer_names[n], int(routing.expert_N.mode().values)
    with theirs.ablated(model, layer, expert), record(model) as without:
        changed = model(ids)[0]
    found, its = without.trace.layers[n].gates_TE(), routing.gates_TE().clone()
    assert its[:, expert].any() and not torch.equal(changed, before)
    its[:, expert] = 0
    assert torch.equal(found, its)
    assert torch.equal(model(ids)[0], before), "the model is as before"
    with pytest.raises(ValueError, match="there is no expert 99"):
        theirs.ablated(model, layer, 99).__enter__()
    with pytest.raises(ValueError, match="there is no layer 'nowhere'"):
        theirs.ablated(model, "nowhere", 0).__enter__()


@torch.no_grad()
def test_an_ablated_expert_is_one_whose_output_is_zero():
    model, ids = families.build("qwen3_moe"), torch.arange(3, 21).view(2, 9)
    with theirs.ablated(model, "model.layers.1.mlp", 2):
        found = model(ids).logits
    model.get_submodule("model.layers.1.mlp.experts").down_proj[2] = 0
    assert torch.allclose(found, model(ids).logits, atol=1e-5)


def test_experts_that_are_not_handed_weights_stay():
    with pytest.raises(ValueError, match="are not handed weights"):
        theirs.ablated(families.build("llama4"), "model.layers.2.feed_forward", 0).__enter__()


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_a_page_has_the_run_without_an_expert_beside(name, tmp_path, capsys):
    saved(name, tmp_path / "it")
    out = tmp_path / "a.html"
    command = ["explore", TEXT, "--model", str(tmp_path / "it"), "--out", str(out), "--ablate"]
    for wrong, said in {"9.0": "no layer 9", "1.6": "no expert 6", "1": "LAYER.EXPERT"}.items():
        assert cli.main([*command, wrong]) == 1 and not out.exists()
        assert said in capsys.readouterr().err
    assert cli.main([*command, "1.2"]) == 0
    was, now, rise = map(
        float, re.search(r"from ([\d.]+) to ([\d.]+) nats a token \((.+)\)",
                         capsys.readouterr().out).groups()
    )  # fmt: skip
    assert abs(now - was - rise) < 2e-4 and rise != 0
    state, _ = state_of(out.read_text(encoding="utf-8"))
    assert state["beside"]["source"] == "it without 1.2"
