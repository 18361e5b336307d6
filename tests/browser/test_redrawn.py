"""A page of pictures that Python drew: by mouse and keyboard, in both themes, at any width."""

import pytest
import torch

from moe_lite.course import widgets
from moe_lite.course.widgets.portable import Question

SCORES_TE = torch.randn(24, 4, generator=torch.Generator().manual_seed(5))


def shown(page):
    page.settle()
    return page.locator("[role=status]").inner_text(), page.locator(".picture svg").count()


def test_each_move_shows_what_python_says_there(open_page):
    widget = widgets.NoisyGate(SCORES_TE, noise=0.7)
    page = open_page(widget)
    assert shown(page) == (widget.said, 1)
    page.get_by_role("slider", name="Noise").focus()
    page.keyboard.press("End")
    widget.noise = 3.0
    assert shown(page) == (widget.said, 1)
    assert page.get_by_role("slider", name="Noise").get_attribute("aria-valuetext") == "3.00"
    page.get_by_role("slider", name="Experts per token, k").fill("1")
    widget.k = 4
    assert shown(page) == (widget.said, 1)
    page.get_by_role("button", name="Draw again").click()
    widget.draw = 1
    assert shown(page) == (widget.said, 1)
    page.keyboard.press("Enter")  # and round again
    widget.draw = 0
    assert shown(page) == (widget.said, 1)
    assert page.locator(".picture").get_attribute("aria-label") == widget.said


def test_a_number_beside_a_slider_is_the_one_that_counts(open_page, monkeypatch):
    """A value between the slider's places, as Python may set one, is not shown as its neighbour."""
    ask = Question("Noise 0.77?", {"noise": 0.77}, lambda: 1, 2)
    monkeypatch.setattr(widgets.NoisyGate, "asks", lambda self: ask)
    page = open_page(widgets.NoisyGate(SCORES_TE, noise=0.7))
    assert page.locator(".controls output").first.inner_text() == "0.70"
    page.get_by_role("button", name="Guess", exact=True).click()
    page.settle()
    assert page.locator(".controls output").first.inner_text() == "0.77"
    slider = page.get_by_role("slider", name="Noise")
    assert slider.get_attribute("aria-valuetext") == "0.77"
    slider.press("End")
    page.settle()
    assert page.locator(".controls output").first.inner_text() == "3.00"


def test_a_menu_chooses_and_a_preset_brings_its_shape(open_page):
    page = open_page(widgets.CostCalculator("Mixtral 8x7B", batch=8))
    page.get_by_label("Model", exact=True).select_option("OLMoE")
    page.get_by_label("Device", exact=True).select_option("RTX 4090")
    page.get_by_role("combobox", name="Weights in").select_option("fp4")
    widget = widgets.CostCalculator("OLMoE", device="RTX 4090", weights="fp4", batch=8)
    assert shown(page) == (widget.said, 1)


@pytest.mark.parametrize(("theme", "width"), [("light", 400), ("dark", 1200)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: widgets.BiasController(SCORES_TE.sigmoid(), batch=16, steps=20),
        lambda: widgets.LogitHistogram(SCORES_TE),
        lambda: widgets.TrafficMatrix(skew=0.5),
    ],
)
def test_axe_finds_nothing_and_the_ink_is_the_themes(open_page, theme, width, make):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(make(), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink, text = page.evaluate("""() => [getComputedStyle(document.querySelector(".redrawn")).color,
      getComputedStyle(document.querySelector(".picture svg text")).fill]""")
    assert ink == text
