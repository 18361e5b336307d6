"""The logit histogram as a learner meets it: by mouse, by keyboard, in both themes."""

import re

import pytest
import torch

from moe_lite.course.widgets import LogitHistogram

LOGITS_TE = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
NAMES = ["<b>", " the", "\n", "日本", *map(str, range(56))]


def agrees(page, widget):
    """Compare what the page shows with what torch rounds and chooses."""
    said = page.locator("[role=status]").inner_text()
    assert f"{len(widget.changed)} of 60 tokens change experts" in said
    assert f"off by up to {widget.gate_error:.3f}" in said
    assert float(re.search(r"bfloat16 there is ([\d.e-]+)\.", said)[1]) == widget.spacing
    rounds = widget.precision == "bfloat16"
    moved = page.locator("li.moved").count()
    assert moved == (len(widget.changed) if rounds else 0)
    texts = page.locator("[role=option] b").all_inner_texts()
    for text, chosen in zip(texts, widget.routing.expert_N.view(60, -1).tolist(), strict=True):
        assert text.split("→")[-1] == "+".join(map(str, sorted(chosen)))
    values = page.locator(".value").all_inner_texts()
    shown = [float(re.findall(r"-?[\d.]+", text)[-1]) for text in values]
    logits_E = widget.routing.logits_TE[widget.token]
    assert shown == pytest.approx(logits_E.tolist(), rel=6e-4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "float32", "shift": 9.0}, {"shift": 128.0}, {"doublings": 8},
     {"k": 2, "shift": 256.0, "token": 59}, {"shift": 37.5, "doublings": 3}],
)  # fmt: skip
def test_the_page_rounds_as_torch_does(open_page, settings):
    widget = LogitHistogram(LOGITS_TE, tokens=NAMES, **settings)
    agrees(open_page(widget), widget)


def test_everything_answers_by_keyboard(open_page):
    widget = LogitHistogram(LOGITS_TE, tokens=NAMES)
    page = open_page(widget)
    page.get_by_label("Add to all").focus()
    page.keyboard.press("End")
    page.locator("output:text-is('+256')").wait_for()
    widget.shift = 256.0
    agrees(page, widget)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    page.locator("output:text-is('×2')").wait_for()
    widget.doublings = 1
    agrees(page, widget)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowUp")  # the radio above bfloat16
    page.settle()
    assert page.get_by_label("float32").is_checked()
    widget.precision = "float32"
    agrees(page, widget)
    page.locator("[role=option][tabindex='0']").focus()
    for key in ("ArrowRight", "End", "ArrowLeft"):
        page.keyboard.press(key)
    page.get_by_text(re.compile(r"^Token 58 goes to expert \d$")).wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    widget.token = 58
    agrees(page, widget)


def test_a_click_opens_a_token_that_goes_elsewhere(open_page):
    widget = LogitHistogram(LOGITS_TE, tokens=NAMES, shift=128.0)
    page = open_page(widget)
    page.locator("li.moved").first.click()
    widget.token = widget.changed[0]
    said = rf"Token {widget.token} goes to expert \d instead of \d"
    page.get_by_text(re.compile(said)).wait_for()
    agrees(page, widget)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    widget = LogitHistogram(LOGITS_TE, tokens=NAMES, shift=64.0)
    widget.token = widget.changed[0]  # chosen and sent elsewhere: two styles meet
    page = open_page(widget, theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
