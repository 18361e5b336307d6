"""The commands: lab, test, build, book, train, explore, bench, reproduce, read, teach.

Each imports what it needs when it runs: all can be listed, and ``read`` run, without the course's
packages.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from .. import __version__

ROOT = Path(__file__).resolve().parents[2]


def lab(argv: Sequence[str]) -> int:
    """Open JupyterLab on the map of the chapters, or of a copy of your own (--work DIR)."""
    from . import workplace

    parser = argparse.ArgumentParser(prog="python -m moe_lite lab", add_help=False)
    parser.add_argument("--work", type=Path, metavar="DIR")
    args, rest = parser.parse_known_args(argv)
    folder = workplace.originals(ROOT)
    work = args.work
    # What cannot be written (a share, a wheel) is copied, and the rest of the arguments go on.
    if work is None and not (folder == ROOT and workplace.can_write(folder)):
        work = Path.home() / workplace.DEFAULT
        print(f"{folder} cannot be written, so you work in a copy of your own.")
    if work is not None:
        made, kept = workplace.copy(folder, work)
        print(f"{work}: {made} notebooks copied, {kept} of yours left as they are")
        folder = work.resolve()
    from jupyterlab.labapp import LabApp

    from ..files import write
    from .lab import arguments, landing

    own = any(word.startswith("--ServerApp.root_dir") for word in rest)  # it takes one value only
    page = folder / "map.md"
    write(page, landing(folder))
    LabApp.launch_instance([*arguments(None if own else folder), *rest,
                            *([] if own else [str(page)])])  # fmt: skip
    return 0


def test(argv: Sequence[str]) -> int:
    """Run the whole test suite, or what arguments to pytest choose of it."""
    _clone("tests")
    import pytest

    os.chdir(ROOT)  # where pytest finds its configuration, and the paths it was given
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest sums up what was done
    code = pytest.main([*_workers(argv), *argv])
    return 130 if code == pytest.ExitCode.INTERRUPTED else int(code)


def _workers(argv: Sequence[str]) -> list[str]:
    """Run whole files side by side, a core each, where nobody chose a part of the suite."""
    cores = min(os.cpu_count() or 1, 4)  # each holds torch, and some a browser: 2 GiB in all
    whole = all(word.startswith(("--quick", "--durations")) for word in argv)
    return ["-n", str(cores), "--dist", "loadfile"] if whole and cores > 1 else []


def build(argv: Sequence[str]) -> int:
    """Build notebooks and exercises from their sources, or --check them."""
    _clone("notebooks")
    from .build import main

    return main(argv)


def book(argv: Sequence[str]) -> int:
    """Make a website of the notebooks, exercises and ledger, with the widgets alive."""
    _clone("notebooks")
    from ..hf import PRETRAINED
    from .book import main

    return main(argv, lambda: _live("", PRETRAINED / "mixtral-mini"))


def train(argv: Sequence[str]) -> int:
    """Train a small Mixtral on the course's domains of text."""
    from .recipes import main

    return main(argv)


