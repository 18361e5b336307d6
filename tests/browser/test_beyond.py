"""Chapter 14's widgets as a learner meets them: by mouse, by keyboard, in both themes."""

import re

import pytest

from moe_lite.course import cost, presets
from moe_lite.course.widgets import CostCalculator, TrafficMatrix

UNITS = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1, "B": 1}


def traffic_agrees(page, widget):
    """Compare the shown matrix and sentence with what the library counts."""
    traffic, R = widget.traffic, widget.ranks
    rows = [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]
    assert [[int(n) for n in row] for row in rows] == traffic.pairs_RR.int().tolist()
    work = [int(n) for n in page.locator("tfoot td").all_inner_texts()]
    assert work == traffic.pairs_RR.sum(0).int().tolist() and len(work) == R
    said = page.locator("[role=status]").inner_text()
    assert f"mean {traffic.busiest:.2f};" in said and f"{traffic.dropped} dropped" in said
    assert f"{traffic.away(traffic.pairs_RR)} of {sum(work)} pairs" in said
    assert f"as {traffic.away(traffic.copies_RR)} copies" in said


@pytest.mark.parametrize(
    "settings",
    [{}, {"skew": 1.3, "tokens": 64}, {"skew": 0.7, "visit": 2}, {"skew": 2.0, "capacity": 1.25},
     {"tokens": 1, "capacity": 0.25}, {"skew": 1.2, "spare": 1},
     {"skew": 1.2, "spare": 3, "capacity": 1.25}],
)  # fmt: skip
def test_the_page_routes_as_the_library_does(open_page, settings):
    widget = TrafficMatrix(4, 16, 4, **settings)
    traffic_agrees(open_page(widget), widget)


def test_sliders_answer_by_keyboard(open_page):
    widget = TrafficMatrix(8, 64, 8)
    page = open_page(widget)
    page.get_by_label("Skew").focus()
    page.keyboard.press("End")
    page.locator("output:text-is('2.0')").wait_for()
    widget.skew = 2.0
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    page.locator("output:text-is('1')").wait_for()
    widget.visit = 1
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.locator("output:text-is('0.25')").wait_for()
    widget.capacity = 0.25
    page.settle()
    traffic_agrees(page, widget)


def amount(text):
    """Read what the page writes: 93.4 GB, 215 µs, 1.28 P."""
    number, unit = re.fullmatch(r"([\d.e+-]+) ?(.*)", text).groups()
    if unit.endswith("s"):
        return float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit]
    return float(number) * UNITS[unit.removesuffix("B")]


def costs_agree(page, widget):
    """Compare the shown table with what the library estimates, to its three figures."""
    count = cost.count_parameters(widget.architecture)
    said = page.locator("[role=status]").inner_text()
    assert f"{count.total:,} parameters, {count.active:,} active" in said
    for row, (phase, found) in zip(
        page.locator("tbody tr").all(), widget.costs.items(), strict=True
    ):
        assert row.locator("th").inner_text() == phase
        *numbers, verdict = row.locator("td").all_inner_texts()
        read = found.weight_bytes + found.cache_bytes
        flops, sent = found.flops + found.score_flops, (found.inside_bytes, found.between_bytes)
        right = [found.held_bytes, flops, read, *sent, *found.parts.values()]
        assert [amount(text) for text in numbers] == pytest.approx(right, rel=6e-3)
        assert verdict == f"{found.bound}-bound, {'fits' if found.fits else 'does not fit'}"
        outlined = row.locator("td.bound")
        assert outlined.count() == 1 and amount(outlined.inner_text()) == pytest.approx(
            found.seconds, rel=6e-3
        )


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_page_counts_as_the_library_does(open_page, preset):
    widget = CostCalculator(preset, device="A100 SXM 80GB", batch=32, ranks=16)
    costs_agree(open_page(widget), widget)


def test_fields_answer_and_hold_their_limits(open_page):
    widget = CostCalculator("Mixtral 8x7B")
    page = open_page(widget)
    page.get_by_label("Model", exact=True).select_option("OLMoE")
    page.get_by_label("Device", exact=True).select_option("RTX 4090")
    page.get_by_label("Weights in").select_option("fp4")
    experts = page.get_by_label("Experts E")
    experts.fill("16")
    experts.press("Tab")
    batch = page.get_by_label("Texts in the batch")
    batch.fill("0")
    batch.press("Tab")
    page.settle()
    assert batch.input_value() == "1"
    widget = CostCalculator("OLMoE", device="RTX 4090", weights="fp4")
    widget.experts = 16
    costs_agree(page, widget)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("widget", [lambda: TrafficMatrix(8, 64, 8, skew=1.0), CostCalculator])
def test_axe_finds_nothing(open_page, theme, width, widget):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(widget(), theme=theme, width=width)
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
