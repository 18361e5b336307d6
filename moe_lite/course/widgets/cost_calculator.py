"""The cost calculator: from the shape of a model to its parameters, memory and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_args

import traitlets as t

from ..cost import (
    BYTES,
    DEVICES,
    Architecture,
    Cost,
    Phase,
    Precision,
    count_parameters,
    step,
)
from ..presets import PRESETS
from ..viz import INK
from .portable import Question, bounded, panels
from .redrawn import Move, Redrawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = ("width", "expert_width", "experts", "top_k", "layers")  # what may differ from the preset
MOST = {
    "width": 65536, "expert_width": 262144, "experts": 4096, "top_k": 64, "layers": 512,
    "batch": 65536, "context": 2**20, "ranks": 4096,
}  # fmt: skip


class CostCalculator(Redrawn):
    """Estimate a model's parameters, memory and time for each phase, on a device, as you type.

    It starts from a preset of :mod:`~moe_lite.course.presets`, whose attention, vocabulary and
    dense layers stay while width, experts and layers change.

    ::

        widget = CostCalculator("Mixtral 8x7B", device="H100 SXM", batch=32)
        widget.experts = 16                  # and the page follows
        widget.costs["decode"].bound

    Args:    preset: a key of ``presets.PRESETS``; device: of ``cost.DEVICES``; batch, context,
             ranks, weights: as in :func:`moe_lite.course.cost.step`.
    Raises:  ValueError for a preset that there is not; traitlets.TraitError for a value that
             cannot be.
    """

    preset = t.Unicode().tag(sync=True)
    device = t.Unicode().tag(sync=True)
    width = t.Int().tag(sync=True)
    expert_width = t.Int().tag(sync=True)
    experts = t.Int().tag(sync=True)
    top_k = t.Int().tag(sync=True)
    layers = t.Int().tag(sync=True)
    batch = t.Int().tag(sync=True)
    context = t.Int().tag(sync=True)
    ranks = t.Int().tag(sync=True)
    weights = t.Unicode().tag(sync=True)

    def __init__(
        self, preset: str = "Mixtral 8x7B", *, device: str = "H100 SXM", batch: int = 1,
        context: int = 2048, ranks: int = 1, weights: Precision = "bf16",
    ):  # fmt: skip
        if preset not in PRESETS:
            raise ValueError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
        shape = {name: getattr(PRESETS[preset], name) for name in SHAPE}
        super().__init__(
            preset=preset, device=device, batch=batch, context=context, ranks=ranks,
            weights=weights, **shape,
        )  # fmt: skip

    @t.validate(*MOST)
    def _possible(self, proposal: Any) -> int:
        return bounded(proposal, **{name: (1, most) for name, most in MOST.items()})

    @t.validate("preset", "device", "weights")
    def _known(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        there: dict[str, Any] = {
            "preset": PRESETS,
            "device": DEVICES,
            "weights": BYTES,
        }
        if value not in there[name]:
            raise t.TraitError(f"{name} must be one of {', '.join(map(str, there[name]))}")
        return value

    @t.observe("preset")
    def _reshape(self, change: Any) -> None:
        for name in SHAPE:
            setattr(self, name, getattr(PRESETS[change["new"]], name))

    def moves(self) -> list[Move]:
        def near(name: str) -> list[int]:
            powers = {2**n for n in range(MOST[name].bit_length())}
            return sorted(n for n in powers | {getattr(self, name)} if n <= MOST[name])

        labels = {
            "width": "Width D", "expert_width": "An expert's width", "experts": "Experts E",
            "top_k": "Experts per token K", "layers": "Layers", "batch": "Texts in the batch",
            "context": "Tokens of each", "ranks": "Devices",
        }  # fmt: skip
        menus: list[Move] = [
            ("preset", "Model", list(PRESETS), None),
            ("device", "Device", list(DEVICES), None),
            ("weights", "Weights in", list(BYTES), None),
        ]
        return menus + [(name, label, near(name), None) for name, label in labels.items()]

    def grid(self) -> dict[str, Sequence[Any]]:
        models = ("Mixtral 8x7B", "OLMoE", "DeepSeek-V3")
        return {
            "preset": models, "device": ("H100 SXM", "RTX 4090"), "weights": ("bf16", "fp4"),
            "batch": (128,),
        }  # fmt: skip

    @property
    def said(self) -> str:
        count = count_parameters(self.architecture)
        misfits = [phase for phase, cost in self.costs.items() if not cost.fits]
        verdict = f"Does not fit: {', '.join(misfits)}" if misfits else "All of it fits"
        phases = "; ".join(
            f"{phase}: {cost.bound}-bound, {1e3 * cost.seconds:.3g} ms, "
            f"{cost.held_bytes / 1e9:,.1f} GB, {'fits' if cost.fits else 'does not fit'}"
            for phase, cost in self.costs.items()
        )
        return (
            f"{verdict}. {self.title}: {count.total / 1e9:,.1f} billion parameters, "
            f"{count.active / 1e9:,.1f} active. {phases}"
        )

    @property
    def architecture(self) -> Architecture:
        """Describe the model as it now stands; no more experts per token than there are."""
        base = PRESETS[self.preset]
        shape = {name: getattr(self, name) for name in SHAPE}
        shape["top_k"] = min(self.top_k, self.experts)
        parts = {n: min(getattr(base, n), self.layers) for n in ("dense_first", "cross", "other")}
        windowed = min(base.windowed, self.layers - parts["other"])
        return replace(base, **shape, **parts, windowed=windowed)

    @property
    def costs(self) -> dict[Phase, Cost]:
        """Estimate one step of each phase."""
        return {
            phase: step(
                self.architecture, DEVICES[self.device], phase, self.batch, self.context,
                ranks=self.ranks, weights=cast(Precision, self.weights),
            )
            for phase in get_args(Phase)
        }  # fmt: skip

    def asks(self) -> Question | None:
        def ms() -> float:
            return 1e3 * self.costs["decode"].seconds

        if self.batch >= 128:
            return None
        now, times = ms(), 128 / self.batch
        ask = (
            f"A step of decode takes {now:.3g} ms. With 128 texts at once, {times:g} times as many "
            "as now: how many ms?"
        )
        return Question(ask, {"batch": 128}, ms, math.ceil(now * times))

    @property
    def title(self) -> str:
        where = f"{self.ranks} x {self.device}" if self.ranks > 1 else self.device
        return f"Cost of {self.preset}, batch {self.batch} x {self.context} tokens, on {where}"

    def figure(self) -> Figure:
        """Draw what compute, memory and network would each take, for the three phases."""
        count = count_parameters(self.architecture)
        figure, (axes, held) = panels(11, 3.6, 2, width_ratios=(2, 1))
        for phase, cost in enumerate(self.costs.values()):
            share = 100 * cost.held_bytes / cost.device.memory
            held.barh(phase, share, 0.6, color="#0072B2" if cost.fits else "#D55E00")
            held.text(share, phase, f" {cost.held_bytes / 1e9:,.0f} GB", va="center", fontsize=9,
                      bbox={"fc": held.get_facecolor(), "lw": 0, "pad": 1})  # fmt: skip
        held.axvline(100, color=INK, ls="--", lw=1)
        held.set(xlim=(0, 1.3 * max(100, held.get_xlim()[1])), yticks=range(3),
                 yticklabels=list(self.costs), title="what has to fit",
                 xlabel="% of a device's memory (dashed: all of it)")  # fmt: skip
        held.invert_yaxis()
        held.title.set_fontsize(10)
        looks = (("#0072B2", ""), ("#D55E00", "//"), ("#009E73", "\\\\"))
        for i, (colour, hatch) in enumerate(looks):
            parts = [list(cost.parts.items())[i] for cost in self.costs.values()]
            places = [phase + (i - 1) * 0.27 for phase in range(3)]
            seconds = [1e3 * value for _, value in parts]
            axes.bar(places, seconds, 0.25, color=colour, hatch=hatch, label=parts[0][0])
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set(
            ylabel="ms per step, at full speed", xticks=range(3),
            xticklabels=[
                f"{phase}\n{cost.bound}-bound, {'fits' if cost.fits else 'does not fit'}"
                for phase, cost in self.costs.items()
            ],
            title=f"{self.title}\n{count.total / 1e9:,.1f} billion parameters, "
            f"{count.active / 1e9:,.1f} active",
        )  # fmt: skip
        axes.title.set_fontsize(10)
        axes.legend(frameon=False, fontsize=9)
        return figure
