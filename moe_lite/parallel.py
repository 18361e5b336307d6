"""Expert parallelism: a model whose experts live on several ranks, on torch's own engine.

A rank is a process (:mod:`moe_lite.course.launch`) with its own rows of each batch. Everything but
the experts is on every rank (DDP keeps it equal); of the E experts of a layer each rank has
E / ep, and a token's vector travels to its experts and back by all-to-all. The gate, the
weighted combine and the losses stay at home. ``dp`` groups of ``ep`` ranks may stand side by
side; then each expert has dp copies, whose gradients are summed.

A step, what is measured and a checkpoint are those of :mod:`moe_lite.train`, but for the sums
over ranks and gradients: each stands where it happens, in :class:`ParallelTrainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .dispatch import plan
from .dispatch.grouped import Combine, Permute
from .evaluation import Corpus, cross_entropy
from .evaluation import evaluate as evaluate_in_one_process
from .fast import BACKENDS
from .history import History, Row
from .layer import MoELayer
from .losses import load_balancing_loss
from .model import Mixtral
from .routing import Routing
from .train import Balance, Trainer, check_finite, head_loss, router_terms
from .train import train as train_in_one_process


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
    if not layers or any(_is_sharded(layer) for layer in layers):
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
        layer.dispatch = AllToAll(layer, mesh)  # type: ignore[method-assign]


class AllToAll:
    """Stand in for a layer's ``dispatch`` where its experts live on several ranks.

    Only kept pairs travel. Every rank must call it at the same time; it may bring any number of
    rows, none too. Waits for the device once, to learn the numbers of rows.

    Args: layer: of the experts, it has this rank's slice. mesh: as in :func:`shard_experts`.
    """

    def __init__(self, layer: MoELayer, mesh: DeviceMesh):
        self.layer, self.group, self.ranks = layer, mesh.get_group("ep"), mesh["ep"].size()

    def __call__(self, x_TD: Tensor, routing: Routing) -> Tensor:
        layer, E = self.layer, self.layer.experts.num_experts * self.ranks
        if routing.num_experts != E:
            raise ValueError(
                f"{layer.name}: the gate routes to {routing.num_experts} experts, but there are {E}"
            )
        home, backend = plan(routing), BACKENDS[layer.backend]
        kind, dtype = x_TD.device.type, x_TD.dtype
        if torch.is_autocast_enabled(kind):  # what the product would round anyway travels light
            x_TD = x_TD.to(torch.get_autocast_dtype(kind))
        # 1. how many rows each rank has for each expert of each other
        counts_WE = home.offsets_E1.diff().view(self.ranks, -1)
        theirs_WE = torch.empty_like(counts_WE)
        dist.all_to_all_single(theirs_WE, counts_WE, group=self.group)
        out, into = counts_WE.sum(1).tolist(), theirs_WE.sum(1).tolist()
        # 2. the rows out, the work, the rows back
        x_RD = Permute.apply(x_TD, home)[: sum(out)]  # behind these are the dropped pairs
        x_MD = _AllToAll.apply(x_RD, into, out, self.group)
        y_MD = backend(x_MD, layer.experts, _arrivals(x_MD, theirs_WE))
        y_RD = _AllToAll.apply(y_MD, out, into, self.group)
        # 3. at home, the weighted sum
        y_RD = F.pad(y_RD, (0, 0, 0, len(home.token_R) - len(y_RD)))
        return Combine.apply(y_RD * home.gate_R[:, None].to(y_RD.dtype), home).to(dtype)


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


def all_reduce(amount: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, through which gradients flow."""
    return _Sum.apply(amount)


def gather_experts(model: nn.Module) -> None:
    """Give every rank all experts again: what :func:`shard_experts` did, undone.

    For a model that fits on one device, to evaluate, export or look into it there.
    """
    for layer, _, name, part in _shards(model):
        parts = [torch.empty_like(part) for _ in range(layer.dispatch.ranks)]
        dist.all_gather(parts, part.detach(), group=layer.dispatch.group)
        setattr(layer.experts, name, nn.Parameter(torch.cat(parts), part.requires_grad))
    for module in model.modules():
        if _is_sharded(module):
            del module.dispatch


