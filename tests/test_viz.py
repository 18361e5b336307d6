"""The static figures say what the routing says."""

import io
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from moe_lite.course import ledger, viz
from moe_lite.routers import TopKRouter
from moe_lite.routing import Routing
from moe_lite.trace import RoutingTrace


def make_trace(tokens, L=3, E=8, K=2):
    layers = tuple(TopKRouter(4, E, K)(torch.randn(len(tokens), 4)).detach() for _ in range(L))
    return RoutingTrace(list(tokens), layers, tuple(f"layers.{n}" for n in range(L)), "a test")


def dropped_and_unequal():
    """Four tokens: one with two experts (the better one second), one dropped, one with none."""
    token_N, expert_N = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1, 1, 2, 0, 0])
    gate_N = torch.tensor([0.5, 0.3, 0.6, 0.9, 0.2])
    keep_N = torch.tensor([True, True, True, False, True])
    probs_TE = torch.full((4, 3), 1 / 3)
    return Routing(probs_TE.log(), probs_TE, token_N, expert_N, gate_N, keep_N)


def test_the_first_expert_is_the_best_that_was_reached():
    routing = dropped_and_unequal()
    assert viz.first_experts(routing).tolist() == [2, -1, 1, -1]
    token, expert, gate, keep = viz.ordered_pairs(routing)
    assert token.tolist() == [0, 0, 1, 2, 2]
    assert expert.tolist() == [2, 1, 0, 1, 0]
    assert gate.tolist() == pytest.approx([0.6, 0.3, 0.9, 0.5, 0.2])
    assert keep.tolist() == [True, True, False, True, True]


def test_choices_keep_their_order():
    """A router that ranks by one score and weighs by another: its order stands."""
    routing = Routing.from_choices(
        torch.zeros(1, 3), torch.full((1, 3), 0.5),
        torch.tensor([[2, 0]]), torch.tensor([[0.1, 0.9]]),
    )  # fmt: skip
    assert viz.first_experts(routing).tolist() == [2]
    assert viz.ordered_pairs(routing)[1].tolist() == [2, 0]


def test_map_shows_the_first_experts():
    trace = make_trace("abcdef")
    (ax,) = viz.routing_map(trace).axes
    colors = viz.expert_colors(8)
    shown = (np.asarray(ax.images[0].get_array()) * 255).round().astype(int)
    for n, routing in enumerate(trace.layers):
        for t in range(6):
            e = int(routing.expert_N[t * 2])
            assert "#{:02X}{:02X}{:02X}".format(*shown[n, t]) == colors[e]
    assert len(ax.texts) == 3 * 6  # never colour alone
    assert ax.get_xlabel() and ax.get_ylabel()


def test_a_wide_map_that_stands_alone_has_a_key():
    (ax,) = viz.routing_map(make_trace("a" * 400)).axes
    assert not ax.texts  # too narrow for numbers
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [str(e) for e in range(8)]
    assert viz.overview(make_trace("a" * 400)).axes[1].get_legend() is None  # the bars are its key


def test_bars_show_the_load():
    routing = dropped_and_unequal()
    (ax,) = viz.load_bars(routing).axes
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([25, 50, 25])
    assert [text.get_text() for text in ax.texts] == ["25.0", "50.0", "25.0"]
    assert ax.lines[0].get_ydata()[0] == pytest.approx(100 / 3)
    mass_E = routing.gates_TE().sum(0)
    assert list(ax.lines[1].get_ydata()) == pytest.approx((100 * mass_E / mass_E.sum()).tolist())
    trace = make_trace("abcdef", E=4)
    (ax,) = viz.load_bars(trace, 2).axes
    load_E = trace.layers[2].load_E()
    assert [b.get_height() for b in ax.patches] == pytest.approx((100 * load_E / 12).tolist())


