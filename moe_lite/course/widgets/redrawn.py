"""Sliders and menus whose picture Python draws anew at each move: no algorithm in two languages."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import traitlets as t

from ..viz import INK
from .portable import HERE, PortableWidget

Move = tuple[str, str, Sequence[Any], Sequence[str] | str | None]
"""A trait, its label, the values it can be moved to, and their words; "button" counts them up."""


class Redrawn(PortableWidget):
    """Show controls, and below them the picture that :meth:`figure` draws of their values.

    With a kernel each move draws the picture anew. A page without one holds the pictures of
    ``grid``, the few positions of each control that matter, and of every combination of them; the
    other controls stay where they were when it was written.
    """

    _esm = HERE / "redrawn.js"
    _css = HERE / "redrawn.css"

    controls: t.List[Any] = t.List().tag(sync=True)
    drawn: t.List[Any] = t.List().tag(sync=True)  # the picture now, as SVG, and what it says

    def moves(self) -> list[Move]:
        """List the controls."""
        raise NotImplementedError

    def grid(self) -> dict[str, Sequence[Any]]:
        """Return the positions that a page without a kernel has, besides those that are now."""
        raise NotImplementedError

    def given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name, *_ in self.moves()}

    @property
    def said(self) -> str:
        """Return what the picture shows in a sentence, for those who do not see it too."""
        return self.title

    def face(self) -> list[str]:
        """Return the picture as SVG, in the ink of the page, and its sentence."""
        import matplotlib

        out = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "moe-lite"}):
            self.figure().savefig(out, format="svg", transparent=True, metadata={"Date": None})
        svg = out.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
        svg = re.sub(rf"#000000|{INK}", "currentColor", svg[svg.index("<svg") :])
        # Tenths of a point are enough for places; what the picture says stays as it is.
        svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d)\d+", r"\1", tag[0]), svg)
        return [re.sub(r"\n\s*", "\n", svg), self.said]

    def positions(self) -> Iterator[tuple[str, list[str]]]:
        """Draw each combination of the grid, by the places of its values in the lists."""
        lists = self._lists()
        before = self.given()
        shown = self.drawn
        with self.hold_sync():
            self.drawn = []  # so that a move draws nothing meanwhile
            try:
                for places in product(*(range(len(values)) for values in lists.values())):
                    for (name, values), place in zip(lists.items(), places, strict=True):
                        setattr(self, name, values[place])
                    yield ",".join(map(str, places)), self.face()
            finally:
                for name, value in before.items():
                    setattr(self, name, value)
                self.drawn = shown

    def _lists(self) -> dict[str, list[Any]]:
        lists = {}
        for name, values in self.grid().items():
            now = getattr(self, name)
            lists[name] = list(values) if now in values else [*values, now]
            if not isinstance(now, str):
                lists[name].sort()
        return lists

    def state(self) -> dict[str, Any]:
        """Return the grid of positions, and the picture of each."""
        lists = self._lists()
        controls = [
            (name, label, lists[name], self._words(values, words, lists[name]))
            for name, label, values, words in self.moves()
            if name in lists
        ]
        now = {name: getattr(self, name) for name in lists}
        return {"controls": controls, **now, "pictures": dict(self.positions())}

    @staticmethod
    def _words(values: Sequence[Any], words: Any, some: Sequence[Any]) -> Any:
        if words is None or isinstance(words, str):
            return words
        said = dict(zip(values, words, strict=True))
        return [said.get(value, f"{value:g}") for value in some]

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw when it is first shown, and from then on at each move."""
        if not self.controls:
            self.ready()  # its moves are taken back, so they need no picture
            self.controls = json.loads(json.dumps(self.moves(), default=list))
            self._at, self.drawn = self.given(), self.face()
            self.observe(self._redraw, list(self._at))
        return super()._repr_mimebundle_(**kwargs)

    def _redraw(self, change: Any = None) -> None:
        """Draw once for all the values that a choice changes: each of them is told."""
        if self.drawn and (now := self.given()) != self._at:
            self._at, self.drawn = now, self.face()
