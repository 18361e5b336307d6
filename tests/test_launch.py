"""Ranks on one machine: started together, stopped together, and gone with whoever started them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from moe_lite.checkpoint import checkpoints
from moe_lite.course import launch, recipes
from moe_lite.history import History

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "model": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    "training": {"steps": 2000, "batch_size": 4, "seq_len": 16, "checkpoint_every": 1,
                 "eval_every": 0, "eval_windows": 1, "warmup": 1},
    "domains": ["prose", "drama"],
    "max_bytes": 40000,
}  # fmt: skip
RANK = """
import os, sys, threading, time
from pathlib import Path
from moe_lite.course import launch
threading.Thread(target=launch._leave_with_the_parent, daemon=True).start()
rank, folder = os.environ["RANK"], Path(sys.argv[1])
(folder / f"{rank}.part").write_text(str(os.getpid()))
(folder / f"{rank}.part").rename(folder / f"{rank}.pid")
time.sleep(600)
"""
PARENT = "import sys; from moe_lite.course import launch; launch.start(sys.argv[1:], 2)"
LONG = 900  # seconds: a limit for what hangs, not for what is slow
posix = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


def gloo(test):
    """Mark a test of real processes that talk to each other."""
    here = dist.is_available() and dist.is_gloo_available()
    lack = "this PyTorch was built without torch.distributed's gloo"
    return pytest.mark.slow("ranks")(pytest.mark.skipif(not here, reason=lack)(test))


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def begin(*command: str, **options) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, text=True, **options)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # one that nobody has waited for is gone too
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def sleepers(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """Start two ranks that do nothing; return their parent and their ids."""
    parent = begin("-c", PARENT, "-c", RANK, str(folder), stderr=subprocess.PIPE)
    until(lambda: len(list(folder.glob("*.pid"))) == 2 or parent.poll() is not None)
    return parent, [int((folder / f"{rank}.pid").read_text()) for rank in (0, 1)]


@posix
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_rank_outlives_its_parent(tmp_path, how):
    parent, ids = sleepers(tmp_path)
    parent.send_signal(how)
    parent.communicate(timeout=LONG)
    until(lambda: not any(map(alive, ids)))


@pytest.mark.slow("ranks")
@posix
def test_a_rank_that_a_signal_ends_takes_the_others_along_and_is_named(tmp_path):
    parent, ids = sleepers(tmp_path)
    os.kill(ids[1], signal.SIGKILL)
    _, said = parent.communicate(timeout=LONG)
    assert said.rstrip().endswith("rank 1 was ended by signal 9; go on from the last checkpoint "
                                  "with --resume")  # fmt: skip
    assert parent.returncode == 1 and not any(map(alive, ids))


@gloo
@posix
def test_ctrl_c_reaches_each_rank_once_and_the_run_goes_on_as_one_process_does(tmp_path):
    config, out = tmp_path / "small.json", tmp_path / "two"
    config.write_text(json.dumps(SMALL), encoding="utf-8")
    train = ["-m", "moe_lite", "train", "--config", str(config), "--device", "cpu"]
    job = begin(*train, "--out", str(out), "--processes", "2", stderr=subprocess.PIPE)
    until(lambda: checkpoints(out) or job.poll() is not None)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=LONG)
    assert job.returncode == 130, said
    (last,) = [line for line in said.splitlines() if "stopped" in line]
    assert last.endswith("of 2000; go on with --resume") and "Traceback" not in said
    done = int(checkpoints(out)[-1].name.removeprefix("step-"))
    assert f"after step {done} of" in last

    whole = tmp_path / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "train", stopping(recipes.train, done))
        assert recipes.main([*train[3:], "--out", str(whole)]) == 130
    ours, theirs = (History.load(checkpoints(o)[-1] / "history.jsonl") for o in (out, whole))
    assert len(ours) == len(theirs) == done
    assert ours.column("loss") == pytest.approx(theirs.column("loss"), rel=1e-5)


@gloo
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_a_stopped_rank_ends_the_job_with_our_sentence_last(tmp_path):
    """It never ends by itself, nor by SIGTERM: without an end set for it the job waits for ever."""
    config, out = tmp_path / "small.json", tmp_path / "two"
    config.write_text(json.dumps(SMALL), encoding="utf-8")
    train = ["-m", "moe_lite", "train", "--config", str(config), "--device", "cpu"]
    train += ["--out", str(out), "--processes", "2", "--timeout", "30"]
    job = begin(*train, stderr=subprocess.PIPE)
    until(lambda: checkpoints(out) or job.poll() is not None)
    ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text("utf-8").split()
    awake, asleep = map(int, ranks)
    os.kill(asleep, signal.SIGSTOP)
    _, said = job.communicate(timeout=LONG)
    assert job.returncode == 1 and "Traceback" not in said
    assert said.splitlines()[-1] == (
        "moe_lite train: rank 0: another rank did not answer for 30 s; go on from the last "
        "checkpoint with --resume"
    )
    assert not alive(awake) and not alive(asleep)


@gloo
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_torchrun_need_not_wait_for_a_stopped_rank(tmp_path):
    """Woken by the other, it ends by itself or at SIGTERM: nobody waits 30 s to kill it."""
    config, out = tmp_path / "small.json", tmp_path / "two"
    config.write_text(json.dumps(SMALL), encoding="utf-8")
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "moe_lite"]
    train = ["train", "--config", str(config), "--device", "cpu", "--expert-parallel", "2"]
    job = begin(*run, *train, "--out", str(out), "--timeout", "10", stderr=subprocess.PIPE)
    until(lambda: checkpoints(out) or job.poll() is not None)
    ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text("utf-8").split()
    os.kill(asleep := int(ranks[-1]), signal.SIGSTOP)
    _, said = job.communicate(timeout=LONG)
    assert "another rank did not answer for 10 s; go on from the last checkpoint" in said
    assert "forcefully" not in said and not alive(asleep)


class Rank:
    """Stand in for a rank: its exit code from a second of the clock on."""

    def __init__(self, clock: "Clock", end: float, code: int):
        self.clock, self.end, self.code = clock, end, code

    def poll(self) -> int | None:
        return self.code if self.clock.now >= self.end else None


class Clock:
    """Stand in for time: it passes where something sleeps, and nowhere else."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 10_000, "it waits for ever"


@pytest.mark.parametrize(
    ("ends", "codes", "seconds"),
    [
        ((60, 1e9), [1, None], 60 + launch.GRACE),  # the other is stopped
        ((60, 63), [1, 1], 63),  # the other says it too
        ((60, 5000), [0, 0], 5000),  # the other has more to write
        ((60, 5000), [130, 130], 5000),  # Ctrl-C: each finishes its step
    ],
)
def test_one_that_fails_gives_the_others_ten_seconds_at_most(monkeypatch, ends, codes, seconds):
    monkeypatch.setattr(launch, "time", clock := Clock())
    ranks = [Rank(clock, end, code or 0) for end, code in zip(ends, codes, strict=True)]
    assert launch._wait(ranks) == codes
    assert clock.now == pytest.approx(seconds, abs=0.2) and launch.GRACE < 10


def stopping(train: Callable, last: int) -> Callable:
    def until_then(*args, **options) -> History:
        def callback(row: dict) -> None:
            if row["step"] == last:
                raise KeyboardInterrupt

        return train(*args, **options | {"callback": callback})

    return until_then


def test_what_cannot_be_started_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="the number of processes must be at least 1, not 0"):
        recipes.main(["--processes", "0"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started the processes already: leave out"):
        recipes.main(["--processes", "2"])


def test_a_mistake_in_every_rank_is_told_once(tmp_path):
    job = begin("-m", "moe_lite", "train", "--processes", "2", "--expert-parallel", "3",
                "--device", "cpu", "--out", str(tmp_path), stderr=subprocess.PIPE)  # fmt: skip
    _, said = job.communicate(timeout=LONG)
    assert job.returncode == 1
    assert said.splitlines() == [
        "moe_lite train: 2 processes do not make whole groups of 3: --expert-parallel must divide "
        "the number of processes"
    ]