def test_text_is_set_whole_with_its_numbers():
    tokens = ["To", " be", ",", " or\n", "not"]
    trace = make_trace(tokens)
    (ax,) = viz.token_routing(trace, 1).axes
    texts = [text.get_text() for text in ax.texts]
    assert texts[::2] == ["To", " be", ",", " or↵", "not"]
    assert texts[1::2] == [str(e) for e in viz.first_experts(trace.layers[1])]


def test_long_text_says_what_it_leaves_out():
    (ax,) = viz.token_routing(make_trace(["word "] * 100), columns=20, max_rows=3).axes
    assert "88 more tokens not shown" in ax.get_title(loc="left")


def test_what_no_font_can_draw_is_a_box_and_no_warning():
    trace = make_trace(["\U0010fffd", "$x^2$", "e\u0301", "はじめ", "😀", "", "\t", "\n\n", "שלום"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (viz.token_routing(trace), viz.overview(trace, 1)):
            figure.savefig(io.BytesIO(), format="png", dpi=30)
    shown = [text.get_text() for text in viz.token_routing(trace).axes[0].texts]
    assert "□" in shown and r"\$x^2\$" in shown


@given(st.lists(st.text(max_size=9), min_size=1, max_size=20), st.integers(4, 30))
@example(["\xad", ""], 4)
def test_every_character_finds_its_place(tokens, columns):
    boxes = list(viz._set_text(tokens, columns))
    for n, token in enumerate(tokens):
        own = "".join(text for t, *_, text, _ in boxes if t == n)
        assert own.replace("↵", "") == (
            token.expandtabs(4).replace("\n", "").replace("↵", "") if token else "∅"
        )
    ends = {}
    for _, row, column, cells, *_ in boxes:
        assert column >= ends.get(row, 0), "tokens overlap"
        ends[row] = column + cells
        assert ends[row] <= columns + 1  # a token of no width still gets a cell


@pytest.mark.parametrize(("T", "L", "E", "K"), [(1, 1, 1, 1), (300, 2, 64, 8), (3, 40, 8, 2)])
def test_any_size_can_be_drawn(T, L, E, K):
    figure = viz.overview(make_trace(["ab "] * T, L, E, K), L - 1)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=40)
    assert out.getvalue().startswith(b"\x89PNG")


def test_curves_draw_each_run():
    runs = {"MoE": ([1, 2, 3], [3.0, 2.0, 1.0]), "dense": ([1, 2], [3.0, 2.5])}
    (ax,) = viz.curves(runs, "step", "loss (nats)").axes
    assert [line.get_label() for line in ax.lines] == ["MoE", "dense"]
    assert [list(line.get_ydata()) for line in ax.lines] == [[3.0, 2.0, 1.0], [3.0, 2.5]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss (nats)")
    assert len({str(line._unscaled_dash_pattern) for line in ax.lines}) == 2  # never colour alone


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in viz._rgb(color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_are_many_and_their_ink_can_be_read():
    colors = viz.expert_colors(64)
    assert len(set(colors)) == 64
    assert colors[:3] == viz.expert_colors(3)  # an expert's colour does not hang on how many
    for color in colors:
        low, high = sorted((luminance(color), luminance(viz._on(color))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, color


def oklab(color, cones):
    """Return a colour's place where distance is difference seen. Source: Ottosson 2020, "Oklab"."""
    rgb = np.array(viz._rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = np.array(
        [[0.41222, 0.53633, 0.05145], [0.2119, 0.68068, 0.1074], [0.0883, 0.28172, 0.62998]]
    )
    lab = np.array(
        [[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]]
    )
    return lab @ np.cbrt(lms @ (cones @ linear).clip(0, 1))


GREEN = [[0.36732, 0.86065, -0.22797], [0.28009, 0.6725, 0.04741], [-0.01182, 0.04294, 0.96888]]
RED = [[0.15229, 1.05258, -0.20487], [0.1145, 0.78628, 0.09922], [-0.00388, -0.04812, 1.052]]


@pytest.mark.parametrize(("cones", "least"), [(np.eye(3), 0.11), (GREEN, 0.032), (RED, 0.06)])
def test_sixteen_experts_can_be_told_apart(cones, least):
    """Also without green or red cones (Machado et al. 2009): the first eight are the bound."""
    places = np.array([oklab(color, np.array(cones)) for color in viz.expert_colors(16)])
    far = np.linalg.norm(places[:, None] - places, axis=-1) + 9 * np.eye(16)
    assert far.min() >= least


@pytest.mark.parametrize(
    ("draw", "complaint"),
    [
        (lambda: viz.routing_map(make_trace("")), "nothing to draw: the trace has 0 tokens"),
        (lambda: viz.load_bars(make_trace("ab", L=0)), "0 layers"),
        (lambda: viz.token_routing(make_trace("ab"), 3), "layer must be between 0 and 2, not 3"),
        (lambda: viz.overview(make_trace("ab"), -1), "not -1"),
        (lambda: viz.curves({}, "x", "y"), "no run to draw"),
        (lambda: viz.curves({"a": ([1, 2], [1])}, "x", "y"), "'a' has 2 x values but 1 y values"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, complaint):
    with pytest.raises(ValueError, match=complaint):
        draw()


def test_no_global_state():
    code = """
import sys, torch
from moe_lite.course import viz
assert "matplotlib" not in sys.modules
viz.curves({"a": ([1], [1])}, "x", "y")
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_strips_write_every_box_and_hatch_what_holds_nothing():
    figure = viz.strips({"token": ([3, 1, "x"], [0, 2, -1]), "row": ([0, 1], None)}, cuts=[1])
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["3", "1", "x", "0", "1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["token", "row"]
    boxes = [patch for patch in ax.patches if patch.get_hatch()]
    assert len(boxes) == 1 and boxes[0].get_x() == pytest.approx(2.05)
    assert [list(line.get_xdata()) for line in ax.lines] == [[1, 1]]


def test_strips_need_rows_and_an_expert_for_each_box():
    with pytest.raises(ValueError, match="no rows"):
        viz.strips({})
    with pytest.raises(ValueError, match="'token' has 2 boxes but 1 experts"):
        viz.strips({"token": ([1, 2], [0])})


def test_effects_are_paired_curves_with_their_band_and_the_papers_line():
    result = ledger.Result(
        "fake", [0, 1], {}, {f"loss: step {n} at {name}": [by + n, by + n + d]
                             for n in (10, 100) for name, by, d in (("a", 1.0, 5), ("b", 3.0, 4))},
        {}, {}, 1.0,
    )  # fmt: skip
    (ax,) = viz.effects(result, {"b - a": ledger.Pair("b", "a")}, 0.7, "nats").axes
    assert list(ax.lines[0].get_xdata()) == [10, 100]
    assert list(ax.lines[0].get_ydata()) == [1.5, 1.5]  # 2 and 1: each seed with itself
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - band.min() == pytest.approx(2 * 12.706 * 0.5, rel=1e-3)
    assert 0.7 in [line.get_ydata()[0] for line in ax.lines]
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert not legend.overlaps(ax.bbox), "a line from edge to edge would strike it through"
    assert ax.figure.bbox.y0 <= legend.y0
    with pytest.raises(ValueError, match="'c'"):
        viz.effects(result, {"": ledger.Pair("c", "a")}, None, "nats")


@pytest.mark.parametrize("tokens", [10, 60, 100, 140])
def test_a_routing_map_has_a_number_in_each_cell(tokens):
    (ax,) = viz.routing_map(make_trace("x" * tokens)).axes
    shown = [text.get_text() for text in ax.texts]
    rows, columns = ax.get_images()[0].get_array().shape[:2]
    assert len(shown) == rows * columns and all(re.fullmatch(r"\d+|·", text) for text in shown)
