"""Files that appear whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfuse.errors import DataError, RunFolderError

_ADVICE = {
    errno.ENOSPC: "the disk is full; free space or choose another folder, then run again to continue",
    errno.EDQUOT: "the disk quota is used up; free space or choose another folder, then run again to continue",
    errno.EACCES: "no permission to write there; choose a folder of your own",
    errno.EPERM: "no permission to write there; choose a folder of your own",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a part of the path is a file, not a folder; choose another folder",
}


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one clear error.

    Args:
        path: what is being written; named in the error.

    Yields:
        Nothing.

    Raises:
        RunFolderError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except RunFolderError:
        raise
    except OSError as err:
        advice = _ADVICE.get(err.errno or 0, "choose another folder")
        raise RunFolderError(
            f"{path}: expected to write here, got '{err.strerror or err}': {advice}."
        ) from err
    except Exception as err:  # safetensors reports a full disk as its own error type
        if "No space left" in str(err):
            raise RunFolderError(f"{path}: {_ADVICE[errno.ENOSPC]}.") from err
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well, removed when it does not.

    Args:
        path: the file to write; its folder is made.

    Yields:
        The temporary path to write to.

    Raises:
        RunFolderError: the place cannot be written, or the disk is full.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well.

    Args:
        path: the folder to write; an earlier one of that name is replaced.

    Yields:
        The temporary folder to write into.

    Raises:
        RunFolderError: the place cannot be written, or the disk is full.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                try:
                    path.replace(old / path.name)
                    try:
                        temporary.replace(path)
                    except BaseException:
                        (old / path.name).replace(path)
                        raise
                finally:
                    if path.exists():  # else the old one could not be put back: it is all there is
                        shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise DataError(f"{path}: expected a file, got '{err.strerror}'; check the path.") from err
