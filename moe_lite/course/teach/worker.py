"""Run one student's cells and checks in this process: a job on stdin, a line for each step.

The grader starts it, watches the lines and ends it where a step takes too long, so what an answer
does here (endless loops, exits, crashes) ends this process and no other. It is no sandbox: who
grades strangers' code runs the whole command in a container.
"""

from __future__ import annotations

import builtins
import functools
import hmac
import importlib.util
import io
import itertools
import json
import linecache
import math
import os
import signal
import sys
import threading
import time
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "moe_lite.course.checks"
SHOWN = 4000  # characters of a message that are passed on


def sealed_checks() -> Any:
    """Return the checks as only this module has them: who imports them later gets others.

    An answer that changes the checks it can reach changes its own copy.
    """
    import moe_lite.course as course
    import moe_lite.course.checks as sealed

    for name in [name for name in sys.modules if f"{name}.".startswith(f"{NAME}.")]:
        del sys.modules[name]
    del course.checks  # type: ignore[attr-defined]
    return sealed


def callables() -> list[tuple[Any, dict[str, Any]]]:
    """Return what can be called of whatever a check counts with, for :func:`restore`."""
    import operator
    import random

    import torch

    # The first optimizer or torch.func brings torch._dynamo (3 s), which replaces this function
    # where it is still the original: that would look like an answer's doing.
    seeds = torch.random.manual_seed
    torch.manual_seed = functools.wraps(seeds)(lambda seed: seeds(seed))
    torch.jit._builtins._register_builtin(torch.manual_seed, "aten::manual_seed")
    owners = [torch, torch.Tensor, torch.nn.functional, torch.testing, math, operator, random]
    return [
        (owner, {name: value for name, value in vars(owner).items() if callable(value)})
        for owner in (*owners, builtins)
    ]


def restore(before: list[tuple[Any, dict[str, Any]]]) -> str:
    """Undo what an answer did to PyTorch or to Python; name what it changed."""
    found = []
    for owner, names in before:
        for name, value in names.items():
            if vars(owner).get(name) is not value:
                setattr(owner, name, value)
                found.append(f"{owner.__name__}.{name}")
    return ", ".join(found[:4])


def bound(memory_gb: float) -> None:
    """Limit memory and file sizes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 10**8, "RLIMIT_DATA": int(memory_gb * 2**30)}
    for name, value in wanted.items():
        _, hard = resource.getrlimit(limit := getattr(resource, name))
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(limit, (value, hard))


def allow(seconds: float) -> None:
    """Let the system end this process after so many more seconds of computing, where it can."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = math.ceil(time.process_time() + seconds)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard - 1)  # at the hard one it would be killed, not told
    resource.setrlimit(resource.RLIMIT_CPU, (wanted, hard))


def sign(key: str, number: int, text: str) -> str:
    """Return what proves that a report is the grader's own: the key itself is never written."""
    return hmac.new(key.encode(), f"{number} {text}".encode(), "sha256").hexdigest()


def leave_with_the_grader(leash: int) -> None:
    """End this process, and what it started, when the grader is gone: it alone holds our stdin."""
    with suppress(OSError):  # an answer closed it
        while os.read(leash, 1):
            pass
        if os.name == "posix" and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def told(error: BaseException) -> str:
    """Say what was raised, whatever its own text does."""
    try:
        text = " ".join(str(error)[:SHOWN].split())
    except BaseException:
        text = ""
    name = type(error).__name__[:80]
    return f"{name}: {text}" if text else name


def run(step: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Execute a cell; what it raises is told, and goes no further."""
    for name in step.get("clears", ()):  # no older function stands in for one that fails to be made
        names.pop(name, None)
    source, file = step["source"], f"<cell {step['key']}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        exec(compile(source, file, "exec"), names)
    except BaseException as error:
        return {"status": "raised", "said": told(error)}
    return {"status": "ran"}


def judge(check: Any, answer: Any, sealed: Any, seed: int) -> dict[str, Any]:
    """Put an answer to a check: right, wrong (with the verdict), empty, or the check is broken."""
    sys.stdout = io.StringIO()  # whatever the answers did to the last one
    try:
        check(answer, seed=seed)
    except NotImplementedError:
        return {"status": "empty"}
    except sealed.CheckFailed as error:
        return {"status": "wrong", "said": str(error)[:SHOWN]}
    except BaseException as error:
        broken = type(error).__name__ == "CheckBroken"
        return {"status": "broken" if broken else "wrong", "said": told(error)}
    return {"status": "right"}


def word(answer: Any, expects: str) -> dict[str, Any]:
    """Compare a word that was chosen with the one that is right."""
    if not isinstance(answer, str) or not answer.strip():
        return {"status": "empty"}
    right = answer.strip().upper() == expects
    return {"status": "right"} if right else {"status": "wrong", "said": f"it is {expects}"}


def mutants(path: str, check: Any, sealed: Any, seed: int) -> dict[str, Any]:
    """Put every wrong answer of a file of mutants to a check; name those that pass."""
    spec = importlib.util.spec_from_file_location("mutants", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wrong = [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not name.lower().startswith("right")
        and getattr(value, "__module__", "") == "mutants"
    ]
    passed = [n for n, value in wrong if judge(check, value, sealed, seed)["status"] == "right"]
    return {"status": "tried", "count": len(wrong), "passed": passed}


def do(step: dict[str, Any], names: dict[str, Any], sealed: Any) -> dict[str, Any]:
    """Do one step of a job."""
    if step["kind"] == "run":
        return run(step, names)
    if step["kind"] == "check" and step["name"] not in names:
        return {"status": "missing"}
    if step.get("expects"):
        return word(names[step["name"]], step["expects"])
    check = getattr(sealed, f"check_{step['check']}")
    if step["kind"] == "mutants":
        return mutants(step["path"], check, sealed, step["seed"])
    return judge(check, names[step["name"]], sealed, step["seed"])


def main() -> None:
    """Read the job, keep the way back to the grader, and do the steps that are left."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=leave_with_the_grader, args=(os.dup(0),), daemon=True).start()
    back = os.fdopen(os.dup(1), "w", encoding="utf-8")
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(quiet, stream)
    key, numbers = job.pop("key"), itertools.count()  # a line not signed is nobody's report

    def say(*report: Any) -> None:
        text = json.dumps(report)
        back.write(f"{sign(key, next(numbers), text)} {text}\n")
        back.flush()

    sealed = sealed_checks()
    bound(job["memory_gb"])
    before = callables()
    student = types.ModuleType("__main__")
    sys.modules["__main__"] = student
    names = vars(student)
    names |= {"__builtins__": builtins, "display": lambda *shown, **options: None}
    say("ready")
    os.chdir(Path(job["folder"]))
    for index in job["todo"]:
        say("begin", index)
        allow(job["limit_s"])
        report = do(job["steps"][index], names, sealed)
        if changed := restore(before):
            report["changed"] = changed
            if report["status"] == "right":  # it was judged by what it had changed
                report |= {"status": "refused", "said": f"it changes {changed}"}
        say("end", index, report)
    say("done")
    os._exit(0)  # threads and exit handlers of the answers are not waited for


if __name__ == "__main__":
    main()
