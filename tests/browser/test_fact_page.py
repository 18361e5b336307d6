"""The fact grid as a learner meets it: by mouse, by keyboard, in both themes."""

import pytest
import torch

from moe_lite.course.widgets import FactGrid


@pytest.fixture
def grid():
    draw = torch.Generator().manual_seed(0)
    states = {}
    for E in (1, 4, 40):
        known_N, stays_N = torch.rand(2, 300, generator=draw) < torch.tensor([[0.6], [0.3]])
        states[E] = torch.randint(E, (300,), generator=draw), known_N, stays_N
    return FactGrid(states)


def agrees(page, grid):
    page.get_by_role("status").get_by_text(grid.said(), exact=True).wait_for()
    assert page.get_by_role("img").get_attribute("aria-label") == grid.said()


@pytest.mark.parametrize("settings", [{}, {"shown": 1, "out": 2}, {"shown": 2, "out": 39},
                                      {"shown": 0, "out": 7}])  # fmt: skip
def test_the_page_counts_as_python_does(open_page, grid, settings):
    for name, value in settings.items():
        setattr(grid, name, value)
    agrees(open_page(grid), grid)


def test_sliders_answer_by_keyboard(open_page, grid):
    page = open_page(grid)
    page.get_by_role("slider", name="Experts").focus()
    page.keyboard.press("End")
    grid.shown = 2
    agrees(page, grid)
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    grid.out = 39
    agrees(page, grid)
    page.get_by_role("slider", name="Experts").focus()
    page.keyboard.press("Home")
    page.get_by_text("expert 39 (not there)").wait_for()
    grid.shown = 0
    agrees(page, grid)


def test_a_click_takes_the_squares_expert_out_and_puts_it_back(open_page, grid):
    grid.shown = 1
    page = open_page(grid)
    side = page.locator("canvas").bounding_box()["width"] / grid.columns
    n = grid.columns + 3  # in the second row
    at = {"x": 3.5 * side, "y": 1.5 * side}
    page.locator("canvas").click(position=at)
    grid.out = ord(grid.experts[1][n]) - 48
    agrees(page, grid)
    page.locator("canvas").click(position=at)
    grid.out = -1
    agrees(page, grid)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, grid, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    grid.shown, grid.out = 1, 0
    page = open_page(grid, theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
