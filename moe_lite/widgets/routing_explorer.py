"""The routing explorer: click on a token and see where it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t

from ..contracts import RoutingTrace
from ..viz import expert_colors, ordered_pairs, overview
from .portable import HERE, PortableWidget

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RoutingExplorer(PortableWidget):
    """Explore a trace: the text coloured by expert, each token's gate, the map, the load.

    ::

        widget = RoutingExplorer(trace)
        widget                      # click on a token
        widget.selected             # its index, here in Python
        widget.layer = 3            # and the page follows

    ``widget.trace = other`` shows another trace in the same place. The arrays travel once, as
    one binary block; a gesture afterwards sends one number.

    Args:    trace: what to show; selected: a token, or -1 for none; layer: the layer shown;
             expert: show only the tokens that this expert got, or -1 for all.
    Raises:  ValueError if the trace is empty or cannot be drawn; traitlets.TraitError for a
             token, a layer or an expert that does not exist.
    """

    _esm = HERE / "routing_explorer.js"
    _css = HERE / "routing_explorer.css"

    tokens = t.List(t.Unicode()).tag(sync=True)
    layer_names = t.List(t.Unicode()).tag(sync=True)
    num_experts = t.List(t.Int()).tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)
    arrays = t.Dict().tag(sync=True)
    data = t.Bytes().tag(sync=True)

    selected = t.Int(-1).tag(sync=True)
    layer = t.Int(0).tag(sync=True)
    expert = t.Int(-1).tag(sync=True)

    def __init__(
        self, trace: RoutingTrace, *, selected: int = -1, layer: int = 0, expert: int = -1
    ):
        packed = pack(trace)
        self._trace = trace  # before the traits, whose validators ask it
        super().__init__(**packed, selected=selected, layer=layer, expert=expert)

    @property
    def trace(self) -> RoutingTrace:
        """Give the trace that is shown; setting it shows another."""
        return self._trace

    @trace.setter
    def trace(self, trace: RoutingTrace) -> None:
        packed = pack(trace)
        self._trace = trace
        layer = min(self.layer, len(trace.layers) - 1)
        with self.hold_sync():
            self.set_trait("selected", -1)
            self.set_trait("expert", -1)
            self.set_trait("layer", layer)
            for name, value in packed.items():
                self.set_trait(name, value)

    @t.validate("selected", "layer", "expert")
    def _exists(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        trace = self._trace
        what, least, size = {
            "selected": ("a token", -1, len(trace.tokens)),
            "layer": ("a layer", 0, len(trace.layers)),
            "expert": ("an expert", -1, max(r.num_experts for r in trace.layers)),
        }[name]
        if not least <= value < size:
            none = ", or -1 for none" if least else ""
            raise t.TraitError(f"{name} must be {what} from 0 to {size - 1}{none}, not {value}")
        return value

    @property
    def title(self) -> str:
        trace = self._trace
        sizes = "/".join(str(n) for n in sorted({r.num_experts for r in trace.layers}))
        counts = [(len(trace.tokens), "token"), (len(trace.layers), "MoE layer")]
        words = ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)
        one = "" if sizes == "1" else "s"
        return f"Routing of {trace.source}: {words}, {sizes} expert{one} in each"

    def figure(self) -> Figure:
        """Draw text, map and load at the layer now shown."""
        return overview(self._trace, self.layer)


def pack(trace: RoutingTrace) -> dict[str, Any]:
    """Turn a trace into the widget's traits: the lists, and all numbers in one block of bytes.

    ``arrays`` says for each array its type, its offset in the block and its length. A row is a
    (layer, token), counted layer by layer; row r owns the pairs start[r] .. start[r+1]-1, best
    first. Probabilities travel as thousandths, rounded here once, because that is what the page
    prints; weights are few enough to travel whole.

    Raises: ValueError for an empty trace, an index that does not exist, a probability outside
            0..1, or a weight that is not finite.
    """
    if not trace.tokens or not trace.layers:
        raise ValueError(
            f"there is nothing to explore: the trace has {len(trace.tokens)} tokens "
            f"and {len(trace.layers)} layers"
        )
    T = len(trace.tokens)
    counts, experts, gates, keeps, probs = [], [], [], [], []
    for name, routing in zip(trace.layer_names, trace.layers, strict=True):
        token, expert, gate, keep = ordered_pairs(routing)
        prob = routing.probs_TE.detach().cpu().double().numpy()
        for what, index, size in (("token", token, T), ("expert", expert, routing.num_experts)):
            if ((index < 0) | (index >= size)).any():
                bad = index[(index < 0) | (index >= size)][0]
                raise ValueError(f"layer {name} names {what} {bad}, but there are only {size}")
        if not np.isfinite(gate).all():
            raise ValueError(f"layer {name} has a gate weight that is not finite")
        if not ((prob >= 0) & (prob <= 1 + 1e-6)).all():
            raise ValueError(f"layer {name} has a probability outside 0..1")
        counts.append(np.bincount(token, minlength=T))
        experts.append(expert)
        gates.append(gate)
        keeps.append(keep)
        probs.append(np.floor(prob * 1000 + 0.5).ravel())
    # Widest first, so that each array begins at a multiple of its item size.
    parts = {
        "start": np.concatenate([[0], *counts]).cumsum().astype("<u4"),
        "gate": np.concatenate(gates).astype("<f4"),
        "probs": np.concatenate(probs).astype("<u2"),
        "expert": np.concatenate(experts).astype("<u2"),
        "keep": np.concatenate(keeps).astype("<u1"),
    }
    arrays, offset = {}, 0
    for key, part in parts.items():
        arrays[key] = [part.dtype.str[1:], offset, part.size]
        offset += part.nbytes
    sizes = [routing.num_experts for routing in trace.layers]
    return {
        # A lone surrogate has no UTF-8, so no message to a page could carry it.
        "tokens": [token.encode("utf-8", "replace").decode() for token in trace.tokens],
        "layer_names": list(trace.layer_names),
        "num_experts": sizes,
        "colors": expert_colors(max(sizes)),
        "arrays": arrays,
        "data": b"".join(part.tobytes() for part in parts.values()),
    }
