"""Who is measured: our backends and the peers, each on the same weights and the same routing."""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS
from moe_lite.layer import MoELayer
from moe_lite.routers import TopKRouter
from moe_lite.routing import Routing

from .shapes import DTYPES, Shape, choices, logits

Run = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_TD, expert_TK int64, gate_TK float32) -> out_TD."""


class NotHere(Exception):
    """Say in one line why a path cannot run here; ``args[0]`` is the row's status."""


@dataclass(frozen=True)
class Inputs:
    """Hold one of the sets that a measurement takes in turn."""

    x_TD: Tensor
    expert_TK: Tensor
    gate_TK: Tensor
    grad_TD: Tensor


class Case:
    """Draw the weights of a layer and three sets of inputs, all from seeds.

    The first E columns of x are the router's logits and its weight picks them, so a whole layer
    has the routing that was asked for, and the same gates whoever computes them.

    Attrs: weights: w1, w3 (E, F, D), w2 (E, D, F); sets: three :class:`Inputs`.
    Raises: ValueError if D is below E.
    """

    def __init__(self, shape: Shape, dtype: str, routing: str, device: str = "cpu"):
        if shape.D < shape.E:
            raise ValueError(f"D ({shape.D}) must be at least E ({shape.E})")
        self.shape, self.routing, self.device = shape, routing, device
        self.dtype = DTYPES[dtype]
        torch.manual_seed(0)
        with torch.device(device):
            experts = Experts(shape.E, shape.D, shape.F).to(self.dtype)
        self.weights = [w.detach() for w in (experts.w1, experts.w3, experts.w2)]
        self.router_ED = torch.eye(shape.E, shape.D, device=device, dtype=self.dtype)
        self.router_ED.requires_grad_()
        self.sets = [self._draw(seed) for seed in range(3)]
        self._packed: dict[str, list[Tensor]] = {}

    def _draw(self, seed: int) -> Inputs:
        T, E = self.shape.T, self.shape.E
        expert_TK = choices(self.routing, T, E, self.shape.K, seed)
        logits_TE = logits(expert_TK, E, seed)
        torch.manual_seed(100 + seed)
        x_TD, grad_TD = (
            torch.randn(T, self.shape.D, device=self.device).to(self.dtype) for _ in range(2)
        )
        x_TD[:, :E] = logits_TE
        gate_TK = logits_TE.gather(1, expert_TK).softmax(1).to(self.device)
        return Inputs(
            x_TD.requires_grad_(), expert_TK.to(self.device), gate_TK.requires_grad_(), grad_TD
        )

    def double(self) -> Case:
        """Give the first set and the weights in float64, for the reference."""
        exact, inputs = copy.copy(self), self.sets[0]
        exact.dtype, exact._packed = torch.float64, {}
        exact.weights = [w.double() for w in self.weights]
        exact.router_ED = self.router_ED.detach().double().requires_grad_()
        x_TD, gate_TK = (t.detach().double() for t in (inputs.x_TD, inputs.gate_TK))
        exact.sets = [
            Inputs(x_TD.requires_grad_(), inputs.expert_TK, gate_TK.requires_grad_(),
                   inputs.grad_TD.double())
        ]  # fmt: skip
        return exact

    def dense(self) -> Case:
        """Give the dense network of the same FLOP: one expert of width F for all T * K rows."""
        T, D, F_ = self.shape.rows, self.shape.D, self.shape.F
        return Case(
            Shape(T, D, F_, 1, 1), str(self.dtype).removeprefix("torch."), "balanced", self.device
        )

    def load(self) -> Tensor:
        """Count the pairs of each expert in the first set: (E,)."""
        return torch.bincount(self.sets[0].expert_TK.flatten(), minlength=self.shape.E)

    def packed(self, layout: str) -> list[Tensor]:
        """Give the weights as a peer wants them, leaves of their own, made once per layout."""
        if layout not in self._packed:
            w1, w3, w2 = self.weights
            made = {
                "ours": lambda: [w1, w3, w2],
                "one": lambda: [w1[0], w3[0], w2[0]],
                "side by side": lambda: [torch.cat([w1, w3], 1), w2],
                "interleaved": lambda: [torch.stack([w1, w3], 2).flatten(1, 2), w2],
                "transposed": lambda: [w.transpose(1, 2).contiguous() for w in (w1, w3, w2)],
            }[layout]()
            self._packed[layout] = [w.detach().requires_grad_() for w in made]
        return self._packed[layout]

    def unpacked(self, layout: str, grads: list[Tensor]) -> list[Tensor]:
        """Turn what belongs to :meth:`packed` weights back into w1, w3 and w2."""
        if layout == "one":
            return [grad[None] for grad in grads]
        if layout == "side by side":
            return [*grads[0].chunk(2, 1), grads[1]]
        if layout == "interleaved":
            return [*grads[0].unflatten(1, (-1, 2)).unbind(2), grads[1]]
        if layout == "transposed":
            return [grad.transpose(1, 2) for grad in grads]
        return grads


