"""The tiles without a browser: every pair has one row, every row one tile, every tile one turn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from moe_lite.course.widgets import ExpertTiles
from moe_lite.course.widgets.expert_tiles import (
    EXPERTS,
    HEIGHTS,
    PATHS,
    PROCESSORS,
    ROUTINGS,
    TOKENS,
    K,
)
from moe_lite.dispatch import plan
from moe_lite.routing import Routing

N = TOKENS * K


@settings(deadline=None, max_examples=60)
@given(
    path=st.sampled_from(PATHS), routing=st.sampled_from(ROUTINGS),
    experts=st.sampled_from(EXPERTS), height=st.sampled_from(HEIGHTS),
)  # fmt: skip
def test_the_layout_is_the_librarys_plan_cut_into_tiles(path, routing, experts, height):
    widget = ExpertTiles(path=path, routing=routing, experts=experts, height=height)
    expert_TK = torch.tensor(widget.expert_N).view(TOKENS, K)
    assert (expert_TK[:, 0] != expert_TK[:, 1]).all() and expert_TK.max() < experts
    zeros_TE = torch.zeros(TOKENS, experts)
    sorted_ = plan(Routing.from_choices(zeros_TE, zeros_TE, expert_TK, torch.ones(TOKENS, K)))
    found = widget.layout
    assert list(found.row_N) == sorted_.row_N.tolist()
    assert list(found.offsets) == sorted_.offsets_E1.tolist()

    covered = [row for _, first, used in found.tiles for row in range(first, first + used)]
    assert covered == list(range(N))
    for e, first, used in found.tiles:
        assert 0 <= used <= height
        assert used == 0 or found.offsets[e] <= first <= first + used <= found.offsets[e + 1]
    assert [tile for wave in found.waves for tile in wave] == list(range(len(found.tiles)))
    assert all(0 < len(wave) <= PROCESSORS for wave in found.waves)
    assert found.computed >= N and 0 < found.useful <= 1
    assert found.idle == sum(PROCESSORS - len(wave) for wave in found.waves)
    if path == "loop":
        assert all(len({found.tiles[i][0] for i in wave}) == 1 for wave in found.waves)
    if path != "padded":
        assert all(used > 0 for _, _, used in found.tiles)
    else:
        each = [sum(e == other for other, _, _ in found.tiles) for e in range(experts)]
        load = torch.tensor(widget.expert_N).bincount(minlength=experts)
        assert each == [-(-int(load.max()) // height)] * experts


@pytest.mark.parametrize("routing", ROUTINGS)
def test_grouped_is_never_the_worst(routing):
    useful = {p: ExpertTiles(path=p, routing=routing).layout.useful for p in PATHS}
    assert useful["grouped"] >= max(useful["loop"], useful["padded"])


def test_the_routings_are_what_they_are_called():
    load = {
        name: torch.tensor(ExpertTiles(routing=name).expert_N).bincount(minlength=8)
        for name in ROUTINGS
    }
    assert set(load["balanced"].tolist()) == {8}
    assert load["one-hot"].tolist() == [32, 32, 0, 0, 0, 0, 0, 0]
    assert load["half empty"][4:].sum() == 0 < load["half empty"][:4].min()
    assert load["random"].max() <= 2 * 8 < 3 * 8 < load["zipf"].max()
    assert ExpertTiles(routing="balanced").expert_N != sorted(
        ExpertTiles(routing="balanced").expert_N
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("moved", -1), ("moved", N + 1), ("path", "einsum"), ("experts", 3), ("height", 5),
     ("routing", "fair")],
)  # fmt: skip
def test_what_cannot_be_is_refused(name, value):
    with pytest.raises(TraitError, match=name):
        ExpertTiles(**{name: value})


def test_one_wave_is_not_waves():
    assert "8 tiles in 1 wave, 0 turns of" in ExpertTiles(routing="balanced", height=8).said()
    assert "4 tiles in 1 wave, 4 turns of" in ExpertTiles(routing="one-hot", height=16).said()


def test_it_has_a_still_face_and_a_page(tmp_path):
    widget = ExpertTiles(path="padded", routing="one-hot", experts=16, height=1)
    assert widget.png(dpi=40)[1:4] == b"PNG"
    half = ExpertTiles(experts=8, routing="random", path="loop", height=8)
    for tiles in (ExpertTiles(path="loop", routing="zipf"), half):
        assert f" {tiles.layout.percent} of" in tiles.said()
        assert tiles.figure().axes[2].get_title().startswith(tiles.layout.percent)
    page = widget.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert widget.title in page and page.count("://") == 1  # SVG's name
