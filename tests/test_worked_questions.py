"""The numbers of the worked questions in chapters 14 and 15, each worked out again."""

from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest

from moe_lite.course.cost import (
    BYTES,
    DEVICES,
    all_to_all_bytes,
    copies,
    count_parameters,
    distinct_experts,
    kv_cache_bytes,
    step,
)
from moe_lite.course.presets import PRESETS
from moe_lite.course.widgets import CostCalculator
from moe_lite.course.widgets.cost_calculator import lasts

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MACHINES, SERVING = "14_many_machines", "15_serving"
V3, MIXTRAL, OSS = (PRESETS[n] for n in ("DeepSeek-V3", "Mixtral 8x7B", "gpt-oss-120b"))
H100, H800, NVL72 = (DEVICES[n] for n in ("H100 SXM", "H800 SXM", "GB200 NVL72"))


def answers() -> dict[tuple[str, int], list[str]]:
    oss = count_parameters(OSS)
    common = oss.total - oss.experts
    fits = (oss.experts * BYTES["fp4"] + 2 * common) / 1e9
    caches = [f"{kv_cache_bytes(a, 131072) / 1e9:.1f} GB" for a in (V3, MIXTRAL, OSS)]
    anywhere = replace(V3, nodes=0)
    ways = [copies(V3, 256, by_node=False), copies(anywhere, 256), copies(V3, 256)]
    rows = 88 * 144 * 8 // 256
    active = OSS.moe_layers * OSS.top_k * OSS.expert * BYTES["fp4"]
    more = [step(a, H100, "decode", 4, 1).weight_bytes / step(a, H100, "decode", 1, 1).weight_bytes
            for a in (MIXTRAL, V3)]  # fmt: skip
    sent = V3.moe_layers * copies(V3, 64).between * V3.width * (3 + 4 / 128)
    parts = [step(V3, d, "decode", 88 * ranks, 4989, ranks=ranks, weights="fp8").parts
             for d, ranks in ((H800, 144), (NVL72, 72))]  # fmt: skip
    ms = [[f"{1e3 * t:.1f}" for t in part.values()] for part in parts]
    return {
        (SERVING, 1): [f"{fits:.1f} GB", f"take {2 * oss.total / 1e9:.0f}"],
        (SERVING, 2): [*caches, *(f"{kv_cache_bytes(a, 1):,}" for a in (V3, MIXTRAL, OSS))],
        (SERVING, 3): [f"{distinct_experts(256, 8, 16):.0f} and",
                       f"{distinct_experts(8, 2, 16):.1f}."],
        (MACHINES, 1): [f"{way.between:.2f}" for way in ways],
        (SERVING, 4): [f"{H100.bf16 / H100.bandwidth:.0f}.", f"{rows} rows",
                       f"be {88 * 8 * 8 / 256:.0f}."],
        (SERVING, 5): [f"{rows / (128 * ceil(rows / 128)):.0%}", f"{16 / 128:.1%}"],
        (SERVING, 6): [f"{(1 - 0.8**4) / 0.2:.2f} tokens",
                       f"{distinct_experts(8, 2, 4):.1f} experts",
            f"{distinct_experts(256, 8, 4):.1f}, "
                       f"{distinct_experts(256, 8, 4) / 8:.1f} times",
            f"{more[0]:.2f} and {more[1]:.2f} times"],
        (SERVING, 7): [*(f"{active / speed * 1e3:.0f} ms" for speed in (32e9, 7e9, 80e9))],
        (MACHINES, 2): [f"{sent / 1e6:.2f} MB", f"{all_to_all_bytes(V3, 1, 64) / 1e6:.1f} MB"],
        (MACHINES, 3): [f"compute {ms[0][0]}, memory {ms[0][1]}, network {ms[0][2]} ms",
             f"{ms[1][0]}, {ms[1][1]} and {ms[1][2]} ms"],
    }  # fmt: skip


@pytest.mark.parametrize("chapter, number", answers())
def test_an_answer_is_what_cost_gives(chapter, number):
    text = (NOTEBOOKS / f"{chapter}.py").read_text(encoding="utf-8").replace("\n# ", " ")
    _, _, question = text.partition("questions with numbers")[2].partition(f"**{number}.** ")
    answer = question.partition("<summary>Answer</summary>")[2].partition("</details>")[0]
    assert answer, f"there is no question {number}"
    for said in answers()[chapter, number]:
        assert said in answer


@pytest.mark.parametrize("chapter", [MACHINES, SERVING])
def test_each_question_is_worked_out_here(chapter):
    text = (NOTEBOOKS / f"{chapter}.py").read_text(encoding="utf-8")
    asked = text.partition("questions with numbers")[2].count("<summary>Answer</summary>")
    assert asked == sum(where == chapter for where, _ in answers())


def test_the_bounds_that_the_tenth_names():
    for device, ranks, bound in ((H800, 144, "network"), (NVL72, 72, "memory")):
        found = step(V3, device, "decode", 88 * ranks, 4989, ranks=ranks, weights="fp8")
        assert found.bound == bound


def test_the_calculators_questions_are_answered_by_the_calculator():
    text = (NOTEBOOKS / f"{SERVING}.py").read_text(encoding="utf-8").replace("\n# ", " ")
    answer = text.partition("<summary>Answers</summary>")[2].partition("</details>")[0]
    home = {name: CostCalculator(name, device="RTX 4090", weights="fp4") for name in PRESETS}
    fit = {name for name, widget in home.items() if widget.costs["decode"].fits}
    total = {name: count_parameters(PRESETS[name]).total / 1e9 for name in PRESETS}
    assert fit == {name for name in PRESETS if total[name] < 36} and len(fit) == 8
    ranks = [CostCalculator(ranks=n, batch=8).costs["decode"] for n in (1, 2)]
    assert [cost.fits for cost in ranks] == [False, True] and ranks[1].bound == "memory"
    v3 = CostCalculator("DeepSeek-V3", ranks=32, batch=128, context=4096, weights="fp8")
    between = v3.costs["prefill"]
    v3.device = "GB200 NVL72"
    inside = v3.costs["prefill"]
    assert (between.bound, inside.bound) == ("network", "compute")
    times = f"network, {lasts(between.seconds)};", f"compute, {lasts(inside.seconds)}."
    for said in ("The eight below 36 billion", "Two; memory.", *times):
        assert said in answer
