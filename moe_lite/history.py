"""A run's history: one row for each step, kept as JSON lines; it plots itself."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checked import conform, parse, read_text, short
from .files import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
NEEDED = ("step", "tokens", "seconds", "loss", "load")
COLUMNS = {"step": int, "tokens": int, "bits": dict[str, float]}  # all others hold numbers
COLUMNS |= dict.fromkeys(
    ("seconds", "loss", "balance", "z", "load", "dropped", "lr", "norm"), float
)
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


@dataclass(eq=False)
class History:
    """Keep one row for each step; shown in a notebook, it plots itself.

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

    def smooth(self, name: str, width: int = 9) -> list[float]:
        """Return one quantity, each step averaged with those around it: ``width``, fewer at ends.

        Centred, because an average over the past alone lags behind a loss that falls.
        """
        values, half = self.column(name), width // 2
        parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
        return [sum(part) / len(part) for part in parts]

    def plot(self, x: str = "step") -> Figure:
        """Draw loss, load and, where evaluated, bits per byte against step, tokens or seconds.

        Raises: ValueError for another x; ImportError without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "drawing a history needs matplotlib: pip install 'moe-lite[course]'",
                name="matplotlib",
            ) from error

        if x not in ("step", "tokens", "seconds"):
            raise ValueError(f"x must be step, tokens or seconds, not {x!r}")
        evaluated = [row for row in self.rows if "bits" in row]
        count = 3 if evaluated else 2
        figure = Figure(figsize=(4.5 * count, 3), layout="constrained")
        panels = figure.subplots(1, count)
        for panel, name in zip(panels, ("loss", "load"), strict=False):
            panel.plot(self.column(x), self.column(name), color="#BBBBBB", lw=0.8)
            panel.plot(self.column(x), self.smooth(name), color="black")
        panels[0].set(xlabel=x, ylabel="training loss, nats per token")
        panels[1].set(xlabel=x, ylabel="busiest expert's load / mean load")
        panels[1].axhline(1, color="black", lw=0.8, ls=":")
        if evaluated:
            xs = [row[x] for row in evaluated]
            styles = zip(OKABE_ITO, "osD^v", strict=True)
            for domain, (colour, mark) in zip(evaluated[-1]["bits"], styles, strict=False):
                ys = [row["bits"][domain] for row in evaluated]
                panels[2].plot(xs, ys, color=colour, marker=mark, ms=4, label=domain)
            panels[2].set(xlabel=x, ylabel="held-out bits per byte")
            panels[2].legend(fontsize="small")
        return figure

    def _repr_png_(self) -> bytes | None:
        try:
            return self.png() if self.rows else None
        except ImportError:  # a notebook without matplotlib shows the sentence of __repr__
            return None

    def png(self) -> bytes:
        """Draw :meth:`plot` as a PNG; raises ImportError without matplotlib."""
        png = io.BytesIO()
        self.plot().savefig(png, format="png", dpi=110)
        return png.getvalue()

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no steps)"
        last = self.rows[-1]
        return f"History(step {last['step']}, loss {last['loss']:.3f}, load {last['load']:.2f})"

    def __len__(self) -> int:
        return len(self.rows)
