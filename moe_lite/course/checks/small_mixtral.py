"""The checks of chapter 10: how do you build a small Mixtral?"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import MixtralConfig
from ...losses import load_balancing_loss
from ...routing import Routing
from .verdict import (
    FINITE_FILL,
    Check,
    Mistakes,
    call,
    far_below,
    fit,
    nameless,
    randn,
    refuse,
    same,
    show,
    sort_rows,
)

Gates = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(logits_TE, k) -> (gate_TK, expert_TK), best first."""

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""(lm_loss, logits_TE, coef) -> the loss to be minimised."""


def check_top_k(top_k: Gates) -> None:
    """Check softmax → top-k → renormalise: (logits_TE, k) -> (gate_TK, expert_TK), best first."""
    _check_gates("top_k", top_k).passed(
        "the right experts, gates that add up to 1, and a gradient for the router."
    )


def check_softmax_order(topk_softmax: Gates) -> None:
    """Check top-k → softmax: (logits_TE, k) -> (gate_TK, expert_TK), best first."""
    _check_gates("topk_softmax", topk_softmax).passed(
        "the gates of softmax → top-k → renormalise, to the last digits."
    )


def check_orders_agree(orders_agree: Callable[[bool, int, int], bool]) -> None:
    """Check the claim (renormalize, k, num_experts) -> bool: do both orders give equal gates?

    Each case is put to both computations; a false claim gets the case that refutes it.
    """
    check = Check("orders_agree", orders_agree)
    cases = [(n, k, E) for E in (4, 2, 3, 8) for k in range(E, 0, -1) for n in (True, False)]
    for renormalize, k, E in cases:
        logits_TE = randn(E, 1, E)
        first_TK = logits_TE.softmax(dim=-1).topk(k).values
        if renormalize:
            first_TK = first_TK / first_TK.sum(dim=-1, keepdim=True)
        second_TK = logits_TE.topk(k).values.softmax(dim=-1)
        if renormalize:
            why = "dividing by the sum cancels the softmax's denominator: they are always equal"
        elif k == E:
            why = "with k = E nothing is left out, so the gates add up to 1 by themselves"
        elif k == 1:
            why = "with k = 1, top-k → softmax gives a constant 1, but softmax → top-k the best p"
        else:
            why = "without renormalising, softmax → top-k gives gates that add up to less than 1"
        given = (
            f"renormalize={renormalize}, k={k}, num_experts={E}: softmax → top-k gives "
            f"{show(first_TK)}, top-k → softmax {show(second_TK)}"
        )
        check.on(given, renormalize, k, E, right=same(first_TK, second_TK), otherwise=why)
    check.passed(f"true in all {len(cases)} cases, each tried on numbers.")


def _gates(logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the right answer to both gate exercises."""
    gate_TK, expert_TK = logits_TE.softmax(dim=-1).topk(k, dim=-1)
    return gate_TK / gate_TK.sum(dim=-1, keepdim=True), expert_TK


