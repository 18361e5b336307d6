"""The losses on routings small enough to do by hand, and their properties."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_lite import losses
from moe_lite.course import losses2017
from moe_lite.routing import Routing


def route(logits: list[list[float]], experts: list[list[int]]) -> Routing:
    logits_TE, expert_TK = torch.tensor(logits), torch.tensor(experts)
    probs_TE = logits_TE.softmax(-1)
    return Routing.from_choices(logits_TE, probs_TE, expert_TK, probs_TE.gather(1, expert_TK))


def random_routing(T: int, E: int, K: int, seed: int) -> Routing:
    logits_TE = 2 * torch.randn(T, E, generator=torch.Generator().manual_seed(seed))
    return route(logits_TE.tolist(), logits_TE.topk(K, dim=-1).indices.tolist())


ln = math.log
MEASURES = (
    losses.load_balancing_loss, losses.router_z_loss, losses2017.importance_loss,
    losses2017.load_loss, losses.max_violation,
)  # fmt: skip


def test_load_balance_by_hand() -> None:
    # probabilities (3/4, 1/4) and (1/2, 1/2), both to expert 0: f = (1, 0), P = (5/8, 3/8).
    routing = route([[ln(3.0), 0.0], [0.0, 0.0]], [[0], [0]])
    assert losses.load_balancing_loss(routing).item() == pytest.approx(2 * 5 / 8)


def test_load_balance_at_collapse_is_E() -> None:
    routing = route([[50.0, 0, 0, 0]] * 6, [[0]] * 6)
    assert losses.load_balancing_loss(routing).item() == pytest.approx(4)


def test_load_balance_can_fall_below_one_when_f_and_P_part() -> None:
    # The choice of the second-best expert: f = (0, 1), P = (0.9, 0.1).
    routing = route([[ln(9.0), 0.0]] * 3, [[1]] * 3)
    assert losses.load_balancing_loss(routing).item() == pytest.approx(0.2)


def test_k_does_not_change_the_value_at_balance_but_the_published_one_is_k() -> None:
    for K in (1, 2, 3):
        experts = [[(t + k) % 4 for k in range(K)] for t in range(4)]
        routing = route([[0.0] * 4] * 4, experts)
        assert losses.load_balancing_loss(routing).item() == pytest.approx(1)
        assert losses.mixtral_aux_loss([routing]).item() == pytest.approx(K)


def test_pooling_the_layers_hides_an_imbalance_that_the_mean_shows() -> None:
    left, right = route([[9.0, 0.0]] * 4, [[0]] * 4), route([[0.0, 9.0]] * 4, [[1]] * 4)
    assert losses.load_balancing_loss([left, right]).item() == pytest.approx(2, abs=1e-3)
    assert losses.mixtral_aux_loss([left, right]).item() == pytest.approx(1, abs=1e-3)


def test_z_loss_is_squared() -> None:
    routing = route([[ln(2.0), ln(6.0)], [0.0, 0.0]], [[0], [0]])  # sums 8 and 2
    assert losses.router_z_loss(routing).item() == pytest.approx((ln(8) ** 2 + ln(2) ** 2) / 2)


@pytest.mark.parametrize(
    "loss",
    [
        losses.load_balancing_loss,
        losses.router_z_loss,
        losses2017.importance_loss,
        losses2017.load_loss,
    ],
)
@given(T=st.integers(2, 12), seed=st.integers(0, 99), data=st.data())
def test_a_mask_is_the_same_as_leaving_the_tokens_out(loss, T, seed, data) -> None:
    real = data.draw(st.lists(st.booleans(), min_size=T, max_size=T).filter(any))
    routing, mask_T = random_routing(T, 5, 2, seed), torch.tensor(real)
    shorter = route(
        routing.logits_TE[mask_T].tolist(), routing.expert_N.view(T, 2)[mask_T].tolist()
    )
    torch.testing.assert_close(loss(routing, mask_T), loss(shorter))
    torch.testing.assert_close(
        losses.mixtral_aux_loss([routing], mask_T), losses.mixtral_aux_loss([shorter])
    )


@given(seed=st.integers(0, 99))
def test_relabelling_the_experts_changes_nothing(seed: int) -> None:
    routing = random_routing(9, 4, 2, seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    renamed = route(
        routing.logits_TE[:, order].tolist(), order.argsort()[routing.expert_N.view(9, 2)].tolist()
    )
    for measure in MEASURES:
        torch.testing.assert_close(measure(routing), measure(renamed))


def test_gradient_lowers_the_busy_expert() -> None:
    logits_TE = torch.zeros(4, 2, requires_grad=True)
    probs_TE = logits_TE.softmax(-1)
    expert_TK = torch.zeros(4, 1, dtype=torch.long)
    routing = Routing.from_choices(logits_TE, probs_TE, expert_TK, probs_TE.gather(1, expert_TK))
    losses.load_balancing_loss(routing).backward()
    assert (logits_TE.grad[:, 0] > 0).all() and (logits_TE.grad[:, 1] < 0).all()


def test_max_violation_by_hand() -> None:
    routing = route([[0.0] * 4] * 4, [[0], [0], [0], [1]])  # loads 3 1 0 0, mean 1
    assert losses.max_violation(routing).item() == pytest.approx(2)
    assert routing.load_E().tolist() == [3, 1, 0, 0]


@pytest.mark.parametrize("measure", [*MEASURES, losses.drop_rate, losses.mixtral_aux_loss])
def test_of_no_layers_there_is_no_loss(measure) -> None:
    for none in ([], ()):
        with pytest.raises(ValueError, match="there are no routings to"):
            measure(none)


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="mask covers 3 tokens, but 4"):
        losses.load_balancing_loss(random_routing(4, 3, 1, 0), torch.ones(3))


@pytest.mark.parametrize("name", ["load_balancing_loss", "mixtral_aux_loss", "router_z_loss"])
def test_a_loss_of_scores_that_no_gate_says_is_refused(name: str) -> None:
    """A trace of a model whose router hides its scores has choices and gates, and NaN."""
    known = random_routing(4, 3, 1, 0).detach()
    nan_TE = torch.full_like(known.probs_TE, torch.nan)
    unknown = replace(known, logits_TE=nan_TE, probs_TE=nan_TE)
    for layers in ([unknown], [known, unknown]):
        with pytest.raises(ValueError, match="scores are unknown"):
            getattr(losses, name)(layers)
    # what counts pairs needs no scores
    assert losses.max_violation(unknown) == losses.max_violation(known)
    assert losses.drop_rate(unknown) == 0
    # a run that diverges is another matter: its loss is NaN, and its trainer says so
    logits_TE = nan_TE.clone().requires_grad_()
    diverged = replace(unknown, logits_TE=logits_TE, probs_TE=logits_TE.softmax(-1))
    assert getattr(losses, name)([diverged]).isnan()


def test_importance_and_load_by_hand_can_disagree() -> None:
    # Gates 9/10 and 1/10: as many tokens each, but not as much weight.
    routing = route([[ln(9.0), 0.0]] * 4, [[0, 1]] * 4)
    assert losses2017.load_loss(routing) == 0
    assert losses2017.importance_loss(routing).item() == pytest.approx(0.8**2)


@given(E=st.integers(1, 9), T=st.integers(1, 9))
def test_the_worst_is_E_minus_1(E: int, T: int) -> None:
    routing = route([[0.0] * E] * T, [[E - 1]] * T)
    for loss in (losses2017.importance_loss, losses2017.load_loss):
        assert loss(routing).item() == pytest.approx(E - 1, abs=1e-4)


def test_a_smooth_load_goes_before_the_count_and_is_masked() -> None:
    routing = route([[0.0, 0.0]] * 2, [[0], [0]])
    smooth = replace(routing, smooth_load_TE=torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    assert losses2017.load_loss(routing) == 1
    assert losses2017.load_loss(smooth).item() == pytest.approx(0.25**2)
    assert losses2017.load_loss(smooth, torch.tensor([False, True])) == 0


def test_of_several_layers_the_mean() -> None:
    both = [random_routing(9, 4, 2, seed) for seed in (1, 2)]
    for loss in (losses2017.importance_loss, losses2017.load_loss):
        assert loss(both) == sum(map(loss, both)) / 2
