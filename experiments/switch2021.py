"""Fedus, Zoph, Shazeer 2021, Table 1: one expert or two, at three capacities, against dense.

The paper trains models with 128 experts on 32 TPUs; ours is the course's small model with 8
experts, 300 steps on the course's text. So no loss and no hour can be compared, but the sentences
about how the rows relate can. T5-Base does as much arithmetic for a token as Switch-Base; its
stand-in is the dense twin, one network as wide as one expert. T5-Large does more; ours is a dense
network four times as wide. Capacity means the same for top-1 and top-2, places over the even share
of *tokens*, so at 1.0 top-2 drops half of all its pairs, and both do the work of one expert for
each token.

The clock: on TPUs every expert computes all its places, used or not. On a CPU only what was kept
is computed. So speed is measured both ways: with the backend that skips empty places and with
``padded``, which does not. A step's seconds are the processor's own (other programs do not count),
the least of several rounds, in which the settings take turns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_lite.course.data import Corpus, load_corpus
from moe_lite.course.ledger import Claim, Experiment, Measures, Pair
from moe_lite.course.sweep import BALANCES, MAX_BYTES, TRAINING, Outcome, Setting, sweep
from moe_lite.history import Row
from moe_lite.train import train

FACTORS = (2.0, 1.25, 1.0)
ONE: dict[str, Any] = {"num_experts_per_tok": 1}
DENSE = ONE | {"num_local_experts": 1}
LOSS: dict[str, Any] = {"z_coef": 0.0}  # the paper has the balancing loss only, at 0.01

SETTINGS: dict[str, Setting] = {
    "dense": Setting(model=DENSE, training=LOSS),
    "dense, 4 wide": Setting(model=DENSE | {"intermediate_size": 512}, training=LOSS),
}
for factor in FACTORS:
    of = {"capacity_factor": factor}
    SETTINGS[f"top-1, {factor}"] = Setting("switch", of, ONE, LOSS)
    SETTINGS[f"top-2, {factor}"] = Setting("gshard", of, {}, LOSS, balance="first choices")
# Asked after the first result: would fewer experts, each with more of the text, do better?
SETTINGS["top-1, 2.0, 2 experts"] = Setting(
    "switch", {"capacity_factor": 2.0}, ONE | {"num_local_experts": 2}, LOSS
)

MARKS, WIDTH, TARGET = (40, 100, 150, 200, 250, 300), 20, 5.0
ROUNDS, TIMED = 3, 5
PART = Path(__file__).parent / "results" / ".switch2021.part.json"


def of_history(rows: Sequence[Row]) -> dict[str, float | None]:
    """Read from a training run: loss at some steps, steps to the target, share dropped at the end.

    A loss at a step is the mean over the last 20; every setting sees the same batches.
    """
    loss = [row["loss"] for row in rows]
    mean = {n: sum(loss[n - WIDTH : n]) / WIDTH for n in range(WIDTH, len(loss) + 1)}
    last = rows[-WIDTH:]
    return {
        **{f"training loss, step {n}": mean[n] for n in MARKS if n in mean},
        "steps to 5.0": next((float(n) for n, value in mean.items() if value <= TARGET), None),
        "dropped in training": sum(row["dropped"] for row in last) / len(last),
    }


def more(outcome: Outcome, corpus: Corpus) -> Mapping[str, float | None]:
    return of_history(outcome.history.rows)


def seconds(corpus: Corpus, seed: int, backend: str) -> dict[str, float]:
    """Measure a step's processor seconds, all settings in turn, on models that have just begun."""
    models = {name: setting.build(seed) for name, setting in SETTINGS.items()}
    config = replace(TRAINING, **LOSS | {"steps": TIMED, "seed": seed})
    least = dict.fromkeys(models, float("inf"))
    for _ in range(ROUNDS):
        for name, model in models.items():
            for layer in model.moe_layers:
                layer.backend = backend
            begin = time.process_time()
            train(model, corpus, config, progress=False)
            least[name] = min(least[name], (time.process_time() - begin) / TIMED)
    return least


