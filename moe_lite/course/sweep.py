"""Sweeps: many small models that differ in a few words, each trained with several seeds.

What chapters 05 to 09 compare (routers, losses, shapes, precisions) are settings of one small
language model on the course's five domains, so that an experiment is a table of settings::

    settings = {
        "top-2": Setting(),
        "top-1": Setting("switch", options={"capacity_factor": 1.0}),
        "no loss": Setting(training={"aux_coef": 0.0}),
    }
    measures = sweep(settings, seeds=range(3))  # {"loss at top-2": [one for each seed], ...}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import MixtralConfig, TrainConfig
from ..evaluation import cross_entropy, evaluate
from ..experts import Experts
from ..files import write
from ..history import History, Row
from ..losses import drop_rate, load_balancing_loss, max_violation, mixtral_aux_loss
from ..model import Mixtral
from ..routers import ROUTERS
from ..routing import NotFinite
from ..train import Balance, Probe, train
from .data import Corpus, load_corpus
from .ledger import unfinished
from .rounded import bfloat16_products

# 0.69 M parameters, of which a token uses 0.39 M; 300 steps take 20 to 30 s on a CPU core.
SMALL = MixtralConfig(
    vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    max_position_embeddings=256, rope_theta=1e4, tie_word_embeddings=True,
)  # fmt: skip
TRAINING = TrainConfig(steps=300, batch_size=16, seq_len=64, lr=5e-3, autocast="off")
MAX_BYTES = 1_000_000

Routers = Mapping[str, Callable[..., nn.Module]]

BALANCES: Mapping[str, Balance] = {
    "load_balancing_loss": load_balancing_loss,
    "first choices": lambda routings: load_balancing_loss(routings, choices=1),
    "pooled layers": mixtral_aux_loss,
}
"""What ``aux_coef`` may weigh."""


@dataclass(frozen=True)
class Setting:
    """Say in which words one model of a sweep differs from the common one.

    Args:
        router:   a key of :data:`~moe_lite.routers.ROUTERS`, and options: its keyword arguments.
        model:    changes to :data:`SMALL`; training: changes to :data:`TRAINING`.
        shared:   how many shared experts there are besides the routed ones, as wide as those.
        balance:  a key of :data:`BALANCES`.
    """

    router: str = "top-k"
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    shared: int = 0
    balance: str = "load_balancing_loss"

    @property
    def config(self) -> MixtralConfig:
        changed = dict(self.model)
        if {"hidden_size", "num_attention_heads"} & changed.keys():
            changed = {"head_dim": None} | changed  # follows from those two, not from SMALL
        return replace(SMALL, **changed)

    def build(self, seed: int = 0, routers: Routers = ROUTERS) -> Mixtral:
        """Make the model; the same seed gives the same weights wherever settings agree.

        Raises: ValueError if there is no such router.
        """
        _known("router", self.router, routers)
        config = self.config
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = Mixtral(config)
            for layer in model.moe_layers:
                layer.gate = routers[self.router](config, **self.options)
                if self.shared:
                    width = self.shared * config.intermediate_size  # side by side, one product
                    layer.shared = Experts(1, config.hidden_size, width)
                    layer.shared.reset_parameters(config.initializer_range)
        return model


def _known(what: str, name: str, there: Mapping[str, Any]) -> None:
    if name not in there:
        raise ValueError(f"there is no {what} {name!r}; there are: {', '.join(there)}")


@dataclass(eq=False)
class Outcome:
    """Hold what became of one setting with one seed; ``diverged``: the step at which, or None."""

    model: Mixtral
    history: History
    diverged: int | None = None


def run(
    setting: Setting,
    corpus: Corpus,
    seed: int = 0,
    *,
    routers: Routers = ROUTERS,
    balances: Mapping[str, Balance] = BALANCES,
    probe: Probe | None = None,
    progress: bool = False,
) -> Outcome:
    """Train one setting with one seed; a run whose numbers become infinite ends there.

    Raises: ValueError if there is no such router or balance, or a config cannot be.
    """
    _known("balance", setting.balance, balances)
    config = replace(TRAINING, **{"seed": seed, **setting.training})
    rows: list[Row] = []
    model = setting.build(seed, routers)
    try:
        with bfloat16_products(config.autocast, "cpu"):
            train(
                model, corpus, config, balance=balances[setting.balance], probe=probe,
                callback=rows.append, progress=progress,
            )  # fmt: skip
    except NotFinite:
        return Outcome(model, History(rows), diverged=len(rows) + 1)
    return Outcome(model, History(rows))


@torch.no_grad()
def measure(
    model: Mixtral, corpus: Corpus, *, batches: int = 16, seq_len: int = TRAINING.seq_len
) -> dict[str, float]:
    """Measure a model on held-out text, in batches of 16 windows, without noise.

    Returns: loss (nats per token), bits per byte (mean over the domains), MaxVio (of all this
             text's loads), MaxVio per batch and dropped (share of pairs); of several layers, and
             for the last two of several batches, the mean.
    Source:  MaxVio: Wang et al. 2024 (arXiv:2408.15664), eq. 4, global and per batch.
    """
    training = model.training
    model.eval()
    nats, layers = [], []
    for step in range(batches):
        batch = corpus.batch("validation", 16, seq_len, step=step)
        out = model(batch.ids_BS)
        nats.append(cross_entropy(out.logits_BSV, batch.targets_BS))
        layers.append(out.routings)
    model.train(training)
    config = replace(TRAINING, seq_len=seq_len, autocast="off")
    bits = evaluate(model, corpus, config=config)
    by_layer, E = list(zip(*layers, strict=True)), model.config.num_local_experts
    demand_LE = torch.stack(
        [torch.bincount(torch.cat([r.expert_N for r in of]), minlength=E) for of in by_layer]
    ).float()
    every = [r for of in layers for r in of]
    return {
        "loss": torch.stack(nats).mean().item(),
        "bits per byte": sum(bits.values()) / len(bits),
        "MaxVio": (demand_LE.amax(1) / demand_LE.mean(1) - 1).mean().item(),
        "MaxVio per batch": torch.stack([max_violation(r) for r in every]).mean().item(),
        "dropped": torch.stack([drop_rate(r) for r in every]).mean().item(),
    }


def sweep(
    settings: Mapping[str, Setting],
    seeds: Sequence[int],
    *,
    part: Path | None = None,
    routers: Routers = ROUTERS,
    balances: Mapping[str, Balance] = BALANCES,
    measure: Callable[[Outcome, Corpus], Mapping[str, float | None]] | None = None,
    max_bytes: int | None = MAX_BYTES,
) -> dict[str, list[float | None]]:
    """Train every setting with every seed and measure each; on one thread, which is faster here.

    Args:    part: a file in which finished runs are kept, so that an interrupted sweep goes on
             where it was; deleted at the end. measure: from outcome and text to more numbers, or
             others than :func:`measure`'s of the same name.
    Returns: for each number and setting ``"number at setting": [one for each seed]``. Besides
             those of :func:`measure`: "tokens/s" (of training) and "diverged" (at which step;
             None for a run that did not). Of a run that diverged there is nothing else.
    Raises:  as :func:`run`.
    """
    mark = json.loads(json.dumps({name: asdict(setting) for name, setting in settings.items()}))
    corpus, threads = load_corpus(max_bytes=max_bytes), torch.get_num_threads()
    mark["text"] = corpus.digest
    done: dict[str, dict[str, float | None]] = unfinished(part, mark)
    torch.set_num_threads(1)  # products this small only wait for each other
    try:
        for seed in seeds:
            for name, setting in settings.items():
                if (key := f"{name}; seed {seed}") in done:
                    continue
                done[key] = _one(setting, corpus, seed, routers, balances, measure)
                print(key, {k: v and round(v, 4) for k, v in done[key].items()}, flush=True)
                if part is not None:
                    write(part, json.dumps({"mark": mark, "done": done}))
    finally:
        torch.set_num_threads(threads)
    if part is not None:
        part.unlink(missing_ok=True)  # the next run is to be a run
    return {
        f"{what} at {name}": [done[f"{name}; seed {seed}"].get(what) for seed in seeds]
        for name in settings
        for what in dict.fromkeys(w for s in seeds for w in done[f"{name}; seed {s}"])
    }


def _one(
    setting: Setting,
    corpus: Corpus,
    seed: int,
    routers: Routers,
    balances: Mapping[str, Balance],
    more: Callable[[Outcome, Corpus], Mapping[str, float | None]] | None,
) -> dict[str, float | None]:
    outcome = run(setting, corpus, seed, routers=routers, balances=balances)
    rows = outcome.history.rows
    found: dict[str, float | None] = {"diverged": outcome.diverged}
    if rows:
        found["tokens/s"] = rows[-1]["tokens"] / rows[-1]["seconds"]
    if outcome.diverged is None:
        found |= measure(outcome.model, corpus)
    return found | (dict(more(outcome, corpus)) if more is not None else {})
