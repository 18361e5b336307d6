"""Answers to check_global_bug: each wrong one says in its docstring what its verdict must say.

The batch below plays the variable that a notebook has lying about.
"""

import torch
from torch import nn

batch_TD = torch.linspace(-1, 1, 20).view(5, 4)
leftover_TD = torch.zeros(1, 4)


class _Router(nn.Module):
    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.gate, self.top_k = nn.Linear(hidden_size, num_experts, bias=False), top_k

    def route(self, x_TD):
        gate_TK, expert_TK = self.gate(x_TD).softmax(-1).topk(self.top_k)
        return gate_TK / gate_TK.sum(-1, keepdim=True), expert_TK


def _chosen(logits_TE, k):
    top_TK, expert_TK = logits_TE.topk(k)
    return top_TK.softmax(-1), expert_TK


class StillGlobal(_Router):
    """forward reads the global `batch_TD`"""

    def forward(self, bacth_TD):
        return self.route(batch_TD)


class ArgumentForShapeOnly(_Router):
    """forward reads the global `batch_TD`"""

    def forward(self, x_TD):
        return self.route(batch_TD[: len(x_TD)])


class Default(_Router):
    """a default argument is made once"""

    def forward(self, x_TD, batch_TD=batch_TD):
        return self.route(batch_TD)


class KeywordDefault(_Router):
    """a default argument is made once"""

    def forward(self, x_TD, *, batch_TD=batch_TD):
        return self.route(batch_TD)


class WritesTheGlobal(_Router):
    """forward writes the global `leftover_TD`"""

    def forward(self, x_TD):
        global leftover_TD
        leftover_TD = x_TD
        return self.route(leftover_TD)


class KeepsTheFirst(_Router):
    """something is kept between calls"""

    def forward(self, x_TD):
        if not hasattr(self, "kept"):
            self.kept = x_TD
        return self.route(self.kept)


class BoundWhenBuilt(_Router):
    """it does not depend on the argument"""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__(hidden_size, num_experts, top_k)
        self.batch_TD = batch_TD

    def forward(self, x_TD):
        return self.route(self.batch_TD)


class AnotherNobodyKnows(_Router):
    """NameError: name 'hiddens_TD' is not defined"""

    def forward(self, x_TD):
        return self.route(hiddens_TD)  # noqa: F821


class Undivided(_Router):
    """not softmax → top-k → renormalise"""

    def forward(self, x_TD):
        return tuple(self.gate(x_TD).softmax(-1).topk(self.top_k))


class Renamed(nn.Module):
    """keep the scores' nn.Linear as self.gate"""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.scores = nn.Linear(hidden_size, num_experts, bias=False)


class WeightsAsData(_Router):
    """no gradient reaches self.gate.weight, so it can never learn"""

    def forward(self, x_TD):
        return _chosen(nn.functional.linear(x_TD, self.gate.weight.data), self.top_k)


class WeightsDetached(_Router):
    """no gradient reaches self.gate.weight, so it can never learn"""

    def forward(self, x_TD):
        return _chosen(x_TD @ self.gate.weight.detach().T, self.top_k)


class Frozen(_Router):
    """self.gate.weight has requires_grad=False"""

    def forward(self, x_TD):
        self.gate.requires_grad_(False)
        return self.route(x_TD)


class Decays(_Router):
    """forward changes self.gate.weight"""

    def forward(self, x_TD):
        self.gate.weight.data *= 0.9
        return self.route(x_TD)


class ForgetsReturn(_Router):
    """return two tensors: gate_TK, expert_TK; not None"""

    def forward(self, x_TD):
        self.route(x_TD)


class Zero(_Router):
    """return two tensors: gate_TK, expert_TK; not one number"""

    def forward(self, x_TD):
        return 0


class Scalar(_Router):
    """return two tensors: gate_TK, expert_TK; not one number"""

    def forward(self, x_TD):
        return self.route(x_TD)[0].sum()


class Nothing(_Router):
    """return two tensors: gate_TK, expert_TK; not []"""

    def forward(self, x_TD):
        return []


class GatesAlone(_Router):
    """return two tensors: gate_TK, expert_TK; not a tensor of shape (5, 2)"""

    def forward(self, x_TD):
        return self.route(x_TD)[0]


class LogitsToo(_Router):
    """return two tensors: gate_TK, expert_TK; not 3 things"""

    def forward(self, x_TD):
        return [*self.route(x_TD), self.gate(x_TD)]


class HalfForgotten(_Router):
    """expert_TK: return a tensor of shape (5, 2), not None"""

    def forward(self, x_TD):
        return self.route(x_TD)[0], None


class Turned(_Router):
    """keep the scores' nn.Linear as self.gate"""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__(num_experts, hidden_size, top_k)

    def forward(self, x_TD):
        return _chosen(x_TD @ self.gate.weight, self.top_k)


class WithABias(_Router):
    """keep the scores' nn.Linear as self.gate"""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__(hidden_size, num_experts, top_k)
        self.gate = nn.Linear(hidden_size, num_experts)


class RightRouter(_Router):
    def forward(self, x_TD):
        return self.route(x_TD)


class RightWithOwnWords(_Router):
    def forward(self, batch_TD):
        """Read nothing but the argument, even though it hides a global of the same name."""
        top_TK, expert_TK = torch.topk(batch_TD @ self.gate.weight.T, self.top_k, dim=-1)
        return torch.softmax(top_TK, dim=-1), expert_TK


class RightUnwritten:
    """Be callable, and no nn.Module."""

    def __init__(self, hidden_size, num_experts, top_k):
        self.gate, self.k = nn.Linear(hidden_size, num_experts, bias=False), top_k

    def __call__(self, x_TD):
        return _chosen(self.gate(x_TD), self.k)


class RightAllSorted(_Router):
    def forward(self, x_TD):
        logits_TE, expert_TE = self.gate(x_TD).sort(1, descending=True)
        return {
            "gates": logits_TE[:, : self.top_k].softmax(1),
            "experts": expert_TE[:, : self.top_k],
        }
