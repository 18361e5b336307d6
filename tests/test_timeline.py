import re

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from moe_lite.course.timeline import STEPS, THREADS, sentences, timeline


def test_every_step_is_drawn_and_no_two_labels_touch():
    figure = timeline()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts}
    said = [text.get_text() for text in boxes]
    assert len(said) == len(STEPS) + len(THREADS)
    assert {step.who for step in STEPS} <= set(said)
    touching = [
        (a.get_text(), b.get_text())
        for a in boxes
        for b in boxes
        if a is not b and boxes[a].overlaps(boxes[b])
    ]
    assert not touching


def test_every_step_has_its_sentence_its_source_and_what_was_read():
    assert max(map(len, sentences().splitlines())) <= 100
    lines = re.sub(r"\n {5}", " ", sentences()).splitlines()
    assert len(lines) == len(STEPS)
    assert [int(line[:4]) for line in lines] == sorted(step.year for step in STEPS)
    for line, step in zip(lines, STEPS, strict=True):
        assert step.who in line and step.source in line and f"{step.read} read" in line
        assert step.what.endswith(".") and step.what.count(".") == 1


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="no step"):
        timeline(())
