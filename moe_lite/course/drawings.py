"""The chapters' drawings: one each, in the shapes of ``shapes.py``."""

from __future__ import annotations

from .shapes import Sheet


def one_token() -> Sheet:
    """Draw chapter 00's idea: a router sends a token to two of eight experts, and adds up."""
    sheet = Sheet(9.2, 4.9, "One layer: the router sends a token to two of eight experts")
    token, router = sheet.token(0.7, 2.45, " self"), sheet.router(2.2, 2.45)
    total = sheet.block(8.3, 2.45, "+", width=0.45)
    weights = {1: 0.63, 6: 0.37}
    sheet.arrow(token, router)
    for e in range(8):
        y, idle = 4.5 - 0.585 * e, e not in weights
        expert = sheet.expert(4.9, y, e, idle=idle)
        sheet.arrow(router, expert, taken=not idle, width=1 + 3 * weights.get(e, 0))
        if not idle:
            gate = sheet.gate(6.7, y, weights[e])
            sheet.arrow(expert, gate)
            sheet.arrow(gate, total, width=1 + 3 * weights[e])
    sheet.note(8.3, 3.95, "the layer's answer:\n0.63 of expert 1's\n+ 0.37 of expert 6's")
    sheet.note(1.4, 1.45, "scores all eight,\nchooses two")
    return sheet


def competition() -> Sheet:
    """Draw chapter 01's idea: belief before the answer, responsibility after it."""
    sheet = Sheet(9.2, 3.7, "A vowel goes to every expert; the answer says who was right")
    vowel, gate = sheet.token(0.7, 2.0, "vowel"), sheet.router(2.9, 0.5, "gate")
    sheet.arrow(vowel, gate)
    sheet.note(5.1, 3.45, "believed before: p")
    sheet.note(7.5, 3.45, "responsible after: h")
    cases = ((0, 2.75, 0.5, 0.62, "says 0.9"), (1, 1.55, 0.5, 0.38, "says 0.0"))
    for e, y, p, h, said in cases:
        expert = sheet.expert(2.9, y, e)
        before, after = sheet.gate(5.1, y, p, "belief"), sheet.gate(7.5, y, h, "responsibility")
        sheet.arrow(vowel, expert)
        sheet.arrow(expert, before, said)
        sheet.arrow(before, after, "the answer is 1")
    sheet.arrow(gate, sheet.block(7.5, 0.5, "moves by p - h", width=1.6), "learns")
    return sheet


def hierarchies() -> Sheet:
    """Draw chapter 02's idea: gates above gates, and a leaf's share as the product on its way."""
    sheet = Sheet(9.2, 4.0, "A tree of gates: an expert's share is the product of the gates above")
    token = sheet.token(0.7, 2.0, " x")
    gates = (
        sheet.gate(2.4, 2.0, 0.5, "gate 0"),
        sheet.gate(4.5, 3.0, 0.1, "gate 1"),
        sheet.gate(4.5, 1.0, 0.8, "gate 2"),
    )
    sheet.arrow(token, gates[0])
    sheet.arrow(gates[0], gates[1], "left: 0.5")
    sheet.arrow(gates[0], gates[2], "right: 0.5")
    shares = (0.05, 0.45, 0.40, 0.10)
    for e, share in enumerate(shares):
        expert = sheet.expert(6.9, 3.5 - e, e)
        sheet.arrow(gates[1 + e // 2], expert, width=1 + 6 * share)
        sheet.note(8.4, 3.5 - e, f"share {share:.2f}")
    return sheet


def in_between() -> Sheet:
    """Draw chapter 03's idea: two layers of experts, each with a gate that all experts obey."""
    sheet = Sheet(9.6, 4.4, "Two layers of experts: sixteen ways, and every expert is computed")
    here = sheet.token(0.6, 2.2, " x")
    for layer, (x, weights) in enumerate(
        ((2.6, (0.5, 0.2, 0.2, 0.1)), (6.4, (0.1, 0.1, 0.7, 0.1)))
    ):
        total = sheet.block(x + 1.75, 2.2, "+", width=0.45)
        for e, weight in enumerate(weights):
            expert = sheet.expert(x, 3.75 - e * 1.03, e)
            sheet.arrow(here, expert)
            sheet.arrow(expert, total, width=1 + 4 * weight)
        sheet.note(x + 1.75, 0.65, f"layer {layer + 1}: its gate\nweighs the sum")
        here = total
    sheet.arrow(here, sheet.block(9.2, 2.2, "W", width=0.45))
    return sheet


def sparsely_gated() -> Sheet:
    """Draw chapter 04's idea: choose hard, weigh soft; noise before the choice."""
    sheet = Sheet(9.2, 4.2, "Noisy top-2: choose hard, weigh soft, and skip the others")
    token, router = sheet.token(0.7, 2.1, " x"), sheet.router(3.3, 2.1)
    noise = sheet.block(1.9, 3.5, "noise")
    total = sheet.block(8.4, 2.1, "+", width=0.45)
    sheet.arrow(token, router)
    sheet.arrow(noise, router)
    for e, weight in enumerate((0.73, 0.0, 0.27, 0.0)):
        y, idle = 3.75 - 1.1 * e, weight == 0
        expert = sheet.expert(5.3, y, e, idle=idle)
        sheet.arrow(router, expert, taken=not idle)
        if not idle:
            gate = sheet.gate(7.0, y, weight)
            sheet.arrow(expert, gate)
            sheet.arrow(gate, total, width=1 + 3 * weight)
    return sheet
