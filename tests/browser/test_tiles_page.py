"""The tiles as a learner meets them: by mouse, by keyboard, in both themes, with no network."""

import pytest

from moe_lite.course.widgets import ExpertTiles
from moe_lite.course.widgets.expert_tiles import PATHS, PROCESSORS, K


def agrees(page, widget):
    """Compare pairs, tiles, waves and the sentence on the page with what the library lays out."""
    found, moved = widget.layout, widget.moved
    assert page.locator("[role=status]").inner_text() == widget.said()
    chips = page.locator(".pairs > li").all_inner_texts()
    assert [tuple(map(int, chip.split())) for chip in chips] == [
        (n // K, e) for n, e in enumerate(widget.expert_N)
    ]
    assert page.locator(".pairs > li.gone").count() == moved
    token = {row: str(n // K) for n, row in enumerate(found.row_N) if n < moved}
    shown = [
        [
            [(slot.inner_text(), "pad" in slot.get_attribute("class")) for slot in box.all()]
            for box in [tile.locator(".slot") for tile in lane.locator(".tile").all()]
        ]
        for lane in page.locator(".lane").all()
    ]
    right = [[] for _ in range(widget.experts)]
    for e, first, used in found.tiles:
        right[e].append(
            [(token.get(first + i, "") if i < used else "", i >= used)
             for i in range(found.height)]
        )  # fmt: skip
    assert shown == right
    for path, work in zip(PATHS, page.locator(".works table").all(), strict=True):
        laid = ExpertTiles(path=path, routing=widget.routing, experts=widget.experts,
                           height=widget.height).layout  # fmt: skip
        assert work.locator("caption").inner_text() == f"{path}: {laid.percent} useful"
        assert ("shown" in (work.get_attribute("class") or "")) == (path == widget.path)
        rows = [row.locator("td").all_inner_texts() for row in work.locator("tbody tr").all()]
        assert rows == [
            [str(laid.tiles[wave[p]][0]) if p < len(wave) else "–" for wave in laid.waves]
            for p in range(PROCESSORS)
        ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"path": "loop", "routing": "zipf"}, {"path": "padded", "routing": "half empty"},
     {"routing": "balanced", "height": 16, "experts": 4, "moved": 20},
     {"routing": "one-hot", "path": "padded", "experts": 16, "height": 16},  # 12.5%
     {"routing": "one-hot", "path": "padded", "experts": 2, "height": 8, "moved": 0}],
)  # fmt: skip
def test_the_page_lays_out_as_the_library_does(open_page, settings):
    widget = ExpertTiles(**settings)
    agrees(open_page(widget), widget)


def test_controls_answer(open_page):
    widget = ExpertTiles(moved=0)
    page = open_page(widget)
    page.get_by_label("Path").select_option("padded")
    page.get_by_label("Routing").select_option("zipf")
    page.get_by_label("Experts").select_option("4")
    page.get_by_label("Tile height").select_option("8")
    page.get_by_label("Moved").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Step").press("Enter")
    page.get_by_text("4 of 64", exact=True).wait_for()
    page.settle()
    widget.path, widget.routing, widget.experts, widget.height = "padded", "zipf", 4, 8
    widget.moved = 4
    agrees(page, widget)
    assert page.locator(".slot.last").count() == page.locator(".pairs > li.next").count() == 1


def test_one_wave_is_not_waves(open_page):
    widget = ExpertTiles(routing="balanced", height=8)
    agrees(open_page(widget), widget)
    assert "in 1 wave," in widget.said()


def test_pairs_move_by_themselves_and_stop(open_page):
    page = open_page(ExpertTiles(moved=0))
    page.get_by_role("button", name="Play").evaluate(  # both presses in the page: it may be slow
        """async (play) => {
          play.click();
          while (!document.querySelector(".pairs > li.gone"))
            await new Promise((frame) => requestAnimationFrame(frame));
          play.click();
        }"""
    )
    page.settle()
    moved = page.locator(".pairs > li.gone").count()
    assert moved < 64
    page.wait_for_timeout(300)  # time in which nothing is to happen
    assert page.locator(".pairs > li.gone").count() == moved == page.locator(".slot.full").count()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_axe_finds_nothing(open_page, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(ExpertTiles(routing="zipf", moved=30), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
