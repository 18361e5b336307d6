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
HANG_S = 900  # a limit for what hangs, not for what is slow

CELLS = {}
CELLS["click"] = [
    """\
import torch
from moe_lite.trace import RoutingTrace
from moe_lite.routers import TopKRouter
from moe_lite.course.widgets import RoutingExplorer

torch.manual_seed(0)
tokens = ["To", " be", ",", " or", " not", " to", " be", "\\n", "that", " is"]
layers = tuple(TopKRouter(4, 8)(torch.randn(len(tokens), 4)).detach() for _ in range(3))
widget = RoutingExplorer(RoutingTrace(tokens, layers, ("0", "1", "2"), "a test"))
widget""",
    'print("chosen", widget.selected, widget.layer, widget.expert)',
    "widget.layer = 2\nwidget.selected = 8",
]
CELLS["ask"] = [
    """\
import torch
from moe_lite.config import MixtralConfig
from moe_lite.model import Mixtral
from moe_lite.course.widgets import RoutingExplorer

torch.manual_seed(0)
model = Mixtral(MixtralConfig(
    vocab_size=4096, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
    max_position_embeddings=64, initializer_range=0.5))
widget = RoutingExplorer("To be, or not to be", model=model, layer=1)
widget""",
    """\
from moe_lite.course.causal import ablate
from moe_lite.course.effects import effect
expert = int(widget.trace.layers[1].expert_N[2 * 3])  # token 3's first
found = effect(model, widget.effect.base.ids_BS, ablate(1, expert, tokens=3))
top = found.base.log_probs_BSV[0, 3].exp().topk(5).indices
print(widget.question == [["ablate", 1, expert, -1, 0, [3]]], widget.selected)
print(*(f"{100 * run.log_probs_BSV[0, 3, i].exp():.1f}" for i in top
        for run in (found.base, found.changed)))""",
    'print(repr("".join(widget.tokens)), widget.question, widget.problem)',
]
CELLS["two"] = [
    """\
import torch
from moe_lite.course.mixtures import Mixture, descend
from moe_lite.course.widgets import CompetitionExplorer, TrafficMatrix

x_T2, target_T1 = torch.rand(20, 2).double(), torch.arange(20)[:, None] % 2
kept = descend(Mixture(2, 3, seeds=[0]), x_T2, target_T1.double(), step=1.0, keep=[0, 5]).kept
plane = CompetitionExplorer(x_T2, "abcdefghijklmnopqrst", target_T1, kept)
plane""",
    "traffic = TrafficMatrix(tokens=32)\ntraffic",
    "print(plane.moment, len(plane.lines), traffic.tokens < 32)",
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
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name, sources in CELLS.items():
        cells = [
            {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": source, "outputs": [],
             "execution_count": None} for n, source in enumerate(sources)
        ]  # fmt: skip
        notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        (work / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
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
        with urllib.request.urlopen(request, timeout=HANG_S) as reply:
            return reply.read()

    try:
        for _ in range(2 * HANG_S):
            try:
                call("/api/status")
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text(encoding="utf-8")
                time.sleep(0.5)
        else:
            pytest.fail("JupyterLab did not answer: " + (home / "log").read_text(encoding="utf-8"))
        yield f"{address}/lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={token}"
        call("/api/shutdown", "POST")  # takes the kernel along
        server.wait(timeout=HANG_S)
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(timeout=HANG_S)


@pytest.fixture
def notebook(lab, new_page, request):
    page = new_page(width=1280)
    page.goto(lab.format(request.param))
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


@pytest.mark.parametrize("notebook", ["click"], indirect=True)
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


@pytest.mark.parametrize("notebook", ["ask"], indirect=True)
def test_a_question_is_answered_by_the_kernel(notebook):
    """Click on a token, ablate its first expert, and see the next token's distribution change."""
    page = notebook
    run_cell(page, 0)
    view = page.locator(".jp-OutputArea .moe")
    view.locator(".tok").nth(3).click()
    rows = view.locator(".next li > span:last-child")
    before = rows.all_inner_texts()
    assert len(before) == 5 and not any("→" in row for row in before)
    view.get_by_role("button", name="Ask").click()
    view.get_by_text("first choices change").wait_for()  # the kernel has answered
    after = [row.split(" → ") for row in rows.all_inner_texts()[:5]]
    assert [old for old, _ in after] == before
    assert any(old != new for old, new in after)
    assert view.locator(".made").count() >= 1 and view.locator("canvas[role=img]").is_visible()
    same, shares = run_cell(page, 1).splitlines()  # and Python has the same numbers
    assert same == "True 3"
    shown = [float(share.rstrip("%")) for pair in after for share in pair]
    assert shown == pytest.approx([float(share) for share in shares.split()], abs=0.11)
    view.get_by_role("button", name="Leave it untouched").click()
    assert rows.all_inner_texts() == before

    # Your own text, typed: keys are the text's, not the notebook's.
    view.locator(".own summary").click()
    area = view.get_by_label("Your own text")
    area.fill("")
    area.type("add b 3 + 4")
    view.get_by_role("button", name="Run this text").click()
    view.locator(".tok", has_text="add").wait_for()
    assert run_cell(page, 2) == "'add b 3 + 4' []"
    view.locator(".own summary").click()
    view.get_by_label("Your own text").fill("word " * 99)
    view.get_by_role("button", name="Run this text").click()
    view.get_by_text("more than the model's context of 64").wait_for()
    assert page.locator(".jp-Notebook .jp-Cell").count() == len(CELLS["ask"])


@pytest.mark.parametrize("notebook", ["two"], indirect=True)
def test_two_widgets_share_a_notebook(notebook):
    """One draws on a canvas, with the theme's colours; neither lends the other its style."""
    page = notebook
    run_cell(page, 0)
    view, canvas = page.locator(".competition"), page.locator(".competition canvas")
    view.get_by_text("epoch 0").wait_for()
    alone = view.locator("label").first.bounding_box()
    run_cell(page, 1)
    traffic = page.locator(".redrawn")
    traffic.locator(".picture svg").wait_for()
    assert view.locator("label").first.bounding_box()["height"] == alone["height"]
    view.get_by_label("Moment of the training").press("End")
    view.get_by_text("epoch 5", exact=True).wait_for()
    view.locator(".handle").first.press("ArrowUp")
    traffic.get_by_label("Tokens per rank").press("Home")
    assert run_cell(page, 2) == "1 9 True"

    drawn = canvas.evaluate("c => c.toDataURL()")
    page.evaluate(  # to the other theme: an earlier test may have left this one dark
        """() => jupyterapp.commands.execute("apputils:change-theme", { theme:
          `JupyterLab ${document.body.dataset.jpThemeLight === "true" ? "Dark" : "Light"}` })"""
    )
    other = "drawn => document.querySelector('.competition canvas').toDataURL() !== drawn"
    page.wait_for_function(other, arg=drawn)
    command(page, "notebook:clear-all-cell-outputs")
    view.wait_for(state="detached")
