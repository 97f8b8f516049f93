"""Groups of tensors in files: whole, or not there."""

import contextlib
import errno
import os
import shutil

import pytest
import torch

from transfuse.errors import RunFolderError
from transfuse.transfer.spill import Spill

SHAPES = [(1, 2, 3), (2, 1, 3)]
N_BYTES = 12 * 4 + 4


def opened(folder, key="one", dtype=torch.float32) -> Spill:
    return Spill(folder, key, SHAPES, dtype)


def fill(spill: Spill, name: str, value: float) -> None:
    with spill.writing(name) as parts:
        for n, part in enumerate(parts):
            part.fill_(value + n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_come_back_in_another_process_or_run(tmp_path, dtype):
    fill(opened(tmp_path, dtype=dtype), "inputs-0", 1.0)
    spill = opened(tmp_path, dtype=dtype)
    assert spill.has("inputs-0")
    one, other = spill.read("inputs-0")
    assert (one.shape, other.shape, one.dtype) == ((1, 2, 3), (2, 1, 3), dtype)
    assert one.eq(1).all()
    assert other.eq(2).all()
    one.zero_()  # changes nothing on disk
    assert spill.read("inputs-0")[0].eq(1).all()
    spill.remove("inputs-0", "inputs-1")
    assert not spill.has("inputs-0")
    assert not opened(tmp_path, dtype=dtype).has("inputs-0")


def test_a_block_that_fails_leaves_the_earlier_group(tmp_path):
    spill = opened(tmp_path)
    fill(spill, "gradient", 5.0)
    with contextlib.suppress(KeyError), spill.writing("gradient") as parts:
        parts[0].fill_(7.0)
        raise KeyError
    assert spill.read("gradient")[0].eq(5).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gradient.spill", "key.note.json"]


def test_damaged_and_half_written_groups_do_not_count(tmp_path):
    fill(opened(tmp_path), "a", 1.0)
    whole = (tmp_path / "a.spill").read_bytes()
    assert len(whole) == N_BYTES
    for damaged in (whole[:-1], b"\1" + whole[1:], b""):
        (tmp_path / "a.spill").write_bytes(damaged)
        assert not opened(tmp_path).has("a")
    (tmp_path / "a.spill").write_bytes(whole)
    (tmp_path / ".a.spill.x7").write_bytes(whole)  # of a run that was killed
    assert opened(tmp_path).has("a")
    assert not (tmp_path / ".a.spill.x7").exists()


def test_another_key_starts_afresh_and_spares_foreign_files(tmp_path):
    first = opened(tmp_path)
    fill(first, "a", 1.0)
    first.write_note("losses", {"1": 0.5})
    (tmp_path / "diary.txt").write_text("mine")
    assert opened(tmp_path).note("losses") == {"1": 0.5}
    other = opened(tmp_path, key="two")
    assert not other.has("a")
    assert other.note("losses") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diary.txt", "key.note.json"]


def test_too_little_room_is_met_before_and_while_writing(tmp_path, monkeypatch):
    spill = opened(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * N_BYTES))
    spill.check_room(3)
    with pytest.raises(RunFolderError, match=rf"room for {4 * N_BYTES} bytes .*got {3 * N_BYTES} bytes"):
        spill.check_room(4)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        RunFolderError, match=rf"{tmp_path}: expected room for {N_BYTES} bytes.*a\.spill.*free space"
    ):
        fill(spill, "a", 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["key.note.json"]
    monkeypatch.delattr(os, "posix_fallocate")  # systems without it
    fill(spill, "a", 1.0)
    assert opened(tmp_path).has("a")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="a part of the path is a file"):
        opened(tmp_path / "file" / "work")