def _is_sharded(module: nn.Module) -> bool:
    return isinstance(module, MoELayer) and isinstance(module.dispatch, AllToAll)


def _shards(model: nn.Module) -> list[tuple[Any, str, str, nn.Parameter]]:
    """List the weights of which a rank has a slice: layer, full name, short name, weight."""
    return [
        (layer, f"{path}.experts.{name}".lstrip("."), name, weight)
        for path, layer in model.named_modules()
        if isinstance(layer, MoELayer) and _is_sharded(layer)
        for name, weight in layer.experts.named_parameters(recurse=False)
    ]


def _rows(*rows_BS: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None, float]:
    """Return this rank's rows of a batch, as even as can be, their mask, and their share of all.

    A rank for which there is none runs a row of padding that counts nothing, because all must
    take part in each exchange.
    """
    B, rank, size = len(rows_BS[0]), dist.get_rank(), dist.get_world_size()
    begin, end = B * rank // size, B * (rank + 1) // size
    if begin == end:
        padding = tuple(rows[:1] for rows in rows_BS)
        return padding, torch.zeros_like(padding[0], dtype=torch.bool), 0.0
    return tuple(rows[begin:end] for rows in rows_BS), None, (end - begin) / B


class Objective(nn.Module):
    """Return a batch's loss and its routings: the whole step forward, as DDP wants it."""

    def __init__(self, model: Mixtral):
        super().__init__()
        self.model = model

    def forward(
        self, ids_BS: Tensor, targets_BS: Tensor, mask_BS: Tensor | None
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        hidden_BSD, routings = self.model.hidden(ids_BS, mask_BS)
        return head_loss(self.model.lm_head, hidden_BSD, targets_BS), routings


class ParallelTrainer(Trainer):
    """Take the steps of a run in many processes: the gradient is that of one with the whole batch.

    Args: mesh: as in :func:`shard_experts`, which comes first.
    """

    def __init__(
        self,
        model: Mixtral,
        config: TrainConfig,
        balance: Balance = load_balancing_loss,
        *,
        mesh: DeviceMesh,
    ):
        super().__init__(model, config, balance)
        self.mesh = mesh
        # What every rank has stays equal, because DDP averages its gradients over the ranks.
        objective = Objective(model)
        own = [name for _, name, _, _ in _shards(objective)]
        own += [name for name, _ in objective.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, own)
        self.objective = DistributedDataParallel(objective)

    def step(self, step: int, corpus: Corpus) -> tuple[Row, Sequence[Routing]]:
        """Train on this rank's rows; return what was measured over all, and its own routings."""
        model, config = self.model, self.config
        # 1. the whole batch on every rank, which takes its rows; what is drawn differs by rank
        seed = config.seed * 1_000_003 + step + (dist.get_rank() << 40)
        torch.manual_seed(seed % 2**63)
        batch = corpus.batch(
            "train", config.batch_size, config.seq_len, seed=config.seed, step=step
        )
        rows_BS, mask_BS, share = _rows(
            batch.ids_BS.to(self.device), batch.targets_BS.to(self.device)
        )
        # 2. forward: the mean loss of these rows, but balance over all ranks' tokens
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss, routings = self.objective(*rows_BS, mask_BS)
        terms = router_terms(routings, self.balance, all_reduce=all_reduce)
        # 3. backward: of the ranks' mean loss, weighted by their shares
        self.optimizer.zero_grad()
        loss_and_penalty = loss + config.aux_coef * terms["balance"] + config.z_coef * terms["z"]
        (loss_and_penalty * share * dist.get_world_size()).backward()
        self._average_experts()
        terms["norm"] = self._clip()
        amounts = all_reduce(share * torch.stack([loss, *terms.values()]).detach())
        row = dict(zip(("loss", *terms), amounts.tolist(), strict=True))
        check_finite(row, routings)
        # 4. every rank moves its weights; a router's bias moves by all ranks' loads
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        self.optimizer.step()
        for layer, routing in zip(model.moe_layers, routings, strict=True):
            if update := getattr(layer.gate, "update", None):
                update(all_reduce(routing.load_E()))
        return row, routings

    def _average_experts(self) -> None:
        """Do for the experts what DDP leaves out: add up their copies' gradients, and divide."""
        for *_, weight in _shards(self.model):
            if weight.grad is not None:
                if "dp" in (self.mesh.mesh_dim_names or ()):
                    dist.all_reduce(weight.grad, group=self.mesh.get_group("dp"))
                weight.grad /= dist.get_world_size()

    def _clip(self) -> Tensor:
        """Shorten the whole gradient, of which others have slices; return the norm it had."""
        shards = [weight for *_, weight in _shards(self.model)]
        ids = {id(weight) for weight in shards}
        rest = [weight for weight in self.model.parameters() if id(weight) not in ids]
        here, all_have = (
            nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) ** 2
            for part in (shards, rest)
        )
        here = here.to(all_have.device)  # frozen experts' nothing would be on the CPU
        dist.all_reduce(here, group=self.mesh.get_group("ep"))
        norm = (here + all_have).sqrt()
        nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.grad_clip, norm)
        return norm

    def evaluate(self, corpus: Corpus) -> dict[str, float]:
        return evaluate(self.model, corpus, config=self.config)

    def save(self, out: str | Path, corpus: Corpus, history: History) -> None:
        save_checkpoint(out, self.model, self.optimizer, self.config, corpus.digest, history,
                        self._slice)  # fmt: skip

    def load(self, path: Path, corpus: Corpus) -> History:
        return load_checkpoint(path, self.model, self.optimizer, self.config, corpus.digest,
                               self._slice)  # fmt: skip

    def stops(self, pressed: bool) -> bool:
        return bool(all_reduce(torch.tensor(float(pressed), device=self.device)))

    def _slice(self, name: str, tensor: Tensor) -> Tensor:
        """Return of what whole a tensor is this rank's slice, if it is one of an expert weight."""
        shards = {name for _, name, _, _ in _shards(self.model)}
        whose = name if name in shards else name.rpartition(".")[0]  # w1.exp_avg is w1's
        if whose not in shards or not tensor.dim():
            return tensor
        names = self.mesh.mesh_dim_names or ()
        layout = [Shard(0) if name == "ep" else Replicate() for name in names]
        return DTensor.from_local(tensor, self.mesh, layout)


