"""Recipes: a model, its training and its text under one name; ``python -m moe_lite train``."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch.distributed.device_mesh import DeviceMesh

from .. import files, hf, parallel
from ..checked import build, check_room, read_json
from ..checkpoint import find_checkpoint
from ..config import MixtralConfig, TrainConfig
from ..evaluation import evaluate
from ..model import Mixtral
from ..train import train
from . import launch, viz
from .cost import count_parameters
from .data import BOOK, DOMAINS, END_OF_TEXT, load_corpus
from .film import Film, filmed, log_steps
from .rounded import bfloat16_products

FILM = "film.safetensors"
SHARD = 15 * 2**20  # bytes: what most places that host code take as one file


@dataclass(frozen=True)
class Recipe:
    """Say all that a run depends on, besides the machine."""

    model: MixtralConfig
    training: TrainConfig
    domains: tuple[str, ...] = DOMAINS
    max_bytes: int | None = None
    frames: int = 0  # of the film of its training
    gate_scale: float = 1.0  # a factor on the gates; an export has it in w2

    def __post_init__(self) -> None:
        if not 0 < self.gate_scale < math.inf:
            raise ValueError(f"gate_scale must be above 0 and finite, not {self.gate_scale}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes must be null or at least 1, not {self.max_bytes}")
        if self.frames != 0 and not 2 <= self.frames <= 1000:
            raise ValueError(f"frames must be 0 or from 2 to 1,000, not {self.frames}")
        seq_len, context = self.training.seq_len, self.model.max_position_embeddings
        if seq_len > context:
            raise ValueError(
                f"training: seq_len {seq_len} is more than max_position_embeddings {context}"
            )

    def make(self) -> Mixtral:
        """Return the model with its first weights, drawn from torch's present random state."""
        model = Mixtral(self.model)
        for layer in model.moe_layers:
            cast(Any, layer.gate).gate_scale = self.gate_scale
        return model


MINI = MixtralConfig(
    vocab_size=4096, hidden_size=192, intermediate_size=128, num_hidden_layers=6,
    num_attention_heads=6, num_key_value_heads=3, num_local_experts=16, num_experts_per_tok=4,
    max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=0,
)  # fmt: skip
LONG = TrainConfig(
    steps=4000, batch_size=16, seq_len=256, lr=3e-3, warmup=100, eval_every=250,
    checkpoint_every=200, autocast="on",
)  # fmt: skip
RECIPES = {
    # 0.46 M parameters; for the first look and for tests.
    "tiny": Recipe(
        MixtralConfig(
            vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=0,
        ),
        TrainConfig(steps=300, batch_size=16, seq_len=64, eval_every=100),
        max_bytes=300_000,
    ),
    # 8.5 M parameters, of which a token uses 3.2 M: the trained Mixtral in the box.
    "mixtral-mini": Recipe(MINI, LONG, (*DOMAINS, BOOK), frames=16, gate_scale=4.0),
    # Its dense twin: as many parameters for a token, and no choice.
    "mixtral-mini-dense": Recipe(MINI.dense("active"), LONG, (*DOMAINS, BOOK)),
}  # fmt: skip


def read_recipe(source: str) -> Recipe:
    """Return the recipe of a name, or read one from a JSON file.

    Such a file holds ``{"model": {...}, "training": {...}, "domains": [...], "max_bytes": n}``,
    each part optional, in the field names of :class:`MixtralConfig` and :class:`TrainConfig`;
    what it leaves out is as in "tiny".

    Raises: ValueError if there is neither such a name nor such a file, or for what cannot be.
    """
    if source in RECIPES:
        return RECIPES[source]
    path, base = Path(source), RECIPES["tiny"]
    if not path.is_file():
        raise ValueError(
            f"there is no recipe {source!r}: name one of {', '.join(RECIPES)}, or a JSON file"
        )
    parts = read_json(path)
    model = parts.get("model")
    if isinstance(model, dict) and {"hidden_size", "num_attention_heads"} & model.keys():
        parts["model"] = {"head_dim": None} | model  # follows from those two, not from "tiny"
    return build(Recipe, parts, str(path), base)


