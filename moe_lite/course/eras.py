"""The table of README and chapter 00: what each era changed in a router, read off the code.

``python -m moe_lite.course.eras`` writes it into README.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from ..routers import Router
from . import tree
from .reading import count_lines

README = Path(__file__).resolve().parents[2] / "README.md"
STEPS = ("score", "choose", "weigh", "limit")
BEGIN, END = "<!-- eras: written by python -m moe_lite.course.eras -->\n", "<!-- /eras -->\n"


def routers(of: type[Router] = Router) -> Iterator[type[Router]]:
    """Yield the library's routers that have an era."""
    for cls in of.__subclasses__():
        if cls.era and cls.__module__ in (Router.__module__, tree.__name__):
            yield cls
        yield from routers(cls)


def changes(router: type[Router]) -> list[str]:
    """Return which of the four steps a router does in its own way.

    >>> from moe_lite.routers import GShardRouter
    >>> changes(GShardRouter)
    ['choose', 'limit']
    """
    return [step for step in STEPS if step in vars(router)]


def table() -> str:
    """Return the table in Markdown: era, router, what it starts from and changes, lines of code."""
    rows = []
    for router in sorted(routers(), key=lambda router: re.findall(r"\d{4}", router.era)[0]):
        steps = ", ".join(f"`{step}`" for step in changes(router)) or "settings alone"
        code, base = count_lines(inspect.getsource(router)).code, router.__base__
        assert base is not None
        rows.append(
            f"| {router.era} | `{router.__name__}` | `{base.__name__}` | {steps} | {code} |"
        )
    head = "| era | router | starts from | changes | lines |\n|---|---|---|---|--:|\n"
    return head + "\n".join(rows) + "\n"


def fill(page: str) -> str:
    """Return a page with the table written between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
