"""One widget, three faces: live beside a kernel, alone in one HTML file, still as a PNG."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import anywidget
import numpy as np
import torch
import traitlets as t
from torch import Tensor

from ... import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
PAGE = "application/vnd.moe-lite.page+json"  # in an output: what the book makes a page of
LARGEST = 150_000  # characters of it; a notebook is to stay below a megabyte
EXPORT = "export default { render };"  # how each widget's module ends
THEME = (  # before anything is drawn
    'document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches '
    '? "dark" : "light"'
)


class Question(NamedTuple):
    """Ask for a guess: what will be read once these moves are made, from ``least`` to ``most``?"""

    ask: str
    moves: dict[str, Any]
    read: Callable[[], float | str]  # a word is asked for in words
    most: float = 0
    step: float = 1
    least: float = 0


class PortableWidget(anywidget.AnyWidget):
    """Show one ES module live in a notebook, in an HTML file without a kernel, and as a PNG.

    A subclass names its ``_esm`` and ``_css`` files, keeps all it shows in synced traits whose
    names do not begin with an underscore, and overrides :meth:`figure` and :attr:`title`. In
    front of its two files come ``common.js`` and ``common.css``, what all widgets share; in the
    style, ``.widget`` is the class that is named as the file is (``noisy_gate.css``:
    ``.noisy-gate``), so two widgets in one notebook leave each other alone.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        for key in ("_esm", "_css"):
            if isinstance(own := cls.__dict__.get(key), Path):
                parts = (HERE / f"common{own.suffix}", own)
                shared, text = (part.read_text(encoding="utf-8") for part in parts)
                if key == "_css":
                    shared = shared.replace(".widget", f".{own.stem.replace('_', '-')}")
                setattr(cls, key, shared + text)
        super().__init_subclass__(**kwargs)

    guess: t.Dict[str, Any] = t.Dict().tag(sync=True)  # the question as the page needs it

    page: ClassVar[tuple[str, ...]] = ("page.js",)  # scripts that stand in for the kernel
    worker: ClassVar[tuple[str, ...]] = ()  # and those of them that get a thread of their own

    @property
    def title(self) -> str:
        """Return in one line what is shown."""
        raise NotImplementedError

    def figure(self) -> Figure:
        """Draw the widget as it stands: its still face."""
        raise NotImplementedError

    def asks(self) -> Question | None:
        """Return what the reader may guess before the page shows it."""
        return None

    def given(self) -> dict[str, Any]:
        """Return what the question takes as it is: a guess puts it back, so the answer is right."""
        return {}

    def ready(self) -> None:
        """Answer the question, once: make its moves, read, and take them back."""
        if self.guess or not (question := self.asks()):
            return
        before = {name: getattr(self, name) for name in question.moves}
        with self.hold_sync():
            for name, value in question.moves.items():
                setattr(self, name, value)
            answer = question.read()
            for name, value in before.items():
                setattr(self, name, value)
        ask, moves, _, most, step, least = question
        if not isinstance(answer, str):
            answer = round(round(answer / step) * step, 3)  # as finely as it can be guessed
        span = {"least": least, "most": most, "step": step}
        self.guess = {"ask": ask, "moves": {**self.given(), **moves}, "answer": answer, **span}

    def packed(self) -> str:
        """Write the state as pure ASCII without "<": no token can end the element it stands in."""
        self.ready()
        state = {**self.state(), "guess": self.guess}
        return json.dumps(state, default=deflated).replace("<", "\\u003c")

    def state(self) -> dict[str, Any]:
        """Return the values that the page needs: the synced traits of the subclass."""
        inherited = PortableWidget.class_trait_names(sync=True)
        names = set(self.trait_names(sync=True)) - set(inherited)
        return {name: getattr(self, name) for name in sorted(names) if not name.startswith("_")}

    def html(self) -> str:
        """Make a whole HTML page that needs neither a kernel nor a network.

        The page forbids itself every fetch (``default-src 'none'``) and runs two scripts only,
        those whose hashes it carries. What a token says is data, never markup.
        """
        return self.document(self.title, self.packed(), str(self._esm), str(self._css))

    @classmethod
    def document(cls, title: str, state: str, module: str = "", css: str = "") -> str:
        """Set a title and a state, as JSON, into the page; an instance names its own files."""
        module, css = module or str(cls._esm), css or str(cls._css)
        page, worker = _read(*cls.page), _read(*cls.worker)
        assert module.count(EXPORT) == 1, f"the module must end with {EXPORT}"
        script = module.replace(EXPORT, "") + page
        digests = " ".join(f"'sha256-{digest(part)}'" for part in (THEME, script))
        style = (HERE / "page.css").read_text(encoding="utf-8") + css
        title = html.escape(title)
        thread = f'<script type="text/plain" id="worker">{worker}</script>\n' if worker else ""
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src {digests}; style-src 'unsafe-inline'{"; worker-src blob:" * bool(worker)}">
<title>{title}</title>
<script>{THEME}</script>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><button type="button" id="theme">Dark theme</button></header>
<main id="widget"><noscript>This page draws itself with JavaScript; please allow it.</noscript>\
</main>
<script type="application/json" id="state">{state}</script>
{thread}<script type="module">{script}</script>
</body>
</html>
"""

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to one file, replacing an older one; returns its path.

        Raises: OSError if the file cannot be written; an older one is then as it was.
        """
        files.write(path, self.html())
        return Path(path)

    def png(self, dpi: float = 110) -> bytes:
        """Draw the still face as a PNG."""
        out = io.BytesIO()
        self.figure().savefig(out, format="png", dpi=dpi)
        return out.getvalue()

    def to_png(self, path: str | os.PathLike[str], dpi: float = 160) -> Path:
        """Write the still face to a PNG file, replacing an older one; returns its path.

        Raises: OSError if the file cannot be written; an older one is then as it was.
        """
        files.write(path, self.png(dpi))
        return Path(path)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Add the still face to the live one, for pages such as GitHub's that run no kernel."""
        self.ready()
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        still = base64.b64encode(self.png()).decode()
        alt = {"image/png": {"alt": self.title}}
        if os.environ.get("MOE_LITE_PAGES"):  # as the notebooks are built: for the book
            packed = deflated(self.packed().encode())["deflated"]
            if len(packed) <= LARGEST:
                data = {**data, PAGE: {"widget": type(self).__name__, "state": packed}}
        return {**data, "image/png": still, "text/plain": self.title}, {**metadata, **alt}


