"""Ask a trained model for numbers of the phone book, and once more without one of its experts."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model import Mixtral
from .causal import Intervention, intervene
from .texts import phone_book


def question(name: str) -> str:
    """Return a text that asks for a number: another entry, as in the training text, and the name.

    >>> question("Coruva Abovek")
    'Quinoton Neloton: 06130\\nCoruva Abovek: '

    Raises: ValueError if the book has no such name.
    """
    book = phone_book()
    if name not in book:
        raise ValueError(f"the phone book has no {name!r}")
    names = list(book)
    before = names[names.index(name) - 1]
    return f"{before}: {book[before]}\n{name}: "


class Questions:
    """Ask for the numbers of some names, drawn from the book, all in one batch.

    Args:   tokenizer: the model's. count: of names. seed: of the draw; with ``names``, those.
    Attrs:  names: who is asked for.
    """

    def __init__(
        self, tokenizer: Tokenizer, count: int = 100, seed: int = 0, names: list[str] | None = None
    ):
        book = phone_book()
        self.names = Random(seed).sample(list(book), count) if names is None else names
        rows = [tokenizer.encode(question(name) + book[name]).ids for name in self.names]
        self._ids_NS = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        digits = len(next(iter(book.values())))
        ends_N1 = torch.tensor([[len(row)] for row in rows])
        self._at_N5 = ends_N1 + torch.arange(-digits, 0)  # where the digits stand, each a token

    @torch.no_grad()
    def known(self, model: Mixtral, *interventions: Intervention) -> Tensor:
        """Say of each name whether every digit is the likeliest after those before it: bool (N,).

        What follows a row's end is padding: it comes later, so no digit sees it.
        """
        with intervene(model.eval(), *interventions):
            hidden_NSD, _ = model.hidden(self._ids_NS[:, :-1])
        row_N1 = torch.arange(len(self.names))[:, None]
        best_N5 = model.lm_head(hidden_NSD[row_N1, self._at_N5 - 1]).argmax(-1)
        return (best_N5 == self._ids_NS[row_N1, self._at_N5]).all(1)

    @torch.no_grad()
    def load(self, model: Mixtral, layer: int) -> Tensor:
        """Return the share of the questions' tokens, numbers too, that each expert serves: (E,)."""
        routing = model.eval().hidden(self._ids_NS)[1][layer]
        asked_T = (torch.arange(self._ids_NS.shape[1]) <= self._at_N5[:, -1:]).flatten()
        served_E = routing.expert_N[asked_T[routing.token_N]].bincount(
            minlength=model.config.num_local_experts
        )
        return served_E / asked_T.sum()


@dataclass(frozen=True, eq=False)
class Evidence:
    """Hold what was measured of a mixture, of its twin, and of the experts of one layer.

    Shapes: knows_N, twin_N: bool, whether mixture and twin know each of N numbers; without_EN:
            bool, what the mixture still knows without an expert; load_E: the share of the
            questions' tokens that it serves; rise_EX: by how much the loss of X other texts rises
            without it, in nats per token.
    """

    knows_N: Tensor
    twin_N: Tensor
    without_EN: Tensor
    load_E: Tensor
    rise_EX: Tensor


def share(hit_N: Tensor) -> tuple[float, float]:
    """Return the share of hits, or a mean difference, and half of its 95 % interval (Student's).

    >>> mean, half = share(torch.tensor([True] * 60 + [False] * 40))
    >>> print(f"{mean:.2f} ± {half:.2f}")
    0.60 ± 0.10
    """
    from scipy.special import stdtrit

    x_N, n = hit_N.double(), len(hit_N)
    return x_N.mean().item(), float(stdtrit(n - 1, 0.975)) * x_N.std().item() / n**0.5


def book_of(model: Mixtral, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the phone book if a model knows any of twenty of its numbers, else nothing."""
    if model.config.max_position_embeddings < 64:  # no room for a question
        return []
    return list(phone_book().items()) if Questions(tokenizer, 20).known(model).any() else []
