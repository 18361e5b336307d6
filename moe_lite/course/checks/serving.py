"""The checks of chapter 15: how is a sparse model served?"""

from __future__ import annotations

from collections.abc import Callable

from ...config import MixtralConfig
from .verdict import Check, Mistakes


def _in_use(E: int, K: int, T: float) -> float:
    return E * (1 - (1 - K / E) ** T)


def _parameters(config: MixtralConfig) -> tuple[int, int, int]:
    """Count what every token reads, the experts, and an input embedding that is nothing else.

    Written anew: cost.py lives on this floor, and neighbours do not import each other.
    """
    D, L, E = config.hidden_size, config.num_hidden_layers, config.num_local_experts
    assert config.head_dim is not None
    heads = config.num_attention_heads + config.num_key_value_heads
    layer = 2 * D * heads * config.head_dim + E * D + 2 * D
    table = config.vocab_size * D
    experts = L * E * 3 * D * config.intermediate_size
    return L * layer + D + table, experts, 0 if config.tie_word_embeddings else table


def check_distinct_experts(distinct_experts: Callable[[int, int, int], float]) -> None:
    """Check the expected number of experts in use: (experts, top_k, tokens) -> float."""

    def mistakes(E: int, K: int, T: int) -> Mistakes:
        right = _in_use(E, K, T)
        return [
            ("that is as if no two tokens ever agreed", float(min(E, K * T))),
            ("that is as if no two tokens ever agreed, and E were no limit", float(K * T)),
            ("a token's K experts differ: it leaves one out with probability 1 - K/E, not (1 - "
             "1/E)^K", E * (1 - (1 - 1 / E) ** (K * T))),
            ("that is the chance of one expert to be in use; there are E of them", right / E),
            ("that is how many are left out", E - right),
            ("K/E to the power of T: an expert that every token chooses", E * (K / E) ** T),
            ("an expectation need not be whole: keep its decimals", float(round(right))),
            ("an expectation need not be whole: keep its decimals", float(int(right))),
            ("one token chooses K experts; here it chooses one", E * (1 - (1 - 1 / E) ** T)),
            ("one token less: all of them choose", E * (1 - (1 - K / E) ** (T - 1)))]  # fmt: skip

    check = Check("distinct_experts", distinct_experts, _in_use, mistakes, "not E(1 - (1 - K/E)^T)")
    # (8, 2, 2): left out by both: (3/4)^2 = 9/16, so 8 x 7/16 = 3.5
    sizes = (8, 2, 2), (8, 2, 1), (8, 2, 32), (64, 8, 16), (256, 8, 1), (4, 4, 3), (16, 1, 5)
    for E, K, T in sizes:
        check.on(f"{E} experts, K = {K}, {T} tokens", E, K, T)
    check.passed("each expert is spared with chance (1 - K/E)^T; the others are read.")


