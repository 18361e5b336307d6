"""The checks of chapter 02: can experts have managers?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hierarchy import HME, affine, random_tree, sum_upwards
from .verdict import Check, Mistakes, call, randn, refuse, show

DAMPING = 1e-3


def check_leaf_priors(leaf_priors: Callable[[Tensor], Tensor]) -> None:
    """Check the gates' products: left_TG, each gate's probability of left -> prior_TE."""

    def mistakes(left_TG: Tensor) -> Mistakes:
        right = _leaf_priors(left_TG)
        rootless = _leaf_priors(left_TG, skip_root=True)
        return [
            ("left and right are swapped; left comes first", _leaf_priors(1 - left_TG)),
            ("the root is missing: a leaf needs every gate on its way, also the first", rootless),
            ("the probabilities along the way are averaged; all of them must happen: multiply",
             _leaf_priors(left_TG, mean=True)),
            ("the gates are read depth first; they are counted level by level, so gate n has the "
             "children 2n+1 and 2n+2", _leaf_priors(_depth_first(left_TG))),
            ("only the lowest gate counts; all on the way do", _leaf_priors(left_TG, lowest=True)),
            ("every step is taken to the left; right has 1 - p", _leaf_priors(left_TG, ones=True)),
            ("the leaves stand from right to left", right.flip(-1)),
            ("all left children stand before all right ones: each gate's two come in turns",
             _leaf_priors(left_TG, halves=True)),
            ("these are probabilities already: no sigmoid", _leaf_priors(left_TG.sigmoid())),
            ("these are the gates; the leaves below them are one more", left_TG)]  # fmt: skip

    check = Check("leaf_priors", leaf_priors, _leaf_priors, mistakes,
                  "these are not the products of the gates on the way to each leaf")  # fmt: skip
    by_hand = torch.tensor([[0.5, 0.1, 0.8], [0.9, 0.5, 0.5]], dtype=torch.float64)
    check.on("left = [[0.5, 0.1, 0.8], [0.9, 0.5, 0.5]]", by_hand)
    for depth, T in ((1, 5), (3, 5), (2, 1), (4, 3)):
        left_TG = randn(depth, T, 2**depth - 1).double().sigmoid()
        check.on(f"{2**depth} experts, so {2**depth - 1} gates, at random", left_TG)
    check.on("gates that are sure: left = [[1, 0, 0.5]]", torch.tensor([[1.0, 0.0, 0.5]]).double())
    check.passed("a token's shares at the leaves add up to 1, in trees of 2, 4, 8 and 16 experts.")


def _leaf_priors(
    left_TG: Tensor, *, mean: bool = False, skip_root: bool = False, lowest: bool = False,
    ones: bool = False, halves: bool = False,
) -> Tensor:  # fmt: skip
    """Multiply the gates on the way to each leaf, or do what a mistake does instead."""
    G = left_TG.shape[1]
    if halves:
        level_TW = torch.ones_like(left_TG[:, :1])
        while (first := level_TW.shape[1] - 1) < G:
            left_TW = left_TG[:, first : 2 * first + 1]
            level_TW = torch.cat([level_TW * left_TW, level_TW * (1 - left_TW)], -1)
        return level_TW
    leaves = []
    for leaf in range(G, 2 * G + 1):
        node, way = leaf, []
        while node:
            parent = (node - 1) // 2
            way.append(left_TG[:, parent] if node % 2 or ones else 1 - left_TG[:, parent])
            node = parent
        if skip_root:
            way[-1] = torch.ones_like(way[-1])
        way_TL = torch.stack(way[:1] if lowest else way, dim=-1)
        leaves.append(way_TL.mean(dim=-1) if mean else way_TL.prod(dim=-1))
    return torch.stack(leaves, dim=-1)


def _depth_first(left_TG: Tensor) -> Tensor:
    """Put gates that were numbered depth first in the order level by level."""
    G = left_TG.shape[1]

    def place(node: int) -> list[int]:
        return [node, *place(2 * node + 1), *place(2 * node + 2)] if node < G else []

    return left_TG[:, torch.tensor(place(0)).argsort()]


def check_posteriors(posteriors: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the E step: (prior_TE, density_TE) -> posterior_TN of all nodes, root first."""

    def leaves(prior_TE: Tensor, density_TE: Tensor) -> Tensor:
        joint_TE = prior_TE * density_TE
        return joint_TE / joint_TE.sum(-1, keepdim=True)

    def mistakes(prior_TE: Tensor, density_TE: Tensor) -> Mistakes:
        joint_TE, leaf_TE = prior_TE * density_TE, leaves(prior_TE, density_TE)
        right, E = sum_upwards(leaf_TE), leaf_TE.shape[1]
        parent_N = (torch.arange(2 * E - 1) - 1).div(2, rounding_mode="floor").clamp(min=0)
        level_N = (torch.arange(2 * E - 1) + 1).double().log2().floor().to(joint_TE)
        halves = [leaf_TE]
        while (W := halves[0].shape[1] // 2) > 0:
            halves.insert(0, halves[0][:, :W] + halves[0][:, W:])
        from_prior = "the managers' are sums of priors; a manager's posterior sums its children's"
        return [
            ("prior times density is not yet a probability: divide it", sum_upwards(joint_TE)),
            ("these sum over the tokens; Bayes' rule divides by the sum over the experts",
             sum_upwards(joint_TE / joint_TE.sum(0, keepdim=True))),
            ("that is the prior: what the experts said of y is not used", sum_upwards(prior_TE)),
            ("the prior is not used: who was expected to answer counts as well",
             sum_upwards(density_TE / density_TE.sum(-1, keepdim=True))),
            ("each is divided by its parent's, so these are P(child | parent); asked is P(node)",
             right / right[:, parent_N]),
            ("the leaves alone; a manager's posterior is the sum of its two children's", leaf_TE),
            ("the root is left out; it comes first, and is 1", right[:, 1:]),
            ("these add a level's first half to its second; a node's two children are neighbours",
             torch.cat(halves, -1)),
            ("leaves first; count from the root", right.flip(-1)),
            ("leaves first; count from the root", torch.cat([leaf_TE, right[:, : E - 1]], -1)),
            ("a softmax of what was a probability already", sum_upwards(joint_TE.softmax(-1))),
            (from_prior, torch.cat([sum_upwards(prior_TE)[:, : E - 1], leaf_TE], -1)),
            ("a manager's posterior is the sum of its children's, not their mean",
             right / 2 ** (level_N[-1] - level_N)),
            ("the likeliest expert takes all: EM shares",
             sum_upwards(F.one_hot(joint_TE.argmax(-1), E).to(joint_TE)))]  # fmt: skip

    check = Check("posteriors", posteriors, lambda *args: sum_upwards(leaves(*args)), mistakes,
                  "these are not the nodes' posteriors")  # fmt: skip
    given = "prior [[.4, .1, .3, .2], [1/4, 1/4, 1/4, 1/4]], density [[1, 2, 0, 2], [1, 1, 2, 0]]"
    prior_TE = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    check.on(given, prior_TE, torch.tensor([[1.0, 2.0, 0.0, 2.0], [1.0, 1.0, 2.0, 0.0]]))
    for E, T in ((2, 5), (8, 5), (4, 1), (4, 4)):
        check.on(f"{E} experts, {T} tokens, random numbers", randn(E, T, E).softmax(-1),
                 randn(E + 1, T, E).exp())  # fmt: skip
    check.on("densities of about 1e-6", randn(5, 3, 4).softmax(-1), 1e-6 * randn(6, 3, 4).exp(),
             otherwise="something was added to the sum for safety, and here it counts")  # fmt: skip
    check.passed("Bayes' rule at the leaves, and sums upwards: the root's is 1.")


def _weighted(x_TD: Tensor, y_TO: Tensor, weight_T: Tensor, ridge: float = 0.0) -> Tensor:
    """Solve a weighted least-squares problem."""
    wx_DT = (weight_T[:, None] * x_TD).mT
    return torch.linalg.solve(wx_DT @ x_TD + ridge * torch.eye(len(x_TD.mT)).to(x_TD), wx_DT @ y_TO)


def check_fit_expert(fit_expert: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check weighted least squares: (x_TD, y_TO, weight_T) -> the expert's weights, (D, O)."""

    def mistakes(x_TD: Tensor, y_TO: Tensor, weight_T: Tensor) -> Mistakes:
        w, xx_DD, xy_DO = weight_T[:, None], x_TD.mT @ x_TD, x_TD.mT @ y_TO
        ridge = "something was added to the diagonal: that pulls the weights towards zero"
        return [
            ("all tokens count alike: the weights are not used", torch.linalg.solve(xx_DD, xy_DO)),
            ("the weights count twice: multiplying both x and y by them squares them; use their "
             "square roots, or weigh one side", _weighted(x_TD, y_TO, weight_T**2)),
            ("the weights are there as square roots: in x'Wx and x'Wy they stand as they are",
             _weighted(x_TD, y_TO, weight_T.sqrt())),
            ("only y is weighted: x'Wx too", torch.linalg.solve(xx_DD, x_TD.mT @ (w * y_TO))),
            ("only x is weighted: x'Wy too", torch.linalg.solve(x_TD.mT @ (w * x_TD), xy_DO)),
            ("tokens below one half are left out: that is a hard choice, EM shares",
             _weighted(x_TD, y_TO, (weight_T > 0.5).to(weight_T), 1e-12)),
            *((ridge, _weighted(x_TD, y_TO, weight_T, size)) for size in (1e-3, 1e-2, 0.1, 1.0)),
            ("x'Wy alone is not yet solved: divide by x'Wx", x_TD.mT @ (w * y_TO)),
            ("a weight is turned round: 1 - w", _weighted(x_TD, y_TO, 1 - weight_T, 1e-12)),
        ]  # fmt: skip

    check = Check("fit_expert", fit_expert, _weighted, mistakes,
                  "this does not minimise the weighted squared error")  # fmt: skip
    # Two points on y = 2x count fully, one on y = -x hardly.
    check.on("x = [1, 2, 1], y = [2, 4, -1], weights [1, 1, 0.25]",
             torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([[2.0], [4.0], [-1.0]]),
             torch.tensor([1.0, 1.0, 0.25]))  # fmt: skip
    for seed, (T, D, outputs) in enumerate(((40, 3, 2), (25, 2, 1), (30, 3, 3))):
        weight_T = randn(seed + 3, T).double().sigmoid()
        weight_T[: 3 * seed] = 0.0
        given = f"{T} random tokens, {3 * seed} of weight 0, {D} inputs, outputs: {outputs}"
        check.on(given, affine(randn(seed, T, D - 1)), randn(seed + 6, T, outputs).double(),
                 weight_T)  # fmt: skip
    check.passed("the weighted squared error is at its least.")


def _newton(x_TD: Tensor, slope_T: Tensor, curve_T: Tensor, damping: float = DAMPING) -> Tensor:
    curve_DD = (curve_T[:, None] * x_TD).mT @ x_TD + damping * torch.eye(len(x_TD.mT)).to(x_TD)
    return torch.linalg.solve(curve_DD, x_TD.mT @ slope_T)


def _gate_step(v_D: Tensor, x_TD: Tensor, own_T: Tensor, left_T: Tensor) -> Tensor:
    p_T = (x_TD @ v_D).sigmoid()
    return v_D + _newton(x_TD, left_T - own_T * p_T, own_T * p_T * (1 - p_T))


def check_fit_gate(fit_gate: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check a step of IRLS: (v_D, x_TD, own_T, left_T) -> v_D.

    own_T is the posterior of the gate's node, left_T that of its left child; 0.001 is added to
    the diagonal of the curvature.
    """

    def mistakes(v_D: Tensor, x_TD: Tensor, own_T: Tensor, left_T: Tensor) -> Mistakes:
        p_T = (x_TD @ v_D).sigmoid()
        slope_T, curve_T, free_T = left_T - own_T * p_T, own_T * p_T * (1 - p_T), p_T * (1 - p_T)

        def step(slope_T: Tensor, curve_T: Tensor, damping: float = DAMPING) -> Tensor:
            return _newton(x_TD, slope_T, curve_T, damping)

        own_share = "the gate expects p of every token; only own of it came here: left - own p"
        linear = "the curvature is a linear regression's; a logistic one has W = own p (1 - p)"
        right = v_D + step(slope_T, curve_T)
        return [
            ("the step goes downhill: we climb x'(left - own p)", v_D - step(slope_T, curve_T)),
            ("that is the gradient alone; divide by the curvature x'Wx", v_D + x_TD.mT @ slope_T),
            ("that is the step; add it to v", step(slope_T, curve_T)),
            (own_share, v_D + step(left_T - p_T, curve_T)),
            (own_share, v_D + step(left_T - p_T, free_T)),
            ("own is missing from the curvature: W = own p (1 - p)", v_D + step(slope_T, free_T)),
            ("left / own is the target, but each token has to count own times",
             v_D + step(left_T / own_T - p_T, free_T)),
            (linear, v_D + step(slope_T, own_T)),
            (linear, v_D + step(slope_T, torch.ones_like(p_T))),
            ("the target is the right child's share, own - left; it should be the left one's",
             v_D + step(own_T - left_T - own_T * p_T, curve_T)),
            ("0.001 on the curvature's diagonal is missing", v_D + step(slope_T, curve_T, 0.0)),
            ("a second step was taken; one was asked", _gate_step(right, x_TD, own_T, left_T)),
            ("the gate has not moved", v_D)]  # fmt: skip

    check = Check("fit_gate", fit_gate, _gate_step, mistakes,
                  "this is not one Newton step of the weighted logistic regression")  # fmt: skip
    own_T, left_T = torch.tensor([[1.0, 0.5], [0.8, 0.1]], dtype=torch.float64)
    check.on("v = [0], x = [[1], [1]], own = [1, 0.5], left = [0.8, 0.1]",
             torch.zeros(1).double(), torch.ones(2, 1).double(), own_T, left_T)  # fmt: skip
    for seed, (T, D) in enumerate(((30, 3), (12, 2), (50, 4))):
        own_T = randn(seed + 5, T).double().sigmoid()
        check.on(f"{T} random tokens, {D} inputs", randn(seed, D).double(),
                 affine(randn(seed + 8, T, D - 1)), own_T,
                 own_T * randn(seed + 11, T).double().sigmoid())  # fmt: skip
    check.passed("one Newton step uphill, each token counted by how much of it came here.")


def check_m_step(m_step: Callable[[HME, Tensor, Tensor, Tensor], HME]) -> None:
    """Check a whole M step: (tree, x_TD, y_TO, posterior_TN) -> tree, for one tree.

    Each part is compared with its closed form, or taken as that where it is as good for what the
    M step climbs, the expected log-likelihood: a gate may take more steps than one. Then EM runs.
    """
    exercise = "m_step"
    parts = ("the gates", "the experts", "the variances")
    otherwise = (
        "a gate fits its posteriors worse than a Newton step would: is its target the posterior of "
        "its own left child, weighted by its own?",
        "an expert fits its tokens worse than it could: is it weighted by the posterior of its own "
        "leaf?",
        "a variance is not its expert's mean squared error, weighted by the posteriors of its leaf",
    )
    check = Check(exercise, m_step, _m_step, _m_mistakes, otherwise, parts=parts, see=_as_good)
    worlds = [_world(seed) for seed in range(10)]
    for seed, (tree, x_TD, y_TO) in enumerate(worlds[:4]):
        check.on(f"tree {seed}", tree, x_TD, y_TO, tree.posterior(x_TD, y_TO)[0])
    check.judge()
    rises = 0
    for seed, (tree, x_TD, y_TO) in enumerate(worlds):
        before = tree.log_likelihood(x_TD, y_TO).item()
        for step in range(1, 13):
            given = f"tree {seed}, step {step}"
            posterior_TN = tree.posterior(x_TD, y_TO)[0]
            tree = call(exercise, m_step, tree, x_TD, y_TO, posterior_TN, on=given)
            after = tree.log_likelihood(x_TD, y_TO).item()
            if not after >= before - 1e-6 * abs(before):
                refuse(exercise, "the first step was right, but now the log-likelihood fell",
                       given, f"{after:.3f}", f"at least {before:.3f}")  # fmt: skip
            rises, before = rises + (after > before), after
    check.passed(f"10 random trees, 120 steps, {rises} rises, and the likelihood never fell.")


def _world(seed: int) -> tuple[HME, Tensor, Tensor]:
    x_TD = affine(randn(seed, 120, 2))
    bend_T1 = torch.where(x_TD[:, :1] > 0.3, 1.5 * x_TD[:, 1:2], -x_TD[:, :1] - 1)
    y_TO = bend_T1 + 0.5 * randn(seed + 50, 120, 1)
    return random_tree(2, 3, 1, seeds=[seed], scale=0.7), x_TD, y_TO


Parts = tuple[Tensor, Tensor, Tensor]


def _fitted(old: HME, x_TD: Tensor, y_TO: Tensor, own_TG: Tensor, left_TG: Tensor,
            weight_TE: Tensor) -> Parts:  # fmt: skip
    """Fit gates to (own, left), and experts and variances to their weights."""
    gate_GD = [_gate_step(*part) for part in zip(
        old.gate_QGD[0], [x_TD] * own_TG.shape[1], own_TG.mT, left_TG.mT, strict=True)]  # fmt: skip
    expert_EDO = torch.stack([_weighted(x_TD, y_TO, w_T, 1e-9) for w_T in weight_TE.mT])
    return torch.stack(gate_GD), expert_EDO, _variances(expert_EDO, x_TD, y_TO, weight_TE)


def _variances(expert_EDO: Tensor, x_TD: Tensor, y_TO: Tensor, weight_TE: Tensor) -> Tensor:
    error_TE = (y_TO - x_TD @ expert_EDO).square().mean(dim=-1).mT
    return (weight_TE * error_TE).sum(0) / weight_TE.sum(0)


def _m_step(tree: HME, x_TD: Tensor, y_TO: Tensor, posterior_TN: Tensor) -> Parts:
    G = tree.gate_QGD.shape[1]
    left_TG = posterior_TN[:, 1::2]
    return _fitted(tree, x_TD, y_TO, posterior_TN[:, :G], left_TG, posterior_TN[:, G:])


def _m_mistakes(tree: HME, x_TD: Tensor, y_TO: Tensor, posterior_TN: Tensor) -> Mistakes:
    G = tree.gate_QGD.shape[1]
    own_TG, left_TG, right_TG = posterior_TN[:, :G], posterior_TN[:, 1::2], posterior_TN[:, 2::2]
    weight_TE, old_GD = posterior_TN[:, G:], tree.gate_QGD[0]
    hard_TE = F.one_hot(weight_TE.argmax(-1), G + 1).to(weight_TE)
    gate_GD, expert_EDO, var_E = _m_step(tree, x_TD, y_TO, posterior_TN)

    def gates(own_TG: Tensor, left_TG: Tensor) -> tuple[object, ...]:
        return _fitted(tree, x_TD, y_TO, own_TG, left_TG, weight_TE)[0], ..., ...

    def experts(weight_TE: Tensor) -> tuple[object, ...]:
        return ..., _fitted(tree, x_TD, y_TO, own_TG, left_TG, weight_TE)[1], ...

    error_TE = (y_TO - x_TD @ expert_EDO).square().mean(-1).mT
    own_leaf = "the experts are not each weighted by the posterior of its own leaf"
    whole_TG = torch.ones_like(own_TG)
    var_is = "the variance is each expert's mean squared error, weighted by its posteriors"
    return [
        ("the gates are left as they were: they have an M step of their own", (old_GD, ..., ...)),
        ("the root's gate is left as it was: it has an M step like the others",
         (torch.cat([old_GD[:1], gate_GD[1:]]), ..., ...)),
        ("only the root's gate is fitted", (torch.cat([gate_GD[:1], old_GD[1:]]), ..., ...)),
        ("left and right are swapped: a gate's target is the posterior of its left child",
         gates(own_TG, right_TG)),
        ("left and right are swapped: a gate's target is the posterior of its left child",
         (-gate_GD, ..., ...)),
        ("a gate counts every token whole: it is weighted by the posterior of its own node",
         gates(whole_TG, left_TG / own_TG)),
        ("a gate expects a share of every token, whoever came: own is the posterior of its node",
         gates(whole_TG, left_TG)),
        ("gate n's left child is 2n + 1, not n + 1", gates(own_TG, posterior_TN[:, 1 : G + 1])),
        ("the experts are left as they were: they are fitted", (..., tree.expert_QEDO[0], ...)),
        ("the experts all fit all tokens alike: each is weighted by the posterior of its leaf",
         experts(torch.ones_like(weight_TE))),
        (own_leaf, experts(posterior_TN[:, : G + 1])),
        (own_leaf, experts(weight_TE.flip(-1))),
        ("each token goes to its likeliest expert: a hard choice; EM shares", experts(hard_TE)),
        ("the posteriors count twice: weigh x or y, not both", experts(weight_TE**2)),
        ("the variances are left as they were: mean squared errors", (..., ..., tree.var_QE[0])),
        ("not a mean squared error but the root of it, the deviation", (..., ..., var_E.sqrt())),
        ("the variance comes from the old expert's errors; it needs the new one's",
         (..., ..., _variances(tree.expert_QEDO[0], x_TD, y_TO, weight_TE))),
        (f"{var_is}; here every token counts alike", (..., ..., error_TE.mean(0))),
        (f"{var_is}: divide by the sum of the posteriors",
         (..., ..., (weight_TE * error_TE).sum(0))),
        (f"{var_is}: divide by their sum, not by the number of tokens",
         (..., ..., (weight_TE * error_TE).mean(0)))]  # fmt: skip


def _as_good(new: HME, old: HME, x_TD: Tensor, y_TO: Tensor, posterior_TN: Tensor) -> Parts:
    """Return the parts of the learner's tree, with the closed form for each that is as good."""
    exercise = "m_step"
    if not isinstance(new, HME):
        refuse(exercise, f"return an HME, not {show(new)}")
    for name, value in vars(old).items():
        mine = vars(new)[name]
        if not isinstance(mine, Tensor) or mine.shape != value.shape:
            shape = tuple(mine.shape) if isinstance(mine, Tensor) else show(mine)
            refuse(exercise, f"{name} should be {tuple(value.shape)}, not {shape}")
        if not mine.isfinite().all():
            refuse(exercise, f"{name} has a value that is not a number")
    if (new.var_QE <= 0).any():
        refuse(exercise, f"a variance is {new.var_QE.min():.4g}; it must be above 0")
    best_GD, best_EDO, _ = _m_step(old, x_TD, y_TO, posterior_TN)
    weight_TE = posterior_TN[:, -len(best_EDO) :]
    gate_GD, expert_EDO, var_E = new.gate_QGD[0], new.expert_QEDO[0], new.var_QE[0]
    tried = old.gate_QGD[0], gate_GD, best_GD
    was_G, is_G, could_G = (_gate_likelihoods(v_GD, x_TD, posterior_TN) for v_GD in tried)
    good_G = is_G >= was_G + 0.5 * (could_G - was_G).clamp(min=0) - 1e-6
    error_E, least_E = (_variances(w, x_TD, y_TO, weight_TE) for w in (expert_EDO, best_EDO))
    good_E = error_E <= least_E + 1e-3 * error_E.clamp(max=1)
    near_E = (var_E - error_E).abs() <= 1e-3 * error_E + 1e-4
    true_E = near_E | ((error_E < 1e-4) & (var_E < 1e-2))
    return (
        torch.where(good_G[:, None], best_GD, gate_GD),
        torch.where(good_E[:, None, None], best_EDO, expert_EDO),
        torch.where(true_E, least_E, var_E),
    )


def _gate_likelihoods(gate_GD: Tensor, x_TD: Tensor, posterior_TN: Tensor) -> Tensor:
    """Return what each gate adds to the expected log-likelihood that an M step climbs."""
    score_TG = x_TD @ gate_GD.mT
    step_TG2 = F.logsigmoid(torch.stack([score_TG, -score_TG], dim=-1))
    return (posterior_TN[:, 1:].unflatten(-1, (len(gate_GD), 2)) * step_TG2).sum(dim=(0, 2))
