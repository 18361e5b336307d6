"""The noisy gate as a learner meets it: by mouse, by keyboard, in both themes, with no network."""

import re

import pytest
import torch

from moe_lite.course import losses2017
from moe_lite.course.widgets import NoisyGate

LEAN_TE = 0.6 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) + torch.linspace(
    1.2, -1.2, 8
)


def shown(page):
    """Read both panels: (tokens, smooth load) of each expert, (P, chosen) of each lane."""
    loads = page.locator("section").nth(0).locator(".value").all_inner_texts()
    lanes = page.locator("section").nth(1).locator(".value").all_inner_texts()
    numbers = [tuple(map(float, re.findall(r"[\d.]+", text))) for text in loads]
    return numbers, [(float(text.split()[1]), "✓" in text) for text in lanes]


def agrees(page, widget):
    """Compare what the page shows with what the library computes."""
    routing = widget.routing
    counts_E = routing.load_E()
    smooth_TE = routing.smooth_load_TE
    smooth_E = counts_E if smooth_TE is None else smooth_TE.sum(0)
    chosen = routing.expert_N.view(64, widget.k)[widget.token].tolist()
    loads, lanes = shown(page)
    for e in range(8):
        assert loads[e] == pytest.approx((counts_E[e].item(), smooth_E[e].item()), abs=0.051)
        assert lanes[e][1] == (e in chosen)
        if smooth_TE is not None:
            assert lanes[e][0] == pytest.approx(smooth_TE[widget.token, e].item(), abs=0.0051)
    cv = losses2017.cv_squared(counts_E).sqrt().item()
    assert f"CV of the load {cv:.2f}," in page.locator("[role=status]").inner_text()


@pytest.mark.parametrize(
    "settings",
    [{}, {"k": 1, "noise": 0.35}, {"k": 8}, {"noise": 0.0, "k": 3}, {"noise": 3.0, "draw": 9},
     {"token": 63, "draw": 999}],
)  # fmt: skip
def test_the_page_computes_what_the_library_does(open_page, settings):
    widget = NoisyGate(LEAN_TE, **settings)
    agrees(open_page(widget), widget)


def test_sliders_and_the_button_answer_by_keyboard(open_page):
    widget = NoisyGate(LEAN_TE, noise=1.0)
    page = open_page(widget)
    k = page.get_by_label("Experts per token, k")
    k.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("Token 0 goes to experts").wait_for()
    page.locator("output:text-is('3')").wait_for()
    widget.k = 3
    agrees(page, widget)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Home")  # the noise goes to 0
    page.locator("output:text-is('0.00')").wait_for()
    widget.noise = 0.0
    agrees(page, widget)
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    widget.noise, widget.draw = 3.0, 1
    page.settle()
    agrees(page, widget)
    page.get_by_label("Token", exact=True).fill("17")
    page.get_by_text(re.compile(r"Token 17 goes to experts \d, \d, \d")).wait_for()
    widget.token = 17
    agrees(page, widget)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(NoisyGate(LEAN_TE), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
