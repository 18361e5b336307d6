"""The tree explorer: step through EM and see responsibilities flow down a tree of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t

from ..hierarchy import HME, affine
from ..viz import INK, QUIET, expert_colors
from .portable import HERE, PortableWidget, Question, bounded, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


class TreeExplorer(PortableWidget):
    """Explore how a tree of linear experts learns y from one x, step by step.

    ::

        history = [tree := random_tree(2, 2, 1, seeds=[0])]
        history += [tree := em_step(tree, affine(x_T1), y_T1) for _ in range(30)]
        widget = TreeExplorer(history, x_T1, y_T1)
        widget                      # move through the steps, click on a node or a point
        widget.node, widget.token   # what was clicked, here in Python

    Nodes are counted as in :mod:`moe_lite.course.hierarchy`; points are counted by growing x.

    Args:    history: trees, one for each step; of several side by side the first is shown.
    Raises:  ValueError if there is no tree, or x and y are not (T, 1), or the trees differ in
             depth; traitlets.TraitError for a step, a node or a point that does not exist.
    """

    _esm = HERE / "tree_explorer.js"
    _css = HERE / "tree_explorer.css"

    depth = t.Int(1).tag(sync=True)
    x = t.List(t.Float()).tag(sync=True)
    y = t.List(t.Float()).tag(sync=True)
    colors = t.List(t.Unicode()).tag(sync=True)
    likelihood = t.List(t.Float()).tag(sync=True)
    lines = t.Bytes().tag(sync=True)  # float32 (steps, experts, 2): slope and intercept
    prior = t.Bytes().tag(sync=True)  # uint8 (steps, points, nodes), in 255ths
    posterior = t.Bytes().tag(sync=True)

    step = t.Int(0).tag(sync=True)
    node = t.Int(0).tag(sync=True)
    token = t.Int(-1).tag(sync=True)

    def __init__(
        self,
        history: Sequence[HME],
        x_T1: Tensor,
        y_T1: Tensor,
        *,
        step: int = 0,
        node: int = 0,
        token: int = -1,
    ):
        super().__init__(**pack(history, x_T1, y_T1))
        self.step, self.node, self.token = step, node, token

    @t.validate("step", "node", "token")
    def _exists(self, proposal: Any) -> int:
        nodes, last = 2 ** (self.depth + 1) - 1, len(self.likelihood) - 1
        return bounded(proposal, step=(0, last), node=(0, nodes - 1), token=(-1, len(self.x) - 1))

    def asks(self) -> Question | None:
        E, last = 2**self.depth, len(self.likelihood) - 1
        ask = (
            f"After the last step: for how many of the {len(self.x)} points is the least busy "
            "expert the one most responsible?"
        )

        def least() -> int:
            shape = last + 1, len(self.x), 2 * E - 1
            leaf_T = np.frombuffer(self.posterior, "u1").reshape(shape)[last, :, -E:].argmax(1)
            return int(np.bincount(leaf_T, minlength=E).min())

        return Question(ask, {"step": last, "token": -1}, least, len(self.x) // E)

    @property
    def title(self) -> str:
        return (
            f"A tree of {2**self.depth} experts learns by EM: "
            f"{len(self.x)} points, {len(self.likelihood) - 1} steps"
        )

    def figure(self) -> Figure:
        """Draw the points, the experts' lines, the tree and the likelihood at the step shown."""
        E, N = 2**self.depth, 2 ** (self.depth + 1) - 1
        shape = len(self.likelihood), len(self.x), N
        prior, posterior = (
            np.frombuffer(block, "u1").reshape(shape)[self.step] / 255
            for block in (self.prior, self.posterior)
        )
        line_E2 = np.frombuffer(self.lines, "<f4").reshape(-1, E, 2)[self.step]
        x, y, colors = np.array(self.x), np.array(self.y), np.array(self.colors)
        figure, (left, right) = panels(11, 4.8, 2, width_ratios=[3, 2])
        leaf = posterior[:, -E:].argmax(axis=1)
        left.scatter(x, y, c=colors[leaf], s=16, alpha=0.15 + 0.85 * posterior[:, self.node])
        for e, (slope, intercept) in enumerate(line_E2):
            for at, width in ((np.ones_like(x, bool), 0.7), (prior[:, E - 1 + e] > 0.3, 2.6)):
                left.plot(x, np.where(at, slope * x + intercept, np.nan), color=colors[e], lw=width)
            if (own := prior[:, E - 1 + e]).max() > 0.3:
                at = int(own.argmax())
                box = {"boxstyle": "round", "fc": "white", "ec": colors[e]}
                left.annotate(str(e), (x[at], slope * x[at] + intercept), fontsize=9, bbox=box)
        room = 0.15 * (max(y) - min(y))
        left.set(xlabel="x", ylabel="y", ylim=(min(y) - room, max(y) + room))
        left.set_title(
            f"Step {self.step}: colour, the expert most responsible; "
            f"strength, the share of {self.name(self.node)}",
            loc="left", fontsize=10.5, color=INK,
        )  # fmt: skip
        whose = "all points" if self.token < 0 else f"the point at x = {x[self.token]:.2f}"
        if self.token >= 0:
            left.plot(x[self.token], y[self.token], "o", mfc="none", mec=INK, mew=2, ms=11)
        mass, expected = (
            part.mean(axis=0) if self.token < 0 else part[self.token] for part in (posterior, prior)
        )
        for n in range(N):
            level = (n + 1).bit_length() - 1
            wide = 1 / 2**level
            at = (n + 1 - 2**level) * wide
            fill = colors[n - E + 1] if n >= E - 1 else "#8C959F"
            right.bar(at + 0.004, 0.62, wide - 0.008, -level, align="edge", fc="white", ec=QUIET)
            right.bar(at + 0.004, 0.62, (wide - 0.008) * mass[n], -level, align="edge", fc=fill)
            here = at + 0.004 + (wide - 0.008) * expected[n]
            right.plot([here, here], [-level, 0.62 - level], color=INK, lw=2)
            label = f"{n - E + 1 if n >= E - 1 else 'gate ' + str(n)}\n{100 * mass[n]:.0f}%"
            right.text(at + wide / 2, 0.68 - level, label, ha="center", va="bottom", fontsize=8)
        right.set(xlim=(0, 1), ylim=(-self.depth - 0.1, 1.15))
        right.set_axis_off()
        right.set_title(
            f"Share of {whose}: line prior, fill posterior\n"
            f"log-likelihood {self.likelihood[self.step]:.1f}",
            loc="left", fontsize=10.5, color=INK,
        )  # fmt: skip
        return figure

    def name(self, node: int) -> str:
        """Name a node as the page does.

        >>> from moe_lite.course.hierarchy import random_tree
        >>> import torch
        >>> widget = TreeExplorer([random_tree(1, 2, 1, seeds=[0])], *torch.zeros(2, 3, 1))
        >>> widget.name(0), widget.name(2)
        ('gate 0', 'expert 1')
        """
        first = 2**self.depth - 1
        return f"expert {node - first}" if node >= first else f"gate {node}"


