"""The queues without a browser: who is dropped is the library's word, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traitlets import TraitError

from moe_lite.capacity import limit, queue_rank
from moe_lite.course.widgets import ExpertQueues
from moe_lite.course.widgets.expert_queues import PRIORITIES, SHUFFLES
from moe_lite.routers import ExpertChoiceRouter, GShardRouter, TopKRouter
from moe_lite.routing import Routing

T, E = 24, 4
WORDS = [f"w{n}" for n in range(T)]


def routed(top_k=2, num_tokens=T):
    torch.manual_seed(1)
    return TopKRouter(6, E, top_k)(torch.randn(num_tokens, 6) + 0.7)


@settings(deadline=None, max_examples=40)
@given(
    top_k=st.integers(1, 3),
    places=st.integers(1, 12),
    priority=st.sampled_from(PRIORITIES),
    shuffle=st.integers(0, SHUFFLES),
)
def test_who_is_dropped_is_what_the_library_drops(top_k, places, priority, shuffle):
    routing = routed(top_k)
    routing = replace(routing, gate_N=routing.gate_N.detach().double().round(decimals=4))
    widget = ExpertQueues(routing, WORDS, capacity=places, priority=priority, shuffle=shuffle)
    order_T = torch.tensor(widget.orders[shuffle])
    assert sorted(order_T.tolist()) == list(range(T))
    pairs_N = (order_T[:, None] * top_k + torch.arange(top_k)).flatten()  # who stands where
    moved = Routing.from_choices(
        routing.logits_TE[order_T], routing.probs_TE[order_T],
        routing.expert_N[pairs_N].view(T, top_k), routing.gate_N[pairs_N].view(T, top_k),
    )  # fmt: skip
    assert torch.equal(widget.rank_N[pairs_N], queue_rank(moved, priority))
    limited = limit(moved, places * E / (T * top_k), priority)
    assert torch.equal(widget.routing.keep_N[pairs_N], limited.keep_N)
    assert widget.routing.load_E().max() <= places


def test_a_choice_that_was_not_sent_takes_no_place():
    torch.manual_seed(3)
    router = GShardRouter(6, E, capacity_factor=100.0)  # every pair that is sent finds a place
    routing = router.train()(torch.randn(T, 6))
    assert not routing.keep_N.all() and routing.keep_N.view(T, 2)[:, 0].all()
    widget = ExpertQueues(routing, WORDS, priority="choice")
    assert widget.arrived == routing.keep_N.sum()
    assert torch.equal(widget.rank_N >= 0, routing.keep_N)


def test_a_shuffle_changes_who_is_dropped_and_nothing_else():
    widget = ExpertQueues(routed(), WORDS, capacity=8)
    before = widget.routing
    widget.set_state({"shuffle": 3})  # what a click in a page sends
    after = widget.routing
    assert torch.equal(before.expert_N, after.expert_N)
    assert torch.equal(before.load_E(), after.load_E())
    assert not torch.equal(before.keep_N, after.keep_N)


def test_the_default_capacity_is_an_equal_share():
    for top_k in (1, 2, 3):
        widget = ExpertQueues(routed(top_k, 23), WORDS[:23])
        assert widget.capacity == math.ceil(23 * top_k / E)
        assert widget.arrived == 23 * top_k


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("capacity", 0, "capacity must be from 1 to"),
        ("capacity", 999, "not 999"),
        ("priority", "luck", "priority"),
        ("shuffle", SHUFFLES + 1, f"shuffle must be from 0 to {SHUFFLES}, not {SHUFFLES + 1}"),
        ("arrived", 2 * T + 1, f"arrived must be from 0 to {2 * T}, not {2 * T + 1}"),
        ("token", T, f"token must be from -1 to {T - 1}, not {T}"),
    ],
)
def test_what_cannot_be_is_refused(name, value, complaint):
    widget = ExpertQueues(routed(), WORDS)
    with pytest.raises(TraitError, match=complaint):
        setattr(widget, name, value)
    with pytest.raises(TraitError, match=complaint):
        ExpertQueues(routed(), WORDS, **{name: value})


@pytest.mark.parametrize(
    ("routing", "words", "complaint"),
    [
        (routed(num_tokens=201), ["w"] * 201, "not 201 tokens that choose 2 of 4"),
        (TopKRouter(6, 17)(torch.randn(3, 6)), ["w"] * 3, "not 3 tokens that choose 2 of 17"),
        (ExpertChoiceRouter(6, E)(torch.randn(8, 6)), ["w"] * 8, "choose a varying number of 4"),
        (routed(), WORDS[1:], "24 tokens were routed, but there are 23 texts"),
    ],
)
def test_routings_that_cannot_be_shown_are_refused(routing, words, complaint):
    with pytest.raises(ValueError, match=complaint):
        ExpertQueues(routing, words)


@pytest.mark.parametrize(
    "settings", [{}, {"capacity": 1, "priority": "gate"}, {"shuffle": 2, "arrived": 5, "token": 3}]
)
def test_it_has_a_still_face_and_a_page(settings, tmp_path):
    words = ["$x$", "\n", " ", "<b>", *WORDS[4:]]
    widget = ExpertQueues(routed(), words, **settings)
    assert widget.png()[1:4] == b"PNG"
    page = widget.to_html(tmp_path / "queues.html").read_text(encoding="utf-8")
    assert widget.title in page and page.count("://") == 1  # SVG's name
