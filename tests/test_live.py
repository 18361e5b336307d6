"""The live page's model and tokenizer, run in node and held to Python's."""

import json
import random
import shutil
import statistics
import subprocess
import unicodedata
from base64 import b64decode
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moe_lite import hf
from moe_lite.config import MixtralConfig
from moe_lite.course import cli
from moe_lite.course.causal import ablate, ban, force, intervene, swap, top_k
from moe_lite.course.data import load_tokenizer, pieces
from moe_lite.course.film import Film
from moe_lite.course.widgets import RoutingExplorer
from moe_lite.course.widgets.live import LivePage, quantise, tokenizer_parts
from moe_lite.course.widgets.portable import HERE
from moe_lite.model import Mixtral

TEXT = "HAMLET:\nTo be, or not to be: 神の国 12 + 7 = 19 <|endoftext|> def f(x):\n\treturn x"


@pytest.fixture(scope="module")
def node():
    found = shutil.which("node") or shutil.which("nodejs")
    if found is None:
        pytest.skip("there is no node here")
    return found


@pytest.fixture
def ask(node, tmp_path):
    """Send wishes to a model's worker; give back what it answers."""

    def ask(model, *wishes, levels=127, tokenizer=None):
        small, layout, weights = quantise(model, levels)
        vocabulary = tokenizer_parts(tokenizer or load_tokenizer())
        load = {"act": "load", "layout": layout, "config": asdict(model.config),
                "vocabulary": vocabulary}  # fmt: skip
        names = LivePage.worker
        script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)
        (tmp_path / "worker.js").write_text(script, encoding="utf-8")
        (tmp_path / "weights.bin").write_bytes(weights)
        (tmp_path / "wishes.json").write_text(json.dumps([load, *wishes]), encoding="utf-8")
        program = Path(__file__).with_name("live.mjs")
        subprocess.run([node, program, tmp_path], check=True)
        replies = json.loads((tmp_path / "replies.json").read_text(encoding="utf-8"))
        assert replies.pop(0) == {"ready": True, "free": True}
        return small.eval(), replies

    return ask


def tiny(seed=0, **sizes):
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=4100, hidden_size=24, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=5,
        max_position_embeddings=256, initializer_range=0.4,
    ) | sizes  # fmt: skip
    return Mixtral(MixtralConfig(**sizes))


def wire(question):
    return [json.loads(json.dumps(list(asdict(i).values()))) for i in question]


def compare(model, reply, ids, *question):
    """Hold logits and routings to Python's; experts and gates in the order of the choice."""
    with torch.no_grad(), intervene(model, *question):
        out = model(torch.tensor([ids]))
    logits_TV = torch.tensor(reply["logits"])
    worst = float((logits_TV - out.logits_BSV[0]).abs().max())
    for routing, layer in zip(out.routings, reply["routes"], strict=True):
        for t, route in enumerate(layer):
            mine_N = routing.token_N == t
            assert route["experts"] == routing.expert_N[mine_N].tolist()
            gates = routing.gate_N[mine_N].tolist()
            assert route["gates"] == pytest.approx(gates, abs=1e-5)
    return worst


@pytest.mark.slow("the trained model")
def test_the_shipped_model_is_the_same_in_javascript(ask):
    model, tokenizer = hf.load_pretrained(), load_tokenizer()
    film = hf.PRETRAINED / "mixtral-mini" / "film.safetensors"
    texts = [tokenizer.encode(TEXT).ids, *Film.load(film).ids_BS.tolist()[::2]]
    wishes = [{"act": "run", "question": [], "follow": [ids]} for ids in texts]
    timed = {"act": "time", "times": 20, "ids": texts[1][:64]}
    small, (*replies, time) = ask(model, *wishes, timed, levels=63)
    worst = max(compare(small, *each) for each in zip(replies, texts, strict=True))
    print(f"largest difference of a logit {worst:.1e}, over {sum(map(len, texts))} tokens; "
          f"64 tokens in {statistics.median(time['times']):.0f} ms (median of 20)")  # fmt: skip
    assert worst < 1e-4


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"num_local_experts": 1, "num_experts_per_tok": 1},
        {"tie_word_embeddings": True, "head_dim": 10, "hidden_size": 21, "intermediate_size": 7},
        {"sliding_window": 6, "num_local_experts": 9, "num_experts_per_tok": 3},
    ],
    ids=["plain", "dense", "odd and tied", "a window"],
)
def test_any_sizes_of_a_mixtral(ask, sizes):
    model = tiny(**sizes)
    for norm in (model.norm, model.layers[0].input_layernorm):
        torch.nn.init.normal_(norm.weight, mean=1.0)
    ids = torch.randint(0, 4100, (39,)).tolist()
    pieces = [ids[:1], ids[:4], ids[:3] + [7, 8], ids[:30], ids]  # as typing makes them
    wishes = [{"act": "run", "question": [], "follow": follow} for follow in ([ids], pieces)]
    small, replies = ask(model, *wishes)
    for reply in replies:
        assert compare(small, reply, ids) < 1e-4


