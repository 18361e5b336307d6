"""Make a deck of a chapter: one HTML file that asks for nothing, ``teach slides 06``.

The claims, the figures with what they show, the code and the notes are the chapter's own; a vote's
options are tested wrong answers (quiz.py). A small file, teaching/decks/NN.md, may set the slides:

    # One claim                            a slide begins
    text, a list or a table                what stands on it, in Markdown
    [figure: Title of a section, 2]        its second picture
    [code: Title of a section, 1]          its first cell that a slide can hold
    [print: Title of a section, 1]         the first that its cells printed and a slide can hold
    [widget: BalanceSimplex("leaning")]    live
    [explorer: To be, or not to be]        the course's model on a text, live
    [vote: 1]                              the first question of the quiz
    [notes: Title of a section]            what to say: that section's text

    [chapter]                              a slide for each section, a vote after every third, and
                                           the chapter's own last lines

A chapter without such a file is the last line alone.
"""

from __future__ import annotations

import ast
import base64
import html
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..build import ROOT
from . import quiz
from .plan import LAST, Chapter, Section, plain, read

COLUMNS, LINES = 60, 8  # of code, that the last row can read
MARK = re.compile(r"^\[(figure|code|print|widget|explorer|vote|notes): (.+)\]$", re.M)
MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.S)
ASSETS = Path(__file__).parents[1] / "assets"


def markdown(text: str) -> str:
    """Return Markdown as HTML, its formulas as pictures with their source as alternative text."""
    import mistune

    drawn: list[str] = []

    def keep(match: re.Match[str]) -> str:
        drawn.append(formula(match[1] or match[2], bool(match[1])))
        return f"FORMULA{len(drawn) - 1}X"

    made = str(mistune.create_markdown(plugins=["table"])(MATHS.sub(keep, text)))
    return re.sub(r"FORMULA(\d+)X", lambda match: drawn[int(match[1])], made)


def formula(tex: str, displayed: bool) -> str:
    """Draw a formula with matplotlib, which needs no network; its TeX where that cannot draw it."""
    import matplotlib.figure
    from matplotlib import mathtext

    tex = " ".join(tex.split())
    out, alt = io.BytesIO(), html.escape(tex, quote=True)
    try:
        tex = re.sub(r"\\text\{", r"\\mathrm{", tex.replace(r"\Big", "").replace(r"\big", ""))
        with matplotlib.rc_context({"mathtext.fontset": "cm", "svg.fonttype": "path"}):
            mathtext.math_to_image(f"${tex}$", out, dpi=100, format="svg")
    except ValueError:
        return f"<code>{alt}</code>"
    drawn = re.sub(rb"<metadata>.*?</metadata>", b"", out.getvalue(), flags=re.S)  # the date
    data = base64.b64encode(drawn).decode()
    kind = "shown" if displayed else "inline"
    return f'<img class="{kind}" alt="{alt}" src="data:image/svg+xml;base64,{data}">'


def figure(one: Section, number: int) -> str:
    """Return a picture of a section, with what the chapter says of it.

    Raises: ValueError if the section has not so many.
    """
    if not 0 < number <= len(one.pictures):
        raise ValueError(f"section {one.title!r} has {len(one.pictures)} figures, not {number}")
    data, said = one.pictures[number - 1]
    alt = html.escape(f"{one.title}: {said}", quote=True)
    return f'<div class="fill"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'


def fits(code: str) -> bool:
    lines = code.splitlines()
    return len(lines) <= LINES and max(map(len, lines), default=0) <= COLUMNS


def code(one: Section, number: int, kind: str = "code") -> str:
    """Return a cell of a section, or what one printed; only what the last row can read counts.

    Raises: ValueError if there are not so many.
    """
    small = [text for text in (one.codes if kind == "code" else one.prints) if fits(text)]
    if not 0 < number <= len(small):
        raise ValueError(f"section {one.title!r} has {len(small)} cells for a slide, not {number}")
    return f"<pre>{html.escape(small[number - 1])}</pre>"


def frame(name: str, save: Callable[[Path], object]) -> str:
    """Return a portable page as a frame that is alive in the slide."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        save(path)
        page = html.escape(path.read_text(encoding="utf-8"), quote=True)
    return f'<iframe class="fill" title="{html.escape(name, quote=True)}" srcdoc="{page}"></iframe>'


def widget(text: str) -> str:
    """Return a widget of the course, live: ``BalanceSimplex("leaning")``.

    Raises: ValueError if it is none, or takes more than plain values.
    """
    import torch

    from .. import widgets

    def plain(node: ast.expr) -> object:
        value = ast.literal_eval(node)
        return torch.tensor(value) if isinstance(value, list) else value  # rows of scores

    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        assert call.func.id in widgets.__all__
        named = {key.arg: plain(key.value) for key in call.keywords if key.arg}
        made = getattr(widgets, call.func.id)(*map(plain, call.args), **named)
    except (SyntaxError, AssertionError):
        raise ValueError(f"{text} is no widget of the course with plain values") from None
    return frame(call.func.id, made.to_html)


def explorer(text: str) -> str:
    """Return the routing explorer on a text, of the course's own model."""
    from ...hf import load_pretrained
    from ..widgets import RoutingExplorer

    page = RoutingExplorer(text, model=load_pretrained("mixtral-mini").eval())
    return frame("routing explorer", page.to_html)