def run(seeds: Sequence[int]) -> Measures:
    """Train every setting with every seed, then time them."""
    found = sweep(SETTINGS, seeds, part=PART, measure=more)
    for name in SETTINGS:  # how fast a run went while other programs ran says nothing
        del found[f"tokens/s at {name}"], found[f"bits per byte at {name}"]
    corpus, threads = load_corpus(max_bytes=MAX_BYTES), torch.get_num_threads()
    torch.set_num_threads(1)
    for backend, suffix in (("auto", ""), ("padded", ", padded")):
        timed = [seconds(corpus, seed, backend) for seed in seeds]
        for name in SETTINGS:
            found[f"s/step{suffix} at {name}"] = [of[name] for of in timed]
    torch.set_num_threads(threads)
    return found | relations(found)


TIMES = {
    "time, top-2 at 2.0 / top-1 at 1.0": ("top-2, 2.0", "top-1, 1.0"),
    "time, top-2 at 1.0 / top-1 at 1.0": ("top-2, 1.0", "top-1, 1.0"),
    "time, dense 4 wide / top-1 at 1.0": ("dense, 4 wide", "top-1, 1.0"),
    "time, dense / top-1 at 1.0": ("dense", "top-1, 1.0"),
}


def relations(found: Measures) -> Measures:
    """Relate the times to the target, seed by seed; a run that never came there is a bound."""
    made: Measures = {}
    for name in SETTINGS:
        both = zip(found[f"steps to 5.0 at {name}"], found[f"s/step at {name}"], strict=True)
        made[f"seconds to 5.0 at {name}"] = [n and s and n * s for n, s in both]
    for key, (late, early) in TIMES.items():
        columns = [made[f"seconds to 5.0 at {late}"], made[f"seconds to 5.0 at {early}"]]
        for name in (late, early):
            columns.append([s and TRAINING.steps * s for s in found[f"s/step at {name}"]])
        for suffix in ("", ", at least", ", at most"):
            made[key + suffix] = []
        for a, b, all_a, all_b in zip(*columns, strict=True):
            assert all_a and all_b
            made[key].append(a and b and a / b)
            made[f"{key}, at least"].append(all_a / b if b and not a else None)
            made[f"{key}, at most"].append(a / all_b if a and not b else None)
    return made


class _Enough(Exception):
    pass


def spot() -> Measures:
    """Train the first steps of three settings again, with the first seed."""
    corpus = load_corpus(max_bytes=MAX_BYTES)
    found: Measures = {}
    rows: list[Row] = []

    def stop(row: Row) -> None:
        rows.append(row)
        if row["step"] == MARKS[0]:
            raise _Enough

    for name in ("dense", "top-1, 1.0", "top-2, 1.0"):
        setting = SETTINGS[name]
        rows.clear()
        model, balance = setting.build(0), BALANCES[setting.balance]
        try:
            train(model, corpus, replace(TRAINING, **LOSS), balance=balance, callback=stop,
                  progress=False)  # fmt: skip
        except _Enough:
            key = f"training loss, step {MARKS[0]}"
            found[f"{key} at {name}"] = [of_history(rows)[key]]
    return found