def explore(argv: Sequence[str]) -> int:
    """Write one HTML file that shows which experts each token goes to, and what if not."""
    parser = argparse.ArgumentParser(prog="python -m moe_lite explore", description=explore.__doc__)
    parser.add_argument("text", nargs="?", default="", help="what to run through the model")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="a folder that transformers reads, of any sparse model (default: the course's own)",
    )
    parser.add_argument("--file", type=Path, metavar="FILE", help="a file that holds the text")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="a trace instead: .safetensors, or a .csv table"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: as it is stored"
    )
    parser.add_argument("--compare", metavar="TEXT", help="another text, to stand beside it")
    parser.add_argument(
        "--compare-model", type=Path, metavar="FOLDER", help="another model, to stand beside it"
    )
    parser.add_argument(
        "--ablate", metavar="LAYER.EXPERT", help="the same without this expert, to stand beside it"
    )
    parser.add_argument(
        "--film", action="store_true", help="the film of the model's training, instead of a text"
    )
    parser.add_argument(
        "--live", action="store_true", help="put the model into the page too: type any text there"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: routing.html, live.html")
    args = parser.parse_args(argv)
    from ..checked import read_text

    if args.file and (args.text or args.film):
        raise ValueError("give a text or a --file with one, and neither to a film")
    args.text = read_text(args.file) if args.file else args.text
    if args.trace and (args.text or args.model or args.compare or args.film or args.live):
        raise ValueError("a trace has its own text, and stands alone: give --trace FILE")
    args.out = args.out or Path("live.html" if args.live else "routing.html")
    beside = args.compare is not None or args.compare_model is not None
    if args.ablate and (beside or args.film or args.live or args.trace):
        raise ValueError("--ablate has its own page beside: give a text and a --model with it")
    if args.ablate and not re.fullmatch(r"[0-9]{1,6}[.][0-9]{1,6}", args.ablate):
        raise ValueError(f"--ablate is LAYER.EXPERT, as 1.3, not {args.ablate!r}")
    texts = [args.text, args.compare if args.compare is not None else args.text][: 1 + beside]
    if args.film and (beside or args.text):
        raise ValueError("a film has its own text, and stands alone: give --film and a --model")
    if args.live and (beside or args.film):
        raise ValueError(
            "a live page has its own film, and stands alone: give --live and a --model"
        )
    if (
        not args.film
        and not args.live
        and not args.trace
        and not all(text.strip() for text in texts)
    ):
        raise ValueError("there is no text to explore: give at least one word")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # what the shell could not decode
            raise ValueError(f"the text {text!a} is not UTF-8") from None

    from .. import files
    from ..hf import PRETRAINED
    from . import traces
    from .causal import ablate
    from .film import Film
    from .widgets import RoutingExplorer

    files.target(args.out)  # told before the work, not after
    folder = args.model or PRETRAINED / "mixtral-mini"
    if args.live:
        page = _live(args.text, folder)
        page.to_html(args.out)
        size = args.out.stat().st_size / 1e6
        print(f"{args.out}: {size:.1f} MB; open it in any browser\n{page.about}")
        return 0
    if args.film:
        widget = RoutingExplorer(film=Film.load(_folder(folder) / "film.safetensors"))
        shown = f"{len(widget.film['steps'])} steps of a training"
    elif args.trace:
        read = traces.from_csv if args.trace.suffix.lower() == ".csv" else traces.load
        widget, shown = RoutingExplorer(read(args.trace), selected=0), "recorded elsewhere"
    else:
        run = partial(_run, dtype=args.dtype)
        other = run(texts[-1], args.compare_model or folder)[2] if beside else None
        without = tuple(map(int, args.ablate.split("."))) if args.ablate else None
        model, tokenizer, trace, left = run(args.text, folder, without=without)
        other = left or other
        own = {"model": model, "tokenizer": tokenizer, "text": args.text} if model else {}
        layer = without[0] if without else 0
        widget = RoutingExplorer(trace, **own, beside=other, layer=layer, selected=0)
        if model:  # it begins with one question answered: without the first token's expert
            first = trace.layers[0]
            expert = int(first.expert_N[first.token_N == 0][0]) if (first.token_N == 0).any() else 0
            widget.ask(ablate(0, expert, tokens=0))
            shown = f"{len(widget.precompute().answers) - 1} answers to “what if”"
        else:
            unknown = sum("unknown" in rule for rule in trace.rules)
            shown = f"{unknown} of which do not say what their choice follows from"
    widget.to_html(args.out)
    print(
        f"{args.out}: {len(widget.tokens)} tokens through {len(widget.layer_names)} layers of "
        f"{max(widget.num_experts)} experts, {shown}; open it in any browser"
    )
    return 0


def _clone(folder: str) -> Path:
    """Return a folder that only a clone of the repository has, beside the package."""
    if not (ROOT / folder).is_dir():
        raise FileNotFoundError(
            f"there is no folder {ROOT / folder}: this command works in a clone of the repository"
        )
    return ROOT / folder


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no model folder {path}: name one with --model FOLDER; "
            "`python -m moe_lite train --config tiny` makes one, runs/tiny/model"
        )
    return path


