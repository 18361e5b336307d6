"""The command line: ``python -m moe_lite COMMAND``; the commands are in :mod:`.course.cli`."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from . import __version__
from .course.cli import COMMANDS, installs


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


if __name__ == "__main__":
    sys.exit(run())
