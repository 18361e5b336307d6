"""The reading path, measured: which files, in what order, and where one call of the layer goes.

``python -m moe_lite read`` prints it; tests/test_reading.py holds it to the budgets below.
"""

from __future__ import annotations

import argparse
import ast
import io
import linecache
import sys
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
AFTERNOON = (
    "routing", "config", "capacity", "routers", "experts", "losses", "dispatch", "layer", "model",
    "train",
)  # fmt: skip
"""What is read in an afternoon, in this order: each needs only what stands before it."""

MAX_AFTERNOON, MAX_LIBRARY, MAX_TRIP_FILES, MAX_FUNCTION = 2000, 5500, 5, 60
MAX_TRIP = {"loop": 60, "grouped": 75}  # the path that defines the layer, and the one that sorts


# --- lines ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lines:
    """Hold how many lines of a file are code, comment, docstring and blank."""

    code: int
    comment: int
    docstring: int
    blank: int

    @property
    def total(self) -> int:
        return self.code + self.comment + self.docstring + self.blank

    def __add__(self, other: Lines) -> Lines:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Lines(*(mine + yours for mine, yours in pairs))


def count_lines(source: str) -> Lines:
    r"""Count the lines of a module by kind; a comment behind code is code.

    >>> count_lines("'A file.'\n\n# why\nx = 1  # one\n")
    Lines(code=1, comment=1, docstring=1, blank=1)
    """
    docstring: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        first = getattr(node, "body", None)
        if isinstance(first, list) and first and isinstance(first[0], ast.Expr):
            text = first[0]
            if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                docstring |= {*range(text.lineno, (text.end_lineno or text.lineno) + 1)}
    skip = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code, comment = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment.add(token.start[0])
        elif token.type not in skip:
            code |= {*range(token.start[0], token.end[0] + 1)}
    code -= docstring
    comment -= code | docstring
    blank = len(source.splitlines()) - len(code) - len(comment) - len(docstring)
    return Lines(len(code), len(comment), len(docstring), blank)


def afternoon() -> list[Path]:
    """Return the afternoon's files in reading order; a folder's ``__init__`` comes last."""
    found = []
    for name in AFTERNOON:
        file = PACKAGE / f"{name}.py"
        inside = sorted((PACKAGE / name).glob("*.py"), key=lambda path: path.stem == "__init__")
        found += [file] if file.is_file() else inside
    return found


def library() -> list[Path]:
    """Return every file of the library: the package without the course."""
    course = PACKAGE / "course"
    return sorted(path for path in PACKAGE.rglob("*.py") if course not in path.parents)


# --- a trip --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """Hold one function of a trip: where it stands, how deep it was called, which lines ran."""

    file: str
    function: str
    depth: int
    lines: tuple[int, ...]


def trip(call: Callable[[], Any], folder: Path = PACKAGE) -> list[Stop]:
    """Run a call and return the functions of a folder that it went through, in order.

    A function that is called again adds no second stop, only the lines that are new.
    """
    ran: dict[tuple[str, str], tuple[int, set[int]]] = {}

    def inside(frame: FrameType) -> bool:
        return Path(frame.f_code.co_filename).is_relative_to(folder)

    def depth(frame: FrameType | None) -> int:
        deep = 0
        while frame is not None:
            deep += inside(frame) and not frame.f_code.co_name.startswith("<")
            frame = frame.f_back
        return deep

    def follow(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "call" and not inside(frame):
            return None
        # A comprehension is a frame of its own, and yet a line of the function it stands in.
        function = frame.f_code.co_qualname.partition(".<locals>.<")[0]
        _, lines = ran.setdefault((frame.f_code.co_filename, function), (depth(frame), set()))
        if event == "line":
            lines.add(frame.f_lineno)
        return follow

    start, before = depth(sys._getframe()) + 1, sys.gettrace()
    sys.settrace(follow)
    try:
        call()
    finally:
        sys.settrace(before)
    return [
        Stop(Path(file).relative_to(folder).as_posix(), name, deep - start, tuple(sorted(lines)))
        for (file, name), (deep, lines) in ran.items()
    ]


def layer_trip(backend: str) -> list[Stop]:
    """Return the trip of four tokens through a layer of four experts, on a readable path."""
    import torch

    from .. import Experts, MoELayer, TopKRouter

    layer = MoELayer(TopKRouter(8, 4, 2), Experts(4, 8, 16), backend)
    x_TD = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer(x_TD)  # what is worked out once is no part of every token's trip
        return trip(partial(layer, x_TD))


# --- the command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Print the files of the afternoon with their lines, then the layer's trip line by line."""
    argparse.ArgumentParser(prog="python -m moe_lite read", description=main.__doc__).parse_args(
        argv
    )
    print(f"{'The afternoon, in this order':<28}{'lines':>6}{'code':>6}{'docs':>6}{'notes':>6}")
    files = {path: count_lines(path.read_text(encoding="utf-8")) for path in library()}
    total = Lines(0, 0, 0, 0)
    for path in afternoon():
        total += files[path]
        print(_row(path.relative_to(PACKAGE).as_posix(), files[path]), _about(path), sep="  ")
    print(_row(f"together, of {MAX_AFTERNOON:,} allowed", total))
    print(_row(f"library, of {MAX_LIBRARY:,} allowed", sum(files.values(), Lines(0, 0, 0, 0))))

    for backend, most in MAX_TRIP.items():
        stops = layer_trip(backend)
        lines, names = sum(len(stop.lines) for stop in stops), {stop.file for stop in stops}
        print(
            f"\nTokens through the layer, by {backend!r}: {lines} lines (of {most} allowed), "
            f"{len(stops)} functions, {len(names)} files (of {MAX_TRIP_FILES} allowed)"
        )
    for stop in layer_trip("loop"):
        print(f"\n{'  ' * stop.depth}{stop.file}: {stop.function}")
        for line in stop.lines:
            print(f"{line:>5} {linecache.getline(str(PACKAGE / stop.file), line).rstrip()}")
    return 0


def _row(name: str, lines: Lines) -> str:
    return f"{name:<28}{lines.total:>6,}{lines.code:>6,}{lines.docstring:>6,}{lines.comment:>6,}"


def _about(path: Path) -> str:
    """Return the first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