QUESTIONS = [
    [ablate(0, 2)],
    [ban(1, 0, tokens=[3, 5])],
    [force(0, 4, tokens=9)],
    [force(1, 1), top_k(1)],
    [top_k(3, layer=1), ban(1, 2)],
    [swap(0, 1, 3), ablate(0, 3, tokens=[2])],
    [top_k(1, tokens=[0, 1, 2]), force(0, 0), swap(1, 0, 4)],
]


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_what_is_asked_is_done_as_in_python(ask, question):
    ids = torch.randint(0, 4100, (12,)).tolist()
    wish = {"act": "run", "question": wire(question), "follow": [ids[:7], ids]}
    small, (reply,) = ask(tiny(), wish)
    assert compare(small, reply, ids, *question) < 1e-4


def test_scaling_a_gate(ask):
    """By 0 it is ablation; by 1 nothing; else the pair adds so many times what it did."""
    ids = torch.randint(0, 4100, (6,)).tolist()
    wishes = [
        {"act": "run", "question": [["scale", 0, 2, -1, by, None]], "follow": [ids]}
        for by in (0, 1, 2.5)
    ]
    small, (none, same, more) = ask(tiny(), *wishes)
    assert compare(small, none, ids, ablate(0, 2)) < 1e-4
    assert compare(small, same, ids) < 1e-4

    def scale(gate, args, routing):
        return replace(
            routing, gate_N=routing.gate_N.where(routing.expert_N != 2, 2.5 * routing.gate_N)
        )

    hook = small.moe_layers[0].gate.register_forward_hook(scale)
    assert compare(small, more, ids) < 1e-4
    hook.remove()


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ([force(0, 1), ban(0, 1)], "both forced and banned"),
        ([force(0, 1), force(0, 2), force(0, 3)], "more experts are forced"),
        ([top_k(5), ban(1, 0)], "fewer experts are left"),
    ],
)
def test_what_cannot_be_done_is_said_as_in_python(ask, question, said):
    wish = {"act": "show", "text": TEXT, "question": wire(question), "cut": 3}
    small, (reply,) = ask(tiny(), wish)
    assert said in reply["traits"]["answer"]["error"]
    with pytest.raises(ValueError, match=said), intervene(small, *question):
        small(torch.tensor([[1, 2, 3]]))


def arrays(traits):
    data = traits["data"]
    raw = data if isinstance(data, bytes) else b64decode(data)
    kinds = {"u1": "<u1", "u2": "<u2", "u4": "<u4", "i2": "<i2", "f4": "<f4"}
    return {
        name: np.frombuffer(raw, kinds[kind], size, at)
        for name, (kind, at, size) in traits["arrays"].items()
    }


def block(answer):
    data = answer["data"]
    raw = data if isinstance(data, bytes) else b64decode(data)
    return np.frombuffer(raw, "<u2").astype(int)


