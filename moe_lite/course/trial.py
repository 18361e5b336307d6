"""The trial of the claims in :mod:`.claims`: evidence, verdict, and what to say instead.

``python -m moe_lite.course.trial`` writes the verdicts into README; with ``--run`` it first
measures the model in the box again, a minute, and keeps that in ``experiments/results/claims``.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Literal

import torch

from ..checked import read_json
from ..files import write
from ..hf import load_pretrained
from ..model import Mixtral
from ..trace import RoutingTrace, record
from . import leads, ledger
from .analysis import choices_LTK, mutual_information, specialization
from .causal import ablate
from .claims import CLAIMS, Claim
from .data import Batch, Corpus, load_corpus
from .effects import Run
from .sayings import SAYINGS

README = ledger.ROOT / "README.md"
KEPT = ledger.ROOT / "experiments" / "results" / "claims" / "mini.json"
OURS = "4 of 16, scale 4"  # the recipe of the model in the box, as the stored runs call it
FIRST = "2 of 8"  # the recipe of the first edition
GRID = 24  # windows of a domain: 5 sets of 4, and 4 that the chapter reads live
BEGIN, END = "<!-- claims: written by python -m moe_lite.course.trial -->\n", "<!-- /claims -->\n"
Verdict = Literal["holds", "does not hold", "it depends", "undecided", "cannot be known"]


@dataclass(frozen=True)
class Evidence:
    """Hold what was measured: the ends of an interval or of a range, and where it is from.

    ``spread`` says that the ends are settings that differ, not an interval of one number.
    """

    low: float
    high: float
    where: str
    spread: bool = False

    def __str__(self) -> str:
        if math.isnan(self.low):
            return "nothing"
        if math.isinf(self.low):
            return "not measured yet"
        if self.low == self.high:
            return f"{self.low:.3g}"
        if self.spread:
            return f"{self.low:.3g} to {self.high:.3g}"
        return f"{(self.low + self.high) / 2:.3g} ± {(self.high - self.low) / 2:.2g}"


def verdict(claim: Claim, found: Evidence) -> Verdict:
    """Return what the claim's rule says of the evidence.

    Three decimals count, as many as are printed: an interval that ends at 0.0001 touches a border
    at 0, and decides nothing.

    >>> twice = Claim("", "field", "", "", "", (1.5, math.inf))
    >>> [verdict(twice, Evidence(*ends, "")) for ends in ((1.6, 2), (0.9, 1.1), (1, 2))]
    ['holds', 'does not hold', 'undecided']
    """
    if math.isnan(found.low):
        return "cannot be known"
    low, high = claim.holds
    ours_low, ours_high = round(found.low, 3), round(found.high, 3)
    if low <= ours_low and ours_high <= high:
        return "holds"
    if ours_high < low or ours_low > high:
        return "does not hold"
    return "it depends" if found.spread else "undecided"


# --- evidence ------------------------------------------------------------------------------------


def _of(name: str, measure: str | ledger.Pair) -> Evidence:
    ours = ledger.stored(name)[measure]
    return Evidence(ours.low, ours.high, f"`python -m moe_lite reproduce {name}`")


def _row(name: str, text: str) -> Evidence:
    """Read the ledger's row whose claim begins so."""
    (claim,) = (c for c in ledger.load(name).claims if c.text.startswith(text))
    return _of(name, claim.measure)


def _printed(where: str, *values: float) -> Evidence:
    return Evidence(min(values), max(values), where, spread=len(values) > 1)


def _ahead(pairs: Iterable[float]) -> Evidence:
    found = ledger.Estimate.of(list(pairs))
    return Evidence(found.low, found.high, f"{found.count} pairs, `moe_lite/course/leads.py`")


def lead(step: int = 3250) -> Evidence:
    """Return by how much the recipe of the box is ahead of its twin at a step, bits per byte.

    The five pairs of the recipe's study count, each trained to the end (step 4,000), with a phone
    book in the text; the five kinds of text are averaged, the book is not.
    """
    study = leads.lead_of("whole finer", step, "whole dense", step, OURS, "dense")
    return _ahead(study.by_seed.values())


