"""The competition explorer without a browser: what it sends, what it draws, what it refuses."""

import numpy as np
import pytest
import torch
from traitlets import TraitError

from moe_lite.course import viz
from moe_lite.course.mixtures import Mixture
from moe_lite.course.widgets import CompetitionExplorer

X_T2 = torch.tensor([[0.3, 2.5], [0.4, 2.0], [0.7, 1.2], [0.9, 1.4]], dtype=torch.float64)
LABELS, TARGET_T1 = ["i", "ɪ", "ɑ", "</script>"], torch.tensor([[1.0], [0.0], [1.0], [0.0]])


def kept(E=3, O=1, D=2):  # noqa: E741
    return {n: dict(Mixture(D, E, O, seeds=[n, 7]).named_parameters()) for n in (40, 0, 10)}


def detached(kept):
    return {n: {k: v.detach() for k, v in weights.items()} for n, weights in kept.items()}


@pytest.fixture
def widget():
    return CompetitionExplorer(X_T2, LABELS, TARGET_T1, detached(kept()))


def test_what_is_sent_is_what_was_kept(widget):
    moments = detached(kept())
    assert widget.epochs == [0, 10, 40] and widget.target == [1, 0, 1, 0]
    sent = np.frombuffer(widget.weights, "<f4").reshape(3, 3, 6)
    for n, epoch in enumerate(widget.epochs):
        np.testing.assert_allclose(sent[n, :, :3], moments[epoch]["experts"][0, :, 0], rtol=1e-6)
        np.testing.assert_allclose(sent[n, :, 3:], moments[epoch]["gate"][0], rtol=1e-6)
    np.testing.assert_allclose(np.frombuffer(widget.points, "<f4").reshape(-1, 2), X_T2, rtol=1e-6)


def test_another_run_can_be_shown():
    other = CompetitionExplorer(X_T2, LABELS, TARGET_T1, detached(kept()), run=1)
    sent = np.frombuffer(other.weights, "<f4").reshape(3, 3, 6)
    assert np.array_equal(sent[0], sent[2])  # seed 7 at every moment, here


@pytest.mark.parametrize(
    ("name", "value"),
    [("moment", 3), ("moment", -1), ("expert", 3), ("selected", 4), ("selected", -2),
     ("lines", [1.0] * 8), ("lines", [float("nan")] * 9)],
)  # fmt: skip
def test_what_does_not_exist_cannot_be_set(widget, name, value):
    before = getattr(widget, name)
    with pytest.raises(TraitError, match=f"{name} must be"):
        setattr(widget, name, value)
    assert getattr(widget, name) == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (dict(kept={}), "no moment was kept"),
        (dict(labels=LABELS[:3]), "4 cases, 3 labels and 4 targets"),
        (dict(kept=detached(kept(O=4))), "2 inputs and 1 output, not 2 and 4"),
        (dict(kept=detached(kept(D=3))), "2 inputs and 1 output, not 3 and 1"),
    ],
)
def test_what_cannot_be_shown_is_said(change, complaint):
    whole = dict(x_T2=X_T2, labels=LABELS, target_T1=TARGET_T1, kept=detached(kept()))
    with pytest.raises(ValueError, match=complaint):
        CompetitionExplorer(**whole | change)


def test_all_faces(widget, tmp_path):
    page = widget.html()
    assert page.count("</script>") == 3 and page.count("://") == 1  # SVG's name
    png = widget.png()
    assert png.startswith(b"\x89PNG")
    widget.lines = [50.0, 1.0, -20.0] * 3
    assert widget.png() != png
    widget.to_html(tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < 100_000


def test_the_plane_shows_lines_regions_and_idle_experts():
    experts_E3 = [[10.0, 0, -5], [0, 1, -1.7], [1, 1, 50]]
    gate_E3 = [[0.0, 5, -10], [0, -5, 10], [0, 0, -90]]  # expert 0 above F2 = 2, 1 below
    labels, target = LABELS[:3] + ["ʌ"], [1, 0, 1, 0]
    ax = viz.plane(X_T2, labels, experts_E3, gate_E3, target=target, title="t").axes[0]
    assert "idle: expert 2" in ax.get_xlabel()
    assert [text.get_text() for text in ax.texts] == ["", "0", "", "1"]
    to_1 = [np.subtract(arrow.xy, arrow.xyann) for arrow in ax.texts[::2]]
    assert to_1[0][0] > 0 == to_1[0][1] and to_1[1][1] > 0 == to_1[1][0]
    filled = [len(mark.get_facecolor()) == 1 for mark in ax.collections[:4]]
    assert filled == [True, False, True, False]
    at = {text.get_text(): text.get_position() for text in ax.texts}
    assert at["0"][0] == pytest.approx(0.5, abs=0.02) and at["0"][1] > 2
    assert at["1"][1] == pytest.approx(1.7, abs=0.03)
    tints = ax.images[0].get_array()
    top, bottom = (tuple(tints[row, 3, :3]) for row in (-1, 0))
    assert [top, bottom] == [tuple(viz._rgb(c)) for c in viz.expert_colors(2)]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["[i]", "[ɪ]", "[ɑ]", "[ʌ]"]
