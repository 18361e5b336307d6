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
from ..routers import TopKRouter
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
    """Keep the router logits of every layer on one text, at several steps of a training run.

    ::

        film = Film.of(corpus, log_steps(config.steps, 24))
        film.take(model, 0)
        train(model, corpus, config, callback=lambda row: film.take(model, row["step"]))
        film.trace(film.steps[-1])  # a RoutingTrace, for a widget or an analysis

    Shapes: ids_BS, domain_BS int64 (B, S); logits[step] float16 (L, T, E), T = B*S. At half
            precision two experts of one token can tie that did not: the earlier then wins.
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
        return sorted(self.logits)

    @torch.no_grad()
    def take(self, model: Mixtral, step: int) -> bool:
        """Take a frame, if one is wanted at this step and the model routes; say whether.

        The model comes back in the mode (training or evaluation) that it had.
        Raises: ValueError for a router whose choice does not follow from its logits alone.
        """
        if step not in self.wanted or model.config.num_local_experts == 1:
            return False
        for layer in model.moe_layers:
            if type(layer.gate) is not TopKRouter:
                raise ValueError(f"a film holds logits, and {layer.gate} does not choose by them")
        training = model.training
        model.eval()
        _, routings = model.hidden(self.ids_BS.to(model.embed_tokens.weight.device))
        model.train(training)
        self.top_k = model.config.num_experts_per_tok
        frame = torch.stack([routing.logits_TE for routing in routings])
        self.logits[step] = frame.half().cpu()
        return True

    def trace(self, step: int) -> RoutingTrace:
        """Give the routing at a step that was taken: top-k of the softmax, divided by its sum."""
        if step not in self.logits:
            raise ValueError(f"the film has no frame at step {step}, only at {self.steps}")
        layers = []
        for logits_TE in self.logits[step].float():
            probs_TE = logits_TE.softmax(dim=-1)
            gate_TK, expert_TK = probs_TE.topk(self.top_k, dim=-1)
            gate_TK = gate_TK / gate_TK.sum(dim=-1, keepdim=True)
            layers.append(Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK))
        names = tuple(f"layers.{i}.block_sparse_moe" for i in range(len(layers)))
        return RoutingTrace(self.tokens, tuple(layers), names, f"the film at step {step}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the film as one safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        words = {name: getattr(self, name) for name in ("domains", "tokens", "wanted", "top_k")}
        tensors = {"ids_BS": self.ids_BS, "domain_BS": self.domain_BS}
        tensors |= {f"logits.{step}": self.logits[step] for step in self.steps}
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
            frames = {int(name.removeprefix("logits.")): frame for name, frame in tensors.items()}
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a film: {error}") from error
        film.logits = {
            step: frame for step, frame in frames.items() if until is None or step <= until
        }
        return film


def filmed(film: Film, model: Mixtral, path: Path) -> Callable[[dict[str, Any]], None]:
    """Make the callback that takes a run's frames and keeps the file up to date."""

    def callback(row: dict[str, Any]) -> None:
        if film.take(model, row["step"]):
            film.save(path)

    return callback
