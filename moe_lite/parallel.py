"""Expert parallelism: a model whose experts live on several ranks, on torch's own engine.

A rank is a process, started by ``torchrun``, with its own rows of each batch. Everything but
the experts is on every rank (DDP keeps it equal); of the E experts of a layer each rank has
E / ep, and a token's vector travels to its experts and back by all-to-all. The gate, the
weighted combine and the losses stay at home. ``dp`` groups of ``ep`` ranks may stand side by
side; then each expert has dp copies, whose gradients are summed.

Checkpoints are torch.distributed.checkpoint's, in safetensors: each rank writes its slices, and
any number of ranks can read them. The folder must be one that all see.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from .dispatch import plan
from .dispatch.grouped import Combine, Permute
from .experts import Experts
from .layer import MoELayer
from .routing import Dispatch, NotFinite, Routing
from .runs import Alone

Over = Literal["global", "local"]


@contextmanager
def launched(
    expert_parallel: int, device: str | None = None, timeout: float = 60.0
) -> Iterator[tuple[DeviceMesh, torch.device]]:
    """Join the processes that torchrun started; give their mesh and this one's device.

    What is wrong for all ranks alike is raised by the first of each machine; the others leave
    with exit code 1. If a rank is gone, the others hear of it at once where its connection
    breaks, and else after the timeout: gloo's then raise, NCCL's are ended by torch.

    Args:    expert_parallel: ranks that share a set of experts; of more, each such group has
             the experts again. device: "cuda" (NCCL, one GPU for each rank) or "cpu" (gloo);
             None takes GPUs where there are any. timeout: seconds to wait for another rank, at
             the start and in each exchange.
    Raises:  ValueError if the processes were not started by torchrun, do not make whole groups,
             or lack devices; ConnectionError (an OSError) if they cannot meet or one is gone.
    """
    rank, seats = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    local = int(os.environ.get("LOCAL_RANK", rank))
    try:
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_launch(expert_parallel, seats, local, kind, timeout)
        if kind == "cuda":
            torch.cuda.set_device(local)
        where = ":".join(os.environ.get(f"MASTER_{name}", "?") for name in ("ADDR", "PORT"))
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
        what = f"did not answer for {timeout:g} s" if "timed out" in said else "is gone"
        raise ConnectionError(
            f"rank {rank}: another rank {what}; go on from the last checkpoint with --resume"
        ) from error
    except (ValueError, OSError):
        if local:
            raise SystemExit(1) from None
        raise
    dist.destroy_process_group()


def _meet(kind: str, ep: int, timeout: timedelta) -> DeviceMesh:
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timeout)
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
            "expert parallelism needs processes: start them with torchrun --standalone "
            f"--nproc-per-node {ep} -m moe_lite train --expert-parallel {ep} ..."
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


def shard_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave on this rank its slice of every layer's experts, and tell the layers of the others.

    Rank i of the mesh's dimension "ep" keeps experts i*E/ep .. (i+1)*E/ep-1. Nothing else changes:
    the same gates, whatever they are, and the same backend for the rows that arrive.

    Args:   model: any module with :class:`MoELayer` in it, whole, on the mesh's device; what
            the first rank has goes to all. mesh: all ranks, one dimension named "ep" and, where
            experts have copies, "dp" before it.
    Raises: ValueError if there is no such dimension or layer, the layers are sharded already,
            or the ranks do not divide the experts.
    Source: Lepikhin et al. 2020 (arXiv:2006.16668): experts divided, all other layers copied.
    """
    names = mesh.mesh_dim_names or ()
    if "ep" not in names or set(names) - {"dp", "ep"}:
        raise ValueError(f'the mesh has the dimensions {names}, not "ep" or "dp" and "ep"')
    layers = [layer for layer in model.modules() if isinstance(layer, MoELayer)]
    if not layers or any(layer.across is not None for layer in layers):
        raise ValueError("there are no layers of experts left to shard")
    ep, index = mesh["ep"].size(), mesh.get_local_rank("ep")
    for layer in layers:
        if layer.experts.num_experts % ep:
            raise ValueError(
                f"{layer.name}: {layer.experts.num_experts} experts cannot be dealt evenly to "
                f"{ep} ranks (expert parallelism must divide the number of experts)"
            )
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    for layer in layers:
        for name, weight in list(layer.experts.named_parameters(recurse=False)):
            part = weight.detach().chunk(ep)[index].clone()
            setattr(layer.experts, name, nn.Parameter(part, weight.requires_grad))
        layer.across = Across(mesh)


