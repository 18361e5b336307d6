"""Published scaling laws of mixtures of experts, with the range that each was fitted on.

Each coefficient was read, in the paper's own text or in notes on it (:data:`READ` says which), and
each law is held to a number that its paper prints (``tests/test_scaling.py``). A law whose signs or
numbers were not read for certain has no curve: a law from memory is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .viz import HUES, _picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READ = {
    "Krajewski et al. 2024 (arXiv:2402.07871)": "form and Table 1, in two notes on the paper that "
    "agree: secondary source",
    "Clark et al. 2022 (arXiv:2202.01169)": "form and Table 3, in two notes on the paper that "
    "agree; its six sizes, 15M to 1.3B, and its experts, 1 to 512, in a description of its figure "
    "as shown in Stanford's CS336, lecture 4: secondary sources",
    "Abnar et al. 2025 (arXiv:2501.12370)": "form and Table 3, in notes and two programs that "
    "agree: secondary source",
    "Tian et al. 2025 (arXiv:2507.17702)": "equations 10 and 13 and Table 2, in a copy of its text",
    "Ludziejewski et al. 2025 (arXiv:2502.05172)": "no curve: two notes have its coefficients, and "
    "no choice of the signs that they leave open gives what the paper says (40% of the compute "
    "saved by 4 experts at 1e20 operations)",
}


def _saturate(E: float, start: float, most: float) -> float:
    """Return E, bent at both ends: Clark et al. 2022, equation 1's transform."""
    return 1 / (1 / (E - 1 + 1 / (1 / start - 1 / most)) + 1 / most)


