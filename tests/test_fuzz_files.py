"""Hostile files of every kind: a sentence, or what was saved; never a traceback, never an end.

A case is a whole file with one to three things wrong: fields dropped, retyped, resized, nested,
renamed or swapped; bytes flipped; the end cut off. FUZZ_CASES=100000 asks for more of them,
FUZZ_SEED=1 for others. A failure names its case, which runs alone by FUZZ_ONLY="film 17".
"""

import json
import math
import os
import random
import signal
import struct
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from moe_lite import hf
from moe_lite.checkpoint import load_checkpoint, save_checkpoint
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course import ledger, traces
from moe_lite.course.data import encode, load_tokenizer, pieces
from moe_lite.course.film import Film
from moe_lite.course.recipes import RECIPES, Recipe, read_recipe
from moe_lite.history import History
from moe_lite.model import Mixtral
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace
from moe_lite.train import make_optimizer

CASES = int(os.environ.get("FUZZ_CASES", "10000"))
SEED = os.environ.get("FUZZ_SEED", "0")
ONLY = os.environ.get("FUZZ_ONLY", "")
HANG_S = 30  # for one case, which takes milliseconds; a limit, not a judgement
os.environ["RUST_BACKTRACE"] = "0"

DEEP: object = 0
for _ in range(100):
    DEEP = [DEEP]
STRANGE = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**62, 2**63, 10**30, 1.5, -0.5, 1e-320, 1e308,
    math.nan, math.inf, "", "1", "1.5", "big", "true", "\ud800", "\0", "a\nb", "../x", "/dev/zero",
    "x" * 5000, [], [[]], [1], [1, 2, 3], [None], ["a", 1], {}, {"a": 1}, {"": {}}, [0] * 3000,
    DEEP, "((a+)+)+$", "int8", "F64", "BF16", "step-00000002",
]  # fmt: skip


# --- how a file is spoilt ------------------------------------------------------------------------


def places(value, found=None):
    """List every (container, key) of a JSON value."""
    found = [] if found is None else found
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


