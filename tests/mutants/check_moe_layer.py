"""Answers to check_moe_layer: each wrong one says in its docstring what its verdict must say."""

import torch
import torch.nn.functional as F


def _expert(x, w1, w3, w2):
    return (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T


def gates_forgotten(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """the gates are forgotten"""
    return right_loop(x_TD, torch.ones_like(gate_TK) + 0 * gate_TK, expert_TK, w1, w3, w2)


def averaged(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """a plain mean over the experts"""
    even_TK = torch.full_like(gate_TK, 1 / gate_TK.shape[1])
    return right_loop(x_TD, even_TK, expert_TK, w1, w3, w2)


def overwritten(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """overwrites another"""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token, choice = (expert_TK == e).nonzero(as_tuple=True)
        out = _expert(x_TD[token], w1[e], w3[e], w2[e])
        out_TD[token] = gate_TK[token, choice, None] * out
    return out_TD


def overwritten_by_choice(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """overwrites another"""
    out_TD = torch.zeros_like(x_TD)
    for k in range(expert_TK.shape[1]):
        for e in expert_TK[:, k].unique().tolist():
            here = expert_TK[:, k] == e
            out = _expert(x_TD[here], w1[e], w3[e], w2[e])
            out_TD[here] = gate_TK[here, k, None] * out
    return out_TD


def first_choice_only(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """only the first choice is used"""
    return right_loop(x_TD, gate_TK[:, :1], expert_TK[:, :1], w1, w3, w2)


def first_gate_for_all(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """weighed by the gate of the first choice"""
    return right_loop(x_TD, gate_TK[:, :1].expand_as(gate_TK), expert_TK, w1, w3, w2)


def gate_on_the_input(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """an expert is not linear"""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token, choice = (expert_TK == e).nonzero(as_tuple=True)
        x = gate_TK[token, choice, None] * x_TD[token]
        out_TD = out_TD.index_add(0, token, _expert(x, w1[e], w3[e], w2[e]))
    return out_TD


def halves_swapped(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """w1 and w3 are swapped"""
    return right_loop(x_TD, gate_TK, expert_TK, w3, w1, w2)


def without_silu(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """the silu is missing"""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token, choice = (expert_TK == e).nonzero(as_tuple=True)
        out = (x_TD[token] @ w1[e].T * (x_TD[token] @ w3[e].T)) @ w2[e].T
        out_TD = out_TD.index_add(0, token, gate_TK[token, choice, None] * out)
    return out_TD


def gelu(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """that is a GELU, not silu"""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token, choice = (expert_TK == e).nonzero(as_tuple=True)
        out = (F.gelu(x_TD[token] @ w1[e].T) * (x_TD[token] @ w3[e].T)) @ w2[e].T
        out_TD = out_TD.index_add(0, token, gate_TK[token, choice, None] * out)
    return out_TD


def with_residual(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """the residual connection belongs to the block"""
    return x_TD + right_loop(x_TD, gate_TK, expert_TK, w1, w3, w2)


def position_for_expert(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """position is taken for its expert's number"""
    out_TD = torch.zeros_like(x_TD)
    for k in range(expert_TK.shape[1]):
        out_TD = out_TD + gate_TK[:, k, None] * _expert(x_TD, w1[k], w3[k], w2[k])
    return out_TD


def crashes_on_an_idle_expert(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """expert 3 gets no token"""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        pairs = [(t, k) for t, k in (expert_TK == e).nonzero().tolist()]
        rows = torch.stack([x_TD[t] for t, _ in pairs])
        for (t, k), out_D in zip(pairs, _expert(rows, w1[e], w3[e], w2[e]), strict=True):
            out_TD[t] = out_TD[t] + gate_TK[t, k] * out_D
    return out_TD


def no_gradient_for_the_gates(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """no gradient reaches gate_TK"""
    return right_loop(x_TD, gate_TK.detach(), expert_TK, w1, w3, w2)


def no_gradient_at_all(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """no gradient reaches x_TD"""
    with torch.no_grad():
        return right_loop(x_TD, gate_TK, expert_TK, w1, w3, w2)


def half_the_gradient(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """not the right gradient for gate_TK"""
    half_TK = 0.5 * gate_TK + 0.5 * gate_TK.detach()
    return right_loop(x_TD, half_TK, expert_TK, w1, w3, w2)


def returns_pairs(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """return a tensor of shape (3, 1)"""
    return gate_TK[..., None] * torch.stack(
        [
            torch.stack([_expert(x_D, w1[e], w3[e], w2[e]) for e in experts])
            for x_D, experts in zip(x_TD, expert_TK, strict=True)
        ]
    )


def right_loop(x_TD, gate_TK, expert_TK, w1, w3, w2):
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token, choice = (expert_TK == e).nonzero(as_tuple=True)
        out = _expert(x_TD[token], w1[e], w3[e], w2[e])
        out_TD = out_TD.index_add(0, token, gate_TK[token, choice, None] * out)
    return out_TD


def right_token_by_token(x_TD, gate_TK, expert_TK, w1, w3, w2):
    rows = []
    for x_D, gate_K, expert_K in zip(x_TD, gate_TK, expert_TK, strict=True):
        rows.append(
            sum(
                gate * _expert(x_D, w1[e], w3[e], w2[e])
                for gate, e in zip(gate_K, expert_K, strict=True)
            )
        )
    return torch.stack(rows)


def right_in_place(x_TD, gate_TK, expert_TK, w1, w3, w2):
    out_TD = x_TD.new_zeros(x_TD.shape)
    for e, weights in enumerate(zip(w1, w3, w2, strict=True)):
        for k in range(expert_TK.shape[1]):
            here = expert_TK[:, k] == e
            out_TD[here] += gate_TK[here, k].unsqueeze(1) * _expert(x_TD[here], *weights)
    return out_TD


def lone_tokens_passed_over(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """an expert with exactly one token is passed over"""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token, choice = (expert_TK == e).nonzero(as_tuple=True)
        if len(token) < 2:
            continue
        y = _expert(x_TD[token], w1[e], w3[e], w2[e]) * gate_TK[token, choice][:, None]
        out_TD = out_TD.index_add(0, token, y)
    return out_TD


def squeezed_to_nothing(x_TD, gate_TK, expert_TK, w1, w3, w2):
    """an expert with exactly one token is passed over"""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(w1)):
        token = (expert_TK == e).any(-1).nonzero().squeeze()
        if token.dim() == 0 or len(token) == 0:
            continue
        gate = (gate_TK * (expert_TK == e)).sum(-1)[token][:, None]
        out_TD = out_TD.index_add(0, token, gate * _expert(x_TD[token], w1[e], w3[e], w2[e]))
    return out_TD
