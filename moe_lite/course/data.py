"""Data: a tokenizer for the domains of :mod:`~moe_lite.course.texts`, and stateless batches."""

from __future__ import annotations

import codecs
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from ..checked import read_text, short
from .texts import BOOK, DOMAINS, SPLITS, Document, documents, split_of, split_texts  # noqa: F401

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_PATH = Path(__file__).parent / "assets" / "tokenizer.json"


class Batch(NamedTuple):
    """Hold B windows of S tokens, their next tokens, and the domain of each token.

    Shapes: all int64 (B, S); targets_BS[b, s] follows ids_BS[b, s]; domain_BS indexes
            ``corpus.domains``.
    """

    ids_BS: Tensor
    targets_BS: Tensor
    domain_BS: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


# The tokenizer


def train_tokenizer(texts: Iterable[str] | None = None, vocab_size: int = 4096) -> Tokenizer:
    """Train the byte-level BPE tokenizer; without texts, on 1.35 MB of each domain.

    The shipped file is what ``train_tokenizer().save(str(TOKENIZER_PATH))`` wrote under Python
    3.11. Words keep the space before them, each digit stands alone (so that a sum can be
    learned column by column), and id 0 is ``<|endoftext|>``, the mark between documents. Since
    all 256 bytes are in the vocabulary, any text comes back as it was:
    ``tokenizer.decode(ids, skip_special_tokens=False)``.

    Raises: ValueError if vocab_size is too small for the bytes and the mark.
    Source: Sennrich, Haddow, Birch 2016 (arXiv:1508.07909), algorithm 1, over bytes instead of
            characters as in Radford et al. 2019, section 2.2.
    """
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size must be at least 257 (256 bytes and 1 mark), not {vocab_size}"
        )
    if texts is None:
        texts = [text for name in DOMAINS for text in split_texts(name, 1_500_000)[0]]
    tokenizer = Tokenizer(models.BPE())
    # A word with the space before it, one ideograph, one digit, a run of signs, white space.
    words = (
        r"\p{Han}| ?[\p{L}&&[^\p{Han}]]+(?:'\p{L}+)*|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+|\s*\n|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: str | Path | None = None) -> Tokenizer:
    """Load the shipped tokenizer, or the ``tokenizer.json`` at path (a file or its folder).

    >>> tokenizer = load_tokenizer()
    >>> tokenizer.get_vocab_size(), tokenizer.token_to_id("<|endoftext|>")
    (4096, 0)

    It never cuts a text or fills it up, whatever the file says of truncation and padding.

    Raises: FileNotFoundError if there is no such file; ValueError if it is not a tokenizer.
    """
    file = TOKENIZER_PATH if path is None else Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    text = read_text(file)
    with _no_panic(f"{file} is not a tokenizer.json"):
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text.

    Raises: ValueError if the tokenizer breaks on it, as a hostile regular expression makes it.
    """
    with _no_panic(f"the tokenizer cannot read {short(text)}"):
        return list(tokenizer.encode(text).ids)


@contextmanager
def _no_panic(what: str) -> Iterator[None]:
    """Turn what tokenizers raises, a bare Exception or a Rust panic, into a ValueError."""
    try:
        yield
    except BaseException as error:  # a panic is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {short(str(error), 120)}") from error


# Byte-level BPE writes each byte as one printable character: those of Latin-1 that can be
# seen stand for themselves, the 68 others for the characters from 256 on.
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_UNSEEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTE_OF = {chr(b): b for b in _SEEN} | {chr(256 + i): b for i, b in enumerate(_UNSEEN)}


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    token = tokenizer.id_to_token(token_id) if token_id >= 0 else None
    if token is None:
        size = tokenizer.get_vocab_size()
        raise ValueError(f"there is no token {token_id}: ids run from 0 to {size - 1}")
    if token_id in tokenizer.get_added_tokens_decoder():
        return token.encode()
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return bytes(_BYTE_OF[char] for char in token)
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token):  # sentencepiece's single bytes
        return bytes.fromhex(byte[1])
    return token.replace("\u2581", " ").encode()  # and its space


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    end = error.end
    while end < len(error.object) and error.object[end] & 0xC0 == 0x80:
        end += 1  # the rest of a character that began in an earlier token
    return f"⟨{error.object[error.start : end].hex(' ').upper()}⟩", end


codecs.register_error("moe_lite.show_bytes", _show_bytes)


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Spell each token as a string that can be shown; joined, they are the text again.

    A token that holds only part of a character shows those bytes instead: ``⟨E3 81⟩``.

    >>> tokenizer = load_tokenizer()
    >>> pieces(tokenizer, tokenizer.encode("12 men").ids)
    ['1', '2', ' men']

    Raises: ValueError for an id outside the vocabulary.
    """
    return [token_bytes(tokenizer, int(i)).decode("utf-8", "moe_lite.show_bytes") for i in ids]


# The corpus


@dataclass(frozen=True, eq=False)
class Corpus:
    """Hold each domain's text as tokens and cut batches from it; made by :func:`load_corpus`.

    Attributes:
        domains:   the names, in the order that ``Batch.domain_BS`` counts.
        tokenizer: what encoded the text.
        tokens:    int32 (number of tokens,) for each (split, domain): the documents in order,
                   each followed by ``<|endoftext|>``.
        bytes_V:   int64 (V,), how many bytes of text each token stands for: what turns a loss
                   in nats per token into bits per byte. The mark between documents counts 0.
    """

    domains: tuple[str, ...]
    tokenizer: Tokenizer
    tokens: dict[tuple[str, str], Tensor]
    bytes_V: Tensor

    def batch(
        self, split: str, batch_size: int, seq_len: int, *, seed: int = 0, step: int = 0
    ) -> Batch:
        """Draw random windows: a pure function of (seed, step), so resuming needs no state.

        Each domain gets as many rows, rounded up or down by a draw that is fair over the steps.
        A window may run over the end of a document into the next.

        Raises: ValueError if there is no such split, batch_size < 1, seq_len < 1, or a domain's
                text is not longer than seq_len.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        random = Random(f"{split} {seed} {step}").random
        # Systematic sampling: batch_size equally spaced marks on a line that the domains divide.
        phase, rows = random(), []
        edges = torch.tensor(self._shares, dtype=torch.float64).cumsum(0)[:-1]
        marks = (torch.arange(batch_size, dtype=torch.float64) + phase) / batch_size
        for domain in torch.searchsorted(edges, marks, right=True).tolist():
            space = self._room(split, self.domains[domain], seq_len)
            rows.append((domain, int(random() * space)))
        return self._cut(split, rows, seq_len)

    def windows(self, domain: str, seq_len: int, count: int | None = None) -> Batch:
        """Lay evenly spaced windows over a domain's held-out text: always the same ones.

        They do not overlap: fewer than count (default: as many as fit) if the text is too short.
        """
        if domain not in self.domains:
            raise ValueError(f"the corpus has {', '.join(self.domains)}, but no {domain!r}")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        space = self._room("validation", domain, seq_len)
        fit = 1 + (space - 1) // seq_len
        count = fit if count is None else min(count, fit)
        index = self.domains.index(domain)
        starts = [i * (space - 1) // max(count - 1, 1) for i in range(count)]
        return self._cut("validation", [(index, start) for start in starts], seq_len)

    @property
    def _shares(self) -> tuple[float, ...]:
        return (1 / len(self.domains),) * len(self.domains)

    @cached_property
    def digest(self) -> str:
        """Tell texts apart (SHA-256 of domains and tokens): code differs by Python."""
        digest = hashlib.sha256(repr((self.domains, self._shares)).encode())
        for tokens in self.tokens.values():
            digest.update(tokens.numpy().tobytes())
        return digest.hexdigest()

    def _room(self, split: str, domain: str, seq_len: int) -> int:
        """Count the places where a window of seq_len tokens and its next token can start."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if seq_len < 1:
            raise ValueError(f"seq_len must be at least 1, not {seq_len}")
        length = len(self.tokens[split, domain])
        if length <= seq_len:
            raise ValueError(
                f"seq_len is {seq_len}, but the {split} text of {domain} has only {length} "
                "tokens: take shorter windows, or more text (max_bytes)"
            )
        return length - seq_len

    def _cut(self, split: str, rows: Sequence[tuple[int, int]], seq_len: int) -> Batch:
        rows_BW = torch.stack(
            [self.tokens[split, self.domains[d]][at : at + seq_len + 1] for d, at in rows]
        ).long()
        domain_B1 = torch.tensor([[domain] for domain, _ in rows])
        return Batch(
            rows_BW[:, :-1].contiguous(),
            rows_BW[:, 1:].contiguous(),
            domain_B1.expand(-1, seq_len).contiguous(),
        )

    def __repr__(self) -> str:
        lines = []
        for domain in self.domains:
            train, held = (self.tokens[split, domain] for split in SPLITS)
            per_token = self.bytes_V[train].sum().item() / len(train)
            lines.append(
                f"{domain:>12}: {len(train):>9,} tokens to train, {len(held):>7,} to validate, "
                f"{per_token:.2f} bytes per token"
            )
        return "\n".join(lines)


def load_corpus(
    domains: Sequence[str] = DOMAINS,
    *,
    max_bytes: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Read and encode domains, at most max_bytes of each (nine tenths of it to train).

    A domain whose package is missing is left out with a warning that names the pip command.

    Args:    max_bytes: UTF-8 bytes per domain (default: all).
    Raises:  ValueError if a domain is unknown, named twice or has no document small enough, or if
             none can be read.
    """
    domains = tuple(domains)
    known = (*DOMAINS, BOOK)
    if unknown := [name for name in domains if name not in known]:
        raise ValueError(f"there is no domain {unknown[0]!r}; the domains are {', '.join(known)}")
    if not domains or len(set(domains)) < len(domains):
        raise ValueError(f"domains must be one or more different names, not {domains}")
    tokenizer = load_tokenizer() if tokenizer is None else tokenizer
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise ValueError(f"the tokenizer has no token {END_OF_TEXT} to set between documents")
    tokens: dict[tuple[str, str], Tensor] = {}
    for name in domains:
        try:
            parts = split_texts(name, max_bytes)
        except ModuleNotFoundError as error:
            warnings.warn(f"the domain {name} is left out: {error}", stacklevel=2)
            continue
        for split, texts in zip(SPLITS, parts, strict=True):
            if not texts:
                raise ValueError(
                    f"max_bytes is {max_bytes}, and no {split} document of {name} is so small"
                )
            with _no_panic(f"the tokenizer cannot read the text of {name}"):
                codes = tokenizer.encode_batch_fast(texts)
            ids = [i for code in codes for i in (*code.ids, end)]
            tokens[split, name] = torch.tensor(ids, dtype=torch.int32)
    kept = tuple(name for name in domains if ("train", name) in tokens)
    if not kept:
        raise ValueError(f"no text could be read for {', '.join(domains)}")
    lengths = [len(token_bytes(tokenizer, i)) for i in range(tokenizer.get_vocab_size())]
    lengths[end] = 0
    return Corpus(
        domains=kept,
        tokenizer=tokenizer,
        tokens=tokens,
        bytes_V=torch.tensor(lengths),
    )