def train(
    mesh: DeviceMesh,
    model: Mixtral,
    corpus: Corpus,
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    progress: bool = True,
    **options: Any,
) -> History:
    """Train a sharded model as :func:`moe_lite.train.train` does, in many processes.

    Every rank of the mesh calls this with equal arguments, and gets the same history. The folder
    must be one that all see. A balance is given ``all_reduce``, as the losses of
    :mod:`moe_lite.losses` take it; a probe sees the routings of its own rank's tokens.
    """
    options |= {"progress": progress and dist.get_rank() == 0}
    trainer = partial(ParallelTrainer, mesh=mesh)
    return train_in_one_process(model, corpus, config, out, trainer=trainer, **options)


def evaluate(
    model: Mixtral, corpus: Corpus, *, config: TrainConfig | None = None
) -> dict[str, float]:
    """Measure a sharded model as :func:`moe_lite.evaluation.evaluate` does; every rank calls it."""
    return evaluate_in_one_process(model, corpus, config=config, nats=_summed_loss)


def _summed_loss(model: Mixtral, ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
    (ids_BS, targets_BS), mask_BS, share = _rows(ids_BS, targets_BS)
    logits_BSV = model(ids_BS, mask_BS).logits_BSV
    nats = cross_entropy(logits_BSV, targets_BS, reduction="sum")
    return all_reduce(nats if share else torch.zeros_like(nats))