def _gate_mistakes(logits_TE: Tensor, k: int) -> Mistakes:
    def normed(gate_TK: Tensor) -> Tensor:
        return gate_TK / gate_TK.sum(dim=-1, keepdim=True)

    gate_TK, expert_TK = _gates(logits_TE, k)
    probs_TE, top_TK = logits_TE.softmax(dim=-1), logits_TE.gather(-1, expert_TK)
    column_TK, column_expert_TK = logits_TE.softmax(dim=0).topk(k, dim=-1)
    least_TK, least_expert_TK = probs_TE.topk(k, dim=-1, largest=False)
    chosen_TE = torch.zeros_like(logits_TE, dtype=torch.bool).scatter(-1, expert_TK, True)
    zeroed_TE = logits_TE.where(chosen_TE, 0.0).softmax(dim=-1)
    by_expert = probs_TE.topk(min(k, len(probs_TE)), dim=0)
    order_TK = expert_TK.argsort(-1)
    raw_TK = top_TK.exp() / top_TK.exp().sum(-1, keepdim=True)
    over_tokens = "the softmax runs over the tokens (dim 0), not over a token's experts (dim -1)"
    least = "these are the least likely experts; top-k keeps the largest"
    each = "each expert chose k tokens (top-k over dim 0); here each token chooses k experts"
    p_TK = probs_TE.gather(-1, expert_TK)
    return [
        ("the gates of a token do not add up to 1; divide them by their sum", (p_TK, expert_TK)),
        (over_tokens, (column_TK, column_expert_TK)),
        (over_tokens, (normed(column_TK), column_expert_TK)),
        (over_tokens, (top_TK.softmax(dim=0), expert_TK)),
        ("divided by the sum over the tokens (dim 0); each token's own k gates add up to 1",
         (p_TK / p_TK.sum(0), expert_TK)),
        ("divided by the sum of all gates, not of each token's", (p_TK / p_TK.sum(), expert_TK)),
        (least, (least_TK, least_expert_TK)),
        (least, (normed(least_TK), least_expert_TK)),
        ("the right experts, but worst first; turn round", (gate_TK.flip(-1), expert_TK.flip(-1))),
        ("the right experts, but in order of their numbers; put the best first",
         (gate_TK.gather(-1, order_TK), expert_TK.gather(-1, order_TK))),
        ("the other logits were set to 0, and exp(0) is 1: they still take a share; use -inf",
         (zeroed_TE.gather(-1, expert_TK), expert_TK)),
        ("these are the logits themselves; a gate is their softmax", (top_TK, expert_TK)),
        ("logits divided by their sum; a gate is their softmax", (normed(top_TK), expert_TK)),
        ("sigmoids; in a softmax the experts compete", (normed(top_TK.sigmoid()), expert_TK)),
        ("two softmaxes, one after the other: one is enough", (gate_TK.softmax(-1), expert_TK)),
        ("two softmaxes, one after the other: one is enough", (p_TK.softmax(-1), expert_TK)),
        (each, (by_expert.values, by_expert.indices)),
        (each, (by_expert.values / by_expert.values.sum(0), by_expert.indices)),
        ("the sum you divide by is detached; it depends on the logits as well",
         (p_TK / p_TK.sum(dim=-1, keepdim=True).detach(), expert_TK)),
        ("exp overflows, and inf / inf is not a number; use a softmax", (raw_TK, expert_TK)),
    ]  # fmt: skip


def _check_gates(exercise: str, answer: Gates) -> Check:
    check = Check(exercise, answer, _gates, _gate_mistakes, parts=("gate_TK", "expert_TK"),
                  otherwise=tuple(f"the {p} are not the right ones" for p in ("gates", "experts")),
                  nan="exp overflows, and inf / inf is not a number (use a softmax); or a mask was "
                  "multiplied by inf, and 0 * inf is not one either (use where)")  # fmt: skip
    # The softmax of log p is p, so these gates can be found by hand.
    probs_TE = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.3, 0.15, 0.05], [0.05, 0.6, 0.1, 0.25]]
    check.on(f"the logarithms of {probs_TE}, k = 2", torch.tensor(probs_TE).log(), 2)
    check.on("logits [[1000, 999, 0]], k = 2", torch.tensor([[1000.0, 999.0, 0.0]]), 2)
    for T, E in ((6, 5), (4, 4), (2, 7)):
        check.on(f"tokens: {T}, experts: {E}, k = 2", randn(T, T, E), 2)
    for k in (1, 3, 5):
        otherwise = f"right for k = 2, wrong for k = {k}: is the 2 written into the code?"
        check.on(f"six tokens, five experts, k = {k}", randn(k, 6, 5), k, otherwise=otherwise)
    check.on("logits around -200, k = 2", far_below(6, 6, 5), 2, otherwise=FINITE_FILL)
    check.slopes("six tokens, five experts, k = 2", randn(0, 6, 5), 2, of={"the logits": 0})
    check.best_first(0, "the right experts; put the best first")
    return check