def lead_of_the_first(step: int = 3250) -> Evidence:
    """Return the same of the first edition's recipe, 2 of 8 experts.

    All pairs count that were trained to the end after the one on trial: five of the study, and one
    on a CPU. Three more of the study ("long as shipped") were stopped soon after step 3,250.
    """
    study = leads.lead_of("whole", step, "whole dense", step, FIRST, "dense")
    on_a_cpu = leads.on_a_cpu(None if step == 4000 else step)
    return _ahead([*study.by_seed.values(), *on_a_cpu.by_seed.values()])


def softmax_order(seed: int = 0) -> float:
    """Return how far gates differ that take the softmax before or after the top-k."""
    logits_TE = torch.randn(1000, 8, generator=torch.Generator().manual_seed(seed)).double()
    before_TK = logits_TE.softmax(1).topk(2).values
    after_TK = logits_TE.topk(2).values.softmax(1)
    return float((before_TK / before_TK.sum(1, keepdim=True) - after_TK).abs().max())


def _mini(key: str) -> Evidence:
    if not KEPT.is_file():
        return Evidence(-math.inf, math.inf, "not measured yet")
    values = read_json(KEPT)[key]
    found = ledger.Estimate.of(values)
    return Evidence(found.low, found.high, "mixtral-mini, five sets of held-out windows")


def _minus(found: Evidence) -> Evidence:
    return Evidence(-found.high, -found.low, found.where, found.spread)


SWITCH1 = "Switch 2021, Table 1: 68.7, 80.7 and 80.1 hours against 131.1"
FACTORS = "Switch 2021 (7, 4, 2.5), OLMoE 2024 (2); Tian et al. 2025's abstract has 7, of compute"
EVIDENCE: dict[str, Callable[[], Evidence]] = {
    "compute": lambda: _printed(FACTORS, 1 - 1 / 7, 1 - 1 / 4, 1 - 1 / 2.5, 1 - 1 / 2),
    "speed": lambda: _printed(FACTORS, 7, 4, 2.5, 2),
    "top-2": lambda: _printed(SWITCH1, *(1 - hours / 131.1 for hours in (68.7, 80.7, 80.1))),
    "seven": lambda: _printed("Mixtral 2024, Table 1", 8),
    "2,048": lambda: _printed("Switch 2021, Table 9: 128, 128, 64 and 2,048", 1 / 4),
    "closed": lambda: Evidence(math.nan, math.nan, "no statement was found"),
    "small data": lambda: _minus(_of("chen2022", "sparse − dense, both with dense's")),
    "overfits": lambda: _row("stmoe2022_finetune", "the experts alone reach a higher training"),
    "first token": lambda: _printed("counted: 12.88 of 46.70 billion parameters", 0.276, 1),
    "one GPU": lambda: _printed("counted: 46,702,792,704 parameters of 2 bytes", 93.4),
    "useless": lead,
    "softmax": lambda: _printed("measured: 1,000 tokens, float64", softmax_order()),
    "unused": lambda: _mini("unused"),
    "pinned": lambda: _mini("pinned"),
    "topics": lambda: _mini("topics"),
    "monosemantic": lambda: _mini("monosemantic"),
    "committee": lambda: _mini("committee"),
    "noise": lambda: _row("shazeer2017", "without a loss the busiest"),
    "balance": lambda: _row("lossfree2024_alpha", "a large alpha costs"),
    "batch": lambda: _row("qiu2025", "balanced within each text"),
    "more": lambda: _printed("Shazeer 2017, Table 8: 29.2 after 28.9", 29.2 / 28.9),
    "bfloat16": lambda: _row("switch2021_stability", "the router in bfloat16 too"),
    "twice": lambda: _row("zhou2022", "GShard's top-2 reaches"),
    "bias": lambda: _row("lossfree2024", "the same against a loss"),
    "fine": lambda: _row("deepseekmoe2024", "split in four, one shared"),
    "parrots": lambda: _row("jelassi2024", "a wider dense model solves"),
    "twin": lambda: _minus(lead_of_the_first()),
}

