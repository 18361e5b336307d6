"""Start the ranks of a job on one machine, or join those that ``torchrun`` started.

On one machine they meet at a file, so that no port is taken and Windows, whose PyTorch lacks
libuv, can take part; ``torchrun`` is for several machines.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ..routing import NotFinite

MEETING = "MOE_LITE_MEETING"  # in the environment of a rank that start() made: the file
GRACE = 8.0  # seconds: how long the others may take to say that one rank is gone


def start(arguments: Sequence[str], processes: int) -> int:
    """Run ``python *arguments`` as the ranks of one job, here; return its exit code.

    Ctrl-C is handed on to each rank once. No rank outlives this process, however it ends; where
    one fails, the others have :data:`GRACE` seconds to say so.

    Raises: ValueError for less than one process, or where torchrun has started them already;
            ConnectionError (an OSError) if a signal ended a rank.
    """
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, not {processes}")
    if "WORLD_SIZE" in os.environ:
        raise ValueError("torchrun has started the processes already: leave out --processes")
    usual = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    for name in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:
        usual["GLOO_SOCKET_IFNAME"] = name  # no other machine takes part, nor need there be a net
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        env = {**usual, **os.environ, "WORLD_SIZE": str(processes)}
        env[MEETING] = str(Path(folder, "meeting"))
        try:
            with _handed_on(ranks):
                for number in map(str, range(processes)):
                    ranks.append(subprocess.Popen(
                        [sys.executable, *arguments], stdin=subprocess.PIPE,
                        env=env | {"RANK": number, "LOCAL_RANK": number},
                        start_new_session=os.name != "nt",  # a terminal's Ctrl-C reaches us alone
                    ))  # fmt: skip
                codes = _wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()
    for i, code in enumerate(codes):
        if code is not None and code < 0:
            raise ConnectionError(
                f"rank {i} was ended by signal {-code}; go on from the last checkpoint with "
                "--resume"
            )
    return next((code for code in codes if code), 0)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait for all ranks, but not long once one has failed; return their codes (None: still on)."""
    end = float("inf")
    while None in (codes := [rank.poll() for rank in ranks]) and time.monotonic() < end:
        failed = any(code not in (None, 0, 130) for code in codes)  # 130: stopped by Ctrl-C
        if failed and end == float("inf"):
            end = time.monotonic() + GRACE
        time.sleep(0.05)
    return codes


@contextmanager
def _handed_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Give each Ctrl-C to every rank, instead of stopping here; each then stops in its own way."""

    def hand_on(signum: int, frame: Any) -> None:
        for rank in ranks if os.name != "nt" else ():  # a Windows console does it itself
            rank.send_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGINT, hand_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def _leave_with_the_parent() -> None:
    """End this rank when the process that started it is gone: nothing else holds our stdin open."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _wake_the_others() -> None:
    """Let the ranks of torchrun here that are stopped hear its SIGTERM, on Linux.

    A stopped process hears nothing; torchrun waits 30 s for it (a constant of torch's) and kills
    it. :func:`start` needs none of this: it kills after :data:`GRACE`.
    """
    parent = os.getppid()
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    if "TORCHELASTIC_RUN_ID" in os.environ and listed.is_file():
        for rank in map(int, listed.read_text("utf-8").split()):
            with suppress(OSError):
                os.kill(rank, signal.SIGCONT)


