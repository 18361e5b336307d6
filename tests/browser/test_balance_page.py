"""The simplex as a learner meets it: by mouse, by keyboard, in both themes, with no network."""

import re

import pytest
import torch

from moe_lite.course.widgets import BalanceSimplex
from moe_lite.losses import max_violation

STARTS = sorted(BalanceSimplex.STARTS)


def agrees(page, widget, slack=0.0006):
    """Compare what the page shows with what the library computes."""
    page.settle()
    said = page.locator("[role=status]").inner_text()
    value, violation = map(float, re.findall(r"-?\d+\.\d+", said))
    assert value == pytest.approx(widget.value, abs=slack)
    assert violation == pytest.approx(max_violation(widget.routing).item(), abs=0.0051)
    shown = [float(text) for text in page.locator(".row .value").all_inner_texts()]
    routing = widget.routing
    f_E, P_E = routing.load_E() / routing.num_tokens, routing.probs_TE.mean(0)
    right = torch.stack([f_E.double(), P_E], dim=1).flatten().tolist()
    assert shown == pytest.approx(right, abs=max(slack, 0.0006))


@pytest.mark.parametrize("start", STARTS)
def test_the_page_computes_what_the_library_does(open_page, start):
    widget = BalanceSimplex(start)
    page = open_page(widget)
    agrees(page, widget)
    page.get_by_role("button", name="One step").click()
    widget.step()
    agrees(page, widget)
    page.get_by_role("button", name="Ten steps").click()
    widget.step(10)
    agrees(page, widget)


def test_a_start_is_chosen_and_the_verdict_follows(open_page):
    page = open_page(BalanceSimplex(selected=3))
    for start, words in (
        ("below 1", "no token goes to expert 2"),
        ("all tie", "no token goes to expert 1 or 2"),
        ("sure", "Above 1"),
    ):
        page.get_by_label("Start from").select_option(start)
        page.get_by_text(words).wait_for()
        agrees(page, BalanceSimplex(start))
    assert page.locator("output").inner_text() == "all (P)"


def test_arrow_keys_move_a_token_and_all_tokens(open_page):
    widget = BalanceSimplex("below 1")
    page = open_page(widget)
    triangle = page.get_by_role("application")
    triangle.focus()
    before = page.locator(".row .value").all_inner_texts()
    for _ in range(4):
        page.keyboard.press("ArrowDown")  # P, and with it all tokens, away from expert 2
    page.settle()
    after = page.locator(".row .value").all_inner_texts()
    assert float(after[5]) < float(before[5]) - 0.05 and after[::2] == before[::2]
    page.get_by_label("Moves").focus()
    page.keyboard.press("End")
    page.get_by_text("token 11").wait_for()
    triangle.focus()
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    page.settle()
    assert page.locator(".row .value").all_inner_texts()[4] == "0.083"  # one token came to expert 2
    assert "Arrow keys move token 11" in triangle.get_attribute("aria-label")


def test_a_token_is_dragged(open_page):
    page = open_page(BalanceSimplex(torch.tensor([[3.0, 0, 0], [0.0, 3, 0]])))
    box = page.locator(".token").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 80, y - 300, steps=6)  # towards the top, expert 2
    page.mouse.up()
    page.get_by_text("token 0", exact=True).wait_for()
    assert page.locator(".row .value").all_inner_texts()[::2] == ["0.000", "0.500", "0.500"]
    page.mouse.move(x, y)  # no longer held
    page.settle()
    assert page.locator(".row .value").all_inner_texts()[::2] == ["0.000", "0.500", "0.500"]


def test_p_stays_in_the_triangle_wherever_it_is_dragged(open_page):
    page = open_page(BalanceSimplex("leaning"))
    box = page.locator("svg .mark").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(5, 5, steps=4)
    page.mouse.up()
    page.settle()
    shares = [float(text) for text in page.locator(".row .value").all_inner_texts()[1::2]]
    assert sum(shares) == pytest.approx(1, abs=0.002) and min(shares) >= 0.001


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(BalanceSimplex("below 1"), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
