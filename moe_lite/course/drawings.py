"""The chapters' drawings: one each, in the shapes of ``shapes.py``."""

from __future__ import annotations

from .shapes import Shape, Sheet


def _two_of_eight(
    sheet: Sheet, router: Shape, total: Shape, weights: dict[int, float], x: float, x_gate: float,
    width: float = 1.25,
) -> None:  # fmt: skip
    """Draw eight experts at x; a gate at x_gate, and arrows to the sum, for those with a weight."""
    for e in range(8):
        y, idle = 4.5 - 0.585 * e, e not in weights
        expert = sheet.expert(x, y, e, idle=idle, width=width)
        sheet.arrow(router, expert, taken=not idle, width=1 + 3 * weights.get(e, 0))
        if not idle:
            gate = sheet.gate(x_gate, y, weights[e])
            sheet.arrow(expert, gate)
            sheet.arrow(gate, total, width=1 + 3 * weights[e])


def one_token() -> Sheet:
    """Draw chapter 00's idea: a router sends a token to two of eight experts, and adds up."""
    sheet = Sheet(9.2, 4.9, "One layer: the router sends a token to two of eight experts")
    token, router = sheet.token(0.7, 2.45, " self"), sheet.router(2.2, 2.45)
    total = sheet.block(8.3, 2.45, "+", width=0.45)
    sheet.arrow(token, router)
    _two_of_eight(sheet, router, total, {1: 0.63, 6: 0.37}, 4.9, 6.7)
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
    sheet.arrow(gate, sheet.block(7.5, 0.5, "moves by h - p", width=1.6), "learns")
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


def what_experts_learn() -> Sheet:
    """Draw chapter 17's idea: the same word in other company, and the expert taken away."""
    sheet = Sheet(9.2, 4.4, "Three questions to an expert that arithmetic uses")
    rows = (
        (3.7, 5, "1. the same word in other company,\nthe same expert: the word decides"),
        (2.2, 2, "2. the same word in other company,\nanother expert: the company decides"),
    )
    for y, other, said in rows:
        router, both = sheet.router(3.2, y), other == 5
        chosen = sheet.expert(5.1, y if both else y + 0.35, 5)
        second = chosen if both else sheet.expert(5.1, y - 0.35, other)
        for token, expert, up in ((" 7 in a sum", chosen, 0.35), (" 7 in code", second, -0.35)):
            sheet.arrow(sheet.token(1.1, y + up, token), router)
            sheet.arrow(router, expert)
        sheet.note(7.6, y, said)
    router, gone = sheet.router(3.2, 0.7), sheet.expert(5.1, 0.7, 5, idle=True)
    sheet.arrow(sheet.token(1.1, 0.7, " 7 in a sum"), router)
    sheet.arrow(router, gone, taken=False)
    sheet.note(7.6, 0.7, "3. take it away: does the loss rise?\nneeded, or only used")
    return sheet


def small_mixtral() -> Sheet:
    """Draw chapter 10's idea: a block is attention, then a router before eight networks."""
    sheet = Sheet(9.4, 4.9, "One block of a Mixtral: only the feed-forward network became eight")
    token, attention = sheet.token(0.7, 2.45, " king"), sheet.block(2.2, 2.45, "attention")
    router, total = sheet.router(4.0, 2.45), sheet.block(8.6, 2.45, "+", width=0.45)
    sheet.arrow(token, attention)
    sheet.arrow(attention, router)
    _two_of_eight(sheet, router, total, {2: 0.73, 5: 0.27}, 6.0, 7.4, width=1.1)
    sheet.note(2.2, 1.5, "looks at other tokens:\nas in a dense model")
    sheet.note(4.0, 1.5, "each token alone")
    return sheet


