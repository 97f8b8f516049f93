"""Weights of a model folder, read a few at a time from its safetensors files, with every byte counted."""

from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transfuse.errors import ModelError
from transfuse.io.references import WEIGHTS, WEIGHTS_INDEX, weight_files

_STORED_TYPES = ("BF16", "F16", "F32", "F64")


@final
class WeightFiles:
    """The safetensors files of a model folder; nothing is held between two readings."""

    def __init__(self, folder: Path, aliases: tuple[tuple[str, str], ...] = ()) -> None:
        """Read which weights there are.

        Args:
            folder: holds one file or several with their index.
            aliases: prefixes of names, and what stands in the files in their place.

        Raises:
            ModelError: there are no safetensors files, one is missing or damaged, or they are not floating-point.
        """
        self.folder = folder
        self.bytes_read = 0
        """Of weights, so far."""
        self._aliases = aliases
        self.files = weight_files(folder)
        if not self.files:
            raise ModelError(_no_weights(folder))
        self._file_of: dict[str, Path] = {}
        for file in self.files:
            if not file.is_file():
                raise ModelError(
                    f"{folder}: {WEIGHTS_INDEX} names {file.name}, which is missing; copy it again."
                )
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - not a dict
                        self._file_of[name] = file
            except (SafetensorError, OSError) as err:
                raise _damaged(file, err) from err

    def identity(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file: what tells these weights from others without reading them."""
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]

    def has(self, name: str) -> bool:
        """Whether a weight is there, under its own name or an alias."""
        return self._stored_name(name) is not None

    def read(
        self, names: Iterable[str], dtype: torch.dtype | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Whole weights.

        Args:
            names: parameter names in memory.
            dtype: the type wanted; None keeps each one's own.
            device: where they are put.

        Returns:
            Copies in memory, by the names given.

        Raises:
            ModelError: a weight is not in the files, or a file has become unreadable.
        """
        found: dict[str, Tensor] = {}
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[self._known(name)], []).append(name)
        for file, within in by_file.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in within:
                        stored = self._checked(opened, name)
                        found[name] = stored.to(device, dtype, copy=True)  # the map of the file is let go
                        self.bytes_read += stored.nbytes
            except (SafetensorError, OSError) as err:
                raise _damaged(file, err) from err
        return found

    def rows(self, name: str, ids: Int[Tensor, " rows"], dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """A few rows of a matrix; only they are read.

        Args:
            name: the matrix.
            ids: which rows, in any order, also repeated.
            dtype: the type wanted.

        Returns:
            The rows, in the order given, on the CPU.

        Raises:
            ModelError: the weight is not in the files, or its file has become unreadable.
        """
        known, back = torch.unique(ids.cpu(), return_inverse=True)
        file = self._file_of[self._known(name)]
        try:
            with safe_open(file, framework="pt") as opened:
                found = self._checked(opened, name)[known].to(dtype)
        except (SafetensorError, OSError) as err:
            raise _damaged(file, err) from err
        self.bytes_read += len(known) * self.row_bytes(name)
        return found[back]

    def part(self, name: str, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """A contiguous part of a matrix, in its own type on the CPU; no more than it is read.

        Args:
            name: the matrix.
            rows: which rows.
            columns: which columns.

        Returns:
            The part.

        Raises:
            ModelError: the weight is not in the files, or its file has become unreadable.
        """
        stored = self._known(name)
        file = self._file_of[stored]
        try:
            with safe_open(file, framework="pt") as opened:
                found = opened.get_slice(stored)[rows, columns]
        except (SafetensorError, OSError) as err:
            raise _damaged(file, err) from err
        self.bytes_read += found.nbytes
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape, from the file's header; a ModelError where there is none of that name."""
        stored = self._known(name)
        with safe_open(self._file_of[stored], framework="pt") as opened:
            return tuple(opened.get_slice(stored).get_shape())

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of a matrix as stored."""
        stored = self._known(name)
        with safe_open(self._file_of[stored], framework="pt") as opened:
            sizes = {"F64": 8, "F32": 4}
            part = opened.get_slice(stored)
            return part.get_shape()[-1] * sizes.get(part.get_dtype(), 2)

    def _checked(self, opened: safe_open, name: str) -> Tensor:
        stored = self._known(name)
        kind = opened.get_slice(stored).get_dtype()
        if kind not in _STORED_TYPES:
            raise ModelError(
                f"{self._file_of[stored]}: expected {stored} in {', '.join(_STORED_TYPES)}, got {kind}; "
                "give the model as it was before it was quantised."
            )
        return opened.get_tensor(stored)

    def _known(self, name: str) -> str:
        stored = self._stored_name(name)
        if stored is None:
            near = sorted(self._file_of)[:3]
            raise ModelError(
                f"{self.folder}: expected the weight files to hold {name}, they do not (they begin with "
                f"{', '.join(near)}); load the model and write it again with save_pretrained."
            )
        return stored

    def _stored_name(self, name: str) -> str | None:
        names = [name]
        names += [there + name.removeprefix(here) for here, there in self._aliases if name.startswith(here)]
        return next((each for each in names if each in self._file_of), None)


def _no_weights(folder: Path) -> str:
    pickled = sorted(folder.glob("*.bin"))
    if pickled:
        return (
            f"{folder}: {pickled[0].name} is pickled and could run code; expected safetensors. If you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    return (
        f"{folder}: expected weights in {WEIGHTS} or {WEIGHTS_INDEX}, found neither; copy the model again, "
        "or write it with save_pretrained."
    )


def _damaged(file: Path, err: Exception) -> ModelError:
    return ModelError(f"{file}: the weights are damaged or cut short ({err}); copy the file again.")
