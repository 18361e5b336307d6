"""Film a training run: how one fixed text is routed, at steps spaced evenly in their logarithm."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..checked import conform, open_tensors, parse, short
from ..files import write
from ..model import Mixtral
from ..routing import Routing
from ..trace import RoutingTrace
from .data import Corpus, pieces
from .traces import check_routing

WORDS = {
    "domains": tuple[str, ...], "tokens": list[str], "wanted": list[int], "top_k": int,
    "gate_scale": float,
}  # fmt: skip
IDS = ("ids_BS", "domain_BS")


def log_steps(last: int, frames: int) -> list[int]:
    """Return 0 and about as many further steps as asked, each a constant factor after the last.

    Whole steps lie too close for that at first, so there the factor is larger.

    >>> log_steps(1000, 8)
    [0, 1, 3, 10, 32, 100, 316, 1000]
    >>> log_steps(3, 24)
    [0, 1, 2, 3]

    Raises: ValueError if last or frames - 1 is below 1.
    """
    if last < 1 or frames < 2:
        raise ValueError(f"a film needs a step and two frames, not {last} and {frames}")
    wanted = min(frames - 1, last)
    for marks in range(wanted, 100 * wanted):
        steps = {round(last ** (i / max(marks - 1, 1))) for i in range(marks)} | {last}
        if len(steps) >= wanted:
            break
    return [0, *sorted(steps)]


class Film:
    """Keep how every layer routed one text, at several steps of a training run.

    ::

        film = Film.of(corpus, log_steps(config.steps, 24))
        film.take(model, 0)
        train(model, corpus, config, callback=lambda row: film.take(model, row["step"]))
        film.trace(film.steps[-1])  # a RoutingTrace, for a widget or an analysis

    A frame is the router logits where the routing follows from them, as in Mixtral: top-k of the
    softmax, divided by its sum, times one ``gate_scale``. Of any other router it is the routing
    itself.

    Shapes: ids_BS, domain_BS int64 (B, S); logits[step] float16 (L, T, E), T = B*S; or
            routings[step], one for each layer. At half precision two experts of one token can
            tie that did not: the earlier then wins.
    """

    def __init__(
        self,
        ids_BS: Tensor,
        domain_BS: Tensor,
        domains: tuple[str, ...],
        tokens: list[str],
        wanted: list[int],
        top_k: int = 2,
        gate_scale: float = 1.0,
    ):
        self.ids_BS, self.domain_BS, self.domains = ids_BS, domain_BS, domains
        self.tokens, self.wanted, self.top_k = tokens, wanted, top_k
        self.gate_scale = gate_scale
        self.logits: dict[int, Tensor] = {}
        self.routings: dict[int, tuple[Routing, ...]] = {}

    @classmethod
    def of(cls, corpus: Corpus, wanted: list[int], length: int = 200, texts: int = 2) -> Film:
        """Choose the text: held-out windows of ``length`` tokens, ``texts`` of each domain."""
        batches = [corpus.windows(domain, length, texts) for domain in corpus.domains]
        ids_BS = torch.cat([batch.ids_BS for batch in batches])
        domain_BS = torch.cat([batch.domain_BS for batch in batches])
        tokens = pieces(corpus.tokenizer, ids_BS.flatten().tolist())
        return cls(ids_BS, domain_BS, corpus.domains, tokens, wanted)

    @property
    def steps(self) -> list[int]:
        """List the steps that were taken."""
        return sorted({*self.logits, *self.routings})

    @torch.no_grad()
    def take(self, model: Mixtral, step: int) -> bool:
        """Take a frame, if one is wanted at this step and the model routes; return whether.

        The model comes back in the mode (training or evaluation) that it had.
        """
        if step not in self.wanted or model.config.num_local_experts == 1:
            return False
        training = model.training
        model.eval()
        _, routings = model.hidden(self.ids_BS.to(model.embed_tokens.weight.device))
        model.train(training)
        self.top_k = model.config.num_experts_per_tok
        self.gate_scale = float(getattr(model.moe_layers[0].gate, "gate_scale", 1.0))
        if all(_same(self._from_logits(r.logits_TE), r) for r in routings):
            self.logits[step] = _half(torch.stack([r.logits_TE for r in routings])).cpu()
        else:
            self.routings[step] = tuple(routing.detach() for routing in routings)
        return True

    def trace(self, step: int) -> RoutingTrace:
        """Return how the text was routed at a step that was taken."""
        if step in self.logits:
            layers = tuple(self._from_logits(x_TE) for x_TE in self.logits[step].float())
        elif step in self.routings:
            layers = self.routings[step]
        else:
            raise ValueError(f"the film has no frame at step {step}, only at {self.steps}")
        names = tuple(f"layers.{i}.block_sparse_moe" for i in range(len(layers)))
        return RoutingTrace(self.tokens, layers, names, f"the film at step {step}")

    def _from_logits(self, logits_TE: Tensor) -> Routing:
        """Return Mixtral's routing by these logits, its gates times the factor."""
        probs_TE = logits_TE.softmax(dim=-1)
        gate_TK, expert_TK = probs_TE.topk(self.top_k, dim=-1)
        gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
        gate_TK = gate_TK if self.gate_scale == 1 else gate_TK * self.gate_scale
        return Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK)

    def exported(self) -> Film:
        """Return the film of the same model as ``save`` writes it: the factor on gates is in w2."""
        made = copy.copy(self)
        made.gate_scale = 1.0
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the film as one safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        words = {name: getattr(self, name) for name in WORDS}
        tensors = {"ids_BS": self.ids_BS, "domain_BS": self.domain_BS}
        tensors |= {f"logits.{step}": frame for step, frame in self.logits.items()}
        for step, routings in self.routings.items():
            for layer, routing in enumerate(routings):
                parts = _stored(routing).items()
                tensors |= {f"routing.{step}.{layer}.{name}": part for name, part in parts}
        about = {name: json.dumps(value) for name, value in words.items()}
        write(path, save(tensors, about))

    @classmethod
    def load(cls, path: str | os.PathLike[str], until: int | None = None) -> Film:
        """Read a film; ``until`` leaves out what was taken after that step.

        Raises: FileNotFoundError if there is none; ValueError if the file is not a film.
        """
        with open_tensors(path) as file:
            said = {"gate_scale": "1.0", **(file.metadata() or {})}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        missing = [name for name in WORDS if name not in said]
        if missing := missing + [name for name in IDS if name not in tensors]:
            raise ValueError(f"{path} is not a film: it lacks {', '.join(missing)}")
        words = {
            name: conform(parse(said[name], f"{path}: {name}"), kind, f"{path}: {name}")
            for name, kind in WORDS.items()
        }
        film = cls(*(tensors.pop(name) for name in IDS), **words)
        parts: dict[int, dict[int, dict[str, Tensor]]] = {}
        for key in tensors:
            if found := re.fullmatch(r"logits\.(0|[1-9][0-9]{0,17})", key):
                film.logits[int(found[1])] = tensors[key]
            elif found := re.fullmatch(r"routing\.([0-9]{1,18})\.([0-9]{1,6})\.(\w{1,40})", key):
                layers = parts.setdefault(int(found[1]), {})
                layers.setdefault(int(found[2]), {})[found[3]] = tensors[key]
            else:
                raise ValueError(f"{path} is not a film: it has {short(key)}")
        try:
            for step, layers in parts.items():
                routings = tuple(_restored(layers.get(n, {})) for n in range(len(layers)))
                film.routings[step] = routings
            film._check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        for frames in (film.logits, film.routings):
            for step in [step for step in frames if until is not None and step > until]:
                del frames[step]
        return film

    def _check(self) -> None:
        """Refuse what does not fit together."""
        ids_BS, domain_BS, T = self.ids_BS, self.domain_BS, self.ids_BS.numel()
        for name, x_BS in (("ids_BS", ids_BS), ("domain_BS", domain_BS)):
            if x_BS.dtype != torch.int64 or x_BS.dim() != 2 or x_BS.shape != ids_BS.shape or not T:
                raise ValueError(f"{name} is {x_BS.dtype} {tuple(x_BS.shape)}, not int64 (B, S)")
        if not 0 <= int(domain_BS.min()) <= int(domain_BS.max()) < len(self.domains):
            raise ValueError(f"domain_BS names a domain that is none of {len(self.domains)}")
        if len(self.tokens) != T:
            raise ValueError(f"tokens are {len(self.tokens)}, but ids_BS has {T}")
        if not self.steps:
            raise ValueError("there is no frame")
        shapes = set()
        for step, x_LTE in self.logits.items():
            if x_LTE.dtype != torch.float16 or x_LTE.dim() != 3 or not x_LTE.numel():
                raise ValueError(f"logits.{step} are {x_LTE.dtype} {tuple(x_LTE.shape)}, not "
                                 "float16 (L, T, E)")  # fmt: skip
            if not x_LTE.isfinite().all():
                raise ValueError(f"logits.{step} are not finite")
            if not 1 <= self.top_k <= x_LTE.shape[2]:
                raise ValueError(f"top_k is {self.top_k}, of {x_LTE.shape[2]} experts")
            if not 0 < self.gate_scale < math.inf:
                raise ValueError(f"gate_scale is {self.gate_scale}")
            shapes.add(tuple(x_LTE.shape))
        for step, routings in self.routings.items():
            for layer, routing in enumerate(routings):
                check_routing(routing, f"routing.{step}.{layer}")
                shapes.add((len(routings), routing.num_tokens, routing.num_experts))
        if len(shapes) > 1 or next(iter(shapes))[1] != T:
            raise ValueError(f"frames have (L, T, E) = {sorted(shapes)}, but one, with T = {T}, "
                             "is right")  # fmt: skip