def spoil_json(rng: random.Random, value):
    """Change a JSON value in one place."""
    there = places(value)
    if not there:
        return rng.choice(STRANGE)
    within, key = rng.choice(there)
    change = rng.randrange(8)
    if change == 0:
        del within[key]
    elif change == 1:
        other_within, other = rng.choice(there)
        try:
            within[key], other_within[other] = other_within[other], within[key]
            json.dumps(value)
        except (ValueError, RecursionError):  # one lies in the other
            return rng.choice(STRANGE)
    elif change == 2:
        within[key] = [within[key]] if rng.random() < 0.5 else {"a": within[key]}
    elif change == 3 and isinstance(within, dict):
        within[rng.choice(["", "x", str(key) + "s", "\n", "\ud800", "é" * 300])] = within.pop(key)
    elif change == 4 and isinstance(within[key], list | str):
        within[key] = (
            within[key][: len(within[key]) // 2] if rng.random() < 0.5 else within[key] * 2
        )
    elif change == 5 and isinstance(within[key], int | float):
        by = rng.choice([-1, 0, 0.5, 1.0, 1e9, 2, -2, 10**20])
        try:
            within[key] = within[key] * by
        except OverflowError:
            within[key] = by
    else:
        within[key] = rng.choice(STRANGE)
    return value


def spoil_bytes(rng: random.Random, content: bytes, most: int | None = None) -> bytes:
    """Change the bytes of a file in one place, among the first ``most``."""
    at = rng.randrange(max(1, min(len(content), most or len(content))))
    change = rng.randrange(8)
    if change == 0:
        return content[:at]
    if change == 1:
        return content + rng.choice([b"\0", b"{}", b"garbage", b"\n\n", b" "])
    if change == 2:
        return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"version https://git-lfs", b"PK\x03\x04",
                           b"\x80\x04\x95", b"[" * 100_000]) + content  # fmt: skip
    if change == 3:
        return content[:at] + content[at + rng.randrange(1, 40) :]
    if change == 4:
        inserted = [b"\xff", b'"', b"{", b"]", b",", b"NaN", b"-Infinity", b"9" * 5000, b"\\ud800"]
        return content[:at] + rng.choice(inserted) + content[at:]
    if change == 5 and content.lstrip()[:1] == b"{":  # a field twice
        name = content.split(b'"')[1] if content.count(b'"') > 1 else b"a"
        return content.replace(b"{", b'{"' + name + b'": 1, ', 1)
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 1, 4])):
        place = rng.randrange(max(1, min(len(content), most or len(content))))
        if place < len(flipped):
            flipped[place] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def dumped(value) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def spoil_text(rng: random.Random, content: bytes) -> bytes:
    """Spoil a file of JSON."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = None
        if rng.random() < 0.75:
            try:
                value = json.loads(content)
            except (ValueError, RecursionError):
                value = None
        if isinstance(value, dict | list):
            content = dumped(spoil_json(rng, value))
        else:
            content = spoil_bytes(rng, content)
    return content


def spoil_lines(rng: random.Random, content: bytes) -> bytes:
    """Spoil a file of JSON lines."""
    if rng.random() < 0.2:
        return spoil_bytes(rng, content)
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    change = rng.randrange(6)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(at, rng.choice(lines))
    elif change == 2:
        rng.shuffle(lines)
    else:
        lines[at] = spoil_text(rng, lines[at])
    return b"".join(line + b"\n" for line in lines)


def spoil_tensors(rng: random.Random, content: bytes) -> bytes:
    """Spoil a safetensors file, mostly in its header; the JSON within its JSON as well."""
    if rng.random() < 0.3:
        return spoil_bytes(rng, content, 400)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    words = header.get("__metadata__")
    if words and rng.random() < 0.5:
        name = rng.choice(sorted(words))
        try:
            words[name] = json.dumps(spoil_json(rng, {"": json.loads(words[name])}).get(""))
        except (ValueError, AttributeError):
            words[name] = "{"
    else:
        header = spoil_json(rng, header)
        if rng.random() < 0.3 and isinstance(header, dict) and header:
            entry = header[rng.choice(sorted(header))]
            if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                rng.shuffle(entry["shape"])
    text = dumped(header)
    length = rng.choice([len(text)] * 9 + [2**63, 0, len(text) - 1])
    return struct.pack("<Q", length) + text + (data if rng.random() < 0.95 else data[:-7])


# --- the kinds of files: what is whole, and what reading it must give ----------------------------

TINY = MixtralConfig(
    vocab_size=6, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=8,
)  # fmt: skip


def whole_model(folder: Path, shard: int = 10**9) -> None:
    torch.manual_seed(0)
    hf.save(Mixtral(TINY), folder, max_shard_bytes=shard, overwrite=True)


def read_model(folder: Path) -> None:
    """Load; every parameter must be what the files themselves say."""
    model = hf.load(folder)
    stored = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    stored |= (
        {"lm_head.weight": stored["model.embed_tokens.weight"]}
        if "lm_head.weight" not in stored
        else {}
    )
    for name, (tensor,) in hf._layout(model).items():
        assert tensor.shape == stored[name].shape and tensor.dtype == stored[name].dtype, name
        assert torch.equal(tensor.nan_to_num(), stored[name].nan_to_num()), name


def read_config(folder: Path) -> None:
    """Load; written again, it must be the same."""
    config = hf.load_config(folder)
    assert all(type(v) in (int, float, bool, tuple, type(None)) for v in asdict(config).values())
    again = folder / "again"
    again.mkdir(exist_ok=True)
    (again / "config.json").write_text(hf._config_json(config, torch.float32), encoding="utf-8")
    assert hf.load_config(again) == config


def whole_recipe(folder: Path) -> None:
    base = RECIPES["mixtral-mini"]
    whole = {"model": asdict(base.model), "training": asdict(base.training),
             "domains": list(base.domains), "max_bytes": 1000, "frames": 24}  # fmt: skip
    (folder / "recipe.json").write_bytes(dumped(whole))


def read_a_recipe(folder: Path) -> None:
    """Read; its model's config must be one that a checkpoint can have."""
    recipe = read_recipe(str(folder / "recipe.json"))
    assert isinstance(recipe, Recipe) and isinstance(recipe.training, TrainConfig)
    assert all(isinstance(name, str) for name in recipe.domains)
    text = hf._config_json(recipe.model, torch.float32)
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert hf.load_config(folder) == recipe.model


def whole_film(folder: Path) -> None:
    torch.manual_seed(0)
    ids_BS, domain_BS = torch.arange(6).view(2, 3), torch.tensor([[0] * 3, [1] * 3])
    film = Film(ids_BS, domain_BS, ("a", "b"), list("abcdef"), [0, 1, 5], 2)
    film.logits = {step: torch.randn(2, 6, 4).half() for step in (0, 5)}
    choices_TK = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
    half_TE, gates_TK = torch.full((6, 4), 0.5), torch.full((6, 2), 0.5)
    kept_N = torch.tensor([True, False] * 6)
    film.routings[1] = (
        Routing.from_choices(half_TE, half_TE / 2, choices_TK, gates_TK),
        Routing.from_choices(half_TE, half_TE / 2, choices_TK, gates_TK,
                             keep_N=kept_N, noise_TE=half_TE, bias_E=torch.zeros(4)),
    )  # fmt: skip
    film.save(folder / "film.safetensors")


