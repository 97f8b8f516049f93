"""The folder of an index: generations of files, of which `index.json` names the one that counts."""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from transfuse.errors import DataError, IndexFolderError, TransfuseError
from transfuse.io.files import file_sha256, write_errors, write_json
from transfuse.knowledge.records import IndexInfo

INFO_FILE = "index.json"
_LOCK_FILE = ".lock"
_GENERATION = re.compile(r"generation-[0-9a-f]{12}")
_FORMAT = 1
_N_SHOWN = 8

Opened = TypeVar("Opened")


def read_info(path: Path) -> IndexInfo:
    """What an index says of itself.

    Args:
        path: the index's folder.

    Returns:
        The contents of its `index.json`.

    Raises:
        IndexFolderError: no index is there, `index.json` is damaged, or of another format.
    """
    try:
        tree = json.loads((path / INFO_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as err:
        got = f"a folder without {INFO_FILE}" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise IndexFolderError(
            f"{path}: expected a knowledge index, found {got}; make one with `transfuse index build DOCS --out {path}`."
        ) from err
    except (OSError, ValueError) as err:
        raise IndexFolderError(f"{path / INFO_FILE}: cannot be read ({err}); {_again(path)}") from err
    found = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(tree, dict) and found != _FORMAT:
        raise IndexFolderError(
            f"{path}: expected an index of format {_FORMAT}, found format {found!r}; use the version of transfuse "
            f"that wrote it, or {_again(path)}"
        )
    try:
        return IndexInfo.model_validate(tree)
    except ValidationError as err:
        first = err.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "contents"
        raise IndexFolderError(f"{path / INFO_FILE}: {name}: {first['msg']}; {_again(path)}") from err


def open_generation(path: Path, read: Callable[[Path, IndexInfo], Opened], *, verify: bool = False) -> Opened:
    """Open the generation that counts, again if a writer replaced it meanwhile.

    Args:
        path: the index's folder.
        read: opens the generation's folder; all that is needed later is to be open when it returns, for the folder
            is removed as soon as a newer generation is there.
        verify: compare the checksums first; else only the sizes of the files are looked at.

    Returns:
        What `read` gave.

    Raises:
        IndexFolderError: no index is there, or it is damaged.
    """
    info = read_info(path)
    while True:
        try:
            check_files(path, info, verify=verify)
            return read(path / info.generation, info)
        except (OSError, ValueError, EOFError, KeyError, TypeError) as err:
            newer = read_info(path)
            if newer.generation == info.generation:
                if isinstance(err, IndexFolderError):
                    raise
                reason = " ".join(str(err).split()) or type(err).__name__
                raise IndexFolderError(
                    f"{path / info.generation}: cannot be read ({reason}); {_again(path)}"
                ) from err
            info = newer


def check_files(path: Path, info: IndexInfo, *, verify: bool = False) -> None:
    """Refuse an index whose files are missing or changed.

    Args:
        path: the index's folder.
        info: what its `index.json` says.
        verify: compare the checksums, which reads every file; else only presence and size in sum.

    Raises:
        IndexFolderError: a file is missing, or not the one that was written (it is named).
    """
    folder = path / info.generation
    sizes: list[int] = []
    for name in info.files:
        try:
            sizes.append((folder / name).stat().st_size)
        except OSError as err:
            raise IndexFolderError(
                f"{folder / name}: expected a file of the index, got '{err.strerror}'; {_again(path)}"
            ) from err
    if not verify and sum(sizes) == info.n_bytes:
        return
    try:
        changed = [name for name, sha256 in info.files.items() if file_sha256(folder / name) != sha256]
    except DataError as err:
        raise IndexFolderError(f"{err} {_again(path)}") from err
    if changed:
        raise IndexFolderError(
            f"{folder}: expected the files that were written, but the checksum differs of "
            f"{', '.join(changed[:_N_SHOWN])}; {_again(path)}"
        )


def _again(path: Path) -> str:
    return f"build it anew with `transfuse index build DOCS --out {path} --overwrite`, or copy it again."


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse to build where an index is, unless it may be replaced, and where other things are.

    Args:
        path: where the index is to be.
        overwrite: whether an index that is there may be replaced.

    Raises:
        IndexFolderError: an index is there and `overwrite` is false, or the folder holds other things.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise IndexFolderError(
            f"{path}: expected a folder for the index, this is a file; choose another --out."
        )
    strangers = sorted(entry.name for entry in path.iterdir() if not _is_ours(entry.name))
    if strangers:
        raise IndexFolderError(
            f"{path}: expected a new or empty folder, or an index; found {strangers[:_N_SHOWN]}. Choose another --out."
        )
    if (path / INFO_FILE).exists() and not overwrite:
        raise IndexFolderError(
            f"{path}: an index is there already; `transfuse index add {path} DOCS` adds to it, --overwrite replaces it."
        )


def _is_ours(name: str) -> bool:
    return name in (INFO_FILE, _LOCK_FILE) or _is_leftover(name)


def _is_leftover(name: str) -> bool:
    """Whether a writer may have left it, the generation that counts aside."""
    return bool(_GENERATION.fullmatch(name)) or name.startswith(f".{INFO_FILE}.")


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Hold an index against other writers, and remove what killed ones left; readers are not held up.

    Args:
        path: the index's folder; made where it is not there.
        overwrite: whether an index that cannot be read is to be replaced.

    Yields:
        Nothing.

    Raises:
        IndexFolderError: another process is writing, or the index cannot be read.
        RunFolderError: the folder cannot be written.
    """
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK_FILE).open("w")
    with lock:
        try:
            fcntl.flock(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system lets go when the process ends, however
        except BlockingIOError as err:
            raise IndexFolderError(
                f"{path}: another transfuse process is changing this index; wait for it."
            ) from err
        try:
            _remove_leftovers(path)
        except IndexFolderError:  # nobody knows which generation counts
            if not overwrite:
                raise
        yield


def _remove_leftovers(path: Path) -> None:
    """Remove every generation but the one that counts; what cannot be removed now is left to the next writer."""
    kept = read_info(path).generation if (path / INFO_FILE).exists() else None
    for entry in path.iterdir():
        if entry.name == kept or not _is_leftover(entry.name):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


@contextmanager
def new_generation(path: Path) -> Iterator[Path]:
    """A folder for a new generation's files, removed again where the block fails.

    Args:
        path: the index's folder, which the caller holds.

    Yields:
        The generation's folder, empty.

    Raises:
        RunFolderError: it cannot be written.
    """
    folder = path / f"generation-{uuid.uuid4().hex[:12]}"  # never one that an earlier index here had
    with write_errors(folder):
        folder.mkdir()
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def file_checksums(folder: Path) -> tuple[dict[str, str], int]:
    """SHA-256 of every file below a folder, by relative path, and their size together; all are on the disk then."""
    checksums: dict[str, str] = {}
    n_bytes = 0
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        with write_errors(file), file.open("rb") as written:
            os.fsync(written.fileno())
        n_bytes += file.stat().st_size
        checksums[file.relative_to(folder).as_posix()] = file_sha256(file)
    return checksums, n_bytes


def make_current(path: Path, info: IndexInfo) -> None:
    """Write `index.json`, from which moment on readers see the new generation, and remove the others."""
    try:
        write_json(path / INFO_FILE, info.model_dump(mode="json"))
    except BaseException:
        with suppress(TransfuseError):  # else the other generation counts, if any
            if read_info(path).generation == info.generation:
                raise
        shutil.rmtree(path / info.generation, ignore_errors=True)
        raise
    _remove_leftovers(path)
