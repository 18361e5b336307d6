"""A run's history: one row for each step, kept as JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checked import conform, parse, read_text, short
from .files import write

Row = dict[str, Any]
NEEDED = ("step", "tokens", "seconds", "loss", "load")
COLUMNS = {"step": int, "tokens": int, "bits": dict[str, float]}  # all others hold numbers
COLUMNS |= dict.fromkeys(
    ("seconds", "loss", "balance", "z", "load", "dropped", "lr", "norm"), float
)


@dataclass(eq=False)
class History:
    """Keep one row for each step (``moe_lite.course.viz.training`` draws it).

    A row holds: step (steps done), tokens and seconds (so far, spent on training alone), loss
    (cross entropy, nats per token), balance and z (mean over the layers), load (of the busiest
    expert over the mean, before any pair is dropped) and dropped (share of the pairs), both means
    over the layers, lr, norm (of the gradient, before clipping), and where the model was
    evaluated bits: bits per byte of each domain.
    """

    rows: list[Row] = field(default_factory=list)

    def append(self, row: Row) -> None:
        """Add a step."""
        self.rows.append(row)

    def column(self, name: str) -> list[float]:
        """Return one quantity over the steps that have it."""
        return [row[name] for row in self.rows if name in row]

    def save(self, path: str | Path) -> None:
        """Write the rows as JSON lines, all of them or nothing."""
        write(path, self.lines())

    def lines(self) -> str:
        """Return the rows as JSON lines."""
        return "".join(json.dumps(row) + "\n" for row in self.rows)

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what :meth:`save` wrote.

        Raises: OSError if it cannot be read; ValueError if it is not a history.
        """
        rows: list[Row] = []
        step, domains = 0, None
        for number, line in enumerate(read_text(path).splitlines(), 1):
            where = f"{path}: line {number}"
            row = conform(parse(line, where), dict[str, Any], where)
            for name, value in row.items():
                if name in COLUMNS or type(value) not in (int, float):
                    row[name] = conform(value, COLUMNS.get(name, float), f"{where}: {short(name)}")
            if missing := [name for name in NEEDED if name not in row]:
                raise ValueError(f"{where}: {', '.join(missing)} missing")
            if row["step"] <= step:
                raise ValueError(f"{where}: step {row['step']} follows step {step}")
            step, here = row["step"], row.get("bits", domains)
            if domains is not None and here.keys() != domains.keys():
                raise ValueError(f"{where}: bits are of other domains than before")
            domains = here
            rows.append(row)
        return cls(rows)

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no steps)"
        last = self.rows[-1]
        return f"History(step {last['step']}, loss {last['loss']:.3f}, load {last['load']:.2f})"

    def __len__(self) -> int:
        return len(self.rows)