def _half(x: Tensor) -> Tensor:
    """Return float16; what is too large for it becomes its largest, not infinite."""
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest).half()


def _same(one: Routing, other: Routing) -> bool:
    """Return whether two routings are the same up to rounding, and all that is in them."""
    a, b = ({n: x for n, x in vars(r).items() if x is not None} for r in (one, other))
    return a.keys() == b.keys() and all(
        x.shape == b[n].shape and torch.allclose(x, b[n], atol=1e-5)
        if isinstance(x, Tensor)
        else x == b[n]
        for n, x in a.items()
    )


def _stored(routing: Routing) -> dict[str, Tensor]:
    """Return a routing's parts as they are stored: half precision, and whole numbers as int32."""
    parts = {n: torch.as_tensor(x) for n, x in vars(routing).items() if x is not None}
    for name, part in parts.items():
        if part.dtype != torch.bool:
            part = _half(part) if part.is_floating_point() else part.int()
        parts[name] = part.contiguous()
    return parts


def _restored(parts: dict[str, Tensor]) -> Routing:
    """Return the routing whose parts were stored.

    Raises: ValueError if that is none.
    """
    large = {torch.float16: torch.float32, torch.int32: torch.int64, torch.bool: torch.bool}
    known = {field.name: field for field in fields(Routing)}
    for name, part in parts.items():
        if name not in known or part.dtype not in large:
            raise ValueError(f"a routing has no {name} of {part.dtype}")
    if missing := [n for n, field in known.items() if field.default is MISSING and n not in parts]:
        raise ValueError(f"a routing lacks {', '.join(missing)}")
    found: dict[str, Any] = {name: part.to(large[part.dtype]) for name, part in parts.items()}
    if "per_token" in found:
        if found["per_token"].numel() != 1:
            raise ValueError(f"per_token has {found['per_token'].numel()} numbers")
        found["per_token"] = int(found["per_token"])
    return Routing(**found)


def filmed(film: Film, model: Mixtral, path: Path) -> Callable[[dict[str, Any]], None]:
    """Make the callback that takes a run's frames and keeps the file up to date."""

    def callback(row: dict[str, Any]) -> None:
        if film.take(model, row["step"]):
            film.save(path)

    return callback