INSTEAD = {
    "compute": "Printed factors at equal loss, most of time, are 2 to 7: at most 86% saved.",
    "speed": "2 to 7 times as fast in training, by the pair compared; 4 times is +300%.",
    "top-2": "38 to 48% in that table; it is top-1 at capacity 1.0 that saves 52%.",
    "seven": "Two of eight, for each token and each of 32 layers anew.",
    "2,048": "Only Switch-C has them; that they specialise is not shown there.",
    "closed": "The vendors do not say. Neither do we.",
    "small data": "On clusters experts lead with 4,000 examples; no other task was tried here.",
    "overfits": "Here tuning the experts alone underfits; whether tuning all overfits is undecided "
    "(chapter 16). Say which parts are tuned.",
    "first token": "Sooner than a dense model of equal total, not of equal active size.",
    "one GPU": "All experts must be held: 93 GB in bfloat16. Four bits would fit.",
    "useless": "Ours (8.5 million) is ahead at equal steps. At equal time, on one CPU core, it is "
    "nowhere surely ahead; at equal memory it is open, to step 1,000 of 4,000.",
    "softmax": "After division by their sum the gates are the same.",
    "unused": "It was in no layer here. Only the loss can say: take each expert out and look.",
    "pinned": "Here four of 16 serve 31%, by chance 25%. Measure the skew before you pin.",
    "topics": "It told over a third, but an untrained model's tells a half: take a null off.",
    "monosemantic": "At most one expert of 96 is a domain's own. Say which finer thing one does.",
    "committee": "The best four of 16 carry 29% where they carry least, by chance 25%.",
    "noise": "Noise alone did not: the busiest had five times its share.",
    "balance": "At usual weights the price is too small for us to see; at 1 it shows.",
    "batch": "Undecided after 300 steps; 0.012 ± 0.007 nats better after 3,000 (chapter 06).",
    "more": "Up to a point: 131,072 experts were worse than 65,536.",
    "bfloat16": "Not in 0.7 million parameters; large models keep float32, and it costs little.",
    "twice": "Not in our language models, where it also sees the future.",
    "bias": "Worse after 200 steps of one bench, better after 3,000 of another (chapter 09).",
    "fine": "Not seen after 200 small steps. Nothing is said of large models.",
    "parrots": "In a task of paths in graphs, where 32 experts help too. At equal arithmetic more "
    "sparse runs learn to look back (14 and 3 of 20; width not tried). A dense model of equal "
    "total size also learns the phone book (within 5%).",
    "twin": "One pair said so; six fresh ones are ahead on the mean, one by next to nothing.",
}


# --- the model in the box ------------------------------------------------------------------------


def busy(trace: RoutingTrace) -> torch.Tensor:
    """Count the choices of each expert: (L, E)."""
    chosen_LTK, E = choices_LTK(trace), trace.layers[0].num_experts
    return torch.stack([torch.bincount(x_TK.flatten(), minlength=E) for x_TK in chosen_LTK])


def held_out(corpus: Corpus, first: int, count: int = 2) -> Batch:
    """Return windows first .. first + count of each domain, of one grid: no two sets share text."""
    each = [corpus.windows(domain, 128, GRID) for domain in corpus.domains]
    taken = [[part[first : first + count] for part in windows] for windows in each]
    return Batch(*map(torch.cat, zip(*taken, strict=True)))


def routes(model: Mixtral, batch: Batch) -> RoutingTrace:
    """Return where the model sends a batch's tokens."""
    with torch.no_grad(), record(model) as recorded:
        model(batch.ids_BS)
    return recorded.trace


def told_of_topics(model: Mixtral, batch: Batch) -> float:
    """Return which share of the domain's entropy a first choice tells, on the layers' mean.

    The domains are equally frequent; no null is taken off.
    """
    domain_T = batch.domain_BS.flatten()
    told_L = mutual_information(routes(model, batch), domain_T, choice="first")
    return float(told_L.mean()) / math.log2(len(domain_T.unique()))


def shares(model: Mixtral, corpus: Corpus, first: int) -> dict[str, float]:
    """Measure five claims on two windows of each domain; the two after them say who is hot.

    Returns: the numbers that the claims of the same names are about.
    """
    batch, other = held_out(corpus, first), held_out(corpus, first + 2)
    ids_BS, domain_T, trace = batch.ids_BS, batch.domain_BS.flatten(), routes(model, batch)
    used_LE, before_LE = busy(trace), busy(routes(model, other))
    E, K = model.config.num_local_experts, model.config.num_experts_per_tok
    hot_LK = before_LE.topk(K).indices
    loss = Run.of(model, ids_BS).loss_T.nanmean()
    hurt_LE = torch.tensor(
        [[float(Run.of(model, ids_BS, ablate(layer, e)).loss_T.nanmean() - loss)
          for e in range(E)] for layer in range(len(used_LE))]
    )  # fmt: skip
    # The domains are equally long, so an expert's tokens by domain follow from shares by expert.
    of_LDE = specialization(trace, domain_T)
    purity_LE = of_LDE.amax(1) / of_LDE.sum(1)
    mass_LDE = torch.stack([_mass(trace, domain_T == d) for d in range(len(corpus.domains))], 1)
    groups = torch.combinations(torch.arange(E), K)
    committee_L = mass_LDE[..., groups].sum(-1).amin(1).amax(1)
    return {
        "unused": float((used_LE.argmin(1) == hurt_LE.argmin(1)).double().mean()),
        "pinned": float((used_LE.gather(1, hot_LK).sum(1) / used_LE.sum(1)).mean()),
        "topics": told_of_topics(model, batch),
        "monosemantic": float((purity_LE >= 0.8).double().mean()),
        "committee": float(committee_L.mean()),
    }


