"""What comes from a file is checked before it is used: text, JSON, typed fields, tensors.

Each refusal is a ValueError of one sentence that names the file, the field and the value.
A dataclass says itself which fields it has, of which type (its annotations) and in which range
(its ``__post_init__``), so nothing is said twice.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open

T = TypeVar("T")
LARGEST = 64 * 2**20  # bytes of a file that is read as text: more than ten times what there is
DEPTH = 32  # of brackets in brackets
WORDS = {
    int: "a whole number", float: "a finite number", bool: "true or false", str: "text",
    NoneType: "null", dict: "an object", list: "a list", tuple: "a list",
}  # fmt: skip
hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def short(value: Any, most: int = 60) -> str:
    """Spell a value on one line, the middle left out if it is long."""
    text = repr(value[: 4 * most] if isinstance(value, str | list) else value)
    half = most // 2 - 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


# --- text and JSON -------------------------------------------------------------------------------


def read_text(path: str | os.PathLike[str], largest: int = LARGEST) -> str:
    """Return the UTF-8 text of a file, without the byte-order mark that Windows may set.

    Raises: FileNotFoundError if there is none; ValueError if it is no regular file, has more
            than ``largest`` bytes or other bytes than text.
    """
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}") from None
    if not stat.S_ISREG(found.st_mode):  # a pipe might never end
        raise ValueError(f"{path} is not a file")
    if found.st_size > largest:
        raise ValueError(f"{path}: {found.st_size:,} bytes are more than the {largest:,} allowed")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (at byte {error.start:,})") from None


def read_json(path: str | os.PathLike[str], largest: int = LARGEST) -> dict[str, Any]:
    """Return the JSON object in a file; raises as :func:`read_text` and :func:`parse` do."""
    value = parse(read_text(path, largest), str(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds {short(value)}, not a JSON object")
    return value


def parse(text: str, where: str) -> Any:
    """Return what a JSON text holds.

    Raises: ValueError if it is no JSON, names a field twice, is nested too deeply, or has text
            that is none (half of a surrogate pair).
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the field {short(name)} stands there twice")
            found[name] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=once)
        level = [value]
        for _ in range(DEPTH):  # not by a function that calls itself: it could run out of stack
            below: list[Any] = []
            for inner in level:
                if isinstance(inner, str):
                    inner.encode()
                elif isinstance(inner, dict | list):
                    below += inner
                    below += inner.values() if isinstance(inner, dict) else ()
            level = below
        if level:
            raise RecursionError
    except (RecursionError, UnicodeEncodeError, ValueError) as error:
        why = str(error)
        if isinstance(error, RecursionError):
            why = f"nested deeper than {DEPTH}"
        elif isinstance(error, UnicodeEncodeError):
            why = f"{error.object[error.start]!r} is half a character"
        raise ValueError(f"{where}: not valid JSON ({why})") from None
    return value


# --- types ---------------------------------------------------------------------------------------


def conform(value: Any, kind: Any, what: str) -> Any:
    """Return a value from JSON as an annotation has it: a list as a tuple, 1 as a float's 1.0.

    Raises: ValueError, beginning with ``what``, if its type is another (True is no 1, 1.0 no 1),
            a number is not finite, or a whole one has more than 64 bits.
    """
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return build(kind, value, what)  # type: ignore[arg-type]
    if origin in (Union, UnionType):
        for option in args:
            with suppress(ValueError):
                return conform(value, option, what)
    elif origin in (tuple, list) and isinstance(value, list | tuple):
        kinds = args if origin is tuple and args[-1] is not ... else args[:1] * len(value)
        if len(kinds) == len(value):
            found = zip(value, kinds, strict=True)
            return origin(conform(v, k, f"{what}[{i}]") for i, (v, k) in enumerate(found))
    elif origin is dict and isinstance(value, dict):
        return {name: conform(v, args[1], f"{what}: {short(name)}") for name, v in value.items()}
    elif kind is float and type(value) in (int, float):
        if abs(value) < 2**63 or (type(value) is float and math.isfinite(value)):
            return float(value)
    elif kind is int and type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{what} must be below 2**63, not {short(value)}")
    elif kind is Any or kind is type(value) or (origin is Literal and value in args):
        return value
    raise ValueError(f"{what} must be {_spell(kind)}, not {short(value)}")


def check_fields(record: Any, least: Mapping[str, float]) -> None:
    """Hold a dataclass's values against its annotations, and these fields against their least.

    Raises: ValueError naming the field and the value that cannot be.
    """
    for name, kind in hints(type(record)).items():
        value = getattr(record, name)
        try:
            conform(value, kind, name)
            if name in least and value is not None and value < least[name]:
                raise ValueError
        except ValueError as error:
            if name not in least or str(error).find("2**63") > 0:
                raise
            of = "a number" if kind is float else _spell(kind)
            raise ValueError(
                f"{name} must be {of} of at least {least[name]:g}, not {short(value)}"
            ) from None


def _spell(kind: Any) -> str:
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_spell, args))
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    numbered = f" of {len(args)}" if origin is tuple and args[-1] is not ... else ""
    return WORDS[origin] + numbered


def build(kind: type[T], values: Any, what: str, base: T | None = None) -> T:
    """Make a dataclass of a JSON object.

    Args:   what: how a refusal begins, "FILE" or "FILE: field". base: gives the fields that are
            not there; without it, their defaults do.
    Raises: ValueError if a field is unknown, missing, of another type, or the class refuses it.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be a JSON object, not {short(values)}")
    known, given = {field.name: field for field in fields(kind)}, {}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{what} has no field {short(name)}; it has {', '.join(known)}")
        of, here = hints(kind)[name], f"{what}: {name}"
        if is_dataclass(of) and base is not None:
            given[name] = build(of, value, here, getattr(base, name))  # type: ignore[arg-type]
        else:
            given[name] = conform(value, of, here)
    try:
        if base is not None:
            return replace(base, **given)  # type: ignore[type-var]
        for name, field in known.items():
            if name not in given and (field.default, field.default_factory) == (MISSING, MISSING):
                raise ValueError(f"{name} is missing")
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


# --- tensors -------------------------------------------------------------------------------------


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[safe_open]:
    """Open a safetensors file; its header is held against its length before anything is read.

    Raises: ValueError for whatever is not a whole one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        with path.open("rb") as raw:
            start = raw.read(8)
        # A zip as torch.save makes them; or a protocol number and an opcode, where a short
        # safetensors header would have the zeros of its length.
        pickled = start[:1] == b"\x80" and start[1:2] <= b"\x05" and any(start[2:3])
        if start.startswith(b"PK\x03\x04") or pickled:
            why = "it is a pickle, which is refused; convert it to safetensors first"
        elif start == b"version ":
            why = "it is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
        else:
            why = f"truncated, damaged, or of another format ({short(str(error), 120)})"
        raise ValueError(f"{path}: not a readable safetensors file: {why}") from error


def check_room(size: int, what: str, device: torch.device | str = "cpu") -> None:
    """Refuse what no memory can hold, before any of it is taken.

    Args:   size: in bytes. what: begins the sentence.
    Raises: ValueError if the device has less memory; if it does not say, above 1 TB.
    """
    try:
        if torch.device(device).type == "cuda":
            room = torch.cuda.get_device_properties(device).total_memory
        else:
            room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        room = 10**12
    if size > room:
        raise ValueError(
            f"{what} takes {size / 1e9:,.1f} GB of memory, and there are {room / 1e9:,.1f}"
        )
