"""What one rank does for tests/test_parallel.py: `python ranks.py RANK ACT FOLDER PORT...`.

The same few processes play in worlds of 4, 2 and 1 ranks, because one takes seconds to start;
what they measured goes to FOLDER/found.json.
"""

import copy
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from moe_lite import __main__ as cli
from moe_lite import parallel
from moe_lite.checkpoint import checkpoints
from moe_lite.config import MixtralConfig, TrainConfig
from moe_lite.course import launch
from moe_lite.course.data import Corpus, load_corpus
from moe_lite.course.losses2017 import importance_loss
from moe_lite.experts import Experts
from moe_lite.fast import BACKENDS
from moe_lite.layer import MoELayer
from moe_lite.losses import load_balancing_loss, mixtral_aux_loss
from moe_lite.model import Mixtral
from moe_lite.routers import (
    ExpertChoiceRouter,
    SigmoidBiasRouter,
    TopKRouter,
)
from moe_lite.routing import Routing
from moe_lite.train import train

D, E, S = 16, 4, 16
SMALL = MixtralConfig(
    vocab_size=4096, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, num_local_experts=E, num_experts_per_tok=2,
    max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=10, seq_len=S, warmup=3, checkpoint_every=5, eval_every=5, eval_windows=3
)
GATES: dict[str, Callable[[], nn.Module]] = {
    "top_k": lambda: TopKRouter(D, E, 2),
    "sigmoid_bias": lambda: SigmoidBiasRouter(D, E, 2, update_rate=0.01),
    "capacity": lambda: TopKRouter(D, E, 2, capacity_factor=0.75, group_size=S),
}
# gate: rows in a batch (3 leave one of 4 ranks without any, 5 are uneven), and the backend
CASES = {"top_k": (4, "loop"), "sigmoid_bias": (3, "padded"), "capacity": (5, "grouped")}


def fresh(case: str, seed: int = 7) -> Mixtral:
    torch.manual_seed(seed)
    model = Mixtral(SMALL)
    for layer in model.moe_layers:
        layer.gate, layer.backend = GATES[case](), CASES[case][1]
    model.moe_layers[0].shared = Experts(1, D, 8)
    return model


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def layers(mesh: DeviceMesh, rank: int) -> dict[str, float]:
    """Hold one sharded layer to the whole one, with 7 tokens on each rank but none on the last."""
    found = {}
    gates = {**GATES, "expert_choice": lambda: ExpertChoiceRouter(D, E)}
    gates["capacity"] = lambda: TopKRouter(D, E, 2, capacity_factor=0.5)
    for name, make in gates.items():
        for backend in (name for name in BACKENDS if name != "triton"):
            torch.manual_seed(0)
            whole = MoELayer(make(), Experts(E, D, 8), backend)
            here = copy.deepcopy(whole)
            parallel.shard_experts(here, mesh)
            torch.manual_seed(rank)
            x_TD = torch.randn(0 if rank == dist.get_world_size() - 1 else 7, D)
            x_TD[:, 0] += 3  # so that some experts are wanted by few, or by none
            x_TD.requires_grad_()
            (out, routing), (out2, _), sent = whole(x_TD), *watched(here, x_TD)
            outs = [out, out2]
            assert sent == routing.kept(torch.ones_like(routing.expert_N).bool()).keep_N.sum()
            weigh = torch.randn_like(x_TD)
            (dx, dgate, *dexperts), (dx2, dgate2, *dexperts2) = (
                torch.autograd.grad(
                    (out * weigh).sum(),
                    [x_TD, next(layer.gate.parameters()), *layer.experts.parameters()],
                )
                for out, layer in zip(outs, (whole, here), strict=True)
            )
            for grad in dexperts:
                dist.all_reduce(grad)
            mine = [grad.chunk(mesh["ep"].size())[mesh.get_local_rank("ep")] for grad in dexperts]
            pairs = [
                (outs[0], outs[1]),
                (dx, dx2),
                (dgate, dgate2),
                *zip(mine, dexperts2, strict=True),
            ]
            worst = max((a - b).abs().max().item() for a, b in pairs if a.numel())
            found[f"{name}, {backend}"] = max_over_ranks(worst)
    return found


def watched(layer: MoELayer, x_TD: Tensor) -> tuple[tuple[Tensor, Routing], int]:
    """Run a layer, and count the rows that it sends to experts."""
    sent, usual = [], dist.all_to_all_single

    def spy(into: Tensor, out: Tensor, *args, **kwargs) -> None:
        if out.is_floating_point():
            sent.append(len(out))
        usual(into, out, *args, **kwargs)

    dist.all_to_all_single = spy
    try:
        return layer(x_TD), sent[0]
    finally:
        dist.all_to_all_single = usual


def max_over_ranks(value: float) -> float:
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()


def runs(meshes: dict[str, DeviceMesh], rank: int, folder: Path, corpus: Corpus) -> dict:
    """Train every case, and resume what other numbers of ranks have left half-way."""
    found: dict = {}
    for case, (rows, _) in CASES.items():
        config, mesh, seats = replace(CONFIG, batch_size=rows), meshes[case], mesh_size(meshes)
        model, out = fresh(case), folder / f"{case}-{seats}"
        parallel.shard_experts(model, mesh)
        history = parallel.train(mesh, model, corpus, config, out, progress=False)
        parallel.gather_experts(model)
        found[case] = {"rows": history.rows, "weights": spread(model)}
        if rank == 0:
            found[case]["distance"] = distance(model, load(folder, case))
        if case == "top_k":
            # go on half-way from what one process, and what 4 ranks, have left
            for source in ("top_k-alone", "top_k-4")[: 1 if seats == 4 else 2]:
                begin = folder / f"{source}-on-{seats}"
                if rank == 0:
                    shutil.copytree(folder / source, begin)
                    shutil.rmtree(checkpoints(begin)[-1])
                dist.barrier()
                again = fresh(case, seed=8)
                parallel.shard_experts(again, mesh)
                history = parallel.train(
                    mesh, again, corpus, config, begin, resume=True, progress=False
                )
                parallel.gather_experts(again)
                found[f"{source} resumed"] = {
                    "rows": history.rows, "distance": distance(again, model),
                }  # fmt: skip
    return found


