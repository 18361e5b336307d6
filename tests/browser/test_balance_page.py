"""The simplex as a learner meets it: by mouse, by keyboard, in both themes, with no network."""

import re

import pytest
import torch

from moe_lite.course.widgets import BalanceSimplex
from moe_lite.losses import max_violation

STARTS = sorted(BalanceSimplex.STARTS)


def shares(page):
    """Read f and P of each expert, as they stand at its corner."""
    texts = page.locator("svg .corner").all_text_contents()
    return [float(number) for text in texts for number in re.findall(r"\d\.\d+", text)]


def agrees(page, widget, slack=0.0006):
    """Compare what the page shows with what the library computes."""
    page.settle()
    said = page.locator("[role=status]").inner_text()
    value, violation = map(float, re.findall(r"-?\d+\.\d+", said))
    assert value == pytest.approx(widget.value, abs=slack)
    assert violation == pytest.approx(max_violation(widget.routing).item(), abs=0.0051)
    shown = shares(page)
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


def test_one_token_has_its_price_written_at_it(open_page):
    widget = BalanceSimplex("leaning")
    page = open_page(widget)
    f_E = widget.routing.load_E() / widget.routing.num_tokens
    paid_T = widget.routing.probs_TE @ f_E.double()
    price = page.locator("svg .price")
    most = int(widget.push_T3.norm(dim=1).argmax())
    assert price.text_content() == f"pays {paid_T[most]:.3f}"  # of all, the one pushed most
    page.get_by_label("Moves").fill("4")
    page.settle()
    assert price.text_content() == f"pays {paid_T[4]:.3f}"
    token = page.locator(".token").nth(4)
    near = [abs(float(token.get_attribute(f"c{d}")) - float(price.get_attribute(d))) for d in "xy"]
    assert max(near) < 20
    assert 3 * paid_T.mean().item() == pytest.approx(widget.value)  # what the page says of it


def test_it_walks_down_by_itself_until_nothing_moves(open_page):
    page = open_page(BalanceSimplex("below 1", selected=2))
    before = page.locator(".said").inner_text()
    page.get_by_role("button", name="Play").evaluate(  # at once: it is soon over
        """async (play) => {
          const said = document.querySelector(".said"), before = said.innerText;
          play.click();
          while (said.innerText === before) await new Promise((done) => setTimeout(done));
          play.click();
        }"""
    )
    page.settle()
    stopped = page.locator(".said").inner_text()
    assert stopped != before
    page.wait_for_timeout(900)  # time in which nothing is to happen
    assert page.locator(".said").inner_text() == stopped
    balanced = torch.eye(3).repeat(2, 1)  # nothing pushes
    page = open_page(BalanceSimplex(balanced))
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for(state="detached")


def test_arrow_keys_move_a_token_and_all_tokens(open_page):
    widget = BalanceSimplex("below 1")
    page = open_page(widget)
    triangle = page.get_by_role("application")
    triangle.focus()
    before = shares(page)
    for _ in range(4):
        page.keyboard.press("ArrowDown")  # P, and with it all tokens, away from expert 2
    page.settle()
    after = shares(page)
    assert after[5] < before[5] - 0.05 and after[::2] == before[::2]
    page.get_by_label("Moves").focus()
    page.keyboard.press("End")
    page.get_by_text("token 11").wait_for()
    triangle.focus()
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    page.settle()
    assert shares(page)[4] == 0.083  # one token came to expert 2
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
    assert shares(page)[::2] == [0, 0.5, 0.5]
    page.mouse.move(x, y)  # no longer held
    page.settle()
    assert shares(page)[::2] == [0, 0.5, 0.5]


def test_p_stays_in_the_triangle_wherever_it_is_dragged(open_page):
    page = open_page(BalanceSimplex("leaning"))
    box = page.locator("svg .mark").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(5, 5, steps=4)
    page.mouse.up()
    page.settle()
    P_E = shares(page)[1::2]
    assert sum(P_E) == pytest.approx(1, abs=0.002) and min(P_E) >= 0.001


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(BalanceSimplex("below 1"), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
