"""What the parts of a layer say to each other: a routing, a plan, a trace.

Shapes are written behind the name: ``x_TD`` is (tokens, model width).

====== ===================================== ====== ====================================
letter meaning                               letter meaning
====== ===================================== ====== ====================================
B S T  batch, sequence, tokens = B*S         N      proposed (token, expert) pairs
D F V  model, expert-hidden, vocabulary      R      the same pairs in expert order
E K C  experts, experts per token, capacity  L H A  layers, heads, head size
====== ===================================== ====== ====================================

The flat list of (token, expert) pairs is the key choice: a router in which tokens choose
gives N = T*K pairs, one in which experts choose gives N = E*C, and all that follows
(plan, dispatch, losses, traces, widgets) is the same code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class NotFinite(ValueError):
    """Say that a number became infinite or NaN: a run has diverged, nothing was asked wrongly."""


def flat_mask(mask_T: Tensor, num_tokens: int) -> Tensor:
    """Return a mask of any shape as bool (T,); ValueError if it covers another number of tokens."""
    if mask_T.numel() != num_tokens:
        raise ValueError(f"the mask covers {mask_T.numel()} tokens, but {num_tokens} were routed")
    return mask_T.reshape(-1).bool()


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise ValueError for token ids of another type or, on the CPU, outside the vocabulary."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token ids must be int64 or int32, not {ids.dtype}")
    look = ids.is_cpu and not torch.compiler.is_compiling()  # a GPU would have to wait
    if look and not torch.equal(ids, ids.clamp(0, vocab_size - 1)):
        bad = ids[(ids < 0) | (ids >= vocab_size)].tolist()[0]
        raise ValueError(f"token id {bad} is not in the vocabulary of {vocab_size}")


@dataclass(frozen=True, eq=False)
class Routing:
    """Say which expert each token goes to and with what weight: a router's whole answer.

    Shapes:
        logits_TE: router scores before any softmax, float32 (float64 for float64 input).
        probs_TE:  their softmax over all E experts, or their sigmoids divided by their sum;
                   same type, and each token's sum to 1. In a trace NaN where no gate says them.
        token_N:   int64, the token of each pair.
        expert_N:  int64, its expert.
        gate_N:    its weight in the combine; carries the router's gradient.
        keep_N:    bool, False for a pair dropped at capacity; None means dropless.
        per_token: K if pairs n*K .. n*K+K-1 are token n's choices, best first; None if
                   tokens may have differing numbers of pairs (experts choose).
        smooth_load_TE: summed over the tokens, the load to be expected of each expert, with a
                   gradient. None: the choice is not random, so counting is all there is.
        mask_T:    bool, False for padding, whose pairs are then dropped, and which no loss and
                   no measure counts; None means that every token is real.
        noise_TE:  what chance added to the scores; logits_TE has it in it. None: nothing.
        bias_E:    what is added to the scores for the choice alone, as it stood; None: nothing.
    """

    logits_TE: Tensor
    probs_TE: Tensor
    token_N: Tensor
    expert_N: Tensor
    gate_N: Tensor
    keep_N: Tensor | None = None
    per_token: int | None = None
    smooth_load_TE: Tensor | None = None
    mask_T: Tensor | None = None
    noise_TE: Tensor | None = None
    bias_E: Tensor | None = None

    @classmethod
    def from_choices(
        cls, logits_TE: Tensor, probs_TE: Tensor, expert_TK: Tensor, gate_TK: Tensor,
        **more: Tensor | None,
    ) -> Routing:  # fmt: skip
        """Flatten each token's K choices into pairs, token by token; ``more`` are other fields.

        >>> r = Routing.from_choices(
        ...     torch.zeros(2, 3), torch.full((2, 3), 1 / 3),
        ...     torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.6, 0.4], [0.7, 0.3]]))
        >>> r.token_N.tolist(), r.expert_N.tolist()
        ([0, 0, 1, 1], [0, 2, 1, 0])
        """
        # pairs n*K .. n*K+K-1 are token n's
        T, K = expert_TK.shape
        token_N = torch.arange(T, device=expert_TK.device).repeat_interleave(K, output_size=T * K)
        expert_N, gate_N = expert_TK.reshape(-1), gate_TK.reshape(-1)
        return cls(logits_TE, probs_TE, token_N, expert_N, gate_N, per_token=K, **more)  # type: ignore[arg-type]

    @property
    def num_tokens(self) -> int:
        return self.logits_TE.shape[0]

    @property
    def num_experts(self) -> int:
        return self.logits_TE.shape[1]

    def load_E(self) -> Tensor:
        """Count the kept pairs of each expert: float32 (E,), in pairs."""
        ones_N = torch.ones_like(self.expert_N, dtype=torch.float32)
        if self.keep_N is not None:
            ones_N = self.keep_N.float()
        return ones_N.new_zeros(self.num_experts).index_add(0, self.expert_N, ones_N)

    def gates_TE(self) -> Tensor:
        """Spread the gates of the kept pairs into a (T, E) matrix, zero where unused."""
        gate_N = self.gate_N if self.keep_N is None else self.gate_N * self.keep_N
        flat = gate_N.new_zeros(self.num_tokens * self.num_experts)
        # token t and expert e meet at t*E + e
        index_N = self.token_N * self.num_experts + self.expert_N
        return flat.index_add(0, index_N, gate_N).view(self.num_tokens, self.num_experts)

    def masked(self, mask_T: Tensor | None) -> Routing:
        """Drop the pairs of padding, and remember which tokens are padding; None changes nothing.

        Args:   mask_T: True (or 1) for real tokens, any shape of T elements.
        Raises: ValueError if it covers another number of tokens.
        """
        if mask_T is None:
            return self
        # whatever the router chose for padding is dropped
        mask_T = flat_mask(mask_T, self.num_tokens)
        return replace(self, mask_T=mask_T).kept(mask_T.index_select(0, self.token_N))

    def kept(self, keep_N: Tensor) -> Routing:
        """Drop the pairs for which this is False, besides those that were dropped before."""
        return replace(self, keep_N=keep_N if self.keep_N is None else self.keep_N & keep_N)

    def detach(self) -> Routing:
        """Return a copy without gradients, on the CPU: what a trace keeps."""
        changed = {k: v.detach().cpu() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Routing(**{**vars(self), **changed})

    def check(self, where: str) -> None:
        """Look at the values (on a GPU, that waits for them), and name the layer if they are wrong.

        Raises: ValueError for an expert that is not there; NotFinite for logits that are not.
        """
        x_N = self.expert_N if len(self.expert_N) < 64 else torch.stack(self.expert_N.aminmax())
        if bad := [e for e in x_N.tolist() if not 0 <= e < self.num_experts]:
            raise ValueError(f"{where}: the gate chose expert {bad[0]} of {self.num_experts}")
        if not math.isfinite(float(self.logits_TE.detach().sum())):  # a sum may just overflow
            bad_T = ~self.logits_TE.isfinite().all(dim=-1)
            if bad_T.any():
                raise NotFinite(
                    f"{where}: the router's logits are not finite (NaN or infinity), first at "
                    f"token {int(bad_T.nonzero()[0])} of {self.num_tokens}; its input or its "
                    "gate.weight is broken."
                )


@dataclass(frozen=True, eq=False)
class DispatchPlan:
    """Lay the pairs out in expert order, so that each expert's rows lie side by side.

    No shape depends on the routing's *values*, so nothing waits for the device. Dropped pairs
    stay in the list, behind the last offset, with a gate of zero; so R = N.

    Shapes:
        token_R:    int64, the token of each row.
        gate_R:     its weight; carries the router's gradient.
        offsets_E1: int32 (E+1,), expert e owns rows offsets[e] .. offsets[e+1]-1; starts at 0.
        num_tokens: T.
        order_R:    int64, the pair that each row came from (row r is pair order_R[r]).
        row_N:      int64, its inverse: the row that each pair went to.
        per_token:  K as in :class:`Routing`: the combine is then a gather, not a scatter.
        dropless:   True if no pair can lie behind the last offset.
    """

    token_R: Tensor
    gate_R: Tensor
    offsets_E1: Tensor
    num_tokens: int
    order_R: Tensor
    row_N: Tensor
    per_token: int | None
    dropless: bool


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What a forward pass gives: logits_BSV and each MoE layer's :class:`Routing`, in order.

    The routings' tokens run over the flattened batch: token b*S + s.
    """

    logits_BSV: Tensor
    routings: tuple[Routing, ...]
