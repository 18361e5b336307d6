"""The years between: what was tried with experts from 1989 to 2017, as data and as a drawing."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .viz import HUES, INK, QUIET, _axes, _finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Thread = Literal["how to fit them", "other experts", "skip the work"]
THREADS: tuple[Thread, ...] = ("how to fit them", "other experts", "skip the work")


@dataclass(frozen=True)
class Step:
    """Hold one entry: year, who, in one sentence what, where it is printed, what of it was read.

    ``read`` is "text" or "abstract"; an entry that nobody here has read is not in the list.
    """

    year: int
    who: str
    what: str
    source: str
    read: Literal["text", "abstract"]
    thread: Thread


STEPS = (
    Step(1989, "Hampshire, Waibel", "A gate network blends speakers' networks to tell b, d and g.",
         "The Meta-Pi Network, 1989; IEEE PAMI 14:751, 1992", "abstract", "other experts"),
    Step(1990, "Nowlan, Hinton", "Experts that compete for vowels generalise better than one "
         "network.", "Evaluation of Adaptive Mixtures of Competing Experts, NIPS 3", "abstract",
         "how to fit them"),
    Step(1991, "Jacobs et al.", "A loss that makes experts compete divides vowels among them.",
         "Neural Computation 3:79-87", "text", "how to fit them"),
    Step(1994, "Jordan, Jacobs", "A tree of gates is fitted by EM, without a step size.",
         "Neural Computation 6:181-214", "text", "how to fit them"),
    Step(1994, "Bishop", "One network gives the weights, the means and the widths of a mixture.",
         "Mixture Density Networks, Aston University NCRG/4288", "abstract", "other experts"),
    Step(1994, "Bengio, Frasconi", "The gate remembers: experts take turns along a sequence.",
         "An Input Output HMM Architecture, NIPS 7", "abstract", "other experts"),
    Step(1994, "Xu, Jordan, Hinton", "A gate made of densities has its M step in closed form.",
         "An Alternative Model for Mixtures of Experts, NIPS 7", "abstract", "how to fit them"),
    Step(1995, "Waterhouse et al.", "Bayesian fitting keeps experts from over-fitting.",
         "Bayesian Methods for Mixtures of Experts, NIPS 8", "abstract", "how to fit them"),
    Step(2001, "Rasmussen, Ghahramani", "Experts are Gaussian processes, and there are as many as "
         "the data ask for.", "Infinite Mixtures of Gaussian Process Experts, NIPS 14", "abstract",
         "other experts"),
    Step(2002, "Collobert et al.", "Each support vector machine gets a small part of the data, so "
         "that training is parallel.", "Neural Computation 14:1105-1114", "abstract",
         "other experts"),
    Step(2012, "Yuksel et al.", "A survey of twenty years: fitting, Gaussian processes, the number "
         "of experts, the depth of trees.", "Twenty Years of Mixture of Experts, IEEE TNNLS "
         "23:1177", "abstract", "other experts"),
    Step(2013, "Bengio et al.", "Four ways to send a gradient through a gate that is open or shut.",
         "arXiv:1308.3432", "abstract", "skip the work"),
    Step(2013, "Eigen et al.", "Layers of experts behind one another; each layer has its gate.",
         "arXiv:1312.4314", "text", "skip the work"),
    Step(2014, "Cho, Bengio", "Bits choose weights: far more parameters than arithmetic.",
         "arXiv:1406.7362", "abstract", "skip the work"),
    Step(2015, "Hinton, Vinyals, Dean", "Specialists for classes that are easily confused are "
         "trained side by side, without a gate that learns.", "arXiv:1503.02531", "abstract",
         "other experts"),
    Step(2015, "E. Bengio et al.", "Masks over blocks of neurons are learned by reinforcement.",
         "arXiv:1511.06297", "abstract", "skip the work"),
    Step(2017, "Fernando et al.", "Evolution finds paths through a large network, and keeps them "
         "for the next task.", "PathNet, arXiv:1701.08734", "abstract", "skip the work"),
    Step(2017, "Shazeer et al.", "Noisy top-k gating runs 4 experts of thousands.",
         "arXiv:1701.06538", "text", "skip the work"),
    Step(2017, "Gross et al.", "Each image goes to one expert, which trains alone.",
         "Hard Mixtures of Experts, CVPR 2017", "abstract", "skip the work"),
)  # fmt: skip


def _heights(steps: list[Step], years_per_letter: float) -> list[int]:
    """Return the line above (or, negative, below) its row on which each label is free of others."""
    heights: list[int] = []
    for i, step in enumerate(steps):
        reach = [years_per_letter * (len(step.who) + len(other.who)) / 2 for other in steps[:i]]
        taken = {h for h, far, other in zip(heights, reach, steps, strict=False)
                 if step.year - other.year < far}  # fmt: skip
        heights.append(next(h for n in itertools.count(1) for h in (n, -n) if h not in taken))
    return heights


def timeline(steps: tuple[Step, ...] = STEPS) -> Figure:
    """Draw the steps from left to right, one row for each thread.

    Raises: ValueError if there is no step.
    """
    if not steps:
        raise ValueError("there is no step to draw")
    ax = _axes(8.4, 5.4)
    for row, thread in enumerate(THREADS):
        color, y = HUES[(0, 2, 5)[row]], -row
        mine = sorted((step for step in steps if step.thread == thread), key=lambda s: s.year)
        ax.plot([1988, 2018.5], [y, y], color=color, lw=1.2, alpha=0.5)
        ax.text(1987.6, y, thread.replace(" ", "\n", 1), ha="right", va="center", color=INK,
                weight="bold", fontsize=10)  # fmt: skip
        for step, height in zip(mine, _heights(mine, 0.34), strict=True):
            end = y + 0.13 * height
            ax.plot([step.year] * 2, [y, end], color=color, lw=0.8)
            ax.plot(step.year, y, "osD"[row], color=color, ms=8)
            ax.text(step.year, end, step.who, ha="center", va="bottom" if height > 0 else "top",
                    fontsize=9.5, color=INK,
                    bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    ax.set(xlim=(1983.5, 2021.5), ylim=(-2.55, 0.45), yticks=[])
    ax.set_xticks(range(1990, 2020, 5))
    ax.tick_params(colors=QUIET)
    figure = _finish(ax)
    ax.spines["left"].set_visible(False)
    return figure


def sentences(steps: tuple[Step, ...] = STEPS) -> str:
    """Return the entries as lines of text: year, who, what, and what of the source was read."""
    told = (f"{s.year} {s.who}: {s.what} [{s.source}; {s.read} read]" for s in steps)
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="     ") for line in told)
