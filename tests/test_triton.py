"""The fused backend without a GPU: its tests in the interpreter, its kernels compiled for one."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS
from moe_lite.layer import MoELayer
from moe_lite.routers import TopKRouter

ROOT = Path(__file__).resolve().parent.parent


def test_without_triton_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "moe_lite.fast.triton", raising=False)
    layer = MoELayer(TopKRouter(8, 4, 2), Experts(4, 8, 8), "triton")
    with pytest.raises(ValueError, match="needs Triton, which is not here .pip install triton"):
        layer(torch.randn(3, 8))


def test_without_a_gpu_there_is_one_sentence():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter needs no GPU")
    routing = TopKRouter(8, 4, 2)(torch.randn(3, 8))
    with pytest.raises(ValueError, match="needs a GPU, but the tokens are on the cpu"):
        BACKENDS["triton"](torch.randn(3, 8), Experts(4, 8, 8), routing)


def test_schedule_covers_every_row_once():
    pytest.importorskip("triton")
    from moe_lite.fast.triton import schedule

    for sizes in ([5, 0, 17, 16, 1], [0, 0], [33], [0, 16, 0]):
        offsets = torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        total = int(offsets[-1]) + 3  # and some rows that nobody keeps
        expert, row, count = schedule(offsets, total, 16)
        covered = []
        for e, r in zip(expert[:count].tolist(), row[:count].tolist(), strict=True):
            covered += range(r, min(r + 16, int(offsets[e + 1])))
            assert offsets[e] <= r < offsets[e + 1]
        assert covered == list(range(int(offsets[-1])))


@pytest.mark.slow("kernels in the interpreter")
def test_the_gpu_tests_pass_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gpu"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 38


# --- compiled ahead of time ----------------------------------------------------------------------

KERNELS = {  # config -> kernel and its switches
    "up": ("_up", {}),
    "down": ("_product", {"TRANSPOSED": True, "TWO": False}),
    "down_back": ("_down_back", {}),
    "up_back": ("_product", {"TRANSPOSED": False, "TWO": True}),
    "weights": ("_weights", {}),
}
TYPES = {
    "*i64": {"token", "slot_row", "first"},
    "*i32": {"offsets", "tile_expert", "tile_row", "tiles"},
    "*fp32": {"gate", "dot"},
    "i32": {"E", "R", "D", "F", "M", "N", "K"},
}
SHARED_KIB = {90: 227, 80: 163}  # what a block may have


def compiled(kernel: str, switches: dict, config: tuple, arch: int, element: str) -> dict:
    """Compile a kernel and give what the assembler says of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import compiler as nvidia
    from triton.compiler import ASTSource

    from moe_lite.fast import triton as ours

    BM, BN, BK, warps, stages = config
    constants = {"BM": BM, "BN": BN, "BK": BK, "PRECISION": "ieee", "TMA": True, **switches}
    signature, constexprs, attributes = {}, {}, {}
    for i, name in enumerate((function := getattr(ours, kernel)).arg_names):
        kind = next((kind for kind, names in TYPES.items() if name in names), f"*{element}")
        signature[name] = "constexpr" if name in constants else kind
        if name in constants:
            constexprs[(i,)] = constants[name]
        elif name != "E":
            attributes[(i,)] = [["tt.divisibility", 16]]
    built = triton.compile(
        ASTSource(function, signature=signature, constexprs=constexprs, attrs=attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    ptxas = getattr(nvidia, "get_ptxas", None) or (lambda arch: nvidia.get_ptxas_path(arch))
    said = subprocess.run(
        [ptxas(arch).path, f"-arch=sm_{arch}{'a' if arch >= 90 else ''}", "-v", "-", "-o",
         os.devnull], input=built.asm["ptx"], capture_output=True, text=True,
    ).stderr  # fmt: skip
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled": int(re.search(r"(\d+) bytes spill stores", said)[1]),
        "shared": built.metadata.shared / 1024,
        "serialized": "serializ" in said,
        "wgmma": built.asm["ptx"].count("wgmma.mma_async"),
    }


@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("arch", [90, 80])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills(name, arch, element, record_property):
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels are not compiled")
    from moe_lite.fast import triton as ours

    kernel, switches = KERNELS[name]
    configs = (
        [ours.FLOAT32] if element == "fp32" else [(ours.SM_90 if arch == 90 else ours.SM_80)[name]]
    )
    if name != "weights" and element != "fp32":
        configs.append(ours.FEW_ROWS)
    for config in configs:
        found = compiled(kernel, switches, config, arch, element)
        record_property(f"{config}", found)
        print(name, arch, element, config, found)
        assert found["spilled"] == 0 and not found["serialized"], found
        assert found["shared"] <= SHARED_KIB[arch], found
        # Tensor cores, by the instruction of the day, wherever 64 rows are there to fill it.
        assert bool(found["wgmma"]) == (arch == 90 and element != "fp32" and config[0] >= 64)


tl: Any = None  # the test below lends it


def _zeros(out):
    tl.store(out + tl.arange(0, 4), tl.zeros([4], tl.float32))


def test_a_check_leaves_the_language_as_it_was(monkeypatch):
    """An interpreted kernel that calls an interpreted function leaves 64 names of it changed."""
    pytest.importorskip("triton.runtime.interpreter")  # an import of its own would be a change
    import triton.language as language

    from moe_lite.course.checks import triton_kernels

    monkeypatch.setitem(globals(), "tl", language)
    places = (language, language.core, language.math, language.tensor, language.dtype)
    before = [dict(vars(place)) for place in places]
    out = torch.ones(4)
    run = triton_kernels._launcher(_zeros, lambda kernel: lambda out: (kernel[(1,)](out), out)[1])
    assert run(out).tolist() == [0.0] * 4
    changed = [
        (place.__name__, name)
        for place, names in zip(places, before, strict=True)
        for name in vars(place).keys() | names.keys()
        if vars(place).get(name) is not names.get(name)
    ]
    assert changed == []