class Across:
    """Reach the experts of all ranks: what a backend does here, done there.

    Args: mesh: as in :func:`shard_experts`.
    """

    def __init__(self, mesh: DeviceMesh):
        self.mesh, self.group, self.ranks = mesh, mesh.get_group("ep"), mesh["ep"].size()

    def reach(self, backend: Dispatch) -> Dispatch:
        """Make of a backend for the experts here one for the experts of all ranks.

        Only kept pairs travel. Every rank must call it at the same time; it may bring any number
        of rows, none too. Waits for the device once, to learn the numbers of rows.
        """

        def dispatch(x_TD: Tensor, experts: Experts, routing: Routing) -> Tensor:
            home = plan(routing)
            kind, dtype = x_TD.device.type, x_TD.dtype
            if torch.is_autocast_enabled(kind):  # what the product would round anyway travels light
                x_TD = x_TD.to(torch.get_autocast_dtype(kind))
            counts_E = home.offsets_E1.diff()
            theirs_WE = torch.empty_like(counts_E).view(self.ranks, -1)
            dist.all_to_all_single(theirs_WE, counts_E.view(self.ranks, -1), group=self.group)
            out = counts_E.view(self.ranks, -1).sum(1).tolist()
            into = theirs_WE.sum(1).tolist()

            x_RD = Permute.apply(x_TD, home)[: sum(out)]  # behind these are the dropped pairs
            x_MD = _AllToAll.apply(x_RD, into, out, self.group)
            y_MD = backend(x_MD, experts, _arrivals(x_MD, theirs_WE))
            y_RD = _AllToAll.apply(y_MD, out, into, self.group)

            y_RD = F.pad(y_RD, (0, 0, 0, len(home.token_R) - len(y_RD)))
            return Combine.apply(y_RD * home.gate_R[:, None].to(y_RD.dtype), home).to(dtype)

        return dispatch


def _arrivals(x_MD: Tensor, counts_WE: Tensor) -> Routing:
    """Route the M rows that came, rank by rank and in expert order from each."""
    W, E = counts_WE.shape
    expert_WE = torch.arange(E, device=x_MD.device).expand(W, E)
    expert_M1 = expert_WE.flatten().repeat_interleave(
        counts_WE.flatten().long(), output_size=len(x_MD)
    )[:, None]
    none_ME = x_MD.new_empty(1, 1).expand(len(x_MD), E)  # the scores stayed at home
    ones_M1 = x_MD.new_ones(len(x_MD), 1)
    return Routing.from_choices(none_ME, none_ME, expert_M1, ones_M1)


class _AllToAll(torch.autograd.Function):
    """Send ``out[r]`` rows to each rank r and get ``into[r]``; gradients go the way back."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, into: list[int], out: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.way = into, out, group
        x_MD = x_RD.new_empty(sum(into), x_RD.shape[1])
        dist.all_to_all_single(x_MD, x_RD.contiguous(), into, out, group=group)
        return x_MD

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        into, out, group = ctx.way
        return _AllToAll.forward(ctx, grad_MD, out, into, group), None, None, None


class _Sum(torch.autograd.Function):
    """Sum over all ranks; so do the gradients, because every rank's loss has a part in each."""

    @staticmethod
    def forward(ctx: Any, amount: Tensor) -> Tensor:
        amount = amount.clone()
        dist.all_reduce(amount)
        return amount

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, grad)


def gather_experts(model: nn.Module) -> None:
    """Give every rank all experts again: what :func:`shard_experts` did, undone.

    For a model that fits on one device, to evaluate, export or look into it there.
    """
    for layer, _, name, part in _shards(model):
        assert layer.across is not None
        parts = [torch.empty_like(part) for _ in range(layer.across.ranks)]
        dist.all_gather(parts, part.detach(), group=layer.across.group)
        setattr(layer.experts, name, nn.Parameter(torch.cat(parts), part.requires_grad))
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.across = None


def _shards(model: nn.Module) -> list[tuple[MoELayer, str, str, nn.Parameter]]:
    """List the weights of which a rank has a slice: layer, full name, short name, weight."""
    return [
        (layer, f"{path}.experts.{name}".lstrip("."), name, weight)
        for path, layer in model.named_modules()
        if isinstance(layer, MoELayer) and layer.across is not None
        for name, weight in layer.experts.named_parameters(recurse=False)
    ]


def _failures(error: dcp.CheckpointException) -> str:
    return "; ".join(f"rank {r}: {_first_line(e)}" for r, (e, _) in error.failures.items())


