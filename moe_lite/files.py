"""Files and folders that are written whole or not at all, and a lock that dies with its holder."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


# --- one file ------------------------------------------------------------------------------------


def target(path: str | os.PathLike[str]) -> Path:
    """Return the file that a write to this path makes or replaces: links are followed.

    Raises: OSError if it is there and no regular file (a device, a pipe, a folder), or if it
            cannot be written.
    """
    path = Path(path)
    with _told(f"cannot write {path}"):
        real = Path(os.path.realpath(path))
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if path.name in ("", "..") or not real.parent.is_dir():
                raise FileNotFoundError(f"there is no folder {real.parent}") from None
        else:
            if stat.S_ISDIR(mode):
                raise IsADirectoryError("it is a folder")
            if not stat.S_ISREG(mode):
                raise OSError("it is a device, a pipe or a socket, not a file")
            if not os.access(real, os.W_OK):
                raise PermissionError("it is read-only")
        if not os.access(real.parent, os.W_OK):
            raise PermissionError(f"the folder {real.parent} is read-only")
    return real


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write aside, flush, rename: a reader sees the old file or the new one, never half.

    Raises: OSError if it cannot be written; what was there is then as it was.
    """
    real = target(path)
    aside, key = (real.with_name(f".{real.name[:240]}.{end}") for end in ("part", "lock"))
    with _told(f"cannot write {path}"), lock(key, "another process is writing it"):
        try:
            with aside.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            if real.exists():
                shutil.copymode(real, aside)
            patiently(os.replace, aside, real)
            flush(real.parent)
        finally:
            aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or on POSIX a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in _UNSUPPORTED):  # some network shares cannot
            raise
    finally:
        os.close(handle)


def patiently(act: Callable[..., Any], *args: Any) -> Any:
    """Do what a virus scanner or a sync client on Windows may forbid for a moment."""
    for wait in (0.01, 0.05, 0.2, 0.5, 1.0):
        try:
            return act(*args)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in (5, 32):  # access denied, sharing violation
                raise
        time.sleep(wait)
    return act(*args)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Let an OSError say in one sentence what failed, and why."""
    try:
        yield
    except OSError as error:
        if str(error).startswith("cannot "):
            raise
        raise type(error)(f"{what}: {error.strerror or error}") from error


# --- one folder ----------------------------------------------------------------------------------


def check_writable(folder: str | Path) -> Path:
    """Make a folder if need be, and make sure that files can be written there.

    Raises: OSError if not.
    """
    folder = Path(folder)
    with _told(f"cannot write to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def commit(
    folder: str | os.PathLike[str],
    replaces: Callable[[str], bool] = lambda name: False,
    overwrite: bool = True,
) -> Iterator[Path]:
    """Give an empty folder to fill; it then takes the other's place, all of it or nothing.

    What the folder held before stays, but for the names that were written anew and those that
    ``replaces`` is true of. A crash at any moment leaves the old folder or the new one; between
    the two renames the old one is ``.NAME.replaced``, and the next commit puts it back.

    Raises: FileExistsError if it holds something and is not to be overwritten; OSError if it
            cannot be written. What was there is then as it was.
    """
    goal = Path(folder).resolve()  # a link stays a link
    part, old, key = (
        goal.with_name(f".{goal.name}.{e}") for e in ("unfinished", "replaced", "lock")
    )
    with ExitStack() as held:
        held.enter_context(_told(f"cannot write {goal}"))
        goal.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(key, "another process is writing it"))
        if old.exists() and not goal.exists():
            patiently(old.rename, goal)  # an earlier commit was cut off between its two renames
        if goal.exists() and not goal.is_dir():
            raise FileExistsError("it is a file, not a folder")
        if not overwrite and goal.exists() and any(goal.iterdir()):
            raise FileExistsError("it is not empty; choose another or pass overwrite=True")
        remove(part, old)
        try:
            # 1. the new files, on the disk
            part.mkdir()
            yield part
            for path in (*part.rglob("*"), part):
                flush(path)
            # 2. what stays of the old ones, and the old folder out of the way
            if goal.exists():
                _keep(goal, part, replaces)
                flush(part)
                patiently(goal.rename, old)
            # 3. the new folder in its place
            patiently(part.rename, goal)
            flush(goal.parent)
        finally:  # also on Ctrl-C
            if old.exists() and not goal.exists():
                patiently(old.rename, goal)
            remove(part, old)


def _keep(old: Path, new: Path, replaces: Callable[[str], bool]) -> None:
    """Hand the files of one folder on to another, without copying bytes where the disk can."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == old
        return {name for name in names if top and (replaces(name) or (new / name).exists())}

    def link(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:
            shutil.copy2(source, copy)

    shutil.copytree(
        old, new, symlinks=True, copy_function=link, dirs_exist_ok=True, ignore=left_out
    )


def remove(*folders: Path) -> None:
    """Remove folders as far as they are there."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock(path: Path, held: str) -> Iterator[None]:
    """Hold what only one process can, until this one lets go or ends, however it ends.

    The lock is the system's, on an open file, so a leftover file locks nothing. Where a disk
    knows no locks, none is held.

    Args:   held: the sentence for who comes second.
    Raises: BlockingIOError with it.
    """
    while True:
        file = path.open("ab")
        try:
            _lock(file.fileno())
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except FileNotFoundError:
            pass  # who held it has just removed it
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                break
            file.close()
            raise BlockingIOError(held) if error.errno in _HELD else error from None
        file.close()
    try:
        yield
    finally:
        if os.name == "nt":  # which removes no open file
            file.close()
        with suppress(OSError):
            path.unlink()
        file.close()


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
