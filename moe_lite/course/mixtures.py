"""Mixtures as they began: experts that compete for each case, and a gate that learns who won.

Letters beside those of ``routing.py``: Q runs side by side (one per seed; nothing passes from
one to another), O outputs. Leading dimensions before T are carried along everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# --- 1991: competing experts ---------------------------------------------------------------------


def squared_errors(out_TEO: Tensor, target_TO: Tensor) -> Tensor:
    """Measure how far each expert is off in each case: ||d - o_i||^2, (T, E)."""
    return (target_TO.unsqueeze(-2) - out_TEO).square().sum(dim=-1)


def responsibilities(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Tensor:
    """Share out each case among the experts, now that the answer is known: (T, E), rows sum to 1.

    The posterior of the gate's prior p = softmax(logits), when expert i claims the answer to
    be normal around o_i with variance 1: h_i = p_i exp(-||d - o_i||^2 / 2) / sum_j of the same.
    As p_i and exp multiply, their logarithms add, and one softmax does it all.

    >>> even, off_by = torch.zeros(1, 2), torch.tensor([[[0.0], [2.0]]])
    >>> responsibilities(even, off_by, torch.zeros(1, 1))  # 1 : exp(-2)
    tensor([[0.8808, 0.1192]])

    Source: Jacobs, Jordan, Nowlan, Hinton 1991, Neural Computation 3:79-87, the bracket in eq. 1.5.
    """
    return (logits_TE - squared_errors(out_TEO, target_TO) / 2).softmax(dim=-1)


def blend(logits_TE: Tensor, out_TEO: Tensor) -> Tensor:
    """Mix the experts' answers in the gate's proportions: sum_i p_i o_i, (T, O)."""
    return (logits_TE.softmax(dim=-1).unsqueeze(-1) * out_TEO).sum(dim=-2)


def blend_error(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Tensor:
    """Compute the error of the blend, ||d - sum_i p_i o_i||^2: experts cooperate. (T,)

    Source: Jacobs et al. 1991, eq. 1.1.
    """
    return (target_TO - blend(logits_TE, out_TEO)).square().sum(dim=-1)


def expected_error(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Tensor:
    """Compute the blend of the errors, sum_i p_i ||d - o_i||^2: experts compete. (T,)

    Source: Jacobs et al. 1991, eq. 1.2.
    """
    return (logits_TE.softmax(dim=-1) * squared_errors(out_TEO, target_TO)).sum(dim=-1)


def mixture_error(logits_TE: Tensor, out_TEO: Tensor, target_TO: Tensor) -> Tensor:
    """Compute -log sum_i p_i exp(-||d - o_i||^2 / 2): experts compete, and the best learns most.

    Up to a constant the negative log-likelihood of the mixture, in nats, taken in logarithms
    so that a far-off expert does not turn into log 0. (T,)

    Source: Jacobs et al. 1991, eq. 1.3.
    """
    log_prior_TE = logits_TE.log_softmax(dim=-1)
    return -(log_prior_TE - squared_errors(out_TEO, target_TO) / 2).logsumexp(dim=-1)


Error = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits_TE, out_TEO, target_TO) -> one error per case, (T,)."""


def draw(seeds: Sequence[int], *shapes: tuple[int, ...]) -> list[Tensor]:
    """Draw float64 normal numbers of these shapes for each seed by itself: (Q, *shape) each.

    A seed draws the same whatever other seeds stand beside it.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = [
        [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
        for g in generators
    ]
    return [torch.stack(same) for same in zip(*drawn, strict=True)]


def with_ones(x_TD: Tensor) -> Tensor:
    """Append the constant 1 that a bias is multiplied with: (T, D) -> (T, D+1)."""
    return torch.cat([x_TD, x_TD.new_ones(*x_TD.shape[:-1], 1)], dim=-1)


class Mixture(nn.Module):
    """Hold E one-layer experts and a linear softmax gate, Q times side by side.

    With one output an expert is a sigmoid of one linear score, so a single *decision line*;
    with more it is a softmax over linear scores. Every expert runs on every case: K = E.

    Args:    error: what is to be descended; scale, gate_scale: standard deviation of the first
             weights, the gate's near zero so that no expert begins as the favourite.
    Shapes:  experts (Q, E, O, D+1), gate (Q, E, D+1), the bias last; forward takes x_TD and
             gives logits_QTE and out_QTEO. All float64.
    Raises:  ValueError if a size is below 1 or there is no seed.
    Source:  Jacobs et al. 1991, section 1.
    """

    def __init__(
        self,
        num_inputs: int,
        num_experts: int,
        num_outputs: int = 1,
        *,
        seeds: Sequence[int] = (0,),
        error: Error = mixture_error,
        scale: float = 0.5,
        gate_scale: float = 0.01,
    ):
        super().__init__()
        D, E, O = num_inputs, num_experts, num_outputs  # noqa: E741
        _check_sizes(num_inputs=D, num_experts=E, num_outputs=O, seeds=len(seeds))
        experts, gate = draw(seeds, (E, O, D + 1), (E, D + 1))
        self.experts, self.gate = nn.Parameter(experts * scale), nn.Parameter(gate * gate_scale)
        self.error = error

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        x_TD = with_ones(x_TD)
        scores_QTEO = torch.einsum("td,qeod->qteo", x_TD, self.experts)
        out_QTEO = scores_QTEO.sigmoid() if scores_QTEO.shape[-1] == 1 else scores_QTEO.softmax(-1)
        return torch.einsum("td,qed->qte", x_TD, self.gate), out_QTEO

    def learn(self, x_TD: Tensor, target_TO: Tensor) -> tuple[Tensor, Tensor]:
        """Return each run's error, the mean over cases (Q,), and its blended answers (Q, T, O)."""
        logits_QTE, out_QTEO = self(x_TD)
        error_QT = self.error(logits_QTE, out_QTEO, target_TO.to(out_QTEO))
        return error_QT.mean(dim=-1), blend(logits_QTE, out_QTEO)


