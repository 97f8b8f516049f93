"""Fused targets on disk, and training rows that are read from there one at a time.

A folder of plain arrays, little-endian, one file each, and `targets.json`, written last, which tells their types and
counts. Nothing of them is held in memory: a row is made when training asks for it.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final, overload

import numpy as np
import torch
from jaxtyping import Int

from transfuse.errors import DataError
from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.targets import FusedPiece
from transfuse.io.files import atomic_folder, write_json
from transfuse.train.batches import TrainingRow
from transfuse.train.soft_targets import ChunkTargets, SoftTargets

FORMAT = 1
HEADER_FILE = "targets.json"
N_PROMPT = 1
"""Tokens of a row that are not learned: nothing predicts the first."""

_SMALL_VOCABULARY = 1 << 16


class TargetCounts(NamedTuple):
    """How many tokens of a set of pieces each source teaches."""

    n_tokens: int
    """Predicted ones."""
    by_source: list[int]
    n_untaught: int


def write_targets(
    folder: Path,
    pieces: Iterable[FusedPiece],
    settings: FusionSettings,
    *,
    n_vocab: int,
    n_kept: int,
    is_exact: bool = False,
) -> None:
    """Write fused targets, whole or not at all.

    Args:
        folder: of their own; an earlier one is replaced.
        pieces: in the order of the texts; consumed one at a time.
        settings: with which they were fused.
        n_vocab: tokens of the target.
        n_kept: tokens kept of each distribution.
        is_exact: whether log-probabilities take 32 bits, where 16 are within 0.05 % of each.

    Raises:
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    id_type = np.uint16 if n_vocab <= _SMALL_VOCABULARY else np.int32
    types: dict[str, Any] = {"token_ids": np.int32, "piece_ends": np.int64}
    if settings.divergence == "chunk-likelihood":
        types |= {"chunk_ends": np.int64, "chunk_tokens": np.int32, "chunk_log_probs": np.float32}
    else:
        types |= {
            "kept_ids": id_type,
            "kept_log_probs": np.float32 if is_exact else np.float16,
            "sources": np.int8,
        }
    n_tokens = n_chunks = n_pieces = 0
    with atomic_folder(folder) as temporary:
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {
                name: stack.enter_context((temporary / f"{name}.bin").open("wb")) for name in types
            }

            def append(name: str, values: Any) -> None:
                files[name].write(np.ascontiguousarray(values, dtype=types[name]).tobytes())

            for piece in pieces:
                n_pieces += 1
                n_tokens += len(piece.token_ids)
                append("token_ids", piece.token_ids)
                append("piece_ends", n_tokens)
                if piece.chunks is not None:
                    n_chunks += len(piece.chunks.start)
                    append("chunk_ends", n_chunks)
                    append("chunk_tokens", np.stack([piece.chunks.start, piece.chunks.end], axis=1))
                    append("chunk_log_probs", piece.chunks.log_probs)
                else:
                    append("kept_ids", _padded(piece.states.token_ids, n_kept, 0.0))
                    append("kept_log_probs", _padded(piece.states.log_probs, n_kept, -np.inf))
                    append("sources", piece.states.source)
        header = {
            "format": FORMAT,
            "n_pieces": n_pieces,
            "n_tokens": n_tokens,
            "n_chunks": n_chunks,
            "n_kept": n_kept,
            "arrays": {name: np.dtype(each).str for name, each in types.items()},
            "settings": settings.model_dump(mode="json"),
        }
        write_json(temporary / HEADER_FILE, header)


