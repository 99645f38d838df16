"""After a crash either the old or the new content is there, whole."""

import os
import stat
from pathlib import Path

import pytest

from dpfpl_common.ops.files import fsync_folder, write_durably


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_content_and_mode_are_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old" * 1000)
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_durably(path, b"", mode=0o640)
    assert path.read_bytes() == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["state"]


def test_large_content_is_written_whole_even_in_small_pieces(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:1000]))
    content = bytes(range(256)) * 40
    write_durably(tmp_path / "state", content)
    assert (tmp_path / "state").read_bytes() == content


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_crash_on_the_way_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "state"
    write_durably(path, b"old")

    def crash(*_):
        raise OSError("power lost")

    monkeypatch.setattr(*((Path, "replace") if step == "replace" else (os, step)), crash)
    with pytest.raises(OSError, match="power lost"):
        write_durably(path, b"new content")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_durably(path, b"next")  # what the crash left does not stand in the way
    assert path.read_bytes() == b"next"
    assert names(tmp_path) == ["state"]


def test_the_order_is_content_then_name_then_folder(tmp_path, monkeypatch):
    done = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        done.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        real_fsync(descriptor)

    def replace(self, target):
        done.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_durably(tmp_path / "state", b"x")
    assert done == ["fsync file", "rename", "fsync folder"]


def test_no_descriptor_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        write_durably(tmp_path / "state", b"x")
        fsync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