@contextmanager
def joined(
    expert_parallel: int, device: str | None = None, timeout: float = 60.0
) -> Iterator[tuple[DeviceMesh, torch.device]]:
    """Join the other processes of a job; lend their mesh and this one's device.

    What is wrong for all ranks alike is raised by the first of each machine; the others leave
    with exit code 1. If a rank is gone, the others hear of it at once where its connection
    breaks, and else after the timeout: gloo's then raise, NCCL's are ended by torch.

    Args:    expert_parallel: ranks that share a set of experts; of more, each such group has
             the experts again. device: "cuda" (NCCL, one GPU for each rank) or "cpu" (gloo);
             None takes GPUs where there are any. timeout: seconds to wait for another rank, at
             the start and in each exchange.
    Raises:  ValueError if the processes were started neither by torchrun nor by :func:`start`, do
             not make whole groups, or lack devices; ConnectionError (an OSError) if they cannot
             meet or one is gone.
    """
    if MEETING in os.environ:
        threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    rank, seats = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    local = int(os.environ.get("LOCAL_RANK", rank))
    try:
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_launch(expert_parallel, seats, local, kind, timeout)
        if kind == "cuda":
            torch.cuda.set_device(local)
        where = os.environ.get(MEETING) or ":".join(
            os.environ.get(f"MASTER_{name}", "?") for name in ("ADDR", "PORT")
        )
        # Where something else answers at the port and is silent, torch waits without an end.
        guard = threading.Timer(3 * timeout, os._exit, [1])
        guard.daemon = True
        guard.start()
        try:
            mesh = _meet(kind, expert_parallel, timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            raise ConnectionError(
                f"{seats} processes cannot meet at {where} within {timeout:g} s; is the port "
                f"taken? (torchrun --standalone finds a free one): {_first_line(error)}"
            ) from error
        finally:
            guard.cancel()
        yield mesh, torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    except NotFinite as error:  # perhaps only here
        raise NotFinite(f"rank {rank}: {error}") from error
    except RuntimeError as error:
        said = str(error).lower()
        known = any(word in said for word in ("gloo", "nccl", "connection", "timed out"))
        if not known and not isinstance(error, dist.DistError):
            raise
        what = "is gone"
        if "timed out" in said:
            what = f"did not answer for {timeout:g} s"
            _wake_the_others()
        raise ConnectionError(
            f"rank {rank}: another rank {what}; go on from the last checkpoint with --resume"
        ) from error
    except (ValueError, OSError):
        if local:
            raise SystemExit(1) from None
        raise
    dist.destroy_process_group()


def _meet(kind: str, ep: int, timeout: timedelta) -> DeviceMesh:
    how: dict[str, Any] = {}  # torchrun's way: a port, which the environment names
    if MEETING in os.environ:
        rank, seats = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        store = dist.FileStore(os.environ[MEETING], seats)
        how = {"store": store, "rank": rank, "world_size": seats}
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timeout, **how)
    rank_PE = torch.arange(dist.get_world_size()).view(-1, ep)
    groups = [  # init_device_mesh would give them torch's timeout, half an hour
        dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout)[0]
        for ranks in (rank_PE.T, rank_PE)
    ]
    return DeviceMesh.from_group(groups, kind, rank_PE, mesh_dim_names=("dp", "ep"))


def _check_launch(ep: int, seats: int, local: int, kind: str, timeout: float) -> None:
    if ep < 1:
        raise ValueError(f"expert parallelism must be at least 1, not {ep}")
    if not 0 < timeout < 1e6:
        raise ValueError(f"the timeout must be a number of seconds above 0, not {timeout}")
    if not seats:
        raise ValueError(
            f"expert parallelism needs processes: add --processes {ep}, or on several machines "
            f"start them with torchrun --nproc-per-node {ep} -m moe_lite train ..."
        )
    if seats % ep:
        raise ValueError(
            f"{seats} processes do not make whole groups of {ep}: --expert-parallel must divide "
            "the number of processes"
        )
    if kind not in ("cpu", "cuda"):
        raise ValueError(f'the device must be "cpu" or "cuda" (one for each rank), not {kind!r}')
    if kind == "cuda" and torch.cuda.device_count() <= local:
        raise ValueError(
            f"NCCL needs a GPU for each process, and this machine has {torch.cuda.device_count()}: "
            "start fewer processes, or say --device cpu"
        )
    if not (dist.is_available() and (kind == "cuda" or dist.is_gloo_available())):
        raise ValueError("this PyTorch was built without torch.distributed's gloo")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
