"""Peterson and Barney's vowels: what experts first competed for."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PATH = Path(__file__).parent / "assets" / "vowels.csv"
IPA = {
    "iy": "i", "ih": "ɪ", "eh": "ɛ", "ae": "æ", "ah": "ʌ",
    "aa": "ɑ", "ao": "ɔ", "uh": "ʊ", "uw": "u", "er": "ɝ",
}  # fmt: skip
JACOBS = ("iy", "ih", "aa", "ah")


@dataclass(frozen=True, eq=False)
class Vowels:
    """Hold T vowels as they were said.

    Shapes: hertz_T4: fundamental frequency F0 and formants F1, F2, F3, float64, in Hz.
            speaker_T: int64 from 1; 1-33 are men, 34-61 women, 62-76 children.
    """

    names: tuple[str, ...]
    hertz_T4: Tensor
    speaker_T: Tensor

    @property
    def x_T2(self) -> Tensor:
        """Return the first two formants in kHz: what a model sees."""
        return self.hertz_T4[:, 1:3] / 1000

    @property
    def train_T(self) -> Tensor:
        """Return the first 50 speakers, all men and 17 women, as in Jacobs et al. 1991."""
        return self.speaker_T <= 50

    @property
    def test_T(self) -> Tensor:
        """Return the next 25: women and children. (There is a 76th; the paper has 75.)"""
        return (self.speaker_T > 50) & (self.speaker_T <= 75)

    def is_one_of(self, names: Sequence[str]) -> Tensor:
        """Return 1.0 for these vowels, 0.0 for the others: (T, 1), a target."""
        ones = [[float(name in names)] for name in self.names]
        return torch.tensor(ones, dtype=torch.float64)

    def one_hot(self) -> Tensor:
        """Return a 1.0 in the column of each vowel's name, in alphabetical order: (T, V)."""
        columns = sorted(set(self.names))
        return torch.eye(len(columns), dtype=torch.float64)[[columns.index(n) for n in self.names]]


def load_vowels(names: Sequence[str] = JACOBS) -> Vowels:
    """Load these vowels of all 76 speakers, each said twice.

    >>> load_vowels().x_T2.shape
    torch.Size([608, 2])

    Args:    names: of IPA's keys.
    Raises:  ValueError if there is no such vowel.
    Source:  Peterson and Barney 1952, J. Acoust. Soc. Am. 24:175-184, doi 10.1121/1.1906875.
    """
    for name in names:
        if name not in IPA:
            raise ValueError(f"there is no vowel {name!r}; there are: {', '.join(IPA)}")
    with PATH.open(encoding="utf-8", newline="") as file:
        lines = (line for line in file if not line.startswith("#"))
        rows = [row for row in csv.DictReader(lines) if row["vowel"] in names]
    hertz = [[float(row[key]) for key in ("f0", "f1", "f2", "f3")] for row in rows]
    return Vowels(
        tuple(row["vowel"] for row in rows),
        torch.tensor(hertz, dtype=torch.float64).reshape(-1, 4),
        torch.tensor([int(row["speaker"]) for row in rows]),
    )
