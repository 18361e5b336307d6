"""Time the model beside transformers' model of the same config: one machine, one run, ratios."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moe_lite import hf
from moe_lite.course.recipes import LONG, Recipe, read_recipe
from moe_lite.evaluation import cross_entropy
from moe_lite.fast import autocast_dtype
from moe_lite.losses import load_balancing_loss
from moe_lite.model import Mixtral
from moe_lite.train import head_loss, make_optimizer

from ..recipe import EIGHT
from .measure import Row, clock, summary
from .paths import NotHere
from .shapes import SMALL

Run = Callable[[], int]
"""Do a piece of work and say how many tokens it was."""


def paired(ours: Run, theirs: Run, rounds: int) -> dict[str, Row]:
    """Run the two in turn and give each round's tokens per second, and the ratio in the round.

    A machine's speed drifts (other programs, heat), and neighbours in time share the drift; so
    the ratio within a round is trusted, and its median reported. One round goes first, unlisted.
    """
    now, rates = clock()[0], {"moe_lite": list[float](), "transformers": list[float]()}
    for number in range(rounds + 1):
        for name, run in (("moe_lite", ours), ("transformers", theirs)):
            begin = now()
            tokens = run()
            rate = tokens / (now() - begin)
            if number:
                rates[name].append(rate)
    both = zip(rates["moe_lite"], rates["transformers"], strict=True)
    rates["ratio"] = [a / b for a, b in both]
    return {name: summary(values) for name, values in rates.items()}


def pair_of_models(ours: Mixtral) -> Any:
    """Give transformers' model with the same weights, by way of a checkpoint on the disk.

    Raises: NotHere if transformers is not installed.
    """
    try:
        from transformers import MixtralForCausalLM, utils
    except ImportError as error:
        raise NotHere("missing", 'not installed (pip install "transformers>=5.17")') from error
    utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        hf.save(ours, path)
        theirs: Any = MixtralForCausalLM.from_pretrained(path)
        return theirs.to(ours.embed_tokens.weight.device)


def training_and_generation(
    name: str, *, autocast: str, rounds: int, steps: int, new_tokens: int, device: str
) -> list[Row]:
    """Time whole training steps and greedy generation of a recipe's model, both sides alike.

    "small" is no recipe: it is mixtral-mini's model and batch, with 2 of 8 experts, twice as wide.

    Same weights, batches, optimizer and, where chosen, bfloat16 autocast. Each side computes its
    own balance loss; ours takes the cross entropy as :func:`moe_lite.train.train` does, theirs by
    ``F.cross_entropy`` on its logits. Before timing, the two losses must agree.

    Returns: a row for training and one for generation: tokens per second of both, and the ratio.
    Raises: NotHere if transformers is not installed, or the losses do not agree; ValueError for a
            recipe that is none.
    """
    recipe = Recipe(EIGHT, LONG) if name == SMALL else read_recipe(name)
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
        return loss + coef * load_balancing_loss(routings)

    def their_loss() -> torch.Tensor:
        out = theirs(ids_BS[:, :-1], output_router_logits=True)
        K = recipe.model.num_experts_per_tok  # their value at balance is K, ours 1
        return cross_entropy(out.logits, ids_BS[:, 1:]) + coef / K * out.aux_loss

    with torch.no_grad():
        a, b = float(our_loss()), float(their_loss())
    if abs(a - b) > 1e-3 * abs(b):
        raise NotHere("wrong", f"they disagree before any training: loss {a:.5f} and {b:.5f}")

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
    about = {"config": name, "status": "timed", "note": "", "unit": "tokens/s"}
    compute = str(dtype or torch.float32).removeprefix("torch.")
    return [
        about | {"what": "training", "compute": compute, "batch_size": B, "seq_len": S} | training,
        about | {"what": "generation", "compute": "float32", "batch_size": 1, "seq_len": 16,
                 "new_tokens": new_tokens} | generation,
    ]  # fmt: skip