@pytest.mark.parametrize("question", [[ablate(0, 2)], [swap(1, 0, 1, tokens=[4])]], ids=str)
def test_the_worker_answers_as_a_kernel_would(ask, question):
    """The same traits as the widget's, up to the last digit that is sent."""
    wish = {"act": "show", "text": TEXT, "question": wire(question), "cut": 5}
    small, (first, second) = ask(tiny(), wish)
    widget = RoutingExplorer(TEXT, model=small, tokenizer=load_tokenizer(), selected=5)
    widget.ask(*question)
    traits = first["traits"]
    assert traits["tokens"] == widget.tokens
    mine, theirs = arrays(traits), arrays({"data": widget.data, "arrays": widget.arrays})
    assert list(mine) == list(theirs)
    for name in theirs:
        assert np.allclose(mine[name], theirs[name], atol=1, rtol=0), name
    assert np.array_equal(mine["expert"], theirs["expert"])
    base = widget.answers["[]"]
    n, words = len(widget.tokens), [[0] * 0] * 2
    got, want = block(traits["answers"]["[]"]), block(base)
    cut = n * base["top"]
    words = [
        [each["words"][i] for i in index[:cut]]
        for each, index in ((traits["answers"]["[]"], got), (base, want))
    ]
    assert words[0] == words[1]
    assert np.abs(got[cut:] - want[cut:]).max() <= 8  # of 65,535; thousandths of a nat
    for reply in (first, second):
        answer = reply["traits"]["answer"]
        assert answer["key"] == widget.answer["key"] and answer["first"] == widget.answer["first"]
        assert answer["moved"] == widget.answer["moved"]
        k, rest = n - answer["first"], base["top"] * (n - answer["first"])
        got, want = block(answer), block(widget.answer)
        assert np.abs(got[:rest] - want[:rest]).max() <= 8
        assert [answer["words"][i] for i in got[rest : rest + k]] == [
            widget.answer["words"][i] for i in want[rest : rest + k]
        ]
        assert np.abs(got[rest + k :] - want[rest + k :]).max() <= 8
    assert second["traits"]["answer"]["next"] == widget.answer["next"]


def test_writing_on(ask):
    """At temperature 0 as generate does; drawn, the same again with the same seed."""
    model = tiny()
    write = {"act": "write", "question": [], "count": 12, "seed": 3}
    texts = [{**write, "text": "To be", "temperature": t} for t in (0, 1, 1)]
    small, replies = ask(model, *texts)
    written = [reply["traits"]["tokens"] for reply in replies if reply.get("made") == 12]
    tokenizer = load_tokenizer()
    ids_BS = small.generate(torch.tensor([tokenizer.encode("To be").ids]), 12, temperature=0)
    known = [i for i in ids_BS[0].tolist() if i < 4096]
    assert [word for word in written[0] if word[0] != "#"] == pieces(tokenizer, known)
    assert written[1] == written[2] != written[0]


def test_each_answer_names_its_turn_and_a_names_experts_are_those_of_all_its_tokens(ask):
    text, tokenizer = "To be: 12\nLun Mor: ", load_tokenizer()
    wish = {"text": text, "question": wire([ablate(0, 2)]), "cut": 3, "recall": "Lun Mor"}
    write = {"act": "write", "turn": 8, "question": [], "count": 2, "seed": 3, "temperature": 0}
    bad = {"act": "show", "turn": 9, "text": "", "question": []}
    small, replies = ask(tiny(), {"act": "show", "turn": 7, **wish}, write, bad)
    assert [reply["turn"] for reply in replies] == [7, 7, 7, 8, 8, 8, 9]
    ids = tokenizer.encode(text).ids
    begin = len(tokenizer.encode("To be: 12\n").ids)
    assert begin < len(ids) - 2
    _, routings = small.hidden(torch.tensor([ids]))
    own = [sorted({*r.expert_N[r.token_N >= begin].tolist()}) for r in routings]
    assert replies[1]["recalled"]["by"] == own


def test_text_longer_than_the_context_is_said(ask):
    _, replies = ask(tiny(max_position_embeddings=8), {"act": "show", "text": TEXT, "question": []})
    assert "more than the model’s context of 8" in replies[0]["problem"]


# --- the tokenizer ------------------------------------------------------------------------------


