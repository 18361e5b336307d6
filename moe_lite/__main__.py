"""The command line: ``python -m moe_lite COMMAND``; the commands are in :mod:`.course.cli`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

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


if __name__ == "__main__":
    sys.exit(main())
