"""The bias controller as a learner meets it: by mouse, by keyboard, in both themes."""

import re

import pytest
import torch

from moe_lite.course.widgets import BiasController

LEAN = torch.linspace(1.0, -1.0, 8)
SCORES_TE = (torch.randn(256, 8, generator=torch.Generator().manual_seed(0)) + LEAN).sigmoid()


def agrees(page, widget):
    """Compare what the page shows with the library's run."""
    run, step = widget.run, widget.step
    page.get_by_role("heading", name=f"Load at step {step}", exact=True).wait_for()
    shown = [re.findall(r"[\d.]+|−", text) for text in page.locator(".value").all_inner_texts()]
    loads = [int(numbers[0]) for numbers in shown]
    biases = [float("-" * (len(n) == 3) + n[-1]) for n in shown]
    assert loads == run.load_SE[step].tolist()
    assert biases == pytest.approx(run.bias_SE[step].tolist(), abs=5.1e-4)
    said = [float(n) for n in re.findall(r"\d+\.\d+", page.locator("[role=status]").inner_text())]
    late = run.batch_S[-100:].mean(), run.whole_S[-100:].mean()
    assert said == pytest.approx([run.batch_S[step], run.whole_S[step], *late], abs=5.1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"u": 1e-4, "step": 40}, {"u": 0.5}, {"u": 0.0}, {"k": 8},
     {"rule": "proportional", "u": 0.05}, {"steps": 1, "batch": 256}],
)  # fmt: skip
def test_the_page_runs_what_the_library_runs(open_page, options):
    widget = BiasController(SCORES_TE, **options)
    agrees(open_page(widget), widget)


def test_sliders_and_menu_answer_by_keyboard(open_page):
    widget = BiasController(SCORES_TE, u=0.01)
    page = open_page(widget)
    rate = page.get_by_label("Update rate u")
    rate.focus()
    page.keyboard.press("ArrowRight")
    page.locator("output:text-is('0.02')").wait_for()
    widget.u = 0.02
    agrees(page, widget)
    page.keyboard.press("Home")
    page.locator("output:text-is('0.0001')").wait_for()
    widget.u = 1e-4
    agrees(page, widget)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    widget.rule = "proportional"
    page.settle()
    agrees(page, widget)
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    widget.step = 0
    agrees(page, widget)
    page.keyboard.press("ArrowRight")
    widget.step = 1
    agrees(page, widget)


def test_a_click_on_a_chart_goes_to_its_step(open_page):
    widget = BiasController(SCORES_TE, step=0)
    page = open_page(widget)
    chart = page.get_by_role("img", name="MaxVio over the steps")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.click(box["x"] + box["width"] * (44 + 490 / 2) / 560, box["y"] + box["height"] / 2)
    page.get_by_role("heading", name=re.compile(r"Load at step 1[45]\d")).wait_for()
    widget.step = int(page.get_by_label("Step", exact=True).input_value())
    agrees(page, widget)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(BiasController(SCORES_TE), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
