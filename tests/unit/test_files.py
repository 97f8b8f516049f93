"""Files and folders appear whole or not at all, and a refusal of the disk is one clear line."""

import errno
import hashlib
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from transfuse.errors import DataError, RunFolderError, TransfuseError
from transfuse.io.files import atomic_file, atomic_folder, file_sha256, write_errors, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_with_its_folder(tmp_path):
    write_text(tmp_path / "new" / "deep" / "a.txt", "Größe\n")
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == "Größe\n".encode()
    assert names(tmp_path / "new" / "deep") == ["a.txt"]


def test_a_file_is_readable_by_others(tmp_path):
    write_text(tmp_path / "a.txt", "")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def write_half(target: AbstractContextManager[Path], name: str, fault: BaseException) -> None:
    """Begin to write a file, or one of that name in a folder, and fail."""
    with target as temporary:
        (temporary / name).write_text("half")
        raise fault


@pytest.mark.parametrize("fault", [ValueError("mine"), KeyboardInterrupt(), DataError("bad line")])
def test_a_failed_file_leaves_the_old_one_and_no_other(tmp_path, fault):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(type(fault)):
        write_half(atomic_file(path), "", fault)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_stays_until_the_end(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def write_folder(path: Path, **files: str) -> None:
    with atomic_folder(path) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text)


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    write_folder(tmp_path / "out", a="1", b="2")
    write_folder(tmp_path / "out", b="3")
    assert names(tmp_path / "out") == ["b"]
    assert (tmp_path / "out" / "b").read_text() == "3"
    assert names(tmp_path) == ["out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


@pytest.mark.parametrize("has_old", [True, False])
def test_a_failed_folder_leaves_the_old_one_and_no_other(tmp_path, has_old):
    if has_old:
        write_folder(tmp_path / "out", a="old")
    with pytest.raises(KeyboardInterrupt):
        write_half(atomic_folder(tmp_path / "out"), "a", KeyboardInterrupt())
    assert names(tmp_path) == (["out"] if has_old else [])
    assert not has_old or (tmp_path / "out" / "a").read_text() == "old"


@pytest.mark.parametrize("n_moves", [0, 1])
def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path, monkeypatch, n_moves):
    out = tmp_path / "out"
    write_folder(out, a="old")
    real, moved = Path.replace, []

    def fails_once(self, target):
        moved.append(self)
        if len(moved) == n_moves + 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fails_once)
        with pytest.raises(RunFolderError, match="Input/output error"):
            write_folder(out, a="new")
    assert (out / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "write", [lambda path: write_text(path, "x"), lambda path: write_folder(path, a="x")]
)
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "the disk is full; free space"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "no permission to write there"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "choose another folder"),
    ],
)
def test_what_the_system_refuses_is_said_with_advice(tmp_path, monkeypatch, write, code, advice):
    def refuses(self, *arguments, **options):
        raise OSError(code, os.strerror(code))

    path = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refuses)
        with pytest.raises(RunFolderError, match=advice) as caught:
            write(path)
    assert str(caught.value).startswith(f"{path}: expected to write here, got '{os.strerror(code)}'")
    assert isinstance(caught.value, OSError)
    assert names(tmp_path) == []


def test_a_full_disk_reported_as_another_error_is_known(tmp_path):
    class SafetensorError(Exception):
        pass

    with pytest.raises(RunFolderError, match="the disk is full"), write_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_other_errors_pass_unchanged(tmp_path):
    fault = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught, write_errors(tmp_path):
        raise fault
    assert caught.value is fault
    ours = RunFolderError("said already")
    with pytest.raises(TransfuseError, match=r"^said already$"), write_errors(tmp_path):
        raise ours


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_json_is_readable_and_strict(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "ä": [\n  1,\n  null\n ]\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert "ä" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