def check_moe_layer(moe_layer: Callable[..., Tensor]) -> None:
    """Check the loop over experts: (x_TD, gate_TK, expert_TK, w1, w3, w2) -> out_TD."""
    check = Check("moe_layer", moe_layer, _moe, _moe_mistakes,
                  "not the sum, over a token's experts, of gate × SwiGLU(x)")  # fmt: skip
    # silu(20 x) is 20 x up to rounding, so with these weights expert e maps x to 10^e x².
    x_TD = torch.tensor([[1.0], [2.0], [3.0]])
    gate_TK = torch.tensor([[0.75, 0.25], [0.6, 0.4], [0.5, 0.5]])
    expert_TK = torch.tensor([[0, 1], [1, 2], [2, 0]])
    for E, idle in ((3, ""), (4, "; expert 3 gets no token")):
        w1, w3 = torch.full((E, 1, 1), 20.0), torch.full((E, 1, 1), 0.05)
        w2 = torch.tensor([1.0, 10.0, 100.0, 1000.0])[:E].view(E, 1, 1)
        given = (
            f"x {show(x_TD)}, gates {show(gate_TK)}, experts {show(expert_TK)}, "
            f"where expert e maps x to 10^e x²{idle}"
        )
        check.on(given, x_TD, gate_TK, expert_TK, w1, w3, w2)
    sizes = (7, 5, 3, 4, 6), (5, 6, 2, 3, 3), (6, 4, 1, 5, 2), (1, 8, 2, 4, 4), (4, 3, 3, 2, 5)
    for seed, (T, E, K, D, width) in enumerate(sizes):
        logits_TE = randn(seed, T, E)
        if K < E:
            logits_TE[:, 2] = -torch.inf
        if T > K and seed < 2:  # expert 0 is the choice of one token alone
            logits_TE[:, 0] = -torch.inf
            logits_TE[T - 2, 0] = 9.0
        given = f"random numbers: T={T}, E={E}, K={K}, D={D}, F={width}"
        inputs = (randn(seed + 1, T, D), *_gates(logits_TE, K), randn(seed + 2, E, width, D),
                  randn(seed + 3, E, width, D), randn(seed + 4, E, D, width))  # fmt: skip
        check.on(given + ("; expert 2 gets no token" if K < E else "; K = E"), *inputs)
        if not seed:
            of = {"x_TD": 0, "gate_TK": 1, "w1": 3, "w3": 4, "w2": 5}
            check.slopes(given, *inputs, of=of)
    check.passed("every choice of every token weighed and added, idle experts and all.")


def _every_pair(
    x_TD: Tensor, expert_TK: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, act: Any = F.silu
) -> Tensor:
    """Run every expert on every token, then pick: (T, K, D). Wasteful, and hard to get wrong."""
    up_TEF = act(torch.einsum("td,efd->tef", x_TD, w1)) * torch.einsum("td,efd->tef", x_TD, w3)
    return torch.einsum("tef,edf->ted", up_TEF, w2)[torch.arange(len(x_TD))[:, None], expert_TK]


def _moe(x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, *weights: Tensor) -> Tensor:
    return (gate_TK[..., None] * _every_pair(x_TD, expert_TK, *weights)).sum(dim=1)


