"""Files are whole or not there, whatever happens while they are written.

What a full disk or a kill does at each single moment is in test_faults.py.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moe_lite import files

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("content", ["two\nlines, ✓", b"\x00\xff\r\n"])
def test_what_is_written_is_there_to_the_byte(tmp_path, content):
    files.write(tmp_path / "a.txt", content)
    wanted = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "a.txt").read_bytes() == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path, monkeypatch, error):
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")

    def failing(*args):
        raise error

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(type(error)):
        files.write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_flushing_takes_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("here", encoding="utf-8")
    for path in (tmp_path / "a.txt", tmp_path):
        files.flush(path)
    with pytest.raises(OSError):
        files.flush(tmp_path / "missing")


def test_a_folder_is_made_where_it_can_be(tmp_path):
    assert files.check_writable(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OSError, match="cannot write to .*file"):
        files.check_writable(tmp_path / "file")
    assert list((tmp_path / "a" / "b").iterdir()) == []


# --- what may be replaced (R1) -------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (
        ("pipe", "it is a device, a pipe or a socket"), ("socket", "it is a device, a pipe or"),
        ("folder", "it is a folder"), ("loop", ""), ("none/x", "there is no folder"),
        ("pipe/x", ""), ("..", "it is a folder"),
    ):  # fmt: skip
        before = sorted(tmp_path.iterdir())
        with pytest.raises(OSError, match=f"cannot write .*{name}: {why}") as error:
            files.write(tmp_path / name, "new")
        assert "\n" not in str(error.value) and sorted(tmp_path.iterdir()) == before
    with pytest.raises(OSError, match="cannot write /dev/null: it is a device"):
        files.target("/dev/null")


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "real").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to("a/real")
    (tmp_path / "dangling").symlink_to("a/new")
    for link, real in (("link", "real"), ("dangling", "new")):
        files.write(tmp_path / link, "new")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / "a" / real).read_text(encoding="utf-8") == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_the_old_file_s_mode_stays(tmp_path):
    (tmp_path / "a").write_text("old", encoding="utf-8")
    (tmp_path / "a").chmod(0o640)
    files.write(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


COMMANDS = {
    "explore": ["explore", "to be", "--out"],
    "reproduce": ["reproduce", "eigen2013", "--out"],
    "bench": ["bench", "--report", "--out"],
    "bench, measured": ["bench", "--out"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
def test_every_command_refuses_a_pipe_before_it_works(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = subprocess.run(
        [sys.executable, "-m", "moe_lite", *COMMANDS[name], str(tmp_path / "pipe")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("pipe: it is a device, a pipe or a socket, not a file")
    assert (tmp_path / "pipe").is_fifo()


# --- locks (R4) ----------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from moe_lite import files
with files.lock(Path(sys.argv[1]), "held"):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_one_process_holds_a_lock_and_a_dead_one_does_not(tmp_path):
    key = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(key)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == b"mine"
        for _ in range(2):
            with pytest.raises(BlockingIOError, match="mine"), files.lock(key, "not mine"):
                pass
        assert key.exists(), "who is refused leaves the lock to who has it"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with (
        files.lock(key, "not mine"),
        pytest.raises(BlockingIOError, match="twice"),
        files.lock(key, "twice"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_being_written_is_not_written_by_another(tmp_path):
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    told = pytest.raises(OSError, match=r"cannot write .*a.txt: another process is writing it")
    with files.lock(tmp_path / ".a.txt.lock", "held"), told:
        files.write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_where_a_disk_knows_no_locks_files_are_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(handle):
        raise OSError(files.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "_lock", unsupported)
    files.write(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_held_file_on_windows_is_tried_again(tmp_path, monkeypatch):
    held, waited, replace = [5, 32, 32], [], os.replace

    def scanned(old, new):
        if held:
            error = PermissionError(13, "Access is denied")
            error.winerror = held.pop()
            raise error
        replace(old, new)

    monkeypatch.setattr(os, "replace", scanned)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    files.write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new" and len(waited) == 3
    held += [32] * 99
    with pytest.raises(PermissionError, match="cannot write .*a.txt: Access is denied"):
        files.write(tmp_path / "a.txt", "newer")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new"


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_is_swapped_whole_and_keeps_what_is_foreign(tmp_path):
    folder = tmp_path / "model"
    for turn in range(2):
        with files.commit(folder, lambda name: name.startswith("old")) as part:
            assert list(part.iterdir()) == []
            (part / "new.txt").write_text(str(turn), encoding="utf-8")
        if not turn:
            (folder / "sub").mkdir()
            (folder / "sub" / "old.txt").write_text("mine", encoding="utf-8")
            (folder / "old.txt").write_text("to go", encoding="utf-8")
    assert (folder / "new.txt").read_text(encoding="utf-8") == "1"
    assert (folder / "sub" / "old.txt").read_text(encoding="utf-8") == "mine"
    assert not (folder / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_fails_is_as_it_was(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("old", encoding="utf-8")
    for error in (OSError(28, "No space left on device"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), files.commit(folder) as part:
            (part / "a").write_text("new", encoding="utf-8")
            raise error
        assert (folder / "a").read_text(encoding="utf-8") == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with (
        pytest.raises(FileExistsError, match="is not empty"),
        files.commit(folder, overwrite=False),
    ):
        pass