def vote(one: quiz.Question) -> str:
    """Return a question for the class; the answer shows at the next key."""
    shown = f"<pre>{html.escape(one.code)}</pre>" if one.code else ""
    options = []
    for at, (text, _) in enumerate(one.options):
        tag = "span" if one.code else "pre"
        right = ' class="right"' if at == one.right else ""
        options.append(f"<li{right}><{tag}>{html.escape(text)}</{tag}></li>")
    return f'{shown}<ol type="A" class="vote">{"".join(options)}</ol>'


def derived(chapter: Chapter) -> str:
    """Return the deck file that a chapter without one gets: a slide for each section."""
    parts = []
    for at, one in enumerate(chapter.taught):
        said = one.claims[:3]
        said += [s for s in one.sentences if not any(claim in s for claim in said)][: 3 - len(said)]
        lines = [f"# {one.title}", *(f"- {claim}" for claim in said)]
        shown = {
            "figure": bool(one.pictures),
            "print": any(map(fits, one.prints)),
            "code": any(map(fits, one.codes)),
        }
        lines += [f"[{kind}: {one.title}, 1]" for kind, there in shown.items() if there][:1]
        parts.append("\n".join([*lines, f"[notes: {one.title}]"]))
        if at % 3 == 2:
            parts.append(f"# Vote\n[vote: {at // 3 + 1}]\n[notes: {one.title}]")
    for one in chapter.sections:
        if one.title in LAST[1:]:
            parts.append(f"# {one.title}\n{one.text}\n[notes: {one.title}]")
    return "\n\n".join(parts)


def slide(text: str, chapter: Chapter, asked: Sequence[quiz.Question]) -> str:
    """Return one slide.

    Raises: ValueError if it names what the chapter does not have.
    """
    title, _, rest = text.partition("\n")
    notes, shown = [], []
    for kind, what in MARK.findall(rest):
        head, _, number = what.rpartition(", ")
        if kind == "figure":
            shown.append(figure(chapter.section(head), int(number)))
        elif kind in ("code", "print"):
            shown.append(code(chapter.section(head), int(number), kind))
        elif kind == "notes":
            notes += [chapter.section(what).title, *chapter.section(what).texts]
        elif kind == "vote":
            if not 0 < int(what) <= len(asked):
                raise ValueError(f"chapter {chapter.number} has {len(asked)} questions, not {what}")
            one = asked[int(what) - 1]
            title = f"Vote: {one.stem}"
            shown.append(vote(one))
            why = zip(quiz.LETTERS, (why for _, why in one.options), strict=True)
            notes += [f"{one.exercise}. The answer is {quiz.LETTERS[one.right]}."]
            notes += [f"{letter}: {said}" for letter, said in why]
        else:
            shown.append(widget(what) if kind == "widget" else explorer(what))
    body = markdown(MARK.sub("", rest).strip())
    said = html.escape(plain("\n\n".join(notes)))
    return (
        f"<section><h2>{markdown(title.lstrip('# '))}</h2>\n{body}\n{''.join(shown)}"
        f'<aside class="notes">{said}</aside></section>'
    )


def deck(number: str, root: Path = ROOT) -> str:
    """Return a chapter's deck.

    Raises: ValueError with the deck file and what in it the chapter does not have.
    """
    chapter, asked = read(number, root), quiz.questions(number, root)
    path = root / "teaching" / "decks" / f"{number}.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else "[chapter]"
    text = text.replace("[chapter]", derived(chapter))
    goals = "\n".join(f"- {goal}" for goal in chapter.goals[:5] or chapter.intro.sentences[:3])
    made = [
        f'<section class="title"><h1>{html.escape(chapter.question)}</h1>{markdown(goals)}'
        f'<aside class="notes">{html.escape(plain(chapter.intro.texts[0]))}</aside></section>'
    ]
    for part in re.split(r"^(?=# )", text, flags=re.M):
        if part.strip():
            try:
                made.append(slide(part.strip(), chapter, asked))
            except ValueError as error:
                raise ValueError(f"teaching/decks/{path.name}: {error}") from None
    style, script = ((ASSETS / f"deck.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(chapter.question)}</title><style>{style}</style></head><body>\n"
        + "\n".join(made)
        + f'\n<p id="at" aria-live="polite"></p><script>{script}</script></body></html>\n'
    )
