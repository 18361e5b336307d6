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