def check_decode_bytes(decode_bytes: Callable[[MixtralConfig, int], float]) -> None:
    """Check the weight bytes of one decoding step in bf16: (config, batch) -> bytes."""

    def right(config: MixtralConfig, batch: int) -> float:
        common, experts, _ = _parameters(config)
        E, K = config.num_local_experts, config.num_experts_per_tok
        return 2 * (common + _in_use(E, K, batch) / E * experts)

    def mistakes(config: MixtralConfig, batch: int) -> Mistakes:
        common, experts, table = _parameters(config)
        E, K, value = config.num_local_experts, config.num_experts_per_tok, right(config, batch)
        share, one = _in_use(E, K, batch) / E, 2 * (common + experts * K / E)
        row = 2.0 * config.vocab_size * config.hidden_size
        few = "a batch needs more experts than one token does"
        return [
            (few, one),
            (few, one + 2.0 * table),
            ("a small batch leaves experts unread", 2.0 * (common + experts)),
            ("these are all parameters; a small batch leaves experts unread, and of the input "
             "embedding only a row per token is read", 2.0 * (common + experts + table)),
            ("the weights are read once for the whole batch, not once for each text", batch * one),
            ("of the embedding a row per token is read", value + 2.0 * table if table else None),
            ("the output matrix is read whole, a tied one too", value - row),
            ("the output matrix is read whole, a tied one too",
             value - (0 if table else row)),
            ("count.experts has every expert of every layer: multiply it by a share, not by how "
             "many are in use", 2 * (common + _in_use(E, K, batch) * experts)),
            ("what every token uses is read once for the batch, not once for each text",
             value + (batch - 1) * 2.0 * common),
            ("these are the bytes of a step for each text; asked are those of the step",
             value / batch),
            ("two bytes for each bf16 number", value / 2),
            ("that is float32; bf16 has two bytes", value * 2),
            ("texts agree on experts by chance", 2.0 * (common + min(1, K * batch / E) * experts)),
            ("attention, routers, norms and output are read as well", 2.0 * share * experts),
        ]  # fmt: skip

    check = Check("decode_bytes", decode_bytes, right, mistakes,
                  "not 2 bytes for what is common and for the experts expected in use")  # fmt: skip
    small = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=4,
        tie_word_embeddings=True)  # fmt: skip
    for name, config in (("Mixtral 8x7B", MixtralConfig()), ("a small Mixtral, tied", small)):
        for batch in (3, 4, 1, 64):
            check.on(f"{name}, {batch} texts", config, batch)
    check.passed("common weights once, and those experts that somebody in the batch needs.")


