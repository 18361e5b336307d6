"""A real Chromium, driven headless: it opens a widget's page and writes down what it fetches."""

from functools import partial, wraps
from pathlib import Path

import pytest
import torch

from moe_lite.routers import TopKRouter
from moe_lite.trace import RoutingTrace

HANG_MS = 900_000  # a limit for what hangs, not for what is slow
ACTIONS = [  # what changes a page
    *(("Locator", name) for name in ("click", "fill", "press", "press_sequentially")),
    *(("Locator", name) for name in ("select_option", "check", "uncheck")),
    *(("Keyboard", name) for name in ("press", "type")),
    *(("Mouse", name) for name in ("click", "up")),
]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser(chromium):
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, timeout=HANG_MS)
        yield browser
        browser.close()


def settle(page):
    """Wait until the page has painted: it does so once, in the frame after a change."""
    page.evaluate("""() => new Promise((done) =>
      requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))""")


def settled(act):
    """Let an action end when what it changed is painted: a reading after it is of the new page.

    Not where a kernel or a worker answers: there a test waits for the answer, and what is shown
    until it comes may have gone by then.
    """

    @wraps(act)
    def acted(self, *args, **kwargs):
        act(self, *args, **kwargs)
        if getattr(getattr(self, "page", None), "alone", False):
            self.page.settle()

    return acted


@pytest.fixture
def new_page(browser, monkeypatch):
    """Open pages whose every request and error is written down; none may err."""
    api = pytest.importorskip("playwright.sync_api")
    for kind, name in ACTIONS:
        act = getattr(getattr(api, kind), name)
        monkeypatch.setattr(getattr(api, kind), name, settled(act))
    contexts, errors = [], []

    def new_page(theme="light", width=1200, motion="reduce"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion=motion
        )
        context.set_default_timeout(HANG_MS)
        contexts.append(context)
        page = context.new_page()
        page.requests, page.settle = [], partial(settle, page)
        page.keyboard.page = page.mouse.page = page
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
        page.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        return page

    new_page.errors = errors
    yield new_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def open_page(new_page, tmp_path):
    """Write a widget's page and open it from the disk; it must fetch nothing else."""
    pages = []

    def open_page(widget, script="", **kwargs):
        path = widget.to_html(tmp_path / f"page{len(pages)}.html")
        page = new_page(**kwargs)
        page.add_init_script(script)
        page.alone = True
        page.goto(path.as_uri())
        page.locator("#widget > div").first.wait_for()
        page.settle()
        pages.append((page, path.as_uri()))
        return page

    yield open_page
    for page, address in pages:
        assert page.requests == [address]


@pytest.fixture
def make_trace():
    def make_trace(tokens, L=4, E=8, K=2):
        layers = tuple(TopKRouter(4, E, K)(3 * torch.randn(len(tokens), 4)) for _ in range(L))
        names = tuple(f"layers.{n}.block_sparse_moe" for n in range(L))
        return RoutingTrace(list(tokens), tuple(r.detach() for r in layers), names, "a test")

    return make_trace