def read_film(folder: Path) -> None:
    film = Film.load(folder / "film.safetensors")
    assert film.steps
    for step in film.steps:
        trace = film.trace(step)
        assert len(trace.tokens) == film.ids_BS.numel() == trace.layers[0].num_tokens
        assert all(isinstance(token, str) for token in trace.tokens)
        assert all(r.num_experts == trace.layers[0].num_experts for r in trace.layers)
        assert all(r.gates_TE().isfinite().all() and len(r.load_E()) for r in trace.layers)
    assert len(film.domains) > int(film.domain_BS.max()) and int(film.domain_BS.min()) >= 0


def whole_history(folder: Path) -> None:
    rows = []
    for i in range(1, 6):
        row = {"step": i, "tokens": 8 * i, "seconds": 0.5 * i, "loss": 2.0, "balance": 1.0}
        row |= {"z": 0.1, "load": 1.5, "dropped": 0.0, "lr": 1e-3, "norm": 0.7, "mine": math.nan}
        rows.append(row | ({"bits": {"a": 2.5, "b": 3.0}} if i % 2 else {}))
    History(rows).save(folder / "history.jsonl")


def read_history(folder: Path) -> None:
    history = History.load(folder / "history.jsonl")
    steps = history.column("step")
    assert steps == sorted(set(steps)) and all(type(step) is int for step in steps)
    for name in ("tokens", "seconds", "loss", "load"):
        assert len(history.column(name)) == len(steps)
        assert all(type(v) in (int, float) and math.isfinite(v) for v in history.column(name))
    assert repr(history) and history.column("loss") is not None
    for row in history.rows:
        assert all(isinstance(v, int | float) for v in row.get("bits", {}).values())


SETTINGS, WEIGHTS = TrainConfig(steps=3), {}


def whole_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    model = Mixtral(TINY)
    optimizer = make_optimizer(model, SETTINGS)
    model(torch.tensor([[1, 2, 3]])).logits_BSV.sum().backward()
    optimizer.step()
    WEIGHTS.update({name: p.detach().clone() for name, p in model.named_parameters()})
    whole_history(folder)
    history = History.load(folder / "history.jsonl")
    (folder / "history.jsonl").unlink()
    save_checkpoint(folder, model, optimizer, SETTINGS, "text", history)


def read_checkpoint(folder: Path) -> None:
    """Resume; a model and an optimizer that are not those that were saved are a wrong load."""
    torch.manual_seed(1)
    model = Mixtral(TINY)
    optimizer = make_optimizer(model, SETTINGS)
    (path,) = folder.glob("step-*")
    history = load_checkpoint(path, model, optimizer, SETTINGS, "text")
    assert len(history) == 5
    assert all(torch.equal(p, WEIGHTS[name]) for name, p in model.named_parameters())
    assert all(len(state) == 3 for state in optimizer.state.values())  # step and two moments


def whole_tokenizer(folder: Path) -> None:
    vocab = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "c": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\w+|\s+"), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    tokenizer.enable_padding(length=16, pad_token="a", pad_id=1)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))


def read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = encode(tokenizer, "ab ab aaaaaaaaaaaaaaaaaaaaaaaaaaab! c")
    assert all(isinstance(i, int) for i in ids)
    assert len(pieces(tokenizer, ids)) == len(ids)


def whole_result(folder: Path) -> None:
    result = ledger.Result(
        "fake", [0, 1, 2], {"lr": 1}, {"speed": [1.0, 2.0, None], "lost": [1.0, 1.0, 1.0]},
        {"python": "3.11", "torch": "2.10", "numpy": "2", "moe_lite": "1"},
        {"system": "Linux", "cpu": "x", "cores": 2, "threads": 1, "gpu": None}, 2.5,
    )  # fmt: skip
    (folder / "result.json").write_bytes(dumped(asdict(result)))


def read_result(folder: Path) -> None:
    result = ledger.read(folder / "result.json")
    assert ledger.small_print(result) and all(str(result[name]) for name in result.measures)
    assert all(len(values) == len(result.seeds) for values in result.measures.values())


MARK = {"settings": {"a": [1, 2]}, "text": "abc"}


def whole_part(folder: Path) -> None:
    done = {"a; seed 0": {"loss": 1.5, "diverged": None}}
    (folder / ".part.json").write_bytes(dumped({"mark": MARK, "done": done}))


