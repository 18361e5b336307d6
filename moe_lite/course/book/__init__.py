"""Make a website of the course: ``python -m moe_lite book [--out FOLDER]``.

From the notebooks as they were built: nothing is run again. A widget whose state its output keeps
is alive in the page; any other is its picture. Nothing on the site asks for anything elsewhere.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ... import files
from ..build import LINKS, ROOT
from ..widgets.portable import PAGE

HERE = Path(__file__).parent
LINK = re.compile(r"(?<!\!)\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
CHART = "application/vnd.plotly.v1+json"
OPTIONS = {
    "extensions": ["myst_nb", "moe_lite.course.book"],
    "project": "MoE Lite",
    "html_title": "MoE Lite",
    "html_theme": "furo",
    "html_math_renderer": "mathml",
    "html_copy_source": False,
    "html_show_copyright": False,
    "html_css_files": ["book.css"],
    "html_js_files": [["book.js", {"defer": "defer"}]],
    "html_static_path": [str(HERE)],
    "pygments_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 4,
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "suppress_warnings": ["myst.header", "misc.highlighting_failure", "mystnb.unknown_mime_type"],
}


def setup(app: Any) -> dict[str, Any]:
    """Draw formulas as MathML, which browsers set without a script."""
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert

    def visit(display: str) -> Any:
        def draw(self: Any, node: Any) -> None:
            text = node.astext()
            self.body.append(convert(text, display=display))
            raise SkipNode

        return draw

    app.add_html_math_renderer("mathml", (visit("inline"), None), (visit("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Book:
    """Hold the folder that Sphinx reads, and the one whose files go to the site as they are."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.source, self.extra = root, folder / "source", folder / "extra"
        self.chapters = sorted((root / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
        if not self.chapters:
            raise ValueError(f"no notebooks/*.ipynb in {root}: build them first")
        self.listings: set[Path] = set()
        self.words: list[str] = []
        self.titles: dict[str, str] = {}  # of each page, as the list at the side has it
        self.charted: set[Path] = set()

    def put(self, name: str, text: str) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def keep(self, name: str, data: bytes) -> None:
        path = self.extra / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def links(self, text: str, folder: str) -> str:
        """Lead each link to a page of the book; solutions are folded in the exercises."""

        def lead(link: re.Match[str]) -> str:
            to, anchor = link[1], link[2] or ""
            path = (self.root / folder / to).resolve()
            if not path.is_relative_to(self.root) or not path.is_file():
                return link[0]
            name = path.relative_to(self.root).as_posix()
            up = "../" * folder.count("/") + "../" * bool(folder)
            if name.startswith("solutions/"):
                name = name.replace("solutions", "exercises")
            elif name == "README.md" and not anchor:
                name = "index.md"
            elif name == "README.md":  # a section that the front page has not
                self.page(path, name)
            elif path.suffix == ".json":  # to be downloaded
                self.put(name, path.read_text("utf-8"))
            elif path.suffix == ".png":
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                (self.source / name).write_bytes(path.read_bytes())
            elif name.startswith("docs/") and path.suffix == ".md":
                self.page(path, name)
            elif path.suffix in (".py", ".md", "") and name != "LEDGER.md":
                self.listings.add(path)
                name = f"library/{name}.md"
            return f"]({up}{name}{anchor})"

        return LINK.sub(lead, text)

    def page(self, path: Path, name: str) -> None:
        """Add one of the course's pages, with its links, once."""
        if not (self.source / name).exists():
            self.put(name, "")  # pages may lead to each other
            text = self.links(path.read_text("utf-8"), name.rpartition("/")[0])
            self.put(name, f"---\norphan: true\n---\n{text}")

    def output(self, output: dict[str, Any], path: Path, name: str, title: str) -> dict[str, Any]:
        """Return an output as the book shows it."""
        data = output.get("data", {})
        if page := data.get(PAGE):
            from .. import widgets

            state = zlib.decompress(base64.b64decode(page["state"])).decode()
            made = getattr(widgets, page["widget"]).document("".join(data["text/plain"]), state)
            self.keep(f"widgets/{name}.html", made.encode())
            label = escape("".join(data["text/plain"]), quote=True)
            source = f"../widgets/{name}.html"
            shown = (
                f'<iframe class="widget" loading="lazy" title="{label}" src="{source}"></iframe>'
            )
        elif chart := data.get(CHART):
            chart.get("layout", {}).pop("width", None)  # as wide as the column
            said = json.dumps(chart).replace("<", "\\u003c")
            tall = chart.get("layout", {}).get("height", 450)
            words = output.get("metadata", {}).get("image/png", {}).get("alt", title)
            shown = (
                f'<div class="chart" role="figure" style="min-height: {tall}px" '
                f'aria-label="{escape(f"Chart: {words}")}">'
                f'<script type="application/json">{said}</script></div>'
            )
            if path not in self.charted:  # once a page, and only where it is needed
                self.charted.add(path)
                shown = '<script defer src="../_static/plotly.min.js"></script>\n' + shown
        elif png := data.get("image/png"):
            picture = base64.b64decode("".join(png))
            self.keep(f"figures/{name}.png", picture)
            said = "".join(data.get("text/plain", ""))
            alt = escape(f"Figure: {title}" if said.startswith("<") else said, quote=True)
            slab = ground(picture)
            source = f'loading="lazy" src="../figures/{name}.png"'
            shown = f'<img class="figure-png {slab}" alt="{alt}" {source}>'
        elif text := "".join(data.get("text/markdown", "")):
            from markdown_it import MarkdownIt

            linked = self.links(text, path.parent.name)
            shown = MarkdownIt("commonmark").enable("table").render(linked)
        else:
            return output
        return {"output_type": "display_data", "metadata": {}, "data": {"text/html": shown}}

    def notebook(self, path: Path, answers: Path | None = None) -> None:
        """Add a notebook; an exercise gets its answers, folded."""
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        notebook, folder, title = json.loads(path.read_text("utf-8")), path.parent.name, ""
        solved: dict[str, str] = {}
        if answers:
            for cell in json.loads(answers.read_text("utf-8"))["cells"]:
                text = "".join(cell["source"])
                if found := re.search(r"^(?:def|class) (\w+)", text, flags=re.M):
                    solved.setdefault(found[1], text)
        cells = []
        for at, cell in enumerate(notebook["cells"]):
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                if heads := re.findall(r"^#+ (.+)$", text, flags=re.M):
                    title = re.sub(r"[*`$]", "", heads[-1])
                    first = re.sub(r"[*`$]|^Exercises \d\d: ", "", heads[0])
                    self.titles.setdefault(
                        f"{folder}/{path.stem}", f"{path.stem.split('_')[0]} {first}"
                    )
                if LINKS in cell["metadata"].get("tags", ()):  # folded in the exercises
                    text = re.sub(r" · \[solutions\]\([^)]*\)", "", text)
                    text += " · [run this chapter](../run.md)" * (folder == "notebooks")
                text = self.links(text, folder)
                if folder == "notebooks":
                    self.glossary(text, path)
            else:
                name = f"{folder[0]}{path.stem}-{at}"
                cell["outputs"] = [
                    self.output(output, path, f"{name}-{n}", title)
                    for n, output in enumerate(cell["outputs"])
                ]
                if text.count("\n") > 30:
                    cell["metadata"]["tags"] = ["hide-input"]
            found = re.search(r"^(?:def|class) (\w+)", text, flags=re.M)
            if answers and "# YOUR CODE HERE" in text and found and found[1] in solved:
                code = highlight(solved[found[1]], PythonLexer(), HtmlFormatter())
                fold = f"<details><summary>A solution</summary>{code}</details>"
                show = {"output_type": "display_data", "metadata": {}, "data": {"text/html": fold}}
                cell["outputs"] = [show]
            cells.append({**cell, "source": text})
        notebook["cells"] = cells
        self.put(f"{folder}/{path.name}", json.dumps(notebook))

    def glossary(self, text: str, path: Path) -> None:
        """Collect the tables of words that end the chapters."""
        for table in re.findall(r"(?:^\|.*\|[ ]*\n?)+", text, flags=re.M):
            rows = table.strip().splitlines()
            if re.match(r"\| *(word|in the field|symbol|the paper)", rows[0]):
                for row in rows[2:]:
                    cells = [c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]]
                    if cells and cells[0]:
                        rest = " · ".join(filter(None, cells[1:]))
                        at = f"[{path.stem[:2]}](notebooks/{path.name})"
                        self.words.append(f"| {cells[0]} | {rest} | {at} |")

    def write(self) -> None:
        """Write everything that Sphinx is to read."""
        front = (self.root / "README.md").read_text("utf-8")
        table = front[front.index("## Chapters") :].split("\n## ")[0]
        for path in self.chapters:
            self.notebook(path)
        exercises = sorted((self.root / "exercises").glob("[0-9][0-9]_*.ipynb"))
        for path in exercises:
            answers = path.name.replace("exercises", "solutions")
            self.notebook(path, self.root / "solutions" / answers)
        ledger = (self.root / "LEDGER.md").read_text("utf-8")
        self.put("LEDGER.md", self.links(ledger, ""))
        rows = "\n".join(sorted(set(self.words), key=str.lower))
        head = "| word | meaning | chapter |\n|---|---|---|"
        self.put("glossary.md", f"# Glossary\n\n{head}\n{rows}\n")
        self.put("run.md", RUN)
        table = self.links(table.split("\nTo do an exercise")[0], "")
        pages = {"Chapters": "notebooks/", "Exercises": "exercises/"}
        lists = {
            caption: [
                f"{title} <{at}>" for at, title in self.titles.items() if at.startswith(folder)
            ]
            for caption, folder in pages.items()
        }
        lists["Beside them"] = ["LEDGER", "glossary", "run"]
        trees = "".join(
            f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(rows) + "\n```\n"
            for caption, rows in lists.items()
        )
        self.put("index.md", f"{FRONT}\n{table}\n{trees}")
        for path in self.listings:
            name, text = path.relative_to(self.root).as_posix(), path.read_text("utf-8")
            kind = "python" if path.suffix == ".py" else "text"
            text = f"---\norphan: true\n---\n# {name}\n\n~~~~{kind}\n{text}\n~~~~\n"
            self.put(f"library/{name}.md", text)
        if (picture := self.root / "docs" / "explorer.png").is_file():
            self.keep("explorer.png", picture.read_bytes())


FRONT = """# MoE Lite

Mixture of Experts from 1991 to today: every idea built in a few lines, every claim measured.

<p><a href="live.html"><img class="figure-png slab" src="explorer.png"
alt="A text, each token coloured by the expert that it went to"></a></p>
<p><a href="live.html"><b>Open the live model</b></a>: type any text, and see where each token goes;
or ask it for a number of its phone book, take out an expert, and ask again. It runs in the page, on
your machine.</p>
"""
RUN = """# Run a chapter

With Python 3.11 to 3.14, in a copy of the repository:

    python course.py lab

opens the notebooks in JupyterLab. The first time takes some minutes and about 2 GB.
"""


def ground(picture: bytes) -> str:
    """Name a picture's class by its ground: "" if it is transparent, "slab" if it can be inverted.

    A picture of which an eighth or more is coloured, as a heat map is, reads backwards when dark
    and bright change places: it is "tinted", and only dimmed.
    """
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGBA"), dtype=np.int16)
    if pixels[0, 0, 3] < 128:
        return ""
    coloured = np.ptp(pixels[..., :3], axis=-1) > 30
    return "tinted" if coloured.mean() >= 1 / 8 else "slab"


def main(argv: Sequence[str], live: Callable[[], Any], root: Path = ROOT) -> int:
    """Write the site, whole or not at all, with the page that ``live`` makes at its front."""
    parser = argparse.ArgumentParser(prog="python -m moe_lite book", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("site"), metavar="FOLDER")
    out, started = parser.parse_args(argv).out, time.monotonic()
    if out.is_dir() and any(out.iterdir()) and not (out / ".buildinfo").is_file():
        raise ValueError(f"{out} holds something else than a book: choose a new or empty folder")
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    with tempfile.TemporaryDirectory() as name, files.commit(out, lambda name: True) as site:
        folder = Path(name)
        book = Book(root, folder)
        book.write()
        live().to_html(folder / "extra" / "live.html")
        options = {**OPTIONS, "html_extra_path": [str(book.extra)]}
        book.put("conf.py", "".join(f"{name} = {value!r}\n" for name, value in options.items()))
        with docutils_namespace():
            source = str(book.source)
            app = Sphinx(source, source, folder / "html", folder / "trees", "html", status=None)
            app.build()
        if app.statuscode:
            raise ValueError("Sphinx could not make the book: see what it says above")
        if book.charted:
            import plotly

            script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
            shutil.copy(script, folder / "html" / "_static")
        shutil.copytree(folder / "html", site, dirs_exist_ok=True)
        pages = len([*site.rglob("*.html")])
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
    seconds = time.monotonic() - started
    print(f"{out}: {pages} pages, {size:.1f} MB, built in {seconds:.0f} s; open {out}/index.html")
    return 0