def strings(count=20_000):
    """Make strings in every script, of every category, with whatever else Unicode brings."""
    draw = random.Random(0)
    code_points = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    assigned = [i for i in code_points if unicodedata.category(chr(i)) != "Cn"]
    letters = [i for i in assigned if unicodedata.category(chr(i))[0] == "L"]
    marks = [i for i in assigned if unicodedata.category(chr(i))[0] in "MNPSZ"]
    spaces = [
        *" \n\t\r\v\f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\ufeff\u200b\u180e\x1c"
    ]
    words = TEXT.split() + [
        "don't",
        "l'amour",
        "'s",
        "＇",
        "ﬁ",
        "İ",
        "ß",
        "x²",
        "½",
        "Ⅷ",
        "々",
        "〇",
    ]
    for n in range(count):
        start = draw.choice(assigned)
        pools = (
            lambda: chr(draw.choice(letters)), lambda: chr(draw.choice(marks)),
            lambda: draw.choice(spaces), lambda: draw.choice(words), lambda: " ",
            lambda start=start: chr(min(start + draw.randrange(40), 0x10FFFF)),
            lambda: chr(draw.choice(code_points)), lambda: chr(draw.randrange(128)),
        )  # fmt: skip
        some = draw.sample(pools, 3)
        text = "".join(draw.choice(some)() for _ in range(draw.randrange(1, 24)))
        yield "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000) or str(n)


def test_the_tokenizer_is_the_same(ask):
    tokenizer, texts = load_tokenizer(), list(strings())
    wishes = [{"act": "ids", "texts": texts}, {"act": "spell", "ids": list(range(4096))}]
    _, (found, spelled) = ask(tiny(), *wishes)
    wrong = [
        text
        for text, ids in zip(texts, found["ids"], strict=True)
        if ids != tokenizer.encode(text).ids
    ]
    seen = {chr(i) for i in range(0x110000)} & set("".join(texts))
    print(f"{len(texts):,} strings, {len(seen):,} different characters, {len(wrong)} differ")
    assert not wrong
    assert spelled["words"] == pieces(tokenizer, range(4096))


@pytest.mark.slow("every code point")
def test_every_code_point(ask):
    """Each alone and between letters, so that its class is what the tokenizers library says."""
    tokenizer = load_tokenizer()
    points = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    lines = ["".join(f"a{c} " for c in points[n : n + 500]) for n in range(0, len(points), 500)]
    _, (found,) = ask(tiny(), {"act": "ids", "texts": lines})
    assert found["ids"] == [encoding.ids for encoding in tokenizer.encode_batch(lines)]


def other(change):
    said = json.loads(load_tokenizer().to_str())
    change(said)
    return Tokenizer.from_str(json.dumps(said))


def unigram():
    tokenizer = Tokenizer(models.Unigram([("a", 0.0), ("b", 0.0)], unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        unigram,
        lambda: other(lambda said: said.update(normalizer={"type": "NFC"})),
        lambda: other(lambda said: said["pre_tokenizer"]["pretokenizers"].pop()),
        lambda: other(lambda said: said["model"].update(ignore_merges=True)),
        lambda: other(lambda said: said["added_tokens"][0].update(lstrip=True)),
        lambda: other(lambda said: said.update(decoder={"type": "WordPiece", "prefix": "#", "cleanup": True})),  # noqa: E501
    ],
)  # fmt: skip
def test_another_kind_of_tokenizer_is_refused(make):
    with pytest.raises(ValueError, match="^the live page cannot run this tokenizer: it"):
        tokenizer_parts(make())


# --- the command --------------------------------------------------------------------------------


def test_a_model_that_is_too_large_is_refused_before_anything_is_read(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "live.html"
    folder.mkdir()
    config = json.loads((hf.PRETRAINED / "mixtral-mini" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 1920}))
    assert cli.main(["explore", "--live", "--model", str(folder), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "parameters do not fit a live page of 12 MB" in said and said.count("\n") == 1
    assert not out.exists()


def test_a_small_model_without_a_film(tmp_path, capsys):
    """Any checkpoint of the layout, with a tokenizer and sizes of its own."""
    folder, out = tmp_path / "model", tmp_path / "live.html"
    hf.save(tiny(vocab_size=4096), folder)
    assert cli.main(["explore", "a text", "--live", "--model", str(folder), "--out", str(out)]) == 0
    assert "from -127 to 127" in capsys.readouterr().out
    assert out.stat().st_size < 12_000_000 and out.read_bytes().isascii() is False
    assert cli.main(["explore", "--live", "--film", "--out", str(tmp_path / "no.html")]) == 1
    assert "stands alone" in capsys.readouterr().err
