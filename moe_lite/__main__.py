"""The command line: ``python -m moe_lite COMMAND``; its commands are in :mod:`.course.cli`."""

from __future__ import annotations

import sys

from .course.cli import COMMANDS, main, run

__all__ = ["COMMANDS", "main", "run"]

if __name__ == "__main__":
    sys.exit(run())
