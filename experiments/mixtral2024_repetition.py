"""Jiang et al. 2024 (Mixtral), Table 5: how often does a token get the expert of the one before it?

The paper counts, on eight subsets of The Pile, at the first, a middle and the last of 32 layers,
how often consecutive tokens have the same first choice, and how often some expert is among the two
choices of both. Here the same is counted for the course's trained Mixtral at the first, a middle
and the last of its layers, on held-out windows of its five domains of text. Mixtral has 2 of 8
experts at work and ours 4 of 16, which meet by chance in other shares of the pairs (12.5 and 46.4%;
6.25 and 72.8%): so chance is taken out of both, (s - chance) / (1 - chance), as in
olmoe2024_saturation. There is one trained model, so a "seed" is a set of windows that no other seed
has: the intervals say how sure we are about this model on this text, and nothing about another
training of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moe_lite.course import analysis
from moe_lite.course.data import Corpus, load_corpus
from moe_lite.course.ledger import Claim, Experiment, Measures
from moe_lite.hf import load_pretrained
from moe_lite.model import Mixtral
from moe_lite.trace import RoutingTrace, record

CONFIG: dict[str, Any] = {
    "model": "mixtral-mini", "sets": 10, "windows": 4, "context": 256, "max_bytes": 2_000_000,
}  # fmt: skip

# Table 5, in percent: at layers 0, 15, 31 for the first choice, then for either choice.
PAPER = {
    "ArXiv": (14.0, 27.9, 22.7, 46.5, 62.3, 52.9),
    "DM Mathematics": (14.1, 28.4, 19.7, 44.9, 67.0, 44.5),
    "Github": (14.9, 28.1, 19.7, 49.9, 66.9, 49.2),
    "Gutenberg": (13.9, 26.1, 26.3, 49.5, 63.1, 52.2),
    "PhilPapers": (13.6, 25.3, 22.1, 46.9, 61.9, 51.3),
    "PubMed Abstracts": (14.2, 24.6, 22.0, 48.6, 61.6, 51.8),
    "StackExchange": (13.6, 27.2, 23.6, 48.2, 64.6, 53.6),
    "Wikipedia (en)": (14.4, 23.6, 25.3, 49.8, 62.1, 51.8),
}
OURS = {"DM Mathematics": "arithmetic", "Github": "code", "Gutenberg": "drama"}
LAYERS = {"first": "0", "middle": "15", "last": "31"}
CHOICES = {"first": "first choice", "any": "any choice"}
CHANCE = {"first": 12.5, "any": 46.4}
COLUMNS = [(layer, choice) for choice in CHOICES for layer in LAYERS]


def net(value: float, chance: float) -> float:
    """Take chance out of a percentage: 0 is chance, 100 always."""
    return 100 * (value - chance) / (100 - chance)


def routed(model: Mixtral, corpus: Corpus, domain: str, index: int) -> RoutingTrace:
    """Record the routing of one set of a domain's windows."""
    sets = CONFIG["sets"]
    windows = corpus.windows(domain, CONFIG["context"], sets * CONFIG["windows"])
    with torch.inference_mode(), record(model) as rec:
        model(windows.ids_BS[index::sets])
    return rec.trace


