"""Rows or columns as a learner meets it: by mouse, by keyboard, in both themes, with no network."""

import re

import pytest
import torch

from moe_lite.course.widgets import RowsOrColumns

TEXT = ["To", " be", ",", " or", " not", " to", " be", "\n", "that", " is"]
SCORES_TE = 1.5 * torch.randn(10, 4, generator=torch.Generator().manual_seed(7))


def agrees(page, widget):
    """Compare every cell, count and change that the page shows with the library's."""
    page.settle()
    routing, seen = widget.routing, widget.seen
    chosen = set(zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True))
    changed = {(n, e): now for n, e, now in widget.changed}
    for n, row in enumerate(page.locator("tbody tr").all()):
        cells = row.locator("td").all_inner_texts()
        if n >= seen:
            assert cells == ["", "", "", "", "hidden"]
            continue
        for e, text in enumerate(cells[:-1]):
            mark = "●" if (n, e) in chosen else ""
            if (n, e) in changed:
                mark = "+●" if changed[n, e] else "−"
            assert float(text[:4]) == pytest.approx(routing.probs_TE[n, e].item(), abs=0.0051)
            assert text[4:].strip() == mark
        count = sum(token == n for token, _ in chosen)
        assert cells[-1] == (str(count) if count else "nobody")
    loads = [str(int(load)) for load in routing.load_E()]
    assert page.locator("tfoot td").all_inner_texts()[:-1] == loads
    if seen < 10:
        assert f"{len(changed)} will be otherwise" in page.locator("[role=status]").inner_text()


@pytest.mark.parametrize(
    "settings",
    [{}, {"by": "row"}, {"c": 1}, {"c": 4}, {"seen": 6}, {"seen": 1, "c": 3},
     {"by": "row", "seen": 4}, {"c": 1, "seen": 3}],
)  # fmt: skip
def test_the_page_chooses_what_the_library_does(open_page, settings):
    widget = RowsOrColumns(SCORES_TE, TEXT, **settings)
    agrees(open_page(widget), widget)


def test_a_click_moves_a_score_and_the_choices_follow(open_page):
    widget = RowsOrColumns(SCORES_TE, TEXT, c=1)
    page = open_page(widget)
    cell = page.locator("tbody tr").nth(9).locator("td").nth(2)
    for _ in range(6):
        cell.click()
    scores = [row[:] for row in widget.scores]
    scores[9][2] += 3.0
    widget.scores = scores
    agrees(page, widget)
    cell.click(modifiers=["Shift"])
    page.get_by_label("a click lowers").check()
    cell.click()
    scores = [row[:] for row in scores]
    scores[9][2] -= 1.0
    widget.scores = scores
    agrees(page, widget)


def arrows(page):
    """Read where each arrow begins and ends, as (row, column) of the matrix."""
    return page.locator(".rows-or-columns svg").evaluate(
        """(svg) => {
          const corner = svg.getBoundingClientRect();
          const cells = [...document.querySelectorAll("td[role=gridcell]")];
          const under = (x, y) => { // of the svg: which cell
            const [left, top] = [corner.left + x, corner.top + y];
            const n = cells.map((cell) => cell.getBoundingClientRect()).findIndex((box) =>
              box.left <= left && left <= box.right && box.top <= top && top <= box.bottom);
            return [Math.floor(n / 4), n % 4];
          };
          return [...svg.querySelectorAll("line")].map((line) => {
            const tip = line.nextSibling.getAttribute("points").split(" ")[0].split(",");
            const from = ["x1", "y1"].map((name) => line.getAttribute(name));
            return [from, tip].map((point) => under(...point.map(Number)));
          });
        }"""
    )


def test_an_arrow_leads_from_what_loses_its_place_to_what_takes_it(open_page):
    widget = RowsOrColumns(SCORES_TE, TEXT, c=1)
    page = open_page(widget)
    assert arrows(page) == []
    page.locator("tbody tr").nth(0).locator("td").nth(1).click()
    page.settle()
    assert arrows(page) == [[[5, 1], [0, 1]]]
    assert page.locator(".said").inner_text().endswith("Expert 1 leaves “␣to” for “To”.")
    page.get_by_label("Experts per token").press("ArrowRight")
    page.settle()
    assert arrows(page) == []


@pytest.mark.parametrize("width", [390, 1200])
def test_with_tokens_hidden_arrows_lead_into_what_is_to_come(open_page, width):
    widget = RowsOrColumns(SCORES_TE, TEXT, c=1, seen=5)
    page = open_page(widget, width=width)
    lost = [(n, e) for n, e, now in widget.changed if now]
    drawn = arrows(page)
    assert sorted(tuple(start) for start, _ in drawn) == sorted(lost) != []
    widget.seen = 10
    taken = set(zip(widget.routing.token_N.tolist(), widget.routing.expert_N.tolist(), strict=True))
    for start, end in drawn:
        assert end[0] >= 5 and end[1] == start[1] and tuple(end) in taken


def test_it_answers_by_keyboard(open_page):
    widget = RowsOrColumns(SCORES_TE, TEXT)
    page = open_page(widget)
    page.get_by_label("Who chooses?").focus()
    page.keyboard.press("ArrowUp")
    page.get_by_text("Each token takes its best 2 experts.").wait_for()
    widget.by = "row"
    agrees(page, widget)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Home")  # c
    page.keyboard.press("Tab")
    for _ in range(4):
        page.keyboard.press("ArrowLeft")  # tokens seen
    widget.by, widget.c, widget.seen = "column", 1, 6
    agrees(page, widget)
    for _ in range(4):  # past the guess, into the matrix, where one cell alone is a stop
        page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowRight", "+", "+", "-", "Enter"):
        page.keyboard.press(key)
    scores = [row[:] for row in widget.scores]
    scores[1][1] += 1.0
    widget.scores = scores
    agrees(page, widget)
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert re.match(r"0\.\d\d, (not )?chosen", focused)


@pytest.mark.parametrize("settings", [{}, {"seen": 6}])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width, settings):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(RowsOrColumns(SCORES_TE, TEXT, **settings), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