def _mass(trace: RoutingTrace, who_T: torch.Tensor) -> torch.Tensor:
    """Return each expert's share of the gates of some tokens: (L, E)."""
    rows = []
    for routing in trace.layers:
        gate_N = routing.gate_N * who_T[routing.token_N]
        mass_E = torch.zeros(routing.num_experts).index_add_(0, routing.expert_N, gate_N)
        rows.append(mass_E / mass_E.sum())
    return torch.stack(rows)


@cache
def box() -> tuple[Mixtral, Corpus]:
    """Load the model in the box and its text."""
    return load_pretrained("mixtral-mini").eval(), load_corpus(max_bytes=600_000)


def run(sets: int = 5) -> dict[str, list[float]]:
    """Measure the model in the box on disjoint sets of windows."""
    model, corpus = box()
    found = [shares(model, corpus, 4 * s) for s in range(sets)]
    return {key: [round(one[key], 6) for one in found] for key in found[0]}


def between(kept: dict[str, list[float]], first: int = 0, until: int = 0) -> ledger.Estimate:
    """Compare quantile balancing with the sign bias by seed: MaxVio of some steps, or the loss.

    Args: kept: what experiments/quantile_balance.py stored; first, until: steps; 0: the loss.
    """
    names = [f"MaxVio in step {n}" for n in range(first, until + 1)] if first else ["loss"]
    ours, theirs = (
        [statistics.mean(of) for of in zip(*(kept[f"{n} at {who}"] for n in names), strict=True)]
        for who in ("quantile", "u 0.01")
    )
    return ledger.Estimate.of([a - b for a, b in zip(ours, theirs, strict=True)])


# --- what a reader sees --------------------------------------------------------------------------


def card(key: str) -> str:
    """Write one claim's trial in HTML: what was said, what it means, what was found, instead."""
    claim = next(c for c in CLAIMS if c.key == key)
    found = EVIDENCE[key]()
    low, high = (f"{end:g}" for end in claim.holds)
    lines = {
        "said": str(SAYINGS[key]), "measured": claim.means, "holds if": f"all in {low} to {high}",
        "found": f"{found} ({found.where.replace('`', '')})",
        "verdict": verdict(claim, found).upper(), "say instead": INSTEAD[key],
    }  # fmt: skip
    left = 'style="text-align: left; vertical-align: top"'
    rows = [f"<tr><th {left}>{k}</th><td {left}>{escape(v)}</td></tr>" for k, v in lines.items()]
    return f"<p><b>{escape(claim.said)}</b></p><table>{''.join(rows)}</table>"


def folded(key: str) -> str:
    """Write one claim's trial in HTML, folded: the claim is seen, and its verdict on opening."""
    claim = next(c for c in CLAIMS if c.key == key)
    return f"<details><summary>{escape(claim.said)}</summary>{card(key)}</details>"


def table() -> str:
    """Return the table of all verdicts in Markdown."""
    rows = []
    for claim in CLAIMS:
        found = EVIDENCE[claim.key]()
        said = f"{claim.said} *({claim.kind})*"
        rows.append(f"| {said} | {found} | **{verdict(claim, found)}** | {INSTEAD[claim.key]} |")
    return "| claim | found | verdict | say instead |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def fill(page: str) -> str:
    """Return a page with the table written between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


def main(argv: list[str]) -> None:
    """Write README's table; with --run, measure the model in the box first."""
    if "--run" in argv:
        Path(KEPT.parent).mkdir(exist_ok=True)
        write(KEPT, json.dumps(run(), indent=1) + "\n")
    write(README, fill(README.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
