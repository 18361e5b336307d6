"""The logit histogram: round a batch's router logits and watch whose expert changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import traitlets as t
from torch import Tensor

from ...routing import Routing
from ..viz import INK, expert_colors
from .portable import Question, bounded, many, panels, scores
from .redrawn import Move, Redrawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DOUBLINGS, MOST_SHIFT, BINS = 8, 256, 96
SHIFTS = [8.0 * n for n in range(MOST_SHIFT // 8 + 1)]


class LogitHistogram(Redrawn):
    """Show router logits in float32 or bfloat16, and which tokens go elsewhere for the rounding.

    Two sliders let the logits grow in the two ways there are: doubling all of them, which makes
    every softmax sharper, and adding one number to all, which leaves every softmax as it is. The
    page computes everything, so it answers without a kernel; here in Python are the same numbers.

    ::

        widget = LogitHistogram(routing.logits_TE, tokens=pieces)
        widget.shift = 128.0      # and the page follows
        widget.changed            # tokens whose experts bfloat16 changes

    Args:    logits_TE: router logits; tokens: their text, numbers by default; k: experts per
             token; precision: "float32" or "bfloat16"; doublings: how often all logits are
             doubled; shift: what is then added to all (None: the slider's least at which a token
             goes elsewhere); token: the one shown in detail (None: the first of those).
    Raises:  ValueError unless there are 1 to 500 tokens and 2 to 16 experts, all finite, and as
             many token texts; traitlets.TraitError for a value that cannot be.
    """

    precision = t.Enum(("float32", "bfloat16"), "bfloat16").tag(sync=True)
    doublings = t.Int(0).tag(sync=True)
    shift = t.Float(0.0).tag(sync=True)
    token = t.Int(0).tag(sync=True)

    def __init__(
        self,
        logits_TE: Tensor,
        *,
        tokens: Sequence[str] | None = None,
        k: int = 1,
        precision: str = "bfloat16",
        doublings: int = 0,
        shift: float | None = None,
        token: int | None = None,
    ):
        self._logits_TE = scores(logits_TE, "logit histogram", 1, 500).float().double()
        T, E = self._logits_TE.shape
        names = [str(n) for n in range(T)] if tokens is None else list(tokens)
        if len(names) != T:
            raise ValueError(f"there are {T} tokens, but {len(names)} texts")
        if not 1 <= k <= E:
            raise ValueError(f"k must be between 1 and {E} experts, not {k}")
        self.tokens, self.colors, self.k = names, expert_colors(E), k
        super().__init__(
            precision=precision, doublings=doublings, shift=shift or 0.0, token=token or 0
        )
        if shift is None:  # begin where something is to be seen
            self.shift = next((s for s in SHIFTS if self._changed(s)), 0.0)
        if token is None:
            self.token = next(iter(self.changed), 0)

    @t.validate("doublings", "shift", "token")
    def _possible(self, proposal: Any) -> float:
        T = len(self._logits_TE)
        return bounded(
            proposal, doublings=(0, MOST_DOUBLINGS), shift=(0, MOST_SHIFT), token=(0, T - 1)
        )

    def moves(self) -> list[Move]:
        doublings = range(MOST_DOUBLINGS + 1)
        return [
            ("precision", "Logits in", ("float32", "bfloat16"), None),
            ("doublings", "Double all", doublings, [f"×{2**n}" for n in doublings]),
            ("shift", "Add to all", SHIFTS, [f"+{shift:g}" for shift in SHIFTS]),
            ("token", "Token", range(len(self.tokens)), None),
        ] + [("token", "Next that flips", self.flips, "button")] * bool(self.flips)

    def grid(self) -> dict[str, Sequence[Any]]:
        shifts = (0.0, 16.0, 128.0, 256.0)
        precisions = ("float32", "bfloat16")
        return {"precision": precisions, "doublings": (0, 4, 8), "shift": shifts}

    @property
    def said(self) -> str:
        return (
            f"{self.title}: {many(len(self.changed), 'token')} with other experts in bfloat16, and "
            f"a first choice's share is off by up to {self.gate_error:.3f}"
        )

    def logits_in(self, precision: str, shift: float | None = None) -> Tensor:
        """Return the logits as they stand after both sliders, in float32 or through bfloat16.

        Args: shift: what is added, instead of what the slider says.
        """
        added = self.shift if shift is None else shift
        grown_TE = (self._logits_TE * 2.0**self.doublings + added).float()
        return grown_TE.bfloat16().float() if precision == "bfloat16" else grown_TE

    def _chosen(self, precision: str, shift: float | None = None) -> Tensor:
        # A stable sort: of equal logits the lower expert comes first, as in the page.
        order_TE = (
            self.logits_in(precision, shift).sort(dim=-1, descending=True, stable=True).indices
        )
        return order_TE[:, : self.k]

    @property
    def routing(self) -> Routing:
        """Route the batch in the chosen precision: the k best, weighed by their probabilities."""
        logits_TE, expert_TK = self.logits_in(self.precision), self._chosen(self.precision)
        probs_TE = logits_TE.softmax(-1)
        return Routing.from_choices(logits_TE, probs_TE, expert_TK, probs_TE.gather(1, expert_TK))

    @property
    def changed(self) -> list[int]:
        """List the tokens that bfloat16 sends to other experts than float32."""
        return self._changed()

    def _changed(self, shift: float | None = None) -> list[int]:
        exact_TK, rounded_TK = (
            self._chosen(p, shift).sort(-1).values for p in ("float32", "bfloat16")
        )
        return (exact_TK != rounded_TK).any(-1).nonzero().flatten().tolist()

    @property
    def flips(self) -> list[int]:
        """List the tokens that bfloat16 sends elsewhere once 128 is added to all logits."""
        return self._changed(128.0)

    @property
    def gate_error(self) -> float:
        """Return the largest change of a first choice's probability that bfloat16 makes."""
        best_T1 = self._chosen("float32")[:, :1]
        exact_T1, rounded_T1 = (
            self.logits_in(p).double().softmax(-1).gather(1, best_T1)
            for p in ("float32", "bfloat16")
        )
        return (exact_T1 - rounded_T1).abs().max().item()

    @property
    def spacing(self) -> float:
        """Return the step from one bfloat16 number to the next at the largest logit.

        >>> LogitHistogram(torch.tensor([[128.5, 128.0]])).spacing
        1.0
        """
        largest = self.logits_in("float32").abs().max()
        return 2.0 ** (int(torch.frexp(largest).exponent) - 8) if largest else 0.0

    def asks(self) -> Question | None:
        T = len(self.tokens)
        ask = f"128 added to all logits, in bfloat16: how many of {T} tokens change experts?"
        moves = {"shift": 128.0, "doublings": 0, "precision": "bfloat16"}
        return Question(ask, moves, lambda: len(self.changed), T)

    @property
    def title(self) -> str:
        T, E = self._logits_TE.shape
        return f"Router logits of {T} tokens, {E} experts, k = {self.k}, in {self.precision}"

    def figure(self) -> Figure:
        """Draw the histogram, and the contest for one token before and after rounding."""
        exact_TE, rounded_TE = self.logits_in("float32"), self.logits_in("bfloat16")
        low, high = exact_TE.min().item(), exact_TE.max().item()
        pad = (high - low or 1.0) * 0.02 + (self.spacing if self.precision == "bfloat16" else 0.0)
        figure, (bars, contest) = panels(10, 3.6, 2)
        bins = torch.linspace(low - pad, high + pad, BINS + 1).tolist()
        bars.hist(exact_TE.flatten().tolist(), bins, color="#9aa3ac", label="float32")
        if self.precision == "bfloat16":
            bars.hist(
                rounded_TE.flatten().tolist(), bins, histtype="step", color="#D55E00", lw=1.5,
                label=f"bfloat16, {self.spacing:g} apart at the largest",
            )  # fmt: skip
        bars.set(
            xlabel="logit", ylabel="how many",
            title=f"{len(self.changed)} of {len(self.tokens)} tokens change experts in bfloat16",
        )  # fmt: skip
        bars.set_ylim(top=1.25 * bars.get_ylim()[1])  # the legend stands above the bars
        bars.legend(fontsize=8, frameon=False, loc="upper right")
        for e, color in enumerate(self.colors):
            exact, rounded = exact_TE[self.token, e].item(), rounded_TE[self.token, e].item()
            contest.scatter(exact, e, s=60, facecolor="none", edgecolor=INK)
            if self.precision == "bfloat16":
                contest.scatter(rounded, e, s=40, color=color, marker="s")
        word = repr(self.tokens[self.token]).replace("$", r"\$")  # no formula
        contest.set(
            yticks=range(len(self.colors)), xlabel="logit (○ float32, ■ bfloat16)",
            ylabel="expert", title=f"Token {self.token}, {word}",
        )  # fmt: skip
        contest.invert_yaxis()
        for axes in (bars, contest):
            axes.title.set_fontsize(10)
        return figure
