"""The checks of chapter 02: can experts have managers?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...hierarchy import HME, affine, constrain, random_tree, sum_upwards
from .verdict import CheckFailed, Mistakes, call, expect, passed, randn, show

DAMPING = 1e-3


# --- the tree ------------------------------------------------------------------------------------


def check_leaf_priors(leaf_priors: Callable[[Tensor], Tensor]) -> None:
    """Check the gates' products: left_TG, each gate's probability of left -> prior_TE.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "leaf_priors"
    by_hand = torch.tensor([[0.5, 0.1, 0.8], [0.9, 0.5, 0.5]], dtype=torch.float64)
    cases = [("left = [[0.5, 0.1, 0.8], [0.9, 0.5, 0.5]]", by_hand)]
    cases += [(f"{2**d} experts, random gates", randn(d, 5, 2**d - 1).double().sigmoid())
              for d in (1, 3, 2)]  # fmt: skip
    for given, left_TG in cases:
        yours = call(exercise, leaf_priors, left_TG, on=given)
        E = left_TG.shape[1] + 1
        if isinstance(yours, Tensor) and yours.shape != (len(left_TG), E):
            raise CheckFailed(
                f"{exercise}: {E - 1} gates have {E} leaves below them, so the shape is "
                f"{(len(left_TG), E)}, not {tuple(yours.shape)}\n  given    {given}"
            )
        right = _leaf_priors(left_TG)
        mistakes: Mistakes = [
            ("left and right are swapped; the first child is the left one",
             _leaf_priors(1 - left_TG)),
            ("the root is missing: a leaf needs every gate on its way, also the first",
             _leaf_priors(torch.cat([torch.ones_like(left_TG[:, :1]), left_TG[:, 1:]], 1))
             + _leaf_priors(torch.cat([torch.zeros_like(left_TG[:, :1]), left_TG[:, 1:]], 1))),
            ("the probabilities along the way are averaged; all of them must happen: multiply",
             _leaf_priors(left_TG, mean=True)),
            ("the gates are read depth first; they are counted level by level, "
             "so gate n has the children 2n+1 and 2n+2", _leaf_priors(_depth_first(left_TG))),
        ]  # fmt: skip
        otherwise = "these are not the products of the gates on the way to each leaf"
        if isinstance(yours, Tensor) and not torch.allclose(
            yours.sum(-1).double(), torch.ones(len(yours), dtype=torch.float64)
        ):
            otherwise = "a token's priors do not add up to 1, but it must end at some leaf"
        expect(exercise, given, yours, right, mistakes, otherwise)
    passed(exercise, "a token's shares at the leaves add up to 1, in trees of 2, 4 and 8 experts.")


def _leaf_priors(left_TG: Tensor, *, mean: bool = False) -> Tensor:
    """Multiply (or average) the gates on the way to each leaf."""
    G = left_TG.shape[1]
    leaves = []
    for leaf in range(G, 2 * G + 1):
        node, way = leaf, []
        while node:
            parent = (node - 1) // 2
            way.append(left_TG[:, parent] if node % 2 else 1 - left_TG[:, parent])
            node = parent
        way_TL = torch.stack(way, dim=-1)
        leaves.append(way_TL.mean(dim=-1) if mean else way_TL.prod(dim=-1))
    return torch.stack(leaves, dim=-1)


def _depth_first(left_TG: Tensor) -> Tensor:
    """Put gates that were numbered depth first in the order level by level."""
    G = left_TG.shape[1]

    def place(node: int) -> list[int]:
        return [node, *place(2 * node + 1), *place(2 * node + 2)] if node < G else []

    return left_TG[:, torch.tensor(place(0)).argsort()]


