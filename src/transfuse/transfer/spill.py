"""Layer inputs and gradients in files: memory-mapped, whole or absent, so that a killed run goes on.

A file is reserved in full before it is mapped (a full disk is met there, not in the middle of a layer), and ends with
a checksum that is looked at once by the run that finds it.
"""

import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from transfuse.errors import RunFolderError
from transfuse.io.files import write_errors, write_json

_TRAILER_BYTES = 4


@final
class Spill:
    """Named groups of tensors in a folder; all groups have the same shapes."""

    def __init__(
        self, folder: Path, key: str, shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype
    ) -> None:
        """Open the folder, or empty it of what another run with other weights, samples or settings left.

        Args:
            folder: made where there is none; files that are not a spill's are left alone.
            key: of everything the contents depend on.
            shapes: of the tensors of every group.
            dtype: of all tensors.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        self.folder = folder
        self._shapes, self._dtype = list(shapes), dtype
        self._sizes = [prod(shape) for shape in shapes]
        self._checked: set[str] = set()
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if self.note("key") != key:
                self.clear()
                self.write_note("key", key)
            for left in folder.glob(".*.spill.*"):  # of a run that was killed while writing
                left.unlink()

    @property
    def group_bytes(self) -> int:
        """Bytes of one group's file."""
        return sum(self._sizes) * self._dtype.itemsize + _TRAILER_BYTES

    def check_room(self, n_groups: int) -> None:
        """Refuse to begin where so many groups will not fit.

        Args:
            n_groups: how many files are to stand there at once, beyond those there are.

        Raises:
            RunFolderError: the disk has less free space.
        """
        needed, free = n_groups * self.group_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise RunFolderError(
                self._no_room(needed, f"inputs of {n_groups} layers still to be written", free)
            )

    def has(self, name: str) -> bool:
        """Whether a group is there, whole and undamaged."""
        if name in self._checked:
            return True
        path = self._path(name)
        if not path.is_file() or path.stat().st_size != self.group_bytes:
            return False
        with path.open("rb") as file:
            file.seek(-_TRAILER_BYTES, os.SEEK_END)
            is_whole = file.read() == _checksum(self._mapped(path, is_shared=False))
        if is_whole:
            self._checked.add(name)
        return is_whole

    @contextmanager
    def writing(self, name: str) -> Iterator[list[Tensor]]:
        """Tensors to fill; the group is there once the block has ended well, and not before.

        Args:
            name: an earlier group of that name is replaced.

        Yields:
            Zeros of the group's shapes, mapped to a file.

        Raises:
            RunFolderError: the disk is full.
        """
        path = self._path(name)
        handle, temporary_name = tempfile.mkstemp(prefix=f".{name}.spill.", dir=self.folder)
        temporary = Path(temporary_name)
        try:
            self._reserve(handle, path)
            flat = self._mapped(temporary, is_shared=True)
            yield self._parts(flat)
            with write_errors(path):
                os.pwrite(handle, _checksum(flat), self.group_bytes - _TRAILER_BYTES)
                temporary.replace(path)
            self._checked.add(name)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> list[Tensor]:
        """A group's tensors, mapped; writing to them changes nothing on disk."""
        return self._parts(self._mapped(self._path(name), is_shared=False))

    def remove(self, *names: str) -> None:
        """Remove groups that are no longer needed; what is not there is passed over."""
        for name in names:
            self._checked.discard(name)
            self._path(name).unlink(missing_ok=True)

    def remove_groups(self) -> None:
        """Remove all groups; notes stay."""
        for path in self.folder.glob("*.spill"):
            path.unlink()
        self._checked.clear()

    def write_note(self, name: str, value: Any) -> None:
        """Keep a JSON value beside the groups."""
        write_json(self._note_path(name), value)

    def note(self, name: str) -> Any:
        """A value kept, or None where there is none."""
        try:
            return json.loads(self._note_path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def clear(self) -> None:
        """Remove all groups and notes but the key."""
        self.remove_groups()
        for path in self.folder.glob("*.note.json"):
            if path != self._note_path("key"):
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.spill"

    def _note_path(self, name: str) -> Path:
        return self.folder / f"{name}.note.json"

    def _reserve(self, handle: int, path: Path) -> None:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, self.group_bytes)
            else:  # a map of a file with holes would kill the process where the disk is full
                for start in range(0, self.group_bytes, 1 << 20):
                    os.pwrite(handle, bytes(min(1 << 20, self.group_bytes - start)), start)
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self.folder).free
                raise RunFolderError(self._no_room(self.group_bytes, path.name, free)) from err
            with write_errors(path):
                raise

    def _no_room(self, needed: int, what: str, free: int) -> str:
        return (
            f"{self.folder}: expected room for {needed} bytes ({needed / 2**30:.2f} GiB: {what}), got {free} bytes: "
            "the disk is full; free space or choose another folder, then run again to continue."
        )

    def _mapped(self, path: Path, *, is_shared: bool) -> Tensor:
        return torch.from_file(str(path), shared=is_shared, size=sum(self._sizes), dtype=self._dtype)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _checksum(flat: Tensor) -> bytes:
    return zlib.crc32(flat.view(torch.uint8).numpy().data).to_bytes(_TRAILER_BYTES, "little")