class Ranks(Alone):
    """Answer for many processes what the training loop asks of all that take part.

    Each takes its rows of the batch, as even as can be; one for which there is none runs a row
    of padding that counts nothing, because all must take part in each exchange. Losses are
    weighted by the number of rows: the gradient is that of one process with the whole batch.

    Args: mesh: as in :func:`shard_experts`, which comes first. over: take balancing losses,
          the controllers' loads and the measures of balance over all ranks' tokens ("global"),
          or over each rank's own and then their mean ("local").
    Raises: ValueError for another ``over``.
    """

    def __init__(self, mesh: DeviceMesh, over: Over = "global"):
        if over not in get_args(Over):
            raise ValueError(f"balance is taken over one of {get_args(Over)}, not {over!r}")
        self.mesh, self.over = mesh, over
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def wrap(self, objective: nn.Module) -> nn.Module:
        own = [name for _, name, _, _ in _shards(objective)]
        own += [name for name, _ in objective.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, own)
        return DistributedDataParallel(objective)

    def share(self, *rows_BS: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None, float]:
        B = len(rows_BS[0])
        begin, end = (B * r // self.size for r in (self.rank, self.rank + 1))
        if begin == end:
            padding = tuple(rows[:1] for rows in rows_BS)
            return padding, torch.zeros_like(padding[0], dtype=torch.bool), 0.0
        return tuple(rows[begin:end] for rows in rows_BS), None, (end - begin) / B

    def pool(self, routings: tuple[Routing, ...]) -> tuple[Routing, ...]:
        if self.over == "local":
            return routings
        return tuple(replace(routing, pool=_Sum.apply) for routing in routings)

    def backward(self, model: nn.Module, loss: Tensor, share: float) -> None:
        (loss * (share * self.size)).backward()  # DDP divides by the number of ranks,
        for *_, weight in _shards(model):  # and here it is done for what DDP leaves out
            if weight.grad is not None:
                if "dp" in (self.mesh.mesh_dim_names or ()):
                    dist.all_reduce(weight.grad, group=self.mesh.get_group("dp"))
                weight.grad /= self.size

    def clip(self, model: nn.Module, largest: float) -> Tensor:
        shards = [weight for *_, weight in _shards(model)]
        ids = {id(weight) for weight in shards}
        rest = [weight for weight in model.parameters() if id(weight) not in ids]
        here, all_have = (
            nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) ** 2
            for part in (shards, rest)
        )
        here = here.to(all_have.device)  # frozen experts' nothing would be on the CPU
        dist.all_reduce(here, group=self.mesh.get_group("ep"))
        norm = (here + all_have).sqrt()
        nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
        return norm

    @torch.no_grad()
    def update(self, gate: nn.Module, routing: Routing, share: float) -> None:
        gate.update(routing)  # type: ignore[operator]
        if self.over == "local":  # each by its own tokens; then they meet in the middle
            for buffer in gate.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.total(buffer * share))

    def total(self, amounts: Tensor) -> Tensor:
        return _Sum.apply(amounts.detach())

    def write(self, folder: Path, model: nn.Module, files: dict[str, dict[str, Tensor]]) -> None:
        dist.barrier()  # the first rank has made the folder
        tensors = {name: tensor for file in files.values() for name, tensor in file.items()}
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            dcp.save(self._laid_out(model, tensors), storage_writer=writer)
        except dcp.CheckpointException as error:  # what any rank met, told to all
            raise OSError(_failures(error)) from error

    def read(self, folder: Path, model: nn.Module, like: dict[str, Tensor]) -> dict[str, Tensor]:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        there = reader.read_metadata().state_dict_metadata
        like = {name: torch.empty_like(tensor) for name, tensor in like.items() if name in there}
        try:
            dcp.load(self._laid_out(model, like), storage_reader=reader)
        except dcp.CheckpointException as error:
            raise ValueError(_failures(error)) from error
        return like

    def _laid_out(self, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Say which tensors are slices, and of what."""
        shards = {name for _, name, _, _ in _shards(model)}
        names = self.mesh.mesh_dim_names or ()
        layout = [Shard(0) if name == "ep" else Replicate() for name in names]

        def lay(name: str, tensor: Tensor) -> Tensor:
            whose = name if name in shards else name.rpartition(".")[0]  # w1.exp_avg is w1's
            if whose not in shards or not tensor.dim():
                return tensor
            return DTensor.from_local(tensor, self.mesh, layout)

        return {name: lay(name, tensor) for name, tensor in tensors.items()}
