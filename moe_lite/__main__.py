"""The command line: ``python -m moe_lite {lab,test,build,train,explore,bench,reproduce}``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from . import __version__

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "checkpoints" / "mixtral-nano"


def lab(argv: Sequence[str]) -> int:
    """Open JupyterLab on the first notebook; arguments go on to it."""
    from jupyterlab.handlers.announcements import NeverCheckForUpdate
    from jupyterlab.labapp import LabApp

    first = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[:1]
    if not first:
        raise FileNotFoundError(f"there are no notebooks in {ROOT / 'notebooks'}")
    LabApp.launch_instance(
        [
            f"--ServerApp.root_dir={ROOT}",
            # Nothing here needs the network, nor should a question stand before the first page.
            f"--LabApp.check_for_updates_class={NeverCheckForUpdate.__module__}.NeverCheckForUpdate",
            "--LabApp.news_url=None",
            *argv,
            *map(str, first),
        ]
    )
    return 0


def test(argv: Sequence[str]) -> int:
    """Run the whole test suite, or what arguments to pytest choose of it."""
    import pytest

    os.chdir(ROOT)  # where pytest finds its configuration, and the paths it was given
    return int(pytest.main(list(argv)))


def build(argv: Sequence[str]) -> int:
    """Build notebooks and exercises from their sources, or --check them."""
    from .build import main

    return main(argv)


def train(argv: Sequence[str]) -> int:
    """Train a small Mixtral on the course's five domains."""
    from .recipes import main

    return main(argv)


def explore(argv: Sequence[str]) -> int:
    """Write one HTML file that shows which experts each token of a text goes to."""
    parser = argparse.ArgumentParser(prog="python -m moe_lite explore", description=explore.__doc__)
    parser.add_argument("text", help="what to run through the model")
    parser.add_argument(
        "--model",
        type=Path,
        default=CHECKPOINT,
        metavar="FOLDER",
        help="a checkpoint in Hugging Face's Mixtral layout (default: the course's own)",
    )
    parser.add_argument("--out", type=Path, default=Path("routing.html"), metavar="FILE")
    args = parser.parse_args(argv)
    if not args.text.strip():
        raise ValueError("there is no text to explore: give at least one word")
    args.text.encode()  # raises ValueError for what the shell could not decode
    if not args.model.is_dir():
        raise FileNotFoundError(
            f"there is no model folder {args.model}: name one with --model FOLDER; "
            "`python -m moe_lite train --config tiny` makes one, runs/tiny/model"
        )

    import torch

    from . import hf
    from .data import load_tokenizer, pieces
    from .trace import record
    from .widgets import RoutingExplorer

    own = args.model / "tokenizer.json"
    tokenizer = load_tokenizer(own if own.is_file() else None)
    model = hf.load(args.model)
    known, vocab = tokenizer.get_vocab_size(), model.config.vocab_size
    if known > vocab or not (own.is_file() or known == vocab):
        raise ValueError(
            f"the model has {vocab} tokens and the tokenizer {known}: "
            f"put the tokenizer.json that the model was trained with into {args.model}"
        )
    ids_BS = torch.tensor([tokenizer.encode(args.text).ids])
    with torch.inference_mode(), record(model, partial(pieces, tokenizer)) as recorded:
        model(ids_BS)
    trace = recorded.trace
    RoutingExplorer(trace).to_html(args.out)
    print(
        f"{args.out}: {len(trace.tokens)} tokens through {len(trace.layers)} layers of "
        f"{model.config.num_local_experts} experts; open it in any browser"
    )
    return 0


def bench(argv: Sequence[str]) -> int:
    """Time the layer beside its peers, and the model beside transformers'."""
    from .bench import main

    return main(argv)


def reproduce(argv: Sequence[str]) -> int:
    """Reproduce a paper's table and judge it, or write the ledger of all."""
    from .ledger import main

    return main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command for command in (lab, test, build, train, explore, bench, reproduce)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; a plain mistake costs one line on stderr and a 1."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m moe_lite",
        description="Mixture of Experts from 1991 to today.",
        epilog="\n".join(f"  {name:<10}{command.__doc__}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    name = parser.parse_args(argv[:1]).command
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return COMMANDS[name](argv[1:])
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("moe_lite"):
            raise
        problem = f"{error}; `python course.py {name}` installs what is missing"
    except (ValueError, OSError) as error:
        problem = str(error)
        if isinstance(error, OSError) and error.filename:
            problem = f"{error.filename}: {error.strerror}"
    print(f"moe_lite {name}: {' '.join(problem.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
