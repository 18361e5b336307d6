"""The typed boundary: each refusal is one sentence with file, field and value."""

import json
import os
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lite.checked import build, check_room, conform, parse, read_json, read_text, short

DEEP = "[" * 100_000


@dataclass
class Part:
    size: int
    rate: float = 0.5

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")


@dataclass
class Whole:
    part: Part
    names: tuple[str, ...] = ()
    mode: Literal["on", "off"] = "on"
    limit: int | None = None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "f.json: not valid JSON (Expecting value"),
        ('{"a": 1} x', "f.json: not valid JSON (Extra data"),
        (DEEP, "f.json: not valid JSON (nested deeper than 32)"),
        ("[" * 40 + "]" * 40, "f.json: not valid JSON (nested deeper than 32)"),
        ('{"a": 1, "a": 2}', "f.json: not valid JSON (the field 'a' stands there twice)"),
        ('{"a": "\\ud800"}', r"f.json: not valid JSON ('\ud800' is half a character)"),
        ('{"\\udfff": 1}', r"f.json: not valid JSON ('\udfff' is half a character)"),
        ("9" * 5000, "f.json: not valid JSON (Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_refused(text, sentence):
    with pytest.raises(ValueError) as error:
        parse(text, "f.json")
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_files_are_bounded_and_text(tmp_path):
    file = tmp_path / "f.json"
    with pytest.raises(FileNotFoundError, match="there is no f.json in"):
        read_text(file)
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')  # as Windows' editors write it
    assert read_json(file) == {"a": "é"}
    with pytest.raises(ValueError, match=r"f.json: 14 bytes are more than the 10 allowed"):
        read_json(file, 10)
    file.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ValueError, match=r"f.json: not UTF-8 text \(at byte 7\)"):
        read_json(file)
    file.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"f.json: holds \[1, 2\], not a JSON object"):
        read_json(file)
    with pytest.raises(ValueError, match="is not a file"):
        read_text(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a file"):
        read_text(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (True, int, "a whole number"), ("1", int, "a whole number"), (1.0, int, "a whole number"),
        (2**63, int, "below 2**63"), (-(2**80), int, "below 2**63"),
        (True, float, "a finite number"), (float("nan"), float, "a finite number"),
        (float("inf"), float, "a finite number"), (10**400, float, "a finite number"),
        (0, bool, "true or false"), (1, str, "text"), ("on ", Literal["on"], "one of 'on'"),
        ([1], tuple[int, int], "a list of 2"), ("ab", list[str], "a list"),
        ([], dict[str, int], "an object"), ("x", int | None, "a whole number or null"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(value, kind, wanted):
    with pytest.raises(ValueError) as error:
        conform(value, kind, "f.json: x")
    assert str(error.value) == f"f.json: x must be {wanted}, not {short(value)}"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists),
    st.sampled_from([int, float, bool, str, list[int], tuple[float, ...], int | None, Any]),
)
def test_what_passes_is_of_the_type(value, kind):
    try:
        found = conform(value, kind, "x")
    except ValueError:
        return
    if kind in (int, float, bool, str):
        assert type(found) is kind and found == value
    elif kind is tuple[float, ...]:
        assert all(type(one) is float for one in found) and list(found) == value


def test_a_dataclass_is_made_by_its_own_words():
    made = build(Whole, {"part": {"size": 3, "rate": 1}, "names": ["a"]}, "f.json")
    assert made == Whole(Part(3, 1.0), ("a",)) and type(made.part.rate) is float
    assert build(Whole, {"part": {"rate": 2}}, "f.json", made).part == Part(3, 2.0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "f.json must be a JSON object, not []"),
        ({}, "f.json: part is missing"),
        ({"part": {}}, "f.json: part: size is missing"),
        ({"part": {"size": 0}}, "f.json: part: size must be at least 1, not 0"),
        ({"part": {"size": 1, "x": 2}}, "f.json: part has no field 'x'; it has size, rate"),
        ({"part": {"size": 1}, "names": ["a", 1]}, "f.json: names[1] must be text, not 1"),
        ({"part": {"size": 1}, "mode": "On"}, "f.json: mode must be one of 'on', 'off', not 'On'"),
    ],
)
def test_what_cannot_be_a_dataclass_is_refused(values, sentence):
    with pytest.raises(ValueError) as error:
        build(Whole, values, "f.json")
    assert str(error.value) == sentence


def test_long_values_are_cut():
    assert len(short(["x"] * 10**6)) <= 60 and len(short({"a": "b" * 10**6})) <= 60
    assert short("a\nb") == r"'a\nb'" and json.loads(short(12)) == 12


def test_what_no_memory_holds_is_refused_first():
    check_room(10**6, "it")
    with pytest.raises(ValueError, match=r"it takes 4,611,686,018.4 GB of memory, and there are"):
        check_room(2**62, "it", torch.device("cpu"))
