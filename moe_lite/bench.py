"""Time the model beside transformers' model of the same config: one machine, one run, ratios."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import hf
from .losses import load_balance
from .model import Mixtral
from .recipes import read_recipe
from .train import autocast_dtype, cross_entropy, head_loss, make_optimizer

Run = Callable[[], int]
"""Do a piece of work and say how many tokens it was."""


def paired(ours: Run, theirs: Run, rounds: int) -> dict[str, list[float]]:
    """Run the two in turn and list each round's tokens per second, and the ratio in the round.

    A machine's speed drifts (other programs, heat), and neighbours in time share the drift; so
    the ratio within a round is trusted, and its median reported. One round goes first, unlisted.
    """
    rates: dict[str, list[float]] = {"moe_lite": [], "transformers": []}
    for number in range(rounds + 1):
        for name, run in (("moe_lite", ours), ("transformers", theirs)):
            begin = time.perf_counter()
            tokens = run()
            rate = tokens / (time.perf_counter() - begin)
            if number:
                rates[name].append(rate)
    both = zip(rates["moe_lite"], rates["transformers"], strict=True)
    return rates | {"ratio": [a / b for a, b in both]}


def pair_of_models(ours: Mixtral) -> Any:
    """Give transformers' model with the same weights, by way of a checkpoint on the disk.

    Raises: ModuleNotFoundError naming the pip command if transformers is not installed.
    """
    try:
        from transformers import MixtralForCausalLM
    except ImportError as error:
        raise ModuleNotFoundError(
            'the benchmark needs transformers; get it with: pip install "transformers>=5.17"'
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        hf.save(ours, path)
        theirs: Any = MixtralForCausalLM.from_pretrained(path)
        return theirs.to(ours.embed_tokens.weight.device)


def training_and_generation(
    name: str, *, autocast: str, rounds: int, steps: int, new_tokens: int, device: str
) -> dict[str, Any]:
    """Time whole training steps and greedy generation of a recipe's model, both sides alike.

    Same weights, batches, optimizer and, where chosen, bfloat16 autocast. Each side computes its
    own balance loss; ours takes the cross entropy as :func:`moe_lite.train.train` does, theirs by
    ``F.cross_entropy`` on its logits. Before timing, the two losses must agree.

    Raises: ValueError if they do not.
    """
    recipe = read_recipe(name)
    torch.manual_seed(0)
    ours = Mixtral(recipe.model).to(device)
    theirs = pair_of_models(ours)
    B, S = recipe.training.batch_size, recipe.training.seq_len
    ids_BS = torch.randint(0, recipe.model.vocab_size, (B, S + 1), device=device)
    dtype = torch.bfloat16 if autocast == "on" else None
    if autocast == "auto":
        dtype = autocast_dtype(ours)
    coef = recipe.training.aux_coef

    def our_loss() -> torch.Tensor:
        hidden_BSD, routings = ours.hidden(ids_BS[:, :-1])
        loss = head_loss(ours.lm_head, hidden_BSD, ids_BS[:, 1:])
        return loss + coef * load_balance(routings)

    def their_loss() -> torch.Tensor:
        out = theirs(ids_BS[:, :-1], output_router_logits=True)
        K = recipe.model.num_experts_per_tok  # their value at balance is K, ours 1
        return cross_entropy(out.logits, ids_BS[:, 1:]) + coef / K * out.aux_loss

    with torch.no_grad():
        a, b = float(our_loss()), float(their_loss())
    if abs(a - b) > 1e-3 * abs(b):
        raise ValueError(f"the two models disagree before any training: loss {a:.5f} and {b:.5f}")

    def train_steps(model: Any, loss: Callable[[], torch.Tensor]) -> Run:
        optimizer = make_optimizer(model, recipe.training)

        def run() -> int:
            for _ in range(steps):
                with torch.autocast(device, dtype, enabled=dtype is not None):
                    value = loss()
                optimizer.zero_grad()
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.grad_clip)
                optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            return steps * B * S

        return run

    prompt_BS = ids_BS[:1, :16]

    def generate(call: Callable[[], torch.Tensor]) -> Run:
        def run() -> int:
            with torch.no_grad():
                return call().shape[1] - prompt_BS.shape[1]

        return run

    generation = paired(
        generate(lambda: ours.generate(prompt_BS, new_tokens, temperature=0)),
        generate(
            lambda: theirs.generate(
                prompt_BS, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
            )
        ),
        rounds,
    )
    training = paired(train_steps(ours, our_loss), train_steps(theirs, their_loss), rounds)
    return {
        "recipe": name,
        "compute": str(dtype or torch.float32).removeprefix("torch."),
        "training": training,
        "generation": generation,
        "shape": {"batch_size": B, "seq_len": S, "steps": steps, "new_tokens": new_tokens},
        "machine": machine(device),
    }


def machine(device: str) -> dict[str, Any]:
    """Describe what a figure was measured on."""
    import transformers

    chip = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        chip = torch.cpu.get_capabilities().get("cpu_name", chip)
    return {
        "device": device, "chip": chip, "threads": torch.get_num_threads(),
        "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and, where asked, write the figures as JSON; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m moe_lite bench",
        description="Tokens per second beside transformers' Mixtral of the same config.",
    )
    parser.add_argument("--config", default="nano", help="a recipe's name or JSON file")
    parser.add_argument("--autocast", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of runs; the median counts")
    parser.add_argument("--steps", type=int, default=2, help="training steps in a run")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    args = parser.parse_args(argv)
    for name in ("rounds", "steps", "new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(args, name)}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.touch()  # said before the minutes of measuring, not after
    result = training_and_generation(
        args.config, autocast=args.autocast, rounds=args.rounds, steps=args.steps,
        new_tokens=args.new_tokens, device=args.device,
    )  # fmt: skip
    about = result["machine"]
    print(
        f"{args.config}, {result['compute']}, {about['chip']}, {about['threads']} threads, "
        f"torch {about['torch']}, transformers {about['transformers']}; "
        f"median [least, most] of {args.rounds} rounds"
    )
    for what in ("training", "generation"):
        for name, values in result[what].items():
            unit = "" if name == "ratio" else " tokens/s"
            digits = ".2f" if name == "ratio" else ",.0f"
            middle, low, high = statistics.median(values), min(values), max(values)
            print(
                f"{what:10}  {name:12}  {middle:{digits}} [{low:{digits}}, {high:{digits}}]{unit}"
            )
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0
