"""What Python draws anew at each move: a picture for each place of the grid, and none to no use."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch

import moe_lite.course
from moe_lite.course import widgets
from moe_lite.course.presets import PRESETS
from moe_lite.course.widgets.cost_calculator import SHAPE
from moe_lite.routing import Routing

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


@pytest.fixture
def drawings(widget, monkeypatch):
    """Show a widget, and list from then on what is said of each picture that it draws."""
    drawn, face = [], type(widget).face
    monkeypatch.setattr(type(widget), "face", lambda w: drawn.append(w.said) or face(w))
    widget._repr_mimebundle_()
    return drawn


def test_a_choice_is_drawn_once_however_many_values_it_changes(widget, drawings):
    assert drawings == [widget.said], "its question moves it and back: that is not to be seen"
    names = [name for name, *_ in widget.moves()]
    before = {name: getattr(widget, name) for name in names}
    moved = {name: next((v for v in values if v != before[name]), before[name])
             for name, _, values, _ in widget.moves()}  # fmt: skip
    widget.set_state(moved)  # what a page sends: all in one message, as a guess does
    assert drawings[1:] == [widget.said]
    widget.set_state({})
    assert len(drawings) == 2


@pytest.mark.parametrize("widget", ["CostCalculator"], indirect=True)
def test_a_preset_is_drawn_once_and_sent_in_one_message(widget, drawings, monkeypatch):
    sent = []
    monkeypatch.setattr(type(widget), "send_state", lambda w, key=(): sent.append(
        {key} if isinstance(key, str) else set(key)))  # fmt: skip
    widget.set_state({"preset": "DeepSeek-V3"})
    assert drawings[1:] == [widget.said] and "DeepSeek-V3, 8 texts" in widget.said
    [together] = [keys for keys in sent if "drawn" in keys]
    assert {"width", "layers", "experts"} <= together


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_stands_at_its_own_numbers(preset):
    widget = widgets.CostCalculator("Mixtral 8x7B")
    moves = {name: list(values) for name, _, values, _ in widget.moves()}  # as they were sent
    widget.preset = preset
    assert [n for n, values in moves.items() if getattr(widget, n) not in values] == []
    assert all(values == sorted(set(values)) for n, values in moves.items() if n in SHAPE)
    assert f"{preset}, 1 text of" in widget.said
    widget.layers = 512
    assert f"{preset}, changed, 1 text of" in widget.said
    widget.experts = 1
    assert ("(K is 1: there are no more)" in widget.said) == (widget.top_k > 1)


def test_the_calculator_says_serving_first_and_each_time_in_its_unit():
    widget = widgets.CostCalculator(device="two cores of a laptop", batch=65536, context=2**20)
    decode, prefill, train = (widget.said.index(p) for p in ("Decode", "prefill", "train"))
    assert decode < prefill < train and "years" in widget.said
    svg = widget.face()[0]
    assert not re.search(r"e\+\d", widget.said + re.sub(r"<[^>]*>", "", svg))
    axes = widget.figure().axes[1]
    assert axes.get_xlim() == (0, 200) and max(bar.get_width() for bar in axes.patches) <= 200
    shares = [f"{100 * cost.held_bytes / 16e9:,.0f}%" for cost in widget.costs.values()]
    assert [t.get_text().split("\n")[-1] for t in axes.get_yticklabels()] == shares


QUEUES = Routing.from_choices(
    SCORES_TE, SCORES_TE.softmax(-1), *reversed(SCORES_TE.softmax(-1).topk(2))
)
ASKING = {
    **MAKE,
    "TrafficMatrix, skewed": lambda: widgets.TrafficMatrix(8, 64, 8, skew=1.0),
    "TrafficMatrix, spare": lambda: widgets.TrafficMatrix(8, 64, 8, skew=1.0, spare=2),
    "NoisyGate, loud": lambda: widgets.NoisyGate(SCORES_TE, noise=3.0),
    "CostCalculator, slow": lambda: widgets.CostCalculator(device="two cores of a laptop"),
    "CostCalculator, fast": lambda: widgets.CostCalculator("Switch-Base", device="B200 SXM"),
    "ExpertTiles": widgets.ExpertTiles,
    "ExpertQueues": lambda: widgets.ExpertQueues(QUEUES, ["a"] * 24, capacity=6),
    "RowsOrColumns": lambda: widgets.RowsOrColumns(SCORES_TE[:10], by="row"),
}
OTHER = {
    "ExpertTiles": {"path": "loop", "height": 16, "experts": 2},
    "ExpertQueues": {"capacity": 2, "shuffle": 1},
    "RowsOrColumns": {"c": 1},
}


@pytest.mark.parametrize("case", ASKING)
def test_a_guess_is_possible_and_brings_what_it_asks_about(case):
    widget = ASKING[case]()
    question = widget.asks()
    widget.ready()
    guess = widget.guess
    assert 0 <= guess["least"] <= guess["answer"] <= guess["most"]
    assert not re.search(r"\bnow\b", guess["ask"]), "what is now passes as its reader moves on"
    for name, value in OTHER.get(case, {}).items() or [
        (name, next((v for v in values if v != getattr(widget, name)), getattr(widget, name)))
        for name, _, values, _ in widget.moves()
    ]:
        setattr(widget, name, value)
    widget.set_state(guess["moves"])
    assert question.read() == pytest.approx(guess["answer"], abs=guess["step"] / 2 + 1e-9)


def test_the_traffics_guess_is_about_what_there_is_to_see():
    for how, moves in (({"skew": 0.5}, {"skew": 1.0}), ({"skew": 1.0}, {"spare": 1}),
                       ({"skew": 1.0, "spare": 1}, {"spare": 0})):  # fmt: skip
        widget = widgets.TrafficMatrix(8, 64, 8, **how)
        question, before = widget.asks(), widget.traffic.busiest
        assert question.moves == moves and (question.least, question.most) == (1, 8)
        assert "from 1 (all have the same) to 8 (one has all)" in question.ask
        widget.ready()
        assert abs(widget.guess["answer"] - before) > 1, "there is something to guess"
        assert {"skew": how["skew"], **moves}.items() <= widget.guess["moves"].items()


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
