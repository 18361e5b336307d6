"""Film a training run: how one fixed text is routed, at steps spaced evenly in their logarithm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import write
from ..model import Mixtral
from ..routing import Routing, RoutingTrace
from .data import Corpus, pieces


def log_steps(last: int, frames: int) -> list[int]:
    """Give 0 and about as many further steps as asked, each a constant factor after the one before.

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
    softmax, divided by its sum. Of any other router it is the routing itself.

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
    ):
        self.ids_BS, self.domain_BS, self.domains = ids_BS, domain_BS, domains
        self.tokens, self.wanted, self.top_k = tokens, wanted, top_k
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
        if all(_same(_from_logits(r.logits_TE, self.top_k), r) for r in routings):
            self.logits[step] = torch.stack([r.logits_TE for r in routings]).half().cpu()
        else:
            self.routings[step] = tuple(routing.detach() for routing in routings)
        return True

    def trace(self, step: int) -> RoutingTrace:
        """Return how the text was routed at a step that was taken."""
        if step in self.logits:
            layers = tuple(_from_logits(x_TE, self.top_k) for x_TE in self.logits[step].float())
        elif step in self.routings:
            layers = self.routings[step]
        else:
            raise ValueError(f"the film has no frame at step {step}, only at {self.steps}")
        names = tuple(f"layers.{i}.block_sparse_moe" for i in range(len(layers)))
        return RoutingTrace(self.tokens, layers, names, f"the film at step {step}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the film as one safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        words = {name: getattr(self, name) for name in ("domains", "tokens", "wanted", "top_k")}
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
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no film at {path}")
        try:
            with safe_open(path, "pt") as file:
                words = {name: json.loads(text) for name, text in file.metadata().items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            film = cls(
                tensors.pop("ids_BS"), tensors.pop("domain_BS"), tuple(words["domains"]),
                words["tokens"], words["wanted"], words["top_k"],
            )  # fmt: skip
            parts: dict[int, dict[int, dict[str, Tensor]]] = {}
            for key in [key for key in tensors if key.startswith("routing.")]:
                _, step, layer, name = key.split(".")
                layers = parts.setdefault(int(step), {})
                layers.setdefault(int(layer), {})[name] = tensors.pop(key)
            film.routings = {
                step: tuple(_restored(layers[n]) for n in range(len(layers)))
                for step, layers in parts.items()
            }
            film.logits = {
                int(name.removeprefix("logits.")): frame for name, frame in tensors.items()
            }
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a film: {error}") from error
        for frames in (film.logits, film.routings):
            for step in [step for step in frames if until is not None and step > until]:
                del frames[step]
        return film


def _from_logits(logits_TE: Tensor, top_k: int) -> Routing:
    """Return Mixtral's routing by these logits."""
    probs_TE = logits_TE.softmax(dim=-1)
    gate_TK, expert_TK = probs_TE.topk(top_k, dim=-1)
    gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
    return Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK)


def _same(one: Routing, other: Routing) -> bool:
    """Tell whether two routings are the same up to rounding, and all that is in them."""
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
    small = {True: torch.float16, False: torch.int32}
    return {
        n: x if x.dtype == torch.bool else x.to(small[x.is_floating_point()]).contiguous()
        for n, x in parts.items()
    }


def _restored(parts: dict[str, Tensor]) -> Routing:
    """Return the routing whose parts were stored."""
    large = {torch.float16: torch.float32, torch.int32: torch.int64, torch.bool: torch.bool}
    fields: dict[str, Any] = {name: part.to(large[part.dtype]) for name, part in parts.items()}
    if "per_token" in fields:
        fields["per_token"] = int(fields["per_token"])
    return Routing(**fields)


def filmed(film: Film, model: Mixtral, path: Path) -> Callable[[dict[str, Any]], None]:
    """Make the callback that takes a run's frames and keeps the file up to date."""

    def callback(row: dict[str, Any]) -> None:
        if film.take(model, row["step"]):
            film.save(path)

    return callback