def check_posteriors(posteriors: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the E step: (prior_TE, density_TE) -> posterior_TN of all nodes, root first.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "posteriors"
    prior_TE = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    density_TE = torch.tensor([[1.0, 2.0, 0.0, 2.0], [1.0, 1.0, 2.0, 0.0]])
    given = (
        "prior [[0.4, 0.1, 0.3, 0.2], [1/4, 1/4, 1/4, 1/4]], density [[1, 2, 0, 2], [1, 1, 2, 0]]"
    )
    cases = [(given, prior_TE, density_TE)]
    for E in (2, 8):
        cases.append((f"{E} experts, random numbers", randn(E, 5, E).softmax(-1),
                      randn(E + 1, 5, E).exp()))  # fmt: skip
    for given, prior_TE, density_TE in cases:
        yours = call(exercise, posteriors, prior_TE, density_TE, on=given)
        joint_TE = prior_TE * density_TE
        leaf_TE = joint_TE / joint_TE.sum(-1, keepdim=True)
        right = sum_upwards(leaf_TE)
        E = leaf_TE.shape[1]
        parent_N = (torch.arange(2 * E - 1) - 1).div(2, rounding_mode="floor").clamp(min=0)
        mistakes: Mistakes = [
            ("prior times density is not yet a probability: divide by the token's sum",
             sum_upwards(joint_TE)),
            ("these sum over the tokens; Bayes' rule divides by the sum over the experts",
             sum_upwards(joint_TE / joint_TE.sum(0, keepdim=True))),
            ("that is the prior: what the experts said of y is not used", sum_upwards(prior_TE)),
            ("the prior is not used: who was expected to answer counts as well",
             sum_upwards(density_TE / density_TE.sum(-1, keepdim=True))),
            ("each is divided by its parent's, so these are P(child | parent); asked is P(node)",
             right / right[:, parent_N]),
            ("the leaves alone; a manager's posterior is the sum of its two children's", leaf_TE),
            ("the leaves come first; nodes are counted from the root", right.flip(-1)),
            ("a leaf's probability goes through a softmax: it was a probability already",
             sum_upwards(joint_TE.softmax(-1))),
        ]  # fmt: skip
        expect(exercise, given, yours, right, mistakes, "these are not the nodes' posteriors")
    passed(exercise, "Bayes' rule at the leaves, and sums upwards: the root's is 1.")


# --- the M step ----------------------------------------------------------------------------------


def check_fit_expert(fit_expert: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check weighted least squares: (x_TD, y_TO, weight_T) -> the expert's weights, (D, O).

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "fit_expert"
    # Two points on y = 2x count fully, one on y = -x hardly.
    hand = (torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([[2.0], [4.0], [-1.0]]),
            torch.tensor([1.0, 1.0, 0.25]))  # fmt: skip
    cases = [("x = [1, 2, 1], y = [2, 4, -1], weights [1, 1, 0.25]", *hand)]
    cases.append(("40 random tokens, 3 inputs, 2 outputs", affine(randn(1, 40, 2)),
                  randn(2, 40, 2).double(), randn(3, 40).double().sigmoid()))  # fmt: skip
    for given, x_TD, y_TO, weight_T in cases:
        yours = call(exercise, fit_expert, x_TD, y_TO, weight_T, on=given)
        w = weight_T[:, None]

        def solve(a_TD: Tensor, b_TD: Tensor, c_TO: Tensor) -> Tensor:
            return torch.linalg.solve(a_TD.mT @ b_TD, a_TD.mT @ c_TO)

        right = solve(w * x_TD, x_TD, y_TO)
        hard = (w > 0.5).to(w)
        mistakes: Mistakes = [
            ("all tokens count the same: the weights are not used", solve(x_TD, x_TD, y_TO)),
            ("the weights count twice: multiplying both x and y by them squares them; "
             "use their square roots, or weigh one side", solve(w * x_TD, w * x_TD, w * y_TO)),
            ("the weights are there as square roots: in x'Wx and x'Wy they stand as they are",
             solve(w.sqrt() * x_TD, x_TD, y_TO)),
            ("only y is weighted: x'Wy and x'Wx both have the weights",
             torch.linalg.solve(x_TD.mT @ x_TD, x_TD.mT @ (w * y_TO))),
            ("only x is weighted: x'Wy and x'Wx both have the weights",
             torch.linalg.solve(x_TD.mT @ (w * x_TD), x_TD.mT @ y_TO)),
            ("tokens below one half are left out: that is a hard choice, EM shares",
             solve(hard * x_TD, x_TD, y_TO)),
        ]  # fmt: skip
        otherwise = "this does not minimise the weighted squared error"
        if isinstance(yours, Tensor) and yours.shape == right.mT.shape != right.shape:
            otherwise = "transposed: the expert's weights are (D, O), so that x @ weights predicts"
        expect(exercise, given, yours, right, mistakes, otherwise)
    passed(exercise, "the weighted squared error is at its least.")


def check_fit_gate(fit_gate: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check a step of IRLS: (v_D, x_TD, own_T, left_T) -> v_D.

    own_T is the posterior of the gate's node, left_T that of its left child; 0.001 is added to
    the diagonal of the curvature.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "fit_gate"
    ones, v = torch.ones(2, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    own_T, left_T = torch.tensor([[1.0, 0.5], [0.8, 0.1]], dtype=torch.float64)
    cases = [("v = [0], x = [[1], [1]], own = [1, 0.5], left = [0.8, 0.1]", v, ones, own_T,
              left_T)]  # fmt: skip
    own_T = randn(5, 30).double().sigmoid()
    cases.append(("30 random tokens, 3 inputs", randn(4, 3).double(), affine(randn(6, 30, 2)),
                  own_T, own_T * randn(7, 30).double().sigmoid()))  # fmt: skip
    for given, v_D, x_TD, own_T, left_T in cases:
        yours = call(exercise, fit_gate, v_D, x_TD, own_T, left_T, on=given)
        p_T = (x_TD @ v_D).sigmoid()
        one_T = torch.ones_like(p_T)

        def step(slope_T: Tensor, curve_T: Tensor) -> Tensor:
            curve_DD = (curve_T[:, None] * x_TD).mT @ x_TD + DAMPING * torch.eye(x_TD.shape[1])  # noqa: B023
            return torch.linalg.solve(curve_DD, x_TD.mT @ slope_T)  # noqa: B023

        slope_T, curve_T = left_T - own_T * p_T, own_T * p_T * (1 - p_T)
        mistakes: Mistakes = [
            ("the step goes downhill: the gradient is x'(left - own p), and we climb",
             v_D - step(slope_T, curve_T)),
            ("that is the gradient alone; IRLS divides by the curvature x'Wx",
             v_D + x_TD.mT @ slope_T),
            ("that is the step; add it to v", step(slope_T, curve_T)),
            ("the gate expects p of every token; only own of it came here: left - own p",
             v_D + step(left_T - p_T, curve_T)),
            ("the gate expects p of every token; only own of it came here: left - own p",
             v_D + step(left_T - p_T, p_T * (1 - p_T))),
            ("own is missing from the curvature: W = own p (1 - p)",
             v_D + step(slope_T, p_T * (1 - p_T))),
            ("the target is right, left / own, but each token has to count own times",
             v_D + step(left_T / own_T - p_T, p_T * (1 - p_T))),
            ("the curvature is that of a linear regression; a logistic one has W = own p (1 - p)",
             v_D + step(slope_T, own_T)),
            ("the curvature is that of a linear regression; a logistic one has W = own p (1 - p)",
             v_D + step(slope_T, one_T)),
        ]  # fmt: skip
        expect(exercise, given, yours, v_D + step(slope_T, curve_T), mistakes,
               "this is not one Newton step of the weighted logistic regression")  # fmt: skip
    passed(exercise, "one Newton step uphill, each token counted by how much of it came here.")


def check_m_step(m_step: Callable[[HME, Tensor, Tensor, Tensor], HME]) -> None:
    """Check a whole M step: (tree, x_TD, y_TO, posterior_TN) -> tree, for one tree.

    Runs EM with it from 10 random trees. Where the log-likelihood falls, the expected
    log-likelihood that an M step climbs is taken apart, and the part that fell is named.

    Raises: CheckFailed with the part and the numbers; NotImplementedError if not yet written.
    """
    exercise = "m_step"
    rises = 0
    for seed in range(10):
        x_TD = affine(randn(seed, 120, 2))
        bend_T1 = torch.where(x_TD[:, :1] > 0.3, 1.5 * x_TD[:, 1:2], -x_TD[:, :1] - 1)
        y_TO = bend_T1 + 0.5 * randn(seed + 50, 120, 1)
        tree = random_tree(2, 3, 1, seeds=[seed], scale=0.7)
        start = before = tree.log_likelihood(x_TD, y_TO).item()
        for step in range(1, 13):
            posterior_TN = tree.posterior(x_TD, y_TO)[0]
            given = f"tree {seed}, step {step}"
            new = call(exercise, m_step, tree, x_TD, y_TO, posterior_TN, on=given)
            _check_tree(exercise, new, tree)
            after = new.log_likelihood(x_TD, y_TO).item()
            if not after >= before - 1e-6 * abs(before):
                raise CheckFailed(
                    f"{exercise}: the log-likelihood fell; {_blame(tree, new, x_TD, y_TO)}\n"
                    f"  given    {given}\n  before   {before:.3f}\n  after    {after:.3f}"
                )
            if step == 1:
                _check_moved(exercise, tree, new)
                if blame := _fallen(tree, new, x_TD, y_TO):
                    raise CheckFailed(
                        f"{exercise}: the log-likelihood rose from {before:.3f} to {after:.3f}, "
                        f"but {blame}\n  given    {given}"
                    )
            rises += after > before
            tree, before = new, after
        if before < start:
            raise CheckFailed(f"{exercise}: after 12 steps, {before:.3f} is below {start:.3f}")
    passed(exercise, f"10 random trees, 120 steps, {rises} rises, and the likelihood never fell.")


def _check_tree(exercise: str, new: HME, old: HME) -> None:
    if not isinstance(new, HME):
        raise CheckFailed(f"{exercise}: return an HME, not {show(new)}")
    for name, value in vars(old).items():
        mine = vars(new)[name]
        if not isinstance(mine, Tensor) or mine.shape != value.shape:
            shape = tuple(mine.shape) if isinstance(mine, Tensor) else show(mine)
            raise CheckFailed(f"{exercise}: {name} should be {tuple(value.shape)}, not {shape}")
        if not mine.isfinite().all():
            raise CheckFailed(f"{exercise}: {name} has a value that is not a number")
    if (new.var_QE <= 0).any():
        raise CheckFailed(f"{exercise}: a variance is {new.var_QE.min():.4g}; it must be above 0")


def _check_moved(exercise: str, old: HME, new: HME) -> None:
    for name, what in (
        ("gate_QGD", "the gates are left as they were: they have an M step of their own"),
        ("expert_QEDO", "the experts are left as they were: each has its weighted least squares"),
        ("var_QE", "the variances are left as they were: each is its expert's mean squared error"),
    ):
        if torch.equal(vars(old)[name], vars(new)[name]):
            raise CheckFailed(f"{exercise}: {what}")


def _parts(tree: HME, x_TD: Tensor, y_TO: Tensor, posterior_TN: Tensor) -> tuple[Tensor, Tensor]:
    """Split the expected complete log-likelihood: what each gate and each expert adds."""
    E = tree.var_QE.shape[1]
    score_TG = x_TD @ tree.gate_QGD[0].mT
    step_TG2 = F.logsigmoid(torch.stack([score_TG, -score_TG], dim=-1))
    gate_G = (posterior_TN[:, 1:].unflatten(-1, (E - 1, 2)) * step_TG2).sum(dim=(0, 2))
    prior_TE = tree.log_prior(x_TD)[0, :, -E:]
    density_TE = tree.log_joint(x_TD, y_TO)[0] - prior_TE
    return gate_G, (posterior_TN[:, -E:] * density_TE).sum(dim=0)


def _fallen(old: HME, new: HME, x_TD: Tensor, y_TO: Tensor) -> str | None:
    """Name the part that the M step made worse, or None."""
    posterior_TN = old.posterior(x_TD, y_TO)[0]
    swapped = HME(-new.gate_QGD, new.expert_QEDO, new.var_QE)
    mean_error_E = _mean_errors(new, x_TD, y_TO, posterior_TN)
    mixed = HME(old.gate_QGD, new.expert_QEDO, mean_error_E[None].clamp(min=1e-6))
    before_G, before_E = _parts(old, x_TD, y_TO, posterior_TN)
    after_G, after_E = _parts(new, x_TD, y_TO, posterior_TN)
    other_G = _parts(swapped, x_TD, y_TO, posterior_TN)[0]
    best_E = _parts(mixed, x_TD, y_TO, posterior_TN)[1]
    if (after_G < before_G - 1e-6 * before_G.abs() - 1e-9).any():
        gate = int((after_G - before_G).argmin())
        if (other_G >= before_G - 1e-9).all():
            return "the gates turn the wrong way: left and right are swapped"
        return (
            f"gate {gate} fits its posteriors worse than before: is its target the posterior of "
            "its own left child, weighted by its own?"
        )
    if (after_E < before_E - 1e-6 * before_E.abs() - 1e-9).any():
        expert = int((after_E - before_E).argmin())
        if best_E[expert] >= before_E[expert] - 1e-9:
            return (
                f"expert {expert}'s variance is not its mean squared error, weighted by its "
                f"posteriors: {new.var_QE[0, expert]:.4g} instead of {mean_error_E[expert]:.4g}"
            )
        return (
            f"expert {expert} fits its tokens worse than before: is it weighted by the posterior "
            "of its own leaf?"
        )
    return None


def _blame(old: HME, new: HME, x_TD: Tensor, y_TO: Tensor) -> str:
    return _fallen(old, new, x_TD, y_TO) or "and yet each part rose: is the posterior used whole?"


def _mean_errors(tree: HME, x_TD: Tensor, y_TO: Tensor, posterior_TN: Tensor) -> Tensor:
    weight_ET = posterior_TN[:, -tree.var_QE.shape[1] :].mT
    error_ET = (y_TO - x_TD @ tree.expert_QEDO[0]).square().mean(dim=-1)
    return (weight_ET * error_ET).sum(-1) / weight_ET.sum(-1).clamp(min=1e-9)


# --- 2013 ----------------------------------------------------------------------------------------


def check_constrain(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Check Eigen's constraint: (gate_TE, total_E, margin) -> gate_TE.

    Raises: CheckFailed with the misconception; NotImplementedError if not yet written.
    """
    exercise = "constrain"
    gate_TE = torch.tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]])
    cases = [("gates [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], totals [9, 5, 1], margin 3", gate_TE,
              torch.tensor([9.0, 5.0, 1.0]), 3.0)]  # fmt: skip
    cases.append((f"{cases[0][0][:-1]}6", gate_TE, torch.tensor([9.0, 5.0, 1.0]), 6.0))
    for seed in (1, 2, 3):
        cases.append((f"random gates of 6 experts, margin {seed}", randn(seed, 5, 6).softmax(-1),
                      10 * randn(seed + 9, 6).abs(), float(seed)))  # fmt: skip
    for given, gate_TE, total_E, margin in cases:
        yours = call(exercise, answer, gate_TE, total_E, margin, on=given)
        ahead_E = total_E - total_E.mean()

        def closed(shut_E: Tensor) -> Tensor:
            open_TE = gate_TE * ~shut_E  # noqa: B023
            return open_TE / open_TE.sum(-1, keepdim=True)

        shut_E = ahead_E > margin
        mistakes: Mistakes = [
            ("the gates of a token no longer add up to 1: renormalise after closing",
             gate_TE * ~shut_E),
            ("the experts that lag behind are closed; those ahead should be",
             closed(ahead_E < -margin)),
            ("the experts that lag behind are closed; those ahead should be", closed(~shut_E)),
            ("every expert above the mean is closed; the margin lets it be ahead a little",
             closed(ahead_E > 0)),
            ("totals are compared with the margin itself; compare them with their mean plus it",
             closed(total_E > margin)),
            ("only the leader is closed; everyone too far ahead should be",
             closed(shut_E & (total_E == total_E.max()))),
            ("the weight is shared out over the tokens; it belongs to the token it was taken from",
             (gate_TE * ~shut_E) / (gate_TE * ~shut_E).sum(0, keepdim=True)),
            ("the constraint is not applied: these are the gates as they came", gate_TE),
        ]  # fmt: skip
        right, otherwise = constrain(gate_TE, total_E, margin), "the wrong experts are closed"
        if isinstance(yours, Tensor) and yours.isnan().any():
            otherwise = "a sum over the tokens is 0 for a closed expert; sum over the experts"
        expect(exercise, given, yours, right, mistakes, otherwise)
    passed(exercise, "whoever is too far ahead waits, and each token's gates still add up to 1.")
