"""The competition explorer as a learner meets it: scrub, drag a line, by mouse and by keyboard."""

import re

import pytest
import torch

from moe_lite.course import mixtures
from moe_lite.course.mixtures import Mixture, descend
from moe_lite.course.vowels import IPA, load_vowels
from moe_lite.course.widgets import CompetitionExplorer

VOWELS = load_vowels()
TARGET_T1 = VOWELS.is_one_of(("iy", "aa"))


@pytest.fixture(scope="module")
def kept():
    train = VOWELS.train_T
    model = Mixture(2, 4, seeds=[3])
    wanted = [0, 40, 300, 600]
    return descend(model, VOWELS.x_T2[train], TARGET_T1[train], step=20.0, keep=wanted).kept


@pytest.fixture
def open_widget(open_page, kept):
    def open_widget(**options):
        names = [IPA[name] for name in VOWELS.names]
        return open_page(CompetitionExplorer(VOWELS.x_T2, names, TARGET_T1, kept), **options)

    return open_widget


def bars(page):
    """Read p and h of each expert, as printed."""
    numbers = page.locator(".competition li .value").all_inner_texts()
    assert [n[0] for n in numbers] == ["p", "h"] * 4
    values = torch.tensor([float(n[2:]) for n in numbers])
    return values[0::2], values[1::2]


def weigh(weights, case=None):
    """Compute by the library what the bars should say: of one case, or the mean over all."""
    model = Mixture(2, 4)
    model.load_state_dict(weights)
    with torch.no_grad():
        logits_TE, out_TEO = (part[0] for part in model(VOWELS.x_T2))
    pair = logits_TE.softmax(-1), mixtures.responsibilities(logits_TE, out_TEO, TARGET_T1)
    return [part.mean(0) if case is None else part[case] for part in pair]


def agrees(page, weights, case=None):
    for shown, right in zip(bars(page), weigh(weights, case), strict=True):
        torch.testing.assert_close(shown, right.float(), atol=6e-4, rtol=0)


def pixels(page):
    return page.locator(".competition canvas").evaluate("c => c.toDataURL()")


def said(page):
    return page.locator(".said").inner_text()


def test_scrubbing_shows_each_moment(open_widget, kept):
    page = open_widget()
    agrees(page, kept[0])
    seen = {pixels(page)}
    page.get_by_label("Moment of the training").focus()
    for epoch in (40, 300, 600):
        page.keyboard.press("ArrowRight")
        assert page.locator(".controls output").first.inner_text() == f"epoch {epoch}"
        agrees(page, kept[epoch])
        seen.add(pixels(page))
    assert len(seen) == 4
    assert "Expert 2 has no region" in page.locator("canvas[role=img]").get_attribute("aria-label")


def answers(page):
    """Read how many vowels each expert answers for."""
    return [int(text.split()[-1]) for text in page.locator(".cases").all_inner_texts()]


def test_a_dragged_line_changes_who_answers(open_widget, kept):
    page = open_widget()
    page.get_by_label("Moment of the training").press("ArrowRight")
    before = answers(page)
    box = page.locator("canvas[role=img]").bounding_box()
    handle = page.get_by_role("button", name="2, line of expert 2")
    handle.hover()
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.45 * box["height"], steps=4)
    page.mouse.up()
    assert said(page).startswith("Lines moved by you")
    assert sum(before) == sum(answers(page)) == 608 and abs(before[2] - answers(page)[2]) > 50
    at = handle.bounding_box()
    centre = at["x"] + at["width"] / 2 - box["x"], at["y"] + at["height"] / 2 - box["y"]
    assert centre[0] / box["width"] == pytest.approx(0.3, abs=0.01)
    assert centre[1] / box["height"] == pytest.approx(0.45, abs=0.01)
    page.get_by_role("button", name="Lines as trained").click()
    assert said(page).startswith("As trained") and answers(page) == before
    agrees(page, kept[40])


def test_a_steeper_line_stays_where_it_is(open_widget, kept):
    page = open_widget()
    page.get_by_label("Moment of the training").press("End")
    handle = page.get_by_role("button", name="0, line of expert 0")
    before = handle.bounding_box()
    steep = page.get_by_label("Steepness of expert 0's answer")
    norm = kept[600]["experts"][0, 0, 0, :2].norm().item()
    assert float(steep.get_attribute("aria-valuetext")) == pytest.approx(norm, abs=0.06)
    steep.press("Home")  # 2 ** -3 per kHz: hardly a line at all
    assert steep.get_attribute("aria-valuetext") == "0.1"
    assert "As trained" not in said(page)
    after = handle.bounding_box()
    assert (after["x"], after["y"]) == pytest.approx((before["x"], before["y"]), abs=1)
    page.get_by_label("One vowel, or all").press("ArrowRight")
    says = float(page.locator(".cases").first.inner_text().split()[-1])
    assert 0.4 < says < 0.6


