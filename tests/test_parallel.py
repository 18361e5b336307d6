"""Many ranks are one: real gloo processes, their losses, their weights, their failures.

Two casts of processes (tests/ranks.py) play everything; the tests read what they left.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from moe_lite import hf, parallel
from moe_lite.checkpoint import checkpoints
from moe_lite.config import MixtralConfig
from moe_lite.course import recipes
from moe_lite.course.losses2017 import importance_loss, load_loss
from moe_lite.history import History
from moe_lite.losses import (
    drop_rate,
    load_balancing_loss,
    max_violation,
    mixtral_aux_loss,
    router_z_loss,
)
from moe_lite.model import Mixtral
from moe_lite.routing import Routing

ROOT = Path(__file__).resolve().parent.parent
HANG_S = 1800  # a limit for what hangs, not for what is slow
SMALL = {
    "model": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    "training": {"steps": 8, "batch_size": 4, "seq_len": 16, "checkpoint_every": 2,
                 "eval_every": 0, "eval_windows": 1, "warmup": 1},
    "domains": ["prose", "drama"],
    "max_bytes": 40000,
}  # fmt: skip
CASES = ("top_k", "sigmoid_bias", "capacity")
COLUMNS = ("loss", "balance", "z", "load", "dropped", "norm", "lr", "tokens")


def gloo(test):
    """Mark a test of real processes that talk to each other."""
    here = dist.is_available() and dist.is_gloo_available()
    lack = "this PyTorch was built without torch.distributed's gloo"
    return pytest.mark.slow("ranks")(pytest.mark.skipif(not here, reason=lack)(test))


def free_ports(count: int) -> list[str]:
    holders = [socket.socket() for _ in range(count)]
    for holder in holders:
        holder.bind(("127.0.0.1", 0))
    ports = [str(holder.getsockname()[1]) for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def environment(**more: str) -> dict[str, str]:
    return (
        os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"} | more
    )


def play(act: str, size: int, folder: Path, patience: dict[int, float]) -> list[tuple[int, str]]:
    """Run the ranks of one act; give each one's exit code and stderr."""
    ports = free_ports(4)
    cast = []
    for rank in range(size):
        with (folder / f"{act}-{rank}.txt").open("w", encoding="utf-8") as said:
            script = [sys.executable, str(ROOT / "tests" / "ranks.py"), str(rank), act]
            cast.append(subprocess.Popen(
                [*script, str(folder), *ports], cwd=ROOT, env=environment(),
                stdout=subprocess.DEVNULL, stderr=said,
            ))  # fmt: skip
    try:
        for rank, player in enumerate(cast):
            if rank in patience:
                player.wait(patience[rank])
    finally:
        for player in cast:
            player.kill()
            player.wait()
    texts = [(folder / f"{act}-{rank}.txt").read_text("utf-8") for rank in range(size)]
    return [(player.returncode, text) for player, text in zip(cast, texts, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "small.json").write_text(json.dumps(SMALL), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def first(folder) -> list[tuple[int, str]]:
    return play("first", 4, folder, patience=dict.fromkeys(range(4), HANG_S))


@pytest.fixture(scope="module")
def second(first, folder) -> list[tuple[int, str]]:
    return play("second", 2, folder, patience={0: HANG_S})  # the other one is asleep at the end


@pytest.fixture(scope="module")
def found(first, folder) -> dict:
    path = folder / "found.json"
    assert path.exists(), "\n".join(text[-2000:] for _, text in first)
    return json.loads(path.read_text("utf-8"))


def assert_same_curve(rows: list[dict], expected: list[dict]) -> None:
    assert len(rows) == len(expected)
    for column in COLUMNS:
        ours, theirs = ([row[column] for row in history] for history in (rows, expected))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-9), column
    ours, theirs = (History(history).column("bits") for history in (rows, expected))
    for here, there in zip(ours, theirs, strict=True):
        assert here == pytest.approx(there, rel=1e-5)


# Equal to one


@gloo
@pytest.mark.parametrize("seats", ["1", "2", "4"])
@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_process_does(found, case, seats):
    got = found[seats][case]
    assert len(got["rows"]) == 10 and "bits" in got["rows"][-1]
    assert_same_curve(got["rows"], found["alone"][case])
    assert got["distance"] < 1e-5  # of any weight, gathered; they move by some 1e-2
    assert got["weights"] == 0  # every rank has the same


@gloo
def test_pairs_were_dropped_where_there_is_a_capacity(found):
    assert found["alone"]["capacity"][-1]["dropped"] > 0.1
    assert found["alone"]["top_k"][-1]["dropped"] == 0


@gloo
@pytest.mark.parametrize("seats", ["1", "2", "4"])
def test_a_sharded_layer_is_the_layer(found, seats):
    # forward and every gradient; the last rank brings no token; dropped pairs stayed at home
    assert len(found[seats]["layers"]) == 16
    assert max(found[seats]["layers"].values()) < 1e-5


@gloo
@pytest.mark.parametrize(
    ("seats", "source"),
    [("4", "top_k-alone"), ("2", "top_k-alone"), ("2", "top_k-4"), ("1", "top_k-4")],
)
def test_any_number_of_ranks_goes_on_from_any_other(found, seats, source):
    got = found[seats][f"{source} resumed"]
    assert_same_curve(got["rows"], found["alone"]["top_k"])
    assert got["distance"] < 1e-5


@gloo
def test_balance_is_that_of_the_whole_batch_and_not_of_a_ranks_part(found):
    balance = found["2"]["balance"]
    for name in ("load_balancing_loss", "importance_loss", "mixtral_aux_loss"):
        assert balance[name] == pytest.approx(balance[f"whole {name}"], rel=1e-5)
        assert balance[f"parts {name}"] > 1.005 * balance[name]  # parts are less even


# When something befalls one


@gloo
def test_a_rank_is_killed_and_the_others_say_so(first):
    *left, (code, _) = first
    assert code not in (0, 1)
    for rank, (code, said) in enumerate(left):
        assert code == 1
        assert f"moe_lite train: rank {rank}: another rank is gone; go on" in said
        assert "Traceback" not in said


@gloo
def test_a_rank_that_does_not_answer_ends_the_run(second):
    code, said = second[0]
    assert code == 1, said
    assert "moe_lite train: rank 0: another rank did not answer for 30 s; go on from" in said
    assert "Traceback" not in said


@gloo
def test_fewer_ranks_finish_what_more_began(second, folder, tmp_path, capsys):
    config = folder / "small.json"
    assert recipes.main(["--config", str(config), "--out", str(tmp_path), "--device", "cpu"]) == 0
    alone, resumed = (History.load(out / "history.jsonl") for out in (tmp_path, folder / "killed"))
    assert_same_curve(resumed.rows, alone.rows)
    models = [hf.load(out / "model") for out in (tmp_path, folder / "killed")]
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    files = [
        {path.name for path in (out / "model").iterdir()} for out in (tmp_path, folder / "killed")
    ]
    assert files[0] == files[1]


@gloo
def test_one_process_finishes_what_two_began(second, folder, tmp_path):
    begun = ["step-00000002", "step-00000004"]
    assert [path.name for path in checkpoints(folder / "asleep")] == begun
    common = ["--config", str(folder / "small.json"), "--device", "cpu"]
    recipes.main([*common, "--out", str(folder / "asleep"), "--resume"])
    recipes.main([*common, "--out", str(tmp_path)])
    alone, resumed = (History.load(out / "history.jsonl") for out in (tmp_path, folder / "asleep"))
    assert_same_curve(resumed.rows, alone.rows)


# Bad launches


@gloo
def test_torchrun_and_a_number_of_ranks_that_does_not_divide_the_experts(tmp_path):
    odd = SMALL | {"model": SMALL["model"] | {"num_local_experts": 3}}
    (tmp_path / "odd.json").write_text(json.dumps(odd), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    train = ["-m", "moe_lite", "train", "--expert-parallel", "2", "--device", "cpu",
             "--config", str(tmp_path / "odd.json"), "--out", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(
        [*command, "2", *train], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("moe_lite train: ")]
    assert done.returncode == 1
    assert said == [
        "moe_lite train: layers.0.block_sparse_moe: 3 experts cannot be dealt evenly to 2 ranks "
        "(expert parallelism must divide the number of experts)"
    ]
    assert "exitcode: 1" in " ".join(done.stderr.split()).replace(" :", ":")
    assert not checkpoints(tmp_path / "out")


def launch(monkeypatch, *, rank: int = 0, seats: int = 2, port: int | str = 1) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": seats, "MASTER_PORT": port}
    for name, value in (values | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("arguments", "seats", "message"),
    [
        (["--expert-parallel", "0"], 2, "must be at least 1, not 0"),
        (["--expert-parallel", "2", "--timeout", "0"], 2, "the timeout must be a number of"),
        (["--expert-parallel", "2"], 3, "3 processes do not make whole groups of 2"),
        (["--expert-parallel", "2", "--device", "tpu"], 2, 'must be "cpu" or "cuda"'),
        (["--expert-parallel", "2", "--device", "cuda"], 2, "NCCL needs a GPU for each process"),
    ],
)
def test_a_bad_launch_is_one_sentence_of_the_first(arguments, seats, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    launch(monkeypatch, seats=seats)
    with pytest.raises(ValueError, match=message):
        recipes.main(arguments)
    launch(monkeypatch, seats=seats, rank=1)
    with pytest.raises(SystemExit) as silent:
        recipes.main(arguments)
    assert silent.value.code == 1


@gloo
def test_a_taken_port_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launch(monkeypatch, port=port)
        with pytest.raises(
            OSError, match=f"cannot meet at 127.0.0.1:{port} within 900 s; is the port"
        ):  # at once; and after three times that the guard would end this very process
            recipes.main(["--expert-parallel", "2", "--device", "cpu", "--timeout", "900"])
        # another rank on this machine, to whom what listens there never says a word, is silent too
        command = [sys.executable, "-m", "moe_lite", "train", "--expert-parallel", "2"]
        ranks = environment(RANK="1", LOCAL_RANK="1")
        done = subprocess.run([*command, "--device", "cpu", "--timeout", "1"], cwd=ROOT, env=ranks,
                              capture_output=True, text=True, timeout=HANG_S)  # fmt: skip
    assert done.returncode == 1 and "moe_lite train" not in done.stderr
    assert not dist.is_initialized()


def test_processes_and_the_option_belong_together(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        ValueError, match="add --processes 2, or on several machines start them with torchrun"
    ):
        recipes.main(["--expert-parallel", "2"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="add --expert-parallel N"):
        recipes.main([])


# Without other processes


def note(sums: list[torch.Tensor], amount: torch.Tensor) -> torch.Tensor:
    sums.append(amount)
    return amount


def add(sums: Iterator[torch.Tensor], amount: torch.Tensor) -> torch.Tensor:
    return amount + next(sums)


def test_an_all_reduce_makes_every_loss_and_measure_the_whole_batchs():
    torch.manual_seed(1)
    expert_TK, gate_TK = torch.rand(12, 4).topk(2).indices, torch.rand(12, 2)
    logits_TE, keep_TK = torch.randn(12, 4), torch.rand(12, 2) < 0.7

    def routing(part: slice) -> Routing:
        return Routing.from_choices(
            logits_TE[part], logits_TE[part].softmax(-1), expert_TK[part], gate_TK[part],
            keep_N=keep_TK[part].flatten(), smooth_load_TE=logits_TE[part].sigmoid(),
        )  # fmt: skip

    whole = routing(slice(None))
    measures = (
        load_balancing_loss,
        importance_loss,
        load_loss,
        router_z_loss,
        max_violation,
        drop_rate,
        lambda routing, **over: load_balancing_loss([routing, routing], choices=1, **over),
        lambda routing, **over: mixtral_aux_loss([routing, routing], **over),
    )
    for measure in measures:
        sums: list[torch.Tensor] = []
        measure(routing(slice(0, 5)), all_reduce=partial(note, sums))  # what the other has to give
        total = measure(routing(slice(5, 12)), all_reduce=partial(add, iter(sums)))
        torch.testing.assert_close(total, measure(whole))


@gloo
def test_what_cannot_be_sharded_is_refused(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("ep",))
        other = init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
        config = MixtralConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
        )  # fmt: skip
        model = Mixtral(config)
        with pytest.raises(ValueError, match=r"the mesh has the dimensions \('tp',\)"):
            parallel.shard_experts(model, other)
        with pytest.raises(ValueError, match="no layers of experts left to shard"):
            parallel.shard_experts(torch.nn.Linear(2, 2), mesh)
        names = list(model.state_dict())
        parallel.shard_experts(model, mesh)
        assert list(model.state_dict()) == names
        with pytest.raises(ValueError, match="no layers of experts left to shard"):
            parallel.shard_experts(model, mesh)
    finally:
        dist.destroy_process_group()