def export(
    model: Mixtral,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    film: Film | None = None,
) -> None:
    """Write a folder that ``from_pretrained`` takes: model, tokenizer, generation settings, film.

    All of it appears at once or nothing does; what it replaces there is its own files only.
    Without a dtype, weights keep theirs.

    Raises: OSError if it cannot be written; ValueError if the layout cannot hold the model.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    texts = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": END_OF_TEXT,
                "model_max_length": model.config.max_position_embeddings,
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        ),
        "generation_config.json": json.dumps(
            {"do_sample": True, "eos_token_id": end, "pad_token_id": end}, indent=2
        ),
    }

    def also(part: Path) -> None:
        for name, text in texts.items():
            (part / name).write_text(text + "\n", encoding="utf-8", newline="\n")
        if film is not None and film.steps:
            film.exported().save(part / FILM)

    hf.save(model, folder, dtype=dtype, overwrite=True, max_shard_bytes=SHARD, also=also)


def main(argv: Sequence[str] | None = None) -> int:
    """Train a recipe, report held-out bits per byte, and export the model; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m moe_lite train",
        description="Train a small Mixtral on real text and export it for Hugging Face.",
    )
    add = parser.add_argument
    add("--config", default="tiny", metavar="NAME|FILE",
        help=f"a recipe: {', '.join(RECIPES)} (default: tiny), or a JSON file")  # fmt: skip
    add("--out", type=Path, help="folder for checkpoints and history (default: runs/NAME)")
    add("--steps", type=int, help="instead of the recipe's")
    add("--seed", type=int, help="instead of the recipe's")
    add("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--export", type=Path, metavar="FOLDER",
        help="where the finished model goes (default: model/ in --out)")  # fmt: skip
    add("--bf16", action="store_true", help="export in bfloat16, at half the size")
    add("--processes", type=int, metavar="N",
        help="train in N processes here, which share each batch and the experts")  # fmt: skip
    add("--expert-parallel", type=int, metavar="N",
        help="so many processes share a set of experts, more hold it again (default: all); "
        "under torchrun, which starts processes on several machines, it must be given")  # fmt: skip
    add("--timeout", type=float, default=60.0, metavar="SECONDS",
        help="how long to wait for another process (default: 60)")  # fmt: skip
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.processes is not None and launch.MEETING not in os.environ:
        return launch.start(["-m", "moe_lite", "train", *argv], args.processes)
    ep = args.processes if args.expert_parallel is None else args.expert_parallel
    if ep is not None:
        with launch.joined(ep, args.device, args.timeout) as (mesh, device):
            return _run(args, device, mesh)
    if (seats := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ValueError(f"{seats} processes would each train the whole model: add "
                         "--expert-parallel N, the number that share the experts")  # fmt: skip
    return _run(args, _device(args.device))


def _run(args: argparse.Namespace, device: torch.device, mesh: DeviceMesh | None = None) -> int:
    first = mesh is None or mesh.get_rank() == 0  # the one that speaks and exports
    recipe = read_recipe(args.config)
    given = {k: v for k in ("steps", "seed") if (v := getattr(args, k)) is not None}
    config = replace(recipe.training, **given)
    out = args.out or Path("runs") / Path(args.config).stem
    target = args.export or out / "model"
    find_checkpoint(out, args.resume)  # refuse now what would be refused after minutes
    files.check_writable(target)
    files.check_writable(
        target.resolve().parent
    )  # where the new folder is made before it is swapped in
    check_room(
        # weights, gradients and two moments in float32; each layer's input for the way back
        16 * count_parameters(recipe.model).total
        + 4 * config.batch_size * config.seq_len
        * recipe.model.hidden_size * recipe.model.num_hidden_layers,
        f"{args.config}: the training", device,
    )  # fmt: skip
    corpus = load_corpus(recipe.domains, max_bytes=recipe.max_bytes)
    if (size := corpus.tokenizer.get_vocab_size()) > recipe.model.vocab_size:
        raise ValueError(f"the tokenizer has {size} tokens, but vocab_size is smaller: "
                         f"{recipe.model.vocab_size}")  # fmt: skip
    count = count_parameters(recipe.model)
    if first:
        print(f"{count.total:,} parameters, {count.active:,} active for a token; "
              f"the text:\n{corpus}")  # fmt: skip
    torch.manual_seed(config.seed)
    model = recipe.make().to(device)
    if mesh is not None:
        parallel.shard_experts(model, mesh)
    callback = film = None
    if recipe.frames and mesh is None:
        reel, film = out / FILM, Film.of(corpus, log_steps(config.steps, recipe.frames))
        last = find_checkpoint(out, args.resume)
        if last is None:
            film.take(model, 0)
        elif reel.is_file():
            film = Film.load(reel, until=int(last.name.removeprefix("step-")))
        callback = filmed(film, model, reel)
    try:
        fit = train if mesh is None else partial(parallel.train, mesh)
        with bfloat16_products(config.autocast, device):
            history = fit(model, corpus, config, out, resume=args.resume, callback=callback)
    except KeyboardInterrupt as stop:
        if first:
            print(f"{stop or 'stopped'}; go on with --resume", file=sys.stderr)
        return 130
    longer = replace(config, eval_windows=64)
    with bfloat16_products(config.autocast, device):
        look = evaluate if mesh is None else parallel.evaluate
        bits = look(model, corpus, config=longer)
    if mesh is not None:
        parallel.gather_experts(model)
    if not first:
        return 0
    history.save(out / "history.jsonl")
    picture = io.BytesIO()
    viz.training(history).savefig(picture, format="png", dpi=110)
    files.write(out / "history.png", picture.getvalue())
    print("held-out bits per byte: " + ", ".join(f"{k} {v:.3f}" for k, v in bits.items()))
    export(model, corpus.tokenizer, target, torch.bfloat16 if args.bf16 else None, film)
    print(f"{target}: the model, for python -m moe_lite explore --model {target}")
    return 0


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"there is no device {name!r} here") from error
    return torch.device(name)
