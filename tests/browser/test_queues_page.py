"""The queues as a learner meets them: by mouse, by keyboard, in both themes, with no network."""

import re

import pytest
import torch

from moe_lite.course.widgets import ExpertQueues
from moe_lite.routers import GShardRouter, TopKRouter

WORDS = [f"w{n}" for n in range(20)]
T, E, K = 20, 4, 2


def routed():
    torch.manual_seed(1)
    return TopKRouter(6, E, K)(torch.randn(T, 6) + 0.7)


def shown(page):
    """Read who stands where: for each expert the tokens with a place, and those without."""
    return [
        [
            [text.removesuffix(" ✗") for text in lane.locator(f"{row} > li.full").all_inner_texts()]
            for row in (".places", ".late")
        ]
        for lane in page.locator(".lane").all()
    ]


def agrees(page, widget):
    """Compare the queues and the batch on the page with what the library computes."""
    rank_N, keep_N = widget.rank_N.tolist(), widget.routing.keep_N.tolist()
    lanes = [[{}, {}] for _ in range(E)]
    for n, rank in enumerate(rank_N):
        if rank >= 0:
            lanes[widget.experts[n // K][n % K]][not keep_N[n]][rank] = WORDS[n // K]
    right = [[[part[r] for r in sorted(part)] for part in lane] for lane in lanes]
    assert shown(page) == right
    assert page.locator(".tok b").all_inner_texts() == [
        WORDS[t] for t in widget.orders[widget.shuffle]
    ]
    dropped, sent = rank_N.count(-1), len(rank_N)
    late = sent - dropped - sum(keep_N)
    said = page.locator("[role=status]").inner_text()
    assert f"{sum(keep_N)} kept, {late} dropped" in said
    alone = sum(not any(keep_N[t * K : t * K + K]) for t in range(T))
    assert re.search(rf"\b{alone} tokens? ha(s|ve) no expert", said)


@pytest.mark.parametrize(
    "settings",
    [{}, {"capacity": 1}, {"capacity": 7, "priority": "choice"}, {"priority": "gate"},
     {"capacity": 6, "shuffle": 4}, {"capacity": 6, "shuffle": 2, "priority": "choice"},
     {"shuffle": 7, "priority": "gate", "token": 3}],
)  # fmt: skip
def test_the_page_computes_what_the_library_does(open_page, settings):
    widget = ExpertQueues(routed(), WORDS, **settings)
    agrees(open_page(widget), widget)


def test_what_was_not_sent_stands_nowhere(open_page):
    torch.manual_seed(3)
    routing = GShardRouter(6, E, capacity_factor=100.0).train()(torch.randn(T, 6))
    widget = ExpertQueues(routing, WORDS, capacity=5, priority="choice")
    agrees(open_page(widget), widget)


def test_controls_answer_by_keyboard(open_page):
    widget = ExpertQueues(routed(), WORDS, capacity=8)
    page = open_page(widget)
    page.get_by_label("Capacity").focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    page.get_by_text(re.compile(r"^5 \(factor 0\.50\)")).wait_for()
    widget.capacity = 5
    agrees(page, widget)
    page.get_by_label("Who comes first").select_option("choice")
    page.settle()
    widget.priority = "choice"
    agrees(page, widget)
    page.get_by_role("button", name="Shuffle the batch").press("Enter")
    page.settle()
    widget.shuffle = 1
    agrees(page, widget)


def test_tokens_come_step_by_step(open_page):
    page = open_page(ExpertQueues(routed(), WORDS, capacity=8, arrived=0))
    assert page.locator("li.full").count() == 0
    step = page.get_by_role("button", name="Step")
    for n in (1, 2, 3):
        step.click()
        page.get_by_text(f"{n} of 40 choices have come").wait_for()
        assert page.locator("li.full").count() == n
    assert page.locator("li.last").count() == 1
    play = page.get_by_role("button", name="Play")
    said = "play => [play.click(), play.textContent, play.click(), play.textContent]"
    assert play.evaluate(said)[1::2] == ["Pause", "Play"]  # at once: 40 beats are soon over
    assert page.get_by_role("button", name="Play").count() == 1
    arrived = page.get_by_label("Arrived")
    arrived.focus()
    page.keyboard.press("End")
    page.get_by_text("40 of 40 choices have come").wait_for()


def test_it_plays_when_it_is_first_seen_and_can_be_stopped(open_page):
    script = """new MutationObserver((_, watch) => {
      const pause = [...document.querySelectorAll("button")].find((b) => b.textContent === "Pause");
      if (!pause || !document.querySelector("li.last")) return;  // not on its way by itself yet
      watch.disconnect();
      const told = document.querySelector("[role=status]"), quiet = told.ariaBusy;
      pause.click();  // at once: it is soon over
      window.pressed = [quiet, told.ariaBusy, told.textContent, pause.textContent];
    }).observe(document, { childList: true, subtree: true });"""
    queues = ExpertQueues(routed(), WORDS, capacity=6)
    page = open_page(queues, script, motion="no-preference")
    page.wait_for_function("() => window.pressed")
    quiet, quiet_then, said, name = page.evaluate("window.pressed")
    assert (quiet, quiet_then, name) == ("true", "false", "Play"), "not read out at each beat"
    page.wait_for_timeout(700)  # time in which nothing is to happen
    assert page.locator("[role=status]").inner_text() == said
    assert not said.startswith("40 of 40")


def test_nothing_moves_by_itself_where_no_motion_is_wanted_or_some_are_still_to_come(open_page):
    widget = ExpertQueues(routed(), WORDS, capacity=6)
    still = (
        open_page(widget),
        open_page(ExpertQueues(routed(), WORDS, capacity=6, arrived=7), motion="no-preference"),
    )
    still[1].wait_for_timeout(900)
    assert [page.locator("li.full").count() for page in still] == [40, 7]


def test_a_token_tells_its_story(open_page):
    widget = ExpertQueues(routed(), WORDS, capacity=4)
    rank_N = widget.rank_N.tolist()
    lost = next(t for t in range(T) if all(r >= 4 for r in rank_N[t * K : t * K + K]))
    page = open_page(widget)
    page.locator(".tok").nth(lost).click()
    page.get_by_role("heading", name=f"Token {lost}: w{lost}").wait_for()
    for k in range(K):
        text = page.locator("ul > li").nth(k).inner_text()
        assert f"expert {widget.experts[lost][k]}, gate {widget.gates[lost][k]:.2f}" in text
        assert f"rank {rank_N[lost * K + k]} of" in text and "dropped" in text
    assert "along the residual" in page.locator(".end").inner_text()
    assert page.locator("li.chosen").count() == K
    page.keyboard.press("Home")
    page.get_by_role("heading", name="Token 0: w0").wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Token 1: w1").wait_for()
    assert page.locator('.tok[tabindex="0"]').count() == 1
    page.locator(".places > li.full").first.click()  # a place in a queue leads to its token too
    page.settle()
    chosen = page.locator('.tok[aria-selected="true"] b').inner_text()
    assert chosen == page.locator(".places > li.full").first.inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(ExpertQueues(routed(), WORDS, capacity=5, token=3), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