def what_for() -> Sheet:
    """Draw chapter 11's idea: a mixture holds eight networks, and runs as much as a dense twin."""
    sheet = Sheet(9.4, 4.0, "Three ways to be large: what a token runs, and what the layer holds")
    # 1. the dense twins: no router, and everything runs
    for x, size, what in ((1.1, 2, "active"), (7.75, 8, "total")):
        network = sheet.block(x, 3.0, "dense", width=0.36 * size)
        sheet.arrow(sheet.token(x, 0.95, "token"), network, "all of it")
        sheet.note(x, 3.65, f"dense, equal {what}")
        sheet.note(x, 0.4, f"runs {size}, holds {size}")
    # 2. the mixture between them
    x, chosen = 4.25, (2, 5)
    token, router = sheet.token(x, 0.95, "token"), sheet.router(x, 1.85)
    sheet.arrow(token, router)
    for e in range(8):
        taken = e in chosen
        expert = sheet.expert(x + 0.4 * (e - 3.5), 3.0, e, " ", idle=not taken, width=0.32)
        sheet.arrow(router, expert, taken=taken, upright=True)
    sheet.note(x, 3.65, "sparse: 2 of 8 experts")
    sheet.note(x, 0.4, "runs 2, holds 8")
    return sheet


def dispatch() -> Sheet:
    """Draw chapter 12's idea: sort the pairs by expert, run each block, fetch the answers back."""
    sheet = Sheet(9.4, 4.6, "Dispatch is a sort: each expert's rows lie side by side")
    chosen = (1, 2, 1, 0, 1, 2)
    rows = sorted(range(6), key=lambda t: chosen[t])
    experts = [sheet.expert(6.1, y, e) for y, e in ((3.75, 0), (2.65, 1), (1.15, 2))]
    for t, e in enumerate(chosen):
        before = sheet.token(0.8, 3.75 - 0.6 * t, f"token {t}", expert=e)
        after = sheet.token(3.9, 3.75 - 0.6 * rows.index(t), f"row of {t}", expert=e)
        sheet.arrow(before, after)
        sheet.arrow(after, experts[e])
    total = sheet.block(8.5, 2.25, "tokens")
    for expert in experts:
        sheet.arrow(expert, total)
    sheet.note(2.4, 4.35, "sort by expert")
    sheet.note(6.1, 4.35, "one product each")
    sheet.note(8.5, 1.5, "each token fetches\nits answers back")
    return sheet


def where_time_goes() -> Sheet:
    """Draw chapter 13's idea: an expert's weights are read once, for few rows or for many."""
    sheet = Sheet(9.4, 3.7, "The same weights are read: for two rows, or for all")
    for x, name, rows, said in (
        (0.0, "mixture", (2, 2, 2, 2), "four networks read, two rows each:\nfour times the bytes"),
        (5.0, "dense", (8,), "one network read, eight rows:\na quarter of the bytes"),
    ):
        start = sheet.block(x + 0.9, 2.2, f"{name}:\n8 tokens", width=1.3)
        for e, n in enumerate(rows):
            y = 3.3 - 0.72 * e if len(rows) > 1 else 2.2
            network = (
                sheet.expert(x + 3.3, y, e) if len(rows) > 1 else sheet.block(x + 3.3, y, "network")
            )
            sheet.arrow(start, network, f"{n} rows", width=0.6 + 0.5 * n)
        sheet.note(x + 2.2, 0.35, said)
    return sheet


def many_machines() -> Sheet:
    """Draw chapter 14's idea: experts stay where they are, and the tokens travel, out and back."""
    sheet = Sheet(9.4, 4.2, "Experts stay, tokens travel: out and back, in each layer")
    routers = [sheet.router(2.5, y) for y in (3.2, 1.2)]
    experts = [sheet.expert(6.4, y, e) for e, y in enumerate((3.55, 2.85, 1.55, 0.85))]
    words = {0: (" my", " lord"), 1: ("def", " self")}
    for rank, (router, y) in enumerate(zip(routers, (3.2, 1.2), strict=True)):
        for i, word in enumerate(words[rank]):
            sheet.arrow(sheet.token(0.8, y + 0.3 - 0.6 * i, word), router)
        for e in (2 * rank, 2 * (1 - rank)):
            away = e // 2 != rank
            said = "between nodes: slow" if away and not rank else ""
            sheet.arrow(router, experts[e], said, width=2.6 if away else 1.2)
        sheet.note(8.4, y, f"node {rank}: attention, router\nand two of four experts")
    return sheet