def _moe_mistakes(
    x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, w1: Tensor, w3: Tensor, w2: Tensor
) -> Mistakes:
    (T, K), E, gate_TK1 = gate_TK.shape, len(w1), gate_TK[..., None]
    out_TKD = _every_pair(x_TD, expert_TK, w1, w3, w2)
    weighed_TKD, right_TD = gate_TK1 * out_TKD, _moe(x_TD, gate_TK, expert_TK, w1, w3, w2)

    def with_act(act: Any) -> Tensor:
        return (gate_TK1 * _every_pair(x_TD, expert_TK, w1, w3, w2, act=act)).sum(1)

    scaled_TD = torch.stack([
        _every_pair(gate_TK[:, k : k + 1] * x_TD, expert_TK[:, k : k + 1], w1, w3, w2)[:, 0]
        for k in range(K)]).sum(0)  # fmt: skip
    position_TK = torch.arange(K).expand(T, K)
    alone_TK = expert_TK.flatten().bincount(minlength=E)[expert_TK] == 1
    overwritten = "one of a token's experts overwrites another; add to the output (+=)"
    kept_TK = expert_TK < E - 1
    return [
        ("the gates are forgotten; weigh each expert's output by its gate", out_TKD.sum(1)),
        ("a plain mean over the experts; the gates are the weights", out_TKD.mean(1)),
        ("the weighed outputs are averaged; they are added", weighed_TKD.mean(1)),
        ("only the first choice is used; each token has K of them", weighed_TKD[:, 0]),
        (overwritten, weighed_TKD[torch.arange(T), expert_TK.argmax(dim=1)]),
        (overwritten, weighed_TKD[torch.arange(T), expert_TK.argmin(dim=1)]),
        (overwritten, weighed_TKD[:, -1]),
        ("an expert with exactly one token is passed over: a lone index lost its dimension, or was "
         "taken for none", (weighed_TKD * ~alone_TK[..., None]).sum(1)),
        ("the last expert, number E - 1, is left out", (weighed_TKD * kept_TK[..., None]).sum(1)),
        ("all are weighed by the gate of the first choice", gate_TK1[:, 0] * out_TKD.sum(1)),
        ("the gates stand in reverse order", (gate_TK1.flip(1) * out_TKD).sum(1)),
        ("the gate is squared: weigh once", (gate_TK1.square() * out_TKD).sum(1)),
        ("w1 and w3 are swapped; silu is for w1's", _moe(x_TD, gate_TK, expert_TK, w3, w1, w2)),
        ("the silu is missing; SwiGLU is w2 (silu(w1 x) * w3 x)", with_act(lambda up: up)),
        ("that is a sigmoid, not silu", with_act(torch.sigmoid)),
        ("that is a ReLU; SwiGLU has silu", with_act(F.relu)),
        ("that is a GELU, not silu", with_act(F.gelu)),
        ("x is added; the residual connection belongs to the block around", x_TD + right_TD),
        ("the gate weighs the input; an expert is not linear: weigh its output", scaled_TD),
        ("a choice's position is taken for its expert's number; that stands in expert_TK",
         _moe(x_TD, gate_TK, position_TK, w1, w3, w2))]  # fmt: skip


