"""What is promised of the GPU paths at a size where blocks race, through the benchmark's eyes."""

import pytest
import torch

from experiments.bench import measure
from experiments.bench.paths import CONTENDERS, Case
from experiments.bench.shapes import ALL, Shape

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

SHAPE = Shape(2048, 512, 256, 16, 4)
FUSED, GROUPED = (
    next(c for c in CONTENDERS if c.name == name)
    for name in ("moe_lite triton", "moe_lite grouped")
)


def checked(contender, dtype, routing):
    """Run the checks that come before a timing: right, the same bits twice, all of it written."""
    case = Case(SHAPE, dtype, routing, "cuda")
    run = contender.build(case)
    return case, run, measure.check(contender, run, case, measure.reference(case, "experts"))


@pytest.mark.parametrize("routing", ALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_is_right_repeats_its_bits_writes_all_and_never_waits(dtype, routing):
    _, _, row = checked(FUSED, dtype, routing)
    assert row["status"] == "timed" and row["same_bits"] and row["waits_for_device"] is False, row


@pytest.mark.parametrize("routing", ALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_is_right_repeats_its_bits_and_writes_all(dtype, routing):
    _, _, row = checked(GROUPED, dtype, routing)
    assert row["status"] == "timed" and row["same_bits"], row
    if dtype == "bfloat16":  # what torch's grouped product is made for
        assert row["waits_for_device"] is False


def test_fused_keeps_hardly_more_than_the_smallest_set():
    case, run, _ = checked(FUSED, "bfloat16", "random")
    kept = measure.activations(FUSED, run, case)["kept"]
    # Its indices take eight bytes each, and there are three of them to a pair.
    assert kept <= 1.1 * SHAPE.smallest_activations(2) + 24 * SHAPE.rows
