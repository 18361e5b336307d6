"""The benchmark compares like with like, refuses what is wrong, and says what it measured."""

import copy
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from experiments import bench
from experiments.bench import gpu, measure, models, paths, report
from experiments.bench.paths import CONTENDERS, Case, Contender
from experiments.bench.shapes import ALL, CPU_SHAPES, GPU_SHAPES, SHAPES, Shape, choices, logits

TINY = Shape(24, 16, 8, 4, 2, ("float32", "bfloat16"))
NAMES = {c.name: c for c in CONTENDERS}
HERE = [c for c in CONTENDERS if c.needs != "cuda" and not c.compiled]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Keep the ceilings small, and compile without a C++ compiler."""
    monkeypatch.setattr(paths, "COMPILER", "aot_eager")
    real = measure.ceilings
    monkeypatch.setattr(measure, "ceilings", lambda device: real(device, 64))


def rows_of(contenders=HERE, shape=TINY, dtype="float32", routing="random", rounds=1):
    rows = measure.layer("tiny", dtype, routing, "cpu", contenders, rounds, shape)
    return {(row["path"], row["what"]): row for row in rows}


# --- routings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "E", "K"), [(64, 8, 2), (64, 4, 1), (96, 6, 3), (8, 4, 4), (1, 4, 2)]
)
@pytest.mark.parametrize("routing", ALL)
def test_a_routing_has_the_load_of_its_name(routing, T, E, K):
    expert_TK = choices(routing, T, E, K, seed=3)
    assert expert_TK.shape == (T, K) and 0 <= int(expert_TK.min()) <= int(expert_TK.max()) < E
    assert all(len(set(row)) == K for row in expert_TK.tolist())
    load_E = torch.bincount(expert_TK.flatten(), minlength=E)
    if routing == "balanced" and T * K % E == 0:
        assert load_E.tolist() == [T * K // E] * E
    if routing == "one-hot":
        assert load_E[0] == T and (expert_TK[:, 0] == 0).all()
        assert load_E[1:].max() - load_E[1:].min() <= 1
    if routing == "half empty":
        assert (load_E > 0).sum() <= max(K, (E + 1) // 2)
        assert load_E[1::2].sum() == 0 or K > (E + 1) // 2


def test_zipfs_loads_fall_as_one_over_the_rank():
    load_E = torch.bincount(choices("zipf", 20_000, 8, 1, seed=0).flatten(), minlength=8)
    found = load_E.sort(descending=True).values / load_E.sum()
    expected = 1 / torch.arange(1, 9)
    assert torch.allclose(found, expected / expected.sum(), atol=0.01)


def test_seeds_give_other_routings_and_the_same_one_again():
    first, again, other = (choices("random", 50, 8, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="not 'square'"):
        choices("square", 8, 4, 2, 0)
    with pytest.raises(ValueError, match="between 1 and 4 experts, not 5"):
        choices("random", 8, 4, 5, 0)


@pytest.mark.parametrize("K", [1, 2, 8])
def test_logits_choose_the_same_experts_in_bfloat16(K):
    expert_TK = choices("random", 200, 16, K, 0)
    logits_TE = logits(expert_TK, 16, 0)
    assert torch.equal(logits_TE, logits_TE.bfloat16().float())
    assert torch.equal(logits_TE.bfloat16().topk(K).indices.sort().values, expert_TK.sort().values)


# --- one layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TINY.dtypes)
@pytest.mark.parametrize("routing", ["random", "one-hot", "half empty"])
def test_every_path_that_can_run_here_is_right_and_timed(dtype, routing):
    rows = rows_of(dtype=dtype, routing=routing)
    assert len(rows) == 2 * len(HERE)
    for (path, what), row in rows.items():
        assert row["status"] == "timed", (path, row["note"])
        assert row["error"] <= measure.TOLERANCE[getattr(torch, dtype)] and row["same_bits"]
        assert row["seconds"]["median"] > 0 and len(row["seconds"]["rounds"]) == 1
        assert row["flop"] == (6 if what == "forward" else 18) * 48 * 16 * 8
        assert row["memory"]["kept"] >= 0.9 * (row["memory"]["least"] - 12 * 48)
    assert rows["moe_lite loop", "forward"]["load"] == (
        2.0 if routing == "one-hot" else pytest.approx(rows["moe_lite loop", "forward"]["load"])
    )


@pytest.mark.parametrize("dtype", TINY.dtypes)
def test_the_compiled_layer_is_right_and_its_graph_breaks_are_counted(dtype):
    rows = rows_of([NAMES["moe_lite layer, compiled"]], dtype=dtype)
    for row in rows.values():
        assert row["status"] == "timed" and row["graph_breaks"] == 0, row["note"]
    result = {"layers": [*rows.values()], "machine": {"matmul_tflops": {dtype: 1.0}}}
    assert "| moe_lite layer, compiled (0 graph breaks) |" in report.table(result)


def test_without_a_compiler_the_row_says_so(monkeypatch):
    monkeypatch.setattr(paths, "COMPILER", "inductor")
    monkeypatch.setattr(paths.shutil, "which", lambda name: None)
    row = rows_of([NAMES["moe_lite layer, compiled"]])["moe_lite layer, compiled", "forward"]
    assert row["status"] == "missing" and "needs a C++ compiler" in row["note"]


def test_missing_peers_are_rows_that_say_so(monkeypatch):
    real = importlib.util.find_spec
    gone = ("transformers",)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a)
    )
    rows = rows_of(CONTENDERS)
    notes = {"transformers eager": 'not installed (pip install "transformers>=5.17")'}
    notes |= dict.fromkeys(("liger", "scattermoe", "sonicmoe", "moe_lite triton"), "needs a GPU")
    for path, note in notes.items():
        row = rows[path, "forward"]
        assert row["status"] == "missing" and row["note"] == note and "seconds" not in row
    assert rows["moe_lite grouped", "forward"]["status"] == "timed"


def broken(change):
    """Give a path that is the loop, but for one thing."""

    def make(case):
        right = paths.our("loop")(case)
        return lambda x_TD, expert_TK, gate_TK: change(right, x_TD, expert_TK, gate_TK)

    return make


def flaky(right, x, e, g):
    flaky.runs += 1
    return right(x, e, g) * (1 + 1e-6 * (flaky.runs % 2))


flaky.runs = 0

WRONG = {
    "its output is off": (lambda right, x, e, g: right(x, e, g) * 1.01, " is off by 1.0e-02"),
    "it forgets the router's gradient": (
        lambda right, x, e, g: right(x, e, g.detach()) + 0 * g.sum(), "gate is off by 1.0e+00"),
    "it is not a number": (lambda right, x, e, g: right(x, e, g) * torch.nan, "off by inf"),
    "it sums otherwise each time": (flaky, "two runs differ"),
    "it leaves a row unwritten": (
        lambda right, x, e, g: right(x, e, g) + 0 * torch.empty_like(x).nan_to_num(nan=torch.inf),
        "not every element is written"),
    "it breaks": (lambda right, x, e, g: right(x[:, 1:], e, g), "RuntimeError: "),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_path_gets_no_time(mistake, monkeypatch):
    change, says = WRONG[mistake]
    if mistake == "it leaves a row unwritten":  # what `empty` holds is luck without the poison
        real = torch.empty_like
        monkeypatch.setattr(
            torch, "empty_like",
            lambda x: real(x) if torch.are_deterministic_algorithms_enabled() else real(x).zero_(),
        )  # fmt: skip
    rows = rows_of([Contender("wrong", "ours", broken(change), exact=True), NAMES["moe_lite loop"]])
    row = rows["wrong", "forward+backward"]
    assert row["status"] == ("error" if mistake == "it breaks" else "wrong") and says in row["note"]
    assert "seconds" not in row and "seconds" in rows["moe_lite loop", "forward"]


def test_a_peer_whose_runs_differ_is_timed_and_marked():
    row = rows_of([Contender("atomic", "ours", broken(flaky))])["atomic", "forward"]
    assert row["status"] == "timed" and row["same_bits"] is False


def test_what_does_not_fit_is_skipped(monkeypatch):
    monkeypatch.setattr(measure, "memory", lambda device: 10**10)
    rows = measure.layer("mixtral", "bfloat16", "random", "cpu", HERE, 1)
    assert {row["status"] for row in rows} == {"skipped"}
    assert "and there are 10" in rows[0]["note"]
    monkeypatch.setattr(measure, "memory", lambda device: 200_000)
    greedy = rows_of()["transformers batched_mm", "forward"]
    assert greedy["status"] == "skipped" and "more than the others" in greedy["note"]


def test_kept_tensors_are_counted_once_and_without_weights():
    case = Case(TINY, "float32", "random")

    def make(case):
        w1, *_ = case.packed("ours")

        def run(x, e, g):
            return x.exp() * (x.sum() + w1[0, 0, 0])  # keeps exp(x) and two numbers

        return run

    plain = Contender("plain", "ours", make)
    kept = measure.activations(plain, plain.build(case), case)["kept"]
    assert kept == 24 * 16 * 4 + 4


class Pretended(str):
    """Pass for a GPU to the benchmark, and for the CPU to torch."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return other == "cuda"

    def __ne__(self, other):
        return other != "cuda"