def _run(
    text: str, folder: Path, dtype: str | None = None, without: Any = None
) -> tuple[Any, Any, Any, Any]:
    """Run a text through the model in a folder: the model if ours, tokenizer, trace; and without.

    Args: without: (layer, expert) that a second run does not have; its rise in loss is printed.
    """
    import torch

    from ..checked import check_room
    from ..trace import record
    from . import theirs
    from .data import encode, pieces

    kind = getattr(torch, dtype) if dtype else None
    ours = not (_folder(folder) / "config.json").is_file() or not theirs.is_theirs(folder)
    if ours:
        model, tokenizer = _load(folder, kind)
        window, most = model.config.sliding_window, model.config.max_position_embeddings
    else:
        count, size = theirs.size(folder, kind)
        print(f"{folder}: {count:,} parameters, {size / 1e9:.2f} GB of memory", flush=True)
        tokenizer = _tokenizer(folder)
        model = theirs.load(folder, kind)
        vocab, most = theirs.context(model)
        window = True
        _agree(folder, tokenizer, vocab)
    ids = encode(tokenizer, text)
    if len(ids) > most:
        raise ValueError(f"{len(ids)} tokens are more than the model's context of {most}")
    S = len(ids) if window else 0  # a window needs a mask, S by S
    check_room(8 * S * S, f"the attention over {len(ids):,} tokens")
    with torch.inference_mode(), record(model, partial(pieces, tokenizer)) as recorded:
        before = model(torch.tensor([ids]))
    trace = replace(recorded.trace, source=folder.resolve().name)
    other = _without(model, tokenizer, trace, ids, before, *without) if without else None
    return model if ours else None, tokenizer, trace, other


def _without(
    model: Any, tokenizer: Any, trace: Any, ids: list[int], before: Any, layer: int, expert: int
) -> Any:
    """Run a text again without an expert, say how much its loss rises, and return the trace."""
    import torch
    import torch.nn.functional as F

    from ..model import Mixtral
    from ..trace import record
    from .causal import ablate, intervene
    from .data import pieces
    from .theirs import ablated

    # 1. what cannot be asked
    L, E = len(trace.layers), trace.layers[layer].num_experts if layer < len(trace.layers) else 0
    if layer >= L:
        raise ValueError(f"there is no layer {layer}: {L} have experts, counted from 0")
    if expert >= E:
        raise ValueError(f"there is no expert {expert} in layer {layer}: it has {E}, from 0")
    ours = isinstance(model, Mixtral)
    if not ours and getattr(before, "logits", None) is None:
        raise ValueError("the model says no next token, so there is no loss that could rise")
    if len(ids) < 2:
        raise ValueError("a loss needs at least two tokens of text")
    # 2. the same text, without it
    name = trace.layer_names[layer].partition(", pass ")[0]
    left_out = intervene(model, ablate(layer, expert)) if ours else ablated(model, name, expert)
    show = partial(pieces, tokenizer)
    with torch.inference_mode(), left_out, record(model, show) as recorded:
        after = model(torch.tensor([ids]))
    # 3. what that costs
    logits = [out.logits_BSV if ours else out.logits for out in (before, after)]
    target = torch.tensor(ids[1:])
    was, now = (float(F.cross_entropy(x[0, :-1].float(), target)) for x in logits)
    print(f"without expert {expert} of layer {layer} ({name}): the loss of the text goes from "
          f"{was:.4f} to {now:.4f} nats a token ({now - was:+.4f})")  # fmt: skip
    return replace(recorded.trace, source=f"{trace.source} without {layer}.{expert}")


def _live(text: str, folder: Path) -> Any:
    """Make the live page of the model in a folder, with the film that lies beside it."""
    from ..hf import load_config
    from .asking import book_of
    from .film import Film
    from .widgets.live import LivePage, check_size, openings

    check_size(load_config(_folder(folder)))  # told before it is loaded
    model, tokenizer = _load(folder)
    filmed = folder / "film.safetensors"
    film = Film.load(filmed) if filmed.is_file() else None
    return LivePage(
        model, tokenizer, text, film=film, title=folder.resolve().name,
        openings=openings(film, tokenizer), book=book_of(model, tokenizer),
    )  # fmt: skip


