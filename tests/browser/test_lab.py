"""The explorer inside a real JupyterLab: a click in the page arrives in Python, and back."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CELLS = [
    """\
import torch
from moe_lite.contracts import RoutingTrace
from moe_lite.routers import TopKRouter
from moe_lite.widgets import RoutingExplorer

torch.manual_seed(0)
tokens = ["To", " be", ",", " or", " not", " to", " be", "\\n", "that", " is"]
layers = tuple(TopKRouter(4, 8)(torch.randn(len(tokens), 4)).detach() for _ in range(3))
widget = RoutingExplorer(RoutingTrace(tokens, layers, ("0", "1", "2"), "a test"))
widget""",
    'print("chosen", widget.selected, widget.layer, widget.expert)',
    "widget.layer = 2\nwidget.selected = 8",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Serve a small notebook from a JupyterLab that shares nothing with the user's own."""
    pytest.importorskip("jupyterlab")
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    settings = home / "config" / "labconfig"
    settings.mkdir(parents=True)
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (settings / "page_config.json").write_text(json.dumps(news), encoding="utf-8")
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": source, "outputs": [],
         "execution_count": None} for n, source in enumerate(CELLS)
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (work / "click.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with open(home / "log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={work}",
                "--ServerApp.allow_root=True", "--LabApp.expose_app_in_browser=True",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            cwd=work, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **folders, "IPYTHONDIR": str(home / "ipython"),
                 "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def call(path, method="GET"):
        request = urllib.request.Request(
            address + path, method=method, headers={"Authorization": f"token {token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.read()

    try:
        for _ in range(240):
            try:
                call("/api/status")
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text(encoding="utf-8")
                time.sleep(0.5)
        else:
            pytest.fail("JupyterLab did not answer: " + (home / "log").read_text(encoding="utf-8"))
        yield f"{address}/lab/tree/click.ipynb?token={token}"
        call("/api/shutdown", "POST")  # takes the kernel along
        server.wait(timeout=30)
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture
def notebook(lab, new_page):
    page = new_page(width=1280)
    page.set_default_timeout(60_000)
    page.goto(lab)
    # A run that is asked for while the kernel starts is lost. The notebook's own indicator says
    # idle too early; the status bar knows.
    page.get_by_text("| Idle").wait_for()
    yield page
    new_page.errors.clear()  # JupyterLab's own console is not ours to judge


def command(page, name):
    page.evaluate("name => { jupyterapp.commands.execute(name) }", name)


def run_cell(page, index):
    """Run one cell and give the text that it printed."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(index)
    cell.locator(".jp-InputArea-editor").click()
    before = cell.locator(".jp-InputPrompt").inner_text()
    command(page, "notebook:run-cell")
    page.wait_for_function(
        """([index, before]) => {
          const cell = document.querySelectorAll(".jp-Notebook .jp-CodeCell")[index];
          const prompt = cell.querySelector(".jp-InputPrompt").innerText;
          return prompt !== before && !prompt.includes("*");
        }""",
        arg=[index, before],
    )
    printed = cell.locator(".jp-OutputArea-output pre")
    return printed.inner_text().strip() if printed.count() else ""


def test_a_click_arrives_in_python(notebook):
    page = notebook
    command(page, "notebook:run-all-cells")
    view = page.locator(".jp-OutputArea .moe")
    view.wait_for()
    selected = view.locator('[aria-selected="true"]')
    selected.wait_for()  # the third cell chose token 8 in layer 2
    assert selected.get_attribute("data-t") == "8"

    view.locator(".tok").nth(4).click()
    view.locator(".load .bar").nth(5).click()
    assert run_cell(page, 1) == "chosen 4 2 5"

    # Keys pressed here are the explorer's: JupyterLab's `d d` and digits leave the cells alone.
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    view.locator(".tok").nth(4).click()
    command(page, "notebook:enter-command-mode")
    view.locator(".tok").nth(4).focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowUp", "d", "d", "x", "b", "1", "Escape"):
        page.keyboard.press(key)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells
    assert page.locator(".jp-Notebook .jp-MarkdownCell").count() == 0
    assert run_cell(page, 1) == "chosen 6 1 -1"

    run_cell(page, 2)  # and Python answers back
    view.locator('.tok[data-t="8"][aria-selected="true"]').wait_for()
    assert view.locator("output").inner_text() == "2"

    # The dark theme of JupyterLab is the widget's.
    assert view.evaluate("e => e.classList.contains('dark')") is False
    page.evaluate(
        "jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })"
    )
    page.locator(".jp-OutputArea .moe.dark").wait_for()
    command(page, "notebook:clear-all-cell-outputs")  # and a new view's, where it is dark already
    view.wait_for(state="detached")
    run_cell(page, 0)
    page.locator(".jp-OutputArea .moe.dark").wait_for()

    away = [
        url for url in page.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))
    ]
    assert away == []