TABLE = "Table 1"
EXPERIMENT = Experiment(
    title="Top-1 and top-2 at three capacities, and dense twins, on the course's text",
    source="Fedus, Zoph, Shazeer 2021, arXiv:2101.03961",
    chapter="05",
    seeds=10,
    config={
        "settings": {name: vars(setting) for name, setting in SETTINGS.items()},
        "training": vars(TRAINING) | LOSS, "target": TARGET, "marks": MARKS, "width": WIDTH,
        "rounds": ROUNDS, "timed": TIMED, "max_bytes": MAX_BYTES,
    },
    claims=(
        Claim("one expert of many beats a dense twin of the same arithmetic: loss, dense − top-1 "
              "at 1.0", TABLE, Pair("loss at dense", "loss at top-1, 1.0"), 1.731 - 1.561, void=0,
              note="1.731 and 1.561"),
        Claim("so does top-2: loss, dense − top-2 at 1.0", TABLE,
              Pair("loss at dense", "loss at top-2, 1.0"), 1.731 - 1.572, void=0,
              note="1.731 and 1.572"),
        Claim("at capacity 1.0 top-1 is the better of the two: loss, top-2 − top-1", TABLE,
              Pair("loss at top-2, 1.0", "loss at top-1, 1.0"), 1.572 - 1.561, void=0,
              note="1.572 and 1.561"),
        Claim("at capacity 2.0 top-2 is: loss, top-1 − top-2", TABLE,
              Pair("loss at top-1, 2.0", "loss at top-2, 2.0"), 1.554 - 1.547, void=0,
              note="1.554 and 1.547"),
        Claim("top-2 loses by a capacity of 1.0 instead of 2.0", TABLE,
              Pair("loss at top-2, 1.0", "loss at top-2, 2.0"), 1.572 - 1.547, void=0,
              note="1.572 and 1.547"),
        Claim("top-1 loses as well", TABLE,
              Pair("loss at top-1, 1.0", "loss at top-1, 2.0"), 1.561 - 1.554, void=0,
              note="1.561 and 1.554"),
        Claim("the dense twin is faster: examples per second, dense / top-1 at 1.0", TABLE,
              Pair("s/step at top-1, 1.0", "s/step at dense", "/"), 1600 / 1000, void=1,
              note="1600 and 1000"),
        Claim("top-1 is faster than top-2, both at 1.0", TABLE,
              Pair("s/step at top-2, 1.0", "s/step at top-1, 1.0", "/"), 1000 / 860, void=1,
              note="1000 and 860"),
        Claim("less capacity is faster where empty places are computed: top-1 at 1.0 / at 2.0",
              TABLE, Pair("s/step, padded at top-1, 2.0", "s/step, padded at top-1, 1.0", "/"),
              1000 / 860, void=1, note="1000 and 860; ours with the padded backend"),
        Claim("top-1 at 1.0 reaches a fixed loss sooner than top-2 at 2.0: time, top-2 / top-1",
              TABLE, "time, top-2 at 2.0 / top-1 at 1.0", 68.7 / 62.8, void=1,
              note="68.7 and 62.8 hours"),
        Claim("and than top-2 at 1.0", TABLE,
              "time, top-2 at 1.0 / top-1 at 1.0", 80.1 / 62.8, void=1,
              note="80.1 and 62.8 hours"),
        Claim("and than a larger dense model: time, dense 4 wide / top-1", TABLE,
              "time, dense 4 wide / top-1 at 1.0", 131.1 / 62.8, void=1,
              note="T5-Large 131.1 and 62.8 hours"),
    ),
    finding=(
        "after 300 steps top-1 is still behind its dense twin (dense less top-1 {0} nats, 0.17 "
        "in the paper), by a gap that has begun to shrink; two experts beat one where there is "
        "room ({3} nats)"
    ),
    run=run,
    spot=spot,
    caveat=(
        "when the rules were written, one run of most settings with another seed (100) had been "
        "seen, in which top-1 and top-2 were a little better than dense. The control with two "
        "experts was added after the first result; no row here judges it. The batches hold the "
        "five domains in a fixed order, so what finds no place is seldom drama and often prose. "
        "Three seeds were judged first, then four, and with the fourth five verdicts changed, by "
        "rules that looked at means. Six more were added under the present rules; twelve in all "
        "were planned, ten came in the time, and the losses had been looked at once before the "
        "end. The run was resumed after interruptions, on a busy machine; the minutes are those of "
        "its last parts."
    ),
)  # fmt: skip