def check_replicas(replicas: Callable[[list[int], int], list[int]]) -> None:
    """Check how often each expert is held: (load_E, spare) -> copies_E."""

    def right(load_E: list[int], spare: int) -> list[int]:
        copies_E = [1] * len(load_E)
        for _ in range(spare):
            share_E = [load / n for load, n in zip(load_E, copies_E, strict=True)]
            copies_E[share_E.index(max(share_E))] += 1
        return copies_E

    def mistakes(load_E: list[int], spare: int) -> Mistakes:
        E, copies_E, total = len(load_E), right(load_E, spare), sum(load_E)
        ranked = sorted(range(E), key=lambda e: -load_E[e])
        top = [1 + spare * (e == ranked[0]) for e in range(E)]
        round_robin = [1 + sum(ranked[n % E] == e for n in range(spare)) for e in range(E)]
        kept = [round((E + spare) * load / total) for load in load_E] if total else None
        even = [1 + spare // E + (e < spare % E) for e in range(E)]

        def greedy(share: Callable[[int, int], float], last: bool = False) -> list[int]:
            """Hand the places out one by one, by what a copy has to do: (load, copies)."""
            given_E = [1] * E
            for _ in range(spare):
                share_E = [share(*pair) for pair in zip(load_E, given_E, strict=True)]
                first = share_E.index(max(share_E))
                given_E[E - 1 - share_E[::-1].index(max(share_E)) if last else first] += 1
            return given_E

        return [
            ("what counts is what a copy has to do now, not after one more",
             greedy(lambda load, n: load / (n + 1))),
            ("a third copy leaves a third of the load for each, not half of a half",
             greedy(lambda load, n: load / 2 ** (n - 1))),
            ("a copy may have 2.5 pairs to do: divide without rounding",
             greedy(lambda load, n: load // n)),
            ("of equals the first gets the place", greedy(lambda load, n: load / n, last=True)),
            ("each further copy is for the expert with the most load per copy, and one that has "
             "been doubled has half of it left", top),
            ("one after the other in the order of their loads: an expert with ten times the load "
             "needs more than one copy more", round_robin),
            ("shares of the load, rounded, need not add up to the room there is, and leave an "
             "expert that is seldom chosen without a copy", kept),
            ("these are the spare copies alone; each expert is held once before",
             [n - 1 for n in copies_E]),
            ("the loads were not looked at", even),
            ("the one with the least to do gets help here", greedy(lambda load, n: -load / n)),
            ("this is what each copy has to do; asked is how many copies there are",
             [load / n for load, n in zip(load_E, copies_E, strict=True)])]  # fmt: skip

    check = Check("replicas", replicas, right, mistakes,
                  "not, one by one, a copy for the expert with the most load per copy")  # fmt: skip
    # 9 -> 4.5 each, still the most -> 3 each
    check.on("loads [9, 4, 1, 2], room for 2 more", [9, 4, 1, 2], 2)
    check.on("loads [9, 8, 1, 2], room for 2 more", [9, 8, 1, 2], 2)
    check.on("loads [4, 8, 4, 8], room for 3 more", [4, 8, 4, 8], 3)
    check.on("loads [8, 9, 4], room for 3 more", [8, 9, 4], 3)
    check.on("loads [3, 0, 12, 5], no room", [3, 0, 12, 5], 0)
    check.on("loads [100, 60, 30, 5, 5, 0], room for 6 more", [100, 60, 30, 5, 5, 0], 6)
    check.on("loads [1, 2, 40, 3, 7, 1, 1, 9], room for 5 more", [1, 2, 40, 3, 7, 1, 1, 9], 5)
    check.passed("the heaviest copy is halved first; who is seldom chosen keeps one.")


def check_reads_per_token(reads: Callable[[int, int, int, float], float]) -> None:
    """Check experts read for a token that is kept: (experts, top_k, guesses, right) -> float."""

    def kept(guesses: int, right: float) -> float:
        return sum(right**i for i in range(guesses + 1))

    def answer(E: int, K: int, g: int, right: float) -> float:
        return _in_use(E, K, g + 1) / kept(g, right)

    def mistakes(E: int, K: int, g: int, right: float) -> Mistakes:
        tokens, read = kept(g, right), _in_use(E, K, g + 1)
        return [
            ("tokens of one check share experts by chance: not K (g + 1) of them",
             K * (g + 1) / tokens),
            ("the check runs g guesses and the token before them, g + 1",
             _in_use(E, K, g) / tokens),
            ("so it is in a dense model: the check reads what one token reads", K / tokens),
            ("a guess counts only if all before it are right: 1 + p + p² + ..., not 1 + g p",
             read / (1 + g * right)),
            ("the check itself gives a token, whatever was guessed",
             read / (tokens - 1) if g and right else None),
            ("as if every guess were right", read / (g + 1)),
            ("a check that fails at the third guess keeps the first two",
             read / (1 + g * right**g)),
            ("that is one check; how many tokens does it give?", read),
            ("that is tokens for an expert, asked is experts for a token", tokens / read),
            ("a check keeps one token more: the powers of p go up to g",
             read / kept(g - 1, right) if g else None),
            ("wrong guesses are run too: experts are read for g + 1 tokens, not for those kept",
             _in_use(E, K, tokens) / tokens),
            ("a token's K experts differ: it leaves one out with probability 1 - K/E",
             E * (1 - (1 - 1 / E) ** (K * (g + 1))) / tokens),
            ("p is the chance that a guess is right, not wrong", read / kept(g, 1 - right)),
            ("only g tokens are guessed: the powers of p end at g", read * (1 - right)),
            ("only g tokens are guessed: the powers of p end at g", read / kept(g + 1, right)),
            ("that is how many tokens a check gives; which experts does it read?", tokens),
            ("divide the two expectations: this is the mean of the quotients",
             read * (sum(right**i * (1 - right) / (i + 1) for i in range(g)) + right**g / (g + 1))),
            ("that is how many times what a token reads alone; asked is how many experts",
             read / tokens / K),
        ]  # fmt: skip

    check = Check("reads_per_token", reads, answer, mistakes,
                  "not the experts of g + 1 tokens over the tokens that a check keeps")  # fmt: skip
    # (8, 2, 1, 0.5): 3.5 experts for 1.5 tokens
    for E, K, g, right in ((8, 2, 1, 0.5), (8, 2, 0, 0.5), (8, 2, 3, 0.8), (256, 8, 3, 0.8),
                           (64, 8, 7, 0.9), (4, 4, 2, 0.5), (16, 1, 5, 1.0)):  # fmt: skip
        check.on(f"{E} experts, K = {K}, {g} guesses, right {right:.0%}", E, K, g, right)
    check.passed("g + 1 tokens read, and 1 + p + ... + p^g kept.")
