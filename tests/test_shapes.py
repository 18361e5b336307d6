"""The drawn shapes say what they show, in words and in both themes."""

import inspect

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch

from moe_lite.course import drawings, shapes
from moe_lite.course.shapes import DARK, PALE, PAPER, Sheet

DRAWINGS = [
    draw for name, draw in inspect.getmembers(drawings, inspect.isfunction)
    if draw.__module__ == drawings.__name__ and not name.startswith("_")
]  # fmt: skip


def contrast(a, b):
    def light(color):
        rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [{}, DARK], ids=["light", "dark"])
def test_words_and_lines_are_seen_in_both_themes(theme):
    as_shown = lambda color: theme.get(color, color)  # noqa: E731
    for word in (shapes.INK, shapes.QUIET):
        for ground in (PAPER, PALE):
            assert contrast(as_shown(word), as_shown(ground)) >= 4.5
    for line in (shapes.LINE, shapes.ALARM):
        assert contrast(as_shown(line), as_shown(PAPER)) >= 3
    assert contrast(as_shown(PAPER), as_shown(shapes.INK)) >= 4.5  # the router's own word


def test_what_is_drawn_is_said():
    sheet = Sheet(4, 2, "A title")
    token, router = sheet.token(0.5, 1, " to"), sheet.router(1.5, 1)
    near, far = sheet.expert(3, 1.5, 0), sheet.expert(3, 0.5, 1, idle=True)
    sheet.arrow(token, router)
    sheet.arrow(router, near, "70 %")
    sheet.arrow(router, far, taken=False)
    sheet.dropped(0.5, 0.4, " be")
    assert sheet.alt == (
        "A title. Token 'to' to router. Router to expert 0: 70 %. Token 'be' is dropped. "
        "Idle: expert 1."
    )
    data, metadata = sheet._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == sheet.alt


def test_a_dark_picture_leaves_the_light_one_as_it_was():
    sheet = drawings.one_token()
    light = sheet.png(40)
    assert sheet.png(40, dark=True) != light
    assert sheet.png(40) == light


def test_a_gate_refuses_what_is_no_weight():
    with pytest.raises(ValueError, match=r"1\.5"):
        Sheet(1, 1, "").gate(0.5, 0.5, 1.5)


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_a_drawing_keeps_its_words_on_the_sheet_and_apart(draw):
    """No word is cut off, none runs into another, and the words in a box stay in it."""
    sheet = draw()
    sheet.png(100)
    edge = sheet.figure.bbox
    boxes = {text.get_text(): text.get_window_extent() for text in sheet.ax.texts}
    for text, box in boxes.items():
        assert edge.x0 <= box.x0 and box.x1 <= edge.x1, text
        assert edge.y0 <= box.y0 and box.y1 <= edge.y1, text
    for one, box in boxes.items():
        for other, that in boxes.items():
            assert one == other or not box.overlaps(that), (one, other)
    assert sheet.title and len(sheet.alt) > len(sheet.title) + 20


def test_an_upright_arrow_ends_under_the_middle_of_its_shape():
    """Also where the shapes lie beside each other: from a router to a row of narrow experts."""
    sheet = Sheet(6, 3, "")
    router = sheet.router(3, 0.6)
    experts = [sheet.expert(x, 2.4, e, " ", width=0.3) for e, x in enumerate((0.5, 3.0, 5.5))]
    for expert in experts:
        sheet.arrow(router, expert, upright=True)
        box = expert.patch.get_path().get_extents(expert.patch.get_patch_transform())
        start, end = sheet.ax.patches[-1]._posA_posB
        assert end == pytest.approx(((box.x0 + box.x1) / 2, box.y0)) and start[0] == 3


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_no_arrow_of_a_drawing_crosses_a_shape(draw):
    """But the two that it joins."""
    shapes, arrows = [], []
    sheet = draw()
    for patch in sheet.ax.patches:
        (arrows if isinstance(patch, FancyArrowPatch) else shapes).append(patch)
    boxes = [s.get_path().get_extents(s.get_patch_transform()) for s in shapes]
    for arrow in arrows:
        start, end = map(np.array, arrow._posA_posB)
        way = [start + (end - start) * t for t in np.linspace(0.02, 0.98, 97)]
        for box in boxes:
            joined = any(box.expanded(1.02, 1.02).contains(*at) for at in (start, end))
            inner = box.shrunk(0.9, 0.9)
            assert joined or not any(inner.contains(*at) for at in way)