def read_part(folder: Path) -> None:
    assert isinstance(ledger.unfinished(folder / ".part.json", MARK), dict)


def whole_trace(folder: Path) -> None:
    nan_TE = torch.full((6, 3), torch.nan)
    index_TK = torch.tensor([[0, 2]] * 6)
    hidden = Routing.from_choices(nan_TE, nan_TE, index_TK, torch.rand(6, 2))
    where = torch.zeros(6).long(), torch.arange(6)
    trace = RoutingTrace([*"abcdef"], (hidden,) * 2, ("0", "1"), "it", ("scores unknown",) * 2,
                         *where)  # fmt: skip
    traces.save(trace, folder / "trace.safetensors")


def read_trace(folder: Path) -> None:
    trace = traces.load(folder / "trace.safetensors")
    assert all(layer.gates_TE().shape[0] == len(trace.tokens) for layer in trace.layers)


def whole_table(folder: Path) -> None:
    rows = [f"{t},{n},{e},0.{e}5,w{t}" for t in range(4) for n in (0, 10) for e in (1, 2)]
    (folder / "table.csv").write_text("\n".join(["token,layer,expert,weight,text", *rows]) + "\n")


def read_table(folder: Path) -> None:
    trace = traces.from_csv(folder / "table.csv")
    assert all(layer.gates_TE().shape[0] == len(trace.tokens) for layer in trace.layers)


KINDS = {  # name: (share of the cases, the file, make it whole, spoil it, read it)
    "recipe": (3, "recipe.json", whole_recipe, spoil_text, read_a_recipe),
    "config": (3, "config.json", whole_model, spoil_text, read_config),
    "config of a model": (2, "config.json", whole_model, spoil_text, read_model),
    "model": (3, "model.safetensors", whole_model, spoil_tensors, read_model),
    "index": (1, "model.safetensors.index.json", lambda f: whole_model(f, 300), spoil_text,
              read_model),
    "film": (3, "film.safetensors", whole_film, spoil_tensors, read_film),
    "trace": (3, "trace.safetensors", whole_trace, spoil_tensors, read_trace),
    "table": (2, "table.csv", whole_table, spoil_lines, read_table),
    "history": (3, "history.jsonl", whole_history, spoil_lines, read_history),
    "state": (1, "step-00000005/state.json", whole_checkpoint, spoil_text, read_checkpoint),
    "rows": (1, "step-00000005/history.jsonl", whole_checkpoint, spoil_lines, read_checkpoint),
    "tokenizer": (3, "tokenizer.json", whole_tokenizer, spoil_text, read_tokenizer),
    "result": (2, "result.json", whole_result, spoil_text, read_result),
    "part": (1, ".part.json", whole_part, spoil_text, read_part),
}  # fmt: skip


# --- the run -------------------------------------------------------------------------------------


class Hang(BaseException):
    pass


@contextmanager
def alarm():
    """Raise Hang in whatever does not end; where there are no alarms, pytest's own limit does."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_):
        raise Hang(f"no end within {HANG_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def complaint(error: BaseException, folder: Path) -> str | None:
    """Say what is wrong with an error, or None if it is one sentence about this folder's file."""
    said = str(error)
    if not isinstance(error, ValueError | OSError) or isinstance(error, UnicodeError):
        return f"{type(error).__name__}: {said[:300]}"
    if isinstance(error, json.JSONDecodeError) or "\n" in said or not 10 < len(said) < 700:
        return f"no sentence: {said[:300]!r}"
    if folder.name not in said and "tokenizer cannot read" not in said and "no token" not in said:
        return f"names no file: {said}"
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_a_sentence_or_what_was_saved(kind, tmp_path):
    share, name, whole, spoil, read = KINDS[kind]
    folder = tmp_path / "spoilt"
    folder.mkdir()
    whole(folder)
    content, wrong, refused = (folder / name).read_bytes(), [], 0
    read(folder)  # whole, it passes
    count = max(20, CASES * share // sum(share for share, *_ in KINDS.values()))
    cases = [int(ONLY.split()[-1])] if ONLY.startswith(kind + " ") else range(count)
    for case in [] if ONLY and not ONLY.startswith(kind + " ") else cases:
        rng = random.Random(f"{SEED} {kind} {case}")
        (folder / name).write_bytes(spoil(rng, content))
        try:
            with alarm():
                read(folder)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            refused += 1
            if what := complaint(error, folder):
                wrong.append(f"{kind} {case}: {what}")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:15])
    assert ONLY or refused > count / 4  # the files were spoilt indeed
