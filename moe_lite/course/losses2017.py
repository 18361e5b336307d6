"""The two losses of 2017: importance and load, each a squared coefficient of variation."""

from __future__ import annotations

from torch import Tensor

from ..losses import AllReduce, here, of_layers, sums, token_weights
from ..routing import Routing


def cv_squared(amount_E: Tensor) -> Tensor:
    """Return the squared coefficient of variation, (deviation / mean)^2: 0 if all are equal.

    >>> import torch
    >>> cv_squared(torch.tensor([1.0, 3.0])).item()  # mean 2, deviation 1
    0.25

    Returns: scalar, dimensionless; at most E - 1, where one has everything.
    Source:  the form of eqs. 7 and 11 in Shazeer et al. 2017 (arXiv:1701.06538).
    """
    return amount_E.var(correction=0) / amount_E.mean().square().clamp(min=1e-10)


@of_layers
def importance_loss(
    routing: Routing, mask_T: Tensor | None = None, *, all_reduce: AllReduce = here
) -> Tensor:
    """Return the importance loss: CV squared of each expert's sum of gates over the batch.

    >>> import torch
    >>> gate_TK = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
    >>> r = Routing.from_choices(
    ...     torch.zeros(2, 2), torch.full((2, 2), 0.5), torch.tensor([[0, 1], [0, 1]]), gate_TK)
    >>> importance_loss(r).item()  # importance 1.5 and 0.5
    0.25

    Returns: scalar, dimensionless, without the weight w_importance.
    Raises:  ValueError if the mask's length differs from the number of tokens.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eqs. 6-7.
    """
    weight_N = token_weights(routing, mask_T).index_select(0, routing.token_N)
    gates_E = weight_N.new_zeros(routing.num_experts)
    gates_E = gates_E.index_add(0, routing.expert_N, routing.gate_N * weight_N)
    return cv_squared(all_reduce(gates_E))


@of_layers
def load_loss(
    routing: Routing, mask_T: Tensor | None = None, *, all_reduce: AllReduce = here
) -> Tensor:
    """Return the load loss: CV squared of how many tokens each expert is to expect.

    The number that came is a count and has no gradient, so a router with noise gives a smooth
    one (``smooth_load_TE``). Where there is none, as in evaluation, it is the count: what the
    smooth one becomes when the noise goes to zero.

    >>> import torch
    >>> r = Routing.from_choices(
    ...     torch.zeros(4, 2), torch.full((4, 2), 0.5),
    ...     torch.tensor([[0], [0], [0], [1]]), torch.ones(4, 1))
    >>> load_loss(r).item()  # loads 3 and 1
    0.25

    Returns: scalar, dimensionless, without the weight w_load.
    Raises:  ValueError if the mask's length differs from the number of tokens.
    Source:  Shazeer et al. 2017 (arXiv:1701.06538), eqs. 10-11.
    """
    if routing.smooth_load_TE is None:
        return cv_squared(sums(routing, mask_T, all_reduce)[0])
    return cv_squared(all_reduce(token_weights(routing, mask_T) @ routing.smooth_load_TE))