def _load(folder: Path, dtype: Any = None) -> tuple[Any, Any]:
    """Load the model in a folder and its tokenizer."""
    from .. import hf

    tokenizer = _tokenizer(folder)
    model = hf.load(folder, dtype=dtype)
    _agree(folder, tokenizer, model.config.vocab_size)
    return model, tokenizer


def _tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a folder; where there is none, the course's own."""
    from .data import load_tokenizer

    own = _folder(folder) / "tokenizer.json"
    return load_tokenizer(own if own.is_file() else None)


def _agree(folder: Path, tokenizer: Any, vocab: int) -> None:
    known = tokenizer.get_vocab_size()
    if known > vocab or not ((folder / "tokenizer.json").is_file() or known == vocab):
        raise ValueError(
            f"the model has {vocab} tokens and the tokenizer {known}: "
            f"put the tokenizer.json that the model was trained with into {folder}"
        )


def bench(argv: Sequence[str]) -> int:
    """Time the layer beside its peers, and the model beside transformers'."""
    sys.path.insert(0, str(_clone("experiments/bench").parents[1]))  # no part of what is installed
    from experiments.bench import main

    return main(argv)


def reproduce(argv: Sequence[str]) -> int:
    """Reproduce a paper's table and judge it, or write the ledger of all."""
    _clone("experiments")
    from .ledger import main

    return main(argv)


def read(argv: Sequence[str]) -> int:
    """Show which files to read in what order, and one token's trip through the layer."""
    from .reading import main

    return main(argv)


def teach(argv: Sequence[str]) -> int:
    """Make a lab out of exercises, or grade what students hand in."""
    if not (Path(__file__).parent / "teach").is_dir():
        raise FileNotFoundError("this is the students' copy of the course: it has no `teach`")
    from .teach import main

    return main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command
    for command in (lab, test, build, book, train, explore, bench, reproduce, read, teach)
}


def installs(command: str) -> str:
    """Return what to type to install what a command needs, with or without a clone."""
    if (ROOT / "course.py").is_file():
        return f"`python course.py {command}`"
    extras = {"test": "test", "build": "test", "bench": "test", "book": "book"}
    extra = extras.get(command, "course")
    return f'`pip install "moe-lite[{extra}]"`'


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
    except BrokenPipeError:
        raise  # to run(): whoever read what is printed has left
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("moe_lite"):
            raise
        problem = f"{error}; {installs(name)} installs what is missing"
    except (ValueError, OSError) as error:
        problem = str(error)
        if isinstance(error, OSError) and error.filename:
            problem = f"{error.filename}: {error.strerror}"
    except (MemoryError, RuntimeError) as error:
        said = re.search(r"(tried to allocate [\d.]+ \w+)|allocate|overflowed", str(error))
        if not (isinstance(error, MemoryError) or said):
            raise
        problem = "there is not enough memory" + (f" ({said[1]})" if said and said[1] else "")
    print(f"moe_lite {name}: {' '.join(problem.split())}", file=sys.stderr)
    return 1


def run() -> int:
    """Be the process: run the command, and end without a traceback on Ctrl-C and a closed pipe."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else we were told to ignore
        signal.signal(signal.SIGINT, interrupted)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # course.py held it until here
    try:
        try:
            code = main()
        except SystemExit as done:  # argparse's help, or its complaint
            code = done.code if isinstance(done.code, int) else 1
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        if error.errno in (errno.EPIPE, errno.EINVAL):  # the reader has left, as in `| head`
            code = 141  # what a shell says of a command that SIGPIPE ended
        else:
            print(f"moe_lite: what it printed is lost: {error.strerror}", file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        code = 130
    if signal.getsignal(signal.SIGINT) is interrupted:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # all is done: Python may be stopped tidying up
    return code


def interrupted(signum: int, frame: FrameType | None) -> None:
    """Answer Ctrl-C with KeyboardInterrupt; in an import leave at once, for it may be swallowed.

    numpy, imported by torch's own C++, is such a place: torch would go on without numpy. To leave
    there is no worse than a kill, which all that a command writes has to survive anyway.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt
