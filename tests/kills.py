"""Kill training runs again and again, resume them, and hold each to the run that nothing befell.

``python -m tests.kills 30 10`` ends so many runs of one process and of two ranks (one rank of
the two, by turns) with SIGKILL, at drawn steps, while the next is computed, written or told of.
Each run is resumed until it is at its end; weights and every column but the seconds must then
be the same to the last bit. The tests do the same in small.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from moe_lite.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parent.parent
STEPS, EACH = 30, 3  # steps of a run, and kills on its way
CONFIG = {
    "model": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    "training": {"steps": STEPS, "batch_size": 4, "seq_len": 16, "checkpoint_every": 1,
                 "eval_every": 10, "eval_windows": 1, "warmup": 1},
    "domains": ["prose", "drama"],
    "max_bytes": 40000,
}  # fmt: skip


def begin(out: Path, ranks: int) -> subprocess.Popen[str]:
    config = out.parent / "small.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    command = [sys.executable, "-m", "moe_lite", "train", "--config", str(config), "--resume",
               "--device", "cpu", "--out", str(out)]  # fmt: skip
    command += ["--processes", str(ranks)] if ranks > 1 else []
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE)


def last_step(out: Path) -> int:
    done = checkpoints(out) if out.is_dir() else []
    return int(done[-1].name.removeprefix("step-")) if done else 0


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]


def kill_at(job: subprocess.Popen[str], out: Path, goal: int, rank: int | None, wait: float) -> int:
    """Wait for a checkpoint, then end the job or one of its ranks; return where it had come."""
    while last_step(out) < goal:
        assert job.poll() is None or last_step(out) >= goal, job.communicate()[1]
        time.sleep(0.002)
    time.sleep(wait)
    with suppress(ProcessLookupError, FileNotFoundError, IndexError):  # it came to its end first
        os.kill(job.pid if rank is None else children(job.pid)[rank], signal.SIGKILL)
    job.communicate()
    return last_step(out)


def result(out: Path) -> tuple[str, list[dict]]:
    """Give the weights' digest and the history without its seconds."""
    weights = sorted((out / "model").glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    rows = map(json.loads, (out / "history.jsonl").read_text("utf-8").splitlines())
    return digest, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def finish(out: Path, ranks: int) -> tuple[str, list[dict]]:
    job = begin(out, ranks)
    said = job.communicate()[1]
    assert job.returncode == 0, said
    return result(out)


def trial(folder: Path, ranks: int, kills: int, seed: int = 0) -> None:
    """Kill so many times, over runs of ``EACH`` kills; raise AssertionError where one differs."""
    rng = random.Random(seed)
    whole = finish(folder / f"whole-{ranks}", ranks)
    assert len(whole[1]) >= STEPS
    done, run = 0, 0
    while done < kills:
        run += 1
        out = folder / f"killed-{ranks}-{run}"
        for goal in sorted(rng.sample(range(1, STEPS - 3), min(EACH, kills - done))):
            rank = None if ranks == 1 else done % ranks
            reached = kill_at(begin(out, ranks), out, goal, rank, rng.random() * 0.05)
            done += reached < STEPS  # one that came to its end is no kill
            print(f"{ranks} process(es), kill {done}: at step {reached}", flush=True)
        assert finish(out, ranks) == whole, f"run {run} differs from the one that nothing befell"
        left = [path.name for path in out.iterdir() if path.name.startswith(".")]
        assert left == [], left
    print(f"{ranks} process(es): {done} kills in {run} runs, all equal", flush=True)


if __name__ == "__main__":
    alone, together = map(int, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as name:
        for ranks, kills in ((1, alone), (2, together)):
            trial(Path(name), ranks, kills)
