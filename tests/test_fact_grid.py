"""The fact grid without a browser: what it counts is what the blocks know."""

import pytest
import torch
from traitlets import TraitError

from moe_lite.course import facts
from moe_lite.course.widgets import FactGrid

TASK = facts.Facts(130, values=8)


@pytest.fixture(scope="module")
def blocks():
    return {E: facts.train_block(TASK, hidden=4, experts=E, steps=60) for E in (1, 4)}


@pytest.fixture
def grid(blocks):
    return FactGrid({E: TASK.remembered(block) for E, block in blocks.items()})


def test_a_fact_is_known_as_the_block_knows_it(grid, blocks):
    for n, block in enumerate(blocks.values()):
        grid.shown = n
        assert grid.known == round(TASK.measure(block)[0] * 130)
        assert f"{grid.known} of 130 facts known" in grid.said()


def test_what_hangs_on_an_expert_is_what_a_block_without_it_forgets(grid, blocks):
    grid.shown, block = 1, blocks[4]
    expert_N, known_N, without_N = TASK.remembered(block)
    assert set(expert_N.tolist()) <= set(range(4)) and known_N.any() and not known_N.all()
    for e in range(4):
        kept = block.moe.experts.w2.data[e].clone()
        block.moe.experts.w2.data[e] = 0
        right_N = TASK.remembered(block)[1]
        block.moe.experts.w2.data[e] = kept
        grid.out = e
        forgotten_N = known_N & ~right_N
        # Where silence makes a wrong answer right by luck, nothing was known: it is not counted.
        assert grid.known == (known_N & right_N).sum()
        assert f"Without expert {e}: {forgotten_N.sum()} forgotten" in grid.said()
        assert torch.equal(right_N[expert_N == e], without_N[expert_N == e])


def test_a_guess_comes_back_to_the_experts_that_it_asks_about(blocks):
    widget = FactGrid({E: TASK.remembered(block) for E, block in blocks.items()})
    widget.shown = len(widget.sizes) - 1
    widget.ready()
    asked, widget.shown = widget.shown, 0
    widget.set_state(widget.guess["moves"])
    assert (widget.shown, widget.out) == (asked, 0)


def test_an_expert_that_is_not_there_changes_nothing(grid):
    before = grid.known
    grid.out = 3  # of one
    assert grid.known == before and "Without" not in grid.said()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("shown", 2, "shown must be from 0 to 1, not 2"),
        ("out", 4, "out must be from -1 to 3, not 4"),
        ("out", -2, "not -2"),
    ],
)
def test_what_cannot_be_is_refused(grid, name, value, complaint):
    with pytest.raises(TraitError, match=complaint):
        setattr(grid, name, value)


def state(facts=3, expert=0):
    known_N = torch.ones(facts, dtype=torch.bool)
    return torch.full((facts,), expert), known_N, known_N


@pytest.mark.parametrize(
    "states",
    [{}, {1: state(0)}, {1: state(), 2: state(4)}, {0: state()}, {65: state()},
     {1: state(10_001)}, {E: state() for E in range(1, 10)}],
)  # fmt: skip
def test_states_that_cannot_be_shown_are_refused(states):
    with pytest.raises(ValueError, match="the fact grid shows 1 to 8 states of the same"):
        FactGrid(states)


def test_an_expert_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match="with 2 experts none is number 2"):
        FactGrid({2: state(expert=2)})


def test_it_has_a_still_face_and_a_page(grid, tmp_path):
    grid.out = 2
    assert grid.png()[1:4] == b"PNG" and FactGrid({1: state()}).png()[1:4] == b"PNG"
    page = grid.to_html(tmp_path / "facts.html").read_text(encoding="utf-8")
    assert grid.title in page
    assert sorted(grid.state()) == [
        "colors", "columns", "experts", "fates", "out", "shown", "sizes",
    ]  # fmt: skip