def serving() -> Sheet:
    """Draw chapter 15's idea: reading and writing apart, many texts at once, one expert twice."""
    sheet = Sheet(9.6, 4.5, "Reading a prompt and writing an answer get machines of their own")
    prompt = sheet.token(0.9, 3.1, "a whole prompt")
    prefill = sheet.block(3.4, 3.1, "prefill:\n4 nodes", width=1.2)
    sheet.arrow(prompt, prefill, "at once")
    router = sheet.router(6.3, 3.1)
    sheet.arrow(prefill, router, "its cache")
    for i in range(4):
        sheet.arrow(sheet.token(4.1, 2.1 - 0.55 * i, f"text {i}"), router)
    sheet.note(2.75, 1.28, "one token of each text\nin each step")
    places = ((4.0, 0, ""), (3.1, 1, "1"), (2.2, 1, "1 again"))
    for y, e, text in places:
        name = f"expert {text}" if text else ""
        sheet.arrow(router, sheet.expert(8.5, y, e, name, width=1.5))
    sheet.note(6.3, 4.1, "decode: 18 nodes,\nthousands of texts")
    sheet.note(8.5, 1.5, "a popular expert\nis held twice")
    return sheet


def adapting() -> Sheet:
    """Draw chapter 16's idea: four changes to a layer that is there already."""
    sheet = Sheet(10.4, 3.0, "Four changes to a layer that is there: what happens to its experts")
    changes = (
        ("train on", "all but the experts", (0, 1, 2, 3)),
        ("upcycle", "four copies of one", (0, 0, 0, 0)),
        ("prune", "one fewer", (0, 1, 2, 3)),
        ("round", "four bits a weight", (0, 1, 2, 3)),
    )
    for i, (name, said, experts) in enumerate(changes):
        x = 1.35 + 2.6 * i
        router = sheet.router(x, 2.05)
        sheet.note(x, 2.75, f"{name}: {said}")
        for j, e in enumerate(experts):
            gone = name == "prune" and j == 2
            width, gap = (0.26, 0.38) if name == "round" else (0.44, 0.5)
            box = sheet.expert(x + gap * (j - 1.5), 0.8, e, str(e), idle=gone, width=width)
            sheet.arrow(router, box, taken=not gone)
    return sheet


def claims() -> Sheet:
    """Draw chapter 18's idea: a rule that was written first sends the evidence to a verdict."""
    sheet = Sheet(9.2, 3.9, "A trial: the rule stands before the run, and the interval decides")
    claim, run = sheet.token(1.3, 3.3, "“twice as fast”"), sheet.block(1.3, 0.7, "the run")
    rule = sheet.router(4.1, 2.0, "rule")
    sheet.arrow(claim, rule, "says: at least 1.5")
    sheet.arrow(run, rule, "0.9 to 1.1")
    sheet.note(1.3, 2.0, "first this,\nand only then the run")
    for e, (y, verdict, taken) in enumerate(
        ((3.4, "holds", False), (2.0, "does not hold", True), (0.6, "undecided", False))
    ):
        box = sheet.expert(7.2, y, e, verdict, idle=not taken, width=1.6)
        sheet.arrow(rule, box, taken=taken)
    sheet.note(7.2, 2.7, "all of it inside", size=8.5)
    sheet.note(7.2, 1.3, "all of it outside", size=8.5)
    sheet.note(7.2, 0.12, "across the border", size=8.5)
    return sheet