def many(n: int, noun: str) -> str:
    """Count things in words: 1 pair, 2 pairs, 1,815 pairs."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def bounded(proposal: Any, **bounds: tuple[float, float]) -> Any:
    """Return the value that is proposed for a trait, if it lies within the trait's bounds.

    Raises: traitlets.TraitError if it does not.
    """
    name, value = proposal["trait"].name, proposal["value"]
    low, high = bounds[name]
    if low <= value <= high:
        return value
    said = (f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (low, high, value))
    raise t.TraitError("{} must be from {} to {}, not {}".format(name, *said))


def scores(x_TE: Tensor, widget: str, least: int, most: int) -> Tensor:
    """Take a widget's scores as float64 on the CPU.

    Raises: ValueError unless they are finite, of ``least`` to ``most`` tokens and 2 to 16 experts.
    """
    x_TE, finite = x_TE.detach().cpu().double(), bool(x_TE.isfinite().all())
    if x_TE.dim() == 2 and least <= len(x_TE) <= most and 2 <= x_TE.shape[1] <= 16 and finite:
        return x_TE
    raise ValueError(
        f"the {widget} shows {least} to {most:,} tokens and 2 to 16 experts with finite scores, "
        f"not scores of shape {tuple(x_TE.shape)}"
        + ("" if finite else " with some that are not finite")
    )


def gumbel(count: int) -> Tensor:
    """Draw the same Gumbel numbers each time, rounded: page and Python compare equal ones."""
    generator = torch.Generator().manual_seed(0)
    uniform_N = torch.rand(count, generator=generator, dtype=torch.float64)
    return (-(-uniform_N.clamp(1e-9, 1 - 1e-9).log()).log()).round(decimals=6)


def panels(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Make an empty figure, in inches, and its axes side by side, open at the top and right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, **options)
    for ax in np.ravel(axes):
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _read(*names: str) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


def digest(script: str) -> str:
    """Return a script's SHA-256, as a page's policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def deflated(value: Any) -> dict[str, str]:
    """Pack bytes for a page, which takes them as a DataView."""
    return {"deflated": base64.b64encode(zlib.compress(value, 9)).decode()}