def pack(history: Sequence[HME], x_T1: Tensor, y_T1: Tensor) -> dict[str, Any]:
    """Turn a history into the widget's traits, points sorted by x.

    Raises: ValueError as :class:`TreeExplorer` says.
    """
    if not history:
        raise ValueError("there is nothing to explore: the history holds no tree")
    for name, value in (("x", x_T1), ("y", y_T1)):
        if value.dim() != 2 or value.shape[1] != 1 or len(value) != len(x_T1) or not len(value):
            raise ValueError(f"{name} must be (T, 1) with T = {len(x_T1)}, not {value.shape}")
    depths = {tree.depth for tree in history}
    if len(depths) > 1:
        raise ValueError(f"the history mixes trees of depths {sorted(depths)}")
    order = x_T1[:, 0].argsort()
    x_T1, y_T1 = x_T1[order].double(), y_T1[order].double()
    x_T2, (depth,) = affine(x_T1), depths
    packed: dict[str, list[Any]] = {"likelihood": [], "lines": [], "prior": [], "posterior": []}
    for tree in (tree[0] for tree in history):
        if tree.expert_QEDO.shape[2:] != (2, 1):
            raise ValueError("the trees must have one input, beside the constant, and one output")
        packed["likelihood"].append(tree.log_likelihood(x_T2, y_T1).item())
        packed["lines"].append(tree.expert_QEDO[0, :, :, 0].numpy().astype("<f4").tobytes())
        for key, value in (
            ("prior", tree.log_prior(x_T2).exp()),
            ("posterior", tree.posterior(x_T2, y_T1)),
        ):
            packed[key].append((255 * value[0]).round().numpy().astype("u1").tobytes())
    return {
        "depth": depth,
        "x": x_T1[:, 0].tolist(),
        "y": y_T1[:, 0].tolist(),
        "colors": expert_colors(2**depth),
        "likelihood": packed["likelihood"],
        **{key: b"".join(packed[key]) for key in ("lines", "prior", "posterior")},
    }