class Backprop(nn.Module):
    """Hold a network with one hidden layer of H sigmoids and O sigmoid outputs, Q times.

    What the experts are measured against: the same lines, but every line answers every case.

    Shapes: hidden (Q, H, D+1), output (Q, O, H+1), the bias last; forward takes x_TD and gives
            (Q, T, O). All float64.
    Raises: ValueError if a size is below 1 or there is no seed.
    """

    def __init__(
        self,
        num_inputs: int,
        num_hidden: int,
        num_outputs: int = 1,
        *,
        seeds: Sequence[int] = (0,),
        scale: float = 0.5,
    ):
        super().__init__()
        D, H, O = num_inputs, num_hidden, num_outputs  # noqa: E741
        _check_sizes(num_inputs=D, num_hidden=H, num_outputs=O, seeds=len(seeds))
        hidden, output = draw(seeds, (H, D + 1), (O, H + 1))
        self.hidden, self.output = nn.Parameter(hidden * scale), nn.Parameter(output * scale)

    def forward(self, x_TD: Tensor) -> Tensor:
        hidden_QTH = torch.einsum("td,qhd->qth", with_ones(x_TD), self.hidden).sigmoid()
        return torch.einsum("qth,qoh->qto", with_ones(hidden_QTH), self.output).sigmoid()

    def learn(self, x_TD: Tensor, target_TO: Tensor) -> tuple[Tensor, Tensor]:
        """Return each run's error, half the squared one (Q,), and its answers (Q, T, O)."""
        out_QTO = self(x_TD)
        return (target_TO - out_QTO).square().sum(-1).mean(-1) / 2, out_QTO


@dataclass(frozen=True)
class Descent:
    """Hold how Q runs went down.

    epochs_Q: how many epochs each took, NaN if it did not get there. squared_NQ: the average
    squared error before each epoch. kept: epoch -> the parameters before it, by name.
    """

    epochs_Q: Tensor
    squared_NQ: Tensor
    kept: dict[int, dict[str, Tensor]]


def descend(
    model: Mixture | Backprop,
    x_TD: Tensor,
    target_TO: Tensor,
    *,
    step: float | Tensor,
    until: float = 0.08,
    max_epochs: int = 5000,
    keep: Collection[int] = (),
) -> Descent:
    """Descend the gradient of all cases at once by a fixed step, each run until it is good enough.

    A run stops when the average squared error of its answers, over cases and outputs, falls
    below ``until``; its parameters then stay as they are. No momentum, nothing random.

    Args:    step: one size, or one for each run (Q,); keep: epochs whose parameters to copy.
    Raises:  ValueError if the answers are no longer numbers: the step is too large.
    Source:  Jacobs et al. 1991, section 2.
    """
    parameters = dict(model.named_parameters())
    first = next(iter(parameters.values()))
    Q = first.shape[0]
    step_Q = torch.as_tensor(step, dtype=first.dtype, device=first.device).expand(Q)
    epochs_Q = torch.full_like(step_Q, torch.nan).clone()
    history, kept = [], {}
    for epoch in range(max_epochs + 1):
        if epoch in keep:
            kept[epoch] = {name: value.detach().clone() for name, value in parameters.items()}
        error_Q, out_QTO = model.learn(x_TD, target_TO)
        squared_Q = (target_TO - out_QTO.detach()).square().mean(dim=(-1, -2))
        if not squared_Q.isfinite().all():
            raise ValueError(f"the answers are not finite after {epoch} epochs: step is {step}")
        history.append(squared_Q)
        epochs_Q[epochs_Q.isnan() & (squared_Q < until)] = epoch
        running_Q = epochs_Q.isnan()
        if epoch == max_epochs or not running_Q.any():
            break
        gradients = torch.autograd.grad(error_Q.sum(), list(parameters.values()))
        with torch.no_grad():
            for value, gradient in zip(parameters.values(), gradients, strict=True):
                size_Q = (step_Q * running_Q).view(Q, *[1] * (value.dim() - 1))
                value.sub_(size_Q * gradient)
    return Descent(epochs_Q, torch.stack(history), kept)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
