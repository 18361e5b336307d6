"""Rows or columns without a browser: what it chooses, what the future changes, what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from moe_lite.course.widgets import RowsOrColumns
from moe_lite.course.widgets.rows_or_columns import capacity

SCORES_TE = 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(5))


@settings(deadline=None, max_examples=40)
@given(c=st.integers(1, 4), seen=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_token_has_c_experts_by_row_and_an_expert_its_capacity_by_column(c, seen, seed):
    scores_TE = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
    rows = RowsOrColumns(scores_TE, by="row", c=c, seen=seen).routing
    assert rows.token_N.bincount().tolist() == [c] * seen
    mine_TK = rows.gate_N.view(seen, c).sort(descending=True).values
    torch.testing.assert_close(mine_TK, rows.probs_TE.topk(c).values)  # ties may fall either way
    columns = RowsOrColumns(scores_TE, by="column", c=c, seen=seen).routing
    assert columns.load_E().tolist() == [min(seen, -(-c * seen // 4))] * 4
    for e in range(4):
        mine = columns.token_N[columns.expert_N == e]
        others = [n for n in range(seen) if n not in mine]
        p_T = columns.probs_TE[:, e]
        assert not others or p_T[mine].min() >= p_T[others].max() - 1e-9


@settings(deadline=None, max_examples=40)
@given(c=st.integers(1, 4), seen=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_future_changes_columns_and_never_rows(c, seen, seed):
    scores_TE = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
    assert RowsOrColumns(scores_TE, by="row", c=c, seen=seen).changed == []
    widget = RowsOrColumns(scores_TE, c=c, seen=seen)
    now = set(zip(*(x.tolist() for x in (widget.routing.token_N, widget.routing.expert_N)),
                  strict=True))  # fmt: skip
    changed = widget.changed
    widget.seen = 9
    assert widget.changed == []
    routing = widget.routing
    then = {
        (n, e)
        for n, e in zip(routing.token_N.tolist(), routing.expert_N.tolist(), strict=True)
        if n < seen
    }
    assert {(n, e) for n, e, chosen in changed if chosen} == now - then
    assert {(n, e) for n, e, chosen in changed if not chosen} == then - now


def test_a_later_score_takes_an_earlier_tokens_expert_away():
    scores_TE = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [-2.0, 0.0]])
    widget = RowsOrColumns(scores_TE, c=1)
    assert (0, 0) in zip(
        widget.routing.token_N.tolist(), widget.routing.expert_N.tolist(), strict=True
    )
    widget.scores = [[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [3.0, 0.0]]  # clicks on the last two
    routing = widget.routing
    assert routing.token_N[routing.expert_N == 0].tolist() == [2, 3]


def test_capacity_is_rounded_up_and_bounded():
    assert [capacity(8, 4, c) for c in (1, 2, 4)] == [2, 4, 8]
    assert (capacity(9, 4, 1), capacity(3, 8, 1), capacity(1, 2, 2)) == (3, 1, 1)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("c", 0, "c must be from 1 to 4, not 0"),
        ("c", 5, "c must be from 1 to 4, not 5"),
        ("seen", 0, "seen must be from 1 to 9, not 0"),
        ("seen", 10, "seen must be from 1 to 9, not 10"),
        ("by", "diagonal", "diagonal"),
    ],
)
def test_what_cannot_be_is_refused(name, value, complaint):
    widget = RowsOrColumns(SCORES_TE)
    with pytest.raises(TraitError, match=complaint):
        setattr(widget, name, value)
    with pytest.raises(TraitError, match=complaint):
        RowsOrColumns(SCORES_TE, **{name: value})


def test_scores_keep_their_shape_and_range():
    widget = RowsOrColumns(SCORES_TE)
    with pytest.raises(TraitError, match="scores must have 9 rows of 4 numbers"):
        widget.scores = [[0.0] * 4] * 8
    for bad in (21.0, float("nan")):
        with pytest.raises(TraitError, match="a score must be within ±20"):
            widget.scores = [[bad] * 4] * 9


@pytest.mark.parametrize(
    ("scores_TE", "tokens", "complaint"),
    [
        (torch.zeros(1, 4), None, r"not scores of shape \(1, 4\)"),
        (torch.zeros(25, 4), None, r"\(25, 4\)"),
        (torch.zeros(4, 9), None, r"\(4, 9\)"),
        (torch.full((4, 3), torch.inf), None, "with some outside"),
        (torch.zeros(4, 3), ["a", "b"], "4 rows of scores, but 2 tokens"),
    ],
)
def test_scores_that_cannot_be_shown_are_refused(scores_TE, tokens, complaint):
    with pytest.raises(ValueError, match=complaint):
        RowsOrColumns(scores_TE, tokens)


@pytest.mark.parametrize("settings", [{}, {"by": "row"}, {"seen": 4}, {"seen": 1, "c": 4}])
def test_it_has_a_still_face_and_a_page(settings, tmp_path):
    widget = RowsOrColumns(SCORES_TE, **settings)
    assert widget.png()[1:4] == b"PNG"
    assert sorted(widget.state()) == ["by", "c", "colors", "scores", "seen", "tokens"]
    page = widget.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert widget.title in page and page.count("://") == 1  # SVG's name