def check_global_bug(Router: Callable[[int, int, int], nn.Module]) -> None:
    """Check the repaired router: Router(hidden_size, num_experts, top_k)(x_TD) -> gates, experts.

    It is built anew and run on batches, of two sizes, that exist nowhere else.
    """
    exercise = "router"
    with torch.random.fork_rng(devices=[]):
        router = call(exercise, Router, 4, 3, 2, on="hidden_size=4, num_experts=3, top_k=2")
        other = call(exercise, Router, 4, 5, 3, on="hidden_size=4, num_experts=5, top_k=3")
    for made, shape in ((router, (3, 4)), (other, (5, 4))):
        gate = getattr(made, "gate", None)
        if not isinstance(gate, nn.Linear) or gate.bias is not None or gate.weight.shape != shape:
            refuse(exercise, "keep the scores' nn.Linear as self.gate; change only forward")
    forward: Any = inspect.unwrap(getattr(type(router), "forward", call))
    known = getattr(forward, "__globals__", {})
    before = {k: v for k, v in known.items() if isinstance(v, Tensor)}

    def right(x_TD: Tensor, run: Any, k: int) -> tuple[Tensor, Tensor]:
        return _gates(x_TD @ run.gate.weight.T, k)

    def in_order(value: Any, *args: Any) -> Any:
        """Put a token's experts, whose order was not asked, by falling gates."""
        pair = fit(value, right(*args))
        if not pairs(pair) or (pair[1].is_floating_point() and (pair[1] % 1).any()):
            return value
        return sort_rows(pair, 0)

    def pairs(value: Any) -> bool:
        return (isinstance(value, tuple) and len(value) == 2
                and all(isinstance(part, Tensor) for part in value))  # fmt: skip

    check = Check(exercise, lambda x_TD, run, k: run(x_TD), right,
                  parts=("gate_TK", "expert_TK"), see=in_order)  # fmt: skip
    first_ED = router.gate.weight.detach().clone()
    for x_TD in (randn(1, 5, 4), randn(2, 5, 4), randn(3, 3, 4)):
        check.on(f"a fresh batch of shape {tuple(x_TD.shape)}: {show(x_TD)}", x_TD, router, 2)
    check.on("a router with five experts and top_k = 3", randn(4, 6, 4), other, 3,
             otherwise="right for top_k = 2, wrong for 3: is 2 written into the code?")  # fmt: skip
    weight = router.gate.weight
    if not weight.requires_grad:
        refuse(exercise, "self.gate.weight has requires_grad=False: this router never learns")
    check.slopes("a fresh batch of shape (5, 4)", randn(5, 5, 4), router, 2,
                 of={"x_TD": 0, "self.gate.weight": weight})  # fmt: skip
    for name, value in known.items():
        if isinstance(value, Tensor) and before.get(name) is not value:
            refuse(exercise, f"forward writes the global `{name}`, whose readers get this batch: "
                   "let it read its argument, and leave its result alone")  # fmt: skip
    written, defaults = inspect.isfunction(forward), []
    if written:
        defaults = [*(forward.__defaults__ or ()), *(forward.__kwdefaults__ or {}).values()]
    steps = dis.get_instructions(forward) if written else ()
    read = [step.argval for step in steps if step.opname == "LOAD_GLOBAL" and step.argval in before]
    first, second = check.cases[:2]
    why = "not softmax → top-k → renormalise of gate(x)"
    if any(isinstance(value, Tensor) for value in defaults):
        why = "a default argument is made once, when `def` runs: each call sees that old batch"
    elif read:
        why = f"forward reads the global `{read[0]}` instead of its argument"
    elif not first.wrong() and same(second.yours, first.yours):
        why = "right on the first batch, then the same again: something is kept between calls"
    elif same(first.yours, second.yours):
        why = "two different batches get the same answer: it does not depend on the argument"
    for case in check.cases:
        if pairs(case.yours[0] if case.leaves else case.yours):
            case.otherwise = case.otherwise or why
    check.judge()
    if not torch.equal(router.gate.weight, first_ED):
        refuse(exercise, "forward changes self.gate.weight; that is for an optimiser to do")
    check.passed("the answer follows the argument, whatever else the notebook holds.")


