"""Charts that are alive: the same values as the drawing, small, in both themes, with a picture."""

import base64
import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from moe_lite.course import charts, viz
from moe_lite.course.ledger import ROOT

BUILT = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def drawn():
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot([1, 10, 100], [3.0, 2.0, np.nan], "--", color="#0072B2", label="top-2")
    left.fill_between([1, 10, 100], [2, 1, 0], [4, 3, 2], color="#0072B2", alpha=0.2)
    left.axhline(1, color="black", lw=0.8, label="the paper")
    left.set(xscale="log", xlabel="step", ylabel="nats", title="Loss")
    right.errorbar([0, 1], [5, 6], [0.5, 1], fmt="s", color="#D55E00", label="ours")
    right.scatter([0, 1], [5.1, 6.2], color="#D55E00", s=6)
    right.set_xticks([0, 1], ["dense", "sparse"])
    return fig


def bundle(chart):
    data, metadata = chart._repr_mimebundle_()
    return json.loads(json.dumps(data[charts.KIND])), data, metadata


def test_the_live_chart_has_what_was_drawn(drawn):
    live, _, _ = bundle(charts.alive(drawn))
    band, line, points, dots = live["data"]
    assert (line["x"], line["y"], line["name"]) == ([1, 10, 100], [3, 2, None], "top-2")
    assert band["legendgroup"] == line["legendgroup"] and band["fill"] == "toself"
    assert points["error_y"]["array"] == points["error_y"]["arrayminus"] == [0.5, 1]
    assert points["marker"]["symbol"] == "square" and points["xaxis"] == "x2"
    assert dots["legendgroup"] == "ours" and dots["showlegend"] is False
    layout = live["layout"]
    assert layout["xaxis"]["type"] == "log" and layout["xaxis2"]["ticktext"] == ["dense", "sparse"]
    assert layout["xaxis"]["title"]["text"] == "step" and layout["annotations"][0]["text"] == "Loss"
    assert layout["shapes"][0]["name"] == "the paper" and layout["shapes"][0]["showlegend"]
    assert layout["shapes"][0]["y0"] == 1 and layout["shapes"][0]["line"]["color"] == charts.GREY
    assert layout["xaxis"]["domain"][1] < layout["xaxis2"]["domain"][0]


def test_the_picture_stands_beside_it_on_no_ground_with_words(drawn):
    chart = charts.alive(drawn)
    live, data, metadata = bundle(chart)
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
        assert image.convert("RGBA").getpixel((0, 0))[3] == 0
    assert {live["layout"][f"{part}_bgcolor"] for part in ("paper", "plot")} == {charts.CLEAR}
    assert "top-2: 3 at 1, 2 at 10" in metadata["image/png"]["alt"]
    assert len(json.dumps(live)) < 6000
    assert not plt.fignum_exists(drawn.number)  # shown once


def test_the_picture_fits_the_page_and_is_as_tall_as_what_comes_in_its_place(drawn):
    _, right = drawn.axes
    right.set_xticks([0, 1], ["dense", "1 + 7\nof 63"])
    right.tick_params(axis="x", labelsize=6)
    right.plot(0.5, 5.5, "k.")  # no name, and a colour of its own
    drawn.set_figwidth(14)
    charts_of_two = charts.alive(drawn), charts.alive({s: draw(s) for s in ("log", "linear")})
    for chart in charts_of_two:
        live, data, _ = bundle(chart)
        with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
            assert image.width <= 820 and image.height == live["layout"]["height"]
    live, _, _ = bundle(charts_of_two[0])
    axis = live["layout"]["xaxis2"]
    assert axis["ticktext"][1] == "1 + 7<br>of 63"
    assert axis["tickfont"]["size"] < live["layout"]["xaxis"]["tickfont"]["size"]
    assert all("name" in trace for trace in live["data"])


@pytest.mark.parametrize("inches", [2, 5.3, 9])
def test_a_picture_and_its_live_chart_are_of_one_height(inches):
    fig, ax = plt.subplots(figsize=(5, inches))
    ax.plot([1, 2])
    live, data, _ = bundle(charts.alive(fig))
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
        assert image.height == live["layout"]["height"]


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.name)
def test_no_stored_page_moves_when_its_charts_come_alive(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    for data in (out.get("data", {}) for cell in cells for out in cell.get("outputs", [])):
        if charts.KIND in data:
            with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
                assert image.width <= 820 and image.height == data[charts.KIND]["layout"]["height"]


def light(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05


def test_the_grey_is_as_far_from_white_as_from_a_dark_page():
    ink = light(charts.GREY)
    assert light("#ffffff") / ink > 4.2 and ink / light("#111111") > 4.2
    assert charts.ink("#1b1f24") == charts.ink("k") == charts.GREY
    assert charts.ink("#0072B2") == "#0072b2"


def draw(scale, tall=3.6):
    fig = viz.curves({"a": ([1, 2], [3, 4])}, scale, "y")
    fig.axes[0].set_xscale(scale)
    fig.set_figheight(tall)
    return fig


def test_a_menu_can_be_read_and_is_in_the_picture_too():
    """JupyterLab shows the picture until the mouse comes; the chosen has plotly's ground."""
    chart = charts.alive({"log": draw("log"), "linear": draw("linear")})
    menu = bundle(chart)[0]["layout"]["updatemenus"][0]
    for ground in (menu["bgcolor"], "#f4faff"):
        assert light(ground) / light(menu["font"]["color"]) > 7
    with Image.open(io.BytesIO(chart.png)) as image:
        strip = np.asarray(image.convert("RGB"))[: image.height - 360].reshape(-1, 3)
    for color in (menu["bgcolor"], menu["font"]["color"]):
        assert (strip == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(1).any()


def test_after_a_choice_a_chart_still_follows_the_window():
    """Plotly holds the width fast once a choice has set a height, so no choice sets one."""
    live, _, _ = bundle(charts.alive({"log": draw("log", 3), "linear": draw("linear", 5)}))
    (menu,) = live["layout"]["updatemenus"]
    assert not any({"height", "width"} & {*b["args"][1]} for b in menu["buttons"])
    alone = bundle(charts.alive(draw("linear", 5)))[0]["layout"]["height"]
    assert live["layout"]["height"] == alone + 50, "as tall as the tallest"


def test_several_charts_share_a_menu():
    live, _, metadata = bundle(charts.alive({scale: draw(scale) for scale in ("log", "linear")}))
    assert [trace["visible"] for trace in live["data"]] == [True, False]
    _, linear = live["layout"]["updatemenus"][0]["buttons"]
    assert linear["label"] == "linear" and linear["args"][0] == {"visible": [False, True]}
    assert linear["args"][1]["xaxis.type"] == "linear" and "xaxis" not in linear["args"][1]
    assert linear["args"][1]["xaxis.tickmode"] == "auto", "or the step of the log axis stays"
    assert metadata["image/png"]["alt"].startswith("A menu of 2 charts: log; linear.")
