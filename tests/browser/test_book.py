"""The book, made from the notebooks as they are, and every page of it opened in a browser."""

import re
import time
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from moe_lite.course import cli

pytest.importorskip("sphinx", reason='no Sphinx: pip install "moe-lite[book]"')
pytest.importorskip("myst_nb", reason='no myst-nb: pip install "moe-lite[book]"')
pytest.importorskip("furo", reason='no furo: pip install "moe-lite[book]"')
ROOT = Path(__file__).resolve().parents[2]
LINKS = "() => [...document.querySelectorAll('a[href]')].map((a) => a.href)"
SOURCES = (
    "() => [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
)
CONTRAST = ("index.html", "glossary.html", "run.html", "notebooks/05_capacity.html",
            "notebooks/02_hierarchies.html", "exercises/05_exercises.html")  # fmt: skip
WIDE = "() => document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Make the book once."""
    out = tmp_path_factory.mktemp("book") / "site"
    assert cli.book(["--out", str(out)]) == 0
    return out


def test_no_page_errs_asks_elsewhere_or_leads_nowhere(site, browser, record_property):
    """Open all pages, with axe where it is, and at the width of a phone; six in dark too."""
    started, errors, outside, dead, found = time.monotonic(), [], [], [], []
    try:
        from axe_playwright_python.sync_playwright import Axe

        axe = Axe()
    except ImportError:
        axe = None
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.on("console", lambda m: errors.append((page.url, m.text)) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append((page.url, str(error))))
    inside = (site.as_uri(), "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(inside) else outside.append(r.url))
    pages, links = sorted(site.rglob("*.html")), set()
    ids = {path: set(re.findall(r'\bid="([^"]+)"', path.read_text("utf-8"))) for path in pages}
    pairs = [(path, "light") for path in pages] + [(site / name, "dark") for name in CONTRAST]
    for path, theme in pairs:
        name = path.relative_to(site).as_posix()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.goto(path.as_uri())
        links |= {(name, link) for link in page.evaluate(LINKS)}
        dead += [(name, source) for source in page.evaluate(SOURCES)]
        if axe:  # contrast is nine tenths of axe's time, and comes from one style for all pages
            contrast = {"color-contrast": {"enabled": name in CONTRAST}}
            result = axe.run(
                page, options={"preload": False, "resultTypes": ["violations"], "rules": contrast}
            )
            for rule in result.response["violations"]:
                found += [(name, theme, rule["id"], n["html"][:200]) for n in rule["nodes"]]
        page.set_viewport_size({"width": 390, "height": 900})
        if page.evaluate(WIDE):
            found.append((name, "wider than a phone"))
    for name, link in sorted(links):
        address, part = urldefrag(link)
        if address.startswith("file:"):
            target = Path(unquote(urlparse(address).path))
            if not target.is_file() or (part and unquote(part) not in ids.get(target, {part})):
                dead.append((name, link))
    context.close()
    megabytes = sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) / 1e6
    said = (
        f"book: {len(pages)} pages, {megabytes:.1f} MB; {len(errors)} console errors, "
        f"{len(outside)} external requests, {len(dead)} dead of {len(links)} links, "
        f"{len(found)} findings of {'axe' if axe else 'the width alone: no axe here'}; "
        f"read in {time.monotonic() - started:.0f} s"
    )
    record_property("took", said)
    for what in (errors, outside, dead, found):
        assert not what, "\n".join(map(str, what[:20]))
    assert len(pages) > 2 * len([*(ROOT / "notebooks").glob("*.ipynb")])


def test_a_picture_can_be_read_on_a_phone(site, browser):
    """It is as wide as its letters need, and scrolls where it stands, by touch and by key."""
    context = browser.new_context(viewport={"width": 390, "height": 900})
    context.set_default_timeout(900_000)
    page = context.new_page()
    page.goto((site / "notebooks" / "05_capacity.html").as_uri())
    boxes = page.locator(".output:has(> .figure-png)").evaluate_all(
        """(boxes) => Promise.all(boxes.map(async (box) => {
          const picture = box.firstElementChild;
          picture.loading = "eager"; // else it comes when it is looked at
          await picture.decode();
          return [picture.naturalWidth, picture.getBoundingClientRect().width, box.clientWidth,
            box.scrollWidth, box.tabIndex];
        }))"""
    )
    wide = [box for box in boxes if box[0] > 390]
    assert wide
    for natural, shown, room, scrolled, stop in wide:
        assert shown >= min(natural, 760) - 1 > room
        assert scrolled >= shown - 1 and stop == 0
    context.close()
