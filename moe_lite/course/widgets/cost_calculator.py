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
from .portable import Question, bounded, many, panels
from .redrawn import Move, Redrawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = ("width", "expert_width", "experts", "top_k", "layers")  # what may differ from the preset
UNITS = {  # in seconds, and up to how many it is said
    "µs": (1e-6, 1e-3), "ms": (1e-3, 1), "s": (1, 100), "min": (60, 3600), "h": (3600, 86400),
    "days": (86400, 100 * 86400), "years": (365.25 * 86400, math.inf),
}  # fmt: skip
FITS = {True: "#0072B2", False: "#D55E00"}
FULL = 200  # percent of a memory, at which the axis ends
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
        with self.hold_sync(), self.hold_trait_notifications():  # one picture, of all of them
            for name in SHAPE:
                setattr(self, name, getattr(PRESETS[change["new"]], name))

    def moves(self) -> list[Move]:
        def near(name: str) -> list[int]:
            powers = {2**n for n in range(MOST[name].bit_length())}
            theirs = {getattr(a, name) for a in PRESETS.values()} if name in SHAPE else set()
            return sorted({n for n in powers | theirs if n <= MOST[name]} | {getattr(self, name)})

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
        room = _short(DEVICES[self.device].memory / 1e9)
        phases = "; ".join(
            f"{phase} {_fits(cost)} ({_short(cost.held_bytes / 1e9)} of {room} GB), "
            f"{cost.bound}-bound, {lasts(cost.seconds)} a step"
            for phase, cost in self.costs.items()
        )
        return f"{self.title}: {self._counted}. {phases[0].upper()}{phases[1:]}"

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
        if self.batch >= 128:
            return None
        unit = _unit(self.costs["decode"].seconds)

        def now() -> float:
            return self.costs["decode"].seconds / UNITS[unit][0]

        at, times = now(), 128 / self.batch
        tick = 10.0 ** max(-3, math.floor(math.log10(at)) - 1)
        least, most = (round(n * tick, 3) for n in (at // tick, math.ceil(at * times / tick)))
        ask = (
            f"A step of decode takes {at:.3g} {unit} for {many(self.batch, 'text')}. For 128 at "
            f"once, {times:.3g} times as many: how many {unit}, from {least:,g} (as long as for "
            f"{self.batch}) to {most:,g} ({times:.3g} times that)?"
        )
        return Question(ask, {"batch": 128}, now, most, tick, least)

    @property
    def title(self) -> str:
        where = f"{self.ranks} x {self.device}" if self.ranks > 1 else self.device
        own = "" if self.architecture == PRESETS[self.preset] else ", changed"
        texts = f"{many(self.batch, 'text')} of {many(self.context, 'token')}"
        return f"Cost of {self.preset}{own}, {texts}, on {where}"

    @property
    def _counted(self) -> str:
        count = count_parameters(self.architecture)
        few = f" (K is {self.experts}: there are no more)" * (self.top_k > self.experts)
        return f"{count.total / 1e9:,.1f} billion parameters, {count.active / 1e9:,.1f} active{few}"

    def figure(self) -> Figure:
        """Draw what compute, memory and network would each take, for the three phases."""
        costs = list(self.costs.values())
        figure, (axes, held) = panels(9, 4.2, 2, width_ratios=(2, 1))
        for phase, cost in enumerate(costs):
            share, color = 100 * cost.held_bytes / cost.device.memory, FITS[cost.fits]
            held.barh(phase, min(share, FULL), 0.6, color=color)
            if share > FULL:  # the bar goes on, its number stands beside it
                held.plot(FULL, phase, ">", color=color, ms=16, mec="none", clip_on=False)
        held.axvline(100, color=INK, ls="--", lw=1)
        beside = [
            f"{phase}:\n{_short(cost.held_bytes / 1e9)} GB\n"
            f"{100 * cost.held_bytes / cost.device.memory:,.0f}%"
            for phase, cost in self.costs.items()
        ]
        held.set(xlim=(0, FULL), xticks=range(0, FULL + 1, 50), yticks=range(3),
                 yticklabels=beside, title="what has to fit",
                 xlabel="% of a device's memory")  # fmt: skip
        held.invert_yaxis()
        looks = (("#0072B2", ""), ("#D55E00", "//"), ("#009E73", "\\\\"))
        for i, (name, (color, hatch)) in enumerate(zip(costs[0].parts, looks, strict=True)):
            places = [phase + (i - 1) * 0.27 for phase in range(3)]
            seconds = [cost.parts[name] for cost in costs]
            axes.bar(places, seconds, 0.25, color=color, hatch=hatch, label=name)
        axes.set_yscale("log")
        axes.minorticks_off()
        low, high = axes.get_ylim()
        axes.set(
            ylabel="a step takes, at full speed", xticks=range(3),
            xticklabels=[
                f"{phase}: {lasts(cost.seconds)}\n{cost.bound}-bound,\n{_fits(cost)}"
                for phase, cost in self.costs.items()
            ],
        )  # fmt: skip
        ticks = [n * of for of, last in UNITS.values() for n in (1, 10, 100) if 2.5 * n * of < last]
        ticks = [tick for tick in ticks if low < tick < high]
        axes.set_yticks(ticks, [lasts(tick) for tick in ticks])
        axes.set_ylim(low, high)
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        figure.suptitle(f"{self.title}\n{self._counted}", fontsize=11)
        held.title.set_fontsize(10)
        return figure


def lasts(seconds: float) -> str:
    """Say how long in the unit that fits.

    >>> [lasts(s) for s in (0.0195, 55.7, 9999, 86400, 4e6, 2e11, 0.9996)]
    ['19.5 ms', '55.7 s', '2.78 h', '1 day', '46.3 days', '6,338 years', '1,000 ms']
    """
    said = _short(seconds / UNITS[unit := _unit(seconds)][0])
    return f"{said} {unit[:-1] if said == '1' and len(unit) > 3 else unit}"


def _unit(seconds: float) -> str:
    return next(unit for unit, (_, last) in UNITS.items() if seconds < last)


def _fits(cost: Cost) -> str:
    return "fits" if cost.fits else "does not fit"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 999.5 else f"{x:.3g}"