def mesh_size(meshes: dict[str, DeviceMesh]) -> int:
    return meshes["top_k"].size()


def spread(model: nn.Module) -> float:
    """Measure how far any rank's weights are from the first's."""
    worst = 0.0
    for tensor in model.state_dict().values():
        first = tensor.clone()
        dist.broadcast(first, src=0)
        worst = max(worst, (tensor - first).abs().max().item())
    return max_over_ranks(worst)


def load(folder: Path, case: str) -> Mixtral:
    """Read the model that one process trained, through its last checkpoint."""
    model = fresh(case, seed=8)
    (file,) = checkpoints(folder / f"{case}-alone")[-1].glob("*.safetensors")
    stored = {name: t for name, t in load_file(file).items() if name in model.state_dict()}
    model.load_state_dict(stored, strict=False)  # lm_head is tied and stored once
    return model


def balances(mesh: DeviceMesh, corpus: Corpus) -> dict[str, float]:
    """Take balance on two ranks; beside it that of the whole batch, and the mean of its parts'."""
    batch = corpus.batch("train", 3, S, seed=CONFIG.seed, step=0)
    with torch.no_grad():
        parts = [fresh("sigmoid_bias")(ids).routings for ids in batch.ids_BS.split([1, 2])]
        whole = fresh("sigmoid_bias")(batch.ids_BS).routings
    config = replace(CONFIG, batch_size=3, steps=2, eval_every=0)
    found = {}
    for balance in (load_balancing_loss, importance_loss, mixtral_aux_loss):
        model = fresh("sigmoid_bias")
        parallel.shard_experts(model, mesh)
        history = parallel.train(mesh, model, corpus, config, balance=balance, progress=False)
        found[balance.__name__] = history.rows[0]["balance"]
        found[f"whole {balance.__name__}"] = balance(whole).item()
        one, two = (balance(routings).item() for routings in parts)
        found[f"parts {balance.__name__}"] = (one + 2 * two) / 3
    return found


def fall(rank: int, who: int, how: Callable[[], None]) -> Callable:
    """Let something befall one rank after the backward pass of its sixth step."""
    steps, usual = [], parallel.ParallelTrainer._average_experts

    def average(self) -> None:
        steps.append(1)
        if rank == who and len(steps) == 6:
            how()
        usual(self)

    return average


def die() -> None:
    if os.name == "nt":
        os._exit(9)
    os.kill(os.getpid(), signal.SIGKILL)


def first(rank: int, folder: Path, ports: list[str]) -> int:
    """Train in worlds of 4, 2 and 1; then train by the command, and lose the last rank."""
    corpus = load_corpus(["drama", "prose"], max_bytes=40_000)
    found: dict = {"alone": {}}
    for case, (rows, _) in CASES.items() if rank == 0 else ():
        config, out = replace(CONFIG, batch_size=rows), folder / f"{case}-alone"
        found["alone"][case] = train(fresh(case), corpus, config, out, progress=False).rows
    for seats in (4, 2, 1)[: 3 if rank == 0 else 2 if rank == 1 else 1]:
        os.environ |= {"WORLD_SIZE": str(seats), "MASTER_PORT": ports[(4, 2, 1).index(seats)]}
        with launch.joined(min(seats, 2), "cpu", timeout=900) as (pairs, _):
            flat = init_device_mesh("cpu", (seats,), mesh_dim_names=("ep",))
            meshes = {"top_k": flat, "sigmoid_bias": pairs, "capacity": pairs}
            measured = runs(meshes, rank, folder, corpus) | {"layers": layers(flat, rank)}
            if seats == 2:
                measured["balance"] = balances(flat, corpus)
            found[str(seats)] = measured
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    os.environ |= {"WORLD_SIZE": "4", "MASTER_PORT": ports[3]}
    parallel.ParallelTrainer._average_experts = fall(rank, 3, die)  # type: ignore[method-assign]
    return command(folder, "killed")


def second(rank: int, folder: Path, ports: list[str]) -> int:
    """Go on with what :func:`first` left, on 2 ranks; then train with one that does not answer."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_PORT": ports[0]}
    assert command(folder, "killed", "--resume") == 0
    while not (folder / "killed" / "model" / "generation_config.json").exists():
        time.sleep(0.1)  # the first rank is still exporting, and the next wait is a short one
    os.environ["MASTER_PORT"] = ports[1]
    average = fall(rank, 1, lambda: time.sleep(3600))
    parallel.ParallelTrainer._average_experts = average  # type: ignore[method-assign]
    return command(folder, "asleep", "--timeout", "30")


def command(folder: Path, out: str, *more: str) -> int:
    common = ("--config", f"{folder / 'small.json'}", "--device", "cpu", "--expert-parallel", "2")
    return cli.main(["train", *common, "--out", f"{folder / out}", *more])


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, act, folder, *ports = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
    sys.exit({"first": first, "second": second}[act](int(rank), Path(folder), ports))
