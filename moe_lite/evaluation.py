"""Measure a model on held-out text, in bits per byte, and what a text has to offer for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import TrainConfig
from .fast import autocast_dtype
from .model import Mixtral


class Batch(Protocol):
    """Hold windows of tokens and, at the same places, the tokens that follow: int64 (B, S)."""

    @property
    def ids_BS(self) -> Tensor: ...
    @property
    def targets_BS(self) -> Tensor: ...


class Corpus(Protocol):
    """Give text to train on, and held-out windows of each of its domains.

    ``bytes_V`` says how many bytes each token stands for; ``digest`` differs for other text;
    ``batch`` and ``windows`` depend on their arguments alone.
    """

    @property
    def domains(self) -> Sequence[str]: ...
    @property
    def bytes_V(self) -> Tensor: ...
    @property
    def digest(self) -> str: ...
    def batch(
        self, split: str, batch_size: int, seq_len: int, *, seed: int, step: int
    ) -> Batch: ...
    def windows(self, domain: str, seq_len: int, count: int) -> Batch: ...


def cross_entropy(logits_BSV: Tensor, targets_BS: Tensor, reduction: str = "mean") -> Tensor:
    """Return -log p(target) in float32, in nats: its mean over all tokens, or their sum."""
    logits_TV = logits_BSV.flatten(0, 1).float()
    return F.cross_entropy(logits_TV, targets_BS.flatten(), reduction=reduction)


def summed_loss(model: Mixtral, ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
    """Return the cross entropy of the next token, summed over all tokens, in nats."""
    return cross_entropy(model(ids_BS).logits_BSV, targets_BS, reduction="sum")


@torch.no_grad()
def evaluate(
    model: Mixtral,
    corpus: Corpus,
    *,
    config: TrainConfig | None = None,
    nats: Callable[[Mixtral, Tensor, Tensor], Tensor] = summed_loss,
) -> dict[str, float]:
    """Return held-out bits per byte of each domain: always the same, evenly spaced windows.

    Bits per byte = loss in nats / (ln 2 * bytes), so that tokenizers can be compared. The
    first tokens of a window are predicted with little before them, which counts too.

    Args:    config: its seq_len, batch_size, eval_windows (per domain) and autocast are used.
             nats: from model, ids and targets to the sum of the losses.
    Returns: for each domain of the corpus, in bits per byte of UTF-8.
    Raises:  ValueError if a domain's text is shorter than a window.
    """
    config = config or TrainConfig()
    device, dtype = model.embed_tokens.weight.device, autocast_dtype(model, config.autocast)
    training = model.training
    model.eval()
    bits = {}
    for domain in corpus.domains:
        windows = corpus.windows(domain, config.seq_len, config.eval_windows)
        total = 0.0
        for ids_BS, targets_BS in zip(
            windows.ids_BS.to(device).split(config.batch_size),
            windows.targets_BS.to(device).split(config.batch_size),
            strict=True,
        ):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                total += nats(model, ids_BS, targets_BS).item()
        size = int(corpus.bytes_V[windows.targets_BS].sum())
        bits[domain] = total / (math.log(2) * max(size, 1))
    model.train(training)
    return bits
