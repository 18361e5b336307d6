"""What Python draws anew at each move: a picture for each place of the grid, and none to no use."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch

import moe_lite.course
from moe_lite.course import widgets

SCORES_TE = torch.randn(24, 4, generator=torch.Generator().manual_seed(5))
BEFORE = 3145  # lines of JavaScript and CSS before the live page, the book and this
MAKE = {
    "NoisyGate": lambda: widgets.NoisyGate(SCORES_TE, noise=0.7),
    "BiasController": lambda: widgets.BiasController(SCORES_TE.sigmoid(), batch=16, steps=20),
    "LogitHistogram": lambda: widgets.LogitHistogram(SCORES_TE, tokens=["</svg><b>"] * 24),
    "TrafficMatrix": lambda: widgets.TrafficMatrix(skew=0.5),
    "CostCalculator": lambda: widgets.CostCalculator(batch=8),
}


@pytest.fixture(params=MAKE)
def widget(request):
    return MAKE[request.param]()


def test_the_page_has_the_picture_of_every_place_and_nothing_has_moved(widget, monkeypatch):
    monkeypatch.setattr(type(widget), "face", lambda self: ["<svg/>", self.said])
    before = {name: getattr(widget, name) for name, *_ in widget.moves()}
    state = json.loads(json.dumps(widget.state(), default=list))
    lists = {name: values for name, _, values, _ in state["controls"]}
    assert set(lists) == set(widget.grid()) and all(before[n] in v for n, v in lists.items())
    places = {",".join(map(str, at)) for at in product(*(range(len(v)) for v in lists.values()))}
    assert set(state["pictures"]) == places and len(places) <= 30
    assert {name: getattr(widget, name) for name, *_ in widget.moves()} == before
    at = ",".join(str(values.index(before[name])) for name, values in lists.items())
    assert state["pictures"][at][1] == widget.said
    said = {title for _, title in state["pictures"].values()}
    assert len(said) > len(places) / 3, "the positions differ, so what is said of them must"


def test_it_is_drawn_when_it_is_shown_and_at_each_move(widget):
    assert widget.drawn == []  # a loop over a hundred of them draws nothing
    widget._repr_mimebundle_()
    before = widget.drawn
    assert before == widget.face()
    name, _, values, _ = widget.moves()[0]
    setattr(widget, name, next(value for value in values if value != getattr(widget, name)))
    assert widget.drawn == widget.face() != before


def test_the_picture_is_the_pages_own(widget):
    """It has the page's ink, asks for nothing, holds no style for others and no text as markup."""
    svg = widget.face()[0]
    assert svg.startswith("<svg") and "currentColor" in svg
    assert not re.search(r"#000000|<style|<metadata|<b>|href=\"http|url\(http", svg)


def test_what_the_picture_says_is_not_rounded_with_its_places():
    widget = widgets.TrafficMatrix(skew=0.5)
    assert f"busiest / mean {widget.traffic.busiest:.2f}," in widget.face()[0]


def test_a_preset_brings_its_own_shape():
    widget = widgets.CostCalculator("Mixtral 8x7B")
    widget.set_state({"preset": "OLMoE"})  # what a page sends
    assert widget.architecture == widgets.CostCalculator("OLMoE").architecture


def test_javascript_and_css_stay_fewer_than_they_were(record_property):
    """Besides the live model and its tokenizer; its page and its worker count."""
    course = Path(moe_lite.course.__file__).parent
    files = [p for kind in ("js", "css") for p in course.rglob(f"*.{kind}")]
    lines = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    live = lines.pop("live_model.js") + lines.pop("live_tokenizer.js")
    record_property("took", f"JavaScript and CSS: {sum(lines.values())} lines, and {live} live")
    assert sum(lines.values()) < BEFORE
