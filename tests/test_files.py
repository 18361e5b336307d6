"""Files are whole or not there, whatever happens while they are written."""

import os

import pytest

from moe_lite import files


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
