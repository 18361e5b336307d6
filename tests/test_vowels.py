"""The vowels are Peterson and Barney's, to the last figure."""

import csv
import io

import pytest
import torch

from moe_lite.course.vowels import IPA, PATH, load_vowels


def test_everybody_said_everything_twice():
    vowels = load_vowels(tuple(IPA))
    assert len(vowels.names) == 1520 and vowels.hertz_T4.shape == (1520, 4)
    for name in IPA:
        mine = torch.tensor([other == name for other in vowels.names])
        assert vowels.speaker_T[mine].bincount().tolist() == [0] + [2] * 76
    assert (vowels.hertz_T4[:, 1] <= vowels.hertz_T4[:, 2]).all()


def test_the_papers_split():
    vowels = load_vowels()
    assert vowels.train_T.sum() == 50 * 8 and vowels.test_T.sum() == 25 * 8
    assert not (vowels.train_T & vowels.test_T).any()


def test_targets():
    vowels = load_vowels()
    assert vowels.is_one_of(("iy", "aa")).sum() == 304
    four = vowels.one_hot()
    assert four.sum(0).tolist() == [152.0] * 4 and (four.sum(1) == 1).all()
    assert four[[name == "aa" for name in vowels.names], 0].all()  # first in the alphabet


def test_an_unknown_vowel_is_named():
    with pytest.raises(ValueError, match="no vowel 'xx'; there are: iy, ih"):
        load_vowels(("iy", "xx"))


def test_the_file_says_where_the_figures_are_from():
    head = PATH.read_text(encoding="utf-8")[:600]
    assert "Peterson" in head and "Barney" in head and "10.1121/1.1906875" in head


def test_the_figures_are_praats():
    praat = pytest.importorskip("parselmouth.praat")
    table = praat.call("Create formant table (Peterson & Barney 1952)")
    listed = csv.DictReader(io.StringIO(praat.call(table, "List", True)), delimiter="\t")
    theirs = [tuple(row[key] for key in ("Type", "Sex", "Speaker", "Vowel", "F0", "F1", "F2", "F3"))
              for row in listed]  # fmt: skip
    with PATH.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(line for line in file if not line.startswith("#")))
    assert [tuple(row) for row in rows[1:]] == theirs