@dataclass(frozen=True)
class Contender:
    """Name a path, the layout of its weights, and how to make it run on a case.

    Attrs:  needs: "" or "cuda"; package: what to import and install, if anything.
            exact: whether two runs are promised to give the same bits.
            scope: "experts" (the routing is given), "layer" (its router runs too) or "dense".
            memory: bytes taken beyond what every path takes, from the case; None: little.
            compiled: whether torch.compile makes it; its graph breaks are then counted.
    """

    name: str
    layout: str
    make: Callable[[Case], Run]
    package: tuple[str, str] | None = None
    needs: str = ""
    exact: bool = False
    scope: str = "experts"
    memory: Callable[[Case], int] | None = None
    compiled: bool = False

    def build(self, case: Case) -> Run:
        """Make the path ready to run.

        Raises: NotHere if its package or its device is missing.
        """
        if self.needs == "cuda" and case.device != "cuda":
            raise NotHere("missing", "needs a GPU")
        if self.package is not None and importlib.util.find_spec(self.package[0]) is None:
            raise NotHere("missing", f"not installed (pip install {self.package[1]})")
        return self.make(case)


def our(backend: str) -> Callable[[Case], Run]:
    """Run one of our backends, its plan included."""

    def make(case: Case) -> Run:
        experts = _experts(case)
        unused_TE = torch.empty(case.shape.T, case.shape.E, device=case.device)

        def run(x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
            routing = Routing.from_choices(unused_TE, unused_TE, expert_TK, gate_TK)
            return BACKENDS[backend](x_TD, experts, routing)

        return run

    return make


def _experts(case: Case) -> Experts:
    """Hold the packed leaves as an Experts module."""
    with torch.device("meta"):
        experts = Experts(case.shape.E, case.shape.D, case.shape.F)
    for name, weight in zip(("w1", "w3", "w2"), case.packed("ours"), strict=True):
        delattr(experts, name)
        setattr(experts, name, weight)
    return experts


def our_layer(backend: str) -> Callable[[Case], Run]:
    """Run our layer as a model does, router and all."""

    def make(case: Case) -> Run:
        with torch.device("meta"):
            gate: Any = TopKRouter(case.shape.D, case.shape.E, case.shape.K)
        del gate.weight
        gate.weight = case.router_ED
        layer = MoELayer(gate, _experts(case), backend)
        return lambda x_TD, expert_TK, gate_TK: layer(x_TD)[0]

    return make


COMPILER = "inductor"


def compiled_layer(case: Case) -> Run:
    """Run our layer as ``torch.compile`` makes it; the row says how often its graph breaks.

    Raises: NotHere if there is no C++ compiler.
    """
    if COMPILER == "inductor" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise NotHere("missing", "torch.compile needs a C++ compiler (g++ or clang++)")
    torch.compiler.reset()
    return torch.compile(our_layer("auto")(case), backend=COMPILER)


def transformers(implementation: str, block: bool = False) -> Callable[[Case], Run]:
    """Run transformers' Mixtral experts by one of its implementations, or its whole block."""

    def make(case: Case) -> Run:
        from transformers import MixtralConfig
        from transformers.models.mixtral import modeling_mixtral as theirs

        config = MixtralConfig(
            hidden_size=case.shape.D, intermediate_size=case.shape.F,
            num_local_experts=case.shape.E, num_experts_per_tok=case.shape.K,
        )  # fmt: skip
        config._experts_implementation = implementation
        with torch.device("meta"):
            module: Any = theirs.MixtralSparseMoeBlock(config)
        experts = module.experts
        del experts.gate_up_proj, experts.down_proj, module.gate.weight
        experts.gate_up_proj, experts.down_proj = case.packed("side by side")
        module.gate.weight = case.router_ED
        if block:
            return lambda x_TD, expert_TK, gate_TK: module(x_TD[None])[0]
        return lambda x_TD, expert_TK, gate_TK: experts(x_TD, expert_TK, gate_TK)

    return make


def liger(case: Case) -> Run:
    """Run liger-kernel's fused experts (0.8.5: LigerFusedMoEFunction)."""
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    w13, w2 = case.packed("side by side")

    def run(x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
        return LigerFusedMoEFunction.apply(x_TD, w13, w2, expert_TK.int(), gate_TK)

    return run


def scattermoe(case: Case) -> Run:
    """Run the ScatterMoE kernels in fms-acceleration-moe, put together as its module does.

    Only its kernels are imported: the package itself would want a trainer's dependencies.
    """
    name, E, K = "_scattermoe_khd", case.shape.E, case.shape.K
    if name not in sys.modules:
        (root,) = importlib.util.find_spec("fms_acceleration_moe").submodule_search_locations  # type: ignore[union-attr, misc]
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(Path(root) / "utils" / "scattermoe_utils" / "khd")]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    ops = importlib.import_module(f"{name}.kernels.ops")
    w1, w3, w2 = case.packed("transposed")

    def run(x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
        sorted_R, order_R = torch.sort(expert_TK.flatten())
        with torch.no_grad():
            blocks, offsets = ops.padded_block_indices(sorted_R, E)
        where = (sorted_R, order_R, blocks, offsets)
        hidden_RF = F.silu(ops.scattered_experts(x_TD, w1, K, *where, grouped_out=True))
        hidden_RF = hidden_RF * ops.scattered_experts(x_TD, w3, K, *where, grouped_out=True)
        gates = gate_TK.to(x_TD.dtype)
        return ops.scattered_experts(hidden_RF, w2, 1, *where, gates=gates, grouped_in=True)

    return run


def sonicmoe(case: Case) -> Run:
    """Run SonicMoE's kernels for a routing that is given (needs a GPU of Hopper's or later)."""
    from sonicmoe import moe_general_routing_inputs
    from sonicmoe.enums import ActivationType

    (T, E, K), (w13, w2) = (case.shape.T, case.shape.E, case.shape.K), case.packed("interleaved")
    token_N = torch.arange(T, device=case.device, dtype=torch.int32).repeat_interleave(K)

    def run(x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
        out_TD, _ = moe_general_routing_inputs(
            x_TD, gate_TK.flatten(), token_N, expert_TK.flatten().int(), w13.permute(1, 2, 0), None,
            w2.permute(1, 2, 0), None, E, torch.cuda.current_stream().cuda_stream,
            ActivationType.SWIGLU, is_inference_mode_enabled=not torch.is_grad_enabled(),
        )  # fmt: skip
        return out_TD

    return run


def dense(case: Case) -> Run:
    """Run one plain network over all rows, by torch's own products."""
    w1, w3, w2 = case.packed("one")
    return lambda x_ND, expert_N1, gate_N1: F.linear(
        F.silu(F.linear(x_ND, w1)) * F.linear(x_ND, w3), w2
    )


def _gathered(case: Case) -> int:
    """Count what batched_mm gathers: all three weights, once for each pair."""
    return case.shape.rows * 3 * case.shape.D * case.shape.F * case.dtype.itemsize


def _padded(case: Case) -> int:
    """Count the padded rows' inputs, activations and outputs."""
    s = case.shape
    return int(case.load().max()) * s.E * (3 * s.D + 4 * s.F) * case.dtype.itemsize


HF = ("transformers", '"transformers>=5.17"')
CONTENDERS = [
    Contender("moe_lite loop", "ours", our("loop")),
    Contender("moe_lite padded", "ours", our("padded"), memory=_padded),
    Contender("moe_lite grouped", "ours", our("grouped"), exact=True),
    Contender("moe_lite auto", "ours", our("auto"), exact=True),
    Contender("moe_lite triton", "ours", our("triton"), ("triton", "triton"), "cuda", exact=True),
    *(
        Contender(f"transformers {name}", "side by side", transformers(name), HF, memory=memory)
        for name, memory in (("eager", None), ("batched_mm", _gathered), ("grouped_mm", None))
    ),
    Contender("liger", "side by side", liger, ("liger_kernel", "liger-kernel"), "cuda"),
    Contender(
        "scattermoe", "transposed", scattermoe,
        ("fms_acceleration_moe", "--no-deps fms-acceleration-moe"), "cuda",
    ),
    Contender("sonicmoe", "interleaved", sonicmoe, ("sonicmoe", "sonic-moe"), "cuda"),
    Contender("dense", "one", dense, scope="dense"),
    Contender("moe_lite dense", "ours", our("auto"), scope="dense"),
    Contender("moe_lite layer", "ours", our_layer("auto"), scope="layer", exact=True),
    Contender("moe_lite layer, compiled", "ours", compiled_layer, scope="layer", compiled=True),
    Contender("transformers layer", "side by side", transformers("grouped_mm", True), HF,
              scope="layer"),
]  # fmt: skip