def percent(trace: RoutingTrace, choice: Any) -> dict[str, float]:
    """Measure repetition at the three layers; the middle of 32 is the paper's 15."""
    repeated_L = analysis.repetition(trace, CONFIG["context"], choice)
    last = len(repeated_L) - 1
    places = {"first": 0, "middle": last // 2, "last": last}
    return {layer: 100 * float(repeated_L[place]) for layer, place in places.items()}


def one(model: Mixtral, corpus: Corpus, index: int) -> dict[str, float]:
    """Measure every domain on one set of windows."""
    found: dict[str, float] = {}
    for domain in corpus.domains:
        trace = routed(model, corpus, domain, index)
        mixed = analysis.shuffled(trace, seed=index, length=CONFIG["context"])
        for choice, words in CHOICES.items():
            for layer, value in percent(trace, choice).items():
                found[f"{domain}: {words}, {layer} layer"] = value
            for layer, value in percent(mixed, choice).items():
                found[f"{domain}: {words}, {layer} layer, shuffled"] = value

    def mean(words: str, domains: Sequence[str] = corpus.domains) -> float:
        return sum(found[f"{domain}: {words}"] for domain in domains) / len(domains)

    E, K = model.config.num_local_experts, model.config.num_experts_per_tok
    for choice, words in CHOICES.items():
        chance = 100 * analysis.repetition_chance(E, 1 if choice == "first" else K)
        for layer in LAYERS:
            where = f"{words}, {layer} layer"
            for part in (where, f"{where}, shuffled"):
                found[f"mean: {part}"] = mean(part)
            for name in ("mean", *corpus.domains):
                share, dealt = found[f"{name}: {where}"], found[f"{name}: {where}, shuffled"]
                found[f"{name}: {where}, net of chance"] = net(share, chance)
                found[f"{name}: {where}, above shuffled"] = share - dealt
        for layer in ("middle", "last"):
            later, first = (found[f"mean: {words}, {of} layer, net of chance"]
                            for of in (layer, "first"))  # fmt: skip
            found[f"{layer} - first layer, {words}"] = later - first
    others = [domain for domain in corpus.domains if domain != "arithmetic"]
    where = "any choice, last layer, net of chance"
    found[f"arithmetic - others: {where}"] = found[f"arithmetic: {where}"] - mean(where, others)
    return found


def run(seeds: Sequence[int]) -> Measures:
    """Measure the sets of windows with these numbers.

    Raises: ValueError if there are fewer sets than seeds.
    """
    if max(seeds) >= CONFIG["sets"]:
        raise ValueError(f"the held-out text is cut into {CONFIG['sets']} sets: no more seeds")
    model = load_pretrained(CONFIG["model"])
    corpus = load_corpus(max_bytes=CONFIG["max_bytes"])
    found = [one(model, corpus, seed) for seed in seeds]
    return {key: [values[key] for values in found] for key in found[0]}


def mean_of(rows: Sequence[str], column: tuple[str, str]) -> float:
    return sum(PAPER[row][COLUMNS.index(column)] for row in rows) / len(rows)


def claims() -> list[Claim]:
    """Judge the table's columns in the mean, then its rows, then what its text says of it."""
    found = []
    of_mean = f"mean of {len(PAPER)} subsets, ours of 5"
    for row, ours in [("mean", "mean"), *OURS.items()]:
        for layer, choice in COLUMNS:
            chance = CHANCE[choice]
            paper = mean_of(list(PAPER) if row == "mean" else [row], (layer, choice))
            name = of_mean if row == "mean" else f"{row} ({ours})"
            # At the first layer: within 15% of what is printed, chance included.
            within = round(0.15 * paper / abs(paper - chance), 2)
            found.append(
                Claim(
                    f"{name}: {CHOICES[choice]}, {layer} layer, net of chance, %",
                    f"Table 5, layer {LAYERS[layer]}",
                    f"{ours}: {CHOICES[choice]}, {layer} layer, net of chance",
                    round(net(paper, chance), 2), within=within if layer == "first" else None,
                    void=None if layer == "first" else 0,
                    note=f"{round(paper, 2):g}, chance {chance}",
                )
            )  # fmt: skip
    for choice, words in CHOICES.items():
        for layer in ("middle", "last"):
            rise = mean_of(list(PAPER), (layer, choice)) - mean_of(list(PAPER), ("first", choice))
            found.append(
                Claim(f"{words}: {layer} layer above the first, net of chance, percentage points",
                      "section 5, Table 5", f"{layer} - first layer, {words}",
                      round(100 * rise / (100 - CHANCE[choice]), 2), void=0)
            )  # fmt: skip
    for row, ours, layers in (
        (of_mean, "mean", tuple(LAYERS)),
        ("DM Mathematics (arithmetic)", "arithmetic", ("last",)),
    ):
        rows = list(PAPER) if ours == "mean" else ["DM Mathematics"]
        for choice, words in CHOICES.items():
            for layer in layers:
                excess = mean_of(rows, (layer, choice)) - CHANCE[choice]
                found.append(
                    Claim(f"{row}: {words}, {layer} layer, above chance, percentage points",
                          f"Table 5, layer {LAYERS[layer]}",
                          f"{ours}: {words}, {layer} layer, above shuffled", round(excess, 2),
                          void=0, note=f"chance {CHANCE[choice]}; ours: shuffled")
                )  # fmt: skip
    column, others = ("last", "any"), [row for row in PAPER if row != "DM Mathematics"]
    gap = mean_of(["DM Mathematics"], column) - mean_of(others, column)
    found.append(
        Claim("DM Mathematics (arithmetic) repeats less than the others: any choice, last "
              "layer, net of chance, percentage points", "Table 5, layer 31",
              "arithmetic - others: any choice, last layer, net of chance",
              round(100 * gap / (100 - CHANCE["any"]), 2), void=0)
    )  # fmt: skip
    return found


EXPERIMENT = Experiment(
    title="Repetition of experts by consecutive tokens, Mixtral's table beside the course's model",
    source="Jiang et al. 2024 (Mixtral), arXiv:2401.04088",
    chapter="17",
    seeds=CONFIG["sets"],
    config=CONFIG,
    claims=tuple(claims()),
    finding=(
        "neighbours share an expert far more often than chance ({2}% net of it, first choice, last "
        "layer); most of that is unequal use, which shuffled text has too. Above shuffled text it "
        "is as in Mixtral: {28} points in the first layer, {29} in the middle, {30} in the last"
    ),
    run=run,
    spot=lambda: run(range(2)),
    caveat=(
        "one trained model of 6 layers, and 10 disjoint sets of held-out windows as seeds: the "
        "intervals hold for this model, not for another training. Means of subsets are ours, from "
        "the paper's rows. Ours reads text cut into 4,096 kinds of token, Mixtral into 32,000. "
        "Printed chance is that of equally used experts. Within a domain ours are used so "
        "unequally that a text with its tokens shuffled repeats far more than that; the rows "
        "above chance, which take that for ours, were added after a first look at an unfinished "
        "model. Their points have unlike room: with 4 of 16 any choice has 27 above chance, with "
        "2 of 8 it has 54."
    ),
)