def test_the_gpus_way_of_measuring_with_the_cpu_in_its_place(monkeypatch):
    timed, waits = [], []

    def do_bench(work, quantiles):
        assert quantiles == [0.5, 0.2, 0.8]
        work(), work(), work()
        timed.append(work)
        return [2.0 + len(timed) % 2, 1.0, 4.0]

    def allocated():
        timed.append(None)
        return 1000 * len(timed)

    monkeypatch.setitem(sys.modules, "triton.testing", SimpleNamespace(do_bench=do_bench))
    monkeypatch.setattr(measure, "captured", lambda work: work)
    for name, stand_in in {
        "get_device_properties": lambda _: SimpleNamespace(total_memory=10**10),
        "get_device_name": lambda: "Pretender", "synchronize": lambda: None,
        "set_sync_debug_mode": waits.append, "reset_peak_memory_stats": lambda: None,
        "memory_allocated": allocated, "max_memory_allocated": lambda: 10**6,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    device = Pretended("cpu")
    contenders = [NAMES[n] for n in ("moe_lite grouped", "transformers eager", "dense")]
    contenders.append(Contender("gone", "ours", paths.our("loop"), ("no_such", "no-such"), "cuda"))
    rows = measure.layer("tiny", "bfloat16", "random", device, contenders, 1, TINY)
    assert [row["status"] for row in rows] == ["timed"] * 6 + ["missing"] * 2
    assert rows[-1]["note"] == "not installed (pip install no-such)"
    for row in rows[:6]:
        assert row["seconds"]["low"] == 1e-3 and row["seconds"]["high"] == 4e-3
        assert row["seconds"]["median"] == 2.5e-3 and row["waits_for_device"] is False
        # Two readings 1000 apart; the output is as large as x.
        assert row["memory"]["kept"] == 1000
        assert row["memory"]["peak"] < row["memory"]["peak_forward"] < 10**6
    assert waits == ["error", "default"] * 3
    few = Shape(4, 16, 8, 4, 2, decode=True)
    (row,) = measure.layer("few", "bfloat16", "random", device, contenders[:1], 1, few)
    assert row["what"] == "forward" and row["note"] == "" and "memory" not in row
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "triton.testing", SimpleNamespace(do_bench=do_bench))

    def no_capture(work):
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(measure, "captured", no_capture)
    row = measure.on_gpu(lambda: None, decode=True)
    assert row["note"].startswith("not in a CUDA graph: RuntimeError: operation not permitted")
    assert "so on" not in row["note"] and row["seconds"]["low"] == 1e-3

    def breaks():
        raise RuntimeError("out of memory")

    assert measure.on_gpu(breaks, False) == {
        "status": "error",
        "note": "RuntimeError: out of memory",
    }