def test_the_keyboard_does_what_the_mouse_does(open_widget, kept):
    page = open_widget()
    page.get_by_label("Moment of the training").press("End")
    handle = page.get_by_role("button", name="0, line of expert 0")
    handle.focus()
    trained = said(page)
    right = [float(re.search(r"([\d.]+)% right", trained)[1])]
    for keys in (["ArrowUp"] * 6, ["Shift+ArrowRight"] * 8):
        for key in keys:
            page.keyboard.press(key)
        right.append(float(re.search(r"([\d.]+)% right", said(page))[1]))
    assert right[0] > right[1] != right[2]  # a good line was moved away, and turned
    assert handle.get_attribute("aria-pressed") == "true"
    turn = page.get_by_role("button", name="Turn the line of expert 0")
    turn.focus()
    page.settle()
    before = pixels(page)
    page.keyboard.press("ArrowLeft")
    assert pixels(page) != before


def test_turning_keeps_the_handle_on_its_line(open_widget):
    page = open_widget()
    page.get_by_label("Moment of the training").press("End")
    handle = page.get_by_role("button", name="1, line of expert 1")
    handle.focus()
    before = handle.bounding_box()
    for _ in range(5):
        page.keyboard.press("Shift+ArrowLeft")
    after = handle.bounding_box()
    assert (after["x"], after["y"]) == pytest.approx((before["x"], before["y"]), abs=1)


def test_one_vowel_by_mouse_and_by_slider(open_widget, kept):
    page = open_widget()
    one = page.get_by_label("One vowel, or all")
    one.press("ArrowRight")
    agrees(page, kept[0], case=0)
    u, v = VOWELS.x_T2[0].tolist()
    name = IPA[VOWELS.names[0]]
    heading = page.locator(".competition h2")
    assert heading.inner_text() == f"[{name}] at {u:.2f}, {v:.2f} kHz; the answer is 1"
    one.press("Home")
    assert heading.inner_text() == "All 608 vowels"
    box = page.locator("canvas[role=img]").bounding_box()
    page.mouse.click(box["x"] + 0.95 * box["width"], box["y"] + 0.1 * box["height"])
    assert heading.inner_text() == "All 608 vowels"  # nothing is there


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_widget, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_widget(theme=theme)
    ground = page.locator(".competition").evaluate("e => getComputedStyle(e).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (theme == "dark")
    page.get_by_label("One vowel, or all").press("ArrowRight")
    found = axe.run(page).response
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []


def test_it_is_drawn_anew_in_another_theme_and_fits_a_phone(open_widget):
    page = open_widget(width=380)
    before = pixels(page)
    page.locator("#theme").click()
    drawn = "before => document.querySelector('.competition canvas').toDataURL() !== before"
    page.wait_for_function(drawn, arg=before)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.parametrize("hidden", ["content-visibility: hidden", "display: none"])
def test_a_theme_that_turns_out_of_sight_is_there_on_return(open_widget, hidden):
    """A host hides what is off screen or in another tab; what is not drawn has no transition."""
    spy = """const draw = CanvasRenderingContext2D.prototype.fillText; window.inks = [];
      CanvasRenderingContext2D.prototype.fillText = function (...args) {
        inks.push(this.fillStyle); return draw.apply(this, args); };"""
    page = open_widget()
    page.evaluate("() => { " + spy + " }")
    page.locator("input[type=range]").first.press("ArrowRight")  # drawn once under the spy
    page.settle()
    light = page.evaluate("inks.at(-1)")
    assert light
    hide = "style => { document.querySelector('#widget').style = style; }"
    page.evaluate(hide, hidden)
    page.settle()
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.settle()
    page.evaluate(hide, "")
    page.wait_for_function("light => inks.at(-1) !== light", arg=light, timeout=20_000)


def test_a_region_is_seen_at_a_glance(open_widget):
    """Half of the plane is tinted by more than the old most, 42% of an expert's colour."""
    page = open_widget()
    page.get_by_label("Moment of the training").fill("3")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    strength = page.locator(".competition canvas").first.evaluate(
        """(canvas) => {
          const { width, height } = canvas, from = [width, height].map((x) => Math.round(0.1 * x));
          const size = [width, height].map((x) => Math.round(0.8 * x));
          const { data } = canvas.getContext("2d").getImageData(...from, ...size);
          const tints = [];
          for (let i = 0; i < data.length; i += 4)
            tints.push((1 - Math.min(data[i], data[i + 1], data[i + 2]) / 255) * data[i + 3] / 255);
          return tints.sort((a, b) => a - b)[tints.length >> 1];
        }"""
    )
    assert 0.43 < strength < 0.65