def write_plain_targets(folder: Path, pieces: Iterable[Int[np.ndarray, " tokens"]]) -> None:
    """Write pieces without targets, to be learned as they are; whole or not at all.

    Args:
        folder: of their own; an earlier one is replaced.
        pieces: token ids of each, in order; consumed one at a time.

    Raises:
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    n_tokens = n_pieces = 0
    types = {"token_ids": np.dtype("<i4"), "piece_ends": np.dtype("<i8")}
    with atomic_folder(folder) as temporary:
        with (
            (temporary / "token_ids.bin").open("wb") as ids,
            (temporary / "piece_ends.bin").open("wb") as ends,
        ):
            for piece in pieces:
                n_pieces += 1
                n_tokens += len(piece)
                ids.write(np.asarray(piece, dtype=types["token_ids"]).tobytes())
                ends.write(np.asarray(n_tokens, dtype=types["piece_ends"]).tobytes())
        header = {
            "format": FORMAT,
            "n_pieces": n_pieces,
            "n_tokens": n_tokens,
            "n_chunks": 0,
            "n_kept": 0,
            "arrays": {name: each.str for name, each in types.items()},
            "settings": FusionSettings().model_dump(mode="json"),
        }
        write_json(temporary / HEADER_FILE, header)


@final
class TargetRows(Sequence[TrainingRow]):
    """Training rows with their fused targets, read when they are asked for."""

    def __init__(self, folder: Path, *, is_plain: bool = False) -> None:
        """Open a folder of `write_targets`.

        Args:
            folder: the folder.
            is_plain: whether to leave the targets out: the same tokens, learned as they are.

        Raises:
            DataError: there is none, it is of another format, or a file is missing or cut short.
        """
        header = _read_header(folder)
        has_targets = bool({"kept_ids", "chunk_ends"} & header["arrays"].keys())
        self._is_plain = is_plain or not has_targets
        self._settings = FusionSettings.model_validate(header["settings"])
        n_kept, n_tokens, n_pieces, n_chunks = (
            header[name] for name in ("n_kept", "n_tokens", "n_pieces", "n_chunks")
        )
        shapes = {
            "token_ids": (n_tokens,),
            "piece_ends": (n_pieces,),
            "kept_ids": (n_tokens, n_kept),
            "kept_log_probs": (n_tokens, n_kept),
            "sources": (n_tokens,),
            "chunk_ends": (n_pieces,),
            "chunk_tokens": (n_chunks, 2),
            "chunk_log_probs": (n_chunks,),
        }
        self._arrays = {
            name: _open_array(folder / f"{name}.bin", np.dtype(kind), shapes[name])
            for name, kind in header["arrays"].items()
        }
        self._ends: Int[np.ndarray, " pieces"] = np.array(self._arrays["piece_ends"], dtype=np.int64)
        lengths = np.diff(self._ends, prepend=0)
        self._pieces: list[int] = np.flatnonzero(lengths > N_PROMPT).tolist()
        self.lengths: list[int] = lengths[self._pieces].tolist()
        """Tokens of each row, without reading any."""

    def __len__(self) -> int:
        """Number of rows: pieces of which anything can be learned."""
        return len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> TrainingRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingRow]: ...
    def __getitem__(self, index: int | slice) -> TrainingRow | list[TrainingRow]:
        """A row, or several."""
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        piece = self._pieces[index]
        start, stop = self._bounds("piece_ends", piece)
        token_ids: list[int] = self._arrays["token_ids"][start:stop].tolist()
        if self._is_plain:
            return TrainingRow(token_ids, N_PROMPT)
        soft = self._chunks(piece) if "chunk_ends" in self._arrays else self._distributions(start, stop)
        return TrainingRow(token_ids, N_PROMPT, soft=soft)

    def counts(self, n_sources: int, pieces: Int[np.ndarray, " chosen"] | None = None) -> TargetCounts:
        """How many predicted tokens each source teaches.

        Args:
            n_sources: that were fused.
            pieces: which ones to count in; None counts all.

        Returns:
            Counts; none by source where chunks are learned.
        """
        chosen = np.arange(len(self._ends)) if pieces is None else pieces
        n_tokens, by_source = 0, np.zeros(n_sources + 1, dtype=np.int64)
        for piece in chosen.tolist():
            start, stop = self._bounds("piece_ends", piece)
            n_tokens += max(0, stop - 1 - start)
            if "sources" in self._arrays and stop - 1 > start:
                by_source += np.bincount(
                    self._arrays["sources"][start : stop - 1] + 1, minlength=n_sources + 1
                )
        return TargetCounts(n_tokens, by_source[1:].tolist(), int(by_source[0]))

    def _bounds(self, name: str, piece: int) -> tuple[int, int]:
        ends = self._arrays[name]
        return (int(ends[piece - 1]) if piece else 0), int(ends[piece])

    def _distributions(self, start: int, stop: int) -> SoftTargets:
        """State i predicts token i + 1, so the states of a row's learned tokens are all but the last."""
        states = slice(start + N_PROMPT - 1, stop - 1)
        log_probs = torch.from_numpy(self._arrays["kept_log_probs"][states].astype(np.float32))
        return SoftTargets(
            torch.from_numpy(self._arrays["kept_ids"][states].astype(np.int32)),
            log_probs,
            temperature=1.0,
            hard_weight=self._settings.clm_weight,
            divergence=self._settings.divergence,  # type: ignore[arg-type] - chunks are told apart by their arrays
            is_taught=(log_probs > -torch.inf).any(dim=1),
            jsd_beta=self._settings.jsd_beta,
        )

    def _chunks(self, piece: int) -> ChunkTargets:
        start, stop = self._bounds("chunk_ends", piece)
        tokens = torch.from_numpy(self._arrays["chunk_tokens"][start:stop].astype(np.int32))
        return ChunkTargets(
            tokens[:, 0] - N_PROMPT,
            tokens[:, 1] - N_PROMPT,
            torch.from_numpy(np.minimum(self._arrays["chunk_log_probs"][start:stop], 0.0)),
            self._settings.chunk_temperature,
            self._settings.clm_weight,
        )


def _padded(values: np.ndarray, n_kept: int, pad: float) -> np.ndarray:
    width = values.shape[1]
    return (
        values[:, :n_kept]
        if width >= n_kept
        else np.pad(values, ((0, 0), (0, n_kept - width)), constant_values=pad)
    )


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = dict(json.loads((folder / HEADER_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise DataError(
            f"{folder}: expected fused targets with {HEADER_FILE}, got {err}; run the stage again."
        ) from err
    if header.get("format") != FORMAT:
        raise DataError(
            f"{folder}: expected fused targets of format {FORMAT}, got {header.get('format')!r}; delete the folder and "
            "run the same command again."
        )
    return header


def _open_array(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    expected = int(np.prod(shape)) * kind.itemsize
    try:
        n_bytes = path.stat().st_size
    except OSError as err:
        raise DataError(
            f"{path}: expected fused targets, got '{err.strerror}'; run the stage again."
        ) from err
    if n_bytes != expected:
        raise DataError(
            f"{path}: expected {expected} bytes, got {n_bytes}: cut short or of another run; delete the folder and run "
            "the same command again."
        )
    if not n_bytes:
        return np.zeros(shape, dtype=kind)  # a file of no bytes cannot be mapped
    return np.memmap(path, dtype=kind, mode="r").reshape(shape)