def test_what_the_cpu_multiplies_slowly_is_measured_if_asked_for(monkeypatch):
    """PyTorch has no library for bfloat16 there: the table would take hours."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr(measure, "multiplies_slowly", lambda device: True)

    def timed(**asked):
        said = []
        result = bench.run(
            "cpu", ["tiny"], paths=["moe_lite auto"], rounds=1, say=said.append, **asked
        )
        return {row["dtype"] for row in result["layers"]}, "\n".join(said), result["machine"]

    types, said, machine = timed()
    assert types == {"float32"} and "tiny, bfloat16: not measured" in said
    assert machine["matmul_tflops"].keys() == {"float32", "bfloat16"}
    types, said, _ = timed(dtypes=["bfloat16"])
    assert types == {"bfloat16"} and "not measured" not in said
    monkeypatch.setattr(measure, "multiplies_slowly", lambda device: False)
    monkeypatch.setattr(measure, "ceilings", lambda device: machine)
    assert timed()[0] == {"float32", "bfloat16"}


def test_least_bytes_and_flop_of_a_shape():
    olmoe = SHAPES["olmoe"]
    assert olmoe.flop("forward+backward") == 18 * 16384 * 8 * 2048 * 1024
    assert olmoe.smallest_activations(2) == pytest.approx(0.605e9, rel=0.01)
    one = Shape(2, 8, 4, 2, 1)
    assert one.least_bytes("forward", 2, used=1) == 2 * (3 * 8 * 4 + 2 * 2 * 8)


# --- the command ---------------------------------------------------------------------------------


def test_it_measures_prints_and_writes_what_the_report_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    out = tmp_path / "new" / "bench.json"
    args = ["--config", "tiny", "--rounds", "2", "--new-tokens", "3", "--autocast", "off"]
    args += ["--shapes", "tiny", "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    assert bench.main([*args, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    result = report.read(out)
    training, generation = result["models"]
    assert (training["what"], generation["what"]) == ("training", "generation")
    for row in (training, generation):
        ours, theirs, ratio = (row[k]["rounds"] for k in ("moe_lite", "transformers", "ratio"))
        assert len(ours) == len(theirs) == 2 and min(ours + theirs) > 0
        assert ratio == pytest.approx([a / b for a, b in zip(ours, theirs, strict=True)], rel=1e-2)
    assert training["compute"] == "float32"
    about = result["machine"]
    assert about["torch"] == torch.__version__ and "one thread" in about["clock"]
    assert about["matmul_tflops"]["bfloat16"] > 0 and about["copy_gbps"] > 0
    assert {row["path"] for row in result["layers"]} == set(NAMES)
    report.write(result, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == out.read_text()
    text = report.report(out.parent)
    assert (
        "**tiny** (T 24, D 16, F 8, E 4, K 2), float32, random" in printed
        and printed.count("| training |") == text.count("| training |") == 1
    )
    for line in printed.splitlines():
        if line.startswith("| moe_lite grouped"):
            assert line.split("|")[1] in text


def test_what_was_measured_outlives_an_interruption(tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        monkeypatch.setitem(SHAPES, name, TINY)
    real = measure.layer

    def interrupted(name, *rest):
        if name == "two":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(measure, "layer", interrupted)
    out = tmp_path / "bench.json"
    argv = ["--config", "none", "--rounds", "1", "--dtype", "float32", "--device", "cpu"]
    with pytest.raises(KeyboardInterrupt):
        bench.main([*argv, "--paths", "moe_lite loop", "--shapes", "one", "two", "--out", str(out)])
    assert [row["shape"] for row in report.read(out)["layers"]] == ["one", "one"]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_without_a_result_from_a_gpu_its_targets_are_not_measured():
    lines = [line for line in report.targets([]).splitlines() if line.startswith("| GPU")]
    assert len(lines) == 16 and all("|  | not measured |" in line for line in lines)


def test_targets_are_met_missed_or_not_measured():
    rows = [
        {"shape": "course-e8", "dtype": "float32", "routing": "random", "what": "forward+backward",
         "path": path, "flop": 1e12, "seconds": {"median": s, "rounds": [s, s, 9 * s]}}
        for path, s in (("moe_lite auto", 1.0), ("transformers eager", 1.3), ("dense", 0.5))
    ]  # fmt: skip
    machine = {"device": "cpu", "matmul_tflops": {"float32": 2.0}}  # the products take 0.5 s
    result = {"machine": machine, "layers": rows, "models": []}
    where = "| CPU | course-e8, float32, forward+backward | times "
    lines = report.targets([result]).splitlines()
    for said in ("transformers eager | ≥ 1.2 | 1.30 | 2.60 | met |",
                 "dense | ≥ 0.85 | 0.50 | 1.00 | missed |",
                 "transformers grouped_mm | ≥ 1.1 |  |  | not measured |"):  # fmt: skip
        assert where + said in lines
    other = copy.deepcopy(result)
    other["layers"][1]["seconds"]["rounds"] = [1.1]
    assert "1.10 | 2.60 | missed" in report.targets([result, other])  # the worst of all counts


def test_two_models_that_disagree_are_not_timed(monkeypatch, capsys):
    def other(ours):
        theirs = real(ours)
        with torch.no_grad():
            theirs.lm_head.weight.mul_(3)
        return theirs

    real = models.pair_of_models
    monkeypatch.setattr(models, "pair_of_models", other)
    argv = ["--config", "tiny", "--rounds", "1", "--device", "cpu", "--shapes"]
    assert bench.main(argv) == 0
    assert "| tiny | training | wrong: they disagree before any training" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(models, "pair_of_models", real)
    result = bench.run("cpu", [], config="tiny")
    assert [row["status"] for row in result["models"]] == ["missing", "missing"]
    assert report.Target("cpu", "training", 1.3).measured(result) is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--config", "huge", "--shapes"], "no recipe 'huge'"),
        (["--shapes", "square"], "there is no 'square': name one of mixtral, olmoe"),
        (["--paths", "theirs"], "there is no 'theirs': name one of moe_lite loop"),
    ],
)
def test_what_cannot_be_is_said(argv, says):
    with pytest.raises(ValueError, match=says):
        bench.main(argv)


def test_a_run_of_tests_is_counted(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip()\n"
        "def test_c(): assert False\n"
    )
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider"]
    row = gpu.count("some", command, tmp_path / "a.xml")
    assert (row["status"], row["passed"], row["failed"]) == ("failed", 1, ["test_c"])
    assert "| some | failed | 1 | test_c | 1 |" in report.checks([row])
    row = gpu.count("none", [sys.executable, "-c", "1/0"], tmp_path / "b.xml")
    assert row["status"] == "failed" and row["note"] == "ZeroDivisionError: division by zero"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("argv", [["--device", "cuda"], ["--gpu-checks"]])
def test_without_a_gpu_it_says_so(argv, tmp_path):
    out = tmp_path / "result.json"
    with pytest.raises(ValueError, match="there is no GPU here that torch can use"):
        bench.main([*argv, "--out", str(out)])
    assert not out.exists()


def test_what_is_no_result_is_refused(tmp_path):
    file = tmp_path / "a.json"
    for text, says in (
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 0}', "format 1"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            report.read(file)
    with pytest.raises(FileNotFoundError, match="there are no results"):
        report.report(tmp_path / "nowhere")


def test_the_kept_results_are_results_and_the_report_is_theirs():
    text = report.report()
    assert text == (report.RESULTS / "README.md").read_text(encoding="utf-8"), (
        "python -m moe_lite bench --report --out experiments/results/bench/README.md"
    )
    for file in report.RESULTS.glob("*.json"):
        result = report.read(file)
        known = CPU_SHAPES if result["machine"]["device"] == "cpu" else GPU_SHAPES
        assert {row["shape"] for row in result["layers"]} <= set(known), file.name
        assert "/" not in json.dumps(result["machine"]).replace("TFLOP/s", "")
