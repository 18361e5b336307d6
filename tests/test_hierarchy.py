"""Trees of experts: probabilities add up, EM climbs, seeds are alone, and hands agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lite.course.hierarchy import (
    HME,
    affine,
    constrain,
    em_step,
    fit_experts,
    fit_gates,
    random_tree,
    sum_upwards,
)


def problem(seed, T=80, inputs=2, outputs=2):
    rng = torch.Generator().manual_seed(seed)
    x_TD = affine(torch.randn(T, inputs, generator=rng))
    y_TO = (2 * x_TD[:, :1]).sin() * torch.ones(outputs).double()
    return x_TD, y_TO + 0.1 * torch.randn(T, outputs, generator=rng).double()


@settings(deadline=None, max_examples=30)
@given(depth=st.integers(1, 4), seed=st.integers(0, 1000), scale=st.floats(0, 30))
def test_shares_add_up_at_every_node(depth, seed, scale):
    x_TD, y_TO = problem(seed, T=12)
    tree = random_tree(depth, 3, 2, seeds=[seed, seed + 1], scale=scale)
    for share_QTN in (tree.log_prior(x_TD).exp(), tree.posterior(x_TD, y_TO)):
        assert share_QTN.shape == (2, 12, 2 ** (depth + 1) - 1)
        torch.testing.assert_close(share_QTN[..., 0], torch.ones(2, 12).double())
        torch.testing.assert_close(share_QTN, sum_upwards(share_QTN[..., -(2**depth) :]))


def test_a_leaf_is_reached_by_its_own_way():
    tree = random_tree(3, 3, 2, seeds=[5])
    x_TD, _ = problem(5, T=7)
    left_TG = (x_TD @ tree.gate_QGD[0].T).sigmoid()
    for leaf in range(8):
        right1, right2, right3 = (bool(leaf & bit) for bit in (4, 2, 1))
        second = 1 + right1
        third = 2 * second + 1 + right2
        way = 1.0
        for node, right in ((0, right1), (second, right2), (third, right3)):
            way = way * ((1 - left_TG[:, node]) if right else left_TG[:, node])
        torch.testing.assert_close(tree.log_prior(x_TD)[0, :, 7 + leaf].exp(), way)


def test_the_likelihood_is_the_mixtures():
    tree, (x_TD, y_TO) = random_tree(2, 3, 2, seeds=[1, 2]), problem(1)
    tree = HME(tree.gate_QGD, tree.expert_QEDO, tree.var_QE * torch.tensor([0.5, 1, 2, 3]))
    prior_QTE, total_Q = tree.log_prior(x_TD)[..., 3:].exp(), torch.zeros(2).double()
    for q in range(2):
        density_T = torch.zeros(len(x_TD)).double()
        for e in range(4):
            normal = torch.distributions.Normal(
                x_TD @ tree.expert_QEDO[q, e], tree.var_QE[q, e].sqrt()
            )
            density_T += prior_QTE[q, :, e] * normal.log_prob(y_TO).sum(-1).exp()
        total_Q[q] = density_T.log().sum()
    torch.testing.assert_close(tree.log_likelihood(x_TD, y_TO), total_Q)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_likelihood_never_falls_in_ten_random_trees(depth):
    x_TD, y_TO = problem(depth)
    tree = random_tree(depth, 3, 2, seeds=range(10), scale=1.0)
    start_Q = before_Q = tree.log_likelihood(x_TD, y_TO)
    for _ in range(30):
        tree = em_step(tree, x_TD, y_TO)
        after_Q = tree.log_likelihood(x_TD, y_TO)
        assert (after_Q >= before_Q - 1e-9 * before_Q.abs()).all()
        before_Q = after_Q
    assert (before_Q > start_Q + 10).all()


def test_a_broken_m_step_falls():
    """What the promise is worth: weights of the prior instead of the posterior break it."""
    x_TD, y_TO = problem(0)
    tree = random_tree(2, 3, 2, seeds=range(10), scale=1.0)
    fell_Q = torch.zeros(10, dtype=torch.bool)
    for _ in range(30):
        before_Q = tree.log_likelihood(x_TD, y_TO)
        good = em_step(tree, x_TD, y_TO)
        weight_QTE = tree.log_prior(x_TD)[..., -4:].exp()
        experts, _ = fit_experts(tree, x_TD, y_TO, weight_QTE, damping=1e-3, min_var=1e-4)
        tree = HME(good.gate_QGD, experts, good.var_QE)
        fell_Q |= tree.log_likelihood(x_TD, y_TO) < before_Q - 1e-6
    assert fell_Q.all()


def test_an_expert_solves_its_weighted_least_squares():
    tree, (x_TD, y_TO) = random_tree(1, 3, 2, seeds=[0]), problem(0)
    weight_QTE = torch.rand(1, len(x_TD), 2).double()
    experts, var = fit_experts(tree, x_TD, y_TO, weight_QTE, damping=1e-12, min_var=1e-9)
    for e in range(2):
        root = weight_QTE[0, :, e, None].sqrt()
        best = torch.linalg.lstsq(root * x_TD, root * y_TO).solution
        torch.testing.assert_close(experts[0, e], best)
        error = (root * (y_TO - x_TD @ best)).square().sum() / (2 * root.square().sum())
        torch.testing.assert_close(var[0, e], error)


def test_a_gate_step_is_newtons_and_is_halved_where_it_overshoots():
    x_TD, _ = problem(0, T=40)
    left_T = (x_TD[:, 0] > 0).double()  # separable: the best v is infinite
    posterior_QTN = torch.stack([torch.ones(40).double(), left_T, 1 - left_T], dim=-1)[None]

    def likelihood(v_D):
        score_T = x_TD @ v_D
        return (torch.nn.functional.logsigmoid((2 * left_T - 1) * score_T)).sum()

    v_D = torch.zeros(3).double()
    slope_D, curve_DD = torch.func.grad(likelihood)(v_D), -torch.func.hessian(likelihood)(v_D)
    ours = fit_gates(v_D[None, None], x_TD, posterior_QTN, damping=0.0)[0, 0]
    torch.testing.assert_close(ours, torch.linalg.solve(curve_DD, slope_D))
    v_D = torch.tensor([-6.0, 3.0, 5.0]).double()  # far on the wrong side, where curves are flat
    for _ in range(20):
        new = fit_gates(v_D[None, None], x_TD, posterior_QTN, damping=1e-3)[0, 0]
        assert likelihood(new) >= likelihood(v_D)
        v_D = new
    assert likelihood(v_D) > -1


def test_a_seed_is_alone():
    x_TD, y_TO = problem(3)
    alone, among = random_tree(2, 3, 2, seeds=[7]), random_tree(2, 3, 2, seeds=[1, 7, 2])
    for _ in range(5):
        alone, among = em_step(alone, x_TD, y_TO), em_step(among, x_TD, y_TO)
    for one, many in zip(vars(alone).values(), vars(among[1]).values(), strict=True):
        torch.testing.assert_close(one, many)
    assert among[-1].var_QE.shape == (1, 4)


def test_an_expert_that_nobody_asks_stays_put():
    x_TD, y_TO = problem(2)
    tree = random_tree(1, 3, 2, seeds=[0])
    always_left = torch.tensor([[[0.0, 0.0, 1e4]]]).double()
    tree = HME(always_left, tree.expert_QEDO, tree.var_QE)
    new = em_step(tree, x_TD, y_TO)
    torch.testing.assert_close(new.expert_QEDO[0, 1], tree.expert_QEDO[0, 1])
    assert new.var_QE[0, 1] == tree.var_QE[0, 1]
    assert all(part.isfinite().all() for part in vars(new).values())


def test_a_case_far_from_every_expert_has_posteriors():
    tree, (x_TD, y_TO) = random_tree(2, 3, 2, seeds=[0]), problem(0)
    posterior = tree.posterior(x_TD, y_TO + 1e4)
    assert posterior.isfinite().all()


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000), st.floats(0, 50))
def test_the_constraint_leaves_each_token_a_whole(E, seed, margin):
    rng = torch.Generator().manual_seed(seed)
    gate_TE = torch.randn(5, E, generator=rng).softmax(-1)
    total_E = 30 * torch.rand(E, generator=rng)
    out_TE = constrain(gate_TE, total_E, margin)
    torch.testing.assert_close(out_TE.sum(-1), torch.ones(5))
    closed_E = total_E - total_E.mean() > margin
    assert torch.equal(out_TE == 0, closed_E.expand(5, E))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: random_tree(0, 2, 1, seeds=[0]), "depth must be at least 1, not 0"),
        (lambda: random_tree(1, 0, 1, seeds=[0]), "inputs must be at least 1, not 0"),
        (lambda: random_tree(1, 2, -1, seeds=[0]), "outputs must be at least 1, not -1"),
        (lambda: random_tree(1, 2, 1, seeds=[]), "no seed"),
        (lambda: constrain(torch.ones(1, 2), torch.ones(2), -1.0), "margin .* not -1.0"),
    ],
)
def test_what_cannot_be_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()