def check_parameter_count(parameter_count: Callable[[MixtralConfig], tuple[int, int]]) -> None:
    """Check (config) -> (total, active): all parameters, and those that one token touches.

    Active leaves out only the experts that the token does not use; the embedding counts whole.
    """
    check = Check("parameter_count", parameter_count, _count, _count_mistakes,
                  ("that is not the number of all", "that is not what one token uses"),
                  parts=("total", "active"))  # fmt: skip
    small = MixtralConfig(
        vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    other = replace(small, head_dim=6, num_local_experts=5)
    for given, config in (
        ("V=10, D=4, F=6, 2 layers, 2 heads (1 for keys and values), 3 experts of which 2", small),
        ("the same with 5 experts, and head_dim=6 where D / heads is 2", other),
        ("the same with tie_word_embeddings=True", replace(other, tie_word_embeddings=True)),
        ("the same with one expert for each token", replace(other, num_experts_per_tok=1)),
        ("the same with 5 experts of which all 5", replace(other, num_experts_per_tok=5)),
        ("Mixtral 8x7B", MixtralConfig()),
    ):
        check.on(given, config)
    total, active = _count(MixtralConfig())
    check.passed(f"Mixtral 8x7B has {total:,} parameters, and a token uses {active:,}.")


def _sizes(c: MixtralConfig) -> tuple[int, int, int, int, int, int]:
    """Count embedding, head, attention, routers, norms, and one expert of every layer."""
    assert c.head_dim is not None
    D, L, embedding = c.hidden_size, c.num_hidden_layers, c.vocab_size * c.hidden_size
    attention = L * 2 * D * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
    head = 0 if c.tie_word_embeddings else embedding
    norms, expert = (2 * L + 1) * D, L * 3 * D * c.intermediate_size
    return embedding, head, attention, L * c.num_local_experts * D, norms, expert


def _count(c: MixtralConfig) -> tuple[int, int]:
    *shared, expert = _sizes(c)
    return sum(shared) + c.num_local_experts * expert, sum(shared) + c.num_experts_per_tok * expert


def _count_mistakes(c: MixtralConfig) -> Mistakes:
    embedding, head, attention, router, norms, expert = _sizes(c)
    total, active = _count(c)
    D, H, E, K = (
        c.hidden_size, c.num_attention_heads, c.num_local_experts, c.num_experts_per_tok
    )  # fmt: skip
    dense = embedding + head + attention + norms + expert
    eight = "that multiplies more than the experts: attention and embeddings are shared"
    totals = [
        (eight, E * dense),
        (eight, E * dense + router),
        (eight, total + (E - 1) * attention),
        ("the routers are missing; each layer has a gate of E × D", total - router),
        ("the norms are missing; two of D in each layer, and one of D at the end", total - norms),
        ("the last norm is missing; it comes after the layers and has D weights", total - D),
        ("keys and values are counted for every query head; they have num_key_value_heads",
         _count(replace(c, num_key_value_heads=H))[0]),
        ("each expert has three matrices, w1, w2 and w3; here are two", total - E * expert // 3),
        ("each layer has num_local_experts experts; here is one", total - (E - 1) * expert),
        ("the heads' size is taken to be D / heads; config.head_dim may differ",
         _count(replace(c, head_dim=D // H))[0]),
        ("tied embeddings are one matrix; here they are counted twice",
         total + (embedding if c.tie_word_embeddings else 0)),
        ("the output head is missing; untied, it is a V × D matrix of its own", total - head),
        ("each layer has two norms, and one of them is missing", total - c.num_hidden_layers * D),
    ]  # fmt: skip
    actives = [
        ("every expert is counted as active; a token uses num_experts_per_tok", total),
        ("one expert is counted as active; a token uses several", active - (K - 1) * expert),
        ("that is K/E of everything; attention and others are always active", total * K // E),
        ("the routers are missing from the active ones; each scores every token", active - router),
        ("only K rows of each router are counted; it scores all E", active - router // E * (E - K)),
        ("the input embedding is missing from the active ones", active - embedding),
        ("the experts alone are counted as active; the rest is, too", K * expert)]  # fmt: skip
    return [*((text, (value, ...)) for text, value in totals),
            *((text, (..., value)) for text, value in actives)]  # fmt: skip


def check_balance_is_used(balance_is_used: Callable[[Loss], bool]) -> None:
    """Check the learner's own test: (loss) -> does its balance term teach the router?

    A loss is (lm_loss, logits_TE, coef) -> scalar. The test is tried on sound ones, and on others
    in which the term is computed and teaches nothing.
    """

    def exactly(slope_TE: Tensor) -> Tensor:
        """Round slopes to a grid, so that a token's add up to 0 exactly, in any order."""
        largest = slope_TE.abs().max().clamp(min=torch.finfo(slope_TE.dtype).tiny)
        unit = (largest.log2().floor() - 14).exp2()
        grid_TE = (slope_TE / unit).round()
        largest_T1 = grid_TE.abs().argmax(-1, keepdim=True)
        return unit * grid_TE.scatter_add(-1, largest_T1, -grid_TE.sum(-1, keepdim=True))

    def balance(logits_TE: Tensor) -> Tensor:
        logits_TE = logits_TE * 1  # a hook on the learner's own would stay there
        if logits_TE.requires_grad:
            logits_TE.register_hook(exactly)
        probs_TE = logits_TE.softmax(dim=-1)
        gate_TK, expert_TK = probs_TE.topk(1)
        return load_balancing_loss(Routing.from_choices(logits_TE, probs_TE, expert_TK, gate_TK))

    def of_counts(logits_TE: Tensor) -> Tensor:
        share_E = F.one_hot(logits_TE.argmax(dim=-1), logits_TE.shape[1]).float().mean(dim=0)
        return logits_TE.shape[1] * share_E.square().sum()

    cases: list[tuple[str, Loss, bool, str]] = [
        ("lm_loss + coef * balance", lambda lm, x, c: lm + c * balance(x), True,
         "a sound loss is called broken; where the load is even the balance has no slope: "
         "take uneven logits, and a coef above 0; no high threshold, and each slope by itself, for "
         "a token's add up to 0"),
        ("lm_loss + coef * (balance - 1)", lambda lm, x, c: lm + c * (balance(x) - 1), True,
         "a sound loss is called broken; a constant moves the value, never the gradient"),
        ("lm_loss + coef / 1000 * balance", lambda lm, x, c: lm + c * balance(x) / 1000, True,
         "a sound loss is called broken; a small coefficient still teaches"),
        ("lm_loss alone", lambda lm, x, c: lm, False,
         "the balance is never added, and that goes unnoticed"),
        ("lm_loss + coef * balance.item()", lambda lm, x, c: lm + c * balance(x).item(), False,
         "the balance is added as a plain number: the value moves, but there is no gradient"),
        ("lm_loss + coef * balance.detach()", lambda lm, x, c: lm + c * balance(x).detach(), False,
         "the balance is detached: the value moves, but there is no gradient"),
        ("lm_loss + coef * E * sum(f²)", lambda lm, x, c: lm + c * of_counts(x), False,
         "f is made of counts, which have no gradient; only P can teach the router"),
        ("lm_loss + 0 * coef * balance", lambda lm, x, c: lm + 0 * c * balance(x), False,
         "a gradient that is there but 0 teaches nothing; look at its size")]  # fmt: skip
    check = Check("balance_is_used", balance_is_used)
    for name, loss, right, why in cases:
        check.on(f"the loss {name}", nameless(loss), right=right, otherwise=why)
    check.passed("sound losses accepted, and those that teach the router nothing caught.")


def check_experts_worth(experts_worth: Callable[[Tensor], Tensor]) -> None:
    """Check how many experts a token's sum is worth: gate_TK -> worth_T."""

    def right(gate_TK: Tensor) -> Tensor:
        return gate_TK.sum(1).square() / gate_TK.square().sum(1)

    def mistakes(gate_TK: Tensor) -> Mistakes:
        sum_T, square_T = gate_TK.sum(1), gate_TK.square().sum(1)
        share_TK = gate_TK / sum_T[:, None]
        entropy_T = -torch.special.xlogy(share_TK, share_TK).sum(1)
        return [
            *(("gates need not add up to 1: square their sum above the line", above / square_T)
              for above in (torch.ones_like(sum_T), sum_T)),
            *(("so many experts are chosen; one with a gate of 0.01 hardly counts", n_T.float())
              for n_T in ((gate_TK > 0).sum(1), torch.full_like(sum_T, gate_TK.shape[1]))),
            ("this is the sum of squares; its inverse, times the sum squared", square_T),
            ("upside down", square_T / sum_T.square()),
            ("the entropy makes a number of experts too, but another one", entropy_T.exp()),
            ("that is how much larger the sum is than the largest gate", sum_T / gate_TK.amax(1)),
            ("that is the root: two equal gates are 2, not 1.41", sum_T / square_T.sqrt()),
            ("a number for each token: this is their mean", right(gate_TK).mean()),
            *(("sums, not means", right(gate_TK) / gate_TK.shape[1] ** n) for n in (1, 2))
        ]  # fmt: skip

    check = Check("experts_worth", experts_worth, right, mistakes,
                  "not the square of the gates' sum over the sum of their squares")  # fmt: skip
    check.on("gates [[0.5, 0.5], [1, 0], [0.75, 0.25], [0.2, 0.2]]",
             torch.tensor([[0.5, 0.5], [1, 0], [0.75, 0.25], [0.2, 0.2]]))  # fmt: skip
    for seed, (T, K) in enumerate(((5, 2), (7, 4), (3, 8))):
        gate_TK = randn(seed, T, 2 * K).softmax(1).topk(K).values
        check.on(f"{T} tokens, K = {K}, gates not divided", gate_TK)
        check.on(f"{T} tokens, K = {K}, gates that add up to 1", gate_TK / gate_TK.sum(1)[:, None])
    check.passed("K for equal gates, 1 for a single one, whatever they add up to.")