def _above_zero(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is above 0, not {number}")


@dataclass(frozen=True)
class Law:
    """Hold one fit of loss = c + (g / G**gamma + a) / N**alpha + b / D**beta.

    N parameters without embeddings and D tokens; G the granularity, how many experts a feed-forward
    network was cut into. A dense model has no g. Source: Krajewski et al. 2024, section 5, Table 1.
    """

    a: float
    alpha: float
    b: float
    beta: float
    c: float
    g: float = 0.0
    gamma: float = 0.0

    def loss(self, N: float, D: float, G: float = 1.0) -> float:
        """Return the loss in nats for N parameters, D tokens and granularity G.

        Raises: ValueError if a number is not above 0.
        """
        _above_zero(N=N, D=D, G=G)
        return self.c + (self.g / G**self.gamma + self.a) / N**self.alpha + self.b / D**self.beta


MOE = Law(a=18.1, alpha=0.115, b=30.8, beta=0.147, c=0.47, g=2.1, gamma=0.58)
DENSE = Law(a=16.3, alpha=0.126, b=26.7, beta=0.127, c=0.47)
EXPERTS = 64  # the expansion that the MoE fit was made at: 64 times the feed-forward parameters


@dataclass(frozen=True)
class Routed:
    """Hold one fit of log10 L = a log N + b log Ê + c log N log Ê + d, at 130 billion tokens.

    N parameters that work for a token, E experts, one for a token. Source: Clark et al. 2022,
    equation 1 and Table 3.
    """

    a: float
    b: float
    c: float
    d: float
    start: float
    most: float

    def loss(self, N: float, E: float) -> float:
        """Return the loss in nats.

        Raises: ValueError if N is not above 0, or E below 1.
        """
        n, e = math.log10(N), math.log10(self._experts(N, E))
        return float(10 ** (self.a * n + self.b * e + self.c * n * e + self.d))

    def worth(self, N: float, E: float) -> float:
        """Return how many parameters a dense model of the same loss has, by the same fit."""
        e = math.log10(self._experts(N, 1))
        return float(10 ** ((math.log10(self.loss(N, E)) - self.b * e - self.d)
                            / (self.a + self.c * e)))  # fmt: skip

    @property
    def cutoff(self) -> float:
        """Return the N at which more experts stop to help."""
        return float(10 ** (-self.b / self.c))

    def _experts(self, N: float, E: float) -> float:
        _above_zero(N=N)
        if E < 1:
            raise ValueError(f"a model has at least 1 expert, not {E}")
        return _saturate(E, self.start, self.most)


S_BASE = Routed(-0.082, -0.108, 0.009, 1.104, 1.847, 314.478)
RL_R = Routed(-0.083, -0.126, 0.012, 1.111, 1.880, 469.982)
HASH = Routed(-0.087, -0.136, 0.012, 1.157, 4.175, 477.741)


def sparse_loss(N: float, D: float, S: float) -> float:
    """Return the loss in nats of N parameters in all, D tokens, and a share S of idle experts.

    Raises: ValueError if N or D is not above 0, or S not from 0 to below 1.
    Source: Abnar et al. 2025, equation 6 and Table 3; it explained 68% of what it was not fitted
            on (S = 0.98).
    """
    _above_zero(N=N, D=D)
    if not 0 <= S < 1:
        raise ValueError(f"the idle share is from 0 to below 1, not {S}")
    active = 1 - S
    return (16612.50 / N**0.5962 + 5455.67 / D**0.3954 + 0.4598 * active**0.1666
            + 17.26 / (active**0.1603 * N**0.1595) + 0.94)  # fmt: skip


def leverage(A: float, G: float, C: float) -> float:
    """Return how many times the compute a dense model needs for the same loss.

    Args:    A: activated share of the experts; G: twice the model's width over an expert's;
             C: operations of the whole training. Log G is to base 2 and log C to base 10: the paper
             does not say, and only these give its optimum (12) and its 7 at 1e22.
    Raises:  ValueError if a number is not above 0, or A above 1.
    Source:  Tian et al. 2025, equations 10 and 13, Table 2.
    """
    _above_zero(A=A, G=G, C=C)
    if A > 1:
        raise ValueError(f"at most all experts are active, not {A}")
    bent = 1 / (1 / (A + 1 / (1 / 1.63e-2 - 1 / 5.28e16)) + 1 / 5.28e16)
    g = math.log2(G)
    return float(bent ** (1.23 - 7.61e-2 * math.log10(C) + 1.67e-2 * g**2 - 1.17e-1 * g))


# --- the calculator ------------------------------------------------------------------------------

FITTED = {"A": (0.008, 1.0), "G": (2.0, 16.0), "C": (1e18, 6e20), "E": (1.0, 512.0),
          "N": (15e6, 1.3e9)}  # fmt: skip


def inside(**numbers: float) -> bool:
    """Tell whether all of these lie in the range that their law was fitted on."""
    return all(FITTED[name][0] <= number <= FITTED[name][1] for name, number in numbers.items())


def experts_for(memory_GB: float, N: float, share: float = 2 / 3, bytes_each: float = 16) -> int:
    """Return how many experts fit into memory beside the rest of a model, at least 1.

    Args: N: parameters that work for a token, one expert of each layer; share: the experts' part
          of N; bytes_each: 16 to train in float32 with Adam, 2 to read in bfloat16.
    """
    _above_zero(memory_GB=memory_GB, N=N, share=share, bytes_each=bytes_each)
    room = memory_GB * 1e9 / bytes_each - N * (1 - share)
    return max(1, int(room // (N * share)))


def draw(hours: float = 3, gflops: float = 100, memory_GB: float = 8) -> Figure:
    """Draw what two laws say of an evening on a laptop: whole in their range, dotted outside it.

    Args: hours, gflops: the evening and what the machine does in a second; memory_GB: its memory.
    """
    left, right = _picture(8.2, 5).subplots(1, 2)
    mine = 1e9 * gflops * 3600 * hours
    tokens = 20  # for each parameter, Chinchilla's rule of thumb
    N = (mine / (6 * tokens)) ** 0.5
    E = [2 ** (i / 2) for i in range(19)]
    for hue, n in zip(HUES, (N, 15e6, 130e6, 1.3e9), strict=False):
        name = f"{n / 1e6:,.1f} million active" + (" (your evening)" if n == N else "")
        _line(left, E, [S_BASE.worth(n, e) / n for e in E], hue, name,
              [inside(N=n, E=e) for e in E])  # fmt: skip
    A = [2 ** (-i / 2) for i in range(19)]
    for hue, C in zip(HUES, (mine, 1e18, 1e20, 1e22), strict=False):
        name = f"{C:.0e} operations" + (" (your evening)" if mine == C else "")
        _line(right, A, [leverage(a, 12, C) for a in A], hue, name,
              [inside(A=a, G=12, C=C) for a in A])  # fmt: skip
    most = experts_for(memory_GB, N)
    left.set(xlabel="experts E, one for a token", xscale="log",
             ylabel="dense parameters / active parameters",
             title="Clark et al.: worth of E experts")  # fmt: skip
    right.set(xlabel="active share A", ylabel="dense compute / sparse compute", xscale="log",
              title="Tian et al.: compute saved")  # fmt: skip
    for panel in (left, right):
        panel.grid(color="#D8DEE4", lw=0.6)
        panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.15, -0.15))
    figure = left.get_figure(root=True)
    figure.suptitle(
        f"{hours:g} h at {gflops:g} Gflop/s: {N / 1e6:.1f} million active parameters "
        f"on\n{tokens * N / 1e6:,.0f} million tokens; memory holds {most:,} experts"
    )
    return figure


def _line(
    ax: Axes, x: list[float], y: list[float], hue: str, name: str, within: list[bool]
) -> None:
    """Draw one curve twice: dotted all along, and whole where the law was fitted."""
    ax.plot(x, y, ":", color=hue, label=None if any(within) else f"{name}, beyond the fit")
    if any(within):
        whole = [value if ok else math.nan for value, ok in zip(y, within, strict=True)]
        ax.plot(x, whole, color=hue, lw=3, label=name)
